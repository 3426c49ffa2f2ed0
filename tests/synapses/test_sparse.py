"""SparseLinear: its graph through every conversion, its replacement of connections, and `rewire` with `Sparse`."""

import copy
import math
import subprocess
import sys
import warnings

import numpy
import pytest
import safetensors.torch
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import synaptome as syn
from synaptome.analysis.size import count_synapses
from synaptome.conformance import check_synapse
from synaptome.errors import ConfigurationError
from synaptome.synapses import sparse

EDGES = (torch.tensor([0, 2, 2, 4]), torch.tensor([6, 0, 3, 3]))  # outputs 1 and 3, inputs 1, 2, 4 and 5 have none


def edges_of(layer):
    return list(zip(layer.row_of.tolist(), layer.col.tolist(), strict=True))


def weights_of(layer):
    return dict(zip(edges_of(layer), layer.values.tolist(), strict=True))


def check_structure(layer):
    """The derived buffers are those of a layer that is made from the same edges."""
    twin = syn.SparseLinear(layer.in_features, layer.out_features, edges=(layer.row_of, layer.col))
    for name in ("crow", "col", "ccol", "row", "permutation"):
        assert torch.equal(getattr(layer, name), getattr(twin, name)), name


@pytest.mark.parametrize(
    "options",
    [{"density": 0.3}, {"edges": EDGES}, {"nnz": 0}, {"density": 1.0}, {"fan_in": 2}, {"nnz": 9, "bias": False}],
    ids=str,
)
def test_conformance(options):
    check_synapse(lambda: syn.SparseLinear(7, 5, **options))


@pytest.mark.parametrize("topology", ["erdos-renyi", "small-world", "small-world(0.5)"])
@pytest.mark.parametrize(
    ("options", "nnz"), [({"density": 0.05}, 300), ({"epsilon": 2.5}, 400), ({"nnz": 77}, 77), ({"nnz": 0}, 0)]
)
def test_the_number_of_connections_is_exact(options, nnz, topology):
    layer = syn.SparseLinear(60, 100, topology=topology, **options)
    assert layer.nnz == len(layer.values) == len(set(edges_of(layer))) == nnz
    assert layer.density == nnz / 6000
    assert edges_of(layer) == sorted(edges_of(layer))
    assert layer.crow.dtype == layer.col.dtype == torch.int32


def test_fan_in_and_edges():
    layer = syn.SparseLinear(20, 30, fan_in=4)
    assert layer.crow.diff().tolist() == [4] * 30
    shuffled = torch.stack(EDGES)[:, torch.tensor([2, 0, 3, 1])]
    for edges in (EDGES, shuffled):
        assert edges_of(syn.SparseLinear(7, 5, edges=edges)) == [(0, 6), (2, 0), (2, 3), (4, 3)]


@pytest.mark.parametrize("make", [list, numpy.array, lambda end: numpy.array(end, numpy.uint16)])
def test_edges_come_as_arrays_and_lists_too(make):
    row, col = (make(end.tolist()) for end in EDGES)
    expected = [(0, 6), (2, 0), (2, 3), (4, 3)]
    for edges in ((row, col), [row, col], numpy.stack([row, col])):
        assert edges_of(syn.SparseLinear(7, 5, edges=edges)) == expected
    assert syn.SparseLinear(7, 5, edges=([], [])).nnz == 0


def test_the_same_seed_gives_the_same_layer():
    layers = []
    for _ in range(2):
        torch.manual_seed(5)
        layers.append(syn.SparseLinear(30, 20, density=0.2))
    assert weights_of(layers[0]) == weights_of(layers[1])
    assert torch.equal(layers[0].bias, layers[1].bias)


