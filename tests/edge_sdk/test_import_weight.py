"""What a device pays for an import: numpy and msgpack, and nothing heavier until it is needed."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import edge_sdk

REPOSITORY = Path(__file__).resolve().parents[2]

HEAVY = (
    "onnx",
    "onnxruntime",
    "pydantic",
    "typer",
    "rich",
    "sklearn",
    "matplotlib",
    "iotcore",
    "google",
    "coordinator",
)
LATER = ("paho", "ssl", "_ssl", "hashlib", "_hashlib", "asyncio", "sqlite3", "http", "email", "multiprocessing", "xml")
ROOMS = ("edge_sdk.codecs", "edge_sdk.mqtt", "edge_sdk.training", "edge_sdk.wire", "edge_sdk.device.session")

CLIENT = """
import sys
from edge_sdk import EdgeClient

broker = "mqtts://localhost:8883"
client = EdgeClient(broker=broker, federation="f", device_id="d", load_examples=lambda: None, state_dir=sys.argv[1])
"""


@cache
def loaded_by(code: str, *arguments: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after ``code``."""
    return {name.split(".")[0] for name in modules_of(code, *arguments)}


@cache
def modules_of(code: str, *arguments: str) -> set[str]:
    """All modules that a fresh interpreter has loaded after ``code``, by their whole names."""
    listing = "\nimport sys\nprint('\\n'.join(sorted(sys.modules)))"
    result = subprocess.run(
        [sys.executable, "-c", code + listing, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
        check=True,
    )
    return set(result.stdout.split())


def third_party(modules: set[str]) -> set[str]:
    """Without what the interpreter's own start brings, and the traces that Cython leaves of compiled packages."""
    found = {name for name in modules - loaded_by("") if name not in sys.stdlib_module_names}
    return {name for name in found if not name.startswith(("_cython_", "cython_runtime"))}


def test_the_package_itself_loads_nothing() -> None:
    assert third_party(loaded_by("import edge_sdk")) == {"edge_sdk"}


def test_everything_public_but_the_asyncio_client_loads_numpy_and_msgpack_alone() -> None:
    names = ", ".join(name for name in edge_sdk.__all__ if name not in ("__version__", "AsyncEdgeClient"))
    modules = loaded_by(f"from edge_sdk import {names}")
    assert third_party(modules) == {"edge_sdk", "numpy", "msgpack"}
    assert not modules & {*HEAVY, *LATER}


def test_the_name_of_the_client_brings_no_engine_no_connection_and_no_codec() -> None:
    """What a device is made of comes when one is made: its name costs less than numpy, which it does not need yet."""
    modules = modules_of("from edge_sdk import EdgeClient, Limits, Progress, ProgressKind, Status")
    assert third_party({name.split(".")[0] for name in modules}) == {"edge_sdk"}
    assert not [name for name in modules if name.startswith(ROOMS)]


def test_the_asyncio_client_brings_asyncio_and_nothing_else() -> None:
    modules = modules_of("from edge_sdk import AsyncEdgeClient")
    assert third_party({name.split(".")[0] for name in modules}) == {"edge_sdk"}
    assert "asyncio" in modules and not [name for name in modules if name.startswith(ROOMS)]


def test_a_client_that_is_made_has_no_engine_before_its_first_job(tmp_path: Path) -> None:
    modules = modules_of(CLIENT, str(tmp_path))
    assert not [
        name
        for name in modules
        if name.startswith(("edge_sdk.training.local", "edge_sdk.training.engine", "edge_sdk.device.work"))
    ]
    assert not [name for name in modules if name.startswith(("edge_sdk.mqtt.connection", "edge_sdk.mqtt.stream"))]


def test_a_client_brings_neither_tls_nor_an_engine_until_it_connects_and_trains(tmp_path: Path) -> None:
    modules = loaded_by(CLIENT, str(tmp_path))
    assert third_party(modules) == {"edge_sdk", "numpy", "msgpack"}
    assert not modules & {"paho", "ssl", "_ssl", "asyncio", "sqlite3", "http", "email", "multiprocessing"}


@pytest.mark.parametrize("module", ["edge_sdk.__main__", "edge_sdk.cli.device_config", "edge_sdk.cli.check"])
def test_the_command_line_needs_no_more(module: str) -> None:
    modules = loaded_by(f"import {module}")
    assert third_party(modules) <= {"edge_sdk", "numpy", "msgpack"}
    assert not modules & {*HEAVY, "paho", "ssl", "asyncio", "sqlite3"}
