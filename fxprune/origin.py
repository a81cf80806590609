"""What a compiled model was made from: kept for inputs of other shapes, or let go of."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from fxprune.errors import UnsupportedError
from fxprune.masks.bits import MaskBits

Model = nn.Module | ExportedProgram | fx.GraphModule


class Origin:
    """A model and its masks; the model is the user's own, the masks take one bit a cell."""

    def __init__(self, model: Model, masks: Mapping[str, Tensor]) -> None:
        """Keep them.

        Args:
            model: The user's model.
            masks: Its checked masks.
        """
        self._model: Model | None = model
        self._masks = MaskBits(masks)

    def open(self) -> tuple[Model, dict[str, Tensor]]:
        """Return the model and its masks, which are the caller's.

        Raises:
            UnsupportedError: The model was let go of.
        """
        if self._model is None:
            raise UnsupportedError(
                "This needs the model that was compiled, and with options={'other_shapes': False} it was let go of. "
                "Compile for the inputs that you call it with, or leave the option out."
            )
        return self._model, self._masks.unpack()

    def let_go(self) -> None:
        """Forget the model; its memory is free once the user has let go of it too."""
        self._model = None
