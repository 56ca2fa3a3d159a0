"""The page of operators is the one that the code makes, and says something about each rule."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

from coordinator.compile.op_table import op_table
from coordinator.compile.rules import FALLBACK_PARAMETERS, RULES
from edge_sdk.training.engine.kernels import KERNELS

PAGE = Path(__file__).parents[2] / "docs" / "operators.md"
REMEDY = "run: python -m coordinator.compile.op_table > docs/operators.md"


def test_the_page_is_the_one_that_the_code_makes() -> None:
    command = [sys.executable, "-m", "coordinator.compile.op_table"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert made == op_table()
    assert PAGE.read_text() == made, REMEDY


def test_every_operator_has_one_row_of_four_cells() -> None:
    rows = [line for line in op_table().splitlines() if line.startswith("| `")]
    assert len(rows) == len({*RULES, *KERNELS, *FALLBACK_PARAMETERS})
    assert all(row.replace(r"\|", "").count("|") == 5 for row in rows)


def test_every_rule_says_what_it_computes() -> None:
    silent = [op for op, rule in RULES.items() if not inspect.getdoc(rule.gradient)]
    assert not silent
