"""What cannot work is refused before a database is made or a device is asked, in words that name the keys."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from serving import dense_frame, update_of, write_config, write_held_out

from coordinator.compile import build_zoo_model, compile_model
from coordinator.config import FederationConfig, load_config
from coordinator.config.settings import database_path
from coordinator.model_identity import differences
from coordinator.pipeline import make_step
from coordinator.setup import Prepared, build_bundle, make_service, pipeline_settings, prepare
from coordinator.setup_checks import fixed_point
from coordinator.store import JournalRow, RoundRecord, Store, TicketRecord, backup_path
from edge_sdk.aggregation.algorithm import make_algorithm
from edge_sdk.aggregation.sums import WeightedMean
from edge_sdk.codecs import Decoded
from edge_sdk.errors import BundleError, CompileError, ConfigurationError, EdgeFedError, ExamplesError, StateError
from edge_sdk.training.bundle import Bundle, digest_of, encode_parameters
from edge_sdk.training.program import Program


def config_of(directory: Path, **tables: Any) -> FederationConfig:
    return load_config(write_config(directory, "mqtt://127.0.0.1:1", **tables))


FLAT: dict[str, Any] = {"zoo": "mlp", "hidden": [8], "loop": False}


def opened(config: FederationConfig) -> Prepared:
    return prepare([config], wall=lambda: 1e9, new_id=os.urandom, engine="numpy")


def prepared(config: FederationConfig) -> Prepared:
    made = opened(config)
    made.store.close()
    return made


def refusal(config: FederationConfig, kind: type[EdgeFedError] = ConfigurationError) -> str:
    with pytest.raises(kind) as caught:
        prepared(config)
    return str(caught.value)


def train_once(config: FederationConfig) -> None:
    """Commits round 1 with the model as it is."""
    made = opened(config)
    task, base = made.tasks[0], made.store.latest_checkpoint("default")
    assert base is not None
    record = RoundRecord(task.name, 1, 0, "reporting", 9.0, base.parameters_digest, task.program.digest)
    made.store.save_round(record)
    parameters = made.store.get_blob(base.parameters_digest) or b""
    made.store.commit_round(
        replace(record, phase="closed"),
        parameters=parameters,
        server_state=base.server_state,
        verdicts={},
        metrics={},
    )
    made.store.close()


def test_a_new_database_begins_with_the_model_of_the_configuration(tmp_path: Path) -> None:
    config = config_of(tmp_path, model={"loop": False})
    first = prepared(config)
    assert first.tasks[0].is_new and first.tasks[0].program == build_bundle(config).program
    with Store.open_readonly(database_path(config)) as store:
        checkpoint = store.latest_checkpoint("default")
    assert checkpoint is not None and checkpoint.round == 0
    assert checkpoint.parameters_digest == digest_of(encode_parameters(build_bundle(config).parameters))


def test_the_task_says_what_the_configuration_and_the_program_say(tmp_path: Path) -> None:
    write_held_out(tmp_path)
    config = config_of(tmp_path, evaluation={"data": "heldout.npz", "every_rounds": 3}, selection={"fraction": 0.5})
    task = prepared(config).tasks[0].settings
    assert task.requires == ("codec:sparse",)
    assert task.dense_bytes == 4 * 650 and task.update_bytes_max > 4096
    assert task.fraction == 0.5 and task.evaluate_every == 3
    assert task.stopping.metric == "accuracy" and task.plan.training.scalars == {"lr": 0.5}
    assert task.chunk_bytes_max < config.transfer.chunk_bytes_max


@pytest.mark.parametrize("evaluation", [{}, {"held_out": 0.2}])
def test_without_data_nothing_is_left_to_evaluate_after_a_round(tmp_path: Path, evaluation: dict[str, Any]) -> None:
    made = prepared(config_of(tmp_path, evaluation=evaluation))
    assert made.tasks[0].evaluator is None and made.tasks[0].settings.evaluate_every == 0
    assert made.tasks[0].settings.plan.training.held_out == evaluation.get("held_out", 0.0)
    assert made.tasks[0].settings.fraction is None, "auto"


def test_the_second_start_goes_on_with_what_is_stored(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    prepared(config)
    again = prepared(config_of(tmp_path, federation={"seed": 7}, stopping={"rounds_max": 9}))
    assert not again.tasks[0].is_new
    with Store.open_readonly(database_path(config)) as store:
        assert len(store.checkpoints("default")) == 1


@pytest.mark.parametrize("later", ["auto", False, True])
def test_the_second_start_keeps_the_loop_that_the_first_one_had(tmp_path: Path, later: object) -> None:
    first = prepared(config_of(tmp_path, model={"loop": True})).tasks[0].program
    assert first.train_loop and prepared(config_of(tmp_path, model={"loop": later})).tasks[0].program == first


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"hidden": [16]}, "parameters fc1.weight"),
        ({"activation": "tanh"}, "activations Tanh, not Relu"),
        ({"optimizer": "adam"}, "optimizer adam, not sgd"),
        ({"inputs": [8, 8]}, "inputs x float32[8, 8], not x float32[64]"),
        ({"outputs": 9}, "classes 9, not 10"),
        ({"loss": "hinge"}, "loss hinge, not softmax_cross_entropy"),
        ({"zoo": "softmax_regression", "hidden": None}, "name softmax_regression, not mlp"),
    ],
)
def test_a_database_of_another_model_is_refused_and_the_difference_is_named(
    tmp_path: Path, model: dict[str, Any], named: str
) -> None:
    train_once(config_of(tmp_path, model=FLAT))
    message = refusal(config_of(tmp_path, model=FLAT | model, training={"learning_rate": 0.01}))
    assert message.startswith("model.zoo: the database was made for another model") and named in message
    assert "federation.task" in message and "put the old model back" in message


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ({"normalise": "none"}, {"normalise": "federated"}, "normalise federated (axis 1, clip 1e+06), not none"),
        ({"normalise": "local"}, {"normalise": "none"}, "normalise none, not local (axis 1, clip 1e+06)"),
        (
            {"normalise": "federated"},
            {"normalise": "federated", "normalise_clip": 1e9},
            "normalise federated (axis 1, clip 1e+09), not federated (axis 1, clip 1e+06)",
        ),
        ({"normalise": "local"}, {"normalise": "local", "missing": "mean"}, "missing mean, not refuse"),
    ],
)
def test_another_normalisation_is_refused_after_training_with_nothing_else_beside_it(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], said: str
) -> None:
    train_once(config_of(tmp_path, model=FLAT | first))
    assert f"; the configuration's has {said}. Give the new model" in refusal(config_of(tmp_path, model=FLAT | second))


def left_in_the_middle(made: Prepared) -> None:
    """One attempt at the first round has failed, and the next one is open with an update in its journal."""
    store, task, base = made.store, made.tasks[0], made.store.latest_checkpoint("default")
    assert base is not None
    for attempt in range(2):
        record = RoundRecord(
            task.name, base.round + 1, attempt, "reporting", 9.0, base.parameters_digest, task.program.digest
        )
        store.save_round(record)
        ticket, payload = bytes([attempt] * 16), b"an update of this model"
        store.insert_tickets([TicketRecord(ticket, task.name, record.number, attempt, "pi-1", bytes(16))])
        if attempt == 0:
            store.abandon_round(record.abandoned("1 of 1 refused: value", {}, 1e9), {ticket: ("refused", "value")})
        else:
            store.journal([JournalRow(ticket, digest_of(payload), payload)])


@pytest.mark.parametrize("first", [{"normalise": "none"}, {"normalise": "federated"}])
@pytest.mark.parametrize(
    ("second", "begins"),
    [
        ({"normalise": "federated", "normalise_clip": 1e9}, -1),
        ({"normalise": "local", "missing": "mean"}, 0),
        ({"normalise": "none", "hidden": [16]}, 0),
        ({"normalise": "none", "weight_decay": True}, 0),
    ],
)
def test_a_changed_model_begins_anew_where_no_round_of_training_was_committed(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any], begins: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    made = opened(config_of(tmp_path, model=FLAT | first))
    left_in_the_middle(made)
    lineage, program = made.store.lineage, made.tasks[0].program
    made.store.close()
    config = config_of(tmp_path, model=FLAT | second)
    again = opened(config)
    checkpoint = again.store.latest_checkpoint("default")
    assert checkpoint is not None and checkpoint.round == begins
    assert again.tasks[0].is_new and again.tasks[0].program == build_bundle(config).program
    assert not again.store.rounds("default", 10) and again.store.journal_bytes == 0
    assert again.store.get_blob(program.digest) is None
    assert again.store.lineage != lineage, "devices must not take its first attempt for one that they know"
    again.store.close()
    assert not prepared(config).tasks[0].is_new, "once is enough"
    said = [record.getMessage() for record in caplog.records if record.name == "coordinator.setup"]
    assert said == ["task default: [model] has changed, and no round of training was done: the task begins anew"]


def test_a_task_that_begins_anew_leaves_the_other_tasks_of_the_database_alone(tmp_path: Path) -> None:
    with contextlib.closing(Store(tmp_path / "db", wall=lambda: 1e9, new_id=os.urandom)) as store:
        for task in ("one", "other"):
            store.put_initial(task, b"a program", b"parameters", b"memory", {"control": b"a vector"})
        store.forget_task("one")
        assert store.latest_checkpoint("one") is None and store.broadcast("one") == ()
        kept = store.latest_checkpoint("other")
        assert kept is not None and store.get_blob(kept.parameters_digest) == b"parameters"
        assert store.get_blob(kept.program_digest) == b"a program"
        ((_, digest, _),) = store.broadcast("other")
        assert store.get_blob(digest) == b"a vector"


def test_a_model_that_a_newer_version_compiles_to_other_bytes_is_still_the_same(tmp_path: Path) -> None:
    bundle = build_bundle(config_of(tmp_path), verify=False)
    program = bundle.program
    fields = {name: getattr(program, name) for name in Program.__dataclass_fields__}
    other = Program(**{**fields, "train": program.train + b"\x32\x00"})  # an empty doc string
    assert other.digest != program.digest and differences(other, program) == []


def test_a_bundle_is_the_same_only_to_the_bit(tmp_path: Path) -> None:
    graph = build_zoo_model("softmax_regression", inputs=(64,), outputs=10, seed=0)
    options: dict[str, Any] = {"loss": "softmax_cross_entropy", "name": "mine", "verify": False}
    compile_model(graph, **options).save(tmp_path / "mine.bundle")
    model = {"zoo": None, "inputs": None, "outputs": None, "bundle": "mine.bundle"}
    config = config_of(tmp_path, model=model)
    assert prepared(config).tasks[0].program.name == "mine"
    assert not prepared(config).tasks[0].is_new
    train_once(config)
    compile_model(graph, weight_decay=True, **options).save(tmp_path / "mine.bundle")
    assert refusal(config).startswith("model.bundle: the database was made for another model")


def test_a_bundle_that_is_damaged_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.bundle").write_bytes(b"EFBN" + b"\x01" + bytes(50))
    model = {"zoo": None, "inputs": None, "outputs": None, "bundle": "mine.bundle"}
    assert "mine.bundle" in refusal(config_of(tmp_path, model=model), BundleError)
    assert not database_path(config_of(tmp_path)).exists()


def test_a_model_that_does_not_compile_is_refused(tmp_path: Path) -> None:
    model = {"zoo": "cnn", "inputs": [1, 2, 2]}
    assert "cnn takes inputs" in refusal(config_of(tmp_path, model=model), CompileError)


@pytest.mark.parametrize(
    ("tables", "named"),
    [
        (
            {"model": {"zoo": "mlp", "hidden": [400]}, "codec": {"name": "dense", "density": None}}
            | {"transfer": {"partial_bytes_per_device_max": 65_536}},
            "transfer.partial_bytes_per_device_max = 65536: an update of this model with codec.name = 'dense'",
        ),
        (
            {"model": {"zoo": "mlp", "hidden": [200]}, "codec": {"name": "dense", "density": None}}
            | {"transfer": {"journal_bytes_max": 65_536}},
            "transfer.journal_bytes_max = 65536: the updates of one round may have",
        ),
        (
            {"aggregation": {"examples_max": 1 << 27}, "validation": {"value_max": 1e6}},
            "validation.value_max = 1e+06, aggregation.examples_max = 134217728, selection.goal_count = 4: sums of",
        ),
        ({"evaluation": {"data": "missing.npz"}}, "evaluation.data: there is no file"),
        ({"broker": {"username": "a", "password_file": "missing"}}, "broker.password_file: there is no file"),
    ],
)
def test_limits_that_cannot_hold_are_refused_before_a_database_is_made(
    tmp_path: Path, tables: dict[str, Any], named: str
) -> None:
    config_path = write_config(tmp_path, "mqtt://127.0.0.1:1", **tables)
    with pytest.raises(ConfigurationError, match=re.escape(named)):
        prepared(load_config(config_path))
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("value_max", "examples_max", "goal_count"),
    [(32.0, 100_000, 20), (1.0, 1, 1), (0.01, 1 << 20, 50), (1e3, 500, 9999)],
)
def test_the_largest_cohort_of_the_largest_updates_fits_into_the_sums(
    tmp_path: Path, value_max: float, examples_max: int, goal_count: int
) -> None:
    config = config_of(
        tmp_path,
        validation={"value_max": value_max},
        aggregation={"examples_max": examples_max},
        selection={"goal_count": goal_count, "minimum_count": 1},
    )
    point = fixed_point(config)
    mean = WeightedMean(1, point)
    worst = Decoded(1, None, np.array([-value_max], dtype=np.float32))
    for _ in range(3):  # as many examples at once as a third of the cohort may have together
        mean.accumulate(worst, point.weight_sum_max // 3)
    assert mean.report()[0] == pytest.approx(-value_max, rel=1e-6)
    assert point.weight_sum_max >= 1.3 * goal_count * examples_max


def test_uniform_weights_need_no_room_for_examples(tmp_path: Path) -> None:
    tables = {"validation": {"value_max": 1e3}, "selection": {"goal_count": 100, "minimum_count": 1}}
    aggregation = {"weighting": "uniform", "examples_max": 1 << 27}
    assert fixed_point(config_of(tmp_path, aggregation=aggregation, **tables)).fraction_bits == 30


def test_held_out_data_that_do_not_fit_the_model_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "heldout.npz", x=np.zeros((3, 63), dtype=np.float32), y=np.zeros(3, dtype=np.int64))
    message = refusal(config_of(tmp_path, evaluation={"data": "heldout.npz"}), ExamplesError)
    assert not (tmp_path / "state").exists()
    assert message.startswith("evaluation.data: ") and "expected shape [N, 64], got [3, 63]" in message


def test_a_bundle_without_graphs_cannot_be_evaluated_by_the_coordinator(tmp_path: Path) -> None:
    graphs = build_bundle(config_of(tmp_path), verify=False)
    program = Program(
        name="own", kind="trainer", spec=graphs.program.spec, inputs=graphs.program.inputs,
        target=graphs.program.target, loss="softmax_cross_entropy", classes=10,
    )  # fmt: skip
    Bundle(program, graphs.parameters).save(tmp_path / "own.bundle")
    write_held_out(tmp_path)
    model = {"zoo": None, "inputs": None, "outputs": None, "bundle": "own.bundle"}
    message = refusal(config_of(tmp_path, model=model, evaluation={"data": "heldout.npz"}))
    assert "evaluation.data: the model 'own' brings no graph" in message and "evaluation.held_out" in message


def test_a_scalar_that_a_bundle_does_not_have_is_refused(tmp_path: Path) -> None:
    build_bundle(config_of(tmp_path), verify=False).save(tmp_path / "mine.bundle")
    model = {"zoo": None, "inputs": None, "outputs": None, "bundle": "mine.bundle"}
    config = config_of(tmp_path, model=model, training={"scalars": {"beta9": 1.0}})
    assert "training.scalars.beta9: the model has no scalar 'beta9'; its scalars are lr" in refusal(config)


def test_an_accuracy_above_one_is_no_target_for_a_bundle_either(tmp_path: Path) -> None:
    build_bundle(config_of(tmp_path), verify=False).save(tmp_path / "mine.bundle")
    model = {"zoo": None, "inputs": None, "outputs": None, "bundle": "mine.bundle"}
    config = config_of(tmp_path, model=model, evaluation={"held_out": 0.1}, stopping={"target_metric": 95.0})
    assert "stopping.target_metric = 95: an accuracy is above 0 and at most 1" in refusal(config)


def test_another_server_optimizer_cannot_take_over_the_state_of_the_former(tmp_path: Path) -> None:
    prepared(config_of(tmp_path, aggregation={"server_optimizer": "fedadam"}))
    message = refusal(config_of(tmp_path, aggregation={"server_optimizer": "fedavg"}))
    assert (
        message.startswith("aggregation.server_optimizer = 'fedavg': keeps no state") and "federation.task" in message
    )
    prepared(config_of(tmp_path, aggregation={"server_optimizer": "fedadam", "learning_rate": 0.5}))


def test_the_codec_stays_while_an_open_round_holds_updates_of_it(tmp_path: Path) -> None:
    dense = {"name": "dense", "density": None}
    config = config_of(tmp_path, codec=dense)
    program = prepared(config).tasks[0].program
    with_update(config, program.digest, update_of(dense_frame(np.zeros(program.spec.size, dtype=np.float32))))
    prepared(config)
    message = refusal(config_of(tmp_path, codec={"name": "int8", "density": None}))
    assert message.startswith("codec: round 1 is open and holds updates of other codec settings")
    assert "put the former [codec] table back" in message


def test_an_algorithm_that_cannot_use_the_updates_of_an_open_round_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, codec=DENSE)
    program = prepared(config).tasks[0].program
    frame = dense_frame(np.zeros(program.spec.size, dtype=np.float32))
    with_update(config, program.digest, update_of(frame, steps=7))
    for algorithm in ("median", "fednova"):
        prepared(config_of(tmp_path, codec=DENSE, aggregation={"algorithm": algorithm}))
    options = {"algorithm": "fednova", "options": {"steps_max": 5}}
    message = refusal(config_of(tmp_path, codec=DENSE, aggregation=options))
    assert message.startswith("aggregation: round 1: the open round holds an update that the configuration cannot use")


def with_update(config: FederationConfig, program: bytes, payload: bytes) -> None:
    """Leaves a round open in which one update is journalled."""
    store = Store(database_path(config), wall=lambda: 1e9, new_id=os.urandom)
    base = store.latest_checkpoint("default")
    assert base is not None
    store.save_round(RoundRecord("default", 1, 0, "reporting", 60.0, base.parameters_digest, program))
    store.insert_tickets([TicketRecord(bytes(16), "default", 1, 0, "device", bytes(16))])
    store.journal([JournalRow(bytes(16), digest_of(payload), payload)])
    store.close()


def test_a_database_that_is_gone_while_its_backup_is_there_is_not_begun_anew(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    store = prepare([config], wall=lambda: 1e9, new_id=os.urandom).store
    path = database_path(config)
    store.backup(backup_path(path))
    lineage = store.lineage
    store.close()
    path.unlink()
    message = refusal(config, StateError)
    assert f"copy {path.name}.backup to {path.name}" in message and "begin anew" in message
    path.write_bytes(backup_path(path).read_bytes())
    assert not prepared(config).tasks[0].is_new
    with Store.open_readonly(path) as reader:
        assert reader.lineage != lineage, "tickets of before belong to another life"


def test_a_damaged_database_is_set_aside_and_the_backup_is_named(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    store = prepare([config], wall=lambda: 1e9, new_id=os.urandom).store
    path = database_path(config)
    store.backup(backup_path(path))
    store.close()
    path.write_bytes(b"SQLite format 3\0" + bytes(5000))
    message = refusal(config, StateError)
    assert "damaged" in message and f"copy the last backup ({path.name}.backup) to {path.name}" in message
    assert "there is no database, but a backup of it" in refusal(config, StateError), "and the next start says so too"


def test_a_prepared_service_has_not_begun(tmp_path: Path) -> None:
    made = prepare([config_of(tmp_path)], wall=lambda: 1e9, new_id=os.urandom)
    rng = np.random.Generator(np.random.PCG64(0))
    service = make_service(made, new_id=os.urandom, rng=rng, wall=lambda: 1e9)
    assert service.finished is None and made.store.open_round("default") is None
    made.store.close()


# --- the pipeline ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slow:
    """A server optimiser of one's own."""

    eta: float = 0.5

    def init(self, size: int) -> dict[str, NDArray[np.float32]]:
        return {"seen": np.zeros(size, dtype=np.float32)}

    def apply(
        self,
        parameters: NDArray[np.float32],
        mean_delta: NDArray[np.float32],
        state: dict[str, NDArray[np.float32]],
        buffer: object = None,
    ) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        return parameters + np.float32(self.eta) * mean_delta, {"seen": state["seen"] + 1}


