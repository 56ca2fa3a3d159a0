"""When to connect again: exponential backoff with full jitter; slower after refusals, much slower after takeovers.

PURE but for the generator that it is given.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from edge_sdk.device.progress import ProgressKind
from edge_sdk.device.session import Notify
from edge_sdk.errors import ConnectionRefused
from edge_sdk.mqtt.backoff import Backoff
from edge_sdk.mqtt.events import Disconnected

__all__ = ["TAKEOVER_SECONDS", "Reconnect"]

RECONNECT_SECONDS: Final = 1.0
RECONNECT_SECONDS_MAX: Final = 120.0
REFUSED_SECONDS_MIN: Final = 15.0
TAKEOVER_SECONDS: Final = 300.0
TAKEOVERS_SUSPICIOUS: Final = 3
SHORT_CONNECTION_SECONDS: Final = 5.0


class Reconnect:
    """Decides when to connect.

    Attributes:
        up: Whether there is a connection.
        due: When to connect next, on the clock of ``now``; None while there is no reason to.

    Args:
        device: The device, named in what is said of takeovers.
        rng: For jitter.
        connect_at: When to connect first.
    """

    def __init__(self, device: str, rng: np.random.Generator, connect_at: float) -> None:
        self.up = False
        self.due: float | None = connect_at
        self._device = device
        self._rng = rng
        self._backoff = Backoff(RECONNECT_SECONDS, RECONNECT_SECONDS_MAX, rng)
        self._takeovers = 0
        self._since = float("-inf")

    def on_connected(self, now: float) -> None:
        """The broker has taken the connection."""
        self.up, self._since = True, now

    def on_disconnected(self) -> bool:
        """The connection is gone, or did not come about; returns whether there had been one."""
        was_up, self.up = self.up, False
        return was_up

    def plan(self, event: Disconnected, was_up: bool, refused_message: bool, now: float) -> Notify | None:
        """Sets when to connect again; returns what is to be told, if anything.

        Args:
            event: How the connection ended.
            was_up: Whether there had been one.
            refused_message: Whether the broker has refused a message in it.
            now: A monotonic time in seconds.
        """
        if was_up and refused_message:
            self.due = now + self._backoff.next_seconds() + REFUSED_SECONDS_MIN
            return None
        short = was_up and now - self._since < SHORT_CONNECTION_SECONDS
        # On MQTT 3.1.1 a takeover looks like a cut right after connecting.
        self._takeovers = self._takeovers + 1 if event.reason == "taken_over" or short else 0
        if self._takeovers >= TAKEOVERS_SUSPICIOUS:
            self.due = now + TAKEOVER_SECONDS * (1.0 + float(self._rng.random()))
            return Notify(
                ProgressKind.TAKEN_OVER,
                f"another client seems to use the device id {self._device!r}: give each device its own "
                f"(this one waits {TAKEOVER_SECONDS:.0f} s)",
            )
        if was_up and not short:
            self._backoff.reset()
        seconds = self._backoff.next_seconds()
        self.due = now + seconds + (REFUSED_SECONDS_MIN if isinstance(event.error, ConnectionRefused) else 0.0)
        return None
