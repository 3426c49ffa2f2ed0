"""Antisymmetric layers: eigenvalues, gradients against the formula, conversions there and back, and refusals."""

import copy

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import synaptome as syn
from synaptome.conformance import check_synapse
from synaptome.errors import ConfigurationError


def effective(weight, gamma):
    """`½ (K - K' - γ I)`, entry by entry."""
    k = weight.detach().numpy()
    n = len(k)
    return np.array([[(k[i, j] - k[j, i] - gamma * (i == j)) / 2 for j in range(n)] for i in range(n)])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gamma", [0.0, 0.3])
def test_conformance(gamma, bias):
    check_synapse(lambda: syn.AntisymmetricLinear(6, bias, gamma=gamma))


@pytest.mark.parametrize("gamma", [0, 0.25, 4.0])
def test_the_output_is_that_of_the_formula(gamma):
    layer = syn.AntisymmetricLinear(7, gamma=gamma, dtype=torch.float64)
    x = torch.randn(2, 5, 7, dtype=torch.float64)
    expected = x.numpy() @ effective(layer.weight, gamma).T + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-13)


@pytest.mark.parametrize("gamma", [0.0, 0.5])
@pytest.mark.parametrize("features", [1, 2, 5, 64])
def test_every_eigenvalue_has_the_real_part_of_minus_half_gamma(features, gamma):
    torch.manual_seed(features)
    layer = syn.AntisymmetricLinear(features, gamma=gamma, dtype=torch.float64)
    nn.init.normal_(layer.weight)
    eigenvalues = np.linalg.eigvals(layer.effective_weight().detach().numpy())
    size = np.abs(eigenvalues).max()
    assert np.abs(eigenvalues.real + gamma / 2).max() <= 1e-13 * max(1, size)
    if features > 1:
        assert np.abs(eigenvalues.imag).max() > 0.01  # it does turn
    free = np.linalg.eigvals(layer.weight.detach().numpy())
    assert np.abs(free.real + gamma / 2).max() > 0.01  # which K itself does not do


def test_without_gamma_the_effective_weight_is_antisymmetric_to_the_bit():
    weight = syn.AntisymmetricLinear(33).effective_weight()
    assert torch.equal(weight, -weight.mT)
    assert weight.abs().max() > 0


@pytest.mark.parametrize("gamma", [0.0, 0.4])
def test_gradients_are_those_of_the_formula_and_antisymmetric(gamma):
    torch.manual_seed(2)
    layer = syn.AntisymmetricLinear(6, gamma=gamma, dtype=torch.float64)
    x = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(9, 6, dtype=torch.float64)
    k, own = layer.weight.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    (own @ (0.5 * (k - k.T - gamma * torch.eye(6, dtype=torch.float64))).T).backward(upstream)
    layer(x).backward(upstream)
    torch.testing.assert_close(layer.weight.grad, k.grad, rtol=0, atol=1e-14)
    torch.testing.assert_close(x.grad, own.grad, rtol=0, atol=1e-14)
    torch.testing.assert_close(layer.bias.grad, upstream.sum(0))
    by_weight = upstream.T @ x.detach()  # dL/dA
    torch.testing.assert_close(layer.weight.grad, (by_weight - by_weight.T) / 2, rtol=0, atol=1e-13)


def test_small_residual_steps_keep_the_length_of_what_turns():
    """Without bias and near 0, where tanh is linear, only the growth of Euler's method is left: of order h."""
    layer = syn.AntisymmetricLinear(8, bias=False, dtype=torch.float64)
    nn.init.normal_(layer.weight)
    start = 1e-6 * torch.randn(8, dtype=torch.float64)
    growth = []
    for steps in (400, 800):
        x = start
        for _ in range(steps):
            x = x + 2 / steps * torch.tanh(layer(x))
        growth.append((x.norm() / start.norm() - 1).item())
    assert 0 < growth[1] < growth[0] < 0.1
    assert growth[0] / growth[1] == pytest.approx(2, rel=0.05)


def test_states_travel():
    layer, other = syn.AntisymmetricLinear(5, gamma=0.2), syn.AntisymmetricLinear(5, gamma=0.2)
    assert list(layer.state_dict()) == ["weight", "bias"]  # as those of torch.nn.Linear, which can be loaded
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(layer.state_dict())))
    x = torch.randn(3, 5)
    assert torch.equal(layer(x), other(x))
    dense = nn.Linear(5, 5)
    layer.load_state_dict(dense.state_dict())
    assert torch.equal(layer.weight, dense.weight)


