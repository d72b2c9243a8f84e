"""One version of a map, opened for reading: its shards in memory, its segments on demand. Everything is checked before use."""

import hashlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float16, Float32

from infra.arrays import LocalFeaturesReader
from infra.commits import receipt_path
from infra.storage import Storage
from infra.tables import DescriptorReader, get_object, read_table
from pipelines.ivfpq import ShardSearcher
from schemas import layout
from schemas.errors import DamagedError
from schemas.local_features import LocalFeatures
from schemas.manifest import Manifest, Receipt, SegmentEntry, decode_receipt

POSITION_COLUMNS = ["image_id", "uri", "root", "lat_deg", "lon_deg"]

CACHED_FEATURES = 4096
"""Photos whose local features are kept in memory between queries. At 103 features a photo: 110 MB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPhoto:
    """A photo of the map, by its segment and row."""

    segment_id: str
    row: int
    image_id: str


class OpenedSegment:
    """A segment of the map; reads descriptors and local features by row."""

    def __init__(self, storage: Storage, entry: SegmentEntry) -> None:
        receipt = _checked_receipt(storage, entry)
        folder = layout.segment_folder(entry.segment_id, entry.attempt)
        self._refs = {ref.path.removeprefix(folder + "/"): ref for ref in receipt.objects}
        images = self._refs[layout.IMAGES]
        self.images = read_table(storage, images.path, kind="images", columns=POSITION_COLUMNS, expected=images)
        self.image_ids: list[str] = self.images["image_id"].to_pylist()
        self.descriptors = DescriptorReader(storage, self._refs[layout.DESCRIPTORS])
        self.local_features = LocalFeaturesReader(storage, f"{folder}/{layout.LOCAL_FEATURES}", expected=receipt.objects)


class OpenedMap:
    """A version of a map.

    Args:
        storage: of the map.
        manifest: the version.

    Raises:
        DamagedError: a shard or the quantizer is not what the manifest says.
    """

    def __init__(self, storage: Storage, manifest: Manifest) -> None:
        self.manifest = manifest
        self._storage = storage
        self._entries = {entry.segment_id: entry for entry in manifest.segments}
        self._segments: dict[str, OpenedSegment] = {}
        self._features: OrderedDict[tuple[str, int], LocalFeatures] = OrderedDict()
        index = manifest.index
        self._searcher = ShardSearcher(
            get_object(storage, index.quantizer) if index.quantizer else None,
            index.parameters.get("nprobe", 1),
            [get_object(storage, shard.file) for shard in index.shards],
        )

    def segment(self, segment_id: str) -> OpenedSegment:
        """Open a segment, once."""
        if segment_id not in self._segments:
            self._segments[segment_id] = OpenedSegment(self._storage, self._entries[segment_id])
        return self._segments[segment_id]

    def nearest(self, descriptor: Float32[np.ndarray, " D"], count: int) -> list[StoredPhoto]:
        """Find the photos whose compressed descriptors are nearest, nearest first.

        Ties go to the smaller image id, so the answer does not depend on how photos were cut into segments and shards.
        """
        # A few more than asked for, so that photos with equal codes at the end of the list are all there to choose from.
        hits = self._searcher.search(descriptor[None], count + 64)[0]
        photos = [(distance, self._photo(shard, number)) for distance, shard, number in hits]
        photos.sort(key=lambda pair: (pair[0], pair[1].image_id))
        return [photo for _, photo in photos[:count]]

    def descriptors_of(self, photos: Sequence[StoredPhoto]) -> Float16[np.ndarray, "n D"]:
        """Read the exact descriptors of photos, in their order."""
        gathered: np.ndarray | None = None
        for segment, places in _by_segment(photos).items():
            rows = self.segment(segment).descriptors.read([photos[place].row for place in places])
            if gathered is None:
                gathered = np.empty((len(photos), rows.shape[1]), np.float16)
            gathered[places] = rows
        assert gathered is not None, "asked for at least one photo"
        return gathered

    def local_features_of(self, photos: Sequence[StoredPhoto]) -> list[LocalFeatures]:
        """Read the local features of photos, in their order."""
        keys = [(photo.segment_id, photo.row) for photo in photos]
        missing = [photo for photo, key in zip(photos, keys, strict=True) if key not in self._features]
        for segment, places in _by_segment(missing).items():
            rows = [missing[place].row for place in places]
            for row, features in zip(rows, self.segment(segment).local_features.read(rows), strict=True):
                self._features[segment, row] = features
        found = [self._features[key] for key in keys]
        for key in keys:
            self._features.move_to_end(key)
        while len(self._features) > max(CACHED_FEATURES, len(keys)):
            self._features.popitem(last=False)
        return found

    def positions(self) -> pa.Table:
        """List the live photos of the version: columns `POSITION_COLUMNS`."""
        parts = []
        for segment_id, entry in self._entries.items():
            live = np.ones(entry.rows, bool)
            for start, stop in entry.masked_rows:
                live[start:stop] = False
            parts.append(self.segment(segment_id).images.replace_schema_metadata(None).filter(pa.array(live)))
        return pa.concat_tables(parts)

    def _photo(self, shard: int, number: int) -> StoredPhoto:
        members = self.manifest.index.shards[shard].segments
        member = members[bisect_right(members, number, key=lambda one: one.first_id) - 1]
        row = number - member.first_id
        return StoredPhoto(segment_id=member.segment_id, row=row, image_id=self.segment(member.segment_id).image_ids[row])


def _by_segment(photos: Sequence[StoredPhoto]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, photo in enumerate(photos):
        places.setdefault(photo.segment_id, []).append(place)
    return places


def _checked_receipt(storage: Storage, entry: SegmentEntry) -> Receipt:
    path = receipt_path(entry.segment_id)
    data = storage.get(path)
    found = hashlib.sha256(data).hexdigest()
    if found != entry.receipt_sha256:
        raise DamagedError(
            f"{storage.url}/{path}: sha256 {found[:12]} was found, but the manifest needs {entry.receipt_sha256[:12]}. "
            f"No answer was given from it. See what else is damaged: folio verify {storage.url}"
        )
    return decode_receipt(data, where=f"{storage.url}/{path}")
