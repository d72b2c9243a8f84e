"""What all Prefect flows share: one task a stage, quiet and on loopback unless told otherwise, results as plain JSON.

Prefect shows and schedules; it decides nothing. Truth lies in receipts and manifests, so a flow that is killed, retried or
wrongly called crashed is run again without harm.
"""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from schemas.errors import StorageError, WorkError

STORE_RETRIES: Final = 2
"""Of a stage that failed because a store did not answer; other errors would only fail again."""

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


def show(key: str, summary: msgspec.Struct, description: str) -> None:
    """Show the numbers of a run as a table artifact."""
    numbers = msgspec.to_builtins(summary)
    rows = [{"what": name.replace("_", " "), "value": _plain(value)} for name, value in numbers.items()]
    create_table_artifact(table=rows, key=key, description=description)


def _store_failed(stage_task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    result = state.result(raise_on_failure=False)
    return isinstance(result, StorageError)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(part)}" for name, part in value.items()) or "none"
    if isinstance(value, list):
        return "; ".join(str(part) for part in value) or "none"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
