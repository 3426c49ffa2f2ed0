"""Dynamics against theory: orders, eigenvalues, energy, and what can be undone."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

from synaptome.networks.dynamics import DYNAMICS, REVERSIBLE, energy, join
from synaptome.networks.forces import FORCES, antisymmetric, apply, apply_transposed, step_bound

WIDTH = 6
# The differential equations by themselves, of y or of (y, z), with the matrix K.
EQUATIONS = {
    "euler": lambda y, K, b: np.tanh(K @ y + b),
    "runge-kutta": lambda y, K, b: np.tanh(K @ y + b),
    "antisymmetric": lambda y, K, b: np.tanh((K - K.T - 0.3 * np.eye(len(b))) @ y / 2 + b),
    "leapfrog": lambda y, K, b: np.concatenate((y[len(b) :], -K.T @ np.tanh(K @ y[: len(b)] + b))),
    "verlet": lambda y, K, b: np.concatenate((np.tanh(K @ y[len(b) :] + b), -np.tanh(K.T @ y[: len(b)] + b))),
    "hamiltonian": lambda y, K, b: np.concatenate(
        (-K.T @ np.tanh(K @ y[len(b) :] + b), K.T @ np.tanh(K @ y[: len(b)] + b))
    ),
}


def drawn(width=WIDTH, dtype=torch.float64, seed=1):
    """Weights and biases of one layer, and two fields."""
    g = torch.Generator().manual_seed(seed)
    K = torch.randn(width, width, generator=g, dtype=torch.float64) / math.sqrt(width)
    b, y, z = torch.randn(3, width, generator=g, dtype=torch.float64)
    return K.to(dtype), b.to(dtype) / 2, y.to(dtype), z.to(dtype)


def exact(name, start, K, b, time):
    field = EQUATIONS[name]
    options = {"method": "DOP853", "rtol": 1e-13, "atol": 1e-13}
    return solve_ivp(lambda _, y: field(y, K.numpy(), b.numpy()), (0, time), start.numpy(), **options).y[:, -1]


def after(name, state, K, b, time, steps, half_kick=True):
    method = DYNAMICS[name]
    for j in range(steps):
        state = method.step(state, K, b, time / steps, kick=0.5 if half_kick and j == 0 else 1.0)
    return state


@pytest.mark.parametrize(
    ("name", "half_kick", "order"),
    [
        ("euler", True, 1),
        ("antisymmetric", True, 1),
        ("leapfrog", True, 1),
        ("verlet", False, 1),
        ("verlet", True, 2),
        ("hamiltonian", True, 2),
        ("runge-kutta", True, 4),
    ],
)
def test_order(name, half_kick, order):
    K, b, y, z = drawn()
    method = DYNAMICS[name]
    starts = {"hamiltonian": (y, z), "verlet": (y, 0 * y), "leapfrog": (y, 0 * y)}
    start = torch.cat(starts.get(name, (y,)))
    K_step = antisymmetric(K, 0.3) if method.tied else K
    truth = exact(name, start, K, b, 2.0)
    errors = []
    for steps in (32, 64, 128, 256):
        opened = method.opened(start[None] if method.halves else y[None])
        features = method.features(after(name, opened, K_step, b, 2.0, steps, half_kick))[0].numpy()
        errors.append(np.abs(features - truth[: len(features)]).max())
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    assert slopes == pytest.approx([order] * 3, abs=0.12)


def test_leapfrog_is_of_second_order_from_a_start_of_second_order():
    """Taylor's `Y(-h) = Y(0) + h^2 Y''(0) / 2` for the field before, where the network takes Y(0)."""
    K, b, y, _ = drawn()
    truth = exact("leapfrog", torch.cat((y, torch.zeros_like(y))), K, b, 2.0)[:WIDTH]
    errors = []
    for steps in (32, 64, 128):
        before = y - (2.0 / steps) ** 2 / 2 * (torch.tanh(y @ K.T + b) @ K)
        errors.append(np.abs(after("leapfrog", (y[None], before[None]), K, b, 2.0, steps)[0][0].numpy() - truth).max())
    assert [math.log2(coarse / fine) for coarse, fine in pairwise(errors)] == pytest.approx([2, 2], abs=0.05)


