"""The `msamil` command: each subcommand is a few lines over a library function."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from napari_msamil import __version__
from napari_msamil.cli_model import model_app
from napari_msamil.cli_training import cohort_app, settings, train
from napari_msamil.errors import MissingMppError, MsamilError, ResultExistsError, UnreadablePatchesError

if TYPE_CHECKING:
    from napari_msamil.inference.prediction import Prediction

app = typer.Typer(
    help="Explained multi-scale classification of whole-slide images. Research use only; not for diagnosis.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
app.add_typer(model_app, name="model")
app.add_typer(cohort_app, name="cohort")
app.command()(train)
app.command()(settings)


class DeviceName(StrEnum):
    """What --device takes; "cuda" is the first GPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"
    MPS = "mps"


_MPP = "µm per pixel of the full resolution, where the file does not state it or states it wrongly"
Mpp = Annotated[float | None, typer.Option(metavar="X", help=f"{_MPP}.", min=0.001)]
EveryMpp = Annotated[
    float | None, typer.Option(metavar="X", help=f"{_MPP}; one number for all slides given.", min=0.001)
]
SlideFile = Annotated[Path, typer.Argument(metavar="SLIDE", help="Slide file.")]
ModelName = Annotated[str, typer.Option(metavar="demo|FILE", help='"demo" or a model file (.safetensors).')]


