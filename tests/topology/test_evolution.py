"""Evolution of whole models: exact counts, survivors untouched, rules against dense oracles, resumed to the bit."""

import copy
import math
import time

import pytest
import torch
from torch import nn

from synaptome.errors import ConfigurationError, NumericError
from synaptome.nested import put_together, take_apart
from synaptome.synapses.sparse import SparseLinear
from synaptome.topology.evolution import Evolution
from synaptome.topology.layers import occupied
from synaptome.topology.schedule import SCHEDULES


def network():
    return nn.Sequential(SparseLinear(20, 16, nnz=80), nn.ReLU(), nn.Linear(16, 12), SparseLinear(12, 5, nnz=18))


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def sparse(model):
    return [layer for layer in model.modules() if isinstance(layer, SparseLinear)]


def learn(model, optimizer, batch):
    generator = torch.Generator().manual_seed(batch)
    optimizer.zero_grad()
    model(torch.randn(8, 20, generator=generator)).square().mean().backward()
    optimizer.step()


def edges(layer):
    places = zip(layer.row_of.tolist(), layer.col.tolist(), strict=True)
    return dict(zip(places, layer.values.tolist(), strict=True))


def dense_gradient(model, batch, which):
    """The gradient by the full matrix of a sparse layer, from a dense copy of the model."""
    model = copy.deepcopy(model)
    layer = sparse(model)[which]
    full = layer.to_dense()
    position = next(i for i, module in enumerate(model) if module is layer)
    model[position] = full
    generator = torch.Generator().manual_seed(batch)
    model(torch.randn(8, 20, generator=generator)).square().mean().backward()
    return full.weight.grad


@pytest.mark.parametrize("drop", ["set", "magnitude", "taylor"])
@pytest.mark.parametrize("grow", ["random", "random-unfired", "gradient", "momentum"])
def test_every_pair_of_rules_keeps_the_number_of_connections_and_the_survivors(drop, grow):
    model = network()
    optimizer = sgd(model)
    evolution = Evolution(model, optimizer, drop=drop, grow=grow, initial=0.125)
    for batch in range(12):
        learn(model, optimizer, batch)
        before = [edges(layer) for layer in sparse(model)]
        replaced = evolution.step()
        for layer, was, nnz in zip(sparse(model), before, (80, 18), strict=True):
            now = edges(layer)
            assert len(now) == nnz
            assert all(now[place] == was[place] for place in now.keys() & was.keys())
            assert {now[place] for place in now.keys() - was.keys()} == {0.125}
            replaced -= len(now.keys() - was.keys())
        assert replaced == 0


def test_gradient_growth_is_that_of_the_dense_gradient():
    torch.manual_seed(3)
    model = network()
    optimizer = sgd(model)
    evolution = Evolution(model, optimizer, grow="gradient", every=3)
    for batch in range(9):
        before = copy.deepcopy(model)
        learn(model, optimizer, batch)
        learned = copy.deepcopy(model)
        replaced = evolution.step()
        assert (replaced > 0) is (batch % 3 == 2)
        if not replaced:
            continue
        for which in range(2):
            gradient = dense_gradient(before, batch, which).abs()
            was, now = edges(sparse(learned)[which]), edges(sparse(model)[which])
            gradient[tuple(zip(*was, strict=True))] = -1
            count = round(0.3 * len(was))
            best = gradient.view(-1).topk(count).indices.tolist()
            assert now.keys() - was.keys() == {divmod(place, gradient.shape[1]) for place in best}


