"""store ▶ proof that nothing of the photos taken down is left, or the names of what is.

Every object below the map is read, whatever it is called and whoever put it there. Tables, JSON and text are searched for the
photos' digests and for names that have these digests. Vectors and local features do not say whose they are: they count as free
of a photo when a receipt or manifest names them with their sha256, and the photos that it says they are of were read and are
others. A second attempt at a segment has the same photos, because a segment is named by its photos. What is none of these cannot
be proved. A quantizer holds averages, but perhaps of few photos: one that learned from such a photo counts as having it.
Tombstone tables are left out.
"""

import hashlib
import io
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from infra.commits import list_versions, manifest_path, read_head, read_manifest, receipt_path
from infra.observability import progress
from infra.storage import ObjectInfo, Storage
from pipelines.build.drift import learned_from
from pipelines.build.tombstones import read_tombstones
from schemas import layout
from schemas.errors import MapError, ObjectMissing
from schemas.images import image_id
from schemas.manifest import Manifest, ObjectRef, Receipt, decode_receipt
from schemas.tombstones import TOMBSTONES

THREADS: Final = 4
"""Objects that are in memory at once. A shard is 20 MB, at 262,144 photos of 64 bytes."""

SHOWN: Final = 50
"""Objects of each kind that a person is shown."""

ARRAYS: Final = (layout.LOCAL_FEATURES + "/", layout.DESCRIPTOR_CODES + "/")
"""What of a segment is Zarr, with one row a photo."""

_SEGMENT: Final = re.compile(r"segments/([^/]+)/([^/]+)/(.+)")
_RECEIPT: Final = re.compile(r"receipts/([^/]+)\.json")
_HEX: Final = re.compile(rb"[0-9a-fA-F]{32,}")
_FIELDS: Final = re.compile(r'[\r\n,;\t"]+')


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """An object, and what is wrong with it."""

    path: str
    what: str


class Deletion(msgspec.Struct, frozen=True, kw_only=True):
    """What `folio verify-deleted` found. `--json` prints it."""

    map: str
    version: int
    photos: int
    """Names that were taken down."""
    objects: int
    size_bytes: int
    left: list[Finding]
    """Objects that hold something of these photos."""
    unproved: list[Finding]
    """Objects that cannot be told to be free of them."""
    proved: bool

    def lines(self) -> list[str]:
        """Say it to a person."""
        lines = []
        for findings, verb in ((self.left, "is left"), (self.unproved, "cannot be proved to be free of them")):
            lines += [f"{one.path}: {verb}: {one.what}" for one in findings[:SHOWN]]
            if len(findings) > SHOWN:
                lines.append(f"and {len(findings) - SHOWN:,} more, see --json")
        read = f"version {self.version}: {self.objects:,} objects, {self.size_bytes / 1e6:,.1f} MB read"
        if self.proved:
            return [*lines, f"{read}; nothing is left of {self.photos:,} photos taken down"]
        return [
            *lines,
            f"{read}; {len(self.left):,} hold something of {self.photos:,} photos taken down, {len(self.unproved):,} cannot be "
            "proved. The next folio build purges what versions and segments hold, folio gc removes what killed runs left; what "
            "is not Folio's, remove by hand",
        ]


