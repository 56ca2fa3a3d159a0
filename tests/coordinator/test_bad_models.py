"""Bad input, through the configuration as a data scientist meets it: each refused with what and where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx_graphs import model_of

from coordinator.config import FederationConfig
from coordinator.setup import build_bundle
from edge_sdk.errors import EdgeFedError

FLOAT = onnx.TensorProto.FLOAT
W = np.random.default_rng(0).standard_normal((4, 3))


def dense(**options: Any) -> onnx.ModelProto:
    return model_of("y = MatMul(x, w)", {"w": W}, **{"inputs": {"x": ["n", 4]}, **options})


def said(path: Path, **model: Any) -> str:
    values = {"onnx": str(path), "loss": "softmax_cross_entropy", **model}
    config = FederationConfig.model_validate({"federation": {"name": "x"}, "model": values})
    with pytest.raises(EdgeFedError) as caught:
        build_bundle(config)
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "holds no graph; is it an ONNX model, and complete?"),
        (b"PK\x03\x04 not a model", "not an ONNX model; is the file complete?"),
        (dense().SerializeToString()[:-20], "complete?"),
    ],
)
def test_files_that_are_no_model(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    text = said(path)
    assert str(path) in text and message in text


@pytest.mark.parametrize(
    ("model", "options", "messages"),
    [
        (dense(inputs={"x": ["n", "m"]}), {}, ("input 'x'", "only the first dimension")),
        (dense(dtype=np.float64), {}, ("input 'x'", "float64", "export in float32")),
        (dense(), {"loss": "reconstruction"}, ("output 'y' has shape ['batch', 3]", "no input has it")),
        (dense(), {"output": "z"}, ("output 'z': the model has no such output; it has y",)),
        (dense(), {"train": ["fc*"]}, ("train 'fc*': fits none of the parameters w",)),
        (dense(), {"freeze": ["*"]}, ("nothing is left to train",)),
        (dense(), {"lora": ["w"]}, ("rank 8 saves nothing for 'w' [4, 3]",)),
        (dense(), {"class_weights": [1.0]}, ("class weights: 1 are given, the model has 3 classes",)),
        (dense(), {"mask": "mask"}, ("mask 'mask': there is one label or value for each example",)),
        (dense(), {"class_axis": 2}, ("output 'y' has shape ['batch', 3]",)),
    ],
)
def test_models_and_options_that_do_not_fit(
    tmp_path: Path, model: onnx.ModelProto, options: dict[str, Any], messages: tuple[str, ...]
) -> None:
    onnx.save(model, tmp_path / "model.onnx")
    text = said(tmp_path / "model.onnx", **options)
    for message in messages:
        assert message in text, text


SIZE_FROM_DATA = "h = MatMul(x, w); s = ReduceMax<keepdims=0>(x); i = Cast<to=7>(s); k = Reshape(i, one); "


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("z = Slice(h, zero, k, one); y = ReduceSum(z, one)", ("output 'y'", "['?', 1]", "depend on the data")),
        ("z, at = TopK(h, k); y = ReduceSum(z, one)", ("output 'y'", "depend on the data", "pad or mask")),
        ("n = NonZero(h); t = Transpose(n); y = GatherND(h, t)", ("output 'y'", "depend on the data")),
        ("c = Concat<axis=0>(one, one, k); u = Unsqueeze(h, two); z = Expand(u, c); y = ReduceSum<keepdims=0>(z, two)",
         ("value 'z'", "could not be inferred", "static shapes")),
        ("m = ReduceSum<keepdims=0>(h, zero); c = Cast<to=9>(m); z = Compress<axis=1>(h, c); y = MatMul(z, w)",
         ("node 'z' (Compress, opset 21)", "no gradient rule", "freeze")),
    ],
)  # fmt: skip
def test_a_size_that_depends_on_the_data_is_refused(tmp_path: Path, text: str, messages: tuple[str, ...]) -> None:
    constants = {"w": W, **{name: np.array([i]) for i, name in enumerate(("zero", "one", "two"))}}
    onnx.save(model_of(SIZE_FROM_DATA + text, constants, inputs={"x": ["n", 4]}), tmp_path / "model.onnx")
    said_of_it = said(tmp_path / "model.onnx", loss="mean_squared_error")
    for message in messages:
        assert message in said_of_it, said_of_it


def test_a_loop_whose_count_depends_on_the_data_is_refused_with_its_node(tmp_path: Path) -> None:
    def info(name: str, kind: int, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [helper.make_node("Tanh", ["v"], ["v2"]), helper.make_node("Identity", ["go"], ["go2"])],
        "body",
        [info("turn", onnx.TensorProto.INT64), info("go", onnx.TensorProto.BOOL), info("v", FLOAT, "n", 3)],
        [info("go2", onnx.TensorProto.BOOL), info("v2", FLOAT, "n", 3)],
    )
    model = model_of(SIZE_FROM_DATA + "y = Identity(h)", {"w": W, "one": np.array([1])}, inputs={"x": ["n", 4]})
    model.graph.node[-1].CopyFrom(helper.make_node("Loop", ["i", "", "h"], ["y"], name="turns", body=body))
    model.graph.output[0].CopyFrom(info("y", FLOAT, "n", 3))
    onnx.save(model, tmp_path / "model.onnx")
    text = said(tmp_path / "model.onnx", loss="mean_squared_error")
    assert "node 'turns' (Loop" in text and "control flow that depends on data" in text, text


def test_every_option_of_the_configuration_reaches_the_compiler(tmp_path: Path) -> None:
    model = model_of(
        "h = Gemm(x, fc1, b1); t = Tanh(h); y = Gemm(t, fc2, b2); z = Identity(t)",
        {"fc1": W.repeat(3, axis=1), "b1": np.ones(9), "fc2": np.ones((9, 3)), "b2": np.arange(3.0)},
        inputs={"x": ["n", 4]},
        outputs=("z", "y"),
    )
    onnx.save(model, tmp_path / "model.onnx")
    values = {
        "onnx": str(tmp_path / "model.onnx"),
        "loss": "softmax_cross_entropy",
        "optimizer": "nesterov",
        "proximal": True,
        "weight_decay": True,
        "clip_gradients": True,
        "output": "y",
        "label_smoothing": True,
        "class_weights": [1.0, 2.0, 1.0],
        "ignore_index": -1,
        "class_axis": -1,
        "lora": ["fc1"],
        "lora_rank": 2,
        "train": ["b*"],
        "freeze": ["b1"],
    }
    config = FederationConfig.model_validate(
        {"federation": {"name": "x"}, "model": values, "training": {"proximal_mu": 0.1}}
    )
    program = build_bundle(config).program
    assert [t.name for t in program.spec] == ["b2", "fc1.lora_a", "fc1.lora_b"]
    assert set(program.scalars) == {"lr", "momentum", "weight_decay", "mu", "gradient_norm_max", "label_smoothing"}
    assert (program.ignore_index, program.classes, program.optimizer) == (-1, 3, "nesterov")
