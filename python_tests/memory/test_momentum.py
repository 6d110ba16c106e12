"""The momentum update against its formula, and what it must not touch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from cpr_kernels import ema_update_


def pair():
    torch.manual_seed(0)
    online = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    target = copy.deepcopy(online)
    with torch.no_grad():
        for parameter in online.parameters():
            parameter.add_(torch.randn_like(parameter))
    return online, target


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.9, 0.999, 1.0])
def test_each_parameter_moves_by_the_formula(momentum):
    online, target = pair()
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    ema_update_(online, target, momentum)
    for name, parameter in online.named_parameters():
        expected = momentum * before[name].double() + (1 - momentum) * parameter.detach().double()
        got = dict(target.named_parameters())[name]
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=2e-7)


def test_the_ends_are_exact():
    online, target = pair()
    before = copy.deepcopy(target.state_dict())
    ema_update_(online, target, 1.0)
    assert all(torch.equal(p, before[name]) for name, p in target.named_parameters())
    ema_update_(online, target, 0.0)
    assert all(torch.equal(p, q) for p, q in zip(target.parameters(), online.parameters()))


def test_the_online_module_buffers_and_graph_are_left_alone():
    online, target = pair()
    online(torch.randn(8, 3))  # moves the online running mean
    kept = copy.deepcopy(online.state_dict())
    statistics = target[1].running_mean.clone()
    steps = target[1].num_batches_tracked.clone()
    ema_update_(online, target, 0.5)
    assert all(torch.equal(value, kept[name]) for name, value in online.state_dict().items())
    assert torch.equal(target[1].running_mean, statistics)
    assert torch.equal(target[1].num_batches_tracked, steps)
    assert not torch.equal(online[1].running_mean, statistics)
    assert all(p.grad_fn is None for p in target.parameters())


def test_it_works_in_the_middle_of_a_graph():
    """The update of a target that has just been used must not disturb the online module's backward."""
    online, target = pair()
    loss = online(torch.randn(8, 3)).square().sum()
    ema_update_(online, target, 0.9)
    loss.backward()
    assert all(p.grad is not None for p in online.parameters())


def test_tied_parameters_move_once():
    class Tied(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.a = nn.Parameter(torch.full((2,), value))
            self.b = self.a

    online, target = Tied(1.0), Tied(0.0)
    ema_update_(online, target, 0.5)
    assert target.a.tolist() == [0.5, 0.5]
    assert target.b is target.a


def test_a_module_without_parameters_is_fine():
    ema_update_(nn.ReLU(), nn.ReLU(), 0.5)


@pytest.mark.parametrize(
    ("online", "target", "momentum", "says"),
    [
        (nn.Linear(2, 2), nn.Linear(2, 2), 1.5, "momentum must lie in [0, 1], got 1.5"),
        (nn.Linear(2, 2), nn.Linear(2, 2), -0.1, "got -0.1"),
        (nn.Linear(2, 2), nn.Linear(2, 2), float("nan"), "got nan"),
        (nn.Linear(2, 2), nn.Linear(2, 2, bias=False), 0.9, "'bias' is only in one"),
        (nn.Linear(2, 3), nn.Linear(2, 2), 0.9, "'weight' has shape [3, 2] online but [2, 2] in target"),
        (
            nn.Linear(2, 2).double(),
            nn.Linear(2, 2),
            0.9,
            "'weight' has dtype torch.float64 online but torch.float32",
        ),
        (
            nn.Linear(2, 2, device="meta"),
            nn.Linear(2, 2),
            0.9,
            "'weight' has device meta online but cpu in target",
        ),
        (nn.DataParallel(nn.Linear(2, 2)), nn.Linear(2, 2), 0.9, "unwrap the other (.module, ._orig_mod)"),
    ],
)
def test_a_bad_argument_is_named_and_nothing_moves(online, target, momentum, says):
    before = copy.deepcopy(target.state_dict())
    with pytest.raises(ValueError) as error:
        ema_update_(online, target, momentum)
    assert says in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
