"""A TCP proxy on loopback that counts: what a client and a broker have really said to each other."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, Final, Self

__all__ = ["CountingProxy"]

_HOST: Final = "127.0.0.1"
_PIECE_BYTES: Final = 1 << 16


class CountingProxy:
    """Between clients and the broker at ``port``, from ``with`` to its end; clients connect to ``self.port``.

    port:  where the broker listens on this machine
    watch:  handed the number of a connection, ``up`` or ``down``, and the bytes, one call at a time

    ``up`` and ``down`` are bytes of TCP payload, of all connections, counted before the other side is given them.
    """

    def __init__(self, port: int, watch: Callable[[int, str, bytes], None] | None = None) -> None:
        self.up = self.down = self.connections = 0
        self._broker_port = port
        self._watch = watch
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server((_HOST, 0))
        self.port = int(self._listener.getsockname()[1])

    @property
    def url(self) -> str:
        """The address for ``BrokerSettings.parse``."""
        return f"mqtt://{_HOST}:{self.port}"

    @property
    def total(self) -> int:
        """Bytes in both directions."""
        with self._lock:
            return self.up + self.down

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.cut()
        _close(self._listener)

    def cut(self) -> None:
        """End every connection, without a word to either side."""
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for one in sockets:
            _close(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                broker = socket.create_connection((_HOST, self._broker_port))
            except OSError:
                _close(client)
                continue
            with self._lock:
                self.connections += 1
                number = self.connections
                self._sockets += [client, broker]
            threading.Thread(target=self._pump, args=(client, broker, number, "up"), daemon=True).start()
            threading.Thread(target=self._pump, args=(broker, client, number, "down"), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, number: int, way: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_PIECE_BYTES):
                with self._lock:
                    setattr(self, way, getattr(self, way) + len(data))
                    if self._watch is not None:
                        self._watch(number, way, data)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def _close(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
