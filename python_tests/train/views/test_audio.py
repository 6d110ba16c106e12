"""The audio view: from prepared videos to spectrogram clips, and how they are augmented."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from train_sets import DRAFT

from cpr_kernels.networks import new_encoder
from cpr_kernels.train import TrainError
from cpr_kernels.train.data.manifest import Manifest, Video
from cpr_kernels.train.data.prepare import prepare
from cpr_kernels.train.data.sound import BANDS, COLUMNS
from cpr_kernels.train.data.store import FrameStore
from cpr_kernels.train.views import KNOWN
from cpr_kernels.train.views.audio import Audio, warped
from cpr_kernels.train.views.augment import Augment, Draws

AUDIO = Audio()


def video_of(frames):
    return Video("v", 0, 0, "train", frames, "")


def test_prepare_keeps_the_sound_and_says_who_has_none(sound_data):
    manifest, store = Manifest.load(sound_data), FrameStore(sound_data)
    for video in manifest.videos:
        mute = manifest.classes[video.label] == "mute"
        assert video.silence == ("no sound track" if mute else "")
        assert KNOWN["audio"].has(video) is not mute
        if mute:
            with pytest.raises(TrainError, match=r"no sound of .*mute.* is stored"):
                store.spectrogram(video.id)
        else:
            picture = store.spectrogram(video.id)
            assert picture.shape == (BANDS, round((video.frames) / 25 * 100))
            assert (picture.mean(axis=1).argmax() < 40) == (manifest.classes[video.label] == "low")


def test_prepare_again_keeps_all_and_an_old_data_set_is_silent(sound_data, clip_folder, tmp_path):
    prepare(clip_folder, tmp_path, DRAFT)
    again = prepare(clip_folder, tmp_path, DRAFT)
    assert (again.stored, again.kept) == (0, 72)
    body = json.loads((tmp_path / "manifest.json").read_text())
    body["version"] = 1
    del body["sha256_of_rest"]
    for video in body["videos"]:
        del video["silence"]
    (tmp_path / "manifest.json").write_text(json.dumps(body))
    assert not AUDIO.has(Manifest.load(tmp_path).videos[0])


@pytest.mark.parametrize(
    ("start", "count", "left"), [(0, 8, 0), (50, 8, 152), (92, 8, 272), (34, 32, 136), (0, 100, None)]
)
def test_a_clip_hears_what_is_around_its_middle(start, count, left):
    whole = np.tile(np.arange(400) % 256, (BANDS, 1)).astype(np.uint8)  # 100 frames, 4 columns each
    part = AUDIO.part(whole, video_of(100), start, count)
    if left is None:
        assert np.array_equal(part, whole)
        assert np.array_equal(AUDIO.clip(part, 64), whole[:, 136:264])
        last = AUDIO.clip(part, 64, np.ones(4))
        assert np.array_equal(last, whole[:, -COLUMNS:])
    else:
        assert part.shape == (BANDS, COLUMNS)
        assert np.array_equal(AUDIO.clip(part, 64), whole[:, left : left + COLUMNS])


def test_a_short_sound_is_filled_up_with_its_mean():
    whole = np.full((BANDS, 37), 9, np.uint8)
    whole[:64] = 51
    clip = AUDIO.clip(AUDIO.part(whole, video_of(9), 0, 8), 64)
    assert clip.shape == (BANDS, COLUMNS)
    assert (clip[:, :45] == 30).all()
    assert np.array_equal(clip[:, 45:82], whole)
    assert (clip[:, 82:] == 30).all()


def test_a_warp_moves_sound_along_time_and_keeps_its_ends_and_order():
    ramp = torch.arange(128.0).expand(1, 1, 3, 128)
    assert torch.equal(warped(ramp, torch.zeros(1, 1, 5)), ramp)
    shifts = torch.tensor([[[10.0, -10.0, 10.0, 0.0, -10.0]]])
    moved = warped(ramp, shifts)[0, 0, 1]  # what each column shows: its source time
    assert moved[0] == 0
    assert moved[-1] == 127
    assert (moved.diff() > 0).all()
    assert (moved - torch.arange(128.0)).abs().max() == pytest.approx(10, abs=0.5)


def test_augmentation_masks_one_time_span_and_one_band_span_with_the_mean():
    generator = torch.Generator().manual_seed(0)
    clips = torch.randint(0, 256, (2, 20, BANDS, COLUMNS), generator=generator, dtype=torch.uint8)
    how = Augment(warp=0.0)
    draws = Draws(torch.zeros(9, 2, 20), generator)
    made, plain = AUDIO.augmented(clips, draws, how), AUDIO.plain(clips)
    assert made.shape == plain.shape == (2, 20, 1, BANDS, COLUMNS)
    spans = []
    for got, before in zip(made.flatten(0, 1)[:, 0], plain.flatten(0, 1)[:, 0]):
        changed = got != before
        assert got[changed].unique().numel() <= 1
        if changed.any():
            assert got[changed][0] == pytest.approx(before.mean().item(), abs=1e-4)
        columns, bands = changed.all(dim=0), changed.all(dim=1)
        for along in (columns, bands):
            assert (along.int().diff() != 0).sum() <= 2  # one run
            spans.append(int(along.sum()))
        assert torch.equal(changed, columns[None, :] | bands[:, None])
    assert max(spans) <= 24
    assert min(spans) == 0
    assert len(set(spans)) > 10
    unchanged = AUDIO.augmented(clips, draws, Augment(warp=0.0, time_mask=0, band_mask=0))
    assert torch.equal(unchanged, plain)


def test_its_encoder_is_resnet_18_whatever_encodes_the_frames(sound_data, tmp_path):
    encoder = AUDIO.encoder("r3d", 0.05, 16)
    assert encoder.architecture == "resnet18"
    assert (encoder.embedding, encoder.width) == (16, 0.05)
    again = new_encoder(encoder.architecture, encoder.width, encoder.embedding)
    again.load_state_dict(encoder.state_dict())
