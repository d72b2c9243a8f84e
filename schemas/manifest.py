"""The manifest: the one object a reader opens. Everything a published version of a map consists of, with its sha256.

`manifests/<version, 20 digits>.json` is created only if absent and never changed, so a version means the same for ever. Paths are
relative to the map. No credentials and no host paths stand in it.

Documents (manifests, receipts, tags, leases, plans) are sealed: `sha256` is that of the whole file with its own 64 digits
replaced by zeros, so a damaged document is noticed before anything in it is believed. Formats 1 of manifest, receipt and plan
have no seal.
"""

import hashlib
import re
from typing import Any, Final, Literal, TypeVar

import msgspec

from schemas.errors import DamagedError, FormatError
from schemas.versions import FORMATS, require_readable

T = TypeVar("T", bound=msgspec.Struct)

Action = Literal["build", "backfill", "rollback", "takedown", "repair", "unknown"]
"""What published a version: the command line's word; `unknown` in manifests of format 1."""

BBox = tuple[float, float, float, float]
"""West, south, east, north in degrees."""


class ObjectRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """One stored object and what its bytes must be."""

    path: str
    size_bytes: int
    sha256: str
    blocks: tuple[tuple[int, int], ...] = ()
    """Size and crc32c of each part that readers fetch alone, in order; together they are the whole object. None: read whole."""


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
    sha256: str = ""
    """The seal, by which manifests name this receipt. Of format 1: of the whole file."""


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
    """`Receipt.sha256`."""


class ShardSegment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which vectors of a shard belong to a segment: those with ids first_id + row."""

    segment_id: str
    first_id: int


class ShardEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One FAISS file and the segments it covers."""

    file: ObjectRef
    rows: int
    """Vectors in it: the rows of its segments that were not masked when it was made."""
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


class IndexReceipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`runs/<run_id>/index-<key>.json`: a part of an index that a run has made. Decides nothing: it saves making it again."""

    format_version: int = FORMATS["index_receipt"]
    key: str
    """Names everything that decides the content."""
    file: ObjectRef
    entry: IndexEntry | None = None
    """Of a quantizer: the index without shards. None: a shard."""
    sha256: str = ""
    """The seal; see above. Empty until the document is written."""


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
    action: Action = "unknown"
    sha256: str = ""
    """The seal; see above. Empty until the document is written."""


class Tag(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`tags/<name>.json`: a name for a version, which gc then keeps. Created only if absent."""

    format_version: int = FORMATS["tag"]
    version: int
    created_at: str
    """UTC, ISO 8601."""
    sha256: str = ""
    """The seal; see above. Empty until the document is written."""


class Lease(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`runs/<run_id>/lease.json`: somebody is at work, as long as the store's clock says that this was written lately."""

    format_version: int = FORMATS["lease"]
    run_id: str
    action: str
    """The command at work; `gc` is told from the others."""
    pins: list[int] = []
    """Versions that the run reads and gc must leave whole."""
    sha256: str = ""
    """The seal; see above. Empty until the document is written."""


class Retired(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`retired/<version, 20 digits>.json`: objects of this version may be gone for good; it is not opened again."""

    format_version: int = FORMATS["retired"]
    version: int
    reason: Literal["gc", "purge", "repair"]
    sha256: str = ""
    """The seal; see above. Empty until the document is written."""


def decode_document(data: bytes, kind_type: type[T], kind: str, *, where: str) -> T:
    """Read a document of any kind.

    Args:
        data: what is stored.
        kind_type: what it is to be read as; a struct with the fields `format_version` and `sha256`.
        kind: one of `schemas.versions.FORMATS`.
        where: the object, for messages.

    Raises:
        DamagedError: it is not what was written.
        FormatError: another kind of document, or one of a format this Folio does not read.
    """
    try:
        # The number first: a newer format may have fields this version would call unknown.
        number = msgspec.json.decode(data, type=_Head).format_version
        require_readable(kind, number, where=where)
        if number > _UNSEALED.get(kind, 0):
            _require_seal(data, kind, where)
        return msgspec.json.decode(data, type=kind_type)
    except msgspec.MsgspecError as error:
        raise FormatError(
            f"{where}: expected a {kind}, found {error}. Nothing was changed. Check the map: folio verify"
        ) from error


def decode_manifest(data: bytes, *, where: str) -> Manifest:
    """Read a manifest.

    Raises:
        DamagedError: it is not what was written.
        FormatError: not a manifest, or one of a format this Folio does not read.
    """
    return decode_document(data, Manifest, "manifest", where=where)


def decode_receipt(data: bytes, *, where: str) -> Receipt:
    """Read a receipt.

    Raises:
        DamagedError: it is not what was written.
        FormatError: not a receipt, or one of a format this Folio does not read.
    """
    receipt = decode_document(data, Receipt, "receipt", where=where)
    return receipt if receipt.sha256 else msgspec.structs.replace(receipt, sha256=hashlib.sha256(data).hexdigest())


def decode_tag(data: bytes, *, where: str) -> Tag:
    """Read a tag; raises as `decode_manifest`."""
    return decode_document(data, Tag, "tag", where=where)


def decode_lease(data: bytes, *, where: str) -> Lease:
    """Read a lease; raises as `decode_manifest`."""
    return decode_document(data, Lease, "lease", where=where)


def decode_index_receipt(data: bytes, *, where: str) -> IndexReceipt:
    """Read the receipt of a part of an index; raises as `decode_manifest`."""
    return decode_document(data, IndexReceipt, "index_receipt", where=where)


def decode_retired(data: bytes, *, where: str) -> Retired:
    """Read a mark of retirement; raises as `decode_manifest`."""
    return decode_document(data, Retired, "retired", where=where)


def encode_json(document: msgspec.Struct) -> bytes:
    """Write a document: indented JSON, so that a person can read it, sealed where it has a seal.

    The same bytes for the same content.
    """
    if "sha256" not in document.__struct_fields__:
        return _as_text(document)
    blank = _as_text(msgspec.structs.replace(document, sha256=_BLANK))
    return blank.replace(_BLANK.encode(), hashlib.sha256(blank).hexdigest().encode(), 1)


_BLANK: Final = "0" * 64
_SEAL: Final = re.compile(rb'^ "sha256": "([0-9a-f]{64})",?$', re.MULTILINE)
_UNSEALED: Final = {"manifest": 1, "receipt": 1, "plan": 1}
"""The last format of each kind that had no seal."""


class _Head(msgspec.Struct):
    format_version: int


def _as_text(document: msgspec.Struct) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document, order="deterministic"), indent=1) + b"\n"


def _require_seal(data: bytes, kind: str, where: str) -> None:
    seal = _SEAL.search(data)
    blank = data if seal is None else data[: seal.start(1)] + _BLANK.encode() + data[seal.end(1) :]
    if seal is None or seal[1].decode() != hashlib.sha256(blank).hexdigest():
        raise DamagedError(
            f"{where}: the {kind} is not what was written: its sha256 does not match. Nothing of it was used and nothing was "
            "changed. See what else is damaged: folio verify"
        )
