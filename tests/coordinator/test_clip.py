"""The clip step: what is too long is scaled down to the bound and counts; the rest is left to the bit."""

from __future__ import annotations

import numpy as np
import pytest
from pipelines import BUFFERS, DENSE, EDEN, SPARSE, aggregator, drawn, moved, update

from coordinator.config import FederationConfig
from coordinator.config.settings import pipeline_steps
from coordinator.pipeline import make_step
from edge_sdk.aggregation.algorithm import make_algorithm
from edge_sdk.codecs import CodecSettings
from edge_sdk.errors import ConfigurationError


def clip(norm: float) -> dict[str, object]:
    return {"steps": (("clip", make_step("clip", {"norm": norm})),)}


def norm(vector: np.ndarray[tuple[int], np.dtype[np.float32]]) -> float:
    return float(np.linalg.norm(vector[~BUFFERS].astype(np.float64)))


@pytest.mark.parametrize("codec", [DENSE, EDEN, SPARSE], ids=lambda codec: codec.name)
def test_an_update_is_scaled_down_to_the_bound_and_its_buffers_are_not(codec: CodecSettings) -> None:
    (delta,) = drawn(1)
    as_it_is = moved(aggregator(codec), [update(delta, codec=codec)])
    clipped = moved(aggregator(codec, **clip(0.5)), [update(delta, codec=codec)])
    # The filling of a rotated vector has a norm too, so it may end up a little below.
    assert 0.45 < norm(clipped) <= 0.5 < norm(as_it_is)
    np.testing.assert_allclose(clipped[~BUFFERS], as_it_is[~BUFFERS] * norm(clipped) / norm(as_it_is), atol=1e-6)
    assert clipped[BUFFERS].tobytes() == as_it_is[BUFFERS].tobytes()


@pytest.mark.parametrize("codec", [DENSE, EDEN, SPARSE], ids=lambda codec: codec.name)
def test_below_the_bound_nothing_changes(codec: CodecSettings) -> None:
    updates = [update(delta, codec=codec, seed=i) for i, delta in enumerate(drawn(3))]
    assert moved(aggregator(codec, **clip(1e3)), updates).tobytes() == moved(aggregator(codec), updates).tobytes()


def test_it_is_the_mean_of_clipped_deltas() -> None:
    deltas = [delta * np.float32(scale) for delta, scale in zip(drawn(4), (0.01, 1, 5, 20), strict=True)]
    for delta in deltas:
        delta[BUFFERS] = 0
    expected = np.mean([delta * min(1.0, 2.0 / norm(delta)) for delta in deltas], axis=0)
    found = moved(aggregator(**clip(2.0)), [update(delta) for delta in deltas])
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["median", "fednova"])
def test_it_goes_before_any_algorithm(name: str) -> None:
    updates = [update(delta, codec=EDEN, seed=i) for i, delta in enumerate(drawn(5))]
    pipeline = aggregator(EDEN, algorithm=make_algorithm(name), **clip(0.5))
    assert len({moved(pipeline, order).tobytes() for order in (updates, updates[::-1])}) == 1
    assert norm(moved(pipeline, updates)) <= 0.5


def test_it_is_one_table_of_the_configuration() -> None:
    steps = [{"name": "clip", "norm": 2.0}, {"name": "clip", "norm": 1}]
    config = FederationConfig.model_validate(
        {"federation": {"name": "f"}, "model": {"zoo": "mlp"}, "aggregation": {"step": steps}}
    )
    assert [name for name, _ in pipeline_steps(config.aggregation)] == ["clip", "clip#2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": 0}, "norm is 0, expected a number above 0"),
        ({"norm": 1.0, "factor": 2}, r"aggregation\.step \(clip\)\.factor: clip has no such setting; it has norm"),
        ({}, "norm"),
        ({"norm": "much"}, "clip"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_step("clip", options)
