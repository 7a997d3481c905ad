"""DigestPath 2019, colonoscopy tissue segmentation (Da et al., Med Image Anal 2022): tissue with and without carcinoma.

Layout as published: `tissue-train-pos-v1/` with pairs `{name}.jpg` and `{name}_mask.jpg` (white is lesion), and
`tissue-train-neg/` with `{name}.jpg`, whose tissue is known to have none.

The files give no patients. Their names tell of the specimen, the date and time of its scan and the place cut out of it,
as in `18-09926A_2019-05-08 00_06_12-lv1-23405-10754-6406-3826`: all pictures of a specimen count as one patient. Blocks
of one specimen, the letter in `18-09926A` and what follows the number in `2018_64982_1-3`, are left off; where a name
begins with the date, all pictures of that scan are one patient; any other picture is a patient of its own.

The challenge tells of 20x and no pixel size: 0.5 µm per pixel is taken; give ``mpp`` if you know it better.
"""

import re
from pathlib import Path

from ..cohort import CohortSlide
from .files import refuse_faults, table_path, write_table

NAME = "DigestPath 2019"
MPP = 0.5
POSITIVE, NEGATIVE = "tissue-train-pos-v1", "tissue-train-neg"
CLASSES = ("negative", "positive")

_WITHIN = "Colonoscopy_tissue_segment_dataset"  # what the download unpacks to
_SCAN_DATE = re.compile(r"[-_ ]*20\d\d-\d\d-\d\d.*$")
_YEAR_AND_NUMBER = re.compile(r"20\d\d[\W_]\d+")
_BLOCK = re.compile(r"(?<=\d)[A-Za-z]$")


def write(folder: str | Path, out: str | Path, *, mpp: float = MPP, overwrite: bool = False) -> Path:
    """Write the table of both training folders; classes are "negative" and "positive".

    Args:
        folder: The folder that holds the two, or the one above it.
        out: Folder for `cohort.csv`. Masks stay where they are.
        mpp: µm per pixel of all pictures.
        overwrite: Whether a table that is already there is replaced.

    Returns:
        The table.

    Raises:
        CohortError: Names all that is missing.
        ResultExistsError: The table is already there.
    """
    folder, table = Path(folder), table_path(out, overwrite=overwrite)
    root = folder / _WITHIN if (folder / _WITHIN).is_dir() else folder
    faults = [f"there is no folder {name}" for name in (POSITIVE, NEGATIVE) if not (root / name).is_dir()]
    positive, negative = _pictures(root / POSITIVE), _pictures(root / NEGATIVE)
    faults += [f"{POSITIVE}/{p.name} has no {_mask(p).name}" for p in positive if not _mask(p).is_file()]
    faults += [
        f"{POSITIVE}/{mask.name} has no picture"
        for mask in sorted((root / POSITIVE).glob("*_mask.jpg"))
        if not mask.with_name(mask.name.replace("_mask.jpg", ".jpg")).is_file()
    ]
    refuse_faults(NAME, folder, faults)
    slides = [CohortSlide(p, CLASSES[1], patient_of(p.stem), mpp=mpp, lesion=_mask(p)) for p in positive]
    slides += [CohortSlide(p, CLASSES[0], patient_of(p.stem), mpp=mpp, lesion_free=True) for p in negative]
    return write_table(NAME, folder, slides, table, overwrite=overwrite)


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.jpg") if not path.stem.endswith("_mask"))


def _mask(picture: Path) -> Path:
    return picture.with_name(f"{picture.stem}_mask.jpg")


def patient_of(stem: str) -> str:
    """The specimen that a picture's name speaks of; see the top of this file."""
    specimen = _SCAN_DATE.sub("", stem)
    numbered = _YEAR_AND_NUMBER.match(specimen)
    if numbered:
        return numbered.group()
    return _BLOCK.sub("", specimen) if specimen else stem.split("-lv1")[0]
