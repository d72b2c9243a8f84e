"""The manifest: the one object a reader opens. Everything a published version of a map consists of, with its sha256.

`manifests/<version, 20 digits>.json` is created only if absent and never changed, so a version means the same for ever. Paths are
relative to the map. No credentials and no host paths stand in it.
"""

from typing import Any, TypeVar

import msgspec

from schemas.errors import FormatError
from schemas.versions import FORMATS, require_readable

BBox = tuple[float, float, float, float]
"""West, south, east, north in degrees."""


class ObjectRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One stored object and what its bytes must be."""

    path: str
    size_bytes: int
    sha256: str


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`receipts/<segment_id>.json`: a finished segment. Created only if absent; the first attempt wins."""

    format_version: int = FORMATS["receipt"]
    segment_id: str
    attempt: str
    model_fingerprint: str
    rows: int
    rejected: int
    bbox: BBox | None
    """Of its photos; None when every photo was rejected."""
    objects: list[ObjectRef]
    """Every object of the segment, by path."""


class ModelEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The network a map was made with. Queries must be encoded by the same one."""

    recipe: str
    fingerprint: str
    trained: bool
    """False: seeded weights that have seen no photo; answers are then only as good as chance and colour make them."""
    settings: dict[str, Any]
    """The whole configuration: sizes, mode, preprocessing, mask."""


class SegmentEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A segment of this version."""

    segment_id: str
    attempt: str
    rows: int
    masked_rows: list[tuple[int, int]] = []
    """Row ranges [start, stop) that are not part of this version."""
    bbox: BBox
    receipt_sha256: str


class ShardSegment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which vectors of a shard belong to a segment: those with ids first_id + row."""

    segment_id: str
    first_id: int


class ShardEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One FAISS file and the segments it covers."""

    file: ObjectRef
    rows: int
    """Vectors in it: the unmasked rows of its segments."""
    bbox: BBox
    segments: list[ShardSegment]


class IndexEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to search this version."""

    quantizer_format: int = FORMATS["quantizer"]
    shard_format: int = FORMATS["shard"]
    kind: str
    """`ivfpq`, or `flat` (exact, uncompressed) for maps too small to train a quantizer."""
    index_id: str
    seed: int
    trained_on: int
    """Photos the quantizer was trained on; 0 for flat."""
    trained_for: int
    """Photos the map had then; 0 for flat."""
    parameters: dict[str, Any]
    quantizer: ObjectRef | None
    """FAISS file: the linear map in front and an empty IVF-PQ index. None for flat."""
    shards: list[ShardEntry]


class Producer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What wrote a manifest."""

    name: str
    version: str
    python: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A published version of a map."""

    format_version: int = FORMATS["manifest"]
    version: int
    parent: int | None
    commit_id: str
    """Of this attempt to publish: how a publisher recognises its own manifest after a lost answer."""
    content_id: str
    """Hash of what a reader sees; equal for equal maps however often they are built."""
    created_at: str
    """UTC, ISO 8601."""
    producer: Producer
    model: ModelEntry
    segments: list[SegmentEntry]
    index: IndexEntry
    tombstones: list[ObjectRef] = []
    calibration: dict[str, Any] | None = None
    """Parameters fitted to this map; None: the recipe's defaults hold."""
    statistics: dict[str, Any]
    configuration: dict[str, Any]
    single_writer: bool = False
    """True: published without proof that the store refuses a second writer."""


class Tag(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`tags/<name>.json`: a name for a version."""

    version: int


def decode_manifest(data: bytes, *, where: str) -> Manifest:
    """Read a manifest.

    Raises:
        FormatError: not a manifest, or one of a format this Folio does not read.
    """
    return _decode(data, Manifest, "manifest", where)


def decode_receipt(data: bytes, *, where: str) -> Receipt:
    """Read a receipt.

    Raises:
        FormatError: not a receipt, or one of a format this Folio does not read.
    """
    return _decode(data, Receipt, "receipt", where)


def encode_json(document: msgspec.Struct) -> bytes:
    """Write a manifest, receipt or tag: indented JSON, so that a person can read it; the same bytes for the same content."""
    return msgspec.json.format(msgspec.json.encode(document, order="deterministic"), indent=1) + b"\n"


T = TypeVar("T", bound=msgspec.Struct)


class _Head(msgspec.Struct):
    format_version: int


def _decode(data: bytes, kind_type: type[T], kind: str, where: str) -> T:
    try:
        # The number first: a newer format may have fields this version would call unknown.
        require_readable(kind, msgspec.json.decode(data, type=_Head).format_version, where=where)
        return msgspec.json.decode(data, type=kind_type)
    except msgspec.MsgspecError as error:
        raise FormatError(
            f"{where}: expected a {kind}, found {error}. Nothing was changed. Check the map: folio verify"
        ) from error
