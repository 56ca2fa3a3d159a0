"""Which operators can be differentiated, and how.

To add one: write its gradient as a function in the file of its family (or a new file) and enter it in ``RULES``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from coordinator.compile.rules import (
    activation,
    convolution,
    dropout,
    einsum,
    elementwise,
    indexing,
    linear,
    normalisation,
    pooling,
    recurrent,
    reduction,
    resize,
    shape,
)
from coordinator.compile.rules.rule import Gradient, Gradients, Rule, Wanted

__all__ = ["FALLBACK_PARAMETERS", "RULES", "Gradient", "Gradients", "Rule", "Wanted"]

EVERY: Final = tuple(range(256))
"""The slots of an operator that takes any number of operands."""

RULES: Final[Mapping[str, Rule]] = {
    "Abs": Rule(elementwise.absolute, parameters=(0,)),
    "Acos": Rule(elementwise.acos, parameters=(0,)),
    "Acosh": Rule(elementwise.acosh, parameters=(0,)),
    "Add": Rule(elementwise.add, parameters=(0, 1)),
    "Asin": Rule(elementwise.asin, parameters=(0,)),
    "Asinh": Rule(elementwise.asinh, parameters=(0,)),
    "Atan": Rule(elementwise.atan, parameters=(0,)),
    "Atanh": Rule(elementwise.atanh, parameters=(0,)),
    "AveragePool": Rule(pooling.average_pool),
    "BatchNormalization": Rule(
        normalisation.batch_normalization,
        parameters=(1, 2, 3, 4),
        buffers=(3, 4),
        training=normalisation.batch_normalization_training,
    ),
    "Cast": Rule(elementwise.cast),
    "Ceil": Rule(elementwise.step),
    "Celu": Rule(activation.celu, parameters=(0,)),
    "Clip": Rule(activation.clip, parameters=(0,)),
    "Concat": Rule(shape.concat, parameters=EVERY),
    "Conv": Rule(convolution.conv, parameters=(1, 2), training=convolution.conv_training),
    "ConvTranspose": Rule(convolution.conv_transpose, parameters=(1, 2)),
    "Cos": Rule(elementwise.cos, parameters=(0,)),
    "Cosh": Rule(elementwise.cosh, parameters=(0,)),
    "CumSum": Rule(shape.cumsum),
    "DepthToSpace": Rule(shape.depth_to_space),
    "Div": Rule(elementwise.div, learned=(0, 1)),
    "Dropout": Rule(dropout.dropout, training=dropout.dropout_training),
    "Einsum": Rule(einsum.einsum, parameters=EVERY),
    "Elu": Rule(activation.elu, parameters=(0,)),
    "Erf": Rule(activation.erf, parameters=(0,)),
    "Exp": Rule(elementwise.exp, parameters=(0,)),
    "Expand": Rule(shape.expand, parameters=(0,)),
    "Flatten": Rule(shape.reshape, parameters=(0,)),
    "Floor": Rule(elementwise.step),
    "Gather": Rule(indexing.gather, parameters=(0,)),
    "GatherElements": Rule(indexing.gather_elements, parameters=(0,)),
    "GatherND": Rule(indexing.gather_nd, parameters=(0,)),
    "GRU": Rule(recurrent.gru, parameters=(1, 2, 3), training=recurrent.gru_training),
    "Gelu": Rule(activation.gelu, parameters=(0,), training=activation.gelu_training),
    "Gemm": Rule(linear.gemm, parameters=(0, 1, 2)),
    "GlobalAveragePool": Rule(pooling.global_average_pool),
    "GlobalMaxPool": Rule(pooling.global_max_pool),
    "GroupNormalization": Rule(
        normalisation.group_normalization, parameters=(1, 2), training=normalisation.group_normalization_training
    ),
    "HardSigmoid": Rule(activation.hard_sigmoid, parameters=(0,)),
    "HardSwish": Rule(activation.hard_swish, parameters=(0,)),
    "Hardmax": Rule(elementwise.step),
    "Identity": Rule(shape.identity),
    "InstanceNormalization": Rule(
        normalisation.instance_normalization, parameters=(1, 2), training=normalisation.instance_normalization_training
    ),
    "LSTM": Rule(recurrent.lstm, parameters=(1, 2, 3), training=recurrent.lstm_training),
    "LayerNormalization": Rule(
        normalisation.layer_normalization, parameters=(1, 2), training=normalisation.layer_normalization_training
    ),
    "LeakyRelu": Rule(activation.leaky_relu, parameters=(0,)),
    "Log": Rule(elementwise.log, parameters=(0,)),
    "LogSoftmax": Rule(activation.log_softmax, parameters=(0,)),
    "LpPool": Rule(pooling.lp_pool),
    "MatMul": Rule(linear.matmul, parameters=(0, 1)),
    "Max": Rule(elementwise.extreme),
    "MaxPool": Rule(pooling.max_pool, training=pooling.max_pool_training),
    "Mean": Rule(elementwise.mean, parameters=EVERY),
    "Min": Rule(elementwise.extreme),
    "Mish": Rule(activation.mish, parameters=(0,)),
    "Mod": Rule(elementwise.mod),
    "Mul": Rule(elementwise.mul, parameters=(0, 1)),
    "Neg": Rule(elementwise.neg, parameters=(0,)),
    "PRelu": Rule(activation.prelu, parameters=(1,)),
    "Pad": Rule(shape.pad, parameters=(0,)),
    "Pow": Rule(elementwise.power, learned=(0,)),
    "RNN": Rule(recurrent.rnn, parameters=(1, 2, 3), training=recurrent.rnn_training),
    "Reciprocal": Rule(elementwise.reciprocal, parameters=(0,)),
    "ReduceL1": Rule(reduction.reduce_l1, parameters=(0,)),
    "ReduceL2": Rule(reduction.reduce_l2, parameters=(0,)),
    "ReduceLogSum": Rule(reduction.reduce_log_sum, parameters=(0,)),
    "ReduceLogSumExp": Rule(reduction.reduce_log_sum_exp, parameters=(0,)),
    "ReduceMax": Rule(reduction.reduce_extreme, parameters=(0,)),
    "ReduceMean": Rule(reduction.reduce_mean, parameters=(0,)),
    "ReduceMin": Rule(reduction.reduce_extreme, parameters=(0,)),
    "ReduceProd": Rule(reduction.reduce_prod, parameters=(0,)),
    "ReduceSum": Rule(reduction.reduce_sum, parameters=(0,)),
    "ReduceSumSquare": Rule(reduction.reduce_sum_square, parameters=(0,)),
    "Relu": Rule(activation.relu, parameters=(0,)),
    "Reshape": Rule(shape.reshape, parameters=(0,)),
    "Resize": Rule(resize.resize, parameters=(0,)),
    "Round": Rule(elementwise.step),
    "ScatterElements": Rule(indexing.scatter_elements),
    "ScatterND": Rule(indexing.scatter_nd),
    "Selu": Rule(activation.selu, parameters=(0,)),
    "Sigmoid": Rule(activation.sigmoid, parameters=(0,)),
    "Sign": Rule(elementwise.step),
    "Sin": Rule(elementwise.sin, parameters=(0,)),
    "Sinh": Rule(elementwise.sinh, parameters=(0,)),
    "Slice": Rule(shape.slice_, parameters=(0,)),
    "Softmax": Rule(activation.softmax, parameters=(0,)),
    "Softplus": Rule(activation.softplus, parameters=(0,)),
    "Softsign": Rule(activation.softsign, parameters=(0,)),
    "SpaceToDepth": Rule(shape.space_to_depth),
    "Split": Rule(shape.split, parameters=(0,)),
    "Sqrt": Rule(elementwise.sqrt, parameters=(0,)),
    "Squeeze": Rule(shape.reshape, parameters=(0,)),
    "Sub": Rule(elementwise.sub, learned=(0, 1)),
    "Sum": Rule(elementwise.add, parameters=EVERY),
    "Tan": Rule(elementwise.tan, parameters=(0,)),
    "Tanh": Rule(activation.tanh, parameters=(0,)),
    "ThresholdedRelu": Rule(activation.thresholded_relu, parameters=(0,)),
    "Tile": Rule(shape.tile, parameters=(0,)),
    "TopK": Rule(indexing.top_k, training=indexing.top_k_training),
    "Transpose": Rule(shape.transpose, parameters=(0,)),
    "Trilu": Rule(shape.trilu),
    "Unsqueeze": Rule(shape.reshape, parameters=(0,)),
    "Where": Rule(elementwise.where, parameters=(1, 2)),
}
"""Operator of the default domain -> its rule."""

FALLBACK_PARAMETERS: Final[Mapping[str, tuple[int, ...]]] = {
    "CenterCropPad": (0,),
    "Col2Im": (0,),
    "DFT": (0,),
    "DeformConv": (1, 3),
    "GridSample": (0, 1),
    "LRN": (0,),
    "LpNormalization": (0,),
    "MeanVarianceNormalization": (0,),
    "ReverseSequence": (0,),
    "RoiAlign": (0,),
    "Shrink": (0,),
}
"""Operators that ``fallback`` is known to differentiate; the input slots in which an initializer is a parameter."""
