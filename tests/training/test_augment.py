"""A look changes the colours of a slide, not its content."""

from dataclasses import replace

import numpy as np
import torch

from napari_msamil.training.augment import apply_look, random_look


def test_no_strength_leaves_pixels_alone() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, (2, 8, 8, 3), dtype=np.uint8)
    seen = apply_look(pixels, random_look(rng, strength=0), generator=torch.Generator())
    assert np.abs(seen.numpy() * 255 - pixels).max() < 0.01


def test_a_look_is_one_and_the_same_for_all_patches_of_a_slide() -> None:
    rng = np.random.default_rng(4)
    pixels = rng.integers(1, 256, (1, 8, 8, 3), dtype=np.uint8)
    look = random_look(rng)
    seen = apply_look(np.concatenate([pixels, pixels]), replace(look, noise=0.0), generator=torch.Generator())
    assert torch.equal(seen[0], seen[1])
    assert (seen[0].numpy() * 255 - pixels[0]).std() > 1


def test_a_turned_and_read_only_picture_is_changed_like_its_copy() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    pixels.setflags(write=False)
    turned, look = np.rot90(pixels, 1, axes=(1, 2)), random_look(rng)
    one, two = (apply_look(p, look, generator=torch.Generator().manual_seed(1)) for p in (turned, turned.copy()))
    assert torch.equal(one, two)
