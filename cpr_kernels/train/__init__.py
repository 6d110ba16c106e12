"""How are features learnt from videos, with the library's ops? The reference trainer (extra `[train]`).

From below to above: `runtime` (locks, signals, logs, devices, processes, files), `data` (videos to stored frames, flow
and spectrograms), `encoders` (networks and their weights), `views` (one file per modality), `batches` (clips, their
order, the loader), `pretrain` (settings, phases, models and the loop), `evaluate` (retrieval, probe, classifiers),
`pages` (report and explorer); and `demo`, `update` and `export`, which use all of them. It may import everything in the
package; nothing outside imports it, except the console script, lazily.
"""

from __future__ import annotations

from ..errors import Interrupted, TrainError

__all__ = ["Interrupted", "TrainError"]
