"""store ▶ every object read and compared with what was published; what is missing, truncated, altered or foreign, by name.

    manifests ▶ receipts, quantizers, shards, tombstones      receipts ▶ images, descriptors, local features, rejects

A document (manifest, receipt, tag, lease, plan, mark of retirement) is checked by its own seal; every other object by size and
sha256 as a sealed document gives them. What is left over of the store then has a known place, as an attempt that never counted
(an orphan, which gc removes), or it is foreign.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Literal, TypeVar

import msgspec

from infra.commits import list_retired, list_tags, manifest_path, read_head, read_manifest, receipt_path, version_number
from infra.observability import progress
from infra.storage import Storage
from infra.tables import read_table
from pipelines.build.plan import decode_plan
from pipelines.build.progress import decode_progress
from schemas import layout
from schemas.errors import DamagedError, MapError, MapMissing, ObjectMissing
from schemas.manifest import (
    Manifest,
    ObjectRef,
    Receipt,
    decode_index_receipt,
    decode_lease,
    decode_manifest,
    decode_receipt,
    decode_retired,
    decode_tag,
)

READ_THREADS: Final = 4
"""Objects read at once, and so in memory."""

_MANIFEST: Final = re.compile(r"manifests/(\d{20})\.json")
_PUBLISHED: Final = re.compile(r"published/(\d{20})\.json")
_RETIRED: Final = re.compile(r"retired/(\d{20})\.json")
_RECEIPT: Final = re.compile(r"receipts/([0-9a-f]+)\.json")
_TAG: Final = re.compile(r"tags/[^/]+\.json")
_LEASE: Final = re.compile(r"runs/[^/]+/lease(-[0-9a-f]+)?\.json")
_PLAN: Final = re.compile(r"runs/[^/]+/plan\.json")
_PROGRESS: Final = re.compile(r"runs/[^/]+/progress\.json")
_INDEX_RECEIPT: Final = re.compile(r"runs/[^/]+/index-[0-9a-f]+\.json")
_SEGMENT_FILE: Final = re.compile(
    r"(segments/[0-9a-f]+/[0-9a-f]+)/((images|descriptors|rejects)\.parquet|(descriptor_codes|local_features)\.zarr/.+)"
)
_INDEX_FILE: Final = re.compile(r"(indexes/[0-9a-f]+/[0-9a-f]+)/(quantizer\.faiss|shard-\d{5}\.faiss)")
_TOMBSTONES: Final = re.compile(r"tombstones/[0-9a-f]+\.parquet")
_RUN_REJECTS: Final = re.compile(r"runs/[^/]+/rejects\.parquet")
_PASSING: Final = re.compile(r"runs/(probe-[0-9a-f]+/\d+|clock-[0-9a-f]+)")
"""Left by a process that was killed while it tried the store or asked for the time."""

_DOCUMENTS: Final = (_MANIFEST, _PUBLISHED, _RETIRED, _RECEIPT, _TAG, _LEASE, _PLAN, _PROGRESS, _INDEX_RECEIPT, _RUN_REJECTS)

D = TypeVar("D")


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An object that is not what it must be."""

    path: str
    problem: Literal["missing", "truncated", "altered", "foreign"]
    """`truncated` is any other size than the right one; `foreign` is what no part of a map explains."""
    found: str
    needed: str


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What `folio verify` found."""

    version: int | None
    """The newest, or the one asked for; None: the newest cannot be read."""
    versions: int
    """Versions whose objects were read; those retired are not."""
    objects: int
    size_bytes: int
    orphans: int
    """Objects of attempts that never counted. They do no harm, and gc removes them."""
    orphan_bytes: int
    problems: list[Problem]

    def lines(self) -> list[str]:
        """Say it to a person."""
        which = "the newest version cannot be read" if self.version is None else f"version {self.version}"
        older = f" and {self.versions - 1:,} older" if self.versions > 1 else ""
        orphans = f"; {self.orphans:,} orphans of {self.orphan_bytes / 1e6:,.1f} MB, see folio gc" if self.orphans else ""
        return [
            *(f"{one.path}: {one.problem}: {one.found} was found, {one.needed} needed" for one in self.problems),
            f"{which}{older}: {self.objects:,} objects, {self.size_bytes / 1e6:,.1f} MB, {len(self.problems)} damaged, missing "
            f"or foreign{orphans}",
        ]


def verify(storage: Storage, *, version: int | str | None = None) -> Verification:
    """Read every object of a map, or of one version of it, and compare it with what was published.

    Args:
        storage: of the map.
        version: number or tag; only what this version consists of is read. None: all versions that are not retired, finished
            segments that no version has yet, and everything else in the store.

    Raises:
        MapMissing: no such map or version.
    """
    if version is None:
        return _verify_map(storage)
    manifest = read_manifest(storage, version_number(storage, version))
    needed = _Needed()
    receipts = _Receipts(storage, needed.problems)
    needed.add(manifest, receipts)
    _read_all(storage, needed)
    return needed.summary(manifest.version, versions=1, documents=1 + len(receipts.read))


def _verify_map(storage: Storage) -> Verification:
    # In this order: whatever a document names was there before it.
    listed = {info.path: info.size_bytes for info in storage.list()}
    needed = _Needed()
    manifests = _manifests(storage, listed, needed.problems)
    retired = list_retired(storage)
    receipts = _Receipts(storage, needed.problems)
    stored = [path for path in listed if _RECEIPT.fullmatch(path)]
    with ThreadPoolExecutor(READ_THREADS) as pool:
        list(pool.map(receipts.stored, stored))
    for number, manifest in sorted(manifests.items()):
        if number not in retired and manifest is not None:
            needed.add(manifest, receipts)
    for path in stored:  # also of segments that no version has yet
        needed.add_segment(receipts.stored(path))
    documents = len(manifests) + len(receipts.read) + _check_documents(storage, listed, needed.problems)
    orphans = _explain(storage, listed, needed, manifests, receipts)
    _read_all(storage, needed)
    newest = manifests[max(manifests)]
    return needed.summary(
        None if newest is None else newest.version,
        versions=len(manifests.keys() - retired),
        documents=documents,
        orphans=len(orphans),
        orphan_bytes=sum(listed[path] for path in orphans),
    )


@dataclass(kw_only=True, slots=True)
class _Needed:
    """What must be there, each object once, however many versions share it."""

    refs: dict[str, ObjectRef] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, manifest: Manifest, receipts: "_Receipts") -> None:
        """Add what a version consists of."""
        for ref in _own_objects(manifest):
            self.refs.setdefault(ref.path, ref)
        for entry in manifest.segments:
            self.add_segment(receipts.named(entry.segment_id, entry.receipt_sha256))

    def add_segment(self, receipt: Receipt | None) -> None:
        """Add what a finished segment consists of."""
        for ref in receipt.objects if receipt else ():
            self.refs.setdefault(ref.path, ref)

    def summary(
        self, version: int | None, *, versions: int, documents: int, orphans: int = 0, orphan_bytes: int = 0
    ) -> Verification:
        """Say what was found; of several problems of one object the first."""
        by_path = {problem.path: problem for problem in reversed(self.problems)}
        return Verification(
            version=version,
            versions=versions,
            objects=documents + len(self.refs),
            size_bytes=sum(ref.size_bytes for ref in self.refs.values()),
            orphans=orphans,
            orphan_bytes=orphan_bytes,
            problems=[by_path[path] for path in sorted(by_path)],
        )


class _Receipts:
    """Reads each receipt once, and tells what is wrong with it. Different ones from any number of threads."""

    def __init__(self, storage: Storage, problems: list[Problem]) -> None:
        self._storage = storage
        self._problems = problems
        self.read: dict[str, Receipt | None] = {}
        """By path; None where there is none to be believed."""

    def named(self, segment_id: str, sha256: str) -> Receipt | None:
        """Read the receipt that a manifest names."""
        path = receipt_path(segment_id)
        receipt = self.stored(path, needed=f"sha256 {sha256}")
        if receipt and receipt.sha256 != sha256:
            self._problems.append(
                Problem(path=path, problem="altered", found=f"sha256 {receipt.sha256}", needed=f"sha256 {sha256}")
            )
            return None
        return receipt

    def stored(self, path: str, *, needed: str = "a receipt") -> Receipt | None:
        """Read a receipt for what it says itself."""
        if path not in self.read:
            receipt = _document(self._storage, path, decode_receipt, self._problems, needed=needed)
            if receipt and receipt_path(receipt.segment_id) != path:
                found = f"the receipt of segment {receipt.segment_id}"
                self._problems.append(Problem(path=path, problem="altered", found=found, needed="its own"))
                receipt = None
            self.read[path] = receipt
        return self.read[path]


def _manifests(storage: Storage, listed: Iterable[str], problems: list[Problem]) -> dict[int, Manifest | None]:
    """Read every manifest, by version; None where it cannot be.

    The chain must have no gap, because numbers are never used again, and reach to the last version that a tag, a mark of its
    publication or one of its retirement knows of.
    """
    listed = list(listed)
    numbers = [int(name[1]) for pattern in (_MANIFEST, _PUBLISHED, _RETIRED) for name in map(pattern.fullmatch, listed) if name]
    if not numbers:
        read_head(storage)  # says that there is no map
        raise MapMissing(f"{storage.url}: the map was published just now. Nothing was changed. Run the same command again.")
    with suppress(MapError, ObjectMissing):  # a damaged tag is named elsewhere
        numbers += list_tags(storage).values()
    found: dict[int, Manifest | None] = {}
    for number in range(1, max(numbers) + 1):
        path = manifest_path(number)
        manifest = _document(storage, path, decode_manifest, problems, needed=f"the manifest of version {number}")
        parent = number - 1 or None
        if manifest and (manifest.version, manifest.parent) != (number, parent):
            stated = f"the manifest of version {manifest.version} on top of {manifest.parent}"
            needed = f"that of version {number} on top of {parent}"
            problems.append(Problem(path=path, problem="altered", found=stated, needed=needed))
            manifest = None
        found[number] = manifest
    return found


def _check_documents(storage: Storage, listed: Iterable[str], problems: list[Problem]) -> int:
    """Read tags, leases, plans and marks, which nothing depends on but what they say themselves."""
    kinds: tuple[tuple[re.Pattern[str], Callable[..., object], str], ...] = (
        (_TAG, decode_tag, "a tag"),
        (_PUBLISHED, decode_tag, "a mark that a version was published"),
        (_RETIRED, decode_retired, "a mark of retirement"),
        (_LEASE, decode_lease, "a lease"),
        (_PLAN, decode_plan, "a plan"),
        (_PROGRESS, decode_progress, "how far a run came"),
        (_INDEX_RECEIPT, decode_index_receipt, "the receipt of a part of an index"),
    )
    of_kind = [(path, decode, needed) for path in listed for pattern, decode, needed in kinds if pattern.fullmatch(path)]
    for path, decode, needed in of_kind:
        _document(storage, path, decode, problems, needed=needed, may_end=True)
    return len(of_kind)


def _document(
    storage: Storage,
    path: str,
    decode: Callable[..., D],
    problems: list[Problem],
    *,
    needed: str,
    may_end: bool = False,
) -> D | None:
    """Read a document; None and a problem where it is not there or not what was written."""
    try:
        return decode(storage.get(path), where=path)
    except ObjectMissing:
        if not may_end:
            problems.append(Problem(path=path, problem="missing", found="nothing", needed=needed))
    except DamagedError:
        problems.append(Problem(path=path, problem="altered", found="one whose own sha256 does not match", needed=needed))
    except MapError as error:
        problems.append(Problem(path=path, problem="altered", found=f"something else ({error})", needed=needed))
    return None


def _explain(
    storage: Storage, listed: Iterable[str], needed: _Needed, manifests: Mapping[int, Manifest | None], receipts: _Receipts
) -> list[str]:
    """Find the orphans and the foreign objects among what is stored."""
    places = _Places(needed, manifests, receipts)
    orphans: list[str] = []
    for path in listed:
        place = places.of(path)
        if place == "orphan":
            orphans.append(path)
        elif place == "foreign":
            needed.problems.append(
                Problem(path=path, problem="foreign", found="an object that no part of a map explains", needed="none there")
            )
        elif _RUN_REJECTS.fullmatch(path):
            _check_table(storage, path, needed.problems)
    return orphans


class _Places:
    """Tells what an object is to a map."""

    def __init__(self, needed: _Needed, manifests: Mapping[int, Manifest | None], receipts: _Receipts) -> None:
        readable = [manifest for manifest in manifests.values() if manifest]
        self._named = set(needed.refs)
        for manifest in readable:  # also of versions that are retired
            self._named |= {ref.path for ref in _own_objects(manifest)}
        self._all_readable = len(readable) == len(manifests)
        self._index_folders = {path.rpartition("/")[0] for path in self._named if path.startswith("indexes/")}
        believed = {receipt.segment_id: receipt for receipt in receipts.read.values() if receipt}
        self._finished = {layout.segment_folder(name, receipt.attempt) for name, receipt in believed.items()}
        entries = (entry for manifest in readable for entry in manifest.segments)
        self._lost = {layout.segment_folder(entry.segment_id, entry.attempt) for entry in entries} - self._finished

    def of(self, path: str) -> Literal["known", "orphan", "foreign"]:
        """Tell it of one object."""
        if path in self._named or any(pattern.fullmatch(path) for pattern in _DOCUMENTS):
            return "known"
        if in_segment := _SEGMENT_FILE.fullmatch(path):
            if in_segment[1] in self._lost:  # its receipt would list it
                return "known"
            return "foreign" if in_segment[1] in self._finished else "orphan"
        if in_index := _INDEX_FILE.fullmatch(path):
            return "foreign" if self._all_readable and in_index[1] in self._index_folders else "orphan"
        return "orphan" if _TOMBSTONES.fullmatch(path) or _PASSING.fullmatch(path) else "foreign"


def _own_objects(manifest: Manifest) -> list[ObjectRef]:
    """List what a manifest names itself; the rest its receipts name."""
    quantizer = [manifest.index.quantizer] if manifest.index.quantizer else []
    return [*quantizer, *(shard.file for shard in manifest.index.shards), *manifest.tombstones]


def _check_table(storage: Storage, path: str, problems: list[Problem]) -> None:
    """Check what a run left for people to read, of which no document has the sha256."""
    try:
        read_table(storage, path, kind="rejects")
    except ObjectMissing:
        return
    except MapError as error:
        problems.append(Problem(path=path, problem="altered", found=f"something else ({error})", needed="a table of rejects"))


def _read_all(storage: Storage, needed: _Needed) -> None:
    with ThreadPoolExecutor(READ_THREADS) as pool:
        checked = pool.map(lambda ref: _check(storage, ref), needed.refs.values())
        found = progress(checked, total=len(needed.refs), unit="object", description="verify")
        needed.problems.extend(problem for problem in found if problem)


def _check(storage: Storage, ref: ObjectRef) -> Problem | None:
    try:
        data = storage.get(ref.path)
    except ObjectMissing:
        return Problem(path=ref.path, problem="missing", found="nothing", needed=f"{ref.size_bytes} bytes")
    if len(data) != ref.size_bytes:
        found, wanted = f"{len(data)} bytes", f"{ref.size_bytes} bytes"
        return Problem(path=ref.path, problem="truncated", found=found, needed=wanted)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != ref.sha256:
        return Problem(path=ref.path, problem="altered", found=f"sha256 {sha256}", needed=f"sha256 {ref.sha256}")
    return None
