"""Runs the training loop: each step is a function of config and step number, and a run can resume at any of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...progress import ProgressBar, say
from .. import Interrupted, TrainError
from ..batches.dataset import Batch, ClipDataset
from ..batches.loader import augmented, clip_batches
from ..batches.sampler import ClipSampler, MixedSampler
from ..encoders.weights import save_encoder
from ..runtime import ranks
from ..runtime.checkpoint import load, save
from ..runtime.device import check_finite, compiling, device_to_train_on
from ..runtime.lock import exclusive
from ..runtime.run_log import RunLog
from ..runtime.signals import stop_flag
from .co_training import Inputs, MultiViewModel, initial_encoders
from .config import TrainConfig, same_settings, to_json
from .iic import BankModel
from .mining.agreement import measured_agreement
from .mining.meter import MiningMeter, baseline_schedules
from .missing_views import MissingViewsModel, ViewMask
from .phases import Moment, Phase, learning_rate, locate, make_plan, second_clip_only, total_steps
from .run_folder import WarmStart, config_of, encoder_file, plan_file, save_config, warm_start


@dataclass
class Trainer:
    """Holds everything that a step reads or changes."""

    config: TrainConfig
    device: torch.device
    dataset: ClipDataset
    sampler: ClipSampler
    plan: list[Phase]
    model: MultiViewModel | BankModel
    optimizer: torch.optim.Optimizer
    view_mask: ViewMask
    meter: MiningMeter
    sources: Tensor  # [videos] int64, the source group of each


def pretrain(config: TrainConfig, resume: bool = False) -> Path:
    """Runs or resumes a whole pretraining; returns the run's folder.

    The folder gets `config.json`, `checkpoint.pt` (after every epoch), `encoders/` (after every phase),
    `log.jsonl` and `mined.jsonl`. Ctrl-C writes a checkpoint first. Resumed on a CPU, the weights are those
    of a run that was never stopped, bit for bit.

    Raises:
        TrainError: a setting that cannot work, a folder that holds another run, nothing to resume.
        Interrupted: stopped by SIGINT or SIGTERM, resumable.
    """
    with ranks.process_group(config.device) as device:
        return _pretrain(config, resume, device)


def _pretrain(config: TrainConfig, resume: bool, device: str) -> Path:
    run = Path(config.out)
    state = _refuse_another(run, config, resume)
    trainer = build(config, device)
    writes = ranks.rank() == 0
    start = 0 if state is None else restore(trainer, state)
    with exclusive(run, "train") if writes else nullcontext():
        ranks.wait_for_all()  # all have seen whether the folder is free
        if writes:
            save_config(trainer.config, trainer.dataset.manifest)
        _train(trainer, state, start, writes)
    return run


def _train(trainer: Trainer, state: dict[str, Any] | None, start: int, writes: bool) -> None:
    """Runs every step from `start` on, logs it and saves checkpoints."""
    config, run = trainer.config, Path(trainer.config.out)
    end, began = total_steps(trainer.plan, trainer.sampler.steps_per_pass), time.perf_counter()
    log = RunLog(run, start, writes, config.logger, json.loads(to_json(config)))
    bar = ProgressBar("pretrain", end, done=start, shown=None if writes else False)
    with bar, stop_flag() as stop, log, torch.random.fork_rng(_cuda(trainer)):
        _seed(trainer, state)
        if writes:
            _print_left_out(trainer, say)
        for step, batch in _steps(trainer, start, end, log):
            moment = locate(trainer.plan, trainer.sampler.steps_per_pass, step)
            with compiling(config.compile):
                figures = run_step(trainer, moment, step, batch, log)
            rate = 2 * config.clips.batch * (step + 1 - start) / (time.perf_counter() - began)
            name = trainer.plan[moment.phase].name
            bar.advance(status=f"{rate:.0f} clips/s  {name}{_status(figures)}")
            stopping = ranks.any_rank(bool(stop), trainer.device)
            if moment.ends_epoch or moment.ends_phase or stopping or step == end - 1:
                _save_checkpoint(trainer, moment, step, log, writes)
            if stopping:
                raise Interrupted(
                    f"stopped after step {step + 1} of {end}; continue with: cpr pretrain --resume {run}"
                )


def _print_left_out(trainer: Trainer, print_line: Callable[[str], None]) -> None:
    """Prints which videos are left out, or lack a view."""
    dataset, frames = trainer.dataset, trainer.config.clips.frames
    if not trainer.meter.classes:
        print_line("the data set has no classes: PMR and CMR of what is mined are not measured")
    if dataset.left_out:
        print_line(f"{dataset.left_out} videos are shorter than {frames} frames: left out")
    if dataset.without:
        print_line(f"{dataset.without} videos have no {' and no '.join(dataset.views)}: left out")
    for view, share in trainer.view_mask.missing.items():
        print_line(
            f"{100 * share:.1f} % of the training videos have no {view}: it scores 0 for them, and they do not train it"
        )


def _save_checkpoint(trainer: Trainer, moment: Moment, step: int, log: RunLog, writes: bool) -> None:
    """Saves the checkpoint after a step, and the encoders at the end of a phase, when all ranks agree on them."""
    model, run = trainer.model, Path(trainer.config.out)
    ranks.check_same(model.shared_state(), trainer.device)
    if writes:
        if moment.ends_phase:
            _save_encoders(trainer, moment, run)
        log.flush()
        save(run / "checkpoint.pt", snapshot(trainer, step + 1))
    ranks.wait_for_all()


def build(config: TrainConfig, device_name: str | None = None) -> Trainer:
    """Builds data, plan, model and optimiser of a config; reads the data set, writes nothing."""
    config.check()
    ranks.share_of(config.clips.batch)
    device = device_to_train_on(device_name or config.device, config.amp)
    clips = config.clips
    dataset = ClipDataset(
        config.data, clips.frames, clips.crop, views=config.views, min_area=config.augment.min_area,
        apart=clips.apart, cache_mb=clips.cache_mb,
    )  # fmt: skip
    view_mask = ViewMask(dataset.manifest, dataset.views, device)
    if config.framework == "iic":
        config = replace(config, queue=len(dataset))
    note = None if config.goes_on is None else WarmStart.load(config.goes_on)
    order = (clips.batch, config.seed, ranks.rank(), ranks.world())
    if note is None:
        sampler = ClipSampler(len(dataset), *order)
    else:
        sampler = MixedSampler(np.asarray(dataset.videos) < note.old_videos, note.old_share, *order)
    model = _model(config, dataset, view_mask).to(device)
    if note is not None:
        warm_start(model, note)
    plan = make_plan(config)
    if any(phase.supervised for phase in plan):
        dataset.manifest.need_classes(config.data, f"mining.method {config.mining.method}")
    stored = {name: view.stored for name, view in dataset.views.items()}
    sampler.second_only = partial(second_clip_only, config, plan, sampler.steps_per_pass, stored)
    names = ["mined", *baseline_schedules(config.views, config.mining.topk)]
    return Trainer(
        config=config,
        device=device,
        dataset=dataset,
        sampler=sampler,
        plan=plan,
        model=model,
        optimizer=_optimizer(config, model, plan[0]),
        view_mask=view_mask,
        meter=MiningMeter(dataset.manifest, names, device),
        sources=torch.tensor([video.group for video in dataset.manifest.videos], device=device),
    )


def run_step(trainer: Trainer, moment: Moment, step: int, batch: Batch, log: RunLog) -> dict[str, Any]:
    """Runs one step: fills the queue, or trains on a batch; returns its figures."""
    config, phase, model = trainer.config, trainer.plan[moment.phase], trainer.model
    began = time.perf_counter()
    if step == 0 and config.goes_on is not None:
        model.set_modes(phase)  # momentum encoders and queue stay those of the run before
    elif moment.starts_phase:
        model.start_phase(phase)
        trainer.optimizer = _optimizer(config, model, phase)
        trainer.meter.reset()
    inputs, generator = _inputs(trainer, batch, step)
    if step == 0:
        model.calibrate(inputs)
    if moment.epoch < 0:
        model.fill_step(inputs, phase)
        return {}
    if phase.tuned and model.tuned:
        file = plan_file(config.out, moment.phase, phase.name)
        model.tuned.prepare(phase, moment.step_in_phase - phase.fill_steps, file)
    own = torch.rand(len(inputs.videos), generator=generator) >= config.mining.drop_own_positive
    has_others = phase.mines or phase.supervised  # positives beside the own pair
    full = model.is_full(moment.step_in_phase * config.clips.batch, moment.phase)
    measured = baseline_schedules(config.views, phase.topk) if full else {}
    entries = model.held_videos.clone()  # before this batch replaces some
    trainer.optimizer.zero_grad(set_to_none=True)
    result = model.train_step(inputs, phase, measured, own.to(trainer.device) if has_others else None)
    losses = ranks.means([float(loss) for loss in result.losses.values()], trainer.device)
    figures = {f"loss_{view}": loss for view, loss in zip(result.losses, losses)}
    check_finite(step, figures, model.trained_parameters(phase))
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate(config.optim, phase, moment)
    trainer.optimizer.step()
    videos = ranks.gathered(inputs.videos)
    mined = {name: ranks.gathered(indices) for name, indices in result.mined.items()}
    for name, indices in mined.items():
        if trainer.meter.classes:
            figures[f"pmr_{name}"] = trainer.meter.update(name, indices, videos, entries)
    figures["seconds"] = time.perf_counter() - began
    facts = {"step": step, "phase": phase.name, "epoch": moment.epoch}
    if trainer.view_mask.missing and moment.ends_epoch:
        facts["missing"] = trainer.view_mask.missing
    log.step(facts, figures)
    if moment.ends_epoch:
        agreed = measured_agreement(model.mines_by(phase), *model.entries, config.seed) if full else {}
        log.epoch(facts, trainer.meter.summary(), agreed)
        log.mined(facts, videos, {name: mined_videos(indices, entries) for name, indices in mined.items()})
        trainer.meter.reset()
    return figures


def _inputs(trainer: Trainer, batch: Batch, step: int) -> tuple[Inputs, torch.Generator]:
    """Returns this rank's augmented share of the batch, and the generator of its further draws."""
    config, rank = trainer.config, ranks.rank()
    own = (config.seed, 2, step, rank) if rank else (config.seed, 2, step)
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(own).generate_state(1)[0]))
    clips = augmented(batch, trainer.dataset.views, config.augment, generator, trainer.device)
    videos = batch["video"].to(trainer.device)
    common = int(np.random.SeedSequence((config.seed, 4, step)).generate_state(1)[0])
    return Inputs(clips, trainer.sources[videos], videos, common), generator


