"""Which layers evolve: those that hold the values now, without frozen ones, and only if they do what is asked."""

import copy

import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.errors import ConfigurationError
from synaptome.nested import take_apart
from synaptome.topology.evolution import Evolution


def network():
    return nn.Sequential(syn.SparseLinear(20, 16, nnz=80), nn.ReLU(), syn.SparseLinear(16, 5, nnz=18)).double()


def learn(model, optimizer, batch):
    generator = torch.Generator().manual_seed(batch)
    optimizer.zero_grad()
    model(torch.randn(8, 20, generator=generator, dtype=torch.float64)).square().mean().backward()
    optimizer.step()


def edges(layer):
    places = zip(layer.row_of.tolist(), layer.col.tolist(), strict=True)
    return dict(zip(places, layer.values.tolist(), strict=True))


RULES = [
    {"drop": "set", "initial": "distribution", "track_visited": True},
    {"grow": "gradient"},
    {"grow": "momentum", "every": 3, "redistribute": "momentum"},
]


@pytest.mark.parametrize("rules", RULES, ids=str)
@pytest.mark.parametrize("alone", [False, True], ids=["in a model", "the model itself"])
def test_evolution_goes_on_in_layers_that_take_over_the_values(rules, alone):
    """With a rate of failure of 0 all is as if the layers had not been exchanged, to the bit."""

    def run(exchanged):
        torch.manual_seed(0)
        model = syn.SparseLinear(20, 16, nnz=80).double() if alone else network()
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        evolution = Evolution(model, optimizer, seed=1, **rules)
        for batch in range(12):
            if exchanged and batch in (4, 7):
                model = syn.rewire(model, syn.Failing(0.0))
            learn(model, optimizer, batch)
            evolution.step()
        return [list(edges(m).items()) for m in model.modules() if isinstance(m, syn.SparseLinear)], evolution

    (as_it_was, _), (exchanged, evolution) = run(False), run(True)
    assert as_it_was == exchanged
    if rules.get("track_visited"):
        assert evolution.itop_rate() > 0.25


def test_a_layer_and_its_failing_form_never_part():
    plain = syn.SparseLinear(7, 5, nnz=9)
    failing = syn.FailingSparseLinear.from_sparse(plain, failure=0.5)
    back = failing.to_sparse()
    optimizer = torch.optim.SGD(plain.parameters(), 0.1)
    Evolution(failing, optimizer, fraction=0.7).step()
    assert edges(plain) == edges(failing) == edges(back)
    other = syn.SparseLinear(7, 5, nnz=20)
    plain.load_state_dict(other.state_dict(), assign=True)
    assert edges(plain) == edges(failing) == edges(back) == edges(other)
    x = torch.randn(3, 7)
    assert torch.equal(failing.eval()(x), back(x))


def test_hooks_follow_and_leave_nothing_behind():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    evolution = Evolution(model, optimizer, grow="gradient", every=2, until=6)
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    learn(model, optimizer, 0)
    evolution.step()
    syn.rewire(model, syn.Failing(0.1))
    for batch in range(1, 4):
        learn(model, optimizer, batch)
        evolution.step()
        assert all(len(uses) == 1 for seen in evolution._capture.seen.values() for uses in seen)
    assert [len(model[index]._forward_hooks) for index in (0, 2)] == [1, 0]
    assert len(calls) == 4


def test_a_copy_of_the_model_is_not_listened_to():
    torch.manual_seed(1)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    evolution = Evolution(model, optimizer, grow="gradient")
    other = copy.deepcopy(model)
    other(torch.randn(4, 20, dtype=torch.float64)).sum().backward()
    learn(model, optimizer, 0)
    assert [len(uses) for seen in evolution._capture.seen.values() for uses in seen] == [1, 1]


@pytest.mark.parametrize("wiring", [syn.Dense(), syn.Sparse(0.05), syn.Sparse(0.2, start="random")], ids=str)
@pytest.mark.parametrize("grow", ["random", "gradient"])
def test_values_that_left_the_model_stop_the_evolution_before_anything_changes(wiring, grow):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    evolution = Evolution(model, optimizer, grow=grow, track_visited=True)
    learn(model, optimizer, 0)
    evolution.step()
    syn.rewire(model, wiring, where="2")
    learn(model, optimizer, 1)
    before, state = edges(model[0]), take_apart(evolution.state_dict())
    for refused in (evolution.step, evolution.itop_rate, lambda: evolution.load_state_dict(evolution.state_dict())):
        with pytest.raises(ConfigurationError, match=r"no longer holds the values of layer '2' .* make a new opt"):
            refused()
    assert edges(model[0]) == before
    after = take_apart(evolution.state_dict())
    assert state[0] == after[0]
    assert all(torch.equal(state[1][name], after[1][name]) for name in state[1])


def test_values_in_two_layers_are_refused():
    layer = syn.SparseLinear(6, 6, nnz=9)
    model = nn.Sequential(layer, syn.FailingSparseLinear.from_sparse(layer, failure=0.5))
    with pytest.raises(ConfigurationError, match="layer '0' and layer '1' hold the same values"):
        Evolution(model, torch.optim.SGD(layer.parameters(), 0.1))


def test_frozen_layers_stay_as_they_are():
    model = network()
    model[0].values.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    evolution = Evolution(model, optimizer, grow="gradient", track_visited=True)
    before = edges(model[0])
    learn(model, optimizer, 0)
    assert evolution.step() == round(0.3 * 18)
    assert edges(model[0]) == before
    assert evolution.itop_rate() == 23 / 80
    model[2].values.requires_grad_(False)
    with pytest.raises(ConfigurationError, match=r"every sparse layer of the model are frozen .* call requires_grad_"):
        Evolution(model, optimizer)


class Exchanging(syn.SparseLinear):
    def replace(self, *parts):
        source = super().replace(*parts)
        self.values = nn.Parameter(self.values.detach())
        return source


class Returning(syn.SparseLinear):
    result = None

    def replace(self, *parts):
        super().replace(*parts)
        return self.result


class Short(Returning):
    result = torch.zeros(3, dtype=torch.int64)


class Lacking(nn.Module):
    def __init__(self, *_, **__):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(9))

    def replace(self, *_):
        """Never called."""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Exchanging, r"replace\(\) of layer '0', a Exchanging, made another Parameter"),
        (Returning, r"replace\(\) of layer '0', a Returning, must return .* int64 \[9\]; it returned None"),
        (Short, r"int64 \[9\]; it returned torch.int64 \[3\]"),
        (Lacking, "layer '0' is a Lacking, which lacks in_features, out_features, row_of, col, initial_values; see"),
    ],
)
def test_custom_layers_that_do_not_do_what_is_asked_are_told_so(kind, message):
    model = nn.Sequential(kind(6, 5, nnz=9))
    with pytest.raises(ConfigurationError, match=message):
        Evolution(model, torch.optim.Adam(model.parameters()), initial="distribution").step()
