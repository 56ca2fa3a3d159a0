"""The page of models from the onnx wheel says what compiling them says; the quick ones are compiled here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.wheel_models import PAGE, PASSED_MIN, attempt, wheel_models

MODELS = wheel_models()
QUICK = MODELS[::8]


def rows() -> dict[str, str]:
    """What the page says of each model: ``batch``, ``weights`` or ``refused``."""
    cells = [line.split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")][1:]
    return {row[0].removeprefix("| "): row[2].partition(":")[0] for row in cells}


def test_the_page_lists_every_model_and_enough_of_them_pass() -> None:
    listed = rows()
    assert list(listed) == [folder.name.removeprefix("test_") for folder in MODELS]
    assert len(listed) == 117
    assert sum(verdict in ("batch", "weights") for verdict in listed.values()) >= PASSED_MIN


@pytest.mark.parametrize("folder", QUICK, ids=lambda folder: folder.name)
def test_a_model_does_what_the_page_says(folder: Path) -> None:
    outcome = attempt(folder)
    assert rows()[outcome.name] == (outcome.form or "refused"), outcome.reason
