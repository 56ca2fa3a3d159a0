"""Exports of scikit-learn (skl2onnx) and its like: the ``ai.onnx.ml`` domain brought down to ordinary operators.

What a person reads is cut off: label outputs and ZipMaps. What was learnt becomes parameters with names that lead back
(``<node>.coefficients``, ``<node>.intercepts``), what was measured (means and scales of a Scaler) stays constant. A
probability is written as a Softmax or Sigmoid of the linear score wherever that is exact, so that a loss finds the
score. :func:`restore` is the way back for trained weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edge_sdk.errors import CompileError

__all__ = ["ML_DOMAIN", "cut_heads", "lowered", "restore"]

ML_DOMAIN: Final = "ai.onnx.ml"
FLOATS: Final = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
AXES_ARE_INPUTS: Final = 18
"""From this opset on ReduceMax and its like take their axes as an input."""
UNTRAINABLE: Final = {
    "TreeEnsemble": "trees have no gradient: train a model that has one (MLPClassifier, LogisticRegression)",
    "SVM": "a kernel machine keeps its examples: use LinearSVC or SGDClassifier",
    "Imputer": "fill missing values before the model",
    "OneHotEncoder": "encode categories before the model",
    "LabelEncoder": "encode categories before the model",
}


def is_classical(model: onnx.ModelProto) -> bool:
    """Whether the model uses the classical-ML domain."""
    return any(opset.domain == ML_DOMAIN for opset in model.opset_import)


def cut_heads(model: onnx.ModelProto) -> onnx.ModelProto:
    """A classical model without ZipMaps and label outputs; any other model as it is.

    Raises:
        CompileError: Nothing is left: the model gives labels only.
    """
    if not is_classical(model):
        return model
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    zipped = {node.output[0]: node.input[0] for node in cut.graph.node if node.op_type == "ZipMap"}
    outputs = []
    for info in model.graph.output:
        if info.name in zipped:
            outputs.append(helper.make_tensor_value_info(zipped[info.name], TensorProto.FLOAT, None))
        elif info.type.tensor_type.elem_type in FLOATS:
            outputs.append(info)
    if not outputs:
        names = [info.name for info in model.graph.output]
        raise CompileError(f"outputs {names}: are labels only; export the model with its scores or probabilities")
    del cut.graph.output[:]
    cut.graph.output.extend(outputs)
    _keep_needed(cut.graph, [info.name for info in outputs])
    return cut


def lowered(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model whose heads are cut, in operators of the default domain alone; any other model as it is.

    Raises:
        CompileError: Names the node that cannot be trained and what to do.
    """
    if not is_classical(model):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    lowering = _Lowering(result)
    del result.graph.node[:]
    for node in model.graph.node:
        lowering.add(node)
    result.graph.node.extend(lowering.nodes)
    result.graph.initializer.extend(lowering.initializers)
    version = _version(model)
    del result.opset_import[:]
    result.opset_import.append(helper.make_opsetid("", version))
    _keep_needed(result.graph, [info.name for info in result.graph.output])
    return result


def restore(node: onnx.NodeProto, arrays: Mapping[str, NDArray[Any]]) -> set[str]:
    """Write trained weights back into a LinearClassifier or LinearRegressor, in place.

    Args:
        node: A node of the source model.
        arrays: Trained arrays by parameter name.

    Returns:
        The names that were used.
    """
    used = set()
    for part in ("coefficients", "intercepts"):
        name = f"{_stem(node)}.{part}"
        attribute = next((a for a in node.attribute if a.name == part), None)
        if node.domain != ML_DOMAIN or name not in arrays or attribute is None:
            continue
        values = arrays[name].ravel()
        if len(attribute.floats) == 2 * values.size:
            values = np.concatenate([-values, values])
        del attribute.floats[:]
        attribute.floats.extend(values.tolist())
        used.add(name)
    return used


