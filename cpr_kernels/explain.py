"""Why does this call run where it runs?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import losses, mining
from .backends import Choice, as_text, reasons
from .checks import check_rerank


def explain(op: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Choice]:
    """Print which backend ``op(*args, **kwargs)`` would take and why the others would not; runs nothing.

    Args:
        op: :func:`cascade_topk`, :func:`cascade_rerank` or :func:`mil_nce`.
        *args: the op's arguments.
        **kwargs: likewise; ``backend`` is ignored.

    Returns:
        One ``Choice(backend, reason)`` per backend in order of preference; reason None means it can run.

    Raises:
        ValueError: an op it does not know, or arguments that the op itself would refuse.

    Example:
        >>> explain(cascade_topk, queries, keys, cpr_schedule())
        cascade_topk
         -> native     can run
            reference  can run
    """
    kwargs.pop("backend", None)
    if op is mining.cascade_topk:
        cascade = mining.as_call(*args, **kwargs)
        mining.check_call(cascade)
        choices = reasons(mining.BACKENDS, cascade)
    elif op is mining.cascade_rerank:
        rerank = mining.as_rerank_call(*args, **kwargs)
        check_rerank(rerank)
        choices = reasons(mining.RERANK_BACKENDS, rerank)
    elif op is losses.mil_nce:
        kwargs.pop("reduction", None)
        loss = losses.as_call(*args, **kwargs)
        losses.check_call(loss)
        choices = reasons(losses.BACKENDS, loss)
    else:
        raise ValueError(f"explain: op must be cascade_topk, cascade_rerank or mil_nce, got {op!r}")
    print(as_text(op.__name__, choices))
    return choices
