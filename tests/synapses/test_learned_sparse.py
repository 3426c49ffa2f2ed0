"""`to_sparse`: pruned layers become sparse where they are fast so, with the outputs that they had."""

import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.errors import ConfigurationError


def network():
    """Of which the first two layers keep few synapses, the others many."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 60), nn.ReLU(), nn.Linear(60, 4)
    )
    syn.rewire(model, syn.Learned("prune"))
    with torch.no_grad():
        for index, kept in ((0, 0.2), (3, 0.1), (5, 0.9)):
            model[index].scores.copy_(kept - torch.rand(model[index].scores.shape))
    return model


def test_outputs_stay_and_few_synapses_are_stored_sparsely():
    model = network().eval()
    x = torch.randn(7, 2, 4, 4)
    expected = model(x).detach()
    masks, biases = [model[i].mask() for i in (0, 3, 5)], [model[i].bias for i in (0, 3, 5)]
    assert syn.to_sparse(model) is model
    assert [type(model[i]) for i in (0, 3, 5)] == [syn.SparseConv2d, syn.SparseLinear, nn.Linear]
    torch.testing.assert_close(model(x), expected)
    assert model[0].nnz == masks[0].sum()
    assert model[3].nnz == masks[1].sum()
    assert [model[i].bias for i in (0, 3, 5)] == biases
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    ("below", "forms"),
    [(0.0, [nn.Conv2d, nn.Linear, nn.Linear]), (1.0, [syn.SparseConv2d, syn.SparseLinear, syn.SparseLinear])],
)
def test_the_density_below_can_be_given(below, forms):
    model = network()
    x = torch.randn(7, 2, 4, 4)
    expected = model(x).detach()
    syn.to_sparse(model, below)
    assert [type(model[i]) for i in (0, 3, 5)] == forms
    torch.testing.assert_close(model(x), expected)


def test_each_form_has_a_density_of_its_own(monkeypatch):
    monkeypatch.setattr(syn.SparseConv2d, "crossover", 0.15)
    assert [type(syn.to_sparse(network())[i]) for i in (0, 3)] == [nn.Conv2d, syn.SparseLinear]
    monkeypatch.setattr(syn.SparseLinear, "crossover", 0.05)
    assert [type(syn.to_sparse(network())[i]) for i in (0, 3)] == [nn.Conv2d, nn.Linear]


def test_failures_go_on():
    model = network()
    syn.rewire(model, syn.Failing(0.5))
    failures = [model[i].failures for i in (0, 3, 5)]
    x = torch.randn(7, 2, 4, 4)
    expected, counters = model(x).detach(), [f.counter.clone() for f in failures]
    syn.to_sparse(model)
    assert [type(model[i]) for i in (0, 3, 5)] == [syn.FailingConv2d, syn.FailingSparseLinear, syn.FailingLinear]
    assert [model[i].failures for i in (0, 3, 5)] == failures
    for f, counter in zip(failures, counters, strict=True):
        f.counter.copy_(counter - 1)
    torch.testing.assert_close(model(x), expected)


def test_a_lone_layer_a_one_dimensional_one_and_hooks():
    calls = []
    layer = syn.LearnedLinear(9, 8, method="edge-popup", density=0.1)
    layer.register_forward_hook(lambda *_: calls.append(1))
    made = syn.to_sparse(layer)
    assert type(made) is syn.SparseLinear
    made(torch.randn(2, 9))
    assert calls == [1]
    assert type(syn.to_sparse(syn.LearnedConv1d(2, 2, 3, method="edge-popup", density=0.1))) is nn.Conv1d


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigurationError, match="a Linear has no learned layer to make sparse"):
        syn.to_sparse(nn.Linear(2, 2))
    with pytest.raises(ConfigurationError, match=r"density in \[0, 1\]; given 1.5"):
        syn.to_sparse(network(), 1.5)
