"""The product with learned weights: against torch's product with the effective weight, up to second gradients."""

import pytest
import torch
from torch.nn import functional as F

from synaptome.errors import ConfigurationError
from synaptome.kernels.learned_linear import learned_linear
from synaptome.kernels.learned_weight import learned_weight

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
