"""manifests ▶ versions, rollback: what was published, and how to go back to it."""

from uuid import uuid4

import msgspec

from infra.commits import list_retired, list_tags, list_versions, publish, read_manifest, read_version, version_number
from infra.leases import lease
from infra.storage import Storage
from pipelines.build.masking import without
from schemas.manifest import Manifest
from schemas.versions import FORMATS


class VersionLine(msgspec.Struct, frozen=True, kw_only=True):
    """A version, as `folio versions` lists it."""

    version: int
    created_at: str
    action: str
    """The command that published it."""
    photos: int
    segments: int
    shards: int
    index: str
    recipe: str
    trained: bool
    tags: list[str]
    retired: bool
    """gc or a purge has removed parts of it; it can be compared but not opened."""
    content_id: str

    def line(self) -> str:
        """Say it to a person."""
        notes = [
            *(f"[{tag}]" for tag in self.tags),
            *(["untrained"] if not self.trained else []),
            *(["retired"] if self.retired else []),
        ]
        return (
            f"{self.version:>6}  {self.created_at}  {self.action:<8}  {self.photos:>9,} photos  {self.segments:>5} segments  "
            f"{self.shards:>3} {self.index} shards  {self.recipe}  {' '.join(notes)}"
        ).rstrip()


def versions(storage: Storage) -> list[VersionLine]:
    """List the published versions, oldest first."""
    retired = list_retired(storage)
    names: dict[int, list[str]] = {}
    for name, version in list_tags(storage).items():
        names.setdefault(version, []).append(name)
    return [
        _line(read_manifest(storage, number), tags=sorted(names.get(number, [])), retired=number in retired)
        for number in list_versions(storage)
    ]


def rollback(storage: Storage, version: int | str) -> Manifest:
    """Publish a new version with the content of an old one; history stays as it was, and photos taken down since stay away.

    Args:
        storage: of the map.
        version: number or tag of the old one.

    Returns:
        The newest version afterwards; the one before, if it already has that content.

    Raises:
        MapMissing: no such version.
        MapError: it is retired.
        CommitError: nothing was published, or it is unknown whether it was.
    """
    number = read_version(storage, version_number(storage, version)).version  # refused before anything is written

    def make(head: Manifest | None) -> Manifest | None:
        assert head is not None, "there is a version to go back to"
        old = without(storage, read_version(storage, number), head.tombstones)
        if head.content_id == old.content_id:
            return None
        return msgspec.structs.replace(old, format_version=FORMATS["manifest"], action="rollback")

    with lease(storage, run_id=f"rollback-{uuid4().hex[:12]}", action="rollback", pins=[number]) as held:
        return publish(storage, make, check=held.require)


def _line(manifest: Manifest, *, tags: list[str], retired: bool) -> VersionLine:
    return VersionLine(
        version=manifest.version,
        created_at=manifest.created_at,
        action=manifest.action,
        photos=manifest.statistics["photos"],
        segments=len(manifest.segments),
        shards=len(manifest.index.shards),
        index=manifest.index.kind,
        recipe=manifest.model.recipe,
        trained=manifest.model.trained,
        tags=tags,
        retired=retired,
        content_id=manifest.content_id,
    )
