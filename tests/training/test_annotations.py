"""Lesions are read alike from every program's files and land on the right pixels; a bad file is named."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from napari_msamil.errors import AnnotationError
from napari_msamil.training import mask_image
from napari_msamil.training.annotations import lesion_classes, read_lesion
from napari_msamil.training.datasets.synthetic import synthetic_slide

SLIDE = (4000, 2000)  # width, height in level-0 px
SHAPE = (20, 40)  # a mask pixel is 100 level-0 px
BOX = np.zeros(SHAPE, bool)
BOX[5:10, 10:30] = True  # x 1000 to 3000, y 500 to 1000


def square(left: float, top: float, right: float, bottom: float) -> list[list[float]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def asap(*annotations: tuple[str, str, list[list[float]]], groups: str = "") -> str:
    """ASAP's own XML for (type, group, points)."""
    nodes = "".join(
        f'<Annotation Name="Annotation {k}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>'
        + "".join(f'<Coordinate Order="{n}" X="{x}" Y="{y}" />' for n, (x, y) in enumerate(points))
        + "</Coordinates></Annotation>"
        for k, (kind, group, points) in enumerate(annotations)
    )
    return (
        f'<?xml version="1.0"?>\n<ASAP_Annotations><Annotations>{nodes}</Annotations><AnnotationGroups>{groups}'
        "</AnnotationGroups></ASAP_Annotations>\n"
    )


def test_qupath_polygons_are_lesion_and_their_holes_are_not(tmp_path: Path) -> None:
    rings = [square(1000, 500, 3000, 1000), square(1500, 600, 2000, 800)]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": {}}
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    expected = BOX.copy()
    expected[6:8, 15:20] = False
    assert np.array_equal(read_lesion(tmp_path / "a.geojson", SLIDE, SHAPE), expected)


def test_qupath_classes_normal_and_exclusion_are_cut_out_of_the_others(tmp_path: Path) -> None:
    def feature(name: str, *box: int) -> dict[str, Any]:
        named = {"classification": {"name": name}} if name else {}
        return {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [square(*box)]},
            "properties": named,
        }

    features = [feature("Tumor", 1000, 500, 2000, 1000), feature("", 2000, 500, 3000, 1000)]
    cut = feature("Normal", 1500, 600, 2000, 800)
    file = tmp_path / "a.geojson"
    file.write_text(json.dumps({"type": "FeatureCollection", "features": [cut, *features]}))
    expected = BOX.copy()
    expected[6:8, 15:20] = False
    assert np.array_equal(read_lesion(file, SLIDE, SHAPE), expected)
    assert lesion_classes(file) == {"Tumor", ""}
    file.write_text(json.dumps(cut))
    with pytest.raises(AnnotationError, match="holds no polygon that is lesion"):
        read_lesion(file, SLIDE, SHAPE)
    for odd in ("text", {"classification": "Tumor"}, {"classification": {"name": 3}}, None):
        file.write_text(json.dumps({**features[0], "properties": odd}))
        assert lesion_classes(file) == {""}


@pytest.mark.parametrize("excluded", ["_2", "Exclusion", "normal", "inner"])
def test_asap_groups_of_camelyon_are_cut_out_of_the_others(tmp_path: Path, excluded: str) -> None:
    text = asap(
        ("Polygon", "_0", square(1000, 500, 2000, 1000)[:-1]),
        ("Spline", "_1", square(2000, 500, 2900, 1000)),
        ("Rectangle", "metastases", [[2500, 500], [3000, 1000]]),
        ("Dot", "_0", [[100, 100]]),
        ("Polygon", excluded, square(1500, 600, 2000, 800)),
        groups='<Group Name="inner" PartOfGroup="Exclusion" Color="#fff"><Attributes /></Group>',
    )
    (tmp_path / "a.xml").write_text(text)
    expected = BOX.copy()
    expected[6:8, 15:20] = False
    assert np.array_equal(read_lesion(tmp_path / "a.xml", SLIDE, SHAPE), expected)


