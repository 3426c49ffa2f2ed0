"""Learned layers: each method on its own terms, weights that nothing moves, states, conversions, and refusals."""

import copy
from dataclasses import asdict

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F

import synaptome as syn
from synaptome.conformance import check_synapse
from synaptome.errors import ConfigurationError
from synaptome.synapses.learned_model import learned_layers
from synaptome.synapses.learned_rules import METHODS

OPTIONS = {"edge-popup": {"density": 0.4}, "ternary": {"threshold": 0.3}}
ALL = {name: OPTIONS.get(name, {}) for name in METHODS} | {"expected": {"method": "supermask", "inference": "expected"}}


def layer_of(name, **options):
    """A layer of 7 to 5 whose scores, of both signs, have no gradient, as finite differences need it."""
    layer = syn.LearnedLinear(7, 5, **({"method": name} | ALL[name] | options))
    with torch.no_grad():
        layer.scores.normal_()
    return layer


def without_score_gradients(layer):
    layer.scores.requires_grad_(False)
    return layer


@pytest.mark.parametrize("train_weights", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_conformance(name, train_weights):
    check_synapse(lambda: without_score_gradients(layer_of(name, train_weights=train_weights)))


@pytest.mark.parametrize("name", ["free-flipping", "supermask"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_conformance_of_convolutions(dimensions, name):
    form = (syn.LearnedConv1d, syn.LearnedConv2d, syn.LearnedConv3d)[dimensions - 1]
    check_synapse(
        lambda: without_score_gradients(form(2, 4, 3, padding=1, groups=2, padding_mode="circular", method=name)),
        make_inputs=lambda leading: torch.randn(*leading, 2, *(4, 5, 6)[:dimensions]),
        leading=((), (0,), (1,), (5,)),
    )


@pytest.mark.parametrize(
    ("name", "f"),
    [
        ("free-pruning", [0, 0, 1, 1]),
        ("minimal-pruning", [0, 0, 1, 1]),
        ("rescaled-pruning", [0, 0, 4 / 3, 4 / 3]),
        ("free-flipping", [-1, 1, 1, 1]),
        ("minimal-flipping", [-1, 1, 1, 1]),
        ("edge-popup", [1, 0, 0, 1]),
        ("ternary", [-1, 0, 0, 1]),
        ("supermask", [0, 0, 1, 1]),
    ],
)
def test_each_method_at_inference(name, f):
    option = {"edge-popup": {"density": 0.5}, "ternary": {"threshold": 0.2}}.get(name, {})
    layer = syn.LearnedLinear(4, 1, bias=False, method=name, **option).eval()
    with torch.no_grad():
        layer.scores.copy_(torch.tensor([[-0.5, 0.0, 0.1, 0.4]]))
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    x = torch.eye(4)
    torch.testing.assert_close(layer(x).flatten(), torch.tensor([1.0, 2, 3, 4]) * torch.tensor(f, dtype=torch.float32))
    assert layer.mask().flatten().tolist() == [int(v > 0) - int(v < 0) for v in f]


def test_gradients_by_scores_are_those_of_the_papers():
    """dL/ds = dL/dW_eff W, times sign(s) for edge-popup and σ'(s) for a supermask."""
    x, grad = torch.randn(3, 7), torch.randn(3, 5)
    for name in ALL:
        layer = layer_of(name)
        layer(x).backward(grad)
        expected = grad.T @ x * layer.weight
        if name == "edge-popup":
            expected = expected * layer.scores.sign()
        if name in ("supermask", "expected"):
            p = layer.scores.sigmoid()
            expected = expected * p * (1 - p)
        torch.testing.assert_close(layer.scores.grad, expected.detach())


def test_a_supermask_draws_with_its_probabilities_and_goes_on_after_a_resume():
    layer = syn.LearnedLinear(50, 40, bias=False, method="supermask")
    nn.init.normal_(layer.scores)
    nn.init.ones_(layer.weight)
    x, passes = torch.eye(50), 400
    with torch.no_grad():
        drawn = torch.stack([layer(x) for _ in range(passes)])
    assert set(drawn.unique().tolist()) == {0, 1}
    p = layer.scores.detach().sigmoid().T
    assert ((drawn.mean(0) - p).abs() < 5 * (p * (1 - p) / passes).sqrt()).all()
    assert layer.counter == passes
    other = syn.LearnedLinear(50, 40, bias=False, method="supermask")
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(layer.state_dict())))
    for _ in range(3):
        assert torch.equal(other(x), layer(x))
    expected = syn.LearnedLinear(50, 40, bias=False, method="supermask", inference="expected").eval()
    expected.load_state_dict(layer.state_dict())
    torch.testing.assert_close(expected(x), p)


@pytest.mark.parametrize("name", METHODS)
def test_training_lowers_the_loss_and_moves_no_weight(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3))
    syn.rewire(model, syn.Learned(name))
    weights = [layer.weight.clone() for layer in learned_layers(model).values()]
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.5)
    syn.check_optimizer(model, optimizer)
    x = torch.randn(200, 20)
    targets = (x @ torch.randn(20, 3)).argmax(1)

    def loss():
        with torch.no_grad():
            return F.cross_entropy(model.eval()(x), targets).item()

    before = loss()
    model.train()
    for _ in range(150):
        optimizer.zero_grad()
        (F.cross_entropy(model(x), targets) + 0.01 * syn.penalty(model)).backward()
        optimizer.step()
    assert loss() < 0.7 * before
    assert all(torch.equal(a, b.weight) for a, b in zip(weights, learned_layers(model).values(), strict=True))