def test_values_are_drawn_as_those_of_linear_with_the_mean_fan_in():
    layer = syn.SparseLinear(1000, 500, nnz=20_000)
    bound = 1 / math.sqrt(20_000 / 500)
    torch.manual_seed(1)
    for numbers in (layer.values, layer.initial_values(torch.zeros(20_000)), layer.bias):
        assert -bound <= numbers.min() < numbers.max() < bound
        # Uniform numbers have variance bound² / 3, and that of their squares is bound⁴ 4 / 45.
        error = bound**2 * math.sqrt(4 / 45 / len(numbers))
        assert abs(numbers.square().mean().item() - bound**2 / 3) < 5 * error
        assert abs(numbers.mean().item()) < 5 * bound / math.sqrt(3 * len(numbers))
    generator = torch.Generator().manual_seed(3)
    first = layer.initial_values(torch.zeros(10), generator)
    assert torch.equal(first, layer.initial_values(torch.zeros(10), generator.manual_seed(3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of density, epsilon, nnz, fan_in, edges; given none"),
        ({"density": 0.1, "nnz": 5}, "given density and nnz"),
        ({"density": 0.0}, r"\(0, 1\]; given 0"),
        ({"density": 1e-9}, r"leaves a SparseLinear \[5, 7\] without any connection; take density at least 0.0286, or"),
        ({"epsilon": 0.01}, r"leaves a SparseLinear \[5, 7\] .* take epsilon at least 0.0834, or nnz=0"),
        ({"nnz": 1.5}, "nnz is a whole number .* given 1.5"),
        ({"fan_in": 1.5}, "fan_in is a whole number .* given 1.5"),
        ({"density": 1.01}, r"\(0, 1\]; given 1.01"),
        ({"density": math.nan}, r"\(0, 1\]; given nan"),
        ({"nnz": 36}, "from 0 to .* = 35; given 36"),
        ({"nnz": -1}, "given -1"),
        ({"epsilon": 4}, r"48 connections, but a weight \[5, 7\] has 35 places"),
        ({"fan_in": 8}, "in_features = 7; given 8"),
        ({"edges": (torch.tensor([0, 0]), torch.tensor([1, 1]))}, "from input 1 to output 0 is given more than once"),
        ({"edges": [(0, 1), (1, 2), (2, 3)]}, r"one \[2, nnz\]; given 3 entries \(of pairs give the transpose\)"),
        ({"edges": numpy.ones((4, 2), int)}, r"given \[4, 2\] \(of pairs give the transpose"),
        ({"edges": torch.ones(4, 2).long()}, r"given \[4, 2\] \(of pairs"),
        ({"edges": ([0, 1], ["a", "b"])}, "two lists of integers"),
        ({"edges": 7}, "given a int"),
        ({"edges": ([0, 1], [0.5, 1.5])}, "inputs of edges are integers; given torch.float32"),
        ({"edges": ([0, 1], [[1], [2]])}, r"same length, outputs and inputs; given \[2\] and \[2, 1\]"),
        ({"edges": (torch.tensor([5]), torch.tensor([1]))}, "output 5; outputs go from 0 to 4"),
        ({"edges": (torch.tensor([4]), torch.tensor([-1]))}, "input -1; inputs go from 0 to 6"),
        ({"nnz": 5, "topology": "smallworld"}, "unknown topology 'smallworld' .did you mean 'small-world'"),
        ({"nnz": 5, "topology": "erdos-renyi(0.1)"}, "unknown topology"),
        ({"nnz": 5, "topology": "small-world(1.5)"}, r"in \[0, 1\]; given 1.5"),
        ({"nnz": 5, "topology": "small-world(1.5.2)"}, "unknown topology"),
        ({"fan_in": 2, "topology": "small-world"}, "goes with density, epsilon or nnz; given fan_in"),
    ],
)
def test_what_cannot_be_made_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        syn.SparseLinear(7, 5, **options)


def test_from_dense_and_back_keeps_the_weights_of_the_mask():
    dense = nn.Linear(7, 5).double().eval()
    mask = torch.rand(5, 7) < 0.4
    layer = syn.SparseLinear.from_dense(dense, mask)
    assert weights_of(layer) == {(o, i): dense.weight[o, i].item() for o, i in mask.nonzero().tolist()}
    assert layer.bias is dense.bias
    assert not layer.training
    check_structure(layer)
    back = layer.to_dense()
    assert type(back) is nn.Linear
    assert torch.equal(back.weight, dense.weight * mask)
    assert back.bias is dense.bias
    assert not back.training
    again = syn.SparseLinear.from_dense(back)  # where it is not 0
    assert weights_of(again) == weights_of(layer)
    for wrong in (mask.T, mask.float()):
        with pytest.raises(ConfigurationError, match=r"mask is bool \[5, 7\]"):
            syn.SparseLinear.from_dense(dense, wrong)


def test_scipy_there_and_back_keeps_values_of_zero():
    layer = syn.SparseLinear(7, 5, edges=EDGES)
    with torch.no_grad():
        layer.values[1] = 0
    matrix = layer.to_scipy()
    assert matrix.shape == (5, 7)
    assert matrix.nnz == 4
    x = torch.randn(3, 7)
    torch.testing.assert_close(layer(x), torch.from_numpy((matrix @ x.numpy().T).T) + layer.bias)
    back = syn.SparseLinear.from_scipy(matrix, layer.bias)
    assert weights_of(back) == weights_of(layer)
    assert torch.equal(back(x), layer(x))
    matrix.data[:] = 7  # a copy
    assert weights_of(back) == weights_of(layer)
    twice = scipy.sparse.coo_array(([1.0, 2.0, 5.0], ([1, 1, 0], [2, 2, 3])), shape=(2, 4))
    assert weights_of(syn.SparseLinear.from_scipy(twice)) == {(0, 3): 5.0, (1, 2): 3.0}
    assert len(twice.data) == 3
    assert syn.SparseLinear.from_scipy(scipy.sparse.csc_matrix(twice)).bias is None
    for bias in (numpy.array([1.0, 2.0]), [1, 2]):
        assert syn.SparseLinear.from_scipy(twice, bias).bias.tolist() == [1.0, 2.0]
        assert syn.FailingSparseLinear.from_scipy(twice, bias, failure=0.1).bias.dtype == torch.float32
    with pytest.raises(ConfigurationError, match="bias is a tensor, an array or a list of numbers; given 'ones'"):
        syn.SparseLinear.from_scipy(twice, "ones")
    with pytest.raises(ConfigurationError, match=r"a matrix is \[out_features, in_features\]; given \[3\]"):
        syn.SparseLinear.from_scipy(numpy.ones(3))
    with pytest.raises(ConfigurationError, match=r"bias is \[2\], one for each row; given \[3\]"):
        syn.SparseLinear.from_scipy(twice, torch.zeros(3))


def test_networkx_has_every_neuron_and_connection(monkeypatch):
    pytest.importorskip("networkx")
    layer = syn.SparseLinear(7, 5, edges=EDGES)
    graph = layer.to_networkx()
    assert graph.number_of_nodes() == 12
    given_edges = {(o, i): data["weight"] for (_, i), (_, o), data in graph.edges(data=True)}
    assert given_edges == weights_of(layer)
    assert [node for node in graph if node[0] == "output" and graph.in_degree(node) == 2] == [("output", 2)]
    monkeypatch.setitem(sys.modules, "networkx", None)
    with pytest.raises(ConfigurationError, match="pip install networkx"):
        layer.to_networkx()


def test_a_state_brings_its_graph_whatever_its_size():
    layer = syn.SparseLinear(7, 5, density=0.4)
    with torch.no_grad():
        layer.values[0] = 0
    state = layer.state_dict()
    assert set(state) == {"values", "bias", "crow", "col", "shape"}
    read = safetensors.torch.load(safetensors.torch.save(state))
    x = torch.randn(4, 7)
    for options in ({"nnz": 3}, {"nnz": 0}, {"nnz": layer.nnz}):
        other = syn.SparseLinear(7, 5, **options)
        values = other.values
        loss = other(x).sum()
        loss.backward()
        other.load_state_dict(read)
        assert other.values is values
        assert weights_of(other) == weights_of(layer)
        check_structure(other)
        assert torch.equal(other(x), layer(x))
        other(x).sum().backward()  # while the first graph is alive
        assert other.values.grad.shape == other.values.shape
        del loss
    model = nn.Sequential(syn.SparseLinear(7, 5, nnz=2))
    model.load_state_dict(
        {f"0.{name}": part.to(torch.int64) if name in ("crow", "col") else part for name, part in read.items()},
        assign=True,
    )
    assert weights_of(model[0]) == weights_of(layer)
    assert model[0].col.dtype == torch.int32
    assert torch.equal(model[0](x), layer(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"col": torch.tensor([6, 3, 0, 3])}, "does not ascend within each row"),
        ({"col": torch.tensor([6, 3, 3, 3])}, "does not ascend within each row"),
        ({"col": torch.tensor([7, 0, 3, 3])}, "range from 0 to 6"),
        ({"col": torch.tensor([-1, 0, 3, 3])}, "range from 0 to 6"),
        ({"col": torch.tensor([6.0, 0, 3, 3])}, "int32 or int64; given torch.int64 and torch.float32"),
        ({"col": torch.tensor([6, 0, 3])}, r"\[nnz\]; given \[3\] and \[4\]"),
        ({"crow": torch.tensor([0, 1, 1, 3, 3, 5])}, "from 0 to 4"),
        ({"crow": torch.tensor([1, 1, 1, 3, 3, 4])}, "from 0 to 4"),
        ({"crow": torch.tensor([0, 2, 1, 3, 3, 4])}, "from 0 to 4"),
        ({"crow": torch.tensor([0, 1, 3, 4])}, r"crow is \[6\]"),
        ({"crow": torch.tensor([], dtype=torch.int64)}, r"crow is \[6\]"),
        ({"values": torch.randn(3)}, r"\[nnz\]; given \[4\] and \[3\]"),
        ({"values": None}, "no tensor values"),
        ({"col": None}, "no tensor col"),
    ],
)
def test_a_corrupt_graph_is_refused_before_the_layer_is_changed(change, message):
    made = syn.SparseLinear(7, 5, edges=EDGES)
    state = {"values": torch.randn(4), "bias": torch.randn(5), "crow": made.crow.long(), "col": made.col.long()}
    state["shape"] = torch.tensor([5, 7])
    made.load_state_dict(state)
    layer = syn.SparseLinear(7, 5, nnz=6)
    before = {name: part.clone() for name, part in layer.state_dict().items()}
    state = {name: part for name, part in (state | change).items() if part is not None}
    with pytest.raises(ConfigurationError, match=rf"connections of this layer are corrupt: .*{message}"):
        layer.load_state_dict(state, strict=False)
    assert all(torch.equal(part, before[name]) for name, part in layer.state_dict().items())
    check_structure(layer)