def mined_videos(indices: Tensor, entries: Tensor) -> Tensor:
    """Returns the videos [B, k] of mined entries [B, k]; padding stays -1."""
    return torch.where(indices >= 0, entries[indices.clamp(min=0)], -1)


def snapshot(trainer: Trainer, step: int) -> dict[str, Any]:
    """Returns everything that the next step depends on, as tensors and plain values.

    There is no scheduler, since the rate is a function of the step, and no loss scaler, since bfloat16 needs none.
    """
    trainer.sampler.position = step
    return {
        "step": step,
        "config": to_json(trainer.config),
        "model": trainer.model.state_dict(),
        "tuned": trainer.model.tuned.state_dict() if trainer.model.tuned else {},
        "optimizer": trainer.optimizer.state_dict(),
        "meter": trainer.meter.state_dict(),
        "sampler": trainer.sampler.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": [torch.cuda.get_rng_state(device) for device in _cuda(trainer)],
        "torch": str(torch.__version__),
    }


def restore(trainer: Trainer, state: dict[str, Any]) -> int:
    """Loads a snapshot; returns the step to resume at."""
    try:
        return _restore(trainer, state)
    except Exception as error:  # torch raises many kinds for a state of another shape
        if isinstance(error, TrainError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise TrainError(
            f"resume: {trainer.config.out / 'checkpoint.pt'} is not of this run's model ({reason})"
        ) from None


def _restore(trainer: Trainer, state: dict[str, Any]) -> int:
    step, last = state["step"], total_steps(trainer.plan, trainer.sampler.steps_per_pass)
    if not isinstance(step, int) or not 0 < step <= last or not isinstance(state["rng"], Tensor):
        raise ValueError(f"step {step!r} is none of 1 to {last}, or the random state is missing")
    torch.Generator().set_state(state["rng"])  # refuses what `_seed` could not use
    trainer.sampler.load_state_dict(state["sampler"])
    trainer.model.load_state_dict(state["model"])
    if trainer.model.tuned:
        trainer.model.tuned.load_state_dict(state.get("tuned", {}))  # version 0.1 wrote none
    phase = trainer.plan[locate(trainer.plan, trainer.sampler.steps_per_pass, step - 1).phase]
    trainer.model.set_modes(phase)
    trainer.optimizer = _optimizer(trainer.config, trainer.model, phase)
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.meter.load_state_dict(state["meter"])
    return step


def _seed(trainer: Trainer, state: dict[str, Any] | None) -> None:
    """Seeds torch's own generators, or restores them. The trainer's own draws come from other generators."""
    if state is None:
        torch.manual_seed(trainer.config.seed)
        return
    torch.set_rng_state(state["rng"])
    for device, saved in zip(_cuda(trainer), state["cuda_rng"]):
        torch.cuda.set_rng_state(saved, device)


def _cuda(trainer: Trainer) -> list[torch.device]:
    return [trainer.device] if trainer.device.type == "cuda" else []


def _refuse_another(run: Path, config: TrainConfig, resume: bool) -> dict[str, Any] | None:
    """Returns the checkpoint to resume from, if there is one; refuses to mix two runs."""
    known = (run / "config.json").is_file()
    if not resume:
        if known:
            raise TrainError(
                f"out: {run} holds a run already; continue it with --resume {run}, or give another --out"
            )
        return None
    if not known:
        raise TrainError(f"resume: {run} holds no run (no config.json)")
    before = config_of(run)
    if before.data.resolve() != Path(config.data).resolve():  # the data set was moved: its videos decide
        before = config_of(run, Path(config.data))
    if not same_settings(before, config):
        raise TrainError(
            f"resume: the settings differ from {run / 'config.json'}; resume with the run's own settings"
        )
    return load(run / "checkpoint.pt") if (run / "checkpoint.pt").is_file() else None


def _model(config: TrainConfig, dataset: ClipDataset, view_mask: ViewMask) -> MultiViewModel | BankModel:
    videos, encoders = dataset.manifest.videos, initial_encoders(config)
    if ranks.world() > 1 and (config.framework == "iic" or view_mask.missing):
        what = (
            "framework iic" if config.framework == "iic" else f"videos without {', '.join(view_mask.missing)}"
        )
        raise TrainError(f"torchrun: {what} can be trained in one process only; start it without torchrun")
    if config.framework == "iic":
        return BankModel(config, encoders[config.views[0]], torch.tensor(dataset.videos), len(videos))
    classes = torch.tensor([video.label for video in videos])
    if view_mask.missing:
        return MissingViewsModel(config, encoders, classes, view_mask)
    return MultiViewModel(config, encoders, classes)


def _optimizer(config: TrainConfig, model: MultiViewModel | BankModel, phase: Phase) -> torch.optim.Optimizer:
    parameters, optim = model.trained_parameters(phase), config.optim
    if optim.algorithm == "sgd":
        return torch.optim.SGD(
            parameters, lr=optim.lr, momentum=optim.sgd_momentum, weight_decay=optim.weight_decay
        )
    return torch.optim.Adam(parameters, lr=optim.lr, weight_decay=optim.weight_decay, fused=True)


def _batches(trainer: Trainer, start: int, end: int) -> Iterator[Batch]:
    trainer.sampler.position = start
    return clip_batches(trainer.dataset, trainer.sampler, trainer.config.clips.workers, end - start)


def _steps(trainer: Trainer, start: int, end: int, log: RunLog) -> Iterator[tuple[int, Batch]]:
    """Yields (step, batch). Where stored data are damaged, a run of one process saves a checkpoint first."""
    step = start
    try:
        for batch in _batches(trainer, start, end):
            yield step, batch
            step += 1
    except TrainError as error:
        if step == start or ranks.world() > 1:  # nothing new, or the other ranks are at work
            raise
        log.flush()
        save((run := Path(trainer.config.out)) / "checkpoint.pt", snapshot(trainer, step))
        raise TrainError(
            f"{error}; step {step} is saved: then continue with cpr pretrain --resume {run}"
        ) from None


def _save_encoders(trainer: Trainer, moment: Moment, run: Path) -> None:
    phase = trainer.plan[moment.phase]
    for view, encoder in trainer.model.online.items():
        save_encoder(encoder_file(run, moment.phase, phase.name, view), encoder, view, phase=phase.name)


def _status(figures: dict[str, Any]) -> str:
    parts = [
        f" {key.removeprefix('loss_')} loss {value:.2f}"
        for key, value in figures.items()
        if key.startswith("loss")
    ]
    if "pmr_mined" in figures:
        parts.append(f" PMR {figures['pmr_mined']:.2f}")
    return "".join(parts)
