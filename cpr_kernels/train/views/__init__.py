"""What can a video be seen as? One file per modality: where its clips come from, how they change, who encodes them.

To add one: a file with a subclass of `View`, its line in `KNOWN`, and its name in `--views`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .. import TrainError
from .audio import Audio
from .base import Frames, View
from .centred_flow import CentredFlow
from .flow import Flow
from .residual import Residual
from .rgb import Rgb

KNOWN: dict[str, View] = {view.name: view for view in (Rgb(), Flow(), CentredFlow(), Residual(), Audio())}


def chosen(names: Sequence[str]) -> dict[str, View]:
    """Returns {name: view}, in the order given.

    Raises:
        TrainError: no name, a name twice, or one that no file defines.
    """
    for name in names:
        if name not in KNOWN:
            raise TrainError(f"views: no view {name!r}; expected some of {', '.join(KNOWN)}")
    if not names or len(set(names)) < len(names):
        raise TrainError(f"views: give each view once, and at least one, got {', '.join(names) or 'none'}")
    return {name: KNOWN[name] for name in names}


def stored_records(views: Mapping[str, View]) -> tuple[str, ...]:
    """Returns the stored records that these views read, each once."""
    return tuple(dict.fromkeys(view.stored for view in views.values()))


__all__ = ["KNOWN", "Frames", "View", "chosen", "label", "stored_records"]
