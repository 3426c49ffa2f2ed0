"""Points of the plane: their geometry taken apart again, their classes worked out by hand, seeds and sizes."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from synaptome.data import DATASETS, load
from synaptome.data.planar import EXTENTS, circle, ellipses, peaks, peaks_height, peaks_levels, swiss_roll
from synaptome.errors import ConfigurationError

MAKERS = {"ellipses": ellipses, "swiss-roll": swiss_roll, "circle": circle, "peaks": peaks}
SIZES = {"ellipses": (2000, 400), "swiss-roll": (512, 512), "circle": (2000, 400), "peaks": (5000, 1000)}
CLASSES = {"ellipses": 2, "swiss-roll": 2, "circle": 2, "peaks": 5}


def points_of(split):
    return split.inputs.double().numpy(), split.targets.numpy()


def rows(split):
    return {tuple(point) for point in split.inputs.tolist()}


@pytest.mark.parametrize("name", MAKERS)
def test_load_gives_classified_points_of_the_plane(name):
    dataset = load(name, seed=3)
    assert dataset.name == name
    assert dataset.input_shape == (2,)
    assert dataset.outputs == len(dataset.classes) == len(set(dataset.classes)) == CLASSES[name]
    assert (len(dataset.train), len(dataset.test)) == SIZES[name]
    assert dataset.train.inputs.dtype == torch.float32
    assert dataset.train.targets.dtype == torch.int64
    assert dataset.validation is dataset.teacher is dataset.mean is None
    assert "seed 3" in dataset.source
    assert "points of the plane" in DATASETS[name].about


@pytest.mark.parametrize("name", MAKERS)
def test_classes_have_equal_numbers_of_points_to_within_one(name):
    for split in (load(name).train, load(name).test, load(name, train=501, test=13).train):
        counts = split.targets.bincount(minlength=CLASSES[name])
        assert counts.sum() == len(split)
        assert counts.max() - counts.min() <= (1 if len(split) % CLASSES[name] else 0)


@pytest.mark.parametrize("name", MAKERS)
def test_all_points_are_within_the_extent_and_reach_far_into_it(name):
    low, high = np.array(EXTENTS[name]).T
    everything = np.concatenate([points_of(load(name, seed=seed).train)[0] for seed in range(3)])
    assert (low <= everything).all()
    assert (everything <= high).all()
    assert (np.ptp(everything, 0) > 0.75 * (high - low)).all()


@pytest.mark.parametrize("name", MAKERS)
def test_the_seed_decides_and_parts_have_streams_of_their_own(name):
    first, again, other = (MAKERS[name](train=300, test=100, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.train.inputs, again.train.inputs)
    assert torch.equal(first.train.targets, again.train.targets)
    assert torch.equal(first.test.inputs, again.test.inputs)
    assert torch.equal(first.test.inputs, MAKERS[name](train=500, test=100, seed=1).test.inputs)
    for one, two in ((first.train, other.train), (first.test, other.test), (first.train, first.test)):
        assert not rows(one) & rows(two)
    assert len(rows(first.train)) == 300  # no point twice
    assert not rows(first.test) & rows(MAKERS[name](train=100, test=100, seed=1).train)


@pytest.mark.parametrize("name", MAKERS)
def test_validation_is_held_out_of_the_training_points(name):
    whole, part = load(name, seed=4), load(name, seed=4, validation=0.25)
    assert len(part.validation) == len(whole.train) // 4
    assert rows(part.train) | rows(part.validation) == rows(whole.train)
    assert not rows(part.train) & rows(part.validation)
    assert torch.equal(part.test.inputs, whole.test.inputs)
    assert set(part.validation.targets.tolist()) == set(range(CLASSES[name]))


@pytest.mark.parametrize(("name", "minor"), [("ellipses", 0.4), ("circle", 1.0)])
def test_one_class_lies_inside_the_other_with_uniform_radius_and_angle(name, minor):
    for split in (load(name, seed=5).train, load(name, seed=5).test):
        (x1, x2), label = points_of(split)[0].T, points_of(split)[1]
        radius, angle = np.hypot(x1, x2 / minor), np.arctan2(x2 / minor, x1)
        assert (label - 1e-6 <= radius).all()
        assert (radius <= label + 1 + 1e-6).all()
        for k in (0, 1):
            assert kstest(radius[label == k] - k, "uniform").pvalue > 1e-3
            assert kstest(angle[label == k] / (2 * np.pi) + 0.5, "uniform").pvalue > 1e-3


def test_points_of_the_swiss_roll_lie_on_their_spiral_and_cover_it_evenly():
    for split in (load("swiss-roll", seed=6).train, load("swiss-roll", seed=6).test):
        inputs, label = points_of(split)
        turned = np.hypot(*inputs.T) - 0.2 * label  # the radius says how far along its arm a point is
        assert turned.min() >= -1e-7
        assert turned.max() <= 1 + 1e-7
        direction = np.exp(4j * np.pi * turned)
        # Off by the rounding of the radius to float32 times 4π.
        assert np.allclose((inputs @ [1, 1j]) / np.hypot(*inputs.T), direction, atol=1e-5)
        for k in (0, 1):
            parts = np.floor(np.sort(turned[label == k]) * 256 + 1e-4 * np.array([-1, 1])[:, None])
            assert ((parts[0] <= np.arange(256)) & (np.arange(256) <= parts[1])).all()


def height(x1, x2):
    """MATLAB's documentation of `peaks`, in Python's floats."""
    return (
        3 * (1 - x1) ** 2 * math.exp(-(x1**2) - (x2 + 1) ** 2)
        - 10 * (x1 / 5 - x1**3 - x2**5) * math.exp(-(x1**2) - x2**2)
        - 1 / 3 * math.exp(-((x1 + 1) ** 2) - x2**2)
    )


def test_peaks_is_the_function_of_that_name():
    assert peaks_height(np.zeros(1), np.zeros(1)) == pytest.approx(8 / 3 / math.e)
    assert peaks_height(np.array([-1.0, 1.0]), np.array([-2.0, 0.0])) == pytest.approx([height(-1, -2), height(1, 0)])
    # The first maximum that MATLAB's default grid of 49 x 49 points shows.
    side = np.linspace(-3, 3, 49)
    assert peaks_height(side[:, None], side[None, :]).max() == pytest.approx(8.0752, abs=5e-5)
    everywhere = [height(-3 + 6 * i / 255, -3 + 6 * j / 255) for i in range(256) for j in range(256)]
    low, high = min(everywhere), max(everywhere)
    assert peaks_levels() == pytest.approx([low + (high - low) * k / 5 for k in (1, 2, 3, 4)], abs=1e-12)


def test_classes_of_peaks_are_those_of_the_height_worked_out_by_hand():
    levels = peaks_levels()
    for split in (load("peaks", seed=7).train, load("peaks", seed=7).test):
        for (x1, x2), label in zip(split.inputs.tolist(), split.targets.tolist(), strict=True):
            assert sum(height(x1, x2) > level for level in levels) == label


def test_points_of_peaks_are_uniform_within_their_level():
    inputs, label = points_of(load("peaks", seed=8, train=20_000).train)
    side = (np.arange(600) + 0.5) / 100 - 3
    x1, x2 = (axis.ravel() for axis in np.meshgrid(side, side))
    by_area = sum(np.vectorize(height)(x1, x2) > level for level in peaks_levels())
    for k in range(5):
        for axis, of_square in enumerate((x1, x2)):
            expected = of_square[by_area == k]
            own = inputs[label == k, axis]
            assert abs(own.mean() - expected.mean()) < 5 * expected.std() / math.sqrt(len(own))
            assert own.std() == pytest.approx(expected.std(), rel=0.05)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("size", [1, 0, -3, 2.5, 10.0, True, "many"])
def test_sizes_that_cannot_be_are_refused(name, size):
    for part in ("train", "test"):
        message = f"{part} must be a number of examples of at least {CLASSES[name]}, one of each class of {name}, got"
        with pytest.raises(ConfigurationError, match=message):
            load(name, **{part: size})


def test_options_and_seeds_that_cannot_be_are_refused():
    with pytest.raises(ConfigurationError, match="unknown option of data set swiss-roll 'points'"):
        load("swiss-roll", points=10)
    with pytest.raises(ConfigurationError, match=r"unknown data set 'swissroll'.*did you mean 'swiss-roll'"):
        load("swissroll")
    with pytest.raises(ConfigurationError, match="seed must be an integer from 0"):
        load("peaks", seed=-1)
