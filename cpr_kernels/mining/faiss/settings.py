"""Holds what a user sets of a FaissIndex, and what it reports back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class Staleness(NamedTuple):
    """Says how far an index has moved from what was built."""

    updates: int  # since the build
    added: float  # entries added since, in units of the queue's size
    drift: float  # see RebuildPolicy
    dead: float  # see RebuildPolicy
    rebuilds: int  # over the index's life


@dataclass(frozen=True)
class RebuildPolicy:
    """Says when :meth:`FaissIndex.update` builds the index anew: at any bound that is reached; None is no bound.

    Args:
        every: updates since the last build.
        drift: how much worse the entries added since fit the cells learnt at the build (mean squared distance to
            the centre, relative growth). Only IVF learns cells.
        dead: share of the index's vectors that belong to replaced entries. Only HNSW and GPU indexes keep those.

    Raises:
        ValueError: a bound out of its range.
    """

    every: int | None = None
    drift: float | None = 0.25
    dead: float | None = 0.5

    def __post_init__(self) -> None:
        if self.every is not None and self.every < 1:
            raise ValueError(f"RebuildPolicy: every must be >= 1 or None, got {self.every}")
        for name, bound in (("drift", self.drift), ("dead", self.dead)):
            if bound is not None and not bound > 0:
                raise ValueError(f"RebuildPolicy: {name} must be above 0 or None, got {bound}")

    def due(self, staleness: Staleness) -> bool:
        """Returns True where some bound is reached."""
        return (
            (self.every is not None and staleness.updates >= self.every)
            or (self.drift is not None and staleness.drift >= self.drift)
            or (self.dead is not None and staleness.dead >= self.dead)
        )


@dataclass
class UpdateStats:
    """Counts the updates of an index since its build, and measures how well the new entries fit."""

    updates: int = 0
    added: int = 0
    fit: float = 0.0  # misfit of the training rows
    misfit: float = 0.0  # mean misfit of the entries added since
    rebuilds: int = -1
    pointer: int = -1  # the queue's, at the last sync


@dataclass(frozen=True)
class SearchSettings:
    """Says how hard a first search tries; a query that it does not fill is searched again, wider.

    Args:
        effort: cells visited (IVF) or candidates held while walking (HNSW); None: chosen by what is fetched, or by
            `recall`.
        overfetch: how many times stage 1's count is fetched and then ranked exactly; None: 1, and 2 for PQ codes.
        spare: entries fetched beyond that; as many as one source has in the queue save the second search.
        recall: the share of the exact cascade's final entries that the index shall find, in (0, 1]. The first call
            after a build, for each schedule, then mines for 128 of the index's own entries exactly and with the
            index, and takes the least effort that reaches it (and for PQ codes the overfetch); the effort is in
            :attr:`FaissIndex.report`. A graph (HNSW) finds its own entries more easily than new queries, so that
            it may stay some hundredths below; :func:`faiss_recall` measures yours. None: the default effort.

    Raises:
        ValueError: a number out of its range, or both `effort` and `recall`.
    """

    effort: int | None = None
    overfetch: float | None = None
    spare: int = 16
    recall: float | None = None

    def __post_init__(self) -> None:
        if self.effort is not None and (self.effort < 1 or self.effort != int(self.effort)):
            raise ValueError(f"SearchSettings: effort must be a whole number >= 1 or None, got {self.effort}")
        if self.overfetch is not None and not 1 <= self.overfetch < 1e6:
            raise ValueError(f"SearchSettings: overfetch must be >= 1 or None, got {self.overfetch}")
        if self.spare < 1:
            raise ValueError(f"SearchSettings: spare must be >= 1, got {self.spare}")
        if self.recall is not None and not 0 < self.recall <= 1:
            raise ValueError(f"SearchSettings: recall must be in (0, 1] or None, got {self.recall}")
        if self.recall is not None and self.effort is not None:
            raise ValueError(
                f"SearchSettings: effort={self.effort} and recall={self.recall} are both given, and recall chooses the "
                "effort; give one"
            )


class SearchReport(NamedTuple):
    """Says how the last call went."""

    queries: int = 0
    searches: int = 0  # rounds
    widened: int = 0  # queries that were searched again, wider
    exact: int = 0  # queries that the index could not fill and the exact cascade answered
    effort: int = 1  # cells (IVF) or candidates (HNSW) that the first search visited
    recall: float | None = (
        None  # of the final entries, measured on the index's own entries; None: not measured
    )