DENSE = {"name": "dense", "density": None}


def test_a_pipeline_is_put_together_from_the_configuration(tmp_path: Path) -> None:
    config = config_of(
        tmp_path,
        codec=DENSE,
        aggregation={
            "algorithm": "trimmed_mean",
            "options": {"fraction": 0.1},
            "step": [{"name": "clip", "norm": 2.0}],
            "server_optimizer": "test_setup:Slow",
            "server_options": {"eta": 0.25},
        },
    )
    settings = pipeline_settings(config, build_bundle(config).program)
    assert settings.algorithm == make_algorithm("trimmed_mean", {"fraction": 0.1})
    assert settings.steps == (("clip", make_step("clip", {"norm": 2.0})),)
    assert settings.optimizer.eta == 0.25  # type: ignore[attr-defined]
    assert prepared(config).tasks[0].is_new and not prepared(config).tasks[0].is_new


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"algorithm": "krum"}, "aggregation.algorithm = 'krum': choose one of mean, median"),
        ({"algorithm": "median", "options": {"fraction": 0.1}}, "aggregation.options.fraction: median has no such"),
        ({"algorithm": "trimmed_mean", "options": {"fraction": 0.6}}, "aggregation.options.fraction is 0.6, expected"),
        ({"algorithm": "median", "weighting": "examples"}, 'aggregation.weighting = "examples": median counts every'),
        ({"algorithm": "nowhere.to.be:Found"}, "aggregation.algorithm: 'nowhere.to.be:Found': there is no module"),
        ({"algorithm": "fednova", "options": {"momentum": 0.9}}, "aggregation.options.momentum = 0.9: the devices'"),
        ({"server_optimizer": "test_setup:Prepared"}, "aggregation.server_optimizer"),
        ({"server_optimizer": "test_setup:Slow", "server_options": {"speed": 1}}, "aggregation.server_optimizer"),
        ({"step": [{"name": "shorten"}]}, "aggregation.step.name = 'shorten': choose one of clip"),
        ({"step": [{"name": "clip"}]}, "aggregation.step.name"),
        ({"step": [{"name": "clip", "norm": -1.0}]}, "aggregation.step (clip): norm is -1.0, expected"),
    ],
)
def test_a_pipeline_that_cannot_be_is_refused_with_its_key(
    tmp_path: Path, tables: dict[str, Any], message: str
) -> None:
    assert refusal(config_of(tmp_path, codec=DENSE, aggregation=tables)).startswith(message)


