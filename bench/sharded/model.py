"""Models a sharded queue on paper: what its ranks send and how long they take. Not a measurement.

Bytes are those of the messages that `cpr_kernels` sends, listed one by one; a test counts them in real runs of 2 and 4
processes. Seconds follow from the stated speeds of an imagined cluster, and nothing was timed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from cpr_kernels import Schedule

COUNTS, DIGITS = 256, 6  # numbers that find one threshold, in so many exchanges
SEND_SURVIVORS, SEND_OWN_BEST = 256, 64  # stage counts from which on survivors, or each rank's best, are sent
GREETING, NUMBER, ID = 64, 4, 8  # bytes
WORKING_BYTES, KEYS_A_LIST_BYTE = (
    1 << 28,
    4,
)  # of lists at a time: so many, or a quarter of the share's features


IN_THE_CORE, IN_TORCH = (4, 8), (12, 48)  # bytes of a listed entry: of CPU tensors, of CUDA tensors


class Message(NamedTuple):
    """Messages of one kind in a call."""

    name: str
    bytes: float  # that a rank sends to the others in one call
    exchanges: int  # one after the other, each with every other rank


@dataclass(frozen=True)
class Queue:
    """A sharded queue and the batches that are mined in it."""

    entries: int  # N
    ranks: int  # W
    batch: int  # B, queries of each rank
    dims: tuple[int, ...]  # D of each view
    item: int = 4  # bytes a number of the features
    working: int = 0  # bytes that mining may take on a rank; 0: what cpr_kernels takes by itself
    lists: tuple[int, int] = IN_THE_CORE  # bytes of a listed entry: for each weighting, and beside them

    @property
    def share(self) -> int:
        """Returns the entries of a rank."""
        return -(-self.entries // self.ranks)

    @property
    def feature_bytes(self) -> int:
        """Returns the bytes of one entry's, or query's, features."""
        return self.item * sum(self.dims)

    @property
    def others(self) -> int:
        """Returns the queries of the other ranks."""
        return self.batch * (self.ranks - 1)


class Stages(NamedTuple):
    """How a schedule is run: thresholds found together, then the survivors sent."""

    thresholds: int  # stages whose threshold all ranks find together
    keep: int  # entries of a query that are then sent: by every rank, or by all together
    each: bool  # every rank sends its own best
    judges: int  # distinct ways of judging in the stages left to the query's rank


def stage_costs(schedule: Schedule) -> Stages:
    """Returns which stages cost what, as `cpr_kernels.mining.sharded` does it."""
    counts, last = [stage.keep for stage in schedule], len(schedule) - 1
    first_left, thresholds, each = last, 0, False
    for s, keep in enumerate(counts):
        if keep <= SEND_OWN_BEST:
            first_left, each = s, True
            break
        thresholds += 1
        if keep <= SEND_SURVIVORS:
            first_left = min(s + 1, last)
            break
    kept = counts[thresholds] if each else counts[thresholds - 1]
    judges = len({str(stage.view) for stage in schedule[first_left:]})
    return Stages(thresholds, kept, each, judges)


def entry_bytes(queue: Queue, rows: int) -> int:
    """Returns the bytes that a query's list takes for each entry, where stages judge in so many ways."""
    each, beside = queue.lists
    return each * rows + beside


