"""photos ▶ a damaged segment made again: its photos are found, checked and encoded, beside the map.

The photos are looked for where the segment's table of images says, then among the sources that the user gives. Where that table
is damaged itself, their names come from the table of descriptors, and where that is damaged too, every given photo inside the
segment's box is taken that no whole segment holds.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fol_model.inference import Encoder
from infra.observability import progress_bar
from infra.settings import Settings
from infra.storage import LocalStorage, Storage
from infra.tables import read_table
from pipelines.build.encode import encode_partition
from pipelines.build.tombstones import Tombstones
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.loading import photo_loader
from pipelines.catalog.reading import PhotoReader
from pipelines.catalog.sources import list_photos
from pipelines.engine.partition import Partition
from schemas import layout
from schemas.errors import MapError, ObjectMissing, PhotoError
from schemas.images import IMAGES
from schemas.manifest import BBox, Receipt


@dataclass(frozen=True, kw_only=True, slots=True)
class DamagedSegment:
    """A segment of which something is not what was written."""

    folder: str
    """Where its objects lie."""
    live: np.ndarray
    """(rows,) bool: which are part of the newest version; none where it does not name the segment."""
    bbox: BBox


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundPhotos:
    """What is left of the photos of a segment."""

    images: pa.Table
    """In the schema of images and the segment's order: all of them, or the live ones that are left."""
    live: np.ndarray
    """(images,) bool: which are part of the newest version."""
    complete: bool
    """They are all of the segment's photos, so that it may become again what it was."""
    lost: list[str]
    """Live photos that are nowhere any more: names, or image ids where nothing else is known."""


class PhotoFinder:
    """Finds the photos of damaged segments.

    Args:
        storage: of the map.
        sources: folders, buckets, tables or photos to look through; may be none.
        settings: of this process.
        limits: what one photo may cost.
        tombstones: photos that must not come back.
        held: lists the keys of photos that whole segments hold.
    """

    def __init__(
        self,
        storage: Storage,
        sources: tuple[str, ...],
        settings: Settings,
        limits: PhotoLimits,
        *,
        tombstones: Tombstones,
        held: Callable[[], Collection[str]],
    ) -> None:
        self._storage = storage
        self._sources = sources
        self._settings = settings
        self._limits = limits
        self._tombstones = tombstones
        self._held = held
        self._reader = PhotoReader(settings, limits)

    def find(self, segment: DamagedSegment) -> FoundPhotos:
        """Find what can be encoded of a segment."""
        images, live, lost = self._listed(segment)
        down = self._tombstones.cover(images["image_id"], images["checksum"])
        rows = [None if taken_down else self._readable(row) for row, taken_down in zip(images.to_pylist(), down, strict=True)]
        lost += [
            uri
            for uri, row, one_live, taken_down in zip(images["uri"].to_pylist(), rows, live, down, strict=True)
            if row is None and one_live and not taken_down
        ]
        there = np.array([row is not None for row in rows], bool)
        complete = len(images) == len(segment.live) and bool(there.all())
        kept = np.flatnonzero(there if complete else there & live)
        table = pa.Table.from_pylist([rows[place] for place in kept.tolist()], IMAGES)
        return FoundPhotos(images=table, live=live[kept], complete=complete, lost=lost)

    def _listed(self, segment: DamagedSegment) -> tuple[pa.Table, np.ndarray, list[str]]:
        """List the photos of a segment as far as they are known: rows, which of them are live, and live ones without a row."""
        images = self._stored_table(f"{segment.folder}/{layout.IMAGES}", "images", IMAGES.names)
        if images is not None and len(images) == len(segment.live):
            return images.cast(IMAGES), segment.live, []
        descriptors = self._stored_table(f"{segment.folder}/{layout.DESCRIPTORS}", "descriptors", ["image_id"])
        if descriptors is not None and len(descriptors) == len(segment.live):
            names = descriptors["image_id"].to_pylist()
            places = pc.index_in(pa.array(names), self._given["image_id"].combine_chunks()).to_pylist()
            there = np.array([place is not None for place in places], bool)
            lost = [name for name, found, one_live in zip(names, there, segment.live, strict=True) if one_live and not found]
            return (
                self._given.take(pa.array([place for place in places if place is not None], pa.int64())),
                segment.live[there],
                lost,
            )
        west, south, east, north = segment.bbox
        lon, lat = (self._given[name].to_numpy() for name in ("lon_deg", "lat_deg"))
        held = self._held()
        unknown = np.array([key not in held for key in self._given["photo_key"].to_pylist()], bool)
        inside = (west <= lon) & (lon <= east) & (south <= lat) & (lat <= north) & unknown
        found = self._given.filter(pa.array(inside))
        # Both are in the order of the Hilbert curve, so that equally many are the same ones in the same order.
        live = segment.live if len(found) == len(segment.live) else np.ones(len(found), bool)
        return found, live, []

    def _stored_table(self, path: str, kind: str, columns: list[str]) -> pa.Table | None:
        """Read a table that may be damaged; its own seal says whether it is."""
        try:
            return read_table(self._storage, path, kind=kind, columns=columns).replace_schema_metadata(None)
        except (MapError, ObjectMissing):
            return None

    def _readable(self, row: dict[str, object]) -> dict[str, object] | None:
        """Give a row whose photo can be read and is the one that was listed: this one, or the same photo of a given source."""
        for candidate in (row, self._elsewhere(row)):
            if candidate is None:
                continue
            try:
                self._reader.read(
                    str(candidate["uri"]),
                    str(candidate["root"]),
                    size_bytes=int(str(candidate["size_bytes"])),
                    checksum=str(candidate["checksum"]),
                )
            except PhotoError:
                continue
            return candidate
        return None

    def _elsewhere(self, row: dict[str, object]) -> dict[str, object] | None:
        place = self._given_places.get(str(row["photo_key"]))
        return None if place is None else self._given.slice(place, 1).to_pylist()[0]

    @cached_property
    def _given(self) -> pa.Table:
        """What the sources hold that the user gave."""
        if not self._sources:
            return IMAGES.empty_table()
        return list_photos(self._sources, settings=self._settings, limits=self._limits, needs_position=True).images

    @cached_property
    def _given_places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self._given["photo_key"].to_pylist())}


@contextmanager
def encoded_again(
    partition: Partition, encoder: Encoder, settings: Settings, limits: PhotoLimits
) -> Iterator[tuple[Storage, Receipt]]:
    """Encode photos into a segment in a temporary folder: gives its storage and receipt, and removes it afterwards."""
    with (
        TemporaryDirectory(prefix="folio-repair-") as folder,
        closing(photo_loader(encoder, settings, limits)) as loader,
        progress_bar(len(partition.images), unit="photo", description=f"encode {partition.segment_id[:8]}") as bar,
    ):
        scratch = LocalStorage(folder)
        yield scratch, encode_partition(partition, scratch, encoder, loader, bar.update)
