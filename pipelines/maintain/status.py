"""store ▶ how a map is doing: its newest version, who is at work, how far unfinished runs have come, and what to do next.

It only reads, so the time is this machine's, or that of the newest object of a run where the store is ahead of it. Requests:
four lists (of manifests, marks and twice of runs; one more for each thousand objects there), the newest manifest, and one for
each lease and each unfinished run that is shown. How many photos a map has, or a run encodes, changes none of that.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec

from infra.commits import head_or_none
from infra.leases import GC, live_leases
from infra.observability import in_time
from infra.storage import ObjectInfo, Storage
from pipelines.build.progress import Progress, read_progress
from schemas import layout
from schemas.errors import MapMissing
from schemas.manifest import Lease, Manifest
from schemas.reasons import in_words

SHOWN: Final = 4
"""Unfinished runs that are described, the newest first."""

SILENT_S: Final = 600.0
"""After so long without a finished segment, or three times what one took so far, a run at work may hang."""

_OBJECT: Final = re.compile(r"runs/([^/]+)/(.+)")


class NewestVersion(msgspec.Struct, frozen=True, kw_only=True):
    """The version that readers see."""

    version: int
    age_s: float
    """Since it was published, by its publisher's clock."""
    action: str
    """The command that published it."""
    photos: int
    segments: int
    recipe: str
    trained: bool


class UnfinishedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run that has begun to encode and not published."""

    run_id: str
    action: str
    at_work: bool
    """It holds a lease."""
    segments_planned: int
    segments_finished: int
    segments_set_aside: int
    photos_planned: int
    photos_finished: int
    """Usable or not."""
    rejected: dict[str, int]
    """By reason."""
    photos_per_second: float | None
    """Since it was last started, until it last finished a segment; None: it has finished none since then."""
    network_share: float | None
    """Of the time that its workers spent on finished segments; None: none is finished. The same holds for the next."""
    waiting_share: float | None
    """In which the network waited for photos."""
    since_receipt_s: float | None
    """Since it last finished a segment; None: it has finished none since it was last started."""
    seconds_left: float | None
    """An estimate from that rate; None: it is not at work, or there is no rate yet."""


class MapStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What `folio status` found. `--json` prints it."""

    map: str
    newest: NewestVersion | None
    """None: nothing was published yet."""
    leases: list[Lease]
    """Who is at work."""
    unfinished: list[UnfinishedRun]
    more_unfinished: int
    """Older ones beyond those."""
    next_step: str

    def lines(self) -> list[str]:
        """Say it to a person."""
        newest = self.newest
        lines = ["newest   none: nothing was published yet"] if newest is None else [_newest_line(newest)]
        lines += [f"at work  {one.action}, run {one.run_id}" for one in self.leases] or ["at work  nobody"]
        for run in self.unfinished:
            lines += _run_lines(run)
        if self.more_unfinished:
            lines.append(f"         and {self.more_unfinished} older unfinished runs, which gc removes in time")
        return [*lines, f"next     {self.next_step}"]


def status(storage: Storage) -> MapStatus:
    """Look at a map, and at the runs that work on it.

    Raises:
        MapMissing: there is neither a map nor a run.
        DamagedError: the newest version was published and is gone.
        FormatError: it is of a format this Folio does not read.
    """
    head = head_or_none(storage)
    objects = list(storage.list("runs"))
    now = max([datetime.now(UTC), *(info.modified_at for info in objects if info.modified_at)])
    leases = live_leases(storage, now=now)
    at_work = {one.run_id for one in leases}
    if head is None and not objects:
        raise MapMissing(f"{storage.url}: no map here. Nothing was changed. Build one: folio build {storage.url} PHOTOS")
    names = _unfinished(objects, at_work)
    runs = [_describe(one, now, at_work=one.run_id in at_work) for name in names[:SHOWN] if (one := read_progress(storage, name))]
    return MapStatus(
        map=storage.url,
        newest=_newest(head, now) if head else None,
        leases=leases,
        unfinished=runs,
        more_unfinished=len(names[SHOWN:]),
        next_step=_next_step(storage.url, head, leases, runs),
    )


def _unfinished(objects: list[ObjectInfo], at_work: set[str]) -> list[str]:
    """Name the runs that encode or were interrupted, the newest first: a run writes its rejects when it comes to publishing."""
    runs: dict[str, dict[str, datetime | None]] = {}
    for info in objects:
        if found := _OBJECT.fullmatch(info.path):
            runs.setdefault(found[1], {})[found[2]] = info.modified_at
    open_runs = {name: _time(files, layout.PROGRESS) for name, files in runs.items() if layout.PROGRESS in files}
    done = {name for name in open_runs if layout.REJECTS in runs[name] and _time(runs[name], layout.REJECTS) >= open_runs[name]}
    return sorted(open_runs.keys() - (done - at_work), key=lambda name: (name in at_work, open_runs[name], name), reverse=True)


