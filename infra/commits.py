"""Receipts, numbered manifests, tags and retirement: the only code that must be right about other writers.

A version exists when `manifests/<number, 20 digits>.json` does. It is created only if absent and never changed or deleted, so
numbers are never used again. Whoever loses the race for a number makes its version anew on top of the winner's. After a
doubtful answer the manifest is read back, and its `commit_id` says whose it is; an unknown outcome touches nothing.

Before objects of a version are removed, `retired/<number>.json` is created. Its manifest stays, but its photos are not opened.

Right after, `published/<number>.json` is created. So a newest manifest that is lost is missed, instead of the one before being
served with photos that were taken down since, or its number being used again.

Design: ARCHITECTURE.md, "The commit protocol"; the bugs it avoids: RELIABILITY.md 1.2.
"""

import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from random import SystemRandom
from threading import Barrier
from typing import Final, Literal
from uuid import uuid4

import msgspec

from infra.storage import Storage
from schemas.errors import (
    CommitError,
    CommitUnknown,
    ConditionsIgnored,
    DamagedError,
    MapError,
    MapMissing,
    ObjectMissing,
    StorageError,
)
from schemas.manifest import Manifest, Receipt, Retired, Tag, decode_manifest, decode_receipt, decode_tag, encode_json

ATTEMPTS: Final = 20
"""Version numbers a publisher loses to others before it gives up."""

CREATE_ATTEMPTS: Final = 4
"""How often a manifest or receipt is tried to be created, while the store fails and has none."""

FIRST_PAUSE_S: Final = 0.1
"""Longest pause after the first failure or lost race; it doubles each time, up to 3.2 s."""

PROBE_ROUNDS: Final = 5
PROBE_WRITERS: Final = 8

