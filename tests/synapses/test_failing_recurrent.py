"""FailingRNNCell and FailingRNN: against loops with explicit masks, and as drop-ins for torch's own."""

import math

import pytest
import safetensors.torch
import torch
from torch import nn

import synaptome as syn
from synaptome.conformance import check_synapse
from synaptome.errors import ConfigurationError
from synaptome.kernels import randomness

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu}
BOTH = pytest.mark.parametrize("noise", ["bernoulli", "gaussian"])
NONLINEARITY = pytest.mark.parametrize("nonlinearity", ACTIVATIONS)
FRESH = pytest.mark.parametrize("fresh", ["step", "sequence"])


@BOTH
@NONLINEARITY
@pytest.mark.parametrize("bias", [True, False])
def test_conformance_of_the_cell(bias, nonlinearity, noise):
    check_synapse(
        lambda: syn.FailingRNNCell(3, 4, bias, nonlinearity, failure=0.4, noise=noise),
        make_inputs=lambda leading: (torch.randn(*leading, 3), torch.randn(*leading, 4)),
        leading=((), (0,), (1,), (5,)),
    )


def test_parameters_are_those_of_torch_from_the_same_seed():
    for dense_class, failing_class in ((nn.RNNCell, syn.FailingRNNCell), (nn.RNN, syn.FailingRNN)):
        torch.manual_seed(3)
        dense = dense_class(3, 4)
        torch.manual_seed(3)
        failing = failing_class(3, 4, failure=0.5)
        assert dense.state_dict().keys() | {"failures.stream", "failures.counter"} == failing.state_dict().keys()
        assert all(torch.equal(p, failing.get_parameter(name)) for name, p in dense.named_parameters())


def masks(layer, batch, counter):
    key = torch.stack((layer.failures.stream, torch.tensor(counter)))
    size, rate = layer.hidden_size, layer.failures.rate
    return randomness.surviving(key, range(batch), size, size, rate) / (1 - rate)


def by_hand(layer, x, h, weights, counters):
    """`[time, batch, hidden]` with the masks of the given counters, one for each step."""
    w_ih, w_hh, b_ih, b_hh = weights
    states = []
    for step, counter in zip(x, counters, strict=True):
        recurrent = torch.einsum("boi,oi,bi->bo", masks(layer, len(h), counter).to(h), w_hh, h)
        h = ACTIVATIONS[layer.nonlinearity](step @ w_ih.T + b_ih + recurrent + b_hh)
        states.append(h)
    return torch.stack(states)


@NONLINEARITY
def test_the_cell_is_that_of_explicit_masks(nonlinearity):
    cell = syn.FailingRNNCell(3, 4, nonlinearity=nonlinearity, failure=0.375).double()
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    h = h_0 = torch.randn(2, 4, dtype=torch.float64)
    states = []
    for step in x:
        h = cell(step, h)
        states.append(h)
    torch.testing.assert_close(torch.stack(states), by_hand(cell, x, h_0, weights, range(5)))
    torch.testing.assert_close(cell(x[0]), by_hand(cell, x[:1], torch.zeros_like(h), weights, [5])[0])


def weights_of(layer):
    return layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0, layer.bias_hh_l0


