"""segments ▶ shards: code the photos of each, here or on Ray, and go on where a killed run was.

A shard depends on its quantizer and its photos alone, so any worker makes the same bytes. What a run has made of its index has a
receipt in the run's folder. A run that is started again copies it into a folder of its own: two processes of a run never share an
object, so that one that gives up may delete all that it has written.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from jaxtyping import Bool, Float32, Int64

from infra.observability import progress_bar
from infra.storage import Storage
from infra.tables import get_object, put_object, read_descriptors
from pipelines import ivfpq
from pipelines.engine.run import run_here
from schemas import layout
from schemas.errors import MapError, ObjectMissing
from schemas.manifest import IndexReceipt, ObjectRef, ShardSegment, decode_index_receipt, encode_json


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardMember:
    """A segment of a shard that is to be made."""

    segment: ShardSegment
    descriptors: ObjectRef
    live: Bool[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardTask:
    """A shard that is to be made; can be sent to another machine."""

    key: str
    """Names everything that decides its content."""
    path: str
    run_id: str | None
    """None: nobody will go on with this run."""
    members: tuple[ShardMember, ...]
    quantizer: ObjectRef | None
    descriptor_dim: int

    @property
    def photos(self) -> int:
        """Count what is to be coded."""
        return sum(int(member.live.sum()) for member in self.members)


MakeShards = Callable[[Sequence[ShardTask]], list[ObjectRef]]
"""Makes shards: their files, in the order of the tasks."""


class ShardWorker:
    """Makes shards of one map, one at a time, with one segment in memory. For `run_here` and Ray.

    Args:
        storage: of the map.
        threads: of the matrix products.
    """

    def __init__(self, storage: Storage, threads: int) -> None:
        ivfpq.use_threads(threads)
        self._storage = storage

    def run(self, task: ShardTask, on_photo: Callable[[], None]) -> ObjectRef:
        """Make a shard, or take over the one that a run before has made.

        Raises:
            DamagedError: descriptors or the quantizer are missing or not what was written.
        """
        if (found := taken_over(self._storage, task.run_id, task.key, task.path)) is not None:
            for _ in range(task.photos):
                on_photo()
            return found.file

        def blocks() -> Iterator[tuple[Float32[np.ndarray, "n D"], Int64[np.ndarray, " n"]]]:
            for member in task.members:
                rows = np.flatnonzero(member.live)
                yield (
                    read_descriptors(self._storage, member.descriptors)[rows].astype(np.float32),
                    rows + member.segment.first_id,
                )
                for _ in rows:
                    on_photo()

        quantizer = get_object(self._storage, task.quantizer) if task.quantizer else None
        file = put_object(self._storage, task.path, ivfpq.make_shard(quantizer, task.descriptor_dim, blocks()))
        keep_receipt(self._storage, task.run_id, IndexReceipt(key=task.key, file=file))
        return file

    def close(self) -> None:
        """Nothing is held."""


def make_here(storage: Storage, threads: int) -> MakeShards:
    """Make shards in threads of this process."""

    def make(tasks: Sequence[ShardTask]) -> list[ObjectRef]:
        at_once = max(1, min(threads, len(tasks)))
        made: dict[str, ObjectRef] = {}
        with progress_bar(sum(task.photos for task in tasks), unit="photo", description="index") as bar:
            for outcome in run_here(
                tasks, lambda: ShardWorker(storage, max(1, threads // at_once)), threads=at_once, on_photo=bar.update
            ):
                assert outcome.result is not None, "a thread does not die alone"
                made[outcome.task.key] = outcome.result
        return [made[task.key] for task in tasks]

    return make


def taken_over(storage: Storage, run_id: str | None, key: str, path: str) -> IndexReceipt | None:
    """Copy what a run has made before to `path`: its receipt, of the copy. None: there is nothing, or it is not whole."""
    if run_id is None:
        return None
    receipt_path = layout.index_receipt(run_id, key)
    try:
        receipt = decode_index_receipt(storage.get(receipt_path), where=f"{storage.url}/{receipt_path}")
        file = put_object(storage, path, get_object(storage, receipt.file))
    except (ObjectMissing, MapError):  # removed since, or damaged: it decides nothing, and is made anew
        return None
    entry = receipt.entry and msgspec.structs.replace(receipt.entry, quantizer=file)
    return IndexReceipt(key=key, file=file, entry=entry)


def keep_receipt(storage: Storage, run_id: str | None, receipt: IndexReceipt) -> None:
    """Note what was made, for a run that is started again."""
    if run_id is not None:
        storage.put(layout.index_receipt(run_id, receipt.key), encode_json(receipt))
