"""Small photos for the tests of the catalog, and the manifests of the shared ones."""

import csv
import io
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

SHARED = Path(__file__).parents[4] / "shared" / "data"

TRICKY_NAMES = (
    "plain.jpg",
    "two words.jpg",
    "übergröße.jpg",
    "日本.jpg",
    "🚲.jpg",
    "a#b.jpg",
    "100%25.jpg",
    "what?.jpg",
    "semi;colon,comma.jpg",
    "'quoted\".jpg",
    "new\nline.jpg",
    "tab\there.jpg",
    "[bracket]*.jpg",
    "me@home@night.jpg",
    "-dash.jpg",
    "~tilde$dollar.jpg",
    "back\\slash.jpg",
    "UPPER.JPG",
)
"""File names that naive code mistakes for URLs, globs, options, escapes or separators."""


def manifest(part: str) -> list[dict[str, str]]:
    """Rows of the manifest of a part of the shared data; none where the folder is absent, so that tests skip."""
    path = SHARED / part / "manifest.csv"
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []


def jpeg(
    lat: float | None = None,
    lon: float | None = None,
    *,
    size: tuple[int, int] = (8, 6),
    shade: int = 90,
    comment_bytes: int = 0,
) -> bytes:
    """A one-coloured JPEG of width and height `size`, with a GPS position where one is given, and comments before its pixels."""
    exif = Image.Exif()
    if lat is not None and lon is not None:
        gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
        gps.update({1: "S" if lat < 0 else "N", 2: _dms(lat), 3: "W" if lon < 0 else "E", 4: _dms(lon)})
    data = encoded(Image.new("RGB", size, (shade, shade, shade)), "JPEG", exif=exif)
    comment = b"\xff\xfe\xff\xff" + b" " * 65_533
    return data[:2] + comment * (comment_bytes // len(comment)) + data[2:]


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    """The bytes of a picture in a format."""
    target = io.BytesIO()
    image.save(target, form, **options)
    return target.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    """A picture in which every corner and side is different: red grows to the right, green downwards."""
    red = np.linspace(0, 255, width)[None, :].repeat(height, axis=0)
    green = np.linspace(0, 255, height)[:, None].repeat(width, axis=1)
    return Image.fromarray(np.stack([red, green, np.full_like(red, 40)], axis=2).astype(np.uint8))


def _dms(degrees: float) -> tuple[float, float, float]:
    whole = int(abs(degrees))
    return float(whole), (abs(degrees) - whole) * 60, 0.0
