"""The packets that we write and read ourselves: the same bytes as paho's, and nothing strange is taken."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from conftest import MakeClient
from hypothesis import given
from hypothesis import strategies as st

from device_sim.broker import PrivateBroker
from edge_sdk.mqtt import Delivery, Disconnected, Meter, Published
from edge_sdk.mqtt.packets import (
    MalformedPacket,
    check_filter,
    decode_puback,
    decode_publish,
    decode_suback,
    encode_publish_head,
    encode_subscribe,
    encode_unsubscribe,
)
from edge_sdk.mqtt.stream import PacketTooLarge, Stream

PUBLISH_5 = bytes.fromhex("32 0a 0003 612f62 0007 00 7879".replace(" ", ""))
"""QoS 1 on ``a/b``, identifier 7, no properties, payload ``xy``."""


Pair = tuple[Stream, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A stream that hands out packets, and the socket at its other end."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as peer:
        ours, _ = listener.accept()
        ours.setblocking(False)
        stream = Stream(ours, 1_000, Meter())
        stream.start_packets()
        yield stream, peer
        stream.close()


def read(stream: Stream, count: int) -> list[tuple[int, bytes]]:
    """Turns until ``count`` packets have come."""
    found: list[tuple[int, bytes]] = []
    until = time.monotonic() + 5
    while len(found) < count and time.monotonic() < until:
        stream.open_turn()
        while (packet := stream.next_packet()) is not None:
            found.append((packet[0], bytes(packet[1])))
        stream.close_turn()
    return found


def test_a_publish_is_written_as_the_standard_says() -> None:
    head = encode_publish_head(b"a/b", 2, identifier=7, retain=False, properties=b"\0")
    assert head + b"xy" == PUBLISH_5
    assert encode_publish_head(b"a", 0, identifier=0, retain=True, properties=b"") == b"\x31\x03\x00\x01a"
    long = encode_publish_head(b"a", 200, identifier=0, retain=False, properties=b"")
    assert long[:3] == b"\x30\xcb\x01"


def test_subscriptions_are_written_as_the_standard_says() -> None:
    assert encode_subscribe([b"a/+", b"#"], 9, b"\0").hex() == "820d" + "0009" + "00" + "0003612f2b01" + "00012301"
    assert encode_unsubscribe([b"a"], 9, b"").hex() == "a205" + "0009" + "000161"


@pytest.mark.parametrize("name", ["", "a+", "a/#/b", "#a", "a\0", "x" * 70_000])
def test_a_filter_that_mqtt_does_not_allow(name: str) -> None:
    with pytest.raises(ValueError):
        check_filter(name)


@given(st.binary(max_size=40), st.integers(0, 255), st.booleans())
def test_no_bytes_raise_anything_but_malformed(body: bytes, first: int, has_properties: bool) -> None:
    view = memoryview(body)
    for decode in (
        lambda: decode_publish(first, view, has_properties),
        lambda: decode_puback(view),
        lambda: decode_suback(view, has_properties),
    ):
        try:
            decode()
        except MalformedPacket:
            pass


def test_packets_are_whole_however_the_bytes_come(pair: Pair) -> None:
    stream, peer = pair
    wanted = [(0x32, PUBLISH_5[2:]), (0x40, b"\0\7"), (0x30, b"\0\1a" + bytes(300))]
    data = PUBLISH_5 + b"\x40\x02\0\7" + b"\x30\xaf\x02\0\1a" + bytes(300)
    for step in (1, 3, 7, len(data)):
        found = []
        for at in range(0, len(data), step):
            peer.sendall(data[at : at + step])
            stream.open_turn()
            while (packet := stream.next_packet()) is not None:
                found.append((packet[0], bytes(packet[1])))
            stream.close_turn()
        assert found + read(stream, len(wanted) - len(found)) == wanted


def test_what_is_lent_is_all_that_paho_gets(pair: Pair) -> None:
    stream, peer = pair
    peer.sendall(b"\xd0\x00" + PUBLISH_5)
    assert read(stream, 2)[0] == (0xD0, b"")
    stream.lend(0xD0, memoryview(bytes(200)))
    assert bytes(stream.recv(3)) == b"\xd0\xc8\x01"
    assert len(stream.recv(500)) == 200
    with pytest.raises(BlockingIOError):
        stream.recv(1)


def test_a_packet_above_the_limit_is_refused_by_its_header(pair: Pair) -> None:
    stream, peer = pair
    peer.sendall(b"\x30\xff\x7f")
    with pytest.raises(PacketTooLarge):
        read(stream, 1)
    assert isinstance(stream.failure, PacketTooLarge)


def test_a_length_of_five_bytes_is_malformed(pair: Pair) -> None:
    stream, peer = pair
    peer.sendall(b"\x30\xff\xff\xff\xff\x01")
    with pytest.raises(MalformedPacket):
        read(stream, 1)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_every_identifier_comes_round(mosquitto_broker: PrivateBroker, make_client: MakeClient, protocol: str) -> None:
    client = make_client(mosquitto_broker, protocol=protocol).connected().subscribed("t")
    link = client.transport._connection
    assert link is not None
    link._identifier = 65_530
    for number in range(12):
        client.transport.publish("t", bytes((number,)), token=number + 1)
    client.expect(Published, 12)
    client.expect(Delivery, 12)
    assert [event.payload[0] for event in client.of(Delivery)] == list(range(12))
    assert client.of(Disconnected) == []


@pytest.mark.parametrize(
    "strange",
    [
        b"\x36\x06\0\1a\0\1\0",  # QoS 3
        b"\x32\x06\0\1a\0\0\0",  # identifier 0
        b"\x30\x03\0\0\0",  # no topic
        b"\x30\x05\0\1\xff\0\0",  # a topic that is not UTF-8
        b"\x40\x01\0",  # a PUBACK without its identifier
        b"\x32\x08\0\1a\0\1\x09ab",  # properties behind the end
    ],
)
def test_strange_packets_end_the_connection(make_client: MakeClient, strange: bytes) -> None:
    def accept() -> None:
        client, _ = listener.accept()
        with client:
            client.recv(4_096)
            client.sendall(b"\x20\x03\x00\x00\x00" + strange)
            while client.recv(4_096):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        client = make_client(f"mqtt://127.0.0.1:{listener.getsockname()[1]}", protocol="5")
        client.transport.connect()
        assert client.expect(Disconnected).reason == "protocol"
