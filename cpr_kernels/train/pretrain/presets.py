"""Defines named settings: the papers' and small ones, alone or combined as in small+cpr7."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .. import TrainError
from ..views.augment import Augment
from .config import Clips, Mining, Optim, TrainConfig


def paper() -> dict[str, Any]:
    """Uses the papers' UCF101 setting: 32 frames of 128 px, S3D, queue 2,048, 300 epochs, 2 cycles of 100; for GPUs."""
    return {}


def k400() -> dict[str, Any]:
    """Uses the papers' Kinetics setting: a queue of 16,384, 200 epochs and one cycle of 50. Needs many GPUs."""
    return {"queue": 16384, "infonce_epochs": 200, "cycles": 1, "cycle_epochs": 50}


def small() -> dict[str, Any]:
    """Fits two CPU cores: a quarter of the channels, 8 frames of 64 px, queue 256; 1,000 videos take an hour."""
    return {
        "infonce_epochs": 30,
        "cycles": 1,
        "cycle_epochs": 15,
        "queue": 256,
        "width": 0.25,
        "clips": Clips(frames=8, crop=64),
        "mining": Mining(stages=5),
        "optim": Optim(momentum=0.99, cycle_lr=2e-4, warmup=10),
    }


def modalities() -> dict[str, Any]:
    """Uses RGB, flow and sound: S3D and ResNet-18, 5 positives by the frozen views' sum, two cycles. Needs GPUs."""
    return {
        "views": ("rgb", "flow", "audio"),
        "clips": Clips(apart=True),
        "mining": Mining(method="coclr"),
    }


def iic() -> dict[str, Any]:
    """Uses IIC as published: R3D on 16 frames, RGB and residuals, 240 epochs of SGD; with CPR, 5 cycles of 20 more."""
    return {
        "framework": "iic",
        "views": ("rgb", "residual"),
        "backbone": "r3d",
        "infonce_epochs": 240,
        "cycles": 5,
        "cycle_epochs": 20,
        "clips": Clips(frames=16, batch=16),
        "mining": Mining(siblings="negative", progressive=True),
        "optim": Optim(
            algorithm="sgd", lr=0.01, weight_decay=1e-4, steps=(45 / 240, 90 / 240, 125 / 240, 160 / 240)
        ),
        "augment": Augment(min_area=0.57, flip=0.0, jitter=0.0, grey=0.0, blur=0.0),
    }


PRESETS = {"paper": paper, "k400": k400, "small": small, "modalities": modalities, "iic": iic}


# Methods of the same loop, to be added to a preset: small+coclr
METHOD_PRESETS: dict[str, dict[str, Any]] = {
    "infonce": {"method": "infonce"},
    "ubernce": {"method": "ubernce"},
    "coclr": {"method": "coclr"},
    "auto": {"method": "auto"},
    "cpr3": {"method": "cpr", "stages": 3},
    "cpr5": {"method": "cpr", "stages": 5},
    "cpr7": {"method": "cpr", "stages": 7},
    "progressive": {"method": "cpr", "progressive": True},
    "published": {"query": "online", "drop_own_positive": 0.9, "siblings": "positive"},
}


def preset(names: str) -> dict[str, Any]:
    """Returns the settings of a preset, or of one and methods added to it: paper, small+coclr, small+cpr3+published.

    progressive takes 5 cycles in the epochs of the preset's. published is what the published code does: the online
    embedding mines, and the own pair is left out of the positives nine times in ten.

    Raises:
        TrainError: a name that is none.
    """
    chosen_names = names.split("+")
    base = chosen_names.pop(0) if chosen_names[0] in PRESETS else "paper"
    settings = PRESETS[base]()
    for name in chosen_names:
        if name not in METHOD_PRESETS:
            raise TrainError(
                f"preset: must be one of {', '.join(PRESETS)}, or a method of {', '.join(METHOD_PRESETS)} "
                f"added with +, got {name!r}"
            )
        settings["mining"] = replace(settings.get("mining", Mining()), **METHOD_PRESETS[name])
        if name == "progressive":
            epochs = settings.get("cycles", 2) * settings.get("cycle_epochs", 100)
            settings.update(cycles=5, cycle_epochs=max(1, epochs // 5))
    return settings


def with_preset(name: str, **changes: Any) -> TrainConfig:
    """Returns a preset's config with changes; `data` must be among them."""
    settings = {**preset(name), **changes}
    return replace(TrainConfig(data=settings.pop("data")), **settings)
