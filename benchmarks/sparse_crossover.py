"""Up to which density a sparse layer is faster than a dense one: whole training steps by density, width and batch.

Each network is two square layers with a ReLU between; a step is forward, backward and SGD with momentum, float32, as in
`sparse_step.py`, whose contestants `sparse` and `dense` these are. The figure shows how many times faster the sparse
network is; the table says at which density both take as long, by interpolation between the densities measured.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

from harness import RESULTS, Contestant, Result, compare, save
from rich.console import Console
from rich.table import Table
from sparse_step import STEPS, setup

WIDTHS = (256, 512, 1024, 2048, 4096)
BATCHES = (1, 32, 128, 512)
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
LAYERS = ("sparse", "dense")
QUICK = ((16, 32), (8,), (0.1, 0.5))

Cell = tuple[int, int, float]  # width, batch, density


def crossover(speedups: dict[float, float]) -> str:
    """The density at which the speed-up falls to 1, on logarithmic scales between those that were measured."""
    points = sorted(speedups.items())
    for (density, above), (next_density, below) in pairwise(points):
        if above >= 1 > below:
            share = math.log(above) / math.log(above / below)
            return f"{density * (next_density / density) ** share:.2f}"
    return f"> {points[-1][0]:g}" if points[-1][1] >= 1 else f"< {points[0][0]:g}"


def draw(speedups: dict[Cell, float], sizes: Sequence[Sequence[float]], path: Path) -> None:
    """A panel for each batch: width across, density down, the speed-up in colour and number."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    widths, batches, densities = sizes
    figure = Figure(figsize=(2.8 * len(batches) + 0.8, 3.6), layout="constrained")
    panels = figure.subplots(1, len(batches), sharey=True, squeeze=False)[0]
    for panel, batch in zip(panels, batches, strict=True):
        values = [[speedups[int(width), int(batch), density] for width in widths] for density in densities]
        shown = panel.imshow(values, norm=LogNorm(1 / 16, 16), cmap="RdBu", aspect="auto")
        for row, of_density in enumerate(values):
            for column, value in enumerate(of_density):
                dark = not 1 / 5 < value < 5
                text = f"{value:.2g}"
                panel.text(column, row, text, ha="center", va="center", color="w" if dark else "k", fontsize=8)
        panel.set_xticks(range(len(widths)), [f"{width:g}" for width in widths])
        panel.set_yticks(range(len(densities)), [f"{density:g}" for density in densities])
        panel.set(title=f"batch {batch:g}", xlabel="width")
    panels[0].set_ylabel("density")
    ticks = [1 / 16, 1 / 4, 1, 4, 16]
    bar = figure.colorbar(shown, ax=panels, label="dense / sparse, time of a step", ticks=ticks, format="%g")
    bar.minorticks_off()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small networks, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the CSV and the figure")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    sizes = QUICK if options.quick else (WIDTHS, BATCHES, DENSITIES)
    widths, batches, densities = sizes
    results: list[Result] = []
    speedups: dict[Cell, float] = {}
    for batch in batches:
        for width in widths:
            for density in densities:
                cell = compare(
                    "sparse-crossover",
                    [Contestant(name, partial(setup, name, (width,) * 3, density, batch)) for name in LAYERS],
                    baseline="sparse",
                    rounds=2 if options.quick else 7,
                    threads=options.threads,
                    amount=STEPS,
                    unit="steps",
                    note=f"width {width}, batch {batch}, density {density:g}, float32",
                    limit=3,
                )
                results += cell
                speedups[width, batch, density] = cell[1].columns()["ratio"]
    save(results, options.out, tables=False)
    table = Table("width", *(f"batch {batch}" for batch in batches), title="density at which both take as long")
    for width in widths:
        found = [crossover({density: speedups[width, batch, density] for density in densities}) for batch in batches]
        table.add_row(str(width), *found)
    Console().print(table)
    draw(speedups, sizes, options.out / "sparse-crossover.png")


if __name__ == "__main__":
    main()