@pytest.mark.parametrize(
    ("grow", "optimizer", "decay"),
    [("gradient", sgd, 1.0), ("momentum", sgd, 0.9), ("momentum", lambda m: torch.optim.Adam(m.parameters()), 0.9)],
)
def test_accumulated_growth_weighs_the_last_steps(grow, optimizer, decay):
    torch.manual_seed(4)
    model = network()
    optimizer = optimizer(model)
    evolution = Evolution(model, optimizer, grow=grow, every=6, accumulate=4)
    total = torch.zeros(16, 20)
    for batch in range(6):
        before = copy.deepcopy(model)
        learn(model, optimizer, batch)
        if batch >= 2:
            total = decay * total + dense_gradient(before, batch, 0)
        was = edges(sparse(model)[0])
        evolution.step()
    total = total.abs()
    total[tuple(zip(*was, strict=True))] = -1
    best = total.view(-1).topk(24).indices.tolist()
    assert edges(model[0]).keys() - was.keys() == {divmod(place, 20) for place in best}


def test_momentum_at_the_connections_there_are_is_the_optimizers():
    """The truncated mean is that of the optimizer, checked where both exist, to the weight that is cut off."""
    torch.manual_seed(5)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.5)
    evolution = Evolution(model, optimizer, grow="momentum", every=31, accumulate=40)
    for batch in range(30):
        learn(model, optimizer, batch)
    uses = evolution._capture.seen["0"]
    total = sum(0.5**age * g.mT @ x for age, step in enumerate(reversed(uses)) for x, g in step)
    there = total[model[0].row_of, model[0].col]
    torch.testing.assert_close(there, optimizer.state[model[0].values]["momentum_buffer"], rtol=1e-4, atol=1e-4)


def test_by_default_momentum_is_taken_over_nine_tenths_of_its_weight():
    model = network()
    evolution = Evolution(model, sgd(model), grow="momentum")
    assert 1 - 0.9**evolution._accumulate >= 0.9 > 1 - 0.9 ** (evolution._accumulate - 1)


def test_growth_sees_every_use_of_a_layer_and_every_backward_of_a_step():
    torch.manual_seed(6)
    layer = SparseLinear(6, 6, nnz=12)
    twin = copy.deepcopy(layer)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    evolution = Evolution(layer, optimizer, grow="gradient", fraction=0.5)
    full = twin.to_dense()
    for _ in range(2):
        x = torch.randn(2, 3, 6)
        for net in (layer, full):
            net(torch.tanh(net(x))).square().sum().backward()
    with torch.no_grad():
        layer(torch.randn(100, 6) * 1000)  # an evaluation counts for nothing
    optimizer.step()
    was = edges(layer)
    evolution.step()
    gradient = full.weight.grad.abs()
    gradient[tuple(zip(*was, strict=True))] = -1
    best = gradient.view(-1).topk(6).indices.tolist()
    assert edges(layer).keys() - was.keys() == {divmod(place, 6) for place in best}


def test_gradients_are_captured_only_where_a_change_comes():
    model = network()
    optimizer = sgd(model)
    evolution = Evolution(model, optimizer, grow="gradient", every=5, until=10, accumulate=2)
    captured = []
    for batch in range(12):
        captured.append(len(model[0]._forward_hooks))
        learn(model, optimizer, batch)
        evolution.step()
        assert all(len(seen) < 2 for seen in evolution._capture.seen.values())
    assert captured == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_a_call_for_each_epoch_grows_by_the_last_batch():
    torch.manual_seed(8)
    model = network()
    optimizer = sgd(model)
    evolution = Evolution(model, optimizer, grow="gradient")
    for batch in range(7):
        before = copy.deepcopy(model)
        learn(model, optimizer, batch)
    was = edges(model[0])
    evolution.step()
    gradient = dense_gradient(before, 6, 0).abs()
    gradient[tuple(zip(*was, strict=True))] = -1
    best = gradient.view(-1).topk(24).indices.tolist()
    assert edges(model[0]).keys() - was.keys() == {divmod(place, 20) for place in best}


