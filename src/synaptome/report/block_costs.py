"""What the blocks of a network cost in a step, the speed that this promises apart, and the balance that suits them.

The prediction that stands beside what `synaptome.report.ways` shows as measured; a run of synthetic gradients that
`synaptome compare-parallel` has timed has it in its `parallel.json`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from synaptome.report.markup import Html, table, tag
from synaptome.report.text import number
from synaptome.report.ways import FILE, ways
from synaptome.training.run import read_json

if TYPE_CHECKING:
    from rich.table import Table

    from synaptome.training.run import RunRecord

PARTS = ("forward", "backward", "update", "synthesis", "transfer")
HEADINGS = ("block", "layers", *PARTS, "total")
NOTE = (
    "Milliseconds of a step, each part measured by itself on one thread before the first of the runs. Synthesis: a "
    "guess and a fit. Transfer: what a process works to hand over an activity and take in a gradient. One process "
    "takes forward, backward and update of all blocks; apart, the slowest block decides. What processes that work at "
    "once take from each other is not in it."
)


@dataclass(frozen=True)
class BlockCosts:
    """What was predicted of blocks.

    Attributes:
        balance: layers of each.
        blocks: milliseconds of each part of a step, by the names of `PARTS`, for each block.
        speed: how many times as many steps a second as one process they promise.
        proposed: the balance that promises most.
        proposed_speed: of it.
        measured: the speed that runs of it had; None if there is none.
    """

    balance: tuple[int, ...]
    blocks: tuple[Mapping[str, float], ...]
    speed: float
    proposed: tuple[int, ...]
    proposed_speed: float
    measured: float | None = None

    @classmethod
    def of(cls, prediction: object, measured: float | None = None) -> BlockCosts | None:
        """From what `synaptome.recipes.block_prediction.predicted` returns; None if it is not that."""
        if not isinstance(prediction, dict):
            return None
        balance, proposed = _numbers(prediction.get("balance")), _numbers(prediction.get("proposed"))
        speeds = _numbers([prediction.get("speed"), prediction.get("proposed_speed")])
        blocks = prediction.get("blocks")
        if not (balance and proposed and speeds and isinstance(blocks, list) and len(blocks) == len(balance)):
            return None
        parts = [_milliseconds(block) for block in blocks]
        whole = [tuple(int(layers) for layers in each) for each in (balance, proposed)]
        return cls(whole[0], tuple(parts), speeds[0], whole[1], speeds[1], measured)

    def said(self) -> str:
        """The prediction in words, beside the measured speed if there is one."""
        beside = "" if self.measured is None else f"; {self.measured:.2f} were measured"
        first = f"Blocks of {_layers(self.balance)} layers promise {self.speed:.2f} times the steps a second{beside}."
        if self.proposed == self.balance:
            return f"{first} No other balance promises more."
        return f"{first} The balance {_layers(self.proposed)} promises most: {self.proposed_speed:.2f} times."

    def rows(self) -> list[tuple[str, ...]]:
        """A row for each block, under `HEADINGS`."""
        return [
            (str(place), str(layers), *(f"{value:.2f}" for value in (*block.values(), sum(block.values()))))
            for place, (layers, block) in enumerate(zip(self.balance, self.blocks, strict=True), 1)
        ]

    def csv_text(self) -> str:
        """The same with numbers in full."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["block", "layers", *(f"{part}_ms" for part in PARTS)])
        for place, (layers, block) in enumerate(zip(self.balance, self.blocks, strict=True), 1):
            writer.writerow([place, layers, *(f"{value:.6g}" for value in block.values())])
        return text.getvalue()


def block_costs(runs: Sequence[RunRecord]) -> BlockCosts | None:
    """What was predicted before the first of the runs that has a prediction; None if none has.

    Raises:
        RunError: what was measured of a run cannot be read.
    """
    measured = next((way.speed for way in ways(runs) if way.predicted is not None), None)
    costs = (read_json(run.path / FILE) for run in runs if (run.path / FILE).exists())
    every = (BlockCosts.of(cost.get("prediction"), measured) for cost in costs)
    return next((found for found in every if found is not None), None)


def costs_table(costs: BlockCosts) -> Table:
    """The table for the terminal, in milliseconds."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in HEADINGS:
        drawn.add_column(heading, justify="right", no_wrap=True)
    for row in costs.rows():
        drawn.add_row(*row)
    return drawn


def costs_section(costs: BlockCosts, address: str) -> Html:
    """The section of the page.

    Args:
        costs: of `block_costs`.
        address: of the same as CSV, relative to the page.
    """
    return tag(
        "section",
        tag("h2", "What the blocks cost"),
        tag("p", costs.said()),
        table(HEADINGS, costs.rows(), "What the blocks cost"),
        tag("p", NOTE, class_="note"),
        tag("p", "Data: ", tag("a", address, href=address), class_="note"),
    )


def _numbers(values: Any) -> list[float]:
    """All of them; none if one is not a number of at least 0."""
    given = values if isinstance(values, list | tuple) else []
    found = [value for each in given if (value := number(each)) is not None and value >= 0]
    return found if len(found) == len(given) else []


def _milliseconds(block: object) -> dict[str, float]:
    parts = block if isinstance(block, dict) else {}
    return {part: 1e3 * (number(parts.get(part)) or 0.0) for part in PARTS}


def _layers(balance: Sequence[int]) -> str:
    return " + ".join(map(str, balance))
