from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synaptome.data import Dataset, Split, load
from synaptome.data.augmentation import AugmentedImages, augment, augmented
from synaptome.errors import ConfigurationError


def crops(image: torch.Tensor, padding: int) -> dict[tuple[int, int, bool], torch.Tensor]:
    """Every crop of one padded image `[channels, height, width]` and of its mirror image, cut out by slices."""
    channels, height, width = image.shape
    found = {}
    for mirrored in (False, True):
        canvas = torch.zeros(channels, height + 2 * padding, width + 2 * padding)
        canvas[:, padding : padding + height, padding : padding + width] = image.flip(2) if mirrored else image
        for top in range(2 * padding + 1):
            for left in range(2 * padding + 1):
                found[top, left, mirrored] = canvas[:, top : top + height, left : left + width]
    return found


@given(
    batch=st.integers(0, 5),
    channels=st.integers(1, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    padding=st.integers(0, 3),
    flip=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
    step=st.integers(0, 10**9),
)
@settings(max_examples=60, deadline=None)
def test_each_image_is_a_crop_of_its_own(batch, channels, height, width, padding, flip, seed, step):
    images = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))
    kept = images.clone()
    drawn = augment(images, seed, step, padding=padding, flip=flip)
    assert torch.equal(images, kept)
    assert drawn.shape == images.shape
    for before, after in zip(images, drawn, strict=True):
        places = [key for key, crop in crops(before, padding).items() if torch.equal(crop, after)]
        assert any(flip or not mirrored for _, _, mirrored in places)
    assert torch.equal(drawn, augment(images, seed, step, padding=padding, flip=flip))


def test_places_and_mirror_images_are_uniform_and_independent():
    n, padding = 50_000, 1
    image = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(1))
    drawn = augment(image.expand(n, 1, 4, 3), seed=3, step=7, padding=padding)
    known = {tuple(crop.flatten().tolist()): place for place, crop in crops(image, padding).items()}
    counts = Counter(known[tuple(row)] for row in drawn.flatten(1).tolist())
    assert len(counts) == 18
    expected = n / 18
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 17 + 4 * math.sqrt(2 * 17)  # 17 degrees of freedom, four standard deviations


def test_steps_and_seeds_draw_anew():
    images = torch.randn(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    drawn = {tuple(augment(images, seed, step).flatten().tolist()) for seed in range(4) for step in range(4)}
    assert len(drawn) == 16


def test_what_is_drawn_is_no_business_of_torchs_random_numbers():
    images = torch.randn(8, 1, 6, 6)
    before = torch.get_rng_state()
    first = augment(images, 1, 2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert torch.equal(first, augment(images, 1, 2))


def test_only_batches_to_learn_from_are_altered():
    digits = load("digits", validation=0.1)
    changed = augmented(digits, padding=2, flip=False)
    index = torch.arange(30)
    batch = changed.train.training_batch(index, 1, 0)
    assert torch.equal(batch.inputs, augment(digits.train.inputs[:30], 1, 0, padding=2, flip=False))
    assert not torch.equal(batch.inputs, digits.train.inputs[:30])
    assert torch.equal(batch.targets, digits.train.targets[:30])
    assert torch.equal(changed.train[index].inputs, digits.train.inputs[:30])
    assert torch.equal(digits.train.training_batch(index, 1, 0).inputs, digits.train.inputs[:30])
    assert changed.validation is digits.validation
    assert changed.test is digits.test


def test_augmented_images_move_with_their_settings():
    train = AugmentedImages(torch.zeros(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64), padding=1, flip=False)
    moved = Dataset("made", train, None, train).to("meta").train
    assert isinstance(moved, AugmentedImages)
    assert (moved.padding, moved.flip, moved.inputs.device.type) == (1, False, "meta")


def test_what_is_no_image_is_refused():
    flat = Split(torch.zeros(3, 4), torch.zeros(3))
    with pytest.raises(ConfigurationError, match=r"only images .* given inputs \[3, 4\]"):
        augmented(Dataset("made", flat, None, flat))
    with pytest.raises(ConfigurationError, match="at least 0; given -1"):
        AugmentedImages(torch.zeros(3, 1, 2, 2), torch.zeros(3), padding=-1)
    with pytest.raises(ConfigurationError, match="got -1"):
        augment(torch.zeros(3, 1, 2, 2), -1, 0)
