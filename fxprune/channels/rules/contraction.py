"""Products of two activations: matmul, bmm, einsum; the axis that is summed over can lose channels on both sides."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import fx

from fxprune.channels.facts import Cells, Facts, Kind
from fxprune.channels.grid import IntArray, Shape, all_cells, project
from fxprune.channels.rewriter import Rewriter
from fxprune.channels.rules.base import Rule, is_activation, opaque_cells, pin_inputs
from fxprune.nodes import VIEWS, bind

_aten = torch.ops.aten
_PASSED = frozenset({_aten.clone.default, _aten._to_copy.default})
_SOFTMAXES = frozenset({_aten._softmax.default, _aten.softmax.int})
_SCALINGS = frozenset({_aten.mul.Tensor, _aten.mul.Scalar, _aten.div.Tensor, _aten.div.Scalar})


@dataclass(frozen=True)
class Letters:
    """A product as letters, as einsum writes it.

    Attributes:
        left: One letter for each axis of the first operand.
        right: The same of the second operand.
        result: The same of the result.
    """

    left: str
    right: str
    result: str

    @property
    def joint(self) -> str:
        """All letters once."""
        return "".join(dict.fromkeys(self.left + self.right + self.result))


class ContractionRule(Rule):
    """A pair of summed channels goes when either side is 0; the other axes pass their ids to the result."""

    def forward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """Make ids for the result; tie what is summed."""
        pair = find_pair(node, facts)
        if pair is None:
            facts.cells[node] = opaque_cells(node.meta["val"], facts)
            return
        pair.tie(facts)
        ids = facts.new_ids(pair.result_grid)
        facts.cells[node] = Cells(tuple(node.meta["val"].shape), ids)
        joint = pair.to_joint(ids, pair.letters.result)
        axes = pair.summed_axes
        pairs = np.broadcast_to(facts.is_zero(pair.left) | facts.is_zero(pair.right), pair.grid)
        zero = np.asarray(pairs.all(axis=axes, keepdims=True))
        facts.set_constants(joint[zero], np.zeros(int(zero.sum())))
        if _sums_to_one(node, pair):
            right = np.broadcast_to(pair.right, joint.shape)
            known = np.asarray(facts.kind[right] == Kind.CONST) & ~zero
            facts.set_constants(joint[known], facts.value[right[known]])

    def backward(self, gm: fx.GraphModule, node: fx.Node, facts: Facts) -> None:
        """One side is used where the result is used and the other side is not 0."""
        pair = find_pair(node, facts)
        if pair is None:
            pin_inputs(node, facts)
            return
        joint = pair.to_joint(facts.of(node).ids, pair.letters.result)
        needed = facts.used[joint] & facts.varies(joint)
        cancels = (facts.kind[pair.right] == Kind.CONST) & feeds_softmax(node, pair.letters)
        for own, ends in ((pair.left, facts.is_zero(pair.right) | cancels), (pair.right, facts.is_zero(pair.left))):
            full = np.broadcast_to(needed & ~ends, pair.grid)
            axes = tuple(axis for axis, size in enumerate(own.shape) if size < pair.grid[axis])
            facts.use(own, np.asarray(full.any(axis=axes, keepdims=True)))

    def rewrite(self, node: fx.Node, rewriter: Rewriter) -> None:
        """Bring both sides into one arrangement."""
        pair = find_pair(node, rewriter.facts)
        if pair is None:
            rewriter.copy_full(node)
            return
        if rewriter.kept_cells(node) is None:
            rewriter.drop(node)
            return
        _emit_pair(node, pair, rewriter)


@dataclass(frozen=True, eq=False)
class Pair:
    """Both operands of a product over one joint grid.

    Attributes:
        nodes: The operands.
        letters: Their axes.
        left: Ids of the first operand with the axes of `letters.joint`.
        right: The same of the second.
        grid: The joint grid.
    """

    nodes: tuple[fx.Node, fx.Node]
    letters: Letters
    left: IntArray
    right: IntArray
    grid: Shape

    @property
    def summed_axes(self) -> tuple[int, ...]:
        """Joint axes that the result does not have."""
        return tuple(axis for axis, letter in enumerate(self.letters.joint) if letter not in self.letters.result)

    @property
    def result_grid(self) -> Shape:
        """The grid of the result."""
        return tuple(self.grid[self.letters.joint.index(letter)] for letter in self.letters.result)

    def to_joint(self, array: IntArray, letters: str) -> IntArray:
        """Return an array over some letters with the axes of the joint grid."""
        return to_letters(array, letters, self.letters.joint)

    def from_joint(self, array: IntArray, letters: str) -> IntArray:
        """Return an array over the joint axes with the axes of some letters; the others have size 1."""
        kept = [self.letters.joint.index(letter) for letter in letters]
        rest = [axis for axis in range(array.ndim) if axis not in kept]
        return array.transpose([*kept, *rest]).reshape([array.shape[axis] for axis in kept])

    def tie(self, facts: Facts) -> None:
        """Tie summed ids of both sides, pair by pair."""
        if any(self.grid[axis] > 1 for axis in self.summed_axes):
            facts.tie(np.broadcast_to(self.left, self.grid), np.broadcast_to(self.right, self.grid))


def to_letters(array: IntArray, letters: str, joint: str) -> IntArray:
    """Return an array with axes `letters` as one with axes `joint`; letters that it lacks get size 1."""
    order = sorted(range(len(letters)), key=lambda axis: joint.index(letters[axis]))
    moved = array.transpose(order)
    sizes = {letters[axis]: array.shape[axis] for axis in range(len(letters))}
    return moved.reshape([sizes.get(letter, 1) for letter in joint])


def find_pair(node: fx.Node, facts: Facts) -> Pair | None:
    """Return both operands of a product over one grid; None if the ids of one side are not understood."""
    sources = node.all_input_nodes
    if len(sources) != 2 or not all(is_activation(source) and source in facts.cells for source in sources):
        return None
    letters = find_letters(node)
    if letters is None:
        return None
    first, second = _operands(node)
    one, other = facts.of(first), facts.of(second)
    left = to_letters(one.ids, letters.left, letters.joint)
    right = to_letters(other.ids, letters.right, letters.joint)
    grid = tuple(max(sizes) for sizes in zip(left.shape, right.shape, strict=True))
    fits = all(size in (1, extent) for ids in (left, right) for size, extent in zip(ids.shape, grid, strict=True))
    pair = Pair((first, second), letters, left, right, grid)
    if not fits:
        return None
    shared = [axis for axis, letter in enumerate(letters.joint) if letter in letters.left and letter in letters.right]
    if any(left.shape[axis] != right.shape[axis] for axis in shared):
        return None
    summed = [axis for axis in pair.summed_axes if grid[axis] > 1]
    return pair if left.shape == right.shape or not summed else None


def _operands(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    if node.target is _aten.einsum.default:
        first, second = cast("tuple[fx.Node, fx.Node]", node.args[1])
        return first, second
    return cast("fx.Node", node.args[0]), cast("fx.Node", node.args[1])


def find_letters(node: fx.Node) -> Letters | None:
    """Return a product as letters; None for forms that are not understood."""
    if node.target is _aten.einsum.default:
        return _read_equation(str(node.args[0]))
    first, second = _operands(node)
    ranks = first.meta["val"].ndim, second.meta["val"].ndim
    if min(ranks) < 2:
        return None
    batch = string.ascii_lowercase[: max(ranks) - 2]
    left, right = batch[len(batch) - (ranks[0] - 2) :] + "yk", batch[len(batch) - (ranks[1] - 2) :] + "kz"
    shapes = [
        dict(zip(letters, source.meta["val"].shape, strict=True))
        for letters, source in ((left, first), (right, second))
    ]
    if any(shapes[0][letter] != shapes[1][letter] for letter in batch if letter in shapes[0] and letter in shapes[1]):
        return None
    return Letters(left, right, batch + "yz")


def _read_equation(equation: str) -> Letters | None:
    plain = equation.replace(" ", "")
    inputs, arrow, result = plain.partition("->")
    operands = inputs.split(",")
    if not arrow or len(operands) != 2 or "." in plain:
        return None
    left, right = operands
    unique = all(len(set(letters)) == len(letters) for letters in (left, right, result))
    alone = (set(left) ^ set(right)) - set(result)
    return Letters(left, right, result) if unique and not alone else None


def _sums_to_one(node: fx.Node, pair: Pair) -> bool:
    """Return whether the first operand is a softmax over the summed axis, which then carries no ids."""
    source = pair.nodes[0]
    while source.target in _PASSED:
        source = cast("fx.Node", source.args[0])
    if source.target not in _SOFTMAXES or len(pair.summed_axes) != 1:
        return False
    axis = int(cast("int", bind(source)["dim"])) % len(pair.letters.left)
    letter = pair.letters.joint[pair.summed_axes[0]]
    return pair.letters.left[axis] == letter and pair.grid[pair.summed_axes[0]] == 1


def feeds_softmax(node: fx.Node, letters: Letters) -> bool:
    """Return whether a product goes only into a softmax over the last axis, which only the second operand has.

    What is added to a whole row of logits then changes nothing. On the way the product may be scaled by numbers, added
    to anything, and viewed with the last axis left alone.
    """
    last = letters.result[-1]
    if last in letters.left or last not in letters.right:
        return False
    extent = node.meta["val"].shape[-1]
    while True:
        if len(node.users) != 1:
            return False
        source, node = node, next(iter(node.users))
        if node.op != "call_function" or not isinstance(node.meta["val"], torch.Tensor):
            return False
        if node.meta["val"].shape[-1:] != (extent,):
            return False
        if node.target in _SOFTMAXES:
            return int(cast("int", bind(node)["dim"])) in (-1, node.meta["val"].ndim - 1)
        scaled = node.target in _SCALINGS and not isinstance(node.args[1], fx.Node) and node.args[0] is source
        added = node.target is _aten.add.Tensor and node.args[0] is not node.args[1] and not node.kwargs
        viewed = node.target in VIEWS
        if not (scaled or added or viewed or node.target in _PASSED):
            return False


def _emit_pair(node: fx.Node, pair: Pair, rewriter: Rewriter) -> None:
    """Emit the product for the arrangement of the side that has all ids; whole if there is none."""
    letters = (pair.letters.left, pair.letters.right)
    wanted = all_cells(pair.grid)
    for source, ids, own in zip(pair.nodes, (pair.left, pair.right), letters, strict=True):
        held = rewriter.held(source)
        if held is not None and ids.shape == pair.grid:
            wanted = rewriter_cells(pair, held, own, rewriter.facts.of(source).grid)
            break
    needs = [project(wanted, pair.grid, tuple(ids.shape)) for ids in (pair.left, pair.right)]
    shape = tuple(
        size if letter in pair.letters.result else 1 for letter, size in zip(pair.letters.joint, pair.grid, strict=True)
    )
    made = project(wanted, pair.grid, shape)
    if made is None or any(need is None for need in needs):
        rewriter.copy_full(node)
        return
    new: dict[fx.Node, fx.Node] = {}
    for source, need, own in zip(pair.nodes, needs, letters, strict=True):
        assert need is not None
        joint_shape = (pair.left if source is pair.nodes[0] else pair.right).shape
        cells = renumber(pair, need, own, tuple(joint_shape))
        new[source] = rewriter.fetch(source, cells)
    args = fx.node.map_arg(node.args, new.__getitem__)
    rewriter.put(
        node, rewriter.emit(node.target, args, node, node.kwargs), renumber(pair, made, pair.letters.result, shape)
    )


def rewriter_cells(pair: Pair, held: IntArray, letters: str, grid: Shape) -> IntArray:
    """Return an arrangement of an operand as one of the joint grid."""
    numbers = pair.to_joint(all_cells(grid), letters)
    back = np.empty(numbers.size, dtype=np.int64)
    back[numbers.reshape(-1)] = np.arange(numbers.size)
    return back[pair.to_joint(held, letters)]


def renumber(pair: Pair, cells: IntArray, letters: str, shape: Shape) -> IntArray:
    """Return an arrangement over joint axes (of grid `shape`) as one of a tensor with axes `letters`."""
    own = tuple(shape[pair.letters.joint.index(letter)] for letter in letters)
    numbers = pair.to_joint(all_cells(own), letters).reshape(-1)
    return pair.from_joint(numbers[cells], letters)
