"""Heads over embeddings: where they start, what they mine, and that mining across views helps."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from adapt_data import SMALL
from torch.nn.functional import normalize

from cpr_kernels import Schedule
from cpr_kernels.networks.heads import new_heads
from cpr_kernels.train import TrainError
from cpr_kernels.train.adapt import HeadTrainer, Table, training
from cpr_kernels.train.adapt.measure import hits, recall
from cpr_kernels.train.adapt.positives import positives_of, topk_of_epoch
from cpr_kernels.train.adapt.table import split_by_source
from cpr_kernels.train.adapt.training import default_queue

VIEWS = ("rgb", "flow")


def test_a_residual_head_starts_as_the_identity(table: Table) -> None:
    heads = new_heads("residual", table.means(), hidden=16, embedding=8, seed=0)
    for view, rows in heads.embeddings(table.views).items():
        expected = normalize(table.views[view] - table.views[view].mean(dim=0), dim=1)
        torch.testing.assert_close(rows, expected, rtol=0, atol=1e-6)


def test_a_projection_gives_unit_rows_of_its_size(table: Table) -> None:
    heads = new_heads("projection", table.means(), hidden=16, embedding=8, seed=0)
    rows = heads.embeddings(table.views)["flow"]
    assert rows.shape == (240, 8)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(240))
    again = new_heads("projection", table.means(), hidden=16, embedding=8, seed=1)
    assert not torch.equal(again.embeddings(table.views)["flow"], rows)


def test_several_clips_are_averaged(table: Table) -> None:
    heads = new_heads("residual", table.means(), 16, 8, 0)
    once = heads.embeddings(table.views)
    thrice = heads.embeddings({view: rows[:, None].repeat(1, 3, 1) for view, rows in table.views.items()})
    for view in once:
        torch.testing.assert_close(thrice[view], once[view])


def test_sources_are_held_out_whole(table: Table) -> None:
    train, held = split_by_source(table, 0.25, seed=3)
    assert len(train) + len(held) == 240
    assert not set(train.sources.tolist()) & set(held.sources.tolist())
    assert len(held.sources.unique()) == 30
    with pytest.raises(TrainError, match=r"hold-out: 0.001 of 120 sources leaves fewer than 2"):
        split_by_source(table, 0.001, seed=0)


def test_names_of_methods_mean_schedules() -> None:
    def of(method: str, **more: float) -> dict[str, Schedule]:
        return positives_of(replace(SMALL, method=method, **more), VIEWS, 1024, 5).schedules  # type: ignore[arg-type]

    assert str(of("coclr")["rgb"]) == "flow:5" and str(of("coclr")["flow"]) == "rgb:5"
    assert str(of("cpr3")["rgb"]) == "flow:512,rgb:256,flow:5"
    assert str(of("cpr3", ratio=0.8)["flow"]) == "rgb:819,flow:655,rgb:5"
    assert of("joint")["rgb"] == Schedule([({"flow": 1.0, "rgb": 1.0}, 5)])
    assert str(of("frozen:0.25,trained:9")["flow"]) == "rgb:256,flow:5"
    assert positives_of(replace(SMALL, method="ubernce"), VIEWS, 64, 5).supervised
    assert not positives_of(replace(SMALL, method="infonce"), ("rgb",), 64, 5).mines


@pytest.mark.parametrize(
    ("method", "views", "message"),
    [
        ("cpr", VIEWS, r"method: must be one of infonce, .*, or a schedule such as .*; got 'cpr'"),
        ("sound:5", VIEWS, r"method: no view 'sound'; there is rgb, flow, frozen, trained"),
        ("coclr", ("rgb",), r"method: coclr compares views, and there is one, 'rgb'"),
        ("cpr7", VIEWS, r"method: cpr_schedule: num_keys=64, ratio=0.5, stages=7 keep 1 entries"),
    ],
)
def test_methods_that_cannot_be_are_refused(method: str, views: tuple[str, ...], message: str) -> None:
    with pytest.raises(TrainError, match=message):
        positives_of(replace(SMALL, method=method), views, 64, 5)


def test_settings_that_cannot_work_are_refused(table: Table) -> None:
    with pytest.raises(TrainError, match=r"queue: 240 entries, but there are 240 rows"):
        HeadTrainer(table, replace(SMALL, queue=240))
    with pytest.raises(TrainError, match=r"dropout: must lie in \[0, 0.95\], got 1"):
        HeadTrainer(table, replace(SMALL, dropout=1.0))
    with pytest.raises(TrainError, match=r"ubernce trains by labels, and some row has none"):
        HeadTrainer(replace_labels(table), replace(SMALL, method="ubernce"))


def replace_labels(table: Table) -> Table:
    return Table(table.views, table.sources)


def test_the_queue_is_at_most_half_of_the_rows() -> None:
    assert [default_queue(rows) for rows in (2, 3023, 2047, 10**6)] == [1, 1024, 512, 4096]


def test_an_epoch_of_a_large_table_is_a_part_of_it(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "EPOCH_ROWS", 96)
    trainer = HeadTrainer(table, replace(SMALL, method="infonce", queue=128))
    trainer.run_epoch()
    assert (
        len(trainer.queue) == 96 and len(trainer.queue.ids[:96].unique()) > 48
    )  # of 240 rows, two of each source


def test_positives_grow_evenly() -> None:
    growing = replace(SMALL, progressive=True, epochs=5, topk=5)
    assert [topk_of_epoch(growing, epoch) for epoch in range(5)] == [1, 2, 3, 4, 5]
    assert topk_of_epoch(SMALL, 0) == 5


def test_methods_branch_off_from_one_warm_up(table: Table) -> None:
    """A trainer of another method that loads the state sees the same batches and noise."""
    warm = HeadTrainer(table, replace(SMALL, method="infonce"))
    warm.run_epoch()
    state = copy.deepcopy(warm.state_dict())
    assert warm.run_epoch().pmr is None
    for method in ("infonce", "joint"):
        other = HeadTrainer(table, replace(SMALL, method=method))
        other.load_state_dict(state)
        found = other.run_epoch()
        same = torch.equal(other.heads.of_view[0].last.weight, warm.heads.of_view[0].last.weight)
        assert same == (method == "infonce") and (found.pmr is not None) == (method == "joint")
        assert torch.equal(other.generator.get_state(), warm.generator.get_state())


def test_right_positives_of_another_view_raise_retrieval(table: Table) -> None:
    """Flow sees the class: what RGB mines by it teaches RGB to leave out what only RGB has."""
    train, held = split_by_source(table, 0.5, seed=0)

    def r1(trainer: HeadTrainer) -> float:
        found = [trainer.heads.embeddings(part.views) for part in (held, train)]
        return recall(hits(*found, held.labels, train.labels))["rgb"][1]  # type: ignore[arg-type]

    settings = replace(SMALL, hidden=64, lr=1e-2, warm_up=1, epochs=12, noise=0.3)
    after = {}
    for method in ("infonce", "coclr"):
        trainer = HeadTrainer(train, replace(settings, method=method))
        before = r1(trainer)
        for _ in range(trainer.epochs):
            figures = trainer.run_epoch()
        after[method] = r1(trainer)
    assert figures.pmr is not None and 0.4 < figures.pmr < 0.6
    assert after["coclr"] > before + 0.08 and after["coclr"] > after["infonce"] + 0.04


def after_training(table: Table, **settings: object) -> tuple[HeadTrainer, dict[str, torch.Tensor]]:
    trainer = HeadTrainer(table, replace(SMALL, **settings))  # type: ignore[arg-type]
    for _ in range(trainer.epochs):
        trainer.run_epoch()
    return trainer, trainer.heads.embeddings(table.views)


@pytest.mark.parametrize("method", ["cpr3", "auto"])
def test_online_queries_are_the_keys_where_heads_and_noise_are_one(table: Table, method: str) -> None:
    """Without noise, and with momentum heads that are copies, both queries are the same rows."""
    alike = {"method": method, "noise": 0.0, "momentum": 0.0, "lr": 1e-3}
    (_, key), (_, online) = (after_training(table, **alike, query=query) for query in ("key", "online"))
    assert all(torch.equal(key[view], online[view]) for view in key)
    noisy = {**alike, "noise": 0.5}
    (_, key), (_, online) = (after_training(table, **noisy, query=query) for query in ("key", "online"))
    assert not torch.equal(key["rgb"], online["rgb"])


def test_the_own_positive_is_dropped_where_others_are_mined(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[torch.Tensor | None] = []
    plain = training.mil_nce

    def seen(*args: object, use_own: torch.Tensor | None, **kwargs: object) -> torch.Tensor:
        given.append(use_own)
        return plain(*args, use_own=use_own, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "mil_nce", seen)
    kept, _ = after_training(table, method="cpr3")
    assert all(own is None for own in given)
    given.clear()
    dropped, _ = after_training(table, method="cpr3", drop_own_positive=0.75)
    of_warm_up = 2 * (240 // 32) * SMALL.warm_up
    assert all(own is None for own in given[:of_warm_up])
    shares = [own.float().mean().item() for own in given[of_warm_up:] if own is not None]
    assert len(shares) == 2 * (240 // 32) * SMALL.epochs and sum(shares) / len(shares) == pytest.approx(
        0.25, abs=0.08
    )
    assert torch.equal(
        kept.generator.get_state(), dropped.generator.get_state()
    )  # the same batches and noise
    given.clear()
    after_training(table, method="infonce", drop_own_positive=0.75)
    assert all(own is None for own in given)
    with pytest.raises(TrainError, match=r"drop-own-positive: must lie in \[0, 1\], got 1.5"):
        HeadTrainer(table, replace(SMALL, drop_own_positive=1.5))