class _Lowering:
    """Nodes of the new graph, one source node after the other."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._version = _version(model)
        self._integers = {i.name for i in model.graph.input if i.type.tensor_type.elem_type not in FLOATS}
        self._arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self._makers: dict[str, onnx.NodeProto] = {}

    def add(self, node: onnx.NodeProto) -> None:
        if node.domain != ML_DOMAIN:
            if not self._binary_probabilities(node) and not self._written_out_sigmoid(node):
                self._append(node)
            return
        rewrite = LOWERED.get(node.op_type)
        if rewrite is None:
            why = next((text for kind, text in UNTRAINABLE.items() if node.op_type.startswith(kind)), "")
            raise CompileError(
                f"node {node.name or node.output[0]!r}: operator {node.op_type!r} of {ML_DOMAIN} cannot be trained; "
                f"{why or 'leave it out of the exported pipeline'}"
            )
        rewrite(self, node, {a.name: helper.get_attribute_value(a) for a in node.attribute})

    def scaler(self, node: onnx.NodeProto, given: Mapping[str, Any]) -> None:
        offset, scale = (np.array(given.get(key, default), np.float32) for key, default in SCALER.items())
        if not np.all(scale):
            raise CompileError(f"node {node.name!r}: the Scaler has a scale of 0; leave that feature out")
        stem = _stem(node)
        centred = self._op("Sub", [self._float(node.input[0]), self._array(f"{stem}.offset", offset)])
        self._op("Div", [centred, self._array(f"{stem}.divisor", 1 / scale)], output=node.output[0])

    def linear_regressor(self, node: onnx.NodeProto, given: Mapping[str, Any]) -> None:
        if given.get("post_transform", b"NONE") != b"NONE":
            raise CompileError(f"node {node.name!r}: post_transform {given['post_transform']!r} is not supported")
        targets = int(given.get("targets", 1))
        self._linear(node, np.array(given["coefficients"], np.float32).reshape(targets, -1), given, node.output[0])

    def linear_classifier(self, node: onnx.NodeProto, given: Mapping[str, Any]) -> None:
        intercepts = np.array(given.get("intercepts", ()), np.float32)
        labels = max(len(given.get("classlabels_ints", ())), len(given.get("classlabels_strings", ())))
        rows = len(intercepts) or labels
        weights = np.array(given["coefficients"], np.float32).reshape(rows, -1)
        after, scores = given.get("post_transform", b"NONE"), node.output[1]
        mirrored = rows == 1 or (rows == 2 and np.array_equal(weights[0], -weights[1]) and not np.any(intercepts.sum()))
        if after not in (b"NONE", b"LOGISTIC", b"SOFTMAX"):
            raise CompileError(f"node {node.name!r}: post_transform {after!r} is not supported")
        if labels == 2 and mirrored and after != b"SOFTMAX":
            z = self._linear(node, weights[-1:], {"intercepts": intercepts[-1:]})
            half = 0.5 if after == b"LOGISTIC" else 1.0  # softmax(-z/2, z/2) is (1 - sigmoid(z), sigmoid(z))
            self._mirrored(z, half, "Softmax" if after == b"LOGISTIC" else "", scores)
            return
        final = {b"LOGISTIC": ("Sigmoid", {}), b"SOFTMAX": ("Softmax", {"axis": 1})}.get(after)
        z = self._linear(node, weights, given, "" if final else scores)
        if final:
            self._op(final[0], [z], output=scores, **final[1])

    def normalizer(self, node: onnx.NodeProto, given: Mapping[str, Any]) -> None:
        x, norm = self._float(node.input[0]), given.get("norm", b"MAX")
        maker = self._makers.get(x)
        if norm == b"L1" and maker is not None and maker.op_type == "Softmax":
            self._op("Identity", [x], output=node.output[0])
        elif norm == b"L1" and maker is not None and maker.op_type == "Sigmoid":
            # sigmoid(z) / sum(sigmoid(z)) is the softmax of log(sigmoid(z)).
            log = self._op("Neg", [self._op("Softplus", [self._op("Neg", [maker.input[0]])])])
            self._op("Softmax", [log], output=node.output[0], axis=1)
        else:
            kind = {b"L1": "ReduceL1", b"L2": "ReduceL2"}.get(norm, "ReduceMax")
            size = self._reduced(kind, self._op("Abs", [x]) if kind == "ReduceMax" else x)
            self._op("Div", [x, size], output=node.output[0])

    def array_feature_extractor(self, node: onnx.NodeProto, given: Mapping[str, Any]) -> None:
        index = self._arrays.get(node.input[1])
        if index is None:
            raise CompileError(f"node {node.name!r}: picks features by a computed index; leave it out of the export")
        picked = self._array(f"{_stem(node)}.index", index.reshape(-1).astype(np.int64))
        self._op("Gather", [node.input[0], picked], output=node.output[0], axis=1)

    def feature_vectorizer(self, node: onnx.NodeProto, given: Mapping[str, Any]) -> None:
        self._op("Concat", [self._float(name) for name in node.input], output=node.output[0], axis=1)

    def _linear(
        self, node: onnx.NodeProto, weights: NDArray[np.float32], given: Mapping[str, Any], output: str = ""
    ) -> str:
        stem = _stem(node)
        inputs = [self._float(node.input[0]), self._array(f"{stem}.coefficients", weights)]
        if len(given.get("intercepts", ())):
            inputs.append(self._array(f"{stem}.intercepts", np.array(given["intercepts"], np.float32)))
        else:
            inputs.append(self._array(f"{stem}.intercepts", np.zeros(len(weights), np.float32)))
        return self._op("Gemm", inputs, output=output, transB=1)

    def _binary_probabilities(self, node: onnx.NodeProto) -> bool:
        """``Concat(1 - sigmoid(z), sigmoid(z))``, as skl2onnx writes a binary MLP, is a softmax of ``(-z/2, z/2)``."""
        if node.op_type != "Concat" or len(node.input) != 2:
            return False
        other, sigmoid = (self._makers.get(name) for name in node.input)
        if sigmoid is None or other is None or sigmoid.op_type != "Sigmoid" or other.op_type != "Sub":
            return False
        one = self._arrays.get(other.input[0])
        if one is None or other.input[1] != node.input[1] or not np.all(one == 1):
            return False
        self._mirrored(sigmoid.input[0], 0.5, "Softmax", node.output[0])
        return True

    def _written_out_sigmoid(self, node: onnx.NodeProto) -> bool:
        """``1 / (exp(-z) + 1)``, as skl2onnx writes an SGDClassifier, which overflows where a Sigmoid does not."""
        chain: list[onnx.NodeProto | None] = [node]
        for op in ("Reciprocal", "Add", "Exp", "Mul"):
            last = chain[-1]
            if last is None or last.op_type != op:
                return False
            chain.append(self._makers.get(last.input[0]))
        added, negated = chain[1], chain[3]
        assert added is not None and negated is not None
        one, minus = self._arrays.get(added.input[1]), self._arrays.get(negated.input[1])
        if one is None or minus is None or not np.all(one == 1) or not np.all(minus == -1):
            return False
        self._op("Sigmoid", [negated.input[0]], output=node.output[0])
        return True

    def _mirrored(self, z: str, factor: float, final: str, output: str) -> None:
        both = [
            self._op("Mul", [z, self._array(f"{output}.{sign}", np.array(f, np.float32))])
            for sign, f in (("minus", -factor), ("plus", factor))
        ]
        joined = self._op("Concat", both, output="" if final else output, axis=1)
        if final:
            self._op(final, [joined], output=output, axis=1)

    def _reduced(self, op: str, x: str) -> str:
        if self._version >= AXES_ARE_INPUTS:
            return self._op(op, [x, self._array(f"{x}.axes", np.array([1], np.int64))], keepdims=1)
        return self._op(op, [x], keepdims=1, axes=[1])

    def _float(self, name: str) -> str:
        return self._op("Cast", [name], to=TensorProto.FLOAT) if name in self._integers else name

    def _array(self, name: str, array: NDArray[Any]) -> str:
        if name not in self._arrays:
            self._arrays[name] = array
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name))
        return name

    def _op(self, op: str, inputs: Sequence[str], *, output: str = "", **attributes: Any) -> str:
        name = output or f"{op}_of_{'_'.join(inputs[:1])}_{len(self.nodes)}"
        self._append(helper.make_node(op, inputs, [name], name=f"{name}/{op}", **attributes))
        return name

    def _append(self, node: onnx.NodeProto) -> None:
        self.nodes.append(node)
        self._makers.update((name, node) for name in node.output)


SCALER: Final[Mapping[str, Sequence[float]]] = {"offset": (0.0,), "scale": (1.0,)}
LOWERED: Final[Mapping[str, Callable[[_Lowering, onnx.NodeProto, Mapping[str, Any]], None]]] = {
    "ArrayFeatureExtractor": _Lowering.array_feature_extractor,
    "FeatureVectorizer": _Lowering.feature_vectorizer,
    "LinearClassifier": _Lowering.linear_classifier,
    "LinearRegressor": _Lowering.linear_regressor,
    "Normalizer": _Lowering.normalizer,
    "Scaler": _Lowering.scaler,
}


def _stem(node: onnx.NodeProto) -> str:
    return str(node.name or node.output[0])


def _version(model: onnx.ModelProto) -> int:
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 21)


def _keep_needed(graph: onnx.GraphProto, outputs: Iterable[str]) -> None:
    needed, kept = set(outputs), []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(initializers)
