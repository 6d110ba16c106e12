"""How good is a run, how sure is that, and why? One page about one run, or about several side by side."""

from __future__ import annotations

from .page import write_report
from .trends import last_epochs

__all__ = ["last_epochs", "write_report"]
