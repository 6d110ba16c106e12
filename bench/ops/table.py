"""Lists the ops that are measured, by name."""

from __future__ import annotations

from types import MappingProxyType
from typing import cast

from ..harness.peer import Op
from . import cascade, enqueue, loss, train_step

OPS = MappingProxyType({module.NAME: cast(Op, module) for module in (cascade, loss, enqueue, train_step)})