def test_new_layers_start_unchanged_with_scores_of_the_stated_range():
    torch.manual_seed(2)
    plain = nn.Linear(30, 20)
    torch.manual_seed(2)
    layer = syn.LearnedLinear(30, 20, method="flip")
    assert torch.equal(layer.weight, plain.weight)
    assert torch.equal(layer.bias, plain.bias)
    assert 0.01 <= layer.scores.min() < 0.02
    assert 0.09 < layer.scores.max() <= 0.1
    assert {name for name, _ in layer.named_parameters()} == {"scores", "bias"}
    assert "weight" in layer.state_dict()
    assert repr(layer) == ("LearnedLinear(in_features=30, out_features=20, bias=True, method='free-flipping')")
    for method in ("prune", "flip", "ternary"):
        assert syn.LearnedLinear(30, 20, method=method).connectivity().changed == 0
    layer.reset_parameters()
    assert not torch.equal(layer.weight, plain.weight)


def test_the_penalty_and_its_gradient_are_those_of_the_formula():
    model = nn.Sequential(nn.Linear(5, 4), nn.Conv2d(1, 2, 3), nn.Linear(4, 3))
    syn.rewire(model, syn.Learned("minimal-pruning"), where="0")
    syn.rewire(model, syn.Learned("minimal-flipping", alpha=-0.5), where="1")
    syn.rewire(model, syn.Learned("flip"), where="2")
    for layer in model:
        nn.init.normal_(layer.scores)
    total = syn.penalty(model)
    kept, same = (model[0].scores > 0).double().mean(), (model[1].scores >= 0).double().mean()
    assert total.item() == pytest.approx((-kept - 0.5 * (2 * same - 1)).item())
    total.backward()
    torch.testing.assert_close(model[0].scores.grad, torch.full((4, 5), -1 / 20))
    torch.testing.assert_close(model[1].scores.grad, torch.full((2, 1, 3, 3), -0.5 / 18))
    assert model[2].scores.grad is None
    assert syn.penalty(nn.Linear(2, 2)) == 0


def rewarded():
    """A layer with a penalty, an input, and the penalty's gradient by each score."""
    layer = syn.LearnedLinear(20, 10, method="minimal-pruning", alpha=-3.0)
    nn.init.normal_(layer.scores)
    return layer, torch.randn(4, 20), -3.0 / 200


def penalty_of(layer):
    return -3.0 * (layer.scores > 0).double().mean().item()


def test_a_penalty_is_the_same_whether_or_not_a_pass_has_added_it_up():
    layer, x, by = rewarded()
    alone = torch.autograd.grad(layer(x).sin().sum(), layer.scores)[0]
    total = syn.penalty(layer)
    assert total.item() == pytest.approx(penalty_of(layer))
    torch.testing.assert_close(
        torch.autograd.grad(layer(x).sin().sum() + syn.penalty(layer), layer.scores)[0], alone + by
    )
    layer(x)
    first, second = syn.penalty(layer), syn.penalty(layer)
    assert first.item() == second.item() == total.item()
    for one in (first, second, total):  # of which the first pass has been differentiated already
        torch.testing.assert_close(torch.autograd.grad(one, layer.scores)[0], torch.full_like(alone, by))


