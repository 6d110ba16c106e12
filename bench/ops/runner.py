"""Runs one op on its workloads: gate, then time, then memory; the result is one JSON-ready document."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch

from ..harness.machine import Ceilings, ceilings, commit, describe, versions
from ..harness.memory import cannot_measure, peak_of
from ..harness.peer import OURS, Call, Op, Peer, Settings
from ..harness.text import duration
from ..harness.timing import Sampler, Timing, cold, cpu_sampler, cuda_sampler, graphed, interleave, quantile
from ..harness.workloads import Workload
from .goals import judged
from .memory_process import peaks

FORMAT = 1
Say = Callable[[str], None]


def _row(workload: Workload, peer: str, mode: str, status: str, reason: str = "") -> dict[str, Any]:
    """Returns a result row; `status` is "ok", "not run" (with the reason) or "refused" (a wrong answer, no number).

    `whole` is False for peers that do a part of the work only.
    """
    return {
        "workload": workload.name,
        "peer": peer,
        "mode": mode,
        "status": status,
        "reason": reason,
        **dict.fromkeys(("median_s", "p20_s", "p80_s", "times_ours", "times_ours_p20", "times_ours_p80")),
        "whole": True,
        "turns": 0,
        "calls_a_turn": 0,
        "peak_bytes": None,
    }


def _samplers(peer: Peer, call: Call, settings: Settings) -> tuple[dict[str, Sampler], dict[str, str]]:
    """Returns how a peer is timed on this device, by mode; and the modes that cannot be, with the reason."""
    if settings.device == "cpu":
        found: dict[str, Sampler] = {"warm": cpu_sampler(call)}
        if settings.cold:
            found["cold"] = cold(call, "cpu")
        return found, {}
    found, missing = {"eager": cuda_sampler(call)}, {}
    if not peer.graphable:
        return found, {"graph": "a CUDA graph cannot hold this call"}
    try:
        replay = graphed(call)
    except RuntimeError as error:
        missing["graph"] = f"capture failed: {str(error).splitlines()[0]}"
    else:
        found |= {"graph": cuda_sampler(replay), "graph, cold L2": cold(replay, "cuda")}
    return found, missing


def _fill(row: dict[str, Any], timing: Timing, ours: Timing) -> None:
    ratios = timing.times_ours(ours)
    row |= {
        "median_s": timing.median,
        "p20_s": timing.quantile(0.2),
        "p80_s": timing.quantile(0.8),
        "times_ours": quantile(ratios, 0.5),
        "times_ours_p20": quantile(ratios, 0.2),
        "times_ours_p80": quantile(ratios, 0.8),
        "turns": len(timing.seconds),
        "calls_a_turn": timing.repeats,
    }


def _timed(
    workload: Workload, able: Sequence[Peer], inputs: Any, settings: Settings
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Times the peers that passed the gate, interleaved, ours first: their rows. On a GPU also their peak bytes,
    which torch's allocator knows without a process of its own for each.
    """
    samplers: dict[tuple[str, str], Sampler] = {}
    rows, sizes = [], {}
    for peer in able:
        call = peer.prepare(inputs)
        if settings.device == "cuda" and wants_memory(workload, settings):
            call()  # code and buffers that stay are there
            sizes[peer.name] = peak_of(call, "cuda")
        found, missing = _samplers(peer, call, settings)
        samplers |= {(peer.name, mode): sampler for mode, sampler in found.items()}
        rows += [_row(workload, peer.name, mode, "not run", reason) for mode, reason in missing.items()]
    parts = {peer.name for peer in able if peer.checked == "part"}
    keys = {f"{name}|{mode}": (name, mode) for name, mode in samplers}
    budget_s = settings.budget_s / (
        3 if workload.axis else 1
    )  # a point of a curve may be rougher than a figure
    timings = interleave({key: samplers[pair] for key, pair in keys.items()}, budget_s)
    for key, (name, mode) in keys.items():
        row = {**_row(workload, name, mode, "ok"), "whole": name not in parts}
        ours = timings.get(f"{OURS}|{mode}")
        if ours is not None:
            _fill(row, timings[key], ours)
            rows.append(row)
    return rows, sizes


