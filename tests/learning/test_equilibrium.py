"""Equilibrium propagation: its gradients against autograd through a dense recurrent network, the protocol, refusals."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from synaptome.conformance import check_rule
from synaptome.data.dataset import Batch
from synaptome.data.indexed import IndexedBatch
from synaptome.errors import ConfigurationError, NumericError
from synaptome.learning.equilibrium import EquilibriumPropagation
from synaptome.networks.layered import LayeredNetwork
from synaptome.networks.relaxation import Relaxation
from synaptome.networks.states import STATES

BETAS = (0.005, 0.01, 0.02, 0.04)
LONG = Relaxation(200, 0.5)
X = torch.rand(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2, 1])
RHO = {"hard-sigmoid": lambda a: a.clamp(0, 1), "sigmoid": torch.sigmoid, "tanh": torch.tanh}


def made(widths=(5, 6, 4, 3), seed=0, scale=0.6, bias=0.3, **options):
    torch.manual_seed(seed)
    network = LayeredNetwork(widths, **{"relaxation": LONG, **options}).double()
    for parameter in network.parameters():
        parameter.data.mul_(scale)
        if parameter.dim() == 1:
            parameter.data.uniform_(0.5 * bias, 1.5 * bias)
    return network


def rule_of(network, cost="squared-error", rate=0.1, **options):
    optimizer = torch.optim.SGD(network.parameters(), rate)
    return EquilibriumPropagation(network, optimizer, cost, **{"nudged": network.relaxation, **options})


def estimate(rule, betas, x=X, targets=Y):
    """What the rule estimates of the gradient, by the names of the parameters."""
    batch = Batch(x, targets)
    free, drive = rule.free_phase(batch)
    rule.differentiate(batch, free.states, drive, betas)
    return {name: parameter.grad.clone() for name, parameter in rule.model.named_parameters()}


def exact(network, x=X, targets=Y, sweeps=200):
    """The gradient at the equilibrium by autograd alone, through sweeps of one recurrent layer of all neurons."""
    parameters = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    ends = [0, *itertools.accumulate(network.widths)]
    W = torch.zeros(ends[-1], ends[-1], dtype=torch.float64)
    for number in range(1, len(network.widths)):
        below, here = slice(ends[number - 1], ends[number]), slice(ends[number], ends[number + 1])
        forward = parameters[f"layers.{number}.weight"]
        back = forward.T if network.symmetric else parameters[f"feedback.{number - 1}.weight"]
        W = W.clone()
        W[below, here], W[here, below] = forward.T, back.T
    drive = torch.cat([parameters[f"layers.{i}.bias"] for i in range(len(network.widths))]).expand(len(x), -1).clone()
    drive[:, : network.widths[0]] += x @ parameters["layers.0.weight"].T
    s = torch.zeros_like(drive)
    for _ in range(sweeps):
        s = RHO[network.state.name](s @ W + drive)
    last = s[:, ends[-2] :]
    if network.readout is None:
        cost = (F.one_hot(targets, 3) - last).square().sum(1).mean() / 2
    else:
        cost = F.cross_entropy(last @ parameters["readout.weight"].T + parameters["readout.bias"], targets)
    return dict(zip(parameters, torch.autograd.grad(cost, list(parameters.values())), strict=True))


def clipped(rule, beta):
    """Which of the neurons are at an end of their range once they are nudged, `[batch, neurons]`."""
    free, drive = rule.free_phase(Batch(X, Y))
    felt = drive.transposed_about(free.states) if rule.corrected else drive
    targets = rule.cost.prepared(Y)
    nudged = rule.network.relax(felt, free.states, nudge=lambda s, into: rule.cost.push(s, into, targets, beta))
    s = torch.cat(nudged.states, 1)
    return (s == 0) | (s == 1)


def distance(first, second, names=None):
    names = first if names is None else names
    return math.sqrt(sum((first[name] - second[name]).square().sum().item() for name in names))


def slope(errors, betas=BETAS):
    """Of log error over log beta, by least squares."""
    x, y = torch.tensor(betas).log(), torch.tensor(errors).log()
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("cost", ["squared-error", "cross-entropy"])
@pytest.mark.parametrize("kind", ["symmetric", "corrected"])
def test_the_estimate_tends_to_the_gradient_with_an_error_of_beta_and_of_its_square_where_it_is_centered(
    state, cost, kind
):
    network = made(
        seed=1, scale=0.3, bias=0.5, state=state, symmetric=kind == "symmetric", readout=cost == "cross-entropy"
    )
    rule = rule_of(network, cost, corrected=kind == "corrected")
    if state == "hard-sigmoid":  # the orders hold where a nudge neither clips a state nor frees it
        free, *nudged = (clipped(rule, beta) for beta in (0.0, BETAS[-1], -BETAS[-1]))
        assert all(torch.equal(free, other) for other in nudged)
    gradient = exact(network)
    one_sided, mirrored, centered = (
        [distance(estimate(rule, betas(beta)), gradient) for beta in BETAS]
        for betas in (lambda b: (b, 0.0), lambda b: (-b, 0.0), lambda b: (b, -b))
    )
    assert slope(one_sided) == pytest.approx(1, abs=0.1)
    assert slope(mirrored) == pytest.approx(1, abs=0.1)
    assert slope(centered) == pytest.approx(2, abs=0.1)
    assert centered[0] < 0.01 * distance(gradient, {name: torch.zeros_like(g) for name, g in gradient.items()})


@pytest.mark.parametrize("state", STATES)
def test_asymmetric_propagation_misses_the_gradient_of_asymmetric_weights_and_the_correction_does_not(state):
    network = made(state=state, symmetric=False, seed=2, scale=1.0)
    gradient = exact(network)
    names = [name for name in gradient if name.startswith("layers.0")]  # errors come to it through two feedbacks
    size = math.sqrt(sum(gradient[name].square().sum().item() for name in names))
    plain, corrected = (
        distance(estimate(rule_of(network, corrected=corrected), (1e-3, -1e-3)), gradient, names) / size
        for corrected in (False, True)
    )
    assert plain > 0.3
    assert corrected < 1e-4


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_feedback_that_mirrors_the_weights_gives_the_symmetric_gradient_in_two_parts(state, corrected):
    symmetric, separate = made(state=state), made(state=state, symmetric=False)
    for number, layer in enumerate(symmetric.layers):
        separate.layers[number].load_state_dict(layer.state_dict())
    for number, feedback in enumerate(separate.feedback, 1):
        feedback.weight.data.copy_(symmetric.layers[number].weight.T)
    together = exact(symmetric)
    apart = estimate(rule_of(separate, corrected=corrected), (1e-4, -1e-4))
    for name, gradient in together.items():
        own = apart[name].clone()
        if name in ("layers.1.weight", "layers.2.weight"):
            own += apart[f"feedback.{int(name[7]) - 1}.weight"].T
        torch.testing.assert_close(own, gradient, rtol=0, atol=1e-7)
    torch.testing.assert_close(apart, exact(separate), rtol=0, atol=1e-7)


def test_states_that_are_clipped_get_no_gradient():
    """Half of the hidden neurons are held at 0 or 1: the estimate is exact, and 0 where it should be."""
    network = made((5, 8, 3))
    network.layers[0].bias.data[:4] = torch.tensor([-5.0, -5.0, 5.0, 5.0])
    gradient, estimated = exact(network), estimate(rule_of(network), (1e-4, -1e-4))
    torch.testing.assert_close(estimated, gradient, rtol=0, atol=1e-7)
    assert (gradient["layers.0.weight"][:4] == 0).all()
    assert (estimated["layers.0.weight"][:4] == 0).all()
    assert (gradient["layers.1.weight"] != 0).any()


def test_without_hidden_neurons_the_rule_is_the_delta_rule():
    """One layer, s = W x + b; its nudged states are (s + beta y) / (1 + beta), and so is known what it learns."""
    network = made((5, 3), bias=0.4, scale=0.2)
    beta = 0.5
    s = network(X).detach()
    assert ((s > 0) & (s < 1)).all()
    y = F.one_hot(Y, 3).double()
    estimated = estimate(rule_of(network), (beta, 0.0))
    torch.testing.assert_close(estimated["layers.0.weight"], -((y - s) / (1 + beta)).T @ X / len(X))
    torch.testing.assert_close(estimated["layers.0.bias"], -((y - s) / (1 + beta)).mean(0))


def test_real_targets_are_learned_too():
    network = made()
    targets = F.one_hot(Y, 3).double()
    assert estimate(rule_of(network), (0.1, 0.0), targets=targets).keys() == exact(network).keys()
    torch.testing.assert_close(
        estimate(rule_of(network), (0.1, 0.0), targets=targets), estimate(rule_of(network), (0.1, 0.0))
    )


def test_a_step_is_the_optimizers_with_the_rates_of_the_layers():
    network = made()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    rates = (0.3, 0.2, 0.1)
    groups = [{"params": group, "lr": rate} for group, rate in zip(network.synapses(), rates, strict=True)]
    rule = EquilibriumPropagation(network, torch.optim.SGD(groups), nudging="centered", beta=0.2, nudged=LONG)
    gradients = estimate(rule, (0.2, -0.2))
    report = rule.step(Batch(X, Y))
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - rates[int(name[7])] * gradients[name])
    assert report["residual"] < 1e-12
    assert set(report) == {"loss", "accuracy", "residual"}


def test_random_signs_are_both_drawn_and_nudge_as_they_say():
    network = made((5, 6, 3))
    rule = rule_of(network, beta=0.3, rate=0.0)
    plus, minus = estimate(rule, (0.3, 0.0)), estimate(rule, (-0.3, 0.0))
    seen = []
    for _ in range(20):
        rule.step(Batch(X, Y))
        given = {name: parameter.grad for name, parameter in network.named_parameters()}
        assert min(distance(given, plus), distance(given, minus)) == 0
        seen.append(distance(given, plus) == 0)
    assert 3 < sum(seen) < 17


def batch_of(index):
    generator = torch.Generator().manual_seed(index)
    x = torch.rand(30, 6, generator=generator)
    return Batch(x, x[:, :3].argmax(1))


def kept_batch(index):
    chosen = torch.randperm(90, generator=torch.Generator().manual_seed(index))[:30]
    whole = batch_of(1000)
    x = whole.inputs.repeat(3, 1)
    return IndexedBatch(x[chosen], whole.targets.repeat(3)[chosen], chosen)


VARIANTS = {
    "one-sided": {"nudging": "one-sided"},
    "random-sign": {"nudging": "random-sign"},
    "centered": {"nudging": "centered"},
    "cross-entropy": {"cost": "cross-entropy", "nudging": "centered"},
    "asymmetric": {"nudging": "centered"},
    "corrected": {"nudging": "centered", "corrected": True},
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_conformance(variant, state):
    options = VARIANTS[variant]

    def make():
        network = LayeredNetwork(
            (6, 12, 3),
            state=state,
            symmetric=variant not in ("asymmetric", "corrected"),
            readout="cost" in options,
            relaxation=Relaxation(20, 0.4, tolerance=1e-4 if variant == "centered" else None),
        )
        optimizer = torch.optim.SGD(network.parameters(), 0.5, momentum=0.5)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
        return EquilibriumPropagation(network, optimizer, scheduler=scheduler, **{"beta": 0.3, **options})

    check_rule(make, batch_of)


@pytest.mark.parametrize("widths", [(6, 12, 3), (6, 12, 8, 3)])
def test_conformance_with_states_that_are_kept(widths):
    """Which travel with the checkpoint: without them a resumed rule would go on with other numbers."""

    def make():
        network = LayeredNetwork(widths, relaxation=Relaxation(10, 0.4))
        for layer in network.layers:  # from states 0 and from those kept it comes to rest at the same point
            layer.weight.data.mul_(0.5)
        return EquilibriumPropagation(network, torch.optim.SGD(network.parameters(), 0.1), examples=90)

    check_rule(make, kept_batch)


def test_a_free_phase_starts_where_that_of_its_examples_ended():
    network = made((5, 6, 3), relaxation=Relaxation(5, 0.3))
    rule = rule_of(network, rate=0.0, examples=10)
    first, others = torch.tensor([8, 0, 3]), torch.tensor([5, 8])
    rule.step(IndexedBatch(X[:3], Y[:3], first))
    resumed, _ = rule.free_phase(IndexedBatch(X[:2], Y[:2], others))
    drive = network.drive(X[:2])
    fresh, ten = (network.relax(drive, network.rest(2), Relaxation(steps, 0.3)).states for steps in (5, 10))
    # Example 5 is new; example 8 had the input X[0] in the first batch and has X[1] now.
    assert torch.equal(resumed.states[0][0], fresh[0][0])
    same, _ = rule.free_phase(IndexedBatch(X[:2], Y[:2], torch.tensor([8, 0])))
    torch.testing.assert_close(same.states, ten, rtol=0, atol=1e-15)
    with pytest.raises(ConfigurationError, match="does not say which examples it holds"):
        rule.step(Batch(X, Y))


def test_a_state_of_other_examples_is_refused():
    rule, other = (rule_of(made((5, 6, 3)), examples=n) for n in (10, 11))
    with pytest.raises(ConfigurationError, match=r"keeps layers of \[\[11, 6\], \[11, 3\]\] for its examples"):
        rule.load_state_dict(other.state_dict())
    with pytest.raises(ConfigurationError, match="keeps layers of None"):
        rule.load_state_dict(rule_of(made((5, 6, 3))).state_dict())


def test_what_came_to_rest_is_reported_where_there_is_a_tolerance():
    report = rule_of(made(relaxation=Relaxation(400, 0.5, tolerance=1e-12))).step(Batch(X, Y))
    assert report["resting"] == 1
    report = rule_of(made(relaxation=Relaxation(2, 0.5, tolerance=1e-12))).step(Batch(X, Y))
    assert report["resting"] == 0
    assert report["residual"] > 1e-3


def test_a_network_that_is_not_finite_is_refused_and_left_as_it_was():
    rule = rule_of(made(), examples=7)
    rule.model.layers[0].weight.data[0, 0] = torch.nan
    before = {name: tensor.clone() for name, tensor in rule.model.state_dict().items()}
    with pytest.raises(NumericError, match="states of the free phase are not all finite"):
        rule.step(IndexedBatch(X, Y, torch.arange(7)))
    for name, tensor in rule.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    assert all((kept == 0).all() for kept in rule.state_dict()["kept"])


def test_steps_that_make_the_map_expansive_are_warned_of_with_the_bound():
    network = made((5, 6, 3), relaxation=Relaxation(20, 1.0), scale=3.0)
    bound = network.step_bound()
    assert bound < 1
    with pytest.warns(
        UserWarning, match=f"dt = 1 makes the projected map expansive.* steps above {bound:.3g} overshoot"
    ):
        rule_of(network)
    network.relaxation = Relaxation(20, 0.9 * bound)
    rule_of(network)  # warnings are errors here


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "a number above 0: without a nudge the two phases are one, and nothing is learned; given 0.0"),
        ({"beta": -0.5}, "given -0.5"),
        ({"beta": math.nan}, "given nan"),
        ({"nudging": "centred"}, r"unknown nudging 'centred' \(did you mean 'centered'\?\)"),
        ({"cost": "hinge"}, "unknown cost 'hinge'"),
        ({"cost": "cross-entropy"}, "given cross-entropy and a network without a read-out"),
        ({"corrected": True}, "a symmetric network needs no correction"),
        ({"examples": 0}, "at least 1 example, or for none"),
    ],
)
def test_what_contradicts_itself(options, message):
    with pytest.raises(ConfigurationError, match=message):
        rule_of(made((5, 6, 3)), **options)


def test_squared_error_has_no_use_for_a_readout():
    with pytest.raises(ConfigurationError, match="given squared-error and a network with a read-out"):
        rule_of(made((5, 6, 3), readout=True))


@pytest.mark.parametrize(("state", "low"), [("hard-sigmoid", 0), ("sigmoid", 0), ("tanh", -1)])
def test_targets_out_of_the_range_of_states_are_refused(state, low):
    rule = rule_of(made((5, 6, 3), state=state))
    with pytest.raises(ConfigurationError, match=rf"in \[{low}, 1\], and so are targets; given targets from 0 to 1.5"):
        rule.step(Batch(X, torch.tensor([[0.0, 1.5, 1.0]]).double().expand(7, 3)))
    with pytest.raises(ConfigurationError, match=f"from {low - 0.1:g} to 1"):
        rule.evaluate(Batch(X, torch.tensor([[low - 0.1, 1.0, 1.0]]).double().expand(7, 3)))
    assert math.isfinite(rule.step(Batch(X, torch.tensor([[low, 1.0, 0.5]]).double().expand(7, 3)))["loss"])


def test_cross_entropy_refuses_real_targets():
    rule = rule_of(made((5, 6, 3), readout=True), "cross-entropy")
    with pytest.raises(ConfigurationError, match=r"takes classes, int64 \[batch\]; given torch.float64 \[7, 3\]"):
        rule.step(Batch(X, torch.zeros(7, 3).double()))
