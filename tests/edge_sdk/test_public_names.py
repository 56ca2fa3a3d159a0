"""What the documentation imports from ``edge_sdk`` is there, and its asyncio program runs as it is written."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeBroker
from hand_made import blobs
from one_federation import Federation

import edge_sdk
from edge_sdk import errors

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
IMPORT = re.compile(r"^\s*from edge_sdk import (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def documented() -> set[str]:
    """All names that some page imports from the package itself."""
    lines = itertools.chain.from_iterable(IMPORT.findall(page.read_text()) for page in PAGES)
    return {name.strip() for line in lines for name in line.split(",")}


def test_everything_that_the_documentation_imports_is_there() -> None:
    assert {"AsyncEdgeClient", "BrokerSettings", "EdgeClient", "Limits", "ProgressKind", "StateError"} <= documented()
    assert documented() <= set(edge_sdk.__all__)


@pytest.mark.parametrize("name", edge_sdk.__all__)
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(edge_sdk, name) is not None and name in dir(edge_sdk)


def test_the_whole_tree_of_errors_is_public() -> None:
    assert set(errors.__all__) <= set(edge_sdk.__all__)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Nobody'"):
        _ = edge_sdk.Nobody


def test_a_progress_kind_reads_as_its_text() -> None:
    assert f"{edge_sdk.ProgressKind.COUNTED}" == "counted" == edge_sdk.ProgressKind.COUNTED


def test_the_asyncio_program_of_the_documentation_runs(mosquitto: MakeBroker, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "embed-the-sdk.md").read_text()
    (program,) = [block for block in BLOCK.findall(page) if "AsyncEdgeClient" in block]
    x, y = blobs(60)
    np.savez(tmp_path / "examples.npz", x=x, y=y)
    with mosquitto() as broker, Federation(tmp_path / "coordinator", broker.url, "demo"):
        written = {"mqtt://pi-07:secret@broker.local:1883": broker.url, "/var/lib/my-app/edgefed": "state"}
        for old, new in written.items():
            assert old in program
            program = program.replace(old, new)
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", program],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()][-1] == "counted"
