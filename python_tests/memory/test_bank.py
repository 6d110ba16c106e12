"""The memory bank against a dictionary of rows; draws; resume; ranks."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize
from two_ranks import on_two_ranks

from cpr_kernels import MemoryBank, cascade_topk, coclr_schedule


def batch(seed, size=4):
    generator = torch.Generator().manual_seed(seed)
    return {
        "rgb": torch.randn(size, 3, generator=generator),
        "flow": torch.randn(size, 2, generator=generator),
    }


def test_a_row_is_the_normalised_average_of_what_was_written():
    bank, rows = MemoryBank({"rgb": 3, "flow": 2}, 6, momentum=0.75), torch.tensor([4, 0, 5, 2])
    first, second = batch(0), batch(1)
    bank.update(rows, first, rows + 10, labels=rows % 2)
    for name, held in bank.views.items():
        assert torch.allclose(held[rows], normalize(first[name], dim=1))
        assert torch.equal(held[[1, 3]], torch.zeros_like(held[[1, 3]]))
    bank.update(rows, second, rows + 10)
    for name, held in bank.views.items():
        expected = normalize(0.75 * normalize(first[name], dim=1) + 0.25 * second[name], dim=1)
        assert torch.allclose(held[rows], expected, atol=1e-6)
    assert bank.ids.tolist() == [10, -1, 12, -1, 14, 15]
    assert bank.labels.tolist() == [-1] * 6  # the second update did not know them


def test_of_a_sample_that_occurs_twice_the_last_embedding_counts():
    bank, alone = (MemoryBank({"rgb": 3, "flow": 2}, 3) for _ in range(2))
    features = batch(0)
    bank.update(torch.tensor([1, 2, 1, 1]), features, torch.tensor([5, 6, 7, 8]))
    alone.update(
        torch.tensor([2, 1]), {name: value[[1, 3]] for name, value in features.items()}, torch.tensor([6, 8])
    )
    for name, expected in alone.state_dict().items():
        assert torch.equal(bank.state_dict()[name], expected), name


def test_rows_that_were_never_written_are_never_mined():
    bank = MemoryBank({"v": 2}, 5)
    bank.update(torch.tensor([3, 1]), {"v": torch.tensor([[-1.0, 0.1], [-1.0, 0.0]])}, torch.tensor([30, 10]))
    query = {"v": torch.tensor([[1.0, 0.0]])}
    indices, _ = cascade_topk(
        query, bank.views, coclr_schedule("v", 3), query_ids=torch.tensor([10]), key_ids=bank.ids
    )
    assert indices.tolist() == [[3, -1, -1]]


def test_a_reloaded_bank_goes_on_alike():
    bank, other = (MemoryBank({"rgb": 3, "flow": 2}, 8, dtype=torch.bfloat16) for _ in range(2))
    bank.update(torch.arange(4), batch(0), torch.arange(4))
    other.load_state_dict(bank.state_dict())
    for bank_or_other in (bank, other):
        bank_or_other.update(torch.arange(2, 6), batch(1), torch.arange(2, 6))
    for name, expected in bank.state_dict().items():
        assert torch.equal(other.state_dict()[name], expected), name
    assert bank.views["rgb"].dtype == torch.bfloat16


def test_draws_are_even_and_never_the_row_itself():
    bank, rows = MemoryBank({"v": 2}, 5), torch.tensor([0, 2, 4])
    drawn = bank.draw(rows, 4000, torch.Generator().manual_seed(0))
    for own, others in zip(rows.tolist(), drawn):
        counts = torch.bincount(others, minlength=5)
        assert counts[own] == 0
        assert torch.all((counts[torch.arange(5) != own] - 1000).abs() < 150)
    again = bank.draw(rows, 4000, torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda b: b.update(torch.arange(4), {"rgb": torch.ones(4, 3)}, torch.arange(4)), "['rgb', 'flow']"),
        (lambda b: b.update(torch.arange(3), batch(0), torch.arange(4)), "ids must have shape [3]"),
        (lambda b: b.update(torch.arange(4).int(), batch(0), torch.arange(4)), "rows must be int64"),
        (
            lambda b: b.update(torch.arange(4), {**batch(0), "flow": torch.ones(4, 3)}, torch.arange(4)),
            "features['flow'] must have shape [4, 2], got [4, 3]",
        ),
        (
            lambda b: b.update(
                torch.arange(4), {**batch(0), "flow": torch.ones(4, 2).int()}, torch.arange(4)
            ),
            "features['flow'] must be floating point",
        ),
        (lambda b: MemoryBank({}, 3), "views is empty"),
        (lambda b: MemoryBank({"v": 0}, 3), "view 'v' must have D >= 1, got 0"),
        (lambda b: MemoryBank({"v": 2}, 0), "rows must be >= 1, got 0"),
        (lambda b: MemoryBank({"v": 2}, 2, momentum=1.0), "momentum must lie in [0, 1), got 1.0"),
        (lambda b: MemoryBank({"v": 2}, 2, dtype=torch.int8), "dtype must be float32"),
        (lambda b: MemoryBank({"v": 2}, 1).draw(torch.zeros(1).long(), 3), "needs at least 2 rows"),
    ],
)
def test_a_bad_argument_is_named_and_nothing_is_written(call, says):
    bank = MemoryBank({"rgb": 3, "flow": 2}, 6)
    with pytest.raises(ValueError) as error:
        call(bank)
    assert says in str(error.value)
    assert bank.ids.tolist() == [-1] * 6


@pytest.mark.parametrize("row", [6, -1])
def test_a_row_outside_the_bank_is_an_error_and_nothing_is_written(row):
    bank = MemoryBank({"rgb": 3, "flow": 2}, 6)
    with pytest.raises(IndexError):
        bank.update(torch.tensor([0, 1, 2, row]), batch(0), torch.arange(4))
    assert bank.ids.tolist() == [-1] * 6
    assert not bank.views["rgb"].any()


def updated(rank):
    bank = MemoryBank({"rgb": 3, "flow": 2}, 9)
    for step in range(2):
        rows = torch.arange(4) * 2 + rank * step  # both ranks write the same rows in the first step
        bank.update(rows, batch(10 * rank + step), rows)
    return bank.state_dict()


def test_two_ranks_hold_the_same_bank(tmp_path):
    first, second = on_two_ranks(updated, tmp_path)
    alone = MemoryBank({"rgb": 3, "flow": 2}, 9)
    for step in range(2):
        for rank in (0, 1):
            rows = torch.arange(4) * 2 + rank * step
            if (rank, step) != (0, 0):  # of a row written twice in a step, the last rank's counts
                alone.update(rows, batch(10 * rank + step), rows)
    for name in first:
        assert torch.equal(first[name], second[name]), name
        assert torch.equal(first[name], alone.state_dict()[name]), name