def test_in_a_model_what_stands_behind_a_corrupt_layer_is_as_it_was():
    """torch goes from layer to layer: those before it are loaded."""
    model = nn.Sequential(*(syn.SparseLinear(7, 7, nnz=6) for _ in range(3)))
    state = nn.Sequential(*(syn.SparseLinear(7, 7, nnz=9) for _ in range(3))).state_dict()
    state["1.col"][-1] = 7
    before = {name: part.clone() for name, part in model.state_dict().items()}
    with pytest.raises(
        ConfigurationError, match="connections of layer '1' are corrupt: col leaves the range from 0 to 6"
    ):
        model.load_state_dict(state)
    after = model.state_dict()
    for name, part in before.items():
        assert torch.equal(after[name], state[name] if name[0] == "0" else part)
    for layer in model:
        check_structure(layer)
        layer(torch.randn(2, 7))


def test_the_state_of_another_shape_is_refused_as_such():
    state = nn.Sequential(syn.SparseLinear(7, 5, edges=EDGES)).state_dict()
    read = safetensors.torch.load(safetensors.torch.save(state))
    assert read["0.shape"].tolist() == [5, 7]
    for shape in ((8, 5), (7, 6), (5, 7)):  # more inputs would hold these connections as well
        model = nn.Sequential(syn.SparseLinear(*shape, nnz=3))
        before = weights_of(model[0])
        with pytest.raises(ConfigurationError, match=r"for layer '0' is that of a weight \[5, 7\], and its own is \["):
            model.load_state_dict(read)
        assert weights_of(model[0]) == before
    with pytest.raises(ConfigurationError, match="for this layer is that of a weight"):
        syn.SparseLinear(8, 5, nnz=3).load_state_dict({name[2:]: part for name, part in read.items()})
    # States were once written without a shape.
    old = {name: part for name, part in read.items() if name != "0.shape"}
    fitting = nn.Sequential(syn.SparseLinear(7, 5, nnz=3))
    assert str(fitting.load_state_dict(old)) == "<All keys matched successfully>"
    assert edges_of(fitting[0]) == [(0, 6), (2, 0), (2, 3), (4, 3)]
    with pytest.raises(ConfigurationError, match="layer '0' is that of a layer of 5 outputs, and it has 6; load it"):
        nn.Sequential(syn.SparseLinear(7, 6, nnz=3)).load_state_dict(old)


