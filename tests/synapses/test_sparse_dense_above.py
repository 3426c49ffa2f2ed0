"""Sparse layers that compute densely above a density: the same products, gradients, graphs and states."""

import copy
import warnings

import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.conformance import check_synapse
from synaptome.errors import ConfigurationError
from synaptome.synapses import sparse


def pair(**options):
    """A layer that computes densely, and the same one that does not."""
    dense = syn.SparseLinear(7, 5, dense_above=0.2, **options)
    plain = syn.SparseLinear(7, 5, dense.bias is not None, edges=(dense.row_of, dense.col))
    plain.load_state_dict(dense.state_dict())
    return dense, plain


def forbid(monkeypatch):
    def never(*_):
        pytest.fail("a sparse product")

    monkeypatch.setattr(sparse, "sparse_linear", never)


def test_conformance():
    check_synapse(lambda: syn.SparseLinear(7, 5, density=0.6, dense_above=0.5))


@pytest.mark.parametrize("leading", [(), (0,), (4,), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_and_gradients_are_those_of_the_sparse_layer(monkeypatch, leading, bias):
    dense, plain = (layer.double() for layer in pair(density=0.6, bias=bias))
    x = torch.randn(*leading, 7, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(*leading, 5, dtype=torch.float64)
    expected = torch.autograd.grad(plain(x), (x, *plain.parameters()), grad)
    y = plain(x)
    forbid(monkeypatch)
    torch.testing.assert_close(dense(x), y)
    for mine, theirs in zip(torch.autograd.grad(dense(x), (x, *dense.parameters()), grad), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_gradients_are_those_of_finite_differences():
    layer = pair(density=0.6)[0].double()
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)

    def function(x, values, bias):
        return torch.func.functional_call(layer, {"values": values, "bias": bias}, x)

    assert torch.autograd.gradcheck(function, (x, layer.values, layer.bias))


@pytest.mark.parametrize(("nnz", "densely"), [(0, False), (7, False), (8, True), (35, True)])
def test_only_above_the_threshold(monkeypatch, nnz, densely):
    layer = syn.SparseLinear(7, 5, nnz=nnz, dense_above=0.2)  # 7 of 35 places
    calls = []
    product = sparse.sparse_linear
    monkeypatch.setattr(sparse, "sparse_linear", lambda *operands: calls.append(1) or product(*operands))
    x = torch.randn(3, 7)
    torch.testing.assert_close(layer(x), x @ layer.to_dense().weight.T + layer.bias)
    assert calls == [] if densely else [1]


def test_it_follows_every_change_of_the_graph(monkeypatch):
    """Evolved, loaded, copied, converted: always the product of the connections that there are."""
    layer, plain = (net.double() for net in pair(nnz=20))
    parts = [(net, torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)) for net in (layer, plain)]
    evolutions = [syn.Evolution(*part, drop="set", grow="gradient", seed=3) for part in parts]
    for batch in range(8):
        x = torch.randn(6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
        for (net, optimizer), evolution in zip(parts, evolutions, strict=True):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
            assert evolution.step() > 0
        assert torch.equal(layer.col, plain.col)
        torch.testing.assert_close(layer.values, plain.values)
    x = torch.randn(3, 7, dtype=torch.float64)
    other = syn.SparseLinear(7, 5, nnz=3, dense_above=0.2, dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    assert set(layer.state_dict()) == {"values", "bias", "crow", "col", "shape"}
    forbid(monkeypatch)
    y = layer(x)
    torch.testing.assert_close(y, x @ plain.to_dense().weight.T + plain.bias)
    for same in (other, copy.deepcopy(layer), syn.SparseLinear.from_dense(layer.to_dense(), dense_above=0.2)):
        assert torch.equal(same(x), y)
    scipy = syn.SparseLinear.from_scipy(layer.to_scipy(), layer.bias, dense_above=0.2, dtype=torch.float64)
    assert torch.equal(scipy(x), y)
    emptied = layer.values
    layer.replace(torch.ones(20, dtype=torch.bool), *torch.empty(2, 0, dtype=torch.int64), torch.empty(0))
    assert layer.values is emptied
    monkeypatch.undo()
    assert torch.equal(layer(x), layer.bias.expand(3, 5))


def test_repr_says_the_threshold_where_there_is_one():
    assert "dense_above=0.25" in repr(syn.SparseLinear(7, 5, nnz=3, dense_above=0.25))
    assert "dense_above" not in repr(syn.SparseLinear(7, 5, nnz=3))


def test_the_threshold_is_a_density_that_may_change():
    layer = syn.SparseLinear(7, 5, nnz=12, dense_above=0.25)
    x = torch.randn(3, 7)
    y = layer(x)
    assert layer.place is not None
    for threshold in (0.5, None):
        layer.dense_above = threshold
        assert layer.place is None
        torch.testing.assert_close(layer(x), y)
    layer.dense_above = 0.0
    assert layer.place is not None
    with pytest.raises(ConfigurationError, match=r"dense_above is a density in \[0, 1\]"):
        layer.dense_above = 2.0
    assert layer.dense_above == 0.0
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigurationError, match=r"dense_above is a density in \[0, 1\]"):
            syn.SparseLinear(7, 5, nnz=3, dense_above=wrong)
        with pytest.raises(ConfigurationError, match="dense_above is a density"):
            syn.SparseLinear.from_dense(nn.Linear(3, 2), dense_above=wrong)


def test_a_dense_layer_warns_unless_it_has_a_threshold():
    sparse._warn_dense.cache_clear()
    with pytest.warns(UserWarning, match=r"density 0\.7 is slower .* dense_above=0\.4 .* products densely"):
        syn.SparseLinear(600, 600, density=0.7)
    sparse._warn_dense.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        syn.SparseLinear(600, 600, density=0.7, dense_above=0.4)
        syn.rewire(nn.Linear(600, 600), syn.Sparse(0.7, dense_above=1.0))
        syn.rewire(nn.Linear(600, 600), syn.Sparse(0.7, dense_above=0.4, start="random"))
