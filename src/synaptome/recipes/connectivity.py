"""Learned connectivity: classifiers whose weights stay as they were drawn, and whose synapses learn to be there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import nn

from synaptome import data
from synaptome.analysis.connectivity import final, share_changed, snapshot
from synaptome.analysis.robustness import accuracy_under_failures
from synaptome.data.augmentation import augmented
from synaptome.data.dataset import Dataset
from synaptome.errors import ConfigurationError, unknown
from synaptome.kernels.failing_linear import check_failure
from synaptome.learning.backprop import Backprop
from synaptome.learning.optimization import Optimization
from synaptome.networks import registry
from synaptome.networks.initialisation import check_initialiser
from synaptome.recipes.failing import check_sizes
from synaptome.recipes.recipe import Experiment, Recipe
from synaptome.synapses.learned_model import penalty
from synaptome.synapses.learned_rules import METHODS, Learned
from synaptome.training.callbacks import Callback, each_epoch
from synaptome.training.compact import compact_bytes
from synaptome.training.measures import Measure, Recorder

BASELINE = "baseline"
COMPACT = "compact.safetensors"  # what a run leaves in its folder: the trained network as a seed and bits
OPTIONS = ("alpha", "density", "threshold")  # of the methods
NUMERALS = ("digits", "mnist")  # most of whose mirror images are none
HELD_OUT = {"digits": 144}  # training images, where 5000 are too many

CITATIONS = {
    "free-pruning": "ivan2020",
    "minimal-pruning": "ivan2020",
    "free-flipping": "ivan2020",
    "minimal-flipping": "ivan2020",
    "rescaled-pruning": "ivan2020",
    "edge-popup": "ramanujan2020",
    "supermask": "zhou2019",
    "ternary": "koster2022",
    "glorot": "glorot2010",
    "he": "he2015",
    "signed-constant": "ramanujan2020",
    "binary": "ivan2020",
    "lenet": "lecun1998",
    "conv2": "frankle2019",
    "conv4": "frankle2019",
    "conv6": "frankle2019",
    "resnet20": "he2016",
}


@dataclass(frozen=True)
class LearnedConnectivity(Recipe):
    """A classifier of images that learns which of its synapses are there, or their sign, over frozen random weights.

    What each method learns stands in `synaptome.synapses.learned_rules`. The baseline trains the same weights in the
    common way. The weights are a pure function of the run's seed (`synaptome.networks.initialisation`), so that the
    result of a run is a seed and a bit for each synapse, of `ternary` one of three values: `compact.safetensors` in the
    run's folder (`synaptome.training.compact`). No network has biases, that of the baseline neither (Ivan & Florian
    2020).

    The default rate serves scores that need only cross 0. `supermask` needs one about a hundred times as large, such as
    0.1: its scores are logits, and a mask is settled only where they are several units from 0. The code of Zhou et al.
    2019 trains them by SGD at a rate of 100.

    Args:
        network: LeNet-300-100, Conv2, Conv4, Conv6 or ResNet-20; each takes the images of every data set.
        method: baseline, or how the connectivity is learned.
        alpha: of the minimal methods: what is added to the loss is alpha times the mean mask of each layer; -1 if not
            given, which rewards synapses that stay as they are.
        density: of edge-popup: share of the synapses that are kept, in (0, 1]; 0.5 if not given.
        threshold: of ternary: a score above it keeps a synapse, one below its negative inverts it; at least 0, and
            0.01 if not given.
        initialiser: of the weights.
        p1: share of positive weights of signed-constant and binary, in [0, 1]; 0.5 if not given.
        activation: of all layers but the last.
        affine: of resnet20: whether batch normalisation has a trained scale and shift; if not given, that of the
            baseline has, and the methods learn nothing but the connectivity.
        data: the data set.
        shift: largest shift of a training image along each axis, in pixels; 4 in He et al. 2016.
        flip: whether half of the training images are mirrored, left to right.
        batch: examples a step.
        epochs: passes over the training examples.
        validation: number of training images that are held out; if not given 5000, and a tenth of digits.
        optimization: optimizer and its learning rate.
        robustness: rates of failure at inference that the trained network is tested with.
    """

    name: ClassVar[str] = "connectivity"
    summary: ClassVar[str] = "classify images with frozen weights and learned masks or signs"
    paper: ClassVar[str] = "Ivan & Florian 2020; Zhou et al. 2019; Ramanujan et al. 2020; Koster et al. 2022"
    grids: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {
        "published": {
            "network": ("lenet",),
            "data": ("mnist",),
            "method": (BASELINE, "free-pruning", "free-flipping", "minimal-pruning", "minimal-flipping"),
        },
    }

    network: Literal["lenet", "conv2", "conv4", "conv6", "resnet20"] = "lenet"
    method: Literal[
        "baseline",
        "free-pruning",
        "minimal-pruning",
        "free-flipping",
        "minimal-flipping",
        "rescaled-pruning",
        "edge-popup",
        "supermask",
        "ternary",
    ] = "free-pruning"
    alpha: float | None = None
    density: float | None = None
    threshold: float | None = None
    initialiser: Literal["glorot", "he", "signed-constant", "binary"] = "he"
    p1: float | None = None
    activation: Literal["relu", "swish", "sigmoid", "elu", "selu"] = "relu"
    affine: bool | None = None
    data: Literal["mnist", "fashion", "cifar10", "digits"] = "mnist"
    shift: int = 0
    flip: bool = False
    batch: int = 25
    epochs: int = 20
    validation: int | None = None
    optimization: Optimization = field(default_factory=lambda: Optimization("adam", rate=1e-3))
    robustness: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_sizes(batch=self.batch, epochs=self.epochs)
        if self.method not in (BASELINE, *METHODS):
            raise unknown("method", self.method, (BASELINE, *METHODS))
        self._learned()
        check_initialiser(self.initialiser, self.p1)
        for rate in self.robustness:
            check_failure(rate)
        if self.shift < 0:
            raise ConfigurationError(f"shift is a number of pixels, at least 0; given {self.shift}")
        if self.flip and self.data in NUMERALS:
            raise ConfigurationError(
                f"numerals are not what they were when they are mirrored, so those of {self.data} are not flipped; "
                f"leave flip out, or choose fashion or cifar10"
            )

    def resolved(self) -> LearnedConnectivity:
        """The same recipe with the number of images held out."""
        return replace(self, validation=self._held_out())

    def experiment(self, seed: int, device: torch.device, data_dir: Path | None) -> Experiment:
        """See `Recipe.experiment`."""
        images = data.load(self.data, data_dir=data_dir, validation=self._held_out(), seed=seed)
        if self.shift or self.flip:
            images = augmented(images, padding=self.shift, flip=self.flip)
        learned = self._learned()
        network = registry.build(
            self.network,
            images.input_shape,
            images.outputs,
            activation=self.activation,
            bias=False,
            affine=self.affine,
            initialiser=self.initialiser,
            p1=self.p1,
            seed=seed,
            wiring=learned,
        ).to(device)
        images = images.to(device)
        optimizer = self.optimization.optimizer(network.parameters())
        steps = self.epochs * math.ceil(len(images.train) / self.batch)
        penalised = learned is not None and learned.alpha is not None
        rule = Backprop(
            network,
            optimizer,
            scheduler=self.optimization.scheduler(optimizer, steps),
            penalty=penalty if penalised else None,
        )
        callbacks, recorders, finals = self._measures(network, images)
        compact = partial(compact_bytes, seed=seed, initialiser=self.initialiser, p1=self.p1)
        return Experiment(
            data=images,
            rule=rule,
            epochs=self.epochs,
            batch=self.batch,
            synapse=self._describe(),
            learning="backprop",
            citations=self._citations(),
            callbacks=callbacks,
            recorders=recorders,
            finals=finals,
            products={} if learned is None else {COMPACT: compact},
        )

    @property
    def _options(self) -> dict[str, float]:
        """The options of the method that are given, by name."""
        return {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}

    def _held_out(self) -> int:
        return HELD_OUT.get(self.data, 5000) if self.validation is None else self.validation

    def _learned(self) -> Learned | None:
        if self.method != BASELINE:
            return Learned(self.method, alpha=self.alpha, density=self.density, threshold=self.threshold)
        if self._options:
            told = " and ".join(f"{name} {value}" for name, value in self._options.items())
            raise ConfigurationError(
                f"the baseline trains its weights and learns no connectivity, but {told} is given; leave it out, or "
                f"choose another method"
            )
        return None

    def _measures(
        self, network: nn.Module, images: Dataset
    ) -> tuple[tuple[Callback, ...], tuple[Recorder, ...], Mapping[str, Measure]]:
        callbacks: tuple[Callback, ...] = ()
        recorders: tuple[Recorder, ...] = ()
        finals: dict[str, Measure] = {}
        if self.method != BASELINE:
            callbacks = (Callback(each_epoch(), lambda trainer: {"connections/changed": share_changed(network)}),)
            recorders = (Recorder("connectivity", each_epoch(), snapshot),)
            finals["connectivity"] = final
        if self.robustness:
            finals["robustness"] = partial(accuracy_under_failures, split=images.test, rates=self.robustness)
        return callbacks, recorders, finals

    def _describe(self) -> str:
        """Such as `free flipping`, or `edge-popup, density 0.3` where the method's option is given."""
        if self.method == BASELINE:
            return "dense"
        title = self.method if self.method == "edge-popup" else self.method.replace("-", " ")
        return ", ".join([title, *(f"{name} {value:g}" for name, value in self._options.items())])

    def _citations(self) -> tuple[str, ...]:
        """The method, the initial weights and the network; what changes the images."""
        keys = [CITATIONS.get(choice) for choice in (self.method, self.initialiser, self.network)]
        keys += ["he2016"] if self.shift or self.flip else []
        return tuple(dict.fromkeys(key for key in keys if key is not None))