@FRESH
@NONLINEARITY
def test_a_sequence_is_that_of_explicit_masks_with_its_gradients(nonlinearity, fresh):
    layer = syn.FailingRNN(3, 4, nonlinearity=nonlinearity, failure=0.375, fresh=fresh, dtype=torch.float64)
    x = torch.randn(6, 2, 3, dtype=torch.float64, requires_grad=True)
    h_0 = torch.randn(1, 2, 4, dtype=torch.float64, requires_grad=True)
    inputs = (x, h_0, *layer.parameters())
    for counters in (range(6), range(6, 12)) if fresh == "step" else ([0] * 6, [1] * 6):
        outputs, h_n = layer(x, h_0)
        expected = by_hand(layer, x, h_0[0], weights_of(layer), counters)
        torch.testing.assert_close(outputs, expected)
        assert torch.equal(h_n, outputs[-1:])
        grad = torch.randn_like(outputs)
        for mine, theirs in zip(
            torch.autograd.grad(outputs, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
        ):
            torch.testing.assert_close(mine, theirs)


@FRESH
def test_the_mean_over_passes_is_that_of_whole_passes(fresh):
    layer = syn.FailingRNN(3, 4, failure=0.375, fresh=fresh, inference="mc(3)").eval()
    x = torch.randn(5, 2, 3)
    outputs, h_n = layer(x)
    counters = [range(5 * k, 5 * k + 5) if fresh == "step" else [k] * 5 for k in range(3)]
    passes = [by_hand(layer, x, torch.zeros(2, 4), weights_of(layer), each) for each in counters]
    torch.testing.assert_close(outputs, torch.stack(passes).mean(0))
    assert torch.equal(h_n, outputs[-1:])
    cell = syn.FailingRNNCell(3, 4, failure=0.375, inference="mc(3)").eval()
    h = torch.randn(2, 4)
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    passes = [by_hand(cell, x[:1], h, weights, [k])[0] for k in range(3)]
    torch.testing.assert_close(cell(x[0], h), torch.stack(passes).mean(0))


@BOTH
@pytest.mark.parametrize("mode", ["training", "noisy", "gaussian"])
def test_mean_and_variance_of_the_recurrent_product_are_those_of_theory(mode, noise):
    """Through a rectifier that never cuts, the next state is the product and what the input adds."""
    failure, examples = 0.3, 4000
    cell = syn.FailingRNNCell(1, 20, nonlinearity="relu", failure=failure, noise=noise).double()
    with torch.no_grad():
        cell.weight_ih.fill_(100.0)
    if mode != "training":
        cell.failures.inference = mode
        cell.eval()
    x, h = torch.ones(examples, 1, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    with torch.no_grad():
        y = cell(x, h.expand(examples, -1))
    expected = 100.0 + cell.weight_hh @ h + cell.bias_ih + cell.bias_hh
    spread = failure / (1 - failure) * (cell.weight_hh**2) @ (h**2)
    assert ((y.mean(0) - expected).abs() < 5 * (spread / examples).sqrt()).all()
    # The variance of a sample variance is at most 3 sigma^4 / n for sums with kurtosis up to 4.
    assert ((y.var(0) / spread - 1).abs() < 5 * math.sqrt(3 / examples)).all()


@pytest.mark.parametrize("fresh", ["step", "sequence"])
def test_gaussian_numbers_are_kept_where_failures_are(fresh):
    """A state that the noise does not reach (the first, 0, decides) shows the normal numbers of each step."""
    layer = syn.FailingRNN(1, 1, nonlinearity="relu", bias=False, failure=0.5, noise="gaussian", fresh=fresh).double()
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1.0)
        layer.weight_hh_l0.fill_(1e-3)
    h, numbers = torch.ones(1, 1, 1, dtype=torch.float64), []
    outputs, _ = layer(torch.ones(4, 1, 1, dtype=torch.float64), h)
    for before, after in zip([h[0, 0, 0], *outputs[:-1, 0, 0]], outputs[:, 0, 0], strict=True):
        numbers.append((after - 1 - 1e-3 * before) / (1e-3 * before))  # p / (1 - p) = 1: the deviation is |w h|
    numbers = torch.stack(numbers)
    distinct = (numbers.unsqueeze(0) - numbers.unsqueeze(1)).abs().triu(1)[torch.ones(4, 4).triu(1).bool()]
    assert (distinct > 1e-6).all() if fresh == "step" else (distinct < 1e-9).all()


@NONLINEARITY
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_at_inference_it_is_torch_s_own(batch_first, bias, nonlinearity):
    dense = nn.RNN(3, 4, nonlinearity=nonlinearity, bias=bias, batch_first=batch_first)
    failing = syn.FailingRNN.from_dense(dense, failure=0.5, fresh="sequence", inference="expected", noise="gaussian")
    assert (failing.fresh, failing.failures.noise) == ("sequence", "gaussian")
    assert all(mine is theirs for mine, theirs in zip(failing.parameters(), dense.parameters(), strict=True))
    back = failing.eval().to_dense()
    assert type(back) is nn.RNN
    assert not back.training
    assert repr(back) == repr(dense)
    assert all(mine is theirs for mine, theirs in zip(back.parameters(), dense.parameters(), strict=True))
    for x, h in (
        (torch.randn(6, 2, 3), torch.randn(1, 6 if batch_first else 2, 4)),
        (torch.randn(6, 3), torch.randn(1, 4)),
    ):
        for arguments in ((x,), (x, h)):
            for mine, again, theirs in zip(failing(*arguments), back(*arguments), dense(*arguments), strict=True):
                torch.testing.assert_close(mine, theirs)
                assert torch.equal(again, theirs)
    assert failing.failures.counter.item() == 0


@FRESH
def test_state_dict_and_dense_states_round_trip(fresh):
    layer = syn.FailingRNN(3, 4, failure=0.5, fresh=fresh)
    x = torch.randn(5, 2, 3)
    layer(x)
    other = syn.FailingRNN(3, 4, failure=0.5, fresh=fresh)
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(layer.state_dict())))
    assert torch.equal(layer(x)[0], other(x)[0])
    missing, unexpected = other.load_state_dict(nn.RNN(3, 4).state_dict(), strict=False)
    assert (missing, unexpected) == (["failures.stream", "failures.counter"], [])