def test_redistribution_goes_by_the_mean_magnitude_of_momentum():
    torch.manual_seed(7)
    model = network()
    optimizer = sgd(model)
    evolution = Evolution(model, optimizer, redistribute="momentum", fraction=0.25)
    for batch in range(8):
        learn(model, optimizer, batch)
        layers = sparse(model)
        means = [float(optimizer.state[layer.values]["momentum_buffer"].abs().mean()) for layer in layers]
        was = [edges(layer) for layer in layers]
        lost = [round(0.25 * len(e)) for e in was]
        lost = [min(n, room) for n, room in zip(lost, (320 - len(was[0]), 60 - len(was[1])), strict=True)]
        assert evolution.step() == sum(lost)
        now = [edges(layer) for layer in layers]
        assert sum(map(len, now)) == 98
        gained = [len(n) - len(w) + gone for n, w, gone in zip(now, was, lost, strict=True)]
        if gained[1] < 60 - len(was[1]):
            assert gained[0] == pytest.approx(sum(lost) * means[0] / sum(means), abs=1)
        for w, n, gone in zip(was, now, lost, strict=True):
            assert len(w.keys() - n.keys()) == gone
            assert all(n[place] == w[place] for place in n.keys() & w.keys())
        for layer in layers:
            assert optimizer.state[layer.values]["momentum_buffer"].shape == layer.values.shape
    learn(model, optimizer, 9)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_fraction_follows_its_schedule_until_the_end(schedule):
    layer = SparseLinear(100, 100, nnz=1000)
    evolution = Evolution(layer, torch.optim.SGD(layer.parameters(), 0.1), schedule=schedule, every=2, until=12)
    share = {
        "constant": lambda t: 1,
        "cosine": lambda t: (1 + math.cos(t * math.pi / 12)) / 2,
        "linear": lambda t: 1 - t / 12,
        "inverse-power": lambda t: (1 - t / 12) ** 3,
    }[schedule]
    replaced = [evolution.step() for _ in range(16)]
    assert replaced == [round(300 * share(t)) if t % 2 == 0 and t < 12 else 0 for t in range(1, 17)]


@pytest.mark.parametrize("nnz", [0, 1, 59, 60])
def test_empty_full_and_nearly_full_layers(nnz):
    layer = SparseLinear(10, 6, nnz=nnz)
    optimizer = torch.optim.Adam(layer.parameters())
    for grow in ("random", "gradient", "random-unfired"):
        evolution = Evolution(layer, optimizer, grow=grow, fraction=1.0, drop="set")
        layer(torch.randn(3, 10)).sum().backward()
        optimizer.step()
        before = edges(layer).keys()
        assert evolution.step() == min(nnz, 60 - nnz)
        now = edges(layer).keys()
        assert len(now) == nnz
        assert len(now - before) == min(nnz, 60 - nnz)


def test_the_itop_rate_counts_every_place_ever_occupied():
    model = network()
    optimizer = sgd(model)
    evolution = Evolution(model, optimizer, track_visited=True)
    ever = [set(edges(layer)) for layer in sparse(model)]
    assert evolution.itop_rate() == 98 / 380
    for batch in range(15):
        learn(model, optimizer, batch)
        evolution.step()
        for seen, layer in zip(ever, sparse(model), strict=True):
            seen.update(edges(layer))
        assert evolution.itop_rate() == sum(map(len, ever)) / 380
    with pytest.raises(ConfigurationError, match="track_visited=True"):
        Evolution(model, optimizer).itop_rate()


def test_unfired_growth_visits_every_place_before_any_twice():
    layer = SparseLinear(10, 10, nnz=10)
    evolution = Evolution(layer, torch.optim.SGD(layer.parameters(), 0.1), grow="random-unfired", fraction=0.5)
    rates = []
    for _ in range(20):
        evolution.step()
        rates.append(round(evolution.itop_rate() * 100))
    assert rates == [*range(15, 100, 5), 100, 100, 100]


CONFIGURATIONS = [
    {"drop": "set", "initial": "distribution"},
    {"grow": "random-unfired", "every": 2},
    {"grow": "gradient", "every": 3, "accumulate": 3, "schedule": "cosine", "until": 40},
    {"grow": "momentum", "redistribute": "momentum", "every": 2},
    {"drop": "taylor", "track_visited": True},
]


