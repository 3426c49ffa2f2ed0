"""`W ∘ f(s)`: against loops over the definitions, exact fractions, a sort, and the stated gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from synaptome.errors import ConfigurationError
from synaptome.kernels import randomness
from synaptome.kernels.learned_weight import OPERATORS, gate, learned_mask, learned_weight, mask_sum

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
    """The n-th draw of KEY in [0, 1), in Python integers: 24 bits of half a number of its sequence."""
    stream, counter = KEY.tolist()
    golden = 0x9E3779B97F4A7C15
    base = splitmix64((splitmix64(stream) + golden * counter) % 2**64)
    halves = divmod(splitmix64((base + golden * (1 + number // 2)) % 2**64), 2**32)
    return (halves[1 - number % 2] >> 8) / 2**24


def defined(scores, rule, amount):
    """f(s) one synapse after the other."""
    s = scores.flatten().tolist()
    kept = sorted(range(len(s)), key=lambda i: (-abs(s[i]), i))[: round(amount * len(s))]
    positive, probabilities = sum(x > 0 for x in s), scores.sigmoid().flatten().tolist()
    f = {
        "positive": lambda i: s[i] > 0,
        "rescaled": lambda i: (s[i] > 0) * len(s) / (1 + positive),
        "sign": lambda i: -1 if s[i] < 0 else 1,
        "ternary": lambda i: (s[i] > amount) - (s[i] < -amount),
        "top": lambda i: i in kept,
        "bernoulli": lambda i: draw(i) < probabilities[i],
    }[rule]
    return torch.tensor([float(f(i)) for i in range(len(s))], dtype=scores.dtype).view(scores.shape)


def slope(scores, rule):
    """What the straight-through gradient takes for f'(s): g'(s) of the table, by autograd."""
    s = scores.detach().clone().requires_grad_()
    g = {"top": torch.abs, "bernoulli": torch.sigmoid}.get(rule, lambda s: 1 * s)
    return torch.autograd.grad(g(s).sum(), s)[0]


def made(shape, dtype=torch.float64):
    """Scores with zeros, negative zeros and equal ones among them."""
    scores = torch.randint(-3, 4, shape).to(dtype) / 4 + torch.randn(shape, dtype=dtype).mul_(torch.rand(shape) < 0.6)
    scores.view(-1)[::5] = -0.0
    return scores


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (5, 7), (4, 3, 3, 2)])
@pytest.mark.parametrize("rule", RULES)
def test_the_mask_is_the_definition_and_gradients_are_those_stated(backend, rule, shape, dtype):
    scores, weight = made(shape, dtype).requires_grad_(), torch.randn(shape, dtype=dtype)
    amount = {"top": 0.4, "ternary": 0.3}.get(rule, 0.0)
    f = defined(scores.detach(), rule, amount)
    grad = torch.randn(shape, dtype=dtype)
    for trained in (False, True):
        weight = weight.detach().requires_grad_(trained)
        y = learned_weight(weight, scores, rule, amount, KEY)
        torch.testing.assert_close(y.detach(), weight.detach() * f, rtol=1e-6, atol=0)
        (by_scores,) = torch.autograd.grad(y, scores, grad, retain_graph=True)
        torch.testing.assert_close(by_scores, grad * weight.detach() * slope(scores, rule), rtol=1e-6, atol=0)
        if trained:
            (by_weight,) = torch.autograd.grad(y, weight, grad)
            torch.testing.assert_close(by_weight, grad * f, rtol=1e-6, atol=0)
    mask = learned_mask(scores, rule, amount, KEY)
    torch.testing.assert_close(mask.detach(), f, rtol=1e-6, atol=0)
    by_scores = torch.autograd.grad(mask, scores, grad)[0]
    torch.testing.assert_close(by_scores, grad * slope(scores, rule), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rule", RULES)
def test_through_a_loss_first_and_second_gradients_are_those_of_a_linear_surrogate(backend, rule):
    """At the point W f(s) every function of `W g(s) + constant` has the straight-through gradients by s."""
    scores, weight, x = made((5, 7)).requires_grad_(), torch.randn(5, 7).double(), torch.randn(3, 7).double()
    amount = {"top": 0.4, "ternary": 0.3}.get(rule, 0.0)
    g = {"top": torch.abs, "bernoulli": torch.sigmoid}.get(rule, lambda s: s)
    constant = weight * (defined(scores.detach(), rule, amount) - g(scores.detach()))
    gradients = []
    for effective in (learned_weight(weight, scores, rule, amount, KEY), weight * g(scores) + constant):
        (first,) = torch.autograd.grad((x @ effective.T).tanh().sum(), scores, create_graph=True)
        gradients.append((first, *torch.autograd.grad(first.square().sum(), scores)))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("rule", RULES)
def test_transforms_of_functions_see_the_gradients(rule):
    scores, weight, x = made((5, 7)), torch.randn(5, 7).double(), torch.randn(3, 7).double()
    amount = {"top": 0.4, "ternary": 0.3}.get(rule, 0.0)

    def loss(s, x):
        return (learned_weight(weight, s, rule, amount, KEY) @ x).sin().sum()

    leaf = scores.clone().requires_grad_()
    expected = torch.stack([torch.autograd.grad(loss(leaf, one), leaf)[0] for one in x])
    if rule != "top":  # which takes numbers that a transform does not show
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss), (None, 0))(scores, x), expected)
    y = learned_weight(weight, leaf, rule, amount, KEY)
    grads = torch.randn(2, 5, 7).double()
    batched = torch.autograd.grad(y, leaf, grads, is_grads_batched=True, retain_graph=True)[0]
    one_by_one = torch.stack([torch.autograd.grad(y, leaf, one, retain_graph=True)[0] for one in grads])
    torch.testing.assert_close(batched, one_by_one)


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
    expected[(-scores.abs()).sort(stable=True).indices[: round(density * size)]] = 1
    assert torch.equal(learned_mask(scores, "top", density), expected)


@pytest.mark.parametrize("density", [0.001, 0.3, 0.5, 0.999, 1.0])
def test_large_layers(density):
    scores = torch.randn(1000, 1000) * 0.02
    count = round(density * scores.numel())
    mask, sizes = learned_mask(scores, "top", density).bool(), scores.abs()
    assert mask.sum() == count
    assert sizes[mask].min() >= (sizes[~mask].max() if count < scores.numel() else -math.inf)


@pytest.mark.parametrize("size", [100, 3000])
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_do_not_stop_a_layer(special, size):
    scores = torch.rand(size)
    scores[::7] = special
    for density in (0.05, 0.5, 0.99):
        kept = learned_mask(scores, "top", density).sum()
        assert kept <= round(density * size)
        if not math.isnan(special):
            assert kept == round(density * size)


def test_bernoulli_draws_have_their_probabilities_and_are_independent_of_one_another(backend):
    p = torch.tensor([0.0, 1.0, 0.1, 0.5, 0.93]).repeat_interleave(20_000)
    keys = [torch.tensor([5, counter]) for counter in range(2)]
    first, second = (learned_mask(p.logit(), "bernoulli", key=key).view(5, -1) for key in keys)
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
    scores, weight = made((37, 53), torch.float32), torch.randn(37, 53)
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
    scores, weight = made((4, 6, 3, 3)), torch.randn(4, 6, 3, 3).double()
    expected = learned_weight(weight, scores, rule, 0.4, KEY)
    last = torch.channels_last
    for w, s in ((weight.to(memory_format=last), scores), (weight, scores.to(memory_format=last))):
        assert torch.equal(learned_weight(w, s, rule, 0.4, KEY), expected)
    narrow = learned_weight(weight.bfloat16(), scores.bfloat16(), rule, 0.4, KEY)
    assert narrow.dtype == torch.bfloat16


@pytest.mark.parametrize("rule", RULES)
def test_opcheck(backend, rule):
    scores, weight = made((5, 7)).sigmoid().requires_grad_(), torch.randn(5, 7).double()
    opcheck(OPERATORS["learned_weight"], (weight, scores, rule, 0.4, KEY))


def test_the_sum_of_masks_and_its_gradients(backend):
    scores = [made((5, 7)).requires_grad_(), made((0, 2)).requires_grad_(), made((4, 1, 3)).requires_grad_()]
    rules, factors = ["sign", "sign", "positive"], [0.5, 2.0, -3.0]

    def total():
        return mask_sum(scores, rules, factors)

    each = zip(scores, rules, factors, strict=True)
    expected = sum(factor * defined(s.detach(), rule, 0.0).sum() for s, rule, factor in each)
    torch.compiler.reset()
    for made_by in (total, torch.compile(total, backend="aot_eager", fullgraph=True)):
        assert made_by().item() == expected.item()
        for by, factor in zip(torch.autograd.grad(3 * made_by(), scores), factors, strict=True):
            assert (by == 3 * factor).all()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_compiled_and_exported_programs_give_the_same_bits(rule, trained):
    class Net(torch.nn.Module):
        def forward(self, x, weight, scores):
            return x @ learned_weight(weight, scores, rule, 0.4, KEY).T

    x, scores = torch.randn(3, 7), made((5, 7), torch.float32).requires_grad_()
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
    bits = [number % 2**64 for number in randomness.sequence(KEY, 0, 25).tolist()]
    halves = [half for number in bits for half in (number % 2**32, number >> 32)]
    assert [(half >> 8) / 2**24 for half in halves] == [draw(number) for number in range(50)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_of_draws_are_the_sigmoid(dtype):
    scores = torch.cat((torch.linspace(-120, 120, 40_001), torch.randn(9999), torch.tensor([0.0, -0.0]))).to(dtype)
    scores[:2] = torch.tensor([math.inf, -math.inf])
    kept = gate(torch.ones_like(scores), scores, "bernoulli", 0.0, KEY)[1]
    exact = scores.double().sigmoid()
    torch.testing.assert_close(kept.double(), exact, rtol=3e-7 if dtype == torch.float32 else 1e-15, atol=1e-37)
    assert kept[:2].tolist() == [1, 0]
    assert gate(torch.ones(3), torch.full((3,), math.nan), "bernoulli", 0.0, KEY)[1].isnan().all()
