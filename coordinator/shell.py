"""The shell around the core: one turn, and two connections. The service, the simulator and the tests drive this one.

A turn: whatever the connections, the workers and the clock have brought is handled inside one database transaction.
Only after its commit are the effects performed (rule 1). The connection for control and the one for bulk are apart, so
that a flood of updates cannot starve check-ins (rule 6).

It has no thread, no socket and no clock of its own: whoever drives it says what time it is and makes the transports.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from coordinator.events import (
    BULK,
    CONTROL,
    Acknowledge,
    Arrived,
    BrokerDown,
    BrokerUp,
    Effect,
    Event,
    Publish,
    Published,
    Subscribe,
    Tick,
    Unsubscribe,
)
from coordinator.router import Coordinator
from coordinator.store import Store
from edge_sdk.errors import ConfigurationError, ConnectionUnavailable, EdgeFedError
from edge_sdk.mqtt import Connected, Delivery, Disconnected, Subscribed, Transport, TransportEvent, Will
from edge_sdk.mqtt import Published as TransportPublished
from edge_sdk.mqtt.loop import Backoff

__all__ = ["Connect", "Shell"]

logger = logging.getLogger(__name__)

RECONNECT_SECONDS: Final = 0.5
RECONNECT_SECONDS_MAX: Final = 30.0
STEADY_SECONDS: Final = 10.0
"""A connection that was shorter does not make the pauses before the next ones short again."""
TURN_EVENTS_MAX: Final = 512

Connect = Callable[[str, Callable[[TransportEvent], None], Will | None], Transport]
"""Makes the transport of a channel, given where its events go and its last will."""


@dataclass(slots=True)
class _Channel:
    """One connection, and when to try it again."""

    transport: Transport
    backoff: Backoff
    due: float | None
    up: bool = False
    hears: bool = False
    since: float = 0.0


class Shell:
    """Joins a core with its database and its connections.

    Args:
        core: The coordinator.
        store: Its open database.
        connect: Makes the transports.
        clock: Monotonic time in seconds.
        rng: For jitter.
        on_effect: Told of each effect before it is performed; what concerns no connection is performed there.
        reach: Called with the name of each place where a power cut matters; for the simulator.
    """

    def __init__(
        self,
        core: Coordinator,
        store: Store,
        connect: Connect,
        *,
        clock: Callable[[], float],
        rng: np.random.Generator,
        on_effect: Callable[[Effect], None] = lambda effect: None,
        reach: Callable[[str], None] = lambda point: None,
    ) -> None:
        self.core = core
        self._store = store
        self._connect = connect
        self._clock = clock
        self._rng = rng
        self._on_effect = on_effect
        self._reach = reach
        self._inbox: deque[Event] = deque()
        self._channels: dict[str, _Channel] = {}
        self._told = ""

    @property
    def waiting(self) -> bool:
        """Whether events wait for a turn."""
        return bool(self._inbox)

    @property
    def connected(self) -> bool:
        """Whether one of the connections is up."""
        return any(channel.up for channel in self._channels.values())

    def transports(self) -> list[Transport]:
        """The transports, control first."""
        return [channel.transport for channel in self._channels.values()]

    def start(self) -> None:
        """Enters where the database says, then makes the connections; they connect in the next turn."""
        now = self._clock()
        self._commit(lambda: self.core.start(now), now, open_channels=True)

    def post(self, event: Event) -> None:
        """Lets an event wait for the next turn."""
        self._inbox.append(event)

    def next_deadline(self) -> float | None:
        """When :meth:`turn` is due, if nothing comes before."""
        due = [channel.due for channel in self._channels.values()]
        return min((d for d in (self.core.next_deadline(), *due) if d is not None), default=None)

    def turn(self) -> None:
        """Handles what has come in one transaction, commits, and only then performs what follows."""
        now = self._clock()
        for channel in self._channels.values():
            if channel.due is not None and channel.due <= now:
                channel.due = None
                channel.transport.connect()
        deadline = self.core.next_deadline()
        ticking = deadline is not None and deadline <= now
        if not self._inbox and not ticking:
            return

        def handle() -> None:
            for _ in range(min(len(self._inbox), TURN_EVENTS_MAX)):
                self.core.handle(self._inbox.popleft(), now)
            if ticking:
                self.core.handle(Tick(), now)

        self._commit(handle, now)

    def say_goodbye(self) -> None:
        """``offline`` is published before a clean exit; a last will would say the same after a cut."""
        control = self._channels[CONTROL]
        if control.up and self.core.presence.entitled:
            topic, payload = self.core.will()
            control.transport.publish(topic, payload, qos=1, retain=True)
        for channel in self._channels.values():
            channel.due = None
            channel.transport.disconnect()

    def _commit(self, handle: Callable[[], None], now: float, *, open_channels: bool = False) -> None:
        with self._store.transaction():
            handle()
            self.core.end_turn(now)
            self._reach("before commit")
        self._reach("after commit")
        if open_channels:
            for name in (CONTROL, BULK):
                self._channels[name] = self._channel(name, now)
        for effect in self.core.take_effects():
            self._perform(effect)
            self._reach(f"after {type(effect).__name__}")

    def _perform(self, effect: Effect) -> None:
        self._on_effect(effect)
        match effect:
            case Publish():
                self._publish(effect)
            case Acknowledge(channel, delivery):
                self._channels[channel].transport.acknowledge(delivery)
            case Subscribe(channel, filters):
                self._channels[channel].transport.subscribe(filters)
            case Unsubscribe(channel, filters):
                self._channels[channel].transport.unsubscribe(filters)
            case _:
                pass

    def _publish(self, effect: Publish) -> None:
        try:
            self._channels[effect.channel].transport.publish(
                effect.topic,
                effect.payload,
                qos=1,
                retain=effect.retain,
                expiry_seconds=effect.expiry_seconds,
                token=effect.token,
            )
        except ConnectionUnavailable as error:
            # The broker takes messages more slowly than they come. As if lost on the way: whoever misses it asks again.
            self._dropped(effect, logging.WARNING, error)
        except ConfigurationError as error:
            # No packet of this broker is large enough: that harms who should have had it, and nobody else.
            self._dropped(effect, logging.ERROR, error)

    def _dropped(self, effect: Publish, level: int, error: EdgeFedError) -> None:
        logger.log(level, "a message was dropped: %s", error)
        if effect.token:
            self._inbox.append(Published(effect.channel, effect.token))

    def _channel(self, name: str, now: float) -> _Channel:
        will = Will(*self.core.will()) if name == CONTROL else None
        transport = self._connect(name, lambda event: self._on_transport(name, event), will)
        return _Channel(transport, Backoff(RECONNECT_SECONDS, RECONNECT_SECONDS_MAX, self._rng), due=now)

    def _on_transport(self, name: str, event: TransportEvent) -> None:
        channel = self._channels[name]
        match event:
            case Delivery(topic, payload):
                self._inbox.append(Arrived(name, topic, payload, event))
            case TransportPublished(token):
                if token:
                    self._inbox.append(Published(name, token))
            case Connected(_, packet_bytes_max, _):
                channel.up, channel.since, self._told = True, self._clock(), ""
                self._inbox.append(BrokerUp(name, packet_bytes_max))
            case Disconnected():
                self._on_disconnected(name, channel, event)
            case Subscribed(_, refused):
                if refused:
                    logger.error("broker (%s): it refused to subscribe to %s: check its ACL", name, refused)
                if not channel.hears:
                    channel.hears = True
                    if all(each.hears for each in self._channels.values()):  # only now does nothing get lost
                        logger.info("broker: connected")

    def _on_disconnected(self, name: str, channel: _Channel, event: Disconnected) -> None:
        now = self._clock()
        was_up, channel.up, channel.hears = channel.up, False, False
        if was_up:
            self._inbox.append(BrokerDown(name))
            if now - channel.since >= STEADY_SECONDS:
                channel.backoff.reset()
        if event.reason == "requested":
            return
        channel.due = now + channel.backoff.next_seconds()
        text = "" if event.error is None else str(event.error)
        if event.reason == "taken_over":
            text = "another client took over this client id: give each coordinator its own (broker.client_id)"
        if text and text != self._told:  # both connections would say the same
            self._told = text
            logger.warning("broker: %s; trying again until it works", text)
