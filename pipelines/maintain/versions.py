"""manifests ▶ versions, rollback: what was published, and how to go back to it."""

import msgspec

from infra.commits import list_versions, publish, read_version
from infra.storage import Storage
from schemas.manifest import Manifest
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
