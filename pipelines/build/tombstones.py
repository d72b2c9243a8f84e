"""Tombstones: which photos were taken down and must never come back.

A photo is taken down by its name (`image_id`), and, where its tombstone holds a checksum, under every name. The newest version's
tombstones hold for everything: no build, backfill, merge or rollback brings such a photo back, and an older version is opened
without them (`masking.without`).
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import uuid4

import numpy as np
import pyarrow as pa

from infra.storage import Storage
from infra.tables import read_table, write_table
from schemas import layout
from schemas.images import image_id
from schemas.manifest import ObjectRef
from schemas.tombstones import TOMBSTONES


@dataclass(frozen=True, kw_only=True, slots=True)
class Tombstones:
    """All photos that were taken down."""

    image_ids: frozenset[str]
    photo_keys: frozenset[str]
    """Those known; a name that no photo had yet when it was taken down has none."""
    checksums: frozenset[str]
    """Of bytes that are not to come back under any name. A photo whose copies stay has none here."""

    def __bool__(self) -> bool:
        return bool(self.image_ids)

    def cover(self, image_ids: pa.ChunkedArray, checksums: pa.ChunkedArray) -> np.ndarray:
        """Mark the photos that were taken down: (rows,) bool."""
        # Not `pc.is_in`, which for each segment anew makes a table of all that were ever taken down.
        rows = zip(image_ids.to_pylist(), checksums.to_pylist(), strict=True)
        return np.array([name in self.image_ids or checksum in self.checksums for name, checksum in rows], bool)

    def cover_uris(self, uris: Sequence[str]) -> np.ndarray:
        """The same by name alone."""
        return np.array([image_id(uri) in self.image_ids for uri in uris], bool)

    def cover_rejects(self, rejects: pa.Table) -> np.ndarray:
        """The same for rows of rejects, of which only name and key are known."""
        rows = zip(rejects["uri"].to_pylist(), rejects["photo_key"].to_pylist(), strict=True)
        return np.array([image_id(uri) in self.image_ids or key in self.photo_keys for uri, key in rows], bool)


def read_tombstones(storage: Storage, tables: Collection[ObjectRef]) -> Tombstones:
    """Read the tombstones that a manifest names.

    Raises:
        DamagedError: a table of them is not what was written.
    """
    return tombstones_of(read_tombstone_rows(storage, tables))


def tombstones_of(rows: pa.Table) -> Tombstones:
    """Put together what rows of tombstones say."""
    return Tombstones(
        image_ids=frozenset(rows["image_id"].to_pylist()),
        photo_keys=frozenset(rows["photo_key"].to_pylist()) - {""},
        checksums=frozenset(rows["checksum"].to_pylist()) - {""},
    )


def read_tombstone_rows(storage: Storage, tables: Collection[ObjectRef]) -> pa.Table:
    """Read the same as one table in the schema of tombstones; raises as `read_tombstones`."""
    parts = [read_table(storage, ref.path, kind="tombstones", expected=ref).replace_schema_metadata(None) for ref in tables]
    return pa.concat_tables([TOMBSTONES.empty_table(), *parts])


def write_tombstones(storage: Storage, rows: pa.Table) -> ObjectRef:
    """Write a table of tombstones, under a name of its own: gc may be about to remove one that a killed takedown left."""
    return write_table(storage, f"{layout.TOMBSTONES}/{uuid4().hex[:24]}.parquet", rows, kind="tombstones")