def test_a_penalty_may_be_differentiated_before_and_after_the_loss():
    layer, x, by = rewarded()
    expected = torch.autograd.grad(layer(x).sum(), layer.scores)[0] + by
    for penalty_first in (True, False):
        layer.scores.grad = None
        parts = [layer(x).sum(), syn.penalty(layer)]
        for part in parts[:: -1 if penalty_first else 1]:
            part.backward(retain_graph=penalty_first)
        torch.testing.assert_close(layer.scores.grad, expected)


def test_a_penalty_is_that_of_the_scores_as_they_are():
    layer, x, by = rewarded()
    layer(x)
    with torch.no_grad():
        layer.scores.sub_(0.5)
    assert syn.penalty(layer).item() == pytest.approx(penalty_of(layer))
    layer(x)
    other = torch.rand(10, 20, requires_grad=True)
    total = torch.func.functional_call(Penalised(layer), {"layer.scores": other}, ())
    assert total.item() == pytest.approx(-3.0)
    assert (torch.autograd.grad(total, other)[0] == torch.tensor(by)).all()
    layer(x)
    layer.relearn(syn.Learned("minimal-flipping", alpha=2.0))
    assert syn.penalty(layer).item() == pytest.approx(2 * layer.scores.sign().double().mean().item())
    layer(x)
    with torch.no_grad():
        assert not syn.penalty(layer).requires_grad


