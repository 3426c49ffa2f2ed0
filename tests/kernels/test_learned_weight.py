"""`W ∘ f(s)`: against loops over the definitions, exact fractions, a sort, and the stated gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from synaptome.errors import ConfigurationError
from synaptome.kernels import randomness
from synaptome.kernels.learned_weight import OPERATORS, learned_mask, learned_weight, mask_sum

RULES = ("positive", "rescaled", "sign", "ternary", "top", "bernoulli")
KEY = torch.tensor([2**61 + 3, 7])


@pytest.fixture(params=["reference", "cpu"])
def backend(request, monkeypatch):
    monkeypatch.setenv("SYNAPTOME_BACKEND", request.param)
    return request.param


def splitmix64(z):
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def draw(number):
    """The n-th draw of KEY in [0, 1), in Python integers."""
    stream, counter = KEY.tolist()
    golden = 0x9E3779B97F4A7C15
    base = splitmix64((splitmix64(stream) + golden * counter) % 2**64)
    return (splitmix64((base + golden * (1 + number)) % 2**64) >> 40) / 2**24


def defined(scores, rule, amount):
    """f(s) one synapse after the other."""
    s = scores.flatten().tolist()
    kept = sorted(range(len(s)), key=lambda i: (-s[i], i))[: round(amount * len(s))]
    positive = sum(x > 0 for x in s)
    f = {
        "positive": lambda i: s[i] > 0,
        "rescaled": lambda i: (s[i] > 0) * len(s) / (1 + positive),
        "sign": lambda i: -1 if s[i] < 0 else 1,
        "ternary": lambda i: (s[i] > amount) - (s[i] < -amount),
        "top": lambda i: i in kept,
        "bernoulli": lambda i: draw(i) < s[i],
    }[rule]
    return torch.tensor([float(f(i)) for i in range(len(s))], dtype=scores.dtype).view(scores.shape)


def made(shape, rule, dtype=torch.float64):
    """Scores with zeros, negative zeros and equal ones among them."""
    scores = torch.randint(-3, 4, shape).to(dtype) / 4 + torch.randn(shape, dtype=dtype).mul_(torch.rand(shape) < 0.6)
    scores.view(-1)[::5] = -0.0
    return scores.sigmoid() if rule == "bernoulli" else scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (5, 7), (4, 3, 3, 2)])
@pytest.mark.parametrize("rule", RULES)
def test_the_mask_is_the_definition_and_gradients_are_those_stated(backend, rule, shape, dtype):
    scores, weight = made(shape, rule, dtype).requires_grad_(), torch.randn(shape, dtype=dtype)
    amount = {"top": 0.4, "ternary": 0.3}.get(rule, 0.0)
    f = defined(scores.detach(), rule, amount)
    grad = torch.randn(shape, dtype=dtype)
    for trained in (False, True):
        weight = weight.detach().requires_grad_(trained)
        y = learned_weight(weight, scores, rule, amount, KEY)
        torch.testing.assert_close(y.detach(), weight.detach() * f, rtol=1e-6, atol=0)
        (by_scores,) = torch.autograd.grad(y, scores, grad, retain_graph=True)
        assert torch.equal(by_scores, grad * weight)
        if trained:
            (by_weight,) = torch.autograd.grad(y, weight, grad)
            torch.testing.assert_close(by_weight, grad * f, rtol=1e-6, atol=0)
    mask = learned_mask(scores, rule, amount, KEY)
    torch.testing.assert_close(mask.detach(), f, rtol=1e-6, atol=0)
    assert torch.equal(torch.autograd.grad(mask, scores, grad)[0], grad)


@pytest.mark.parametrize("rule", RULES)
def test_through_a_loss_the_gradient_is_that_of_a_linear_surrogate(backend, rule):
    """At the point W f(s) every function of `W s + constant` has the straight-through gradient by s."""
    scores, weight, x = made((5, 7), rule).requires_grad_(), torch.randn(5, 7).double(), torch.randn(3, 7).double()
    amount = {"top": 0.4, "ternary": 0.3}.get(rule, 0.0)
    constant = weight * defined(scores.detach(), rule, amount) - weight * scores.detach()
    (mine,) = torch.autograd.grad((x @ learned_weight(weight, scores, rule, amount, KEY).T).tanh().sum(), scores)
    (theirs,) = torch.autograd.grad((x @ (weight * scores + constant).T).tanh().sum(), scores)
    torch.testing.assert_close(mine, theirs)


@given(st.integers(0, 6000), st.integers(0, 2**32), st.floats(0, 1), st.sampled_from(["even", "equal", "few", "heavy"]))
@settings(max_examples=150, deadline=None)
def test_the_largest_scores_are_those_of_a_sort(size, seed, density, kind):
    torch.manual_seed(seed)
    scores = {
        "even": lambda: torch.rand(size),
        "equal": lambda: torch.full((size,), 0.25),
        "few": lambda: torch.randint(-2, 3, (size,)) / 4,
        "heavy": lambda: torch.randn(size) * torch.exp(20 * torch.randn(size)),
    }[kind]()
    expected = torch.zeros(size)
    expected[(-scores).sort(stable=True).indices[: round(density * size)]] = 1
    assert torch.equal(learned_mask(scores, "top", density), expected)


@pytest.mark.parametrize("density", [0.001, 0.3, 0.5, 0.999, 1.0])
def test_large_layers(density):
    scores = torch.randn(1000, 1000) * 0.02
    count = round(density * scores.numel())
    mask = learned_mask(scores, "top", density).bool()
    assert mask.sum() == count
    assert scores[mask].min() >= (scores[~mask].max() if count < scores.numel() else -math.inf)


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_do_not_stop_a_layer(special):
    scores = torch.rand(3000)
    scores[::7] = special
    for density in (0.05, 0.5, 0.99):
        kept = learned_mask(scores, "top", density).sum()
        assert kept <= round(density * 3000)
        if not math.isnan(special):
            assert kept == round(density * 3000)


def test_bernoulli_draws_have_their_probabilities_and_are_independent_of_one_another(backend):
    p = torch.tensor([0.0, 1.0, 0.1, 0.5, 0.93]).repeat_interleave(20_000)
    keys = [torch.tensor([5, counter]) for counter in range(2)]
    first, second = (learned_mask(p, "bernoulli", key=key).view(5, -1) for key in keys)
    for drawn in (first, second):
        mean = drawn.mean(1)
        assert mean[:2].tolist() == [0, 1]
        error = (p.view(5, -1)[:, 0] * (1 - p.view(5, -1)[:, 0]) / 20_000).sqrt()
        assert ((mean - p.view(5, -1)[:, 0]).abs() <= 5 * error).all()
    for a, b in ((first[3], second[3]), (first[3, :-1], first[3, 1:])):
        assert abs(((a - 0.5) * (b - 0.5)).mean().item()) < 5 * 0.25 / math.sqrt(19_999)


@pytest.mark.parametrize("rule", RULES)
def test_both_backends_and_all_numbers_of_threads_give_the_same_bits(monkeypatch, rule):
    monkeypatch.setattr("synaptome.kernels.threads.LEAST_WORK", 0)
    scores, weight = made((37, 53), rule, torch.float32), torch.randn(37, 53)
    amount = {"top": 0.4, "ternary": 0.3}.get(rule, 0.0)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(learned_weight(weight, scores, rule, amount, KEY))
    monkeypatch.setenv("SYNAPTOME_BACKEND", "reference")
    results.append(learned_weight(weight, scores, rule, amount, KEY))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("rule", RULES)
def test_layouts_do_not_matter(backend, rule):
    scores, weight = made((4, 6, 3, 3), rule), torch.randn(4, 6, 3, 3).double()
    expected = learned_weight(weight, scores, rule, 0.4, KEY)
    last = torch.channels_last
    for w, s in ((weight.to(memory_format=last), scores), (weight, scores.to(memory_format=last))):
        assert torch.equal(learned_weight(w, s, rule, 0.4, KEY), expected)
    narrow = learned_weight(weight.bfloat16(), scores.bfloat16(), rule, 0.4, KEY)
    assert narrow.dtype == torch.bfloat16


@pytest.mark.parametrize("rule", RULES[1:])  # the first is an operator of torch
def test_opcheck(backend, rule):
    scores, weight = made((5, 7), rule), torch.randn(5, 7).double()
    opcheck(OPERATORS["learned_weight"], (torch.empty_like(weight), weight, scores, rule, 0.4, KEY))
    opcheck(OPERATORS["mask_sum"], (torch.empty(()), scores, "sign"))


@pytest.mark.parametrize("rule", ["positive", "sign"])
def test_the_sum_of_a_mask_and_its_gradient(backend, rule):
    scores = made((5, 7), rule).requires_grad_()
    total = mask_sum(scores, rule)
    assert total.item() == defined(scores.detach(), rule, 0.0).sum()
    assert (torch.autograd.grad(3 * total, scores)[0] == 3).all()
    compiled = torch.compile(mask_sum, backend="aot_eager", fullgraph=True)(scores, rule)
    assert torch.equal(compiled, total)
    assert (torch.autograd.grad(3 * compiled, scores)[0] == 3).all()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_compiled_and_exported_programs_give_the_same_bits(rule, trained):
    class Net(torch.nn.Module):
        def forward(self, x, weight, scores):
            return x @ learned_weight(weight, scores, rule, 0.4, KEY).T

    x, scores = torch.randn(3, 7), made((5, 7), rule, torch.float32).requires_grad_()
    weight = torch.randn(5, 7, requires_grad=trained)
    y = Net()(x, weight, scores)
    torch.compiler.reset()
    compiled = torch.compile(Net(), backend="aot_eager", fullgraph=True)(x, weight, scores)
    assert torch.equal(compiled, y)
    inputs = (weight, scores) if trained else (scores,)
    for mine, theirs in zip(
        torch.autograd.grad(compiled.sum(), inputs), torch.autograd.grad(y.sum(), inputs), strict=True
    ):
        assert torch.equal(mine, theirs)
    exported = torch.export.export(Net(), (x, weight.detach(), scores.detach())).module()
    assert torch.equal(exported(x, weight.detach(), scores.detach()), y)


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ConfigurationError, match=r"one shape and one dtype; given torch\.float32 \[2, 3\] and .*\[3, 2\]"
    ):
        learned_weight(torch.ones(2, 3), torch.ones(3, 2), "positive")
    with pytest.raises(ConfigurationError, match=r"given torch\.float32 \[2\] and torch\.float64 \[2\]"):
        learned_weight(torch.ones(2), torch.ones(2).double(), "positive")


def test_draws_are_those_of_randomness():
    bits = randomness.sequence(KEY, 0, 50).tolist()
    assert [(number % 2**64 >> 40) / 2**24 for number in bits] == [draw(number) for number in range(50)]
