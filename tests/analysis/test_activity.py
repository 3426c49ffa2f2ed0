"""Hidden activity against a network written out, and measuring that leaves no trace."""

import numpy as np
import pytest
import torch
from torch import nn

import synaptome as syn
from synaptome.analysis.activity import covariance_spectrum, hidden_activity, input_covariance, undisturbed
from synaptome.analysis.modes import linear_layers
from synaptome.errors import ConfigurationError
from synaptome.networks.feedforward import FeedForward


@pytest.mark.parametrize("activation", ["linear", "relu", "sigmoid"])
def test_activity_is_what_the_next_layer_is_given(activation):
    network = FeedForward([6, 5, 4, 3], activation=activation, wiring=syn.Failing(0.5))
    x = torch.randn(7, 2, 3)  # flattened by the network
    acts = {"linear": lambda z: z, "relu": lambda z: np.maximum(z, 0), "sigmoid": lambda z: 1 / (1 + np.exp(-z))}
    h, expected = x.flatten(1).numpy(), []
    for layer in network.layers[:-1]:
        h = acts[activation](h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
        expected.append(h)
    given = hidden_activity(network, linear_layers(network), x)
    assert len(given) == 2
    for mine, theirs in zip(given, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("inference", ["noisy", "gaussian", "mc(3)"])
def test_activity_leaves_counters_modes_and_hooks_as_they_were(inference):
    network = FeedForward([6, 5, 3], wiring=syn.Failing(0.5, inference))
    network.layers[1].eval()
    network(torch.randn(2, 6))  # so that a counter stands above 0
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    hooks = [list(module._forward_pre_hooks) for module in network.modules()]
    random = torch.get_rng_state()
    first, second = (hidden_activity(network, linear_layers(network), torch.ones(4, 6)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert [list(module._forward_pre_hooks) for module in network.modules()] == hooks


class Counting(nn.Module):
    """Replaces its buffer, where others would change it in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + 1
        return x


def test_undisturbed_restores_buffers_even_after_an_error():
    model = nn.Sequential(Counting(), nn.BatchNorm1d(3))
    kept = model[0].seen
    with undisturbed(model):
        assert not model[1].training
        model(torch.randn(4, 3))
        model.train()
        model(torch.randn(4, 3))
        assert model[0].seen == 2
    assert model[0].seen is kept
    assert kept == 0
    assert model[1].num_batches_tracked == 0
    assert model[1].running_mean.tolist() == [0, 0, 0]
    with pytest.raises(RuntimeError), undisturbed(model):
        model(torch.randn(4, 5))
    assert model[0].seen == 0
    assert model.training


def test_a_layer_that_is_not_called_is_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    model = Idle()
    with pytest.raises(ConfigurationError, match="layer 2 is not called"):
        hidden_activity(model, linear_layers(model), torch.ones(1, 2))


@pytest.mark.parametrize("shape", [(50, 6), (4, 6), (4, 2, 3)])
def test_input_covariance_is_uncentred(shape):
    x = torch.randn(shape) + 1
    X = x.flatten(1).double().numpy()
    expected = X.T @ X / len(X)
    np.testing.assert_allclose(input_covariance(x), expected, rtol=1e-6, atol=1e-7)
    spectrum = covariance_spectrum(x)
    assert (spectrum.dtype, spectrum.shape) == (torch.float32, (6,))
    np.testing.assert_allclose(spectrum, np.linalg.eigvalsh(expected)[::-1], rtol=1e-5, atol=1e-6)
    assert (spectrum >= 0).all()