def main() -> None:
    """Run the command; errors meant for the user become one line on stderr and exit status 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")  # a name that a terminal has no letters for stops nothing
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read what we print has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python prints when it ends
        sys.exit(1)
    except (MsamilError, OSError) as error:
        if logging.root.isEnabledFor(logging.INFO):  # --verbose
            traceback.print_exc()
        said = str(error)
        if isinstance(error, OSError):  # a disk that is full, a folder that may not be written to, a share that is gone
            what = error.filename or "A file"
            said = f"{what} cannot be read or written ({error.strerror or error}): see to it, or choose another place."
        print(f"msamil: {said}", file=sys.stderr)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Say more on stderr.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


@app.command()
def info(
    slide: SlideFile,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    mpp: Mpp = None,
) -> None:
    """Show what a slide file holds: size, µm per pixel and where that comes from, levels, reader."""
    from napari_msamil.slide.slide import open_slide

    with open_slide(slide, mpp) as opened:
        facts: dict[str, Any] = {
            "name": opened.name,
            "width_px": opened.width,
            "height_px": opened.height,
            "mpp": opened.mpp,
            "mpp_source": opened.mpp_source,
            "reader": opened.backend,
            "levels": [
                {"width_px": v.width, "height_px": v.height, "downsample": v.downsample, "stored": v.stored}
                for v in opened.levels
            ],
            "warnings": list(opened.warnings),
            "properties": dict(opened.properties),
        }
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    size = f"{facts['width_px']} x {facts['height_px']} px"
    if opened.mpp:
        size += f" ({opened.width * opened.mpp[0] / 1000:.2f} x {opened.height * opened.mpp[1] / 1000:.2f} mm)"
    print(f"{facts['name']}: {size}, read by {facts['reader']}")
    scale = (
        f"{opened.mpp[0]:.4g} x {opened.mpp[1]:.4g} µm per pixel ({opened.mpp_source})"
        if opened.mpp
        else "unknown; --mpp gives it"
    )
    print(f"scale: {scale}")
    for number, level in enumerate(opened.levels):
        added = "" if level.stored else " (computed, not in the file)"
        print(f"level {number}: {level.width} x {level.height} px, 1:{level.downsample[0]:.4f}{added}")
    for warning in opened.warnings:
        print(f"note: {warning}")


@app.command()
def classify(
    # Hidden from the list of arguments only, where typer would call it <list[Path]>; the usage line shows it.
    slides: Annotated[list[Path], typer.Argument(metavar="SLIDE", hidden=True)],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the results, one subfolder per slide.")],
    model: ModelName = "demo",
    mpp: EveryMpp = None,
    device: Annotated[DeviceName, typer.Option(help="Where to compute.")] = DeviceName.AUTO,
    region: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="GeoJSON with polygons in full-resolution pixels: look only there.", exists=True
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace earlier results.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Go on: leave out slides whose same result is there already.")
    ] = False,
    max_read_errors: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Share of unreadable patches (and slide area) that is accepted, 0 to 1.", min=0, max=1
        ),
    ] = 0.0,
) -> None:
    """Classify slide files; write class probabilities, lesion mask and attention maps of each. Research use only."""
    from napari_msamil.inference.classify import Request, open_model, ready_model
    from napari_msamil.inference.geojson import read_polygons
    from napari_msamil.inference.result import is_done, result_folder

    _refuse_same_names(slides)
    with _value_of("--region"):
        polygons = read_polygons(region) if region else None
    with _value_of("--model"):
        loaded = open_model(model)
    with _value_of("--device"):
        loaded, _ = ready_model(loaded, device.value)
    failed: list[tuple[Path, str]] = []
    for slide in slides:
        request = Request(slide, loaded, mpp, device.value, polygons, max_read_errors=max_read_errors)
        if skip_existing and is_done(result_folder(slide, out), request):
            print(f"{slide.name}: done already in {result_folder(slide, out)}")
            continue
        try:
            _classify_one(request, out, overwrite=overwrite)
        except MissingMppError as error:
            failed.append((slide, _by_option(error, "--mpp")))
        except ResultExistsError as error:
            same = " It is not the same: of this file, model, region and µm per pixel." if skip_existing else ""
            failed.append((slide, _by_option(error, "--out" if overwrite else "--out, --overwrite") + same))
        except UnreadablePatchesError as error:
            share = "a larger share" if max_read_errors else "a share"
            failed.append((slide, f"{error} Or accept {share} of unreadable patches: --max-read-errors."))
        except MsamilError as error:
            failed.append((slide, str(error)))
        except BrokenPipeError:
            raise
        except KeyboardInterrupt:
            print(f"msamil: stopped at {slide}.", file=sys.stderr)
            raise
        except Exception as error:  # one bad slide stops nothing; the traceback goes to the log, the reason to the list
            logging.getLogger(__name__).exception("%s failed", slide)
            failed.append((slide, f"unexpected {type(error).__name__}: {error}"))
    if failed:
        print(f"\n{len(failed)} of {len(slides)} slide{'s' if len(slides) > 1 else ''} failed:", file=sys.stderr)
        for slide, reason in failed:
            print(f"  {_failure(slide, reason)}", file=sys.stderr)
        raise typer.Exit(1)


def _by_option(error: MsamilError, options: str) -> str:
    """The library's remedy, and the options that are its name here."""
    return f"{str(error).removesuffix('.')} ({options})."


def _failure(slide: Path, reason: str) -> str:
    """A slide's path and why it failed; most reasons begin with its name, and it is not said twice."""
    for name in (str(slide), str(slide.absolute()), slide.name):
        if reason.startswith((f"{name}: ", f"{name} ")):
            return f"{slide}{reason[len(name) :]}"
    return f"{slide}: {reason}"


@contextmanager
def _value_of(option: str) -> Iterator[None]:
    """Call a value that cannot be used wrong usage: exit status 2, before any slide is looked at."""
    try:
        yield
    except MsamilError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _refuse_same_names(slides: list[Path]) -> None:
    seen: dict[str, Path] = {}
    for slide in slides:
        if slide.stem in seen:
            raise typer.BadParameter(
                f"{seen[slide.stem]} and {slide} would write to the same result folder {slide.stem!r}: "
                "run them with different --out.",
                param_hint="SLIDE",
            )
        seen[slide.stem] = slide


