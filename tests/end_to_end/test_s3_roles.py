"""The policies of `infra/deploy/s3/`: each role's real work needs all that its policy grants, and nothing else.

A proxy enforces them in front of the S3 server, as AWS would; in the slow test Ceph does it itself.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Final

import boto3
import numpy as np
import pytest

from infra.commits import read_head, read_receipts
from infra.settings import Settings
from infra.storage import open_storage
from pipelines.build.build import prepare, run_build, survey
from pipelines.build.encode import EncodeJob, SegmentWorker
from pipelines.build.request import BuildRequest
from pipelines.build.shards import ShardMember, ShardTask, ShardWorker
from pipelines.geotag.ask import ask
from pipelines.maintain.gc import gc
from pipelines.maintain.tags import delete_tag, tag
from pipelines.maintain.takedown import request_of, takedown
from pipelines.maintain.verify import verify
from pipelines.maintain.versions import versions
from schemas import layout
from schemas.errors import StorageError
from tests.conftest import PROJECT
from tests.faults.ceph import Gateway
from tests.faults.policies import POLICIES, Policy
from tests.faults.proxy import Proxy

MAP: Final = "s3://maps/city"
PHOTOS: Final = PROJECT / "tests" / "golden_maps" / "photos"
ROLES: Final = ("worker", "publisher", "gc", "reader")

UNSEEN: Final = ("s3:AbortMultipartUpload", "s3:ListBucket")

DENIED: Final = r"Forbidden|Access ?Denied"

As = Callable[[str], AbstractContextManager[Settings]]
"""Settings under which a role works while the block runs. `owner` may do everything."""

FORBIDDEN: Final = [
    ("reader", "put", "segments/a/b/images.parquet"),
    ("reader", "put", "runs/a/lease-00.json"),
    ("worker", "delete", "segments/a/b/images.parquet"),
    ("worker", "put_if_absent", "manifests/00000000000000000009.json"),
    ("worker", "put", "runs/a/plan.json"),
    ("publisher", "delete", "manifests/00000000000000000001.json"),
    ("publisher", "delete", "published/00000000000000000001.json"),
    ("publisher", "delete", "tombstones/a.parquet"),
    ("gc", "delete", "manifests/00000000000000000001.json"),
    ("gc", "delete", "tags/a.json"),
    ("gc", "put_if_absent", "manifests/00000000000000000009.json"),
]
"""Role, call, path in the map."""

NOT_AGAIN: Final = [
    ("worker", "receipts/a.json"),
    ("publisher", "manifests/00000000000000000001.json"),
    ("publisher", "receipts/a.json"),
    ("gc", "retired/00000000000000000001.json"),
]
"""What a role may create and not replace."""


GARBAGE: Final = [
    "segments/aa/bb/images.parquet",
    "indexes/aa/bb/shard-00000.faiss",
    "receipts/aa.json",
    "runs/aa/plan.json",
    "tombstones/aa.parquet",
]
"""What killed runs left."""


def work(as_: As) -> None:
    """Do what each role is there for."""
    with as_("owner") as settings:
        photos = open_storage("s3://photos/city", settings)
        for photo in sorted(PHOTOS.iterdir()):
            photos.put(photo.name, photo.read_bytes())
    request = BuildRequest(recipe="tiny", map_url=MAP, photos=("s3://photos/city",))

    with as_("publisher") as settings:
        prepared = prepare(survey(request, settings), settings)
    with as_("worker") as settings:
        job = EncodeJob(
            map_url=MAP, recipe="tiny", weights=None, device="auto", limits=request.limits, run_id=prepared.plan.run_id
        )
        worker = SegmentWorker(job, prepared.encoder, settings)
        for partition in prepared.partitions:
            worker.run(partition, lambda: None)
        worker.close()
    with as_("publisher") as settings:
        assert run_build(request, settings).version == 1
    with as_("worker") as settings:
        make_a_shard(settings, prepared.encoder.descriptor_dim)
    with as_("publisher") as settings:
        storage = open_storage(MAP, settings)
        assert tag(storage, "first") == 1
        assert delete_tag(storage, "first") == 1
        southern = request_of(ids=[], uris=[], bbox=["2.6,54.69,2.8,54.7005"], duplicates=False)
        assert takedown(storage, southern).version == 2
        built = run_build(request, settings)
        assert (built.photos, built.purged.retired) == (2, [1, 2])

    with as_("reader") as settings:
        asked = ask(MAP, [str(PHOTOS / "1.jpg")], settings, version=None, weights=None, device="auto")
        assert asked.map_version == 3
        storage = open_storage(MAP, settings)
        assert len(versions(storage)) == 3
        assert verify(storage).problems == []

    with as_("owner") as settings:
        open_storage("s3://photos/city", settings).delete("2.jpg")
    with as_("publisher") as settings:
        assert run_build(request, settings).photos == 1
    with as_("owner") as settings:
        storage = open_storage(MAP, settings)
        for path in GARBAGE:
            storage.put(path, b"left behind")
    time.sleep(2)  # a store says in whole seconds how old an object is
    with as_("gc") as settings:
        collected = gc(open_storage(MAP, settings), older_than=timedelta(0), delete=True)
        assert set(GARBAGE) <= set(collected.paths)
        assert collected.retired == [3]


def make_a_shard(settings: Settings, descriptor_dim: int) -> None:
    """Make a shard as an actor does that was given the task."""
    storage = open_storage(MAP, settings)
    segment = read_head(storage).index.shards[0].segments[0]
    receipt = read_receipts(storage)[segment.segment_id]
    (descriptors,) = (ref for ref in receipt.objects if ref.path.endswith(layout.DESCRIPTORS))
    task = ShardTask(
        key="0f",
        path="indexes/0f/0f/shard-00000.faiss",
        run_id="0f",
        members=(ShardMember(segment=segment, descriptors=descriptors, live=np.ones(receipt.rows, bool)),),
        quantizer=None,
        descriptor_dim=descriptor_dim,
    )
    assert ShardWorker(storage, threads=1).run(task, lambda: None).path == task.path


@contextmanager
def enforced(endpoint: str) -> Iterator[tuple[As, dict[str, Policy]]]:
    """Let a proxy stand before the server for each role, which allows what its policy allows."""
    policies = {role: Policy(POLICIES / f"{role}.json") for role in ROLES}
    proxies = {role: Proxy(endpoint, lambda method, path: None, allowed=policy.allows) for role, policy in policies.items()}
    with ExitStack() as stack:
        for proxy in proxies.values():
            stack.enter_context(proxy)
        ends = {"owner": endpoint} | {role: proxy.endpoint for role, proxy in proxies.items()}
        yield lambda role: nullcontext(Settings(threads=1, s3_endpoint_url=ends[role])), policies


def refuse(as_: As) -> None:
    """Try what the roles must not do."""
    for role in ROLES:
        with as_(role) as settings:
            storage = open_storage(MAP, settings)
            for verb, path in (named[1:] for named in FORBIDDEN if named[0] == role):
                with pytest.raises(StorageError, match=DENIED):
                    getattr(storage, verb)(path, *([] if verb == "delete" else [b"forged"]))


def with_photos_bucket(endpoint: str) -> str:
    s3 = boto3.client("s3", endpoint_url=endpoint)
    if "photos" not in [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket="photos")
    return endpoint


def test_each_role_does_its_work_with_its_policy_and_needs_all_of_it(s3_endpoint: str):
    with enforced(with_photos_bucket(s3_endpoint)) as (as_, policies):
        work(as_)
        assert {role: policy.denied for role, policy in policies.items()} == {role: [] for role in ROLES}
        for role, policy in policies.items():
            # Not seen here: uploads that are given up, and that AWS says "not there" only to those who may list.
            seen = {(action, resource) for action, resource in policy.grants if action not in UNSEEN}
            unused = seen - policy.used
            assert not unused, f"{role} is granted what it does not need"

        refuse(as_)
        with as_("owner") as settings:
            storage = open_storage(MAP, settings)
            for _, path in NOT_AGAIN:
                storage.put(path, b"{}")
        for role, path in NOT_AGAIN:
            with as_(role) as settings, pytest.raises(StorageError, match=DENIED):
                open_storage(MAP, settings).put(path, b"forged")


@pytest.mark.slow
def test_ceph_enforces_the_policies_as_the_proxy_does(gateway: Gateway, monkeypatch: pytest.MonkeyPatch):
    """As policies of buckets, which name their users. It does not know s3:if-none-match, so that condition is left out."""
    statements: dict[str, list[dict[str, Any]]] = {"maps": [], "photos": []}
    for role in ROLES:
        gateway.admin("user", "create", f"--uid={role}", f"--display-name={role}", f"--access-key={role}", f"--secret-key={role}")
        for statement in Policy(POLICIES / f"{role}.json").statements:
            plain = {name: value for name, value in statement.items() if name not in ("Condition", "Sid")}
            bucket = "photos" if ":::photos" in json.dumps(plain["Resource"]) else "maps"
            statements[bucket].append({**plain, "Principal": {"AWS": [f"arn:aws:iam:::user/{role}"]}})
    s3 = boto3.client("s3", endpoint_url=with_photos_bucket(gateway.endpoint))
    for bucket, allowed in statements.items():
        s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": allowed}))

    @contextmanager
    def as_(role: str) -> Iterator[Settings]:
        with monkeypatch.context() as environment:
            if role != "owner":
                environment.setenv("AWS_ACCESS_KEY_ID", role)
                environment.setenv("AWS_SECRET_ACCESS_KEY", role)
            yield Settings(threads=1, s3_endpoint_url=gateway.endpoint)

    work(as_)
    refuse(as_)