@pytest.mark.parametrize("where", ["argument", "surroundings"])
@pytest.mark.parametrize("assign", [False, True])
def test_a_layer_without_numbers_takes_them_from_a_state(where, assign):
    options = {"nnz": 9} if assign else {"density": 0.2}
    if where == "argument":
        layer = syn.SparseLinear(7, 5, device="meta", **options)
    else:
        with torch.device("meta"):
            layer = syn.SparseLinear(7, 5, **options)
    assert layer.values.is_meta
    assert layer.nnz == (9 if assign else 7)
    full = syn.SparseLinear(7, 5, edges=EDGES)
    if not assign:
        layer.to_empty(device="cpu")
    layer.load_state_dict(full.state_dict(), assign=assign)
    assert weights_of(layer) == weights_of(full)
    check_structure(layer)


def test_copies_and_dtypes():
    layer = syn.SparseLinear(7, 5, density=0.4)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.values.zero_()
    assert (layer.values != 0).all()
    assert layer.double().values.dtype == torch.float64
    assert layer.crow.dtype == torch.int32
    assert layer(torch.randn(2, 7, dtype=torch.float64)).dtype == torch.float64


@given(
    st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32), st.booleans(), st.lists(st.integers(0, 63), max_size=9)
)
@settings(max_examples=100, deadline=None)
def test_replacement_is_that_of_a_dictionary_of_edges(outputs, inputs, seed, with_gradient, wanted):
    torch.manual_seed(seed)
    layer = syn.SparseLinear(inputs, outputs, nnz=int(torch.randint(outputs * inputs + 1, ())))
    values = layer.values
    if with_gradient:
        values.grad = torch.randn_like(values)
    gradients = dict(zip(edges_of(layer), values.grad.tolist() if with_gradient else [None] * layer.nnz, strict=True))
    old = weights_of(layer)
    index = {edge: number for number, edge in enumerate(edges_of(layer))}
    dropped = torch.rand(layer.nnz) < 0.5
    survivors = {edge: value for edge, gone, value in zip(old, dropped.tolist(), old.values(), strict=True) if not gone}
    places = list(dict.fromkeys(divmod(place % (outputs * inputs), inputs) for place in wanted))
    new = [place for place in places if place not in survivors]
    row, col = torch.tensor(new, dtype=torch.int64).view(-1, 2).unbind(1)
    fresh = torch.randn(len(new))
    source = layer.replace(dropped, row, col, fresh)
    assert layer.values is values
    assert weights_of(layer) == survivors | dict(zip(new, fresh.tolist(), strict=True))
    assert edges_of(layer) == sorted(weights_of(layer))
    assert source.dtype == torch.int64
    assert source.tolist() == [-1 if edge in new else index[edge] for edge in edges_of(layer)]
    if with_gradient:
        assert values.grad.tolist() == [0.0 if edge in new else gradients[edge] for edge in edges_of(layer)]
    else:
        assert values.grad is None
    check_structure(layer)