def _classify_one(request: Any, out: Path, *, overwrite: bool) -> Prediction:
    from napari_msamil.inference.classify import classify_steps
    from napari_msamil.inference.prediction import percent
    from napari_msamil.inference.result import check_free, result_folder, same_slide, write_result

    check_free(result_folder(request.slide, out), overwrite=overwrite)
    steps = classify_steps(request)
    line = _ProgressLine(request.slide.name)
    prediction: Prediction
    try:
        while True:
            line.show(next(steps))
    except StopIteration as end:
        prediction = end.value
    finally:
        line.clear()
    earlier = result_folder(request.slide, out)
    replaces_another = earlier.exists() and not same_slide(earlier, prediction)
    folder = write_result(prediction, out, overwrite=overwrite)
    counts = ", ".join(
        f"{count} at {scale.name}"
        for count, scale in zip(prediction.patches_read, prediction.table.scales, strict=True)
    )
    weak = f", weak evidence: {prediction.weak}" if prediction.weak else ""
    print(f"{request.slide.name}: {prediction.headline}{weak} - research use only")
    for name, p in zip(prediction.classes, prediction.probabilities, strict=True):
        print(f"  {percent(float(p)):>8}  {name}")
    if prediction.how_to_read:
        print(f"  {prediction.how_to_read}")
    print(
        f"  patches: {counts}; {prediction.seconds['total']:.1f} s on {prediction.device} in {prediction.precision} "
        f"({prediction.device_reason})"
    )
    another = "the earlier result, which is replaced, was of another slide file of this name"
    for note in (prediction.fallback, *prediction.notes, another if replaces_another else None):
        if note:
            print(f"  note: {note}")
    print(f"  model: {prediction.model_name}. {prediction.intended_use}")
    print(f"  result: {folder}", flush=True)
    return prediction


class _ProgressLine:
    """One line on a terminal that is rewritten in place; silent where stderr is a file."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.live = sys.stderr.isatty()

    def show(self, progress: Any) -> None:
        if self.live:
            left = f", {progress.seconds_left:.0f} s left" if progress.seconds_left else ""
            print(
                f"\r\x1b[2K{self.name}: {progress.stage} {progress.done}/{progress.total}{left}",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def clear(self) -> None:
        if self.live:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the sample slide and its result.")] = Path(
        "demo"
    ),
    no_viewer: Annotated[bool, typer.Option("--no-viewer", help="Do not open napari.")] = False,
) -> None:
    """Make a synthetic slide, classify it, write the result and, where there is a display, open napari with it."""
    from napari_msamil.inference.classify import Request
    from napari_msamil.slide.sample import write_sample_slide

    slide = out / "sample-slide.tif"
    if not slide.exists():
        try:
            write_sample_slide(slide)
        except OSError as error:
            raise MsamilError(f"Cannot write the sample slide to {slide} ({error}): give another --out.") from error
    _classify_one(Request(slide), out / "result", overwrite=True)
    if no_viewer:
        return
    reason = _no_viewer_reason()
    if reason:
        print(f"napari is not opened: {reason}.")
        return
    view(slide, run=True)


def _no_viewer_reason() -> str | None:
    from importlib.util import find_spec

    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return "there is no display"
    if find_spec("napari") is None:
        return 'napari is not installed; pip install "napari-msamil[app]" brings it'
    return None


@app.command("view")
def view(
    slide: SlideFile,
    mpp: Mpp = None,
    run: Annotated[bool, typer.Option("--run", help="Classify at once.")] = False,
    model: ModelName = "demo",
) -> None:
    """Open a slide in napari with the classification panel beside it."""
    from napari_msamil.slide.slide import open_slide

    reason = _no_viewer_reason()
    if reason:
        raise MsamilError(f"Cannot open napari: {reason}.")
    with open_slide(slide, mpp) as opened:  # a file that is no slide is refused here, not in an empty window
        for warning in opened.warnings:
            print(f"note: {warning}")
    if model != "demo" and not Path(model).is_file():
        raise typer.BadParameter(f"{model} is no file.", param_hint="--model")
    # The plugin is reached as a program of its own: nothing below it may import it.
    command = [sys.executable, "-m", "napari_msamil.plugin", str(slide), "--model", model]
    command += ["--mpp", str(mpp)] if mpp else []
    command += ["--run"] if run else []
    raise typer.Exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()
