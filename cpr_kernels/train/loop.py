"""The training loop: one step after the other, each a function of config and step number, resumable at any
of them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import Interrupted, TrainError, parallel
from .augment import augmented
from .checkpoint import encoder_file, load, load_encoder, save, save_encoder
from .clips import Batch, ClipDataset, ClipSampler, clip_loader, default_workers
from .compute import device_of
from .config import Optim, TrainConfig, from_json, to_json
from .go_on import GoOn, MixedSampler, warm_start
from .interrupt import stop_flag
from .logs import RunLog
from .model import Inputs, MultiViewModel, new_encoders
from .plan import Moment, Phase, locate, make_plan, total_steps
from .progress import console, progress_bar
from .quality import MiningMeter, rival_schedules
from .store import write_atomically


@dataclass
class Trainer:
    """Everything a step touches."""

    config: TrainConfig
    device: torch.device
    dataset: ClipDataset
    sampler: ClipSampler
    plan: list[Phase]
    model: MultiViewModel
    optimizer: torch.optim.Adam
    meter: MiningMeter
    sources: Tensor  # [videos] int64, the source group of each


def pretrain(config: TrainConfig, resume: bool = False) -> Path:
    """Runs, or continues, a whole pretraining; returns the run's folder.

    The folder gets `config.json`, `checkpoint.pt` (after every epoch), `encoders/` (after every phase),
    `log.jsonl` and `mined.jsonl`. Ctrl-C writes a checkpoint first. Resumed on a CPU, the weights are those
    of a run that was never stopped, bit for bit.

    Raises:
        TrainError: a setting that cannot work, a folder that holds another run, nothing to resume.
        Interrupted: stopped by SIGINT or SIGTERM, resumable.
    """
    with parallel.process_group(config.device) as device:
        return _pretrain(config, resume, device)


def _pretrain(config: TrainConfig, resume: bool, device: str) -> Path:
    run = Path(config.out)
    state = _refuse_another(run, config, resume)
    trainer = build(config, device)
    writes = parallel.rank() == 0
    start = 0 if state is None else restore(trainer, state)
    parallel.wait_for_all()  # all have seen whether the folder is free
    if writes:
        write_atomically(run / "config.json", to_json(config).encode())
    end, began = total_steps(trainer.plan, trainer.sampler.steps_per_pass), time.perf_counter()
    log = RunLog(run, resume_at=start, writes=writes)
    with progress_bar(writes) as bar, stop_flag() as stop, log, torch.random.fork_rng(_cuda(trainer)):
        _seed(trainer, state)
        task = bar.add_task("pretrain", total=end, completed=start)
        if trainer.dataset.left_out and writes:
            bar.console.print(
                f"{trainer.dataset.left_out} videos are shorter than {config.clips.frames} frames: left out"
            )
        for step, batch in enumerate(_batches(trainer, start, end), start=start):
            moment = locate(trainer.plan, trainer.sampler.steps_per_pass, step)
            figures = run_step(trainer, moment, step, batch, log)
            rate = 2 * config.clips.batch * (step + 1 - start) / (time.perf_counter() - began)
            name = trainer.plan[moment.phase].name
            bar.update(task, advance=1, status=f"{rate:.0f} clips/s  {name}{_brief(figures)}")
            stopping = parallel.any_rank(bool(stop), trainer.device)
            if moment.ends_epoch or moment.ends_phase or stopping or step == end - 1:
                _keep(trainer, moment, step, log, writes)
            if stopping:
                raise Interrupted(
                    f"stopped after step {step + 1} of {end}; continue with: cpr pretrain --resume {run}"
                )
    return run


def _keep(trainer: Trainer, moment: Moment, step: int, log: RunLog, writes: bool) -> None:
    """The checkpoint after a step, and the encoders at the end of a phase, when all ranks agree on them."""
    model, run = trainer.model, Path(trainer.config.out)
    parallel.check_same(
        {"online encoders": model.online, "momentum encoders": model.momentum, "queue": model.queue},
        trainer.device,
    )  # fmt: skip
    if writes:
        if moment.ends_phase:
            _save_encoders(trainer, moment, run)
        log.flush()
        save(run / "checkpoint.pt", snapshot(trainer, step + 1))
    parallel.wait_for_all()


def build(config: TrainConfig, device_name: str | None = None) -> Trainer:
    """Data, plan, model and optimiser of a config; reads the data set, writes nothing."""
    config.check()
    parallel.share_of(config.clips.batch)
    device = device_of(device_name or config.device)
    clips = config.clips
    dataset = ClipDataset(
        config.data, clips.frames, clips.crop, views=config.views, min_area=config.augment.min_area,
        cache_mb=clips.cache_mb,
    )  # fmt: skip
    note = None if config.goes_on is None else GoOn.load(config.goes_on)
    order = (clips.batch, config.seed, parallel.rank(), parallel.world())
    sampler = ClipSampler(len(dataset), *order) if note is None else MixedSampler(dataset, note, *order)
    videos = dataset.manifest.videos
    classes = torch.tensor([video.label for video in videos])
    model = MultiViewModel(config, _initial_encoders(config), classes).to(device)
    if note is not None:
        warm_start(model, note)
    plan = make_plan(config)
    names = ["mined", *rival_schedules(config.views, config.mining.topk)]
    return Trainer(
        config=config,
        device=device,
        dataset=dataset,
        sampler=sampler,
        plan=plan,
        model=model,
        optimizer=_optimizer(config, model, plan[0]),
        meter=MiningMeter(dataset.manifest, names, device),
        sources=torch.tensor([video.group for video in videos], device=device),
    )


def run_step(trainer: Trainer, moment: Moment, step: int, batch: Batch, log: RunLog) -> dict[str, Any]:
    """One step: fills the queue, or trains on a batch; returns its figures."""
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
    own = torch.rand(len(inputs.videos), generator=generator) >= config.mining.own_drop
    full = moment.step_in_phase * config.clips.batch >= config.queue
    measured = rival_schedules(config.views, phase.topk) if full else {}
    entries = model.queue.labels.clone()  # which video each entry holds, before this batch replaces some
    trainer.optimizer.zero_grad(set_to_none=True)
    result = model.train_step(inputs, phase, measured, own.to(trainer.device) if phase.schedule else None)
    losses = parallel.means([float(loss) for loss in result.losses.values()], trainer.device)
    figures = {f"loss_{view}": loss for view, loss in zip(result.losses, losses)}
    if not all(math.isfinite(loss) for loss in losses):
        raise TrainError(
            f"step {step}: the loss is not finite ({figures}); lower --optim.lr or raise --optim.temperature"
        )
    for group in trainer.optimizer.param_groups:
        group["lr"] = learning_rate(config.optim, phase, moment)
    trainer.optimizer.step()
    videos = parallel.gathered(inputs.videos)
    mined = {name: parallel.gathered(indices) for name, indices in result.mined.items()}
    for name, indices in mined.items():
        figures[f"pmr_{name}"] = trainer.meter.update(name, indices, videos, entries)
    figures["seconds"] = time.perf_counter() - began
    facts = {"step": step, "phase": phase.name, "epoch": moment.epoch}
    log.step(facts, figures)
    if moment.ends_epoch:
        log.epoch(facts, trainer.meter.summary())
        log.mined(facts, videos, {name: mined_videos(indices, entries) for name, indices in mined.items()})
        trainer.meter.reset()
    return figures


def _inputs(trainer: Trainer, batch: Batch, step: int) -> tuple[Inputs, torch.Generator]:
    """This rank's augmented share of the batch, and the generator of its further draws."""
    config, rank = trainer.config, parallel.rank()
    own = (config.seed, 2, step, rank) if rank else (config.seed, 2, step)
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence(own).generate_state(1)[0]))
    clips = augmented(batch, trainer.dataset.views, config.augment, generator, trainer.device)
    videos = batch["video"].to(trainer.device)
    common = int(np.random.SeedSequence((config.seed, 4, step)).generate_state(1)[0])
    return Inputs(clips, trainer.sources[videos], videos, common), generator


