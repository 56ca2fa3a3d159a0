"""Every way in which a connection does not come about, or ends badly, and the sentence that people get to read."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import MakeBroker, MakeClient

from device_sim.broker import BrokerTls, PrivateBroker
from edge_sdk.errors import ConfigurationError, ConnectionRefused, ConnectionUnavailable
from edge_sdk.mqtt import Connected, Delivery, Disconnected, Published, Subscribed, TlsSettings

TLS = Path(__file__).parents[1] / "data" / "tls"
AUTHORITY = TlsSettings(ca_file=str(TLS / "authority.pem"))
USERS = {"coordinator": "c-secret", "dev1": "d-secret", "dev2": "e-secret"}


@pytest.fixture(scope="module")
def secured(mosquitto: MakeBroker) -> Iterator[PrivateBroker]:
    with mosquitto(users=USERS) as broker:
        yield broker


@pytest.fixture(scope="module")
def tls_broker(mosquitto: MakeBroker) -> Iterator[PrivateBroker]:
    with mosquitto(tls=BrokerTls(TLS / "broker.pem", TLS / "broker.key")) as broker:
        yield broker


Answer = Callable[[socket.socket, bytes], None]


@pytest.fixture
def peer() -> Iterator[Callable[[Answer], str]]:
    """Starts something that listens like a broker and answers each client's first bytes in its own way."""
    listeners: list[socket.socket] = []

    def start(answer: Answer) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    client.settimeout(5)
                    try:
                        answer(client, client.recv(4_096))
                    except OSError:
                        pass

        threading.Thread(target=serve, daemon=True).start()
        return f"mqtt://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def accept_then(more: bytes) -> Answer:
    """A broker of MQTT 5 that accepts, sends ``more``, and waits until the client has gone."""

    def answer(client: socket.socket, _: bytes) -> None:
        client.sendall(b"\x20\x03\x00\x00\x00" + more)
        while client.recv(4_096):
            pass

    return answer


def send_and_hang_up(data: bytes) -> Answer:
    return lambda client, _: client.sendall(data)


def test_silence_to_mqtt_5_is_not_waited_out_and_3_1_1_is_tried(
    make_client: MakeClient, peer: Callable[[Answer], str]
) -> None:
    def answer(client: socket.socket, connect: bytes) -> None:
        if connect[8] == 4:
            client.sendall(b"\x20\x02\x00\x00")
        while client.recv(4_096):
            pass

    began = time.monotonic()
    assert make_client(peer(answer)).connected().of(Connected)[0].protocol == "3.1.1"
    assert time.monotonic() - began < 5.0, "of the ten seconds that an answer may take"


