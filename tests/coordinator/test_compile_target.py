"""A regression whose target is in raw units: trained in standard deviations, evaluated, inferred and exported raw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx_graphs import model_of

from coordinator.compile import (
    LossOptions,
    NormaliseOptions,
    build_zoo_model,
    compile_model,
    describe,
    export_onnx,
    merge_into_source,
)
from edge_sdk.errors import CompileError, DecodeError, DivergedError
from edge_sdk.training.bundle import Bundle, Program
from edge_sdk.training.engine import make_engine
from edge_sdk.training.examples import Examples, as_examples
from edge_sdk.training.local import TrainResult, train_locally
from edge_sdk.training.own_constants import normalised_examples, own_constants, with_constants
from edge_sdk.wire.plan import TrainingPlan

FEDERATED = NormaliseOptions("federated")
UNTOUCHED = NormaliseOptions("federated", target=False)


def motors(count: int = 300, outputs: int = 1, level: float = 48_000.0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Revolutions and degrees, and watts about a level with deviations of some percent, other ones in each column."""
    rng = np.random.default_rng(3)
    z = rng.standard_normal((count, 2))
    y = level * (1 + 0.02 * (z @ rng.uniform(0.5, 1.5, (2, outputs))) * np.arange(1, outputs + 1))
    x = np.array([1480.0, 62.0]) + z * [25.0, 6.0]
    return x.astype(np.float32), (y[:, 0] if outputs == 1 else y).astype(np.float32)


def compiled(
    loss: str = "mean_squared_error", outputs: int = 1, options: NormaliseOptions | None = FEDERATED, **more: Any
) -> Bundle:
    zoo = build_zoo_model("linear_regression", inputs=(2,), outputs=outputs, seed=1)
    return compile_model(zoo, loss=loss, normalise=options, name="motors", loop=False, **more)


def trained(bundle: Bundle, examples: Examples, engine: str = "numpy", epochs: int = 20) -> tuple[Any, TrainResult]:
    """With the learning rate that is the default."""
    program = bundle.program
    start = with_constants(program, bundle.parameters, own_constants(program, examples))
    plan = TrainingPlan(epochs=epochs, batch_size=32)
    rng = np.random.Generator(np.random.PCG64(0))
    done = train_locally(make_engine(program, engine), start, examples, plan, rng=rng, clock=lambda: 0.0)
    return start + done.delta, done


@pytest.mark.parametrize("engine", ["numpy", "onnxruntime"])
@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("loss", ["mean_squared_error", "mean_absolute_error", "huber"])
def test_a_target_in_raw_units_is_learned_with_the_defaults(loss: str, outputs: int, engine: str) -> None:
    program = (bundle := compiled(loss, outputs)).program
    x, y = motors(outputs=outputs)
    examples = as_examples((x, y), program)
    vector, _ = trained(bundle, examples, engine)
    predicted = make_engine(program, engine).infer(vector, {"x": x})
    (found,) = predicted.values()
    residual = found.reshape(y.shape) - y
    assert (residual.std(axis=0) < 0.1 * y.std(axis=0)).all()


def test_without_normalising_it_the_same_target_is_not_learned() -> None:
    bundle = compiled(options=UNTOUCHED)
    examples = as_examples(motors(), bundle.program)
    try:
        vector, _ = trained(bundle, examples, epochs=1)
    except DivergedError:
        return
    assert np.abs(vector - bundle.parameters).max() > 32, "more than validation.value_max in one round"


