"""Who may import whom (ARCHITECTURE.md), read from the sources."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("edge_sdk", "coordinator", "device_sim")

LAYERS = (
    {"errors", "parameters", "extension"},
    {"mqtt"},
    {"wire", "codecs"},
    {"training"},
    {"aggregation", "device"},
    {"client", "aio"},
    {"cli"},
    {"__main__"},
)
"""Of ``edge_sdk``: a room imports from itself and from those before it."""

PURE = (
    "coordinator.advice",
    "coordinator.attendance",
    "coordinator.pipeline.clip",
    "coordinator.pipeline.gate",
    "coordinator.pipeline.memory",
    "coordinator.pipeline.metrics",
    "coordinator.pipeline.step",
    "coordinator.schedules",
    "coordinator.server_optimizers",
    "coordinator.stopping",
    "coordinator.validate",
    "edge_sdk.aggregation",
    "edge_sdk.device.diagnostics",
    "edge_sdk.device.pending",
    "edge_sdk.device.progress",
    "edge_sdk.device.resting",
    "edge_sdk.device.session",
)
PURE_MAY_USE = {
    *PACKAGES,
    *("__future__", "collections", "dataclasses", "enum", "functools", "itertools", "operator", "typing"),
    *("bisect", "hashlib", "heapq", "json", "math", "msgpack", "numpy", "statistics", "struct", "zlib"),
}
"""No clock (time, datetime), no chance (random, secrets, os), no SQL, no MQTT, no threads."""

DEVICE_HAS_NOT = {"onnx", "pydantic", "sqlite3", "typer", "rich", "asyncio", "pyarrow"}
ONLY_WHEN_NEEDED = {"onnxruntime", "paho", "ssl", "hashlib", "sqlite3", "pyarrow"}
OF_ONE_MODULE = {
    ("edge_sdk.aio", "asyncio"),
    ("edge_sdk.training.data.sqlite_file", "sqlite3"),
    ("edge_sdk.training.data.parquet_file", "pyarrow"),
}
"""What comes with a module that nothing imports until its user asks for it."""


class Import(NamedTuple):
    """One import: of what, where, whether it happens as soon as the module is loaded, or only for a type checker."""

    module: str
    line: int
    at_once: bool
    for_types: bool


def sources(package: str) -> Iterator[tuple[str, Path]]:
    """Dotted names and files of all modules of a package."""
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> list[Import]:
    found: list[Import] = []

    def walk(node: ast.AST, at_once: bool, for_types: bool = False) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, at_once, for_types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: imports are absolute here"
            # "from package import module" names a module too, where there is one of that name.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in names if (REPOSITORY / f"{name.replace('.', '/')}.py").exists()]
            found.extend(Import(module, node.lineno, at_once, for_types) for module in {node.module, *modules})
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_for_types_only(node)
        for child in ast.iter_child_nodes(node):
            walk(child, at_once and not lazy, for_types or _is_for_types_only(node))

    walk(ast.parse(path.read_text()), True)
    return found


def _is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def top(module: str) -> str:
    return module.split(".")[0]


def room(module: str) -> str:
    """The part of ``edge_sdk`` that a module belongs to; "" for the package itself."""
    return [*module.split("."), ""][1]


ALL = {name: (path, imports(path)) for package in PACKAGES for name, path in sources(package)}


@pytest.mark.parametrize(
    ("package", "others"), [("edge_sdk", {"coordinator", "device_sim"}), ("coordinator", {"device_sim"})]
)
def test_the_device_knows_no_coordinator_and_nobody_knows_the_simulator(package: str, others: set[str]) -> None:
    wrong = [
        f"{path}:{found.line} imports {found.module}"
        for name, (path, all_imports) in ALL.items()
        if top(name) == package
        for found in all_imports
        if top(found.module) in others
    ]
    assert not wrong


def test_every_module_of_the_device_has_its_layer() -> None:
    known = set().union(*LAYERS) | {""}
    new = {room(name) for name in ALL if top(name) == "edge_sdk"} - known
    assert not new, f"give {sorted(new)} a place in LAYERS above"


def test_the_layers_of_the_device_are_kept() -> None:
    rank = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = []
    for name, (path, all_imports) in ALL.items():
        here = room(name)
        if top(name) != "edge_sdk" or not here:
            continue
        for found in all_imports:
            there = room(found.module)
            if top(found.module) != "edge_sdk" or there in ("", here):
                continue
            if rank[there] > rank[here]:
                wrong.append(f"{path}:{found.line}: {here} imports {there}")
    assert not wrong


def test_mqtt_is_known_to_the_shells_alone() -> None:
    knowing = {
        name
        for name, (_, all_imports) in ALL.items()
        if top(name) == "edge_sdk" and room(name) in ("wire", "codecs", "training", "aggregation")
        for found in all_imports
        if room(found.module) == "mqtt"
    }
    assert knowing == {"edge_sdk.wire.wire_costs"}, "which weighs its packets"


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_touch_no_mqtt_no_sql_no_clock_and_no_chance(name: str) -> None:
    modules = [module for module in ALL if module == name or module.startswith(f"{name}.")]
    assert modules
    for module in modules:
        path, all_imports = ALL[module]
        used = {top(found.module) for found in all_imports}
        assert used <= PURE_MAY_USE, f"{path}: {sorted(used - PURE_MAY_USE)}"
        ours = {found.module for found in all_imports if top(found.module) in PACKAGES}
        assert not {m for m in ours if m.startswith(("edge_sdk.mqtt", "coordinator.store", "edge_sdk.mqtt.loop"))}, path
        assert "default_rng(" not in path.read_text(), f"{path}: a generator is a parameter"


@pytest.mark.parametrize("name", [name for name in PURE if top(name) == "coordinator"])
def test_pure_modules_of_the_coordinator_import_no_shell_of_it(name: str) -> None:
    reached, waiting = set[str](), [module for module in ALL if module == name or module.startswith(f"{name}.")]
    while waiting:
        module = waiting.pop()
        if module in reached or top(module) != "coordinator":
            continue
        reached.add(module)
        waiting += [found.module for found in ALL[module][1]] if module in ALL else []
    assert {module for module in reached if not module.startswith(PURE)} <= {"coordinator"}


def test_a_device_never_imports_what_only_the_coordinator_installs() -> None:
    wrong = [
        f"{path}:{found.line} imports {found.module}"
        for name, (path, all_imports) in ALL.items()
        if top(name) == "edge_sdk"
        for found in all_imports
        if (top(found.module) in DEVICE_HAS_NOT and (name, top(found.module)) not in OF_ONE_MODULE)
        or (top(found.module) in ONLY_WHEN_NEEDED and found.at_once)
    ]
    on_connect = ("edge_sdk/mqtt/connection.py", "edge_sdk/mqtt/stream.py")  # imported by the first connect()
    assert [line for line in wrong if not any(name in line for name in on_connect)] == []


def test_the_asyncio_client_is_known_to_nobody_but_those_who_ask_for_it() -> None:
    knowing = [name for name, (_, found) in ALL.items() for i in found if i.module == "edge_sdk.aio" and i.at_once]
    assert not knowing, "asyncio would come with every device"


def test_nobody_unpickles_or_evaluates() -> None:
    wrong = []
    for name, (path, all_imports) in ALL.items():
        wrong += [f"{path}:{i.line}" for i in all_imports if top(i.module) in ("pickle", "marshal", "shelve")]
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        wrong += [f"{name}:{c.lineno}" for c in calls if isinstance(c.func, ast.Name) and c.func.id in ("eval", "exec")]
    assert not wrong


def test_modules_import_each_other_in_no_circle() -> None:
    """Imports for types alone count too: who must know another's types depends on it. The front of the SDK, which names
    what applications use and loads nothing of it, depends on nothing."""
    graph = {
        name: {i.module for i in all_imports if (i.at_once or i.for_types) and i.module in ALL} - {name, "edge_sdk"}
        for name, (_, all_imports) in ALL.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"a circle: {' -> '.join((*trail[trail.index(name) :], name))}"
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
