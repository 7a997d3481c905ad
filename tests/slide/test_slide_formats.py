"""The many ways in which a TIFF file may store a picture."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from napari_msamil.slide import open_slide

HEIGHT, WIDTH = 210, 330


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack((x % 256, y, (x + 2 * y) % 256), axis=-1).astype(np.uint8)


def shown(path: Path) -> np.ndarray:
    with open_slide(path) as slide:
        assert (slide.width, slide.height) == (WIDTH, HEIGHT)
        return slide.read_level(0, 0, 0, WIDTH, HEIGHT)


RGB = {"photometric": "rgb"}
LOSSLESS = {
    "uncompressed tiles": {"tile": (64, 64)},
    "tiles that are no squares": {"tile": (32, 128)},
    "one tile larger than the picture": {"tile": (256, 512), "compression": "deflate"},
    "strips": {"rowsperstrip": 16},
    "one strip": {"rowsperstrip": HEIGHT},
    "strips of one row": {"rowsperstrip": 1, "compression": "lzw"},
    "lzw": {"tile": (64, 64), "compression": "lzw"},
    "lzw, predictor": {"tile": (64, 64), "compression": "lzw", "predictor": True},
    "deflate": {"tile": (64, 64), "compression": "deflate"},
    "deflate, predictor": {"tile": (64, 64), "compression": "deflate", "predictor": True},
    "zstd": {"tile": (64, 64), "compression": "zstd"},
    "packbits": {"tile": (64, 64), "compression": "packbits"},
    "png": {"tile": (64, 64), "compression": "png"},
    "lzma": {"tile": (64, 64), "compression": "lzma"},
    "jpeg 2000": {"tile": (64, 64), "compression": "jpeg2000"},
    "webp": {"tile": (64, 64), "compression": "webp", "compressionargs": {"lossless": True}},
    "planar": {"tile": (64, 64), "planarconfig": "separate"},
    "planar strips": {"rowsperstrip": 16, "planarconfig": "separate", "compression": "deflate"},
}


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("file", [{}, {"bigtiff": True}, {"byteorder": ">"}], ids=["tiff", "bigtiff", "big endian"])
def test_lossless_rgb_comes_back_exactly(tmp_path, picture, name: str, file) -> None:
    options = dict(LOSSLESS[name])
    pixels = np.moveaxis(picture, -1, 0) if options.get("planarconfig") == "separate" else picture
    tifffile.imwrite(tmp_path / "a.tif", np.ascontiguousarray(pixels), **RGB, **options, **file, metadata=None)
    np.testing.assert_array_equal(shown(tmp_path / "a.tif"), picture)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2), (2, 1)])
@pytest.mark.parametrize("colour", ["YCBCR", "RGB"])
def test_jpeg_shows_what_the_reference_decoder_shows(tmp_path, picture, subsampling, colour) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        picture,
        **RGB,
        tile=(64, 64),
        compression="jpeg",
        compressionargs={"level": 90, "outcolorspace": colour},
        subsampling=subsampling if colour == "YCBCR" else (1, 1),
    )
    pixels = shown(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels, tifffile.imread(tmp_path / "a.tif"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_becomes_rgb(tmp_path, picture, dtype) -> None:
    grey = picture[..., 0].astype(dtype) * (257 if dtype == np.uint16 else 1)
    for name, photometric, truth in (("a", "minisblack", picture[..., 0]), ("b", "miniswhite", 255 - picture[..., 0])):
        tifffile.imwrite(tmp_path / f"{name}.tif", grey, photometric=photometric, tile=(64, 64))
        np.testing.assert_array_equal(shown(tmp_path / f"{name}.tif"), np.repeat(truth[..., None], 3, axis=2))


def test_sixteen_bits_are_scaled_by_their_full_range_and_rounded(tmp_path) -> None:
    values = np.arange(HEIGHT * WIDTH, dtype=np.uint32) * 65535 // (HEIGHT * WIDTH - 1)
    deep = np.repeat(values.astype(np.uint16).reshape(HEIGHT, WIDTH, 1), 3, axis=2)
    tifffile.imwrite(tmp_path / "a.tif", deep, **RGB, tile=(64, 64))
    np.testing.assert_array_equal(shown(tmp_path / "a.tif"), np.floor(deep / 257 + 0.5))


def test_a_black_and_white_picture_and_a_palette_become_rgb(tmp_path, picture) -> None:
    tifffile.imwrite(tmp_path / "bits.tif", picture[..., 0] > 100, photometric="minisblack", tile=(64, 64))
    np.testing.assert_array_equal(shown(tmp_path / "bits.tif")[..., 1], np.where(picture[..., 0] > 100, 255, 0))
    colours = np.random.default_rng(0).integers(0, 256, (3, 256)).astype(np.uint16)
    tifffile.imwrite(
        tmp_path / "palette.tif", picture[..., 1], photometric="palette", colormap=colours * 257, tile=(64, 64)
    )
    np.testing.assert_array_equal(shown(tmp_path / "palette.tif"), np.moveaxis(colours, 0, -1)[picture[..., 1]])


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha", "unspecified"])
def test_alpha_is_composited_on_white_and_an_unknown_extra_sample_is_left_out(tmp_path, picture, kind: str) -> None:
    alpha = np.broadcast_to(np.linspace(0, 255, WIDTH).astype(np.uint8), (HEIGHT, WIDTH))[..., None]
    cover = alpha / 255
    rgb = np.rint(picture * cover).astype(np.uint8) if kind == "assocalpha" else picture
    tifffile.imwrite(tmp_path / "a.tif", np.concatenate((rgb, alpha), -1), **RGB, tile=(64, 64), extrasamples=[kind])
    truth = picture if kind == "unspecified" else picture * cover + 255 * (1 - cover)
    assert np.abs(shown(tmp_path / "a.tif") - truth).max() <= (1 if kind == "assocalpha" else 0.5)


def test_three_grey_pages_of_one_picture_are_its_colours(tmp_path, picture) -> None:
    planes = np.ascontiguousarray(np.moveaxis(picture, -1, 0))
    tifffile.imwrite(tmp_path / "a.ome.tif", planes, photometric="minisblack", tile=(64, 64), metadata={"axes": "CYX"})
    np.testing.assert_array_equal(shown(tmp_path / "a.ome.tif"), picture)


def test_aperio_jpeg_2000_in_ycbcr_is_converted(tmp_path, picture) -> None:
    """Compression 33003 says so; the codestream itself does not."""
    rgb = picture[:64, :64].astype(float)
    y = rgb @ [0.299, 0.587, 0.114]
    cb, cr = 128 + (rgb[..., 2] - y) / 1.772, 128 + (rgb[..., 0] - y) / 1.402
    stored = np.clip(np.rint(np.stack((y, cb, cr), -1)), 0, 255).astype(np.uint8)
    tile = imagecodecs.jpeg2k_encode(stored, level=0, codecformat="j2k", reversible=True, mct=False)
    for number, photometric in enumerate(("rgb", "ycbcr")):
        path = tmp_path / f"{number}.tif"
        with tifffile.TiffWriter(path) as tiff:
            tiff.write(
                iter([tile]),
                shape=(64, 64, 3),
                dtype=np.uint8,
                tile=(64, 64),
                photometric=photometric,
                compression=33003,
                metadata=None,
            )
        with open_slide(path) as slide:
            assert np.abs(slide.read_level(0, 0, 0, 64, 64) - rgb).max() <= 3


def test_missing_tiles_show_background_not_black(tmp_path, picture) -> None:
    tiles = [picture[:64, :64].tobytes(), b"", b"", picture[64:128, 64:128].tobytes()]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(iter(tiles), shape=(128, 128, 3), dtype=np.uint8, tile=(64, 64), **RGB, metadata=None)
    with open_slide(tmp_path / "a.tif") as slide:
        pixels = slide.read_level(0, 0, 0, 128, 128)
    np.testing.assert_array_equal(pixels[:64, :64], picture[:64, :64])
    np.testing.assert_array_equal(pixels[64:, 64:], picture[64:128, 64:128])
    assert (pixels[:64, 64:] == 255).all()
    assert (pixels[64:, :64] == 255).all()


def test_a_large_picture_in_strips_is_decoded_once_into_a_pyramid(tmp_path, monkeypatch) -> None:
    from napari_msamil.slide import detect, flat

    monkeypatch.setattr(detect, "STRIPS_PX", 1000)
    monkeypatch.setattr(flat, "IN_MEMORY_PX", 1000)
    y, x = np.mgrid[:2500, :300]
    pixels = np.stack((x % 256, y % 256, (x + y) % 256), -1).astype(np.uint8)
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, **RGB, rowsperstrip=64, resolution=(20000, 20000), resolutionunit="CENTIMETER"
    )
    with open_slide(tmp_path / "a.tif") as slide:
        assert slide.mpp == pytest.approx((0.5, 0.5))
        assert slide.backend.startswith("tiffslide")
        assert [(level.width, level.height) for level in slide.levels] == [(300, 2500), (75, 625)]
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 300, 2500), pixels)
        mean = pixels[400:404, 200:204].reshape(-1, 3).mean(axis=0)
        assert np.abs(slide.read_level(1, 50, 100, 1, 1)[0, 0] - mean).max() <= 0.5


@pytest.mark.data
@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "tcga-cr-7395-01a-01-ts1.svs", "crohn_HE4_20x.tif"])
def test_real_slides_look_as_openslide_shows_them(test_data, name: str) -> None:
    openslide = pytest.importorskip("openslide")
    with open_slide(test_data / "slides" / name) as slide, openslide.OpenSlide(test_data / "slides" / name) as other:
        x, y = slide.width // 2, slide.height // 2
        theirs = np.asarray(other.read_region((x, y), 0, (300, 200)))[..., :3]
        ours = slide.read_level(0, x, y, 300, 200)
        assert np.abs(ours.astype(int) - theirs).mean() < 1, "the same picture but for chroma interpolation"
        assert slide.properties.get("vendor") in (None, "aperio")


@pytest.mark.data
def test_properties_hold_nothing_that_could_name_a_patient(test_data) -> None:
    with open_slide(test_data / "slides" / "CMU-1-Small-Region.svs") as slide:
        assert slide.properties["objective_power"] == "20"
        text = " ".join([*slide.properties, *slide.properties.values()])
        assert not any(word in text for word in ("CMU", "12/29", "b414003d", "CPAPERIO", "1004486"))


def write_scn(path: Path, regions: list[tuple[int, int, np.ndarray]], size: tuple[int, int]) -> None:
    """A Leica SCN file: a macro image and regions (x, y, pixels) at 500 nm per pixel with a second level at 2000."""
    nm, images, ifd = 500, [], 1
    for x, y, pixels in regions:
        height, width = pixels.shape[:2]
        images.append(
            f'<image><creationDate>2020</creationDate><device model="m" version="v"/>'
            f'<pixels sizeX="{width}" sizeY="{height}">'
            f'<dimension r="0" sizeX="{width}" sizeY="{height}" ifd="{ifd}"/>'
            f'<dimension r="1" sizeX="{width // 4}" sizeY="{height // 4}" ifd="{ifd + 1}"/></pixels>'
            f'<view sizeX="{width * nm}" sizeY="{height * nm}" offsetX="{x * nm}" offsetY="{y * nm}"/>'
            "<scanSettings><objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings>"
            "<numericalAperture>0.4</numericalAperture><illuminationSource>brightfield</illuminationSource>"
            "</illuminationSettings></scanSettings></image>"
        )
        ifd += 2
    whole = f'sizeX="{size[0] * nm}" sizeY="{size[1] * nm}"'
    macro = (
        '<image><pixels sizeX="64" sizeY="64"><dimension r="0" sizeX="64" sizeY="64" ifd="0"/></pixels>'
        f'<view {whole} offsetX="0" offsetY="0"/></image>'
    )
    xml = (
        '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01">'
        f"<collection {whole}>{macro}{''.join(images)}</collection></scn>"
    )
    options = {**RGB, "tile": (64, 64), "metadata": None}
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        tiff.write(np.zeros((64, 64, 3), np.uint8), description=xml, **options)
        for _, _, pixels in regions:
            tiff.write(pixels, description="", **options)
            small = pixels.reshape(pixels.shape[0] // 4, 4, pixels.shape[1] // 4, 4, 3).mean(axis=(1, 3))
            tiff.write(np.rint(small).astype(np.uint8), description="", **options)


def test_regions_scanned_apart_lie_where_the_scanner_put_them_with_background_between(tmp_path, picture) -> None:
    first, second = picture[:160, :200], picture[40:200, 100:300]
    write_scn(tmp_path / "a.scn", [(20, 40, first), (300, 240, second)], (600, 480))
    with open_slide(tmp_path / "a.scn") as slide:
        assert (slide.width, slide.height) == (600, 480)
        assert slide.mpp == (0.5, 0.5)
        assert slide.properties["objective_power"] == "20.0"
        truth = np.full((480, 600, 3), 255, np.uint8)
        truth[40:200, 20:220], truth[240:400, 300:500] = first, second
        np.testing.assert_array_equal(slide.read_level(0, 0, 0, 600, 480), truth)
        np.testing.assert_array_equal(slide.read_level(0, 150, 100, 200, 200), truth[100:300, 150:350])
        small = truth.reshape(120, 4, 150, 4, 3).mean(axis=(1, 3))
        assert np.abs(slide.read_level(1, 0, 0, 150, 120) - small).max() <= 0.5


@pytest.mark.parametrize("second", [(1600, 1200), (200, 150)], ids=["a scan", "a label"])
def test_another_large_picture_of_an_ome_tiff_is_told(tmp_path: Path, second: tuple[int, int]) -> None:
    path = tmp_path / "two.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as tif:
        for width, height in ((800, 600), second):
            tif.write(np.full((height, width, 3), 200, np.uint8), photometric="rgb", tile=(256, 256))
    with open_slide(path) as slide:
        told = [text for text in slide.warnings if "more picture (1600 x 1200 px); only the first is used" in text]
        assert (slide.width, slide.height) == (800, 600)
        assert len(told) == (second == (1600, 1200))
