"""What is said of one photo in its metadata, in the forms of EXIF and XMP. Used by `xmp`, `exif` and `write`.

Source: EXIF 2.32 (CIPA DC-008), section 4.6.6; XMP specification part 2, section 1.2.7.4 ("GPSCoordinate").
"""

import math
import re
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from pipelines.catalog.positions import position_problem
from schemas.geotags import GeotagStatus

Name: TypeAlias = tuple[str, str]
"""Of an XMP property: namespace and local name."""

EXIF_NS: Final = "http://ns.adobe.com/exif/1.0/"
FOLIO_NS: Final = "https://folio-vpr.org/ns/1.0/"

SECOND_PARTS: Final = 10_000
"""Of a second of arc in EXIF: half of one is 1.4e-8 degrees, 1.5 mm."""

MINUTE_PARTS: Final = 1_000_000
"""Of a minute of arc in XMP: half of one is 8e-9 degrees."""

METHODS: Final = {
    GeotagStatus.ANSWERED: "visual place recognition",
    GeotagStatus.ACCEPTED: "visual place recognition, accepted by hand",
    GeotagStatus.INTERPOLATED: "interpolated in a sequence or on a track",
    GeotagStatus.CORRECTED: "by hand",
}
"""By status: how the position came about. Photos of another status have none."""

ONE_SIGMA_RADII: Final = math.sqrt(math.log(1 - 0.68) / math.log(1 - 0.9))
"""The radius that holds 68 % of a circular normal distribution, in radii that hold nine in ten: 0.703."""

XML_FORBIDS: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML file may hold, not even escaped; a file name may."""


class NotWritten(Exception):  # noqa: N818  a reason, as `PhotoError` is
    """Why a file is left as it is.

    Args:
        code: a few words with hyphens, for counting.
        detail: what exactly was found and what to do, for a person.
    """

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True, kw_only=True, slots=True)
class Statement:
    """What is said of one photo."""

    lat_deg: float
    lon_deg: float
    status: GeotagStatus
    expected_error_m: float | None
    """The radius that holds nine in ten such answers; None: not known, as of a position given by hand."""
    probability: float | None
    """Of the position; None: not known, as of one that its own pixels do not speak for."""
    map_version: int | None
    matched_uri: str | None
    """The photo of the map that the position rests on; None: it rests on none."""
    run_id: str

    @property
    def method(self) -> str:
        """For GPSProcessingMethod."""
        return f"folio: {METHODS[self.status]}"

    @property
    def error_68_m(self) -> float | None:
        """For GPSHPositioningError: the radius that holds 68 %, if errors are normal and the same in all directions."""
        return None if self.expected_error_m is None else self.expected_error_m * ONE_SIGMA_RADII

    def xmp(self) -> dict[Name, str]:
        """Say it as XMP: the EXIF properties any reader knows, and our own."""
        said = {
            (EXIF_NS, "GPSLatitude"): xmp_degrees(self.lat_deg, "NS"),
            (EXIF_NS, "GPSLongitude"): xmp_degrees(self.lon_deg, "EW"),
            (EXIF_NS, "GPSMapDatum"): "WGS-84",
            (EXIF_NS, "GPSHPositioningError"): None if self.error_68_m is None else _fraction(self.error_68_m),
            (EXIF_NS, "GPSProcessingMethod"): self.method,
            (FOLIO_NS, "Status"): self.status.value,
            (FOLIO_NS, "Probability"): None if self.probability is None else f"{self.probability:.4f}",
            (FOLIO_NS, "Radius90"): None if self.expected_error_m is None else f"{self.expected_error_m:.2f}",
            (FOLIO_NS, "MapVersion"): None if self.map_version is None else str(self.map_version),
            (FOLIO_NS, "MatchedPhoto"): self.matched_uri and xml_text(self.matched_uri),
            (FOLIO_NS, "Run"): self.run_id,
        }
        return {name: value for name, value in said.items() if value is not None}


def statement_of(geotag: dict[str, Any], *, map_version: int | None, run_id: str) -> Statement:
    """Read what is to be said of a photo from its row of geotags.

    Raises:
        NotWritten: nothing is: it has no position, or none that can be.
    """
    status = GeotagStatus(geotag["status"])
    if status not in METHODS:
        raise NotWritten("no-position", geotag["reason"] or f"its status is {status.value}")
    lat_deg, lon_deg = (math.nan if geotag[name] is None else geotag[name] for name in ("lat_deg", "lon_deg"))
    if problem := position_problem(lat_deg, lon_deg):
        raise NotWritten(problem.value, f"latitude {lat_deg:g}, longitude {lon_deg:g} is no position that a photo can have")
    by_pixels = is_by_pixels(geotag)
    return Statement(
        lat_deg=lat_deg,
        lon_deg=lon_deg,
        status=status,
        expected_error_m=_finite(geotag["expected_error_m"]),
        probability=_finite(geotag["probability"]) if by_pixels else None,
        map_version=map_version,
        matched_uri=geotag["matched_uri"] if by_pixels else None,
        run_id=run_id,
    )


def is_by_pixels(geotag: dict[str, Any]) -> bool:
    """Say whether the position of a row of geotags is the one that the photo's own pixels speak for.

    Only then do its probability and the photo that matched say anything of the position: by hand, on a track, or between two
    others it may be another one.
    """
    best = (geotag["best_lat_deg"], geotag["best_lon_deg"])
    return geotag["status"] == GeotagStatus.ANSWERED or (geotag["lat_deg"], geotag["lon_deg"]) == best


def exif_degrees(degrees: float) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Turn degrees, but for their sign, into rationals: 55.7 gives 55/1 degrees, 42/1 minutes, 0/10000 seconds."""
    rest, parts = divmod(round(abs(degrees) * 3600 * SECOND_PARTS), 60 * SECOND_PARTS)
    whole, minutes = divmod(rest, 60)
    return (whole, 1), (minutes, 1), (parts, SECOND_PARTS)


def xmp_degrees(degrees: float, letters: str) -> str:
    """Turn degrees into a GPSCoordinate, as 55,42.012300N.

    Args:
        degrees: north or east of zero.
        letters: NS or EW.
    """
    whole, parts = divmod(round(abs(degrees) * 60 * MINUTE_PARTS), 60 * MINUTE_PARTS)
    minutes, part = divmod(parts, MINUTE_PARTS)
    return f"{whole},{minutes}.{part:06}{letters[degrees < 0]}"


def rational(value: float) -> tuple[int, int]:
    """Turn a length in metres into an EXIF rational, to the centimetre."""
    return min(round(value * 100), 2**32 - 1), 100


def xml_text(text: str) -> str:
    """Exchange the characters that XML cannot hold for the one that says so."""
    return XML_FORBIDS.sub("\ufffd", text)


def _fraction(value: float) -> str:
    above, below = rational(value)
    return f"{above}/{below}"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value >= 0 else None
