"""Batches: the same times in both views, flow that follows the flip, and draws that survive a restart."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from train_sets import DRAFT  # noqa: F401  (skips where the trainer's packages are absent)

from cpr_kernels.networks.inputs import PLAIN, differences
from cpr_kernels.networks.s3d import MEAN, STD
from cpr_kernels.train import TrainError
from cpr_kernels.train.batches.dataset import ClipDataset
from cpr_kernels.train.batches.loader import augmented, clip_loader
from cpr_kernels.train.batches.sampler import ClipSampler, SampleKey
from cpr_kernels.train.views import KNOWN, base, chosen
from cpr_kernels.train.views.augment import Augment
from cpr_kernels.train.views.crops import resized_crop
from cpr_kernels.train.views.flow import mirrored
from cpr_kernels.train.views.rgb import _blurred

pytest_plugins = ["train_fixtures"]

CPU = torch.device("cpu")
TWO = chosen(("rgb", "flow"))


def test_two_clips_share_times_and_box_between_views(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes: list[list[float]] = []

    def uncropped(frames: np.ndarray, size: int, draws: np.ndarray, min_area: float) -> np.ndarray:
        boxes.append(draws.tolist())
        return frames

    monkeypatch.setattr(base, "resized_crop", uncropped)
    dataset = ClipDataset(data, frames=5, crop=32, cache_mb=0)
    item = dataset[(3, 77)]
    assert boxes[0] == boxes[1] != boxes[2] == boxes[3]
    assert item["rgb"].shape == (2, 5, 32, 32, 3) and item["flow"].shape == (2, 5, 32, 32, 2)
    video = dataset.manifest.videos[item["video"]]
    assert video.split == "train"
    whole = {view: dataset.store.frames(video.id, view, 0, video.frames) for view in ("rgb", "flow")}
    starts = {
        view: [
            [s for s in range(video.frames - 4) if np.array_equal(whole[view][s : s + 5], clip)]
            for clip in item[view].numpy()
        ]
        for view in whole
    }
    assert starts["rgb"] == starts["flow"] and all(len(found) == 1 for found in starts["rgb"]), starts
    cached = ClipDataset(data, frames=5, crop=32)
    assert all(torch.equal(cached[(3, 77)][view], item[view]) for view in ("rgb", "flow"))
    assert not torch.equal(dataset[(3, 78)]["rgb"], item["rgb"])


def test_crop_is_one_box_for_all_frames() -> None:
    rows, columns = np.mgrid[0:40, 0:60]
    frames = np.repeat(np.stack([rows, columns], -1)[None], 4, axis=0).astype(np.uint8)
    clip = resized_crop(frames, 20, np.array([0.3, 0.5, 0.5, 0.5]), min_area=0.2)
    assert clip.shape == (4, 20, 20, 2) and all(np.array_equal(clip[0], frame) for frame in clip[1:])
    assert abs(clip[0].mean(axis=(0, 1)) - [19.5, 29.5]).max() < 1.5  # centred by its draws
    centre = resized_crop(frames, 40)
    assert np.array_equal(centre, frames[:, :, 10:50])


def test_flip_mirrors_the_picture_and_negates_flow_u() -> None:
    """Flow seen in a mirror: estimating it on mirrored frames gives what `flipped` makes of the stored flow."""
    flow = torch.full((1, 1, 4, 6, 2), 0.5)
    flow[..., 1, 0, 0], flow[..., 1, 0, 1] = 0.9, 0.7  # moves right and down, at the left edge
    seen = mirrored(flow)
    assert seen[0, 0, 1, 5].tolist() == pytest.approx([0.1, 0.7])
    assert torch.equal(seen[0, 0, 0], torch.full((6, 2), 0.5))
    assert torch.equal(mirrored(seen), flow)


def test_every_view_is_mirrored_with_the_others(data: Path) -> None:
    """All clips flipped: what augmentation gives is what `plain(mirror=True)` gives, view by view."""
    views = chosen(("rgb", "flow", "centred_flow", "residual"))
    dataset = ClipDataset(data, frames=5, crop=32, views=tuple(views))
    batch = next(iter(clip_loader(dataset, ClipSampler(len(dataset), 4, seed=0), workers=0)))
    assert set(batch) == {"video", "rgb", "flow"}  # four views of two records
    how = Augment(flip=1.0, jitter=0.0, grey=0.0, blur=0.0)
    got = augmented(batch, views, how, torch.Generator().manual_seed(0), CPU)
    for name, view in views.items():
        stored = batch[view.stored].transpose(0, 1)
        assert torch.allclose(got[name], view.plain(stored, mirror=True), atol=1e-5), name
        assert got[name].shape == (2, 4, 3, 5, 32, 32)
    two = augmented(batch, TWO, Augment(), torch.Generator().manual_seed(3), CPU)
    three = augmented(batch, views, Augment(), torch.Generator().manual_seed(3), CPU)
    assert all(
        torch.equal(two[name], three[name]) for name in two
    )  # a further view does not change the others


def test_centred_flow_is_0_where_nothing_moves() -> None:
    """Also beside the clip, where a convolution pads with zeros, and in the third channel; `flow` has a constant there."""
    still = torch.full((1, 2, 3, 4, 2), 128, dtype=torch.uint8)
    for mirror in (False, True):
        assert not KNOWN["centred_flow"].plain(still, mirror).any()
    assert KNOWN["flow"].plain(still)[0, 2].mean() == pytest.approx(-0.406 / 0.225)
    still[0, 1, 2, 0] = torch.tensor([192, 96])  # half of the largest flow to the right, a quarter up
    plain, mirrored = (KNOWN["centred_flow"].plain(still, mirror)[0, :, 1, 2] for mirror in (False, True))
    assert plain.tolist() == [[1.0, 0, 0, 0], [-0.5, 0, 0, 0], [0.0] * 4]
    assert mirrored.tolist() == [[0, 0, 0, -1.0], [0, 0, 0, -0.5], [0.0] * 4]


@pytest.mark.parametrize("name", PLAIN)
def test_an_exported_model_prepares_clips_as_training_does(name: str) -> None:
    channels = 2 if KNOWN[name].stored == "flow" else 3
    clips = torch.randint(256, (2, 5, 9, 8, channels), generator=torch.Generator().manual_seed(0)).byte()
    assert torch.equal(PLAIN[name](clips), KNOWN[name].plain(clips))


def test_residual_is_the_change_from_frame_to_frame() -> None:
    frames = torch.tensor([0.0, 0.25, 0.75, 0.5]).view(4, 1, 1, 1).expand(4, 2, 2, 3)
    assert differences(frames)[:, 0, 0, 0].tolist() == [0.25, 0.5, -0.25, -0.25]


def test_second_clips_alone_are_those_of_pairs(data: Path) -> None:
    """As they are read and augmented for a frozen view; the other view's clips are as ever."""
    dataset = ClipDataset(data, frames=5, crop=32)
    pair, single = dataset[SampleKey(3, 7)], dataset[SampleKey(3, 7, frozenset({"rgb"}))]
    assert (pair["rgb"].shape[0], single["rgb"].shape[0]) == (2, 1)
    assert torch.equal(single["rgb"][0], pair["rgb"][1]) and torch.equal(single["flow"], pair["flow"])
    clips = []
    for item in (pair, single):
        batch = {name: torch.as_tensor(value)[None] for name, value in item.items()}
        clips.append(augmented(batch, TWO, Augment(), torch.Generator().manual_seed(1), CPU))
    assert torch.equal(clips[1]["rgb"], clips[0]["rgb"][1:])
    assert torch.equal(clips[1]["flow"], clips[0]["flow"])


