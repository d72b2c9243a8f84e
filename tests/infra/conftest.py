"""The three stores that every test of this folder runs on: a folder, memory, and S3 as moto's server plays it on 127.0.0.1."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from uuid import uuid4

import boto3
import pytest
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

from infra.settings import Settings
from infra.storage import Storage, open_storage


def one_at_a_time(put: Callable[..., object]) -> Callable[..., object]:
    """Guard moto's PutObject, which looks whether there is an object and only then writes: in a race two creators may win."""
    lock = Lock()

    def guarded(response: S3Response, query: dict[str, object], key_name: str) -> object:
        with lock:
            return put(response, query, key_name)

    return guarded


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setattr(S3Response, "_key_response_put", one_at_a_time(S3Response._key_response_put))
        server.start()
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="maps")
        yield endpoint
        server.stop()


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
