"""What a transport counts is what went over the wire: a proxy in between counts the same bytes a second time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MakeBroker, MakeClient

from device_sim.broker import BrokerTls, PrivateBroker
from device_sim.counting_proxy import CountingProxy
from edge_sdk.mqtt import Connected, Delivery, Disconnected, Published, TlsSettings
from edge_sdk.mqtt.packets import encode_publish_head, encode_subscribe, encode_unsubscribe
from edge_sdk.mqtt.sizes import (
    CONNACK_BYTES_MAX,
    PING_BYTES,
    PUBACK_BYTES,
    connect_bytes,
    publish_bytes,
    suback_bytes,
    subscribe_bytes,
)

TLS = Path(__file__).parents[1] / "data" / "tls"
AUTHORITY = TlsSettings(ca_file=str(TLS / "authority.pem"))
Settle = Callable[[float], None]


@pytest.fixture(params=[127, 128, 16_383, 16_384, 2_097_151, 2_097_152])
def body_bytes(request: pytest.FixtureRequest) -> int:
    """At the steps of the variable byte integer."""
    return int(request.param)


def test_the_sizes_are_those_of_the_packets_that_we_write(body_bytes: int) -> None:
    for qos in (0, 1):
        rest = body_bytes - len(b"\0\5topic") - 2 * qos - 1
        head = encode_publish_head(b"topic", rest, identifier=qos, retain=False, properties=b"\0")
        assert publish_bytes("topic", rest, qos) == len(head) + rest
    filters = ["a/b", "ä/+", *["x" * 100] * (body_bytes // 110)][:2000]
    names = [name.encode() for name in filters]
    assert subscribe_bytes(filters) == len(encode_subscribe(names, 1, b"\0"))
    assert abs(subscribe_bytes(filters) - len(filters) - len(encode_unsubscribe(names, 1, b"\0"))) <= 1


def test_what_is_counted_is_what_a_proxy_counts(
    mosquitto_broker: PrivateBroker, make_client: MakeClient, settle: Settle
) -> None:
    with CountingProxy(mosquitto_broker.port) as proxy:
        client = make_client(proxy.url).connected()
        meter = client.transport.meter
        settle(0.1)
        assert (proxy.up, meter.sent) == (connect_bytes("client-0"),) * 2
        assert proxy.down == meter.received <= CONNACK_BYTES_MAX
        before = meter.received
        client.subscribed("t/+", "u/#")
        settle(0.1)
        assert (proxy.up, proxy.down) == (meter.sent, meter.received)
        assert meter.sent - connect_bytes("client-0") == subscribe_bytes(["t/+", "u/#"])
        assert meter.received - before == suback_bytes(2)
        sizes = (0, 1, 100, 20_000, 200_000)
        sent, received = meter.sent, meter.received
        for size in sizes:
            client.transport.publish("t/x", bytes(size), token=size + 1)
        client.expect(Published, len(sizes))
        client.expect(Delivery, len(sizes))
        settle(0.1)
        assert (proxy.up, proxy.down) == (meter.sent, meter.received)
        payloads = sum(publish_bytes("t/x", size) + PUBACK_BYTES for size in sizes)
        assert meter.sent - sent == payloads
        assert meter.received - received == payloads
        assert client.transport.waiting_bytes == meter.tls == 0


def test_pings_and_a_second_connection_are_counted_too(
    mosquitto_broker: PrivateBroker, make_client: MakeClient, settle: Settle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CountingProxy(mosquitto_broker.port) as proxy:
        client = make_client(proxy.url, protocol="3.1.1", keepalive_seconds=30).connected()
        meter = client.transport.meter
        settle(0.05)
        sent, received = meter.sent, meter.received
        monkeypatch.setattr("paho.mqtt.client.time_func", lambda: time.monotonic() + 31.0)
        client.transport.on_timer(time.monotonic() + 31.0)
        settle(0.1)
        assert (meter.sent - sent, meter.received - received) == (PING_BYTES, PING_BYTES)
        proxy.cut()
        client.expect(Disconnected)
        client.transport.connect()
        client.expect(Connected, 2)
        settle(0.05)
        assert (proxy.up, proxy.down, proxy.connections) == (meter.sent, meter.received, 2)


def test_what_waits_is_not_counted_before_it_leaves(
    mosquitto_broker: PrivateBroker, make_client: MakeClient, settle: Settle
) -> None:
    client = make_client(mosquitto_broker, in_flight_max=1).connected()
    settle(0.05)
    sent = client.transport.meter.sent
    os.kill(mosquitto_broker.pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            client.transport.publish("t/x", bytes(1000))
        assert client.transport.waiting_bytes >= 3000
        assert client.transport.meter.sent == sent
        settle(0.1)
        assert client.transport.waiting_bytes == 2000  # the window lets one out
        assert client.transport.meter.sent == sent + publish_bytes("t/x", 1000)
    finally:
        os.kill(mosquitto_broker.pid, signal.SIGCONT)
    client.expect(Published, 3)


def test_the_estimate_for_tls_is_near_what_a_proxy_counts(
    mosquitto: MakeBroker, make_client: MakeClient, settle: Settle
) -> None:
    files = BrokerTls(TLS / "broker.pem", TLS / "broker.key")
    with mosquitto(tls=files) as broker, CountingProxy(broker.tls_port or 0) as proxy:
        client = make_client(f"mqtts://localhost:{proxy.port}", tls=AUTHORITY).connected().subscribed("t/x")
        meter = client.transport.meter
        settle(0.1)
        # The chain here is a single certificate; one that a public authority has signed comes with a second.
        assert 0.7 * meter.total < proxy.total <= meter.total
        counted, real = meter.total, proxy.total
        for size in (10, 1000, 100_000):
            client.transport.publish("t/x", bytes(size))
        client.expect(Delivery, 3)
        settle(0.1)
        # Records are known but for how OpenSSL's peer cuts them.
        assert abs((meter.total - counted) - (proxy.total - real)) <= 0.005 * (proxy.total - real)