def test_nothing_listens_here(make_client: MakeClient, peer: Callable[[Answer], str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    gone = make_client(f"mqtt://127.0.0.1:{port}").failed()
    assert (gone.reason, type(gone.error)) == ("unavailable", ConnectionUnavailable)
    assert f"nothing listens at 127.0.0.1:{port}; is the broker running on this machine" in str(gone.error)


def test_a_broker_that_listens_on_localhost_only(mosquitto_broker: PrivateBroker, make_client: MakeClient) -> None:
    # 127.0.0.2 is this machine under another address, where a broker bound to 127.0.0.1 does not listen.
    gone = make_client(f"mqtt://127.0.0.2:{mosquitto_broker.port}").failed()
    assert gone.reason == "unavailable"
    assert f"`listener {mosquitto_broker.port}`" in str(gone.error)


def test_a_name_that_does_not_resolve(make_client: MakeClient) -> None:
    gone = make_client("mqtt://no-such-host.invalid").failed()
    assert gone.reason == "unavailable"
    assert "'no-such-host.invalid' cannot be resolved" in str(gone.error)


def test_a_name_that_cannot_be_one(make_client: MakeClient) -> None:
    gone = make_client(f"mqtt://{'a' * 70}.local").failed()
    assert isinstance(gone.error, ConfigurationError)
    assert "no valid host name" in str(gone.error)


def test_no_answer_in_time(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(*_: object, **__: object) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", time_out)
    assert "no answer from 10.0.0.1:1883 within 10 s" in str(make_client("mqtt://10.0.0.1").failed().error)


def test_no_route(make_client: MakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", unreachable)
    assert "is this device's network up?" in str(make_client("mqtt://10.0.0.1").failed().error)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_wrong_password(secured: PrivateBroker, make_client: MakeClient, protocol: str) -> None:
    gone = make_client(secured, username="dev1", password="wrong", protocol=protocol).failed()
    assert (gone.reason, type(gone.error)) == ("refused", ConnectionRefused)
    assert "refused user 'dev1': the password is wrong, the user unknown" in str(gone.error)
    assert "wrong'" not in str(gone.error)


def test_no_login_where_one_is_needed(secured: PrivateBroker, make_client: MakeClient) -> None:
    gone = make_client(secured).failed()
    assert gone.reason == "refused"
    assert "lets nobody in without a login; give username and password" in str(gone.error)


def test_a_publish_that_the_acl_forbids_is_told_on_mqtt_5(secured: PrivateBroker, make_client: MakeClient) -> None:
    client = make_client(secured, username="dev1", password="d-secret").connected()
    client.transport.publish("fl/v1/f/from/dev1/checkin", b"mine", token=1)
    client.transport.publish("fl/v1/f/from/dev2/checkin", b"not mine", token=2)
    client.expect(Published, 2)
    assert client.of(Published) == [Published(1), Published(2, "Not authorized")]


def test_a_refused_subscription_is_named(make_client: MakeClient, peer: Callable[[Answer], str]) -> None:
    def answer(client: socket.socket, _: bytes) -> None:
        client.sendall(b"\x20\x03\x00\x00\x00")
        subscribe = client.recv(4_096)
        client.sendall(b"\x90\x06" + subscribe[2:4] + b"\x00\x01\x87\x00")
        client.recv(1)

    client = make_client(peer(answer)).connected()
    client.transport.subscribe(["a", "b", "c"], token=3)
    assert client.expect(Subscribed) == Subscribed(3, ("b",))


def test_plain_mqtt_to_a_tls_port(tls_broker: PrivateBroker, make_client: MakeClient) -> None:
    gone = make_client(f"mqtt://localhost:{tls_broker.tls_port}").failed()
    assert (gone.reason, type(gone.error)) == ("unavailable", ConnectionUnavailable)
    assert "use mqtts://" in str(gone.error)


def test_tls_to_a_plain_port(tls_broker: PrivateBroker, make_client: MakeClient) -> None:
    gone = make_client(f"mqtts://localhost:{tls_broker.port}").failed()
    assert (gone.reason, type(gone.error)) == ("unavailable", ConnectionUnavailable)
    assert "does not answer with TLS" in str(gone.error)
    assert "use mqtt:// for a plain port" in str(gone.error)


def test_tls_works_with_the_right_authority(tls_broker: PrivateBroker, make_client: MakeClient) -> None:
    client = make_client(tls_broker.tls_url, tls=AUTHORITY).connected().subscribed("t/x")
    payload = bytes(range(256)) * 230
    for _ in range(12):
        client.transport.publish("t/x", payload)
    client.expect(Delivery, 12)
    assert {event.payload for event in client.of(Delivery)} == {payload}
    client.transport.disconnect()
    assert client.expect(Disconnected) == Disconnected("requested", None)


@pytest.mark.parametrize("tls", [TlsSettings(), TlsSettings(ca_file=str(TLS / "stranger.pem"))])
def test_an_unknown_authority(tls_broker: PrivateBroker, make_client: MakeClient, tls: TlsSettings) -> None:
    gone = make_client(tls_broker.tls_url, tls=tls).failed()
    assert "no authority that this device trusts has signed it. Give the signing certificate as ca_file" in str(
        gone.error
    )


def test_a_certificate_for_another_name(
    mosquitto: MakeBroker, tls_broker: PrivateBroker, make_client: MakeClient
) -> None:
    gone = make_client(f"mqtts://127.0.0.2:{tls_broker.tls_port}", tls=AUTHORITY).failed()
    assert "nothing listens" in str(gone.error)
    with mosquitto(tls=BrokerTls(TLS / "client.pem", TLS / "client.key")) as broker:
        gone = make_client(broker.tls_url, tls=AUTHORITY).failed()
    assert "was not accepted" in str(gone.error)


@pytest.mark.parametrize(
    ("certificate", "sentence"),
    [
        ("broker-future.pem", "it is not valid yet. Is this device's clock set? It says 20"),
        ("broker-expired.pem", "it has expired. Renew it at the broker, unless this device's clock is wrong"),
    ],
)
def test_a_certificate_out_of_its_time(
    mosquitto: MakeBroker, make_client: MakeClient, certificate: str, sentence: str
) -> None:
    with mosquitto(tls=BrokerTls(TLS / certificate, TLS / "broker.key")) as broker:
        gone = make_client(broker.tls_url, tls=AUTHORITY).failed()
    assert (gone.reason, type(gone.error)) == ("unavailable", ConnectionUnavailable)
    assert sentence in str(gone.error)


def test_a_broker_that_asks_for_a_client_certificate(mosquitto: MakeBroker, make_client: MakeClient) -> None:
    files = BrokerTls(TLS / "broker.pem", TLS / "broker.key", ca_file=TLS / "authority.pem")
    with mosquitto(tls=files) as broker:
        gone = make_client(broker.tls_url, tls=AUTHORITY).failed()
        assert "give cert_file and key_file" in str(gone.error)
        own = TlsSettings(AUTHORITY.ca_file, str(TLS / "client.pem"), str(TLS / "client.key"))
        make_client(broker.tls_url, tls=own).connected()


@pytest.mark.parametrize(
    ("tls", "field"),
    [
        (TlsSettings(ca_file="nowhere.pem"), "ca_file: nowhere.pem cannot be read"),
        (TlsSettings(ca_file=str(TLS / "broker.key")), "ca_file: .* holds no PEM certificate"),
        (TlsSettings(cert_file=str(TLS / "broker.pem"), key_file=str(TLS / "client.key")), "cert_file, key_file: "),
    ],
)
def test_bad_tls_files_are_a_local_mistake(make_client: MakeClient, tls: TlsSettings, field: str) -> None:
    with pytest.raises(ConfigurationError, match=field):
        make_client("mqtts://localhost", tls=tls).transport.connect()


def test_a_peer_that_says_nothing(make_client: MakeClient, peer: Callable[[Answer], str]) -> None:
    url = peer(lambda client, _: client.recv(1) and None)
    gone = make_client(url, connect_seconds_max=0.5, protocol="3.1.1").failed()
    assert gone.reason == "unavailable"
    assert "did not answer for 0.5 s; is it an MQTT broker?" in str(gone.error)


def test_a_peer_that_hangs_up(make_client: MakeClient, peer: Callable[[Answer], str]) -> None:
    gone = make_client(peer(send_and_hang_up(b""))).failed()
    assert gone.reason == "unavailable"
    assert "closed the connection before it answered; if the port expects TLS" in str(gone.error)


def test_a_web_server(make_client: MakeClient, peer: Callable[[Answer], str]) -> None:
    gone = make_client(peer(send_and_hang_up(b"HTTP/1.1 400 Bad Request\r\n\r\n"))).failed()
    assert "speaks HTTP" in str(gone.error)


@pytest.mark.parametrize(
    ("code", "kind", "sentence"),
    [
        (0x84, ConnectionRefused, "does not speak MQTT 5; set protocol to 'auto'"),
        (0x85, ConnectionRefused, "refused the client identifier 'dev'"),
        (0x86, ConnectionRefused, "give username and password"),
        (0x88, ConnectionUnavailable, "busy or not ready"),
        (0x8A, ConnectionRefused, "has banned client 'dev'"),
        (0x9D, ConnectionRefused, "code 0x9d"),
    ],
)
def test_what_a_connack_of_mqtt_5_says(
    make_client: MakeClient, peer: Callable[[Answer], str], code: int, kind: type[Exception], sentence: str
) -> None:
    url = peer(send_and_hang_up(bytes([0x20, 3, 0, code, 0])))
    gone = make_client(url, client_id="dev", protocol="5").failed()
    assert (gone.reason, type(gone.error)) == ("refused", kind)
    assert sentence in str(gone.error)


@pytest.mark.parametrize("old_code", [2, 3, 4, 5])
def test_an_answer_of_3_1_1_form_to_mqtt_5_is_asked_again_in_3_1_1(
    make_client: MakeClient, peer: Callable[[Answer], str], old_code: int
) -> None:
    client = make_client(peer(send_and_hang_up(bytes([0x20, 2, 0, old_code]))))
    assert client.failed().reason == "refused"
    assert client.transport.connections == 2


def goodbye(code: int) -> bytes:
    """A DISCONNECT with a reason string; paho 2.1 overlooks the code where there is nothing behind it."""
    return b"\xe0\x06" + bytes([code]) + b"\x04\x1f\x00\x01x"


@pytest.mark.parametrize(
    ("code", "reason", "sentence"),
    [
        (0x8E, "taken_over", "is this card a copy of another device's?"),
        (0x8B, "closed_by_broker", "is shutting down"),
        (0x87, "closed_by_broker", "check the broker's ACL"),
        (0x95, "closed_by_broker", "above its limit"),
        (0x97, "closed_by_broker", "code 0x97"),
    ],
)
def test_what_a_goodbye_of_mqtt_5_says(
    make_client: MakeClient, peer: Callable[[Answer], str], code: int, reason: str, sentence: str
) -> None:
    client = make_client(peer(accept_then(goodbye(code)))).connected()
    gone = client.expect(Disconnected)
    assert gone.reason == reason
    assert sentence in str(gone.error)


def publish_packet(topic: bytes, payload: bytes) -> bytes:
    body = struct.pack("!H", len(topic)) + topic + b"\x00" + payload
    assert len(body) < 128
    return bytes([0x30, len(body)]) + body


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xf0\x00",  # no such packet
        b"\x32\x80\x80\x80\x80\x01",  # a length of five bytes
        b"\x30\x02\xff\xff",  # a topic longer than its packet
        b"\x30\x00",  # a publish of nothing
        b"\x40\x01\x00",  # half a packet identifier
        b"\x90\x00",  # a SUBACK of nothing
        b"\x36\x05\x00\x01a\x00\x01",  # QoS 3
        b"\x30\x05\x00\x01a\x02\x63\x00",  # an unknown property
        b"\x20\x02\x00\x7f",  # a second CONNACK with a code that does not exist
        b"\xe0\x06\x05\x04\x1f\x00\x01x",  # a goodbye with a code that does not exist
        publish_packet(b"\xff\xfe", b""),  # a topic that is not UTF-8
    ],
)
def test_strange_bytes_end_the_connection_and_nothing_else(
    make_client: MakeClient, peer: Callable[[Answer], str], garbage: bytes
) -> None:
    client = make_client(peer(accept_then(publish_packet(b"t", b"fine") + garbage))).connected()
    gone = client.expect(Disconnected)
    assert gone.reason == "protocol"
    assert "not MQTT" in str(gone.error)
    assert [event.payload for event in client.of(Delivery)] == [b"fine"]


def test_a_peer_that_talks_nonsense_from_the_start(make_client: MakeClient, peer: Callable[[Answer], str]) -> None:
    gone = make_client(peer(send_and_hang_up(b"220 mail.example ESMTP\r\n"))).failed()
    assert gone.reason == "protocol"


def test_a_packet_over_our_limit_is_refused_before_it_is_read(
    make_client: MakeClient, peer: Callable[[Answer], str]
) -> None:
    huge = b"\x30\xff\xff\xff\x7f"  # 268,435,455 bytes to follow
    client = make_client(peer(accept_then(huge)), packet_bytes_max=100_000).connected()
    gone = client.expect(Disconnected)
    assert gone.reason == "protocol"
    assert "a packet of 268435455 bytes, above packet_bytes_max of 100000" in str(gone.error)


@pytest.mark.parametrize("limit", [b"\x21\x00\x00", b"\x27\x00\x00\x00\x00"])
def test_a_limit_of_nought_in_a_connack_is_no_mqtt(
    make_client: MakeClient, peer: Callable[[Answer], str], limit: bytes
) -> None:
    connack = bytes([0x20, 3 + len(limit), 0, 0, len(limit)]) + limit
    assert make_client(peer(send_and_hang_up(connack)), protocol="5").failed().reason in ("protocol", "unavailable")


def test_a_delivery_before_the_broker_has_accepted_us_is_ignored(
    make_client: MakeClient, peer: Callable[[Answer], str]
) -> None:
    def answer(client: socket.socket, _: bytes) -> None:
        client.sendall(publish_packet(b"t", b"early") + b"\x20\x03\x00\x00\x00" + publish_packet(b"t", b"fine"))
        client.recv(1)

    client = make_client(peer(answer)).connected()
    assert client.expect(Delivery).payload == b"fine"


def test_answers_that_nobody_asked_for_are_ignored(
    make_client: MakeClient, peer: Callable[[Answer], str], settle: Callable[[float], None]
) -> None:
    strays = b"\x20\x03\x00\x00\x00" + b"\x40\x02\x00\x07" + b"\x90\x04\x00\x09\x00\x01" + b"\xd0\x00"
    client = make_client(peer(accept_then(strays + publish_packet(b"t", b"fine")))).connected()
    client.expect(Delivery)
    settle(0.1)
    assert [type(event) for event in client.events] == [Connected, Delivery]
