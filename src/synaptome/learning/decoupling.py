"""How blocks of a network learn apart: by which gradients, how late they may be, and who waits for whom."""

from __future__ import annotations

from dataclasses import dataclass

from synaptome.errors import ConfigurationError


@dataclass(frozen=True)
class Decoupling:
    """How blocks learn apart.

    Args:
        delay: steps that a true gradient may be late before a block waits for it, at least 0.
        true_share: of true gradients in an update, in [0, 1]; the rest are guesses. True gradients that are late belong
            to a batch of earlier steps, on which the block is run again (replay). With 1 there are no guesses: stale
            true gradients, or, without delay, backpropagation.
        warmup: steps of backpropagation at the start, in which synthesisers learn and blocks wait for each other.
        least_cosine: a block waits for true gradients, and takes no guesses, as long as the cosine between guesses and
            true gradients stays below, in [-1, 1]; None never.
        free: blocks run at their own pace. A true gradient is used as soon as it is there, and a block waits only where
            more than `delay` batches would be without theirs. In processes of their own, what is there depends on
            timing, and so do the bits; in one process a true gradient is there at the next step.

    Raises:
        ConfigurationError: a number is out of range, a least cosine is asked of guesses that there are not, or blocks
            are to run freely that have to wait.
    """

    delay: int = 1
    true_share: float = 0.0
    warmup: int = 0
    least_cosine: float | None = None
    free: bool = False

    def __post_init__(self) -> None:
        if self.delay < 0 or self.warmup < 0:
            raise ConfigurationError(
                f"delay and warmup are numbers of steps, at least 0; given delay {self.delay}, warmup {self.warmup}"
            )
        if not 0 <= self.true_share <= 1:  # also refuses NaN
            raise ConfigurationError(f"true_share is a share in [0, 1]; given {self.true_share}")
        if self.least_cosine is not None and not -1 <= self.least_cosine <= 1:
            raise ConfigurationError(f"least_cosine is a cosine in [-1, 1], or None; given {self.least_cosine}")
        if self.least_cosine is not None and self.true_share == 1:
            raise ConfigurationError("least_cosine is of guesses, and with true_share 1 there are none; leave it out")
        if self.free and (self.delay < 1 or self.true_share == 1):
            raise ConfigurationError(
                f"blocks run freely by guesses, up to delay batches ahead; given delay {self.delay} and true_share "
                f"{self.true_share}: choose a delay of at least 1 and a smaller share, or leave free out"
            )

    def delay_of(self, block: int, blocks: int) -> int:
        """The delay of a block, counted from 0: without guesses true gradients come from the last block, one by one."""
        return self.delay if self.true_share < 1 else self.delay * (blocks - 1 - block)
