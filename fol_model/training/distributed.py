"""Several workers, one set of weights: their gradients averaged over `torch.distributed`.

Each worker runs its own `Learner` on its share of every batch and hands `average` to it. Weights start equal and get equal
gradients, so they stay equal, and one worker's checkpoint is everybody's. What differs from one big worker is which pairs are
mined: each micro-batch of each worker looks for hard pairs among its own places only. Two workers therefore equal one worker with
twice the `accumulate`, up to rounding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Final, Literal

import torch
from torch import Tensor, distributed

_BUCKET_NUMBERS: Final = 16_000_000
"""Sent at a time. 64 MB of float32: large enough for the network, small enough beside the weights."""


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each float32 tensor, in place, by its mean over all workers. All must call this with tensors of the same shapes."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        distributed.all_reduce(flat)
        flat /= distributed.get_world_size()
        for tensor, mean in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(mean.view_as(tensor))


@contextmanager
def worker_group(
    address: str, *, rank: int, workers: int, backend: Literal["gloo", "nccl"] = "gloo", timeout_s: float = 600.0
) -> Iterator[None]:
    """Be one of several workers; not needed under Ray Train, which makes the group itself.

    Args:
        address: `tcp://host:port` of the first worker.
        rank: 0 to workers - 1.
        workers: how many there are.
        backend: gloo for the CPU, nccl for GPUs.
        timeout_s: give up when another worker has not answered for so long.
    """
    distributed.init_process_group(
        backend, init_method=address, rank=rank, world_size=workers, timeout=timedelta(seconds=timeout_s)
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Put neighbours together until a bucket is full; a tensor larger than a bucket goes alone."""
    bucket: list[Tensor] = []
    numbers = 0
    for tensor in tensors:
        if bucket and numbers + tensor.numel() > _BUCKET_NUMBERS:
            yield bucket
            bucket, numbers = [], 0
        bucket.append(tensor)
        numbers += tensor.numel()
    if bucket:
        yield bucket
