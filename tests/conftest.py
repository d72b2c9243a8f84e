"""Fixtures that every test folder may use."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock

import pytest

PROJECT = Path(__file__).parent.parent


def _shared(folder: str) -> Path:
    path = PROJECT.parent / "shared" / folder
    if not path.is_dir():
        pytest.skip(f"needs {folder} of the project's shared folder, which lies beside the checkout and is not here")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos for tests; skips where they are absent."""
    return _shared("data")


@pytest.fixture(scope="session")
def shared_fol() -> Path:
    """Outputs of the reference implementation; skips where they are absent."""
    return _shared("fol")


def one_at_a_time(put: Callable[..., object]) -> Callable[..., object]:
    """Guard moto's PutObject, which looks whether there is an object and only then writes: in a race two creators may win."""
    lock = Lock()

    def guarded(response: object, query: dict[str, object], key_name: str) -> object:
        with lock:
            return put(response, query, key_name)

    return guarded


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """URL of an S3 server (moto's, on 127.0.0.1) with a bucket `maps`; credentials for it are in the environment."""
    import boto3
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

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
