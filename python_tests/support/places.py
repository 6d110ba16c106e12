"""Where things are: the checkout, and the real data that may stand beside it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = Path(__file__).resolve().parent
SHARED_DATA = ROOT.parent / "shared" / "data"
