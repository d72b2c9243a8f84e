"""Any catalog of Folio ▶ photos to train on: folders, buckets and tables, listed and checked as for a map.

What a photo's place is known by, in this order: a column `place_id` (or `place`, `label`) of its table; its position; its frame
in a drive, where its table has a column `sequence_id` or the user says that folders are drives; nothing: a place by itself.
"""

import posixpath
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from infra.settings import Settings
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.sources import list_photos
from pipelines.train.photos import Photos, TrainingPhoto
from pipelines.train.place_labels import read_place_labels

Row = dict[str, Any]


def read_catalog(sources: Sequence[str], *, folders_are_drives: bool, settings: Settings, limits: PhotoLimits) -> Photos:
    """List the photos of sources, as a user names them.

    Args:
        sources: folders, URLs, tables and single photos.
        folders_are_drives: photos of one folder without a position are frames of a drive, in the order of their names.
        settings: threads and store endpoints.
        limits: what one photo may cost.

    Raises:
        CatalogError: a source is not there, empty or cannot be understood.
        StorageError: a store does not answer.
    """
    catalog = list_photos(sources, settings=settings, limits=limits, needs_position=False)
    labels = {uri: place for source in sources for uri, place in read_place_labels(source, settings).items()}
    rows = sorted(catalog.images.to_pylist(), key=lambda row: row["uri"])
    frames = _frames(rows, folders_are_drives=folders_are_drives)
    photos = [
        TrainingPhoto(
            uri=row["uri"],
            root=row["root"],
            size_bytes=row["size_bytes"],
            checksum=row["checksum"],
            place=labels.get(row["uri"]),
            lat_deg=row["lat_deg"],
            lon_deg=row["lon_deg"],
            heading_deg=row["heading_deg"],
            drive=_drive(row, folders_are_drives=folders_are_drives),
            frame=frame,
        )
        for row, frame in zip(rows, frames, strict=True)
    ]
    return Photos(photos=photos, rejects=catalog.rejects.to_pylist(), notes=list(catalog.notes))


def _drive(row: Row, *, folders_are_drives: bool) -> str | None:
    if row["sequence_id"] is not None:
        return str(row["sequence_id"])
    return posixpath.dirname(row["uri"]) if folders_are_drives else None


def _frames(rows: Sequence[Row], *, folders_are_drives: bool) -> list[int]:
    """Number the photos of each drive: by time where all have one, else by name."""
    drives: dict[str | None, list[int]] = defaultdict(list)
    for at, row in enumerate(rows):
        drives[_drive(row, folders_are_drives=folders_are_drives)].append(at)
    numbers = [0] * len(rows)
    for drive, members in drives.items():
        if drive is None:
            continue
        timed = all(rows[at]["taken_at"] is not None for at in members)
        for number, at in enumerate(sorted(members, key=lambda at: (rows[at]["taken_at"], at)) if timed else members):
            numbers[at] = number
    return numbers
