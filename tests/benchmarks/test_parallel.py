"""The quick run of `parallel`, which starts a process of its own."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "parallel.py"


@pytest.mark.slow
def test_quick_measures_every_way(tmp_path):
    subprocess.run([sys.executable, SCRIPT, "--quick", "--out", tmp_path], check=True, timeout=300)
    with (tmp_path / "parallel.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    blocks = ["synthetic", "synthetic, free", "stale", "locked"]
    ways = ["backprop", "backprop, 2 threads", *blocks, "GPipe", "1F1B", "DDP"]
    assert [row["contestant"] for row in rows] == ways
    assert all(row["note"].startswith("32 layers of 16, batch 8; predicted") for row in rows)
    assert all(float(row["median_s"]) > 0 for row in rows)