def test_augmentation_is_seeded_and_leaves_flow_colours_alone(data: Path) -> None:
    dataset = ClipDataset(data, frames=5, crop=32)
    sampler = ClipSampler(len(dataset), 4, seed=0)
    batch = next(iter(clip_loader(dataset, sampler, workers=0)))
    how = Augment(flip=0.0, jitter=1.0, grey=0.5, blur=1.0)

    def draw(seed: int) -> dict[str, torch.Tensor]:
        return augmented(batch, TWO, how, torch.Generator().manual_seed(seed), CPU)

    first, again, other = draw(1), draw(1), draw(2)
    assert first["rgb"].shape == first["flow"].shape == (2, 4, 3, 5, 32, 32)
    assert all(torch.equal(first[view], again[view]) for view in first)
    assert not torch.equal(first["rgb"], other["rgb"])
    assert torch.equal(first["flow"], TWO["flow"].plain(batch["flow"].transpose(0, 1)))
    third_channel = first["flow"][:, :, 2] * STD[2] + MEAN[2]
    assert third_channel.abs().max() < 1e-6
    untouched = augmented(
        batch, TWO, Augment(flip=0, jitter=0, grey=0, blur=0), torch.Generator().manual_seed(1), CPU
    )
    assert torch.allclose(untouched["rgb"], TWO["rgb"].plain(batch["rgb"].transpose(0, 1)), atol=1e-5)


