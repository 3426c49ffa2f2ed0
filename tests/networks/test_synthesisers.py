"""Synthesisers."""

import pytest
import torch

from synaptome.errors import ConfigurationError
from synaptome.networks.synthesisers import INPUT_SYNTHESISERS, SYNTHESISERS, InputSynthesiser, Synthesiser

SHAPES = {"linear": (5,), "mlp": (2, 3), "convolutional": (4, 6, 5)}


@pytest.mark.parametrize("kind", SYNTHESISERS)
@pytest.mark.parametrize("classes", [0, 3])
def test_a_guess_has_the_shape_of_the_activity_and_starts_at_zero(kind, classes):
    synthesiser = Synthesiser(SHAPES[kind], classes, kind, hidden=7)
    h, labels = torch.randn(4, *SHAPES[kind]), torch.tensor([0, 1, 2, 1])
    guess = synthesiser(h, labels)
    assert guess.shape == h.shape
    assert not guess.any()
    guess.sum().backward()  # it can learn nevertheless
    assert all(parameter.grad is not None for parameter in synthesiser.parameters())
    assert synthesiser.layers[-1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", SYNTHESISERS)
@pytest.mark.parametrize("classes", [0, 3])
def test_examples_are_guessed_each_for_itself_and_by_label_if_asked(kind, classes):
    synthesiser = Synthesiser(SHAPES[kind], classes, kind)
    for parameter in synthesiser.parameters():
        torch.nn.init.normal_(parameter)
    h = torch.randn(4, *SHAPES[kind])
    some = synthesiser(h, torch.tensor([0, 1, 2, 1]))
    torch.testing.assert_close(some[1:3], synthesiser(h[1:3], torch.tensor([1, 2])))
    assert torch.equal(some, synthesiser(h, torch.tensor([1, 2, 0, 0]))) == (classes == 0)


def test_linear_is_linear_in_activity_and_label():
    synthesiser = Synthesiser((5,), 3).double()
    torch.nn.init.normal_(synthesiser.layers[0].weight)
    torch.nn.init.normal_(synthesiser.layers[0].bias)
    h, labels = torch.randn(4, 5).double(), torch.tensor([0, 1, 2, 1])
    weight, bias = synthesiser.layers[0].weight, synthesiser.layers[0].bias
    expected = h @ weight[:, :5].T + weight[:, 5:].T[labels] + bias
    torch.testing.assert_close(synthesiser(h, labels), expected)


@pytest.mark.parametrize("kind", INPUT_SYNTHESISERS)
def test_an_activity_is_guessed_from_the_input_from_zero_on(kind):
    synthesiser = InputSynthesiser((2, 3), (4, 2), kind, hidden=7)
    x = torch.randn(5, 2, 3)
    guess = synthesiser(x)
    assert guess.shape == (5, 4, 2)
    assert not guess.any()
    guess.sum().backward()
    assert synthesiser.layers[-1].bias.grad.abs().sum() > 0
    for parameter in synthesiser.parameters():
        torch.nn.init.normal_(parameter)
    torch.testing.assert_close(synthesiser(x[1:3]), synthesiser(x)[1:3])


def test_a_linear_guess_of_an_activity_finds_the_least_squares():
    synthesiser = InputSynthesiser((3,), (2,)).double()
    x, activity = torch.randn(40, 3).double(), torch.randn(40, 2).double()
    optimizer = torch.optim.LBFGS(synthesiser.parameters(), max_iter=200, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = (synthesiser(x) - activity).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    oracle = torch.linalg.lstsq(torch.cat((x, torch.ones(40, 1)), 1), activity).solution
    torch.testing.assert_close(synthesiser.layers[0].weight, oracle[:3].T, rtol=1e-6, atol=1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigurationError, match="linaer"):
        Synthesiser((5,), 3, "linaer")
    with pytest.raises(ConfigurationError, match="channels, height, width"):
        Synthesiser((5,), 3, "convolutional")
    for build in (lambda: Synthesiser((5,), 3, "mlp", hidden=0), lambda: InputSynthesiser((5,), (5,), "mlp", hidden=0)):
        with pytest.raises(ConfigurationError, match="given 0"):
            build()
    with pytest.raises(ConfigurationError, match=r"convolutional.*linear, mlp"):
        InputSynthesiser((5,), (5,), "convolutional")
