"""The examples do what they say: each is run, and what it learns or mines is better than what it replaces."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from places import ROOT

EXAMPLES = ROOT / "examples"
CHANCE = 1 / 16  # classes of examples/toy.py


@pytest.fixture
def example(monkeypatch):
    """Imports an example by its name; skips where the package that it is about is missing."""

    def load(name, needs=None):
        if not EXAMPLES.is_dir():
            pytest.skip("the examples are not beside the tests")
        if needs is not None:
            pytest.importorskip(
                needs, reason=f"examples/{name}.py shows cpr_kernels with {needs}", exc_type=ImportError
            )
        monkeypatch.syspath_prepend(str(EXAMPLES))
        for module in (name, "toy"):
            monkeypatch.delitem(sys.modules, module, raising=False)
        with torch.random.fork_rng():
            return importlib.import_module(name)

    return load


def test_in_a_plain_moco_loop(example):
    moco = example("moco")
    with torch.random.fork_rng():
        plain, mined = moco.main(mine=False), moco.main()
    assert mined["pmr"] > 8 * CHANCE
    assert mined["recall"] > plain["recall"] > 4 * CHANCE


def test_as_a_miner_for_metric_learning(example):
    metric_learning = example("metric_learning", needs="pytorch_metric_learning.losses")
    with torch.random.fork_rng():
        assert metric_learning.main(steps=60) > 8 * CHANCE


def test_the_miner_returns_pairs_by_its_own_definition(example):
    metric_learning = example("metric_learning", needs="pytorch_metric_learning.losses")
    cpr = metric_learning.cpr
    other = torch.eye(4)[torch.tensor([0, 0, 1, 1, 2])]  # samples 0 and 1 look alike, and 2 and 3
    miner = metric_learning.CascadeMiner(other, cpr.parse_schedule("other:1"))
    crops = torch.nn.functional.normalize(torch.randn(10, 3), dim=1)
    a1, p, a2, n = miner(crops, torch.arange(5).repeat(2))
    pairs, apart = set(zip(a1.tolist(), p.tolist())), set(zip(a2.tolist(), n.tolist()))
    assert {(0, 5), (0, 1), (2, 7), (2, 3)} <= pairs  # the other crop, and the first crop of the look-alike
    assert len(pairs) == 20 and not pairs & apart
    assert not {(i, i) for i in range(10)} & (pairs | apart)


def test_with_lightly(example):
    lightly_moco = example("lightly_moco", needs="lightly.models.modules")
    with torch.random.fork_rng():
        assert lightly_moco.main() > 4 * CHANCE


def test_in_the_published_order(example):
    coclr = example("coclr")
    with torch.random.fork_rng():
        published, ours, mixed = (
            coclr.main(step, 12, precision)
            for step, precision in (
                ("published_step", torch.float32),
                ("step", torch.float32),
                ("step", torch.bfloat16),
            )
        )
    assert published[:, 0].std() > 0.1  # steps differ
    torch.testing.assert_close(ours[:, 0], published[:, 0], atol=1e-5, rtol=0)
    assert torch.equal(ours[:, 1:], published[:, 1:])
    torch.testing.assert_close(mixed[:, 0], published[:, 0], atol=0.05, rtol=0)


def test_the_patch_is_five_lines():
    assert (EXAMPLES / "coclr.py").read_text().count("  # CPR") == 5


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_as_a_lightning_module(example, precision):
    lightning_module = example("lightning_module", needs="lightning.pytorch")
    with torch.random.fork_rng():
        logged = lightning_module.main(steps=40, precision=precision)
    assert logged.keys() == {"loss/rgb", "loss/flow", "top5/rgb", "top5/flow"}
    assert logged["top5/rgb"] > 0.3 and logged["top5/flow"] > 0.3  # by chance: 5 of 513


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_in_an_accelerate_script(example, precision):
    accelerate_script = example("accelerate_script", needs="accelerate")
    state = importlib.import_module("accelerate.state").AcceleratorState
    try:
        with torch.random.fork_rng():
            top5 = accelerate_script.main(steps=48, mixed_precision=precision)
    finally:
        state._reset_state(reset_partial_state=True)  # of the process: it holds one precision
    assert top5["end"] > 0.3 and top5["start"] > 0.1


def test_under_compile(example):
    same, difference = example("compiled").main(backend="aot_eager")
    assert same and difference < 1e-5


def test_on_numpy_arrays(example):
    shares = example("numpy_arrays").main()
    assert shares["cascade"] > 1.2 * shares["flow alone"] > 4 * CHANCE


def test_with_settings_chosen_from_the_queue(example):
    found = example("tuned").main()
    assert found["pmr"] > 8 * CHANCE and found["recall"] > 4 * CHANCE
    assert 0.02 < found["agreement"] <= 1  # of random pairs: 0.01


def test_every_example_is_a_page_and_is_run_here():
    text = Path(__file__).read_text()
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 80, path
        assert path.stem == "toy" or f'example("{path.stem}"' in text, path
