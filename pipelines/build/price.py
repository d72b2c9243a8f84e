"""plan ▶ hours, requests and money: what `--plan` says and what a flow shows before it spends anything.

The rate is what the map's own last run with this network and kind of device reached, where one has left its progress; else that
of a few made-up photos, measured now, without fetching and decoding. Which of the two is said. Requests are counted from what a
segment, a version and a run write and read (`requests`); a test compares them, the bytes and the memory with a real build.
"""

import tomllib
from pathlib import Path
from typing import Final

import msgspec

from fol_model.inference import device_named
from infra.observability import in_time
from infra.storage import Storage
from pipelines.build.plan import BuildPlan, measure_speed
from pipelines.build.progress import WRITE_EVERY_S, read_progress
from pipelines.build.request import Prepared
from schemas import layout
from schemas.errors import PlanError

DEFAULT_PRICES: Final = Path(__file__).with_name("prices.toml")

LOOKED_AT: Final = 4
"""Runs whose rate is looked at, the newest first."""

SEGMENT_WRITES: Final = 9
"""Images, descriptors, rejects and the receipt; codes and local features with their metadata and a shard each; one to spare."""

SEGMENT_READS: Final = 9
"""Its receipt, images and rejects to plan and again to publish; descriptors for the index, the calibration and its codes."""

RUN_WRITES: Final = 45
"""Lease, clock, plan, progress, rejects, quantizer, shards, manifest, marks, and lists, which cost as much."""

FIRST_RUN_WRITES: Final = 55
"""Trying whether the store honours create-if-absent."""

RUN_READS: Final = 30


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of prices, as `prices.toml` explains it."""

    currency: str
    cpu_core_hour: float
    gpu_hour: float
    storage_gb_month: float
    writes_per_1000: float
    reads_per_1000: float


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a build would take in time, requests and money."""

    photos_per_second: float
    """Of all workers."""
    measured: str
    """What that rests on."""
    hours: float
    """Of encoding."""
    cpu_core_hours: float
    gpu_hours: float
    memory_bytes: int
    store_bytes: int
    write_requests: int
    """To stores on a network; none of them on disk."""
    read_requests: int
    currency: str
    compute_cost: float
    requests_cost: float
    storage_cost_a_month: float
    """Of what is added."""

    def lines(self) -> list[str]:
        """Say it to a person."""
        money = f"{self.compute_cost + self.requests_cost:,.2f} {self.currency}"
        return [
            f"time    {in_time(self.hours * 3600)} at {self.photos_per_second:,.1f} photos/s, {self.measured}: "
            f"{self.cpu_core_hours:,.2f} core hours, {self.gpu_hours:,.2f} GPU hours",
            f"store   {self.write_requests:,} writes and {self.read_requests:,} reads over the network",
            f"money   about {money}: {self.compute_cost:,.2f} for machines, {self.requests_cost:,.2f} for requests; then "
            f"{self.storage_cost_a_month:,.2f} a month for storage",
        ]


class PricedPlan(BuildPlan, frozen=True, kw_only=True):
    """A plan with what it costs: what `--plan` prints, and the first artifact of a flow."""

    estimate: Estimate

    def lines(self) -> list[str]:
        """Say it to a person."""
        return [*BuildPlan.lines(self), *self.estimate.lines(), "nothing was written"]


def read_prices(path: Path | None) -> Prices:
    """Read a table of prices; None: the one that comes with Folio.

    Raises:
        PlanError: it cannot be read, or is none.
    """
    path = path or DEFAULT_PRICES
    try:
        prices = msgspec.convert(tomllib.loads(path.read_text()), Prices, strict=False)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise PlanError(
            f"{path}: this table of prices cannot be used: {error}. Nothing was started. Begin from a copy of "
            f"{DEFAULT_PRICES.name}, which comes with Folio."
        ) from error
    if min(value for value in msgspec.structs.asdict(prices).values() if isinstance(value, float)) < 0:
        raise PlanError(f"{path}: found a price below 0, needed 0 or more. Nothing was started.")
    return prices


def price(prepared: Prepared, prices: Prices) -> PricedPlan:
    """Work out what a planned build takes; measures the network where no run has. Writes nothing."""
    plan, request = prepared.plan, prepared.request
    on_gpu = device_named(request.device).type != "cpu"
    rate, measured = _rate(prepared)
    hours = plan.photos_to_encode / rate / 3600
    gpus = (plan.workers if request.workers == "ray" else 1) if on_gpu else 0
    core_hours, gpu_hours = hours * plan.workers, hours * gpus
    writes, reads = requests(prepared, hours)
    return PricedPlan(
        **msgspec.structs.asdict(plan),
        estimate=Estimate(
            photos_per_second=rate,
            measured=measured,
            hours=hours,
            cpu_core_hours=core_hours,
            gpu_hours=gpu_hours,
            memory_bytes=plan.memory_bytes,
            store_bytes=plan.store_bytes,
            write_requests=writes,
            read_requests=reads,
            currency=prices.currency,
            # A GPU's price has its machine's cores in it.
            compute_cost=gpu_hours * prices.gpu_hour if gpus else core_hours * prices.cpu_core_hour,
            requests_cost=(writes * prices.writes_per_1000 + reads * prices.reads_per_1000) / 1000,
            storage_cost_a_month=plan.store_bytes / 1e9 * prices.storage_gb_month,
        ),
    )


def requests(prepared: Prepared, hours: float) -> tuple[int, int]:
    """Estimate the requests that go over the network: writes (with lists) and reads, both a little too many as a rule."""
    plan, inventory = prepared.plan, prepared.inventory
    writes = reads = 0
    if _is_remote(prepared.storage.url):
        segments = plan.segments_to_encode + plan.segments_to_merge
        writes = segments * SEGMENT_WRITES + RUN_WRITES + (FIRST_RUN_WRITES if inventory.head is None else 0)
        writes += int(hours * 3600 / WRITE_EVERY_S + hours * 60)  # how far it has come, and the lease
        reads = (len(inventory.stored) + segments) * SEGMENT_READS + RUN_READS
    remote = sum(_is_remote(root) for partition in prepared.partitions for root in partition.images["root"].to_pylist())
    return writes, reads + 2 * remote  # the photo, and whether it still is the one that was listed


def _rate(prepared: Prepared) -> tuple[float, str]:
    """Find out how fast all workers are together, and say how that is known."""
    plan, device = prepared.plan, device_named(prepared.request.device).type
    for run_id in _runs_with_progress(prepared.storage):
        progress = read_progress(prepared.storage, run_id)
        if progress and progress.worker_s and (progress.recipe, progress.device) == (plan.recipe, device):
            rate = progress.photos_since_start / progress.worker_s * plan.workers
            return rate, f"as run {run_id} of this map reached with {progress.photos_since_start:,} photos"
    speed = measure_speed(prepared.encoder)
    return speed.photos_per_second * plan.workers, "measured now without fetching and decoding"


def _runs_with_progress(storage: Storage) -> list[str]:
    found = [info for info in storage.list("runs") if info.path.endswith(f"/{layout.PROGRESS}")]
    found.sort(key=lambda info: (info.modified_at is None, info.modified_at, info.path), reverse=True)
    return [info.path.split("/")[1] for info in found[:LOOKED_AT]]


def _is_remote(url: str) -> bool:
    return "://" in url and not url.startswith(("file://", "local://", "memory://"))
