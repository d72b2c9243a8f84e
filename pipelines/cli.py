"""The `folio` command. Each command turns its options into a request, calls one verb and prints what came of it.

Exit codes: 0 done, 1 the user can fix it, 2 usage, 3 finished with rejected photos under --strict.
"""

import math
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
import msgspec

from infra.observability import configure_logging
from infra.settings import S3_ENDPOINT, Settings, changed_environment
from schemas.errors import FolioError

if TYPE_CHECKING:
    from pipelines.geotag.decisions import AppliedSummary
    from pipelines.geotag.geotag import GeotagSummary

REJECTED_EXIT: Final = 3

PREFECT_ENVIRONMENT: Final = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
"""Read by Prefect on import: no usage reports to anybody, and more than its 20 s for a slow machine to start its own server."""


class _WithExample(click.Command):
    """A command whose example is printed as it was written."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.epilog:
            with formatter.section("Example"):
                formatter.write_text(self.epilog)


class _Command(_WithExample):
    """A command whose usage reads MAP PHOTOS... [OPTIONS]."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        arguments = [piece for param in self.get_params(ctx) for piece in param.get_usage_pieces(ctx)]
        return [*arguments, "[OPTIONS]"]


@contextmanager
def _stopped_as_by_ctrl_c() -> Iterator[None]:
    """Let SIGTERM, which a service manager or a container is stopped by, end a command as Ctrl-C does: leases are given back."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Group(_WithExample, click.Group):
    """Turns an expected error, or being stopped, into one line and exit code 1."""

    command_class = _Command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _stopped_as_by_ctrl_c():
                return super().invoke(ctx)
        except FolioError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _fail("stopped. What was finished is kept; run the same command again to go on.")


class _TimeOffset(click.ParamType[float]):
    """A time zone, as +02:00, or seconds: both as seconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip()
        if zone := re.fullmatch(r"([+-])(\d{1,2}):(\d{2})", text):
            seconds = (int(zone[2]) * 60 + int(zone[3])) * 60
            return float(-seconds if zone[1] == "-" else seconds)
        try:
            seconds_ahead = float(text)
        except ValueError:
            self.fail(f"needed a time zone, as +02:00, or seconds, found {value!r}", param, ctx)
        if not math.isfinite(seconds_ahead):
            self.fail(f"needed seconds, found {value!r}", param, ctx)
        return seconds_ahead


def _with_prior(options: dict[str, Any]) -> dict[str, Any]:
    """Put what was known beforehand of the photos in place of the options that say it."""
    from pipelines.query.prior import prior_of

    names = ("near", "within", "bbox", "area", "taken_from", "taken_until")
    try:
        prior = prior_of(**{name: options[name] for name in names})
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return {**{name: value for name, value in options.items() if name not in names}, "prior": prior}


def _fail(message: str) -> NoReturn:
    click.echo(f"folio: {message}", err=True)
    sys.exit(1)


