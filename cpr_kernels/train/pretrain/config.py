"""Defines the settings of a pretraining, as dataclasses that the command line shows as options."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

from ...networks.s3d import SMALLEST_CLIP
from ...reading.records import as_record, read_json
from ...tuning.checks import LEAST_ROWS
from .. import TrainError
from ..runtime.device import Amp
from ..runtime.trackers import Logger, check_logger
from ..views import chosen
from ..views.augment import Augment

Method = Literal["infonce", "ubernce", "coclr", "cpr", "custom", "auto"]
Siblings = Literal["positive", "ignore", "negative"]
SIBLINGS: dict[str, int] = {"negative": 0, "positive": 1, "ignore": 2}  # what `mil_nce` calls them


@dataclass(frozen=True)
class Clips:
    """Sets the size and number of the clips of a batch."""

    frames: int = 32
    """Consecutive frames of a clip (T)."""
    crop: int = 128
    """Pixels of a clip's side."""
    batch: int = 32
    """Videos in a batch (B); each gives two clips."""
    workers: int = -1
    """Loader processes; -1 decides by the number of cores (none on two)."""
    cache_mb: int = 1024
    """Decoded videos kept in memory, in MiB (per loader process)."""
    apart: bool = False
    """The two clips of a video share no frame, where it is long enough; the three-modality method takes them so."""


@dataclass(frozen=True)
class Mining:
    """Sets how positives are mined in the cycles."""

    method: Method = "cpr"
    """cpr: the cascade. coclr: the top-k of the frozen views' sum. custom: `schedule`. infonce: none, for comparison.
    ubernce: every clip of the same class, by its label, the upper bound. auto: a plan that each phase chooses on its
    filled queue, without labels.
    """
    stages: int = 7
    """Stages of the cascade (S); odd, so that the first and the last use the frozen view."""
    ratio: float = 0.5
    """Share of the queue that each stage but the last keeps (r)."""
    topk: int = 5
    """Positives mined for a clip (k)."""
    progressive: bool = False
    """Begin with one positive in the first cycle and end with `topk` in the last."""
    schedule: str = ""
    """For method custom: stages as view:keep, for example frozen:0.5,trained:0.5,flow+rgb:5; `frozen` names the
    sum of all frozen views, `trained` the trained one. The last stage always keeps `topk`.
    """
    refit: int = 0
    """For method auto: steps after which whiteners and keys are formed anew; 0 is as many as replace the queue."""
    weights: Literal["equal", "score"] = "equal"
    """For method auto: how much a mined positive counts in the loss. equal: all alike. score: by the share of the
    step's mined pairs whose score is not above its own."""
    query: Literal["key", "online"] = "key"
    """A clip's mining query in the trained view. key: its momentum embedding, as the paper writes.
    online: the trained encoder's embedding of the first clip, as the published code does.
    """
    frozen_query: Literal["key", "online"] = "key"
    """The same in the frozen views. key: the second clip, as both have it. online: the first clip, so that with
    `query online` all views score one clip.
    """
    drop_own_positive: float = 0.0
    """Chance that a clip's own second clip is left out of its positives where others were mined, or have its label; the
    published code takes 0.9 for mined ones, after its long pretraining. In short trainings that costs more than mining
    gains."""
    siblings: Siblings = "positive"
    """Queue entries from the same source video, in the cycles' loss; they are never mined."""
    infonce_siblings: Siblings = "negative"
    """The same in the InfoNCE pretraining's loss."""


@dataclass(frozen=True)
class Optim:
    """Sets optimiser and loss."""

    algorithm: Literal["adam", "sgd"] = "adam"
    """Adam as CoCLR and CPR have it, SGD as IIC has it."""
    sgd_momentum: float = 0.9
    lr: float = 1e-3
    """Learning rate."""
    cycle_lr: float | None = None
    """The rate in the cycles, where it should differ; short cycles keep what InfoNCE learnt only with a lower one."""
    warmup: int = 0
    """Steps at the start of each phase over which the rate grows to `lr`; Adam restarts with each phase."""
    decay_at: float = 0.8
    """Share of each phase after which the rate falls to a tenth; 1 never."""
    steps: tuple[float, ...] = ()
    """Instead: shares of the whole run, after each of which the rate is multiplied by `step_factor`."""
    step_factor: float = 0.2
    weight_decay: float = 1e-5
    accumulate: int = 1
    """Parts in which a batch is encoded, to fit into memory; batch norm then averages over one part at a time."""
    momentum: float = 0.999
    """Momentum of the key encoder (m)."""
    temperature: float = 0.07
    """Temperature of the loss (T)."""


