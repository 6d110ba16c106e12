"""Makes a data set small enough for every example: 16 classes, each one of 4 appearances with one of 4 motions.

`rgb` shows the appearance well and the motion badly, `flow` the other way round, so that neither view alone
separates the classes.
"""

import torch
from torch import Tensor


def clips(count: int = 1024, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Returns `rgb` [count, 32] and `flow` [count, 32] of as many clips, and their classes [count]."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(16, (count,), generator=generator)
    codes = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(99))  # appearances, motions

    def view(strong: Tensor, weak: Tensor) -> Tensor:
        return strong + 0.4 * weak + 1.5 * torch.randn(count, 32, generator=generator)

    appearance, motion = codes[0][label // 4], codes[1][label % 4]
    return view(appearance, motion), view(motion, appearance), label


def augmented(clip: Tensor) -> Tensor:
    """Returns the same clips with a fifth of the numbers dropped, and noise."""
    return torch.nn.functional.dropout(clip, 0.2) + 0.3 * torch.randn_like(clip)


def encoder(size: int = 16) -> torch.nn.Module:
    """Returns a small network: 32 numbers in, `size` out."""
    return torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, size))
