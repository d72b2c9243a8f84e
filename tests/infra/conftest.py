"""The three stores that every test of this folder runs on: a folder, memory, and S3 as moto's server plays it on 127.0.0.1."""

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from infra.settings import Settings
from infra.storage import Storage, open_storage


@pytest.fixture(params=["local", "memory", "s3"])
def new_storage(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Storage]:
    """Open the same, at first empty, place as often as it is called: each call is another process's view of it."""
    name = uuid4().hex
    if request.param == "local":
        return lambda: open_storage(str(tmp_path / "map"), Settings(threads=1))
    if request.param == "memory":
        return lambda: open_storage(f"memory://{name}", Settings(threads=1))
    settings = Settings(threads=1, s3_endpoint_url=request.getfixturevalue("s3_endpoint"))
    return lambda: open_storage(f"s3://maps/{name}", settings)


@pytest.fixture
def storage(new_storage: Callable[[], Storage]) -> Storage:
    return new_storage()


@pytest.fixture
def local(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "map"), Settings(threads=1))
