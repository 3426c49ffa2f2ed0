"""Rewiring of models: every convertible layer there and back, with its parameters, hooks, dtype and mode."""

import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.errors import ConfigurationError
from synaptome.synapses.sparse_conv import SparseConv2d


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.fc1 = nn.Linear(8, 6)
        self.fc2 = nn.Linear(6, 3)
        self.attention = nn.MultiheadAttention(4, 2)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(self.conv(x).flatten(1))))


def test_rewire_and_back_keeps_parameters_and_outputs():
    model = Classifier()
    parameters = {name: id(p) for name, p in model.named_parameters()}
    x = torch.randn(5, 1, 4, 4)
    before = model(x)
    assert syn.rewire(model, syn.Failing(0.3), where="fc*") is model
    assert type(model.fc1) is type(model.fc2) is syn.FailingLinear
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert not torch.equal(model.train()(x), before)
    assert torch.equal(model.eval()(x), before)
    syn.rewire(model, syn.Dense())
    assert type(model.fc1) is type(model.fc2) is nn.Linear
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert torch.equal(model(x), before)


def test_rewire_leaves_layers_that_use_their_weight_in_their_own_way():
    model = Classifier()
    syn.rewire(model, syn.Failing(0.3))
    assert type(model.conv) is syn.FailingConv2d
    assert type(model.fc1) is type(model.fc2) is syn.FailingLinear
    assert type(model.attention.out_proj) is not syn.FailingLinear
    with pytest.raises(ConfigurationError, match=r"attention\.out_proj' is a .* in its own way"):
        syn.rewire(model, syn.Failing(0.3), where=["fc1", "attention.*"])


def test_rewire_keeps_an_optimizer_hooks_and_shared_layers():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []
    shared.register_forward_hook(lambda *_: seen.append("forward"))
    shared.register_full_backward_hook(lambda *_: seen.append("backward"))
    syn.rewire(model, syn.Failing(0.5), where=lambda name, module: name in ("0", "2"))
    assert model[0] is model[2]
    before = shared.weight.detach().clone()
    model(torch.randn(3, 4, requires_grad=True)).sum().backward()
    optimizer.step()
    assert seen.count("forward") == seen.count("backward") == 2
    assert not torch.equal(model[0].weight, before)


def test_rewire_of_a_lone_layer_returns_its_successor():
    layer = syn.rewire(nn.Linear(3, 2).double().eval(), syn.Failing(0.2, "noisy"))
    assert type(layer) is syn.FailingLinear
    assert not layer.training
    assert not layer.failures.training
    assert layer.weight.dtype == torch.float64


def test_rewire_refuses_names_that_do_not_exist_and_changes_nothing():
    model = Classifier()
    with pytest.raises(ConfigurationError, match=r"did you mean 'fc1'.*fc1, fc2"):
        syn.rewire(model, syn.Failing(0.3), where=["fc2", "fc11"])
    assert type(model.fc2) is nn.Linear


LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), syn.FailingLinear, (4,)),
    "conv": (lambda: nn.Conv2d(2, 4, (3, 2), 2, 1, 1, 2, padding_mode="reflect"), syn.FailingConv2d, (2, 6, 6)),
    "conv without bias": (lambda: nn.Conv2d(2, 4, 3, padding="same", bias=False), syn.FailingConv2d, (2, 6, 6)),
    "cell": (lambda: nn.RNNCell(4, 3, nonlinearity="relu"), syn.FailingRNNCell, (4,)),
    "cell without biases": (lambda: nn.RNNCell(4, 3, False), syn.FailingRNNCell, (4,)),
}


