"""Compile ONNX inference models into bundles that devices train: gradients, loss and optimiser as ordinary ONNX ops."""

from __future__ import annotations

from coordinator.compile.compiler import compile_model
from coordinator.compile.describe import describe
from coordinator.compile.export import export_onnx, merge_into_source
from coordinator.compile.import_ import load_onnx, read_onnx
from coordinator.compile.lora import Lora
from coordinator.compile.losses import LOSSES, LossOptions
from coordinator.compile.optimizers import OPTIMIZERS
from coordinator.compile.raw_inputs import NormaliseOptions
from coordinator.compile.verify import Verification, verify_program
from coordinator.compile.zoo import ZOO, build_zoo_model, zoo_loss

__all__ = [
    "LOSSES",
    "OPTIMIZERS",
    "ZOO",
    "Lora",
    "LossOptions",
    "NormaliseOptions",
    "Verification",
    "build_zoo_model",
    "compile_model",
    "describe",
    "export_onnx",
    "load_onnx",
    "merge_into_source",
    "read_onnx",
    "verify_program",
    "zoo_loss",
]
