"""Each device with mean and scale of its own examples: made once, kept over a restart, never sent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.compile import NormaliseOptions, build_zoo_model, compile_model
from coordinator.evaluation import Evaluator
from edge_sdk.codecs import CodecSettings
from edge_sdk.device.files import DirectoryFiles, MemoryFiles
from edge_sdk.device.kept_constants import PROGRAMS_MAX, KeptConstants
from edge_sdk.device.session import StartTraining
from edge_sdk.device.state import DeviceState
from edge_sdk.device.training_job import TrainedUpdate, TrainingJob
from edge_sdk.device.work import EngineCache, TrainingWork
from edge_sdk.errors import ExamplesError, StateError
from edge_sdk.training.bundle import Bundle, digest_of, encode_parameters
from edge_sdk.training.engine import make_engine
from edge_sdk.training.examples import Examples, as_examples
from edge_sdk.training.local import train_locally, train_with_trainer
from edge_sdk.training.own_constants import normalised_examples, own_constants, uses_own_constants, with_constants
from edge_sdk.wire.messages import Update
from edge_sdk.wire.plan import Plan, TrainingPlan
from edge_sdk.wire.safe_msgpack import BytesLike

DENSE = CodecSettings("dense")


def compiled(mode: str = "local", missing: str = "mean", loss: str = "softmax_cross_entropy") -> Bundle:
    outputs = 3 if loss == "reconstruction" else 2
    source = build_zoo_model("mlp", inputs=(3,), outputs=outputs, hidden=(8,), seed=1)
    return compile_model(source, loss=loss, normalise=NormaliseOptions(mode, missing=missing), name="pumps", loop=False)


LOCAL = compiled()
CONSTANT = LOCAL.program.spec.mask("constant")


def pump(seed: int, rows: int = 60) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A machine with levels of its own; a bearing is worn where it is hotter than is usual for this machine."""
    rng = np.random.default_rng(seed)
    level = np.array([1480.0, 62.0, 4.2]) * rng.uniform(0.5, 2.0, 3)
    x = (level + rng.standard_normal((rows, 3)) * [120.0, 5.0, 0.3]).astype(np.float32)
    return x, (x[:, 1] > level[1]).astype(np.int64)


def job(state: DeviceState | None = None, bundle: Bundle = LOCAL, parameters: Any = None, **plan: Any) -> TrainingJob:
    blob = encode_parameters(bundle.parameters if parameters is None else parameters)
    told = Plan(TrainingPlan(**{"epochs": 2, "batch_size": 16, **plan}), DENSE)
    start = StartTraining(bytes(16), b"", "default", 1, 0, "0", bundle.program.digest, digest_of(blob), told, 100.0)
    own: dict[str, Any] = {} if state is None else {"constants": state.constants.get}
    return TrainingJob(
        start=start,
        program=bundle.program.encode(),
        parameters=blob,
        vectors=lambda spec: {},
        keeps_vectors=lambda length: True,
        seed=0,
        stop=lambda: False,
        progress=lambda steps, loss: None,
        **own,
    )


def run(given: Any, order: TrainingJob, trainer: Any = None) -> TrainedUpdate:
    return TrainingWork(lambda: given, engines=EngineCache("numpy"), trainer=trainer).run(order)


def opened(files: Any) -> DeviceState:
    return DeviceState(files, new_instance=lambda: bytes(16), wall_day=lambda: 1)


def delta_of(made: TrainedUpdate) -> NDArray[np.float32]:
    assert made.result is not None
    return made.result.delta


# --- the constants themselves ---


