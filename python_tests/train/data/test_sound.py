"""Sound tracks of real files, made here: decoding, resampling, alignment, and the spectrogram of known sounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from places import SHARED_DATA
from sound_files import av, sine, write

from cpr_kernels.networks.resnet import ResNet18, SpectrogramEncoder
from cpr_kernels.train.data.sound import (
    BANDS,
    RATE,
    NoSound,
    hz_to_mel,
    log_mel,
    mel_bank,
    mel_to_hz,
    packed_spectrogram,
    read_sound,
    unpacked_spectrogram,
)  # fmt: skip


def loudest_hz(spectrogram):
    centres = mel_to_hz(np.linspace(0, float(hz_to_mel(np.array(RATE / 2))), BANDS + 2))[1:-1]
    return centres[spectrogram.astype(float).mean(axis=1).argmax()]


def test_the_mel_scale_and_its_bank():
    assert hz_to_mel(np.array([0, 500, 1000, 6400])) == pytest.approx([0, 7.5, 15, 42])
    hz = np.linspace(0, RATE / 2, 50)
    assert mel_to_hz(hz_to_mel(hz)) == pytest.approx(hz)
    bank = mel_bank()
    assert (bank.sum(axis=1) > 0).all()  # no band without a bin
    inner = slice(5, -20)
    assert bank.sum(axis=0)[inner] == pytest.approx(1, abs=1e-9)  # triangles overlap by half


@pytest.mark.parametrize("hz", [200, 440, 1000, 3000, 7000])
def test_a_sine_is_loud_in_its_band_and_nowhere_else(hz):
    picture = log_mel(sine(hz, 1.0, level=1.0))
    assert picture.shape == (BANDS, 100)
    assert loudest_hz(picture) == pytest.approx(hz, rel=0.07)
    middle = picture[:, 10:-10].astype(float)
    assert 235 <= middle.max() <= 255  # full scale is 0 dB, where a band holds all of it
    assert (middle > 200).mean() < 0.2


def test_levels_are_decibels_and_a_stored_picture_comes_back():
    loud, quiet = (log_mel(sine(1000, 0.5, level=level)).max().astype(int) for level in (0.5, 0.05))
    assert loud - quiet == pytest.approx(20 * 255 / 90, abs=1)
    picture = log_mel(sine(440, 0.3))
    assert np.array_equal(unpacked_spectrogram(packed_spectrogram(picture)), picture)


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_any_sample_rate_becomes_ours(rate, tmp_path):
    path = write(tmp_path / "clip.mkv", [(sine(1000, 2.0, rate), rate)])
    sound = read_sound(path, 2.0)
    assert len(sound) == 2 * RATE
    assert np.abs(sound[2000:-2000]).max() == pytest.approx(0.5, abs=0.03)
    assert loudest_hz(log_mel(sound)) == pytest.approx(1000, rel=0.06)


def test_sound_covers_its_part_and_lies_where_its_stamps_say(tmp_path):
    path = write(tmp_path / "late.mkv", [(sine(1000, 1.0), RATE)], start=0.5)
    sound = read_sound(path, 2.0)
    assert len(sound) == 2 * RATE  # longer than the track
    heard = np.flatnonzero(np.abs(sound) > 0.1) / RATE
    assert heard[0] == pytest.approx(0.5, abs=0.01)
    assert heard[-1] == pytest.approx(1.5, abs=0.01)
    assert len(read_sound(path, 0.8)) == round(0.8 * RATE)
    assert np.array_equal(read_sound(path, 1.0, begin=0.5), sound[RATE // 2 : 3 * RATE // 2])


def test_a_sample_rate_that_changes_is_followed(tmp_path, monkeypatch):
    from cpr_kernels.train.data import sound as module

    def frames(rate, hz):
        for part in np.split(sine(hz, 1.0, rate), 10):
            frame = av.AudioFrame.from_ndarray(part[None], "fltp", "mono")
            frame.sample_rate = rate
            yield frame

    both = [*frames(16000, 1000), *frames(32000, 3000)]
    placed = list(module._placed(iter(both), None, 600.0))
    assert [at for at, _ in placed] == np.cumsum([0, *(len(part) for _, part in placed)])[:-1].tolist()
    sound = np.concatenate([part for _, part in placed])
    assert len(sound) == pytest.approx(2 * RATE, abs=64)
    assert loudest_hz(log_mel(sound[: RATE - 500])) == pytest.approx(1000, rel=0.06)
    assert loudest_hz(log_mel(sound[RATE + 500 :])) == pytest.approx(3000, rel=0.06)


def test_no_usable_sound_says_why(tmp_path):
    mute = write(tmp_path / "mute.mkv", [])
    silent = write(tmp_path / "silent.mkv", [(sine(440, 2.0, level=1e-4), RATE)])
    spoilt = write(tmp_path / "spoilt.mkv", [(sine(440, 2.0), RATE)], codec="flac")
    body = bytearray(spoilt.read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, len(body) - 1500, dtype=np.uint8)
    body[1500:] = noise.tobytes()
    spoilt.write_bytes(bytes(body))
    for path, says in ((mute, "no sound track"), (silent, "silent sound track"), (spoilt, "sound track")):
        with pytest.raises(NoSound, match=says):
            read_sound(path, 2.0)


def test_a_real_clip_has_a_sound():
    clip = (
        next((SHARED_DATA / "ucf101" / "BasketballDunk").glob("*.mp4"), None)
        if SHARED_DATA.is_dir()
        else None
    )
    if clip is None:
        pytest.skip("needs the real clips of ../shared/data")
    picture = log_mel(read_sound(clip, 1.7))
    assert picture.shape == (BANDS, 170)
    assert 10 < picture.mean() < 245
    assert picture.std() > 10


def test_the_network_is_resnet_18():
    network = ResNet18()
    assert (
        sum(p.numel() for p in network.parameters()) == 11_176_512 - 2 * 64 * 49
    )  # one channel in, not three
    assert network(torch.zeros(2, 1, 128, 128)).shape == (2, 512, 4, 4)
    assert "layer2.0.downsample.0.weight" in network.state_dict()
    encoder = SpectrogramEncoder(width=0.125, embedding=7)
    image = torch.randn(3, 1, 128, 128)
    assert encoder(image).shape == (3, 7)
    assert encoder(image).norm(dim=1).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    assert encoder.features(image).shape == (3, encoder.feature_size) == (3, 64)
