"""Connections, leaks and what Gershgorin's discs certify."""

import math

import pytest
import torch

from synaptome.errors import ConfigurationError
from synaptome.networks.complete import (
    LEAKS,
    Sizes,
    check_connections,
    complete_connections,
    gershgorin,
    largest_dt,
    layered_connections,
)

SIZES = Sizes(3, 4, 2)


def random_weight(networks=20, scale=1.0):
    return scale * torch.randn(networks, SIZES.neurons, SIZES.neurons).double() * complete_connections(SIZES)


def jacobian(weight, leak):
    """Of ds by s over the free neurons, by autograd."""

    def ds(free):
        state = torch.cat((torch.zeros(SIZES.inputs).double(), free))
        return (state @ weight)[SIZES.inputs :] - leak * free

    return torch.autograd.functional.jacobian(ds, torch.rand(SIZES.free).double())


def test_connections_of_a_complete_graph():
    allowed = complete_connections(SIZES)
    for i in range(SIZES.neurons):
        for j in range(SIZES.neurons):
            assert allowed[i, j] == (i != j and j >= SIZES.inputs)


@pytest.mark.parametrize("constant", [True, False])
def test_connections_between_neighbouring_layers(constant):
    allowed = layered_connections(SIZES, constant)
    layer = [0, 0, 0, 1, 1, 1, 1, 2, 2]
    for i in range(SIZES.neurons):
        for j in range(SIZES.neurons):
            neighbours = abs(layer[i] - layer[j]) == 1 and layer[j] > 0
            assert allowed[i, j] == (neighbours or (constant and i == 2 and layer[j] > 0))


def test_without_hidden_neurons_inputs_and_outputs_are_neighbours():
    sizes = Sizes(2, 0, 1)
    allowed = layered_connections(sizes, constant=False)
    assert allowed.nonzero().tolist() == [[0, 2], [1, 2]]
    check_connections(allowed, sizes)


def test_connections_that_cannot_be_are_refused():
    for i, j, what in ((4, 1, "an input"), (5, 5, "the neuron itself")):
        allowed = complete_connections(SIZES)
        allowed[i, j] = True
        with pytest.raises(ConfigurationError, match=f"given {i} to {j}, {what}"):
            check_connections(allowed, SIZES)
    with pytest.raises(ConfigurationError, match=r"bool of shape \[9, 9\]"):
        check_connections(torch.ones(3, 3, dtype=torch.bool), SIZES)
    with pytest.raises(ConfigurationError, match="at least one input and one output"):
        check_connections(torch.ones(3, 3, dtype=torch.bool), Sizes(0, 2, 1))


def test_outputs_that_no_input_reaches_are_refused():
    allowed = torch.zeros(SIZES.neurons, SIZES.neurons, dtype=torch.bool)
    for i, j in ((0, 3), (3, 4), (4, 5), (5, 6), (6, 7)):  # a path as long as there can be, to one of two outputs
        allowed[i, j] = True
    with pytest.raises(ConfigurationError, match="no path of connections leads to neuron 8"):
        check_connections(allowed, SIZES)
    allowed[7, 8] = True
    check_connections(allowed, SIZES)
    allowed[4, 5] = False
    with pytest.raises(ConfigurationError, match="neuron 7, 8"):
        check_connections(allowed, SIZES)


@pytest.mark.parametrize("leak", ["deep", "one", "certified"])
def test_gershgorin_is_of_the_jacobian(leak):
    weight = random_weight(scale=0.2)
    leaks = LEAKS[leak](weight)[:, SIZES.inputs :]
    rows, columns = gershgorin(weight, leaks, SIZES.inputs)
    for p in range(len(weight)):
        J = jacobian(weight[p], leaks[p])
        radii = J.abs() - J.diagonal().abs().diag()
        # Discs around the diagonal that lie left of 0.
        assert rows[p] == (J.diagonal() + radii.sum(1) < 0).all()
        assert columns[p] == (J.diagonal() + radii.sum(0) < 0).all()
        if rows[p] or columns[p]:
            assert torch.linalg.eigvals(J).real.max() < 0
    if leak == "one":
        assert 0 < rows.sum() < len(rows)


def test_columns_never_hold_for_the_leak_of_deep_and_always_for_the_certified_one():
    for scale in (0.01, 1.0, 100.0):
        weight = random_weight(scale=scale).abs() if scale == 1 else random_weight(scale=scale)
        deep, certified = (LEAKS[name](weight)[:, SIZES.inputs :] for name in ("deep", "certified"))
        assert not gershgorin(weight, deep, SIZES.inputs)[1].any()
        assert gershgorin(weight, certified, SIZES.inputs)[1].all()


def test_the_largest_dt_is_where_an_output_by_itself_stops_contracting():
    leak, beta = torch.tensor([[0.2, 0.7]]), 3.0
    limit = largest_dt(leak, beta)
    for dt, contracts in ((0.999 * limit, True), (1.001 * limit, False)):
        assert (abs(1 - dt * (0.7 + beta)) < 1) == contracts
    assert largest_dt(torch.tensor([[-5.0]]), 1.0) == math.inf
