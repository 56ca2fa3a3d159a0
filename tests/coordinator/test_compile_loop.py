"""Many steps in one run are the same steps, and a program has them only where that is faster."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from coordinator.compile import build_zoo_model, compile_model, describe, load_onnx
from edge_sdk.errors import CompileError, DecodeError, TrainingError
from edge_sdk.training.bundle import Bundle, Program
from edge_sdk.training.engine import Engine, make_engine
from edge_sdk.training.engine.onnx_runtime import STEPS_AT_ONCE
from edge_sdk.training.examples import Examples, as_examples
from edge_sdk.training.local import TrainResult, train_locally
from edge_sdk.wire.plan import TrainingPlan

COUNT = 403
"""Examples: not a multiple of the batch."""


def compiled(optimizer: str = "sgd", *, hidden: tuple[int, ...] | None = None, **options: Any) -> Bundle:
    kind = "mlp" if hidden else "softmax_regression"
    model = build_zoo_model(kind, inputs=(9,), hidden=hidden, outputs=6, seed=1)
    options = {"loss": "softmax_cross_entropy", "verify": False, "loop": True, "name": kind, **options}
    return compile_model(model, optimizer=optimizer, **options)


def examples_of(program: Program, count: int = COUNT) -> Examples:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((count, 9)).astype(np.float32)
    return as_examples((x, rng.integers(0, 6, count)), program)


def trained(
    engine: Engine,
    bundle: Bundle,
    plan: TrainingPlan,
    *,
    clock: Callable[[], float] = lambda: 0.0,
    stop: Callable[[], bool] | None = None,
    progress: Callable[[int, float], None] | None = None,
) -> TrainResult:
    rng = np.random.Generator(np.random.PCG64(3))
    examples = examples_of(engine.program)
    return train_locally(engine, bundle.parameters, examples, plan, rng=rng, clock=clock, stop=stop, progress=progress)


def without_loop(bundle: Bundle) -> Program:
    return replace(bundle.program, train_loop=b"")


@pytest.mark.parametrize(
    ("optimizer", "options", "scalars"),
    [
        ("sgd", {}, {}),
        ("momentum", {"proximal": True}, {"mu": 0.1}),
        ("adam", {"hidden": (8,), "clipped": True}, {"lr": 0.01}),
        ("adamw", {"weight_decay": True}, {"weight_decay": 0.01}),
    ],
)
def test_a_training_in_loops_is_bit_for_bit_the_training_in_steps(
    optimizer: str, options: dict[str, Any], scalars: dict[str, float]
) -> None:
    bundle = compiled(optimizer, **options)
    plan = TrainingPlan(epochs=4, batch_size=4, scalars=scalars)
    calls: list[int] = []
    looped = trained(make_engine(bundle.program, "onnxruntime"), bundle, plan, progress=lambda n, _: calls.append(n))
    single = trained(make_engine(without_loop(bundle), "onnxruntime"), bundle, plan)
    np.testing.assert_array_equal(looped.delta, single.delta)
    assert (looped.steps, looped.loss, looped.complete) == (single.steps, single.loss, True)
    assert max(np.diff(calls)) == STEPS_AT_ONCE and len(calls) < looped.steps / 10


def test_steps_in_one_run_leave_a_handle_where_single_steps_leave_it() -> None:
    bundle = compiled("adam", hidden=(8,))
    engine = make_engine(bundle.program, "onnxruntime")
    numpy = make_engine(bundle.program, "numpy")
    examples = examples_of(bundle.program)
    index = np.arange(30).reshape(5, 6)
    handles = [engine.load(bundle.parameters), engine.load(bundle.parameters), numpy.load(bundle.parameters)]
    for scalars in ({"lr": 0.02}, {"lr": 0.1}):  # an odd number of runs, between single steps, with other scalars
        losses = [
            engine.steps(handles[0], examples.batch(bundle.program, index), scalars),
            [engine.step(handles[1], examples.batch(bundle.program, rows), scalars) for rows in index],
            numpy.steps(handles[2], examples.batch(bundle.program, index), scalars),
        ]
        np.testing.assert_array_equal(losses[0], losses[1])
        np.testing.assert_allclose(losses[2], losses[1], rtol=1e-5)
        for handle in handles[:2]:
            engine.step(handle, examples.batch(bundle.program, index[0]), scalars)
        numpy.step(handles[2], examples.batch(bundle.program, index[0]), scalars)
    np.testing.assert_array_equal(engine.read(handles[0]), engine.read(handles[1]))
    np.testing.assert_allclose(numpy.read(handles[2]), engine.read(handles[1]), rtol=1e-4, atol=1e-6)


def test_a_stop_ends_training_after_the_run_in_which_it_is_asked_for() -> None:
    bundle = compiled()
    engine = make_engine(bundle.program, "onnxruntime")
    asked = itertools.count()
    plan = TrainingPlan(epochs=50, batch_size=4)
    result = trained(engine, bundle, plan, stop=lambda: next(asked) == 5)
    short = trained(make_engine(without_loop(bundle), "onnxruntime"), bundle, replace(plan, steps_max=result.steps))
    assert not result.complete and 5 < result.steps <= 6 * STEPS_AT_ONCE
    np.testing.assert_array_equal(result.delta, short.delta)


def test_the_steps_of_a_run_fit_the_time_that_is_left() -> None:
    bundle = compiled()
    engine = make_engine(bundle.program, "onnxruntime")
    done = [0]

    def progress(steps: int, _: float) -> None:
        done[0] = steps

    plan = TrainingPlan(epochs=50, batch_size=4, seconds_max=10.0)
    result = trained(engine, bundle, plan, clock=lambda: 0.1 * done[0], progress=progress)
    assert result.steps == 100 and result.seconds == pytest.approx(10.0)


def test_steps_max_is_kept_in_the_middle_of_a_run() -> None:
    bundle = compiled()
    result = trained(make_engine(bundle.program, "onnxruntime"), bundle, TrainingPlan(50, 4, steps_max=77))
    assert result.steps == 77 and result.complete


def test_a_loss_that_becomes_infinite_in_a_run_names_the_step() -> None:
    bundle = compiled(hidden=(8,))
    errors = []
    for program in (bundle.program, without_loop(bundle)):
        with pytest.raises(TrainingError, match="the loss became") as error:
            plan = TrainingPlan(epochs=9, batch_size=4, scalars={"lr": 1e30})
            trained(make_engine(program, "onnxruntime"), bundle, plan)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_a_loop_is_chosen_for_logistic_regression_and_not_for_a_cnn() -> None:
    model = build_zoo_model("logistic_regression", inputs=(9,), outputs=6, seed=1)
    tries = (compile_model(model, loss="binary_cross_entropy", name="tiny") for _ in range(5))  # on a busy machine
    assert any(describe(tiny)["loop"] for tiny in tries)
    model = build_zoo_model("cnn", inputs=(1, 12, 12), outputs=6, seed=1)
    assert not compile_model(model, loss="softmax_cross_entropy", name="cnn").program.train_loop


def test_the_choice_can_be_fixed_and_then_every_compilation_gives_the_same_program() -> None:
    with_loop, without = compiled(verify=True), compiled(verify=True, loop=False)
    assert compiled(loop=True).program.digest == with_loop.program.digest != without.program.digest
    assert without.program.digest == without_loop(with_loop).digest == compiled(loop="auto").program.digest


def test_a_program_travels_with_its_loop_and_one_without_it_is_as_ever(tmp_path: Any) -> None:
    bundle = compiled()
    bundle.save(tmp_path / "model.bundle")
    assert Bundle.load(tmp_path / "model.bundle").program.train_loop == bundle.program.train_loop
    assert b"train_loop" not in without_loop(bundle).encode()
    assert Program.decode(without_loop(bundle).encode()).train_loop == b""
    assert b"train_loop" in bundle.program.encode()


def test_a_loop_that_is_no_bytes_is_refused() -> None:
    import msgpack

    data = compiled().program.encode()
    body = msgpack.unpackb(data[8:])
    with pytest.raises(DecodeError, match="train_loop"):
        Program.decode(data[:8] + msgpack.packb({**body, "train_loop": 3}))


def test_a_loop_that_does_not_load_leaves_training_to_single_steps(caplog: pytest.LogCaptureFixture) -> None:
    bundle = compiled()
    model = onnx.ModelProto.FromString(bundle.program.train_loop)
    model.graph.node[0].input.append("x")
    broken = replace(bundle.program, train_loop=model.SerializeToString())
    plan = TrainingPlan(epochs=2, batch_size=4)
    result = trained(make_engine(broken, "onnxruntime"), bundle, plan)
    single = trained(make_engine(without_loop(bundle), "onnxruntime"), bundle, plan)
    np.testing.assert_array_equal(result.delta, single.delta)
    assert "training by single steps" in caplog.text


def test_a_model_that_loops_itself_gets_no_loop_around_it() -> None:
    from test_exported_models import FOLDER

    model = load_onnx(FOLDER / "lstm.dynamo.onnx")
    with pytest.raises(CompileError, match="has a Scan of its own"):
        compile_model(model, loss="softmax_cross_entropy", name="lstm", verify=False, loop=True)
    assert not compile_model(model, loss="softmax_cross_entropy", name="lstm").program.train_loop


def test_a_loop_that_is_another_graph_is_refused_and_changes_nothing() -> None:
    bundle = compiled()
    engine = make_engine(replace(bundle.program, train_loop=bundle.program.train), "onnxruntime")
    handle = engine.load(bundle.parameters)
    batches = examples_of(bundle.program).batch(bundle.program, np.arange(12).reshape(3, 4))
    with pytest.raises(TrainingError, match="'train_loop'"):
        engine.steps(handle, batches, {})
    np.testing.assert_array_equal(engine.read(handle), bundle.parameters)
