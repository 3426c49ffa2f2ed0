"""Parallel variable distribution against linear algebra, the plain solvers, and what its theorems say."""

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

import synaptome.learning.distribution as distribution
from synaptome import data
from synaptome.conformance import check_rule
from synaptome.data.dataset import Batch
from synaptome.errors import ConfigurationError, NumericError
from synaptome.learning.distribution import ParallelVariableDistribution
from synaptome.learning.distribution_blocks import Partition, by_layers, by_parameters
from synaptome.learning.distribution_objective import Objective, cut_before
from synaptome.learning.distribution_synchronise import synchronise
from synaptome.learning.distribution_worker import ARMIJO, InnerSolver, Start, work
from synaptome.learning.loss import LOSSES
from synaptome.networks.feedforward import FeedForward
from synaptome.networks.stable import StableNetwork
from synaptome.synapses.failing import FailingLinear
from synaptome.synapses.sparse import SparseLinear

ADAM = InnerSolver("adam", steps=10, rate=0.01)
SUM = LOSSES["summed-squared-error"]


class Quadratic(nn.Module):
    """Least squares: `f = ||sum_s A_s x_s - b||²`, a block s for each of the parameters x_s."""

    def __init__(self, *widths):
        super().__init__()
        self.x = nn.ParameterList(torch.randn(width, dtype=torch.float64) for width in widths)

    def forward(self, inputs):
        return (inputs @ torch.cat(list(self.x))).unsqueeze(1)


def quadratic(widths, correlation=0.0, examples=40):
    """A network of that kind with its batch; columns have variance 1 and share that part of it."""
    model = Quadratic(*widths)
    common, own = (torch.randn(examples, n, dtype=torch.float64) for n in (1, sum(widths)))
    inputs = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
    return model, Batch(inputs, torch.randn(examples, 1, dtype=torch.float64))


def started(model, batch, loss=SUM, forget_me_not=True):
    """What each worker begins with, by autograd of the model itself."""
    model.zero_grad()
    f = loss.objective(loss.per_example(model(batch.inputs), batch.targets))
    f.backward()
    gradient = {name: each.grad.clone() for name, each in model.named_parameters()}
    values = {name: each.detach().clone() for name, each in model.named_parameters()}
    directions = {name: -each for name, each in gradient.items()} if forget_me_not else None
    return Start(values, f.item(), gradient, directions)


def residual(columns, offset, targets):
    """The least value of `||offset + columns z - targets||²` over z."""
    solution = torch.linalg.lstsq(columns, targets - offset).solution
    return (columns @ solution + offset - targets).square().sum().item()


def roll(**options):
    """The swiss roll, and a stable network for it."""
    given = {"dynamics": "verlet", "width": 6, "depth": 8, "time": 6.0, "opening": "learned"}
    return StableNetwork(2, 2, **{**given, **options}), data.load("swiss-roll", seed=0).train[slice(None)]


def loss_of(model, batch):
    with torch.no_grad():
        return nn.functional.cross_entropy(model(batch.inputs), batch.targets).item()


@pytest.mark.parametrize("forget_me_not", [True, False])
def test_a_worker_solves_its_subproblem_as_linear_algebra_does(forget_me_not):
    model, batch = quadratic((3, 4, 2), correlation=0.3)
    partition = Partition(model, by_parameters(model, [[each] for each in model.x]))
    start = started(model, batch, forget_me_not=forget_me_not)
    parts = batch.inputs.split([3, 4, 2], 1)
    solver = InnerSolver(steps=60)
    for block in range(3):
        found = work(partition, Objective.of(model, SUM, batch), start, block, solver, 1e-6)
        others = [s for s in range(3) if s != block]
        along = [(parts[s] @ -start.gradient[f"x.{s}"]).unsqueeze(1) for s in others if forget_me_not]
        fixed = sum(parts[s] @ start.values[f"x.{s}"] for s in others).unsqueeze(1)
        exact = residual(torch.cat([parts[block], *along], 1), fixed, batch.targets)
        assert found.objective == pytest.approx(exact, rel=1e-6)
        assert found.mu[block] == 0
        assert bool(found.mu.any()) is forget_me_not
        moved = [
            found.pieces[0] if s == block else start.values[f"x.{s}"] - found.mu[s] * start.gradient[f"x.{s}"]
            for s in range(3)
        ]
        there = (batch.inputs @ torch.cat(moved) - batch.targets.squeeze(1)).square().sum().item()
        assert there == pytest.approx(found.objective, rel=1e-12)


