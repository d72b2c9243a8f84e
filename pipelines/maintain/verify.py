"""manifest ▶ every object of a version read and compared with what was published."""

import hashlib
from collections.abc import Iterator

import msgspec

from infra.commits import read_head, read_version, receipt_path
from infra.observability import progress
from infra.storage import Storage
from schemas.errors import MapError, ObjectMissing
from schemas.manifest import Manifest, ObjectRef, decode_receipt


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
