"""The packets that a proxy tells apart are all that it has seen, each byte under one kind of message."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conftest import MakeClient

from device_sim.broker import PrivateBroker
from device_sim.counting_proxy import CountingProxy
from device_sim.packet_counts import DOWN, UP, PacketCounts
from edge_sdk.mqtt.sizes import PUBACK_BYTES, publish_bytes
from edge_sdk.wire.topics import Topics

TOPICS = Topics("home")


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_every_byte_between_client_and_broker_is_booked_under_one_kind(
    mosquitto_broker: PrivateBroker, make_client: MakeClient, settle: Callable[[float], None], protocol: str
) -> None:
    counts = PacketCounts("home")
    with CountingProxy(mosquitto_broker.port, counts) as proxy:
        client = make_client(proxy.url, protocol=protocol).connected()
        client.subscribed(TOPICS.from_device("pi", "+"), TOPICS.announce("default"))
        for payload in (b"", b"x" * 120, b"x" * 20_000):
            client.transport.publish(TOPICS.from_device("pi", "checkin"), payload)
        client.transport.publish(TOPICS.status("pi"), b"{}", qos=0)
        settle(0.3)
        assert sum(found.total for found in counts.snapshot().values()) == proxy.up + proxy.down > 40_000
        up, down = counts.snapshot()["checkin", UP], counts.snapshot()["checkin", DOWN]
    assert (up.packets, up.payload, up.acknowledgements) == (3, 20_120, 3 * PUBACK_BYTES)
    assert (down.packets, down.payload, down.acknowledgements) == (3, 20_120, 3 * PUBACK_BYTES)
    assert up.topic == 3 * len(TOPICS.from_device("pi", "checkin"))
    whole = sum(publish_bytes(TOPICS.from_device("pi", "checkin"), size) for size in (0, 120, 20_000))
    assert up.total - up.acknowledgements == whole - (0 if protocol == "5" else 3), "3.1.1 has no properties"
    assert {kind for kind, _ in counts.snapshot()} == {"checkin", "status", "connect", "subscribe"}
