"""The thin reference trainer (extra `[train]`): videos in, learnt features and a report out.

Reads top to bottom: `sources` and `splits` (which videos?), `videos` and `sound` (frames, TV-L1 flow, spectrograms),
`store` (one LMDB a data set), `prepare` (several processes, resumable), `views` (what a video is seen as: one file a
modality), `clips` and `augment` (batches), `s3d` (the encoder; `encoders` lists all), `config`, `methods` (where
positives come from), `plan` (what happens at step n), `model` and `presence` (videos that lack a view), `iic` (one
encoder, a memory bank), `parallel` (several processes) and `loop` (InfoNCE, then cascade co-training), `quality` (PMR
and CMR), `evaluate` and `probe` (retrieval, linear probe), `classifier`, `scores` and `finetune`, `report` and
`brings` (what each modality brings), `demo`, `cli`. It may import everything in the package; nothing outside imports
it, except the console script, lazily.
"""

from __future__ import annotations

from ..errors import Interrupted, TrainError

__all__ = ["Interrupted", "TrainError"]