@pytest.mark.parametrize("forget_me_not", [True, False])
def test_the_hull_is_searched_as_linear_algebra_does(forget_me_not):
    model, batch = quadratic((3, 4, 2), correlation=0.3)
    partition = Partition(model, by_parameters(model, [[each] for each in model.x]))
    start = started(model, batch, forget_me_not=forget_me_not)
    objective = Objective.of(model, SUM, batch)
    points = [work(partition, objective, start, block, InnerSolver(steps=3), 1e-6) for block in range(3)]
    at = []
    for block, point in enumerate(points):
        pieces = [start.values[f"x.{s}"] - point.mu[s] * start.gradient[f"x.{s}"] for s in range(3)]
        pieces[block] = point.pieces[0]
        at.append(torch.cat(pieces))
    x = torch.cat([start.values[f"x.{s}"] for s in range(3)])
    columns = torch.stack([batch.inputs @ (each - x) for each in at], 1)
    exact = residual(columns, (batch.inputs @ x).unsqueeze(1), batch.targets)
    found = synchronise(partition, objective, start, points, "hull")
    assert found.taken == "hull"
    assert found.objective == pytest.approx(exact, rel=1e-6)
    assert objective(found.values).item() == pytest.approx(found.objective, rel=1e-12)
    best = synchronise(partition, objective, start, points, "best")
    assert best.objective == pytest.approx(min(point.objective for point in points), rel=1e-12)
    assert best.objective > found.objective


@pytest.mark.parametrize("synchronisation", ["hull", "best"])
@pytest.mark.parametrize("forget_me_not", [True, False])
def test_a_convex_problem_is_solved(forget_me_not, synchronisation):
    model, batch = quadratic((3, 4, 2), correlation=0.3)
    rule = ParallelVariableDistribution(
        model,
        by_parameters(model, [[each] for each in model.x]),
        SUM,
        synchronisation=synchronisation,
        forget_me_not=forget_me_not,
    )
    for _ in range(100):
        rule.step(batch)
    least = residual(batch.inputs, torch.zeros_like(batch.targets), batch.targets)
    assert rule.evaluate(batch)["loss"] * len(batch.targets) == pytest.approx(least, rel=1e-6)


def added_up(rule, batch):
    """Negative control: x plus the updates of all workers, what synchronisation is there to avoid."""
    start = started(rule.model, batch, rule.loss, rule.forget_me_not)
    objective = Objective.of(rule.model, rule.loss, batch)
    count = len(rule.partition.blocks)
    points = [work(rule.partition, objective, start, block, rule.solver, rule.sufficient) for block in range(count)]
    assert all(point.objective < start.objective for point in points)  # each of them is a good one
    values = start.values
    for block, point in enumerate(points):
        values = rule.partition.put(values, block, point.pieces)
    rule.partition.install(values)


def test_adding_up_all_updates_diverges():
    # Exact block minimisers added up are a Jacobi iteration: for a correlation c of 4 columns its spectral radius is
    # about 3 c, above 1.
    model, batch = quadratic((1, 1, 1, 1), correlation=0.9)
    blocks = by_parameters(model, [[each] for each in model.x])
    rule = ParallelVariableDistribution(model, blocks, SUM, forget_me_not=False)
    losses = []
    for _ in range(12):
        losses.append(rule.evaluate(batch)["loss"])
        added_up(rule, batch)
    assert all(later > 2 * earlier for earlier, later in pairwise(losses[2:]))
    assert losses[-1] > 1e3 * losses[0]
    reports = [rule.step(batch) for _ in range(10)]  # from that far out the same workers, synchronised, come back
    assert reports[-1]["after"] < losses[0]


def test_adding_up_all_updates_of_a_deep_network_increases_its_loss():
    network, batch = roll()
    rule = ParallelVariableDistribution(network, by_layers(network, 4), forget_me_not=False)
    twin = copy.deepcopy(network)
    synchronised = ParallelVariableDistribution(twin, by_layers(twin, 4), forget_me_not=False)
    start = loss_of(network, batch)
    for _ in range(6):
        added_up(rule, batch)
        synchronised.step(batch)
    assert loss_of(network, batch) > start
    assert loss_of(twin, batch) < 0.8 * start


def networks():
    image = FeedForward([2, 8, 8, 8, 2], activation="tanh")
    plain = nn.Sequential(nn.Linear(2, 9), nn.Tanh(), nn.Linear(9, 9), nn.BatchNorm1d(9), nn.Tanh(), nn.Linear(9, 2))
    return {"stable": roll()[0], "controls": roll(controls=4)[0], "feed-forward": image, "sequential": plain}


