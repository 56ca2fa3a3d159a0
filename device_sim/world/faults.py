"""Everything that can go wrong in the simulated network, in one place, and the links of the devices."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields

from edge_sdk.errors import ConfigurationError
from edge_sdk.mqtt.events import Protocol

__all__ = ["Crash", "LinkProfile", "NetworkFaults", "Partition"]

PROBABILITIES = frozenset({"loss", "duplicate", "reorder"})


@dataclass(frozen=True, slots=True)
class LinkProfile:
    """The link between one client and the broker.

    Attributes:
        uplink_bytes_per_second: Rate towards the broker; infinite for no limit.
        downlink_bytes_per_second: Rate from the broker; infinite for no limit.
        delay_seconds: One-way delay of this link, added to the network's own.
        delay_factor: What the network's drawn delay is multiplied with; 0 for a client beside the broker, as a
            coordinator usually is (its deliveries wait for its acknowledgements, so distance costs it throughput).
        disconnect_factor: What the network's ``disconnects_per_hour`` is multiplied with for this link.

    Raises:
        ConfigurationError: A value is out of range.
    """

    uplink_bytes_per_second: float = math.inf
    downlink_bytes_per_second: float = math.inf
    delay_seconds: float = 0.0
    delay_factor: float = 1.0
    disconnect_factor: float = 1.0

    def __post_init__(self) -> None:
        if not self.uplink_bytes_per_second > 0 or not self.downlink_bytes_per_second > 0:
            raise ConfigurationError(
                f"link: rates {self.uplink_bytes_per_second!r} and {self.downlink_bytes_per_second!r} bytes per second "
                "must be more than 0 (inf for no limit)"
            )
        for name in ("delay_seconds", "delay_factor", "disconnect_factor"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigurationError(f"link.{name}: {getattr(self, name)!r} must be 0 or more and finite")

    def delay_range(self, faults: NetworkFaults) -> tuple[float, float]:
        """Least and greatest one-way delay of a packet on this link, in seconds."""
        least = self.delay_seconds + self.delay_factor * faults.delay_seconds_min
        return least, self.delay_seconds + self.delay_factor * faults.delay_seconds_max


@dataclass(frozen=True, slots=True)
class Partition:
    """A window of virtual time in which some clients and the broker cannot reach each other.

    TCP hides a short one: what is sent inside the window arrives after it. A window longer than the keepalive allows
    kills the connections, see ``NetworkFaults.keepalive_seconds``.

    Attributes:
        start_seconds: Beginning, virtual time.
        end_seconds: End, virtual time.
        share: Share of all clients that are cut off, when ``clients`` is empty; drawn by client id.
        clients: The client ids that are cut off.

    Raises:
        ConfigurationError: The window is empty or the share is not in 0..1.
    """

    start_seconds: float
    end_seconds: float
    share: float = 1.0
    clients: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 0.0 <= self.start_seconds < self.end_seconds < math.inf:
            raise ConfigurationError(f"partition: {self.start_seconds!r}..{self.end_seconds!r} is not a window of time")
        if not 0.0 <= self.share <= 1.0:
            raise ConfigurationError(f"partition.share: {self.share!r} must be in 0..1")

    def affects(self, client_id: str, salt: int) -> bool:
        """Whether this client is cut off; ``salt`` is a draw of the run, so that another seed cuts off others."""
        if self.clients:
            return client_id in self.clients
        key = f"{salt}/{self.start_seconds!r}/{client_id}".encode()
        return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") < self.share * 2.0**64


@dataclass(frozen=True, slots=True)
class Crash:
    """The broker dies without a word and comes back.

    All connections drop, all queued and unacknowledged messages are gone, no last will is published: what mosquitto
    does when it is killed.

    Attributes:
        at_seconds: Time of death, virtual time.
        down_seconds: How long nobody can connect.
        retained_lost: Whether the retained messages are gone too (a broker without persistence).

    Raises:
        ConfigurationError: A time is negative or not finite.
    """

    at_seconds: float
    down_seconds: float = 5.0
    retained_lost: bool = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.at_seconds < math.inf or not 0.0 <= self.down_seconds < math.inf:
            raise ConfigurationError(f"crash: {self!r} must have finite times of 0 or more")


@dataclass(frozen=True, slots=True)
class NetworkFaults:
    """The behaviour of the in-memory network and of its broker; the defaults are a good day.

    Attributes:
        delay_seconds_min: Least one-way delay of a packet; each packet draws its own between min and max.
        delay_seconds_max: Greatest one-way delay of a packet.
        loss: Probability that the broker loses one copy of a message that it has acknowledged, on its way to one
            subscriber. TCP loses nothing inside a connection; brokers do (a full queue, a restart, amqtt's timeout).
        duplicate: Probability that a subscriber gets a message twice.
        reorder: Probability that a message to a subscriber does not keep its place and is late by up to
            ``reorder_seconds_max``. A single connection never does that; bridges and broker clusters do.
        reorder_seconds_max: Greatest extra delay of a reordered message, and of the second copy of a duplicate one.
        disconnects_per_hour: Mean number of times per hour that a connection drops without warning.
        notice_seconds_max: The broker notices such a drop after a uniform draw up to this; 0 = at once. Until then
            the session is half open: its will is unpublished and a reconnect takes it over.
        partitions: Windows in which clients are cut off.
        crashes: Deaths of the broker.
        keepalive_seconds: MQTT keepalive. Cut off for longer, the broker drops a connection after 1.5 times and the
            client gives up after twice this time.
        connect_seconds_max: A connection attempt fails after this time.
        protocol: The version of MQTT that the broker speaks; "3.1.1" has no message expiry and gives no reasons.
        packet_bytes_max: Maximum Packet Size of the broker in bytes, whole packets (default: the protocol's own).
        receive_max: Receive Maximum in CONNACK: unacknowledged messages that a publisher may have under way.
        inflight_max: Messages to a subscriber that may await its acknowledgement (fewer if the client says so); the
            rest queue at the broker.
        queued_messages_max: Limit of that queue, beyond which messages are dropped silently; 0 = no limit.

    Raises:
        ConfigurationError: A value is out of range.
    """

    delay_seconds_min: float = 0.005
    delay_seconds_max: float = 0.05
    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    reorder_seconds_max: float = 2.0
    disconnects_per_hour: float = 0.0
    notice_seconds_max: float = 0.0
    partitions: tuple[Partition, ...] = ()
    crashes: tuple[Crash, ...] = ()
    keepalive_seconds: float = 60.0
    connect_seconds_max: float = 10.0
    protocol: Protocol = "5"
    packet_bytes_max: int = 268_435_460
    receive_max: int = 20
    inflight_max: int = 20
    queued_messages_max: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in PROBABILITIES and not 0.0 <= value <= 1.0:
                raise ConfigurationError(f"faults.{field.name}: {value!r} must be a probability in 0..1")
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise ConfigurationError(f"faults.{field.name}: {value!r} must be 0 or more and finite")
        if self.delay_seconds_max < self.delay_seconds_min:
            raise ConfigurationError(
                f"faults.delay_seconds_max: {self.delay_seconds_max!r} is below "
                f"faults.delay_seconds_min: {self.delay_seconds_min!r}"
            )
        if self.protocol not in ("5", "3.1.1"):
            raise ConfigurationError(f"faults.protocol: {self.protocol!r} must be '5' or '3.1.1'")
        for name in ("keepalive_seconds", "connect_seconds_max", "packet_bytes_max", "receive_max", "inflight_max"):
            if getattr(self, name) <= 0:
                raise ConfigurationError(f"faults.{name}: {getattr(self, name)!r} must be more than 0")