class Penalised(nn.Module):
    """Its output is the penalty of a layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self):
        return syn.penalty(self.layer)


def test_copies_and_files_leave_what_was_added_up_behind(tmp_path):
    layer, x, _ = rewarded()
    y = layer(x)
    twin = copy.deepcopy(layer)
    torch.save(layer, tmp_path / "layer.pt")
    loaded = torch.load(tmp_path / "layer.pt", weights_only=False)
    for other in (twin, loaded):
        assert syn.penalty(other).item() == pytest.approx(penalty_of(layer))
        assert torch.equal(other(x), y)
        by_other = torch.autograd.grad(syn.penalty(other), other.scores)[0]
        torch.testing.assert_close(by_other, torch.full_like(by_other, -3.0 / 200))


def test_counts_of_masks_and_weights():
    model = nn.Sequential(syn.LearnedLinear(4, 1, method="flip"), syn.LearnedLinear(4, 1, method="ternary"))
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(torch.tensor([[1.0, -1.0, 2.0, 0.0]]))
            layer.scores.copy_(torch.tensor([[-1.0, -1.0, 0.0, 1.0]]))
    counts = syn.connectivity(model)
    assert counts["0"] == ((2, 0, 2), (1, 1, 2), 0.5)
    assert counts["1"] == ((2, 1, 1), (1, 2, 1), 0.75)


@pytest.mark.parametrize("name", METHODS)
def test_scores_can_be_given_for_a_mask(name):
    layer = layer_of(name)
    other = layer_of(name)
    other.set_mask(layer.mask())
    assert torch.equal(other.mask(), layer.mask())
    with pytest.raises(ConfigurationError, match=rf"a mask of {layer.learned.method} holds .* given 1, 7 in \[5, 7\]"):
        layer.set_mask(torch.ones(5, 7).index_fill(0, torch.tensor([2]), 7))
    with pytest.raises(ConfigurationError, match=r"in the shape \[5, 7\]; given 1 in \[7, 5\]"):
        layer.set_mask(torch.ones(7, 5))


def test_edge_popup_keeps_no_other_share():
    with pytest.raises(ConfigurationError, match=r"density 0\.4 keeps 14 of 35 synapses; given a mask that keeps 35"):
        layer_of("edge-popup").set_mask(torch.ones(5, 7))


def test_an_optimizer_that_cannot_train_a_layer_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = torch.optim.SGD(model.parameters(), 0.1)
    syn.rewire(model, syn.Learned("prune"))
    with pytest.raises(ConfigurationError, match="does not hold the scores of 0, so nothing trains them; make it over"):
        syn.check_optimizer(model, before)
    holds = torch.optim.SGD([*model.parameters(), model[2].weight], 0.1)
    with pytest.raises(ConfigurationError, match="holds the weight of 2, which free-pruning leaves as it was drawn"):
        syn.check_optimizer(model, holds)
    model[2].scores.requires_grad_(False)
    syn.check_optimizer(model, torch.optim.SGD(model[0].parameters(), 0.1))


def test_trained_weights_are_the_very_parameters():
    dense = nn.Linear(3, 4)
    weight = dense.weight
    layer = syn.LearnedLinear.from_dense(dense, method="prune", train_weights=True)
    assert layer.weight is weight
    syn.check_optimizer(layer, torch.optim.SGD(layer.parameters(), 0.1))
    layer(torch.randn(2, 3)).sum().backward()
    assert weight.grad is not None
    frozen = syn.LearnedLinear.from_dense(dense, method="prune")
    with torch.no_grad():
        weight.add_(1)
    assert not torch.equal(frozen.weight, weight)  # what else holds the weight moves on its own
    frozen.relearn(syn.Learned("flip", train_weights=True))
    assert isinstance(frozen.weight, nn.Parameter)
    frozen.relearn(syn.Learned("supermask"))
    assert not isinstance(frozen.weight, nn.Parameter)
    assert frozen.counter == 0
    assert not frozen.eval().weight.requires_grad


def test_failures_of_a_gated_layer_are_those_of_its_effective_weight():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(64, 3))
    syn.rewire(model, syn.Learned("flip") + syn.Failing(0.4, "noisy"))
    for layer in learned_layers(model).values():
        nn.init.normal_(layer.scores)
    dense = nn.Sequential(model[0].to_dense(), nn.Flatten(), model[2].to_dense())
    syn.rewire(dense, syn.Failing(0.4, "noisy"))
    for i in (0, 2):
        dense[i].failures.load_state_dict(model[i].failures.state_dict())
    x = torch.randn(5, 1, 4, 4)
    for training in (True, False):
        torch.testing.assert_close(model.train(training)(x), dense.train(training)(x))
    model(x).sum().backward()
    dense(x).sum().backward()
    for i in (0, 2):
        torch.testing.assert_close(model[i].scores.grad, dense[i].weight.grad * model[i].weight)


@pytest.mark.parametrize(
    ("layer", "wiring", "why"),
    [
        (lambda: nn.Conv1d(2, 2, 1), syn.Learned("flip") + syn.Failing(0.2), "has no product with failures"),
        (lambda: syn.LearnedConv3d(2, 2, 1, method="flip"), syn.Failing(0.2), "has no product with failures"),
        (lambda: nn.RNNCell(2, 2), syn.Learned("flip"), "has no learned form"),
        (lambda: nn.modules.linear.NonDynamicallyQuantizableLinear(2, 2), syn.Learned("flip"), "in its own way"),
    ],
)
def test_layers_without_a_product_are_refused(layer, wiring, why):
    model = nn.Sequential(layer(), nn.Linear(2, 2))
    before = list(model)
    with pytest.raises(ConfigurationError, match=f"'0' is a .*, which .*{why} and cannot be rewired; convertible .* 1"):
        syn.rewire(model, wiring, where=["1", "0"])
    assert list(model) == before
    syn.rewire(model, wiring)
    assert model[0] is before[0]
    assert type(model[1]) in (syn.LearnedLinear, syn.FailingLinear)


def test_rewire_there_back_and_on():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Conv1d(1, 1, 2), syn.FailingLinear(3, 2, failure=0.1)).double()
    model.eval()
    calls, bias = [], shared.bias
    shared.register_forward_hook(lambda *_: calls.append(1))
    syn.rewire(model, syn.Learned("flip"), where=["0", "2", "3", "4"])
    assert model[0] is model[2]
    assert [type(model[i]) for i in (0, 3, 4)] == [syn.LearnedLinear, syn.LearnedConv1d, syn.LearnedLinear]
    assert model[4].failures is None
    assert model[0].bias is bias
    assert model[0].scores.dtype == torch.float64
    assert not model[0].training
    nn.init.normal_(model[0].scores)
    scores, weight = model[0].scores, model[0].weight
    syn.rewire(model, syn.Failing(0.3), where="0")
    assert model[0].failures.rate == 0.3
    assert not model[0].failures.training
    syn.rewire(model, syn.Learned("prune"), where="0")
    assert model[0].failures is None
    assert model[0].scores is scores
    assert model[0].learned.method == "free-pruning"
    assert torch.equal(model[0].weight, weight)
    x = torch.randn(4, 6, dtype=torch.float64)
    expected = model[0](x)
    syn.rewire(model, syn.Dense())
    assert [type(model[i]) for i in (0, 3, 4)] == [nn.Linear, nn.Conv1d, nn.Linear]
    assert model[0] is model[2]
    assert torch.equal(model[0](x), expected)
    assert model[0].weight.requires_grad
    assert len(calls) == 2


def test_sparse_storage_and_gates_have_no_product():
    model = nn.Sequential(syn.SparseLinear(6, 5, density=0.5), nn.Linear(5, 4))
    with pytest.raises(ConfigurationError, match=r"is a SparseLinear, which has no learned form while it is sparse"):
        syn.rewire(model, syn.Learned("flip"), where=["0"])
    with pytest.raises(ConfigurationError, match=r"has no product with Sparse.* yet; learn first"):
        syn.rewire(model, syn.Learned("flip") + syn.Sparse(0.2))
    syn.rewire(model, syn.Learned("flip"))
    assert [type(layer) for layer in model] == [syn.SparseLinear, syn.LearnedLinear]
    with pytest.raises(ConfigurationError, match="is a LearnedLinear, which has no sparse storage"):
        syn.rewire(model, syn.Sparse(0.2), where="1")
    syn.rewire(model, syn.Dense() + syn.Learned("flip"), where="0")
    assert type(model[0]) is syn.LearnedLinear


def test_a_transformer_encoder_does_not_read_the_frozen_weights():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 2)
    syn.rewire(encoder, syn.Learned("flip"))
    for layer in learned_layers(encoder).values():
        nn.init.normal_(layer.scores)
    x = torch.randn(3, 5, 16)
    encoder.eval()
    expected = encoder(x).detach()  # with gradients torch takes no fast path
    with torch.no_grad():
        torch.testing.assert_close(encoder(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "free-prunning"}, r"unknown method 'free-prunning' \(did you mean 'free-pruning'\?\)"),
        (
            {"method": "free-pruning", "alpha": -1.0},
            "alpha is an option of minimal-pruning and minimal-flipping; free-",
        ),
        ({"method": "flip", "density": 0.5}, "density is an option of edge-popup; free-flipping has none"),
        ({"method": "edge-popup", "density": 0.0}, r"in \(0, 1\]; given 0.0"),
        ({"method": "edge-popup", "density": 1.5}, r"in \(0, 1\]; given 1.5"),
        ({"method": "edge-popup", "density": float("nan")}, r"in \(0, 1\]; given nan"),
        ({"method": "ternary", "threshold": -0.1}, "at least 0; given -0.1"),
        ({"method": "minimal-flipping", "alpha": float("inf")}, "alpha is a finite number"),
        ({"method": "supermask", "inference": "mean"}, "unknown inference 'mean'"),
        ({"method": "ternary", "inference": "expected"}, "inference is an option of supermask"),
    ],
)
def test_contradictions_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        syn.Learned(**options)
    with pytest.raises(ConfigurationError, match=message):
        syn.LearnedLinear(3, 2, **options)


def test_options_have_their_defaults():
    assert syn.Learned("minimal-pruning").alpha == -1
    assert syn.Learned("edge-popup").density == 0.5
    assert syn.Learned("ternary").threshold == 0.01
    assert syn.Learned("supermask").inference == "thresholded"
    again = syn.Learned(**asdict(syn.Learned("edge-popup", density=0.2)))
    assert again == syn.Learned("edge-popup", density=0.2)


def test_a_copy_learns_on_its_own():
    layer = layer_of("ternary")
    twin = copy.deepcopy(layer)
    twin.relearn(syn.Learned("flip"))
    assert layer.learned.method == "ternary"
    assert twin.scores is not layer.scores
