"""The table of rules: which operator is treated how. An operator that is not in it reads and keeps everything."""

from __future__ import annotations

import operator

import torch
from torch import fx

from fxprune.channels.facts import Facts
from fxprune.channels.rules import passing_values as known
from fxprune.channels.rules.attention import AttentionRule
from fxprune.channels.rules.base import InputRule, OutputRule, Rule, is_activation
from fxprune.channels.rules.constant_product import ConstantProductRule, is_constant_product
from fxprune.channels.rules.contraction import ContractionRule
from fxprune.channels.rules.embedding import EmbeddingRule
from fxprune.channels.rules.index_add import IndexAddRule
from fxprune.channels.rules.join import CatRule, ExpandRule
from fxprune.channels.rules.layer import LayerRule
from fxprune.channels.rules.move import MoveRule
from fxprune.channels.rules.passing import PassingRule, Values
from fxprune.channels.rules.piece import PIECES, SPLITS, ItemRule, PieceRule
from fxprune.channels.rules.pointwise import PointwiseRule, is_pointwise
from fxprune.channels.rules.pointwise_operators import POINTWISE_EXTRAS
from fxprune.channels.rules.recurrent import RecurrentRule
from fxprune.channels.rules.recurrent_stack import KINDS
from fxprune.channels.rules.regroup_channels import GluRule, PixelShuffleRule
from fxprune.channels.rules.repeat import RepeatRule
from fxprune.channels.rules.statistics import (
    SharedStatisticsRule,
    axes_of_batch,
    axes_of_instance,
    normalise_instance,
    normalise_plane,
)

_aten = torch.ops.aten

_UNKNOWN = Rule()
_PRODUCT = ConstantProductRule()
_LAYER, _POINTWISE, _MOVE, _PIECE = LayerRule(), PointwiseRule(), MoveRule(), PieceRule()


def _plane(dims: int, rule: Values) -> PassingRule:
    return PassingRule(rule, known.last_axes(dims))


_LAYERS = (
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv3d.default,
    _aten.conv1d.padding,
    _aten.conv2d.padding,
    _aten.conv3d.padding,
    _aten.convolution.default,
    _aten.conv_transpose1d.default,
    _aten.conv_transpose2d.input,
    _aten.conv_transpose3d.input,
    _aten.linear.default,
)
_POINTWISES = (
    _aten.relu.default,
    _aten.relu6.default,
    _aten.hardtanh.default,
    _aten.hardswish.default,
    _aten.hardsigmoid.default,
    _aten.leaky_relu.default,
    _aten.elu.default,
    _aten.selu.default,
    _aten.celu.default,
    _aten.silu.default,
    _aten.mish.default,
    _aten.gelu.default,
    _aten.sigmoid.default,
    _aten.log_sigmoid.default,
    _aten.tanh.default,
    _aten.softplus.default,
    _aten.exp.default,
    _aten.log.default,
    _aten.sqrt.default,
    _aten.rsqrt.default,
    _aten.reciprocal.default,
    _aten.cos.default,
    _aten.sin.default,
    _aten.neg.default,
    _aten.abs.default,
    _aten.square.default,
    _aten.erf.default,
    _aten.pow.Tensor_Scalar,
    _aten.clamp.default,
    _aten.clamp_min.default,
    _aten.clamp_max.default,
    _aten.add.Tensor,
    _aten.add.Scalar,
    _aten.sub.Tensor,
    _aten.sub.Scalar,
    _aten.rsub.Scalar,
    _aten.mul.Tensor,
    _aten.mul.Scalar,
    _aten.div.Tensor,
    _aten.div.Scalar,
    _aten.maximum.default,
    _aten.minimum.default,
    _aten.where.self,
    _aten._to_copy.default,
    _aten.to.dtype,
    *POINTWISE_EXTRAS,
)
MOVES = (
    _aten.view.default,
    _aten._unsafe_view.default,
    _aten.reshape.default,
    _aten.permute.default,
    _aten.transpose.int,
    _aten.t.default,
    _aten.squeeze.default,
    _aten.squeeze.dim,
    _aten.squeeze.dims,
    _aten.unsqueeze.default,
    _aten.clone.default,
    _aten.roll.default,
    _aten.flip.default,
    _aten.movedim.int,
    _aten.channel_shuffle.default,
    _aten.pixel_unshuffle.default,
)

