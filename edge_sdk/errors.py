"""Every exception that this project raises, in one tree.

    EdgeFedError
    ├── ConfigurationError      a local mistake: a setting, an argument, a file (names the field, the value, the remedy)
    │   └── ExamplesError       the device's own examples have the wrong shape, type or count
    ├── ProtocolError           a remote mistake: bytes that the peer should not have sent (carries a reason code)
    │   ├── DecodeError         malformed, truncated, oversize or out-of-range bytes
    │   └── VersionError        a version that this side does not speak (says which side to upgrade)
    ├── BundleError             a model bundle that disagrees with its manifest, its digest or this device's limits
    ├── TrainingError           training could not start or went wrong (an engine failure)
    │   └── DivergedError       it gave NaN, infinity, or a step that is too long to be sent
    ├── StateError              the state directory or the database cannot be used (disk full, corrupt, locked)
    ├── ConnectionRefused       the broker answered, and refused (password, ACL, version)
    ├── ConnectionUnavailable   no broker answered (down, wrong port, TLS mismatch)
    └── CompileError            a model that cannot become a training graph (names the node and the remedy)

A local mistake raises where it is made. A remote one rejects that device or message, is counted under its
``reason``, and never ends a round.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
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
]


class EdgeFedError(Exception):
    """The root of the tree: catch this to catch all that we raise on purpose."""


class ConfigurationError(EdgeFedError):
    """A local mistake in a setting, an argument or a file."""


class ExamplesError(ConfigurationError):
    """The device's own examples do not fit the model.

    ``public`` is what others may be told of it: no value of the examples and no directory of this device. It is empty
    where nobody has vouched for that.
    """

    def __init__(self, message: str, *, public: str = "") -> None:
        super().__init__(message)
        self.public = public

    def within(self, path: Path) -> ExamplesError:
        """The same, of examples that came from a file; others are told its name without the directory."""
        return ExamplesError(f"{path}: {self}", public=f"{path.name}: {self.public}" if self.public else "")


class ProtocolError(EdgeFedError):
    """A peer sent something that the protocol does not allow.

    ``reason`` is a short stable code (``[a-z_]+``): refusals are counted under it and dashboards group by it.
    """

    def __init__(self, message: str, *, reason: str = "protocol") -> None:
        super().__init__(message)
        self.reason = reason


class DecodeError(ProtocolError):
    """Bytes from the network that are malformed, truncated, oversize or out of range."""

    def __init__(self, message: str, *, reason: str = "malformed") -> None:
        super().__init__(message, reason=reason)


class VersionError(ProtocolError):
    """A version that this side does not speak."""

    def __init__(self, message: str, *, reason: str = "version") -> None:
        super().__init__(message, reason=reason)


class BundleError(EdgeFedError):
    """A model bundle that cannot be used."""


class TrainingError(EdgeFedError):
    """Local training could not start, or its result cannot be used.

    ``public`` is what others may be told of it: all, unless the message may hold something of the examples.
    """

    def __init__(self, message: str, *, public: str | None = None) -> None:
        super().__init__(message)
        self.public = message if public is None else public


class DivergedError(TrainingError):
    """Training gave NaN, infinity, or a step that is too long to be sent: another attempt would give the same."""


class StateError(EdgeFedError):
    """The state directory or the database cannot be used."""


class ConnectionRefused(EdgeFedError):
    """The broker answered and refused us."""


class ConnectionUnavailable(EdgeFedError):
    """No broker answered."""


class CompileError(EdgeFedError):
    """A model that cannot be turned into a training graph."""