@pytest.mark.parametrize("grown", [1, 3, 9])
def test_training_goes_on_after_a_replacement_while_an_old_graph_is_alive(grown):
    layer = syn.SparseLinear(7, 5, edges=EDGES)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    x = torch.randn(4, 7)
    loss = layer(x).square().sum()
    loss.backward()
    free = [(o, i) for o in range(5) for i in range(7) if (o, i) not in edges_of(layer)][:grown]
    row, col = torch.tensor(free).unbind(1)
    layer.replace(torch.tensor([False, True, True, True]), row, col, torch.zeros(grown))
    assert layer.nnz == 1 + grown
    optimizer.zero_grad()
    later = layer(x).square().sum()
    later.backward()
    weight = layer.to_dense().weight.detach().requires_grad_()
    (x @ weight.T + layer.bias.detach()).square().sum().backward()
    torch.testing.assert_close(layer.values.grad, weight.grad[layer.row_of, layer.col])
    optimizer.step()
    assert later.grad_fn is not loss.grad_fn


@pytest.mark.parametrize(
    ("dropped", "row", "col", "message"),
    [
        ([False] * 4, [0], [6], "from input 6 to output 0 already"),
        ([True] * 4, [1, 1], [2, 2], "from input 2 to output 1 already"),
        ([True] * 4, [5], [2], "output 5; outputs go from 0 to 4"),
        ([True] * 4, [1], [7], "input 7; inputs go from 0 to 6"),
        ([True] * 4, [1], [-1], "input -1"),
        ([True] * 3, [1], [2], r"bool \[4\]"),
        ([1] * 4, [1], [2], r"bool \[4\], one for each connection; given torch.int64"),
        ([True] * 4, [1, 2], [2], r"are \[m\]"),
    ],
)
def test_a_wrong_replacement_changes_nothing(dropped, row, col, message):
    layer = syn.SparseLinear(7, 5, edges=EDGES)
    layer.values.grad = torch.randn(4)
    before, gradient = weights_of(layer), layer.values.grad.clone()
    with pytest.raises(ConfigurationError, match=message):
        layer.replace(torch.tensor(dropped), torch.tensor(row), torch.tensor(col), torch.zeros(len(row)))
    assert weights_of(layer) == before
    assert torch.equal(layer.values.grad, gradient)
    check_structure(layer)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.fc1 = nn.Linear(8, 20)
        self.fc2 = nn.Linear(20, 3)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(self.conv(x).flatten(1))))


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
@pytest.mark.parametrize("density", [0.01, 0.3, 0.61, 1.0])
def test_rewire_keeps_the_largest_weights(distribution, density):
    model = Classifier()
    dense = {"fc1": model.fc1.weight.detach().clone(), "fc2": model.fc2.weight.detach().clone()}
    biases = model.fc1.bias, model.fc2.bias
    assert syn.rewire(model, syn.Sparse(density, distribution), where="fc*") is model
    assert type(model.conv) is nn.Conv2d
    assert model.fc1.nnz + model.fc2.nnz == round(density * 220)
    if distribution == "uniform":
        assert abs(model.fc1.nnz - 160 * density) <= 1
    elif density == 0.3:  # in proportion to 28 and 23
        assert (model.fc1.nnz, model.fc2.nnz) == (36, 30)
    for name, weight in dense.items():
        layer = getattr(model, name)
        cut = weight.abs().flatten().sort(descending=True).values[: layer.nnz]
        assert torch.equal(layer.values.detach().abs().sort(descending=True).values, cut)
        kept = layer.to_dense().weight
        assert torch.equal(kept[kept != 0], weight[kept != 0])
    assert (model.fc1.bias, model.fc2.bias) == biases
    syn.rewire(model, syn.Dense())
    assert type(model.fc1) is type(model.fc2) is nn.Linear
    assert (model.fc1.bias, model.fc2.bias) == biases
    assert int((model.fc1.weight != 0).sum() + (model.fc2.weight != 0).sum()) == round(density * 220)


