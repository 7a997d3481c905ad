"""The offline sample generator's slides as training and test slides.

They are drawn, not photographed. A slide drawn with a lesion is labelled "adenocarcinoma" because its glands are drawn
after that class (crowded, irregular, stratified), so that the sample that the program makes for its users has a right
answer. The label says what the generator meant, nothing about patients; figures on these slides are reported apart.
"""

import numpy as np

from napari_msamil.slide.sample import MPP, sample_arrays

from .compose import GLASS, KIND_STEP_PX, ComposedSlide
from .ebhi_seg import ADENOCARCINOMA, CLOSING_UM, TISSUES, close_mask

TRAINING_SEEDS = range(1000, 2000)
TEST_SEEDS = range(9000, 9100)
"""Seeds never trained on. The sample that users see (`SAMPLE_SEED`) is not trained on either."""


def synthetic_slide(seed: int, *, lesion: bool, size_px: int = 2048) -> ComposedSlide:
    """A drawn slide with its lesion closed like the real one, and a map of kinds: adenocarcinoma or normal tissue."""
    rgb, glands = sample_arrays(seed, lesion, size_px)
    closed = close_mask(glands, round(CLOSING_UM / MPP))
    middle = slice(KIND_STEP_PX // 2, None, KIND_STEP_PX)
    kinds = np.where(closed[middle, middle], ADENOCARCINOMA, TISSUES.index("Normal")).astype(np.uint8)
    kinds[rgb[middle, middle].min(axis=2) > 215] = GLASS
    return ComposedSlide(rgb, closed & (rgb.min(axis=2) < 235), kinds, np.ones(1, np.int64), MPP)
