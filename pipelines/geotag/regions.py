"""Regions where no answer may be given, and what must then not be told of the photos that were taken there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from jaxtyping import Bool, Float64

from pipelines.query.answering import Answers
from schemas.geoparquet import GEOMETRY_FIELDS
from schemas.images import photo_key

WITHHELD: Final = "no answer may be given"
"""Why such a photo is unknown: not where, nor in which of the regions."""

COARSE_DEG: Final = 0.001
"""What positions of the map's photos are rounded to where they must not be recognised: a hundred metres."""

PLACES: Final = ("lat_deg", "lon_deg", "altitude_m", "heading_deg", *(field.name for field in GEOMETRY_FIELDS))
"""Columns of images that say where a photo was taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """Where never to answer."""

    area: bytes
    """Well-known binary of polygons in longitude and latitude; edges included."""

    def holds(self, lat_deg: Float64[np.ndarray, " n"], lon_deg: Float64[np.ndarray, " n"]) -> Bool[np.ndarray, " n"]:
        """Mark the positions that lie in it; NaN does not."""
        return np.asarray(shapely.intersects_xy(shapely.from_wkb(self.area), lon_deg, lat_deg), bool)

    def holds_any(self, *places: tuple[float | None, float | None]) -> bool:
        """Tell whether one of some positions lies in it; None lies nowhere."""
        known = [(lat, lon) for lat, lon in places if lat is not None and lon is not None]
        return bool(known) and bool(self.holds(*np.array(known, np.float64).T).any())


def withhold(answers: Answers, region: Region, withheld: Sequence[str]) -> Answers:
    """Take out of the tables what would say where some photos were taken, and all that stands in the region.

    Args:
        answers: of the whole archive.
        region: where never to answer.
        withheld: image ids of the photos that no answer may be given of.
    """
    names = pa.array(withheld, pa.string())
    queries = answers.queries
    hidden = pc.is_in(queries["image_id"], names)
    for name in PLACES:
        column = queries[name]
        nothing = pa.nulls(len(queries), column.type)
        queries = queries.set_column(
            queries.schema.get_field_index(name), queries.schema.field(name), _where(hidden, nothing, column)
        )
    keys = [
        photo_key(row["uri"], row["size_bytes"], row["checksum"])
        if hides
        else row["photo_key"]  # it tells the position otherwise
        for row, hides in zip(
            queries.select(["uri", "size_bytes", "checksum", "photo_key"]).to_pylist(), hidden.to_pylist(), strict=True
        )
    ]
    place = queries.schema.get_field_index("photo_key")
    queries = queries.set_column(place, queries.schema.field(place), pa.array(keys, pa.string()))
    shown = pc.invert(pc.is_in(answers.results["query_id"], names))
    return replace(
        answers,
        queries=queries,
        results=_outside(answers.results.filter(shown), region),
        coverage=_outside(answers.coverage, region),
    )


def redact(answers: Answers) -> Answers:
    """Take out of the tables what would tell the map's photos: all candidates, and names and exact places of the map's photos."""
    coverage = answers.coverage
    places = {
        (round(lat / COARSE_DEG), round(lon / COARSE_DEG))
        for lat, lon in zip(coverage["lat_deg"].to_pylist(), coverage["lon_deg"].to_pylist(), strict=True)
    }
    rows = [{"uri": "", "lat_deg": lat * COARSE_DEG, "lon_deg": lon * COARSE_DEG} for lat, lon in sorted(places)]
    return replace(answers, results=answers.results.slice(0, 0), coverage=pa.Table.from_pylist(rows, coverage.schema))


def _outside(table: pa.Table, region: Region) -> pa.Table:
    return table.filter(pa.array(~region.holds(table["lat_deg"].to_numpy(), table["lon_deg"].to_numpy())))


def _where(hidden: pa.ChunkedArray, nothing: pa.Array, column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(hidden, nothing, column)