def test_blur_is_a_gaussian_of_each_clips_own_width_with_edges_repeated() -> None:
    clips = torch.rand(2, 3, 2, 6, 9, 3, generator=torch.Generator().manual_seed(0))
    chosen = torch.tensor([[True, False, True], [False, True, False]])
    sigma = torch.tensor([[0.1, 0.5, 0.9], [1.3, 1.7, 2.0]])
    got = _blurred(clips.clone(), chosen, sigma, radius=2)
    assert torch.equal(got[~chosen], clips[~chosen])
    for side, number in chosen.nonzero().tolist():
        weights = np.exp(-0.5 * (np.arange(-2, 3) / float(sigma[side, number])) ** 2)
        expected = clips[side, number].double().numpy()
        for axis in (1, 2):
            wide = np.pad(expected, [(2, 2) if place == axis else (0, 0) for place in range(4)], mode="edge")
            shifted = [wide.take(np.arange(k, k + expected.shape[axis]), axis=axis) for k in range(5)]
            expected = np.tensordot(weights / weights.sum(), np.stack(shifted), axes=1)
        np.testing.assert_allclose(got[side, number].numpy(), expected, atol=1e-6)
    assert torch.equal(_blurred(clips.clone(), torch.zeros_like(chosen), sigma, radius=2), clips)


def test_sampler_covers_every_video_and_resumes_anywhere() -> None:
    sampler = ClipSampler(videos=10, batch=3, seed=5)
    straight = list(islice(sampler, 9))
    for turn in range(3):
        chosen = [key[0] for batch in straight[3 * turn : 3 * turn + 3] for key in batch]
        assert len(set(chosen)) == 9
    for position in range(9):
        resumed = ClipSampler(videos=10, batch=3, seed=5)
        sampler.position = position
        resumed.load_state_dict(sampler.state_dict())
        assert list(islice(resumed, 9 - position)) == straight[position:]
    with pytest.raises(TrainError, match=r"data order would change \(videos 10 -> 11\)"):
        ClipSampler(videos=11, batch=3, seed=5).load_state_dict(sampler.state_dict())
    with pytest.raises(TrainError, match="cannot be drawn from 10 training videos; use 10 or less"):
        ClipSampler(videos=10, batch=11, seed=0)


def test_workers_change_nothing(data: Path) -> None:
    def batches(workers: int) -> list[dict[str, torch.Tensor]]:
        dataset = ClipDataset(data, frames=5, crop=32)
        return list(islice(clip_loader(dataset, ClipSampler(len(dataset), 8, seed=3), workers), 3))

    for here, of_workers in zip(batches(0), batches(2)):
        assert all(torch.equal(here[name], of_workers[name]) for name in here)


def test_too_short_videos_are_named(data: Path) -> None:
    with pytest.raises(TrainError, match=r"no train video of .* has 14 frames \(54 are shorter\)"):
        ClipDataset(data, frames=14, crop=32)
