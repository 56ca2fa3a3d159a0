"""Padded sequences: positions that a mask leaves out do not count in loss, gradient and metric."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_graphs import directional, forward64, gradients, model_of, run, step

from coordinator.__main__ import main
from coordinator.compile import LossOptions, compile_model, describe
from coordinator.compile.losses import LOSSES
from edge_sdk.errors import CompileError, DecodeError, ExamplesError
from edge_sdk.training.bundle import Bundle, Program
from edge_sdk.training.engine import make_engine
from edge_sdk.training.examples import as_examples

RNG = np.random.default_rng(3)
BATCH, POSITIONS, WIDTH = 4, 6, 3
TEXT = "y = MatMul(x, w)"
SHARED = "m3 = Unsqueeze(seen, axis); h = Mul(x, m3); y = MatMul(h, w)"
"""A model that takes the mask itself, as one with attention does."""

MASK = np.arange(POSITIONS) < np.array([6, 3, 1, 0])[:, None]
LOSS_NAMES = [name for name in LOSSES if name != "hinge"]


def sequence(text: str = TEXT, seen: tuple[int, list[Any]] | None = None, outputs: int = WIDTH) -> Any:
    inputs: dict[str, Any] = {"x": ("batch", POSITIONS, WIDTH)}
    if seen is not None:
        inputs["seen"] = seen[1]
    model = model_of(text, {"w": RNG.standard_normal((WIDTH, outputs)), "axis": np.array([2])}, inputs=inputs)
    if seen is not None:
        model.graph.input[1].type.tensor_type.elem_type = seen[0]
    return model


def compiled(loss: str, mask: str, model: Any = None, **options: Any) -> Bundle:
    model = sequence() if model is None else model
    return compile_model(model, loss=loss, loss_options=LossOptions(mask=mask, **options), name="masked", loop=False)


def examples(loss: str) -> dict[str, Any]:
    x = RNG.standard_normal((BATCH, POSITIONS, WIDTH)).astype(np.float32)
    if loss == "softmax_cross_entropy":
        return {"x": x, "target": RNG.integers(0, WIDTH, (BATCH, POSITIONS))}
    if loss == "reconstruction":
        return {"x": x, "target": x}
    target = RNG.standard_normal(x.shape) if loss != "binary_cross_entropy" else RNG.integers(0, 2, x.shape)
    return {"x": x, "target": target.astype(np.float32)}


def elements(loss: str, y: Any, target: Any) -> Any:
    """The loss of each element of the target, in float64 and by the book."""
    if loss == "softmax_cross_entropy":
        logs = y - np.log(np.exp(y).sum(-1, keepdims=True))
        return -np.take_along_axis(logs, target[..., None], -1)[..., 0]
    if loss == "binary_cross_entropy":
        return np.log1p(np.exp(y)) - y * target
    error = y - target
    if loss == "huber":
        return np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)
    return np.abs(error) if loss == "mean_absolute_error" else error**2


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_the_loss_is_the_mean_over_the_positions_that_count(loss: str) -> None:
    bundle, batch = compiled(loss, "mask"), examples(loss)
    weights = bundle.program.spec.unflatten(bundle.parameters)
    forward = forward64(TEXT, weights, {"x": ("batch", POSITIONS, WIDTH)})

    def mean(values: Any) -> float:
        return float(elements(loss, forward(values), batch["target"])[MASK].mean())

    trained, found = gradients(bundle, {**batch, "mask": MASK})
    point = {"x": batch["x"], **weights}
    assert trained == pytest.approx(mean(point), rel=1e-5)
    for _ in range(3):
        direction = RNG.standard_normal((WIDTH, WIDTH))
        expected = directional(mean, point, "w", direction)
        assert float(np.sum(found["w"] * direction)) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    evaluated = run(bundle.program.evaluate, {**batch, "mask": MASK, **weights})
    assert float(evaluated["loss_sum"]) / BATCH == pytest.approx(mean(point), rel=1e-5)


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_what_stands_in_the_padding_changes_nothing(loss: str) -> None:
    bundle, batch = compiled(loss, "mask"), examples(loss)
    other = {name: array.copy() for name, array in batch.items()}
    other["target"][~MASK] = 1 - other["target"][~MASK]
    if loss != "softmax_cross_entropy":
        other["target"][~MASK] = 1e30
    first, second = (step(bundle, {**values, "mask": MASK}, lr=0.5) for values in (batch, other))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])


@pytest.mark.parametrize("loss", LOSS_NAMES)
@pytest.mark.parametrize("engine", ["onnxruntime", "numpy"])
def test_a_batch_of_nothing_but_padding_moves_nothing_and_is_no_nan(loss: str, engine: str) -> None:
    bundle, batch = compiled(loss, "mask"), {**examples(loss), "mask": np.zeros_like(MASK)}
    made = make_engine(bundle.program, engine)
    handle = made.load(bundle.parameters)
    assert made.step(handle, batch, {"lr": 0.5}) == 0.0
    assert made.evaluate(handle, batch) == (0.0, 0.0)
    np.testing.assert_array_equal(made.read(handle), bundle.parameters)


@pytest.mark.parametrize("kind", ["FLOAT", "BOOL", "INT64", "INT32"])
@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "mean_squared_error"])
def test_an_input_of_the_model_may_be_the_mask(kind: str, loss: str) -> None:
    text = SHARED if kind == "FLOAT" else f"s = Cast<to=1>(seen); {SHARED.replace('seen', 's')}"
    model = sequence(text, (getattr(TensorProto, kind), ["batch", POSITIONS]))
    bundle = compiled(loss, "seen", model)
    assert [entry.name for entry in bundle.program.inputs] == ["x", "seen"]
    batch = examples(loss)
    seen = MASK.astype({"FLOAT": np.float32, "BOOL": np.bool_, "INT64": np.int64, "INT32": np.int32}[kind])
    weights = bundle.program.spec.unflatten(bundle.parameters)
    y = forward64(TEXT, weights, {"x": ("batch", POSITIONS, WIDTH)})({"x": batch["x"], **weights})
    trained, _ = gradients(bundle, {**batch, "seen": seen})
    assert trained == pytest.approx(float(elements(loss, y, batch["target"])[MASK].mean()), rel=1e-5)


def test_accuracy_is_that_of_the_positions_that_count() -> None:
    bundle, batch = compiled("softmax_cross_entropy", "mask"), examples("softmax_cross_entropy")
    weights = bundle.program.spec.unflatten(bundle.parameters)
    y = forward64(TEXT, weights, {"x": ("batch", POSITIONS, WIDTH)})({"x": batch["x"], **weights})
    found = run(bundle.program.evaluate, {**batch, "mask": MASK, **weights})
    assert float(found["metric_sum"]) / BATCH == pytest.approx((y.argmax(-1) == batch["target"])[MASK].mean())


def test_ignored_labels_and_class_weights_go_with_a_mask() -> None:
    weights = (1.0, 2.0, 0.5)
    bundle = compiled("softmax_cross_entropy", "mask", ignore_index=-100, class_weights=weights)
    batch = examples("softmax_cross_entropy")
    batch["target"][0, 0] = -100
    counts = MASK & (batch["target"] != -100)
    labels = np.where(counts, batch["target"], 0)
    values = bundle.program.spec.unflatten(bundle.parameters)
    y = forward64(TEXT, values, {"x": ("batch", POSITIONS, WIDTH)})({"x": batch["x"], **values})
    factors = np.array(weights)[labels] * counts
    expected = (elements("softmax_cross_entropy", y, labels) * factors).sum() / factors.sum()
    assert gradients(bundle, {**batch, "mask": MASK})[0] == pytest.approx(expected, rel=1e-5)


def test_the_mask_is_an_input_that_the_inference_graph_does_not_ask_for() -> None:
    told = describe(bundle := compiled("mean_squared_error", "mask"))
    assert told["mask"] == "mask" and told["inputs"]["mask"] == {"dtype": "bool", "shape": [None, POSITIONS]}
    assert "mask" not in bundle.program.infer_plan.inputs
    assert Program.decode(bundle.program.encode()).mask == "mask"


@pytest.mark.parametrize(
    ("loss", "mask", "seen", "message"),
    [
        ("softmax_cross_entropy", "seen", ["batch", POSITIONS + 1], "input has shape ['batch', 7], expected"),
        ("mean_squared_error", "x2", None, None),
        ("mean_squared_error", "w", None, "has a tensor of this name already"),
        ("mean_squared_error", "lr", None, "has a tensor of this name already"),
        ("mean_squared_error", "seen", ["batch"], "expected the beginning of the target's shape"),
    ],
)
def test_a_mask_of_the_wrong_shape_or_name_is_refused(loss: str, mask: str, seen: Any, message: str | None) -> None:
    text = TEXT if seen is None else "s = ReduceSum<keepdims=0>(seen); h = MatMul(x, w); y = Add(h, s)"
    model = sequence(text, None if seen is None else (TensorProto.FLOAT, seen))
    if message is None:
        assert compiled(loss, mask, model)
        return
    with pytest.raises(CompileError) as caught:
        compiled(loss, mask, model)
    assert f"mask {mask!r}" in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "hinge"])
def test_a_model_with_one_label_for_each_example_has_nothing_to_mask(loss: str) -> None:
    model = model_of(TEXT, {"w": RNG.standard_normal((4, 3))}, inputs={"x": ("batch", 4)})
    with pytest.raises(CompileError, match="one label or value for each example"):
        compile_model(model, loss=loss, loss_options=LossOptions(mask="mask"), name="flat")


def test_examples_bring_the_mask_by_name_and_padding_may_hold_any_label() -> None:
    program = compiled("softmax_cross_entropy", "mask").program
    batch = examples("softmax_cross_entropy")
    batch["target"][~MASK] = -100
    made = as_examples({**batch, "mask": MASK.astype(np.float64)}, program)
    assert made.batch(program, np.arange(2))["mask"].dtype == np.bool_
    with pytest.raises(ExamplesError, match="input 'mask' is missing"):
        as_examples(({"x": batch["x"]}, batch["target"]), program)
    with pytest.raises(ExamplesError, match=r"input 'mask'.*expected shape \[N, 6\]"):
        as_examples({**batch, "mask": MASK[:, :4]}, program)
    with pytest.raises(ExamplesError, match="no position counts"):
        as_examples({**batch, "mask": np.zeros_like(MASK)}, program)
    with pytest.raises(ExamplesError, match="they go from -100"):
        as_examples({**batch, "mask": np.ones_like(MASK)}, program)


def test_the_command_line_takes_a_mask_and_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(sequence(), tmp_path / "model.onnx")
    words = ["compile", str(tmp_path / "model.onnx"), "-o", str(tmp_path / "m.bundle"), "--mask", "mask"]
    monkeypatch.setattr(sys, "argv", ["edge-coordinator", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "input mask: bool[batch, 6]" in out and "mask mask: positions where it is 0 do not count" in out


def test_a_program_whose_mask_is_no_input_is_refused() -> None:
    program = compiled("softmax_cross_entropy", "mask").program
    for wrong in ("nothing", "x"):
        with pytest.raises(DecodeError, match=r"program\.mask"):
            replace(program, mask=wrong)
