"""The harness for GPUs, as far as it can be tried without one: peers that it names, choices that it times."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import torch
from bench_tools import SETTINGS

from bench.harness import timing
from bench.harness.peer import Settings
from bench.harness.workloads import Workload, by_name
from bench.ops import cascade, loss
from bench.peers import gpu as gpu_peers
from bench.studies import gpu_tune


def test_gpu_peers_say_what_they_need():
    settings = Settings(device="cuda", compiled=False)
    reasons = {
        peer.name: peer.why_not(by_name(op.NAME, name))
        for op, name in ((cascade, "coclr-b64"), (loss, "infonce-b16"))
        for peer in op.peers(settings)
    }
    for name, package in (
        ("torch matmul + flashinfer top_k", "flashinfer"),
        ("cuVS brute force, one stage", "cuvs"),
        ("cut-cross-entropy", "cut_cross_entropy"),
        ("liger-kernel", "liger_kernel"),
    ):
        assert (reasons[name] is None) == (importlib.util.find_spec(package) is not None)
    assert "GPU part" in (reasons["faiss-gpu, one stage"] or "") or "not installed" in (
        reasons["faiss-gpu, one stage"] or ""
    )


def test_gpu_peers_restate_the_work(monkeypatch):
    """Their adapters, on stand-ins with the libraries' signatures that compute in plain torch."""
    stand_ins = {
        "flashinfer": SimpleNamespace(top_k=lambda x, k, sorted=False: x.topk(k, dim=1, sorted=sorted)),
        "cuvs.neighbors.brute_force": SimpleNamespace(
            build=lambda keys, metric: keys,
            search=lambda index, query, k: (query @ index.T).topk(k, dim=1),
        ),
        "cut_cross_entropy": SimpleNamespace(
            linear_cross_entropy=lambda e, c, targets: torch.nn.functional.cross_entropy(e @ c.T, targets)
        ),
        "liger_kernel.transformers": SimpleNamespace(
            LigerFusedLinearCrossEntropyLoss=lambda: (
                lambda weight, x, target: torch.nn.functional.cross_entropy(x @ weight.T, target)
            )
        ),
    }
    monkeypatch.setattr(gpu_peers.importlib, "import_module", stand_ins.__getitem__)
    plain = by_name("cascade", "quick")
    nearest = Workload("coclr", 5, 512, "smoke", dim=32, views=1, stages=1)
    infonce = Workload("infonce", 5, 512, "smoke", dim=32, topk=0)
    found = {peer.name: peer for peer in [*gpu_peers.cascade_peers(), *gpu_peers.loss_peers(lambda w: None)]}
    for op, workload, name in (
        (cascade, plain, "torch matmul + flashinfer top_k"),
        (cascade, by_name("cascade", "quick-ids"), "torch matmul + flashinfer top_k"),
        (cascade, nearest, "cuVS brute force, one stage"),
        (loss, infonce, "cut-cross-entropy"),
        (loss, infonce, "liger-kernel"),
    ):
        assert op.gate(workload, SETTINGS).why_wrong(found[name]) is None, name


def test_choices_for_a_device_are_timed_and_a_wrong_answer_is_seen(monkeypatch, capsys):
    assert gpu_tune.main([]) == 2 and "CUDA" in capsys.readouterr().err
    workload, chosen, lines = by_name("cascade", "quick"), [], []
    table = cascade.make_inputs(workload, SETTINGS)
    core = SimpleNamespace(cuda_tune=lambda **choice: chosen.append(choice))

    def sometimes_wrong(*args, **kwargs):
        answer = torch.ones(2)
        return answer, answer * (2 if chosen[-1] == {"score_queries": 64, "wgmma_parts": 0} else 1)

    monkeypatch.setattr(gpu_tune, "make_table", lambda workload, device: table)
    monkeypatch.setattr(gpu_tune, "cascade_topk", sometimes_wrong)
    monkeypatch.setattr(gpu_tune, "graphed", lambda call: call)
    monkeypatch.setattr(gpu_tune, "cuda_sampler", timing.cpu_sampler)
    monkeypatch.setattr(gpu_tune, "applies", lambda choice, workload: True)
    assert not gpu_tune.tune(workload, core, lines.append)
    assert sum("WRONG" in line for line in lines) == 1 and len(lines) == len(gpu_tune.CHOICES)
    assert chosen[1::2] == [{}] * len(gpu_tune.CHOICES)  # the rules again after each
    monkeypatch.undo()
    timed = [c for c in gpu_tune.CHOICES if gpu_tune.applies(c, by_name("cascade", "k400-b64"))]
    assert {} in timed and {"sweep": 128} not in timed and {"sweep": 64} in timed