def test_asap_points_count_in_their_order_and_not_as_they_stand(tmp_path: Path) -> None:
    text = asap(("Polygon", "_0", square(1000, 500, 3000, 1000)[:-1]))
    shuffled = (
        text.replace('Order="1"', 'Order="x"').replace('Order="2"', 'Order="1"').replace('Order="x"', 'Order="2"')
    )
    (tmp_path / "straight.xml").write_text(text)
    (tmp_path / "crossed.xml").write_text(shuffled)
    assert np.array_equal(read_lesion(tmp_path / "straight.xml", SLIDE, SHAPE), BOX)
    assert read_lesion(tmp_path / "crossed.xml", SLIDE, SHAPE).sum() < 0.6 * BOX.sum(), "a bow tie is half of the box"


def fine(factor: int = 10) -> NDArray[np.bool_]:
    return np.kron(BOX, np.ones((factor, factor), bool))


def png(path: Path, image: Image.Image) -> None:
    image.save(path)


def cut_out(path: Path) -> None:
    """White all over, and transparent where there is no lesion."""
    alpha = fine().astype(np.uint8)[..., None] * 255
    png(path, Image.fromarray(np.concatenate([np.full((*fine().shape, 3), 255, np.uint8), alpha], axis=-1)))


MASKS: dict[str, Callable[[Path], None]] = {
    "labels.png": lambda p: png(p, Image.fromarray(fine().astype(np.uint8))),
    "labels16.png": lambda p: png(p, Image.fromarray(fine().astype(np.uint16))),
    "bilevel.png": lambda p: png(p, Image.fromarray(fine())),
    "palette.png": lambda p: png(p, Image.fromarray(fine().astype(np.uint8) * 255).convert("P")),
    "blue.png": lambda p: png(p, Image.fromarray(fine()[..., None] * np.array([0, 0, 9], np.uint8))),
    "clear.png": cut_out,
    "lossy.jpg": lambda p: png(p, Image.fromarray(fine().astype(np.uint8) * 255)),
    "coarse.png": lambda p: png(p, Image.fromarray(BOX)),
    "uneven.png": lambda p: png(p, Image.fromarray(fine(7).astype(np.uint8))),
    "napari.tif": lambda p: tifffile.imwrite(p, fine().astype(np.int32) * 3),
    "packed.tif": lambda p: tifffile.imwrite(p, fine().astype(np.uint16), compression="deflate", rowsperstrip=7),
    "tiled.tif": lambda p: tifffile.imwrite(p, fine().astype(np.uint8), tile=(64, 64), compression="lzw"),
    "rgb.tiff": lambda p: tifffile.imwrite(p, np.dstack([fine().astype(np.uint8)] * 3), photometric="rgb"),
    "bilevel.tif": lambda p: tifffile.imwrite(p, fine()),
    "imagej.tif": lambda p: tifffile.imwrite(p, fine().astype(np.uint8) * 255, photometric="miniswhite"),
    "lossy.tif": lambda p: tifffile.imwrite(p, fine(16).astype(np.uint8) * 255, tile=(64, 64), compression="jpeg"),
}  # fmt: skip


@pytest.mark.parametrize("name", MASKS)
def test_masks_of_every_kind_mean_the_same(tmp_path: Path, name: str) -> None:
    MASKS[name](tmp_path / name)
    assert np.array_equal(read_lesion(tmp_path / name, SLIDE, SHAPE), BOX)


def test_a_large_mask_goes_through_a_file_and_not_through_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mask_image, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(mask_image, "_STRIP_PX", 1000)
    MASKS["labels.png"](tmp_path / "a.png")
    MASKS["napari.tif"](tmp_path / "a.tif")
    assert np.array_equal(read_lesion(tmp_path / "a.png", SLIDE, SHAPE), BOX)
    assert np.array_equal(read_lesion(tmp_path / "a.tif", SLIDE, SHAPE), BOX)


