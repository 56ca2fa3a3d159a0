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
    elementwise,
    linear,
    normalisation,
    pooling,
    shape,
)
from coordinator.compile.rules.rule import Gradient, Gradients, Rule, Wanted

__all__ = ["RULES", "Gradient", "Gradients", "Rule", "Wanted"]

RULES: Final[Mapping[str, Rule]] = {
    "Add": Rule(elementwise.add, parameters=(0, 1)),
    "AveragePool": Rule(pooling.average_pool),
    "BatchNormalization": Rule(
        normalisation.batch_normalization,
        parameters=(1, 2, 3, 4),
        statistics=(3, 4),
        training=normalisation.batch_normalization_training,
    ),
    "Conv": Rule(convolution.conv, parameters=(1, 2)),
    "ConvTranspose": Rule(convolution.conv_transpose, parameters=(1, 2)),
    "Div": Rule(elementwise.div),
    "Dropout": Rule(dropout.dropout, training=dropout.dropout_training),
    "Flatten": Rule(shape.reshape),
    "Gemm": Rule(linear.gemm, parameters=(0, 1, 2)),
    "GlobalAveragePool": Rule(pooling.global_average_pool),
    "GlobalMaxPool": Rule(pooling.global_max_pool),
    "GroupNormalization": Rule(
        normalisation.group_normalization, parameters=(1, 2), training=normalisation.group_normalization_training
    ),
    "Identity": Rule(shape.identity),
    "InstanceNormalization": Rule(
        normalisation.instance_normalization, parameters=(1, 2), training=normalisation.instance_normalization_training
    ),
    "LayerNormalization": Rule(
        normalisation.layer_normalization, parameters=(1, 2), training=normalisation.layer_normalization_training
    ),
    "LpPool": Rule(pooling.lp_pool),
    "MatMul": Rule(linear.matmul, parameters=(0, 1)),
    "MaxPool": Rule(pooling.max_pool, training=pooling.max_pool_training),
    "Mul": Rule(elementwise.mul, parameters=(0, 1)),
    "Neg": Rule(elementwise.neg),
    "Relu": Rule(activation.relu),
    "Reshape": Rule(shape.reshape, parameters=(0,)),
    "Sigmoid": Rule(activation.sigmoid),
    "Softplus": Rule(activation.softplus),
    "Squeeze": Rule(shape.reshape, parameters=(0,)),
    "Sub": Rule(elementwise.sub),
    "Tanh": Rule(activation.tanh),
    "Transpose": Rule(shape.transpose, parameters=(0,)),
    "Unsqueeze": Rule(shape.reshape, parameters=(0,)),
}
"""Operator of the default domain -> its rule. In Sub and Div, initializers are constants (normalisation of inputs)."""
