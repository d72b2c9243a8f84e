"""manifests ▶ versions, rollback, verify: look after a published map."""

import hashlib
from collections.abc import Iterator

import msgspec

from infra.commits import list_versions, publish, read_head, read_version, receipt_path
from infra.observability import progress
from infra.storage import Storage
from schemas.errors import MapError, ObjectMissing
from schemas.manifest import Manifest, ObjectRef, decode_receipt
from schemas.versions import FORMATS


class VersionLine(msgspec.Struct, frozen=True, kw_only=True):
    """A version, as `folio versions` lists it."""

    version: int
    created_at: str
    photos: int
    segments: int
    shards: int
    index: str
    recipe: str
    trained: bool
    content_id: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An object that is not what the manifest or a receipt says."""

    path: str
    found: str
    needed: str


class Verification(msgspec.Struct, frozen=True, kw_only=True):
    """What `folio verify` found."""

    version: int
    objects: int
    size_bytes: int
    problems: list[Problem]


def versions(storage: Storage) -> list[VersionLine]:
    """List the published versions, oldest first."""
    return [_line(read_version(storage, number)) for number in list_versions(storage)]


def rollback(storage: Storage, version: int) -> Manifest:
    """Publish a new version with the content of an old one; history stays as it was.

    Returns:
        The newest version afterwards; the one before, if it already has that content.

    Raises:
        MapMissing: no such version.
    """
    old = read_version(storage, version)
    again = msgspec.structs.replace(old, format_version=FORMATS["manifest"], action="rollback")
    return publish(storage, lambda head: None if head is not None and head.content_id == old.content_id else again)


def verify(storage: Storage, *, version: int | None = None) -> Verification:
    """Read every object of a version and compare its size and sha256 with what was published.

    Raises:
        MapMissing: no such map or version.
    """
    manifest = read_head(storage) if version is None else read_version(storage, version)
    problems: list[Problem] = []
    refs = list(_objects(storage, manifest, problems))
    for ref in progress(refs, total=len(refs), unit="object", description="verify"):
        problems.extend(_check(storage, ref))
    return Verification(
        version=manifest.version,
        objects=len(refs) + len(manifest.segments),
        size_bytes=sum(ref.size_bytes for ref in refs),
        problems=problems,
    )


def _objects(storage: Storage, manifest: Manifest, problems: list[Problem]) -> Iterator[ObjectRef]:
    """List what the manifest names and, through its receipts, what the segments consist of."""
    if manifest.index.quantizer:
        yield manifest.index.quantizer
    for shard in manifest.index.shards:
        yield shard.file
    for segment in manifest.segments:
        path = receipt_path(segment.segment_id)
        try:
            data = storage.get(path)
        except ObjectMissing:
            problems.append(Problem(path=path, found="nothing", needed=f"sha256 {segment.receipt_sha256}"))
            continue
        try:
            receipt = decode_receipt(data, where=path)
        except MapError as error:
            problems.append(Problem(path=path, found=str(error), needed=f"sha256 {segment.receipt_sha256}"))
            continue
        if receipt.sha256 != segment.receipt_sha256:
            problems.append(Problem(path=path, found=f"sha256 {receipt.sha256}", needed=f"sha256 {segment.receipt_sha256}"))
            continue
        yield from receipt.objects


def _check(storage: Storage, ref: ObjectRef) -> Iterator[Problem]:
    try:
        data = storage.get(ref.path)
    except ObjectMissing:
        yield Problem(path=ref.path, found="nothing", needed=f"{ref.size_bytes} bytes")
        return
    sha256 = hashlib.sha256(data).hexdigest()
    if len(data) != ref.size_bytes:
        yield Problem(path=ref.path, found=f"{len(data)} bytes", needed=f"{ref.size_bytes} bytes")
    elif sha256 != ref.sha256:
        yield Problem(path=ref.path, found=f"sha256 {sha256}", needed=f"sha256 {ref.sha256}")


def _line(manifest: Manifest) -> VersionLine:
    return VersionLine(
        version=manifest.version,
        created_at=manifest.created_at,
        photos=manifest.statistics["photos"],
        segments=len(manifest.segments),
        shards=len(manifest.index.shards),
        index=manifest.index.kind,
        recipe=manifest.model.recipe,
        trained=manifest.model.trained,
        content_id=manifest.content_id,
    )
