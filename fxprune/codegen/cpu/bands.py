"""Bands: an image of planes cut into as many parts as there are threads, whole lines that lie together in memory.

Planes lie channel after channel, so the halves of an image that two threads compute take turns in memory every few
cache lines, and what a core's prefetcher fetches ahead is the other core's: a kernel that read what another one had
just written took up to twice as long as alone (1024 to 256 channels at 14x14 75 us, 40 in bands). A band is an image of
its own to the kernel, with neighbours instead of zeros above and below.
"""

from __future__ import annotations

from dataclasses import replace

from fxprune.codegen.workload import LINE_CELLS, ConvShape, Layout, Triple, Workload

_LEAST_CELLS = 4 * LINE_CELLS
"""Cells of a plane in a band: fewer vectors than these wait for each other."""


def bands_of(batch: int, spatial: Triple, threads: int) -> int:
    """Return how many bands each image of an activation is best cut into; 1 = none, where threads share the batch.

    Args:
        batch: N.
        spatial: Depth, height, width.
        threads: Threads of the kernels.
    """
    depth, height, width = spatial
    whole = depth == 1 and height % threads == 0 and height // threads * width >= _LEAST_CELLS
    return threads if whole and batch < threads else 1


def cut_layout(layout: Layout, bands: int) -> Layout:
    """Return the layout of an activation whose images are cut into bands: each is an image.

    Channels-last without a halo it is the same memory.
    """
    depth, height, width = layout.spatial
    return replace(layout, batch=layout.batch * bands, spatial=(depth, height // bands, width))


def line_offset(layout: Layout, bands: int, line: str) -> str:
    """Return the element offset of a line of an image from the first cell of its channel, "nchw".

    Args:
        layout: The activation.
        bands: Bands that every image is cut into.
        line: Expression of the line, counted over all bands.
    """
    lines, (n_step, _, _, h_step, _) = layout.spatial[1], layout.strides
    if bands == 1:
        return f"{line} * {h_step}"
    return f"({line} // {lines} * {n_step} + {line} % {lines} * {h_step})"


def _cut_shape(shape: ConvShape, bands: int) -> ConvShape:
    depth, height, width = shape.spatial_in
    return replace(shape, batch=shape.batch * bands, spatial_in=(depth, height // bands, width))


def may_cut(shape: ConvShape, threads: int) -> bool:
    """Whether a layer can compute its output in bands: a band of the output reads a band of the input and its edges."""
    bands = bands_of(shape.batch, shape.spatial_out, threads)
    (_, height, _), out = shape.spatial_in, shape.spatial_out[1] // bands
    if bands == 1 or height % bands or height // bands != out * shape.stride[1]:
        return False
    return _cut_shape(shape, bands).spatial_out[1] == out


def cut(work: Workload, *, x: bool, y: bool) -> Workload:
    """Return the workload with its input in bands, its output and residual in bands, or both.

    Args:
        work: The layer on whole images; both its layouts are "nchw".
        x: Cut the input, which a layer that reads it in place only does with its output.
        y: Cut the output and the residual.
    """
    if x:
        work = replace(work, x=cut_layout(work.x, bands_of(work.x.batch, work.x.spatial, work.threads)))
    if not y:
        return work
    bands = bands_of(work.y.batch, work.y.spatial, work.threads)
    residual = None if work.residual is None else cut_layout(work.residual, bands)
    return replace(
        work, shape=_cut_shape(work.shape, bands), y=cut_layout(work.y, bands), residual=residual, bands=bands
    )


def cut_freely(work: Workload) -> Workload:
    """Return the workload with everything in bands that can be, as if all layers around it were cut as well."""
    y = may_cut(work.shape, work.threads)
    x = bands_of(work.x.batch, work.x.spatial, work.threads) > 1
    return cut(work, x=y if work.shape.is_pointwise else x, y=y)