def _options(*decorators: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(command: Any) -> Any:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


MAP = click.argument("map_url", metavar="MAP")
PHOTOS = click.argument("photos", metavar="PHOTOS...", nargs=-1, required=True)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
STRICT = click.option("--strict", is_flag=True, help="Exit with 3 when photos were rejected.")
UTM_ZONE = click.option("--utm-zone", metavar="ZONE", help="Zone of file names that hold only @east@north@, as 33N or 33U.")
WEIGHTS = click.option(
    "--weights", metavar="FILE", type=click.Path(exists=True, dir_okay=False), help="Weights of the network, as safetensors."
)
DEVICE = click.option("--device", default="auto", metavar="NAME", help="cpu, cuda, or auto: a GPU where there is one.")
VERSION = click.option("--version", "version", metavar="N|TAG", help="Use this version of the map, not the newest.")
PRECISION = click.option(
    "--precision",
    type=click.FloatRange(0.5, 0.99),
    default=0.95,
    show_default=True,
    metavar="SHARE",
    help="Share of the answers that shall be right; below it: don't know. For calibrated maps.",
)
PRIOR = _options(
    click.option("--near", metavar="LAT,LON", help="Look only at photos taken near here.  [default: everywhere]"),
    click.option("--within", metavar="DISTANCE", help="How near, as 800m or 2km.  [default: 1km]"),
    click.option("--bbox", multiple=True, metavar="W,S,E,N", help="Look only here, in degrees. May be repeated."),
    click.option("--area", metavar="FILE", help="Look only in these polygons; GeoJSON."),
    click.option("--taken-from", metavar="TIME", help="Look only at photos of this day or time and later."),
    click.option("--taken-until", metavar="TIME", help="And until this one."),
)
ALONE = click.option("--alone", is_flag=True, help="Decide on each photo by itself, whatever was taken before and after it.")
TOGETHER = _options(
    ALONE,
    click.option(
        "--max-speed",
        "max_speed_kmh",
        type=click.FloatRange(1, 1000),
        default=150,
        show_default=True,
        metavar="KMH",
        help="Nobody was quicker from one photo to the next.",
    ),
    click.option("--gpx", multiple=True, metavar="FILE", help="A track recorded meanwhile, as evidence. May be repeated."),
    click.option(
        "--time-offset",
        "time_offset_s",
        type=_TimeOffset(),
        default="0",
        metavar="TIME",
        help="How much the camera's clock is ahead of UTC, as +02:00 or in seconds; for --gpx.",
    ),
    click.option("--use-track", is_flag=True, help="Give photos whose pixels say nothing the track's position, marked as such."),
)
PRIVATE = _options(
    click.option("--redact", is_flag=True, help="Name no photo of the map in what is written, and keep no candidates."),
    click.option(
        "--never-in", metavar="FILE", help="Tell nothing of photos that may have been taken in these polygons; GeoJSON."
    ),
)
PREFECT = click.option("--prefect", is_flag=True, help="Run as a Prefect flow, also when PREFECT_API_URL is not set.")
BUILDING = _options(
    MAP,
    PHOTOS,
    click.option(
        "--recipe", metavar="NAME", help="Network to encode with. See `folio models`.  [default: the map's, or folio-small]"
    ),
    WEIGHTS,
    UTM_ZONE,
    click.option(
        "--plan", "plan_only", is_flag=True, help="Print the work, time, memory, disk and money it would take, and stop."
    ),
    click.option(
        "--prices",
        metavar="FILE",
        type=click.Path(exists=True, dir_okay=False),
        help="Prices for --plan, as TOML.  [default: FOLIO_PRICES, or list prices of 2026]",
    ),
    click.option("--workers", type=click.Choice(["here", "ray"]), default="here", help="Encode in this process, or on Ray."),
    DEVICE,
    click.option("--single-writer", is_flag=True, help="Publish to a store that does not refuse a second writer."),
    PREFECT,
    STRICT,
    JSON,
)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="folio-vpr", message="folio %(version)s")
@click.option("--endpoint", metavar="URL", help="S3 server other than AWS.  [default: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL]")
@click.pass_context
def main(ctx: click.Context, endpoint: str | None) -> None:
    """Turn geotagged photos into a published, searchable map, and say where other photos were taken.

    PHOTOS are folders, buckets (s3://...), tars, single photos, or tables (.csv, .parquet) with uri, lat_deg and lon_deg.
    MAP is a folder or any fsspec URL.
    """
    if endpoint:
        ctx.with_resource(changed_environment({S3_ENDPOINT: endpoint}))


@main.command(cls=_Command, epilog="folio build s3://maps/lund s3://survey/2026/ --plan")
@BUILDING
@click.option("--replace-model", is_flag=True, help="Encode every photo again when the network is not the map's.")
@click.option(
    "--recall",
    type=click.FloatRange(0.5, 1.0),
    metavar="SHARE",
    help="Share of the exact neighbours that a search must find.  [default: the map's, or as many as at the usual cost]",
)
@click.option(
    "--bytes",
    "code_bytes",
    type=click.IntRange(8, 1024),
    metavar="N",
    help="Code bytes a photo takes in memory.  [default: the map's, or 128]",
)
def build(replace_model: bool, recall: float | None, code_bytes: int | None, **options: Any) -> None:
    """Bring the map at MAP up to date with exactly these photos: new ones are encoded, known ones kept, vanished ones dropped.

    Stop it at any time and run it again: finished work is kept, and readers see the old map until the new one is complete.
    """
    from pipelines.ivfpq import IndexConfig

    index = IndexConfig(recall=recall, code_bytes=code_bytes)
    _build(mode="build", replace_model=replace_model, index=index, **options)


@main.command(cls=_Command, epilog="folio backfill s3://maps/lund new-drive/")
@BUILDING
def backfill(**options: Any) -> None:
    """Add photos to the map at MAP and touch nothing else: its other photos, segments and shards stay as they are.

    A photo whose name the map already knows is left alone; `folio build` replaces it. Safe to stop and run again.
    """
    _build(mode="backfill", replace_model=False, **options)


