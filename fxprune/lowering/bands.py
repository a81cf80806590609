"""Which planned planes lie in bands: those that kernels write and nothing but kernels reads.

A 1x1 layer reads and writes the same cells of a plane, so its input and its output lie alike, and so does a residual.
Any other layer copies the lines that it reads wherever they lie, and a pool of windows reads them there. A copy in the
other order (`turn`) writes bands of channels-last images, and reads them, where those have no halo.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace

from torch import fx

from fxprune.codegen.cpu import pixel_tiles
from fxprune.codegen.cpu.bands import bands_of, cut, cut_layout, may_cut
from fxprune.codegen.cpu.pixel_tiles import PixelsSchedule
from fxprune.codegen.workload import NO_HALO, Layout
from fxprune.layer import Layer
from fxprune.lowering.choice import Choice
from fxprune.lowering.plan import Placement
from fxprune.lowering.pool import Pooling
from fxprune.lowering.turn import Source, Turned


def lay_in_bands(
    placements: Mapping[fx.Node, Placement],
    outputs: Mapping[Source, Layout],
    layers: Mapping[fx.Node, Layer],
    choices: Mapping[fx.Node, Choice],
    pools: Mapping[fx.Node, Pooling],
    threads: int,
) -> tuple[dict[fx.Node, Placement], dict[Source, Layout]]:
    """Return the placements and the layouts of all buffers, with bands wherever they can be.

    Args:
        placements: All lowered layers.
        outputs: Layouts of all planned buffers.
        layers: Layers of the graph by node.
        choices: What runs them.
        pools: Pooling nodes that kernels compute.
        threads: Threads of the kernels.
    """
    planner = _Planner(placements, outputs, layers, choices, pools, threads)
    found = {source for source in outputs if planner.may_lie_in_bands(source)}
    while alone := {source for source in found if planner.stands_alone(source, found)}:
        found -= alone
    laid = dict(placements)
    for node, item in planner.planes.items():
        laid[node] = replace(item, work=cut(item.work, x=item.source in found, y=node in found))
    return laid, {
        source: cut_layout(layout, threads) if source in found else layout for source, layout in outputs.items()
    }


class _Planner:
    """Answers questions about single buffers; the fields are what all of them need.

    Attributes:
        planes: Layers that pixel-lane kernels run.
    """

    def __init__(
        self,
        placements: Mapping[fx.Node, Placement],
        outputs: Mapping[Source, Layout],
        layers: Mapping[fx.Node, Layer],
        choices: Mapping[fx.Node, Choice],
        pools: Mapping[fx.Node, Pooling],
        threads: int,
    ) -> None:
        self._placements, self._outputs, self._layers = placements, outputs, layers
        self._choices, self._pools, self._threads = choices, pools, threads
        self.planes = {node: item for node, item in placements.items() if choices[node].family == "pixels"}

    def may_lie_in_bands(self, source: Source) -> bool:
        """Whether what writes a buffer can write bands, and nothing but kernels reads it."""
        layout = self._outputs[source]
        if layout.order != "nchw" or bands_of(layout.batch, layout.spatial, self._threads) == 1:
            return False
        if isinstance(source, Turned):
            return self._outputs[source.node].halo == NO_HALO
        if not all(self._reads_planned(user, source) for user in source.users):
            return False
        if source in self._pools:
            return True
        work, schedule = self.planes[source].work, self._choices[source].schedule
        assert isinstance(schedule, PixelsSchedule)
        return may_cut(work.shape, self._threads) and pixel_tiles.fits(
            cut(work, x=work.shape.is_pointwise, y=True), schedule
        )

    def _reads_planned(self, user: fx.Node, node: fx.Node) -> bool:
        """Whether a user of a node is a kernel that reads the node's buffer, or a copy of it without a halo."""
        if user in self._pools:
            return not self._pools[user].is_whole
        if user not in self._placements:
            return False
        layer, item = self._layers[user], self._placements[user]
        reads = ((layer.input, item.source), (layer.residual, item.residual_source))
        return all(
            source is node or (isinstance(source, Turned) and self._outputs[source].halo == NO_HALO)
            for tensor, source in reads
            if tensor is node
        )

    def stands_alone(self, source: Source, found: AbstractSet[Source | None]) -> bool:
        """Whether a buffer in bands meets one that is not, in a layer where both have to lie alike."""
        return any(
            not {node, *_alike(item)} <= found
            for node, item in self.planes.items()
            if node is source or source in _alike(item)
        )


def _alike(item: Placement) -> list[Source | None]:
    """Return the buffers that lie as a layer's output does; None is one that torch makes."""
    read = [item.source] if item.work.shape.is_pointwise else []
    return read + ([item.residual_source] if item.work.residual is not None else [])
