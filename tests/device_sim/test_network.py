"""The in-memory broker: what it promises, what it breaks on request, and that a seed decides all of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_sim.world.clock import VirtualClock
from device_sim.world.network import Crash, InMemoryBroker, LinkProfile, NetworkFaults, Partition, Traffic
from edge_sdk.errors import ConfigurationError, ConnectionRefused, ConnectionUnavailable
from edge_sdk.mqtt import Connected, Delivery, Disconnected, Published, Subscribed, Transport, TransportEvent, Will

CALM = NetworkFaults(delay_seconds_min=0.01, delay_seconds_max=0.01)


class Client:
    """A client that writes down what it is told and when; ``react`` may do something about it."""

    def __init__(self, broker: InMemoryBroker, client_id: str, **options: Any) -> None:
        self.clock = broker.clock
        self._calm_seconds = 1 + 3 * broker.faults.delay_seconds_max
        self.events: list[tuple[float, TransportEvent]] = []
        self.react: Callable[[TransportEvent], None] | None = None
        self.memory = broker.transport(client_id, self._listen, **options)
        self.transport: Transport = self.memory

    def _listen(self, event: TransportEvent) -> None:
        self.events.append((self.clock.now, event))
        if self.react is not None:
            self.react(event)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for _, event in self.events if isinstance(event, kind)]

    @property
    def payloads(self) -> list[bytes]:
        return [event.payload for event in self.of(Delivery)]

    def join(self, *filters: str) -> Client:
        """Connect, subscribe, and let the network come to rest."""
        self.transport.connect()
        rest(self.clock, self._calm_seconds)
        self.transport.subscribe(filters)
        rest(self.clock, self._calm_seconds)
        return self

    def acknowledge(self, event: TransportEvent) -> None:
        if isinstance(event, Delivery):
            self.transport.acknowledge(event)


def world(faults: NetworkFaults = CALM, seed: int = 0) -> tuple[VirtualClock, InMemoryBroker]:
    clock = VirtualClock()
    return clock, InMemoryBroker(clock, np.random.default_rng(seed), faults)


def rest(clock: VirtualClock, seconds: float = 2.0) -> None:
    clock.run(until=clock.now + seconds)


# --- delivery --------------------------------------------------------------------------------------------------------

PLAN = st.lists(
    st.tuples(st.integers(0, 2), st.floats(0, 5), st.integers(0, 3000), st.integers(0, 1)), min_size=1, max_size=60
)


def publish_plan(
    plan: list[tuple[int, float, int, int]], faults: NetworkFaults, seed: int, **options: Any
) -> tuple[Client, list[list[bytes]], list[Client]]:
    """Three publishers follow a plan of (who, when, size, QoS); returns the subscriber, what each sent, the three."""
    clock, broker = world(faults, seed)
    link = LinkProfile(uplink_bytes_per_second=5000, downlink_bytes_per_second=20_000)
    subscriber = Client(broker, "sub", link=link, **options)
    subscriber.join("up/+")
    publishers = [Client(broker, f"p{i}", link=link).join() for i in range(3)]
    sent: list[list[bytes]] = [[], [], []]
    start = clock.now

    def publish(who: int, number: int, size: int, qos: int) -> None:
        payload = b"%d/%d/" % (who, number) + b"x" * size
        sent[who].append(payload)
        publishers[who].transport.publish(f"up/{who}", payload, qos=qos, token=number)

    for number, (who, when, size, qos) in enumerate(plan):
        clock.post_at(start + when, publish, who, number, size, qos)
    clock.run()
    return subscriber, sent, publishers


@settings(deadline=None, max_examples=40)
@given(PLAN, st.integers(0, 2**32), st.floats(0, 1))
def test_inside_a_connection_every_message_comes_once_and_in_order(
    plan: list[tuple[int, float, int, int]], seed: int, delay_seconds_max: float
) -> None:
    subscriber, sent, publishers = publish_plan(
        plan, NetworkFaults(delay_seconds_min=0, delay_seconds_max=delay_seconds_max), seed
    )
    for who in range(3):
        assert [p for p in subscriber.payloads if p.startswith(b"%d/" % who)] == sent[who]
        tokens = [int(p.split(b"/")[1]) for p in sent[who]]
        assert sorted(e.token for e in publishers[who].of(Published)) == sorted(tokens)


@settings(deadline=None, max_examples=40)
@given(PLAN, st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 0.5), st.booleans())
def test_duplicates_and_reordering_lose_nothing(
    plan: list[tuple[int, float, int, int]], seed: int, duplicate: float, reorder: float, manual: bool
) -> None:
    plan = [(who, when, size, 1) for who, when, size, _ in plan]
    faults = NetworkFaults(duplicate=duplicate, reorder=reorder, inflight_max=100)
    subscriber, sent, _ = publish_plan(plan, faults, seed, manual_ack=manual, in_flight_max=200)
    everything = [payload for payloads in sent for payload in payloads]
    assert set(subscriber.payloads) == set(everything)
    counters = subscriber.memory._broker.counters
    assert len(subscriber.payloads) == len(everything) + counters.duplicated
    if counters.reordered == 0:
        firsts = list(dict.fromkeys(subscriber.payloads))
        for who in range(3):
            assert [p for p in firsts if p.startswith(b"%d/" % who)] == sent[who]


@settings(deadline=None, max_examples=40)
@given(PLAN, st.integers(0, 2**32), st.floats(0, 1))
def test_a_lost_message_was_acknowledged_and_is_counted(
    plan: list[tuple[int, float, int, int]], seed: int, loss: float
) -> None:
    subscriber, sent, publishers = publish_plan(plan, NetworkFaults(loss=loss), seed)
    assert sum(len(client.of(Published)) for client in publishers) == len(plan)
    assert len(subscriber.payloads) + subscriber.memory._broker.counters.lost == len(plan)
    for who in range(3):
        got = [p for p in subscriber.payloads if p.startswith(b"%d/" % who)]
        assert got == [p for p in sent[who] if p in set(got)]


def test_a_message_comes_once_for_each_filter_and_to_its_publisher_too() -> None:
    clock, broker = world()
    client = Client(broker, "a").join("x/+", "x/#", "x/y")
    client.transport.publish("x/y", b"1")
    client.transport.publish("z", b"2")
    rest(clock)
    assert client.payloads == [b"1", b"1", b"1"]
    client.transport.unsubscribe(["x/+", "x/#"])
    rest(clock)
    client.transport.publish("x/y", b"3")
    client.transport.publish("x/z", b"4")
    rest(clock)
    assert client.payloads == [b"1", b"1", b"1", b"3"]


# --- acknowledgements and windows ------------------------------------------------------------------------------------


def test_puback_comes_when_the_broker_has_the_message_whoever_gets_it() -> None:
    clock, broker = world()
    sender = Client(broker, "s").join()
    sender.transport.publish("nobody/listens", b"x", token=7)
    assert sender.of(Published) == []
    rest(clock)
    assert sender.of(Published) == [Published(7)]


def test_deliveries_wait_for_acknowledgements_with_a_full_window() -> None:
    clock, broker = world(NetworkFaults(inflight_max=3))
    slow = Client(broker, "slow", manual_ack=True).join("t")
    sender = Client(broker, "s").join()
    for i in range(10):
        sender.transport.publish("t", b"%d" % i, token=i)
    rest(clock, 600)
    assert slow.payloads == [b"0", b"1", b"2"]
    assert len(sender.of(Published)) == 10
    first = slow.of(Delivery)[0]
    slow.transport.acknowledge(first)
    slow.transport.acknowledge(first)  # a second PUBACK frees nothing
    rest(clock)
    assert slow.payloads == [b"0", b"1", b"2", b"3"]
    slow.react = slow.acknowledge
    for delivery in slow.of(Delivery):
        slow.transport.acknowledge(delivery)
    rest(clock)
    assert slow.payloads == [b"%d" % i for i in range(10)]


def test_a_client_narrows_its_window_on_mqtt_5_only() -> None:
    for protocol, expected in (("5", 2), ("3.1.1", 5)):
        clock, broker = world(NetworkFaults(inflight_max=5, protocol=protocol))  # type: ignore[arg-type]
        slow = Client(broker, "slow", manual_ack=True, in_flight_max=2).join("t")
        sender = Client(broker, "s").join()
        for i in range(10):
            sender.transport.publish("t", b"%d" % i)
        rest(clock)
        assert len(slow.payloads) == expected


def test_an_acknowledgement_of_a_past_connection_does_nothing() -> None:
    clock, broker = world(NetworkFaults(inflight_max=1))
    slow = Client(broker, "slow", manual_ack=True).join("t")
    sender = Client(broker, "s").join()
    sender.transport.publish("t", b"old")
    rest(clock)
    (old,) = slow.of(Delivery)
    broker.cut("slow")
    slow.join("t")
    for payload in (b"1", b"2"):
        sender.transport.publish("t", payload)
    rest(clock)
    slow.transport.acknowledge(old)
    rest(clock)
    assert slow.payloads == [b"old", b"1"]


def test_a_full_queue_drops_what_was_acknowledged() -> None:
    clock, broker = world(NetworkFaults(inflight_max=2, queued_messages_max=3))
    slow = Client(broker, "slow", manual_ack=True).join("t")
    sender = Client(broker, "s").join()
    for i in range(10):
        sender.transport.publish("t", b"%d" % i)
    rest(clock)
    assert len(sender.of(Published)) == 10
    assert broker.counters.overflowed == 5
    slow.react = slow.acknowledge
    for delivery in slow.of(Delivery):
        slow.transport.acknowledge(delivery)
    rest(clock)
    assert slow.payloads == [b"0", b"1", b"2", b"3", b"4"]


def test_a_publisher_has_no_more_under_way_than_the_broker_allows() -> None:
    clock, broker = world(NetworkFaults(delay_seconds_min=1, delay_seconds_max=1, receive_max=4))
    sender = Client(broker, "s")
    sender.transport.connect()
    rest(clock, 5)
    for i in range(10):
        sender.transport.publish("t", b"x", token=i)
    assert (sender.memory.waiting, broker.traffic("s").messages_up) == (10, 4)
    rest(clock, 2.5)
    assert [event.token for event in sender.of(Published)] == [0, 1, 2, 3]
    assert broker.traffic("s").messages_up == 8
    rest(clock, 10)
    assert [event.token for event in sender.of(Published)] == list(range(10))
    assert sender.memory.waiting == 0


def test_qos_0_needs_no_answers() -> None:
    clock, broker = world(NetworkFaults(inflight_max=1))
    slow = Client(broker, "slow", manual_ack=True).join("t")
    sender = Client(broker, "s").join()
    for i in range(5):
        sender.transport.publish("t", b"%d" % i, qos=0, token=i)
    rest(clock)
    assert [(event.payload, event.acknowledgement) for event in slow.of(Delivery)] == [(b"%d" % i, 0) for i in range(5)]
    assert [event.token for event in sender.of(Published)] == list(range(5))


# --- retained messages -----------------------------------------------------------------------------------------------


def test_a_retained_message_waits_for_subscribers_and_an_empty_one_ends_it() -> None:
    clock, broker = world()
    live = Client(broker, "live").join("status/+")
    sender = Client(broker, "s").join()
    sender.transport.publish("status/a", b"1", retain=True)
    sender.transport.publish("status/a", b"2", retain=True)
    sender.transport.publish("status/b", b"not kept")
    rest(clock)
    assert [(e.payload, e.retained) for e in live.of(Delivery)] == [(b"1", False), (b"2", False), (b"not kept", False)]
    late = Client(broker, "late").join("status/#")
    assert [(e.topic, e.payload, e.retained) for e in late.of(Delivery)] == [("status/a", b"2", True)]
    kinds = [type(event) for _, event in late.events]
    assert kinds == [Connected, Subscribed, Delivery]
    sender.transport.publish("status/a", b"", retain=True)
    rest(clock)
    assert late.payloads == [b"2", b""]
    assert broker.retained("status/a") is None
    assert Client(broker, "later").join("status/#").payloads == []


def test_a_second_subscribe_brings_the_retained_messages_again() -> None:
    clock, broker = world()
    client = Client(broker, "a").join()
    client.transport.publish("t", b"x", retain=True)
    client.transport.subscribe(["t"], token=1)
    rest(clock)
    client.transport.subscribe(["t"], token=2)
    rest(clock)
    assert client.payloads == [b"x", b"x"]
    assert client.of(Subscribed) == [Subscribed(1, ()), Subscribed(2, ())]


@pytest.mark.parametrize(("protocol", "expected"), [("5", []), ("3.1.1", [b"old", b"old"])])
def test_messages_expire_on_mqtt_5_only(protocol: Any, expected: list[bytes]) -> None:
    clock, broker = world(NetworkFaults(protocol=protocol, inflight_max=1))
    slow = Client(broker, "slow", manual_ack=True).join("t")
    sender = Client(broker, "s").join()
    sender.transport.publish("t", b"blocks the window")
    sender.transport.publish("t", b"old", expiry_seconds=10, retain=True)
    rest(clock, 20)
    slow.transport.acknowledge(slow.of(Delivery)[0])
    late = Client(broker, "late").join("t")
    assert [p for p in slow.payloads + late.payloads if p == b"old"] == expected
    assert (broker.retained("t") is None) == (protocol == "5")


# --- the end of connections ------------------------------------------------------------------------------------------

WILL = Will("status/a", b"offline")


def watched(faults: NetworkFaults = CALM) -> tuple[VirtualClock, InMemoryBroker, Client, Client]:
    clock, broker = world(faults)
    watcher = Client(broker, "watcher").join("status/+")
    return clock, broker, watcher, Client(broker, "a", will=WILL).join("t")


def test_a_goodbye_publishes_no_will_unless_asked() -> None:
    clock, broker, watcher, client = watched()
    client.transport.publish("status/a", b"leaving")
    client.transport.disconnect()
    client.transport.connect()  # without effect until the end of the old connection has been told
    rest(clock)
    assert client.of(Disconnected) == [Disconnected("requested", None)]
    assert watcher.payloads == [b"leaving"]
    assert broker.connected_ids == ("watcher",)
    client.join()
    client.transport.disconnect(will=True)
    rest(clock)
    assert watcher.payloads == [b"leaving", b"offline"]
    assert broker.retained("status/a") == b"offline"


def test_a_cut_connection_publishes_the_will_when_the_broker_notices() -> None:
    clock, broker, watcher, client = watched(NetworkFaults(notice_seconds_max=40))
    assert broker.cut("a")
    start = clock.now
    assert [event.reason for event in client.of(Disconnected)] == ["lost"]
    assert isinstance(client.of(Disconnected)[0].error, ConnectionUnavailable)
    rest(clock, 41)
    assert watcher.payloads == [b"offline"]
    assert 1 < watcher.events[-1][0] - start < 41
    assert not broker.cut("a")
    assert not broker.cut("stranger")


def test_a_device_that_loses_power_hears_nothing_and_is_noticed_by_keepalive() -> None:
    clock, _, watcher, client = watched()
    heard = len(client.events)
    client.memory.vanish()
    rest(clock, 89)
    assert watcher.payloads == []
    rest(clock, 2)
    assert watcher.payloads == [b"offline"]
    assert len(client.events) == heard
    client.join()
    assert client.memory.connected


def test_a_takeover_ends_the_earlier_connection_and_publishes_its_will() -> None:
    clock, broker, watcher, client = watched()
    second = Client(broker, "a", will=WILL).join("t")
    assert [(e.reason, type(e.error)) for e in client.of(Disconnected)] == [("taken_over", ConnectionRefused)]
    assert watcher.payloads == [b"offline"]
    watcher.transport.publish("t", b"x")
    rest(clock)
    assert (second.payloads, client.payloads) == ([b"x"], [])
    assert broker.counters.takeovers == 1


def test_a_reconnect_takes_over_the_own_half_open_session() -> None:
    clock, broker, watcher, client = watched(NetworkFaults(notice_seconds_max=3600))
    broker.cut("a")
    client.join("t")
    assert watcher.payloads == [b"offline"]
    assert [event.reason for event in client.of(Disconnected)] == ["lost"]
    assert client.memory.connected
    rest(clock, 4000)
    assert broker.connected_ids == ("watcher", "a")
    assert watcher.payloads == [b"offline"]


def test_a_new_connection_starts_clean() -> None:
    clock, broker, watcher, client = watched()
    broker.cut("a")
    watcher.transport.publish("t", b"while away")
    client.join()
    watcher.transport.publish("t", b"not subscribed yet")
    rest(clock)
    assert client.payloads == []
    client.transport.subscribe(["t"])
    rest(clock)
    watcher.transport.publish("t", b"now")
    rest(clock)
    assert client.payloads == [b"now"]


def test_without_a_connection_everything_is_dropped() -> None:
    clock, broker = world()
    client = Client(broker, "a")
    client.transport.publish("t", b"x", retain=True)
    client.transport.subscribe(["t"])
    client.transport.unsubscribe(["t"])
    client.transport.acknowledge(Delivery("t", b"", False, 1))
    client.transport.disconnect()
    client.memory.vanish()
    rest(clock)
    assert client.events == []
    assert broker.traffic() == Traffic()


def test_what_had_not_left_a_slow_link_when_it_was_cut_never_arrives() -> None:
    clock, broker = world(NetworkFaults(notice_seconds_max=1000))
    watcher = Client(broker, "w").join("t")
    slow = Client(broker, "slow", link=LinkProfile(uplink_bytes_per_second=100)).join()
    slow.transport.publish("t", b"x" * 50)
    slow.transport.publish("t", b"y" * 5000)
    rest(clock, 2)
    broker.cut("slow")
    rest(clock, 200)
    assert watcher.payloads == [b"x" * 50]


def test_connections_drop_at_the_given_rate_but_not_where_the_link_is_exempt() -> None:
    clock, broker = world(NetworkFaults(disconnects_per_hour=2))
    clients = [Client(broker, f"c{i}") for i in range(100)]
    safe = Client(broker, "safe", link=LinkProfile(disconnect_factor=0)).join()
    for client in clients:

        def again(event: TransportEvent, client: Client = client) -> None:
            if isinstance(event, Disconnected):
                client.transport.connect()

        client.react = again
        client.transport.connect()
    rest(clock, 3600 * 5)
    assert broker.counters.drops == pytest.approx(1000, rel=0.12)
    assert broker.counters.connections == broker.counters.drops + 101
    assert safe.of(Disconnected) == []
    assert clock.pending_count == 100  # one future drop for each connection; the cancelled ones are gone


# --- crashes and partitions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retained_lost", [True, False])
def test_a_crash_drops_all_connections_and_what_was_acknowledged(retained_lost: bool) -> None:
    faults = NetworkFaults(crashes=(Crash(100, down_seconds=30, retained_lost=retained_lost),), inflight_max=1)
    clock, broker, _, client = watched(faults)
    slow = Client(broker, "slow", manual_ack=True).join("t")
    client.transport.publish("status/b", b"kept?", retain=True)
    for i in range(3):
        client.transport.publish("t", b"%d" % i, token=i)
    clock.run(until=101)
    assert [event.token for event in client.of(Published)] == [0, 0, 1, 2]
    assert slow.payloads == [b"0"]
    assert [event.reason for event in slow.of(Disconnected)] == ["lost"]
    assert broker.connected_ids == ()
    slow.join()
    assert [event.reason for event in slow.of(Disconnected)] == ["lost", "unavailable"]
    clock.run(until=131)
    late = Client(broker, "late").join("#")
    assert late.payloads == ([] if retained_lost else [b"kept?"])  # and no last will
    assert slow.payloads == [b"0"]


def test_what_was_on_the_wire_arrives_before_the_news_of_a_crash() -> None:
    clock, broker = world(NetworkFaults(delay_seconds_min=1, delay_seconds_max=2))
    client = Client(broker, "a").join()
    rest(clock, 10)
    client.transport.publish("t", b"x", token=5)
    while not broker.clock.run(until=clock.now + 0.01):
        pass  # until the broker has the message
    broker.crash()
    rest(clock, 10)
    assert [type(event) for _, event in client.events][-2:] == [Published, Disconnected]


def test_a_short_partition_only_delays() -> None:
    faults = NetworkFaults(partitions=(Partition(10, 90, clients=frozenset({"a"})),))
    clock, broker = world(faults)
    client, other = Client(broker, "a").join("t"), Client(broker, "b").join("t")
    clock.run(until=20)
    other.transport.publish("t", b"x")
    client.transport.publish("t", b"y", token=1)
    clock.run(until=89)
    assert (client.payloads, other.payloads) == ([], [b"x"])
    clock.run(until=91)
    assert (sorted(client.payloads), other.payloads) == ([b"x", b"y"], [b"x", b"y"])
    assert client.of(Published) == [Published(1)]
    assert client.of(Disconnected) == []


def test_a_long_partition_ends_the_connections_of_those_it_cuts_off() -> None:
    faults = NetworkFaults(partitions=(Partition(10, 1000, clients=frozenset({"a"})),), keepalive_seconds=60)
    clock, broker, watcher, client = watched(faults)
    clock.run(until=20)
    client.transport.publish("status/x", b"never arrives")
    clock.run(until=99)
    assert list(broker.connected_ids) == ["watcher", "a"]
    clock.run(until=101)
    assert list(broker.connected_ids) == ["watcher"]
    assert watcher.payloads == [b"offline"]
    assert client.of(Disconnected) == []
    clock.run(until=131)
    assert [event.reason for event in client.of(Disconnected)] == ["keepalive"]
    client.transport.connect()
    clock.run(until=200)
    assert [event.reason for event in client.of(Disconnected)] == ["keepalive", "unavailable"]
    clock.run(until=1001)
    client.join("t")
    assert client.memory.connected
    assert watcher.payloads == [b"offline"]


@given(st.integers(0, 2**32), st.floats(0, 1))
def test_a_partition_cuts_off_a_share_of_the_clients_drawn_by_the_seed(seed: int, share: float) -> None:
    partition = Partition(0, 1, share=share)
    cut_off = [partition.affects(f"dev-{i}", seed) for i in range(400)]
    assert abs(sum(cut_off) - 400 * share) < 60
    assert cut_off == [partition.affects(f"dev-{i}", seed) for i in range(400)]


# --- links -----------------------------------------------------------------------------------------------------------


def test_big_messages_take_the_time_of_both_links() -> None:
    clock, broker = world(NetworkFaults(delay_seconds_min=0, delay_seconds_max=0))
    fast = Client(broker, "fast", link=LinkProfile(downlink_bytes_per_second=2000)).join("t")
    slow = Client(broker, "slow", link=LinkProfile(uplink_bytes_per_second=1000, delay_seconds=0.5)).join()
    start = clock.now
    slow.transport.publish("t", b"x" * 9991)  # with topic and header 10,000 bytes
    slow.transport.publish("t", b"y" * 991)
    rest(clock, 60)
    arrivals = [time - start for time, event in fast.events if isinstance(event, Delivery)]
    assert arrivals == pytest.approx([10 + 0.5 + 5, 10 + 0.5 + 5 + 0.5])
    pubacks = [time - start for time, event in slow.events if isinstance(event, Published)]
    assert pubacks == pytest.approx([11, 12])


def test_a_client_beside_the_broker_has_no_delay() -> None:
    clock, broker = world(NetworkFaults(delay_seconds_min=5, delay_seconds_max=9))
    near = Client(broker, "near", link=LinkProfile(delay_factor=0))
    near.transport.connect()
    clock.run(until=0)
    assert near.memory.connected


def test_traffic_is_counted_by_client_and_direction() -> None:
    clock, broker = world()
    a, b = Client(broker, "a").join("t"), Client(broker, "b").join("t")
    a.transport.publish("t", b"x" * 91)
    rest(clock)
    assert b.payloads == [b"x" * 91]
    assert broker.traffic("a") == Traffic(1, 100, 1, 100)
    assert broker.traffic("b") == Traffic(0, 0, 1, 100)
    assert broker.traffic() == Traffic(1, 100, 2, 200)


# --- the same habits as the adapter over a real broker ---------------------------------------------------------------


def test_impossible_requests_are_refused_like_by_the_real_adapter() -> None:
    clock, broker = world(NetworkFaults(packet_bytes_max=1000))
    client = Client(broker, "a").join()
    assert client.of(Connected) == [Connected("5", 1000, 20)]
    for topic, qos in (("a/+", 1), ("", 1), ("#", 0), ("t", 2)):
        with pytest.raises(ConfigurationError, match="publish"):
            client.transport.publish(topic, b"", qos=qos)
    with pytest.raises(ConfigurationError, match="1000 bytes at most"):
        client.transport.publish("t", b"x" * 980)
    client.transport.publish("t", b"x" * 979)
    with pytest.raises(ConfigurationError, match="MQTT does not allow"):
        client.transport.subscribe(["ok", "a#"])
    with pytest.raises(ConfigurationError, match="MQTT does not allow"):
        client.transport.unsubscribe(["#/a"])
    client.transport.subscribe(["ok", "$share/group/t"], token=3)
    rest(clock)
    assert client.of(Subscribed)[-1] == Subscribed(3, ("$share/group/t",))


def test_a_publisher_that_does_not_wait_is_stopped() -> None:
    clock, broker = world()
    client = Client(broker, "a").join()
    with pytest.raises(ConnectionUnavailable, match="no faster than Published"):
        for _ in range(20_000):
            client.transport.publish("t", b"x")
    assert client.memory.waiting == 10_020
    rest(clock, 60)
    assert client.memory.waiting == 0


def test_what_a_listener_raises_reaches_whoever_runs_the_clock() -> None:
    clock, broker = world()

    def fail(event: TransportEvent) -> None:
        raise ZeroDivisionError

    broker.transport("a", fail).connect()
    with pytest.raises(ZeroDivisionError):
        clock.run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": 1.5}, "faults.loss: 1.5 must be a probability"),
        ({"duplicate": math.nan}, "faults.duplicate: nan"),
        ({"delay_seconds_min": -1}, "faults.delay_seconds_min: -1 must be 0 or more"),
        ({"delay_seconds_min": 2}, "is below faults.delay_seconds_min"),
        ({"disconnects_per_hour": math.inf}, "faults.disconnects_per_hour"),
        ({"protocol": "4"}, "faults.protocol: '4'"),
        ({"inflight_max": 0}, "faults.inflight_max: 0 must be more than 0"),
        ({"keepalive_seconds": 0}, "faults.keepalive_seconds: 0 must be more than 0"),
    ],
)
def test_a_fault_out_of_range_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        NetworkFaults(**options)


def test_windows_crashes_and_links_are_checked() -> None:
    for make in (
        lambda: Partition(5, 5),
        lambda: Partition(0, 1, share=2),
        lambda: Crash(-1),
        lambda: Crash(1, down_seconds=math.inf),
        lambda: LinkProfile(uplink_bytes_per_second=0),
        lambda: LinkProfile(downlink_bytes_per_second=math.nan),
        lambda: LinkProfile(delay_seconds=-1),
        lambda: LinkProfile(delay_factor=math.inf),
    ):
        with pytest.raises(ConfigurationError):
            make()


# --- one seed, one run -----------------------------------------------------------------------------------------------

ROUGH = NetworkFaults(
    loss=0.05,
    duplicate=0.05,
    reorder=0.05,
    disconnects_per_hour=30,
    notice_seconds_max=20,
    partitions=(Partition(100, 160, share=0.3), Partition(300, 500, share=0.5)),
    crashes=(Crash(220, 10), Crash(400, 5, retained_lost=False)),
    inflight_max=3,
    queued_messages_max=5,
)


def rough_run(seed: int) -> tuple[list[tuple[float, str, TransportEvent]], InMemoryBroker]:
    """Ten clients that chatter, reconnect and answer each other through every fault at once."""
    clock, broker = world(ROUGH, seed)
    trace: list[tuple[float, str, TransportEvent]] = []
    for number in range(10):
        _Chatterer(broker, f"c{number}", trace)
    clock.run(until=600)
    return trace, broker


class _Chatterer:
    def __init__(self, broker: InMemoryBroker, name: str, trace: list[tuple[float, str, TransportEvent]]) -> None:
        self.clock, self.name, self.trace, self.count = broker.clock, name, trace, 0
        link = LinkProfile(uplink_bytes_per_second=3000, delay_seconds=0.1)
        self.transport = broker.transport(
            name, self.listen, will=Will(f"status/{name}", b"off"), link=link, manual_ack=True
        )
        self.transport.connect()
        self.clock.call_later(5, self.chatter)

    def listen(self, event: TransportEvent) -> None:
        self.trace.append((self.clock.now, self.name, event))
        if isinstance(event, Connected):
            self.transport.subscribe(["status/+", f"to/{self.name}/#"])
            self.transport.publish(f"status/{self.name}", b"on", retain=True)
        elif isinstance(event, Disconnected):
            self.clock.call_later(3, self.transport.connect)
        elif isinstance(event, Delivery):
            self.transport.acknowledge(event)

    def chatter(self) -> None:
        self.count += 1
        self.transport.publish(f"to/c{self.count % 10}/x", b"%d" % self.count * 200, token=self.count)
        self.clock.call_later(2, self.chatter)


def test_the_same_seed_gives_the_same_run_through_every_fault() -> None:
    first, broker = rough_run(1)
    second, _ = rough_run(1)
    other, _ = rough_run(2)
    assert [repr(entry) for entry in first] == [repr(entry) for entry in second]
    assert [repr(entry) for entry in first] != [repr(entry) for entry in other]
    counters = broker.counters
    assert counters.crashes == 2
    assert min(counters.lost, counters.duplicated, counters.reordered, counters.drops, counters.wills) > 0
    reasons = {event.reason for _, _, event in first if isinstance(event, Disconnected)}
    assert {"lost", "unavailable", "keepalive"} <= reasons
    believed = [c for c in broker._connections if c.client_open or c.broker_open]
    assert len(believed) == len(broker._connections) <= 20  # ended connections are forgotten