def test_equal_magnitudes_are_kept_in_their_order():
    layer = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0, 2.0], [1.0, 1.0, 0.5]]))
    assert edges_of(syn.rewire(layer, syn.Sparse(0.5))) == [(0, 0), (0, 1), (0, 2)]


def test_rewire_of_sparse_and_failing_layers():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    syn.rewire(model, syn.Failing(0.3))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    syn.rewire(model.eval(), syn.Sparse(0.5))
    assert [type(m) for m in model] == [syn.SparseLinear, nn.ReLU, syn.SparseLinear]
    assert not model[0].training
    before = weights_of(model[0])
    syn.rewire(model, syn.Sparse(0.2))
    assert model[0].nnz + model[2].nnz == 10
    assert weights_of(model[0]).items() <= before.items()
    assert min(map(abs, weights_of(model[0]).values())) >= sorted(map(abs, before.values()))[-model[0].nnz]
    model(torch.randn(2, 6))
    assert calls == [1]
    again = list(model)
    with pytest.raises(ConfigurationError, match="6 connections cannot keep 15 of them; for more, make it dense first"):
        syn.rewire(model, syn.Sparse(0.5))
    assert list(model) == again
    syn.rewire(model, syn.Dense() + syn.Failing(0.3))
    assert [type(m) for m in model] == [syn.FailingLinear, nn.ReLU, syn.FailingLinear]