def sweeps(queue: Queue, schedule: Schedule) -> int:
    """Returns how often a rank reads its entries: the lists of so many queries fit the working memory."""
    rows = len({str(stage.view) for stage in schedule})
    room = queue.working or max(WORKING_BYTES, queue.share * queue.feature_bytes // KEYS_A_LIST_BYTE)
    together = max(1, room // ((queue.share + 16) * entry_bytes(queue, rows)))
    return -(-queue.batch * queue.ranks // together)


def cascade_messages(
    queue: Queue, schedule: Schedule, *, ids: bool = True, exclude: bool = False
) -> list[Message]:
    """Returns what one rank sends in one `cascade_topk`, entries being spread evenly and every stage finding
    enough of them.

    No size but that of `exclude` depends on N. The number of exchanges grows with the sweeps: with N until the lists
    may take a quarter of the features' memory, not beyond.
    """
    how, peers, runs = stage_costs(schedule), queue.ranks - 1, sweeps(queue, schedule)
    query = queue.feature_bytes + (ID if ids else 0)
    threshold = queue.others * COUNTS * NUMBER + peers * queue.batch * (DIGITS - 1 + 2 * NUMBER)
    sent = queue.others * how.keep if how.each else queue.others * how.keep / queue.ranks
    messages = [
        Message("greeting", peers * GREETING, 1),
        Message("queries to all", peers * queue.batch * query, 1),
    ]
    if exclude:
        messages.append(Message("exclude to the holders", queue.batch * (queue.entries - queue.share), 1))
    return [
        *messages,
        Message("thresholds", how.thresholds * threshold, how.thresholds * 2 * DIGITS * runs),
        Message(
            "survivors to the query's rank",
            queue.others * NUMBER + sent * NUMBER * (1 + how.judges),
            2 * runs,
        ),
    ]


def enqueue_messages(queue: Queue) -> list[Message]:
    """Returns what one rank sends in one `enqueue`, were its rows to fall on all ranks alike: each to one holder."""
    row = queue.feature_bytes + 2 * ID
    return [
        Message("greeting", (queue.ranks - 1) * GREETING, 1),
        Message("rows to their holders", queue.batch * row * (queue.ranks - 1) / queue.ranks, 1),
    ]


def loss_messages(queue: Queue, positives: int, *, ids: bool = True, of_keys: bool = False) -> list[Message]:
    """Returns what one rank sends in one `mil_nce` over the first view, forward and backward."""
    peers, dim = queue.ranks - 1, queue.dims[0]
    query = queue.item * dim + ID * positives + (ID if ids else 0)
    messages = [
        Message("greeting", peers * GREETING, 1),
        Message("queries to all", peers * queue.batch * query, 1),
        Message("sums to the query's rank", queue.others * NUMBER * (4 + 2 * dim), 1),
    ]
    if of_keys:
        messages.append(Message("gradient of the keys", peers * (GREETING + queue.batch * 3 * NUMBER), 2))
    return messages


class Cluster(NamedTuple):
    """Assumed speeds of one rank; none of them was measured."""

    name: str
    link: float  # bytes a second that a rank sends
    latency: float  # seconds of an exchange
    message: float  # seconds for each other rank in an exchange
    flops: float  # a second, in the products
    memory: float  # bytes a second, in the lists
    working: int  # bytes of lists that a rank has room for
    lists: tuple[int, int] = IN_THE_CORE


CLUSTERS = (
    Cluster("25 Gb/s Ethernet, ranks of 16 cores", 2.5e9, 50e-6, 5e-6, 1e12, 1e11, 16 << 30),
    Cluster("400 Gb/s InfiniBand, ranks of 64 cores", 40e9, 10e-6, 1e-6, 4e12, 3e11, 128 << 30),
    # products in float64, as the reference's; an exchange is a kernel of NCCL and a wait of the host
    Cluster(
        "NVLink within a node of H200, 400 Gb/s a GPU between nodes",
        4e10,
        40e-6,
        1e-6,
        3e13,
        3e12,
        64 << 30,
        IN_TORCH,
    ),
)


class Cost(NamedTuple):
    """One call on an imagined cluster."""

    scores: float  # seconds for the products of a rank's entries with all queries
    lists: float  # seconds for listing, counting and narrowing entries
    network: float  # seconds for all exchanges
    sent: float  # bytes that a rank sends

    @property
    def seconds(self) -> float:
        """Returns the sum: nothing overlaps."""
        return self.scores + self.lists + self.network


def network_seconds(messages: list[Message], queue: Queue, cluster: Cluster) -> float:
    """Returns the seconds of sending: bytes at the link's speed, and every exchange its latency and a message
    to each other rank.
    """
    exchanges = sum(message.exchanges for message in messages)
    each = cluster.latency + (queue.ranks - 1) * cluster.message
    return sum(message.bytes for message in messages) / cluster.link + exchanges * each


def cascade_cost(queue: Queue, schedule: Schedule, cluster: Cluster) -> Cost:
    """Returns time and bytes of one `cascade_topk` on every rank, by this model."""
    messages = cascade_messages(queue, schedule)
    rows = len({str(stage.view) for stage in schedule})
    pairs = queue.batch * queue.ranks * queue.share  # scores that a rank makes in each view
    listed = pairs * 4 * (rows + 1)
    moved = entry_bytes(queue, rows) / entry_bytes(
        replace(queue, lists=IN_THE_CORE), rows
    )  # against the core's
    alive, visited = 1.0, 0.0
    for stage in schedule[: stage_costs(schedule).thresholds + 1]:
        visited += alive * (2 + 2 * (rows + 1))  # counted twice, then narrowed: read and written
        alive = min(alive, stage.keep / queue.entries)
    keys = sweeps(queue, schedule) * queue.share * queue.feature_bytes
    scores = max(2 * pairs * sum(queue.dims) / cluster.flops, keys / cluster.memory)
    lists = moved * (listed + pairs * 4 * visited) / cluster.memory
    sent = sum(message.bytes for message in messages)
    return Cost(scores, lists, network_seconds(messages, queue, cluster), sent)
