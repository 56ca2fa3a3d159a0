"""What systemd wants to hear of a service of ``Type=notify``, and how often: sd_notify(3) without its library."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

__all__ = ["sd_notify", "watchdog_seconds"]

logger = logging.getLogger(__name__)


def sd_notify(message: str, environment: Mapping[str, str]) -> None:
    """Tell systemd ``message`` (``READY=1``, ``WATCHDOG=1``, ...); without effect where no systemd listens."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect("\0" + address[1:] if address[0] == "@" else address)
            sender.sendall(message.encode())
    except OSError as error:
        logger.warning("systemd cannot be told %s: %s", message.split("\n", 1)[0], error)


def watchdog_seconds(environment: Mapping[str, str], pid: int) -> float | None:
    """Time within which systemd wants to hear ``WATCHDOG=1`` from process ``pid``; None where it does not."""
    try:
        seconds = int(environment["WATCHDOG_USEC"]) / 1e6
        named = int(environment.get("WATCHDOG_PID", pid))
    except (KeyError, ValueError):
        return None
    return seconds if named == pid and seconds > 0 else None
