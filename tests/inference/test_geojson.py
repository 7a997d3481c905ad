"""GeoJSON: regions come in as drawn, masks go out where they lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_msamil.errors import RegionError
from napari_msamil.inference.candidates import region_mask
from napari_msamil.inference.geojson import Polygon, mask_feature_collection, multipolygon, polygon_mask, read_polygons

SQUARE = [[[100, 100], [300, 100], [300, 300], [100, 300], [100, 100]]]
HOLED = [[*SQUARE[0]], [[150, 150], [250, 150], [250, 250], [150, 250], [150, 150]]]


def _write(path: Path, document: Any) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "document",
    [
        {"type": "Polygon", "coordinates": SQUARE},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": SQUARE}, "properties": {}},
        [{"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": [SQUARE]}}],
        {
            "type": "FeatureCollection",
            "features": [{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": SQUARE}}],
        },
    ],
    ids=["geometry", "feature", "list", "collection"],
)  # fmt: skip
def test_every_usual_form_gives_the_same_polygon(tmp_path: Path, document: Any) -> None:
    (polygon,) = read_polygons(_write(tmp_path / "r.geojson", document))
    assert polygon.exterior.tolist() == SQUARE[0]


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    path = _write(tmp_path / "r.geojson", {"type": "Polygon", "coordinates": SQUARE})
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(read_polygons(path)) == 1


def test_a_hole_is_cut_out_of_the_region() -> None:
    polygon = Polygon(np.array(HOLED[0], float), (np.array(HOLED[1], float),))
    mask = polygon_mask((polygon,), (400, 400), (400, 400))
    assert mask[120, 120]
    assert not mask[200, 200]
    assert mask.sum() == pytest.approx(200 * 200 - 100 * 100, rel=0.03)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "is not GeoJSON"),
        ('{"type": "Point", "coordinates": [1, 2]}', "holds no polygon"),
        ('{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "not GeoJSON with polygons"),
        ('{"type": "Polygon", "coordinates": [[]]}', "not GeoJSON with polygons"),
        ('{"type": "Polygon"}', "not GeoJSON with polygons"),
        ("[" * 100_000, "is not GeoJSON"),
        (f'{{"type": "Polygon", "coordinates": [[[0, 0], [1{"0" * 400}, 0], [0, 9]]]}}', "not GeoJSON with polygons"),
    ],
)
def test_a_file_without_usable_regions_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.geojson"
    path.write_text(text)
    with pytest.raises(RegionError, match=message) as caught:
        read_polygons(path)
    assert "bad.geojson" in str(caught.value)


def test_a_missing_region_file_is_named() -> None:
    with pytest.raises(RegionError, match=r"nowhere\.geojson"):
        read_polygons(Path("nowhere.geojson"))


def test_a_region_off_the_slide_is_refused() -> None:
    away = (Polygon(np.array(SQUARE[0], float) + 5000),)
    assert not polygon_mask(away, (400, 400), (100, 100)).any()
    with pytest.raises(RegionError, match="No region lies on the slide"):
        region_mask(away, (400, 400))


def test_outlines_lie_where_the_mask_lies_in_level_0_pixels(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 20:50] = 1
    mask[15:20, 30:40] = 0
    collection = mask_feature_collection(mask, (600, 800), label="lesion", rgb=(230, 30, 30))
    (feature,) = collection["features"]
    outer = np.array(feature["geometry"]["coordinates"][0])
    assert outer.min(axis=0).tolist() == [200, 200]
    assert outer.max(axis=0).tolist() == [500, 600]
    assert len(feature["geometry"]["coordinates"]) == 2
    assert feature["properties"]["objectType"] == "annotation"
    back = polygon_mask(read_polygons(_write(tmp_path / "o.geojson", collection)), (600, 800), mask.shape)
    assert np.array_equal(back, mask.astype(bool))


@pytest.mark.parametrize("seed", range(8))
def test_outlines_hold_the_area_of_the_mask_and_no_ring_touches_itself(seed: int) -> None:
    mask = (np.random.default_rng(seed).random((12, 15)) > (0.3, 0.5, 0.2, 0.7)[seed % 4]).astype(np.uint8)
    area = 0.0
    for feature in mask_feature_collection(mask, (30, 36), label="x", rgb=(0, 0, 0))["features"]:
        for number, ring in enumerate(feature["geometry"]["coordinates"]):
            assert ring[0] == ring[-1]
            assert len({*map(tuple, ring)}) == len(ring) - 1
            (x, y), (x_next, y_next) = np.array(ring)[:-1].T, np.array(ring)[1:].T
            area += abs((x * y_next - x_next * y).sum() / 2) * (-1 if number else 1)
    assert area == pytest.approx(6 * mask.sum())


def test_a_mask_that_touches_the_border_stays_on_the_slide() -> None:
    collection = mask_feature_collection(np.ones((8, 8), np.uint8), (80, 160), label="lesion", rgb=(230, 30, 30))
    ring = np.array(collection["features"][0]["geometry"]["coordinates"][0])
    assert ring.min(axis=0).tolist() == [0, 0]
    assert ring.max(axis=0).tolist() == [80, 160]


def test_an_empty_mask_gives_an_empty_collection() -> None:
    assert mask_feature_collection(np.zeros((4, 4), np.uint8), (8, 8), label="x", rgb=(0, 0, 0))["features"] == []


def test_a_region_written_to_a_result_reads_back_with_its_holes(tmp_path: Path) -> None:
    given = read_polygons(_write(tmp_path / "r.geojson", {"type": "Polygon", "coordinates": HOLED}))
    (back,) = read_polygons(_write(tmp_path / "b.geojson", multipolygon(given)))
    assert back.exterior.tolist() == HOLED[0]
    assert [hole.tolist() for hole in back.holes] == [HOLED[1]]


def test_the_rings_of_a_drawn_region_are_written_closed() -> None:
    drawn = np.array([[1.0, 2.0], [30.0, 2.0], [30.0, 40.0]])
    for ring in (drawn, np.vstack((drawn, drawn[:1]))):
        [[written]] = multipolygon((Polygon(ring),))["coordinates"]
        assert written == [[1, 2], [30, 2], [30, 40], [1, 2]]


def test_many_polygons_fill_what_each_fills_alone() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(-40, 420, (12, 1, 2)) + rng.uniform(0, 60, (12, 5, 2))  # some over the edge of the slide
    polygons = tuple(Polygon(ring) for ring in corners)
    together = polygon_mask(polygons, (400, 300), (120, 160))
    y, x = (np.indices((120, 160)) + 0.5) * 2.5  # centres of the mask's pixels, level-0 px
    inside = np.zeros((120, 160), bool)
    for ring in corners:  # even-odd rule, ring by ring
        crossings = np.zeros((120, 160), int)
        for (ax, ay), (bx, by) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            spans = (ay > y) != (by > y)
            with np.errstate(divide="ignore", invalid="ignore"):
                crossings += spans & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
        inside |= crossings % 2 == 1
    assert (together != inside).mean() < 0.01
