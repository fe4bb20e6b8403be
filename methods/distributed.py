"""Several processes that do one job, as torchrun starts them; in a process of its own all of this does nothing.

Rank 0 decides, writes and speaks, the others are told. Short messages go over a group of their own, on the host: they
may wait for hours while rank 0 builds an index, and cannot be mistaken for a training step's.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from genrec_bench.datasets.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

STEP_WAITS = timedelta(hours=1)  # for the slowest process; rank 0 writes checkpoints between two steps
MESSAGE_WAITS = timedelta(days=30)
FAILURE_WAITS = timedelta(minutes=1)
BUCKET = 2**25  # numbers added up at a time

_alone = False
_messages: Any = None  # the group of short messages


def world_size() -> int:
    """Processes that do this job."""
    return 1 if _alone or "RANK" not in os.environ else int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


@contextmanager
def joined() -> Iterator[None]:
    """Meet the other processes, each with a GPU of its own where there are GPUs; they may have met already."""
    global _messages
    import torch
    from torch import distributed

    gpus = torch.cuda.device_count()
    met = distributed.is_initialized()
    if gpus:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        if here > gpus:
            raise InputError(f"torchrun --nproc-per-node {here}: this machine has {gpus} GPUs, one a process is needed")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not met:
        distributed.init_process_group(backend(), timeout=STEP_WAITS)
    _messages = distributed.new_group(backend="gloo", timeout=MESSAGE_WAITS)
    yield
    if not met:
        distributed.destroy_process_group()  # not after an error, when the others may be anywhere
    _messages = None


def backend() -> str:
    """What training processes speak by."""
    import torch

    return "cpu:gloo,cuda:nccl" if torch.cuda.device_count() else "gloo"


@contextmanager
def alone() -> Iterator[None]:
    """This process does what follows by itself, as if it were the only one."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextmanager
def in_turn() -> Iterator[None]:
    """What follows is done by rank 0 first, and then by the others, who find what it left in a shared folder."""
    if world_size() == 1:
        yield
        return
    first = rank() == 0
    if not first:
        told(None)
    try:
        with alone():
            yield
    finally:
        if first:
            told(None)


def told(value: T) -> T:
    """Rank 0's ``value``, in every process."""
    if world_size() == 1:
        return value
    from torch import distributed

    box = [value]
    distributed.broadcast_object_list(box, src=0, group=_messages)
    return box[0]


def all_of(value: T) -> list[T]:
    """Every process's ``value``, by rank."""
    if world_size() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * world_size()
    distributed.all_gather_object(values, value, group=_messages)
    return values


def agreed(failure: str | None) -> str | None:
    """Why the processes' common work failed, None where it did not.

    Raises RuntimeError in a process that failed alone: the others wait for it in the middle of the work, and end when
    this process ends.
    """
    from torch import distributed

    met = threading.Event()

    def meet() -> None:
        with suppress(RuntimeError):
            distributed.monitored_barrier(_messages, timeout=FAILURE_WAITS if failure else MESSAGE_WAITS)
            met.set()

    # rank 0 alone heeds the timeout: the others would wait for it as long as for any message
    meeting = threading.Thread(target=meet, daemon=True)
    meeting.start()
    meeting.join(FAILURE_WAITS.total_seconds() + 1 if failure else None)
    if not met.is_set():
        raise RuntimeError(f"process {rank()} of {world_size()} failed alone: {failure}")
    return next((one for one in all_of(failure) if one), None)


def add_up(tensors: "list[Tensor]") -> None:
    """Each tensor becomes its sum over the processes: in few large messages, as many small ones take longer."""
    import torch
    from torch import distributed

    bucket: list[Tensor] = []
    for tensor, following in zip(tensors, [*tensors[1:], None], strict=True):
        bucket.append(tensor)
        full = sum(one.numel() for one in bucket) >= BUCKET
        if full or following is None or following.dtype != tensor.dtype:
            flat = torch.cat([one.flatten() for one in bucket])
            distributed.all_reduce(flat)
            for one, total in zip(bucket, flat.split([one.numel() for one in bucket]), strict=True):
                one.copy_(total.view_as(one))
            bucket = []
