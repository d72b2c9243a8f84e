"""HEIC, AVIF and RAW: what only C libraries read is read in the decoder's process, header and pixels."""

import io
import random
import struct
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from infra.settings import Settings
from pipelines.catalog import headers
from pipelines.catalog.decoding import PhotoDecoder
from pipelines.catalog.headers import format_of
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.reading import PhotoReader
from pipelines.catalog.sources import Catalog, list_photos
from schemas.errors import PhotoError
from tests.pipelines.catalog.photos import encoded, gradient, jpeg
from tests.pipelines.catalog.test_photo_facts import PLACE
from tests.pipelines.catalog.test_tars import packed

pytest.importorskip("rawpy", reason="needs the extra `archive`")
pillow_heif = pytest.importorskip("pillow_heif", reason="needs the extra `archive`")

BYTE, ASCII, SHORT, LONG, RATIONAL, SRATIONAL, UNDEFINED = 1, 2, 3, 4, 5, 10, 7
Tags = dict[int, tuple[int, list]]

REAL = ("ianare__IMG_5195.HEIC", "drew__exif-at-eof.heic", "exifr__heic-single.heic")


def catalog(source: Path, *, needs_position: bool = False, limits: PhotoLimits | None = None) -> Catalog:
    limits = limits or PhotoLimits()
    return list_photos([str(source)], settings=Settings(threads=2), limits=limits, needs_position=needs_position)


@pytest.fixture(scope="module")
def decoder() -> Iterator[PhotoDecoder]:
    with PhotoDecoder(PhotoLimits()) as decoder:
        yield decoder


def exif_of(orientation: int = 1) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(PLACE)
    return exif


def heic(image: Image.Image, exif: Image.Exif | None = None) -> bytes:
    pillow_heif.register_heif_opener()
    return encoded(image, "HEIF", quality=95, **({"exif": exif.tobytes()} if exif else {}))


def directory(at: int, tags: Tags) -> bytes:
    """A little-endian TIFF directory for byte `at`, with what its tags say after it."""
    letters = {BYTE: "B", UNDEFINED: "B", SHORT: "H", LONG: "I"}
    entries, more = b"", b""
    for tag, (kind, values) in sorted(tags.items()):
        if kind == ASCII:
            body, count = b"".join(values) + b"\0", len(b"".join(values)) + 1
        elif kind in (RATIONAL, SRATIONAL):
            body, count = b"".join(struct.pack("<ii", round(value * 10_000), 10_000) for value in values), len(values)
        else:
            body, count = struct.pack(f"<{len(values)}{letters[kind]}", *values), len(values)
        where = body.ljust(4, b"\0") if len(body) <= 4 else struct.pack("<I", at + 6 + 12 * len(tags) + len(more))
        entries += struct.pack("<HHI", tag, kind, count) + where
        more += body if len(body) > 4 else b""
    return struct.pack("<H", len(tags)) + entries + b"\0" * 4 + more


def dng(*, orientation: int = 1, preview: bytes = b"", size: tuple[int, int] = (640, 480), photometric: int = 32_803) -> bytes:
    """A DNG of a sensor whose right half saw light, at 50.5, 8.01."""
    width, height = size
    pixels = np.full((height, width), 64, "<u2")
    pixels[:, width // 2 :] = 40_000
    raw: Tags = {
        254: (LONG, [0]),
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [16]),
        259: (SHORT, [1]),
        262: (SHORT, [photometric]),
        277: (SHORT, [1]),
        278: (LONG, [height]),
        279: (LONG, [pixels.nbytes]),
        33421: (SHORT, [2, 2]),
        33422: (BYTE, [0, 1, 1, 2]),
        50714: (SHORT, [64]),
        50717: (LONG, [65_535]),
    }
    first: Tags = {
        271: (ASCII, [b"Folio"]),
        272: (ASCII, [b"Test"]),
        274: (SHORT, [orientation]),
        306: (ASCII, [b"2026:05:01 12:00:00"]),
        50706: (BYTE, [1, 4, 0, 0]),
        50708: (ASCII, [b"Folio Test"]),
        50721: (SRATIONAL, [1, 0, 0, 0, 1, 0, 0, 0, 1]),
        50728: (RATIONAL, [1, 1, 1]),
        50778: (SHORT, [21]),
    }
    gps: Tags = {
        1: (ASCII, [b"N"]),
        2: (RATIONAL, [50, 30, 0]),
        3: (ASCII, [b"E"]),
        4: (RATIONAL, [8, 0, 36]),
    }
    camera: Tags = {0x9003: (ASCII, [b"2026:05:01 12:00:00"]), 0x9011: (ASCII, [b"+02:00"]), 0x9291: (ASCII, [b"25"])}
    if preview:
        with Image.open(io.BytesIO(preview)) as image:
            first |= {254: (LONG, [1]), 256: (LONG, [image.width]), 257: (LONG, [image.height]), 258: (SHORT, [8, 8, 8])}
            first |= {259: (SHORT, [7]), 262: (SHORT, [6]), 277: (SHORT, [3]), 278: (LONG, [image.height])}
            first |= {279: (LONG, [len(preview)])}
    # Places: header, preview, pixels, GPS, camera, raw directory, first directory.
    preview_at = 8
    pixels_at = preview_at + len(preview) + len(preview) % 2
    gps_at = pixels_at + pixels.nbytes
    camera_at = gps_at + len(directory(0, gps))
    raw_at = camera_at + len(directory(0, camera))
    raw[273] = (LONG, [pixels_at])
    first[34853], first[34665] = (LONG, [gps_at]), (LONG, [camera_at])
    if preview:
        first[273], first[330] = (LONG, [preview_at]), (LONG, [raw_at])
    else:
        first |= raw
    first_at = raw_at + len(directory(0, raw))
    parts = {
        0: struct.pack("<2sHI", b"II", 42, first_at),
        preview_at: preview,
        pixels_at: pixels.tobytes(),
        gps_at: directory(gps_at, gps),
        camera_at: directory(camera_at, camera),
        raw_at: directory(raw_at, raw),
        first_at: directory(first_at, first),
    }
    data = b""
    for at, part in parts.items():
        data = data.ljust(at, b"\0") + part
    return data


