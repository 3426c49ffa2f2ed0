"""One process of a timed run: `python -m synaptome.recipes.timed_run FOLDER SETTINGS`, one for each of its processes.

It runs the recipe `decoupled` as `synaptome run` does, with the time of its steps in the rows of metrics, and writes
one line of JSON on standard output: its peak of memory, and why it stopped if it did. With `predict` in place of a
folder it writes what the cost model says of the settings (`synaptome.recipes.block_prediction`).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from synaptome.errors import SynaptomeError
from synaptome.recipes import running
from synaptome.recipes.block_prediction import predicted
from synaptome.recipes.decoupled import Decoupled
from synaptome.recipes.recipe import Experiment, RunSettings
from synaptome.training.callbacks import Callback, each_epoch
from synaptome.training.environment import peak_megabytes
from synaptome.training.progress import view
from synaptome.training.stopwatch import SECONDS, STEP_MS, Stopwatch

PREDICT = "predict"


@dataclass(frozen=True)
class TimedDecoupled(Decoupled):
    """The recipe, with columns for the seconds of all steps so far, and the milliseconds of one, in the metrics."""

    def experiment(self, seed: int, device: torch.device, data_dir: Path | None) -> Experiment:
        """See `Recipe.experiment`."""
        made = super().experiment(seed, device, data_dir)
        if made.work is not None:  # another process has the run
            return made
        watch = Stopwatch(made.rule)
        told = Callback(
            made.evaluate or each_epoch(), lambda trainer: {SECONDS: watch.seconds, STEP_MS: 1e3 * watch.median}
        )
        return replace(made, rule=watch, callbacks=(*made.callbacks, told))


def main(words: Sequence[str]) -> int:
    """Do what the words say; returns the exit code (see `synaptome.errors`)."""
    where, document, quiet = words[0], words[1], "--quiet" in words[2:]
    kind = Decoupled if where == PREDICT else TimedDecoupled
    settings = RunSettings.from_document(json.loads(document), {Decoupled.name: kind}, Path(where))
    told: dict[str, Any] = {}
    code = 0
    try:
        if where == PREDICT:
            told["prediction"] = predicted(settings)
        else:
            # No checkpoint on the way: a run that is stopped starts again, since two halves are no measurement.
            running.start(settings, Path(where), progress=view(quiet), checkpoint_seconds=math.inf)
    except SynaptomeError as error:
        code = error.exit_code
        told["error"] = str(error)
    except SystemExit:  # of a process that another one only needed
        pass
    print(json.dumps(told | {"peak_mb": peak_megabytes()}), flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
