"""Fixtures that every test folder may use."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock

import pytest
from hypothesis import settings

from tests.faults.ceph import ACCESS_KEY, SECRET_KEY, Gateway, missing_programs, needs_ceph

PROJECT = Path(__file__).parent.parent

# No deadline for an example: what else a machine does must not fail a law. Where CI is set, examples are the same every time.
settings.register_profile("folio", parent=settings(), deadline=None)
settings.load_profile("folio")


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
def aws_environment() -> Iterator[None]:
    """Credentials for the S3 servers of the tests, where the AWS tools look."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session")
def gateway(aws_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A real S3 server, Ceph's, with a bucket `maps`. A test may kill it, and then starts it again."""
    import boto3

    if missing := missing_programs():
        says = f"needs a Ceph gateway and finds no {', '.join(missing)}; see tests/faults/ceph.py"
        if needs_ceph():
            pytest.fail(says)
        pytest.skip(says)
    running = Gateway(tmp_path_factory.mktemp("ceph") / "cluster")
    try:
        boto3.client("s3", endpoint_url=running.endpoint).create_bucket(Bucket="maps")
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def s3_endpoint(aws_environment: None, request: pytest.FixtureRequest) -> Iterator[str]:
    """URL of an S3 server on 127.0.0.1 with a bucket `maps`: moto's, which starts at once, or Ceph's where that is asked for."""
    if needs_ceph():
        yield request.getfixturevalue("gateway").endpoint
        return
    import boto3
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "_key_response_put", one_at_a_time(S3Response._key_response_put))
        server.start()
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket="maps")
        yield endpoint
        server.stop()
