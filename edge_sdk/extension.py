"""The user's own classes by dotted name, ``"package.module:Name"``: algorithms, codecs, selection rules, trainers.

The code is imported from the machine that the configuration is on; nothing ever travels. A configuration that names a
class can therefore run that class's code, as an ``import`` in a program would: who may write the configuration may run
code as the process's user.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from edge_sdk.errors import ConfigurationError

__all__ = ["is_dotted", "load", "make"]


def is_dotted(name: str) -> bool:
    """Whether ``name`` is a dotted name (it has a colon) and not one of the names that this project knows."""
    return ":" in name


def load(kind: str, name: str) -> Any:
    """Imports what a dotted name stands for.

    Args:
        kind: The setting that the name was given to, as a person knows it: ``aggregation.algorithm``, ``--trainer``.
        name: ``"package.module:Name"``; the part after the colon may have dots too (``"module:Outer.Inner"``).

    Returns:
        The object, usually a class; nothing is called.

    Raises:
        ConfigurationError: The name is malformed, the module cannot be imported (for whatever reason), or it has no
            such name. The message has the setting, the value and what to do.
    """
    where = f"{kind}: {name!r}"
    module_name, colon, attributes = name.partition(":")
    parts = attributes.split(".")
    if not colon or not all(part.isidentifier() for part in [*module_name.split("."), *parts]):
        raise ConfigurationError(
            f"{where} is not of the form package.module:Name; write it like mypackage.rules:MyRule"
        )
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"{where}: there is no module {error.name!r}; install the package that has it, or set PYTHONPATH to "
                "the directory that it lies in"
            ) from error
        raise ConfigurationError(f"{where}: {module_name} imports {error.name!r}, which is not installed") from error
    except Exception as error:  # somebody else's code: whatever it raises is an answer to the configuration
        raise ConfigurationError(
            f"{where}: importing {module_name} fails with {type(error).__name__}: {error}; try it with "
            f"python -c 'import {module_name}'"
        ) from error
    for part in parts:
        if not hasattr(found, part):
            names = ", ".join(sorted(n for n in vars(found) if not n.startswith("_"))[:20]) or "nothing public"
            raise ConfigurationError(f"{where}: {module_name} has no {attributes!r}; it has {names}")
        found = getattr(found, part)
    return found


def make(kind: str, name: str, settings: Mapping[str, Any] | None = None, *, methods: tuple[str, ...] = ()) -> Any:
    """Imports what a dotted name stands for and makes an object of it.

    Args:
        kind: As of :func:`load`.
        name: As of :func:`load`. A class, or a function that returns an object, is called with ``settings``; an object
            that has all of ``methods`` already is taken as it is where there are no settings.
        settings: Keyword arguments.
        methods: What the object must be able to do.

    Raises:
        ConfigurationError: As of :func:`load`; or it cannot be called with these settings, or lacks a method.
    """
    found = load(kind, name)
    where = f"{kind}: {name!r}"
    settings = settings or {}
    if isinstance(found, type) or settings or not all(hasattr(found, method) for method in methods):
        if not callable(found):
            raise ConfigurationError(f"{where} is {type(found).__name__}, not a class; name a class or a function")
        try:
            found = found(**settings)
        except ConfigurationError:
            raise
        except Exception as error:  # somebody else's code, as above
            given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
            raise ConfigurationError(
                f"{where} cannot be made with ({given}): {type(error).__name__}: {error}; correct its settings"
            ) from error
    missing = [method for method in methods if not callable(getattr(found, method, None))]
    if missing:
        raise ConfigurationError(
            f"{where} has no {', '.join(f'{method}()' for method in missing)}: {kind} needs {', '.join(methods)} "
            "(docs/extend.md shows one of each kind)"
        )
    return found
