"""Products with a constant operand: matmul, mm, bmm, einsum, addmm; weights that are plain parameters (x @ self.w)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import fx

from fxprune.channels.facts import Cells, Facts, Kind
from fxprune.channels.grid import IntArray, Shape, all_cells
from fxprune.channels.record import LayerCut
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule, constant_of, is_activation, is_constant, opaque_cells, pin_inputs
from fxprune.channels.rules.contraction import Letters, find_letters, to_letters
from fxprune.channels.spatial import FloatArray
from fxprune.nodes import bind, get_tensor

_aten = torch.ops.aten
_LARGEST = 1 << 26
"""Products with more pairs of weights and free channels than this are not analysed."""


@dataclass(frozen=True, eq=False)
class Product:
    """An activation times a constant.

    Attributes:
        source: The activation.
        weight: The constant.
        bias: What `addmm` adds, [O]; None for others.
        letters: Axes of the activation (left), of the constant (right), and of the result.
        ids: Ids of the activation with the axes of `letters.joint`.
        numbers: The constant in float64 with the same axes.
        shift: The bias in float64 with the same axes; zeros if there is none.
        grid: The result's grid.
    """

    source: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    letters: Letters
    ids: IntArray
    numbers: FloatArray
    shift: FloatArray
    grid: Shape

    @property
    def summed(self) -> tuple[int, ...]:
        """Joint axes that the result does not have."""
        return tuple(axis for axis, letter in enumerate(self.letters.joint) if letter not in self.letters.result)

    def to_result(self, array: FloatArray) -> FloatArray:
        """Return an array over the joint axes, summed ones of size 1, over the result's axes."""
        order = [self.letters.joint.index(letter) for letter in self.letters.result]
        return array.transpose([*order, *self.summed]).reshape([array.shape[axis] for axis in order])

    def to_joint(self, array: IntArray) -> IntArray:
        """Return an array over the result's grid over the joint axes."""
        return to_letters(array, self.letters.result, self.letters.joint)