def test_it_draws_what_a_dense_layer_draws_and_says_what_it_is():
    torch.manual_seed(3)
    dense = nn.Linear(4, 4)
    torch.manual_seed(3)
    layer = syn.AntisymmetricLinear(4, gamma=0.5)
    assert torch.equal(layer.weight, dense.weight)
    assert torch.equal(layer.bias, dense.bias)
    assert repr(layer) == "AntisymmetricLinear(features=4, bias=True, gamma=0.5)"
    assert repr(syn.AntisymmetricLinear(2, False)) == "AntisymmetricLinear(features=2, bias=False, gamma=0)"


@pytest.mark.parametrize("bias", [True, False])
def test_from_dense_holds_the_very_parameters_and_to_dense_the_effective_weight(bias):
    dense = nn.Linear(4, 4, bias).double().eval()
    layer = syn.AntisymmetricLinear.from_dense(dense, gamma=0.3)
    assert layer.weight is dense.weight
    assert layer.bias is dense.bias
    assert not layer.training
    layer.weight.requires_grad_(False)
    back = layer.to_dense()
    assert type(back) is nn.Linear
    assert back.bias is dense.bias
    assert not back.training
    assert not back.weight.requires_grad
    np.testing.assert_array_equal(back.weight.numpy(), effective(dense.weight, 0.3))


def test_a_copy_is_a_copy():
    layer = syn.AntisymmetricLinear(3, gamma=0.1)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.weight.add_(torch.arange(9.0).view(3, 3))
    assert not torch.equal(layer.effective_weight(), twin.effective_weight())


@pytest.mark.parametrize("gamma", [-0.1, float("nan"), float("inf"), True, "0.1", None])
def test_a_gamma_out_of_range_is_refused(gamma):
    for make in (syn.Antisymmetric, lambda gamma: syn.AntisymmetricLinear(3, gamma=gamma)):
        with pytest.raises(ConfigurationError, match="gamma is a finite number of at least 0; given "):
            make(gamma)


def test_a_layer_that_is_not_square_is_refused():
    with pytest.raises(ConfigurationError, match="as many outputs as inputs; given a layer with 4 inputs and 3"):
        syn.AntisymmetricLinear.from_dense(nn.Linear(4, 3))


def test_rewire_there_on_and_back():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(nn.Linear(3, 6), shared, nn.Tanh(), shared, nn.Linear(6, 2)).double().eval()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    parameters, calls = dict(model.named_parameters()), []
    shared.register_forward_hook(lambda *_: calls.append(1))
    assert syn.rewire(model, syn.Antisymmetric(0.2), where=["1", "3"]) is model
    assert model[1] is model[3]
    assert type(model[1]) is syn.AntisymmetricLinear
    assert [type(model[i]) for i in (0, 4)] == [nn.Linear, nn.Linear]
    assert (model[1].gamma, model[1].training) == (0.2, False)
    assert all(p is parameters[name] for name, p in model.named_parameters())
    x = torch.randn(4, 3, dtype=torch.float64)
    model(x).square().sum().backward()
    before = shared.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(model[1].weight, before)
    syn.rewire(model, syn.Antisymmetric(), where=["1", "3"])
    assert model[1].gamma == 0
    assert model[1].weight is shared.weight
    expected, applied = model(x), effective(shared.weight, 0)
    syn.rewire(model, syn.Dense())
    assert model[1] is model[3]
    assert type(model[1]) is nn.Linear
    assert model[1].bias is shared.bias
    np.testing.assert_array_equal(model[1].weight.detach().numpy(), applied)
    torch.testing.assert_close(model(x), expected)
    assert len(calls) == 2 * 3


def test_rewire_of_a_lone_layer_returns_its_successor():
    layer = nn.Linear(3, 3, bias=False)
    made = syn.rewire(layer, syn.Antisymmetric())
    assert type(made) is syn.AntisymmetricLinear
    assert made.weight is layer.weight
    assert made.bias is None


