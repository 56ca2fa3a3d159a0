"""``simulate``: its forms of models and clients, its errors, its history."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from coordinator.compile import build_zoo_model, compile_model
from device_sim import Dataset, History, load_dataset, simulate
from edge_sdk.aggregation.median import Median
from edge_sdk.codecs.frames import frames_bytes_max
from edge_sdk.errors import ConfigurationError, EdgeFedError, TrainingError
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.examples import Examples

FAST: dict[str, Any] = {"rounds": 3, "goal_count": 3, "batch_size": 8, "learning_rate": 0.1}


def examples(count: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    return (rng.normal(size=(count, 5)) + 2.0 * np.eye(5)[y]).astype(np.float32), y


CLIENTS = [examples(20 + number, number) for number in range(6)]


def bundle() -> Bundle:
    graph = build_zoo_model("softmax_regression", inputs=(5,), outputs=3, seed=0)
    return compile_model(graph, loss="softmax_cross_entropy", optimizer="sgd", name="small", verify=False)


def onnx_bytes() -> bytes:
    data: bytes = build_zoo_model("softmax_regression", inputs=(5,), outputs=3, seed=0).SerializeToString()
    return data


def digests(history: History) -> list[bytes]:
    return [result.digest for result in history.rounds]


# --- the same seed, the same bits ---


@pytest.mark.parametrize("codec", ["dense", "auto", "sparse"])
def test_the_same_seed_gives_the_same_bits_and_another_one_others(codec: str) -> None:
    first, second = (simulate("softmax_regression", CLIENTS, codec=codec, **FAST) for _ in range(2))
    assert digests(first) == digests(second) and first.table() == second.table()
    assert digests(simulate("softmax_regression", CLIENTS, codec=codec, seed=1, **FAST)) != digests(first)


def test_cohorts_of_another_run_are_played_again() -> None:
    first = simulate(bundle(), CLIENTS, **FAST)
    again = simulate(bundle(), CLIENTS, seed=77, cohorts=first.cohorts, **FAST)
    assert digests(again) == digests(first) and again.cohorts == first.cohorts
    numbers = [[int(name.removeprefix("device-")) for name in cohort] for cohort in first.cohorts]
    assert digests(simulate(bundle(), CLIENTS, cohorts=numbers, **FAST)) == digests(first)


def test_the_order_within_a_cohort_does_not_matter() -> None:
    first = simulate(bundle(), CLIENTS, codec="auto", **FAST)
    turned = [cohort[::-1] for cohort in first.cohorts]
    assert digests(simulate(bundle(), CLIENTS, codec="auto", cohorts=turned, **FAST)) == digests(first)


# --- models and clients ---


def test_a_model_comes_as_zoo_name_onnx_or_bundle(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(onnx_bytes())
    whole = onnx.ModelProto.FromString(onnx_bytes())
    beside = {"location": "apart.onnx.data", "size_threshold": 0}
    onnx.save(whole, tmp_path / "apart.onnx", save_as_external_data=True, **beside)
    bundle().save(tmp_path / "model.bundle")
    loss: dict[str, Any] = {"loss": "softmax_cross_entropy"}
    made = [
        simulate("softmax_regression", CLIENTS, normalise="none", **FAST),
        simulate(onnx_bytes(), CLIENTS, **loss, **FAST),
        simulate(tmp_path / "model.onnx", CLIENTS, **loss, **FAST),
        simulate(tmp_path / "apart.onnx", CLIENTS, **loss, **FAST),
        simulate(bundle(), CLIENTS, **FAST),
        simulate(str(tmp_path / "model.bundle"), CLIENTS, **FAST),
        simulate((tmp_path / "model.bundle").read_bytes(), CLIENTS, **FAST),
    ]
    assert len({digests(history)[-1] for history in made}) == 1


@pytest.mark.parametrize(
    ("name", "targets", "metric"),
    [
        ("logistic_regression", lambda y: (y > 0).astype(np.int64), "accuracy"),
        ("logistic_regression", lambda y: y, "accuracy"),
        ("linear_regression", lambda y: np.stack([y, 2 * y], 1).astype(np.float32), "mean_squared_error"),
        ("linear_regression", lambda y: y.astype(np.float32), "mean_squared_error"),
        ("linear_svm", lambda y: np.where(y > 0, 1, -1), "accuracy"),
        ("mlp", lambda y: y, "accuracy"),
    ],
)
def test_a_zoo_model_takes_its_shape_from_the_examples(name: str, targets: Any, metric: str) -> None:
    clients = [(x, targets(y)) for x, y in CLIENTS]
    history = simulate(name, clients, evaluation=clients[0], **FAST)
    assert history.metric == metric and np.isfinite(history.metrics[metric]).all()


def test_clients_come_as_dictionary_list_or_data_set() -> None:
    named = {f"site-{number}": pair for number, pair in enumerate(CLIENTS)}
    assert set(simulate(bundle(), named, **FAST).clients) == set(named)
    x, y = (np.concatenate(parts) for parts in zip(*CLIENTS, strict=True))
    key = np.repeat(np.arange(6), [len(pair[1]) for pair in CLIENTS])
    history = simulate("softmax_regression", Dataset(x, y, group=key), split="natural", evaluation=None, **FAST)
    assert [counts.examples for counts in history.clients.values()] == [len(pair[1]) for pair in CLIENTS]
    assert "accuracy" not in history.final
    digits = simulate("softmax_regression", "digits", devices=10, split="shards:2", **FAST)
    assert len(digits.clients) == 10 and digits.final["accuracy"] > digits.initial["accuracy"]


def test_bytes_are_taken_as_they_are_and_the_model_scales_them() -> None:
    digits = load_dataset("digits")
    shades = Dataset((255 * digits.x).astype(np.uint8), digits.y)
    settings: dict[str, Any] = {
        "devices": 10,
        "rounds": 15,
        "goal_count": 5,
        "learning_rate": 0.05,
        "split": "shards:4",
    }
    assert simulate("softmax_regression", shades, **settings).final["accuracy"] > 0.85
    raw = simulate("softmax_regression", shades, normalise="none", **settings)
    assert raw.initial["loss"] > 20, "nobody else does: weights for numbers around 1 meet numbers up to 255"


@pytest.mark.parametrize("form", ["dictionary", "file", "Examples"])
def test_clients_and_evaluation_come_in_every_form_that_a_device_takes(form: str, tmp_path: Path) -> None:
    def given(number: int, pair: Any) -> Any:
        if form == "dictionary":
            return {"x": pair[0], "target": pair[1]}
        if form == "Examples":
            return Examples({"x": pair[0]}, pair[1])
        np.savez(tmp_path / f"{number}.npz", x=pair[0], y=pair[1])
        return tmp_path / f"{number}.npz"

    plain = simulate("softmax_regression", CLIENTS, evaluation=CLIENTS[0], **FAST)
    clients = [given(number, pair) for number, pair in enumerate(CLIENTS)]
    other = simulate("softmax_regression", clients, evaluation=given(99, CLIENTS[0]), **FAST)
    assert digests(other) == digests(plain) and other.initial == plain.initial


def test_arrays_by_name_are_one_data_set_that_is_dealt() -> None:
    x, y = (np.concatenate(parts) for parts in zip(*CLIENTS, strict=True))
    group = np.repeat(np.arange(6), [len(pair[1]) for pair in CLIENTS])
    history = simulate("softmax_regression", {"x": x, "y": y, "group": group}, split="natural", evaluation=0.5, **FAST)
    assert len(history.clients) == 6
    assert sum(counts.examples for counts in history.clients.values()) == pytest.approx(len(x) / 2, abs=3)


def test_the_newest_part_of_a_data_set_is_what_nobody_trains_on() -> None:
    x, y = (np.concatenate(parts) for parts in zip(*CLIENTS, strict=True))
    time = np.random.default_rng(0).permutation(len(x))
    newest = time >= len(x) - int(0.2 * len(x) + 0.5)
    data = Dataset(x, y, time=time)
    history = simulate("softmax_regression", data, devices=4, evaluation={"last": 0.2}, **FAST)
    marked = simulate("softmax_regression", Dataset(x, y, time=time, is_test=newest), devices=4, **FAST)
    assert digests(history) == digests(marked) and history.final == marked.final


def test_an_autoencoder_of_the_zoo_learns_without_a_target() -> None:
    clients = {f"site-{number}": pair[0] for number, pair in enumerate(CLIENTS)}
    settings: dict[str, Any] = {"loss": "reconstruction", "hidden": [3], **FAST}
    history = simulate("mlp", clients, evaluation=CLIENTS[0][0], **settings)
    assert history.metric == "mean_squared_error" and history.final["loss"] < history.initial["loss"]


def test_a_published_test_set_is_what_the_model_is_evaluated_on() -> None:
    digits = load_dataset("digits")
    is_test = np.arange(len(digits)) % 10 == 0
    history = simulate("softmax_regression", Dataset(digits.x, digits.y, is_test=is_test), devices=5, **FAST)
    assert sum(counts.examples for counts in history.clients.values()) == np.count_nonzero(~is_test)


# --- settings ---


def test_settings_mean_what_they_mean_in_the_configuration() -> None:
    history = simulate(bundle(), CLIENTS, epochs=3, steps_max=2, held_out=0.3, weighting="uniform", **FAST)
    assert {result.metrics["examples"] for result in history.rounds} == {3.0}, "uniform: each weighs 1"
    assert "accuracy" in history.final, "clients evaluate on what they hold out"
    plain = simulate(bundle(), CLIENTS, eta=0.5, **FAST)
    table = simulate(bundle(), CLIENTS, aggregation={"learning_rate": 0.5}, **FAST)
    assert digests(plain) == digests(table) != digests(simulate(bundle(), CLIENTS, **FAST))


def test_clients_hold_out_their_last_examples_where_the_settings_say_so() -> None:
    first = simulate(bundle(), CLIENTS, held_out={"last": 0.25}, **FAST)
    spoilt = []
    for x, y in CLIENTS:
        newest = np.arange(len(y)) >= len(y) - int(0.25 * len(y) + 0.5)
        spoilt.append((x, np.where(newest, (y + 1) % 3, y)))
    second = simulate(bundle(), spoilt, held_out={"last": 0.25}, **FAST)
    assert digests(first) == digests(second) != digests(simulate(bundle(), spoilt, held_out=0.25, **FAST))
    assert first.final["accuracy"] > second.final["accuracy"], "what was spoilt is what the model is judged on"


def test_stopping_rules_end_it() -> None:
    history = simulate(bundle(), CLIENTS, evaluation=CLIENTS[0], target_metric=0.5, **{**FAST, "rounds": 200})
    assert history.finished.startswith("target reached: accuracy") and len(history) < 200


def test_evaluation_only_now_and_then_and_after_the_last_round() -> None:
    history = simulate(bundle(), CLIENTS, evaluation=CLIENTS[0], every_rounds=2, **{**FAST, "rounds": 5})
    assert np.isfinite(history.metrics["accuracy"]).tolist() == [False, True, False, True, True]
    assert np.isfinite(history.metrics["train_loss"]).all() and history.initial


class Last:
    """The last names there are."""

    def __init__(self, skip: int = 0) -> None:
        self.skip = skip

    def choose(self, candidates: Any, count: int, rng: Any) -> list[str]:
        names = [candidate.device for candidate in candidates]
        return names[-count - self.skip : len(names) - self.skip]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [(Last, 5), (Last(1), 4), (f"{__name__}:Last", 5), ({"rule": f"{__name__}:Last", "rule_options": {"skip": 2}}, 3)],
)
def test_a_rule_of_ones_own_chooses(selection: Any, expected: int) -> None:
    history = simulate(bundle(), CLIENTS, selection=selection, **FAST)
    assert {cohort[-1] for cohort in history.cohorts} == {f"device-{expected:05d}"}


class OwnTrainer:
    """Moves every parameter by a constant."""

    def fit(self, parameters: dict[str, np.ndarray], examples: Any, plan: Any) -> dict[str, np.ndarray]:
        return {name: array + np.float32(plan.scalars["lr"]) for name, array in parameters.items()}


@pytest.mark.parametrize("trainer", [OwnTrainer, OwnTrainer(), f"{__name__}:OwnTrainer"])
def test_a_trainer_of_ones_own_trains(trainer: Any) -> None:
    history = simulate(bundle(), CLIENTS, trainer=trainer, codec="dense", **FAST)
    np.testing.assert_allclose(history.parameters, bundle().parameters + 0.3, atol=1e-5)


def test_one_client_that_diverges_is_refused_and_all_of_them_end_it() -> None:
    broken = [*CLIENTS[:5], (np.full((4, 5), 1e30, np.float32), np.zeros(4, np.int64))]
    history = simulate(bundle(), broken, rounds=2, goal_count=6, learning_rate=0.1, batch_size=8)
    assert [len(result.refused) for result in history.rounds] == [1, 1]
    assert "loss" in history.rounds[0].refused["device-00005"]
    assert history.clients["device-00005"].refused == 2
    with pytest.raises(TrainingError, match=r"round 1: not one of 1 updates can be used: .*loss"):
        simulate(bundle(), broken[5:], rounds=2, learning_rate=0.1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clients": []}, "clients: there are none"),
        ({"clients": 5}, "clients: int; give a dictionary or list"),
        ({"clients": CLIENTS[0]}, "this is one pair of arrays; give a list of pairs"),
        ({"clients": {1: CLIENTS[0], "1": CLIENTS[1]}}, "two keys are the same as text"),
        (
            {"clients": [CLIENTS[0], (CLIENTS[1][0][:, :4], CLIENTS[1][1])]},
            r"clients\['device-00001'\]: .*expected shape",
        ),
        ({"evaluation": (CLIENTS[0][0], CLIENTS[0][1][:3])}, "evaluation: .*different numbers of examples"),
        (
            {"evaluation": {"last": 0.2}},
            "evaluation=.'last': 0.2.: is a part of a Dataset; give examples, or held_out=",
        ),
        ({"evaluation": 0.2}, "evaluation=0.2: is a part of a Dataset; give examples, or held_out=0.2"),
        ({"clients": {"a": "nowhere.npz"}}, "clients.'a'.: nowhere.npz: cannot be read"),
        ({"split": "iid"}, "split='iid': goes with a Dataset"),
        ({"model": "resnet"}, "model='resnet': is neither one of"),
        ({"model": b"not onnx", "loss": "hinge"}, "8 bytes that are not an ONNX model"),
        ({"goal_count": 7}, "goal_count=7: there are 6 clients"),
        ({"batch_size": 0}, "training.batch_size = 0: must be a whole number at least 1"),
        ({"batchsize": 5}, "batchsize=5: there is no such argument; did you mean batch_size"),
        ({"seconds_max": 5.0}, "seconds_max=5.0: time stands still in a simulation; use steps_max"),
        ({"window_seconds": 5.0}, "selection.window_seconds=5.0: every device answers at once"),
        ({"codec": "zip"}, "codec.name = 'zip'"),
        ({"codec": {"name": "dense", "density": 0.1}}, "codec.density: is not read by dense"),
        ({"momentum": 0.5}, "training.momentum: the model has no scalar 'momentum'"),
        ({"learning_rate": 0.1, "training": {"learning_rate": 0.2}}, "training.learning_rate is set twice"),
        ({"patience": 3}, "stopping.patience: nothing is evaluated"),
        ({"cohorts": [["device-00001"]]}, "cohorts: 1 are given, and rounds=3"),
        ({"cohorts": [["nobody"]] * 3}, "cohorts: round 1: 'nobody' is no client"),
        ({"engine": "tpu"}, "engine is 'tpu'"),
        ({"trainer": object}, r"trainer=object: has no fit\(\)"),
        ({"selection": "fairest"}, "selection.rule = 'fairest': must be"),
        ({"selection": Last(99)}, "Last.choose gives 0 names; it must give 6 different names out of 6"),
        ({"algorithm": "mode"}, "aggregation.algorithm = 'mode'"),
        ({"algorithm": "median"}, "with aggregation.algorithm = 'median'"),
        ({"algorithm": Median}, "codec.name = \"auto\": with aggregation.algorithm = 'Median'"),
        ({"algorithm": "trimmed_mean", "codec": "int8", "options": {"share": 0.1}}, "has no such setting"),
        ({"steps": ["clipp"]}, "'clipp'"),
        ({"steps": [object()]}, r"steps=object: has no admit\(\)"),
        ({"server_optimizer": "nowhere:Mine"}, "there is no module 'nowhere'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_an_error_names_the_argument_the_value_and_the_remedy(change: dict[str, Any], says: str) -> None:
    arguments: dict[str, Any] = {"model": bundle(), "clients": CLIENTS, "rounds": 3, **change}
    with pytest.raises(EdgeFedError, match=says):
        simulate(arguments.pop("model"), arguments.pop("clients"), **arguments)


# --- the history ---


def test_bytes_are_those_that_travel() -> None:
    history = simulate(bundle(), CLIENTS, codec="dense", **FAST)
    least = 4 * bundle().program.spec.size
    most = frames_bytes_max(bundle().program.spec, _dense()) + 300
    assert all(3 * least < up < 3 * most for up in history.bytes_up)
    assert history.bytes_down[0] == 3 * (least + 16), "everybody fetches the parameters whole"
    assert sum(counts.bytes_up for counts in history.clients.values()) == history.bytes_up.sum()
    assert sum(counts.bytes_down for counts in history.clients.values()) == history.bytes_down.sum()
    assert sum(counts.rounds for counts in history.clients.values()) == 9


def _dense() -> Any:
    from edge_sdk.codecs import CodecSettings

    return CodecSettings("dense")


def test_model_deltas_are_cheaper_than_whole_models() -> None:
    settings: dict[str, Any] = {"rounds": 4, "goal_count": 10, "devices": 10, "hidden": [200], "learning_rate": 0.1}
    deltas = simulate("mlp", "digits", **settings)
    whole = simulate("mlp", "digits", downlink="none", **settings)
    assert deltas.bytes_down[0] == whole.bytes_down[0] and deltas.bytes_down[1] < whole.bytes_down[1] / 2


def test_a_history_is_shown_saved_and_gone_on_from(tmp_path: Path) -> None:
    import onnxruntime

    history = simulate("softmax_regression", CLIENTS, evaluation=CLIENTS[0], **FAST)
    assert repr(history).startswith("History(softmax_regression: rounds 3 (round budget") and "accuracy" in repr(
        history
    )
    assert history._repr_html_().startswith("<table>")
    with history.save(tmp_path / "rounds.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["bytes_up"]) for row in rows] == history.bytes_up.tolist()
    with np.load(history.save(tmp_path / "weights.npz")) as arrays:
        assert {name: array.shape for name, array in arrays.items()} == {
            name: array.shape for name, array in history.weights.items()
        }
    session = onnxruntime.InferenceSession(str(history.save(tmp_path / "model.onnx")))
    scores = session.run(None, {session.get_inputs()[0].name: CLIENTS[0][0]})[0]
    assert np.mean(scores.argmax(1) == CLIENTS[0][1]) == pytest.approx(history.final["accuracy"])
    further = simulate(history.save(tmp_path / "model.bundle"), CLIENTS, evaluation=CLIENTS[0], **FAST)
    assert further.initial == {name: history.final[name] for name in further.initial}
    with pytest.raises(ConfigurationError, match=r"the name ends in \.onnx"):
        history.save(tmp_path / "model.pt")


def test_plots_and_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    history = simulate(bundle(), CLIENTS, evaluation=CLIENTS[0], **FAST)
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = history.plot("loss", "train_loss", against="bytes")
    assert len(axes.lines) == 2 and axes.get_xlabel() == "bytes"
    with pytest.raises(ConfigurationError, match="'f1' was not measured; there are train_loss"):
        history.plot("f1")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigurationError, match=r"pandas is not installed; pip install pandas, or history\.table"):
        history.to_pandas()


def test_progress_is_a_line_on_a_terminal_a_function_or_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulate(bundle(), CLIENTS, **FAST)
    assert capsys.readouterr() == ("", "")
    told: list[tuple[int, int]] = []
    simulate(bundle(), CLIENTS, progress=lambda number, rounds, metrics: told.append((number, rounds)), **FAST)
    assert told == [(1, 3), (2, 3), (3, 3)]

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    simulate(bundle(), CLIENTS, **FAST)
    assert "round 3/3 [########################]  train_loss" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")


def machine(seed: int, rows: int = 150, missing: float = 0.0) -> tuple[Any, Any]:
    """Revolutions a minute, degrees and bar of a machine with levels of its own, and whether it is too hot for them."""
    rng = np.random.default_rng(seed)
    level = np.array([1480.0, 62.0, 4.2]) * rng.uniform(0.5, 2.0, 3)
    z = rng.standard_normal((rows, 3))
    x = (level + z * [120.0, 5.0, 0.3]).astype(np.float32)
    x[rng.random((rows, 3)) < missing] = np.nan
    return x, (z[:, 1] > z[:, 0]).astype(np.int64)


def test_raw_units_train_where_each_client_normalises_and_are_refused_where_nobody_does() -> None:
    machines = {f"machine-{seed}": machine(seed, missing=0.05) for seed in range(6)}
    settings = {"hidden": [16], "rounds": 12, "learning_rate": 0.1, "batch_size": 16, "evaluation": machine(99, 400)}
    history = simulate("mlp", machines, normalise="local", missing="mean", missing_indicator=True, **settings)
    assert history.metrics["accuracy"][-1] > 0.9
    assert not any(client.refused for client in history.clients.values())
    again = simulate("mlp", machines, normalise="local", missing="mean", missing_indicator=True, **settings)
    assert np.array_equal(history.parameters, again.parameters)
    whole = {f"machine-{seed}": machine(seed) for seed in range(6)}
    with pytest.raises(TrainingError, match="not one of 6 updates can be used"):
        simulate("mlp", whole, normalise="none", **settings)