RULES: dict[object, Rule] = {
    **dict.fromkeys(_LAYERS, _LAYER),
    **dict.fromkeys(_POINTWISES, _POINTWISE),
    **dict.fromkeys(MOVES, _MOVE),
    **dict.fromkeys((*SPLITS, *PIECES), _PIECE),
    **dict.fromkeys(KINDS, RecurrentRule()),
    operator.getitem: ItemRule(),
    _aten.cat.default: CatRule(),
    _aten.expand.default: ExpandRule(),
    _aten.index_add.default: IndexAddRule(),
    _aten.matmul.default: ContractionRule(),
    _aten.mm.default: ContractionRule(),
    _aten.bmm.default: ContractionRule(),
    _aten.einsum.default: ContractionRule(),
    _aten.addmm.default: _PRODUCT,
    _aten.scaled_dot_product_attention.default: AttentionRule(),
    _aten.embedding.default: EmbeddingRule(),
    _aten._native_batch_norm_legit_no_training.default: PassingRule(
        known.normalise, known.no_axes, ("weight", "bias", "running_mean", "running_var")
    ),
    _aten.max_pool1d.default: _plane(1, known.keep_value),
    _aten.max_pool2d.default: _plane(2, known.keep_value),
    _aten.max_pool3d.default: _plane(3, known.keep_value),
    _aten.max_pool2d_with_indices.default: _plane(2, known.keep_value),
    _aten.avg_pool1d.default: _plane(1, known.average),
    _aten.avg_pool2d.default: _plane(2, known.average),
    _aten.avg_pool3d.default: _plane(3, known.average),
    _aten.adaptive_avg_pool1d.default: _plane(1, known.mean),
    _aten.adaptive_avg_pool2d.default: _plane(2, known.mean),
    _aten.adaptive_avg_pool3d.default: _plane(3, known.mean),
    _aten._adaptive_avg_pool2d.default: _plane(2, known.mean),
    _aten.adaptive_max_pool2d.default: _plane(2, known.keep_value),
    _aten.upsample_nearest1d.vec: _plane(1, known.keep_value),
    _aten.upsample_nearest2d.vec: _plane(2, known.keep_value),
    _aten.upsample_nearest3d.vec: _plane(3, known.keep_value),
    _aten.upsample_bilinear2d.vec: _plane(2, known.keep_value),
    _aten.upsample_bicubic2d.vec: _plane(2, known.keep_value),
    _aten.upsample_trilinear3d.vec: _plane(3, known.keep_value),
    _aten.reflection_pad1d.default: _plane(1, known.keep_value),
    _aten.reflection_pad2d.default: _plane(2, known.keep_value),
    _aten.replication_pad1d.default: _plane(1, known.keep_value),
    _aten.replication_pad2d.default: _plane(2, known.keep_value),
    _aten.replication_pad3d.default: _plane(3, known.keep_value),
    _aten.constant_pad_nd.default: PassingRule(known.pad, known.axes_of_pad),
    _aten.pad.default: PassingRule(known.pad_by_mode, known.axes_of_pad),
    _aten.prelu.default: PassingRule(known.slope, known.no_axes, ("weight",)),
    _aten.instance_norm.default: PassingRule(
        normalise_instance, axes_of_instance, ("weight", "bias", "running_mean", "running_var")
    ),
    _aten._native_batch_norm_legit.no_stats: PassingRule(normalise_plane, axes_of_batch, ("weight", "bias")),
    **dict.fromkeys(
        (_aten.layer_norm.default, _aten.rms_norm.default, _aten.group_norm.default), SharedStatisticsRule()
    ),
    _aten.pixel_shuffle.default: PixelShuffleRule(),
    _aten.glu.default: GluRule(),
    **dict.fromkeys((_aten.repeat.default, _aten.tile.default, _aten.repeat_interleave.self_int), RepeatRule()),
    _aten.adaptive_max_pool1d.default: _plane(1, known.keep_value),
    _aten.adaptive_max_pool3d.default: _plane(3, known.keep_value),
    _aten.max_pool3d_with_indices.default: _plane(3, known.keep_value),
    _aten.upsample_linear1d.vec: _plane(1, known.keep_value),
    _aten._upsample_nearest_exact1d.vec: _plane(1, known.keep_value),
    _aten._upsample_nearest_exact2d.vec: _plane(2, known.keep_value),
    _aten._upsample_nearest_exact3d.vec: _plane(3, known.keep_value),
    _aten._upsample_bilinear2d_aa.vec: _plane(2, known.keep_value),
    _aten._upsample_bicubic2d_aa.vec: _plane(2, known.keep_value),
    _aten.max.dim: PassingRule(known.keep_value, known.axes_of_dim),
    _aten.min.dim: PassingRule(known.keep_value, known.axes_of_dim),
    _aten.cumsum.default: PassingRule(known.keep_zero, known.axes_of_dim),
    _aten.linalg_vector_norm.default: PassingRule(known.keep_zero, known.axes_of_dim),
    _aten.log_softmax.int: PassingRule(known.log_uniform, known.axes_of_dim),
    _aten._log_softmax.default: PassingRule(known.log_uniform, known.axes_of_dim),
    _aten.mean.dim: PassingRule(known.mean, known.axes_of_dim),
    _aten.amax.default: PassingRule(known.keep_value, known.axes_of_dim),
    _aten.amin.default: PassingRule(known.keep_value, known.axes_of_dim),
    _aten.sum.dim_IntList: PassingRule(known.total, known.axes_of_dim),
    _aten._softmax.default: PassingRule(known.uniform, known.axes_of_dim),
    _aten.softmax.int: PassingRule(known.uniform, known.axes_of_dim),
}
"""Operator to rule."""

_INPUT, _OUTPUT = InputRule(), OutputRule()


def find_rule(node: fx.Node, facts: Facts) -> Rule | None:
    """Return the rule of a node; None for constants, which have no facts of their own."""
    if node.op == "placeholder":
        return _INPUT
    if node.op == "output":
        return _OUTPUT
    if node.op == "get_attr":
        return None
    rule = RULES.get(node.target, _UNKNOWN)
    if isinstance(rule, ContractionRule):
        return _PRODUCT if is_constant_product(node) else rule
    if isinstance(rule, PointwiseRule):
        return rule if is_pointwise(node, facts) else _UNKNOWN
    if rule in (_MOVE, _PIECE) or isinstance(rule, ExpandRule):
        return rule if is_activation(node.args[0]) and node.args[0] in facts.cells else _UNKNOWN
    return rule