@pytest.mark.parametrize(
    ("make", "wiring"),
    [
        (lambda: syn.FailingLinear(4, 4, failure=0.2), syn.Antisymmetric(0.1)),
        (lambda: syn.SparseLinear(4, 4, nnz=9), syn.Dense() + syn.Antisymmetric(0.1)),
        (lambda: syn.FailingSparseLinear(4, 4, nnz=9, failure=0.2), syn.Antisymmetric(0.1) + syn.Dense()),
        (lambda: syn.LearnedLinear(4, 4, method="flip"), syn.Dense() + syn.Antisymmetric(0.1)),
        (lambda: syn.AntisymmetricLinear(4), syn.Dense() + syn.Antisymmetric(0.1)),
    ],
)
def test_what_other_layers_become(make, wiring):
    layer = make()
    stored = (layer if isinstance(layer, syn.AntisymmetricLinear) else layer.to_dense()).weight
    made = syn.rewire(layer, wiring)
    assert type(made) is syn.AntisymmetricLinear
    assert made.bias is layer.bias
    np.testing.assert_allclose(made.effective_weight().detach().numpy(), effective(stored, 0.1), atol=1e-7)


@pytest.mark.parametrize(
    ("wiring", "kind"),
    [
        (syn.Dense() + syn.Failing(0.3), syn.FailingLinear),
        (syn.Dense() + syn.Learned("flip"), syn.LearnedLinear),
        (syn.Dense(), nn.Linear),
    ],
)
def test_an_antisymmetric_layer_goes_on_as_another_with_its_effective_weight(wiring, kind):
    layer = syn.AntisymmetricLinear(4, gamma=0.1)
    made = syn.rewire(layer, wiring)
    assert type(made) is kind
    np.testing.assert_array_equal(made.weight.detach().numpy(), layer.effective_weight().detach().numpy())


@pytest.mark.parametrize("kind", [syn.Failing(0.3), syn.Sparse(0.3), syn.Learned("flip")], ids=str)
def test_kinds_without_a_product_are_refused(kind):
    model = nn.Sequential(syn.AntisymmetricLinear(4), nn.Linear(4, 4))
    before = list(model)
    with pytest.raises(ConfigurationError, match=r"ties plain dense weights, and has no product with (Fail|Spar|Lear)"):
        syn.rewire(model, syn.Antisymmetric() + kind)
    with pytest.raises(ConfigurationError, match=r"'0' is a Antisym.* no product with other kinds .*Dense\(\) first"):
        syn.rewire(model, kind, where="0")
    assert list(model) == before
    syn.rewire(model, kind)  # what can be had: the other layer
    assert model[0] is before[0]
    assert type(model[1]) in (syn.FailingLinear, syn.SparseLinear, syn.LearnedLinear)


def test_layers_that_are_not_square_are_named():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2), nn.Conv2d(1, 1, 1))
    before = list(model)
    with pytest.raises(
        ConfigurationError,
        match=r"layer '0' has 3 inputs and 4 outputs, layer '2' has 4 inputs and 2 outputs; name .* with where: 1$",
    ):
        syn.rewire(model, syn.Antisymmetric())
    with pytest.raises(ConfigurationError, match=r"name square layers with where: none of these is$"):
        syn.rewire(model, syn.Antisymmetric(), where=lambda name, layer: name == "2")
    assert list(model) == before
    syn.rewire(model, syn.Antisymmetric(), where="1")
    assert [type(layer) for layer in model] == [nn.Linear, syn.AntisymmetricLinear, nn.Linear, nn.Conv2d]


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (lambda: nn.Conv2d(2, 2, 1), "has no antisymmetric form and"),
        (lambda: syn.FailingConv2d(2, 2, 1, failure=0.1), "has no antisymmetric form and"),
        (lambda: nn.RNNCell(2, 2), "has no antisymmetric form and"),
        (lambda: syn.SparseLinear(2, 2, nnz=3), r"no antisymmetric form while it is sparse or learned \(Dense\(\) \+ "),
        (lambda: syn.LearnedLinear(2, 2, method="flip"), "no antisymmetric form while it is sparse or learned"),
        (lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2), "uses its weight in its own way"),
    ],
)
def test_layers_without_an_antisymmetric_form_are_refused(layer, why):
    model = nn.Sequential(layer(), nn.Linear(2, 2))
    before = list(model)
    with pytest.raises(ConfigurationError, match=rf"'0' is a .*{why}.*cannot be rewired; convertible layers: 1"):
        syn.rewire(model, syn.Antisymmetric(), where=["1", "0"])
    assert list(model) == before
    syn.rewire(model, syn.Antisymmetric())
    assert [type(model[0]), type(model[1])] == [type(before[0]), syn.AntisymmetricLinear]


def test_a_transformer_layer_does_not_read_k():
    encoder = nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True)
    syn.rewire(encoder, syn.Antisymmetric(), where="linear*")
    encoder.eval()
    x = torch.randn(3, 5, 16)
    expected = encoder(x).detach()  # with gradients torch takes no fast path
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), expected)