# HEIC


def test_real_heic_photos_have_positions_and_times(shared_data: Path, decoder: PhotoDecoder):
    """Numbers by exiftool 12.57."""
    iphone, at_end, plain = (decoder.facts((shared_data / "exif" / name).read_bytes()) for name in REAL)

    assert (iphone.lat_deg, iphone.lon_deg) == pytest.approx((39.0513444444, -94.2887722222), abs=1e-9)
    assert iphone.taken_at == datetime(2021, 4, 11, 20, 47, 53, 54_000, tzinfo=UTC)
    assert (iphone.width_px, iphone.height_px) == (2566, 3313)
    assert (at_end.lat_deg, at_end.lon_deg) == pytest.approx((47.2071240556, 106.2431050958), abs=1e-9)
    assert at_end.taken_at == datetime(2020, 5, 4, 22, 39, 11, 644_000, tzinfo=UTC)
    assert (plain.lat_deg, plain.taken_at) == (None, None)


def test_real_heic_photos_are_listed_and_decoded_like_any_other(shared_data: Path, tmp_path: Path, decoder: PhotoDecoder):
    for name in REAL:
        (tmp_path / name).symlink_to(shared_data / "exif" / name)

    found = catalog(tmp_path)

    reader = PhotoReader(Settings(threads=1), PhotoLimits())
    rows = found.images.select(["uri", "root", "size_bytes", "checksum"]).to_pylist()
    shapes = {decoder.decode(reader.read(**row)).shape for row in rows}
    assert shapes == {(3313, 2566, 3), (4032, 3024, 3), (960, 1440, 3)}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["HEIF", "AVIF"])
def test_a_heic_or_avif_photo_comes_out_upright(decoder: PhotoDecoder, form: str, orientation: int):
    """libheif turns the picture itself, libavif leaves it to the reader."""
    exif = exif_of(orientation)
    picture = gradient(64, 48)
    data = heic(picture, exif) if form == "HEIF" else encoded(picture, "AVIF", exif=exif.tobytes(), quality=95)
    picture.getexif()[ExifTags.Base.Orientation] = orientation

    pixels = decoder.decode(data)

    expected = np.asarray(ImageOps.exif_transpose(picture))
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).mean() < 4
    assert decoder.facts(data).lat_deg == 50.5