@pytest.mark.parametrize("solver", [InnerSolver(steps=6), ADAM], ids=["lbfgs", "adam"])
@pytest.mark.parametrize(
    ("synchronisation", "forget_me_not", "count"),
    [("hull", True, 3), ("hull", False, 2), ("best", True, 2), ("best", False, 3), ("hull", True, 1)],
)
@pytest.mark.parametrize("kind", ["stable", "controls", "feed-forward", "sequential"])
def test_the_loss_never_rises(kind, synchronisation, forget_me_not, count, solver):
    network, batch = networks()[kind], roll()[1]
    rule = ParallelVariableDistribution(
        network,
        by_layers(network, count),
        solver=solver,
        synchronisation=synchronisation,
        forget_me_not=forget_me_not,
    )
    losses = [loss_of(network.train(), batch)]
    for _ in range(4):
        report = rule.step(batch)
        losses.append(loss_of(network, batch))
        assert report["loss"] == pytest.approx(losses[-2], rel=1e-5)
        assert report["after"] == pytest.approx(losses[-1], rel=1e-5)
        assert report["decrease"] == report["loss"] - report["after"] >= 0
        assert sum(value for key, value in report.items() if key.startswith("taken/")) == 1
        assert report["taken/hull"] == 0 or (synchronisation == "hull" and count > 1)
    assert all(later <= earlier for earlier, later in pairwise(losses))
    assert losses[-1] < 0.99 * losses[0]


