"""Where a photo of a catalog lies: from `uri` and `root` to a storage and a path in it. Used by `sources` and `reading`."""

import posixpath
import re
from typing import NamedTuple

HAS_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


class Location(NamedTuple):
    """An object: the URL of a storage, and the path below it."""

    storage_url: str
    path: str

    @property
    def is_local(self) -> bool:
        """Whether it is a file of this machine."""
        return not HAS_SCHEME.match(self.storage_url)


def is_remote(name: str) -> bool:
    """Whether a source, root or uri is a URL other than of a file on this machine."""
    return bool(HAS_SCHEME.match(name)) and not name.lower().startswith("file://")


def without_file_scheme(name: str) -> str:
    """Turn a file:// URL into a plain path; anything else stays."""
    return name[len("file://") :] if name.lower().startswith("file://") else name


def locate(uri: str, root: str) -> Location:
    """Find the object that a `uri` names.

    Args:
        uri: relative to `root`, or absolute: a path or a URL.
        root: a folder or the URL of one; empty for absolute uris.
    """
    uri = without_file_scheme(uri)
    full = uri if HAS_SCHEME.match(uri) or uri.startswith("/") else posixpath.join(root, uri)
    if not HAS_SCHEME.match(full):
        return Location("/", posixpath.normpath(full).lstrip("/"))
    scheme, rest = full.split("://", 1)
    bucket, _, path = rest.partition("/")
    return Location(f"{scheme}://{bucket}", path)


def leaves_root(uri: str) -> bool:
    """Whether a relative uri climbs out of its root."""
    return posixpath.normpath(uri).split("/")[0] == ".."
