"""Videos that lack a view take part: blank in the batch, 0 in mining, no target of that view's encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from cpr_kernels import MultiViewQueue, cascade_topk, coclr_schedule, oracle_schedule, parse_schedule
from cpr_kernels.networks import new_encoder
from cpr_kernels.train import TrainError
from cpr_kernels.train.batches.dataset import ClipDataset, starts_apart
from cpr_kernels.train.data.manifest import Manifest
from cpr_kernels.train.evaluate.features import Protocol, encode
from cpr_kernels.train.evaluate.retrieval import retrieval
from cpr_kernels.train.pretrain.missing_views import ViewMask, drop_views
from cpr_kernels.train.views import chosen

pytest_plugins = ["train_fixtures"]
CPU = torch.device("cpu")


@pytest.mark.parametrize(("frames", "length"), [(8, 8), (9, 8), (15, 8), (16, 8), (17, 8), (27, 8)])
def test_clips_of_a_pair_lie_apart(frames, length):
    rng, seen = np.random.default_rng(0), set()
    for _ in range(2000):
        first, second = starts_apart(frames, length, rng)
        seen.add((first, second))
        assert 0 <= min(first, second) <= max(first, second) <= frames - length
        assert abs(first - second) >= min(length, frames - length)
    pairs = {(a, b) for a in range(frames - length + 1) for b in range(frames - length + 1)}
    apart = {(a, b) for a, b in pairs if abs(a - b) >= length}
    assert seen == (apart or {(0, frames - length), (frames - length, 0)})


def test_a_missing_view_is_a_blank_and_the_others_are_as_ever(sound_data):
    with_sound = ClipDataset(sound_data, 8, 32, views=("rgb", "audio"), apart=True)
    without_sound = ClipDataset(sound_data, 8, 32, views=("rgb",), apart=True)
    assert len(with_sound) == len(without_sound) == 12
    blanks = 0
    for position in range(12):
        item, plain = with_sound[position, 5], without_sound[position, 5]
        assert torch.equal(item["rgb"], plain["rgb"])
        assert item["audio"].shape == (2, 128, 128)
        mute = with_sound.manifest.videos[item["video"]].silence != ""
        assert mute is not bool(item["audio"].any())
        blanks += mute
    assert blanks == 4
    alone = ClipDataset(sound_data, 8, 32, views=("audio",))
    assert (len(alone), alone.without, alone.left_out) == (8, 4, 0)


def test_a_view_that_nobody_has_is_refused(data, sound_data):
    with pytest.raises(TrainError, match=r"no train video of .* has audio .no sound track"):
        ClipDataset(data, 8, 32, views=("audio",))
    with pytest.raises(TrainError, match=r"no training video has audio .no sound track.*leave audio out"):
        ViewMask(Manifest.load(data), chosen(("rgb", "audio")), CPU)
    view_mask = ViewMask(Manifest.load(sound_data), chosen(("rgb", "flow", "audio")), CPU)
    assert view_mask.missing == {"audio": pytest.approx(4 / 12)}


def view_mask_of(**has):
    """A view_mask table without a data set."""
    made = ViewMask.__new__(ViewMask)
    made.has = {view: torch.tensor(held) for view, held in has.items()}
    return made


def test_only_present_clips_are_encoded():
    view_mask, seen = view_mask_of(audio=[True, False, True, False]), []

    def encode_clips(clips):
        seen.append(clips.flatten().tolist())
        return normalize(clips.expand(-1, 3).sin(), dim=1)

    clips = torch.tensor([[1.0], [2.0], [3.0]], requires_grad=True)
    videos = torch.tensor([0, 1, 2])
    made = view_mask.encode("audio", videos, clips, encode_clips)
    assert seen == [[1.0, 3.0]]
    assert torch.equal(made[1], torch.zeros(3))
    assert made[[0, 2]].norm(dim=1).tolist() == pytest.approx([1, 1])
    view_mask.encode("rgb", videos, clips, encode_clips)
    view_mask.encode("audio", torch.tensor([0, 2, 0]), clips, encode_clips)
    assert seen[1:] == [[1.0, 2.0, 3.0]] * 2
    none = view_mask.encode("audio", torch.tensor([1, 3, 1]), clips, encode_clips)
    assert not none.any()
    none.sum().backward()  # a graph all the same, of zeros
    assert not clips.grad.any()


def test_losses_and_keys_of_missing_views_do_not_count():
    view_mask = view_mask_of(audio=[True, False, True])
    losses = torch.tensor([1.0, torch.inf, 5.0])
    assert view_mask.mean("audio", losses, *[torch.tensor([0, 1, 2])] * 2) == 3
    assert view_mask.mean("audio", losses, *[torch.tensor([1, 1, 1])] * 2) == 0
    assert view_mask.mean("rgb", losses[[0, 2]], *[torch.tensor([0, 1])] * 2) == 3
    held, ids = torch.tensor([2, 1, -1, 0]), torch.tensor([7, 8, -1, 9])
    assert view_mask.mask_ids("audio", ids, held).tolist() == [7, -1, -1, 9]
    assert view_mask.mask_ids("rgb", ids, held) is ids


def test_stages_that_nobody_can_judge_are_left_out():
    lacking = frozenset({"audio"})
    schedule = parse_schedule("audio:40,rgb:20,audio+rgb:10,audio:5")
    assert str(drop_views(schedule, lacking)) == "rgb:20,audio+rgb:5"
    assert drop_views(schedule, frozenset()) == schedule
    assert drop_views(coclr_schedule("audio"), lacking) is None
    assert str(drop_views(oracle_schedule(("rgb", "audio")), lacking)) == "rgb+audio:5"


def test_mining_scores_a_missing_view_as_nothing():
    generator = torch.Generator().manual_seed(0)
    unit = lambda *shape: normalize(torch.randn(*shape, generator=generator), dim=-1)  # noqa: E731
    has = [True, True, False, True, False, True, False, True]
    view_mask = view_mask_of(audio=has)
    queue = MultiViewQueue({"rgb": 4, "audio": 4}, 8)
    keys = {"rgb": unit(8, 4), "audio": unit(8, 4) * torch.tensor(has)[:, None]}
    queue.enqueue(keys, torch.arange(8), labels=torch.arange(8))
    videos = torch.tensor([1, 2, 3, 4])
    anchors = {view: key[videos] for view, key in keys.items()}
    schedules = {
        "audio": coclr_schedule("audio", 2),
        "both": oracle_schedule(("rgb", "audio"), 2),
        "cascade": parse_schedule("audio:4,rgb:2"),
    }
    mined = view_mask.mine(anchors, queue, schedules, videos, videos)
    for b, video in enumerate(videos.tolist()):
        rgb, sound = keys["rgb"] @ keys["rgb"][video], keys["audio"] @ keys["audio"][video]
        others = [j for j in range(8) if j != video]
        best = lambda scores, among, k: sorted(among, key=lambda j: -float(scores[j]))[:k]  # noqa: B023, E731
        assert mined["audio"][b].tolist() == (best(sound, others, 2) if has[video] else [-1, -1])
        assert mined["both"][b].tolist() == best(rgb + sound, others, 2)
        survivors = best(sound, others, 4) if has[video] else others
        assert mined["cascade"][b].tolist() == best(rgb, survivors, 2)
    everyone = view_mask_of()
    for name, schedule in schedules.items():
        expected = cascade_topk(anchors, queue.views, schedule, query_ids=videos, key_ids=queue.ids)[0]
        got = everyone.mine(anchors, queue, {name: schedule}, videos, videos)[name]
        assert torch.equal(got, expected)


def test_retrieval_measures_a_view_where_it_is_and_counts_it_nowhere_else(sound_data, capsys):
    torch.manual_seed(0)
    encoders = {"rgb": new_encoder("r3d", 0.05, 0), "audio": new_encoder("resnet18", 0.05, 8)}
    protocol = Protocol(frames=8, crop=32, clips=2)
    recall = retrieval(sound_data, encoders, protocol)
    printed = capsys.readouterr().err
    assert "1 of 3 test videos have no audio: left out of its own figures" in " ".join(printed.split())
    assert set(recall) == {"rgb", "audio", "both"}
    assert recall["audio"][20] == recall["both"][20] == 1.0
    dataset = ClipDataset(sound_data, 8, 32, views=("rgb", "audio"), split="test")
    features = encode(dataset, encoders, protocol, CPU)
    mute = [dataset.manifest.videos[i].silence != "" for i in dataset.videos]
    assert [not row.any() for row in features["audio"]] == mute
