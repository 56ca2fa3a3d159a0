"""Addresses and limits are checked before anything is opened; importing costs nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edge_sdk.errors import ConfigurationError
from edge_sdk.mqtt import BrokerSettings, TlsSettings, Will


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker.local", BrokerSettings("broker.local")),
        ("mqtt://10.0.0.7:2883/", BrokerSettings("10.0.0.7", 2883)),
        ("mqtt://[fe80::1]:1884", BrokerSettings("fe80::1", 1884)),
        ("mqtts://broker", BrokerSettings("broker", 8883, tls=TlsSettings())),
        ("mqtt://dev1:p%40ss%3A@broker", BrokerSettings("broker", username="dev1", password="p@ss:")),
        ("mqtt://dev1@broker", BrokerSettings("broker", username="dev1")),
    ],
)
def test_an_address_is_read(url: str, expected: BrokerSettings) -> None:
    assert BrokerSettings.parse(url) == expected


def test_further_fields_come_as_keywords() -> None:
    settings = BrokerSettings.parse("mqtts://b", client_id="x", tls=TlsSettings("ca.pem"))
    assert settings == BrokerSettings("b", 8883, client_id="x", tls=TlsSettings("ca.pem"))


@pytest.mark.parametrize(
    "url",
    ["broker", "http://broker", "mqtt://", "mqtt://b:0", "mqtt://b:99999", "mqtt://b:x", "mqtt://b/x", "mqtt://[b"],
)
def test_an_address_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        BrokerSettings.parse(url)


@pytest.mark.parametrize(
    "fields",
    [
        {"keepalive_seconds": 0},
        {"keepalive_seconds": 70_000},
        {"in_flight_max": 0},
        {"connect_seconds_max": 0},
        {"packet_bytes_max": 10},
        {"protocol": "4"},
        {"password": "x"},
        {"client_id": "x" * 65_536},
        {"will": Will("a/#", b"")},
        {"will": Will("", b"")},
        {"will": Will("a", bytes(65_536))},
    ],
)
def test_a_setting_out_of_range_is_named(fields: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(fields))):
        BrokerSettings("broker", **fields)  # type: ignore[arg-type]


def test_a_key_needs_its_certificate() -> None:
    with pytest.raises(ConfigurationError, match="key_file"):
        TlsSettings(key_file="k.pem")


def test_the_password_is_never_shown() -> None:
    settings = BrokerSettings.parse("mqtt://dev1:geheim@broker")
    assert "geheim" not in repr(settings)
    with pytest.raises(ConfigurationError) as caught:
        BrokerSettings.parse("mqtt://dev1:geheim@broker:99999999")
    assert "geheim" not in str(caught.value)


def test_importing_the_package_loads_neither_paho_nor_ssl() -> None:
    # edge_sdk/__init__ may load numpy, and numpy hashlib: only what our own modules add is looked at.
    code = (
        "import sys, edge_sdk.errors; before = set(sys.modules); import edge_sdk.mqtt, edge_sdk.mqtt.loop\n"
        "edge_sdk.mqtt.PahoTransport(edge_sdk.mqtt.BrokerSettings('b'), print)\n"
        "print(*{'paho', 'ssl', 'hashlib', '_ssl', '_hashlib'} & (set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
