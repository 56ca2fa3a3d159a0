"""Resize and Einsum against onnxruntime and NumPy, in the forms that ONNX's own cases leave out; hostile forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from edge_sdk.errors import TrainingError
from edge_sdk.training.engine.executor import Executor
from edge_sdk.training.engine.kernels import KERNELS
from edge_sdk.training.numpy_plan import Node, NumpyPlan

COORDINATES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
SPECS: list[dict[str, Any]] = [
    {"scales": np.array([1, 1, 2, 2], np.float32)},
    {"scales": np.array([1, 1, 0.6, 1.5], np.float32)},
    {"sizes": np.array([2, 3, 7, 9])},
    {"sizes": np.array([2, 3, 3, 1])},
]


def by_onnxruntime(op: str, operands: dict[str, Any], names: list[str], **attributes: Any) -> Any:
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in operands.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], **attributes)], "one", inputs, [onnx.ValueInfoProto(name="y")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, operands)[0]


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_agrees_with_onnxruntime_in_every_mode(mode: str, coordinates: str) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 4)).astype(np.float32)
    attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": coordinates}
    forms = [{"nearest_mode": nearest} for nearest in ("round_prefer_floor", "round_prefer_ceil", "ceil")]
    for form in forms if mode == "nearest" else [{"antialias": 0}, {"antialias": 1}]:
        for spec in SPECS:
            names = ["x", "", *(["", "sizes"] if "sizes" in spec else ["scales"])]
            expected = by_onnxruntime("Resize", {"x": x, **spec}, names, **attributes, **form)
            found = KERNELS["Resize"](x, None, spec.get("scales"), spec.get("sizes"), **attributes, **form)
            assert found.dtype == np.float32
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6, err_msg=f"{form} {spec}")


EQUATIONS = [
    ("ij,jk->ik", (3, 4), (4, 5)),
    ("ij,jk", (3, 4), (4, 5)),
    ("bij,bjk->bik", (6, 3, 4), (6, 4, 5)),
    ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
    ("bqhd,bkhd->bhqk", (2, 4, 3, 5), (2, 6, 3, 5)),
    ("ij,kl->lj", (3, 4), (2, 5)),
    ("ij,ij->", (3, 4), (3, 4)),
    ("i,j->ji", (3,), (4,)),
    ("...ij,...jk->...ik", (2, 1, 3, 4), (5, 4, 2)),
    ("...i,ij->...j", (2, 3, 4), (4, 5)),
    ("ij,jk,kl->il", (3, 4), (4, 5), (5, 2)),
    ("bi,kij,bj->bk", (6, 3), (2, 3, 4), (6, 4)),
    ("a,b,c,d->dcba", (2,), (3,), (4,), (5,)),
    ("ij,jk,kl,lm,mn->in", (3, 4), (4, 5), (5, 2), (2, 6), (6, 3)),
    ("ii,ij->j", (3, 3), (3, 4)),
    ("iij->j", (3, 3, 4)),
    ("ij->ji", (3, 4)),
    ("ij->", (3, 4)),
    ("ba", (3, 4)),
    ("ij,jk->ik", (3, 0), (0, 5)),
    ("Ab,bC->AC", (3, 4), (4, 2)),
]


@pytest.mark.parametrize(("equation", "shapes"), [(e, s) for e, *s in EQUATIONS])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_einsum_is_that_of_numpy(equation: str, shapes: list[tuple[int, ...]], dtype: str) -> None:
    rng = np.random.default_rng(1)
    operands = [rng.integers(-4, 5, shape).astype(dtype) for shape in shapes]
    found = KERNELS["Einsum"](*operands, equation=equation)
    expected = np.einsum(equation, *operands)
    assert np.asarray(found).dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("op", "arrays", "attributes"),
    [
        ("Einsum", [np.ones((2, 3))], {"equation": "ij,jk->ik"}),
        ("Einsum", [np.ones((2, 3))], {"equation": "ijk->ik"}),
        ("Einsum", [np.ones((2, 3))], {"equation": "ij->z"}),
        ("Einsum", [np.ones(1 << 12)] * 4, {"equation": "a,b,c,d->abcd"}),
        ("Einsum", [np.ones((2, 3)), np.ones((4, 5))], {"equation": "ij,jk->ik"}),
        ("Einsum", [np.ones(2)], {"equation": "é->é"}),
        ("Resize", [np.ones((1, 1, 2)), None, np.array([1, 1, 1e9])], {}),
        ("Resize", [np.ones((1, 1, 2)), None, np.array([1, 1, np.nan])], {}),
        ("Resize", [np.ones((1, 1, 2)), None, None, np.array([1, 1, 1 << 40])], {}),
        ("Resize", [np.ones((1, 1, 2)), None, None, np.array([1, 1, -3])], {}),
        ("Resize", [np.ones((1, 1, 2)), None, np.array([1, 1, 2])], {"mode": "round"}),
        ("Resize", [np.ones((1, 1, 2))], {}),
        ("TopK", [np.ones(3), np.array([4])], {}),
        ("TopK", [np.ones(3), np.array([-1])], {}),
        ("Hardmax", [np.ones(3)], {"axis": 2}),
    ],
)
def test_hostile_forms_end_in_a_training_error(op: str, arrays: list[Any], attributes: dict[str, Any]) -> None:
    names = tuple(f"in{i}" if a is not None else "" for i, a in enumerate(arrays))
    outputs = ("out", "more") if op == "TopK" else ("out",)
    feeds = {name: array for name, array in zip(names, arrays, strict=True) if name}
    executor = Executor(NumpyPlan(tuple(feeds), outputs, {}, (Node(op, names, outputs, attributes),)), "hostile")
    with pytest.raises(TrainingError, match=f"hostile: {op} -> 'out'"):
        executor.run(feeds)


def test_the_greatest_elements_come_in_order_and_the_first_of_equals_wins() -> None:
    values, indices = KERNELS["TopK"](np.array([[1.0, 3, 3, 2], [5, 5, 5, 5]]), np.array([3]))
    assert values.tolist() == [[3, 3, 2], [5, 5, 5]] and indices.tolist() == [[1, 2, 3], [0, 1, 2]]
    values, indices = KERNELS["TopK"](np.array([3, 1, 1, 2], np.uint8), np.array([2]), axis=0, largest=0)
    assert values.tolist() == [1, 1] and indices.tolist() == [1, 2]
