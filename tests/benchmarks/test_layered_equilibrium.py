"""The contestants of the benchmark of layered equilibrium propagation do the same work, and each is measured."""

import csv
import importlib
import sys
from pathlib import Path

import pytest
import torch

from synaptome.data.dataset import Batch
from synaptome.networks.layered import LayeredNetwork
from synaptome.networks.relaxation import Relaxation

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("layered_equilibrium")


def test_a_step_by_autograd_of_the_energy_is_the_explicit_one(script, monkeypatch):
    torch.manual_seed(0)
    network = LayeredNetwork((8, 12, 6, 3), relaxation=Relaxation(script.FREE, script.DT)).double()
    for layer in network.layers:  # so that few states are clipped at 0, where they would not learn
        layer.weight.data.mul_(0.5)
        layer.bias.data.fill_(0.4)
    monkeypatch.setattr(script, "RATES", (0.1, 0.1, 0.1))
    other, learner = script.ByAutograd(network), script.rule(network, None)
    before = [layer.weight.detach().clone() for layer in network.layers]
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        x = torch.rand(20, 8, generator=generator, dtype=torch.float64)
        batch = Batch(x, torch.randint(3, (20,), generator=generator))
        other.step(batch)
        learner.step(batch)
    for layer, weight, bias, start in zip(network.layers, other.weights, other.biases, before, strict=True):
        assert (layer.weight - start).abs().max() > 1e-4
        torch.testing.assert_close(layer.weight, weight, rtol=0, atol=1e-12, check_stride=False)
        torch.testing.assert_close(layer.bias, bias, rtol=0, atol=1e-12)


def test_quick_measures_every_contestant(script, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["layered_equilibrium.py", "--quick", "--out", str(tmp_path)])
    script.main()
    with (tmp_path / "layered-equilibrium.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["contestant"] for row in rows] == ["autograd", "explicit", "persistent"]
    assert all(float(row["median_s"]) > 0 for row in rows)
    assert {row["note"] for row in rows} == {"20-30-10, batch 20, 20 + 2 x 4 steps, SGD, float32, CPU time"}