@dataclass(frozen=True)
class Iic:
    """Sets what framework iic adds."""

    negatives: int = 1024
    """Rows of the memory bank drawn for a clip (K)."""
    broken: Literal["repeat", "shuffle", "none"] = "repeat"
    """How the motion of intra-negatives is broken: one frame repeated, or two of four segments exchanged."""
    bank_momentum: float = 0.5
    """Weight of the old row where the memory bank is updated."""


@dataclass(frozen=True)
class TrainConfig:
    """Pretrain a video encoder for each view: InfoNCE on all, then cycles that train one view with positives
    mined in all of them.
    """

    data: Path
    """Data set made by `cpr prepare`."""
    out: Path = Path("runs/pretrain")
    """Folder of the run: checkpoints, logs, encoders, report."""
    framework: Literal["moco", "iic"] = "moco"
    """moco: an encoder per view, momentum encoders and a queue (CoCLR, CPR). iic: one encoder for two views and a
    memory bank with a row for each training video (IIC, CPR on IIC); `queue` then follows from the data.
    """
    views: tuple[str, ...] = ("rgb", "flow")
    """What a video is seen as, in the order in which a cycle trains: two are CoCLR and CPR, one is InfoNCE."""
    infonce_epochs: int = 300
    """Epochs of InfoNCE pretraining, all views together; 0 starts from --init."""
    cycles: int = 2
    """Cycles; each trains one view after the other, the others frozen."""
    cycle_epochs: int = 100
    """Epochs for each view in each cycle."""
    cycle_views: tuple[str, ...] = ()
    """Views that the cycles train, in this order; none named: all, in the order of `views`."""
    queue: int = 2048
    """Entries of the memory queue (N); keep it well below the number of training videos."""
    backbone: str = "s3d"
    """The network that encodes frames."""
    width: float = 1.0
    """Multiplies its channels; 1 is the published network."""
    embedding: int = 128
    """Length of an embedding (D)."""
    init: dict[str, Path] = field(default_factory=dict)
    """Encoders to start from, as `rgb FILE flow FILE`: saved by a run (in its folder encoders), or a published CoCLR
    or CPR .pth.tar.
    """
    clips: Clips = field(default_factory=Clips)
    mining: Mining = field(default_factory=Mining)
    optim: Optim = field(default_factory=Optim)
    augment: Augment = field(default_factory=Augment)
    iic: Iic = field(default_factory=Iic)
    logger: Logger = "auto"
    """Where figures go beside log.jsonl: auto is TensorBoard where it is installed; wandb and mlflow as their own
    variables say (WANDB_MODE, MLFLOW_TRACKING_URI).
    """
    seed: int = 0
    device: str = "auto"
    """auto takes CUDA where there is one."""
    amp: Amp = "off"
    """bf16: convolutions in bfloat16, on CUDA (not tried yet) or a CPU with AVX-512 BF16; weights stay float32."""
    compile: bool = False
    """Compile the encoders with torch.compile; the first steps take minutes."""
    goes_on: Path | None = None
    """Set by `cpr update`: the file with what this run continues from."""

    def check(self) -> None:
        """Raises `TrainError` for the first setting that cannot work, with what would."""
        chosen(self.views)
        check_logger(self.logger)
        frames, pixels = SMALLEST_CLIP
        at_least: list[tuple[str, float, float]] = [
            ("clips.frames", self.clips.frames, frames), ("clips.crop", self.clips.crop, pixels),
            ("clips.batch", self.clips.batch, 2), ("queue", self.queue, 1), ("embedding", self.embedding, 1),
            ("infonce-epochs", self.infonce_epochs, 0), ("cycles", self.cycles, 0),
            ("cycle-epochs", self.cycle_epochs, 0), ("mining.topk", self.mining.topk, 1),
            ("mining.stages", self.mining.stages, 1), ("mining.refit", self.mining.refit, 0),
            ("optim.warmup", self.optim.warmup, 0), ("iic.negatives", self.iic.negatives, 1),
            ("optim.accumulate", self.optim.accumulate, 1),
        ]  # fmt: skip
        for name, value, least in at_least:
            if value < least:
                raise TrainError(f"{name}: must be at least {least}, got {value}")
        for name, value in (
            ("mining.drop-own-positive", self.mining.drop_own_positive),
            ("optim.momentum", self.optim.momentum),
            ("optim.decay-at", self.optim.decay_at),
            ("optim.sgd-momentum", self.optim.sgd_momentum),
            *(("optim.steps", step) for step in self.optim.steps),
        ):
            if not 0 <= value <= 1:
                raise TrainError(f"{name}: must lie in [0, 1], got {value}")
        if self.clips.batch // self.optim.accumulate < 2:
            raise TrainError(
                f"optim.accumulate: {self.optim.accumulate} parts of a batch of {self.clips.batch} hold fewer than "
                "2 videos each; batch norm needs 2"
            )
        if self.mining.topk > self.queue:
            raise TrainError(
                f"mining.topk: {self.mining.topk} positives cannot come from a queue of {self.queue}"
            )
        if (self.mining.method == "custom") != bool(self.mining.schedule):
            raise TrainError(
                "mining.schedule: belongs to mining.method custom, and method custom needs it, "
                f"got method {self.mining.method} and schedule {self.mining.schedule!r}"
            )
        if self.mining.weights != "equal" and self.mining.method != "auto":
            raise TrainError(
                "mining.weights: score takes the scores of a tuned plan, so it needs mining.method auto, "
                f"got method {self.mining.method}"
            )
        if self.mining.method == "auto":
            self._check_auto()
        if self.framework == "iic":
            self._check_iic()
        if unknown := [view for view in self.cycle_views if view not in self.views]:
            raise TrainError(
                f"cycle-views: the run has no view {unknown[0]!r}; it has {', '.join(self.views)}"
            )
        if unknown := [view for view in self.init if view not in self.views]:
            raise TrainError(f"init: the run has no view {unknown[0]!r}; it has {', '.join(self.views)}")

    def _check_auto(self) -> None:
        """Raises `TrainError` where no plan could be chosen, before a pretraining that would come to nothing."""
        least = max(LEAST_ROWS, 2 * self.mining.topk)
        if len(self.views) < 2:
            raise TrainError(
                f"mining.method: auto lets one view judge what others mine, so it needs two views, got {self.views[0]}"
            )
        if self.queue < least:
            raise TrainError(f"queue: mining.method auto needs at least {least} entries, got {self.queue}")

    def _check_iic(self) -> None:
        """Raises `TrainError` for what one encoder and a memory bank cannot do."""
        if len(self.views) != 2 or "audio" in self.views:
            raise TrainError(
                f"views: framework iic takes two views of frames through one encoder, got {', '.join(self.views)}"
            )
        for name, value, known in (
            ("mining.siblings", self.mining.siblings, ("negative", "ignore")),
            ("mining.method", self.mining.method, ("infonce", "coclr", "cpr", "custom")),
            ("mining.drop-own-positive", self.mining.drop_own_positive, (0.0,)),
            ("optim.accumulate", self.optim.accumulate, (1,)),
            ("goes-on", self.goes_on, (None,)),
            ("cycle-views", self.cycle_views, ((),)),
        ):
            if value not in known:
                raise TrainError(f"{name}: framework iic takes {' and '.join(map(str, known))}, got {value}")


