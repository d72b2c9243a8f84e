"""Find the photos that a source names: a folder, a bucket prefix, a single photo or a table. No photo is opened here.

Used by `sources`. Whether a file of a folder is a photo is decided by its name: folders hold sidecars, tables and thumbnails
too, and those are not bad photos.
"""

import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infra.storage import ObjectInfo
from pipelines.catalog import photo_tables
from pipelines.catalog.claims import Claim
from pipelines.catalog.file_names import UtmZone, claim_from_name
from pipelines.catalog.locations import Location, is_remote, leaves_root, locate, without_file_scheme
from pipelines.catalog.reading import Storages
from schemas.errors import CatalogError, ObjectMissing, PhotoError
from schemas.reasons import RejectReason

READABLE_ENDINGS: Final = (".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff")
OTHER_ENDINGS: Final = (".heic", ".heif", ".avif", ".gif", ".bmp", ".ico", ".ppm", ".pgm", ".jp2", ".jxl", ".psd")
"""Pictures that Folio does not read. They are listed, and rejected with that reason, because the user may count on them."""

PICTURE_ENDINGS: Final = READABLE_ENDINGS + OTHER_ENDINGS
PHOTO_ENDINGS_SAID: Final = f"Photos end in {', '.join(READABLE_ENDINGS)}."

STORES: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory")
"""Kinds of URL that a table may name. Not the web: a table from elsewhere must not make this machine ask around for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """One photo that a source names."""

    uri: str
    root: str

    claim: Claim
    """What its table row or its name says of it."""

    location: Location | PhotoError
    """Where it lies, or why it must not be opened."""

    info: ObjectInfo | None = None
    """From a listing; None when nobody looked yet whether the file exists."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lister:
    """Lists sources."""

    storages: Storages

    utm_zone: UtmZone | None
    """For file names that give a UTM position without its zone."""

    needs_position: bool
    """Refuse tables without columns for positions."""

    notes: list[str] = field(default_factory=list)
    """How sources were understood, for the user. Grows with each source."""

    def list(self, source: str) -> Iterator[Listed]:
        """List the photos of one source.

        Args:
            source: a folder, a URL, a photo or a table, as a user names it.

        Raises:
            CatalogError: there is nothing like it, or nothing in it.
            StorageError: its store does not answer.
        """
        _check_characters(source)
        if is_remote(source):
            yield from self._remote(source.rstrip("/"))
        else:
            yield from self._local(source, Path(posixpath.normpath(Path(without_file_scheme(source)).absolute())))

    def _local(self, source: str, path: Path) -> Iterator[Listed]:
        if not path.exists():
            raise CatalogError(f"{source}: no such folder or file. Nothing was written. Check the path.")
        if path.is_dir():
            yield from self._folder(str(path), uri_prefix=f"{path.name}/".lstrip("/"), root=str(path.parent))
        elif path.name.lower().endswith(photo_tables.ENDINGS):
            yield from self._table(str(path.parent), path.name)
        elif path.name.lower().endswith(PICTURE_ENDINGS):
            yield self._photo(f"{path.parent.name}/{path.name}".lstrip("/"), str(path.parent.parent), None)
        else:
            raise CatalogError(
                f"{source}: no folder, photo or table. Nothing was written. {PHOTO_ENDINGS_SAID} "
                f"Tables end in {', '.join(photo_tables.ENDINGS)}."
            )

    def _remote(self, url: str) -> Iterator[Listed]:
        folder, name = posixpath.split(url)
        if name.lower().endswith(photo_tables.ENDINGS):
            yield from self._table(folder, name)
        elif name.lower().endswith(PICTURE_ENDINGS):
            yield self._photo(url, "", None)
        else:
            yield from self._folder(url, uri_prefix=f"{url}/", root="")

    def _folder(self, url: str, *, uri_prefix: str, root: str) -> Iterator[Listed]:
        skipped: Counter[str] = Counter()
        found = 0
        for info in self.storages.at(url).list():
            if is_photo_name(info.path):
                found += 1
                yield self._photo(f"{uri_prefix}{info.path}", root, info)
            else:
                skipped[posixpath.splitext(info.path)[1].lower() or "no ending"] += 1
        others = ", ".join(f"{count} {ending}" for ending, count in sorted(skipped.items()))
        if not found:
            beside = f" ({others})" if others else ""
            raise CatalogError(
                f"{url}: no photos in it{beside}. Nothing was written. Photos end in {', '.join(READABLE_ENDINGS)}."
            )
        if others:
            self.notes.append(f"{url}: {skipped.total()} files that are no photos were skipped: {others}")

    def _photo(self, uri: str, root: str, info: ObjectInfo | None) -> Listed:
        claim = claim_from_name(posixpath.basename(uri), self.utm_zone) or Claim(source="the photo")
        return Listed(uri=uri, root=root, claim=claim, location=locate(uri, root), info=info)

    def _table(self, folder: str, name: str) -> Iterator[Listed]:
        try:
            data = self.storages.at(folder).get(name)
        except ObjectMissing as error:
            raise CatalogError(f"{folder}/{name}: no such table. Nothing was written. Check the path.") from error
        rows, notes = photo_tables.read_photo_table(data, name=name, needs_position=self.needs_position)
        self.notes.extend(notes)
        for row in rows:
            in_name = claim_from_name(posixpath.basename(row.uri), self.utm_zone)
            claim = row.claim.completed_by(in_name) if in_name else row.claim
            root = "" if _is_absolute(row.uri) else folder
            problem = _forbidden(row, folder)
            yield Listed(uri=row.uri, root=root, claim=claim, location=problem or locate(row.uri, root))


def is_photo_name(path: str) -> bool:
    """Whether a file of a folder is taken for a photo: it ends like a picture and neither it nor a folder of it is hidden."""
    return path.lower().endswith(PICTURE_ENDINGS) and not any(part.startswith(".") for part in path.split("/"))


def _is_absolute(uri: str) -> bool:
    return is_remote(uri) or uri.startswith(("/", "file://"))


def _forbidden(row: photo_tables.TableRow, folder: str) -> PhotoError | None:
    """Say why a table may not name this file; None when it may.

    A table on this machine is the user's own and may name files anywhere on it and in stores. One from elsewhere may name only
    what lies beside it or below.
    """
    where = f"{row.claim.source}: "
    if not row.uri:
        return PhotoError(RejectReason.MISSING, f"{where}names no file")
    scheme = row.uri.partition("://")[0].lower()
    if is_remote(row.uri) and scheme not in STORES:
        return PhotoError(RejectReason.OUTSIDE_ROOT, f"{where}{scheme} addresses are not fetched; download the photo first")
    if _is_absolute(row.uri):
        inside = row.uri.startswith(f"{folder}/") and ".." not in row.uri.split("/")
        if is_remote(folder) and not inside:
            return PhotoError(RejectReason.OUTSIDE_ROOT, f"{where}a table in a store may only name what lies below {folder}")
    elif leaves_root(row.uri):
        return PhotoError(RejectReason.OUTSIDE_ROOT, f"{where}leads out of {folder}")
    return None


def _check_characters(source: str) -> None:
    try:
        source.encode()
    except UnicodeEncodeError as error:
        shown = source.encode(errors="backslashreplace").decode()
        raise CatalogError(f"{shown}: a name that is not UTF-8. Nothing was written. Rename it.") from error
    bucket = source.partition("://")[2].partition("/")[0]
    if "@" in bucket:
        raise CatalogError(
            f"{source.partition('://')[0]}://...@{bucket.rpartition('@')[2]}: credentials in a URL would end up in the map. "
            "Nothing was written. Set them where the AWS tools look for them."
        )
