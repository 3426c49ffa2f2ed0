"""Settings of an evolution: part of its state, compared when one is loaded, and told by its repr."""

import numpy
import pytest
import torch

from synaptome.errors import ConfigurationError
from synaptome.nested import put_together, take_apart
from synaptome.synapses.sparse import SparseLinear
from synaptome.topology.evolution import Evolution

BASE = {"drop": "set", "grow": "random", "fraction": 0.3, "every": 2, "until": 9, "seed": 1}


def evolution(**options):
    layer = SparseLinear(6, 5, nnz=9)
    return Evolution(layer, torch.optim.SGD(layer.parameters(), 0.1, momentum=0.9), **(BASE | options))


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("drop", "magnitude"),
        ("grow", "gradient"),
        ("fraction", 0.2),
        ("every", 3),
        ("until", None),
        ("schedule", "cosine"),
        ("accumulate", 4),
        ("redistribute", "momentum"),
        ("initial", "distribution"),
        ("track_visited", True),
        ("seed", 2),
    ],
)
def test_the_state_of_an_evolution_with_other_settings_is_refused(name, other):
    state, mine = evolution(**{name: other}).state_dict(), evolution()
    mine.step()
    before = mine._generator.get_state()
    own = mine.state_dict()["settings"][name]
    message = f"it was made with {name}={other!r}, and this evolution has {name}={own!r}$"
    with pytest.raises(ConfigurationError, match=message):
        mine.load_state_dict(state)
    assert mine.state_dict()["steps"] == 1
    assert torch.equal(mine._generator.get_state(), before)


def test_states_without_settings_and_with_numbers_of_numpy_load():
    given = evolution(fraction=numpy.float32(0.5), every=numpy.int64(3))
    given.step()
    state = put_together(*take_apart(given.state_dict()))
    assert {type(state["settings"][name]) for name in ("fraction", "every")} == {float, int}
    twin = evolution(fraction=0.5, every=3)
    twin.load_state_dict(state)
    assert twin.state_dict()["steps"] == 1
    old = {name: part for name, part in state.items() if name != "settings"}
    other = evolution(seed=5)
    other.load_state_dict(old)
    assert other.state_dict()["steps"] == 1
    with pytest.raises(ConfigurationError, match="its settings are not drop, grow, fraction"):
        twin.load_state_dict(state | {"settings": {"drop": "set"}})


def test_its_repr_tells_rules_and_layers():
    told = repr(evolution())
    assert told.startswith("Evolution(drop='set', grow='random', fraction=0.3, every=2, until=9, schedule='constant'")
    assert told.endswith("seed=1, layers=[''])")
