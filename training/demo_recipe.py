"""The demo model's recipe: its network, and how much work goes into it."""

import os
from dataclasses import dataclass, replace

from napari_msamil.models.card import Card, preset_card

from .datasets.ebhi_seg import CLASSES
from .demo_data import DRAWN

TRAINING_FOLDS = (0, 1, 2)
TEST_FOLD = 3
VALIDATION_SHARE = 0.2
SLIDES_AT_ONCE = min(8, os.cpu_count() or 1)  # composed slides lie in memory
STAGES = ("segment", "patches", "end-to-end", "mil", "evaluate")


@dataclass(frozen=True)
class Recipe:
    """How much work each stage does; `sized` makes it smaller or larger as a whole.

    Attributes:
        segment, patches, end_to_end, mil: Steps of the stages.
        seed: Of everything random.
        drawn: Drawn slides trained on.
        test_drawn: Drawn slides evaluated on.
        thumbnail_px: Side of the thumbnails that the segmenter learns from.
        thumbnails: Thumbnails it is scored on.
        batches: Thumbnails and patches a step.
        crop_px: Side of the pieces of patches that the warm-up learns from.
        scored: Patches that the warm-up is scored on.
        bag: Patches a slide, end to end.
        cells: Fields along a side of the smallest composed slides.
    """

    segment: int = 2500
    patches: int = 2600
    end_to_end: int = 100
    mil: int = 400
    seed: int = 0
    drawn: int = DRAWN
    test_drawn: int = 10
    thumbnail_px: int = 384
    thumbnails: int = 40
    batches: tuple[int, int] = (4, 48)
    crop_px: int = 128
    scored: int = 240
    bag: int = 24
    cells: int = 6

    def sized(self, minutes: float) -> "Recipe":
        """Steps for about ``minutes`` on two free CPU cores, in proportion to the standard 90."""
        factor = minutes / 90

        def steps(standard: int) -> int:
            return max(2, round(standard * factor))

        return replace(
            self,
            segment=steps(self.segment),
            patches=steps(self.patches),
            end_to_end=steps(self.end_to_end),
            mil=steps(self.mil),
        )


def demo_card() -> Card:
    """The card that the demo model starts from: preset "demo" with the classes of the colon."""
    return preset_card(
        "demo",
        classes=CLASSES,
        name="demo: colon, adenocarcinoma or not",
        lesion_label="neoplasia (intraepithelial neoplasia, serrated adenoma, adenocarcinoma)",
    )
