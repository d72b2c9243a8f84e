"""Where and when a photo was taken by its XMP: the packet in its file, or the sidecar that lies beside it.

Used by `photo_facts` and `sidecars`. Coordinates: XMP specification part 2, section 1.2.7.4 ("GPSCoordinate").
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from xml.etree.ElementTree import Element, ParseError

from defusedxml.ElementTree import fromstring

from pipelines.catalog.positions import is_own_estimate, position_problem
from pipelines.catalog.times import iso_time
from schemas.reasons import RejectReason

RDF: Final = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
EXIF: Final = "{http://ns.adobe.com/exif/1.0/}"

TIMES: Final = (
    f"{EXIF}DateTimeOriginal",
    "{http://ns.adobe.com/photoshop/1.0/}DateCreated",
    "{http://ns.adobe.com/xap/1.0/}CreateDate",
)
"""Properties that say when it was taken, the first that is there counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class XmpFacts:
    """What an XMP packet says."""

    position: tuple[float, float] | RejectReason
    """Latitude and longitude in degrees, or why there are none: no-position, position-invalid or null-island."""

    taken_at: datetime | None
    """Without a time zone where the packet gives none."""


def read_xmp(packet: bytes) -> XmpFacts:
    """Read an XMP packet.

    Raises:
        ValueError: it is no XML, or XML with a document type or entities, which XMP never has.
    """
    try:
        root = fromstring(packet.strip(b"\0 \r\n\t\xef\xbb\xbf"), forbid_dtd=True)
    except (ParseError, RecursionError, LookupError) as error:  # LookupError: an encoding nobody knows
        raise ValueError(f"no XML: {error}") from error
    said = list(_descriptions(root))
    times = (iso_time(properties[name]) for name in TIMES for properties in said if name in properties)
    return XmpFacts(
        position=first_position(_position(properties) for properties in said),
        taken_at=next((time for time in times if time), None),
    )


def first_position(found: Iterator[tuple[float, float] | RejectReason]) -> tuple[float, float] | RejectReason:
    """Take the first usable position; without one the first problem that is more than absence."""
    problem = RejectReason.NO_POSITION
    for each in found:
        if not isinstance(each, RejectReason):
            return each
        if problem == RejectReason.NO_POSITION:
            problem = each
    return problem


def _descriptions(root: Element) -> Iterator[dict[str, str]]:
    """Give the properties of each description, written as attributes or as elements, by namespace and name."""
    for rdf in root.iter(f"{RDF}RDF"):
        for description in rdf.findall(f"{RDF}Description"):
            yield {**{child.tag: child.text or "" for child in description}, **description.attrib}


def _position(properties: dict[str, str]) -> tuple[float, float] | RejectReason:
    lat, lon = properties.get(f"{EXIF}GPSLatitude"), properties.get(f"{EXIF}GPSLongitude")
    if (lat is None and lon is None) or is_own_estimate(properties.get(f"{EXIF}GPSProcessingMethod", "")):
        return RejectReason.NO_POSITION
    lat_deg, lon_deg = _degrees(lat or "", "NS"), _degrees(lon or "", "EW")
    return position_problem(lat_deg, lon_deg) or (lat_deg, lon_deg)


def _degrees(text: str, letters: str) -> float:
    """Read "35,0.73104N", "35,0,43.8N" or a signed decimal number; NaN for anything else."""
    text = text.strip().upper()
    if not text[-1:] or text[-1] not in letters:
        return _decimal(text)
    parts = [_decimal(part) for part in text[:-1].split(",")]
    degrees, minutes, seconds = (*parts, 0.0, 0.0)[:3]
    return (degrees + minutes / 60 + seconds / 3600) * (1 if text[-1] == letters[0] else -1)


def _decimal(text: str) -> float:
    return float(text) if re.fullmatch(r"\s*[+-]?\d+(\.\d*)?\s*", text, re.ASCII) else math.nan
