"""The state of every optimizer of torch follows its connections; new ones start as a new parameter does."""

import copy

import pytest
import torch
from torch import nn

from synaptome.errors import ConfigurationError
from synaptome.synapses.sparse import SparseLinear
from synaptome.topology import optimizer_state
from synaptome.topology.evolution import Evolution

CANNOT = {
    torch.optim.LBFGS: "LBFGS",  # one flat history of all parameters
    torch.optim.SparseAdam: "SparseAdam",  # takes no dense gradients
    torch.optim.Muon: None,  # takes matrices only: refuses the values by itself
}
ALL = [
    cls
    for cls in vars(torch.optim).values()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer
]
# Options that bring further states.
OPTIONS = [
    *((cls, {}) for cls in ALL if cls not in CANNOT),
    (torch.optim.SGD, {"momentum": 0.9}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (torch.optim.Adam, {"amsgrad": True, "foreach": False}),
    (torch.optim.Adam, {"fused": True}),
    (torch.optim.AdamW, {"amsgrad": True}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.7}),
    (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    (torch.optim.Rprop, {"lr": 0.003}),
    (torch.optim.ASGD, {"t0": 2}),
]


def trained(cls, options, steps=4):
    torch.manual_seed(0)
    layer = SparseLinear(9, 7, nnz=20)
    optimizer = cls(layer.parameters(), **options)
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.randn(5, 9)).square().sum().backward()
        optimizer.step()
    return layer, optimizer


def by_connection(layer, optimizer):
    """For each connection its value and its states, as plain numbers; and the states of the whole layer."""
    places = list(zip(layer.row_of.tolist(), layer.col.tolist(), strict=True))
    own = {"value": layer.values.tolist()}
    whole = {}
    for key, state in optimizer.state[layer.values].items():
        if isinstance(state, torch.Tensor) and state.dim() == 1:
            own[key] = state.tolist()
        else:
            whole[key] = state.item() if isinstance(state, torch.Tensor) else state
    return {place: {key: own[key][i] for key in own} for i, place in enumerate(places)}, whole


def as_initialised(cls, options):
    """The states that an optimizer makes for a parameter, caught before its first update changes them."""
    layer, optimizer = trained(cls, options, steps=0)
    layer.values.data.zero_()
    layer(torch.zeros(1, 9)).sum().backward()  # no gradient by the values, nor decay: the step leaves the states alone
    optimizer.step()
    return by_connection(layer, optimizer)[0]


@pytest.mark.parametrize(("cls", "options"), OPTIONS, ids=lambda x: x.__name__ if isinstance(x, type) else str(x))
@pytest.mark.parametrize("initial", [0.0, "distribution"])
def test_state_follows_its_connection(cls, options, initial):
    layer, optimizer = trained(cls, options)
    before, whole = by_connection(layer, optimizer)
    values, bias_state = layer.values, copy.deepcopy(optimizer.state[layer.bias])
    assert Evolution(layer, optimizer, fraction=0.4, initial=initial, seed=1).step() == 8
    assert layer.values is values
    after, whole_after = by_connection(layer, optimizer)
    assert whole == whole_after
    assert len(after) == 20
    survivors = before.keys() & after.keys()
    assert len(survivors) == 12
    assert all(before[place] == after[place] for place in survivors)
    initialised = as_initialised(cls, options)
    for place in after.keys() - before.keys():
        value = after[place].pop("value")
        assert (value == 0) is (initial == 0.0)
        for key, state in after[place].items():
            if key == "ax":
                assert state == value  # the average of the one value there was
            else:
                # To within epsilon, which Adamax adds to what stands there.
                assert state == pytest.approx(next(iter(initialised.values()))[key], abs=1e-7)
    for key, state in optimizer.state[layer.bias].items():
        assert torch.equal(torch.as_tensor(state), torch.as_tensor(bias_state[key]))
    optimizer.zero_grad()
    layer(torch.randn(5, 9)).sum().backward()
    optimizer.step()
    assert torch.isfinite(layer.values).all()


def test_every_optimizer_of_torch_is_known_or_refused():
    assert set(ALL) - set(CANNOT) == set(optimizer_state.FRESH)


@pytest.mark.parametrize("cls", [c for c, name in CANNOT.items() if name])
def test_optimizers_whose_state_cannot_follow_are_refused(cls):
    layer = SparseLinear(9, 7, nnz=20)
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(ConfigurationError, match=f"cannot change under {cls.__name__}.*one of: .*SGD"):
        Evolution(layer, cls(layer.parameters()))
    assert all(torch.equal(layer.state_dict()[key], before[key]) for key in before)


def test_an_optimizer_of_other_parameters_is_refused():
    model = nn.Sequential(SparseLinear(9, 7, nnz=20), SparseLinear(7, 5, nnz=10))
    with pytest.raises(ConfigurationError, match="does not hold the values of layer '1';"):
        Evolution(model, torch.optim.SGD(model[0].parameters(), 0.1))


def test_subclasses_are_served_and_states_of_their_own_refused_before_anything_changes():
    class Ours(torch.optim.SGD):
        pass

    layer, optimizer = trained(Ours, {"lr": 0.1, "momentum": 0.9})
    evolution = Evolution(layer, optimizer)
    assert evolution.step() == 6
    optimizer.state[layer.values]["curvature"] = torch.zeros(20)
    before, _ = by_connection(layer, optimizer)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="Ours keeps a state 'curvature' of shape"):
            evolution.step()
    assert by_connection(layer, optimizer)[0] == before
    del optimizer.state[layer.values]["curvature"]
    assert evolution.step() == 6
