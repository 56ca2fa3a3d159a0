"""The device's side of edgefed: embed :class:`EdgeClient`, or run ``edge-device``.

Importing this package loads numpy and msgpack and nothing heavier; what a connection or an engine needs comes when it
is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edge_sdk.agent import Progress, Status
    from edge_sdk.client import EdgeClient, Limits
    from edge_sdk.examples import Examples
    from edge_sdk.training import Trainer

__all__ = ["EdgeClient", "Examples", "Limits", "Progress", "Status", "Trainer", "__version__"]

_WHERE = {
    "EdgeClient": "edge_sdk.client",
    "Limits": "edge_sdk.client",
    "Progress": "edge_sdk.agent",
    "Status": "edge_sdk.agent",
    "Examples": "edge_sdk.examples",
    "Trainer": "edge_sdk.training",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
