"""An MQTT broker and its network in memory and in virtual time, with every fault on a dial.

The broker does what real ones do, measured or read in their sources, not what the standard hopes for:

* Every connection is a clean start: when it ends, the broker forgets its subscriptions, its queue and its unanswered
  messages. Inside a connection a QoS 1 message reaches a subscriber at least once, in order.
* PUBACK means that the broker has the message. It goes out when the message comes in, not when anybody gets it;
  a crash, a full queue or ``NetworkFaults.loss`` can still lose it.
* A message that several filters of one client match comes once for each of them, as mosquitto does it.
* A subscriber's unanswered messages fill a window; while it is full the rest waits, for as long as it takes.
* The last will is published when a connection ends without a goodbye, and when another connection takes it over
  (mosquitto does so for a clean start, and so does MQTT 3.1.1, section 3.1.2.5); not when the broker crashes.
* Retained messages belong to the broker, and come after SUBACK. A crash may take them.

``InMemoryTransport`` is the client's side, with the interface and the habits of ``edge_sdk.mqtt.PahoTransport``. Every
listener is called from the clock, never from inside a call to a transport. What it raises passes through to whoever
runs the clock: in a simulation a failure must not be swallowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import numpy as np

from device_sim.counters import Counters, Traffic
from device_sim.world.clock import VirtualClock
from device_sim.world.connection import Client, Connection, Packet, Window, chance_from
from device_sim.world.faults import Crash, LinkProfile, NetworkFaults, Partition
from device_sim.world.memory_transport import PUBLISH_OVERHEAD_BYTES, InMemoryTransport
from device_sim.world.subscriber_queues import SubscriberQueues
from device_sim.world.topic_tree import FilterTree, TopicTree, is_filter
from edge_sdk.errors import ConnectionRefused, ConnectionUnavailable, EdgeFedError
from edge_sdk.mqtt import DisconnectReason, Listener, Will

__all__ = [
    "Counters",
    "Crash",
    "InMemoryBroker",
    "InMemoryTransport",
    "LinkProfile",
    "NetworkFaults",
    "Partition",
    "Traffic",
]

CONNECT_BYTES: Final = 40
ACK_BYTES: Final = 4


class InMemoryBroker:
    """The broker.

    Args:
        clock: Virtual time; crashes and partitions are scheduled on it at once.
        rng: The only source of chance. One draw after another in the order of events: the same seed and the same
            clients give the same run.
        faults: What goes wrong.
    """

    def __init__(self, clock: VirtualClock, rng: np.random.Generator, faults: NetworkFaults | None = None) -> None:
        self.clock = clock
        self.faults = faults or NetworkFaults()
        self.counters = Counters()
        self.chance = chance_from(rng)
        self._salt = int(self.chance() * 2.0**53)
        self.desk = SubscriberQueues(clock, self.chance, self.faults, self.counters)
        self._sessions: dict[str, Connection] = {}
        self._connections: dict[Connection, None] = {}  # as long as either end believes in one
        self._subscriptions: FilterTree[Connection] = FilterTree()
        self._retained: TopicTree[Packet] = TopicTree()
        self._traffic: dict[str, Traffic] = {}
        self._windows: dict[str, tuple[Window, ...]] = {}
        self._back_at = -math.inf
        for crash in self.faults.crashes:
            clock.call_at(crash.at_seconds, self.crash, crash.down_seconds, crash.retained_lost)
        for partition in self.faults.partitions:
            self._schedule_partition(partition)

    # --- what a scenario asks ----------------------------------------------------------------------------------------

    def transport(
        self,
        client_id: str,
        listener: Listener,
        *,
        will: Will | None = None,
        link: LinkProfile | None = None,
        manual_ack: bool = False,
        in_flight_max: int = 20,
    ) -> InMemoryTransport:
        """A client of this broker, not yet connected.

        Args:
            client_id: MQTT client identifier; a second client with the same one takes the first one's connection over.
            listener: Gets every event, from the clock.
            will: Published by the broker when the connection ends without a goodbye.
            link: Rates and delay of the client's link; no limits by default.
            manual_ack: Deliveries are acknowledged by ``acknowledge()``, not as they come.
            in_flight_max: Unanswered messages in either direction, at most (the broker's own limits apply too).
        """
        return InMemoryTransport(
            self,
            client_id,
            listener,
            will=will,
            link=link or LinkProfile(),
            manual_ack=manual_ack,
            in_flight_max=in_flight_max,
        )

    def traffic(self, client_id: str | None = None) -> Traffic:
        """The traffic of one client over all its connections, or the sum over all clients."""
        if client_id is not None:
            return self._traffic.setdefault(client_id, Traffic())
        total = Traffic()
        for traffic in self._traffic.values():
            total = total + traffic
        return total

    def retained(self, topic: str) -> bytes | None:
        """The retained payload of a topic, if there is one that has not expired."""
        packet = self._retained.get(topic)
        return packet[1] if packet is not None and packet[4] > self.clock.now else None

    def retained_topics(self, pattern: str = "#") -> list[str]:
        """The topics that a filter matches and that hold a retained message."""
        return [topic for topic, _ in self._retained.match(pattern)]

    @property
    def connected_ids(self) -> tuple[str, ...]:
        """The client ids that the broker believes to be connected."""
        return tuple(self._sessions)

    def cut(self, client_id: str) -> bool:
        """Cut a client's connection without warning, now; returns whether there was one."""
        connection = self._sessions.get(client_id)
        if connection is None:
            return False
        self._drop(connection)
        return True

    def crash(self, down_seconds: float = 5.0, retained_lost: bool = True) -> None:
        """Die now, without a word, and take connections again after ``down_seconds``."""
        now = self.clock.now
        self.counters.crashes += 1
        self._back_at = max(self._back_at, now + down_seconds)
        error = ConnectionUnavailable("the connection to the simulated broker was cut (the broker died)")
        for connection in list(self._sessions.values()):
            # What the broker had sent is still on the wire and arrives first.
            self._tell_closed(connection, "lost", error)
            self._end_session(connection, will=False)
        if retained_lost:
            self._retained.clear()

    # --- packets from clients ----------------------------------------------------------------------------------------

    def open(self, transport: Client) -> Connection:
        """A client dials; the transport calls this."""
        clock, faults, client_id = self.clock, self.faults, transport.client_id
        windows = self._windows.get(client_id)
        if windows is None:
            affected = [p for p in faults.partitions if p.affects(client_id, self._salt)]
            windows = self._windows[client_id] = _merged((p.start_seconds, p.end_seconds) for p in affected)
        # Only MQTT 5 lets a client say how many unanswered messages it wants.
        window = min(faults.inflight_max, transport.in_flight_max) if faults.protocol == "5" else faults.inflight_max
        connection = Connection(transport, faults, windows, window, self.chance)
        self._connections[connection] = None
        connection.connect_timer = clock.call_later(faults.connect_seconds_max, self._on_connect_timeout, connection)
        clock.post_at(connection.up.arrival(clock.now, CONNECT_BYTES), self._on_connect, connection)
        return connection

    def on_publish(self, connection: Connection, packet: Packet, retain: bool, token: int) -> None:
        """A PUBLISH comes in: keep it if it is to be retained, pass it on, answer it."""
        if not connection.broker_open or (not connection.client_open and self.clock.now > connection.deaf_after):
            return
        self._pass_on(packet, retain)
        if packet[2]:
            clock = self.clock
            puback_at = connection.down.arrival(clock.now, ACK_BYTES)
            clock.post_at(puback_at, connection.transport.on_puback, connection, token)

    def on_subscribe(self, connection: Connection, filters: tuple[str, ...], token: int) -> None:
        """A SUBSCRIBE comes in: SUBACK, then the retained messages of each filter."""
        if not self._hears(connection):
            return
        now = self.clock.now
        refused = tuple(pattern for pattern in filters if not is_filter(pattern) or pattern.startswith("$share/"))
        granted = [pattern for pattern in filters if pattern not in refused]
        for pattern in granted:
            connection.filters[pattern] = None
            self._subscriptions.add(pattern, connection)
        suback_at = connection.down.arrival(now, ACK_BYTES + len(filters))
        self.clock.post_at(suback_at, connection.transport.on_suback, connection, token, refused)
        for pattern in granted:
            for topic, (_, payload, qos, _, expires_at, size_bytes) in self._retained.match(pattern):
                if expires_at > now:
                    self.desk.deliver((connection,), (topic, payload, qos, True, expires_at, size_bytes))
                else:
                    self._retained.discard(topic)

    def on_unsubscribe(self, connection: Connection, filters: tuple[str, ...]) -> None:
        """An UNSUBSCRIBE comes in."""
        if self._hears(connection):
            for pattern in filters:
                if pattern in connection.filters:
                    del connection.filters[pattern]
                    self._subscriptions.discard(pattern, connection)

    def on_goodbye(self, connection: Connection, will: bool) -> None:
        """A DISCONNECT comes in."""
        if self._hears(connection):
            self._end_session(connection, will=will)
        self._forget(connection)

    def on_vanish(self, connection: Connection) -> None:
        """The client's machine went dark: the broker finds out when the keepalive runs out."""
        self._cut_off(connection)
        self.clock.call_later(1.5 * self.faults.keepalive_seconds, self._end_session, connection, True)

    # --- connections -------------------------------------------------------------------------------------------------

    def _on_connect(self, connection: Connection) -> None:
        if not connection.client_open:
            return
        clock = self.clock
        if clock.now < self._back_at:
            error = ConnectionUnavailable(
                "nothing listens at the simulated broker (it has crashed and is not back yet)"
            )
            self._tell_closed(connection, "unavailable", error)
            return
        earlier = self._sessions.get(connection.client_id)
        if earlier is not None:
            self._take_over(earlier)
        self.counters.connections += 1
        connection.broker_open = True
        self._sessions[connection.client_id] = connection
        clock.post_at(connection.down.arrival(clock.now, ACK_BYTES), connection.transport.on_connack, connection)
        drops_per_hour = self.faults.disconnects_per_hour * connection.transport.link.disconnect_factor
        if drops_per_hour > 0:
            lifetime_seconds = -math.log(1.0 - self.chance()) * 3600.0 / drops_per_hour
            connection.drop_timer = clock.call_later(lifetime_seconds, self._drop, connection)

    def _take_over(self, earlier: Connection) -> None:
        self.counters.takeovers += 1
        reason: DisconnectReason = "lost"
        error: EdgeFedError = ConnectionUnavailable("the connection to the simulated broker was cut")
        if self.faults.protocol == "5":
            reason = "taken_over"
            error = ConnectionRefused(f"another client came with the client identifier {earlier.client_id!r}")
        self._tell_closed(earlier, reason, error)
        self._end_session(earlier, will=True)

    def _on_connect_timeout(self, connection: Connection) -> None:
        if connection.client_open and not connection.accepted:
            self._cut_off(connection)
            if connection.broker_open:  # CONNACK is under way to somebody who has stopped listening
                self.clock.call_later(1.5 * self.faults.keepalive_seconds, self._end_session, connection, True)
            error = ConnectionUnavailable(
                f"no answer from the simulated broker within {self.faults.connect_seconds_max:g} s"
            )
            self._end_client(connection, "unavailable", error)

    def _drop(self, connection: Connection) -> None:
        """The link breaks: the client notices at once, the broker when it notices."""
        if not connection.broker_open:
            return
        self.counters.drops += 1
        self._cut_off(connection)
        self.clock.call_later(self.chance() * self.faults.notice_seconds_max, self._end_session, connection, True)
        reason: DisconnectReason = "lost" if connection.accepted else "unavailable"
        self._end_client(connection, reason, ConnectionUnavailable("the connection to the simulated broker was cut"))

    def _cut_off(self, connection: Connection) -> None:
        """From now on only what has left the client already can reach the broker."""
        connection.deaf_after = self.clock.now + connection.delay_seconds_max

    def _tell_closed(self, connection: Connection, reason: DisconnectReason, error: EdgeFedError) -> None:
        arrival = connection.down.arrival(self.clock.now, ACK_BYTES)
        self.clock.post_at(arrival, self._end_client, connection, reason, error)

    def _end_client(self, connection: Connection, reason: DisconnectReason, error: EdgeFedError) -> None:
        """The client's end learns that the connection is gone."""
        if connection.client_open:
            connection.transport.on_closed(connection, reason, error)
            self._forget(connection)

    def _end_session(self, connection: Connection, will: bool) -> None:
        """The broker's end of the connection goes, and with it all that the broker knew of the client."""
        if not connection.broker_open:
            self._forget(connection)
            return
        connection.broker_open = False
        del self._sessions[connection.client_id]
        for pattern in connection.filters:
            self._subscriptions.discard(pattern, connection)
        connection.filters.clear()
        connection.queue.clear()
        connection.released.clear()
        if connection.drop_timer is not None:
            self.clock.cancel(connection.drop_timer)
        last_will = connection.transport.will
        self._forget(connection)
        if will and last_will is not None:
            self.counters.wills += 1
            size = len(last_will.topic) + len(last_will.payload) + PUBLISH_OVERHEAD_BYTES
            self._pass_on((last_will.topic, last_will.payload, 1, False, math.inf, size), last_will.retain)

    def _forget(self, connection: Connection) -> None:
        if not connection.client_open and not connection.broker_open:
            self._connections.pop(connection, None)

    def _hears(self, connection: Connection) -> bool:
        return connection.broker_open and (connection.client_open or self.clock.now <= connection.deaf_after)

    def _schedule_partition(self, partition: Partition) -> None:
        broker_gives_up_at = partition.start_seconds + 1.5 * self.faults.keepalive_seconds
        if broker_gives_up_at < partition.end_seconds:
            client_gives_up_at = partition.start_seconds + 2.0 * self.faults.keepalive_seconds
            self.clock.call_at(broker_gives_up_at, self._end_cut_off_sessions, partition)
            self.clock.call_at(min(client_gives_up_at, partition.end_seconds), self._end_cut_off_clients, partition)

    def _end_cut_off_sessions(self, partition: Partition) -> None:
        for connection in list(self._sessions.values()):
            if partition.affects(connection.client_id, self._salt):
                self.counters.drops += 1
                self._end_session(connection, will=True)

    def _end_cut_off_clients(self, partition: Partition) -> None:
        error = ConnectionUnavailable("the simulated broker fell silent (the network is partitioned)")
        for connection in list(self._connections):
            half_open = connection.client_open and connection.accepted and not connection.broker_open
            if half_open and partition.affects(connection.client_id, self._salt):
                self._end_client(connection, "keepalive", error)

    # --- messages to clients -----------------------------------------------------------------------------------------

    def _pass_on(self, packet: Packet, retain: bool) -> None:
        topic, payload, _, _, _, _ = packet
        if retain:
            if payload:
                self._retained.set(topic, packet)
            else:
                self._retained.discard(topic)
        self.desk.deliver(self._subscriptions.match(topic), packet)


def _merged(windows: Iterable[Window]) -> tuple[Window, ...]:
    """The same times as windows that do not touch each other, ascending."""
    merged: list[Window] = []
    for start, end in sorted(windows):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return tuple(merged)
