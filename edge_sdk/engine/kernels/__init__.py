"""The NumPy engine's operators: ONNX name -> function.

A kernel takes the node's inputs in order (``None`` for one that is left out) and its attributes by their ONNX names as
keywords, and returns the output, or a tuple where a node may have several (then it may ask for ``output_count``). It
never writes into an input, because values are shared as views. To add an operator: write the function in the file of
its family and name it here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from edge_sdk.engine.kernels import (
    activation,
    convolution,
    dropout,
    elementwise,
    indexing,
    linear,
    normalisation,
    pooling,
    reduction,
    shape,
)

__all__ = ["KERNELS", "Kernel"]

Kernel = Callable[..., Any]

KERNELS: Final[dict[str, Kernel]] = {
    # linear
    "Gemm": linear.gemm,
    "MatMul": linear.matmul,
    # convolution and pooling
    "AveragePool": pooling.average_pool,
    "Conv": convolution.conv,
    "ConvTranspose": convolution.conv_transpose,
    "GlobalAveragePool": pooling.global_average_pool,
    "GlobalLpPool": pooling.global_lp_pool,
    "GlobalMaxPool": pooling.global_max_pool,
    "LpPool": pooling.lp_pool,
    "MaxPool": pooling.max_pool,
    "MaxUnpool": pooling.max_unpool,
    # normalisation
    "BatchNormalization": normalisation.batch_normalization,
    "GroupNormalization": normalisation.group_normalization,
    "InstanceNormalization": normalisation.instance_normalization,
    "LayerNormalization": normalisation.layer_normalization,
    # activation
    "Celu": activation.celu,
    "Dropout": dropout.dropout,
    "Elu": activation.elu,
    "Erf": activation.erf,
    "Gelu": activation.gelu,
    "HardSigmoid": activation.hard_sigmoid,
    "HardSwish": activation.hard_swish,
    "LeakyRelu": activation.leaky_relu,
    "LogSoftmax": activation.log_softmax,
    "Mish": activation.mish,
    "PRelu": activation.prelu,
    "Relu": activation.relu,
    "Selu": activation.selu,
    "Sigmoid": activation.sigmoid,
    "Softmax": activation.softmax,
    "Softplus": activation.softplus,
    "Softsign": activation.softsign,
    "Tanh": np.tanh,
    "ThresholdedRelu": activation.thresholded_relu,
    # elementwise
    "Abs": np.abs,
    "Add": np.add,
    "And": np.logical_and,
    "Cast": elementwise.cast,
    "Ceil": np.ceil,
    "Clip": elementwise.clip,
    "Cos": np.cos,
    "Div": elementwise.div,
    "Equal": np.equal,
    "Exp": np.exp,
    "Floor": np.floor,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "IsNaN": np.isnan,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Log": np.log,
    "Max": elementwise.maximum,
    "Mean": elementwise.mean,
    "Min": elementwise.minimum,
    "Mod": elementwise.mod,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Pow": elementwise.power,
    "Reciprocal": elementwise.reciprocal,
    "Round": np.rint,
    "Sign": np.sign,
    "Sin": np.sin,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
    "Sum": elementwise.total,
    "Where": np.where,
    "Xor": np.logical_xor,
    # reduction
    "ArgMax": reduction.argmax,
    "ArgMin": reduction.argmin,
    "CumSum": reduction.cumsum,
    "ReduceL1": reduction.reduce_l1,
    "ReduceL2": reduction.reduce_l2,
    "ReduceLogSum": reduction.reduce_log_sum,
    "ReduceLogSumExp": reduction.reduce_log_sum_exp,
    "ReduceMax": reduction.reduce_max,
    "ReduceMean": reduction.reduce_mean,
    "ReduceMin": reduction.reduce_min,
    "ReduceProd": reduction.reduce_prod,
    "ReduceSum": reduction.reduce_sum,
    "ReduceSumSquare": reduction.reduce_sum_square,
    # indexing
    "Gather": indexing.gather,
    "GatherElements": indexing.gather_elements,
    "GatherND": indexing.gather_nd,
    "ScatterElements": indexing.scatter_elements,
    "ScatterND": indexing.scatter_nd,
    # shape
    "Concat": shape.concat,
    "ConstantOfShape": shape.constant_of_shape,
    "DepthToSpace": shape.depth_to_space,
    "Expand": shape.expand,
    "Flatten": shape.flatten,
    "Identity": shape.identity,
    "OneHot": shape.one_hot,
    "Pad": shape.pad,
    "Range": shape.range_,
    "Reshape": shape.reshape,
    "Shape": shape.shape_of,
    "Size": shape.size_of,
    "Slice": shape.slice_,
    "SpaceToDepth": shape.space_to_depth,
    "Split": shape.split,
    "Squeeze": shape.squeeze,
    "Tile": shape.tile,
    "Transpose": shape.transpose,
    "Unsqueeze": shape.unsqueeze,
}