class ConstantProductRule(Rule):
    """As a linear layer: a result that reads nothing that varies is known, an operand that is not read is unused."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Make ids for the result, one for each that has weights of its own."""
        product = find_product(gm, node, facts)
        if product is None:
            facts.cells[node] = opaque_cells(node.meta["val"], facts)
            return
        ids = facts.new_ids(product.grid)
        facts.cells[node] = Cells(tuple(node.meta["val"].shape), ids)
        known = facts.kind[product.ids] == Kind.CONST
        reads = ((product.numbers != 0) & ~known).any(axis=product.summed, keepdims=True)
        values = product.shift + _weigh(product, np.where(known, facts.value[product.ids], 0.0))
        values = product.to_result(np.where(reads, np.nan, values))
        axes = tuple(axis for axis, size in enumerate(product.grid) if size < values.shape[axis])
        low, high = values.min(axis=axes, keepdims=True), values.max(axis=axes, keepdims=True)
        still = np.asarray(low == high)  # NaN where something that varies is read
        facts.set_constants(ids[still], low[still])

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """An operand is used where a used result that varies has a weight for it."""
        product = find_product(gm, node, facts)
        if product is None:
            pin_inputs(node, facts)
            return
        ids = product.to_joint(facts.of(node).ids)
        needed = (facts.used[ids] & facts.varies(ids)) & (product.numbers != 0)
        axes = tuple(axis for axis, size in enumerate(product.ids.shape) if size < needed.shape[axis])
        facts.use(product.ids, np.asarray(needed.any(axis=axes, keepdims=True)))

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Cut rows and columns of the constant; add what lost constants stand for."""
        product = find_product(rewriter.gm, node, rewriter.facts)
        kept = None if product is None else rewriter.kept_cells(node)
        if product is None:
            rewriter.copy_full(node)
        elif kept is None:
            rewriter.drop(node)
        else:
            _emit_product(node, product, _choose_lines(product, kept, rewriter), rewriter)


def is_constant_product(node: fx.Node) -> bool:
    """Return whether exactly one factor of a product is a constant."""
    return len(node.all_input_nodes) >= 2 and sum(map(is_constant, _factors(node))) == 1


def _factors(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    if node.target is _aten.einsum.default:
        operands = cast("list[fx.Node]", node.args[1])
        return operands[0], operands[-1]
    first = 1 if node.target is _aten.addmm.default else 0
    return cast("fx.Node", node.args[first]), cast("fx.Node", node.args[first + 1])


def find_product(gm: fx.GraphModule, node: fx.Node, facts: Facts) -> Product | None:
    """Return an activation times a constant with their ids and numbers; None for forms that are not understood."""
    first, second = _factors(node)
    source, weight = (second, first) if is_constant(first) else (first, second)
    if not is_activation(source) or source not in facts.cells or not is_constant(weight):
        return None
    bias = cast("fx.Node", node.args[0]) if node.target is _aten.addmm.default else None
    arguments = bind(node)
    if bias is not None and not (is_constant(bias) and arguments["beta"] == arguments["alpha"] == 1):
        return None
    letters = Letters("yk", "kz", "yz") if bias is not None else find_letters(node)
    if letters is None or (bias is not None and bias.meta["val"].ndim != 1):
        return None
    if source is second:
        letters = Letters(letters.right, letters.left, letters.result)
    cells = facts.of(source)
    ids = to_letters(cells.ids, letters.left, letters.joint)
    numbers = to_letters(cast("IntArray", constant_of(gm, weight).cpu().numpy()), letters.right, letters.joint)
    sizes = np.broadcast_shapes(ids.shape, numbers.shape)
    if math.prod(sizes) > _LARGEST or not bool(np.isfinite(numbers).all()):
        return None
    grid = _find_grid(letters, ids.shape, sizes)
    shift = np.zeros((1,) * len(sizes))
    if bias is not None:
        shift = cast(
            "FloatArray", to_letters(cast("IntArray", constant_of(gm, bias).cpu().numpy()), "z", letters.joint)
        )
    return Product(source, weight, bias, letters, ids, cast("FloatArray", numbers), shift, grid)


def _find_grid(letters: Letters, ids: Shape, sizes: Shape) -> Shape:
    """Return the result's grid.

    Its ids are on the constant's own axes. Where the activation has ids on an axis that passes, they are on that one,
    for the layers that follow contract one axis; an axis that both operands have is left alone if the activation is.
    """
    joint = letters.joint
    passing = [letter for letter in letters.result if letter not in letters.right and ids[joint.index(letter)] > 1]
    loose = {letter for letter in letters.result if passing and letter not in letters.left}
    loose |= {letter for letter in letters.result if letter in letters.left and ids[joint.index(letter)] == 1}
    return tuple(1 if letter in loose else sizes[joint.index(letter)] for letter in letters.result)


def _weigh(product: Product, values: FloatArray) -> FloatArray:
    """Return what values of the activation, over its ids, add to the results; over the joint axes."""
    return np.asarray((product.numbers * values).sum(axis=product.summed, keepdims=True))


def _choose_lines(product: Product, kept: IntArray, rewriter: Rewriter) -> dict[str, IntArray]:
    """Return for every axis the indices that stay, whatever those of other axes are."""
    facts, joint = rewriter.facts, product.letters.joint
    sizes = dict(zip(joint, np.broadcast_shapes(product.ids.shape, product.numbers.shape), strict=True))
    lines = {letter: np.arange(size) for letter, size in sizes.items()}
    for letter, coordinates in zip(product.letters.result, np.unravel_index(kept, product.grid), strict=True):
        if product.grid[product.letters.result.index(letter)] > 1:
            lines[letter] = np.unique(coordinates)
    cells = facts.of(product.source)
    held = rewriter.held(product.source)
    stay = facts.used[cells.ids] & (facts.kind[cells.ids] != Kind.CONST)
    if held is not None and product.source.op != "placeholder":
        stay.reshape(-1)[held.reshape(-1)] = True
    for axis, letter in enumerate(product.letters.left):
        if letter not in product.letters.result and cells.grid[axis] > 1:
            found = np.flatnonzero(stay.any(axis=tuple(other for other in range(stay.ndim) if other != axis)))
            lines[letter] = found if found.size else np.zeros(1, dtype=np.int64)
    return lines


def _emit_product(node: fx.Node, product: Product, lines: dict[str, IntArray], rewriter: Rewriter) -> None:
    """Emit the product of what is left of both operands."""
    facts, letters = rewriter.facts, product.letters
    lost = np.asarray(facts.kind[product.ids] == Kind.CONST)
    inside = np.zeros(lost.shape, dtype=bool)
    inside[
        np.ix_(*(lines[letter] if size > 1 else [0] for letter, size in zip(letters.joint, lost.shape, strict=True)))
    ] = True
    values = np.where(lost & ~inside, facts.value[product.ids], 0.0)
    free = [letter not in letters.result for letter in letters.joint]
    if not any(free):
        values = np.zeros_like(values)
    cells = facts.of(product.source)
    x = rewriter.fetch(product.source, _pick(cells.grid, [lines[letter] for letter in letters.left]))
    made: dict[fx.Node, fx.Node] = {product.source: x, product.weight: _cut_weight(node, product, lines, rewriter)}
    if product.bias is not None:
        made[product.bias] = _cut_bias(product, lines["z"], rewriter)
    arguments = fx.node.map_arg(node.args, made.__getitem__)
    new = rewriter.emit(node.target, arguments, node, node.kwargs)
    chosen = [lines[letter] for letter in letters.result]
    added = product.to_result(_weigh(product, values))
    picked = added[np.ix_(*(line if size > 1 else [0] for line, size in zip(chosen, added.shape, strict=True)))]
    rewriter.put(node, _add(node, new, picked, rewriter), _pick(product.grid, chosen))


def _pick(grid: Shape, lines: list[IntArray]) -> IntArray:
    """Return the arrangement that holds some indices of every axis."""
    return all_cells(grid)[np.ix_(*(line if size > 1 else [0] for line, size in zip(lines, grid, strict=True)))]


def _cut_weight(node: fx.Node, product: Product, lines: dict[str, IntArray], rewriter: Rewriter) -> fx.Node:
    """Return the constant's part that stays, and write it down."""
    tensor, letters = get_tensor(rewriter.gm, product.weight), product.letters
    shape = tuple(tensor.shape)
    own = [
        lines[letter] if size > 1 else np.zeros(1, dtype=np.int64)
        for letter, size in zip(letters.right, shape, strict=True)
    ]
    rows = [axis for axis, letter in enumerate(letters.right) if letter in letters.result]
    columns = [axis for axis, letter in enumerate(letters.right) if letter not in letters.result]
    picked = [_pick(tuple(shape[axis] for axis in axes), [own[axis] for axis in axes]) for axes in (rows, columns)]
    rewriter.record.append(
        LayerCut(
            layer=node.name,
            weight=str(product.weight.target),
            rows=tuple(picked[0].reshape(-1).tolist()),
            channels=tuple(picked[1].reshape(-1).tolist()),
            out_channels=math.prod(shape[axis] for axis in rows),
            in_channels=math.prod(shape[axis] for axis in columns),
        )
    )
    if all(line.size == size for line, size in zip(own, shape, strict=True)):
        return rewriter.constant(str(product.weight.target), tensor, ())
    cut = tensor.detach()
    for axis, line in enumerate(own):
        cut = cut.index_select(axis, torch.from_numpy(line))
    return rewriter.constant(str(product.weight.target), cut, tuple(line.tobytes() for line in own))


def _cut_bias(product: Product, line: IntArray, rewriter: Rewriter) -> fx.Node:
    assert product.bias is not None
    tensor = get_tensor(rewriter.gm, product.bias)
    if tensor.numel() in (1, line.size):
        return rewriter.constant(str(product.bias.target), tensor, ())
    cut = tensor.detach().index_select(0, torch.from_numpy(line))
    return rewriter.constant(str(product.bias.target), cut, (line.tobytes(),))


def _add(node: fx.Node, x: fx.Node, values: FloatArray, rewriter: Rewriter) -> fx.Node:
    """Add what the constants of lost channels stand for."""
    if not bool(values.any()):
        return x
    like = node.meta["val"]
    tensor = torch.from_numpy(np.ascontiguousarray(values)).to(dtype=like.dtype, device=like.device)
    constant = rewriter.constant(f"known_channels.{node.name}", tensor, (values.shape, values.tobytes()))
    return rewriter.emit(_aten.add.Tensor, (x, constant), node, named=False)