@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer_goes_there_and_back(kind, noise):
    make, failing_class, shape = LAYERS[kind]
    dense = make().double().eval()
    calls = []
    dense.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(3, *shape, dtype=torch.float64)
    before = dense(x)
    parameters = dict(dense.named_parameters())
    failing = syn.rewire(dense, syn.Failing(0.25, "mc(3)", noise))
    assert type(failing) is failing_class
    assert (failing.failures.rate, failing.failures.inference, failing.failures.noise) == (0.25, "mc(3)", noise)
    again = syn.rewire(failing, syn.Failing(0.5))
    assert (again.failures.rate, again.failures.inference, again.failures.noise) == (0.5, "expected", "bernoulli")
    back = syn.rewire(again, syn.Dense())
    assert type(back) is type(dense)
    assert repr(back) == repr(dense)
    for layer in (failing, again, back):
        assert not any(module.training for module in layer.modules())
        own = dict(layer.named_parameters())
        assert own.keys() == parameters.keys()
        assert all(own[name] is parameters[name] for name in own)
        calls.clear()
        layer(x)
        assert calls == [1]
    torch.testing.assert_close(again(x), before)
    assert torch.equal(back(x), before)
    assert again.train()(x).dtype == torch.float64
    assert failing.to_dense().training is False
    assert failing.train().to_dense().training is True


def test_a_plain_layer_made_plain_stays_itself():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(2, 2))
    layers = list(model)
    assert list(syn.rewire(model, syn.Dense())) == layers


def test_subclasses_of_any_kind_are_refused_by_name():
    class Ours(nn.Conv2d):
        pass

    model = nn.Sequential(Ours(1, 1, 1), nn.Conv2d(1, 1, 1))
    with pytest.raises(
        ConfigurationError, match=r"layer '0' is a Ours, which uses its weight in its own way .* layers: 1"
    ):
        syn.rewire(model, syn.Failing(0.3), where="0")
    syn.rewire(model, syn.Failing(0.3))
    assert [type(layer) for layer in model] == [Ours, syn.FailingConv2d]


def test_weights_that_a_layer_ties_stay_tied():
    cell = nn.RNNCell(3, 3, bias=False)
    cell.weight_ih = cell.weight_hh
    failing = syn.rewire(cell, syn.Failing(0.5))
    assert failing.weight_ih is failing.weight_hh is cell.weight_hh


@pytest.mark.parametrize("inference", ["noisy", "expected"])
def test_a_transformer_layer_does_not_bypass_its_failing_layers(inference):
    """Its fast path at inference reads weights without calling the layers."""
    encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    syn.rewire(encoder, syn.Failing(0.5, inference))
    encoder.eval()
    x = torch.randn(3, 5, 16)
    with torch.no_grad():
        assert torch.equal(encoder(x), encoder(x)) == (inference == "expected")
        assert syn.predict(encoder, x, samples=5).std.mean() > 0.01


@pytest.mark.parametrize("kind", [syn.Failing(0.5), syn.Sparse(0.5), syn.Sparse(0.5) + syn.Failing(0.5)])
def test_a_transformer_encoder_with_padding_calls_its_rewired_layers(kind):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 2)
    syn.rewire(encoder, kind)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = True
    x = torch.randn(3, 5, 16)
    encoder.eval()
    expected = encoder(x, src_key_padding_mask=padding).detach()  # with gradients torch takes no fast path
    with torch.no_grad():
        torch.testing.assert_close(encoder(x, src_key_padding_mask=padding), expected)
    plain = syn.rewire(encoder, syn.Dense())
    with torch.no_grad():
        torch.testing.assert_close(plain(x, src_key_padding_mask=padding), expected)


def test_a_layer_of_another_kind_is_named():
    model = nn.Sequential(nn.RNN(2, 8))
    with pytest.raises(
        ConfigurationError, match=r"no layer that matches '\*' can be rewired \(layer '0' is a RNN\); Linear"
    ):
        syn.rewire(model, syn.Failing(0.3))
    model = nn.ModuleDict({"lstm": nn.LSTM(2, 3), "out": nn.Linear(3, 1)})
    with pytest.raises(ConfigurationError, match=r"'lstm' can be rewired \(layer 'lstm' is a LSTM\); .* can: out"):
        syn.rewire(model, syn.Failing(0.3), where="lstm")
    with pytest.raises(ConfigurationError, match=r"unknown layer 'ouz' \(did you mean 'out'\?\)"):
        syn.rewire(model, syn.Failing(0.3), where="ouz")


