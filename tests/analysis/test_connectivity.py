"""What became of learned synapses: against masks and scores that are set and counted by hand."""

import math

import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.analysis.connectivity import BINS, final, score_histogram, share_changed, snapshot
from synaptome.errors import ConfigurationError
from synaptome.networks.registry import build
from synaptome.synapses.learned_rules import Learned


def two_layers(method, **options):
    """Layers of 2 x 3 and 1 x 2, with weights of both signs, and a plain one between them."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    for layer, weight in ((0, [[1.0, -2.0, 3.0], [-4.0, 5.0, 6.0]]), (2, [[-7.0, 8.0]])):
        model[layer].weight.data = torch.tensor(weight)
    return syn.rewire(model, Learned(method, **options), where=["0", "2"])


def set_scores(model, first, last):
    model[0].scores.data, model[2].scores.data = torch.tensor(first), torch.tensor(last)


def test_nothing_has_changed_at_the_start():
    for method in ("free-pruning", "minimal-flipping", "supermask", "ternary"):
        model = two_layers(method, **({"threshold": 0.0} if method == "ternary" else {}))
        found = snapshot(model)
        assert share_changed(model) == found["changed"].item() == 0.0
        assert found["layer1/masks"].tolist() == [0, 0, 6]
        assert found["layer1/weights"].tolist() == [2, 0, 4]
        assert found["layer2/weights"].tolist() == [1, 0, 1]


def test_masks_weights_and_changes_are_those_counted_by_hand():
    model = two_layers("ternary", threshold=0.5)
    set_scores(model, [[1.0, -1.0, 0.5], [0.2, -0.6, 2.0]], [[-3.0, 3.0]])
    # masks 1 -1 0 / 0 -1 1 and -1 1; effective weights 1 2 0 / 0 -5 6 and 7 8
    found = snapshot(model)
    assert found["layer1/masks"].tolist() == [2, 2, 2]
    assert found["layer1/weights"].tolist() == [1, 2, 3]
    assert found["layer1/changed"].item() == 4 / 6
    assert found["layer2/masks"].tolist() == [1, 0, 1]
    assert found["layer2/weights"].tolist() == [0, 0, 2]
    assert found["layer2/changed"].item() == 1 / 2
    assert found["changed"].item() == share_changed(model) == 5 / 8  # of all synapses, not the mean over layers
    assert set(found) == {"changed"} | {f"layer{n}/{what}" for n in (1, 2) for what in ("masks", "weights", "changed")}
    assert {found["layer1/masks"].dtype, found["layer1/weights"].dtype} == {torch.int64}
    assert {found["layer1/changed"].dtype, found["changed"].dtype} == {torch.float64}


@pytest.mark.parametrize(
    ("method", "masks", "changed"), [("free-flipping", [1, 0, 5], 1), ("free-pruning", [0, 2, 4], 2)]
)
def test_flips_count_as_changes_and_a_score_of_zero_as_each_method_has_it(method, masks, changed):
    model = two_layers(method)
    set_scores(model, [[1.0, -1.0, 0.0], [0.2, 0.6, 2.0]], [[3.0, 3.0]])
    assert snapshot(model)["layer1/masks"].tolist() == masks
    assert share_changed(model) == changed / 8


def test_the_model_stays_as_it_is():
    model = two_layers("supermask")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    final(model)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_layers_are_counted_in_the_order_of_the_network():
    model = build("conv2", (1, 8, 8), 10, wiring=Learned("free-pruning"))
    sizes = [int(snapshot(model)[f"layer{number}/masks"].sum()) for number in range(1, 6)]
    assert sizes == [64 * 9, 64 * 64 * 9, 64 * 16 * 256, 256 * 256, 2560]


def test_every_score_is_in_the_bin_whose_edges_hold_it():
    scores = torch.cat((6 * torch.rand(1000) - 3, torch.zeros(3), torch.tensor([4.0, -4.0, 2.0, -2.0])))
    edges, counts = score_histogram(scores.view(19, 53))
    assert (len(edges), len(counts)) == (BINS + 1, BINS)
    assert edges[BINS // 2].item() == 0.0
    torch.testing.assert_close(edges, torch.linspace(-4.0, 4.0, BINS + 1, dtype=torch.float64))
    expected = [
        sum(lower <= score < upper for score in scores.tolist())
        for lower, upper in zip([-math.inf, *edges[1:-1].tolist()], [*edges[1:-1].tolist(), math.inf], strict=True)
    ]
    assert counts.tolist() == expected
    assert counts.sum() == scores.numel()


def test_a_histogram_of_zeros_has_bins_too():
    edges, counts = score_histogram(torch.zeros(2, 3))
    assert (edges.diff() > 0).all()
    assert counts[BINS // 2] == counts.sum() == 6


def test_pruned_synapses_are_those_left_of_the_middle():
    model = two_layers("free-pruning")
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.scores)
    found = final(model)
    assert all(torch.equal(found[name], tensor) for name, tensor in snapshot(model).items())
    for number in (1, 2):
        assert found[f"layer{number}/score_counts"][: BINS // 2].sum() == found[f"layer{number}/masks"][1]
        assert found[f"layer{number}/score_counts"].sum() == found[f"layer{number}/masks"].sum()


def test_a_model_without_learned_layers_is_refused():
    for measure in (share_changed, snapshot, final):
        with pytest.raises(ConfigurationError, match="a Linear has no learned layer"):
            measure(nn.Linear(2, 3))
