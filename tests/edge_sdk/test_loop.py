"""The loop: timers, calls from other threads, sockets that come and go, many transports at once."""

from __future__ import annotations

import random
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from conftest import MakeClient, MqttClient

from device_sim.broker import PrivateBroker
from edge_sdk.errors import ConfigurationError
from edge_sdk.mqtt import Connected, Delivery, Disconnected, Published
from edge_sdk.mqtt.loop import Backoff, EventLoop, raise_file_limit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Pipe:
    """A transport over a socket pair, which can be given a new socket at any time."""

    def __init__(self) -> None:
        self.watcher: Callable[..., None] | None = None
        self.connections = 0
        self.near: socket.socket | None = None
        self.far: socket.socket | None = None
        self.heard: list[bytes] = []
        self.waiting = b""
        self.reading = True
        self.swept: list[float] = []

    def open(self) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.connections += 1
        self.note()

    def close(self) -> None:
        assert self.near is not None and self.far is not None
        self.near.close()
        self.far.close()
        self.near = self.far = None
        self.note()

    def note(self) -> None:
        if self.watcher is not None:
            self.watcher(self)

    def fileno(self) -> int:
        return -1 if self.near is None else self.near.fileno()

    def wants_read(self) -> bool:
        return self.reading

    def wants_write(self) -> bool:
        return bool(self.waiting)

    def on_readable(self) -> None:
        if self.near is not None:
            self.heard.append(self.near.recv(100))

    def on_writable(self) -> None:
        if self.near is not None and self.waiting:
            try:
                self.waiting = self.waiting[self.near.send(self.waiting) :]
            except BlockingIOError:
                pass

    def on_timer(self, now: float) -> None:
        self.swept.append(now)


def test_timers_are_called_in_order_of_time_and_then_of_asking() -> None:
    clock, called = Clock(), []
    with EventLoop(clock) as loop:
        for name, when in [("c", 102.0), ("a", 101.0), ("b", 101.0)]:
            loop.call_at(when, lambda name=name: called.append(name))  # type: ignore[misc]
        loop.run_once()
        assert called == []
        clock.now = 101.5
        loop.run_once()
        assert called == ["a", "b"]
        clock.now = 103.0
        loop.run_once()
        assert called == ["a", "b", "c"]


def test_a_cancelled_timer_is_not_called_and_is_forgotten() -> None:
    clock, called = Clock(), []
    with EventLoop(clock) as loop:
        handles = [loop.call_at(101.0, lambda: called.append(1)) for _ in range(5_000)]
        for handle in handles[1:]:
            handle.cancel()
            handle.cancel()
        assert len(loop._timers) < 2_000
        clock.now = 101.0
        loop.run_once()
        assert called == [1]
        assert all(handle.cancelled for handle in handles)


def test_a_timer_may_cancel_another_that_is_due_and_ask_for_itself_again() -> None:
    clock, called = Clock(), []
    with EventLoop(clock) as loop:

        def again() -> None:
            called.append("again")
            second.cancel()
            loop.call_at(clock.now, again)

        loop.call_at(101.0, again)
        second = loop.call_at(101.0, lambda: called.append("second"))
        clock.now = 101.0
        loop.run_once()
        assert called == ["again"]
        loop.run_once()
        assert called == ["again", "again"]


def test_a_call_from_another_thread_wakes_a_sleeping_loop(loop: EventLoop) -> None:
    called: list[int] = []
    thread = threading.Timer(0.05, lambda: [loop.call_soon_threadsafe(lambda: called.append(1)) for _ in range(500)])
    start = time.monotonic()
    thread.start()
    assert loop.run_until(lambda: len(called) == 500, 5)
    assert time.monotonic() - start < 0.9  # sooner than the sweep would have woken it
    thread.join()


def test_run_until_says_whether_time_ran_out(loop: EventLoop) -> None:
    assert loop.run_until(lambda: True, 0)
    assert not loop.run_until(lambda: False, 0.01)


