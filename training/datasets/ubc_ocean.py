"""UBC-OCEAN (Kaggle 2023): ovarian carcinoma, five subtypes, whole slides and tissue microarray cores as PNG.

Layout as on Kaggle: `train.csv` (image_id, label, image_width, image_height, is_tma) and `train_images/{image_id}.png`.
The supplemental masks (Kaggle dataset "ubc-ovarian-cancer-competition-supplemental-masks") are `{image_id}.png` in a
folder of their own: red is tumour, green stroma, blue necrosis, black is not marked. They exist for about 150 slides
and do not mark every tumour: what is not red there is not proven free of tumour, only mostly so.

The data name no patients: each image counts as a patient of its own. If two images are of one patient, a split may
separate them, and figures come out too good by an unknown amount.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_msamil.errors import SlideError
from napari_msamil.slide.flat import read_header

from ..cohort import CohortSlide
from ..mask_image import read_mask
from .files import read_rows, refuse_faults, table_path, write_mask, write_table

NAME = "UBC-OCEAN"
MASKS = ("ubc-ovarian-cancer-competition-supplemental-masks", "supplemental_masks", "masks")
"""Where the supplemental masks are looked for within the dataset's folder."""

WSI_MPP, TMA_MPP = 0.5, 0.25  # whole slides are at 20x, cores at 40x; the files do not say more precisely
_MASK_PX = 4096  # longest side of the masks written
_TRUTH = {"true": True, "false": False, "1": True, "0": False}


def write(
    folder: str | Path, out: str | Path, *, masks: str | Path | None = None, cores: bool = True, overwrite: bool = False
) -> Path:
    """Write the table of the training images, and a lesion mask (tumour) for each that has a supplemental mask.

    Args:
        folder: The dataset as unpacked from Kaggle.
        out: Folder for `cohort.csv` and `lesions/`.
        masks: Folder of the supplemental masks; by default a folder of a name in `MASKS` within ``folder``, if any.
        cores: Whether tissue microarray cores are slides, too.
        overwrite: Whether a table that is already there is replaced.

    Returns:
        The table. Slides without a supplemental mask have an unknown lesion.

    Raises:
        CohortError: Names all that is missing.
        AnnotationError: A mask is damaged or has other proportions than its image.
        ResultExistsError: The table is already there.
    """
    folder, table = Path(folder), table_path(out, overwrite=overwrite)
    rows, faults = [], []
    if not (folder / "train.csv").is_file():
        faults.append("there is no train.csv")
    else:
        rows = read_rows(folder / "train.csv", ("image_id", "label", "is_tma"))
    masks = _mask_folder(folder, masks)
    for row in rows:
        if not row["label"]:
            faults.append(f"image {row['image_id']} has no label in train.csv")
        if row["is_tma"].lower() not in _TRUTH:
            faults.append(f"is_tma of image {row['image_id']} is {row['is_tma']!r}, not True or False")
        if not _image(folder, row).is_file():
            faults.append(f"there is no train_images/{row['image_id']}.png")
    if masks is not None and not masks.is_dir():
        faults.append(f"there is no folder {masks} of supplemental masks")
    if masks is not None and masks.resolve() == (Path(out) / "lesions").resolve():
        faults.append(f"{masks} is where the lesion masks are to be written; give another --out")
    refuse_faults(NAME, folder, faults)
    slides = []
    for row in rows:
        core = _TRUTH[row["is_tma"].lower()]
        if cores or not core:
            lesion = _derive_lesion(_image(folder, row), masks, Path(out) / "lesions")
            mpp = TMA_MPP if core else WSI_MPP
            slides.append(CohortSlide(_image(folder, row), row["label"], row["image_id"], mpp=mpp, lesion=lesion))
    return write_table(NAME, folder, slides, table, overwrite=overwrite)


def _image(folder: Path, row: dict[str, str]) -> Path:
    return folder / "train_images" / f"{row['image_id']}.png"


def _mask_folder(folder: Path, masks: str | Path | None) -> Path | None:
    if masks is not None:
        return Path(masks)
    return next((folder / name for name in MASKS if (folder / name).is_dir()), None)


def _derive_lesion(image: Path, masks: Path | None, lesions: Path) -> Path | None:
    """The tumour of an image's supplemental mask as a lesion mask of up to 4096 px, or None where it has none."""
    if masks is None or not (masks / image.name).is_file():
        return None
    size = _size(image)
    step = max(*size, _MASK_PX) / _MASK_PX
    shape = round(size[1] / step), round(size[0] / step)
    return write_mask(lesions / image.name, read_mask(masks / image.name, size, shape, judge=is_tumour))


def _size(image: Path) -> tuple[int, int]:
    try:
        header = read_header(image)
    except OSError as error:
        raise SlideError(f"{image} cannot be opened ({error.strerror}); check your rights.") from error
    return header.width, header.height


def is_tumour(samples: NDArray[Any]) -> NDArray[np.bool_]:
    """Red of a supplemental mask: (H, W, S) samples to (H, W) bool; a mask in grey marks no tumour."""
    if samples.shape[-1] < 3:
        return np.zeros(samples.shape[:2], bool)
    red, green, blue = (samples[..., number] for number in range(3))
    return np.asarray((red > 127) & (red > green) & (red > blue), np.bool_)
