"""How a lottery is run: epochs, rounds, how much each prunes, and where it rewinds to."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.errors import TrainingError

REWIND_SHARE = 0.05
"""Where the paper rewinds to, as a share of all epochs (section 3.1: epoch 8 of 160)."""


@dataclass(frozen=True)
class Plan:
    """The numbers of an iterative magnitude pruning with rewinding.

    Attributes:
        epochs: Epochs of a whole training.
        rounds: Rounds of pruning.
        rate: Share of the kept weights that a round prunes, over all layers together.
        rewind_epoch: Epochs after which the dense training is rewound to; None: 5 % of them, at least one.
        exclude: Names of layers that stay dense; None: the first convolution and the last linear layer.
        seed: Seed of the initial weights, of the order of the batches and of the controls.
    """

    epochs: int
    rounds: int = 10
    rate: float = 0.2
    rewind_epoch: int | None = None
    exclude: tuple[str, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every number.

        Raises:
            TrainingError: One is out of range.
        """
        for name, value, fits in (
            ("epochs", self.epochs, self.epochs >= 1),
            ("rounds", self.rounds, self.rounds >= 0),
            ("rate", self.rate, 0.0 < self.rate < 1.0),
            ("rewind_epoch", self.rewind_epoch, self.rewind_epoch is None or 0 <= self.rewind_epoch < self.epochs),
        ):
            if not fits:
                raise TrainingError(
                    f"{name} is {value}; a plan needs epochs >= 1, rounds >= 0, rate between 0 and 1, and a "
                    "rewind_epoch from 0 up to before the last epoch."
                )

    @property
    def rewind(self) -> int:
        """The epoch that is rewound to."""
        if self.rewind_epoch is not None:
            return self.rewind_epoch
        return min(self.epochs - 1, max(1, round(REWIND_SHARE * self.epochs)))
