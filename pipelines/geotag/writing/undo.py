"""Take back what a run has written: every file as it was, byte for byte. `folio geotag --undo RUN`."""

from collections import Counter
from pathlib import Path

import msgspec

from infra.observability import progress
from pipelines.geotag.writing.journal import (
    JOURNAL,
    Change,
    Journal,
    Undone,
    look_at,
    opened_journal,
    put_file,
    read_or_none,
    sha256,
    sync_folder,
    temporary_of,
)
from pipelines.geotag.writing.statement import NotWritten


class Left(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was not taken back."""

    file: str
    reason: str


class UndoSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the files of a run. `folio geotag --undo RUN --json` prints it."""

    run: str
    restored: int
    removed: int
    """Sidecars that the run had made."""
    untouched: int
    """They were as they had been already."""
    left: list[Left]

    def lines(self) -> list[str]:
        """Say it to a person."""
        return [
            *(f"left alone: {each.file}: {each.reason}" for each in self.left),
            f"{self.run} undone: {self.restored:,} files restored, {self.removed:,} sidecars removed, "
            f"{self.untouched:,} were as before already, {len(self.left):,} left alone",
        ]


def run_folder(run: str, out: str | None) -> Path:
    """Find the folder of a run.

    Args:
        run: that folder, or its name.
        out: the results folder it belongs to, where only the name is given.
    """
    is_folder = out is None or Path(run, JOURNAL).exists()
    return (Path(run) if is_folder else Path(out or "", "writes", run)).absolute()


def undo(folder: Path, *, force: bool = False) -> UndoSummary:
    """Restore the files that a run has changed. May be stopped at any moment and run again; done twice it changes nothing.

    Args:
        folder: of the run.
        force: also restore files that somebody has changed since, where what was kept is enough.

    Raises:
        CatalogError, DamagedError, WorkError: as `opened_journal`.
        StorageError: the journal cannot be written.
    """
    outcomes: Counter[str] = Counter()
    left: list[Left] = []
    with opened_journal(folder) as journal:
        if journal.begun:
            journal.append(Undone())
        changes = {change.path: change for change in journal.changes}
        for change in progress(list(changes.values()), total=len(changes), unit="file", description="undo"):
            try:
                outcomes[_restore(change, journal, force=force)] += 1
            except (NotWritten, OSError) as error:
                left.append(Left(file=change.path, reason=error.detail if isinstance(error, NotWritten) else str(error)))
        for parent in {Path(path).parent for path in changes}:
            if parent.is_dir():
                sync_folder(parent)
    return UndoSummary(
        run=folder.name,
        restored=outcomes["restored"],
        removed=outcomes["removed"],
        untouched=outcomes["untouched"],
        left=left,
    )


def _restore(change: Change, journal: Journal, *, force: bool) -> str:
    path, temporary = Path(change.path), temporary_of(Path(change.path), journal.folder.name)
    temporary.unlink(missing_ok=True)
    if path.is_symlink():
        raise NotWritten("link", "it has become a link")
    seen, found = look_at(path), read_or_none(path)
    found_sha256 = None if found is None else sha256(found)
    if found_sha256 == change.before_sha256:
        return "untouched"
    if found_sha256 != change.after_sha256 and not force:
        what = "it is gone" if found is None else "somebody has changed it since"
        raise NotWritten("changed", f"{what}; --force restores it all the same")

    if change.before_sha256 is None:
        if look_at(path) != seen:
            raise NotWritten("changed", "somebody changed it at the same moment")
        path.unlink()
        return "removed"
    kept, rest = journal.original(change), found or b""
    before = kept + rest[len(rest) - change.shared_bytes :] if change.shared_bytes else kept
    if sha256(before) != change.before_sha256:
        raise NotWritten(
            "changed", "what is in it now does not fit what was kept of it; it is not restored, also not with --force"
        )
    put_file(path, before, temporary=temporary, seen=seen, mode=change.mode, mtime_ns=change.mtime_ns)
    return "restored"