@pytest.mark.parametrize("kind", ["sparse", syn.Sparse, None, 0.1, {"density": 0.1}, [syn.Sparse(0.1)]], ids=str)
def test_what_is_no_kind_is_refused(kind):
    model = Classifier()
    with pytest.raises(ConfigurationError, match=r"rewired with a kind of synapse, such as Sparse\(0.1\), .* given "):
        syn.rewire(model, kind)
    assert type(model.fc1) is nn.Linear


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ([], r"a list of at least one, or a function of \(name, module\); given \[\]"),
        (None, "where is a pattern for names of layers, .* given None"),
        ([0, 1], r"where is a pattern for names of layers, .* given \[0, 1\]"),
        (lambda name, module: False, "is true for no layer; convertible layers: conv, fc1, fc2"),
    ],
)
def test_to_name_no_layer_is_refused(where, message):
    with pytest.raises(ConfigurationError, match=message):
        syn.rewire(Classifier(), syn.Sparse(0.3), where=where)


def test_what_can_be_rewired_depends_on_the_kind():
    for model, name in ((nn.Sequential(nn.RNNCell(3, 4)), "layer '0'"), (nn.RNNCell(3, 4), "the model")):
        with pytest.raises(ConfigurationError, match=rf"\({name} is a RNNCell\); Linear and Conv2d can: the model has"):
            syn.rewire(model, syn.Sparse(0.3))
    with pytest.raises(ConfigurationError, match=r"\(the model is a ReLU\); Linear, Conv2d and RNNCell can"):
        syn.rewire(nn.ReLU(), syn.Failing(0.3))
    with pytest.raises(ConfigurationError, match=r"\(layer '0' is a Conv2d\); Linear can: the model has none"):
        syn.rewire(nn.Sequential(nn.Conv2d(1, 1, 1)), syn.Antisymmetric())


def test_a_tied_weight_that_comes_apart_is_told():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6, bias=False), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    with pytest.warns(UserWarning, match="^0.weight and 1.weight are one Parameter, and are tied no longer") as caught:
        syn.rewire(model, syn.Sparse(0.3))
    assert [warning.filename for warning in caught] == [__file__]
    shared = nn.Linear(4, 4)
    syn.rewire(nn.Sequential(shared, shared), syn.Sparse(0.3))  # one layer in two places stays one: no warning


BOTH = syn.Sparse(0.4) + syn.Failing(0.3, "noisy", "gaussian")
FORMS = {
    "plain": (lambda: nn.Linear(6, 5), nn.Linear),
    "failing": (lambda: syn.FailingLinear(6, 5, failure=0.2), syn.FailingLinear),
    "sparse": (lambda: syn.SparseLinear(6, 5, density=0.6), syn.SparseLinear),
    "both": (lambda: syn.FailingSparseLinear(6, 5, failure=0.2, density=0.6), syn.FailingSparseLinear),
}


