"""Thousands of random steps of learning, evolving, saving and loading, against a dictionary of edges.

All weights and inputs are small binary fractions and the learning rate is 0, so every gradient is exact and equal
scores are the rule: what is dropped, and what grows by gradient, must be exactly what sorting in Python says.
"""

import copy

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

from synaptome.nested import put_together, take_apart
from synaptome.synapses.sparse import SparseLinear
from synaptome.topology.evolution import Evolution

SHAPES = {"0": (6, 5), "2": (4, 6)}  # out, in
WEIGHTS = (-2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 2.0)
seeds = st.integers(0, 2**31)


class Evolving(RuleBasedStateMachine):
    grow = "random"

    def __init__(self):
        super().__init__()
        self.snapshot = None

    @initialize(
        nnz=st.tuples(st.integers(0, 30), st.integers(0, 24)),
        drop=st.sampled_from(["magnitude", "set", "taylor"]),
        fraction=st.sampled_from([0.1, 0.3, 0.5, 1.0]),
        every=st.integers(1, 3),
        redistribute=st.sampled_from([None, None, "momentum"]),
        initial=st.sampled_from([0.0, 0.25]),
        seed=seeds,
    )
    def start(self, nnz, seed, **options):
        self.options = options | {"grow": self.grow, "track_visited": True, "seed": seed}
        self.nnz = sum(nnz)
        self.make(nnz)
        self.steps = 0
        self.edges = {name: self.read(name) for name in SHAPES}
        self.visited = {name: set(self.edges[name]) for name in SHAPES}

    def make(self, nnz):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            SparseLinear(5, 6, False, nnz=nnz[0]), nn.ReLU(), SparseLinear(6, 4, False, nnz=nnz[1])
        )
        for name in SHAPES:
            values = self.layer(name).values
            values.data = torch.tensor(WEIGHTS)[torch.randint(len(WEIGHTS), values.shape)]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.0)
        self.evolution = Evolution(self.model, self.optimizer, **self.options)

    def layer(self, name):
        return self.model.get_submodule(name)

    def read(self, name):
        """Each edge with its weight and the optimizer's two moments."""
        layer = self.layer(name)
        state = self.optimizer.state.get(layer.values, {})
        zeros = torch.zeros(len(layer.values))
        columns = (layer.values.detach(), state.get("exp_avg", zeros), state.get("exp_avg_sq", zeros))
        places = list(zip(layer.row_of.tolist(), layer.col.tolist(), strict=True))
        assert len(set(places)) == len(places)
        return dict(zip(places, zip(*(column.tolist() for column in columns), strict=True), strict=True))

    @rule(seed=seeds)
    def set_weights(self, seed):
        torch.manual_seed(seed)
        for name in SHAPES:
            values = self.layer(name).values
            values.data.copy_(torch.tensor(WEIGHTS)[torch.randint(len(WEIGHTS), values.shape)])
            new = dict(zip(self.edges[name], values.tolist(), strict=True))
            self.edges[name] = {place: (new[place], *state[1:]) for place, state in self.edges[name].items()}

    @rule(seed=seeds, times=st.integers(1, 9))
    def learn_and_evolve(self, seed, times):
        torch.manual_seed(seed)
        for _ in range(times):
            self.learn_and_evolve_once()

    def learn_and_evolve_once(self):
        x = torch.randint(-1, 2, (3, 5)).float()
        gradients = self.dense_gradients(x)
        self.optimizer.zero_grad()
        self.model(x).square().sum().backward()
        self.optimizer.step()
        before = {}
        for name in SHAPES:
            read = self.read(name)
            assert list(read) == list(self.edges[name])
            assert [edge[0] for edge in read.values()] == [edge[0] for edge in self.edges[name].values()]
            before[name] = read
        self.steps += 1
        replaced = self.evolution.step()
        self.edges = {name: self.read(name) for name in SHAPES}
        if self.steps % self.options["every"]:
            assert replaced == 0
            assert self.edges == before
            return
        for name, (rows, columns) in SHAPES.items():
            was, now = before[name], self.edges[name]
            dropped = self.expected_drop(was, gradients[name], rows * columns)
            assert was.keys() - now.keys() == dropped
            assert all(now[place] == was[place] for place in now.keys() & was.keys())
            grown = now.keys() - was.keys()
            assert all(now[place] == (self.options["initial"], 0.0, 0.0) for place in grown)
            assert self.options["redistribute"] or len(grown) == len(dropped)
            replaced -= len(grown)
            places = [(r, c) for r in range(rows) for c in range(columns)]
            if self.options["grow"] == "gradient":
                empty = [place for place in places if place not in was]
                assert grown == set(sorted(empty, key=lambda p, g=gradients[name]: (-abs(g[p]), p))[: len(grown)])
            if self.options["grow"] == "random-unfired":
                never = set(places) - self.visited[name]
                assert grown <= never or never <= grown
            self.visited[name] |= grown
        assert replaced == 0

    def expected_drop(self, was, gradient, places):
        def smallest(edges, most):
            def score(place):
                weight = was[place][0]
                return abs(weight * float(gradient[place])) if self.options["drop"] == "taylor" else abs(weight)

            return set(sorted(edges, key=lambda place: (score(place), place))[:most])

        room = places - len(was)
        fraction = min(self.options["fraction"], room / max(1, len(was)))
        if self.options["drop"] != "set":
            return smallest(was, min(room, round(fraction * len(was))))
        positive = [place for place, edge in was.items() if edge[0] >= 0]
        negative = [place for place, edge in was.items() if edge[0] < 0]
        gone = smallest(positive, min(room, round(fraction * len(positive))))
        return gone | smallest(negative, min(room - len(gone), round(fraction * len(negative))))

    def dense_gradients(self, x):
        full = {name: self.layer(name).to_dense().weight.detach().requires_grad_() for name in SHAPES}
        ((x @ full["0"].mT).relu() @ full["2"].mT).square().sum().backward()
        return {name: weight.grad for name, weight in full.items()}

    @rule()
    def save(self):
        parts = (self.model, self.optimizer, self.evolution)
        saved = [take_apart(part.state_dict()) for part in parts]
        visited = {name: set(places) for name, places in self.visited.items()}
        self.snapshot = (saved, self.steps, dict(self.edges), visited, [len(self.edges[name]) for name in SHAPES])

    @precondition(lambda self: self.snapshot is not None)
    @rule(same_shape=st.booleans())
    def load(self, same_shape):
        """In new objects, which at first have another graph and, unless it must be the same, another size."""
        saved, self.steps, edges, visited, nnz = self.snapshot
        self.make(nnz if same_shape else (3, 3))
        for part, state in zip((self.model, self.optimizer, self.evolution), saved, strict=True):
            part.load_state_dict(copy.deepcopy(put_together(*state)))  # torch's optimizers keep what they get
        self.edges = dict(edges)
        self.visited = {name: set(places) for name, places in visited.items()}

    @invariant()
    def edges_are_those_of_the_dictionary(self):
        if not hasattr(self, "edges"):
            return
        for name in SHAPES:
            assert self.read(name) == self.edges[name]
            assert list(self.edges[name]) == sorted(self.edges[name])
        assert sum(map(len, self.edges.values())) == self.nnz
        assert self.evolution.itop_rate() == sum(map(len, self.visited.values())) / 54


class EvolvingUnfired(Evolving):
    grow = "random-unfired"


class EvolvingByGradient(Evolving):
    grow = "gradient"


for machine in (Evolving, EvolvingUnfired, EvolvingByGradient):
    machine.TestCase.settings = settings(max_examples=10, stateful_step_count=50, deadline=None)
test_random = Evolving.TestCase
test_random_unfired = EvolvingUnfired.TestCase
test_gradient = EvolvingByGradient.TestCase
