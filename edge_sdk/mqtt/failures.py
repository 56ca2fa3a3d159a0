"""Why there is no connection, in sentences that say what to do."""

from __future__ import annotations

import errno
import socket
import time
from typing import TYPE_CHECKING, Final

from edge_sdk.errors import ConfigurationError, ConnectionRefused, ConnectionUnavailable, EdgeFedError
from edge_sdk.mqtt.events import DisconnectReason
from edge_sdk.mqtt.settings import BrokerSettings

if TYPE_CHECKING:
    import ssl

__all__ = [
    "explain_goodbye",
    "explain_hang_up",
    "explain_loss",
    "explain_no_answer",
    "explain_not_mqtt",
    "explain_packet_too_large",
    "explain_refusal",
    "explain_silence",
    "explain_unreachable",
]

_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")

# OpenSSL's verification codes (X509_V_ERR_*, x509_vfy.h).
_NOT_YET_VALID, _EXPIRED, _HOSTNAME, _ADDRESS = 9, 10, 62, 64
_UNKNOWN_AUTHORITY: Final = (2, 18, 19, 20, 21)

# MQTT 5.0 section 2.4.
_UNSUPPORTED_VERSION: Final = 0x84
_BAD_CLIENT_ID, _BAD_LOGIN, _NOT_AUTHORISED, _UNAVAILABLE, _BUSY, _BANNED = 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A
_SHUTTING_DOWN, _TAKEN_OVER, _PACKET_TOO_LARGE, _CONNECTION_RATE = 0x8B, 0x8E, 0x95, 0x9F


def explain_unreachable(settings: BrokerSettings, error: BaseException) -> EdgeFedError:
    """The error for a broker to which no connection (with TLS: no handshake) came about."""
    where = settings.address
    if isinstance(error, socket.gaierror):
        return ConnectionUnavailable(
            f"the name {settings.host!r} cannot be resolved ({error.strerror}); check its spelling, and that this"
            " device has a network and a name server"
        )
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return ConfigurationError(f"broker host: {settings.host!r} is no valid host name")
    if isinstance(error, ConnectionRefusedError):
        return ConnectionUnavailable(f"nothing listens at {where}; {_nobody_listens(settings)}")
    if isinstance(error, OSError) and error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN):
        return ConnectionUnavailable(f"there is no route to {where} ({error.strerror}); is this device's network up?")
    if settings.tls is not None and (explained := _explain_handshake(settings, error)):
        return explained
    if isinstance(error, TimeoutError):
        return ConnectionUnavailable(
            f"no answer from {where} within {settings.connect_seconds_max:g} s; is the host up, the address right, and"
            " does a firewall let the port through?"
        )
    return ConnectionUnavailable(f"no connection to {where}: {_short(error)}")


def explain_hang_up(settings: BrokerSettings, error: BaseException | None, first_bytes: bytes) -> EdgeFedError:
    """The error for a peer that took the connection and hung up before it accepted us.

    error:  what the socket said, None for an orderly end
    first_bytes:  what came before that
    """
    where = settings.address
    if first_bytes[:2] == b"\x15\x03":
        return ConnectionUnavailable(
            f"{where} speaks TLS, and we spoke plain MQTT; use mqtts:// (with ca_file if the certificate is your own)"
        )
    if first_bytes[:5] == b"HTTP/":
        return ConnectionUnavailable(f"{where} speaks HTTP; give the port where the broker speaks MQTT (usually 1883)")
    if settings.tls is None:
        hint = "; if the port expects TLS use mqtts://"
    else:
        hint = (
            "; if it asks for a client certificate, give cert_file and key_file" if not settings.tls.cert_file else ""
        )
    why = "" if error is None else f" ({_short(error)})"
    return ConnectionUnavailable(
        f"{where} closed the connection before it answered{why}{hint}; the broker's log says why"
    )


def _nobody_listens(settings: BrokerSettings) -> str:
    if settings.host in _LOOPBACK:
        return "is the broker running on this machine, and on this port?"
    return (
        "is the broker running? A mosquitto without a `listener` line accepts its own machine only: add"
        f" `listener {settings.port}` and a password file to its configuration"
    )


def _explain_handshake(settings: BrokerSettings, error: BaseException) -> EdgeFedError | None:
    import ssl

    where = settings.address
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectionUnavailable(f"the certificate of {where} was not accepted: {_explain_certificate(error)}")
    if isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or ""):
        return ConnectionUnavailable(
            f"{where} ended the TLS handshake ({error.reason}); if it asks for a client certificate, give cert_file and"
            " key_file signed by an authority that the broker trusts"
        )
    if isinstance(error, ssl.SSLError | ConnectionError | TimeoutError):
        return ConnectionUnavailable(
            f"{where} does not answer with TLS ({_short(error)}); use mqtt:// for a plain port, or the broker's TLS"
            " port (usually 8883)"
        )
    return None


