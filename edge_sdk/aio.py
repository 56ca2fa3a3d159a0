"""``AsyncEdgeClient``: the same device for programs that run on asyncio.

A thin adapter: the device keeps its two threads and never waits for the event loop, and the event loop never waits for
the device. Progress crosses over in a bounded queue: where nobody reads it, the oldest goes, and ``dropped`` counts it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Final

from edge_sdk.client import LEAVE_SECONDS_MAX, EdgeClient
from edge_sdk.device.progress import Progress, Status
from edge_sdk.errors import ConfigurationError

__all__ = ["AsyncEdgeClient"]

STOP_SECONDS: Final = LEAVE_SECONDS_MAX + 5.0


class AsyncEdgeClient:
    """A device of a federation, driven from asyncio.

    ``async with AsyncEdgeClient(...) as client`` starts it and stops it politely; ``async for progress in client``
    tells what happens until the device has ended. Several loops over one client share its progress. A client
    is used from one event loop, and once.

    Attributes:
        dropped: How many pieces of progress were given up because nobody read them in time.

    Args:
        progress_max: How many pieces of progress wait to be read, at least 1.
        arguments: Those of :class:`edge_sdk.EdgeClient`. Its callbacks (``load_examples``, ``eligible``,
            ``on_progress``, a trainer) are ordinary functions and are called on the device's own threads.

    Raises:
        ConfigurationError: ``progress_max`` is below 1.
    """

    def __init__(self, *, progress_max: int = 256, **arguments: Any) -> None:
        if progress_max < 1:
            raise ConfigurationError(f"progress_max: {progress_max} is below 1")
        self.dropped = 0
        self._arguments = arguments
        self._on_progress: Callable[[Progress], None] | None = arguments.pop("on_progress", None)
        self._lock = threading.Lock()
        self._waiting: deque[Progress] = deque(maxlen=progress_max)
        self._news: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: _NotifyingClient | None = None
        self._waking = False  # a call to the event loop is under way
        self._given_up = False  # start() was cancelled while the client was being made
        self._ended = False

    @property
    def status(self) -> Status:
        """The device at a glance."""
        return Status() if self._client is None else self._client.status

    @property
    def running(self) -> bool:
        """Whether the device is at work."""
        return self._client is not None and self._client.running

    async def start(self) -> AsyncEdgeClient:
        """Starts the device in the background.

        Raises:
            ConfigurationError: An argument is wrong, or this client was started before.
            StateError: ``state_dir`` cannot be used, or another process uses it.
        """
        if self._loop is not None:
            raise ConfigurationError("start(): this client was started before; make a new one")
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        try:
            await asyncio.to_thread(self._make)  # imports and the disk take their time
        except asyncio.CancelledError:
            with self._lock:
                self._given_up = True
                client = self._client
            if client is not None:
                client.stop()  # it has not begun, so that this only closes its files
            raise
        except BaseException:
            self._end()
            raise
        if self._client is not None:
            self._client.start()
        return self

    async def stop(self, timeout_seconds: float = STOP_SECONDS) -> None:
        """Leaves politely and waits, at most ``timeout_seconds``; the device leaves even where this is cancelled.

        Raises:
            EdgeFedError: The device had ended with this error.
        """
        client = self._client
        if client is None:
            self._end()
            return
        client.request_stop()
        try:
            await asyncio.to_thread(client.stop, timeout_seconds)
        finally:
            self._end()

    async def __aenter__(self) -> AsyncEdgeClient:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __aiter__(self) -> AsyncIterator[Progress]:
        return self

    async def __anext__(self) -> Progress:
        if self._news is None:
            raise ConfigurationError("this client was not started: use `async with`, or await start()")
        while True:
            with self._lock:
                if self._waiting:
                    return self._waiting.popleft()
                if self._ended:
                    raise StopAsyncIteration
                self._news.clear()
            await self._news.wait()

    # --- on the device's threads ---

    def _make(self) -> None:
        client = _NotifyingClient(self._end, on_progress=self._take, **self._arguments)
        with self._lock:
            given_up = self._given_up
            self._client = client
        if given_up:
            client.stop()

    def _take(self, progress: Progress) -> None:
        if self._on_progress is not None:
            self._on_progress(progress)
        with self._lock:
            self.dropped += len(self._waiting) == self._waiting.maxlen
            self._waiting.append(progress)
        self._wake()

    def _end(self) -> None:
        with self._lock:
            self._ended = True
        self._wake()

    def _wake(self) -> None:
        """Tells the event loop that there is news, with one call at a time: a loop that stands still is not flooded."""
        with self._lock:
            waking, self._waking = self._waking, True
        if waking or self._loop is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._tell)
        except RuntimeError:  # the loop is closed, and nobody reads any more
            pass

    def _tell(self) -> None:
        with self._lock:
            self._waking = False
        if self._news is not None:
            self._news.set()


class _NotifyingClient(EdgeClient):
    """Says when its background thread has ended, for whatever reason."""

    def __init__(self, on_end: Callable[[], None], **arguments: Any) -> None:
        super().__init__(**arguments)
        self._on_end = on_end

    def _work_in_background(self) -> None:
        try:
            super()._work_in_background()
        finally:
            self._on_end()
