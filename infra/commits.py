"""Receipts and numbered manifests: the only code that must be right about other writers.

A version exists when `manifests/<number, 20 digits>.json` does. It is created only if absent and never changed or deleted, so
numbers are never used again. Whoever loses the race for a number makes its version anew on top of the winner's. After a
doubtful answer the manifest is read back, and its `commit_id` says whose it is; an unknown outcome touches nothing.

Design: ARCHITECTURE.md, "The commit protocol"; the bugs it avoids: RELIABILITY.md 1.2.
"""

import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from random import SystemRandom
from threading import Barrier
from typing import Final
from uuid import uuid4

import msgspec

from infra.storage import Storage
from schemas.errors import CommitError, CommitUnknown, ConditionsIgnored, MapMissing, ObjectMissing, StorageError
from schemas.manifest import Manifest, Receipt, decode_manifest, decode_receipt, encode_json

ATTEMPTS: Final = 20
"""Version numbers a publisher loses to others before it gives up."""

CREATE_ATTEMPTS: Final = 4
"""How often a manifest or receipt is tried to be created, while the store fails and has none."""

FIRST_PAUSE_S: Final = 0.1
"""Longest pause after the first failure or lost race; it doubles each time, up to 3.2 s."""

PROBE_ROUNDS: Final = 5
PROBE_WRITERS: Final = 8

_MANIFEST: Final = re.compile(r"manifests/(\d{20})\.json")


def manifest_path(version: int) -> str:
    """Name the manifest of a version."""
    return f"manifests/{version:020d}.json"


def receipt_path(segment_id: str) -> str:
    """Name the receipt of a segment."""
    return f"receipts/{segment_id}.json"


def list_versions(storage: Storage) -> list[int]:
    """List the published versions, oldest first. Files that are not named like a manifest do not count."""
    names = (_MANIFEST.fullmatch(info.path) for info in storage.list("manifests"))
    return [int(name[1]) for name in names if name]


def head_or_none(storage: Storage) -> Manifest | None:
    """Read the newest manifest; None where nothing was published yet.

    Raises:
        FormatError: it is of a format this Folio does not read.
    """
    versions = list_versions(storage)
    return read_version(storage, versions[-1]) if versions else None


def read_head(storage: Storage) -> Manifest:
    """Read the newest manifest.

    Raises:
        MapMissing: nothing was published here yet.
        FormatError: it is of a format this Folio does not read.
    """
    head = head_or_none(storage)
    if head is None:
        raise MapMissing(f"{storage.url}: no map here. Nothing was changed. Build one: folio build {storage.url} PHOTOS")
    return head


def read_version(storage: Storage, version: int) -> Manifest:
    """Read the manifest of one version.

    Raises:
        MapMissing: no such version.
        FormatError: it is of a format this Folio does not read.
    """
    path = manifest_path(version)
    try:
        return decode_manifest(storage.get(path), where=f"{storage.url}/{path}")
    except ObjectMissing as error:
        raise MapMissing(
            f"{storage.url}: no version {version} here. Nothing was changed. See which there are: folio versions {storage.url}"
        ) from error


def read_receipts(storage: Storage) -> dict[str, Receipt]:
    """Read every receipt, by segment id.

    Raises:
        FormatError: one of them is of a format this Folio does not read.
    """
    paths = [info.path for info in storage.list("receipts") if info.path.endswith(".json")]
    receipts = (decode_receipt(storage.get(path), where=f"{storage.url}/{path}") for path in paths)
    return {receipt.segment_id: receipt for receipt in receipts}


def write_receipt(storage: Storage, receipt: Receipt) -> Receipt:
    """Declare a segment finished.

    Returns:
        The receipt that counts: ours, or that of an attempt that was faster, whose files then are the segment.

    Raises:
        StorageError: it cannot be told whether there is a receipt now; the next run finds out.
    """
    path = receipt_path(receipt.segment_id)
    return decode_receipt(_create_or_read(storage, path, encode_json(receipt)), where=f"{storage.url}/{path}")


