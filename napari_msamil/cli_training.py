"""`msamil cohort` and `msamil train`; the training module is imported only when one of them runs."""

from __future__ import annotations

import logging
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

cohort_app = typer.Typer(help="Tables of slides to train on.", no_args_is_help=True, rich_markup_mode=None)


class StageName(StrEnum):
    """What `msamil train` runs."""

    SEGMENT = "segment"
    PRETRAIN = "pretrain"
    END_TO_END = "end-to-end"
    EXTRACT = "extract"
    MIL = "mil"
    EVALUATE = "evaluate"
    ALL = "all"


class DatasetName(StrEnum):
    """What `msamil cohort from` takes."""

    UBC_OCEAN = "ubc-ocean"
    BCNB = "bcnb"
    DIGESTPATH2019 = "digestpath2019"
    CAMELYON16 = "camelyon16"
    EBHI_SEG = "ebhi-seg"
    FOLDERS = "folders"


@cohort_app.command("check")
def check(
    file: Annotated[
        Path,
        typer.Argument(help="CSV file: slide, label (or labels), patient; optional split or fold, mpp, lesion, site."),
    ],
    folds: Annotated[int, typer.Option(help="Folds to draw where the table has none.", min=2)] = 5,
) -> None:
    """Open every slide and lesion of a table and name everything that keeps it from being trained on."""
    from napari_msamil.training.cohort import read_cohort
    from napari_msamil.training.cohort_check import refuse_untrainable
    from napari_msamil.training.folds import refuse_untrainable_segmenters, split_cohort

    cohort = read_cohort(file)
    refuse_untrainable(cohort, folds=folds)
    refuse_untrainable_segmenters(cohort, split_cohort(cohort, folds=folds))  # which refuses too few patients
    print(f"{_cohort_line(file)}; no faults")


def _cohort_line(file: Path) -> str:
    from napari_msamil.training.cohort import read_cohort

    cohort = read_cohort(file)
    patients = len({slide.patient for slide in cohort.slides})
    line = f"{file}: {len(cohort.slides)} slides of {patients} patients, classes {', '.join(cohort.classes)}"
    if cohort.exclusive:
        return line
    many = [len(slide.classes) for slide in cohort.slides]
    return (
        f"{line}, which do not exclude each other (column labels): {sum(n > 1 for n in many)} slides have several, "
        f"{many.count(1)} one, {many.count(0)} none"
    )


@cohort_app.command("synthetic")
def synthetic(
    out: Annotated[Path, typer.Option(help="Folder for cohort.csv, the slides and their lesion masks.")],
    slides: Annotated[int, typer.Option(help="How many; every other one has a lesion.", min=2)] = 40,
    seed: Annotated[int, typer.Option(help="Another seed draws other slides.", min=0)] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier table.")] = False,
) -> None:
    """Draw slides with the offline sample generator, half of them with a lesion, and write their table."""
    from napari_msamil.training.datasets.synthetic import write

    print(_cohort_line(write(out, slides=slides, seed=seed, overwrite=overwrite)))


@cohort_app.command("from")
def from_dataset(
    dataset: Annotated[DatasetName, typer.Argument(help="Which dataset; folders: one folder of slides per class.")],
    folder: Annotated[Path, typer.Argument(help="The dataset as unpacked.")],
    out: Annotated[Path, typer.Option(help="Folder for cohort.csv and what is made besides.")],
    patient: Annotated[
        str | None,
        typer.Option(help="folders: pattern that finds the patient in a slide's path; else each file is one."),
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="bcnb, digestpath2019, folders: µm per pixel of all slides.", min=0.05, max=20)
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="ubc-ocean: folder of the supplemental masks.")] = None,
    fold: Annotated[list[int] | None, typer.Option(help="ebhi-seg: use this fold only; may be repeated.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier table.")] = False,
) -> None:
    """Write the table of slides of a public dataset, or of folders. FOLDER is expected to hold:

    \b
    ubc-ocean       train.csv, train_images/ID.png; in another folder masks ID.png
    bcnb            WSIs/ID.jpg, ID.json beside it, patient-clinical-data.xlsx
    digestpath2019  tissue-train-pos-v1/NAME.jpg and NAME_mask.jpg, tissue-train-neg/
    camelyon16      training/normal/, training/tumor/, testing/images/,
                    testing/reference.csv, annotations/*.xml; or all slides in images/
    ebhi-seg        index.csv (image, mask, class, case, fold), images/, masks/
    folders         CLASS/SLIDE at any depth; a lesion file beside a slide belongs to
                    it: STEM.geojson, STEM.xml, STEM_mask.png, .tif, .tiff, .jpg
    """
    from napari_msamil.training.datasets.adapters import write_dataset

    options = {"patient": patient, "mpp": mpp, "masks": masks, "folds": fold or None}
    print(_cohort_line(write_dataset(dataset.value, folder, out, overwrite=overwrite, **options)))


def train(
    stage: Annotated[StageName, typer.Argument(help="One stage, or all in their order.")],
    cohort: Annotated[
        Path, typer.Option(help="Table of slides (CSV), or a folder that holds a cohort.csv.", exists=True)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run. Give it again to go on where the run stopped.")],
    preset: Annotated[str, typer.Option(help="default, literal, demo, tiny, ebhi-seg, or a TOML file.")] = "default",
    settings: Annotated[
        list[str] | None, typer.Argument(help="Single settings, for example end_to_end.patches=2000.")
    ] = None,
) -> None:
    """Train MsaMIL-Net on a table of slides, test it, and write a report and a model file that the plugin opens."""
    from napari_msamil.training.command import run_training
    from napari_msamil.training.distributed import called_as

    logging.getLogger("napari_msamil").setLevel(logging.INFO)
    model = run_training(
        stage.value,
        preset=preset,
        settings=settings or (),
        cohort=cohort,
        out=out,
        command=called_as(sys.argv[1:]),
    )
    if model is not None:
        print(f"{out / 'report.md'}: the figures\n{model}: the weights - research use only")


def settings(
    preset: Annotated[str, typer.Argument(help="default, literal, demo, tiny, ebhi-seg, or a TOML file.")] = "default",
) -> None:
    """Print all settings of a preset as TOML, each with what it means: to be saved, changed, and given to --preset."""
    from napari_msamil.training.config import read_config
    from napari_msamil.training.settings import explained_toml

    print(explained_toml(read_config(preset)), end="")
