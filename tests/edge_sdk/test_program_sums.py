"""What a device reports of a target in raw units, beside its features."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from coordinator.compile import NormaliseOptions, build_zoo_model, compile_model
from edge_sdk.errors import DecodeError, ExamplesError
from edge_sdk.training.bundle import Program
from edge_sdk.training.examples import Examples, as_examples
from edge_sdk.training.large_target import large_target
from edge_sdk.training.program_sums import ExactProgramSums, decode_sums, encode_sums, out_of_range, program_sums


@lru_cache(maxsize=4)
def program(outputs: int = 1, target: bool = True, mode: str = "federated") -> Program:
    graph = build_zoo_model("linear_regression", inputs=(3,), outputs=outputs, seed=1)
    options = NormaliseOptions(mode, target=target) if mode else None
    return compile_model(graph, loss="mean_squared_error", normalise=options, name="m", verify=False).program


def examples(seed: int, outputs: int = 1, count: int = 40) -> Examples:
    rng = np.random.default_rng(seed)
    y = rng.normal(48_000, 900, (count, outputs)).astype(np.float32)
    x = rng.normal(62, 6, (count, 3)).astype(np.float32)
    return as_examples((x, y[:, 0] if outputs == 1 else y), program(outputs))


@pytest.mark.parametrize("outputs", [1, 2])
def test_a_report_holds_sums_of_the_target_under_names_of_their_own(outputs: int) -> None:
    given = examples(0, outputs)
    arrays = encode_sums(program(outputs), program_sums(program(outputs), given))
    assert set(arrays) == {*("sums", "squares", "values"), *("target_sums", "target_squares", "target_values")}
    features, target = decode_sums(program(outputs), arrays)
    assert len(features.sums) == 3 and len(target.sums) == outputs
    np.testing.assert_allclose(target.sums, given.target.astype(np.float64).reshape(-1, outputs).sum(axis=0))
    assert target.counts.tolist() == [40.0] * outputs


def test_sums_of_a_target_are_exact_in_any_order() -> None:
    reports = [program_sums(program(), examples(seed, count=seed + 3)) for seed in range(9)]
    found = []
    for order in (reports, reports[::-1]):
        exact = ExactProgramSums(program())
        for sums in order:
            exact.add(sums, 7)
        found.append(exact.constants())
    assert list(found[0]) == ["normalise/mean", "normalise/scale", "normalise/target_mean", "normalise/target_scale"]
    assert all(found[0][name].tobytes() == found[1][name].tobytes() for name in found[0])


@pytest.mark.parametrize("name", ["target_sums", "target_squares", "target_values"])
def test_a_report_without_all_sums_of_the_target_is_refused(name: str) -> None:
    arrays = encode_sums(program(), program_sums(program(), examples(0)))
    with pytest.raises(DecodeError) as refused:
        decode_sums(program(), {key: data for key, data in arrays.items() if key != name})
    assert refused.value.reason == "feature_sums"
    with pytest.raises(DecodeError):
        decode_sums(program(), {**arrays, name: np.array([np.inf]).tobytes()})


def test_sums_of_a_target_that_is_not_normalised_are_refused() -> None:
    arrays = encode_sums(program(), program_sums(program(), examples(0)))
    with pytest.raises(DecodeError, match="of the target, which is not normalised"):
        decode_sums(program(target=False), arrays)


def test_an_infinite_target_is_refused_on_the_device() -> None:
    given = examples(0)
    with pytest.raises(ExamplesError):
        as_examples((given.inputs["x"], np.full(40, np.inf)), program())


@pytest.mark.parametrize(("level", "spread"), [(48_000.0, 1.0), (62.0, 6.0), (0.0, 900.0)])
def test_a_large_target_is_told_where_nobody_normalises_it(level: float, spread: float) -> None:
    plain = program(target=False, mode="")
    x = np.zeros((50, 3), np.float32)
    z = np.random.default_rng(0).standard_normal(50)
    found = large_target(plain, as_examples((x, level + spread * z), plain))
    assert "model.normalise_target" in found and f"{(level + spread * z).mean():.4g} on average" in found
    assert not large_target(plain, as_examples((x, z), plain))
    assert not large_target(program(), as_examples((x, level + spread * z), program()))


@pytest.mark.parametrize(("outputs", "name"), [(1, "the target (100%)"), (2, "the target's column 0 (100%)")])
def test_a_target_beyond_the_range_of_the_sums_is_named_with_the_key(outputs: int, name: str) -> None:
    given = examples(0, outputs)
    raised = as_examples((given.inputs["x"], given.target * np.float32(100)), program(outputs))
    assert not out_of_range(program(outputs), program_sums(program(outputs), given))
    found = out_of_range(program(outputs), program_sums(program(outputs), raised))
    assert name in found and "model.normalise_clip" in found
