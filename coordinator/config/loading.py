"""Reading ``federation.toml``: what is wrong is said with the file, the key, the value and what is allowed."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from coordinator.config.fields import Section, allowed_text
from coordinator.config.sections import FederationConfig
from edge_sdk.errors import ConfigurationError
from edge_sdk.training.data.settings import ExamplesFile

__all__ = ["FILES", "check_files", "load_config", "load_tasks", "problem_text", "sections"]

SHARED_TABLES: Final = ("federation", "broker", "transfer", "store")
"""What a federation has once, however many tasks it has."""

FILES: Final = (
    ("broker", "password_file"),
    ("broker", "ca_file"),
    ("broker", "cert_file"),
    ("broker", "key_file"),
    ("model", "bundle"),
    ("model", "onnx"),
    ("evaluation", "data"),
)
VALUE_CHARACTERS_MAX: Final = 60


def load_config(path: Path, task: str | None = None) -> FederationConfig:
    """Read and check the configuration of one task.

    Args:
        path: The TOML file; relative paths inside start at its directory.
        task: The task's name; None for the only one.

    Raises:
        ConfigurationError: As of :func:`load_tasks`; or the file has several tasks, or none of that name.
    """
    configs = load_tasks(path)
    names = [config.federation.task for config in configs]
    if task is None and len(configs) > 1:
        raise ConfigurationError(f"{path}: has the tasks {', '.join(names)}; say which with --task")
    if task is not None and task not in names:
        raise ConfigurationError(f"--task {task}: {path} has {', '.join(names)}")
    return configs[0 if task is None else names.index(task)]


def load_tasks(path: Path) -> tuple[FederationConfig, ...]:
    """Read and check the configuration of every task, in the order of the file.

    A file without ``[[task]]`` describes one. With them, each ``[[task]]`` is a ``name`` and tables of its own
    (``[task.model]``, ``[task.training]``...), which stand in front of the file's tables of the same name: the model
    as a whole, all others key by key.

    Args:
        path: The TOML file; relative paths inside start at its directory.

    Raises:
        ConfigurationError: The file cannot be read, or holds an unknown key, a wrong value or a contradiction; all that
            is wrong is listed, one line each.
    """
    source = _read(path)
    if "task" not in source:
        return (_checked(path, source, ""),)
    return tuple(_checked(path, merged, f"task {name}: ") for name, merged in _by_task(path, source))


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read ({error.strerror}); docs/federation.toml is an example to begin with"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: is not valid TOML: {error}") from error


def _by_task(path: Path, source: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Name and whole configuration of each ``[[task]]``."""
    shared = {name: table for name, table in source.items() if name != "task"}
    entries = source["task"]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries) or not entries:
        raise ConfigurationError(f"{path}: task: each task is a table of its own, written [[task]]")
    federation = shared.get("federation", {})
    if isinstance(federation, dict) and "task" in federation:
        raise ConfigurationError(f"{path}: federation.task: the tasks are named in [[task]]; remove this key")
    found: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries, start=1):
        name = entry.get("name")
        if not isinstance(name, str):
            raise ConfigurationError(f"{path}: task {number}: name is missing; give each [[task]] a name")
        if name in found:
            raise ConfigurationError(f"{path}: task {name}: there are two of this name")
        merged = {**shared, "federation": {"database": federation.get("name"), **federation, "task": name}}
        for table, value in entry.items():
            if table == "name":
                continue
            if table in SHARED_TABLES:
                raise ConfigurationError(f"{path}: task {name}: [{table}] belongs to all tasks; write it once, above")
            before = merged.get(table)
            if isinstance(value, dict) and isinstance(before, dict) and table != "model":
                value = {**before, **value}
            merged[table] = value
        found[name] = merged
    return list(found.items())


def _checked(path: Path, source: dict[str, Any], where: str) -> FederationConfig:
    try:
        return FederationConfig.model_validate(source, context={"directory": path.absolute().parent})
    except ValidationError as error:
        problems = error.errors(include_url=False)
        raise ConfigurationError("\n".join(f"{path}: {where}{problem_text(problem)}" for problem in problems)) from None


def check_files(config: FederationConfig) -> None:
    """Check that every file that the configuration names is there.

    Raises:
        ConfigurationError: One is not; all are listed.
    """
    missing = []
    for section, name in FILES:
        path = getattr(getattr(config, section), name)
        path = path.path if isinstance(path, ExamplesFile) else path
        if path is not None and not path.is_file():
            missing.append(f"{section}.{name}: there is no file {path}")
    if missing:
        raise ConfigurationError("\n".join(missing))


def sections() -> dict[str, type[Section]]:
    """The tables by name, in order."""
    found: dict[str, type[Section]] = {}
    for name, field in FederationConfig.model_fields.items():
        assert isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        found[name] = field.annotation
    return found


def problem_text(problem: Any) -> str:
    """One of pydantic's complaints as a line: the key, the value and what is allowed."""
    where = tuple(problem["loc"])
    kind = problem["type"]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where).lstrip(".")
    if kind == "extra_forbidden":
        return f"{path}: unknown key{_suggestion(where)}"
    if kind == "missing":
        if len(where) == 1:
            return f"[{path}]: this table is missing"
        return f"{path}: is missing; give {_allowed(where)}"
    if kind == "value_error":
        message = str(problem["ctx"]["error"])
        return f"{path} {message}" if message.startswith("=") else message
    if kind == "model_type":
        return f"{path}: must be a table, [{path}]"
    return f"{path} = {_shown(problem['input'])}: must be {_allowed(where)}"


def _allowed(where: tuple[str | int, ...]) -> str:
    field = _field(where)
    if field is None:
        return "another value"
    if len(where) > 2 and "table" in allowed_text(field):
        return f"a number. {field.description}"
    return f"{allowed_text(field)}. {field.description}"


def _field(where: tuple[str | int, ...]) -> FieldInfo | None:
    section = sections().get(str(where[0]))
    return None if section is None or len(where) < 2 else section.model_fields.get(str(where[1]))


def _suggestion(where: tuple[str | int, ...]) -> str:
    wrong = str(where[-1])
    known = sections()
    if len(where) == 1:
        elsewhere = [f"{section}.{wrong}" for section, model in known.items() if wrong in model.model_fields]
        near = difflib.get_close_matches(wrong, known, n=1)
        guess = elsewhere[:1] or [f"[{name}]" for name in near]
        return f"; did you mean {guess[0]}?" if guess else f"; the tables are {', '.join(known)}"
    section = str(where[0])
    here = list(known[section].model_fields)
    near = difflib.get_close_matches(wrong, here, n=1)
    if near:
        return f"; did you mean {section}.{near[0]}?"
    elsewhere = [f"{other}.{wrong}" for other, model in known.items() if wrong in model.model_fields]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    return f"; [{section}] has {', '.join(here)}"


def _shown(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= VALUE_CHARACTERS_MAX else f"{text[:VALUE_CHARACTERS_MAX]}..."