def publish(storage: Storage, make: Callable[[Manifest | None], Manifest | None]) -> Manifest:
    """Publish the next version of a map.

    Args:
        storage: of the map.
        make: given the newest version (None: there is none yet), makes the content of the next, or returns None when nothing
            changes. Called again, on the then newest version, whenever another publisher was faster. What it puts into
            `version`, `parent`, `commit_id` and `created_at` is overwritten here.

    Returns:
        The version published; the newest one, when nothing changed.

    Raises:
        CommitUnknown: the store does not say whether the version was published. Nothing was deleted.
        CommitError: others were faster every time; nothing was published.
    """
    for attempt in range(ATTEMPTS):
        head = head_or_none(storage)
        draft = make(head)
        if draft is None:
            assert head is not None, "without a version before, there is a change"
            return head
        mine = _numbered(draft, head)
        path = manifest_path(mine.version)
        try:
            there = _create_or_read(storage, path, encode_json(mine))
        except StorageError as error:
            raise CommitUnknown(
                f"{storage.url}: version {mine.version} may have been published or not: {error} "
                "All finished work is kept. Run the same command again."
            ) from error
        published = decode_manifest(there, where=f"{storage.url}/{path}")
        if published.commit_id == mine.commit_id:
            return published
        _pause(attempt)
    raise CommitError(
        f"{storage.url}: found a faster publisher {ATTEMPTS} times in a row, needed a moment without one. Nothing was published, "
        "all finished work is kept. Run the same command again."
    )


def probe(storage: Storage) -> None:
    """Find out by trying whether of several writers of a new object exactly one creates it. Cleans up after itself.

    Raises:
        ConditionsIgnored: not exactly one did, so two publishers could overwrite each other's versions.
    """
    folder = f"runs/probe-{uuid4().hex}"
    start = Barrier(PROBE_WRITERS)

    def create(path: str) -> bool:
        start.wait()
        return storage.put_if_absent(path, b"Folio tries whether this store honours create-if-absent.")

    with ThreadPoolExecutor(PROBE_WRITERS) as pool:
        for path in (f"{folder}/{round_}" for round_ in range(PROBE_ROUNDS)):
            try:
                created = sum(pool.map(create, [path] * PROBE_WRITERS)) + storage.put_if_absent(path, b"Once more.")
            finally:
                storage.delete(path)
            if created != 1:
                raise ConditionsIgnored(
                    f"{storage.url}: {created} of {PROBE_WRITERS + 1} writers of one object were told that they created it, "
                    "needed exactly 1. Nothing was published. Use a store that honours If-None-Match, or, where you are sure "
                    "that only one process ever builds this map: --single-writer"
                )


def _numbered(draft: Manifest, head: Manifest | None) -> Manifest:
    return msgspec.structs.replace(
        draft,
        version=head.version + 1 if head else 1,
        parent=head.version if head else None,
        commit_id=uuid4().hex,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _create_or_read(storage: Storage, path: str, data: bytes) -> bytes:
    """Create an object if absent and return what is there then: `data`, or what another writer created.

    Trying again is safe after a lost answer: should the first try have succeeded, it is our own bytes that we read.

    Raises:
        StorageError: it cannot be told what is there.
    """
    for attempt in range(CREATE_ATTEMPTS):
        try:
            return data if storage.put_if_absent(path, data) else storage.get(path)
        except StorageError as doubt:
            try:
                return storage.get(path)
            except ObjectMissing:
                if attempt == CREATE_ATTEMPTS - 1:
                    raise doubt from None
        _pause(attempt)
    raise AssertionError("the last attempt returns or raises")


def _pause(attempt: int) -> None:
    time.sleep(SystemRandom().uniform(0, FIRST_PAUSE_S * 2 ** min(attempt, 5)))