def test_a_callback_that_raises_is_told_and_the_rest_goes_on() -> None:
    clock, errors, called = Clock(), [], []
    with EventLoop(clock, errors.append) as loop:
        loop.call_soon_threadsafe(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        loop.call_at(0.0, lambda: [].pop())
        loop.call_soon_threadsafe(lambda: called.append(1))
        loop.run_once()
    assert [type(error) for error in errors] == [ZeroDivisionError, IndexError]
    assert called == [1]


def test_by_default_an_error_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with EventLoop() as loop:
        loop.call_soon_threadsafe(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
        loop.run_once()
    assert "ZeroDivisionError" in caplog.text


def test_a_socket_may_come_go_and_come_again_under_the_same_number(loop: EventLoop) -> None:
    pipes = [Pipe(), Pipe()]
    for pipe in pipes:
        loop.register(pipe)
    for turn in range(3):
        numbers = set()
        for pipe in pipes:
            pipe.open()
            numbers.add(pipe.fileno())
        for number, pipe in enumerate(pipes):
            assert pipe.far is not None
            pipe.far.send(bytes([turn, number]))
        assert loop.run_until(lambda: all(len(pipe.heard) == turn + 1 for pipe in pipes), 1)  # noqa: B023
        # Swapped without a turn in between: each gets a number that was the other's.
        for pipe in pipes:
            pipe.close()
        for pipe in reversed(pipes):
            pipe.open()
        loop.run_once()
        for pipe in pipes:
            pipe.close()
    assert [pipe.heard for pipe in pipes] == [[bytes([turn, number]) for turn in range(3)] for number in range(2)]
    assert numbers


def test_what_does_not_fit_is_written_when_there_is_room(loop: EventLoop) -> None:
    pipe = Pipe()
    loop.register(pipe)
    pipe.open()
    pipe.waiting = bytes(3_000_000)
    pipe.note()
    loop.run_once()
    assert 0 < len(pipe.waiting) < 3_000_000
    assert pipe.far is not None
    received = 0
    while received < 3_000_000:
        received += len(pipe.far.recv(1 << 20))
        loop.run_once()
    assert pipe.waiting == b""
    start = loop.clock()
    loop.run_once(0.05)
    assert loop.clock() - start > 0.04  # nothing to do: the writable socket does not keep it awake


def test_a_transport_that_does_not_want_to_read_is_left_alone_until_it_does(loop: EventLoop) -> None:
    pipe = Pipe()
    loop.register(pipe)
    pipe.open()
    assert pipe.far is not None
    pipe.reading = False
    pipe.note()
    pipe.far.send(b"x")
    for _ in range(3):
        loop.run_once(0.01)
    assert pipe.heard == []
    pipe.reading = True
    pipe.note()
    assert loop.run_until(lambda: pipe.heard == [b"x"], 1)


def test_every_transport_is_swept_once_a_second() -> None:
    clock = Clock()
    with EventLoop(clock) as loop:
        pipes = [Pipe() for _ in range(3)]
        for pipe in pipes:
            loop.register(pipe)
        for clock.now in (100.0, 100.5, 101.0, 101.9, 102.0):
            loop.run_once()
        loop.unregister(pipes[0])
        loop.unregister(pipes[0])
        clock.now = 103.0
        loop.run_once()
    assert [pipe.swept for pipe in pipes] == [[100.0, 101.0, 102.0]] + [[100.0, 101.0, 102.0, 103.0]] * 2


def test_two_hundred_transports_talk_on_one_loop(
    mosquitto_broker: PrivateBroker, make_client: MakeClient, loop: EventLoop
) -> None:
    clients = [make_client(mosquitto_broker) for _ in range(200)]
    for client in clients:
        client.transport.connect()
    assert loop.run_until(lambda: all(client.of(Connected) for client in clients), 20)
    for number, client in enumerate(clients):
        client.transport.subscribe([f"to/{number}"])
    for number, client in enumerate(clients):
        client.transport.publish(f"to/{(number + 1) % 200}", b"%d" % number, retain=True)
    assert loop.run_until(lambda: all(client.of(Delivery) and client.of(Published) for client in clients), 20)
    heard = [int(client.of(Delivery)[0].payload) for client in clients]
    assert heard == [(number - 1) % 200 for number in range(200)]
    mosquitto_broker.kill()
    assert loop.run_until(lambda: all(client.of(Disconnected) for client in clients), 20)
    mosquitto_broker.start()
    for client in clients:
        client.transport.connect()
    assert loop.run_until(lambda: all(len(client.of(Connected)) == 2 for client in clients), 20)


def test_an_idle_loop_sleeps(mosquitto_broker: PrivateBroker, make_client: MakeClient, loop: EventLoop) -> None:
    clients: list[MqttClient] = [make_client(mosquitto_broker).connected() for _ in range(20)]
    loop.run_once()
    start, turns = loop.clock(), 0
    while loop.clock() - start < 0.5:
        loop.run_once(0.5 - (loop.clock() - start))
        turns += 1
    assert turns <= 5
    assert not any(client.of(Disconnected) for client in clients)


@pytest.mark.parametrize("rng", [np.random.default_rng(1), random.Random(1)])
def test_backoff_spreads_evenly_below_a_limit_that_doubles(rng: random.Random) -> None:
    backoff = Backoff(1.0, 60.0, rng)
    limits = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    draws = []
    for _ in range(500):
        draws.append([backoff.next_seconds() for _ in limits])
        backoff.reset()
    scaled = np.array(draws) / limits
    assert scaled.min() >= 0 and scaled.max() < 1
    assert np.allclose(scaled.mean(axis=0), 0.5, atol=0.06)


def test_backoff_refuses_a_base_above_its_maximum() -> None:
    with pytest.raises(ConfigurationError, match="base 2"):
        Backoff(2.0, 1.0, random.Random(1))


def test_the_file_limit_is_raised_as_far_as_needed() -> None:
    code = (
        "import resource; from edge_sdk.mqtt.loop import raise_file_limit\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))\n"
        "raise_file_limit(10); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "raise_file_limit(400); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["100", "464"]


def test_a_file_limit_out_of_reach_names_the_remedy() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(ConfigurationError, match=r"ulimit -n \d+.*LimitNOFILE"):
        raise_file_limit(2**40)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
