"""A results folder ▶ the files that other programs read: CSV, GPX, KML, Mapillary's and hloc's. `folio geotag --format`.

Made from `geotags.parquet` and `results.parquet`, whatever came before. GeoParquet and GeoJSON are part of every results folder.

Sources: GPX 1.1 (https://www.topografix.com/GPX/1/1/), KML 2.3 (OGC 12-007r2), schema/image_description_schema.json of
mapillary_tools, `parse_retrieval` in utils/parsers.py of hloc.
"""

import io
import json
import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5
from xml.etree import ElementTree

import gpxpy.gpx
import msgspec
import pyarrow as pa
import pyarrow.csv

from infra.settings import Settings
from infra.storage import open_storage
from infra.tables import read_table
from pipelines.geotag.decisions import newest_format
from pipelines.geotag.writing.statement import FOLIO_NS, ONE_SIGMA_RADII, is_by_pixels, xml_text
from schemas.errors import CatalogError, ObjectMissing

KML_NS: Final = "http://www.opengis.net/kml/2.2"

SHOWN: Final = ("status", "expected_error_m", "probability", "support", "matched_uri", "sequence_id")
"""Columns that KML shows of a photo."""

OF_PIXELS: Final = ("probability", "support", "matched_uri")
"""Those of them that speak for the position its pixels were found at, and for no other."""

NAMES_OF: Final = {
    "csv": "geotags.csv",
    "gpx": "geotags.gpx",
    "kml": "geotags.kml",
    "mapillary": "mapillary_image_description.json",
    "hloc": "hloc-pairs.txt",
}
"""The formats, and the file of each."""


class ExportSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What was exported. `folio geotag --format ... --json` prints it as `exports`."""

    files: list[str]
    notes: list[str]

    def lines(self) -> list[str]:
        """Say it to a person."""
        return [*(f"note: {note}" for note in self.notes), f"written: {', '.join(self.files)}"]


def parse_formats(texts: Iterable[str]) -> tuple[str, ...]:
    """Read what was given to --format: names, in any number and with commas between them.

    Raises:
        ValueError: there is no such format.
    """
    formats = dict.fromkeys(name.strip().lower() for text in texts for name in text.split(","))
    if unknown := [name for name in formats if name not in NAMES_OF]:
        raise ValueError(f"no format is called {', '.join(unknown)}; there are {', '.join(NAMES_OF)}")
    return tuple(formats)


def run_exports(out: str, formats: Sequence[str], settings: Settings) -> ExportSummary:
    """Write the geotags of a results folder in other formats, beside them.

    Args:
        out: the results folder.
        formats: of `NAMES_OF`.
        settings: for the store of the folder.

    Raises:
        CatalogError: there are no geotags in it.
        FolioError: anything else that keeps tables from being read or files from being written.
    """
    storage = open_storage(out, settings)
    notes: list[str] = []
    try:
        geotags = newest_format(read_table(storage, "geotags.parquet", kind="geotags"))
        results = read_table(storage, "results.parquet", kind="results", columns=["query_id", "uri", "rank"])
    except ObjectMissing as error:
        raise CatalogError(f"{out}: {error}. There is nothing to export. Next: folio geotag MAP ARCHIVE --out {out}") from error
    for name in formats:
        if name == "csv":
            data = to_csv(geotags)
        elif name == "gpx":
            data = to_gpx(geotags)
        elif name == "kml":
            data = to_kml(geotags)
        elif name == "mapillary":
            data, untimed = to_mapillary(geotags)
            if untimed:
                notes.append(f"{NAMES_OF[name]}: {untimed:,} photos left out: they have no capture time, which Mapillary needs")
        else:
            data, unnamed = to_hloc(geotags, results)
            if unnamed:
                notes.append(f"{NAMES_OF[name]}: {unnamed:,} pairs left out: there are blanks in a name, which hloc cannot read")
            if not len(results):
                notes.append(f"{NAMES_OF[name]}: empty: no candidates are kept in this folder, as with --redact")
        storage.put(NAMES_OF[name], data)
    return ExportSummary(files=[f"{out.rstrip('/')}/{NAMES_OF[name]}" for name in formats], notes=notes)


def to_csv(geotags: pa.Table) -> bytes:
    """Make a table of every photo, those without a position too: the columns of geotags, times in UTC."""
    buffer = io.BytesIO()
    pa.csv.write_csv(geotags.drop_columns(["geometry", "bbox"]), buffer)
    return buffer.getvalue()


def to_gpx(geotags: pa.Table) -> bytes:
    """Make a waypoint of each photo with a position, and a track of each sequence, by the times the photos were taken."""
    gpx = gpxpy.gpx.GPX()
    gpx.creator = "folio-vpr"
    tracks: dict[str, list[dict[str, Any]]] = {}
    for row in placed(geotags):
        gpx.waypoints.append(
            gpxpy.gpx.GPXWaypoint(
                row["lat_deg"],
                row["lon_deg"],
                time=row["taken_at"],
                name=xml_text(row["uri"]),
                description=_in_words(row),
                type="photo",
            )
        )
        if row["sequence_id"] is not None and row["taken_at"] is not None:
            tracks.setdefault(row["sequence_id"], []).append(row)
    for name, rows in tracks.items():
        points = [
            gpxpy.gpx.GPXTrackPoint(row["lat_deg"], row["lon_deg"], time=row["taken_at"])
            for row in sorted(rows, key=lambda row: row["taken_at"])
        ]
        track = gpxpy.gpx.GPXTrack(name=xml_text(name))
        track.segments.append(gpxpy.gpx.GPXTrackSegment(points))
        gpx.tracks.append(track)
    return str(gpx.to_xml(version="1.1")).encode()


def to_kml(geotags: pa.Table) -> bytes:
    """Make a placemark of each photo with a position."""
    ElementTree.register_namespace("", KML_NS)
    kml = ElementTree.Element(f"{{{KML_NS}}}kml")
    document = _add(kml, "Document")
    _add(document, "name", "Geotags by Folio")
    for row in placed(geotags):
        placemark = _add(document, "Placemark")
        _add(placemark, "name", xml_text(row["uri"]))
        _add(placemark, "description", _in_words(row))
        if row["taken_at"] is not None:
            _add(_add(placemark, "TimeStamp"), "when", row["taken_at"].isoformat(timespec="milliseconds").replace("+00:00", "Z"))
        data = _add(placemark, "ExtendedData")
        for column in SHOWN:
            if row[column] is not None and (column not in OF_PIXELS or is_by_pixels(row)):
                shown = _add(data, "Data")
                shown.set("name", column)
                _add(shown, "value", xml_text(str(row[column])))
        _add(_add(placemark, "Point"), "coordinates", f"{row['lon_deg']:.8f},{row['lat_deg']:.8f}")
    return bytes(ElementTree.tostring(kml, "utf-8", xml_declaration=True))


def to_mapillary(geotags: pa.Table) -> tuple[bytes, int]:
    """Make the image descriptions that `mapillary_tools upload` takes, and count the photos left out for want of a time."""
    rows = placed(geotags)
    timed = [row for row in rows if row["taken_at"] is not None]
    descriptions = []
    for row in timed:
        taken_at = row["taken_at"]
        description = {
            "filename": row["uri"] if _is_absolute(row["uri"]) else posixpath.join(row["root"], row["uri"]),
            "filetype": "image",
            "MAPFilename": posixpath.basename(row["uri"]),
            "MAPLatitude": row["lat_deg"],
            "MAPLongitude": row["lon_deg"],
            "MAPCaptureTime": f"{taken_at:%Y_%m_%d_%H_%M_%S}_{taken_at.microsecond // 1000:03}",
        }
        if row["sequence_id"] is not None:  # any text; Mapillary takes letters, digits, - and _
            description["MAPSequenceUUID"] = str(uuid5(NAMESPACE_URL, f"{FOLIO_NS}{row['root']}/{row['sequence_id']}"))
        if row["expected_error_m"] is not None:
            description["MAPGPSAccuracyMeters"] = round(row["expected_error_m"] * ONE_SIGMA_RADII, 2)
        descriptions.append(description)
    return json.dumps(descriptions, indent=2, ensure_ascii=False, allow_nan=False).encode(), len(rows) - len(timed)


def to_hloc(geotags: pa.Table, results: pa.Table) -> tuple[bytes, int]:
    """Make hloc's pairs, `query reference` a line, best candidates first, and count the pairs left out for blanks in a name."""
    names = dict(zip(geotags["query_id"].to_pylist(), geotags["uri"].to_pylist(), strict=True))
    found = results.sort_by([("query_id", "ascending"), ("rank", "ascending")]).select(["query_id", "uri"]).to_pylist()
    by_query: dict[str, list[str]] = {}
    for row in found:
        by_query.setdefault(row["query_id"], []).append(row["uri"])
    pairs = [(names[query], reference) for query in names for reference in by_query.get(query, [])]
    kept = [f"{query} {reference}\n" for query, reference in pairs if not re.search(r"\s", query + reference)]
    return "".join(kept).encode(), len(pairs) - len(kept)


def placed(geotags: pa.Table) -> list[dict[str, Any]]:
    """Give the rows that have a position."""
    rows: list[dict[str, Any]] = geotags.drop_columns(["geometry", "bbox"]).to_pylist()
    return [row for row in rows if row["lat_deg"] is not None and row["lon_deg"] is not None]


def _in_words(row: dict[str, Any]) -> str:
    radius = "" if row["expected_error_m"] is None else f", within {row['expected_error_m']:.0f} m in nine of ten"
    probability = "" if row["probability"] is None or not is_by_pixels(row) else f", probability {row['probability']:.2f}"
    return f"{row['status']}{radius}{probability}"


def _is_absolute(uri: str) -> bool:
    return uri.startswith("/") or "://" in uri


def _add(parent: ElementTree.Element, tag: str, text: str | None = None) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, f"{{{KML_NS}}}{tag}")
    child.text = text
    return child
