"""Equilibrium propagation in sparse directed networks: against outer products, autograd, and layered networks."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from synaptome import data
from synaptome.conformance import check_rule
from synaptome.data.dataset import Batch
from synaptome.data.indexed import IndexedBatch
from synaptome.errors import ConfigurationError
from synaptome.learning.equilibrium import EquilibriumPropagation
from synaptome.learning.evolving import Evolving
from synaptome.networks.layered import LayeredNetwork
from synaptome.networks.relaxation import Relaxation
from synaptome.networks.sparse_directed import SparseDirectedNetwork
from synaptome.networks.states import STATES
from synaptome.synapses.sparse import SparseLinear
from synaptome.synapses.sparse_recurrent import SparseRecurrent
from synaptome.topology.evolution import Evolution

LONG = Relaxation(80, 0.8)
X = torch.rand(7, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2, 1])
BETAS = (0.005, 0.01, 0.02, 0.04)


def made(seed=0, radius=0.6, bias=0.3, **options):
    torch.manual_seed(seed)
    network = SparseDirectedNetwork.random(5, 12, 3, 0.4, radius=radius, **{"relaxation": LONG, **options}).double()
    network.afferent.values.data.mul_(0.4)
    network.recurrent.values.data[network.recurrent.row_of >= 12] *= 10  # which start small
    network.afferent.bias.data.uniform_(0.5 * bias, 1.5 * bias)
    return network


def rule_of(network, **options):
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    return EquilibriumPropagation(network, optimizer, **{"nudged": network.relaxation, **options})


def estimate(rule, betas):
    batch = Batch(X, Y)
    free, drive = rule.free_phase(batch)
    rule.differentiate(batch, free.states, drive, betas)
    return {name: parameter.grad.clone() for name, parameter in rule.model.named_parameters()}


def matrix(layer):
    W = torch.zeros(layer.in_features, layer.out_features, dtype=torch.float64)
    W[layer.col, layer.row_of] = layer.values.detach()
    return W


def exact(network, sweeps=100):
    """The gradient at the equilibrium, by autograd alone through sweeps of dense products."""
    V, W, b = matrix(network.afferent), matrix(network.recurrent), network.afferent.bias.detach().clone()
    for part in (V, W, b):
        part.requires_grad_()
    s = torch.zeros(len(X), len(b), dtype=torch.float64)
    for _ in range(sweeps):
        s = network.state.function(X @ V + s @ W + b)
    cost = (F.one_hot(Y, 3) - s[:, -3:]).square().sum(1).mean() / 2
    by_V, by_W, by_b = torch.autograd.grad(cost, (V, W, b))
    afferent, recurrent = network.afferent, network.recurrent
    return {
        "afferent.values": by_V[afferent.col, afferent.row_of],
        "afferent.bias": by_b,
        "recurrent.values": by_W[recurrent.col, recurrent.row_of],
    }


def distance(first, second):
    assert first.keys() == second.keys()
    return math.sqrt(sum((first[name] - second[name]).square().sum().item() for name in first))


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("betas", [(0.4, 0.0), (-0.4, 0.0), (0.4, -0.4)])
def test_the_estimate_is_an_outer_product_at_the_connections(state, betas):
    """Scellier et al. 2018: what a neuron sends in the free phase, times what the nudge changes in another."""
    network = made(state=state, relaxation=Relaxation(15, 0.5))
    V, W, b, y = matrix(network.afferent), matrix(network.recurrent), network.afferent.bias.detach(), F.one_hot(Y, 3)

    def phase(s, steps, beta):
        for _ in range(steps):
            a = X @ V + s @ W + b
            a[:, -3:] += beta * (y - s[:, -3:])
            s = network.state.moved(s, a, 0.5)
        return s

    free = phase(torch.zeros(7, 15, dtype=torch.float64), 15, 0.0)
    plus, minus = (phase(free, 6, beta) if beta else free for beta in betas)
    change = (plus - minus) / (betas[0] - betas[1])
    found = estimate(rule_of(network, nudged=Relaxation(6, 0.5)), betas)
    afferent, recurrent = network.afferent, network.recurrent
    torch.testing.assert_close(found["recurrent.values"], -(free.T @ change / 7)[recurrent.col, recurrent.row_of])
    torch.testing.assert_close(found["afferent.values"], -(X.T @ change / 7)[afferent.col, afferent.row_of])
    torch.testing.assert_close(found["afferent.bias"], -change.mean(0))
    assert change.abs().max() > 0.05


@pytest.mark.parametrize("state", STATES)
def test_the_corrected_estimate_tends_to_the_gradient_with_the_square_of_beta_and_the_plain_one_does_not(state):
    network = made(seed=4, state=state, bias=0.45, radius=0.4)
    network.afferent.values.data.mul_(0.5)
    gradient = exact(network)
    rule = rule_of(network, corrected=True)
    if state == "hard-sigmoid":  # the orders hold where a nudge neither clips a state nor frees it
        (rest,) = rule.free_phase(Batch(X, Y))[0].states
        assert ((rest > 0.05) & (rest < 0.95)).all()
    size = math.sqrt(sum(part.square().sum().item() for part in gradient.values()))
    for betas, order in ((lambda b: (b, 0.0), 1), (lambda b: (b, -b), 2)):
        errors = torch.tensor([distance(estimate(rule, betas(beta)), gradient) for beta in BETAS]).log()
        x = torch.tensor(BETAS).log()
        x = x - x.mean()
        assert (x @ errors / (x @ x)).item() == pytest.approx(order, abs=0.1)
        assert errors[0].exp() < 0.03 * size
    assert distance(estimate(rule_of(network), (1e-3, -1e-3)), gradient) > 0.05 * size


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("state", STATES)
def test_on_the_graph_of_a_layered_network_it_is_that_network(state, corrected):
    """The same weights in both: layers of 6, 4 and 3 free neurons are one block matrix among 13."""
    torch.manual_seed(4)
    layered = LayeredNetwork((5, 6, 4, 3), state=state, symmetric=False, relaxation=Relaxation(30, 0.5)).double()
    for layer in layered.layers:
        layer.bias.data.uniform_(0, 0.4)
    first, *others = layered.layers
    V, W = nn.Linear(5, 13, dtype=torch.float64), nn.Linear(13, 13, bias=False, dtype=torch.float64)
    a, b, c = slice(0, 6), slice(6, 10), slice(10, 13)
    blocks = [(b, a, others[0]), (c, b, others[1]), (a, b, layered.feedback[0]), (b, c, layered.feedback[1])]
    with torch.no_grad():
        V.weight.zero_()[:6] = first.weight
        V.bias.copy_(torch.cat([layer.bias for layer in layered.layers]))
        W.weight.zero_()
        for rows, columns, layer in blocks:
            W.weight[rows, columns] = layer.weight
    network = SparseDirectedNetwork(
        SparseLinear.from_dense(V), SparseRecurrent.from_dense(W), 3, state=state, relaxation=layered.relaxation
    )
    torch.testing.assert_close(network(X), layered(X))
    options = {"corrected": corrected, "nudged": Relaxation(9, 0.4)}
    found, expected = (estimate(rule_of(given, **options), (0.3, -0.3)) for given in (network, layered))
    by_W = torch.zeros(13, 13, dtype=torch.float64)
    by_W[network.recurrent.row_of, network.recurrent.col] = found["recurrent.values"]
    names = {id(parameter): name for name, parameter in layered.named_parameters()}
    for rows, columns, layer in blocks:
        torch.testing.assert_close(by_W[rows, columns], expected[names[id(layer.weight)]])
    torch.testing.assert_close(found["afferent.values"].view(6, 5), expected["layers.0.weight"])
    torch.testing.assert_close(found["afferent.bias"], torch.cat([expected[f"layers.{i}.bias"] for i in range(3)]))


def batch_of(index):
    generator = torch.Generator().manual_seed(index)
    x = torch.rand(30, 6, generator=generator)
    return Batch(x, x[:, :3].argmax(1))


def kept_batch(index):
    chosen = torch.randperm(30, generator=torch.Generator().manual_seed(index))[:20]
    whole = batch_of(1000)
    return IndexedBatch(whole.inputs[chosen], whole.targets[chosen], chosen)


@pytest.mark.parametrize(
    ("options", "batches"),
    [
        ({"nudging": "one-sided"}, batch_of),
        ({"nudging": "random-sign"}, batch_of),
        ({"nudging": "centered", "corrected": True}, batch_of),
        ({"nudging": "centered", "examples": 30}, kept_batch),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
@pytest.mark.parametrize("state", STATES)
def test_conformance(options, batches, state):
    def make():
        tolerance = 1e-4 if options["nudging"] == "one-sided" else None
        network = SparseDirectedNetwork.random(
            6, 25, 3, 0.4, state=state, radius=0.3, relaxation=Relaxation(20, 0.6, tolerance)
        )
        nn.init.constant_(network.afferent.bias, 0.2)
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.5)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
        return EquilibriumPropagation(network, optimizer, scheduler=scheduler, **{"beta": 0.3, **options})

    check_rule(make, batches)


def test_digits_are_learned_far_above_chance():
    torch.manual_seed(0)
    digits = data.load("digits", normalise=False)
    network = SparseDirectedNetwork.random(64, 190, 10, 0.15, relaxation=Relaxation(12, 0.7))
    rule = EquilibriumPropagation(
        network,
        torch.optim.SGD(network.parameters(), 0.1, momentum=0.9),
        nudging="centered",
        nudged=Relaxation(6, 0.7),
        corrected=True,
    )
    for _ in range(5):
        for index in torch.randperm(len(digits.train)).split(20):
            rule.step(Batch(*digits.train[index]))
    assert rule.evaluate(digits.test[slice(0, len(digits.test))])["accuracy"] > 0.8  # of a chance of 0.1


def test_cross_entropy_needs_a_readout_which_there_is_none_of():
    with pytest.raises(ConfigurationError, match="given cross-entropy and a network without a read-out"):
        rule_of(made(), cost="cross-entropy")


def test_its_connections_evolve_while_it_learns():
    """SET (Mocanu et al. 2018) under equilibrium propagation: connections move, their number and the protocol stay."""

    def make():
        network = SparseDirectedNetwork.random(6, 25, 3, 0.4, radius=0.3, relaxation=Relaxation(15, 0.7))
        optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.5)
        rule = EquilibriumPropagation(network, optimizer, nudging="centered", corrected=True)
        return Evolving(rule, Evolution(network, optimizer, drop="set", fraction=0.3, every=7))

    check_rule(make, batch_of)
    rule = make()
    before = rule.model.recurrent.nnz, rule.model.recurrent.to_dense().weight != 0
    for number in range(7):
        rule.step(batch_of(number))
    assert rule.replaced > 50
    assert rule.model.recurrent.nnz == before[0]
    assert not torch.equal(rule.model.recurrent.to_dense().weight != 0, before[1])
