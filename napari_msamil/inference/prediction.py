"""What a classification says about one slide, and every fact needed to trust or repeat it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_msamil.inference.geojson import multipolygon
from napari_msamil.inference.heatmap import Heatmap, Values, express, rasterize

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from napari_msamil.inference.geojson import Polygon
    from napari_msamil.patches.grid import PatchTable

FOUND = 0.5
"""Where classes do not exclude each other, those with at least this probability are said to be found."""
NOT_EXCLUSIVE = (
    f"Each class is judged by itself and found at {100 * FOUND:.0f} % or more: several classes may be found or none, "
    "and probabilities need not add up to 100 %."
)
RESEARCH_USE = "Research use only. Not for diagnosis."
FEW_PATCHES = 10
"""A result that rests on fewer patches is weak evidence, and says so."""
LESION_RGB = (13, 217, 242)
"""Colour of the lesion wherever it is drawn: cyan, unlike any stain."""
REGION_RGB = (255, 40, 40)
"""Colour of a region that is looked at: red, unlike heatmaps and the outlines of the patches that mattered."""


def percent(probability: float) -> str:
    """A probability for people: one decimal, never a rounded 0 or 100 that claims certainty."""
    if 0 < probability < 0.001:
        return "< 0.1 %"
    if 0.999 < probability < 1:
        return "> 99.9 %"
    return f"{100 * probability:.1f} %"


def iso_time(seconds: float) -> str:
    """A time since 1970 as UTC in ISO 8601, to the second."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat()