@main.command(cls=_Command, epilog="folio query s3://maps/lund bridge.jpg")
@MAP
@click.argument("photos", metavar="PHOTO...", nargs=-1, required=True)
@PRECISION
@PRIOR
@VERSION
@WEIGHTS
@DEVICE
@JSON
def query(map_url: str, photos: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Say where each PHOTO was taken: position, expected error, the photo of the map that matched, and how well.

    Writes nothing and keeps no query photo.
    """
    from pipelines.engine.model import untrained_note
    from pipelines.geotag.ask import ask

    settings = _settings()
    found = ask(map_url, photos, settings, **_with_prior(options))
    if as_json:
        _print_json(found)
        return
    _print_lines(found.lines())
    if not found.trained:
        click.echo(untrained_note(found.recipe), err=True)
    if found.rejected and not found.answers:
        sys.exit(1)


WRITING = _options(
    click.option(
        "--format",
        "formats",
        multiple=True,
        metavar="NAMES",
        help="Also write geotags.csv, .gpx, .kml, Mapillary's or hloc's file: csv,gpx,kml,mapillary,hloc.",
    ),
    click.option(
        "--write",
        "kind",
        type=click.Choice(["sidecar", "exif"]),
        help="Write positions into XMP sidecars, or into the JPEGs themselves. A dry run, unless --no-dry-run.",
    ),
    click.option(
        "--dry-run/--no-dry-run", default=True, help="With --write: say what would be written, or do it.  [default: say]"
    ),
    click.option("--overwrite", is_flag=True, help="With --write: also photos that have a position of their own."),
    click.option(
        "--sidecar-style",
        "style",
        type=click.Choice(["photo", "adobe"]),
        default="photo",
        help="Name sidecars IMG.JPG.xmp, or IMG.xmp as Adobe's programs do.  [default: photo]",
    ),
    click.option("--undo", "undone_run", metavar="RUN", help="Take back what a run has written, byte for byte, and stop."),
    click.option("--force", is_flag=True, help="With --undo: also files that somebody has changed since."),
)


@main.command(cls=_Command, epilog="folio geotag s3://maps/lund holiday-photos/ --out holiday-geotags/")
@click.argument("map_url", metavar="[MAP]", required=False)
@click.argument("photos", metavar="[ARCHIVE...]", nargs=-1)
@click.option("--out", metavar="DIR", help="Folder for the geotags and everything they rest on.")
@click.option(
    "--apply",
    "decisions",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Apply what a person decided in DIR/review.html to the geotags of DIR, without MAP and ARCHIVE.",
)
@WRITING
@PRECISION
@TOGETHER
@PRIVATE
@PRIOR
@VERSION
@WEIGHTS
@UTM_ZONE
@DEVICE
@PREFECT
@STRICT
@JSON
def geotag(
    map_url: str | None,
    photos: tuple[str, ...],
    out: str | None,
    decisions: str | None,
    formats: tuple[str, ...],
    kind: str | None,
    dry_run: bool,
    overwrite: bool,
    style: str,
    undone_run: str | None,
    force: bool,
    strict: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Say where each photo of an archive was taken, and write geotags.parquet and geotags.geojson to DIR.

    Photos below the threshold are marked "unknown": no position is better than a wrong one. The photos are not changed, unless
    --write says so; without MAP and ARCHIVE, --write and --format take what lies in DIR already. Stop it at any time and run it
    again: what was answered is kept, and a second run answers only new photos.
    """
    from pipelines.geotag.writing.exports import parse_formats, run_exports
    from pipelines.geotag.writing.write import WriteRequest, run_writing

    settings = _settings()
    if undone_run is not None:
        if map_url or decisions or formats or kind:
            raise click.UsageError("--undo takes nothing but --out, --force and --json")
        _undo(undone_run, out, force=force, as_json=as_json)
        return
    if out is None:
        raise click.UsageError("--out DIR is missing")
    if force:
        raise click.UsageError("--force is for --undo")
    if not kind and (not dry_run or overwrite or style != "photo"):
        raise click.UsageError("--no-dry-run, --overwrite and --sidecar-style are for --write")
    if map_url and not photos:
        raise click.UsageError("ARCHIVE... is missing: the photos to geotag")
    if map_url and decisions:
        raise click.UsageError("--apply takes the geotags that lie in --out DIR, without MAP and ARCHIVE")
    if not map_url and not (decisions or formats or kind):
        raise click.UsageError("MAP and ARCHIVE... are missing. Without them, --apply, --format and --write use what lies in DIR")
    try:
        asked = parse_formats(formats)
    except ValueError as error:
        raise click.UsageError(str(error)) from error

    summary = _geotag(map_url, photos, out, settings, **options) if map_url else None
    applied = _apply(out, Path(decisions), settings) if decisions else None
    exports = run_exports(out, asked, settings) if asked else None
    request = WriteRequest(out=out, kind=kind, style=style, overwrite=overwrite, dry_run=dry_run) if kind else None
    writing = run_writing(request, settings) if request else None
    if as_json:
        document = msgspec.to_builtins(summary) if summary else {"out": out}
        done = {"applied": applied, "exports": exports, "writing": writing}
        _print_json({**document, **{name: part for name, part in done.items() if part}})
    else:
        _print_lines(line for part in (summary, applied, exports, writing) if part for line in part.lines())
    if strict and ((summary and summary.rejected) or (applied and applied.skipped)):
        sys.exit(REJECTED_EXIT)


def _geotag(
    map_url: str, photos: tuple[str, ...], out: str, settings: Settings, *, precision: float, prefect: bool, **options: Any
) -> "GeotagSummary":
    from pipelines.geotag.geotag import GeotagRequest, run_geotag
    from pipelines.locate.position import PositionConfig

    if (options["use_track"] or options["time_offset_s"]) and not options["gpx"]:
        raise click.UsageError("--use-track and --time-offset are for --gpx")
    position = PositionConfig(precision=precision)
    request = GeotagRequest(map_url=map_url, photos=photos, out=out, position=position, **_with_prior(options))
    if prefect or settings.prefect_api_url:
        with changed_environment(PREFECT_ENVIRONMENT):
            from pipelines.geotag.flow import run_as_flow

            return run_as_flow(request)
    return run_geotag(request, settings)


def _undo(run: str, out: str | None, *, force: bool, as_json: bool) -> None:
    from pipelines.geotag.writing.undo import run_folder, undo

    summary = undo(run_folder(run, out), force=force)
    _finish(summary, summary.lines(), {}, as_json=as_json, strict=False)
    if summary.left:
        sys.exit(1)


@main.command(cls=_Command, epilog="folio evaluate s3://maps/lund queries/ --radius-m 25 --out lund-evaluation/")
@MAP
@click.argument("photos", metavar="QUERIES...", nargs=-1, required=True)
@click.option("--radius-m", default=25.0, show_default=True, metavar="M", help="A photo this near to the query is right.")
@click.option("--out", default="out/evaluation", show_default=True, metavar="DIR", help="Folder for results and metrics.")
@VERSION
@WEIGHTS
@UTM_ZONE
@DEVICE
@PRECISION
@ALONE
@PRIOR
@STRICT
@JSON
def evaluate(radius_m: float, out: str, precision: float, strict: bool, as_json: bool, **options: Any) -> None:
    """Geotag photos whose positions are known, and print recall@1/5/10/20 and how far off the positions are.

    Queries without any photo of the map within the radius stay in the denominator, as is the custom.
    """
    from pipelines.evaluate.evaluate import run_evaluation
    from pipelines.evaluate.summary import EvaluationSummary
    from pipelines.geotag.geotag import GeotagRequest, geotag_archive
    from pipelines.locate.position import PositionConfig

    settings = _settings()
    request = GeotagRequest(out=out, position=PositionConfig(precision=precision), **_with_prior(options))
    geotagged = geotag_archive(request, settings)
    metrics = run_evaluation(out, radius_m=radius_m, settings=settings)
    summary = EvaluationSummary.of(metrics, geotagged, radius_m=radius_m)
    _finish(summary, summary.lines(), geotagged.rejected, as_json=as_json, strict=strict)


@main.command(cls=_Command, epilog="folio report lund-evaluation/")
@click.argument("directory", metavar="DIR")
@click.option("--photos", metavar="ROOT", help="Where the photos are now, if they have moved since.")
@click.option(
    "--review",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    metavar="N",
    help="Photos that the review shows with pictures, the doubtful ones first; about 100 kB each.",
)
def report(directory: str, photos: str | None, review: int) -> None:
    """Write DIR/report.html: the map, the numbers and example matches, in one page that works offline.

    And DIR/review.html: the whole archive on a map, to look at what is doubtful and accept, correct or refuse it; `folio geotag
    --apply` takes what the page saves. DIR is what `folio geotag` or `folio evaluate` wrote.
    """
    from pipelines.report.page import write_report

    page = write_report(Path(directory), settings=_settings(), photos=photos, review=review)
    click.echo(page)


@main.command(cls=_Command, epilog="folio versions s3://maps/lund")
@MAP
@JSON
def versions(map_url: str, as_json: bool) -> None:
    """List the published versions of the map at MAP, oldest first."""
    from infra.commits import read_head
    from infra.storage import open_storage
    from pipelines.maintain.versions import versions as list_all

    storage = open_storage(map_url, _settings())
    read_head(storage)  # a map that does not exist is an error, not an empty list
    found = list_all(storage)
    if as_json:
        _print_json(found)
        return
    _print_lines(line.line() for line in found)


@main.command(cls=_Command, epilog="folio status s3://maps/lund")
@MAP
@JSON
def status(map_url: str, as_json: bool) -> None:
    """Say how the map at MAP is: its newest version and its age, who is at work, how far unfinished runs are, what to do next.

    Writes nothing, and asks the store about ten times, however many photos there are.
    """
    from infra.storage import open_storage
    from pipelines.maintain.status import status as look

    found = look(open_storage(map_url, _settings()))
    _finish(found, found.lines(), {}, as_json=as_json, strict=False)


@main.command(cls=_Command, epilog="folio rollback s3://maps/lund 41")
@MAP
@click.argument("version", metavar="N|TAG")
def rollback(map_url: str, version: str) -> None:
    """Publish a new version of the map at MAP that equals version N, or the one with that tag.

    Photos taken down since stay away. History stays, so this can be rolled back too.
    """
    from infra.storage import open_storage
    from pipelines.maintain.versions import rollback as publish_again

    head = publish_again(open_storage(map_url, _settings()), version)
    click.echo(f"{map_url}: version {head.version} now has the content of version {version}")


@main.command(cls=_Command, epilog="folio tag s3://maps/lund prod-2026-11 41")
@MAP
@click.argument("name", metavar="NAME")
@click.argument("version", metavar="[N]", required=False)
@click.option("--delete", is_flag=True, help="Take the name away. The version stays until gc finds no reason to keep it.")
def tag(map_url: str, name: str, version: str | None, delete: bool) -> None:
    """Give version N of the map at MAP, or the newest, a name. gc keeps versions that have one.

    A name is never moved by itself: delete the tag and make it again.
    """
    from infra.storage import open_storage
    from pipelines.maintain.tags import delete_tag
    from pipelines.maintain.tags import tag as give_name

    if delete and version:
        raise click.UsageError("--delete takes a NAME alone")
    storage = open_storage(map_url, _settings())
    if delete:
        click.echo(f"{map_url}: version {delete_tag(storage, name)} is no longer called {name}")
    else:
        click.echo(f"{map_url}: version {give_name(storage, name, version)} is called {name}")


@main.command(cls=_Command, epilog="folio diff s3://maps/lund 41 42")
@MAP
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@JSON
def diff(map_url: str, a: str, b: str, as_json: bool) -> None:
    """Say how version B of the map at MAP differs from version A: photos, segments, index. Versions are numbers or tags."""
    from infra.storage import open_storage
    from pipelines.maintain.diff import diff as compare

    found = compare(open_storage(map_url, _settings()), a, b)
    _finish(found, found.lines(), {}, as_json=as_json, strict=False)


@main.command(cls=_Command, epilog="folio gc s3://maps/lund --older-than 30d --delete")
@MAP
@click.option("--delete", is_flag=True, help="Remove it, not only say what would be removed.")
@click.option("--older-than", default="7d", show_default=True, metavar="AGE", help="7d or more, by the store's clock.")
@click.option(
    "--shorter-than-safe", is_flag=True, help="Accept less than 7d: readers and sleeping runs may lose what they stand on."
)
@JSON
def gc(map_url: str, delete: bool, older_than: str, shorter_than_safe: bool, as_json: bool) -> None:
    """Say what the map at MAP does not need any more, and remove it if told to: objects of old versions and of killed runs.

    Kept are the newest version, those with a tag, and those that were the newest within the AGE; the others are retired. Safe to
    stop and run again; runs that start meanwhile wait for it.
    """
    from infra.storage import open_storage
    from pipelines.maintain.gc import SAFE_AGE, parse_duration
    from pipelines.maintain.gc import gc as collect

    try:
        age = parse_duration(older_than)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    if age < SAFE_AGE and not shorter_than_safe:
        raise click.UsageError("--older-than must be 7d or more; to accept what may break: --shorter-than-safe")
    found = collect(open_storage(map_url, _settings()), older_than=age, delete=delete)
    _finish(found, found.lines(), {}, as_json=as_json, strict=False)


@main.command(cls=_Command, epilog="folio verify s3://maps/lund --repair s3://survey/2026/")
@MAP
@click.argument("photos", metavar="[PHOTOS...]", nargs=-1)
@VERSION
@click.option("--repair", is_flag=True, help="Make again what is damaged; PHOTOS help where photos have moved.")
@WEIGHTS
@DEVICE
@JSON
def verify(
    map_url: str,
    photos: tuple[str, ...],
    version: str | None,
    repair: bool,
    weights: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Read every object of the map at MAP and name those missing, truncated, altered or foreign. Exits with 1 if there are any.

    --repair encodes exactly the damaged segments again, makes damaged shards from stored descriptors, and publishes a new version
    where the bytes are not the old ones. Photos that are not where the map has them from are looked for among PHOTOS.
    """
    from infra.storage import open_storage
    from pipelines.maintain.verify import verify as check

    if (photos or weights) and not repair:
        raise click.UsageError("PHOTOS and --weights are for --repair")
    if repair and version:
        raise click.UsageError("--repair is for the whole map, without --version")
    settings = _settings()
    if repair:
        from pipelines.maintain.repair import RepairRequest
        from pipelines.maintain.repair import repair as make_again

        done = make_again(RepairRequest(map_url=map_url, photos=photos, weights=weights, device=device), settings)
        _finish(done, done.lines(), {}, as_json=as_json, strict=False)
        problems = done.found.problems
    else:
        found = check(open_storage(map_url, settings), version=version)
        _finish(found, found.lines(), {}, as_json=as_json, strict=False)
        problems = found.problems
    if problems:
        sys.exit(1)


@main.command(cls=_Command, epilog="folio takedown s3://maps/lund --uris complaints.txt")
@MAP
@click.option("--ids", multiple=True, metavar="FILE|ID", help="Image ids, one a line, or one id. May be repeated.")
@click.option("--uris", multiple=True, metavar="FILE", help="Names of photos as in their source, one a line. May be repeated.")
@click.option("--bbox", multiple=True, metavar="W,S,E,N", help="Photos taken here, in degrees; W > E crosses the date line.")
@click.option("--duplicates", is_flag=True, help="Also photos with the same bytes under other names.")
@click.option("--dry-run", is_flag=True, help="Only say which photos it would be.")
@JSON
def takedown(map_url: str, as_json: bool, dry_run: bool, **options: Any) -> None:
    """Take photos out of the map at MAP for good. Answers leave them out as soon as this returns.

    They never come in again, also when their source still has them. The next `folio build` removes them from the store, with the
    old versions that hold them, and `folio verify-deleted` proves it. Safe to run while others build, and to run again.
    """
    from infra.storage import open_storage
    from pipelines.maintain.takedown import request_of
    from pipelines.maintain.takedown import takedown as take_down

    try:
        request = request_of(**options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    done = take_down(open_storage(map_url, _settings()), request, dry_run=dry_run)
    _finish(done, done.lines(), {}, as_json=as_json, strict=False)


@main.command("verify-deleted", cls=_Command, epilog="folio verify-deleted s3://maps/lund --uris complaints.txt")
@MAP
@click.option("--uris", multiple=True, metavar="FILE", help="Also look for these names in the bytes of every object.")
@JSON
def verify_deleted(map_url: str, uris: tuple[str, ...], as_json: bool) -> None:
    """Read every object below MAP, whatever it is called, and prove that nothing of the photos taken down is left.

    Exits with 1 and names what is left, or what cannot be told to be free of them.
    """
    from infra.storage import open_storage
    from pipelines.maintain.takedown import read_lines
    from pipelines.maintain.verify_deleted import verify_deleted as prove

    try:
        names = [name for file in uris for name in read_lines(file)]
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    found = prove(open_storage(map_url, _settings()), uris=names)
    _finish(found, found.lines(), {}, as_json=as_json, strict=False)
    if not found.proved:
        sys.exit(1)


@main.group(cls=_Group, invoke_without_command=True, epilog="folio models --json")
@JSON
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """List the named networks, and say which weights each has and how to get others.

    A network's weights are looked for in the models folder, FOLIO_MODELS, where no --weights are given.
    """
    if ctx.invoked_subcommand:
        if as_json:
            raise click.UsageError(f"give --json after {ctx.invoked_subcommand}")
        return
    from pipelines.models.listing import list_models

    found = list_models(_settings())
    if as_json:
        _print_json(found)
        return
    for model in found:
        click.echo(f"{model.name:<12} {model.input_size} px  {model.parameters / 1e6:>6.1f} M parameters  {model.weights}")


OUT_MODELS = click.option("--out", metavar="DIR", help="Folder for the weights and their card.  [default: the models folder]")


@models.command(cls=_Command, epilog="folio models convert FoL_large.pth")
@click.argument("checkpoint", metavar="FILE.pth", type=click.Path(exists=True, dir_okay=False))
@click.option("--recipe", metavar="NAME", help="Network it must fit. See `folio models`.  [default: told from the shapes]")
@OUT_MODELS
@JSON
def convert(checkpoint: str, recipe: str | None, out: str | None, as_json: bool) -> None:
    """Check a FoL checkpoint, or DINOv2's start weights, and write it as safetensors with a card.

    No code in the file is run. Weights of a whole network are then found under its name: folio build MAP PHOTOS --recipe NAME.
    """
    from pipelines.models.convert import convert as convert_file

    settings = _settings()
    done = convert_file(Path(checkpoint), Path(out) if out else settings.models, recipe=recipe)
    _finish(done, done.lines(), {}, as_json=as_json, strict=False)


@models.command(cls=_Command, epilog="folio models fetch fol-vitl14")
@click.argument("name", metavar="NAME")
@OUT_MODELS
@JSON
def fetch(name: str, out: str | None, as_json: bool) -> None:
    """Download the weights published for fol-vitl14 (1.2 GB) or fol-vitb14 (0.4 GB), and convert them.

    Stop it at any time and run it again: it goes on where it was. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are heeded.
    """
    from pipelines.models.fetch import fetch as fetch_published

    settings = _settings()
    done = fetch_published(name, Path(out) if out else settings.models, settings)
    _finish(done, done.lines(), {}, as_json=as_json, strict=False)


@main.command(cls=_Command, epilog="folio train survey/2026/ --out runs/first")
@click.argument("photos", metavar="PHOTOS...", nargs=-1)
@click.option("--out", required=True, metavar="RUN", help="Folder of the run: checkpoints, curves, weights and a report.")
@click.option("--recipe", default="folio-small", show_default=True, metavar="NAME", help="Network to train. See `folio models`.")
@click.option(
    "--start", metavar="WEIGHTS", help="Safetensors to start from, of a network or a backbone.  [default: the recipe's]"
)
@click.option("--gsv-cities", metavar="DIR", help="GSV-Cities on disk: the folder with Dataframes/ and Images/.")
@click.option("--sample-city", type=int, metavar="PLACES", help="Also make and learn a made-up town with so many places.")
@click.option("--drives", is_flag=True, help="Photos of one folder without a position are frames of a drive.")
@click.option("--licence", multiple=True, metavar="TEXT", help="Licence of photos, for the card of the weights. May be repeated.")
@click.option("--epochs", default=5, show_default=True, metavar="N", help="Rounds over all places.")
@click.option("--places", type=int, metavar="N", help="Places in a batch.  [default: 60, or as many as there are]")
@click.option("--photos-per-place", default=4, show_default=True, metavar="N", help="Photos of each place in a batch.")
@click.option(
    "--single",
    type=click.Choice(["augment", "leave_out"]),
    default="augment",
    show_default=True,
    help="Show a place with too few photos in several augmented views, or leave it out.",
)
@click.option(
    "--augment",
    type=click.Choice(["all", "few"]),
    default="all",
    show_default=True,
    help="Vary every photo each time, or only those of places with too few.",
)
@click.option("--cell-m", default=10.0, show_default=True, metavar="M", help="Photos with positions: side of a place.")
@click.option("--input-size", type=int, metavar="PX", help="Side of the photos to train at.  [default: the recipe's]")
@click.option("--blocks", default="4", show_default=True, metavar="N|all", help="Learn the last so many blocks of the backbone.")
@click.option("--learning-rate", default=6e-5, show_default=True, metavar="X", help="Of AdamW, at the first step.")
@click.option("--linear-steps", default=10_000, show_default=True, metavar="N", help="Steps over which it falls to a tenth.")
@click.option("--max-grad-norm", type=float, metavar="X", help="Shorten longer gradients; 1 is usual from scratch.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "bfloat16", "float32"]),
    default="auto",
    show_default=True,
    help="Of activations; auto: bfloat16 on a GPU.",
)
@click.option("--accumulate", default=1, show_default=True, metavar="N", help="Micro-batches in a worker's step: less memory.")
@click.option("--ema", default=0.999, show_default=True, metavar="X", help="Decay of the running mean of the weights; 0: none.")
@click.option(
    "--learn",
    type=click.Choice(["all", "reliability"]),
    default="all",
    show_default=True,
    help="Only the reliability branch, from things pasted into photos: much less work, and the rest stays as it is.",
)
@click.option(
    "--reliability", type=float, metavar="X", help="Weight of known reliability in the loss.  [default: 1 in mode folpp, else 0]"
)
@click.option(
    "--validate", default=0.1, show_default=True, metavar="SHARE", help="Of the photos, held out for validation; 0: none."
)
@click.option(
    "--hold-out",
    type=click.Choice(["places", "drives"]),
    default="places",
    show_default=True,
    help="Hold out whole places (100 m blocks where there are positions), or whole drives.",
)
@click.option("--patience", default=10, show_default=True, metavar="N", help="Stop after so many epochs without a better one.")
@click.option("--checkpoint-minutes", default=10.0, show_default=True, metavar="N", help="Save so often, and after each epoch.")
@click.option(
    "--seed", default=0, show_default=True, metavar="N", help="Another number: other batches, views and held-out places."
)
@click.option("--workers", type=int, metavar="N", help="Train on so many workers of a Ray cluster.  [default: here]")
@DEVICE
@STRICT
@JSON
def train(strict: bool, as_json: bool, **options: Any) -> None:
    """Train a network to recognise the places of PHOTOS, and write RUN/weights.safetensors and RUN/report.html.

    Photos show the same place when a table says so (place_id), when they stand within a few metres and look the same way, when
    they are neighbouring frames of a drive, or when they are views made from one photo. Stop it at any time and run it again: it
    goes on from the last checkpoint, and ends as if it had never been stopped.
    """
    from pipelines.train.options import request_of
    from pipelines.train.train import run_training

    settings = _settings()
    try:
        request = request_of(**options)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    summary = run_training(request, settings)
    _finish(summary, summary.lines(), summary.rejected, as_json=as_json, strict=strict)


@main.command("sample-city", cls=_Command, epilog="folio sample-city town/ --seed 7")
@click.argument("directory", metavar="DIR")
@click.option("--seed", default=1, show_default=True, metavar="N", help="Another number makes another town.")
def sample_city(directory: str, seed: int) -> None:
    """Make the photos of a small town that does not exist: DIR/database to build a map from, DIR/queries to look up."""
    from infra.observability import progress
    from pipelines.catalog.sample_city.photos import plan_sample_city, write_photos

    city = plan_sample_city(seed=seed)
    photos = len(city.database) + len(city.queries)
    for _ in progress(write_photos(city, Path(directory)), total=photos, unit="photo", description="sample city"):
        pass
    click.echo(f"{directory}: {len(city.database)} database photos, {len(city.queries)} query photos")


@main.command(cls=_Command, epilog="folio demo out/demo")
@click.argument("directory", metavar="DIR", default="out/demo")
def demo(directory: str) -> None:
    """Run the main job on the sample city: make it, build a map, geotag its queries, score them, write the report."""
    from pipelines.demo import run_demo

    for line in run_demo(Path(directory), _settings()):
        click.echo(line)


def _apply(out: str, decisions: Path, settings: Settings) -> "AppliedSummary":
    """Apply decisions, and write the report again as it was asked for, where there is one: it shows geotags."""
    from pipelines.geotag.decisions import apply_decisions

    done = apply_decisions(out, decisions, settings)
    if (Path(out) / "report.html").exists():
        from pipelines.report.page import write_report_again

        write_report_again(Path(out), settings=settings)
    return done


def _build(*, as_json: bool, strict: bool, plan_only: bool, prices: str | None, prefect: bool, **options: Any) -> None:
    from pipelines.build.build import plan_build, run_build
    from pipelines.build.price import price, read_prices
    from pipelines.build.request import BuildRequest

    settings = _settings()
    request = BuildRequest(**options)
    if plan_only:
        table = read_prices(Path(prices) if prices else settings.prices)
        priced = price(plan_build(request, settings), table)
        if as_json:
            _print_json(priced)
        else:
            _print_lines(priced.lines())
        return
    if prices:
        raise click.UsageError("--prices is for --plan")
    if prefect or settings.prefect_api_url:
        with changed_environment(PREFECT_ENVIRONMENT):
            from pipelines.build.flow import run_as_flow

            summary = run_as_flow(request)
    else:
        summary = run_build(request, settings)
    _finish(summary, summary.lines(), summary.rejected, as_json=as_json, strict=strict)


def _settings() -> Settings:
    settings = Settings.from_environment()
    configure_logging(settings.log_level, settings.log_format)
    return settings


def _finish(summary: msgspec.Struct, lines: Sequence[str], rejected: dict[str, int], *, as_json: bool, strict: bool) -> None:
    if as_json:
        _print_json(summary)
    else:
        _print_lines(lines)
    if strict and rejected:
        sys.exit(REJECTED_EXIT)


def _print_json(document: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(line)