def with_absolute_paths(config: TrainConfig) -> TrainConfig:
    """Returns the same settings, every path absolute."""
    goes_on = config.goes_on and config.goes_on.resolve()
    init = {view: path.resolve() for view, path in config.init.items()}
    return replace(config, data=config.data.resolve(), out=config.out.resolve(), init=init, goes_on=goes_on)


def same_settings(one: TrainConfig, other: TrainConfig) -> bool:
    """Whether two configs are of one training; paths are equal where they lead to one place."""
    return with_absolute_paths(one) == with_absolute_paths(other)


def to_json(config: TrainConfig) -> str:
    """Returns the config as JSON text, paths as text."""
    return json.dumps(asdict(config), indent=1, default=str)


def from_json(text: str) -> TrainConfig:
    """Returns the config of a JSON text, also one that an older version wrote.

    Raises:
        ValueError: no JSON, an unknown setting, or one of another type.
    """
    body = read_json(text)
    if not isinstance(body, dict):
        raise ValueError(f"a {type(body).__name__} where an object belongs")
    for name in ("folder", "videos"):  # of the run, not of its settings
        body.pop(name, None)
    mining = body.get("mining")
    if isinstance(mining, dict) and "own_drop" in mining:  # as version 0.1 wrote it
        mining["drop_own_positive"] = mining.pop("own_drop")
    if "views" not in body:  # written when there were always two
        old = {view: body.pop(f"init_{view}", None) for view in ("rgb", "flow")}
        body["init"] = {view: path for view, path in old.items() if path is not None}
    parts = {
        "clips": Clips,
        "mining": Mining,
        "optim": Optim,
        "augment": Augment,
        "iic": Iic,
        "": TrainConfig,
    }
    for name, kind in parts.items():
        held = body.get(name, {}) if name else body
        known = {field.name for field in fields(kind)}
        if isinstance(held, dict) and (unknown := [one for one in held if one not in known]):
            raise ValueError(f"it has an unknown setting {name}{'.' * bool(name)}{unknown[0]}")
    return as_record(body, TrainConfig)
