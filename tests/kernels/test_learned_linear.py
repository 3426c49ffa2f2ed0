"""The product with learned weights: against torch's product with the effective weight, up to second gradients."""

import pytest
import torch
from torch.nn import functional as F

from synaptome.errors import ConfigurationError
from synaptome.kernels.learned_linear import learned_linear, learned_linear_and_sum
from synaptome.kernels.learned_weight import learned_weight, mask_sum

RULES = {"positive": 0.0, "rescaled": 0.0, "sign": 0.0, "ternary": 0.3, "top": 0.4, "bernoulli": 0.0}
KEY = torch.tensor([2**60 + 1, 3])
INPUTS = {"rows": (6, 7), "no rows": (0, 7), "one": (7,), "deep": (2, 3, 7)}


@pytest.fixture(params=["reference", "cpu"])
def backend(request, monkeypatch):
    monkeypatch.setenv("SYNAPTOME_BACKEND", request.param)
    return request.param


def leaves(shape=(6, 7)):
    """Input, scores and bias that take gradients, and a weight."""
    made = [torch.randn(*shape), torch.randn(5, 7), torch.randn(5)]
    return *(tensor.double().requires_grad_() for tensor in made), torch.randn(5, 7).double()


@pytest.mark.parametrize("shape", INPUTS.values(), ids=INPUTS)
@pytest.mark.parametrize("rule", RULES)
def test_products_and_their_gradients_are_those_of_the_effective_weight(backend, rule, shape):
    x, scores, bias, weight = leaves(shape)
    for b in (bias, None):
        inputs = (x, scores) if b is None else (x, scores, b)
        results = []
        for y in (
            learned_linear(x, weight, scores, b, rule, RULES[rule], KEY),
            F.linear(x, learned_weight(weight, scores, rule, RULES[rule], KEY), b),
        ):
            first = torch.autograd.grad(y.sin().sum(), inputs, create_graph=True)
            second = torch.autograd.grad(sum(by.square().sum() for by in first), inputs)
            results.append((y, *first, *second))
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("rule", RULES)
def test_gradients_without_a_graph_are_the_same(backend, rule):
    x, scores, bias, weight = leaves()
    y = learned_linear(x, weight, scores, bias, rule, RULES[rule], KEY)
    grad = torch.randn(6, 5).double()
    recorded = torch.autograd.grad(y, (x, scores, bias), grad, create_graph=True)
    for mine, theirs in zip(torch.autograd.grad(y, (x, scores, bias), grad), recorded, strict=True):
        torch.testing.assert_close(mine, theirs)
    kept = grad.clone()
    for expanded in (torch.ones(()).double().expand(6, 5), grad.T.contiguous().T):
        y = learned_linear(x, weight, scores, bias, rule, RULES[rule], KEY)
        by_scores = torch.autograd.grad(y, scores, expanded)[0]
        plain = F.linear(x, learned_weight(weight, scores, rule, RULES[rule], KEY), bias)
        torch.testing.assert_close(by_scores, torch.autograd.grad(plain, scores, expanded)[0])
    assert torch.equal(grad, kept)  # nothing was written over what belongs to others


@pytest.mark.parametrize("rule", RULES)
def test_batches_of_gradients(rule):
    x, scores, bias, weight = leaves()
    y = learned_linear(x, weight, scores, bias, rule, RULES[rule], KEY)
    grads = torch.randn(3, 6, 5).double()
    batched = torch.autograd.grad(y, (x, scores, bias), grads, is_grads_batched=True, retain_graph=True)
    for i in range(3):
        one = torch.autograd.grad(y, (x, scores, bias), grads[i], retain_graph=True)
        for mine, theirs in zip(batched, one, strict=True):
            torch.testing.assert_close(mine[i], theirs)


def test_only_gradients_that_are_asked_for():
    x, scores, bias, weight = leaves()
    for asked in ((x,), (scores,), (bias,)):
        given = [tensor if tensor is asked[0] else tensor.detach() for tensor in (x, scores, bias)]
        y = learned_linear(given[0], weight, given[1], given[2], "sign")
        (mine,) = torch.autograd.grad(y.sin().sum(), asked)
        (theirs,) = torch.autograd.grad(F.linear(x, learned_weight(weight, scores, "sign"), bias).sin().sum(), asked)
        torch.testing.assert_close(mine, theirs)
    assert not learned_linear(x.detach(), weight, scores.detach(), None, "sign").requires_grad


def test_weights_that_are_trained_autocast_and_what_is_refused():
    x, scores, bias, weight = leaves()
    trained = weight.clone().requires_grad_()
    by_weight = torch.autograd.grad(learned_linear(x, trained, scores, bias, "sign").sum(), trained)[0]
    torch.testing.assert_close(by_weight, torch.where(scores < 0, -1.0, 1.0) * x.detach().sum(0))
    narrow = [tensor.detach().float() for tensor in (x, weight, scores, bias)]
    with torch.autocast("cpu"):
        assert learned_linear(*narrow, "sign").dtype == torch.bfloat16
    with pytest.raises(ConfigurationError, match="each weight has a score"):
        learned_linear(x, weight, scores.T, bias, "sign")
    with pytest.raises(RuntimeError, match="dtype"):
        learned_linear(x.float(), weight, scores, bias, "sign")


def test_scores_that_have_changed_are_refused():
    x, scores, bias, weight = leaves()
    y = learned_linear(x, weight, scores, bias, "top", 0.5)
    with torch.no_grad():
        scores.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# Batch, inputs and outputs: whole tiles and vectors, some left over, fewer than there are in one, and a large batch.