@dataclass(frozen=True)
class Prediction:
    """One slide, classified and explained.

    Attributes:
        created: when the classification ended, UTC, ISO 8601 to the second.
        slide_path: the slide file.
        slide_bytes, slide_modified: the file's size and when it was last written (as `created`): enough to notice that
            it is another file by now, without reading gigabytes.
        slide_size: level-0 px, (width, height).
        mpp: µm per level-0 px, (x, y).
        mpp_source: "explicit" or "metadata".
        slide_reader: the library that read the pixels, with its version.
        model_name, method, preset, model_sha256: which model file said this.
        classes: class names.
        exclusive: whether the slide belongs to exactly one of them; else each is there or not by itself.
        probabilities: (C,) float64, in the order of the classes; sums to 1 where they exclude each other.
        table: the patches of the bag, one row each, all scales; failed reads are in it too.
        attention: (N,) float32, one per row of the table, sums to 1 over the bag; NaN where the read failed.
        read_errors: reason by row of the table.
        lesion_mask, tissue_mask: (h, w) uint8 of 0 and 1, stretched over the whole slide.
        lesion_label: what the lesion mask outlines, from the model's card.
        finds_lesion: whether the model looks for lesion; if not, the lesion mask is empty and says nothing.
        intended_use: what the model is for and what not, from its card.
        region: the polygons that were looked at, level-0 px; None is the whole slide.
        fallback: what was done because no patch passed the lesion filter, else None.
        notes: further things the user should know.
        device, device_reason, precision: where it ran.
        seconds: wall time by stage.
        versions: library versions.
    """

    created: str
    slide_path: Path
    slide_bytes: int
    slide_modified: str
    slide_size: tuple[int, int]
    mpp: tuple[float, float]
    mpp_source: str
    slide_reader: str
    model_name: str
    method: str
    preset: str
    model_sha256: str
    classes: tuple[str, ...]
    exclusive: bool
    probabilities: NDArray[np.float64]
    table: PatchTable
    attention: NDArray[np.float32]
    read_errors: Mapping[int, str]
    lesion_mask: NDArray[np.uint8]
    tissue_mask: NDArray[np.uint8]
    lesion_label: str
    finds_lesion: bool
    intended_use: str
    region: tuple[Polygon, ...] | None
    fallback: str | None
    notes: tuple[str, ...]
    device: str
    device_reason: str
    precision: str
    seconds: Mapping[str, float]
    versions: Mapping[str, str]

    @property
    def found(self) -> tuple[tuple[str, float], ...]:
        """What the model says is there: class and probability, most probable first.

        Of classes that exclude each other the one with the largest probability, else all with at least `FOUND`, which
        may be none.
        """
        order = np.argsort(-self.probabilities, kind="stable")
        ranked = [(self.classes[index], float(self.probabilities[index])) for index in order]
        return tuple(ranked[:1] if self.exclusive else (one for one in ranked if one[1] >= FOUND))

    @property
    def predicted(self) -> str | tuple[str, ...]:
        """The class with the largest probability; where classes do not exclude each other, the names of all `found`."""
        names = tuple(name for name, _ in self.found)
        return names[0] if self.exclusive else names

    @property
    def headline(self) -> str:
        """The answer in one line: "tumour (93.0 %)", or "tumour 93.0 %, necrosis 71.0 %"."""
        if self.exclusive:
            [(name, probability)] = self.found
            return f"{name} ({percent(probability)})"
        if self.found:
            return ", ".join(f"{name} {percent(probability)}" for name, probability in self.found)
        highest = int(np.argmax(self.probabilities))
        return f"none of the classes (highest: {self.classes[highest]} {percent(float(self.probabilities[highest]))})"

    @property
    def how_to_read(self) -> str:
        """What to know about the probabilities where they need not sum to 1, else nothing."""
        return "" if self.exclusive else NOT_EXCLUSIVE

    @property
    def slide_unchanged(self) -> bool:
        """Whether the slide's file is still there as it was, by its size and the time of its last change."""
        try:
            file = self.slide_path.stat()
        except OSError:
            return False
        return (file.st_size, iso_time(file.st_mtime)) == (self.slide_bytes, self.slide_modified)

    @property
    def looked_at(self) -> str:
        """What attention is shared out over: "slide", or "region" where one was drawn."""
        return "slide" if self.region is None else "region"

    @property
    def patches_read(self) -> list[int]:
        """How many patches were looked at, by scale, finest first; those that could not be read do not count."""
        read = self.table.scale[np.isfinite(self.attention)]
        return [int((read == index).sum()) for index in range(len(self.table.scales))]

    @property
    def weak(self) -> str | None:
        """Why the result is weak evidence, in a few words that belong right beside the class; None where it is not."""
        read = len(self.table) - len(self.read_errors)
        missing = "no patch with enough lesion" if self.lesion_mask.any() else "no lesion found"
        reasons = [
            missing if self.fallback is not None else "",
            f"only {read} patch{'es' if read > 1 else ''}" if read < FEW_PATCHES else "",
        ]
        return ", ".join(filter(None, reasons)) or None

    @property
    def lesion_area_mm2(self) -> float | None:
        """Area of the lesion mask in mm²; None where the model does not look for lesion."""
        return self._area_mm2(self.lesion_mask) if self.finds_lesion else None

    @property
    def lesion_area(self) -> str:
        """The same for people."""
        area = self.lesion_area_mm2
        return "not looked for" if area is None else f"{area:.3g} mm²"

    @property
    def tissue_area_mm2(self) -> float:
        """Area of the tissue mask in mm²."""
        return self._area_mm2(self.tissue_mask)

    def _area_mm2(self, mask: NDArray[np.uint8]) -> float:
        slide_mm2 = self.slide_size[0] * self.mpp[0] * self.slide_size[1] * self.mpp[1] / 1e6
        return float(np.count_nonzero(mask) / mask.size * slide_mm2)

    def heatmap(self, scale: int, *, values: Values = "rank") -> Heatmap:
        """Attention of one scale (index, 0 = finest) as an image; see `Heatmap` for the units."""
        return rasterize(self.table, express(self.attention, values), scale, values=values)

    def top_patches(self, scale: int, count: int) -> NDArray[np.int64]:
        """Rows of the table with the most attention at one scale, best first, at most `count`; unread ones never."""
        rows = np.flatnonzero((self.table.scale == scale) & np.isfinite(self.attention))
        order = np.argsort(-self.attention[rows], kind="stable")
        return rows[order][:count].astype(np.int64)

    def attention_in_lesion(self, scale: int) -> float:
        """Share of one scale's attention that lies on lesion mask, 0..1; NaN without a patch, or lesion looked for."""
        if not self.finds_lesion:
            return float("nan")
        rows = np.flatnonzero((self.table.scale == scale) & np.isfinite(self.attention))
        a = self.attention[rows].astype(np.float64)
        return float((a * self.table.lesion[rows]).sum() / a.sum()) if a.sum() > 0 else float("nan")

    def summary(self) -> dict[str, Any]:
        """The facts as plain JSON types; the text of `prediction.json`."""
        scales = []
        for index, scale in enumerate(self.table.scales):
            rows = np.flatnonzero(self.table.scale == index)
            share = self.attention_in_lesion(index)
            scales.append({
                "name": scale.name,
                "mpp": scale.mpp,
                "patch_px": scale.patch_px,
                "patches": int(rows.size),
                "read_errors": sum(int(row) in self.read_errors for row in rows),
                "attention": round(float(np.nansum(self.attention[rows])), 6),
                "attention_in_lesion": None if np.isnan(share) else round(share, 6),
            })  # fmt: skip
        return {
            "notice": RESEARCH_USE,
            "created": self.created,
            "slide": {
                "name": self.slide_path.name,
                "file_bytes": self.slide_bytes,
                "file_modified": self.slide_modified,
                "width_px": self.slide_size[0],
                "height_px": self.slide_size[1],
                "mpp_x": self.mpp[0],
                "mpp_y": self.mpp[1],
                "mpp_source": self.mpp_source,
                "reader": self.slide_reader,
            },
            "model": {
                "name": self.model_name,
                "method": self.method,
                "preset": self.preset,
                "sha256": self.model_sha256,
                "classes": list(self.classes),
                "exclusive": self.exclusive,
                "lesion_label": self.lesion_label,
                "intended_use": self.intended_use,
            },
            "predicted": self.predicted,
            "weak_evidence": self.weak,
            "probabilities": {c: float(p) for c, p in zip(self.classes, self.probabilities, strict=True)},
            "scales": scales,
            "region": None if self.region is None else multipolygon(self.region),
            "lesion_area_mm2": None if self.lesion_area_mm2 is None else round(self.lesion_area_mm2, 6),
            "tissue_area_mm2": round(self.tissue_area_mm2, 6),
            "fallback": self.fallback,
            "notes": list(self.notes),
            "seconds": {stage: round(s, 3) for stage, s in self.seconds.items()},
            "device": {"name": self.device, "reason": self.device_reason, "precision": self.precision},
            "versions": dict(self.versions),
        }
