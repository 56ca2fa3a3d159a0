"""Small ONNX models, and what the compiled ones are compared with: float64 and code that shares nothing with ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from edge_sdk.training.bundle import Bundle

Arrays = dict[str, NDArray[Any]]
Node = onnx.NodeProto

RATE = 1024.0  # a power of two: dividing the step by it is exact


def nodes_of(text: str) -> list[Node]:
    """Nodes in ONNX's own notation, ``h = MatMul(x, w); y = Relu(h)``."""
    return [parser.parse_node(line.strip()) for line in text.split(";")]


def model_of(
    text: str,
    constants: Mapping[str, Any],
    *,
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str] = ("y",),
    dtype: Any = np.float32,
    opset: int = 21,
    ir_version: int = 10,
) -> onnx.ModelProto:
    """A model; float constants and inputs are of ``dtype``, integers stay what they are."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    arrays = {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in arrays.items()}
    graph = helper.make_graph(
        nodes_of(text),
        "test",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def run(model: bytes, feeds: Mapping[str, Any]) -> Arrays:
    """The outputs of a model on onnxruntime, float64 feeds cast down, unknown feeds left out."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    wanted = {i.name for i in session.get_inputs()}
    cast = {n: np.asarray(a) for n, a in feeds.items() if n in wanted}
    cast = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in cast.items()}
    return dict(zip(names, session.run(names, cast), strict=True))


def step(bundle: Bundle, batch: Mapping[str, Any], **scalars: float) -> Arrays:
    """One step of the train graph from the bundle's parameters and zero state."""
    program = bundle.program
    feeds: dict[str, Any] = {**batch, **program.spec.unflatten(bundle.parameters)}
    feeds.update({name: np.zeros(shape, np.float32) for name, shape in program.state})
    feeds.update({name: np.array(value, np.float32) for name, value in {**program.scalars, **scalars}.items()})
    return run(program.train, feeds)


def gradients(bundle: Bundle, batch: Mapping[str, Any]) -> tuple[float, Arrays]:
    """Loss and gradients of a bundle that was compiled for plain SGD, from one step."""
    results = step(bundle, batch, lr=RATE)
    before = bundle.program.spec.unflatten(bundle.parameters)
    found = {name: (w.astype(np.float64) - results[f"new/{name}"]) / RATE for name, w in before.items()}
    return float(results["loss"]), found


class Erf(OpRun):
    """In float64, which the reference evaluator's own is not."""

    op_domain = ""

    def _run(self, x: Any) -> tuple[Any]:
        return (np.vectorize(math.erf, otypes=[np.float64])(x),)


def forward64(
    text: str, constants: Mapping[str, Any], inputs: Mapping[str, Sequence[Any]], output: str = "y"
) -> Callable[[Mapping[str, Any]], NDArray[np.float64]]:
    """``output`` in float64 by ONNX's reference evaluator, as a function of inputs and replaced constants."""
    free = {name: np.asarray(value) for name, value in constants.items() if np.asarray(value).dtype.kind == "f"}
    fixed = {name: value for name, value in constants.items() if name not in free}
    shapes = {**inputs, **{name: value.shape for name, value in free.items()}}
    wide = text.replace("Cast<to=1>", "Cast<to=11>")
    model = model_of(wide, fixed, inputs=shapes, outputs=[output], dtype=np.float64)
    evaluator = ReferenceEvaluator(model, new_ops=[Erf])

    def forward(feeds: Mapping[str, Any]) -> NDArray[np.float64]:
        whole = {**free, **feeds}
        result: Any = evaluator.run(None, {n: np.asarray(whole[n], np.float64) for n in shapes})
        return np.asarray(result[0])

    return forward


def directional(
    loss: Callable[[Mapping[str, Any]], float], values: Mapping[str, Any], name: str, direction: NDArray[np.float64]
) -> float:
    """The derivative of ``loss`` along ``direction`` in the argument ``name``, by central differences."""
    half = 1e-6
    start = np.asarray(values[name], np.float64)
    ahead = loss({**values, name: start + half * direction})
    behind = loss({**values, name: start - half * direction})
    return (ahead - behind) / (2 * half)
