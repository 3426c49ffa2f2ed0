"""Blocks of parameters: what they hold, how points are put together from them, and what is refused."""

import pytest
import torch
from torch import nn

from synaptome.errors import ConfigurationError
from synaptome.learning.distribution_blocks import Partition, Piece, by_layers, by_parameters
from synaptome.networks.feedforward import FeedForward
from synaptome.networks.stable import StableNetwork
from synaptome.synapses.sparse import SparseLinear


class TwoNumbers(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix, self.number = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(()))


def stable(depth=8, **options):
    given = {"dynamics": "verlet", "width": 6, "depth": depth, "time": 4.0, "opening": "learned"}
    return StableNetwork(2, 3, **{**given, **options})


def held(network, blocks):
    """For each row of each parameter, the blocks that hold it."""
    found = {}
    for number, block in enumerate(blocks):
        for piece in block:
            parameter = network.get_parameter(piece.name)
            rows = piece.rows or (0, len(parameter) if parameter.dim() else 1)
            for row in range(*rows):
                found.setdefault((piece.name, row), []).append(number)
    return found


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_layers_of_any_network_are_in_one_block_each_and_in_order(count):
    shared = nn.Linear(5, 5)
    networks = [
        stable(),
        stable(controls=4),
        stable(opening="pad"),
        FeedForward([4, 20, 3, 20, 20, 20, 2]),
        nn.Sequential(nn.Linear(5, 5), nn.ReLU(), shared, nn.Tanh(), shared, nn.Linear(5, 5), *[nn.Linear(5, 5)] * 2),
        nn.Sequential(*[layer for _ in range(5) for layer in (nn.Linear(3, 3), nn.BatchNorm1d(3))]),
    ]
    if count > 4:
        del networks[4]  # four layers, of which two are shared
    for network in networks:
        blocks = by_layers(network, count)
        assert len(blocks) == count
        found = held(network, blocks)
        assert all(len(owners) == 1 for owners in found.values())
        rows = sum(len(each) if each.dim() else 1 for each in network.parameters())
        assert len(found) == rows
        Partition(network, blocks)


def test_blocks_of_layers_are_balanced_by_parameters():
    network = stable(depth=8)  # 18 in the opening, 42 in each layer, 21 in the classifier
    first, second = by_layers(network, 2)
    assert Partition(network, (first, second)).blocks == (
        (Piece("weight", (0, 4)), Piece("bias", (0, 4)), Piece("opening.layer.weight"), Piece("opening.layer.bias")),
        (Piece("weight", (4, 8)), Piece("bias", (4, 8)), Piece("classifier.weight"), Piece("classifier.bias")),
    )
    wide = FeedForward([100, 50, 10, 10, 10])  # the first layer has most of the parameters
    assert [{piece.name for piece in block} for block in by_layers(wide, 2)] == [
        {"layers.0.weight", "layers.0.bias"},
        {f"layers.{n}.{kind}" for n in (1, 2, 3) for kind in ("weight", "bias")},
    ]
    last = FeedForward([10, 10, 10, 50, 100])  # the cuts would all lie in the last layer
    assert [len(block) for block in by_layers(last, 4)] == [2, 2, 2, 2]


def test_points_are_put_together_by_rows():
    model = TwoNumbers()
    rows = Piece("matrix", (3, 4)), Piece("matrix", (0, 1)), Piece("matrix", (2, 3))
    partition = Partition(model, [(Piece("number"), *rows), (Piece("matrix", (1, 2)),)])
    assert partition.blocks[0] == (Piece("matrix", (0, 1)), Piece("matrix", (2, 4)), Piece("number"))
    values = partition.values()
    taken = partition.take(values, 0)
    assert [list(each.shape) for each in taken] == [[1, 3], [2, 3], []]
    same = partition.put(values, 0, taken)
    assert all(torch.equal(same[name], value) for name, value in values.items())
    other = partition.put(values, 1, [torch.full((1, 3), 7.0)])
    assert torch.equal(other["matrix"][1], torch.full((3,), 7.0))
    assert torch.equal(other["matrix"][[0, 2, 3]], values["matrix"][[0, 2, 3]])
    directions = {"matrix": torch.arange(12.0).view(4, 3), "number": torch.tensor(5.0)}
    steps = torch.tensor([2.0, -1.0], dtype=torch.float64, requires_grad=True)
    moved = partition.shift(values, directions, steps)
    factors = torch.tensor([2.0, -1.0, 2.0, 2.0]).view(4, 1)
    torch.testing.assert_close(moved["matrix"], values["matrix"] + factors * directions["matrix"])
    torch.testing.assert_close(moved["number"], values["number"] + 10)
    (slope,) = torch.autograd.grad(moved["matrix"].sum() + moved["number"], [steps])
    assert slope.tolist() == [directions["matrix"][[0, 2, 3]].sum().item() + 5, directions["matrix"][1].sum().item()]


def test_groups_of_parameters_as_optimizers_take_them():
    network = FeedForward([3, 4, 2])
    first, second = network.layers
    blocks = by_parameters(network, [[first.weight, second.bias], [first.bias, second.weight]])
    assert blocks[0] == (Piece("layers.0.weight"), Piece("layers.1.bias"))
    assert Partition(network, blocks).blocks == (blocks[0], (Piece("layers.0.bias"), Piece("layers.1.weight")))
    with pytest.raises(ConfigurationError, match=r"group 2 holds a parameter of shape \[4, 3\] that is none"):
        by_parameters(network, [network.parameters(), [nn.Parameter(torch.ones(4, 3))]])


def test_what_is_frozen_or_empty_lies_in_no_block():
    network = nn.Sequential(nn.Linear(3, 3), SparseLinear(3, 3, nnz=0), nn.Linear(3, 3))
    network[0].weight.requires_grad_(False)
    blocks = by_layers(network, 3)
    assert blocks == (
        (Piece("0.bias"),),
        (Piece("1.bias"),),
        (Piece("2.weight"), Piece("2.bias")),
    )
    Partition(network, blocks)
    with pytest.raises(ConfigurationError, match=r"block 1 holds the parameter '0.weight', which is frozen or empty"):
        Partition(network, [(Piece("0.weight"), *blocks[0]), *blocks[1:]])


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([], r"at least one parameter each; given \[\]"),
        ([(Piece("matrix"), Piece("number")), ()], r"given \[2, 0\]"),
        ([(Piece("matrix"),)], "'number' lies in no block"),
        ([(Piece("matrix", (0, 3)), Piece("number"))], "'matrix' lies in no block, or not all of its 4 rows do"),
        ([(Piece("matrix"), Piece("number")), (Piece("matrix", (0, 1)),)], "lie in block 1 and in block 2"),
        ([(Piece("matrix"), Piece("number"), Piece("number"))], "or twice in one"),
        (
            [(Piece("matrix", (2, 5)), Piece("number"))],
            r"the rows 2 to 5 \(without the last\) of 'matrix', which has 4",
        ),
        ([(Piece("matrix", (2, 2)), Piece("number"))], "rows 2 to 2"),
        ([(Piece("weight"),)], "'weight', which is no name of one; those that are trained are matrix, number"),
    ],
)
def test_blocks_that_do_not_fit(blocks, message):
    with pytest.raises(ConfigurationError, match=message):
        Partition(TwoNumbers(), blocks)


@pytest.mark.parametrize("count", [0, 11])
def test_more_blocks_than_layers(count):
    with pytest.raises(ConfigurationError, match=rf"has 10 layers that are trained, so .* 1 to 10 .* given {count}"):
        by_layers(stable(), count)
