"""What a recipe is, and how it is written to and read from recipe.json."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, get_type_hints

import msgspec
import torch
from torch import nn

from synaptome.data.dataset import Dataset
from synaptome.errors import ConfigurationError, unknown
from synaptome.learning.rule import LearningRule
from synaptome.training.callbacks import Callback, When
from synaptome.training.measures import Measure, Recorder
from synaptome.training.run import check_product_name

FORMAT = 1

Product = Callable[[nn.Module], bytes]


@dataclass(frozen=True)
class Experiment:
    """A recipe, made: what the trainer needs, and what the tables say of it.

    Attributes:
        data: on the device of the model.
        rule: the learning rule, with its model.
        epochs, batch, evaluate, callbacks, recorders: as for `Trainer`.
        synapse: the kind of synapse, in a few words.
        learning: the learning rule, in a few words.
        citations: keys of `synaptome.report.citations`: the methods that run, and no others.
        finals: what is measured once, of the trained model, by name: `measures/<name>.safetensors`.
        products: what else a run leaves in its folder, by the name of the file: its content, a function of the trained
            model, which it is given in inference and must leave as it is.
        growth: bytes that a checkpoint may hold beyond the model as it is at the start, with its optimizer.
        work: what this process does in place of training, if another one trains and only needs it.
        close: what is done when the run has ended, well or not.

    Raises:
        ConfigurationError: a product has the name of another file of the run, or no plain name.
    """

    data: Dataset
    rule: LearningRule
    epochs: int
    batch: int
    synapse: str
    learning: str
    citations: tuple[str, ...]
    evaluate: When | None = None
    callbacks: tuple[Callback, ...] = ()
    recorders: tuple[Recorder, ...] = ()
    finals: Mapping[str, Measure] = field(default_factory=dict)
    products: Mapping[str, Product] = field(default_factory=dict)
    growth: int = 0
    work: Callable[[], None] | None = None
    close: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        for name in self.products:
            check_product_name(name)


class Recipe(ABC):
    """A family of experiments. Subclasses are frozen dataclasses whose fields are all that can be chosen.

    Attributes:
        name: on the command line.
        summary: one line of what it does.
        paper: where it comes from.
        grids: what `synaptome sweep` runs by name: for each grid its fields, and their values as on the command line.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    grids: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {}

    def resolved(self) -> Recipe:
        """The recipe with what it leaves to a preset or to its data set filled in; recipe.json holds that."""
        return self

    def check_start(self) -> None:  # noqa: B027  # most recipes start in any number of processes
        """Refuse, by a ConfigurationError, to start what needs more processes than there are; `resume` may not."""

    @abstractmethod
    def experiment(self, seed: int, device: torch.device, data_dir: Path | None) -> Experiment:
        """Load the data and build the network, drawing from torch's seeded generator.

        Raises:
            ConfigurationError: a choice that does not exist.
            DataError: the data set is missing or damaged.
        """


@dataclass(frozen=True)
class RunSettings:
    """A recipe and everything else that decides a run's numbers; recipe.json holds it.

    Args:
        recipe: what to do.
        seed: of weights, failures, the order of the examples and the data drawn.
        device: `cpu`, `cuda` or `mps`.
        threads: torch's threads within an operation, at least 1.
        data_dir: where data is looked for first; None for the usual places.
    """

    recipe: Recipe
    seed: int
    device: str
    threads: int
    data_dir: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "recipe", self.recipe.resolved())
        if self.threads < 1:
            raise ConfigurationError(f"threads is a whole number of at least 1; given {self.threads}")
        if not 0 <= self.seed < 2**63:
            raise ConfigurationError(f"a seed is a whole number from 0 to 2^63 - 1; given {self.seed}")

    def document(self) -> dict[str, Any]:
        """The content of recipe.json."""
        document: dict[str, Any] = {
            "format": FORMAT,
            "recipe": self.recipe.name,
            "options": msgspec.json.decode(msgspec.json.encode(self.recipe)),  # as it will be read: tuples as lists
        }
        return document | {"seed": self.seed, "device": self.device, "threads": self.threads, "data_dir": self.data_dir}

    @classmethod
    def from_document(cls, document: dict[str, Any], recipes: dict[str, type[Recipe]], source: Path) -> RunSettings:
        """Read the content of a recipe.json.

        Raises:
            ConfigurationError: a key, recipe, field or value that does not exist or does not fit, by name.
        """
        keys = ("format", "recipe", "options", "seed", "device", "threads", "data_dir")
        for key in document:
            if key not in keys:
                raise _in_file(source, unknown("key", key, keys))
        for key in keys:
            if key not in document:
                raise ConfigurationError(f"{source}: {key!r} is missing")
        if document["format"] != FORMAT:
            raise ConfigurationError(
                f"{source}: format {document['format']!r} is not the {FORMAT} that this version reads"
            )
        if document["recipe"] not in recipes:
            raise _in_file(source, unknown("recipe", document["recipe"], recipes))
        recipe_type = recipes[document["recipe"]]
        _refuse_unknown_fields(recipe_type, document["options"], source)
        try:
            recipe = msgspec.convert(document["options"], recipe_type)
            rest = {key: document[key] for key in ("seed", "device", "threads", "data_dir")}
            return msgspec.convert({**rest, "recipe": {}}, cls, dec_hook=lambda kind, value: recipe)
        except msgspec.ValidationError as error:
            raise ConfigurationError(f"{source}: {error}") from None
        except ConfigurationError as error:
            raise _in_file(source, error) from None


def _refuse_unknown_fields(kind: Any, options: Any, source: Path) -> None:
    if not isinstance(options, dict):
        raise ConfigurationError(f"{source}: expected an object of fields, found {type(options).__name__}")
    names = [field.name for field in dataclasses.fields(kind)]
    kinds = get_type_hints(kind)
    for name, value in options.items():
        if name not in names:
            raise _in_file(source, unknown("field", name, names))
        if dataclasses.is_dataclass(kinds[name]):
            _refuse_unknown_fields(kinds[name], value, source)


def _in_file(source: Path, error: ConfigurationError) -> ConfigurationError:
    return ConfigurationError(f"{source}: {error}")
