"""What the blocks of a network cost in a step, the speed that this promises apart, and the balance that suits them.

It stands beside what `synaptome.report.ways` shows as measured; a run of synthetic gradients that
`synaptome compare-parallel` has timed has it in its `parallel.json`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from synaptome.report.markup import Html, table, tag
from synaptome.report.text import number
from synaptome.report.ways import FILE, ways
from synaptome.training.run import read_json

if TYPE_CHECKING:
    from rich.table import Table

    from synaptome.training.run import RunRecord

PARTS = ("forward", "backward", "update", "synthesis", "replay", "transfer")
MANY = 10**9  # more layers, or seconds, than there are
NOTE = (
    "Milliseconds of a step, measured on one thread before the first of the runs; backward is the rest of a step. "
    "Synthesis: a guess and a fit. Replay: of a batch whose true gradient is late. Transfer: what a process works to "
    "hand over an activity and take in a gradient. One process takes forward, backward and update of all blocks; "
    "apart, the slowest block decides. Orders, labels and inputs of process 0 are not in it, and neither is what "
    "processes that work at once take from each other."
)


@dataclass(frozen=True)
class Prediction:
    """What was predicted of blocks.

    Attributes:
        balance: layers of each.
        blocks: milliseconds of each part of a step, by the names of `PARTS`, for each block.
        speed: how many times as many steps a second as one process they promise.
        proposed: the balance that promises most.
        proposed_speed: of it.
        measured: the speed that the run of it then had; None if it has not ended.
    """

    balance: tuple[int, ...]
    blocks: tuple[Mapping[str, float], ...]
    speed: float
    proposed: tuple[int, ...]
    proposed_speed: float
    measured: float | None = None

    @classmethod
    def of(cls, prediction: object, measured: float | None = None) -> Prediction | None:
        """From what `synaptome.recipes.block_prediction.predicted` returns; None if it is not that."""
        if not isinstance(prediction, dict):
            return None
        balance, proposed = (_layers(prediction.get(name)) for name in ("balance", "proposed"))
        speed, best = (number(prediction.get(name)) for name in ("speed", "proposed_speed"))
        given = prediction.get("blocks")
        blocks = [_milliseconds(block) for block in given] if isinstance(given, list) else []
        whole = balance and len(blocks) == len(balance) == len(proposed) and sum(balance) == sum(proposed)
        if not whole or speed is None or best is None or min(speed, best) <= 0 or None in blocks:
            return None
        return cls(balance, tuple(block for block in blocks if block is not None), speed, proposed, best, measured)

    def said(self) -> str:
        """The prediction in words, beside the measured speed if there is one."""
        beside = "" if self.measured is None else f"; {self.measured:.2f} were measured"
        first = (
            f"Blocks of {_sum(self.balance)} layers promise {self.speed:.2f} times the steps of one process{beside}."
        )
        if self.proposed == self.balance:
            return f"{first} No balance with a layer in each block promises clearly more."
        return f"{first} The balance {_sum(self.proposed)} promises most: {self.proposed_speed:.2f} times."

    def columns(self) -> dict[str, list[str]]:
        """The table as it is shown: heading to cells, in milliseconds. Without replays there is no column of them."""
        parts = [part for part in PARTS if part != "replay" or any(block[part] for block in self.blocks)]
        shown = {part: [f"{block[part]:.2f}" for block in self.blocks] for part in parts}
        total = [f"{sum(block.values()):.2f}" for block in self.blocks]
        numbers = [str(place) for place in range(1, len(self.blocks) + 1)]
        return {"block": numbers, "layers": list(map(str, self.balance)), **shown, "total": total}

    def csv_text(self) -> str:
        """The same with numbers in full."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["block", "layers", *(f"{part}_ms" for part in PARTS)])
        for place, (layers, block) in enumerate(zip(self.balance, self.blocks, strict=True), 1):
            writer.writerow([place, layers, *(f"{value:.6g}" for value in block.values())])
        return text.getvalue()


def first_prediction(runs: Sequence[RunRecord]) -> Prediction | None:
    """What was predicted before the first of the runs that has a prediction; None if none has.

    Raises:
        RunError: what was measured of a run cannot be read.
    """
    for run in runs:
        if (run.path / FILE).exists() and Prediction.of(found := read_json(run.path / FILE).get("prediction")):
            seed = run.recipe.get("seed")
            of_seed = ways([each for each in runs if each.recipe.get("seed") == seed])
            return Prediction.of(found, next((way.speed for way in of_seed if way.predicted is not None), None))
    return None


def costs_table(prediction: Prediction) -> Table:
    """The table for the terminal, in milliseconds."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    shown = prediction.columns()
    drawn = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in shown:
        drawn.add_column(heading, justify="right", no_wrap=True)
    for row in zip(*shown.values(), strict=True):
        drawn.add_row(*row)
    return drawn


def costs_section(prediction: Prediction, address: str) -> Html:
    """The section of the page.

    Args:
        prediction: of `first_prediction`.
        address: of the same as CSV, relative to the page.
    """
    shown = prediction.columns()
    return tag(
        "section",
        tag("h2", "What the blocks cost"),
        tag("p", prediction.said()),
        table(list(shown), list(zip(*shown.values(), strict=True)), "What the blocks cost"),
        tag("p", NOTE, class_="note"),
        tag("p", "Data: ", tag("a", address, href=address), class_="note"),
    )


def _layers(balance: object) -> tuple[int, ...]:
    """Layers of each block; none if it is no balance."""
    given = balance if isinstance(balance, list | tuple) else ()
    whole = [layers for layers in given if isinstance(layers, int) and not isinstance(layers, bool)]
    return tuple(whole) if len(whole) == len(given) and all(0 <= layers <= MANY for layers in whole) else ()


def _milliseconds(block: object) -> dict[str, float] | None:
    """Each part of a block's step; None if one is not known."""
    parts = block if isinstance(block, dict) else {}
    seconds = {part: number(parts.get(part)) for part in PARTS}
    known = {part: 1e3 * value for part, value in seconds.items() if value is not None and 0 <= value <= MANY}
    return known if len(known) == len(PARTS) else None


def _sum(balance: Sequence[int]) -> str:
    return " + ".join(map(str, balance))
