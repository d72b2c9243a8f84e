"""version ▶ tag: a name for a version, which gc then keeps."""

from uuid import uuid4

from infra.commits import create_tag, list_tags, read_head, read_version, tag_path
from infra.leases import lease
from infra.storage import Storage
from schemas.errors import MapMissing


def tag(storage: Storage, name: str, version: int | str | None = None) -> int:
    """Name a version; the newest, where none is given. Doing it twice changes nothing.

    Returns:
        The version that has the name now.

    Raises:
        MapMissing: no map or no such version.
        MapError: the version is retired, or the name is another version's or cannot be one.
    """
    number = (read_head(storage) if version is None else read_version(storage, version)).version
    with lease(storage, run_id=f"tag-{uuid4().hex[:12]}", action="tag", pins=[number]) as held:
        read_version(storage, number)  # again: a gc may have finished just before
        held.require()
        create_tag(storage, name, number)
    return number


def delete_tag(storage: Storage, name: str) -> int:
    """Take a name away; the version stays until gc finds no other reason to keep it.

    Returns:
        The version that had it.

    Raises:
        MapMissing: no such tag.
    """
    tags = list_tags(storage)
    if name not in tags:
        raise MapMissing(
            f"{storage.url}: no tag {name} here. Nothing was changed. See which there are: folio versions {storage.url}"
        )
    storage.delete(tag_path(name))
    return tags[name]
