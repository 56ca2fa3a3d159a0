"""FedNova: every device's delta counts by its direction, not by how many steps it had time for."""

from __future__ import annotations

import numpy as np
import pytest
from pipelines import BUFFERS, EDEN, INITIAL, aggregator, drawn, moved, update

from edge_sdk.aggregation.algorithm import make_algorithm
from edge_sdk.errors import ConfigurationError, ProtocolError

STEPS, EXAMPLES = (1, 4, 30, 7), (10, 20, 5, 40)


def accumulated(steps: int, momentum: float) -> float:
    """||a||_1 by the recursion that momentum is: each gradient's part in all later steps."""
    return sum(sum(momentum**later for later in range(steps - at)) for at in range(steps))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_it_is_the_papers_formula(momentum: float) -> None:
    deltas = drawn(4)
    rule = make_algorithm("fednova", {"momentum": momentum})
    updates = [update(*rows) for rows in zip(deltas, EXAMPLES, STEPS, strict=True)]
    p = np.array(EXAMPLES) / sum(EXAMPLES)
    tau = np.array([accumulated(steps, momentum) for steps in STEPS])
    expected = (p @ tau) * sum(pi * delta.astype(np.float64) / ti for pi, delta, ti in zip(p, deltas, tau, strict=True))
    expected[BUFFERS] = (p @ np.stack(deltas).astype(np.float64))[BUFFERS]
    np.testing.assert_allclose(moved(aggregator(algorithm=rule), updates), expected, atol=1e-6)


def test_with_equal_steps_it_is_the_mean() -> None:
    updates = [update(delta, 10 + i, 6) for i, delta in enumerate(drawn(4))]
    mean = moved(aggregator(algorithm=make_algorithm("mean")), updates)
    np.testing.assert_allclose(moved(aggregator(algorithm=make_algorithm("fednova")), updates), mean, atol=1e-6)


def test_rotated_updates_are_normalised_before_they_are_rotated_back() -> None:
    (delta,) = drawn(1)
    updates = [update(delta * np.float32(steps), 10, steps, EDEN, seed=steps) for steps in STEPS]
    found = moved(aggregator(EDEN, algorithm=make_algorithm("fednova")), updates)
    mean_steps = np.mean(STEPS)
    assert np.linalg.norm((found - mean_steps * delta)[~BUFFERS]) < 0.5 * mean_steps * np.linalg.norm(delta[~BUFFERS])


@pytest.mark.parametrize("steps", [0, 5001, 1 << 39])
def test_a_number_of_steps_that_cannot_be_is_refused(steps: int) -> None:
    pipeline = aggregator(algorithm=make_algorithm("fednova", {"steps_max": 5000}))
    pipeline.begin(INITIAL, pipeline.initial_memory())
    with pytest.raises(ProtocolError, match="steps") as refused:
        pipeline.examine(update(drawn(1)[0], steps=steps))
    assert refused.value.reason == "steps"


@pytest.mark.parametrize("options", [{"momentum": 1.0}, {"momentum": -0.1}, {"steps_max": 0}, {"steps_max": 2.5}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=r"aggregation\.options"):
        make_algorithm("fednova", options)
