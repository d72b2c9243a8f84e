"""Find the photos that a source names: a folder, a bucket prefix, a tar, a single photo or a table. No photo is opened here.

Used by `sources`. Whether a file of a folder or tar is a photo is decided by its name: folders hold sidecars, tables and
thumbnails too, and those are not bad photos. A tar is a folder of its own name: in `lund/a.tar` lies `lund/a.tar/b.jpg`.
"""

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from infra.storage import ObjectInfo
from pipelines.catalog import mapillary, photo_tables, sidecars, tars
from pipelines.catalog.claims import Claim
from pipelines.catalog.file_names import UtmZone, claim_from_name
from pipelines.catalog.headers import EXTRA
from pipelines.catalog.locations import Location, is_remote, leaves_root, locate, without_file_scheme
from pipelines.catalog.reading import Storages, photo_errors
from schemas.errors import CatalogError, ObjectMissing, PhotoError
from schemas.reasons import RejectReason

READABLE_ENDINGS: Final = (".jpg", ".jpeg", ".jpe", ".mpo", ".png", ".apng", ".webp", ".tif", ".tiff", ".avif")
RAW_ENDINGS: Final = (".dng", ".nef", ".nrw", ".arw", ".cr2", ".cr3", ".pef", ".srw", ".orf", ".rw2", ".raf", ".3fr", ".iiq")
EXTRA_ENDINGS: Final = (".heic", ".heif", ".hif", *RAW_ENDINGS)
"""Pictures that Folio reads with its extra `archive`."""

OTHER_ENDINGS: Final = (".gif", ".bmp", ".ico", ".ppm", ".pgm", ".jp2", ".jxl", ".psd")
"""Pictures that Folio does not read. They are listed, and rejected with that reason, because the user may count on them."""

PICTURE_ENDINGS: Final = READABLE_ENDINGS + EXTRA_ENDINGS + OTHER_ENDINGS
TABLE_ENDINGS: Final = (*photo_tables.ENDINGS, mapillary.ENDING)
TAR_ENDINGS: Final = (tars.ENDING, *tars.COMPRESSED_ENDINGS)

ENDINGS_SAID: Final = 12
ENDING_CHARACTERS: Final = 24
"""Of files that are no photos, which may be called anything."""

