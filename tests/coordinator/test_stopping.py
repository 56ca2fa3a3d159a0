"""When a federation ends."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wired import TASK, Desk, make_update

from coordinator.cli.export import export_model
from coordinator.config import load_config
from coordinator.config.settings import database_path
from coordinator.events import Finished
from coordinator.reports import status_report
from coordinator.setup import build_bundle
from coordinator.stopping import Stopping, StoppingRule
from coordinator.store import RoundRecord, Store
from device_sim import simulate
from edge_sdk.errors import TrainingError
from edge_sdk.training.bundle import Bundle, digest_of, encode_parameters
from edge_sdk.wire.messages import Chunk, Decline


def observe(stopping: Stopping, *values: float) -> list[str | None]:
    return [stopping.observe(i, {stopping.rule.metric: value}) for i, value in enumerate(values, 1)]


def test_the_round_budget_ends_it() -> None:
    stopping = Stopping(StoppingRule(rounds_max=2))
    assert stopping.observe(1, {}) is None
    assert stopping.observe(2, {}) == "round budget: 2 rounds done"


def test_a_target_ends_it_at_once() -> None:
    assert observe(Stopping(StoppingRule(target=0.9)), 0.5, 0.9)[1] == "target reached: accuracy 0.9 in round 2"


def test_of_a_loss_less_is_better() -> None:
    reasons = observe(Stopping(StoppingRule(metric="loss", target=0.2)), 0.5, 0.1)
    assert reasons[0] is None and reasons[1] is not None


def test_patience_counts_evaluations_without_improvement() -> None:
    stopping = Stopping(StoppingRule(patience=2, min_delta=0.01))
    reasons = observe(stopping, 0.5, 0.505, 0.509)
    assert reasons[:2] == [None, None]
    assert reasons[2] is not None and "0.5 (round 1) for 2 evaluations" in reasons[2]


def test_an_improvement_starts_the_count_again() -> None:
    assert observe(Stopping(StoppingRule(patience=2, min_delta=0.01)), 0.5, 0.5, 0.6, 0.6) == [None] * 4


def test_rounds_without_an_evaluation_do_not_count_as_stale() -> None:
    stopping = Stopping(StoppingRule(patience=1))
    stopping.observe(1, {"accuracy": 0.5})
    assert stopping.observe(2, {"train_loss": 1.0}) is None


def test_a_metric_that_is_not_a_number_neither_ends_nor_improves() -> None:
    stopping = Stopping(StoppingRule(target=0.9, patience=1))
    assert stopping.observe(1, {"accuracy": math.nan}) is None
    assert stopping.observe(2, {"accuracy": math.inf}) is None
    assert stopping.best is None


def test_nothing_configured_never_ends() -> None:
    stopping = Stopping(StoppingRule())
    assert all(stopping.observe(i, {"accuracy": 0.5}) is None for i in range(1, 1000))


# --- a run that has diverged -----------------------------------------------------------------------------------------

RULE = StoppingRule(rounds_max=1000)


def losses(stopping: Stopping, *values: float) -> list[str | None]:
    return [stopping.observe(i, {"loss": value}) for i, value in enumerate(values, 1)]


@pytest.mark.parametrize("bad", [math.nan, math.inf, 231.0])
def test_a_loss_that_is_no_number_or_far_beyond_the_start_three_times_running_has_diverged(bad: float) -> None:
    stopping = Stopping(RULE)
    reasons = losses(stopping, 2.3, 1.0, bad, bad, bad)
    assert reasons[:4] == [None] * 4 and stopping.diverged and stopping.good_round == 2
    assert reasons[4] is not None and reasons[4].startswith("diverged: for 3 rounds, up to round 5, the loss has been")
    assert reasons[4].endswith("; the last good model is that of round 2")


def test_a_run_that_was_never_good_goes_back_to_the_initial_model() -> None:
    (*_, reason) = losses(Stopping(RULE), math.nan, math.nan, math.nan)
    assert reason is not None and reason.endswith("the last good model is the initial one")


@pytest.mark.parametrize(
    "values",
    [
        (2.3, 229.0, 229.0, 229.0, 229.0),
        (2.3, math.nan, math.nan, 2.3, math.nan, math.nan, 2.0),
        (1e-6, 0.9, 0.9, 0.9, 0.9),
    ],
    ids=["not far enough", "not in a row", "from next to nothing"],
)
def test_what_may_come_right_again_goes_on(values: tuple[float, ...]) -> None:
    stopping = Stopping(RULE)
    assert losses(stopping, *values) == [None] * len(values) and not stopping.diverged


@given(st.lists(st.floats(0.0, 1e30), min_size=4, max_size=30), st.floats(0.01, 0.5))
def test_a_run_whose_metric_is_better_than_at_its_start_never_counts_as_diverged(
    values: list[float], start: float
) -> None:
    """Accuracy may rise while the loss of a few confident mistakes does, too."""
    stopping = Stopping(RULE)
    stopping.observe(1, {"loss": 1e-3, "accuracy": start})
    for number, loss in enumerate(values, 2):
        assert stopping.observe(number, {"loss": loss, "accuracy": start + 0.01}) is None
    assert stopping.good_round == len(values) + 1


def test_zero_rounds_switch_it_off() -> None:
    assert losses(Stopping(replace(RULE, divergence_rounds=0)), 1.0, *[math.nan] * 20) == [None] * 21


def test_where_devices_evaluate_a_round_speaks_of_the_model_from_before_it() -> None:
    stopping = Stopping(replace(RULE, judged_late=True))
    losses(stopping, 2.3, 1.0, math.nan, math.nan, math.nan)
    assert stopping.diverged and stopping.good_round == 1
    of_training = Stopping(RULE)
    for number, value in enumerate([2.3, 1.0, 900.0, 900.0, 900.0], 1):
        of_training.observe(number, {"train_loss": value})
    assert of_training.diverged and of_training.good_round == 1


def test_between_evaluations_the_training_loss_decides_nothing() -> None:
    stopping = Stopping(RULE)
    stopping.observe(1, {"loss": 2.0, "train_loss": 2.0})
    assert all(stopping.observe(n, {"train_loss": 1e9}) is None for n in range(2, 20)) and stopping.good_round == 1


def test_attempts_in_which_devices_only_compute_nan_have_diverged_but_not_in_the_first_round() -> None:
    stopping = Stopping(RULE)
    assert [stopping.failed(1, "diverged") for _ in range(9)] == [None] * 9, (
        "settings or data, and nothing to go back to"
    )
    losses(stopping, 2.3, 1.0)
    assert [stopping.failed(3, reason) for reason in ("diverged", "nan", "value", "nan", "diverged")] == [None] * 5
    said = stopping.failed(3, "diverged")
    assert said is not None and said.startswith("diverged: in ") and said.endswith("that of round 2")


# --- a task that has diverged ----------------------------------------------------------------------------------------


def opened(desk: Desk) -> Desk:
    while desk.round is None and desk.core.finished is None:
        desk.wait()
    return desk


def close_round(desk: Desk, delta: float = 0.01) -> None:
    for device, invite in opened(desk).begin("a", "b", "c").items():
        payload = make_update(delta)
        chunk = Chunk(ticket=invite.ticket, digest=digest_of(payload), total=len(payload), offset=0, data=payload)
        desk.hear(device, chunk)
        desk.work()


def fail_round(desk: Desk) -> None:
    for device, invite in opened(desk).begin("a", "b", "c").items():
        desk.hear(device, Decline(ticket=invite.ticket, reason="diverged"))


def finished(desk: Desk) -> list[str]:
    return [effect.reason for effect in desk.effects if isinstance(effect, Finished)]


def test_a_task_that_has_diverged_ends_and_stays_ended_after_a_restart() -> None:
    desk = Desk(stopping=StoppingRule(rounds_max=100))
    close_round(desk)
    close_round(desk)
    for _ in range(2):
        fail_round(desk)
        assert not finished(desk)
    fail_round(desk)
    (said,) = finished(desk)
    assert said.startswith("diverged: in 3 attempts at round 3 devices could only compute NaN or infinity")
    desk.wait(100_000.0)
    assert desk.round is None, "nothing more is tried"
    desk.crash()
    assert desk.core.finished == said and finished(desk) == [said, said]
    desk.settings = replace(desk.settings, stopping=StoppingRule(rounds_max=100, divergence_rounds=0))
    desk.crash()
    assert desk.core.finished is None, "who has switched it off goes on"
    desk.wait()
    assert desk.round is not None


def test_the_last_good_model_outlives_the_newest_ones(tmp_path: Path) -> None:
    store = Store(":memory:", wall=lambda: 0.0, new_id=os.urandom, checkpoints_kept=2)
    desk = Desk(store=store, stopping=StoppingRule(rounds_max=100), evaluate_every=1)
    scores = iter([1.0, 0.5, *[math.nan] * 3])
    desk.jobs.score = lambda: {"loss": next(scores)}
    while not finished(desk):
        close_round(desk)
        desk.work()
    assert "the last good model is that of round 2" in finished(desk)[0]
    assert [checkpoint.round for checkpoint in store.checkpoints(TASK)] == [5, 4, 2]


def served(tmp_path: Path, losses: list[float]) -> Path:
    """A database with a run of these evaluations in it; the model of round n is all n."""
    path = tmp_path / "federation.toml"
    path.write_text(
        '[federation]\nname = "f"\n[broker]\nurl = "mqtt://localhost"\n'
        '[model]\nzoo = "softmax_regression"\ninputs = [4]\noutputs = 3\n[evaluation]\ndata = "heldout.npz"\n'
    )
    np.savez(tmp_path / "heldout.npz", x=np.ones((6, 4), np.float32), y=np.arange(6) % 3)
    config = load_config(path)
    bundle = build_bundle(config, verify=False)
    database_path(config).parent.mkdir()
    with Store(database_path(config), wall=lambda: 0.0, new_id=os.urandom) as store:
        program = bundle.program.encode()
        store.put_initial("default", program, encode_parameters(bundle.parameters), b"")
        for number, loss in enumerate(losses, 1):
            record = RoundRecord("default", number, 0, "selection", 0.0, b"", bundle.program.digest)
            store.save_round(record)
            parameters = encode_parameters(np.full_like(bundle.parameters, number))
            store.commit_round(
                replace(record, phase="closed", last_seq=0, summary={"metrics": {"loss": loss}}),
                parameters=parameters,
                server_state=b"",
                verdicts={},
                metrics={"loss": loss},
            )
    return path


def test_export_gives_the_last_good_model_and_status_says_why_it_ended(tmp_path: Path) -> None:
    config = load_config(served(tmp_path, [2.0, 1.0, math.nan, math.inf, 1e9]))
    report = export_model(config, bundle=tmp_path / "good.bundle")
    assert report["round"] == 2 and report["run"].startswith("diverged: ")
    assert (Bundle.load(tmp_path / "good.bundle").parameters == 2.0).all()
    assert export_model(config, bundle=tmp_path / "last.bundle", round_number=5)["round"] == 5
    assert status_report(config)["finished"] == report["run"]


def test_export_of_a_run_that_has_not_diverged_gives_the_newest_model(tmp_path: Path) -> None:
    config = load_config(served(tmp_path, [2.0, 1.0, math.nan, math.inf]))
    report = export_model(config, bundle=tmp_path / "model.bundle")
    assert report["round"] == 4 and "run" not in report


# --- simulate --------------------------------------------------------------------------------------------------------


def clients(scale: float, count: int = 6) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [
        ((scale * rng.standard_normal((20, 4))).astype(np.float32), rng.integers(0, 3, 20).astype(np.int64))
        for _ in range(count)
    ]


@pytest.mark.parametrize("evaluated", [True, False])
def test_simulate_ends_a_run_that_diverges_with_its_last_good_model(evaluated: bool) -> None:
    """Least squares with too large a learning rate: the error grows with every step."""
    data = [(x, x[:, :1]) for x, _ in clients(1.0)]
    history = simulate(
        "linear_regression",
        data,
        rounds=100,
        learning_rate=1.2,
        batch_size=20,
        evaluation=data[0] if evaluated else None,
        codec="dense",
        normalise="none",
        validation={"value_max": 1e6},
    )
    assert history.finished.startswith("diverged: for 3 rounds")
    assert history.finished.endswith(f"that of round {history.model_round}")
    assert history.model_round == len(history) - (3 if evaluated else 4), "a training loss is that of the model before"
    good = history.rounds[history.model_round - 1]
    assert digest_of(encode_parameters(history.parameters)) == good.digest


def test_simulate_says_what_helps_where_the_first_round_already_fails() -> None:
    with pytest.raises(TrainingError, match=r"values .* exceed .*; normalise inputs and labels \(model.normalise"):
        simulate("softmax_regression", clients(1e6), rounds=3, learning_rate=1.0, codec="dense", normalise="none")


def test_a_healthy_simulation_keeps_its_last_model() -> None:
    history = simulate("softmax_regression", clients(1.0), rounds=4, learning_rate=0.1)
    assert history.finished.startswith("round budget") and history.model_round == 4
