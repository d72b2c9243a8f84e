"""The photos that a network is trained on: what is known of each, and by what it is told which others show the same place.

Made by `gsv_cities` and `catalog_places`, arranged into places by `layouts`, split by `hold_out`.
"""

from dataclasses import dataclass, field
from typing import Final, Literal

Kind = Literal["label", "position", "frame", "single"]
"""By what a photo's place is known."""

NEAR_M: Final = 25.0
"""Two photos this near to one another show the same place, as the benchmarks of place recognition have it ..."""

NEAR_DEG: Final = 45.0
"""... if they look the same way within this, where both headings are known."""

NEAR_FRAMES: Final = 1
"""Frames of a drive this far apart show the same place."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingPhoto:
    """One photo."""

    uri: str
    """As a catalog names it."""

    root: str
    """Where a relative `uri` starts."""

    size_bytes: int

    checksum: str | None
    """sha256:... or etag:... where a catalog has read the file; None: only its size is known."""

    place: str | None = None
    """Label of its place. The surest of all, so the others do not count beside it."""

    lat_deg: float | None = None

    lon_deg: float | None = None

    heading_deg: float | None = None
    """Clockwise from north."""

    drive: str | None = None
    """The drive it was taken on."""

    frame: int = 0
    """Its number in the drive."""

    @property
    def kind(self) -> Kind:
        """By what its place is known."""
        if self.place is not None:
            return "label"
        if self.lat_deg is not None:
            return "position"
        return "frame" if self.drive is not None else "single"


@dataclass(frozen=True, kw_only=True, slots=True)
class Photos:
    """The photos of some sources."""

    photos: list[TrainingPhoto]

    rejects: list[dict[str, object]] = field(default_factory=list)
    """Rows in the schema of rejects: photos that cannot be used."""

    notes: list[str] = field(default_factory=list)
    """How the sources were understood, for the user."""
