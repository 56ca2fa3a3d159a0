"""One simulated connection: the lane of packets in each direction, and what either end believes about it.

A lane is TCP seen from afar: packets leave one after another at the link's rate, each is under way for a drawn delay,
and none overtakes another. What is sent into a window in which the two ends cannot reach each other arrives after it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np

from device_sim.world.clock import Handle
from device_sim.world.faults import LinkProfile, NetworkFaults
from edge_sdk.errors import EdgeFedError
from edge_sdk.mqtt import DisconnectReason, Will

__all__ = ["Chance", "Client", "Connection", "Lane", "Packet", "Window", "chance_from"]

Chance = Callable[[], float]
Window = tuple[float, float]

Packet = tuple[str, bytes, int, bool, float, int]
"""A message under way: topic, payload, QoS, whether it is retained, expiry in virtual time, bytes on the wire.
A plain tuple, since a named one takes four times as long to make."""

DRAWS_A_BLOCK = 1024  # drawing one number at a time costs ten times as much


def chance_from(rng: np.random.Generator) -> Chance:
    """The generator's uniform numbers in [0, 1), one a call, drawn in blocks."""

    def draws() -> Iterator[float]:
        while True:
            yield from rng.random(DRAWS_A_BLOCK).tolist()

    return draws().__next__


class Lane:
    """One direction of a connection.

    Args:
        bytes_per_second: Rate at which packets leave.
        delay_range: Least and greatest delay of a packet, in seconds.
        windows: Times at which nothing gets through, ascending and apart from each other.
        chance: Where delays are drawn from.
    """

    __slots__ = ("_chance", "_delay_min", "_delay_span", "_last_arrival", "_seconds_per_byte", "_windows", "free_at")

    def __init__(
        self, bytes_per_second: float, delay_range: tuple[float, float], windows: tuple[Window, ...], chance: Chance
    ) -> None:
        self.free_at = 0.0
        self._seconds_per_byte = 1.0 / bytes_per_second
        self._delay_min = delay_range[0]
        self._delay_span = delay_range[1] - delay_range[0]
        self._last_arrival = 0.0
        self._windows = windows
        self._chance = chance

    def arrival(self, now: float, size_bytes: int) -> float:
        """Send a packet; returns the virtual time at which its last byte arrives."""
        left = (now if now > self.free_at else self.free_at) + size_bytes * self._seconds_per_byte
        self.free_at = left
        arrival = left + self._delay_min + self._delay_span * self._chance()
        if self._windows:
            for start, end in self._windows:
                if start < arrival and left < end:
                    arrival, left = end + (arrival - left), end
        if arrival < self._last_arrival:
            return self._last_arrival
        self._last_arrival = arrival
        return arrival


class Client(Protocol):
    """The client's end of a connection: who it is, and where packets from the broker go."""

    client_id: str
    will: Will | None
    link: LinkProfile
    in_flight_max: int

    def on_connack(self, connection: Connection) -> None:
        """CONNACK comes in."""

    def on_puback(self, connection: Connection, token: int) -> None:
        """PUBACK comes in, or a QoS 0 message has left."""

    def on_suback(self, connection: Connection, token: int, refused: tuple[str, ...]) -> None:
        """SUBACK comes in."""

    def on_delivery(self, connection: Connection, packet: Packet) -> None:
        """A PUBLISH comes in."""

    def on_closed(self, connection: Connection, reason: DisconnectReason, error: EdgeFedError) -> None:
        """The connection is found to be gone, or none came about."""


class Connection:
    """One attempt of a client to be connected, from CONNECT to the end.

    The two ends notice an end at different times, hence ``client_open`` and ``broker_open``. Everything that is under
    way carries its connection, so that nothing of an old one reaches a new one.
    """

    __slots__ = (
        "accepted",
        "broker_open",
        "client_id",
        "client_open",
        "connect_timer",
        "deaf_after",
        "delay_seconds_max",
        "down",
        "drop_timer",
        "filters",
        "inflight",
        "pumping",
        "queue",
        "released",
        "transport",
        "unacknowledged",
        "up",
        "window",
    )

    def __init__(
        self,
        transport: Client,
        faults: NetworkFaults,
        windows: tuple[Window, ...],
        window: int,
        chance: Chance,
    ) -> None:
        link = transport.link
        self.transport = transport
        self.client_id = transport.client_id
        self.client_open = True
        self.broker_open = False
        self.accepted = False  # the client has seen CONNACK
        delay_range = link.delay_range(faults)
        self.up = Lane(link.uplink_bytes_per_second, delay_range, windows, chance)
        self.down = Lane(link.downlink_bytes_per_second, delay_range, windows, chance)
        self.delay_seconds_max = delay_range[1]
        self.connect_timer: Handle | None = None
        self.drop_timer: Handle | None = None
        self.deaf_after = math.inf  # after a cut: when the last packet that had left the client has reached the broker
        # The broker's side of deliveries: how many may be and are unanswered, what waits, when answers come in.
        self.window = window
        self.inflight = 0
        self.queue: deque[Packet] = deque()
        self.released: deque[float] = deque()
        self.pumping = False
        self.filters: dict[str, None] = {}
        # The client's side of them.
        self.unacknowledged: set[int] = set()