@pytest.mark.parametrize("options", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("stop", [1, 4, 5])
def test_resumed_to_the_bit(options, stop):
    def start(seed):
        torch.manual_seed(seed)
        model = network()
        optimizer = torch.optim.Adam(model.parameters())
        return model, optimizer, Evolution(model, optimizer, seed=3, **options)

    def go_on(model, optimizer, evolution, batches):
        for batch in batches:
            learn(model, optimizer, batch)
            if batch % 3 != 1:  # several steps of the optimizer for a call, now and then
                evolution.step()

    straight = start(0)
    go_on(*straight, range(stop))
    saved = [put_together(*take_apart(part.state_dict())) for part in straight]
    go_on(*straight, range(stop, 14))
    resumed = start(1)
    for part, state in zip(resumed, saved, strict=True):
        part.load_state_dict(state)
    go_on(*resumed, range(stop, 14))
    (tree, tensors), (other_tree, other) = (
        take_apart([part.state_dict() for part in run]) for run in (straight, resumed)
    )
    assert tree == other_tree
    assert all(torch.equal(tensors[name], other[name]) for name in tensors)


def test_the_seed_decides():
    def run(seed):
        torch.manual_seed(0)
        model = network()
        optimizer = sgd(model)
        evolution = Evolution(model, optimizer, seed=seed)
        for batch in range(5):
            learn(model, optimizer, batch)
            torch.rand(3)  # its random numbers are its own
            evolution.step()
        return edges(model[0])

    assert run(1) == run(1) != run(2)


def test_states_of_another_or_a_corrupt_evolution_are_refused_and_nothing_changes():
    model = network()
    evolution = Evolution(model, sgd(model), grow="random-unfired")
    evolution.step()
    good = evolution.state_dict()
    wrong = {
        "it has the keys": {"steps": 1},
        "its number of steps is -1": good | {"steps": -1},
        "its generator is not": good | {"generator": torch.zeros(3, dtype=torch.uint8)},
        "its visited is not of layer '0', layer '3'": good | {"visited": {"0": good["visited"]["0"]}},
        "its seen is not of layer '0'": good | {"seen": None},
        "of layer '3' are not ascending numbers below 60": good
        | {"visited": good["visited"] | {"3": torch.tensor([3, 60])}},
        "of layer '0' are not ascending": good | {"visited": good["visited"] | {"0": torch.tensor([3, 3])}},
        "of layer '0' are torch.float32": good | {"visited": good["visited"] | {"0": torch.ones(2)}},
    }
    for message, state in wrong.items():
        with pytest.raises(ConfigurationError, match=f"state of an evolution does not fit: .*{message}"):
            evolution.load_state_dict(state)
    twin = Evolution(model, sgd(model), grow="random-unfired")
    twin.load_state_dict(good)
    assert take_apart(twin.state_dict())[0] == take_apart(evolution.state_dict())[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": "magnitud"}, "unknown drop rule 'magnitud'.*did you mean 'magnitude'"),
        ({"grow": "grad"}, "unknown growth rule 'grad'"),
        ({"schedule": "exponential"}, "unknown schedule"),
        ({"redistribute": "all"}, "unknown redistribution"),
        ({"fraction": 0.0}, r"fraction is a share .* in \(0, 1\]; given 0.0"),
        ({"fraction": math.nan}, "given nan"),
        ({"every": 0}, "every is a whole number of at least 1; given 0"),
        ({"until": 0}, "until is a whole number"),
        ({"accumulate": 0}, "accumulate is a whole number"),
        ({"schedule": "cosine"}, "schedule='cosine' falls .* give until"),
        ({"initial": "zero"}, "initial is a finite number or 'distribution'; given 'zero'"),
        ({"initial": math.inf}, "initial is a finite number"),
        ({"initial": True}, "initial is a finite number or 'distribution'; given True"),
        ({"seed": -1}, "seed is a whole number"),
        ({"seed": 1.5}, "seed is a whole number from 0 .* given 1.5"),
        ({"fraction": True}, "fraction is a share .* given True"),
        ({"fraction": "0.3"}, "fraction is a share .* given '0.3'"),
        ({"every": 1.5}, "every is a whole number of at least 1; given 1.5"),
        ({"every": True}, "every is a whole number of at least 1; given True"),
        ({"every": None}, "every is a whole number of at least 1; given None"),
        ({"until": 3.7}, "until is a whole number of at least 1; given 3.7"),
        ({"accumulate": "2"}, "accumulate is a whole number of at least 1; given '2'"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    model = network()
    with pytest.raises(ConfigurationError, match=message):
        Evolution(model, sgd(model), **options)


def test_models_and_optimizers_that_cannot_are_refused():
    dense = nn.Linear(3, 2)
    with pytest.raises(ConfigurationError, match="no layer whose connections can change"):
        Evolution(dense, sgd(dense))
    model = network()
    for options in ({"grow": "momentum"}, {"redistribute": "momentum"}):
        for optimizer in (torch.optim.SGD(model.parameters(), 0.1), torch.optim.Adagrad(model.parameters())):
            with pytest.raises(ConfigurationError, match="keeps no momentum here"):
                Evolution(model, optimizer, **options)


def test_what_fails_in_a_step_changes_nothing_and_can_be_mended():
    torch.manual_seed(9)
    model = network()
    optimizer = sgd(model)
    evolution = Evolution(model, optimizer, grow="gradient", redistribute="momentum")

    def everything():
        return take_apart([model.state_dict(), optimizer.state_dict(), evolution.state_dict()])

    def check_refused(error, message):
        tree, tensors = everything()
        with pytest.raises(error, match=message):
            evolution.step()
        tree_after, after = everything()
        assert tree == tree_after
        assert all(torch.equal(tensors[name], after[name]) or tensors[name].isnan().any() for name in tensors)

    check_refused(ConfigurationError, "no momentum of layer '0' yet")
    learn(model, optimizer, 0)
    kept = model[3].values.data[4].clone()
    model[3].values.data[4] = torch.nan
    check_refused(NumericError, "a weight of layer '3' is not finite")
    model[3].values.data[4] = kept
    seen = evolution._capture.seen["3"].pop()
    check_refused(ConfigurationError, "no gradient of layer '3' to grow connections by")
    evolution._capture.seen["3"].append([(seen[0][0], seen[0][1] * torch.inf)])
    check_refused(NumericError, "gradient by which connections grow is not finite")
    evolution._capture.seen["3"][0] = seen
    assert evolution.step() > 0


def test_it_learns_what_a_static_graph_cannot():
    """The teacher looks at 6 of 200 inputs. Growing by gradient finds them; so, more slowly, does chance."""

    def final_loss(grow):
        torch.manual_seed(2)
        layer = SparseLinear(200, 1, nnz=20, bias=False)
        optimizer = torch.optim.SGD(layer.parameters(), 0.05)
        evolution = Evolution(layer, optimizer, grow=grow or "random", every=5, until=600)
        for _ in range(800):
            x = torch.randn(64, 200)
            loss = (layer(x).view(-1) - x[:, :6].sum(1)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if grow:
                evolution.step()
        return loss.item()

    assert final_loss(None) > 3
    assert final_loss("random") < 0.1
    assert final_loss("gradient") < 0.1


@pytest.mark.slow
def test_a_set_step_of_ten_million_connections_takes_seconds():
    layer = SparseLinear(10**6, 10**6, nnz=10**7)
    optimizer = sgd(layer)
    layer.values.grad = torch.ones_like(layer.values)
    optimizer.step()
    evolution = Evolution(layer, optimizer, drop="set")
    start = time.perf_counter()
    assert evolution.step() == pytest.approx(3 * 10**6, abs=1)
    assert time.perf_counter() - start < 30  # a few on an idle core
    places = occupied(layer)
    assert bool((places[1:] > places[:-1]).all())