def run_workload(
    op: Op, workload: Workload, settings: Settings, peers: Sequence[Peer], say: Say = print
) -> list[dict[str, Any]]:
    """Returns all rows of one workload. No time is taken of a peer whose answer is wrong.

    Without a right answer of our own nothing is timed at all: there is nothing to compare with.
    """
    gate = op.gate(workload, settings)
    rows, able = [], []
    for peer in peers:
        reason = peer.why_not(workload)
        if reason is not None:
            rows.append(_row(workload, peer.name, "", "not run", reason))
            continue
        try:
            wrong = gate.why_wrong(peer)
        except Exception as error:  # whatever a library throws: it is named, and the others are measured
            if peer.name == OURS:
                raise
            rows.append(_row(workload, peer.name, "", "not run", f"failed: {_first_line(error)}"))
            say(f"  {peer.name} failed: {_first_line(error)}")
            continue
        if wrong is None:
            able.append(peer)
        else:
            rows.append(_row(workload, peer.name, "", "refused", wrong))
            say(f"  REFUSED {peer.name}: {wrong}")
    if not any(peer.name == OURS for peer in able):
        return rows
    timed, sizes = _timed(workload, able, gate.inputs, settings)
    rows = timed + rows
    if wants_memory(workload, settings):
        del gate
        if settings.device == "cpu":
            sizes = peaks(op.NAME, workload, [peer.name for peer in able], settings)
        for row in rows:
            if row["status"] == "ok":
                row["peak_bytes"] = sizes.get(row["peer"])
    return rows


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def wants_memory(workload: Workload, settings: Settings) -> bool:
    """Returns whether memory is measured: on named shapes and along N, where it may grow; not along the other axes."""
    return settings.memory and workload.axis in (("",) if settings.quick else ("", "N"))


def _summary(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a line about a workload: every peer's time and how many times ours it is."""
    parts = []
    for row in rows:
        if row["status"] != "ok":
            continue
        mode = "" if row["mode"] in ("warm", "eager") else f" [{row['mode']}]"
        times = "" if row["peer"] == OURS else f" ({row['times_ours']:.3g}x)"
        parts.append(f"{row['peer']}{mode} {duration(row['median_s'])}{times}")
    return "; ".join(parts) or "nothing to time"


def workload_facts(op: Op, workload: Workload, ceiling: Ceilings) -> dict[str, Any]:
    """Returns the workload's shape and floors, for the document."""
    flops, least_bytes = op.flops(workload), op.least_bytes(workload)
    return {
        **asdict(workload),
        "flops": flops,
        "least_bytes": least_bytes,
        "floor_s": ceiling.floor_s(flops, least_bytes),
    }


def run_op(
    op: Op,
    workloads: Sequence[Workload],
    settings: Settings,
    say: Say = print,
    keep: Callable[[dict[str, Any]], object] = lambda document: None,
) -> dict[str, Any]:
    """Measures an op on workloads, a line of progress each, and returns the document that is written as JSON.

    `keep` is given the document so far after every workload, so that a run that is cut short has its figures.
    """
    machine = describe(settings)
    unmeasurable = cannot_measure(settings.device) if settings.memory else None
    if unmeasurable:
        say(unmeasurable)
        settings = Settings(**{**settings.to_dict(), "memory": False})
    ceiling = ceilings(settings)
    alone = f" ({ceiling.flops_per_s_alone / 1e9:.0f} by one thread)" if ceiling.flops_per_s_alone else ""
    say(
        f"{op.NAME} on {machine.get('gpu', machine['cpu'])}, {machine['threads']} threads, {machine['isa']}; at "
        f"most {ceiling.flops_per_s / 1e9:.0f} GFLOP/s{alone}, {ceiling.bytes_per_s / 1e9:.0f} GB/s, "
        f"{ceiling.cached_bytes_per_s / 1e9:.0f} in caches"
    )
    rows: list[dict[str, Any]] = []
    measured: list[Workload] = []
    facts = {
        "format": FORMAT,
        "op": op.NAME,
        "date": datetime.date.today().isoformat(),
        "machine": machine,
        "versions": versions(),
        "commit": commit(),
        "settings": {**settings.to_dict(), "published": bool(settings.published)},
    }

    def document() -> dict[str, Any]:
        return {
            **facts,
            "ceilings": ceiling._asdict(),
            "workloads": [workload_facts(op, workload, ceiling) for workload in measured],
            "rows": rows,
            "goals": judged(op.NAME, rows, torch.get_num_threads(), settings.device),
        }

    peers = op.peers(settings)
    for done, workload in enumerate(workloads, start=1):
        begin = time.perf_counter()
        found = run_workload(op, workload, settings, peers, say)
        rows += found
        measured.append(workload)
        took = time.perf_counter() - begin
        say(f"[{done}/{len(workloads)}] {workload}, {took:.1f} s: {_summary(found)}")
        keep(document())
    ceiling = ceiling.or_better(ceilings(settings))  # a busy machine may have hidden what it can do
    return document()
