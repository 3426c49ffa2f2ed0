"""FailingSparseLinear: a failing dense layer with the same failures, its moments, conversions, and evolution."""

import copy
import math

import pytest
import safetensors.torch
import torch
from torch import nn

import synaptome as syn
from synaptome.conformance import check_synapse
from synaptome.errors import ConfigurationError

EDGES = (torch.tensor([0, 2, 2, 4]), torch.tensor([6, 0, 3, 3]))  # outputs 1 and 3, inputs 1, 2, 4 and 5 have none


@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
@pytest.mark.parametrize(
    "options",
    [
        {"density": 0.3},
        {"edges": EDGES},
        {"nnz": 0},
        {"density": 1.0, "failure": 0.0},
        {"fan_in": 2, "bias": False},
        {"density": 0.5, "dense_above": 0.3},
    ],
    ids=str,
)
def test_conformance(options, noise):
    check_synapse(lambda: syn.FailingSparseLinear(7, 5, **{"failure": 0.4, "noise": noise} | options))


def with_the_failures_of(dense, layer):
    """A failing dense layer that goes on with the random numbers of another."""
    now = layer.failures
    failing = syn.FailingLinear.from_dense(dense, failure=now.rate, inference=now.inference, noise=now.noise)
    failing.failures.load_state_dict(now.state_dict())
    return failing


