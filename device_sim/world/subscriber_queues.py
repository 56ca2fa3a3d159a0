"""How a broker gets a message to one subscriber: chance, window, queue, wire."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from device_sim.counters import Counters
from device_sim.world.clock import VirtualClock
from device_sim.world.connection import Chance, Connection, Packet
from device_sim.world.faults import NetworkFaults

__all__ = ["SubscriberQueues"]

ACK_BYTES = 4


class SubscriberQueues:
    """The part of the broker that sends messages out.

    A subscriber's unanswered messages fill a window; while it is full, the rest queues. An answer on its way back is
    under way for the longest time and needs no event of its own: the time of its arrival is noted, and looked at when
    there is something to send.
    """

    __slots__ = ("_chance", "_clock", "_counters", "_faults", "_mishaps", "numbers")

    def __init__(self, clock: VirtualClock, chance: Chance, faults: NetworkFaults, counters: Counters) -> None:
        self._clock = clock
        self._chance = chance
        self._faults = faults
        self._mishaps = faults.loss > 0 or faults.duplicate > 0 or faults.reorder > 0
        self._counters = counters
        self.numbers: Iterator[int] = itertools.count(1)

    def deliver(self, subscribers: Iterable[Connection], packet: Packet) -> None:
        """Send a copy of a message to each subscriber; copies may get lost or doubled here."""
        for connection in subscribers:
            if not (self._mishaps and self._lose(connection, packet)):
                self._enqueue(connection, packet)

    def acknowledge(self, connection: Connection) -> None:
        """The client sends a PUBACK; the place in the window is free when it arrives."""
        connection.released.append(self._clock.now + connection.delay_seconds_max)
        if connection.queue:
            self._schedule_pump(connection)

    def _lose(self, connection: Connection, packet: Packet) -> bool:
        faults = self._faults
        if faults.loss > 0 and self._chance() < faults.loss:
            self._counters.lost += 1
            return True
        if faults.duplicate > 0 and self._chance() < faults.duplicate:
            self._counters.duplicated += 1
            again_at = self._clock.now + self._chance() * faults.reorder_seconds_max
            self._clock.post_at(again_at, self._enqueue, connection, packet)
        return False

    def _enqueue(self, connection: Connection, packet: Packet) -> None:
        if not packet[2]:
            self._send(connection, packet)
        elif not connection.queue and (connection.inflight < connection.window or self._make_room(connection)):
            connection.inflight += 1
            self._send(connection, packet)
        elif 0 < self._faults.queued_messages_max <= len(connection.queue):
            self._counters.overflowed += 1
        else:
            connection.queue.append(packet)
            self._schedule_pump(connection)

    def _make_room(self, connection: Connection) -> bool:
        """Take note of the answers that have come in; whether the window has room."""
        released, now = connection.released, self._clock.now
        while released and released[0] <= now:
            released.popleft()
            connection.inflight -= 1
        return connection.inflight < connection.window

    def _send(self, connection: Connection, packet: Packet) -> None:
        if not connection.broker_open:
            return
        clock = self._clock
        arrival = connection.down.arrival(clock.now, packet[5])
        if self._mishaps and self._chance() < self._faults.reorder:
            self._counters.reordered += 1
            arrival += self._chance() * self._faults.reorder_seconds_max
        clock.post_at(arrival, connection.transport.on_delivery, connection, packet)

    def _schedule_pump(self, connection: Connection) -> None:
        if connection.released and not connection.pumping:
            connection.pumping = True
            self._clock.post_at(max(self._clock.now, connection.released[0]), self._pump, connection)

    def _pump(self, connection: Connection) -> None:
        """Room in the window: send what waits."""
        connection.pumping = False
        while connection.queue and self._make_room(connection):
            packet = connection.queue.popleft()
            if packet[4] > self._clock.now:
                connection.inflight += 1
                self._send(connection, packet)
            else:
                self._counters.expired += 1
        if connection.queue:
            self._schedule_pump(connection)
