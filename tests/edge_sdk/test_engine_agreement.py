"""Both engines run a program to the same numbers, and refuse what they cannot run."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from hand_made import blobs, mlp_program, modelled, start, transcribed
from onnx import TensorProto, helper

from coordinator.compile import LOSSES, OPTIMIZERS, build_zoo_model, compile_model, zoo_loss
from edge_sdk.errors import BundleError, ConfigurationError, TrainingError
from edge_sdk.training.bundle import Bundle, NumpyPlan, Program, decode_parameters, encode_parameters
from edge_sdk.training.engine import make_engine
from edge_sdk.training.engine.onnx_bytes import check_onnx
from edge_sdk.training.engine.onnx_runtime import OnnxRuntimeEngine

ENGINES = ("numpy", "onnxruntime")


def trajectories(bundle: Bundle, batches: list[dict[str, Any]], scalars: dict[str, float]) -> dict[str, Any]:
    """Losses, parameters and evaluations by engine, over the same batches; the program comes over the wire."""
    program = Program.decode(bundle.program.encode())
    vector = decode_parameters(encode_parameters(bundle.parameters), program.spec)  # read-only, as on a device
    found: dict[str, Any] = {}
    for name in ENGINES:
        engine = make_engine(program, name)
        handle = engine.load(vector)
        losses = [engine.step(handle, batch, {**program.scalars, **scalars}) for batch in batches]
        found[name] = (
            losses,
            engine.read(handle),
            engine.evaluate(handle, batches[0]),
            engine.infer(handle, batches[0]),
        )
    return found


def assert_agreement(bundle: Bundle, batches: list[dict[str, Any]], scalars: dict[str, float]) -> None:
    found = trajectories(bundle, batches, scalars)
    (losses, parameters, sums, outputs), (losses_, parameters_, sums_, outputs_) = found.values()
    np.testing.assert_allclose(losses, losses_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(parameters, parameters_, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sums, sums_, rtol=1e-4, atol=1e-4)
    for name in outputs:
        np.testing.assert_allclose(outputs[name], outputs_[name], rtol=1e-4, atol=1e-4)


def batches_of(program: Program, count: int, size: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random examples for any program; the last batch is smaller, as in training."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        n = size if i != count - 1 else max(1, size // 3)
        batch = {e.name: rng.normal(0, 1, (n, *e.shape[1:])).astype(e.dtype) for e in program.inputs}
        shape = (n, *program.target.shape[1:])
        if program.target.dtype == "int64":
            batch["target"] = rng.integers(0, program.classes, shape)
        else:
            labels = {"hinge": rng.choice([-1, 1], shape), "binary_cross_entropy": rng.integers(0, 2, shape)}
            batch["target"] = labels.get(program.loss, rng.normal(0, 1, shape)).astype(np.float32)
        made.append(batch)
    return made


@pytest.mark.parametrize("momentum", [False, True])
def test_engines_agree_over_fifty_steps_of_a_graph_made_by_hand(momentum: bool) -> None:
    program = mlp_program((6, 16, 3), momentum=momentum)
    bundle = Bundle(program, start(program))
    x, y = blobs(32)
    batches = [{"x": x, "target": y}] * 50
    assert_agreement(bundle, batches, {"lr": 0.05})
    losses = trajectories(bundle, batches, {"lr": 0.05})["numpy"][0]
    assert losses[-1] < 0.3 * losses[0]


ZOO = [
    ("linear_regression", {"inputs": (5,), "outputs": 2}, "sgd"),
    ("logistic_regression", {"inputs": (5,), "outputs": 1}, "momentum"),
    ("softmax_regression", {"inputs": (5,), "outputs": 4}, "adam"),
    ("linear_svm", {"inputs": (5,), "outputs": 1}, "sgd"),
    ("linear_svm", {"inputs": (5,), "outputs": 3}, "sgd"),
    ("mlp", {"inputs": (7,), "outputs": 3, "hidden": (9, 8), "activation": "tanh"}, "adam"),
    ("cnn", {"inputs": (2, 12, 12), "outputs": 3, "channels": (3, 6)}, "momentum"),
    ("mlp", {"inputs": (7,), "outputs": 3, "hidden": (5,), "activation": "tanh"}, "nesterov"),
    ("mlp", {"inputs": (7,), "outputs": 3, "hidden": (5,), "activation": "tanh"}, "adamw"),
    ("softmax_regression", {"inputs": (5,), "outputs": 4}, "rmsprop"),
]
OTHER_LOSSES = ("mean_absolute_error", "huber", "reconstruction")


@pytest.mark.parametrize(("name", "arguments", "optimizer"), ZOO, ids=lambda v: v if isinstance(v, str) else None)
def test_engines_agree_on_the_zoo(name: str, arguments: dict[str, Any], optimizer: str) -> None:
    model = build_zoo_model(name, seed=3, **arguments)
    loss = zoo_loss(name, arguments["outputs"])
    bundle = compile_model(model, loss=loss, optimizer=optimizer, proximal=True, name=name, verify=False)
    assert_agreement(bundle, batches_of(bundle.program, 50, 12), {"lr": 0.01, "mu": 0.1})


def test_every_loss_and_optimizer_of_the_compiler_is_met() -> None:
    assert {optimizer for _, _, optimizer in ZOO} == set(OPTIMIZERS)
    met = {zoo_loss(name, arguments["outputs"]) for name, arguments, _ in ZOO}
    assert met | set(OTHER_LOSSES) == set(LOSSES)


@pytest.mark.parametrize("loss", OTHER_LOSSES)
def test_engines_agree_on_the_losses_for_values(loss: str) -> None:
    model = build_zoo_model("mlp", seed=3, inputs=(4,), hidden=(5,), outputs=4, activation="tanh")
    bundle = compile_model(model, loss=loss, name=loss, verify=False)
    assert_agreement(bundle, batches_of(bundle.program, 50, 12), {"lr": 0.01})


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_loss_curves_of_both_engines_agree_over_two_hundred_steps(optimizer: str) -> None:
    # Smooth activations: a ReLU at its kink turns the last bit of a sum into another gradient, which is nobody's fault.
    model = build_zoo_model("mlp", seed=3, inputs=(6,), hidden=(16, 12), outputs=3, activation="tanh")
    bundle = compile_model(model, loss="softmax_cross_entropy", optimizer=optimizer, name="smooth", verify=False)
    x, y = blobs(320)
    batches = [{"x": x[i : i + 32], "target": y[i : i + 32]} for i in range(0, 320, 32)] * 20
    found = trajectories(bundle, batches, {"lr": 0.02})
    curves = {name: np.array(losses) for name, (losses, *_) in found.items()}
    assert all(len(curve) == 200 for curve in curves.values())
    np.testing.assert_allclose(curves["numpy"], curves["onnxruntime"], rtol=0, atol=1e-4)
    assert curves["numpy"][-10:].mean() < 0.3 * curves["numpy"][:10].mean()


@pytest.mark.parametrize("engine", ENGINES)
def test_loading_starts_anew_and_leaves_the_vector_alone(engine: str) -> None:
    program = mlp_program(momentum=True)
    vector = start(program)
    vector.flags.writeable = False  # as decode_parameters gives it
    x, y = blobs(20)
    runner = make_engine(program, engine)
    results = []
    for _ in range(2):
        handle = runner.load(vector)
        assert np.array_equal(runner.read(handle), vector)
        for _ in range(3):
            runner.step(handle, {"x": x, "target": y}, program.scalars)
        results.append(runner.read(handle))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], vector)


@pytest.mark.parametrize("engine", ENGINES)
def test_scalars_not_given_are_the_programs_and_unknown_ones_an_error(engine: str) -> None:
    program = mlp_program(momentum=True)
    x, y = blobs(20)
    runner = make_engine(program, engine)
    results = []
    for later in ({}, {"lr": 0.1, "momentum": 0.9}):
        handle = runner.load(start(program))
        for scalars in ({"momentum": 0.1}, later, later):
            runner.step(handle, {"x": x, "target": y}, scalars)
        results.append(runner.read(handle))
    assert np.array_equal(results[0], results[1])
    with pytest.raises(TrainingError, match="no scalar input 'beta1'"):
        runner.step(runner.load(start(program)), {"x": x, "target": y}, {"beta1": 0.9})


@pytest.mark.parametrize("engine", ENGINES)
def test_handles_are_independent(engine: str) -> None:
    program = mlp_program(momentum=True)
    x, y = blobs(20)
    runner = make_engine(program, engine)
    one, other = runner.load(start(program, 1)), runner.load(start(program, 2))
    runner.step(one, {"x": x, "target": y}, program.scalars)
    assert np.array_equal(runner.read(other), start(program, 2))
    kept = runner.read(one)
    runner.step(one, {"x": x, "target": y}, program.scalars)
    assert not np.array_equal(kept, runner.read(one))


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluation_of_a_vector_is_that_of_its_handle(engine: str) -> None:
    program = mlp_program()
    x, y = blobs(40)
    runner = make_engine(program, engine)
    vector = start(program)
    batch = {"x": x, "target": y}
    assert runner.evaluate(vector, batch) == runner.evaluate(runner.load(vector), batch)
    logits = runner.infer(vector, {"x": x})["logits"]
    assert runner.evaluate(vector, batch)[1] == np.count_nonzero(logits.argmax(axis=1) == y)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_batch_that_does_not_fit_is_a_training_error(engine: str) -> None:
    program = mlp_program()
    x, y = blobs(8)
    runner = make_engine(program, engine)
    handle = runner.load(start(program))
    for batch in ({"x": x[:, :4], "target": y}, {"x": x, "target": y[:5]}):
        with pytest.raises(TrainingError):
            runner.step(handle, batch, program.scalars)


@pytest.mark.parametrize("engine", ENGINES)
def test_wrong_parameters_are_refused(engine: str) -> None:
    program = mlp_program()
    runner = make_engine(program, engine)
    with pytest.raises(TrainingError, match="needs float32"):
        runner.load(np.zeros(3, dtype=np.float32))
    with pytest.raises(TrainingError, match="needs float32"):
        runner.load(start(program).astype(np.float64))
    handle = runner.load(start(program))
    with pytest.raises(TrainingError, match="needs float32"):
        runner.shift(handle, np.zeros(3, dtype=np.float32))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_shift_after_a_step_is_a_constant_in_its_gradient(engine: str) -> None:
    """w - lr (g + c) is (w - lr g) - lr c: control variates need nothing else of an engine."""
    program = mlp_program()
    x, y = blobs(16)
    batch, lr = {"x": x, "target": y}, 0.25
    runner = make_engine(program, engine)
    constant = np.linspace(-1, 1, program.spec.size, dtype=np.float32)
    vector = start(program)
    expected = vector.copy()
    handle = runner.load(vector)
    for _ in range(3):
        alone = runner.load(expected.copy())
        runner.step(alone, batch, {"lr": lr})
        gradient = (expected - runner.read(alone)) / np.float32(lr)
        expected = expected - np.float32(lr) * (gradient + constant)
        runner.step(handle, batch, {"lr": lr})
        runner.shift(handle, np.float32(-lr) * constant)
    np.testing.assert_allclose(runner.read(handle), expected, atol=2e-6)


# ---- which engine


def test_auto_takes_onnxruntime_where_it_can_be_imported() -> None:
    assert make_engine(mlp_program()).name == "onnxruntime"


def test_without_onnxruntime_auto_falls_back_and_asking_for_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # makes the import fail, as a missing wheel does
    assert make_engine(mlp_program(), "auto").name == "numpy"
    with pytest.raises(TrainingError, match=r'pip install "edgefed\[onnx\]"\) or choose engine="numpy"'):
        make_engine(mlp_program(), "onnxruntime")


def test_auto_falls_back_where_onnxruntime_does_not_load_the_graph(capfd: pytest.CaptureFixture[str]) -> None:
    program = mlp_program()
    model = onnx.load_from_string(program.train)
    model.opset_import[0].version = 999
    newer = replace(program, train=model.SerializeToString())
    assert make_engine(newer, "auto").name == "numpy"
    with pytest.raises(TrainingError, match="does not load the graph 'train'"):
        make_engine(newer, "onnxruntime")
    assert capfd.readouterr() == ("", "")  # onnxruntime's own messages come in the exception, not on the terminal


def test_engine_names_kinds_and_requirements_are_checked() -> None:
    with pytest.raises(ConfigurationError, match="expected one of"):
        make_engine(mlp_program(), "torch")
    with pytest.raises(BundleError, match="trainer with a fit method"):
        make_engine(replace(mlp_program(), kind="trainer"))
    with pytest.raises(BundleError, match=r"requires.*pip install -U edgefed"):
        make_engine(replace(mlp_program(), requires=("tomorrow",)))


def test_a_program_without_a_plan_needs_onnxruntime() -> None:
    program = replace(mlp_program(), train_plan=NumpyPlan(), evaluate_plan=NumpyPlan())
    with pytest.raises(BundleError, match="no NumPy plan"):
        make_engine(program, "numpy")
    assert make_engine(program, "auto").name == "onnxruntime"


# ---- hostile graphs


def with_train(change: Any) -> Program:
    """A program whose ONNX train graph was changed behind its plan's back."""
    program = mlp_program()
    model = onnx.load_from_string(program.train)
    change(model)
    return replace(program, train=model.SerializeToString())