def test_the_loss_of_training_is_in_standard_deviations_and_that_of_evaluation_in_raw_units() -> None:
    bundle = compiled(outputs=3)
    program = bundle.program
    x, y = motors(outputs=3)
    examples = as_examples((x, y), program)
    vector = with_constants(program, bundle.parameters, own_constants(program, examples))
    arrays = program.spec.unflatten(vector)
    np.testing.assert_allclose(arrays["normalise/target_mean"], y.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(arrays["normalise/target_scale"], 1 / y.std(axis=0), rtol=1e-4)
    engine = make_engine(program, "numpy")
    (raw,) = engine.infer(vector, {"x": x}).values()
    loss_sum, metric_sum = engine.evaluate(vector, examples.batch(program, np.arange(len(x))))
    wanted = float(np.square(raw.astype(np.float64) - y).mean())
    assert loss_sum / len(x) == pytest.approx(wanted, rel=1e-4) and metric_sum == pytest.approx(loss_sum)
    step = engine.step(engine.load(vector), examples.batch(program, np.arange(len(x))), {"lr": 0.0})
    in_deviations = float(np.square((raw - y) / y.std(axis=0)).mean())
    assert step == pytest.approx(in_deviations, rel=1e-3)


def test_masked_positions_of_a_target_may_hold_anything() -> None:
    model = model_of("y = MatMul(x, w)", {"w": np.full((2, 1), 0.1, np.float32)}, inputs={"x": ["n", 5, 2]})
    bundle = compile_model(
        model,
        loss="mean_squared_error",
        normalise=FEDERATED,
        loss_options=LossOptions(mask="valid"),
        name="series",
        loop=False,
    )
    program = bundle.program
    assert program.normalise_target is not None and program.normalise_target.features == 1
    x, y = motors(250)
    valid = np.ones((50, 5), bool)
    valid[:, 3:] = False
    target = y.reshape(50, 5, 1)
    padded = np.where(valid[..., None], target, np.float32(9e5))
    constants = [
        own_constants(program, as_examples(({"x": x.reshape(50, 5, 2), "valid": valid}, each), program))
        for each in (target, padded)
    ]
    np.testing.assert_array_equal(*constants)
    assert constants[0][-2] == pytest.approx(float(target[:, :3].mean()), rel=1e-6)


def test_a_target_that_does_not_vary_is_given_in_its_unit() -> None:
    bundle = compiled()
    x, y = motors()
    vector, _ = trained(bundle, as_examples((x, np.full_like(y, 5.5)), bundle.program))
    (found,) = make_engine(bundle.program, "numpy").infer(vector, {"x": x}).values()
    assert bundle.program.spec.unflatten(vector)["normalise/target_scale"].tolist() == [1.0]
    np.testing.assert_allclose(found, 5.5, atol=0.05)


def outputs_of(model: onnx.ModelProto, x: NDArray[Any]) -> NDArray[Any]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[Any] = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


@pytest.mark.parametrize("way", ["compiled graph", "source model"])
def test_an_export_gives_raw_units_and_is_trained_further_as_it_was(way: str) -> None:
    source = build_zoo_model("mlp", inputs=(2,), outputs=1, hidden=(8,), seed=1)
    bundle = compile_model(source, loss="mean_squared_error", normalise=FEDERATED, name="motors", loop=False)
    program = bundle.program
    x, y = motors()
    vector, first = trained(bundle, as_examples((x, y), program))
    exported = export_onnx(program, vector) if way == "compiled graph" else merge_into_source(program, vector, source)
    wanted = next(iter(make_engine(program, "numpy").infer(vector, {"x": x}).values()))
    np.testing.assert_allclose(outputs_of(exported, x), wanted, rtol=1e-5)
    assert np.abs(wanted[:, 0] - y).mean() < 0.3 * y.std()

    again = compile_model(exported, loss="mean_squared_error", name="again", loop=False)
    examples = as_examples((x, y), again.program)
    plan, rng = TrainingPlan(epochs=1, batch_size=32), np.random.Generator(np.random.PCG64(0))
    engine = make_engine(again.program, "numpy")
    done = train_locally(engine, again.parameters, examples, plan, rng=rng, clock=lambda: 0.0)
    assert done.loss < 1.5 * first.loss + 0.01
    assert not any(tensor.name.startswith("normalise/") for tensor in again.program.spec)


def test_a_regression_is_normalised_with_its_input_and_classes_are_not() -> None:
    assert compiled().program.normalise_target is not None
    assert compiled(options=UNTOUCHED).program.normalise_target is None
    assert compiled(options=None).program.normalise_target is None
    classes = build_zoo_model("mlp", inputs=(2,), outputs=2, hidden=(4,), seed=1)
    told = compile_model(classes, loss="softmax_cross_entropy", normalise=FEDERATED, name="c", verify=False)
    assert told.program.normalise_target is None
    with pytest.raises(CompileError, match=r"normalise_target: goes with the losses .* not with softmax_cross_entropy"):
        options = NormaliseOptions("federated", target=True)
        compile_model(classes, loss="softmax_cross_entropy", normalise=options, name="c", verify=False)
    assert describe(compiled())["normalise"]["target"] is True


def test_a_program_survives_the_wire_with_its_target_and_contradictions_are_refused() -> None:
    program = compiled(outputs=3).program
    assert Program.decode(program.encode()).normalise_target == program.normalise_target
    told = program.normalise_target
    assert told is not None and told.features == 3
    for changed in (
        replace(told, features=2),
        replace(told, mode="local"),
        replace(told, input="x"),
        replace(told, mean="normalise/mean"),
        replace(told, mean="fc1.bias"),
    ):
        with pytest.raises(DecodeError, match="normalise_target"):
            replace(program, normalise_target=changed)
    with pytest.raises(DecodeError, match="normalise_target"):
        replace(program, normalise=None)


def test_who_trains_without_the_graphs_gets_the_target_in_standard_deviations() -> None:
    program: Program = (bundle := compiled(options=NormaliseOptions("local"))).program
    examples = as_examples(motors(), program)
    vector = with_constants(program, bundle.parameters, own_constants(program, examples))
    seen = normalised_examples(program, vector, examples).target
    assert abs(float(seen.mean())) < 1e-3 and float(seen.std()) == pytest.approx(1.0, rel=1e-3)
