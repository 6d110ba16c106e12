"""Names the workloads, each with its source. Nothing else is measured, so every published number has a name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cpr_kernels import Schedule, cpr_schedule

OPS = ("cascade", "loss", "enqueue", "train_step")
AXES = {"N": "num_keys", "B": "num_queries", "D": "dim", "V": "views", "S": "stages"}
VIEWS = ("flow", "rgb", "audio", "depth")  # the first judges first, as in CPR

CPR = "Wu et al. 2022 (CPR)"
COCLR = "Han et al. 2020 (CoCLR)"
MOCO = "He et al. 2020 (MoCo)"


@dataclass(frozen=True)
class Workload:
    """One shape of the problem, in the letters of the README: B queries, N keys, D, V views, S stages.

    Args:
        name: what `--workload` and every table call it.
        num_queries: B.
        num_keys: N.
        source: where the shape comes from.
        tier: "table" (of the design), "more", "growth" or "quick".
        dim: D, the same for every view.
        views: V, the first so many of `VIEWS`.
        stages: S; stage s keeps ``floor(N * ratio**s)``, the last keeps `topk`.
        ratio: see `stages`.
        topk: entries mined per query; 0 only for losses without mined positives (InfoNCE).
        ids: whether source ids exclude siblings, as in training.
        features: "gaussian" (independent unit vectors) or "clustered" (classes, in the order of time).
        dtype: of queries and keys.
        axis: the letter that a growth series varies, else "".
    """

    name: str
    num_queries: int
    num_keys: int
    source: str
    tier: str = "more"
    dim: int = 128
    views: int = 2
    stages: int = 7
    ratio: float = 0.5
    topk: int = 5
    ids: bool = False
    features: str = "gaussian"
    dtype: str = "float32"
    axis: str = ""

    @property
    def view_names(self) -> tuple[str, ...]:
        """Returns the names of the V views."""
        return VIEWS[: self.views]

    @property
    def schedule(self) -> Schedule:
        """Returns the cascade of this workload: the paper's, for these views."""
        return cpr_schedule(self.view_names, self.num_keys, self.stages, self.ratio, self.topk)

    @property
    def judging(self) -> int:
        """Returns how many views judge at some stage: fewer than V when there are fewer stages."""
        return min(self.views, self.stages)

    def at(self, letter: str) -> int:
        """Returns the value of B, N, D, V or S."""
        return int(getattr(self, AXES[letter]))

    def small(self) -> Workload:
        """Returns the same work on a shape that takes no time, to warm code up."""
        num_keys = min(self.num_keys, 4096)
        left = int(num_keys * self.ratio ** max(self.stages - 1, 1))  # before the last stage
        return replace(
            self, num_queries=min(self.num_queries, 4), num_keys=num_keys, topk=min(self.topk, max(left, 1))
        )

    def __str__(self) -> str:
        return (
            f"{self.name} (B={self.num_queries}, N={self.num_keys:,}, D={self.dim}, "
            f"V={self.views}, S={self.stages})"
        )