def name_a_file(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")


def hide_a_file_in_a_loop(model: onnx.ModelProto) -> None:
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [1], [0.0])
    name_a_file(wrapped := helper.make_model(helper.make_graph([], "g", [], [], [tensor])))
    body = helper.make_graph([], "b", [], [], [wrapped.graph.initializer[0]])
    model.graph.node.append(helper.make_node("Scan", ["x"], ["o"], body=body, num_scan_inputs=1))


def bring_a_branch(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "b", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch))


def put_a_loop_into_a_loop(model: onnx.ModelProto) -> None:
    inner = helper.make_node("Scan", ["x"], ["o"], body=helper.make_graph([], "b", [], []), num_scan_inputs=1)
    outer = helper.make_graph([inner], "b", [], [])
    model.graph.node.append(helper.make_node("Scan", ["x"], ["o"], body=outer, num_scan_inputs=1))


GRAPHS = (name_a_file, hide_a_file_in_a_loop, bring_a_branch, put_a_loop_into_a_loop)


def use_a_foreign_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


def import_a_foreign_domain(model: onnx.ModelProto) -> None:
    model.opset_import.add(domain="com.microsoft", version=1)


def bring_a_function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="d")


@pytest.mark.parametrize("change", [use_a_foreign_operator, import_a_foreign_domain, bring_a_function, *GRAPHS])
@pytest.mark.parametrize("engine", ["auto", "onnxruntime"])
def test_graphs_that_reach_outside_are_refused_before_onnxruntime_sees_them(change: Any, engine: str) -> None:
    with pytest.raises(BundleError, match=r"outside of itself|domain|functions|only a Scan"):
        make_engine(with_train(change), engine)