PHOTO_ENDINGS_SAID: Final = (
    f"Photos end in {', '.join(READABLE_ENDINGS)}, and with the extra `{EXTRA}` in {', '.join(EXTRA_ENDINGS)}."
)

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

    beside: tuple[str, ...] = ()
    """The uris of its sidecars, below the same root."""


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
        elif path.name.lower().endswith(TABLE_ENDINGS):
            yield from self._table(str(path.parent), path.name)
        elif path.name.lower().endswith(TAR_ENDINGS):
            yield from self._tar(f"{path.parent.name}/{path.name}".lstrip("/"), str(path.parent.parent))
        elif path.name.lower().endswith(PICTURE_ENDINGS):
            beside = sidecars.beside(path.name, lambda name: (path.parent / name).is_file())
            prefix = f"{path.parent.name}/".lstrip("/")
            uris = tuple(f"{prefix}{name}" for name in beside)
            yield self._photo(f"{prefix}{path.name}", str(path.parent.parent), None, uris)
        else:
            raise CatalogError(
                f"{source}: no folder, tar, photo or table. Nothing was written. {PHOTO_ENDINGS_SAID} "
                f"Tables end in {', '.join(TABLE_ENDINGS)}."
            )

    def _remote(self, url: str) -> Iterator[Listed]:
        folder, name = posixpath.split(url)
        if name.lower().endswith(TABLE_ENDINGS):
            yield from self._table(folder, name)
        elif name.lower().endswith(TAR_ENDINGS):
            yield from self._tar(url, "")
        elif name.lower().endswith(PICTURE_ENDINGS):
            yield self._photo(url, "", None)
        else:
            yield from self._folder(url, uri_prefix=f"{url}/", root="")

    def _folder(self, url: str, *, uri_prefix: str, root: str) -> Iterator[Listed]:
        skipped: Counter[str] = Counter()
        yield from self._some(url, self._files(list(self.storages.at(url).list()), uri_prefix, root, skipped), skipped)

    def _tar(self, uri: str, root: str) -> Iterator[Listed]:
        if uri.lower().endswith(tars.COMPRESSED_ENDINGS):
            raise CatalogError(f"{uri}: {tars.COMPRESSED_ADVICE}. Nothing was written.")
        skipped: Counter[str] = Counter()
        yield from self._some(uri, self._members(uri, root, skipped), skipped)

    def _some(self, shown: str, photos: Iterator[Listed], skipped: Counter[str]) -> Iterator[Listed]:
        """Pass on the photos of a folder or tar, of which there must be some, and note what else was there."""
        found = 0
        for photo in photos:
            found += 1
            yield photo
        others = _counted(skipped)
        if not found:
            beside = f" ({others})" if others else ""
            raise CatalogError(f"{shown}: no photos in it{beside}. Nothing was written. {PHOTO_ENDINGS_SAID}")
        if others:
            self.notes.append(f"{shown}: {skipped.total()} files that are no photos were skipped: {others}")

    def _files(
        self, files: Sequence[ObjectInfo], uri_prefix: str, root: str, skipped: Counter[str], *, in_tar: bool = False
    ) -> Iterator[Listed]:
        """List the photos among the files of a folder or tar, and of the tars among them."""
        said, read = self._described(files, uri_prefix, root)
        may_be_sidecars = {info.path for info in files if info.path.lower().endswith(sidecars.ENDINGS)}
        others: list[str] = []
        for info in files:
            uri = f"{uri_prefix}{info.path}"
            if is_photo_name(info.path):
                beside = sidecars.beside(info.path, may_be_sidecars.__contains__) if may_be_sidecars else ()
                read.update(beside)
                yield self._photo(uri, root, info, tuple(f"{uri_prefix}{path}" for path in beside), said.get(info.path))
            elif info.path.lower().endswith(TAR_ENDINGS) and not in_tar and not _is_hidden(info.path):
                yield from self._members(uri, root, skipped)
            else:
                others.append(info.path)
        skipped.update(posixpath.splitext(path)[1].lower() or "no ending" for path in others if path not in read)

    def _described(self, files: Sequence[ObjectInfo], uri_prefix: str, root: str) -> tuple[dict[str, Claim], set[str]]:
        """Read the Mapillary image descriptions among some files: what they say by photo, and which files they are."""
        said: dict[str, Claim] = {}
        read: set[str] = set()
        paths: set[str] = set()
        for info in files:
            if posixpath.basename(info.path) != mapillary.FILE_NAME or _is_hidden(info.path):
                continue
            read.add(info.path)
            paths = paths or {each.path for each in files}
            try:
                data = self.storages.get(locate(f"{uri_prefix}{info.path}", root), stop=mapillary.MAX_BYTES + 1)
                rows, notes = mapillary.read_descriptions(data, name=f"{uri_prefix}{info.path}")
            except CatalogError as error:
                self.notes.append(f"{error} Its photos were taken without it.")
                continue
            places = [mapillary.find(row.uri, posixpath.dirname(info.path), paths) for row in rows]
            said.update({place: row.claim for place, row in zip(places, rows, strict=True) if place is not None})
            absent = places.count(None)
            others = f", and {absent:,} that are not there" if absent else ""
            self.notes.extend([*notes, f"{uri_prefix}{info.path}: describes {len(rows) - absent:,} photos{others}"])
        return said, read

    def _members(self, uri: str, root: str, skipped: Counter[str]) -> Iterator[Listed]:
        """List the photos of a tar, and the tar itself where not all of it can be read."""
        location = locate(uri, root)
        try:
            if uri.lower().endswith(tars.COMPRESSED_ENDINGS):
                raise PhotoError(RejectReason.UNSUPPORTED_FORMAT, tars.COMPRESSED_ADVICE)
            with photo_errors(location):
                tar = self.storages.list_tar(location)
        except PhotoError as problem:
            yield _refused(uri, root, problem)
            return
        for member in tar.members:
            if member.problem and is_photo_name(member.name):
                yield _refused(f"{uri}/{member.name}", root, member.problem)
        good = [member for member in tar.members if not member.problem]
        infos = [ObjectInfo(path=each.name, size_bytes=each.size_bytes, etag=None, modified_at=None) for each in good]
        yield from self._files(infos, f"{uri}/", root, skipped, in_tar=True)
        if tar.problem:
            yield _refused(uri, root, tar.problem)
        if not tar.has_end:
            self.notes.append(f"{uri}: it lacks the mark of its end; photos may be missing if it was cut off")

    def _photo(
        self, uri: str, root: str, info: ObjectInfo | None, beside: tuple[str, ...] = (), said: Claim | None = None
    ) -> Listed:
        claim = claim_from_name(posixpath.basename(uri), self.utm_zone) or Claim(source="the photo")
        claim = said.completed_by(claim) if said else claim
        return Listed(uri=uri, root=root, claim=claim, location=locate(uri, root), info=info, beside=beside)

    def _table(self, folder: str, name: str) -> Iterator[Listed]:
        try:
            data = self.storages.at(folder).get(name)
        except ObjectMissing as error:
            raise CatalogError(f"{folder}/{name}: no such table. Nothing was written. Check the path.") from error
        if name.lower().endswith(mapillary.ENDING):
            rows, notes = mapillary.read_descriptions(data, name=name)
        else:
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
    return path.lower().endswith(PICTURE_ENDINGS) and not _is_hidden(path)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") and part not in (".", "..") for part in path.split("/"))


def _refused(uri: str, root: str, problem: PhotoError) -> Listed:
    return Listed(uri=uri, root=root, claim=Claim(source="its tar"), location=problem)


def _counted(endings: Counter[str]) -> str:
    """Say how many files had which ending, by name; of many only the most frequent ones."""
    shown = ", ".join(f"{count} {ending[:ENDING_CHARACTERS]}" for ending, count in sorted(endings.most_common(ENDINGS_SAID)))
    others = endings.total() - sum(count for _, count in endings.most_common(ENDINGS_SAID))
    return f"{shown} and {others} others" if others else shown


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