def test_layers_that_have_no_sparse_storage_are_refused_by_name():
    model = Classifier()
    model.cell = nn.RNNCell(3, 4)
    with pytest.raises(
        ConfigurationError, match=r"layer 'cell' is a RNNCell, which has no sparse storage .*: conv, fc1, fc2"
    ):
        syn.rewire(model, syn.Sparse(0.5), where=["fc1", "cell"])
    assert type(model.fc1) is nn.Linear
    with pytest.raises(ConfigurationError, match=r"unknown distribution 'erk2' .did you mean 'erk'"):
        syn.Sparse(0.5, "erk2")
    with pytest.raises(ConfigurationError, match=r"\(0, 1\]; given 0"):
        syn.Sparse(0)
    with pytest.raises(ConfigurationError, match="both choose the storage"):
        syn.Dense() + syn.Sparse(0.5)


def test_a_shared_layer_is_converted_and_counted_once():
    shared = nn.Linear(4, 4)
    model = syn.rewire(nn.Sequential(shared, nn.ReLU(), shared), syn.Sparse(0.5))
    assert model[0] is model[2]
    assert model[0].nnz == 8


def test_synapses_of_sparse_layers_are_counted():
    count = count_synapses(nn.Sequential(syn.SparseLinear(7, 5, nnz=9), syn.FailingLinear(5, 4, failure=0.5)))
    assert count == (9 + 5 + 20 + 4, 29, 19)


def test_a_density_at_which_dense_is_faster_warns_once(monkeypatch):
    sparse._warn_dense.cache_clear()
    with pytest.warns(UserWarning, match=r"density 0.9 is slower than a dense layer"):
        syn.SparseLinear(600, 600, density=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        syn.SparseLinear(600, 600, density=0.9)
        syn.SparseLinear(6, 6, density=0.9)
        syn.SparseLinear(600, 600, density=0.05)


def test_the_warning_points_to_the_line_that_made_the_layer():
    sparse._warn_dense.cache_clear()
    makers = [
        lambda: syn.SparseLinear(600, 600, density=0.91),
        lambda: syn.FailingSparseLinear(600, 600, failure=0.5, density=0.91),
        lambda: syn.rewire(nn.Linear(600, 600), syn.Sparse(0.92)),
        lambda: syn.rewire(nn.Linear(600, 600), syn.Sparse(0.93, start="random") + syn.Failing(0.5)),
    ]
    for make in makers:
        with pytest.warns(UserWarning, match="is slower than a dense layer") as caught:
            make()
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.slow
def test_a_million_neurons_on_either_side():
    """Ten connections each: built and used in under 1 GB, where a dense weight would take 4000 GB."""
    script = """
import torch, synaptome as syn
torch.set_num_threads(1)
syn.SparseLinear(10, 10, nnz=5)(torch.randn(2, 10)).sum().backward()  # brings numba
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
base = peak()
layer = syn.SparseLinear(1_000_000, 1_000_000, nnz=10_000_000)
print(peak() - base)
layer(torch.randn(1, 1_000_000)).sum().backward()
assert layer.values.grad.abs().sum() > 0
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1000
