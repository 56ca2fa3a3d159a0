"""Which coordinates of a step are sent: enough of the energy, in few bytes, and nothing is clipped."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from coordinator.downlink_steps import largest_steps, steps_for_energy
from edge_sdk.codecs.grid import MAGNITUDES_MAX, GridSteps, encode_grid, merged
from edge_sdk.errors import TrainingError

SIZE = 60_000


def drawn(kind: str, seed: int = 0) -> NDArray[np.float32]:
    draw = np.random.Generator(np.random.PCG64(seed))
    if kind == "gaussian":
        return (1e-3 * draw.standard_normal(SIZE)).astype(np.float32)
    if kind == "laplace":
        return (1e-3 * draw.laplace(size=SIZE)).astype(np.float32)
    if kind == "heavy":
        return (1e-3 * draw.standard_t(2, size=SIZE)).astype(np.float32)
    rows = np.zeros((SIZE // 20, 20))
    rows[::100] = draw.standard_normal((SIZE // 2000, 20))
    return (1e-2 * rows.ravel()).astype(np.float32)


def left_by(steps: GridSteps, wanted: NDArray[np.float32], base: NDArray[np.float32]) -> float:
    """Share of the energy of what was missing that is still missing."""
    after = base.copy()
    after[steps.indices] = steps.moved(base[steps.indices])
    missing = wanted.astype(np.float64) - base
    return float(np.square(wanted.astype(np.float64) - after).sum() / np.square(missing).sum())


BASE = np.random.Generator(np.random.PCG64(99)).standard_normal(SIZE).astype(np.float32)


@pytest.mark.parametrize("kind", ["gaussian", "laplace", "heavy", "rows"])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.6])
def test_the_share_of_the_energy_is_sent_with_few_coordinates(kind: str, share: float) -> None:
    wanted = BASE + drawn(kind)
    steps = steps_for_energy(wanted, BASE, share, 1, 1.0)
    assert left_by(steps, wanted, BASE) <= 1.0 - share + 1e-9
    ordered = np.sort(np.square(wanted.astype(np.float64) - BASE))[::-1]
    fewest = int(np.searchsorted(np.cumsum(ordered), share * ordered.sum())) + 1
    assert fewest <= steps.indices.size <= 1.25 * fewest + 2, "had they been sent as they are"
    assert steps.exact and len(encode_grid(steps)) < 4 * SIZE / 10


def test_a_steep_step_takes_far_fewer_bytes_than_a_flat_one() -> None:
    flat, steep = (
        len(encode_grid(steps_for_energy(BASE + drawn(kind), BASE, 0.1, 1, 1.0))) for kind in ("gaussian", "heavy")
    )
    assert steep * 20 < flat


def test_what_is_owed_stays_bounded_and_comes() -> None:
    """Steps of chance, and after them none: what was left out does not grow, and goes in the end."""
    model, wanted = BASE.copy(), BASE.copy()
    owed = []
    for seed in range(120):
        if seed < 60:
            wanted = wanted + drawn("gaussian", seed)
        steps = steps_for_energy(wanted, model, 0.1, 1, 0.5)
        model[steps.indices] = steps.moved(model[steps.indices])
        owed.append(float(np.linalg.norm(wanted - model) / np.linalg.norm(drawn("gaussian"))))
    assert max(owed[:60]) < 3.5 and abs(owed[59] - owed[40]) < 0.2
    assert owed[-1] < 0.15


def test_at_least_a_messages_worth_is_sent_and_at_most_what_is_allowed() -> None:
    wanted = BASE + drawn("heavy")
    assert steps_for_energy(wanted, BASE, 0.01, 512, 1.0).indices.size == 512
    assert steps_for_energy(wanted, BASE, 1.0, 1, 0.25).indices.size == SIZE // 4
    assert largest_steps(wanted, BASE, 0.01).indices.size == SIZE // 100
    few = BASE.copy()
    few[:3] += 1.0
    assert steps_for_energy(few, BASE, 0.1, 512, 0.5).indices.tolist() == [0, 1, 2], "what does not move is not sent"
    assert steps_for_energy(BASE, BASE, 0.1, 512, 0.5).indices.size == 0


def test_huge_coordinates_are_rounded_and_never_clipped() -> None:
    wanted = BASE + drawn("gaussian")
    wanted[::1000] += np.geomspace(1e-2, 1e4, SIZE // 1000).astype(np.float32)
    steps = largest_steps(wanted, BASE, 0.2)
    assert np.unique(np.abs(steps.numbers)).size <= MAGNITUDES_MAX
    after = BASE.copy()
    after[steps.indices] = steps.moved(BASE[steps.indices])
    huge = slice(None, None, 1000)
    missing = np.abs(wanted - BASE)[huge]
    assert (np.abs(wanted - after)[huge] <= 0.5 * missing).all()


def test_rounds_of_one_phase_share_grid_and_magnitudes() -> None:
    """So that they add up, in few bytes."""
    model, several = BASE.copy(), []
    for seed in range(8):
        steps = steps_for_energy(model + drawn("gaussian", seed), model, 0.1, 1, 0.5)
        model[steps.indices] = steps.moved(model[steps.indices])
        several.append(steps)
    together = merged(several)
    assert together is not None
    assert len(encode_grid(together)) < 0.8 * sum(len(encode_grid(steps)) for steps in several)


def test_models_that_grow_from_nothing_stay_on_one_grid() -> None:
    grids = {
        largest_steps(scale * BASE / 8 + drawn("gaussian"), scale * BASE / 8, 0.1).exponent for scale in (0, 1e-4, 1)
    }
    assert grids == {-22}


def test_steps_too_fine_for_the_grid_of_a_large_parameter_say_that_they_do_not_add_up() -> None:
    base = BASE.copy()
    base[7] = 1e6
    wanted = base + drawn("gaussian")
    wanted[7] = base[7] + 1.0
    steps = largest_steps(wanted, base, 0.1)
    assert not steps.exact and left_by(steps, wanted, base) < 0.5
    assert merged([steps]) is None


@pytest.mark.parametrize("value", [1e31, 3e38])
def test_a_step_that_is_too_large_is_said(value: float) -> None:
    wanted = BASE.copy()
    wanted[3] = value
    with pytest.raises(TrainingError, match="too large"):
        steps_for_energy(wanted, BASE, 0.1, 1, 0.5)