def _explain_certificate(error: ssl.SSLCertVerificationError) -> str:
    code = error.verify_code
    clock = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    if code == _NOT_YET_VALID:
        return f"it is not valid yet. Is this device's clock set? It says {clock}"
    if code == _EXPIRED:
        return f"it has expired. Renew it at the broker, unless this device's clock is wrong: it says {clock}"
    if code in _UNKNOWN_AUTHORITY:
        return "no authority that this device trusts has signed it. Give the signing certificate as ca_file"
    if code in (_HOSTNAME, _ADDRESS):
        return f"{error.verify_message}. Use the name that is in the certificate as the broker's host"
    return error.verify_message


def explain_refusal(settings: BrokerSettings, code: int) -> EdgeFedError:
    """The error for a CONNACK with a reason code of 0x80 or above (MQTT 5.0 table 3-1; 3.1.1 codes are mapped)."""
    where, who = settings.address, _who(settings)
    if code in (_BAD_LOGIN, _NOT_AUTHORISED):
        if settings.username is None:
            return ConnectionRefused(f"{where} lets nobody in without a login; give username and password")
        return ConnectionRefused(
            f"{where} refused {who}: the password is wrong, the user unknown, or not allowed to connect; check both,"
            " and the broker's password file and ACL"
        )
    if code == _UNSUPPORTED_VERSION:
        return ConnectionRefused(f"{where} does not speak MQTT {settings.protocol}; set protocol to 'auto'")
    if code == _BAD_CLIENT_ID:
        return ConnectionRefused(
            f"{where} refused the client identifier {settings.client_id!r}; use letters and digits"
        )
    if code == _BANNED:
        return ConnectionRefused(f"{where} has banned {who}; ask whoever runs the broker")
    if code in (_UNAVAILABLE, _BUSY, _CONNECTION_RATE):
        return ConnectionUnavailable(f"{where} is busy or not ready (code {code:#04x}); try again later")
    return ConnectionRefused(f"{where} refused the connection with code {code:#04x} (MQTT 5.0 section 2.4)")


def explain_goodbye(settings: BrokerSettings, code: int) -> tuple[DisconnectReason, EdgeFedError]:
    """Reason and error for a DISCONNECT packet from the broker (MQTT 5.0 table 3-13)."""
    where = settings.address
    if code == _TAKEN_OVER:
        return "taken_over", ConnectionRefused(
            f"another client came to {where} with the client identifier {settings.client_id!r}; every device needs its"
            " own: is this card a copy of another device's?"
        )
    if code == _SHUTTING_DOWN:
        return "closed_by_broker", ConnectionUnavailable(f"the broker at {where} is shutting down")
    if code == _NOT_AUTHORISED:
        return "closed_by_broker", ConnectionRefused(
            f"{where} closed the connection: {_who(settings)} may not do what it did; check the broker's ACL"
        )
    if code == _PACKET_TOO_LARGE:
        return "closed_by_broker", ConnectionUnavailable(
            f"{where} closed the connection over a packet above its limit; send smaller chunks or raise the limit"
        )
    return "closed_by_broker", ConnectionUnavailable(
        f"{where} closed the connection with code {code:#04x} (MQTT 5.0 section 2.4)"
    )


def explain_loss(settings: BrokerSettings, error: BaseException | None) -> EdgeFedError:
    """The error for an established connection that was cut."""
    why = "the broker, or something on the way, closed it" if error is None else _short(error)
    return ConnectionUnavailable(f"the connection to {settings.address} was cut ({why})")


def explain_no_answer(settings: BrokerSettings) -> EdgeFedError:
    """The error for a peer that took the connection and then said nothing."""
    hint = "" if settings.tls else " (a TLS port needs mqtts://)"
    return ConnectionUnavailable(
        f"{settings.address} took the connection and did not answer for {settings.connect_seconds_max:g} s; is it an"
        f" MQTT broker?{hint}"
    )


def explain_silence(settings: BrokerSettings) -> EdgeFedError:
    """The error for a broker that answers no more pings."""
    return ConnectionUnavailable(
        f"{settings.address} has been silent for more than {settings.keepalive_seconds} s;"
        " the link or the broker is down"
    )


def explain_packet_too_large(settings: BrokerSettings, packet_bytes: int) -> EdgeFedError:
    """The error for an incoming packet above our limit."""
    return ConnectionUnavailable(
        f"{settings.address} sent a packet of {packet_bytes} bytes, above packet_bytes_max of"
        f" {settings.packet_bytes_max}; limit the message size at the broker, so that nobody can publish such"
    )


def explain_not_mqtt(settings: BrokerSettings) -> EdgeFedError:
    """The error for bytes that are no MQTT packets."""
    return ConnectionUnavailable(
        f"{settings.address} sent bytes that are not MQTT; is it a broker, and the right port?"
    )


def _who(settings: BrokerSettings) -> str:
    return f"client {settings.client_id!r}" if settings.username is None else f"user {settings.username!r}"


def _short(error: BaseException) -> str:
    strerror = getattr(error, "strerror", None)
    return str(getattr(error, "reason", None) or strerror or error or type(error).__name__)