def test_compiled_it_gives_the_same_bits():
    layer = syn.FailingRNN(3, 4, failure=0.5, fresh="sequence")
    twin = syn.FailingRNN(3, 4, failure=0.5, fresh="sequence")
    twin.load_state_dict(layer.state_dict())
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 2, 3)
    for _ in range(2):
        assert torch.equal(layer(x)[0], compiled(x)[0])


def test_a_sequence_of_no_examples():
    outputs, h_n = syn.FailingRNN(3, 4, failure=0.5)(torch.randn(4, 0, 3))
    assert (outputs.shape, h_n.shape) == ((4, 0, 4), (1, 0, 4))


def test_predict_sees_the_cell():
    cell = syn.FailingRNNCell(3, 4, failure=0.5)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = cell

        def forward(self, x):
            return self.cell(x, self.cell(x))

    assert (syn.predict(Twice(), torch.randn(2, 3), samples=8).std > 0).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: syn.FailingRNNCell(3, 4, nonlinearity="tan", failure=0.1), "did you mean 'tanh'"),
        (lambda: syn.FailingRNN(3, 4, nonlinearity="gelu", failure=0.1), "allowed: relu, tanh"),
        (lambda: syn.FailingRNN(3, 4, failure=0.1, fresh="batch"), "unknown choice of fresh 'batch'"),
        (lambda: syn.FailingRNN(3, 4, failure=1.0), r"in \[0, 1\)"),
        (lambda: syn.FailingRNNCell(3, 4, failure=0.1)(torch.randn(2, 4)), r"x is \[batch, 3\] or \[3\]"),
        (lambda: syn.FailingRNNCell(3, 4, failure=0.1)(torch.randn(2, 2, 3)), r"given \[2, 2, 3\]"),
        (
            lambda: syn.FailingRNNCell(3, 4, failure=0.1)(torch.randn(2, 3), torch.randn(3, 4)),
            r"with x \[2, 3\] the state is \[2, 4\]; given \[3, 4\]",
        ),
        (lambda: syn.FailingRNN(3, 4, failure=0.1)(torch.randn(5, 2, 2)), r"x is \[time, batch, 3\]"),
        (
            lambda: syn.FailingRNN(3, 4, failure=0.1, batch_first=True)(torch.randn(3)),
            r"x is \[batch, time, 3\] or \[time, 3\]; given \[3\]",
        ),
        (lambda: syn.FailingRNN(3, 4, failure=0.1)(torch.randn(0, 2, 3)), "at least one time step"),
        (
            lambda: syn.FailingRNN(3, 4, failure=0.1)(torch.randn(5, 2, 3), torch.randn(2, 4)),
            r"the state is \[1, 2, 4\]; given \[2, 4\]",
        ),
        (lambda: syn.FailingRNN.from_dense(nn.RNN(3, 4, 2), failure=0.1), "one layer of one direction"),
        (lambda: syn.FailingRNN.from_dense(nn.RNN(3, 4, bidirectional=True), failure=0.1), "one direction"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()
