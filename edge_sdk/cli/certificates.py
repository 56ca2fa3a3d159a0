"""How long the certificates of ``device.toml`` are valid: nobody looks at a device before it is cut off."""

from __future__ import annotations

import re
import time
from calendar import timegm
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from edge_sdk.cli.device_config import DeviceConfig
from edge_sdk.cli.findings import EXIT_BROKER, Finding

__all__ = ["check_certificates", "validity"]

DAY_SECONDS: Final = 86_400
SOON_SECONDS: Final = 30 * DAY_SECONDS
FILE_BYTES_MAX: Final = 1 << 24
PEM: Final = re.compile(
    r"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----.*?-----END (?:TRUSTED |X509 )?CERTIFICATE-----", re.DOTALL
)

# Tags of DER (X.690) that stand before the dates of a certificate (RFC 5280, section 4.1).
SEQUENCE: Final = 0x30
INTEGER: Final = 0x02
EXPLICIT_VERSION: Final = 0xA0
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18


def check_certificates(config: DeviceConfig, wall: float) -> Iterator[Finding]:
    """The device's own certificate, and those of the authorities that it trusts.

    Args:
        config: The device.
        wall: Seconds since 1970.
    """
    tls = config.broker.tls
    if tls is None:
        return
    if tls.cert_file is not None:
        # The whole chain goes to the broker: the first of them that ends, ends it.
        yield _finding("certificate", Path(tls.cert_file), wall, every=True)
    if tls.ca_file is not None:
        # One of the authorities suffices, as where a new one was added before the old one ends.
        yield _finding("authority", Path(tls.ca_file), wall, every=False)


def _finding(subject: str, path: Path, wall: float, *, every: bool) -> Finding:
    try:
        dates = _dates(path)
    except (OSError, ValueError) as error:
        return Finding("FAIL", subject, f"{path} cannot be read as PEM certificates: {error}", EXIT_BROKER)
    chosen = min if every else max
    ends = chosen(until for _, until in dates)
    begins = max(since for since, _ in dates) if every else min(since for since, _ in dates)
    shown = _day(ends)
    if ends <= wall:
        return Finding("FAIL", subject, f"{path} has expired on {shown}: put a new one there", EXIT_BROKER)
    if begins > wall:
        text = f"{path} is not valid before {_day(begins)}: set the clock, or put another one there"
        return Finding("FAIL", subject, text, EXIT_BROKER)
    if ends - wall < SOON_SECONDS:
        days = int((ends - wall) // DAY_SECONDS)
        return Finding("warn", subject, f"{path} expires on {shown}, in {days} days: put a new one there before")
    return Finding("ok", subject, f"{path} is valid until {shown}")


def _day(wall: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(wall))


def _dates(path: Path) -> list[tuple[float, float]]:
    from ssl import PEM_cert_to_DER_cert  # loads OpenSSL: only where there is a certificate

    with path.open("rb") as file:
        text = file.read(FILE_BYTES_MAX).decode("ascii", "replace")
    found = [
        validity(PEM_cert_to_DER_cert(re.sub(r"(TRUSTED|X509) CERT", "CERT", match[0]))) for match in PEM.finditer(text)
    ]
    if not found:
        raise ValueError("there is none in it")
    return found


def validity(certificate: bytes) -> tuple[float, float]:
    """From when until when a certificate is valid, in seconds since 1970.

    Args:
        certificate: X.509 as DER.

    Raises:
        ValueError: It is none.
    """
    outer, _ = _element(certificate, SEQUENCE)
    rest, _ = _element(outer, SEQUENCE)
    if rest[:1] == bytes((EXPLICIT_VERSION,)):
        _, rest = _element(rest, EXPLICIT_VERSION)
    for tag in (INTEGER, SEQUENCE, SEQUENCE):  # serial number, algorithm, issuer
        _, rest = _element(rest, tag)
    dates, _ = _element(rest, SEQUENCE)
    since, dates = _time(dates)
    until, _ = _time(dates)
    return since, until


def _element(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """``(content, what follows)`` of the first element, which must have this tag."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError("this is no certificate")
    length, at = data[1], 2
    if length >= 0x80:
        count = length & 0x7F
        length, at = int.from_bytes(data[2 : 2 + count], "big"), 2 + count
    if at + length > len(data):
        raise ValueError("the certificate is cut short")
    return data[at : at + length], data[at + length :]


def _time(data: bytes) -> tuple[float, bytes]:
    tag = GENERALIZED_TIME if data[:1] == bytes((GENERALIZED_TIME,)) else UTC_TIME
    content, rest = _element(data, tag)
    text = content.decode("ascii")
    if tag == UTC_TIME:
        text = ("20" if text[:2] < "50" else "19") + text
    return float(timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))), rest
