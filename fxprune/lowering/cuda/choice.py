"""What was chosen for each layer on a GPU, and why."""

from __future__ import annotations

from dataclasses import dataclass

from fxprune.codegen.cuda.tensor_tile import AnySchedule


@dataclass(frozen=True)
class CudaChoice:
    """What runs a layer.

    Attributes:
        schedule: Options of the kernel; None = dense torch.
        reason: A sentence with the figures.
        predicted_us: Predicted time of what was chosen, microseconds.
        measured_us: Measured time of it; None: not measured.
        dense_us: Measured time of dense torch; None: not measured.
    """

    schedule: AnySchedule | None
    reason: str
    predicted_us: float | None = None
    measured_us: float | None = None
    dense_us: float | None = None

    @property
    def kernel(self) -> str:
        """Name of the kernel for the report."""
        return "dense: torch" if self.schedule is None else str(self.schedule)
