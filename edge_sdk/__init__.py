"""The device's side of edgefed: embed :class:`EdgeClient`, or run ``edge-device``.

Importing this package loads nothing. A name's module comes when the name is first used, and what a connection, an
engine or a codec needs comes when one is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edge_sdk.aio import AsyncEdgeClient
    from edge_sdk.client import EdgeClient
    from edge_sdk.device.limits import Limits
    from edge_sdk.device.progress import Progress, ProgressKind, Status
    from edge_sdk.errors import (
        BundleError,
        CompileError,
        ConfigurationError,
        ConnectionRefused,
        ConnectionUnavailable,
        DecodeError,
        DivergedError,
        EdgeFedError,
        ExamplesError,
        ProtocolError,
        StateError,
        TrainingError,
        VersionError,
    )
    from edge_sdk.mqtt.settings import BrokerSettings, TlsSettings
    from edge_sdk.training.algorithms import LocalAlgorithm, LocalResult, LocalWork
    from edge_sdk.training.data.settings import ExamplesFile, Window
    from edge_sdk.training.examples import Examples
    from edge_sdk.training.local import Trainer
    from edge_sdk.wire.plan import Plan, TrainingPlan

__all__ = [
    "AsyncEdgeClient",
    "BrokerSettings",
    "BundleError",
    "CompileError",
    "ConfigurationError",
    "ConnectionRefused",
    "ConnectionUnavailable",
    "DecodeError",
    "DivergedError",
    "EdgeClient",
    "EdgeFedError",
    "Examples",
    "ExamplesError",
    "ExamplesFile",
    "Limits",
    "LocalAlgorithm",
    "LocalResult",
    "LocalWork",
    "Plan",
    "Progress",
    "ProgressKind",
    "ProtocolError",
    "StateError",
    "Status",
    "TlsSettings",
    "Trainer",
    "TrainingError",
    "TrainingPlan",
    "VersionError",
    "Window",
    "__version__",
]

_MODULES = {
    "edge_sdk.aio": ("AsyncEdgeClient",),
    "edge_sdk.client": ("EdgeClient",),
    "edge_sdk.device.limits": ("Limits",),
    "edge_sdk.device.progress": (
        "Progress",
        "ProgressKind",
        "Status",
    ),
    "edge_sdk.errors": (
        "BundleError",
        "CompileError",
        "ConfigurationError",
        "ConnectionRefused",
        "ConnectionUnavailable",
        "DecodeError",
        "DivergedError",
        "EdgeFedError",
        "ExamplesError",
        "ProtocolError",
        "StateError",
        "TrainingError",
        "VersionError",
    ),
    "edge_sdk.mqtt.settings": (
        "BrokerSettings",
        "TlsSettings",
    ),
    "edge_sdk.training.algorithms": (
        "LocalAlgorithm",
        "LocalResult",
        "LocalWork",
    ),
    "edge_sdk.training.data.settings": (
        "ExamplesFile",
        "Window",
    ),
    "edge_sdk.training.examples": ("Examples",),
    "edge_sdk.training.local": ("Trainer",),
    "edge_sdk.wire.plan": (
        "Plan",
        "TrainingPlan",
    ),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