def test_a_heic_photo_that_is_no_more_than_a_beginning_is_damaged(decoder: PhotoDecoder):
    data = heic(gradient(64, 48))

    for bad in (data[: len(data) // 2], data[:40], b"\0\0\0\x18ftypheic"):
        with pytest.raises(PhotoError, match=r"damaged|truncated"):
            decoder.decode(bad)


def test_limits_hold_for_heic_and_raw(decoder: PhotoDecoder):
    with PhotoDecoder(PhotoLimits(max_pixels=64 * 48 - 1)) as small:
        for data in (heic(gradient(64, 48)), dng(size=(64, 48)), encoded(gradient(64, 48), "AVIF")):
            for ask in (small.decode, small.facts):
                with pytest.raises(PhotoError, match="too-many-pixels"):
                    ask(data)


def test_no_damage_to_heic_avif_or_raw_costs_more_than_the_photo(decoder: PhotoDecoder):
    """Seeded, as each of these may cost a restart of the decoder."""
    rng = random.Random(7)
    for sound in (heic(gradient(64, 48), exif_of()), encoded(gradient(64, 48), "AVIF", exif=exif_of()), dng(size=(64, 48))):
        for _ in range(60):
            damaged = bytearray(sound)
            for _ in range(rng.randint(1, 8)):
                damaged[rng.randrange(min(len(damaged), 1200)) if rng.random() < 0.7 else rng.randrange(len(damaged))] = (
                    rng.randrange(256)
                )
            for ask in (decoder.facts, decoder.decode):
                with suppress(PhotoError):
                    ask(bytes(damaged))
        assert decoder.decode(sound).shape in ((48, 64, 3), (24, 32, 3)), "it goes on with the next one"


# RAW


def test_raw_is_known_by_what_it_holds_and_not_by_its_name():
    assert format_of(dng()) == format_of(dng(preview=jpeg(size=(320, 240)))) == "RAW"
    assert format_of(b"II*\0\x10\0\0\0CR\2\0" + b"\0" * 20) == "RAW"
    assert format_of(encoded(gradient(8, 6), "TIFF")) == "TIFF"


def test_a_raw_photo_without_preview_is_developed_at_half_size(decoder: PhotoDecoder):
    pixels = decoder.decode(dng())

    assert pixels.shape == (240, 320, 3)
    assert pixels[:, :150].mean() < 30 < 150 < pixels[:, 170:].mean()


def test_of_a_raw_photo_the_preview_is_taken_where_it_is_large_enough(decoder: PhotoDecoder):
    white = encoded(Image.new("RGB", (400, 300), "white"), "JPEG")
    data = dng(preview=white)

    assert decoder.decode(data).shape == (300, 400, 3)
    assert decoder.decode(data, min_side=300).min() > 250
    assert decoder.decode(data, min_side=301).shape == (240, 320, 3)


@pytest.mark.parametrize("preview", [b"", encoded(gradient(400, 300), "JPEG")], ids=["developed", "preview"])
def test_a_raw_photo_comes_out_upright(decoder: PhotoDecoder, preview: bytes):
    plain = decoder.decode(dng(preview=preview))

    for orientation, turns in ((3, 2), (6, 3), (8, 1)):
        turned = decoder.decode(dng(preview=preview, orientation=orientation))
        np.testing.assert_array_equal(turned, np.rot90(plain, turns))


def test_a_raw_photo_says_where_and_when(tmp_path: Path):
    (tmp_path / "a.dng").write_bytes(dng())
    (tmp_path / "x.tar").write_bytes(packed([("b.DNG", dng(preview=jpeg(size=(320, 240))))]))

    found = catalog(tmp_path, needs_position=True)

    for row in found.images.to_pylist():
        assert (row["lat_deg"], row["lon_deg"]) == pytest.approx((50.5, 8.01))
        assert row["taken_at"] == datetime(2026, 5, 1, 10, 0, 0, 250_000, tzinfo=UTC)
    assert len(found.images) == 2


def test_a_raw_photo_that_libraw_does_not_read_is_rejected(decoder: PhotoDecoder):
    with pytest.raises(PhotoError, match=r"unsupported-format: a RAW file that LibRaw does not read"):
        decoder.facts(b"FUJIFILMCCD-RAW 0201" + b"\0" * 500)
    with pytest.raises(PhotoError, match=r"damaged|unsupported"):
        decoder.decode(dng()[:20_000])


# Without the extra


def test_without_the_extra_a_photo_is_rejected_with_its_name_and_the_others_are_kept(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(headers, "ISOLATED", {"HEIC": "no_such_library", "AVIF": "PIL", "RAW": "no_such_library"})
    photos = {"a.jpg": jpeg(1, 2), "b.heic": heic(gradient(8, 6)), "c.dng": dng(), "d.avif": encoded(gradient(8, 6), "AVIF")}
    for name, data in photos.items():
        (tmp_path / name).write_bytes(data)

    found = catalog(tmp_path)

    assert sorted(uri.rpartition("/")[2] for uri in found.images["uri"].to_pylist()) == ["a.jpg", "d.avif"]
    assert found.rejects["reason"].to_pylist() == ["unsupported-format"] * 2
    assert found.rejects["detail"].to_pylist() == [
        f"format {kind}; Folio reads it with its extra `archive`: pip install 'folio-vpr[archive]'" for kind in ("HEIC", "RAW")
    ]
