"""What each network of a population has achieved so far, epoch by epoch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

HELD_EPOCHS = 10  # over which a success has to last to count as held


class Success(nn.Module):
    """Records of P networks, kept with them.

    Args:
        networks: P.

    Attributes:
        error: mean squared error of the last epoch, float64 `[P]`; of a diverged network the last finite one.
        right: share of the patterns predicted right then, float64 `[P]`; 0 if it diverged.
        streak: epochs without a mistake, up to the last one, int64 `[P]`.
        solved: the first epoch, from 1, without a mistake, int64 `[P]`; 0 for never.
        diverged: the epoch, from 1, at which numbers stopped being finite, int64 `[P]`; 0 for never.
    """

    error: Tensor
    right: Tensor
    streak: Tensor
    solved: Tensor
    diverged: Tensor

    def __init__(self, networks: int) -> None:
        super().__init__()
        self.register_buffer("error", torch.zeros(networks, dtype=torch.float64))
        self.register_buffer("right", torch.zeros(networks, dtype=torch.float64))
        for name in ("streak", "solved", "diverged"):
            self.register_buffer(name, torch.zeros(networks, dtype=torch.int64))

    @property
    def finite(self) -> Tensor:
        """Which networks have not diverged, bool `[P]`."""
        return self.diverged == 0

    def record(self, epoch: int, error: Tensor, right: Tensor) -> None:
        """Note the errors `[P]` and the shares `[P]` of right predictions of an epoch, from 1 on."""
        finite = self.finite
        self.error.copy_(torch.where(finite, error, self.error))
        self.right.copy_(right * finite)
        solved = self.right == 1
        self.streak.add_(1).mul_(solved)
        self.solved.masked_fill_(solved & (self.solved == 0), epoch)

    def record_diverged(self, epoch: int, finite: Tensor) -> None:
        """Note which networks `[P]` are still finite in an epoch, from 1 on; one that is not never is again."""
        self.diverged.masked_fill_(self.finite & ~finite, epoch)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean of `(a - y)²` over patterns and outputs, `[P]`, of activities `[P, M, outputs]`, targets `[M, outputs]`."""
    return (outputs - targets).square().mean((1, 2))


def predicted_right(outputs: Tensor, targets: Tensor, one_hot: bool, margin: float = 0.0) -> Tensor:
    """Which patterns are predicted right, bool `[P, M]`.

    Args:
        outputs: activities `[P, M, outputs]`.
        targets: `[M, outputs]`, of 0 and 1.
        one_hot: whether the largest output is the prediction; otherwise an output predicts 1 from 0.5 on.
        margin: by how much the right output exceeds all others, or each output 0.5 on its side.
    """
    on = targets > 0.5
    if one_hot:
        right = outputs.masked_fill(~on, -math.inf).amax(2)
        ahead = right - outputs.masked_fill(on, -math.inf).amax(2)
        # Of equal outputs the first is the prediction.
        first = outputs.argmax(2) == targets.argmax(1)
        return first & (ahead >= margin)
    return torch.where(on, outputs >= 0.5 + margin, outputs < 0.5 - margin).all(2)
