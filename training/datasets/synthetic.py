"""The offline sample generator's slides as training and test slides.

They are drawn, not photographed. A slide drawn with a lesion is labelled "adenocarcinoma" because its glands are drawn
after that class (crowded, irregular, stratified), so that the sample that the program makes for its users has a right
answer. The label says what the generator meant, nothing about patients; figures on these slides are reported apart.
"""

import logging
from pathlib import Path

import numpy as np

from napari_msamil.slide.sample import MPP, sample_arrays
from napari_msamil.slide.write import write_slide

from ..cohort import CohortError, CohortSlide, write_cohort
from .compose import GLASS, KIND_STEP_PX, ComposedSlide
from .ebhi_seg import ADENOCARCINOMA, CLASSES, CLOSING_UM, TISSUES, close_mask
from .files import table_path, write_mask

logger = logging.getLogger(__name__)

TRAINING_SEEDS = range(1000, 2000)
TEST_SEEDS = range(9000, 9100)
"""Seeds never trained on. The sample that users see (`SAMPLE_SEED`) is not trained on either."""
_FIRST_SEED, _MOST_SLIDES = 100_000, 10_000  # of the slides of `write`: far from all others


def synthetic_slide(seed: int, *, lesion: bool, size_px: int = 2048) -> ComposedSlide:
    """A drawn slide with its lesion closed like the real one, and a map of kinds: adenocarcinoma or normal tissue."""
    rgb, glands = sample_arrays(seed, lesion, size_px)
    closed = close_mask(glands, round(CLOSING_UM / MPP))
    middle = slice(KIND_STEP_PX // 2, None, KIND_STEP_PX)
    kinds = np.where(closed[middle, middle], ADENOCARCINOMA, TISSUES.index("Normal")).astype(np.uint8)
    kinds[rgb[middle, middle].min(axis=2) > 215] = GLASS
    return ComposedSlide(rgb, closed & (rgb.min(axis=2) < 235), kinds, np.ones(1, np.int64), MPP)


def write(out: str | Path, *, slides: int = 40, seed: int = 0, size_px: int = 2048, overwrite: bool = False) -> Path:
    """Write drawn slides, every other one with a lesion, their lesion masks and their table.

    Each slide counts as a patient. The same arguments give the same slides, and more slides add to fewer.

    Args:
        out: Folder for `cohort.csv`, `slides/` and `lesions/`.
        slides: How many.
        seed: Another seed gives other slides.
        size_px: Side of the square slides at 1 µm per pixel.
        overwrite: Whether a table that is already there is replaced.

    Returns:
        The table.

    Raises:
        CohortError: Fewer than 2 slides, more than 10,000, or a negative seed.
        ResultExistsError: The table is already there.
    """
    out, table = Path(out), table_path(out, overwrite=overwrite)
    if not 2 <= slides <= _MOST_SLIDES or seed < 0:
        raise CohortError(
            f"{slides} slides of seed {seed} cannot be drawn: ask for 2 to {_MOST_SLIDES:,}, seed from 0."
        )
    written = []
    for number in range(slides):
        name, sick = f"drawn-{number:04d}", number % 2 == 0
        slide = synthetic_slide(_FIRST_SEED + _MOST_SLIDES * seed + number, lesion=sick, size_px=size_px)
        path = write_slide(out / "slides" / f"{name}.tif", slide.rgb, mpp=MPP, software="napari-msamil synthetic slide")
        drawn = bool(slide.lesion.any())
        lesion = write_mask(out / "lesions" / f"{name}.png", slide.lesion) if drawn else None
        written.append(CohortSlide(path, CLASSES[sick], name, lesion=lesion, lesion_free=not drawn))
        logger.info("%d of %d slides written: %s", number + 1, slides, path.name)
    return write_cohort(written, table, overwrite=overwrite)
