"""What stands at masked positions changes nothing: not the sums of features, a device's own constants, or a run."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_feature_statistics import run, said
from test_padded_sequences import POSITIONS, tagger

from coordinator.compile import LossOptions, NormaliseOptions, compile_model
from device_sim import simulate
from edge_sdk.errors import ExamplesError
from edge_sdk.training.bundle import Bundle
from edge_sdk.training.examples import as_examples
from edge_sdk.training.feature_sums import FeatureSums
from edge_sdk.training.masked import counted_values
from edge_sdk.training.own_constants import own_constants

PADDING = [200.0, 0.0, 9999.0, -1e12, np.nan, np.inf]


@lru_cache(maxsize=8)
def masked(mode: str = "federated", missing: str = "refuse", loss: str = "softmax_cross_entropy") -> Bundle:
    return compile_model(
        tagger(),
        loss=loss,
        loss_options=LossOptions(mask="mask"),
        normalise=NormaliseOptions(mode, missing=missing),
        name="tagger",
        loop=False,
    )


def padded(padding: float, seed: int = 0, count: int = 60) -> dict[str, NDArray[Any]]:
    """Readings of 200 +- 15; the class of a position is its largest feature."""
    rng = np.random.default_rng(seed)
    x = (200 + 15 * rng.standard_normal((count, POSITIONS, 3))).astype(np.float32)
    mask = np.arange(POSITIONS) < rng.integers(2, POSITIONS, count)[:, None]
    return {"x": np.where(mask[:, :, None], x, np.float32(padding)), "mask": mask, "target": x.argmax(axis=2)}


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("missing", ["refuse", "mean"])
def test_masked_positions_do_not_count_in_what_a_device_reports(padding: float, missing: str) -> None:
    program, given = masked(missing=missing).program, padded(padding)
    assert program.normalise is not None
    sums = FeatureSums.decode(said(run(given, program=program)).arrays, program.normalise)
    there = given["x"][given["mask"]].astype(np.float64)
    assert sums.counts.tolist() == [len(there)] * 3 and not sums.missing.any()
    np.testing.assert_allclose(sums.sums, there.sum(axis=0), rtol=1e-12)
    np.testing.assert_allclose(sums.squares, np.square(there).sum(axis=0), rtol=1e-12)


@pytest.mark.parametrize("padding", PADDING)
def test_masked_positions_do_not_count_in_a_devices_own_constants(padding: float) -> None:
    program, given = masked("local").program, padded(padding)
    mean, scale = np.split(own_constants(program, as_examples(given, program)), 2)
    there = given["x"][given["mask"]].astype(np.float64)
    np.testing.assert_allclose(mean, there.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(scale, 1 / there.std(axis=0), rtol=1e-5)


@pytest.mark.parametrize("mode", ["federated", "local"])
def test_a_simulation_ends_with_the_same_bits_whatever_the_padding_is(mode: str) -> None:
    def trained(padding: float) -> tuple[bytes, dict[str, float]]:
        clients = [padded(padding, seed) for seed in range(3)]
        history = simulate(
            masked(mode), clients, rounds=2, learning_rate=0.5, codec="dense", evaluation=padded(padding, 9)
        )
        return b"".join(array.tobytes() for array in history.weights.values()), history.final

    first, *others = [trained(padding) for padding in PADDING]
    assert first[1]["accuracy"] > 0.5
    assert all(other == first for other in others)


def test_what_is_missing_where_the_mask_counts_is_refused_and_counted_as_before() -> None:
    given = padded(np.nan)
    given["x"][:4, 0, 1] = np.nan  # each example has two positions at least
    with pytest.raises(ExamplesError, match="4 of 1440 values are NaN or infinite, in column 1"):
        as_examples(given, masked().program)
    program = masked(missing="mean").program
    assert program.normalise is not None
    sums = FeatureSums.decode(said(run(given, program=program)).arrays, program.normalise)
    assert sums.missing.tolist() == [0, 4, 0]
    given["x"][0, 0, 0] = np.inf
    with pytest.raises(ExamplesError, match="infinite"):
        as_examples(given, program)


def test_examples_whose_every_position_is_masked_have_no_sums() -> None:
    given, program = padded(0.0), masked().program
    made = as_examples(given, program)
    made.inputs["mask"][...] = False
    with pytest.raises(ExamplesError, match="no position of input 'x' counts"):
        own_constants(program, made)


def test_a_target_may_be_missing_where_it_is_masked_and_nowhere_else() -> None:
    program = masked(loss="mean_squared_error").program
    given = padded(np.nan)
    given["target"] = given["x"].copy()
    assert (as_examples(given, program).target[~given["mask"]] == 0).all()
    given["target"][0, 0, 0] = np.nan
    with pytest.raises(ExamplesError, match="the target: 1 of 1440 values are NaN"):
        as_examples(given, program)


def test_an_input_without_the_positions_of_the_mask_counts_as_a_whole() -> None:
    mask = np.zeros((4, 6), np.bool_)
    assert counted_values(mask, (4, 3), 1) is None  # one row of settings an example
    assert counted_values(mask, (4, 6), 1) is None  # six features, though there are six positions
    assert counted_values(mask, (4, 5, 3), 2) is None
    for shape, axis, expected in [
        ((4, 6, 3), 2, (4, 6, 1)),
        ((4, 3, 6), 1, (4, 1, 6)),
        ((4, 6, 3, 5), 2, (4, 6, 1, 1)),
    ]:
        counted = counted_values(mask, shape, axis)
        assert counted is not None and counted.shape == expected
