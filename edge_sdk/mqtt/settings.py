"""How a broker is reached: checked once, passed whole."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Self

from edge_sdk.errors import ConfigurationError

__all__ = ["BrokerSettings", "TlsSettings", "Will"]

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_STRING_BYTES_MAX = 65_535  # MQTT 5.0 section 1.5.4


class Will(NamedTuple):
    """The message that the broker publishes for us, at QoS 1, when the connection is cut."""

    topic: str
    payload: bytes
    retain: bool = True


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS with the broker's certificate always verified; there is no switch to turn that off.

    ca_file:  PEM file of the authorities to trust (default: the system's)
    cert_file, key_file:  PEM files of our own certificate and key, where the broker asks for one
    """

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    def __post_init__(self) -> None:
        if self.key_file is not None and self.cert_file is None:
            raise ConfigurationError("key_file: it was given without a cert_file; give both or neither")


@dataclass(frozen=True, slots=True)
class BrokerSettings:
    """A broker's address and how to speak with it.

    host, port:  where the broker listens
    username, password:  None for a broker that lets anybody in
    tls:  None for plain TCP
    client_id:  unique among all clients of the broker; "" lets the broker choose
    keepalive_seconds:  a ping is sent after so much silence; a dead link is noticed after about twice that (5..65535)
    connect_seconds_max:  time for TCP, TLS and the broker's answer, each
    protocol:  "auto" tries MQTT 5 and falls back to 3.1.1 (on which paho takes a third less CPU for each message)
    will:  published by the broker when we vanish
    in_flight_max:  unacknowledged messages in either direction, at most (MQTT 5: our receive maximum)
    packet_bytes_max:  an incoming packet above this ends the connection before it is read (MQTT 5: also announced)
    """

    host: str
    port: int = 1883
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: TlsSettings | None = None
    client_id: str = ""
    keepalive_seconds: int = 30
    connect_seconds_max: float = 10.0
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    will: Will | None = None
    in_flight_max: int = 20
    packet_bytes_max: int = 1 << 20

    def __post_init__(self) -> None:
        if not self.host:
            raise ConfigurationError("broker host: it is empty; give a name or an address, such as mqtt://broker.local")
        _within("broker port", self.port, 1, 65_535)
        _within("keepalive_seconds", self.keepalive_seconds, 5, 65_535)
        _within("in_flight_max", self.in_flight_max, 1, 65_535)
        _within("packet_bytes_max", self.packet_bytes_max, 1_024, 268_435_455)
        if not 0 < self.connect_seconds_max <= 300:
            raise ConfigurationError(
                f"connect_seconds_max: {self.connect_seconds_max} is not a sensible time; use 0.1 to 300 seconds"
            )
        if self.protocol not in ("auto", "5", "3.1.1"):
            raise ConfigurationError(f"protocol: {self.protocol!r} is unknown; use 'auto', '5' or '3.1.1'")
        if self.password is not None and self.username is None:
            raise ConfigurationError("password: it was given without a username; MQTT 3.1.1 allows no such login")
        for name in ("client_id", "username", "password"):
            if len((getattr(self, name) or "").encode()) > _STRING_BYTES_MAX:
                raise ConfigurationError(f"{name}: it is longer than the {_STRING_BYTES_MAX} bytes that MQTT allows")
        if self.will is not None:
            self._check_will(self.will)

    @staticmethod
    def _check_will(will: Will) -> None:
        if not will.topic or "+" in will.topic or "#" in will.topic or "\0" in will.topic:
            raise ConfigurationError(f"will: {will.topic!r} cannot be a topic; use one without wildcards")
        if max(len(will.payload), len(will.topic.encode())) > _STRING_BYTES_MAX:
            raise ConfigurationError(f"will: it is longer than the {_STRING_BYTES_MAX} bytes that MQTT allows")

    @classmethod
    def parse(cls, url: str, **settings: Any) -> Self:
        """Read ``mqtt://user:password@host:port`` (``mqtts`` for TLS); ``settings`` are further fields.

        A password with one of ``@ : / %`` in it is written percent-encoded. Without a port it is 1883, or 8883 for
        mqtts. Raises ConfigurationError, which never repeats the password.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"broker address: it cannot be read ({error}); {_EXAMPLE}") from None
        if parts.scheme not in _PORTS:
            raise ConfigurationError(f"broker address: it must begin with mqtt:// or mqtts://; {_EXAMPLE}")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ConfigurationError(f"broker address: nothing may follow the port; {_EXAMPLE}")
        fields: dict[str, Any] = {
            "host": parts.hostname or "",
            "port": _PORTS[parts.scheme] if port is None else port,
            "username": None if parts.username is None else urllib.parse.unquote(parts.username),
            "password": None if parts.password is None else urllib.parse.unquote(parts.password),
            "tls": TlsSettings() if parts.scheme == "mqtts" else None,
        }
        return cls(**(fields | settings))

    @property
    def address(self) -> str:
        """``host:port``, for messages."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_EXAMPLE = "for example mqtt://user:password@broker.local:1883"


def _within(name: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigurationError(f"{name}: {value!r} is out of range; use a whole number from {low} to {high}")
