"""Drop rules against sorting in plain Python, ties included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from synaptome.errors import ConfigurationError
from synaptome.topology.drop import DROPS, smallest

# Few different values, so that ties are the rule; both zeros among them.
weights = st.lists(st.sampled_from([-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 3.0]), max_size=30)


def nearest(values, indices, count):
    return set(sorted(indices, key=lambda i: (abs(values[i]), i))[:count])


@given(weights, st.floats(0, 1))
def test_magnitude_drops_the_nearest_to_zero(values, fraction):
    dropped = DROPS["magnitude"](torch.tensor(values), None, fraction, len(values))
    assert set(dropped.nonzero().view(-1).tolist()) == nearest(
        values, range(len(values)), round(fraction * len(values))
    )


@given(weights, st.floats(0, 1))
def test_set_drops_the_nearest_to_zero_of_each_sign(values, fraction):
    dropped = DROPS["set"](torch.tensor(values), None, fraction, len(values))
    positive = [i for i, v in enumerate(values) if v >= 0]
    negative = [i for i, v in enumerate(values) if v < 0]
    expected = nearest(values, positive, round(fraction * len(positive)))
    expected |= nearest(values, negative, round(fraction * len(negative)))
    assert set(dropped.nonzero().view(-1).tolist()) == expected


def test_taylor_drops_what_changes_the_loss_least():
    torch.manual_seed(1)
    values = torch.randn(40, dtype=torch.float64, requires_grad=True)
    loss = (values * torch.randn(40, dtype=torch.float64)).sum().tanh()
    (gradient,) = torch.autograd.grad(loss, values)
    dropped = DROPS["taylor"](values.detach(), gradient, 0.25, 40)
    change = []
    for i in range(40):
        # The first-order change of the loss as connection i shrinks to nothing, by a finite difference.
        step = torch.zeros_like(gradient)
        step[i] = 1e-6 * values[i].detach()
        change.append(abs(float(gradient @ step)))
    assert set(dropped.nonzero().view(-1).tolist()) == set(sorted(range(40), key=change.__getitem__)[:10])
    with pytest.raises(ConfigurationError, match=r"needs the gradient of the last optimizer step.* after backward"):
        DROPS["taylor"](values.detach(), None, 0.25, 40)


@pytest.mark.parametrize("rule", DROPS)
def test_no_more_are_dropped_than_allowed(rule):
    values = torch.linspace(-1, 1, 20)
    assert int(DROPS[rule](values, values, 0.9, 3).sum()) == 3
    assert int(DROPS[rule](values, values, 0.9, 0).sum()) == 0


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, float("inf")]), min_size=1, max_size=12), st.data())
def test_of_equal_scores_the_first_is_chosen(scores, data):
    count = data.draw(st.integers(0, len(scores)))
    chosen = smallest(torch.tensor(scores), count)
    expected = sorted(range(len(scores)), key=lambda i: (scores[i], i))[:count]
    assert chosen.nonzero().view(-1).tolist() == sorted(expected)
