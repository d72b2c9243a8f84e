"""What `--plan` states, against what a small real build then does: its bytes, its requests, its memory."""

import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from infra.machine import memory_bytes
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.build.build import plan_build, run_build
from pipelines.build.price import DEFAULT_PRICES, Prices, price, read_prices
from pipelines.build.request import BuildRequest
from pipelines.engine.partition import PartitionConfig
from schemas.errors import PlanError
from tests.faults.noise_map import write_photos
from tests.faults.proxy import Proxy

PRICES = Prices(currency="EUR", cpu_core_hour=0.1, gpu_hour=3.0, storage_gb_month=0.02, writes_per_1000=5.0, reads_per_1000=1.0)
PARTITION = PartitionConfig(min_photos=8, pieces=3)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", range(24))


def request(place: str, *photos: Path) -> BuildRequest:
    return BuildRequest(map_url=place, photos=tuple(map(str, photos)), recipe="tiny", device="cpu", partition=PARTITION)


def test_requests_and_bytes_of_a_build_on_s3_are_those_stated_within_a_factor_of_two(photos: Path, s3_endpoint: str):
    with Proxy(s3_endpoint, lambda method, path: None) as proxy:
        settings = Settings(threads=1, s3_endpoint_url=proxy.endpoint)
        asked = request("s3://maps/priced", photos)
        stated = price(plan_build(asked, settings), PRICES).estimate
        proxy.requests.clear()

        run_build(asked, settings)

        sent = proxy.requests[:]
    writes = sum(method in ("PUT", "POST", "DELETE") or "list-type" in path for method, path in sent)
    reads = len(sent) - writes
    objects = open_storage("s3://maps/priced", Settings(threads=1, s3_endpoint_url=s3_endpoint)).list()
    stored = sum(info.size_bytes for info in objects)
    assert writes / 2 <= stated.write_requests <= 2 * writes
    assert reads / 2 <= stated.read_requests <= 2 * reads
    assert stored <= stated.store_bytes <= 2 * stored


def test_a_build_keeps_to_the_memory_that_its_plan_states(photos: Path, tmp_path: Path):
    """The command in a process of its own, with its decoder, the largest of its children."""
    build = ["build", str(tmp_path / "map"), str(photos), "--recipe", "tiny", "--device", "cpu", "--json"]
    code = (
        "import resource, sys; from pipelines.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "peak = sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)); "
        "print(peak * 1024, file=sys.stderr)"
    )
    environment = {"FOLIO_THREADS": "1", "PATH": "", "HOME": str(tmp_path)}
    stated = plan_build(request(str(tmp_path / "map"), photos), Settings(threads=1)).plan.memory_bytes

    ran = subprocess.run([sys.executable, "-c", code, *build], capture_output=True, text=True, env=environment, check=True)

    peak = int(ran.stderr.splitlines()[-1])
    assert 0.2 * stated < peak <= stated


def test_time_is_that_of_the_maps_last_run_where_there_was_one(photos: Path, tmp_path: Path):
    settings, asked = Settings(threads=1), request(str(tmp_path / "map"), photos)
    first = price(plan_build(asked, settings), PRICES).estimate
    run_build(asked, settings)
    write_photos(photos, range(24, 40))

    second = price(plan_build(asked, settings), PRICES).estimate

    assert first.measured == "measured now without fetching and decoding"
    assert "of this map reached with 24 photos" in second.measured
    assert second.hours == pytest.approx(16 / second.photos_per_second / 3600)
    assert (second.gpu_hours, second.write_requests, second.read_requests) == (0, 0, 0)  # on disk
    assert second.compute_cost == pytest.approx(second.cpu_core_hours * 0.1)


def test_money_is_hours_requests_and_bytes_times_the_prices_of_the_table(photos: Path, tmp_path: Path):
    priced = price(plan_build(request(str(tmp_path / "map"), photos), Settings(threads=1)), PRICES)

    one = priced.estimate
    assert one.currency == "EUR"
    assert one.requests_cost == (one.write_requests * 5.0 + one.read_requests * 1.0) / 1000
    assert one.storage_cost_a_month == priced.store_bytes / 1e9 * 0.02
    assert priced.lines()[-1] == "nothing was written"
    assert any(line.startswith("money   about ") for line in priced.lines())
    assert json.loads(msgspec.json.encode(priced))["estimate"]["currency"] == "EUR"
    assert not (tmp_path / "map").exists()


def test_a_table_of_prices_of_the_users_own_is_read(tmp_path: Path):
    mine = tmp_path / "prices.toml"
    mine.write_text(DEFAULT_PRICES.read_text().replace("4.00", "2"))

    assert read_prices(None).gpu_hour == 4.0
    assert read_prices(mine).gpu_hour == 2.0


@pytest.mark.parametrize(
    ("text", "said"), [("gpu_hour = ", "cannot be used"), ("gpu_hours = 3", "cannot be used"), ("", "cannot be used")]
)
def test_a_table_that_is_none_is_refused_with_what_is_wrong(tmp_path: Path, text: str, said: str):
    mine = tmp_path / "prices.toml"
    mine.write_text(text)

    with pytest.raises(PlanError, match=f"prices.toml: .*{said}.*Nothing was started"):
        read_prices(mine)


def test_a_price_below_zero_is_refused(tmp_path: Path):
    mine = tmp_path / "prices.toml"
    mine.write_text(DEFAULT_PRICES.read_text().replace("4.00", "-4.0"))

    with pytest.raises(PlanError, match="a price below 0"):
        read_prices(mine)


def test_the_memory_of_a_container_is_its_limit_and_not_the_machines(tmp_path: Path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:       16000000 kB\nMemFree: 1 kB\n")
    assert memory_bytes(tmp_path) == 16_384_000_000

    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert memory_bytes(tmp_path) == 16_384_000_000

    (tmp_path / "sys/fs/cgroup/memory.max").write_text("2000000000\n")
    assert memory_bytes(tmp_path) == 2_000_000_000
    assert memory_bytes(tmp_path / "nothing") is None