TABLE = (
    Workload("ucf-b16", 16, 2048, f"{CPR}: queue for UCF101, 16 clips a GPU", "table"),
    Workload("k400-b64", 64, 16384, f"{CPR}: queue for Kinetics-400", "table"),
    Workload("k400-b512", 512, 16384, f"{CPR}: queue for Kinetics-400, a large batch", "table"),
    Workload("queue65k-b64", 64, 65536, f"{MOCO}: queue for ImageNet", "table"),
)
WITH_IDS = Workload("k400-b64-ids", 64, 16384, f"{CPR}: as k400-b64, siblings known by id", ids=True)
BATCH_WITH_IDS = Workload("k400-b512-ids", 512, 16384, f"{CPR}: as k400-b512, siblings known by id", ids=True)
MILLION = Workload("queue1m-b64", 64, 1 << 20, "scale: a queue of a million, above any of the papers'")
MORE = (
    Workload("ucf-b32", 32, 2048, f"{CPR}: queue for UCF101, default batch of the published code"),
    Workload("k400-b16", 16, 16384, f"{CPR}: queue for Kinetics-400, 16 clips a GPU"),
    WITH_IDS,
    BATCH_WITH_IDS,
    Workload(
        "k400-b64-clustered",
        64,
        16384,
        f"{CPR}: as k400-b64, 400 classes in the order of time",
        features="clustered",
    ),
    Workload("coclr-b64", 64, 16384, f"{COCLR}: one stage, one view, top-5", views=1, stages=1),
    Workload(
        "half-b64",
        64,
        16384,
        f"{CPR}: its first stage alone, half of the queue",
        views=1,
        stages=1,
        topk=8192,
    ),
    Workload("k400-b512-bf16", 512, 16384, f"{CPR}: as k400-b512, features stored in half", dtype="bfloat16"),
    MILLION,
)
INFONCE = (
    Workload("infonce-b16", 16, 2048, f"{COCLR}: InfoNCE pre-training, queue for UCF101", topk=0),
    Workload("infonce-b256", 256, 65536, f"{MOCO}: batch and queue for ImageNet", topk=0),
)
STEPS = (
    Workload("ucf-b16", 16, 2048, f"{CPR}: queue for UCF101, 16 clips a GPU", "table", ids=True),
    Workload("k400-b64", 64, 16384, f"{CPR}: queue for Kinetics-400", "table", ids=True),
    Workload("k400-b512", 512, 16384, f"{CPR}: queue for Kinetics-400, a large batch", "table", ids=True),
)
QUICK = (
    Workload("quick", 5, 512, "smoke test: small and odd", "quick", dim=32, stages=5),
    Workload("quick-ids", 4, 256, "smoke test: siblings excluded by id", "quick", dim=24, stages=3, ids=True),
)

_BASE = Workload("base", 64, 16384, "growth around k400-b64", "growth")
_SMALL_BASE = Workload("base", 4, 256, "smoke test: growth", "quick", dim=16, stages=3)
_GROWTH: dict[str, tuple[int, ...]] = {
    "N": (2048, 4096, 8192, 16384, 32768, 65536, 131072),
    "B": (1, 4, 16, 64, 256, 512),
    "D": (32, 64, 128, 256, 512),
    "V": (1, 2, 3, 4),
    "S": (1, 3, 5, 7, 9, 11),
}
_MATTERS = {"cascade": "NBDVS", "loss": "NBD", "enqueue": "NBDV", "train_step": "NB"}


def _series(base: Workload, letter: str, values: tuple[int, ...]) -> tuple[Workload, ...]:
    """Returns the base with one letter varied."""
    prefix = "quick-" if base.tier == "quick" else ""
    made = []
    for value in values:
        changed: dict[str, int] = {AXES[letter]: value}
        made.append(replace(base, name=f"{prefix}grow-{letter}-{value}", axis=letter, **changed))  # type: ignore[arg-type]
    return tuple(made)


def growth(op: str) -> tuple[Workload, ...]:
    """Returns every growth series of an op: one letter varies, the others are those of k400-b64."""
    base = replace(_BASE, ids=op == "train_step")
    return tuple(w for letter in _MATTERS[op] for w in _series(base, letter, _GROWTH[letter]))


def workloads_of(op: str, *, quick: bool = False) -> tuple[Workload, ...]:
    """Returns all workloads of an op in the order they run; `quick` ones are tiny and measure nothing of interest."""
    if quick:
        with_ids = replace(_SMALL_BASE, ids=op == "train_step")
        chosen = {"cascade": QUICK, "train_step": QUICK[1:]}.get(op, QUICK[:1])
        return (*chosen, *_series(with_ids, "N", (256, 512)))
    return {
        "cascade": (*TABLE, *MORE, *growth(op)),
        "loss": (*TABLE, WITH_IDS, BATCH_WITH_IDS, MILLION, *INFONCE, *growth(op)),
        "enqueue": (*TABLE, *growth(op)),
        "train_step": (*STEPS, *growth(op)),
    }[op]


def by_name(op: str, name: str) -> Workload:
    """Returns the workload of that name.

    Raises:
        ValueError: a name that the op does not have; the known ones are listed.
    """
    known = {w.name: w for w in (*workloads_of(op), *workloads_of(op, quick=True))}
    if name not in known:
        raise ValueError(f"--workload {name!r} is not one of {op}'s: {', '.join(known)}")
    return known[name]