def test_a_pixel_is_lesion_where_more_than_half_of_its_area_is(tmp_path: Path) -> None:
    mask = np.zeros((30, 60), np.uint8)  # 1.5 px of it make one of the result
    mask[:, :2] = 1  # the second result column, 1.5 to 3, has a third
    mask[:, 30:32] = 1  # columns 20 (30 to 31.5) and 21 (31.5 to 33, a third)
    mask[:15, 46:48] = 1  # column 30 (45 to 46.5) has a third, 31 (46.5 to 48) all
    Image.fromarray(mask).save(tmp_path / "a.png")
    found = read_lesion(tmp_path / "a.png", SLIDE, SHAPE)
    assert np.flatnonzero(found.all(axis=0)).tolist() == [0, 20]
    assert np.flatnonzero(found[:10].all(axis=0)).tolist() == [0, 20, 31]
    assert not found[10:, 31].any()


def test_of_a_pyramid_the_coarsest_level_that_is_fine_enough_is_read(tmp_path: Path) -> None:
    with tifffile.TiffWriter(
        tmp_path / "a.tif"
    ) as tiff:  # each level says something else, so that it gives itself away
        tiff.write(np.ones((400, 800), np.uint8), tile=(64, 64), subifds=0)
        tiff.write(np.zeros((200, 400), np.uint8), tile=(64, 64), subfiletype=1)
        tiff.write(np.ones((100, 200), np.uint8), tile=(64, 64), subfiletype=1)
    assert read_lesion(tmp_path / "a.tif", SLIDE, (100, 200)).all()
    assert not read_lesion(tmp_path / "a.tif", SLIDE, (101, 202)).any()
    assert read_lesion(tmp_path / "a.tif", SLIDE, (300, 600)).all()


def test_tiles_that_a_mask_leaves_out_hold_no_lesion(tmp_path: Path) -> None:
    tiles = [np.ones((64, 64), np.uint8).tobytes() if k == 1 else b"" for k in range(2)]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(iter(tiles), shape=(64, 128), dtype=np.uint8, tile=(64, 64), photometric="minisblack")
    found = read_lesion(tmp_path / "a.tif", SLIDE, SHAPE)
    assert not found[:, :20].any()
    assert found[:, 20:].all()


def test_a_lesion_too_small_for_the_mask_vanishes_without_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(asap(("Polygon", "_0", square(10, 10, 20, 20))))
    assert not read_lesion(tmp_path / "a.xml", SLIDE, SHAPE).any()


