"""Explains why a call runs on the backend it runs on, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from . import losses, mining
from .dispatch.backends import Choice, as_text, reasons
from .dispatch.calls import CascadeCall, LossCall, RerankCall
from .dispatch.checks import check_rerank
from .dispatch.launch_plans import Plan, limits_named, limits_of, plan_on_cpu, plan_on_cuda
from .mining import arguments

NATIVE = mining.native.NAME


class Explanation(list[Choice]):
    """Holds one :class:`Choice` per backend in order of preference, and the native backend's launch plan."""

    plan: Plan | None = None  # None: it cannot run the call, or there is no device


def explain(
    op: Callable[..., Any], *args: Any, device: str | Sequence[int] | None = None, **kwargs: Any
) -> Explanation:
    """Prints which backend ``op(*args, **kwargs)`` would take, why not the others, and how the native one works.

    Runs nothing. On the CPU, how: the instruction set, whether threads go over queries or over panels of keys, and
    how many stages are decided while the keys stream by. On CUDA: the planner's path (`tiny`: one launch;
    `ring`: scores stay in L2; `huge`: scores go through device memory) with the rule that chose it, sweeps and
    bytes of workspace. (Where a device, such as a slice of one, cannot hold the cluster of `tiny`, the kernels of
    `ring` run, which only a launch can show.)

    Args:
        op: :func:`cascade_topk`, :func:`cascade_rerank` or :func:`mil_nce`.
        *args: the op's arguments, on any device.
        device: a CUDA device to plan for, with arguments on any device; it need not be present: "H200",
            "H100", "A100", "RTX 4090", "RTX 3090", or (capability, shared memory bytes a block may have, L2 bytes,
            has it clusters of 16 blocks?), for example ``(90, 232448, 60 << 20, True)``.
        **kwargs: the op's; ``backend`` is ignored.

    Returns:
        A list of ``Choice(backend, reason)``, one per backend in order of preference; reason None means it can
        run. Its attribute `plan` holds what was printed of the native one, as named numbers, or None.

    Raises:
        ValueError: an unknown op or device, or arguments that the op itself would refuse.

    Example:
        >>> explain(cascade_topk, queries, keys, cpr_schedule())
        cascade_topk
         -> native     can run
            reference  can run
        native on cpu: avx512vnni, 16 numbers a vector; 2 threads over panels of keys in 2 parts, ...
        >>> explain(cascade_topk, queries, keys, cpr_schedule(), device="H200").plan.path
        ...
        'tiny'
    """
    kwargs.pop("backend", None)
    limits = None if device is None else limits_named(device)
    call: CascadeCall | RerankCall | LossCall
    if op is mining.cascade_topk:
        call = arguments.as_call(*args, **kwargs)
        arguments.check_call(call)
        call = call.in_one_dtype()
        choices = Explanation(reasons(mining.BACKENDS, call))
    elif op is mining.cascade_rerank:
        call = arguments.as_rerank_call(*args, **kwargs)
        check_rerank(call)
        call = call.in_one_dtype()
        choices = Explanation(reasons(mining.RERANK_BACKENDS, call))
    elif op is losses.mil_nce:
        kwargs = {name: value for name, value in kwargs.items() if name not in ("reduction", "return_stats")}
        call = losses.as_call(*args, **kwargs)
        losses.check_call(call)
        call = call.in_one_dtype()
        choices = Explanation(reasons(losses.BACKENDS, call))
    else:
        raise ValueError(f"explain: op must be cascade_topk, cascade_rerank or mil_nce, got {op!r}")
    print(as_text(op.__name__, choices))
    where = (call.query if isinstance(call, LossCall) else call.queries[0]).device
    if limits is not None:
        name = device if isinstance(device, str) else "such a device"
        reason = (
            losses.native.why_unsupported(call, "cuda")
            if isinstance(call, LossCall)
            else mining.native.why_unsupported(call)
        )
        if reason is None:
            choices.plan = plan_on_cuda(call, limits)
        print(f"native on {name}: {reason or choices.plan}")
    elif dict(choices)[NATIVE] is None:
        choices.plan = plan_on_cuda(call, limits_of(where)) if where.type == "cuda" else plan_on_cpu(call)
        print(f"native on {where}: {choices.plan}")
    return choices
