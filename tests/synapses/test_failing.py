"""FailingLinear: its moments in each mode and form of noise, its counters, and prediction."""

import copy
import math

import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.conformance import check_synapse
from synaptome.errors import ConfigurationError


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("failure", [0.0, 0.4])
def test_conformance(failure, noise, bias):
    check_synapse(lambda: syn.FailingLinear(7, 5, bias, failure=failure, noise=noise))


def test_weights_are_those_of_linear_from_the_same_seed():
    torch.manual_seed(3)
    dense = nn.Linear(5, 4)
    torch.manual_seed(3)
    failing = syn.FailingLinear(5, 4, failure=0.5)
    assert torch.equal(dense.weight, failing.weight)
    assert torch.equal(dense.bias, failing.bias)


def moments(layer, x, passes=4000):
    with torch.no_grad():
        y = layer(x.expand(passes, -1))  # every row of a batch has failures of its own
    return y.mean(0), y.var(0)


@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("mode", ["training", "noisy", "gaussian"])
def test_mean_and_variance_are_those_of_theory(mode, noise):
    failure, passes = 0.3, 4000
    layer = syn.FailingLinear(20, 6, failure=failure, noise=noise).double()
    x = torch.randn(20, dtype=torch.float64)
    if mode != "training":
        layer.failures.inference = mode
        layer.eval()
    mean, variance = moments(layer, x, passes)
    expected = layer.weight @ x + layer.bias
    spread = failure / (1 - failure) * (layer.weight**2) @ (x**2)
    assert ((mean - expected).abs() < 5 * (spread / passes).sqrt()).all()
    # The variance of a sample variance is at most 3 sigma^4 / n for sums with kurtosis up to 4.
    assert ((variance / spread - 1).abs() < 5 * math.sqrt(3 / passes)).all()


@pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
def test_monte_carlo_inference_narrows_the_spread_by_the_number_of_samples(noise):
    layer = syn.FailingLinear(20, 6, failure=0.5, inference="mc(25)", noise=noise).double().eval()
    x = torch.randn(20, dtype=torch.float64)
    _, variance = moments(layer, x)
    spread = (layer.weight**2) @ (x**2) / 25
    assert ((variance / spread - 1).abs() < 5 * math.sqrt(3 / 4000)).all()


def test_the_forms_of_noise_are_two():
    """One synapse that fails half of the time gives two values; its Gaussian form gives any."""
    layer = syn.FailingLinear(1, 1, bias=False, failure=0.5)
    x = torch.ones(50, 1)
    assert len(layer(x).unique()) == 2
    layer.failures.noise = "gaussian"
    assert len(layer(x).unique()) == 50
    layer.eval().failures.inference = "noisy"
    assert len(layer(x).unique()) == 50
    layer.failures.noise = "bernoulli"
    assert len(layer(x).unique()) == 2


def test_training_with_gaussian_noise_penalises_the_variance():
    """With targets 0 the mean squared output is the squared mean plus the variance, and so is its gradient."""
    failure, examples = 0.5, 20_000
    layer = syn.FailingLinear(3, 1, bias=False, failure=failure, noise="gaussian").double()
    x = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    each = torch.stack([layer(x.expand(examples // 10, -1)).square().mean() for _ in range(10)])
    grads = torch.stack([torch.autograd.grad(loss, layer.weight, retain_graph=True)[0] for loss in each])
    w = layer.weight.detach()[0]
    expected = 2 * (w @ x) * x + 2 * failure / (1 - failure) * w * x**2
    error = grads.std(0) / math.sqrt(len(grads))  # estimated from ten: a normal's 5 are Student's 9 errors
    assert ((grads.mean(0) - expected).abs() < 9 * error).all()


def test_gaussian_inference_has_gradients_at_zero_input():
    layer = syn.FailingLinear(4, 3, failure=0.5, inference="gaussian").eval()
    x = torch.zeros(2, 4, requires_grad=True)
    layer(x).sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(layer.weight.grad).all()


def test_counter_advances_at_noisy_passes_only():
    layer = syn.FailingLinear(4, 3, failure=0.5)
    layer(torch.randn(2, 4))
    layer.eval()(torch.randn(2, 4))
    assert layer.failures.counter.item() == 1


def test_ranks_fail_apart(monkeypatch):
    layer = syn.FailingLinear(50, 30, failure=0.5)
    twin, x = copy.deepcopy(layer), torch.randn(2, 50)
    first = layer(x)
    monkeypatch.setattr("synaptome.synapses.failing._rank", lambda: 1)
    assert not torch.equal(first, twin(x))


@pytest.mark.parametrize("inference", ["", "mean", "mc(0)", "mc(-1)", "noisy(3)", "mc(x)"])
def test_unknown_inference_is_refused(inference):
    with pytest.raises(ConfigurationError, match="expected, noisy, gaussian"):
        syn.FailingLinear(3, 3, failure=0.1, inference=inference)
    with pytest.raises(ConfigurationError, match="expected, noisy, gaussian"):
        syn.Failing(0.1, inference)


def test_unknown_noise_is_refused():
    with pytest.raises(ConfigurationError, match="unknown noise 'gausian' \\(did you mean 'gaussian'\\?\\)"):
        syn.FailingLinear(3, 3, failure=0.1, noise="gausian")
    with pytest.raises(ConfigurationError, match="allowed: bernoulli, gaussian"):
        syn.Failing(0.1, noise="")
    layer = syn.FailingLinear(3, 3, failure=0.1)
    with pytest.raises(ConfigurationError, match="unknown noise 'none'"):
        layer.failures.noise = "none"


def test_kinds_add_up_on_different_axes_only():
    both = syn.Dense() + syn.Failing(0.3)
    assert both.get(syn.Failing) == syn.Failing(0.3)
    with pytest.raises(ConfigurationError, match="both choose the noise"):
        both + syn.Failing(0.1)
    with pytest.raises(ConfigurationError, match="in \\[0, 1\\)"):
        syn.Failing(1.0)
    with pytest.raises(TypeError, match=r"unsupported operand .*'float'"):
        syn.Dense() + 0.3


def test_predict_gives_mean_and_spread_of_whole_network_passes():
    torch.manual_seed(0)
    model = nn.Sequential(syn.FailingLinear(10, 8, failure=0.3), nn.ReLU(), syn.FailingLinear(8, 3, failure=0.3))
    x = torch.randn(4, 10)
    prediction = syn.predict(model, x, samples=500)
    assert model.training
    noisy = torch.stack([model(x) for _ in range(500)])
    error = prediction.std * math.sqrt(2 / 500)
    assert ((prediction.mean - noisy.mean(0)).abs() < 6 * error).all()
    assert ((prediction.std / noisy.std(0) - 1).abs() < 0.3).all()
    assert [layer.failures.inference for layer in (model[0], model[2])] == ["expected", "expected"]


def test_predict_asks_the_layers_how_many_passes_they_want():
    model = nn.Sequential(syn.FailingLinear(10, 8, failure=0.3, inference="mc(7)"))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    assert (syn.predict(model, torch.randn(2, 10)).std > 0).all()
    assert len(calls) == 7
    model[0].failures.inference = "expected"
    assert (syn.predict(model, torch.randn(2, 10)).std == 0).all()
    with pytest.raises(ConfigurationError, match="at least one sample"):
        syn.predict(model, torch.randn(2, 10), samples=0)
