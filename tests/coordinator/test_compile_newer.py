"""Operators from after the working opset, as PyTorch exports them from opset 23 on: written out, verified, trained."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from coordinator.compile import compile_model, describe
from coordinator.compile.export import merge_into_source
from edge_sdk.errors import CompileError

RNG = np.random.default_rng(0)
W = 0.5 * RNG.standard_normal((8, 24))
S = RNG.uniform(0.5, 1.5, 8)
"""A scale with a pattern, as training leaves it."""


def model_of(text: str, arrays: dict[str, Any], x: tuple[int, ...], opset: int = 24, **inputs: Any) -> onnx.ModelProto:
    entries = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *x])]
    entries += [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    cast = {
        n: np.asarray(a, np.float32) if np.asarray(a).dtype.kind == "f" else np.asarray(a) for n, a in arrays.items()
    }
    graph = helper.make_graph(
        [parser.parse_node(line.strip()) for line in text.split(";")],
        "newer",
        entries,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", None, None][: 1 + len(x)])],
        [numpy_helper.from_array(array, name) for name, array in cast.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def compiled(model: onnx.ModelProto) -> Any:
    return compile_model(model, loss="mean_squared_error", name="newer")  # compared with the source on onnxruntime


SPLIT = "p = MatMul(x, w); q, k, v = Split<axis=-1, num_outputs=3>(p)"
HEADS = (
    f"{SPLIT}; q4 = Reshape(q, s4); qh = Transpose<perm=[0,2,1,3]>(q4); k4 = Reshape(k, s4);"
    "kh = Transpose<perm=[0,2,1,3]>(k4); v4 = Reshape(v, s4); vh = Transpose<perm=[0,2,1,3]>(v4)"
)
MASK = np.tril(np.ones((5, 5), np.bool_))


@pytest.mark.parametrize(
    ("text", "arrays", "x", "opset", "parameters"),
    [
        ("h = MatMul(x, w); y = RMSNormalization(h, s)", {"w": W[:, :8], "s": S}, (8,), 23, ["w", "s"]),
        ("y = RMSNormalization<axis=1, epsilon=0.1>(x, s)", {"s": RNG.uniform(1, 2, (5, 8))}, (5, 8), 23, ["s"]),
        ("h = MatMul(x, w); y = Swish(h)", {"w": W}, (8,), 24, ["w"]),
        ("h = MatMul(x, w); y = Swish<alpha=1.7>(h)", {"w": W}, (8,), 24, ["w"]),
        (f"{SPLIT}; y = Attention<q_num_heads=2, kv_num_heads=2>(q, k, v)", {"w": W}, (5, 8), 23, ["w"]),
        (
            f"{HEADS}; a = Attention<is_causal=1>(qh, kh, vh); y = Flatten(a)",
            {"w": W, "s4": [0, 0, 2, 4]},
            (5, 8),
            23,
            ["w"],
        ),
        (
            f"{HEADS}; a = Attention<scale=0.3, softcap=2.0>(qh, kh, vh, mask); y = Flatten(a)",
            {"w": W, "s4": [0, 0, 2, 4], "mask": MASK},
            (5, 8),
            23,
            ["w"],
        ),
    ],
    ids=["RMSNormalization", "RMSNormalization-axes", "Swish", "Swish-alpha", "Attention", "causal", "masked"],
)
def test_a_newer_operator_trains_on_both_engines(
    text: str, arrays: dict[str, Any], x: tuple[int, ...], opset: int, parameters: list[str]
) -> None:
    told = describe(compiled(model_of(text, arrays, x, opset)))
    assert [p["name"] for p in told["parameters"]] == parameters
    assert told["runs_on"] == ["onnxruntime", "numpy"]


def test_an_opset_beyond_ours_converts_where_nothing_in_it_is_new() -> None:
    assert compiled(model_of("h = MatMul(x, w); y = Gelu(h)", {"w": W}, (8,), 23))


def test_trained_weights_go_back_into_the_newer_file() -> None:
    model = model_of("h = MatMul(x, w); y = RMSNormalization(h, s)", {"w": W[:, :8], "s": S}, (8,), 23)
    bundle = compiled(model)
    exported = merge_into_source(bundle.program, bundle.parameters + 1, model)
    assert [node.op_type for node in exported.graph.node] == ["MatMul", "RMSNormalization"]
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in exported.graph.initializer}
    np.testing.assert_allclose(found["s"], S + 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "x", "message"),
    [
        (
            f"{SPLIT}; k2, rest = Split<axis=-1>(k, sizes); v2, rest2 = Split<axis=-1>(v, sizes);"
            "y = Attention<q_num_heads=2, kv_num_heads=1>(q, k2, v2)",
            (5, 8),
            "as many heads",
        ),
        ("y = CumProd(h, axis); h = MatMul(x, w)", (8,), "export the model at an earlier opset"),
    ],
)
def test_what_cannot_be_written_out_is_refused_by_node_operator_and_opset(
    text: str, x: tuple[int, ...], message: str
) -> None:
    nodes = text.split(";")
    text = ";".join(reversed(nodes)) if nodes[0].startswith("y") else text
    op = "CumProd" if "CumProd" in text else "Attention"
    model = model_of(text, {"w": W, "sizes": [4, 4], "axis": np.array(1)}, x, 26)
    with pytest.raises(CompileError, match=rf"node 'y' \({op}, opset 26\).*{message}"):
        compiled(model)