# Each round trip ends within this distance of the state, which is of order 1. The two-step recurrence of leapfrog sums
# its rounding errors twice, so that they grow faster with the number of steps.
ROUNDING = {"verlet": (2e-15, 1e-6), "hamiltonian": (4e-15, 2e-6), "leapfrog": (5e-14, 1e-4)}


@pytest.mark.parametrize("name", REVERSIBLE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_256_steps_can_be_undone(name, dtype):
    K, b, y, z = drawn(dtype=dtype)
    method = DYNAMICS[name]
    start = state = (y[None], z[None]) if name != "leapfrog" else (y[None], y[None])
    kicks = [0.5] + [1.0] * 255
    for kick in kicks:
        state = method.step(state, K, b, 10 / 256, kick=kick)
    assert max((now - then).abs().max().item() for now, then in zip(state, start, strict=True)) > 0.5
    for kick in reversed(kicks):
        state = method.inverse(state, K, b, 10 / 256, kick=kick)
    gap = max((now - then).abs().max().item() for now, then in zip(state, start, strict=True))
    assert gap < ROUNDING[name][dtype == torch.float32]


def jacobian(field, state):
    return torch.autograd.functional.jacobian(field, state)


def generator(name, K, b):
    """The right-hand side of the equation of a method, from its shears with h = 1."""

    def field(flat):
        fields = flat[None].chunk(2, 1)
        changes = [torch.zeros_like(fields[0])] * 2
        for shear in DYNAMICS[name].shears(1.0, 1.0):
            force = FORCES[shear.force](K, fields[1 - shear.target], b, torch.tanh)
            changes[shear.target] = changes[shear.target] + shear.scale * force
        return torch.cat(changes, 1)[0]

    return field


@pytest.mark.parametrize("name", ["verlet", "hamiltonian"])
def test_eigenvalues_of_reversible_dynamics_are_imaginary(name):
    K, b, y, z = drawn(seed=5)
    field, state = generator(name, K, b), torch.cat((y, z))
    torch.testing.assert_close(field(state), torch.from_numpy(EQUATIONS[name](state.numpy(), K.numpy(), b.numpy())))
    eigenvalues = torch.linalg.eigvals(jacobian(field, state))
    assert eigenvalues.imag.abs().max() > 0.1
    assert eigenvalues.real.abs().max() < 1e-14


def test_verlet_without_the_transpose_would_not_be_stable():
    K, b, y, z = drawn(seed=5)

    def field(flat):
        y, z = flat.chunk(2)
        return torch.cat((torch.tanh(K @ z + b), -torch.tanh(K @ y + b)))

    assert torch.linalg.eigvals(jacobian(field, torch.cat((y, z)))).real.abs().max() > 0.1


@pytest.mark.parametrize("gamma", [0.0, 0.4])
def test_eigenvalues_of_the_antisymmetric_part(gamma):
    K, b, y, _ = drawn(width=7)
    A = antisymmetric(K, gamma)
    eigenvalues = np.linalg.eigvals(A.numpy())
    assert np.abs(eigenvalues.real + gamma / 2).max() < 1e-15
    assert np.abs(eigenvalues.imag).max() > 0.1
    layer = torch.linalg.eigvals(jacobian(lambda y: torch.tanh(A @ y + b), y)).real
    assert layer.max() < 1e-15  # a slope in (0, 1] before a matrix with such a spectrum
    if gamma == 0:
        assert layer.abs().max() < 1e-15
    torch.testing.assert_close(antisymmetric(torch.stack((K, 2 * K)), gamma)[0], A)


def test_eigenvalues_of_steps_lie_on_the_unit_circle():
    K, b, y, z = drawn(seed=3)
    for name in REVERSIBLE:
        step = DYNAMICS[name].step

        def one(flat, step=step):
            return join(step(flat[None].chunk(2, 1), K, b, 0.2))[0]

        sizes = torch.linalg.eigvals(jacobian(one, torch.cat((y, y if name == "leapfrog" else z)))).abs()
        assert (sizes - 1).abs().max() < 1e-13
    euler = torch.eye(2 * WIDTH) + 0.2 * jacobian(generator("verlet", K, b), torch.cat((y, z)))
    assert torch.linalg.eigvals(euler).abs().max() > 1.001


def test_the_hamiltonian_step_is_symplectic():
    K, b, y, z = drawn(seed=4)
    step = DYNAMICS["hamiltonian"].step
    J = jacobian(lambda flat: join(step(flat[None].chunk(2, 1), K, b, 0.7))[0], torch.cat((y, z)))
    eye, none = torch.eye(WIDTH, dtype=torch.float64), torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    omega = torch.cat((torch.cat((none, eye), 1), torch.cat((-eye, none), 1)))
    torch.testing.assert_close(J.T @ omega @ J, omega, rtol=0, atol=1e-14)


def test_energy_drift_falls_by_four_when_the_step_halves():
    K, b, y, z = drawn(seed=2)
    state = torch.stack((y, z))[:, None]
    drifts = []
    for steps in (50, 100, 200, 400):
        fields, energies = tuple(state), []
        for _ in range(steps):
            fields = DYNAMICS["hamiltonian"].step(fields, K, b, 10 / steps)
            energies.append(energy(join(fields), K, b).item())
        drifts.append(max(abs(e - energy(join(tuple(state)), K, b).item()) for e in energies))
    assert [coarse / fine for coarse, fine in pairwise(drifts)] == pytest.approx([4, 4, 4], rel=0.08)


def test_energy_stays_where_explicit_euler_gains_it():
    K, b, y, z = drawn(seed=2)
    fields = euler = (y[None], z[None])
    start = energy(join(fields), K, b).item()
    worst = 0.0
    for _ in range(2000):  # T = 200 with h = 0.1
        fields = DYNAMICS["hamiltonian"].step(fields, K, b, 0.1)
        worst = max(worst, abs(energy(join(fields), K, b).item() - start))
        p, q = euler
        euler = p - 0.1 * torch.tanh(q @ K.T + b) @ K, q + 0.1 * torch.tanh(p @ K.T + b) @ K
    assert worst < 0.01 * start
    assert energy(join(euler), K, b).item() > 2 * start


def test_energy_is_that_of_the_formula_and_does_not_overflow():
    K, b, y, z = drawn()
    state = torch.cat((y, z))[None]
    k, c, p, q = (t.numpy() for t in (K, b, y, z))
    expected = np.log(np.cosh(k @ q + c)).sum() + np.log(np.cosh(k @ p + c)).sum()
    assert energy(state, K, b).item() == pytest.approx(expected, rel=1e-14)
    assert energy(1e4 * state, K, b).item() == pytest.approx(
        (np.abs(1e4 * k @ q + c) + np.abs(1e4 * k @ p + c) - 2 * math.log(2)).sum(), rel=1e-12
    )


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_the_adjoint_of_a_convolution(channels, height, width, batch):
    K = torch.randn(channels, channels, 3, 3, dtype=torch.float64)
    x, y = torch.randn(2, batch, channels, height, width, dtype=torch.float64)
    torch.testing.assert_close((apply(K, x) * y).sum(), (x * apply_transposed(K, y)).sum())
    A = antisymmetric(K, 0.6)
    torch.testing.assert_close((apply(A, x) * x).sum(), -0.3 * (x * x).sum())
    torch.testing.assert_close((apply(A, x) * y).sum(), -(x * apply(A, y)).sum() - 0.6 * (x * y).sum())
    torch.testing.assert_close(antisymmetric(torch.stack((K, 2 * K)), 0.6)[0], A)


@pytest.mark.parametrize(("gamma", "frequency"), [(0.5, 0.0), (0.5, 1.3), (2.0, 0.7)])
def test_the_bound_of_the_step_is_where_explicit_euler_begins_to_grow(gamma, frequency):
    turning = torch.tensor([[0.0, frequency], [0.0, 0.0]], dtype=torch.float64)
    A = antisymmetric(turning, gamma).numpy()
    bound = step_bound(gamma, frequency)
    sizes = [np.abs(np.linalg.eigvals(np.eye(2) + share * bound * A)).max() for share in (0.99, 1.0, 1.01)]
    assert sizes[0] < 1
    assert sizes[1] == pytest.approx(1, abs=1e-7)
    assert sizes[2] > 1


def test_the_bound_of_the_step_without_damping():
    assert step_bound(0.0, 1.0) == 0
    assert step_bound(0.0) == math.inf