def test_a_rule_that_compares_coordinates_is_refused_with_a_codec_that_leaves_some_out(tmp_path: Path) -> None:
    sparse = config_of(tmp_path, aggregation={"algorithm": "median"})
    assert refusal(sparse).startswith("codec.name = \"sparse\": with aggregation.algorithm = 'median' most coordinates")
    tensors = {**DENSE, "tensors": {"*.bias": {"name": "sparse"}}}
    part = config_of(tmp_path, aggregation={"algorithm": "median"}, codec=tensors)
    assert refusal(part).startswith('codec.tensors."*.bias".name = "sparse"')


def test_another_algorithm_cannot_take_over_the_memory_of_the_former(tmp_path: Path) -> None:
    prepared(config_of(tmp_path, codec=DENSE, aggregation={"algorithm": "test_algorithms:Counting"}))
    message = refusal(config_of(tmp_path, codec=DENSE, aggregation={"algorithm": "mean"}))
    assert message.startswith("aggregation.algorithm = 'mean': keeps no state, and the task was trained with")
    step = {"algorithm": "test_algorithms:Counting", "step": [{"name": "clip", "norm": 1.0}]}
    assert not prepared(config_of(tmp_path, codec=DENSE, aggregation=step)).tasks[0].is_new, (
        "a step may come at any time"
    )
