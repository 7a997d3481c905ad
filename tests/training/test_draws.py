"""What a step of the end-to-end stage draws: the same pixels in both passes, read again only where they are many."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from napari_msamil.slide.slide import open_slide
from napari_msamil.training import draws as module
from napari_msamil.training.augment import Look
from napari_msamil.training.cohort import read_cohort
from napari_msamil.training.config import read_config
from napari_msamil.training.datasets import synthetic
from napari_msamil.training.drawn import sample_rows
from napari_msamil.training.draws import PatchDraws, PatchesWithLesion, PatchStream
from napari_msamil.training.slides import SlideStore


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> PatchDraws:
    """Draws of 6 patches, in chunks of 4, from two small slides."""
    folder = tmp_path_factory.mktemp("draws")
    cohort = read_cohort(synthetic.write(folder / "cohort", slides=2, size_px=512))
    config = read_config("tiny", ["model.thumbnail_px=128", "end_to_end.patches=6", "end_to_end.chunk=4"])
    store = SlideStore(cohort.slides, config.card(cohort.classes), folder)
    store.prepare([0, 1])
    return PatchDraws(store, config, cohort.targets(), [0, 1], [])


@pytest.mark.parametrize(("kept_bytes", "reads"), [(6 * 64 * 64 * 3 * 4, 2), (6 * 64 * 64 * 3 * 4 - 1, 4)])
def test_both_passes_see_the_same_patches_which_are_read_once_if_few(
    made: PatchDraws, monkeypatch: pytest.MonkeyPatch, kept_bytes: int, reads: int
) -> None:
    monkeypatch.setattr(module, "_KEPT_BYTES", kept_bytes)
    read: list[module.Key] = []
    original = PatchDraws.__getitem__

    def reading(self: PatchDraws, key: module.Key) -> torch.Tensor:
        read.append(key)
        return original(self, key)

    monkeypatch.setattr(PatchDraws, "__getitem__", reading)
    stream = PatchStream(made, passes=2, workers=0)
    for step in (3, 4):
        drawn = stream.draw(step, 0)
        assert len(drawn.table) == 6
        first, second = list(drawn.chunks()), list(drawn.chunks())
        assert [len(chunk) for chunk in first] == [4, 2]
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())
    stream.close()
    assert read.count((3, 0, 0)) == reads // 2


def test_a_patch_comes_with_the_share_of_lesion_of_just_the_piece_that_is_shown(made: PatchDraws) -> None:
    store = made.store
    config = read_config("tiny", ["model.thumbnail_px=512", "pretrain.batch=9", "pretrain.crop_px=40", "augment=false"])
    fine = SlideStore(store.slides, config.card(("a", "b")), store.folder / "fine")
    fine.prepare([0, 1])
    pixels, shares, labels = PatchesWithLesion(fine, config, made.targets, [0, 1], [0, 1])[5]
    assert set(labels.tolist()) == {0, 1}
    assert pixels.shape == (9, 40, 40, 3)
    assert pixels.dtype == torch.uint8
    found = 0
    for one, share in zip(pixels.numpy(), shares.tolist(), strict=True):
        for row in (0, 1):
            lesion = fine.prepared(row).lesion
            assert lesion is not None
            with open_slide(fine.slides[row].path) as slide:
                picture = slide.read_level(0, 0, 0, slide.width, slide.height)
            # only pieces of the finest scale, whose pixels are the slide's own, can be looked up
            windows = np.lib.stride_tricks.sliding_window_view(picture[..., 0], (40, 40))
            for y, x in np.argwhere(windows[..., 0, 0] == one[0, 0, 0]):
                if (picture[y : y + 40, x : x + 40] == one).all():
                    assert share == pytest.approx(lesion[y : y + 40, x : x + 40].mean(), abs=1e-6)
                    found += 1
    assert found >= 3, "a third of the pieces are of the finest scale"
    assert {0.0} < set(shares.tolist())


def test_slides_of_all_classes_take_turns_where_their_labels_are_learned_from_patches(made: PatchDraws) -> None:
    settings = ["model.thumbnail_px=128", "pretrain.batch=24", "pretrain.crop_px=40", "pretrain.labels=true"]
    config = read_config("tiny", settings)
    _, _, labels = PatchesWithLesion(made.store, config, made.targets, [0, 1], [0])[0]
    assert labels.tolist() == [0, 0, 1, 1] * 6


def test_no_two_patches_of_a_slide_are_changed_alike(made: PatchDraws, monkeypatch: pytest.MonkeyPatch) -> None:
    lights = iter(range(1, 9))
    monkeypatch.setattr(
        module, "random_look", lambda rng: Look(np.zeros((3, 3), np.float32), light=0.1 * next(lights), blur=0, noise=0)
    )
    config = read_config("tiny", ["model.thumbnail_px=128", "pretrain.batch=8", "pretrain.crop_px=40"])
    pixels, _, _ = PatchesWithLesion(made.store, config, made.targets, [0, 1], [0])[0]
    seen = [one.unique().tolist() for one in pixels]  # without stain, of a patch only its light is left
    assert [len(values) for values in seen] == [1] * 8
    assert [values[0] for values in seen] == pytest.approx([0.1 * k for k in range(1, 9)])


def test_validation_patches_are_always_the_same(made: PatchDraws) -> None:
    config = read_config("tiny", ["model.thumbnail_px=128", "pretrain.crop_px=40"])
    draws = PatchesWithLesion(made.store, config, made.targets, [0], [1])
    (first, share, label), (second, again, _) = draws.held()[0], draws.held()[0]
    assert label.tolist() == [made.targets[1]] * len(first)
    assert first.shape[1:] == (40, 40, 3)
    np.testing.assert_array_equal(first.numpy(), second.numpy())
    np.testing.assert_array_equal(share.numpy(), again.numpy())


def test_a_slide_without_any_patch_gives_no_row(made: PatchDraws) -> None:
    table = made.store.table(0)
    empty = table.take(np.empty(0, np.int64))
    assert len(sample_rows(empty, np.random.default_rng(0), 5, tissue=0.5)) == 0


def test_a_process_that_reads_patches_loads_no_library_of_networks() -> None:
    program = "import sys, napari_msamil.training.draws; sys.exit(bool({'timm', 'torchvision'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
