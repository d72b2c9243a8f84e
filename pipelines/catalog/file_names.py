"""Positions in file names, as visual place recognition benchmarks write them.

    @utm_east@utm_north@zone_number@zone_letter@lat@lon@pano_id@tile@heading@pitch@roll@height@timestamp@note@.jpg

Only the first two fields are required; with those alone (`@utm_east@utm_north@.jpg`) the UTM zone must be given. Used by
`sources`. Source of the form: gmberton/VPR-datasets-downloader, util.py.
"""

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, Self

from pyproj import Transformer

from pipelines.catalog.claims import Claim
from schemas.errors import CatalogError

BANDS: Final = "CDEFGHJKLMNPQRSTUVWX"
"""Latitude bands of UTM from south to north; from N on they lie north of the equator."""

EAST, NORTH, ZONE, BAND, LAT, LON, HEADING, TIMESTAMP = 1, 2, 3, 4, 5, 6, 9, 13


@dataclass(frozen=True, kw_only=True, slots=True)
class UtmZone:
    """A zone of the UTM grid and its half of the Earth."""

    number: int
    south: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a zone as a user writes it: 33U with a latitude band, or 33north, 56south.

        Raises:
            CatalogError: not a zone, or S, which is a band in the north but often meant as south.
        """
        match = re.fullmatch(r"(\d{1,2})\s*(north|south|[a-z])", text.strip().lower())
        number, half = (int(match[1]), match[2]) if match else (0, "")
        if half == "s":
            raise CatalogError(
                f"UTM zone {text!r}: S is a latitude band north of the equator, but often meant as south. "
                f"Nothing was read. Write {number}north or {number}south."
            )
        if not 1 <= number <= 60 or (half not in ("north", "south") and half.upper() not in BANDS):
            raise CatalogError(
                f"UTM zone {text!r}: needed a number from 1 to 60 and a latitude band or half of the Earth, "
                "like 33U, 33north or 56south. Nothing was read."
            )
        return cls(number=number, south=half == "south" or (len(half) == 1 and half.upper() < "N"))

    def lat_lon(self, east_m: float, north_m: float) -> tuple[float, float]:
        """Convert to latitude and longitude in degrees (WGS 84); NaN for a place that is not on the grid."""
        if not (0 <= east_m <= 1_000_000 and 0 <= north_m <= 10_000_000):
            return math.nan, math.nan
        lon_deg, lat_deg = _to_lon_lat(self).transform(east_m, north_m)
        return float(lat_deg), float(lon_deg)


def claim_from_name(name: str, utm_zone: UtmZone | None) -> Claim | None:
    """Read what a file's name says of the photo; None when it is not in the benchmarks' form.

    Args:
        name: without folders.
        utm_zone: for names that give no zone.

    Raises:
        CatalogError: the name gives no zone and neither does `utm_zone`.
    """
    fields = [*name.split("@"), *[""] * 14]
    east_m, north_m = _number(fields[EAST]), _number(fields[NORTH])
    if not name.startswith("@") or east_m is None or north_m is None:
        return None
    lat_deg, lon_deg = _position(name, fields, east_m, north_m, utm_zone)
    heading_deg = _number(fields[HEADING])
    return Claim(
        source="the file name",
        lat_deg=lat_deg,
        lon_deg=lon_deg,
        heading_deg=heading_deg % 360 if heading_deg is not None and 0 <= heading_deg <= 360 else None,
        taken_at=_time(fields[TIMESTAMP]),
    )


def _position(name: str, fields: list[str], east_m: float, north_m: float, utm_zone: UtmZone | None) -> tuple[float, float]:
    """UTM with the name's own zone, else its latitude and longitude (less exact), else UTM with the zone given."""
    if fields[ZONE].isdecimal() and fields[BAND].upper() in BANDS and fields[BAND]:
        if not 1 <= int(fields[ZONE]) <= 60:
            return math.nan, math.nan
        return UtmZone(number=int(fields[ZONE]), south=fields[BAND].upper() < "N").lat_lon(east_m, north_m)
    lat_deg, lon_deg = _number(fields[LAT]), _number(fields[LON])
    if lat_deg is not None and lon_deg is not None:
        return lat_deg, lon_deg
    if utm_zone is None:
        raise CatalogError(
            f"{name}: a UTM position without its zone. Nothing was written. Give the zone of all such names: --utm-zone 33U"
        )
    return utm_zone.lat_lon(east_m, north_m)


@lru_cache
def _to_lon_lat(zone: UtmZone) -> Transformer:
    return Transformer.from_crs(f"EPSG:{(32700 if zone.south else 32600) + zone.number}", "OGC:CRS84", always_xy=True)


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"[+-]?\d+(\.\d*)?", text, re.ASCII) else None


def _time(text: str) -> datetime | None:
    """Read YYYYMMDD_hhmmss as UTC. The form allows less, but a day is no time."""
    try:
        return datetime.strptime(text, "%Y%m%d_%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None