TAG_NAME: Final = re.compile(r"(?!\d+$)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Of digits alone is a version's number."""

_MANIFEST: Final = re.compile(r"manifests/(\d{20})\.json")
_PUBLISHED: Final = re.compile(r"published/(\d{20})\.json")
_RETIRED: Final = re.compile(r"retired/(\d{20})\.json")
_TAG: Final = re.compile(r"tags/(.+)\.json")


def manifest_path(version: int) -> str:
    """Name the manifest of a version."""
    return f"manifests/{version:020d}.json"


def published_path(version: int) -> str:
    """Name the mark that there is such a version."""
    return f"published/{version:020d}.json"


def receipt_path(segment_id: str) -> str:
    """Name the receipt of a segment."""
    return f"receipts/{segment_id}.json"


def retired_path(version: int) -> str:
    """Name the mark of a version that gc or a purge took objects of."""
    return f"retired/{version:020d}.json"


def tag_path(name: str) -> str:
    """Name a tag."""
    return f"tags/{name}.json"


def list_versions(storage: Storage) -> list[int]:
    """List the published versions, oldest first. Files that are not named like a manifest do not count."""
    return _list_numbers(storage, "manifests", _MANIFEST)


def head_or_none(storage: Storage) -> Manifest | None:
    """Read the newest manifest; None where nothing was published yet.

    Raises:
        DamagedError: it was published and is gone.
        FormatError: it is of a format this Folio does not read.
    """
    return _head(storage)[0]


def read_head(storage: Storage) -> Manifest:
    """Read the newest manifest.

    Raises:
        MapMissing: nothing was published here yet.
        DamagedError: it was published and is gone.
        FormatError: it is of a format this Folio does not read.
    """
    head = head_or_none(storage)
    if head is None:
        raise MapMissing(f"{storage.url}: no map here. Nothing was changed. Build one: folio build {storage.url} PHOTOS")
    return head


def read_version(storage: Storage, version: int | str) -> Manifest:
    """Read the manifest of a version whose photos are to be opened.

    Args:
        storage: of the map.
        version: its number or a tag.

    Raises:
        MapMissing: no such version.
        MapError: gc or a purge has removed parts of it.
        FormatError: it is of a format this Folio does not read.
    """
    manifest = read_manifest(storage, version_number(storage, version))
    if manifest.version in list_retired(storage):
        raise MapError(
            f"{storage.url}: version {manifest.version} is retired: gc or a purge of photos taken down has removed parts of it. "
            f"Nothing was changed. See which are whole: folio versions {storage.url}"
        )
    return manifest


def read_manifest(storage: Storage, version: int) -> Manifest:
    """Read the manifest of one version, also of a retired one.

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


def list_retired(storage: Storage) -> set[int]:
    """List the versions that are not to be opened any more."""
    return set(_list_numbers(storage, "retired", _RETIRED))


def retire(
    storage: Storage,
    versions: Iterable[int],
    *,
    reason: Literal["gc", "purge", "repair"],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Mark versions as not to be opened any more, before objects of theirs are removed.

    Args:
        storage: of the map.
        versions: their numbers.
        reason: what removes the objects.
        check: as for `publish`.

    Raises:
        StorageError: it cannot be told whether all are marked; nothing of theirs may be removed.
    """
    for version in sorted(versions):
        _create_or_read(storage, retired_path(version), encode_json(Retired(version=version, reason=reason)), check)


def list_tags(storage: Storage) -> dict[str, int]:
    """List the versions that have names, by name.

    Raises:
        FormatError: a tag is of a format this Folio does not read, or damaged.
    """
    names = (_TAG.fullmatch(info.path) for info in storage.list("tags"))
    return {name[1]: decode_tag(storage.get(name[0]), where=f"{storage.url}/{name[0]}").version for name in names if name}


def create_tag(storage: Storage, name: str, version: int) -> None:
    """Give a version a name. Doing it twice changes nothing.

    Raises:
        MapError: the name is another version's, or cannot be one.
        StorageError: it cannot be told whether there is such a tag now.
    """
    if not TAG_NAME.fullmatch(name):
        raise MapError(
            f"{storage.url}: found the tag name {name!r}, needed a letter or digit, then letters, digits, '.', '_' and '-', at "
            "most 64 and not digits alone. Nothing was changed."
        )
    there = decode_tag(
        _create_or_read(storage, tag_path(name), encode_json(_tag(version))), where=f"{storage.url}/{tag_path(name)}"
    )
    if there.version != version:
        raise MapError(
            f"{storage.url}: the tag {name} is version {there.version} already, not {version}. Nothing was changed. To move it: "
            f"folio tag {storage.url} {name} --delete, then again"
        )


def version_number(storage: Storage, name: int | str) -> int:
    """Find the number of a version given by number or tag; that there is such a version is not checked for a number.

    Raises:
        MapMissing: no such tag.
        FormatError: the tag is of a format this Folio does not read, or damaged.
    """
    if isinstance(name, int) or name.isdecimal():
        return int(name)
    path = tag_path(name)
    if TAG_NAME.fullmatch(name):
        try:
            return decode_tag(storage.get(path), where=f"{storage.url}/{path}").version
        except ObjectMissing:
            pass
    raise MapMissing(f"{storage.url}: no tag {name} here. Nothing was changed. See which there are: folio versions {storage.url}")


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


def publish(
    storage: Storage, make: Callable[[Manifest | None], Manifest | None], *, check: Callable[[], None] = lambda: None
) -> Manifest:
    """Publish the next version of a map.

    Args:
        storage: of the map.
        make: given the newest version (None: there is none yet), makes the content of the next, or returns None when nothing
            changes. Called again, on the then newest version, whenever another publisher was faster. What it puts into
            `version`, `parent`, `commit_id` and `created_at` is overwritten here.
        check: called before every request that may publish; raises when this run must not publish any more, as
            `HeldLease.require` does.

    Returns:
        The version published; the newest one, when nothing changed.

    Raises:
        CommitUnknown: the store does not say whether the version was published. Nothing was deleted.
        CommitError: others were faster every time; nothing was published.
    """
    for attempt in range(ATTEMPTS):
        head, marked = _head(storage)
        if head is not None and not marked:
            _mark(storage, head.version)  # its publisher was killed before it did, or it is of an older Folio
        draft = make(head)
        if draft is None:
            assert head is not None, "without a version before, there is a change"
            return head
        mine = _numbered(draft, head)
        path = manifest_path(mine.version)
        try:
            there = _create_or_read(storage, path, encode_json(mine), check)
        except StorageError as error:
            raise CommitUnknown(
                f"{storage.url}: version {mine.version} may have been published or not: {error} "
                "All finished work is kept. Run the same command again."
            ) from error
        published = decode_manifest(there, where=f"{storage.url}/{path}")
        if published.commit_id == mine.commit_id:
            _mark(storage, mine.version)
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
        return storage.put_if_absent(path, f"Folio tries whether this store honours create-if-absent. {uuid4().hex}".encode())

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


def _list_numbers(storage: Storage, folder: str, pattern: re.Pattern[str]) -> list[int]:
    names = (pattern.fullmatch(info.path) for info in storage.list(folder))
    return [int(name[1]) for name in names if name]


def _head(storage: Storage) -> tuple[Manifest | None, bool]:
    """Read the newest manifest and tell whether it is marked as published; raises as `head_or_none`."""
    marked = _list_numbers(storage, "published", _PUBLISHED)  # first, as what is marked then has a manifest
    versions = list_versions(storage)
    newest = max([*versions[-1:], *marked[-1:]], default=0)
    if newest == 0:
        return None, False
    try:
        return read_manifest(storage, newest), newest in marked
    except MapMissing as error:
        older = f"version {versions[-1]}" if versions else "no other version"
        raise DamagedError(
            f"{storage.url}/{manifest_path(newest)}: found nothing, needed that of version {newest}, which was published. "
            f"Nothing was changed, and {older} was not opened in its stead: photos may have been taken down since. Put it "
            f"back, from a backup or the bucket's own versions. Where that is impossible and {older} may be shown: stop all runs "
            f"and readers and delete {published_path(newest)}"
        ) from error


def _mark(storage: Storage, version: int) -> None:
    """Mark a version as published. It is true whoever says it, and the next publisher says it where this one could not."""
    with suppress(StorageError):
        storage.put_if_absent(published_path(version), encode_json(_tag(version)))


def _tag(version: int) -> Tag:
    return Tag(version=version, created_at=datetime.now(UTC).isoformat(timespec="seconds"))


def _numbered(draft: Manifest, head: Manifest | None) -> Manifest:
    return msgspec.structs.replace(
        draft,
        version=head.version + 1 if head else 1,
        parent=head.version if head else None,
        commit_id=uuid4().hex,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _create_or_read(storage: Storage, path: str, data: bytes, check: Callable[[], None] = lambda: None) -> bytes:
    """Create an object if absent and return what is there then: `data`, or what another writer created.

    Trying again is safe after a lost answer: should the first try have succeeded, it is our own bytes that we read.

    Raises:
        StorageError: it cannot be told what is there.
    """
    for attempt in range(CREATE_ATTEMPTS):
        check()
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
