"""The changes of synapses against their definitions as loops over patterns and time."""

import numpy as np
import pytest
import torch

from synaptome.errors import ConfigurationError
from synaptome.learning.plasticity import Plasticity, contrasted_changes, telescoped_changes


def test_contrasted_changes():
    sent, free, nudged = torch.rand(3, 2, 4, 5).double()
    changes = contrasted_changes(sent, free, nudged, 0.3)
    for p in range(2):
        for m in range(4):
            expected = np.outer(sent[p, m], (nudged - free)[p, m] / 0.3)
            np.testing.assert_allclose(changes[p, m], expected, atol=1e-14)


def test_no_nudge_no_change():
    sent, state = torch.rand(2, 1, 4, 5).double()
    assert contrasted_changes(sent, state, state, 0.3).count_nonzero() == 0
    assert telescoped_changes(state, state, 10, 1.0).count_nonzero() == 0


def test_a_bias_changes_as_the_weight_of_an_input_that_is_1():
    """The sum over time of its changes telescopes."""
    trajectory = torch.rand(11, 1, 4, 5).double()
    trajectory[..., 0] = 1
    trace = torch.einsum("tpmi,tpmj->pmij", trajectory[1:], 0.7 * (trajectory[1:] - trajectory[:-1]))
    biases = telescoped_changes(trajectory[0], trajectory[-1], 10, 0.7)
    torch.testing.assert_close(trace[:, :, 0] / 10, biases, rtol=0, atol=1e-15)


def test_rates_decay():
    plasticity = Plasticity(rate=8.0, decay=0.5)
    assert [plasticity.rate_of(epoch) for epoch in (0, 2, 6)] == [8.0, 4.0, 2.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "hebb"}, "unknown rule 'hebb'"),
        ({"nudging": "both"}, "unknown nudging"),
        ({"beta": 0.0}, "beta is how strongly outputs are nudged.*nothing would be learned; given 0.0"),
        ({"beta": float("inf")}, "a finite number other than 0"),
        ({"rate": 0.0}, "rate is a finite number above 0"),
        ({"rate": float("nan")}, "rate is a finite number above 0"),
        ({"steps": 0}, "steps at least 1"),
        ({"decay": -1.0}, "decay and l1 are finite numbers of at least 0"),
        ({"l1": float("inf")}, "decay and l1"),
        ({"margin": 0.6}, r"in \[0, 0.5\]"),
        ({"beta_0": 1.0, "nudging": "centered"}, "one-sided nudging only"),
    ],
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Plasticity(**options)