def _cut(path: Path, share: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


@pytest.mark.parametrize("name", ["labels.png", "lossy.jpg", "napari.tif", "packed.tif", "tiled.tif"])
def test_a_mask_that_is_cut_off_is_refused_by_name(tmp_path: Path, name: str) -> None:
    MASKS[name](tmp_path / name)
    with pytest.raises(AnnotationError, match=rf"{name} .*(cut off|damaged)"):
        read_lesion(_cut(tmp_path / name), SLIDE, SHAPE)


@pytest.mark.parametrize("name", ["labels.png", "lossy.jpg"])
def test_a_hole_of_zeros_in_a_mask_is_noticed(tmp_path: Path, name: str) -> None:
    """Both ends are there, a part in the middle was never written."""
    lesions = np.random.default_rng(0).random((300, 600)) > 0.5
    Image.fromarray(lesions.astype(np.uint8) * 255).save(tmp_path / name)
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2 : len(data) // 2 + 4096] = bytes(4096)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AnnotationError, match=rf"{name} .*damaged"):
        read_lesion(tmp_path / name, SLIDE, SHAPE)


def test_a_disk_too_small_for_a_large_mask_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(mask_image, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    MASKS["labels.png"](tmp_path / "a.png")
    with pytest.raises(AnnotationError, match=r"a\.png takes .* GB decoded, .*No space left.*TMPDIR"):
        read_lesion(tmp_path / "a.png", SLIDE, SHAPE)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_mask_of_other_proportions_is_refused_within_two_percent(tmp_path: Path, suffix: str) -> None:
    good, bad = tmp_path / f"good{suffix}", tmp_path / f"bad{suffix}"
    write = tifffile.imwrite if suffix == ".tif" else lambda path, array: Image.fromarray(array).save(path)
    write(good, np.ones((100, 203), np.uint8))
    write(bad, np.ones((100, 206), np.uint8))
    assert read_lesion(good, SLIDE, SHAPE).all()
    with pytest.raises(AnnotationError, match=r"bad.* is 206 x 100 px, its slide 4000 x 2000 px: .*proportions"):
        read_lesion(bad, SLIDE, SHAPE)


LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><ASAP_Annotations>&b;</ASAP_Annotations>'
)
BAD = {
    "laughs.xml": (LAUGHS, "declares a document type or entities"),
    "cut.xml": (asap(("Polygon", "_0", square(0, 0, 9, 9)))[:200], "no whole XML file"),
    "other.xml": ("<Annotations />", "not from ASAP"),
    "none.xml": (asap(("Polygon", "_2", square(0, 0, 9, 9))), "no polygon that is lesion"),
    "line.xml": (asap(("Polygon", "_0", [[0, 0], [9, 9]])), "'Annotation 0' .* has 2 points"),
    "words.xml": (asap(("Polygon", "_0", [["a", 0], [9, 9], [0, 9]])), "no number"),  # type: ignore[list-item]
    "away.xml": (asap(("Polygon", "_0", square(5000, 0, 6000, 900))), "lies on its slide of 4000 x 2000 px"),
    "empty.geojson": ('{"type": "FeatureCollection", "features": []}', "holds no polygon.*write none"),
    "deep.json": ("[" * 100_000, "GeoJSON"),
    "text.png": ("no picture", "neither a PNG nor a JPEG"),
    "text.tif": ("no picture", "cannot be decoded"),
    "notes.docx": ("no picture", "no lesion file that can be read: use"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name_and_cause(tmp_path: Path, name: str) -> None:
    text, cause = BAD[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(AnnotationError, match=cause) as caught:
        read_lesion(tmp_path / name, SLIDE, SHAPE)
    assert name in str(caught.value)


def test_xml_in_another_encoding_cannot_smuggle_entities_in(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(LAUGHS.replace("?>", ' encoding="utf-16"?>', 1).encode("utf-16"))
    with pytest.raises(AnnotationError, match="not text in UTF-8"):
        read_lesion(tmp_path / "a.xml", SLIDE, SHAPE)


def test_a_mask_that_claims_to_be_enormous_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("L", (40, 20)).save(tmp_path / "a.png")
    data = bytearray((tmp_path / "a.png").read_bytes())
    data[16:24] = (4_000_000_000).to_bytes(4) + (2_000_000_000).to_bytes(4)
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(AnnotationError, match=r"a.png is 4000000000 x 2000000000 pixels large"):
        read_lesion(tmp_path / "a.png", SLIDE, SHAPE)


def test_a_stack_is_no_mask_and_a_missing_file_is_missed(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 20, 40), np.uint8), photometric="minisblack")
    with pytest.raises(AnnotationError, match=r"stack.tif holds a stack"):
        read_lesion(tmp_path / "stack.tif", SLIDE, SHAPE)
    with pytest.raises(AnnotationError, match="There is no lesion file"):
        read_lesion(tmp_path / "gone.png", SLIDE, SHAPE)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_picture_of_tissue_in_the_place_of_a_mask_is_doubted(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    painted = np.zeros((256, 256, 3), np.uint8)
    painted[64:128, 64:200] = (255, 0, 0)
    painted[140:, :90] = (0, 128, 0)
    Image.fromarray(painted).save(tmp_path / f"mask.{kind}")
    mask_image.read_mask(tmp_path / f"mask.{kind}", None, (64, 64))
    assert not caplog.records
    tissue = synthetic_slide(0, lesion=True, size_px=512).rgb
    Image.fromarray(tissue).save(tmp_path / f"tissue.{kind}")
    mask_image.read_mask(tmp_path / f"tissue.{kind}", None, (64, 64))
    [record] = caplog.records
    assert f"tissue.{kind} looks like a picture of tissue, not like a mask" in record.getMessage()