@pytest.mark.parametrize("dense_above", [None, 0.1])
@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("inference", ["training", "expected", "noisy", "gaussian", "mc(3)"])
def test_in_every_mode_it_is_the_dense_layer_with_the_same_failures(inference, noise, dense_above):
    layer = syn.FailingSparseLinear(13, 9, failure=0.4, noise=noise, density=0.3, dense_above=dense_above).double()
    if inference != "training":
        layer.failures.inference = inference
        layer.eval()
    dense = with_the_failures_of(layer.to_dense(), layer)
    for _ in range(3):
        x = torch.randn(20, 13, dtype=torch.float64, requires_grad=True)
        y, expected = layer(x), dense(x)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        grad = torch.randn_like(y)
        by_x, by_values, by_bias = torch.autograd.grad(y, (x, layer.values, layer.bias), grad)
        theirs = torch.autograd.grad(expected, (x, dense.weight, dense.bias), grad)
        torch.testing.assert_close(by_x, theirs[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(by_values, theirs[1][layer.row_of, layer.col], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(by_bias, theirs[2], rtol=1e-12, atol=1e-12)
    assert layer.failures.counter == dense.failures.counter == {"expected": 0, "mc(3)": 9}.get(inference, 3)


@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("mode", ["training", "noisy", "gaussian"])
def test_mean_and_variance_are_those_of_theory(mode, noise):
    failure, passes = 0.3, 4000
    layer = syn.FailingSparseLinear(40, 6, failure=failure, noise=noise, density=0.4).double()
    x = torch.randn(40, dtype=torch.float64)
    if mode != "training":
        layer.failures.inference = mode
        layer.eval()
    with torch.no_grad():
        y = layer(x.expand(passes, -1))  # every row of a batch has failures of its own
    weight = layer.to_dense().weight.detach()
    spread = failure / (1 - failure) * (weight**2) @ (x**2)
    assert ((y.mean(0) - weight @ x - layer.bias.detach()).abs() < 5 * (spread / passes).sqrt()).all()
    # The variance of a sample variance is at most 3 sigma^4 / n for sums with kurtosis up to 4.
    assert ((y.var(0) / spread - 1).abs() < 5 * math.sqrt(3 / passes)).all()


def test_values_are_those_of_a_sparse_layer_from_the_same_seed():
    torch.manual_seed(3)
    plain = syn.SparseLinear(30, 20, density=0.2)
    torch.manual_seed(3)
    failing = syn.FailingSparseLinear(30, 20, failure=0.5, density=0.2)
    assert torch.equal(plain.values, failing.values)
    assert torch.equal(plain.col, failing.col)
    assert torch.equal(plain.bias, failing.bias)


def test_there_and_back_shares_parameters_and_graph():
    plain = syn.SparseLinear(7, 5, edges=EDGES, dense_above=0.9).double().eval()
    plain.values.requires_grad_(False)
    failing = syn.FailingSparseLinear.from_sparse(plain, failure=0.25, inference="mc(3)", noise="gaussian")
    assert (failing.failures.rate, failing.failures.inference, failing.failures.noise) == (0.25, "mc(3)", "gaussian")
    back = failing.to_sparse()
    assert type(back) is syn.SparseLinear
    for layer in (failing, back):
        assert layer.values is plain.values
        assert layer.bias is plain.bias
        assert all(mine is theirs for mine, theirs in zip(layer.structure, plain.structure, strict=True))
        assert layer.dense_above == 0.9
        assert not any(module.training for module in layer.modules())
    assert list(back.state_dict()) == list(plain.state_dict())
    assert list(failing.state_dict()) == [*plain.state_dict(), "failures.stream", "failures.counter"]
    assert repr(back) == repr(plain)
    assert "nnz=4" in repr(failing)
    assert "rate=0.25, inference='mc(3)', noise='gaussian'" in repr(failing)
    before = failing(torch.ones(2, 7, dtype=torch.float64))
    plain.train()  # another layer: its mode is its own
    assert not failing.training
    assert before.shape == (2, 5)


def test_from_dense_and_from_scipy():
    dense = nn.Linear(7, 5).eval()
    mask = torch.rand(5, 7) < 0.4
    layer = syn.FailingSparseLinear.from_dense(dense, mask, failure=0.3, inference="noisy", dense_above=0.7)
    assert torch.equal(layer.to_dense().weight, dense.weight * mask)
    assert layer.bias is dense.bias
    assert (layer.failures.rate, layer.failures.inference, layer.dense_above) == (0.3, "noisy", 0.7)
    assert not layer.training
    again = syn.FailingSparseLinear.from_scipy(layer.to_scipy(), layer.bias, failure=0.2, noise="gaussian")
    assert torch.equal(again.values, layer.values)
    assert (again.failures.rate, again.failures.noise) == (0.2, "gaussian")
    fewer = layer.pruned(3)
    assert type(fewer) is syn.FailingSparseLinear
    assert torch.equal(fewer.values.abs().sort().values, layer.values.detach().abs().sort().values[-3:])
    assert (fewer.failures.rate, fewer.failures.inference) == (0.3, "noisy")
    with pytest.raises(ConfigurationError, match="cannot keep 36 of them"):
        layer.pruned(36)


def test_a_state_brings_its_graph_and_its_failures():
    layer = syn.FailingSparseLinear(7, 5, failure=0.5, density=0.4)
    x = torch.randn(4, 7)
    layer(x)
    read = safetensors.torch.load(safetensors.torch.save(layer.state_dict()))
    other = syn.FailingSparseLinear(7, 5, failure=0.5, nnz=3)
    other.load_state_dict(read)
    assert other.failures.counter == 1
    for _ in range(3):
        assert torch.equal(other(x), layer(x))


def test_a_connection_fails_alike_whatever_the_graph_around_it():
    layer = syn.FailingSparseLinear(7, 5, bias=False, failure=0.5, edges=EDGES)
    nn.init.ones_(layer.values)
    twin = copy.deepcopy(layer)
    x = torch.ones(50, 7)
    dropped = torch.tensor([False, True, False, False])
    layer.replace(dropped, torch.tensor([1, 1, 3]), torch.tensor([2, 6, 5]), torch.ones(3))
    y, before = layer(x), twin(x)
    assert torch.equal(y[:, [0, 4]], before[:, [0, 4]])
    assert ((y[:, 3] == 0) | (y[:, 3] == 2)).all()
    assert len(y[:, 3].unique()) == 2  # the new one fails too


@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_evolution(grow):
    torch.manual_seed(0)
    model = nn.Sequential(
        syn.FailingSparseLinear(20, 16, failure=0.3, density=0.2),
        nn.ReLU(),
        syn.FailingSparseLinear(16, 4, failure=0.3, density=0.3),
    )
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    evolution = syn.Evolution(model, optimizer, drop="magnitude", grow=grow, fraction=0.3)
    counts, values = [model[0].nnz, model[2].nnz], [model[0].values, model[2].values]
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()
        before = set(zip(model[0].row_of.tolist(), model[0].col.tolist(), strict=True))
        evolution.step()
        after = set(zip(model[0].row_of.tolist(), model[0].col.tolist(), strict=True))
        assert before != after
    assert [model[0].nnz, model[2].nnz] == counts
    assert [model[0].values, model[2].values] == values
    assert model[0].failures.counter == 5
    dense = with_the_failures_of(model[0].to_dense(), model[0])
    x = torch.randn(9, 20)
    torch.testing.assert_close(model[0](x), dense(x))


def test_predict_gives_the_spread_of_theory():
    torch.manual_seed(1)
    layer = syn.FailingSparseLinear(30, 4, failure=0.5, density=0.5)
    x, samples = torch.randn(3, 30), 3000
    mean, std = syn.predict(layer, x, samples)
    weight = layer.to_dense().weight.detach()
    spread = ((x**2) @ (weight**2).T).sqrt()
    assert ((mean - x @ weight.T - layer.bias.detach()).abs() < 5 * spread / math.sqrt(samples)).all()
    assert ((std / spread - 1).abs() < 5 * math.sqrt(3 / samples) / 2).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"failure": 1.0, "nnz": 3}, r"in \[0, 1\); given 1.0"),
        ({"failure": 0.5, "nnz": 3, "inference": "mean"}, "expected, noisy, gaussian"),
        ({"failure": 0.5, "nnz": 3, "noise": "gausian"}, "did you mean 'gaussian'"),
        ({"failure": 0.5}, "exactly one of density, epsilon, nnz, fan_in, edges; given none"),
        ({"failure": 0.5, "nnz": 36}, "from 0 to .* = 35; given 36"),
    ],
)
def test_what_cannot_be_made_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        syn.FailingSparseLinear(7, 5, **options)


def test_what_does_not_fit_is_refused():
    layer = syn.FailingSparseLinear(7, 5, failure=0.5, nnz=9)
    with pytest.raises(ConfigurationError, match=r"takes x \[\.\.\., 7\]; given x \[2, 6\]"):
        layer(torch.randn(2, 6))