SIZES = [(25, 784, 300), (5, 17, 5), (4, 100, 7), (1, 64, 4), (0, 20, 10), (9, 65, 3), (6, 15, 9), (2100, 70, 11)]


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_layers_of_all_sizes(rule, size, dtype, equal):
    """Against the effective weight by torch's operations, in float64; equal scores are left out by their place."""
    batch, inputs, outputs = size
    scores = torch.randint(-2, 3, (outputs, inputs)).to(dtype) if equal else torch.randn(outputs, inputs).to(dtype)
    x, bias, grad = (torch.randn(*shape).to(dtype) for shape in ((batch, inputs), (outputs,), (batch, outputs)))
    weight = torch.randn(outputs, inputs).to(dtype)
    f = learned_weight(torch.ones_like(weight), scores, rule, RULES[rule], KEY).double()
    p = scores.double().sigmoid()
    slope = {"top": scores.double().sign(), "bernoulli": p * (1 - p)}.get(rule, 1.0)
    exact = {"rtol": 1e-4, "atol": 3e-4} if dtype == torch.float32 else {}
    for by_x in (True, False):
        inputs_of = x.clone().requires_grad_(by_x), scores.clone().requires_grad_(), bias.clone().requires_grad_()
        y = learned_linear(inputs_of[0], weight, *inputs_of[1:], rule, RULES[rule], KEY)
        torch.testing.assert_close(y.double(), F.linear(x.double(), weight.double() * f, bias.double()), **exact)
        expected = [grad.double() @ (weight.double() * f), (grad.T.double() @ x.double()) * weight.double() * slope]
        expected.append(grad.double().sum(0))
        asked = slice(0 if by_x else 1, None)
        for mine, theirs in zip(torch.autograd.grad(y, inputs_of[asked], grad), expected[asked], strict=True):
            torch.testing.assert_close(mine.double(), theirs, **exact)


@pytest.mark.parametrize("rule", RULES)
def test_all_numbers_of_threads_give_the_same_bits(monkeypatch, rule):
    monkeypatch.setattr("synaptome.kernels.threads.LEAST_WORK", 0)
    x, weight = torch.randn(10, 50), torch.randn(23, 50)
    scores, results = torch.randn(23, 50, requires_grad=True), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        y = learned_linear(x, weight, scores, None, rule, RULES[rule], KEY)
        results.append((y, *torch.autograd.grad(y.sin().sum(), scores)))
    for result in results[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(result, results[0], strict=True))


def test_numbers_that_are_not_finite_stay_in_their_rows():
    x, weight, scores = torch.randn(5, 18), torch.randn(6, 18), torch.rand(6, 18)
    x[2, 3], x[4, 17], scores[5, 0] = torch.inf, torch.nan, torch.nan
    y = learned_linear(x, weight, scores, None, "positive")
    assert y[[0, 1, 3]].isfinite().all()
    assert y[2].isinf().all()
    assert y[4].isnan().all()


def test_examples_in_any_layout():
    scores, weight = torch.rand(6, 40) - 0.5, torch.randn(6, 40)
    wide = torch.randn(40, 12)
    for x in (wide.T, wide.T[::2], torch.randn(40).expand(7, 40)):
        expected = F.linear(x, learned_weight(weight, scores, "positive"))
        torch.testing.assert_close(learned_linear(x, weight, scores, None, "positive"), expected)
        other = learned_linear(x.contiguous(), weight.T.contiguous().T, scores.T.contiguous().T, None, "positive")
        torch.testing.assert_close(other, expected)


@pytest.mark.parametrize("size", [(6, 7, 5), (25, 40, 30)], ids=str)
@pytest.mark.parametrize("rule", ["positive", "sign"])
def test_the_product_with_the_sum_of_the_mask(backend, rule, size):
    batch, inputs, outputs = size
    x, scores = torch.randn(batch, inputs).double().requires_grad_(), torch.randn(outputs, inputs).double()
    weight, scores = torch.randn(outputs, inputs).double(), scores.requires_grad_()
    f = torch.where(scores > 0, 1.0, 0.0 if rule == "positive" else -1.0)

    def both():
        return learned_linear_and_sum(x, weight, scores, None, rule, -0.3)

    y, total = both()
    assert total.item() == pytest.approx(-0.3 * f.sum().item(), rel=1e-12)
    torch.testing.assert_close(y, x @ (weight * f).T)
    task = torch.autograd.grad(learned_linear(x, weight, scores, None, rule).sin().sum(), (x, scores))
    mine = torch.autograd.grad(y.sin().sum() + 2 * total, (x, scores), create_graph=True)
    torch.testing.assert_close(mine[0], task[0])
    torch.testing.assert_close(mine[1], task[1] - 0.6)
    y, total = both()
    for by, expected in zip(torch.autograd.grad(y.sin().sum() + 2 * total, (x, scores)), mine, strict=True):
        torch.testing.assert_close(by, expected)  # without a graph: by the kernel
    y, total = both()
    torch.testing.assert_close(torch.autograd.grad(y.sin().sum(), scores)[0], task[1])
    assert (torch.autograd.grad(total, scores)[0] == -0.3).all()  # which needs nothing that is gone by now
    y, total = both()
    scaled = torch.autograd.grad((y.sum(), total), scores, (torch.ones(3), torch.arange(3.0)), is_grads_batched=True)[0]
    torch.testing.assert_close(scaled[2] - scaled[0], torch.full_like(scores, -0.6))
    three = learned_linear_and_sum(x[None], weight, scores, None, rule, -0.3)  # of another shape: the same in parts
    torch.testing.assert_close(three[0][0], y)
    torch.testing.assert_close(three[1], mask_sum([scores], [rule], [-0.3]))


@pytest.mark.parametrize("rule", ["positive", "top"])
def test_examples_that_do_not_fit_are_refused(rule):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        learned_linear(torch.ones(3, 30), torch.ones(8, 40), torch.ones(8, 40), None, rule, 0.5)