@pytest.mark.parametrize("start", FORMS)
@pytest.mark.parametrize(
    ("wiring", "kinds"),
    [
        (BOTH, {}),
        (syn.Sparse(0.4, start="random") + syn.Failing(0.3), {}),
        (syn.Sparse(0.4), dict.fromkeys(FORMS, syn.SparseLinear)),
        (syn.Dense(), dict.fromkeys(FORMS, nn.Linear)),
        (syn.Dense() + syn.Failing(0.3), dict.fromkeys(FORMS, syn.FailingLinear)),
        (syn.Failing(0.3), {"plain": syn.FailingLinear, "failing": syn.FailingLinear}),
    ],
    ids=["both", "random", "sparse", "dense", "dense and failing", "failing"],
)
def test_storage_and_noise_are_chosen_apart(start, wiring, kinds):
    """What a layer becomes, with which numbers, hooks, dtype and mode."""
    layer = FORMS[start][0]().double().eval()
    weight = (layer.to_dense() if start != "plain" else layer).weight.detach().clone()
    calls = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    made = syn.rewire(layer, wiring)
    assert type(made) is kinds.get(start, syn.FailingSparseLinear)
    assert made.bias is layer.bias
    assert not any(module.training for module in made.modules())
    made(torch.randn(3, 6, dtype=torch.float64))
    assert calls == [1]
    chosen = wiring if isinstance(wiring, syn.Wiring) else syn.Wiring((wiring,))
    sparse, failing = chosen.get(syn.Sparse), chosen.get(syn.Failing)
    if failing is not None:
        now = made.failures
        assert (now.rate, now.inference, now.noise) == (failing.failure, failing.inference, failing.noise)
    if sparse is None:
        kept = made.to_dense() if type(made) is not nn.Linear else made
        assert torch.equal(kept.weight, weight)
    else:
        assert made.nnz == 12
        largest = weight.abs().flatten().sort(descending=True).values[:12]
        same = torch.equal(made.values.detach().abs().sort(descending=True).values, largest)
        assert same == (sparse.start == "magnitude")


def test_failures_come_and_go_while_a_sparse_layer_trains():
    """Values and graph are the same objects, so an optimizer and evolution go on."""
    model = nn.Sequential(syn.SparseLinear(6, 5, density=0.5), nn.ReLU(), syn.SparseLinear(5, 4, density=0.5))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    parameters, structure = dict(model.named_parameters()), model[0].structure
    for rate in (0.3, 0.5):
        syn.rewire(model, syn.Failing(rate))
        assert type(model[0]) is type(model[2]) is syn.FailingSparseLinear
        assert model[0].failures.rate == rate
        assert dict(model.named_parameters()) == parameters
        assert all(mine is theirs for mine, theirs in zip(model[0].structure, structure, strict=True))
        before = model[0].values.detach().clone()
        optimizer.zero_grad()
        model(torch.randn(9, 6)).square().sum().backward()
        optimizer.step()
        assert not torch.equal(model[0].values, before)
    assert model[0].to_sparse().values is parameters["0.values"]


def test_a_density_is_shared_over_failing_sparse_layers_too():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    syn.rewire(model, BOTH)
    assert (model[0].nnz, model[2].nnz) == (12, 8)
    with pytest.raises(ConfigurationError, match="12 connections cannot keep 15 of them; for more, make it dense"):
        syn.rewire(model, syn.Sparse(0.5) + syn.Failing(0.3))
    assert model[0].failures.noise == "gaussian"


@pytest.mark.parametrize(
    ("layer", "wiring"),
    [
        (lambda: nn.Conv2d(1, 2, 3), BOTH),
        (lambda: syn.FailingConv2d(1, 2, 3, failure=0.1), BOTH),
        (lambda: SparseConv2d(1, 2, 3, nnz=5), BOTH),
        (lambda: SparseConv2d(1, 2, 3, nnz=5), syn.Failing(0.3)),
    ],
)
def test_sparse_convolutions_that_fail_are_refused(layer, wiring):
    model = nn.Sequential(nn.Linear(3, 3), layer())
    before = list(model)
    with pytest.raises(
        ConfigurationError, match=r"layer '1' is a \w*Conv2d, and sparse convolutions that fail have no"
    ):
        syn.rewire(model, wiring)
    assert list(model) == before
    syn.rewire(model, wiring, where="0")
    assert type(model[0]) in (syn.FailingLinear, syn.FailingSparseLinear)
    syn.rewire(model, syn.Dense() + syn.Failing(0.3), where="1")
    assert type(model[1]) is syn.FailingConv2d
