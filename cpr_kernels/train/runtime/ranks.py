"""Runs one training in several processes: `torchrun --nproc-per-node N -m cpr_kernels pretrain`.

Each rank takes its share of every batch; gradients are averaged, keys and ids gathered in rank order, so that all ranks
hold the same queue, which is checked at every checkpoint. Only rank 0 writes and prints.
"""

from __future__ import annotations

import gc
import hashlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...memory import queue
from .. import TrainError

T = TypeVar("T")


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Joins the process group that torchrun set up, while inside; yields this rank's device name.

    gloo on CPUs, NCCL on GPUs, one GPU per process. An existing group is used as it is.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or dist.is_initialized():
        yield device
        return
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if on_gpu:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        with warnings.catch_warnings():
            # 1 x 1 x 1 weights have strides that mean the same and look different
            warnings.filterwarnings("ignore", message="(?s).*Grad strides do not match bucket view strides")
            yield device
        dist.barrier()  # destroying the group while another rank still uses it would end that rank too
    finally:
        gc.collect()  # wrapped modules hold the group, and must be freed before it
        dist.destroy_process_group()


def is_main_process() -> bool:
    """Returns whether this process prints for the user; true without torchrun, and before and after the group."""
    return os.environ.get("RANK", "0") == "0"


def world() -> int:
    """Returns the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Returns this process's number."""
    return dist.get_rank() if world() > 1 else 0


def share_of(batch: int) -> int:
    """Returns a rank's part of a batch.

    Raises:
        TrainError: a batch that does not divide.
    """
    if batch % world():
        raise TrainError(
            f"clips.batch: {batch} videos do not divide among {world()} processes; use a multiple"
        )
    if batch // world() < 2:
        raise TrainError(f"clips.batch: must be at least {2 * world()} for {world()} processes, got {batch}")
    return batch // world()


def gathered(rows: Tensor) -> Tensor:
    """Returns the rows of all ranks, in rank order; ranks may have different numbers of them."""
    return queue.gathered([rows])[0]


def shuffled(encode: Callable[[Tensor], Tensor], clips: Tensor, seed: int) -> Tensor:
    """Returns `encode(clips)`, each rank encoding a random part of all ranks' clips.

    A batch norm then never sees a query's batch whole: the leak that MoCo's batch shuffling stops (He et al. 2020,
    section 3.3). `seed` must be the same on all ranks. With one process it is `encode(clips)`.
    """
    if world() == 1:
        return encode(clips)
    everyone = gathered(clips)
    order = torch.randperm(len(everyone), generator=torch.Generator().manual_seed(seed)).to(clips.device)
    mine = slice(rank() * len(clips), (rank() + 1) * len(clips))
    keys = gathered(encode(everyone[order[mine]]))
    restored = torch.empty_like(keys)
    restored[order] = keys
    return restored[mine]


def averaged(module: nn.Module) -> nn.Module:
    """Returns a module whose gradients are averaged over the ranks; itself, with one process.

    DDP lays gradients out anew after its first step, and so adds those of three ranks or more in another order than
    a run that is resumed there. On CPUs they are therefore added in float64, whose order float32 does not feel.
    """
    if world() == 1:
        return module
    wrapped = nn.parallel.DistributedDataParallel(module)
    if dist.get_backend() == "gloo":
        wrapped.register_comm_hook(
            None, lambda _, bucket: _exact_mean(bucket)
        )  # it refuses annotations as text
    return wrapped


def _exact_mean(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Averages gradients over the ranks, to the same bits whatever shares their bucket."""
    gradients = bucket.buffer()
    total = dist.all_reduce(gradients.double(), async_op=True).get_future()
    return total.then(lambda summed: gradients.copy_(summed.value()[0] / dist.get_world_size()))


@contextmanager
def unsynchronised(modules: list[nn.Module]) -> Iterator[None]:
    """Accumulates gradients inside; the next backward outside averages them over the ranks."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, nn.parallel.DistributedDataParallel):
                stack.enter_context(module.no_sync())
        yield


def buffers_of_first_rank(module: nn.Module) -> None:
    """Copies rank 0's buffers, such as running batch-norm statistics, to all ranks."""
    if world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def means(values: list[float], device: torch.device) -> list[float]:
    """Returns each value, averaged over the ranks."""
    if world() == 1:
        return values
    total = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return (total / world()).tolist()


def of_first_rank(make: Callable[[], T]) -> T:
    """Returns on every rank what `make` returns on the first one, or raises what it raises there."""
    if world() == 1:
        return make()
    found: list[Any] = [None, None]
    if rank() == 0:
        try:
            found[0] = make()
        except Exception as error:  # the other ranks would wait for ever
            found[1] = error
    dist.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    return found[0]


def any_rank(flag: bool, device: torch.device) -> bool:
    """Returns whether `flag` is true on any rank, so that all ranks stop after the same step."""
    return flag if world() == 1 else means([float(flag)], device)[0] > 0


def wait_for_all() -> None:
    """Waits until all ranks are here."""
    if world() > 1:
        dist.barrier()


def check_same(parts: dict[str, nn.Module], device: torch.device) -> None:
    """Raises `TrainError` where the ranks' parameters or queue differ, and names the part."""
    if world() == 1:
        return
    for name, part in parts.items():
        digest = hashlib.sha256()
        tensors = part.parameters() if any(True for _ in part.parameters()) else part.buffers()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().numpy().tobytes())
        number = torch.tensor([int.from_bytes(digest.digest()[:7], "big")], device=device)
        if len(set(gathered(number).tolist())) > 1:
            raise TrainError(
                f"torchrun: the {name} differs between the processes; report this with the run's config"
            )