def learning_rate(optim: Optim, phase: Phase, moment: Moment) -> float:
    """The rate at a training step of a phase: warm-up, then constant, then a tenth."""
    full = optim.lr if phase.pretrains or optim.cycle_lr is None else optim.cycle_lr
    grown = min(1.0, (moment.step_in_phase - phase.fill_steps + 1) / max(optim.warmup, 1))
    return full * grown * (0.1 if moment.progress >= optim.decay_at else 1.0)


def mined_videos(indices: Tensor, entries: Tensor) -> Tensor:
    """The videos [B, k] of mined entries [B, k]; padding stays -1."""
    return torch.where(indices >= 0, entries[indices.clamp(min=0)], -1)


def snapshot(trainer: Trainer, step: int) -> dict[str, Any]:
    """Everything that the next step depends on, as tensors and plain values.

    There is no scheduler, since the rate is a function of the step, and no loss scaler, since bfloat16 needs none.
    """
    trainer.sampler.position = step
    return {
        "step": step,
        "config": to_json(trainer.config),
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "meter": trainer.meter.state_dict(),
        "sampler": trainer.sampler.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": [torch.cuda.get_rng_state(device) for device in _cuda(trainer)],
        "torch": str(torch.__version__),
    }


def restore(trainer: Trainer, state: dict[str, Any]) -> int:
    """Puts a snapshot back; returns the step to go on with."""
    try:
        return _restore(trainer, state)
    except (RuntimeError, KeyError, ValueError, IndexError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainError(
            f"resume: {trainer.config.out / 'checkpoint.pt'} is not of this run's model ({reason})"
        ) from None


def _restore(trainer: Trainer, state: dict[str, Any]) -> int:
    step = int(state["step"])
    trainer.sampler.load_state_dict(state["sampler"])
    trainer.model.load_state_dict(state["model"])
    phase = trainer.plan[locate(trainer.plan, trainer.sampler.steps_per_pass, step - 1).phase]
    trainer.model.set_modes(phase)
    trainer.optimizer = _optimizer(trainer.config, trainer.model, phase)
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.meter.load_state_dict(state["meter"])
    return step


def _seed(trainer: Trainer, state: dict[str, Any] | None) -> None:
    """Torch's own generators: from the config's seed, or as they were. No draw of ours comes from them."""
    if state is None:
        torch.manual_seed(trainer.config.seed)
        return
    torch.set_rng_state(state["rng"])
    for device, saved in zip(_cuda(trainer), state["cuda_rng"]):
        torch.cuda.set_rng_state(saved, device)


def _cuda(trainer: Trainer) -> list[torch.device]:
    return [trainer.device] if trainer.device.type == "cuda" else []


def config_of(run: Path) -> TrainConfig:
    """The config that a run was started with."""
    path = run / "config.json"
    if not path.is_file():
        raise TrainError(f"run: {run} holds no run (no config.json)")
    return from_json(path.read_text())


def _refuse_another(run: Path, config: TrainConfig, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from, if there is one; refuses to mix two runs."""
    known = (run / "config.json").is_file()
    if not resume:
        if known:
            raise TrainError(
                f"out: {run} holds a run already; continue it with --resume {run}, or give another --out"
            )
        return None
    if not known:
        raise TrainError(f"resume: {run} holds no run (no config.json)")
    if to_json(config_of(run)) != to_json(config):
        raise TrainError(
            f"resume: the settings differ from {run / 'config.json'}; resume with the run's own settings"
        )
    return load(run / "checkpoint.pt") if (run / "checkpoint.pt").is_file() else None


def _initial_encoders(config: TrainConfig) -> dict[str, nn.Module]:
    encoders = new_encoders(config)
    for view, path in config.init.items():
        loaded = load_encoder(path, say=console().print if parallel.rank() == 0 else None)
        got, wanted = (
            [getattr(encoder, name) for name in ("architecture", "width", "embedding")]
            for encoder in (loaded, encoders[view])
        )
        if got != wanted:
            raise TrainError(
                f"init: {path} is a {got[0]} of width {got[1]} and embedding {got[2]}, the run's {view} encoder "
                f"a {wanted[0]} of {wanted[1]} and {wanted[2]}; set --backbone, --width and --embedding to match"
            )
        encoders[view] = loaded
    return encoders


def _optimizer(config: TrainConfig, model: MultiViewModel, phase: Phase) -> torch.optim.Adam:
    parameters = [p for view in phase.train for p in model.online[view].parameters()]
    return torch.optim.Adam(parameters, lr=config.optim.lr, weight_decay=config.optim.weight_decay)


def _batches(trainer: Trainer, start: int, end: int) -> Iterator[Batch]:
    workers = trainer.config.clips.workers
    trainer.sampler.position = start
    loader = clip_loader(trainer.dataset, trainer.sampler, default_workers() if workers < 0 else workers)
    if start < end:
        yield from (batch for batch, _ in zip(loader, range(start, end)))


def _save_encoders(trainer: Trainer, moment: Moment, run: Path) -> None:
    phase = trainer.plan[moment.phase]
    for view, encoder in trainer.model.online.items():
        save_encoder(encoder_file(run, moment.phase, phase.name, view), encoder, view, phase=phase.name)


def _brief(figures: dict[str, Any]) -> str:
    parts = [
        f" {key.removeprefix('loss_')} loss {value:.2f}"
        for key, value in figures.items()
        if key.startswith("loss")
    ]
    if "pmr_mined" in figures:
        parts.append(f" PMR {figures['pmr_mined']:.2f}")
    return "".join(parts)