def test_bytes_that_are_no_graph_are_refused() -> None:
    for data in (b"\xff" * 40, b"ORTM" * 9, b"\x0a", b"\x3a\x05abc", b"\x08" + b"\x80" * 12):
        with pytest.raises((BundleError, TrainingError)):
            OnnxRuntimeEngine(replace(mlp_program(), train=data))


def test_graph_inputs_must_be_the_programs() -> None:
    def add_input(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))

    def change_type(model: onnx.ModelProto) -> None:
        target = next(i for i in model.graph.input if i.name == "target")
        target.type.tensor_type.elem_type = TensorProto.INT32

    with pytest.raises(BundleError, match="'more'"):
        make_engine(with_train(add_input), "onnxruntime")
    with pytest.raises((BundleError, TrainingError)):
        make_engine(with_train(change_type), "onnxruntime")
    with pytest.raises(BundleError, match="differs in outputs"):
        make_engine(with_train(lambda model: model.graph.output.pop()), "onnxruntime")


def test_a_train_graph_that_changes_a_parameters_shape_is_found_out() -> None:
    program = mlp_program((6, 3))
    grown = modelled(
        [
            helper.make_node("Concat", ["w0", "w0"], ["new/w0"], axis=0),
            helper.make_node("Identity", ["b0"], ["new/b0"]),
            helper.make_node("ReduceSum", ["x"], ["loss"], keepdims=0),
        ],
        {"x": (TensorProto.FLOAT, ("n", 6)), "w0": (TensorProto.FLOAT, (3, 6)), "b0": (TensorProto.FLOAT, (3,))},
        {"new/w0": (6, 6), "new/b0": (3,), "loss": ()},
        {},
    )
    x, y = blobs(4)
    for name in ENGINES:
        engine = make_engine(replace(program, train=grown.SerializeToString(), train_plan=transcribed(grown)), name)
        handle = engine.load(start(program))
        with pytest.raises(TrainingError):
            engine.step(handle, {"x": x, "target": y}, program.scalars)
            engine.read(handle)


def test_the_check_passes_what_the_compiler_emits() -> None:
    program = mlp_program(momentum=True)
    for graph in (program.train, program.evaluate, program.infer):
        check_onnx(graph, "mlp")