def _time(files: Mapping[str, datetime | None], name: str) -> datetime:
    return files[name] or datetime.min.replace(tzinfo=UTC)  # in memory there is no time


def _newest(head: Manifest, now: datetime) -> NewestVersion:
    return NewestVersion(
        version=head.version,
        age_s=max(0.0, (now - datetime.fromisoformat(head.created_at)).total_seconds()),
        action=head.action,
        photos=head.statistics["photos"],
        segments=len(head.segments),
        recipe=head.model.recipe,
        trained=head.model.trained,
    )


def _describe(progress: Progress, now: datetime, *, at_work: bool) -> UnfinishedRun:
    last = progress.last_receipt_at_s
    return UnfinishedRun(
        run_id=progress.run_id,
        action=progress.mode,
        at_work=at_work,
        segments_planned=progress.segments_planned,
        segments_finished=progress.segments_finished,
        segments_set_aside=progress.set_aside,
        photos_planned=progress.photos_planned,
        photos_finished=progress.photos_finished,
        rejected=progress.rejected,
        photos_per_second=progress.photos_per_second,
        network_share=progress.network_s / progress.worker_s if progress.worker_s else None,
        waiting_share=progress.waited_s / progress.worker_s if progress.worker_s else None,
        since_receipt_s=None if last is None else max(0.0, now.timestamp() - last),
        seconds_left=progress.seconds_left if at_work else None,
    )


def _next_step(url: str, head: Manifest | None, leases: list[Lease], runs: list[UnfinishedRun]) -> str:
    working = [run for run in runs if run.at_work]
    if any(_is_silent(run) for run in working):
        return (
            "a run at work has finished no segment for long: look at its log; stopped and started again it keeps what is finished"
        )
    if leases:
        others = " and only what nothing names is removed" if all(one.action == GC for one in leases) else ""
        return f"wait: others are at work{others}; readers see {'the newest version' if head else 'nothing yet'} until then"
    if runs:
        last = runs[0]
        return (
            f"nobody goes on with run {last.run_id}: give the same command again (folio {last.action} {url} PHOTOS); its "
            f"{last.segments_finished:,} finished segments are kept"
        )
    if head is None:
        return f"build it: folio build {url} PHOTOS"
    return f"nothing is unfinished; bring it up to date: folio build {url} PHOTOS"


def _is_silent(run: UnfinishedRun) -> bool:
    if run.since_receipt_s is None or not run.photos_per_second or run.segments_finished == run.segments_planned:
        return False
    a_segment_s = run.photos_planned / run.segments_planned / run.photos_per_second
    return run.since_receipt_s > max(SILENT_S, 3 * a_segment_s)


def _newest_line(newest: NewestVersion) -> str:
    untrained = "" if newest.trained else " (untrained)"
    return (
        f"newest   version {newest.version}, {in_time(newest.age_s)} old, by {newest.action}: {newest.photos:,} photos in "
        f"{newest.segments:,} segments, {newest.recipe}{untrained}"
    )


def _run_lines(run: UnfinishedRun) -> list[str]:
    lines = [
        f"{run.action:<8} run {run.run_id}{'' if run.at_work else ', interrupted'}: {run.segments_finished:,} of "
        f"{run.segments_planned:,} segments, {run.photos_finished:,} of {run.photos_planned:,} photos"
    ]
    if run.photos_per_second:
        share = ""
        if run.network_share is not None and run.waiting_share is not None:
            share = f", {run.network_share:.0%} of the workers' time in the network, {run.waiting_share:.0%} waiting for photos"
        left = "" if run.seconds_left is None else f"; about {in_time(run.seconds_left)} of encoding left"
        lines.append(f"         {run.photos_per_second:,.1f} photos/s{share}{left}")
    if run.since_receipt_s is not None:
        lines.append(f"         last segment finished {in_time(run.since_receipt_s)} ago")
    if run.rejected:
        lines.append(f"         {sum(run.rejected.values()):,} rejected ({in_words(run.rejected)})")
    if run.segments_set_aside:
        lines.append(f"         {run.segments_set_aside:,} segments set aside: their workers died again and again")
    return lines
