"""What a user asks of a build, what its stages hand to one another, and what it says in the end."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import pyarrow as pa

from fol_model.inference import Encoder
from infra.storage import Storage
from pipelines.build.membership import StoredSegment
from pipelines.build.plan import BuildPlan
from pipelines.build.purge import Purged
from pipelines.build.tombstones import Tombstones
from pipelines.catalog.limits import PhotoLimits
from pipelines.catalog.sources import Catalog
from pipelines.engine.model import untrained_note
from pipelines.engine.partition import Partition, PartitionConfig
from pipelines.ivfpq import IndexConfig
from schemas.manifest import Manifest
from schemas.reasons import in_words

Mode = Literal["build", "backfill"]

DEFAULT_RECIPE = "folio-small"


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildRequest:
    """What a user asks for."""

    map_url: str
    photos: tuple[str, ...]
    mode: Mode = "build"
    recipe: str | None = None
    """None: the map's own, or `DEFAULT_RECIPE` for a new map."""
    weights: str | None = None
    """A safetensors file; None: the recipe's own, or those in the models folder."""
    replace_model: bool = False
    """Encode all photos again when the network is not the map's."""
    utm_zone: str | None = None
    workers: Literal["here", "ray"] = "here"
    device: str = "auto"
    single_writer: bool = False
    """Publish to a store that does not honour create-if-absent."""
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    limits: PhotoLimits = field(default_factory=PhotoLimits)


@dataclass(frozen=True, kw_only=True, slots=True)
class Surveyed:
    """What is asked for, before the map is looked at."""

    request: BuildRequest
    storage: Storage
    encoder: Encoder
    catalog: Catalog
    run_id: str
    """Made of the photos, the network and the mode: the same when a run is started again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """What the store has of the photos asked for, and what it lacks."""

    head: Manifest | None
    """The version that the run starts from."""
    held_keys: frozenset[str]
    """Photo keys of that version, as far as they are encoded with this network."""
    stored: Mapping[str, StoredSegment]
    """What is encoded with this network."""
    images: pa.Table
    """The photos asked for, without those taken down, in the schema of images."""
    tombstones: Tombstones
    """Of `head`."""
    to_purge: frozenset[str]
    """Segments of `head` that hold photos taken down."""
    reused: frozenset[str]
    """Segments that runs before have left, with photos asked for that `head` does not have; see `BuildPlan`."""
    cuts: list[Partition]
    """The other photos, as the run set out to encode them; some may have been finished before it was interrupted. Then those that
    earlier runs could not read, to be tried again."""
    notes: list[str]
    """For the user: what is left alone."""

    @property
    def planned(self) -> frozenset[str]:
        """Name the segments that the run set out to encode."""
        return frozenset(partition.segment_id for partition in self.cuts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What the stages after `prepare` work from."""

    request: BuildRequest
    storage: Storage
    encoder: Encoder
    catalog: Catalog
    inventory: Inventory
    partitions: list[Partition]
    """Still to be encoded."""
    plan: BuildPlan


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """What the last stage gives to the summary."""

    manifest: Manifest
    encoded: int
    dropped: int
    replaced: int
    """Segments whose photos were copied into others."""
    rejected: dict[str, int]
    rejects: str


class BuildSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What a build did. `folio build --json` prints it."""

    map: str
    version: int
    published: bool
    """False: the map already was what was asked for."""
    photos: int
    """In the map now."""
    encoded: int
    known: int
    dropped: int
    """In the version before, not in this one; a photo that has changed counts here and as encoded."""
    merged: int
    """Segments that were copied into fresh ones without the network: small ones, and those with many or purged photos masked."""
    purged: Purged
    """What was removed of photos taken down."""
    rejected: dict[str, int]
    rejects: str
    """Where the table of rejects lies."""
    segments: int
    shards: int
    bytes_per_photo: float
    encode_photos_per_second: float
    seconds: dict[str, float]
    quantizer: str
    """Whether it was trained, and why, or how well it still fits."""
    recipe: str
    trained: bool
    notes: list[str]

    def lines(self) -> list[str]:
        """Say it to a person."""
        rate = f", {self.encode_photos_per_second:.1f} photos/s" if self.encoded else ""
        lines = [
            *(f"note: {note}" for note in self.notes),
            f"{self.encoded:,} photos encoded{rate}; {self.known:,} were known, {self.dropped:,} dropped",
        ]
        if self.merged:
            lines.append(f"{self.merged:,} small or mostly masked segments merged without the network")
        if self.rejected:
            lines.append(f"{sum(self.rejected.values()):,} rejected ({in_words(self.rejected)}), see {self.rejects}")
        state = "published" if self.published else "unchanged, nothing published"
        lines.append(
            f"{self.map}: version {self.version} {state}, {self.photos:,} photos in {self.segments:,} segments and "
            f"{self.shards:,} shards, {self.bytes_per_photo:,.0f} bytes/photo"
        )
        if self.published:
            lines.append(f"quantizer {self.quantizer}")
        lines += self.purged.lines()
        if not self.trained:
            lines.append(untrained_note(self.recipe))
        return lines
