"""The device's side of edgefed: embed :class:`EdgeClient`, or run ``edge-device``.

Importing this package loads numpy and msgpack and nothing heavier; what a connection or an engine needs comes when it
is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edge_sdk.client import EdgeClient, Limits
    from edge_sdk.device.progress import Progress, Status
    from edge_sdk.training.examples import Examples
    from edge_sdk.training.local import Trainer

__all__ = ["EdgeClient", "Examples", "Limits", "Progress", "Status", "Trainer", "__version__"]

_WHERE = {
    "EdgeClient": "edge_sdk.client",
    "Limits": "edge_sdk.client",
    "Progress": "edge_sdk.device.progress",
    "Status": "edge_sdk.device.progress",
    "Examples": "edge_sdk.training.examples",
    "Trainer": "edge_sdk.training.local",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
