"""Each optimiser against float64 formulas written out one element and one round at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.server_optimizers import SERVER_OPTIMIZERS, make_server_optimizer
from edge_sdk.errors import ConfigurationError, StateError, TrainingError

Vector = NDArray[np.float32]
SIZE, ROUNDS = 50, 12


def deltas() -> list[Vector]:
    rng = np.random.default_rng(5)
    scale = 10.0 ** rng.uniform(-5, 0, SIZE)
    rounds = [(rng.standard_normal(SIZE) * scale).astype(np.float32) for _ in range(ROUNDS)]
    rounds[3][:] = 0.0
    return rounds


def oracle_fedavg(w: float, ds: list[float], eta: float) -> float:
    for d in ds:
        w = w + eta * d
    return w


def oracle_fedavgm(w: float, ds: list[float], eta: float, momentum: float) -> float:
    velocity = 0.0
    for d in ds:
        velocity = momentum * velocity + d
        w += eta * velocity
    return w


def oracle_adaptive(
    w: float, ds: list[float], eta: float, beta1: float, tau: float, second: Callable[[float, float], float]
) -> float:
    m, v = 0.0, tau**2
    for d in ds:
        m = beta1 * m + (1 - beta1) * d
        v = second(v, d)
        w += eta * m / (math.sqrt(v) + tau)
    return w


def yogi_second(v: float, d: float) -> float:
    if v > d * d:
        return v - (1 - 0.95) * d * d
    return v + (1 - 0.95) * d * d if v < d * d else v


ORACLES: dict[str, tuple[dict[str, float], Callable[[float, list[float]], float]]] = {
    "fedavg": ({"eta": 0.7}, lambda w, ds: oracle_fedavg(w, ds, 0.7)),
    "fedavgm": ({"eta": 0.3, "momentum": 0.8}, lambda w, ds: oracle_fedavgm(w, ds, 0.3, 0.8)),
    "fedadagrad": (
        {"eta": 0.2, "beta1": 0.5, "tau": 0.01},
        lambda w, ds: oracle_adaptive(w, ds, 0.2, 0.5, 0.01, lambda v, d: v + d * d),
    ),
    "fedadam": (
        {"eta": 0.05, "beta1": 0.8, "beta2": 0.95, "tau": 0.01},
        lambda w, ds: oracle_adaptive(w, ds, 0.05, 0.8, 0.01, lambda v, d: 0.95 * v + (1 - 0.95) * d * d),
    ),
    "fedyogi": (
        {"eta": 0.05, "beta1": 0.8, "beta2": 0.95, "tau": 0.01},
        lambda w, ds: oracle_adaptive(w, ds, 0.05, 0.8, 0.01, yogi_second),
    ),
}


def run(name: str, settings: dict[str, float], rounds: list[Vector], buffer: Any = None) -> Vector:
    optimizer = make_server_optimizer(name, **settings)
    parameters, state = np.linspace(-1, 1, SIZE, dtype=np.float32), optimizer.init(SIZE)
    for delta in rounds:
        parameters, state = optimizer.apply(parameters, delta, state, buffer)
    return parameters


def test_every_optimiser_has_an_oracle() -> None:
    assert ORACLES.keys() == SERVER_OPTIMIZERS.keys()


@pytest.mark.parametrize("name", ORACLES)
def test_it_follows_its_paper(name: str) -> None:
    settings, oracle = ORACLES[name]
    found = run(name, settings, deltas())
    start = np.linspace(-1, 1, SIZE, dtype=np.float32)
    expected = [oracle(float(start[i]), [float(d[i]) for d in deltas()]) for i in range(SIZE)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", ORACLES)
def test_a_restart_between_any_two_rounds_gives_the_same_bits(name: str) -> None:
    settings, _ = ORACLES[name]
    expected = run(name, settings, deltas())
    optimizer = make_server_optimizer(name, **settings)
    parameters, state = np.linspace(-1, 1, SIZE, dtype=np.float32), optimizer.init(SIZE)
    for delta in deltas():
        parameters, state = optimizer.apply(parameters, delta, state)
        parameters = np.frombuffer(parameters.tobytes(), dtype=np.float32)
        state = {key: np.frombuffer(array.tobytes(), dtype=np.float32) for key, array in state.items()}
        optimizer = make_server_optimizer(name, **settings)
    assert parameters.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ORACLES)
def test_it_changes_nothing_that_it_is_given_and_keeps_float32(name: str) -> None:
    optimizer = make_server_optimizer(name)
    parameters, delta, state = np.ones(SIZE, np.float32), deltas()[0], optimizer.init(SIZE)
    before = (parameters.copy(), delta.copy(), {key: array.copy() for key, array in state.items()})
    for array in (parameters, delta, *state.values()):
        array.flags.writeable = False
    moved, new_state = optimizer.apply(parameters, delta, state)
    assert np.array_equal(parameters, before[0]) and np.array_equal(delta, before[1])
    assert all(np.array_equal(state[key], array) for key, array in before[2].items())
    assert moved.dtype == np.float32 and all(array.dtype == np.float32 for array in new_state.values())


def test_fedavg_gives_the_weighted_mean_of_the_clients_parameters() -> None:
    parameters = np.array([1.0, 2.0], np.float32)
    clients, weights = np.array([[2.0, 2.0], [0.0, 6.0]], np.float32), np.array([3.0, 1.0], np.float32)
    mean_delta = (weights @ (clients - parameters) / weights.sum()).astype(np.float32)
    moved, _ = make_server_optimizer("fedavg").apply(parameters, mean_delta, {})
    assert moved.tolist() == [1.5, 3.0]


@pytest.mark.parametrize("name", ORACLES)
def test_every_optimiser_moves_towards_the_clients(name: str) -> None:
    optimizer = make_server_optimizer(name)
    parameters, state, target = np.zeros(3, np.float32), optimizer.init(3), np.array([1.0, -2.0, 0.5], np.float32)
    for _ in range(5):
        moved, state = optimizer.apply(parameters, (target - parameters) / 10, state)
        assert (np.abs(target - moved) < np.abs(target - parameters)).all()
        parameters = moved


@pytest.mark.parametrize("name", ORACLES)
def test_statistics_are_averaged_plainly(name: str) -> None:
    settings, _ = ORACLES[name]
    buffer = np.arange(SIZE) % 3 == 0
    found, without = run(name, settings, deltas(), buffer), run(name, settings, deltas())
    expected = np.linspace(-1, 1, SIZE, dtype=np.float32)
    for delta in deltas():
        expected = expected + delta
    assert np.array_equal(found[buffer], expected[buffer])
    assert np.array_equal(found[~buffer], without[~buffer])


def test_momentum_zero_is_fedavg() -> None:
    assert np.array_equal(run("fedavgm", {"momentum": 0.0}, deltas()), run("fedavg", {}, deltas()))


@pytest.mark.parametrize(
    ("name", "settings", "match"),
    [
        ("sgd", {}, "choose one of fedavg, fedavgm"),
        ("fedavg", {"momentum": 0.9}, "no setting 'momentum': it has eta"),
        ("fedavg", {"eta": 0.0}, r"FedAvg\.eta is 0\.0"),
        ("fedavg", {"eta": math.nan}, r"FedAvg\.eta is nan"),
        ("fedavg", {"eta": "1"}, r"FedAvg\.eta is '1'"),
        ("fedavgm", {"momentum": 1.0}, r"FedAvgM\.momentum is 1\.0"),
        ("fedadam", {"beta2": -0.1}, r"FedAdam\.beta2 is -0\.1"),
        ("fedyogi", {"tau": 0}, r"FedYogi\.tau is 0"),
        ("fedadagrad", {"beta1": 1.5}, r"FedAdagrad\.beta1 is 1\.5"),
    ],
)
def test_wrong_settings_are_named(name: str, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        make_server_optimizer(name, **settings)


def test_a_checkpoint_of_another_optimiser_is_refused() -> None:
    vector = np.zeros(4, np.float32)
    adam, momentum = make_server_optimizer("fedadam"), make_server_optimizer("fedavgm")
    for state in (momentum.init(4), adam.init(5), {}, {"m": vector, "v": np.zeros(4)}):
        with pytest.raises(StateError, match="another optimizer or model"):
            adam.apply(vector, vector, state)  # type: ignore[arg-type]


def test_vectors_that_do_not_fit_are_refused() -> None:
    fedavg, vector = make_server_optimizer("fedavg"), np.zeros(4, np.float32)
    with pytest.raises(ValueError, match="mean delta"):
        fedavg.apply(vector, np.zeros(3, np.float32), {})
    with pytest.raises(ValueError, match="mean delta is float64"):
        fedavg.apply(vector, np.zeros(4), {})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="parameters"):
        fedavg.apply(np.zeros((2, 2), np.float32), vector, {})


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_divergence_is_said_and_not_stored() -> None:
    huge = np.full(2, 3e38, np.float32)
    with pytest.raises(TrainingError, match="diverged"):
        make_server_optimizer("fedavg").apply(huge, huge, {})
