"""Credentials are used and never written: not into a map, a log, an error or a report, whatever is asked and whatever fails."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from infra.settings import Settings
from infra.storage import open_storage
from pipelines.cli import main
from tests.faults.ceph import ACCESS_KEY, SECRET_KEY, Gateway
from tests.faults.conftest import SmallCity
from tests.faults.proxy import Fault, Proxy, seeded

WRONG_SECRET = "folio-test-wrong-secret-03d7a1"
PASSWORD = "folio-test-endpoint-password-9c2b"
SECRETS = (ACCESS_KEY, SECRET_KEY, WRONG_SECRET, PASSWORD)

Folio = Callable[..., str]


@pytest.fixture
def folio() -> Iterator[Folio]:
    """Run a command as talkative as it can be; gives all it said."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level

    def run(*arguments: str | Path, fails: str = "", **environment: str) -> str:
        environment = {"FOLIO_LOG": "debug", "FOLIO_THREADS": "1", **environment}
        done = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="folio", env=environment)
        assert (done.exit_code != 0) == bool(fails), done.output
        assert fails in done.output
        return done.output

    yield run
    root.handlers[:], root.level = before, level


def found_in(text: str | bytes) -> list[str]:
    data = text if isinstance(text, bytes) else text.encode()
    return [secret for secret in SECRETS if secret.encode() in data]


def test_no_command_writes_or_says_a_secret(gateway: Gateway, small_city: SmallCity, tmp_path: Path, folio: Folio):
    place = "s3://maps/secrets/map"
    with Proxy(gateway.endpoint, seeded(1, {Fault.ERROR_500: 0.1, Fault.RESET_BEFORE: 0.1})) as proxy:
        said = [
            folio("--endpoint", proxy.endpoint, *command)
            for command in [
                ("build", place, small_city.photos, "--recipe", "tiny"),
                ("evaluate", place, small_city.photos, "--out", tmp_path / "evaluation"),
                ("report", tmp_path / "evaluation"),
                ("versions", place, "--json"),
                ("verify", place),
            ]
        ]
        assert proxy.faults
    storage = open_storage(place, Settings(threads=1, s3_endpoint_url=gateway.endpoint))
    stored = [(info.path, storage.get(info.path)) for info in storage.list()]
    reports = [(str(file), file.read_bytes()) for file in tmp_path.rglob("*") if file.is_file()]

    assert any("trying again" in output for output in said)  # the log was at work
    assert any(path.endswith("report.html") for path, _ in reports)
    assert len(stored) > 10
    assert [secret for output in said for secret in found_in(output)] == []
    assert [(path, secret) for path, content in [*stored, *reports] for secret in found_in(content)] == []


def test_no_error_says_a_secret(gateway: Gateway, folio: Folio):
    place = "s3://maps/secrets/map"
    with_password = gateway.endpoint.replace("http://", f"http://folio:{PASSWORD}@")
    said = [
        folio("--endpoint", gateway.endpoint, "versions", "s3://no-such-bucket/map", fails="no map here"),
        folio("--endpoint", gateway.endpoint, "verify", place, fails="could not", AWS_SECRET_ACCESS_KEY=WRONG_SECRET),
        folio(
            "--endpoint", gateway.endpoint, "versions", f"s3://{ACCESS_KEY}:{SECRET_KEY}@maps/map", fails="found a user, password"
        ),
        folio("--endpoint", with_password, "versions", place, fails="found a URL with a user, password"),
        folio("versions", place, fails="found a URL with a user, password", AWS_ENDPOINT_URL=with_password),
    ]

    assert [secret for output in said for secret in found_in(output)] == []
