"""What all Prefect flows share: one task a stage, artifacts for people, results as plain JSON.

Prefect shows and schedules; it decides nothing. Truth lies in receipts and manifests, so a flow that is killed, retried or
wrongly called crashed is run again without harm.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import httpx
import msgspec
from prefect import runtime, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from infra.commits import head_or_none
from infra.observability import watched
from infra.settings import Settings
from infra.storage import open_storage
from schemas.errors import CatalogError, FolioError, StorageError, WorkError

STORE_RETRIES: Final = 2
"""Of a stage that failed because a store did not answer; other errors would only fail again."""

PROGRESS_S: Final = 5.0
"""How often a progress artifact is brought up to date."""

R = TypeVar("R")


def require_server() -> None:
    """Make sure that Prefect's server answers before anything is started; Prefect starts one of its own if none is configured.

    Raises:
        WorkError: it does not.
    """
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
        if problem:
            raise WorkError(
                f"Prefect at {client.api_url}: {problem}. Nothing was started. Start the server (prefect server start) or unset "
                "PREFECT_API_URL to run without it."
            )


def require_places(**places: str | Sequence[str]) -> None:
    """Refuse parameters without a place in them: a variable that was not set when the flow was deployed is an empty text there.

    Raises:
        CatalogError: one is empty. An empty URL would be the folder that the worker happens to stand in.
    """
    for name, found in places.items():
        if not found or "" in ([found] if isinstance(found, str) else found):
            raise CatalogError(
                f"flow parameter {name}: found {found!r}, needed a folder or URL. Nothing was started. Give it to the run "
                "(prefect deployment run NAME --param ...), or set the variables that prefect.yaml names and deploy again."
            )


def stage(name: str, work: Callable[[], R]) -> R:
    """Run one stage as a Prefect task."""
    return task(
        name=name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=STORE_RETRIES,
        retry_delay_seconds=exponential_backoff(5),
        retry_jitter_factor=1,
        retry_condition_fn=_store_failed,
    )(work)()


@contextmanager
def shown(name: str, map_url: str, settings: Settings) -> Iterator[None]:
    """Show how far the run inside is, and should it fail, what it leaves behind and what to do next.

    Args:
        name: of the run's artifacts, `build` for `build-progress` and `build-failed`.
        map_url: of the map that readers must not lose.
        settings: of this process.
    """
    before = _served(map_url, settings)
    try:
        with _progress_shown(f"{name}-progress"):
            yield
    except BaseException as error:  # also a cancellation; raised again
        after = _served(map_url, settings)
        with suppress(httpx.HTTPError):  # what failed may be Prefect's server itself
            create_markdown_artifact(_failure(name, error, before, after), key=f"{name}-failed", description="What to do next")
        raise


def show(key: str, summary: msgspec.Struct, description: str) -> None:
    """Show the numbers of a run as a table artifact."""
    numbers = msgspec.to_builtins(summary)
    rows = [{"what": name.replace("_", " "), "value": _plain(value)} for name, value in numbers.items()]
    create_table_artifact(table=rows, key=key, description=description)


def show_photos(key: str, counts: Mapping[str, int], rejected: Mapping[str, int]) -> None:
    """Show what became of the photos of a run, with a row for each reason of those that were rejected."""
    named = {**counts, **{f"rejected: {reason}": count for reason, count in rejected.items()}}
    create_table_artifact(
        table=[{"photos": name, "number": count} for name, count in named.items()],
        key=key,
        description="What became of the photos",
    )


def show_seconds(key: str, seconds: Mapping[str, float]) -> None:
    """Show how long each stage took."""
    total = sum(seconds.values()) or 1.0
    rows = [{"stage": name, "seconds": round(took, 1), "share": f"{took / total:.0%}"} for name, took in seconds.items()]
    create_table_artifact(table=rows, key=key, description="How long each stage took")


@contextmanager
def _progress_shown(key: str) -> Iterator[None]:
    """Keep a progress artifact, from a thread of its own: no photo waits for Prefect's server."""
    artifact = cast(UUID, create_progress_artifact(0.0, key=key, description="begun"))  # no coroutine, as no loop runs here
    news: list[tuple[str, int, int]] = [("begun", 0, 1)]
    stop = Event()

    def tell() -> None:
        told = news[0]
        while True:
            last = stop.wait(PROGRESS_S)
            if news[0] != told:
                told = news[0]
                what, done, total = told
                with suppress(httpx.HTTPError):  # the next one may be luckier, and the work does not depend on it
                    update_progress_artifact(artifact, 100 * done / max(total, done, 1), f"{what}: {done:,} of {total:,}")
            if last:
                return

    def watch(what: str, done: int, total: int) -> None:
        news[0] = (what, done, total)

    teller = Thread(target=tell, name="folio-progress", daemon=True)
    teller.start()
    try:
        with watched(watch):
            yield
        watch("done", 1, 1)
    finally:
        stop.set()
        teller.join()


def _served(map_url: str, settings: Settings) -> str:
    """Say what readers of a map see."""
    try:
        head = head_or_none(open_storage(map_url, settings))
    except FolioError as problem:
        return f"What readers of {map_url} see could not be told: {problem}"
    return f"Readers of {map_url} see version {head.version}, of {head.created_at}." if head else f"{map_url} has no version yet."


def _failure(name: str, error: BaseException, before: str, after: str) -> str:
    if isinstance(error, FolioError):
        what = str(error)
    else:
        what = f"{type(error).__name__}: {error}"
    if after == before:
        safe = f"{after} Nothing of this run can be seen, and what it finished is kept."
    else:
        safe = f"{after} This run, or another beside it, has published that since this one began."
    return "\n\n".join(
        [
            f"## {name} failed",
            f"**What happened.** {what}",
            f"**What is safe.** {safe}",
            f"**What to do next.** {_advice(error)} {_start_again()} It goes on where this one stopped; so does the next one on "
            "the schedule, by itself.",
        ]
    )


def _advice(error: BaseException) -> str:
    if isinstance(error, StorageError):
        return "The store failed again and again, although requests and stages were tried anew. When it answers again:"
    if isinstance(error, FolioError):
        return "The line above says what to set right. Then:"
    if isinstance(error, Exception):
        return "This should not happen: keep the log of this run. Starting it again does no harm:"
    return "The run was cancelled or its worker stopped. To have it after all:"


def _start_again() -> str:
    deployment = runtime.deployment.name
    if deployment is None:
        return "run the same command again."
    return f"`prefect deployment run '{runtime.flow_run.flow_name}/{deployment}'`."


def _store_failed(stage_task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    result = state.result(raise_on_failure=False)
    return isinstance(result, StorageError)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(str(part) for part in value) or "none"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