def test_own_constants_are_mean_and_scale_of_the_devices_examples() -> None:
    x, y = pump(1)
    x[3, 2] = np.nan
    constants = own_constants(LOCAL.program, as_examples((x, y), LOCAL.program))
    np.testing.assert_allclose(constants[:3], np.nanmean(x, axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(constants[3:], 1 / np.nanstd(x.astype(np.float64), axis=0), rtol=1e-5)
    vector = with_constants(LOCAL.program, LOCAL.parameters, constants)
    assert np.array_equal(vector[CONSTANT], constants)
    assert np.array_equal(vector[~CONSTANT], LOCAL.parameters[~CONSTANT])
    assert not np.array_equal(LOCAL.parameters[CONSTANT], constants), "the vector given is not changed"
    assert uses_own_constants(LOCAL.program) and not uses_own_constants(compiled("federated").program)


@pytest.mark.parametrize("loss", ["softmax_cross_entropy", "reconstruction"])
def test_examples_outside_of_the_graphs_are_normalised_as_inside(loss: str) -> None:
    bundle = compiled(loss=loss)
    x, y = pump(2)
    x[::5, 0] = np.nan
    x[0, 1] = 3e38
    examples = as_examples(x if loss == "reconstruction" else (x, y), bundle.program)
    vector = with_constants(bundle.program, bundle.parameters, own_constants(bundle.program, examples))
    seen = normalised_examples(bundle.program, vector, examples)
    plain = with_constants(bundle.program, vector, np.array([0, 0, 0, 1, 1, 1], np.float32))
    engine, index = make_engine(bundle.program, "numpy"), np.arange(len(x))
    raw, normalised = examples.batch(bundle.program, index), seen.batch(bundle.program, index)
    assert engine.evaluate(vector, raw) == engine.evaluate(plain, normalised)
    (found,), (expected,) = (engine.infer(v, {"x": b["x"]}).values() for v, b in ((vector, raw), (plain, normalised)))
    assert np.array_equal(found, expected)
    assert np.array_equal(examples.inputs["x"], x, equal_nan=True), "the examples given are not changed"


# --- a device ---


def test_the_first_training_decides_and_a_restart_changes_nothing(tmp_path: Path) -> None:
    x, y = pump(3)
    expected = own_constants(LOCAL.program, as_examples((x, y), LOCAL.program))
    with DirectoryFiles(tmp_path) as files:
        first = run((x, y), job(opened(files)))
    grown = np.concatenate([x, x * 3]), np.concatenate([y, y])
    with DirectoryFiles(tmp_path) as files:
        state = opened(files)
        after = run(grown, job(state))
        kept = state.constants.get(LOCAL.program.digest, lambda: pytest.fail("they are kept"))
    assert np.array_equal(kept, expected)
    fresh = run(grown, job(opened(MemoryFiles())))
    assert not np.array_equal(delta_of(after), delta_of(fresh)), "other constants train otherwise"
    given = with_constants(LOCAL.program, LOCAL.parameters, expected)
    again = run(grown, job(bundle=compiled("federated"), parameters=given))
    assert np.array_equal(delta_of(after)[~CONSTANT], delta_of(again)[~CONSTANT])
    assert not delta_of(first)[CONSTANT].any() and not delta_of(after)[CONSTANT].any()


def test_nothing_of_its_constants_leaves_the_device() -> None:
    """Two devices whose examples differ in units alone send the same update."""
    x, y = pump(4)
    x = np.round(x * 64) / 64  # exact in float32 under both units
    updates = []
    for unit in (1.0, 4.0):
        made = run(((x * unit).astype(np.float32), y), job())
        assert made.update.payload is not None
        updates.append(replace(Update.decode(made.update.payload), seconds=0.0))
    assert updates[0] == updates[1]


def test_held_out_examples_have_no_part_in_the_constants_and_are_judged_with_them() -> None:
    x, y = pump(5, 200)
    is_test = np.arange(200) % 3 == 0
    x[is_test] += 1e5
    state = opened(MemoryFiles())
    made = run({"x": x, "y": y, "is_test": is_test}, job(state, held_out=0.3))
    kept = state.constants.get(LOCAL.program.digest, lambda: pytest.fail("they are kept"))
    np.testing.assert_allclose(kept[:3], x[~is_test].mean(axis=0, dtype=np.float64), rtol=1e-5)
    assert made.result is not None and made.result.evaluation is not None
    engine = make_engine(LOCAL.program, "numpy")
    vector = with_constants(LOCAL.program, LOCAL.parameters, kept)
    loss_sum, _ = engine.evaluate(vector, {"x": x[is_test], "target": y[is_test]})
    assert made.result.evaluation.loss_sum == pytest.approx(loss_sum, rel=1e-5)


def test_devices_in_different_units_learn_together_what_is_usual_for_each() -> None:
    """Federated averaging by hand over machines whose levels differ by a factor of four."""
    vector = LOCAL.parameters
    machines = [pump(seed, 200) for seed in range(6)]
    for _ in range(15):
        deltas = [delta_of(run(machine, job(parameters=vector, epochs=3))) for machine in machines]
        vector = vector + np.mean(deltas, axis=0).astype(np.float32)
    for seed in (50, 51):  # machines that nobody has trained on
        x, y = pump(seed, 300)
        evaluator = Evaluator(LOCAL.program, as_examples((x, y), LOCAL.program), "numpy")
        assert evaluator.evaluate(encode_parameters(vector))["accuracy"] > 0.9


def test_nan_is_refused_by_column_where_the_program_does_not_take_it() -> None:
    program = compiled(missing="refuse").program
    x, y = pump(6)
    x[4, 2] = x[5, 2] = np.nan
    with pytest.raises(ExamplesError, match=r"2 of 180 values are NaN.*column.*2.*missing = \"mean\""):
        as_examples((x, y), program)
    named = replace(program, features=("rpm", "temperature", "pressure"))
    with pytest.raises(ExamplesError, match=r"2 of 180 values are NaN or infinite, in column 'pressure'; fill or drop"):
        as_examples((x, y), named)
    one_hot = replace(program, features=("rpm", "fuel"), categories={"fuel": ("diesel", "petrol")})
    with pytest.raises(ExamplesError, match="in column 'fuel=petrol'; fill or drop"):
        as_examples((x, y), one_hot)
    x[4, 1] = np.inf
    with pytest.raises(ExamplesError, match="infinite"):
        as_examples((x, y), LOCAL.program)
    x[4, 1] = 0.0
    assert np.isnan(as_examples((x, y), LOCAL.program).inputs["x"][4, 2])


# --- a trainer of the application's own ---


class Fit:
    """Keeps what it was given, and moves everything by one, the constants too."""

    def __init__(self, returns: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.returns = returns
        self.seen: list[Examples] = []

    def fit(self, parameters: dict[str, Any], examples: Examples, plan: TrainingPlan) -> dict[str, Any]:
        self.seen.append(examples)
        return self.returns({name: value + 1 for name, value in parameters.items()})


@pytest.mark.parametrize("kind", ["graph", "trainer"])
@pytest.mark.parametrize("leaves_out", [False, True])
def test_a_trainer_gets_normalised_examples_and_cannot_move_the_constants(kind: str, leaves_out: bool) -> None:
    program = replace(LOCAL.program, kind=kind)
    trainer = Fit(lambda new: {n: v for n, v in new.items() if not (leaves_out and n.startswith("normalise/"))})
    x, y = pump(7)
    x[2, 1] = np.nan
    made = run((x, y), job(bundle=Bundle(program, LOCAL.parameters)), trainer)
    (seen,) = trainer.seen
    assert abs(float(seen.inputs["x"].mean())) < 1e-3 and float(seen.inputs["x"].std()) == pytest.approx(1, abs=0.02)
    assert seen.inputs["x"][2, 1] == 0
    assert not delta_of(made)[CONSTANT].any()
    np.testing.assert_allclose(delta_of(made)[~CONSTANT], 1, atol=1e-6)


def test_a_trainer_of_a_program_without_normalisation_gets_its_examples_as_they_are() -> None:
    source = build_zoo_model("mlp", inputs=(3,), outputs=2, hidden=(8,), seed=1)
    plain = compile_model(source, loss="softmax_cross_entropy", name="plain", verify=False)
    examples = as_examples(pump(8), plain.program)
    trainer = Fit(lambda new: new)
    rng = np.random.default_rng(0)
    train_with_trainer(trainer, plain.program, plain.parameters, examples, TrainingPlan(), rng=rng, clock=lambda: 0.0)
    assert trainer.seen == [examples]


def test_a_shift_after_each_step_does_not_move_the_constants() -> None:
    examples = as_examples(pump(9), LOCAL.program)
    vector = with_constants(LOCAL.program, LOCAL.parameters, own_constants(LOCAL.program, examples))
    rng, shift = np.random.Generator(np.random.PCG64(0)), np.full(vector.size, 0.25, np.float32)
    for name in ("numpy", "onnxruntime"):
        done = train_locally(
            make_engine(LOCAL.program, name), vector, examples, TrainingPlan(), rng=rng, clock=lambda: 0.0, shift=shift
        )
        assert not done.delta[CONSTANT].any() and done.delta[~CONSTANT].any()


# --- the files ---


def program_number(number: int) -> bytes:
    return number.to_bytes(32, "big")


def values(number: int) -> NDArray[np.float32]:
    return np.full(4, number, np.float32)


def test_constants_of_the_newest_programs_are_kept() -> None:
    files = MemoryFiles()
    kept = KeptConstants(files)
    for number in range(PROGRAMS_MAX + 3):
        assert np.array_equal(kept.get(program_number(number), lambda number=number: values(number)), values(number))
    assert len(files.names()) == PROGRAMS_MAX
    again = KeptConstants(files)
    assert np.array_equal(again.get(program_number(3), lambda: values(99)), values(3))
    assert np.array_equal(again.get(program_number(2), lambda: values(99)), values(99))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: data[:20], lambda data: data + b"1", lambda data: b""]
)
def test_a_damaged_file_is_made_anew(damage: Callable[[bytes], bytes]) -> None:
    files = MemoryFiles()
    KeptConstants(files).get(program_number(1), lambda: values(1))
    (name,) = files.names()
    files.write(name, [damage(files.read(name) or b"")])
    assert np.array_equal(KeptConstants(files).get(program_number(1), lambda: values(2)), values(2))
    assert np.array_equal(KeptConstants(files).get(program_number(1), lambda: values(3)), values(2))


class FullCard(MemoryFiles):
    """Storage that takes nothing more."""

    def write(self, name: str, parts: Sequence[BytesLike]) -> None:
        raise StateError("no space")


def test_where_nothing_can_be_written_they_hold_until_the_process_ends() -> None:
    made: Iterator[int] = iter(range(1, 10))
    kept = KeptConstants(FullCard())
    first, again = (kept.get(program_number(1), lambda: values(next(made))) for _ in range(2))
    assert np.array_equal(first, values(1)) and np.array_equal(again, values(1))


def test_a_feature_beyond_the_range_is_named_where_a_device_makes_its_own_constants() -> None:
    x, y = pump(1)
    program = LOCAL.program
    with pytest.raises(
        ExamplesError, match=r"values of feature 2 \(100%\) are beyond \+-1e\+06 \(model\.normalise_clip"
    ):
        own_constants(program, as_examples((x * np.float32([1, 1, 1e7]), y), program))
