"""Trains on videos that lack a view: it scores 0 as query and as key, and is not trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ... import MultiViewQueue, Schedule, cascade_topk
from .. import TrainError
from ..data.manifest import Manifest
from ..views import View
from .co_training import Inputs, MultiViewModel
from .config import TrainConfig
from .phases import Phase


class ViewMask:
    """Masks the views that videos lack; views that every training video has are not masked.

    Attributes:
        has: {view: [videos] bool} of the views that some training video lacks.
        missing: {view: share} of the training videos that lack it.
    """

    def __init__(self, manifest: Manifest, views: Mapping[str, View], device: torch.device) -> None:
        """Raises `TrainError` for a view that no training video has."""
        train = torch.tensor([video.split == "train" for video in manifest.videos])
        self.has: dict[str, Tensor] = {}
        self.missing: dict[str, float] = {}
        for name, view in views.items():
            has = torch.tensor([view.has(video) for video in manifest.videos])
            if not has[train].any():
                why = {video.silence for video in manifest.videos if video.split == "train"} - {""}
                raise TrainError(
                    f"views: no training video has {name} ({'; '.join(sorted(why)[:3])}); "
                    f"leave {name} out of --views, or prepare videos that have it"
                )
            if not has[train].all():
                self.has[name] = has.to(device)
                self.missing[name] = 1.0 - float(has[train].float().mean())

    def mask(self, view: str, videos: Tensor) -> Tensor | None:
        """Returns which of the videos [B] have the view, [B] bool; None where all training videos have it."""
        return self.has[view][videos] if view in self.has else None

    def encode(self, view: str, videos: Tensor, clips: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns embeddings [B, D] of clips [B, ...], 0 for the videos that lack the view.

        Those are not encoded, so that batch norm does not see them.
        """
        has = self.mask(view, videos)
        if has is None or bool(has.all()):
            return encode(clips)
        rows = has.nonzero()[:, 0]
        if not len(rows):  # encode one clip: training needs a graph, if only of zeros
            return (encode(clips[:1]) * 0).expand(len(clips), -1)
        made = encode(clips[rows])
        return made.new_zeros(len(clips), made.shape[1]).index_copy(0, rows, made)

    def mask_ids(self, view: str, ids: Tensor, held: Tensor) -> Tensor:
        """Returns the ids [N] of a queue that holds `held` [N] videos, -1 for those that lack the view.

        In the loss of that view they are neither positive nor negative.
        """
        if view not in self.has:
            return ids
        return torch.where((held >= 0) & self.has[view][held.clamp(min=0)], ids, -1)

    def mean(self, view: str, losses: Tensor, videos: Tensor, batch: Tensor) -> Tensor:
        """Returns the losses [B] of a part as its share of the batch's mean over videos that have the view.

        It is 0 where none has.
        """
        has, counted = self.mask(view, videos), self.mask(view, batch)
        if has is None or counted is None:
            return losses.sum() / len(batch)
        return torch.where(has, losses, 0).sum() / counted.sum().clamp(min=1)

    def drop_queries(self, view: str, mined: Tensor, videos: Tensor) -> Tensor:
        """Returns what was mined [B, k] for the training of a view, -1 for the videos that lack it."""
        has = self.mask(view, videos)
        return mined if has is None else torch.where(has[:, None], mined, -1)

    def mine(
        self,
        anchors: Mapping[str, Tensor],
        queue: MultiViewQueue,
        schedules: Mapping[str, Schedule],
        ids: Tensor,
        videos: Tensor,
    ) -> dict[str, Tensor]:
        """Returns {name: indices [B, k]} of every schedule on the same queue; a query's own source is never mined.

        A stage whose views a query lacks would keep the first entries of the queue, so it is skipped for that query;
        where no stage is left, nothing is mined (-1).
        """
        groups = self._groups(videos)
        mined = {}
        for name, schedule in schedules.items():
            picks = torch.full((len(videos), schedule.topk), -1, dtype=torch.int64, device=videos.device)
            for lacking, rows in groups:
                left = drop_views(schedule, lacking)
                if left is None:
                    continue
                if rows is None:
                    picks = cascade_topk(anchors, queue.views, left, query_ids=ids, key_ids=queue.ids)[0]
                else:
                    some = {view: anchor[rows] for view, anchor in anchors.items()}
                    picks[rows] = cascade_topk(
                        some, queue.views, left, query_ids=ids[rows], key_ids=queue.ids
                    )[0]
            mined[name] = picks
        return mined

    def _groups(self, videos: Tensor) -> list[tuple[frozenset[str], Tensor | None]]:
        """Returns the rows of the batch by the views that they lack; None for all rows."""
        if not self.has:
            return [(frozenset(), None)]
        table = torch.stack([~has[videos] for has in self.has.values()], dim=1)
        kinds, kind_of = torch.unique(table, dim=0, return_inverse=True)
        groups: list[tuple[frozenset[str], Tensor | None]] = []
        for number, kind in enumerate(kinds.tolist()):
            lacking = frozenset(view for view, lacks in zip(self.has, kind) if lacks)
            groups.append((lacking, (kind_of == number).nonzero()[:, 0]))
        return groups


def drop_views(schedule: Schedule, lacking: frozenset[str]) -> Schedule | None:
    """Returns the schedule without the stages that weigh lacking views only; None where no stage is left.

    Its last stage keeps the same number.
    """
    kept = [stage for stage in schedule if set(stage.weights) - lacking]
    if not kept:
        return None
    return Schedule(kept).with_topk(schedule.topk)


class MissingViewsModel(MultiViewModel):
    """Is a `MultiViewModel` for data sets in which some videos lack some views.

    view_mask: which videos have which view. A missing view is not encoded, is 0 as query and as key, and is neither
    positive nor negative in the loss of that view.
    """

    def __init__(
        self, config: TrainConfig, encoders: dict[str, nn.Module], classes: Tensor, view_mask: ViewMask
    ) -> None:
        super().__init__(config, encoders, classes)
        self.view_mask = view_mask

    def first_clips(self, inputs: Inputs, view: str) -> Tensor:
        """Returns the first clip [M, ...] of every video that has the view."""
        has, clips = self.view_mask.mask(view, inputs.videos), inputs.clips[view][0]
        return clips if has is None else clips[has]

    def encode(self, inputs: Inputs, view: str, clip: int, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns the embeddings [B, D] of the clips in a view; 0 for videos that lack it."""
        return self.view_mask.encode(view, inputs.videos, inputs.clips[view][clip], encode)

    @torch.no_grad()
    def mine(
        self, inputs: Inputs, anchors: dict[str, Tensor], schedules: dict[str, Schedule], phase: Phase
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Returns {schedule: entries [B, k]}, and weights; a stage is skipped for clips that lack all its views."""
        mined, weights = self.tuned.mine(anchors, inputs.sources)
        mined |= self.view_mask.mine(anchors, self.queue, schedules, inputs.sources, inputs.videos)
        if "mined" in mined:
            mined["mined"] = self.view_mask.drop_queries(phase.train[0], mined["mined"], inputs.videos)
        return mined, weights

    def loss_ids(self, view: str, ids: Tensor) -> Tensor:
        """Returns the ids [N], -1 for entries whose video lacks the view."""
        return self.view_mask.mask_ids(view, ids, self.queue.videos)

    def mean(self, view: str, losses: Tensor, inputs: Inputs, batch: Tensor) -> Tensor:
        """Returns the losses [B] as their share of the mean over the videos of the batch that have the view."""
        return self.view_mask.mean(view, losses, inputs.videos, batch)
