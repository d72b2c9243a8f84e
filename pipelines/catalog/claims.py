"""What a table or a file name says of a photo before its file is opened."""

from dataclasses import dataclass, fields
from datetime import datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """What one table row or file name says; None where it says nothing."""

    source: str
    """Where it says so, for a person: "row 3 of photos.csv"."""

    lat_deg: float | None = None
    """NaN when it says something that is no number. A position of which one half is None is no position."""

    lon_deg: float | None = None
    altitude_m: float | None = None
    heading_deg: float | None = None
    taken_at: datetime | None = None
    sequence_id: str | None = None

    @property
    def has_position(self) -> bool:
        """Whether it says anything, right or wrong, of the position."""
        return self.lat_deg is not None or self.lon_deg is not None

    def completed_by(self, other: "Claim") -> "Claim":
        """Fill in what this one does not say. The position is taken whole from one of them, and `source` is of the position."""
        names = [field.name for field in fields(self) if field.name not in ("source", "lat_deg", "lon_deg")]
        merged = {name: getattr(self, name) if getattr(self, name) is not None else getattr(other, name) for name in names}
        position = self if self.has_position else other
        return Claim(source=position.source, lat_deg=position.lat_deg, lon_deg=position.lon_deg, **merged)