def verify_deleted(storage: Storage, *, uris: Collection[str] = ()) -> Deletion:
    """Prove that nothing is left of the photos that were taken down.

    Args:
        storage: of the map.
        uris: names that are looked for too, also in the middle of other text.

    Raises:
        MapMissing: there is no map.
        DamagedError: the newest manifest or a table of tombstones is not what was written.
        StorageError: the store does not answer.
    """
    head = read_head(storage)
    sought = _sought(storage, head, uris)
    scan = _Scan(storage, sought, _Names(storage, head))
    objects = [*storage.list(), *storage.leftovers()]
    # The tables of segments first: they say what vectors and local features stand for.
    tables = [info for info in objects if (name := _SEGMENT.fullmatch(info.path)) and name[3] == layout.IMAGES]
    rest = sorted(set(objects) - set(tables), key=lambda info: info.path)
    with ThreadPoolExecutor(THREADS) as pool:
        found = chain.from_iterable(pool.map(scan.look, infos) for infos in (tables, rest))  # the second when the first is done
        looks = list(progress(found, total=len(objects), unit="object", description="verify-deleted"))
    left = [Finding(path=info.path, what=look.left) for info, look in looks if look.left]
    unproved = [Finding(path=info.path, what=look.unproved) for info, look in looks if look.unproved and not look.left]
    return Deletion(
        map=storage.url,
        version=head.version,
        photos=len(sought.image_ids),
        objects=len(objects),
        size_bytes=sum(info.size_bytes for info in objects),
        left=sorted(left, key=lambda one: one.path),
        unproved=sorted(unproved, key=lambda one: one.path),
        proved=not (left or unproved),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sought:
    """What must not be found."""

    image_ids: frozenset[str]
    words: frozenset[str]
    """Image ids, photo keys and checksums, as they stand in tables."""
    digests: frozenset[str]
    """The same as hex digits alone, of 32 or 64."""
    checksums: frozenset[str]
    uris: tuple[str, ...]

    def holds(self, word: str) -> bool:
        """Tell whether a word is a digest of a photo taken down, or its name."""
        return word in self.words or _image_id(word) in self.image_ids


def _sought(storage: Storage, head: Manifest, uris: Collection[str]) -> _Sought:
    down = read_tombstones(storage, head.tombstones)
    image_ids = down.image_ids | {image_id(uri) for uri in uris}
    words = image_ids | down.photo_keys | down.checksums
    return _Sought(
        image_ids=image_ids,
        words=words,
        digests=frozenset(word.partition(":")[2] or word for word in words),
        checksums=down.checksums,
        uris=tuple(uris),
    )


class _Names:
    """What receipts and manifests say of objects; those that cannot be read say nothing, and are found by the scan."""

    def __init__(self, storage: Storage, head: Manifest) -> None:
        self._storage = storage
        self._tombstones = head.tombstones
        self.receipts: dict[str, Receipt] = {}
        """By segment."""
        self.refs: dict[str, ObjectRef] = {}
        """What lies in segments, by path."""
        self.quantizers: dict[str, str] = {}
        """sha256 by path."""
        self.taught: dict[str, int] = {}
        """By path of a quantizer, of how many photos taken down it learned."""
        self.shards: dict[str, tuple[str, list[str]]] = {}
        """sha256 and segments by path."""
        self.unreadable: dict[str, str] = {}
        """Receipts and manifests, and why."""
        for path in [info.path for info in storage.list("receipts") if _RECEIPT.fullmatch(info.path)]:
            try:
                receipt = decode_receipt(storage.get(path), where=path)
            except (MapError, ObjectMissing) as error:
                self.unreadable[path] = str(error)
                continue
            self.receipts[receipt.segment_id] = receipt
            self.refs.update({ref.path: ref for ref in receipt.objects})
        for version in list_versions(storage):
            try:
                self._add(read_manifest(storage, version))
            except MapError as error:
                self.unreadable[manifest_path(version)] = str(error)

    def _add(self, manifest: Manifest) -> None:
        if manifest.index.quantizer:
            path = manifest.index.quantizer.path
            self.quantizers[path] = manifest.index.quantizer.sha256
            if path not in self.taught:
                self.taught[path] = learned_from(self._storage, manifest.index, self._tombstones)
        for shard in manifest.index.shards:
            self.shards[shard.file.path] = shard.file.sha256, [member.segment_id for member in shard.segments]


class _Look:
    """What one object came to."""

    def __init__(self) -> None:
        self.left = ""
        self.unproved = ""


class _Scan:
    """Looks at objects, the tables of segments before what they stand for."""

    def __init__(self, storage: Storage, sought: _Sought, names: _Names) -> None:
        self._storage = storage
        self._sought = sought
        self._names = names
        self._free: dict[str, bool] = {}
        """Whether a finished segment, whose images are as its receipt has them, has none of the photos taken down."""

    def look(self, info: ObjectInfo) -> tuple[ObjectInfo, _Look]:
        """Read an object and search it."""
        look = _Look()
        try:
            data = self._storage.get(info.path)
        except ObjectMissing:  # removed since it was listed
            return info, look
        sha256 = hashlib.sha256(data).hexdigest()
        look.left = self._named(info, sha256) or self._in_bytes(data)
        segment = _SEGMENT.fullmatch(info.path)
        is_table = data[:4] == b"PAR1" and data[-4:] == b"PAR1"
        if is_table and _is_tombstones(info.path, data):
            return info, _Look()
        if is_table:
            self._look_into_table(data, look)
        elif segment and segment[3].startswith(ARRAYS):
            self._explain_array(info.path, segment[1], data, sha256, look)
        elif info.path in self._names.shards or info.path in self._names.quantizers:
            self._explain_index(info.path, sha256, look)
        else:
            self._look_into_text(info.path, data, look)
        if segment and segment[3] == layout.IMAGES and self._is_as_written(info.path, sha256) and not look.unproved:
            self._free[segment[1]] = not look.left
        return info, look

    def _named(self, info: ObjectInfo, sha256: str) -> str:
        for name in (info.path, f"{self._storage.url}/{info.path}"):
            if _image_id(name) in self._sought.image_ids:
                return "it has the name of such a photo"
        if {f"sha256:{sha256}", f"etag:{info.etag}"} & self._sought.checksums:
            return "it is such a photo itself"
        return ""

    def _in_bytes(self, data: bytes) -> str:
        for uri in self._sought.uris:
            if uri.encode(errors="surrogateescape") in data:
                return f"its bytes contain {uri}"
        for run in _HEX.finditer(data):
            digits = run[0].decode().lower()
            for length in (32, 64):
                for start in range(len(digits) - length + 1):
                    if digits[start : start + length] in self._sought.digests:
                        return f"its bytes contain the digest {digits[start : start + length]}"
        return ""

    def _look_into_table(self, data: bytes, look: _Look) -> None:
        try:
            words = list(_words(data))
        except (pa.ArrowException, OSError, ValueError) as error:
            look.unproved = f"a Parquet file that cannot be read ({error})"
            return
        for column, values in words:
            held = [word for word in values if self._sought.holds(word)]
            text = "\n".join(values) if self._sought.uris else ""
            held += [uri for uri in self._sought.uris if uri in text]
            if held:
                more = f" and {len(held) - 1:,} others" if len(held) > 1 else ""
                look.left = f"column {column} has {held[0]}{more}"
                return

    def _look_into_text(self, path: str, data: bytes, look: _Look) -> None:
        if path in self._names.unreadable:
            look.unproved = self._names.unreadable[path]
        try:
            text = data.decode()
        except UnicodeDecodeError:
            look.unproved = "neither a table nor text, and no receipt or manifest names it"
            return
        try:
            words = set(_strings(msgspec.json.decode(data)))
        except msgspec.DecodeError:
            words = {field.strip() for field in _FIELDS.split(text)} | set(text.splitlines())
        held = [word for word in words if self._sought.holds(word)]
        if held:
            look.left = f"it names {min(held)}"

    def _is_as_written(self, path: str, sha256: str) -> bool:
        return path in self._names.refs and self._names.refs[path].sha256 == sha256

    def _explain_array(self, path: str, segment: str, data: bytes, sha256: str, look: _Look) -> None:
        receipt, free = self._names.receipts.get(segment), self._free.get(segment)
        if free is False:
            look.left = "features of a segment that has such photos"
        elif receipt is None or free is None:
            look.unproved = f"features of photos that cannot be told, without {receipt_path(segment)} and its images"
        elif path.startswith(f"{layout.segment_folder(segment, receipt.attempt)}/"):
            if not self._is_as_written(path, sha256):
                look.unproved = f"features that are not what {receipt_path(segment)} says"
            elif not _has_rows(path, data, receipt.rows):
                look.unproved = f"features of another number of photos than the {receipt.rows:,} of the segment"

    def _explain_index(self, path: str, sha256: str, look: _Look) -> None:
        if path in self._names.quantizers:
            if taught := self._names.taught[path]:
                look.left = f"averages that {taught:,} such photos are part of"
            elif self._names.quantizers[path] != sha256:
                look.unproved = "a quantizer that is not what the manifests say"
            return
        expected, segments = self._names.shards[path]
        told = [self._free.get(segment) for segment in segments]
        if False in told:
            look.left = f"descriptors of segment {segments[told.index(False)]}, which has such photos"
        elif sha256 != expected:
            look.unproved = "a shard that is not what the manifests say"
        elif None in told:
            look.unproved = f"descriptors of segment {segments[told.index(None)]}, whose photos cannot be told"


def _is_tombstones(path: str, data: bytes) -> bool:
    if not path.startswith(layout.TOMBSTONES + "/"):
        return False
    try:
        return bool(pq.read_schema(io.BytesIO(data)).names == TOMBSTONES.names)
    except (pa.ArrowException, OSError, ValueError):
        return False


def _words(data: bytes) -> Iterator[tuple[str, list[str]]]:
    """Read the different texts of each column of a Parquet file, those in lists and structs too."""
    file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    for name in file.schema_arrow.names:
        if _has_text(file.schema_arrow.field(name).type):
            column = file.read(columns=[name])[name].combine_chunks()
            yield name, [word for leaf in _leaves(column) for word in pc.unique(leaf).to_pylist() if word is not None]


def _has_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _has_text(kind.value_type)
    if pa.types.is_nested(kind):
        return any(_has_text(kind.field(place).type) for place in range(kind.num_fields))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _leaves(column: pa.Array) -> Iterator[pa.Array]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        yield from _leaves(column.dictionary_decode())
    elif pa.types.is_struct(kind):
        for child in column.flatten():
            yield from _leaves(child)
    elif pa.types.is_nested(kind):  # lists and maps
        yield from _leaves(column.flatten() if not pa.types.is_map(kind) else column.keys)
        if pa.types.is_map(kind):
            yield from _leaves(column.items)
    elif _has_text(kind):
        yield column


def _strings(document: Any) -> Iterator[str]:
    """List all keys and texts of a JSON document."""
    if isinstance(document, str):
        yield document
    elif isinstance(document, Mapping):
        yield from document.keys()
        for value in document.values():
            yield from _strings(value)
    elif isinstance(document, list):
        for value in document:
            yield from _strings(value)


def _has_rows(path: str, data: bytes, rows: int) -> bool:
    """Tell whether an object of a Zarr group is not the metadata of an array of another length."""
    if not path.endswith("/zarr.json"):
        return True
    shape = msgspec.json.decode(data).get("shape")
    return shape is None or shape[0] == rows


def _image_id(name: str) -> str:
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:32]