@pytest.mark.parametrize("name", ["lbfgs", "adam"])
@pytest.mark.parametrize("kind", ["stable", "feed-forward", "sequential"])
def test_one_block_is_the_plain_solver_to_the_bit(kind, name):
    torch.manual_seed(3)
    network, batch = networks()[kind], roll()[1]
    torch.manual_seed(3)
    plain = networks()[kind]
    solver = InnerSolver("lbfgs", steps=8) if name == "lbfgs" else InnerSolver("adam", steps=8, rate=1e-3)
    rule = ParallelVariableDistribution(network, by_layers(network, 1), solver=solver)
    for _ in range(4):
        report = rule.step(batch)
        if name == "lbfgs":
            optimizer = torch.optim.LBFGS(
                plain.parameters(), max_iter=8, max_eval=16, history_size=8, line_search_fn="strong_wolfe"
            )
        else:
            optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)

        def closure(optimizer=optimizer):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(plain(batch.inputs), batch.targets, reduction="none").mean()
            loss.backward()
            return loss

        for _ in range(1 if name == "lbfgs" else 8):
            optimizer.step(closure)
        assert report["taken/worker-1"] == 1
        for mine, theirs in zip(network.parameters(), plain.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_a_solver_that_fails_is_replaced_by_a_step_of_armijo():
    model, batch = quadratic((3, 4), correlation=0.3)
    partition = Partition(model, by_parameters(model, [[each] for each in model.x]))
    start = started(model, batch)
    objective = Objective.of(model, SUM, batch)
    for wild in (InnerSolver("adam", steps=3, rate=1e3), InnerSolver("adam", steps=3, rate=1e200)):
        found = work(partition, objective, start, 0, wild, 1e-6)
        slope = start.gradient["x.0"]
        step = 1.0
        while True:  # the first of 1, 1/2, 1/4, ... that has Armijo's decrease
            there = torch.cat([start.values["x.0"] - step * slope, start.values["x.1"]])
            reached = (batch.inputs @ there - batch.targets.squeeze(1)).square().sum().item()
            if reached <= start.objective - ARMIJO * step * slope.square().sum().item():
                break
            step /= 2
        assert step < 1
        assert found.objective == pytest.approx(reached, rel=1e-12)
        torch.testing.assert_close(found.pieces[0], there[:3])
        assert not found.mu.any()
    # What the solver found is kept where it is better than that step, though it is less than was asked for.
    solved = work(partition, objective, start, 0, InnerSolver(steps=60), 0.0)
    assert work(partition, objective, start, 0, InnerSolver(steps=60), 1e9).objective == solved.objective
    # Where nothing decreases, the worker stays.
    still = replace(start, gradient={name: -each for name, each in start.gradient.items()}, directions=None)
    stayed = work(partition, objective, still, 0, InnerSolver("adam", steps=1, rate=1e3), 1e-6)
    assert stayed.objective == start.objective
    assert torch.equal(stayed.pieces[0], start.values["x.0"])


def test_wild_workers_never_harm_the_network():
    network, batch = roll()
    rule = ParallelVariableDistribution(network, by_layers(network, 2), solver=InnerSolver("adam", steps=2, rate=1e30))
    losses = [rule.step(batch)["after"] for _ in range(4)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["stable", "controls", "pad", "feed-forward", "sequential", "convolutional"])
def test_what_lies_before_a_block_is_computed_once_and_gives_the_same(kind):
    batch = roll()[1]
    if kind == "convolutional":
        network = StableNetwork((1, 4, 4), 2, dynamics="leapfrog", width=3, depth=6, time=3.0)
        batch = Batch(torch.randn(8, 1, 4, 4), torch.arange(8) % 2)
    else:
        network = roll(opening="pad")[0] if kind == "pad" else networks()[kind]
    blocks = by_layers(network, 3)
    assert cut_before(network, blocks[0]) is None
    partition = Partition(network, blocks)
    start = started(network, batch, LOSSES["cross-entropy"], forget_me_not=False)
    objective = Objective.of(network, LOSSES["cross-entropy"], batch)
    first = []
    opening = network.opening if isinstance(network, StableNetwork) else next(iter(network.children()))
    (opening[0] if isinstance(opening, nn.ModuleList) else opening).register_forward_hook(lambda *_: first.append(1))
    for block in (1, 2):
        cut = cut_before(network, blocks[block])
        assert cut is not None
        uncached = work(partition, objective, start, block, InnerSolver(steps=4), 1e-6)
        first.clear()
        cached = work(partition, objective, start, block, InnerSolver(steps=4), 1e-6, cut)
        assert len(first) == 1
        assert cached.evaluations == uncached.evaluations > 4
        assert cached.objective == pytest.approx(uncached.objective, rel=1e-4)
        for mine, theirs in zip(cached.pieces, uncached.pieces, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_a_cut_lies_right_before_the_first_layer_that_a_block_acts_on():
    network, batch = roll(controls=4)
    for control in range(1, 4):
        block = by_layers(network, 6)[1 + control]  # opening, four controls, classifier
        assert block == tuple(replace(piece, rows=(control, control + 1)) for piece in block)
        cut = cut_before(network, block)
        before = cut.before(network, batch.inputs)
        outputs = network(batch.inputs)
        torch.testing.assert_close(cut.after(network, before), outputs)
        with torch.no_grad():
            network.weight[control] += 0.1
        assert torch.equal(cut.before(network, batch.inputs), before)
        layer = 2 * (control - 1) + 1  # halfway from the control before it
        assert torch.equal(before, network(batch.inputs, stop=layer))
        assert not torch.allclose(network(batch.inputs, stop=layer + 1), cut.after(network, before)[:, :1])


def test_only_networks_whose_order_of_layers_is_known_are_cut():
    class Twice(nn.Sequential):
        def forward(self, x):
            return super().forward(super().forward(x))

    for network in (Twice(nn.Linear(2, 2), nn.Linear(2, 2)), Quadratic(2, 2)):
        assert cut_before(network, by_parameters(network, [[list(network.parameters())[-1]]])[0]) is None
    shared = nn.Linear(3, 3)
    network = nn.Sequential(shared, nn.Tanh(), nn.Linear(3, 3), shared)
    assert cut_before(network, by_parameters(network, [shared.parameters()])[0]) is None


def test_synapses_that_fail_do_so_as_in_one_pass():
    network = nn.Sequential(FailingLinear(2, 20, failure=0.3), nn.Tanh(), SparseLinear(20, 20, density=0.3))
    network.extend([nn.Tanh(), FailingLinear(20, 2, failure=0.3)])
    batch = roll()[1]
    counters = [(name, buffer) for name, buffer in network.named_buffers() if buffer.dim() == 0 and "count" in name]
    assert len(counters) == 2
    for forget_me_not in (True, False):
        rule = ParallelVariableDistribution(network, by_layers(network, 3), forget_me_not=forget_me_not)
        for _ in range(4):
            before = {name: buffer.clone() for name, buffer in network.named_buffers()}
            report = rule.step(batch)
            assert report["decrease"] > 0
            assert all(buffer == before[name] + 1 for name, buffer in counters)
            # With these very failures the loss after the step is what is reported.
            state = {name: buffer.clone() for name, buffer in network.named_buffers()}
            for name, buffer in network.named_buffers():
                buffer.copy_(before[name])
            assert loss_of(network, batch) == pytest.approx(report["after"], rel=1e-6)
            for name, buffer in network.named_buffers():
                assert torch.equal(buffer, state[name])


def test_evaluations_are_all_passes_of_workers_and_synchronisation():
    network, batch = networks()["feed-forward"], roll()[1]
    passes = []
    network.register_forward_hook(lambda *_: passes.append(1))
    for synchronisation in ("hull", "best"):
        rule = ParallelVariableDistribution(network, by_layers(network, 2), synchronisation=synchronisation)
        passes.clear()
        report = rule.step(batch)
        # Beside them: the start with its gradient, once more for comparison, and the new point in the model itself.
        assert report["evaluations"] == len(passes) - 3


def test_the_step_reports_which_point_was_taken():
    network, batch = roll()
    taken = set()
    for synchronisation in ("hull", "best"):
        rule = ParallelVariableDistribution(network, by_layers(network, 2), synchronisation=synchronisation)
        for _ in range(6):
            report = rule.step(batch)
            assert {key for key in report if key.startswith("taken/")} == {
                f"taken/{name}" for name in ("hull", "worker-1", "worker-2", "none")
            }
            taken |= {key for key, value in report.items() if key.startswith("taken/") and value}
    assert {"taken/hull", "taken/worker-2"} <= taken


@pytest.mark.parametrize("synchronisation", ["hull", "best"])
@pytest.mark.parametrize("kind", ["stable", "feed-forward"])
def test_the_rule_keeps_its_promises(kind, synchronisation):
    batch = roll()[1]

    def make():
        network = networks()[kind]
        return ParallelVariableDistribution(
            network, by_layers(network, 2), solver=InnerSolver(steps=3), synchronisation=synchronisation
        )

    check_rule(make, lambda i: Batch(batch.inputs[i % 2 :: 2], batch.targets[i % 2 :: 2]), steps=6)


def test_a_loss_that_is_not_finite_changes_nothing():
    network, batch = roll()
    rule = ParallelVariableDistribution(network, by_layers(network, 2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(NumericError, match="the loss is nan"):
        rule.step(Batch(batch.inputs * math.nan, batch.targets))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    infinite = Quadratic(1, 1)
    with torch.no_grad():
        infinite.x[0].fill_(1e-50)
    rule = ParallelVariableDistribution(infinite, by_parameters(infinite, [[each] for each in infinite.x]), SUM)
    inputs = torch.tensor([[1e200, 0.0]], dtype=torch.float64)
    with pytest.raises(NumericError, match="but its gradient is not finite"):
        rule.step(Batch(inputs, torch.zeros(1, 1, dtype=torch.float64)))


def count_pass(module, inputs):
    module.passes.add_(1)


def test_a_rise_is_found_and_undone(monkeypatch):
    network, batch = roll()
    network.register_buffer("passes", torch.zeros(()))
    network.register_forward_pre_hook(count_pass)
    rule = ParallelVariableDistribution(network, by_layers(network, 2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def wrong(partition, objective, start, points, how):
        found = synchronise(partition, objective, start, points, how)
        return replace(found, values={name: 3 * value for name, value in found.values.items()})

    monkeypatch.setattr(distribution, "synchronise", wrong)
    with pytest.raises(NumericError, match=r"in a step that must not increase it, .* the step was undone"):
        rule.step(batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_noise_without_a_counter_is_refused():
    network = nn.Sequential(nn.Linear(2, 20), nn.Dropout(), nn.Linear(20, 2))
    rule = ParallelVariableDistribution(network, by_layers(network, 2))
    with pytest.raises(ConfigurationError, match=r"at one pass and .* such as FailingLinear"):
        rule.step(roll()[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"synchronisation": "sum"}, "unknown synchronisation 'sum'"),
        ({"loss": "huber"}, "unknown loss 'huber'"),
        ({"sufficient": -1.0}, "at least 0; given -1.0"),
        ({"sufficient": math.nan}, "given nan"),
    ],
)
def test_what_does_not_exist(options, message):
    network = networks()["feed-forward"]
    with pytest.raises(ConfigurationError, match=message):
        ParallelVariableDistribution(network, by_layers(network, 2), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "newton"}, "unknown inner solver 'newton'"),
        ({"steps": 0}, "given 0 steps at the rate 1.0"),
        ({"rate": 0.0}, "at the rate 0.0"),
        ({"rate": math.nan}, "at the rate nan"),
    ],
)
def test_solvers_that_do_not_exist(options, message):
    with pytest.raises(ConfigurationError, match=message):
        InnerSolver(**options)
