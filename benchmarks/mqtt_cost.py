"""CPU that one transport costs: ``python benchmarks/mqtt_cost.py`` (needs mosquitto; prints a table).

The receiver runs in this process, the sender and the broker in others, so that the process's CPU time is the
receiver's: paho, our stream and loop, and the kernel's share of the socket calls.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from device_sim.broker import PrivateBroker
from edge_sdk.mqtt import BrokerSettings, Connected, Delivery, PahoTransport, Published, Subscribed, TransportEvent
from edge_sdk.mqtt.loop import EventLoop

TOPIC = "fl/v1/bench/up/0/device"


def send(settings: BrokerSettings, messages: int, payload_bytes: int, per_second: float) -> None:
    """Publish ``messages`` at a steady rate (0: as fast as they are taken); one process's work."""
    published = 0

    def listen(event: TransportEvent) -> None:
        nonlocal published
        if isinstance(event, Connected):
            publish(0)
        elif isinstance(event, Published):
            published += 1

    def publish(number: int) -> None:
        payload = bytes(payload_bytes)
        start = loop.clock()
        while number < messages and (not per_second or number < (loop.clock() - begin) * per_second):
            transport.publish(TOPIC, payload)
            number += 1
        if number < messages:
            loop.call_at(start + 0.005, lambda: publish(number))

    with EventLoop() as loop:
        transport = PahoTransport(settings, listen)
        loop.register(transport)
        begin = loop.clock()
        transport.connect()
        loop.run_until(lambda: published == messages, 60)
        transport.disconnect()
        loop.run_once(0.1)


def receive(broker: PrivateBroker, protocol: str, messages: int, payload_bytes: int, per_second: float) -> float:
    """CPU seconds that this process spends on receiving and acknowledging ``messages``."""
    received = 0
    ready = False

    def listen(event: TransportEvent) -> None:
        nonlocal received, ready
        if isinstance(event, Delivery):
            received += 1
            transport.acknowledge(event)
        elif isinstance(event, Connected):
            transport.subscribe([TOPIC])
        elif isinstance(event, Subscribed):
            ready = True

    with EventLoop() as loop:
        transport = PahoTransport(broker.settings(client_id="receiver", protocol=protocol), listen, manual_ack=True)
        loop.register(transport)
        transport.connect()
        loop.run_until(lambda: ready, 10)
        arguments = (broker.settings(client_id="sender"), messages, payload_bytes, per_second)
        sender = multiprocessing.get_context("spawn").Process(target=send, args=arguments)
        sender.start()
        loop.run_until(lambda: received > 0, 20)
        start, first = time.process_time(), received
        loop.run_until(lambda: received == messages, 60)
        spent = time.process_time() - start
        assert received == messages
        sender.join()
        transport.disconnect()
        loop.run_once(0.1)
    return spent * messages / max(1, messages - first)


def main() -> None:
    cases = [
        ("4 MB as 67 messages of 60 kB", 67, 60_000, 0.0),
        ("1,000 a second of 12 kB, acknowledged", 3_000, 12_000, 1_000.0),
        ("12 kB as fast as they come", 3_000, 12_000, 0.0),
    ]
    print(f"{'case':40} {'MQTT':>6} {'CPU ms':>8} {'us/message':>11}")
    with PrivateBroker("mosquitto") as broker:
        for name, messages, payload_bytes, per_second in cases:
            for protocol in ("5", "3.1.1"):
                best = min(receive(broker, protocol, messages, payload_bytes, per_second) for _ in range(3))
                print(f"{name:40} {protocol:>6} {best * 1e3:8.1f} {best / messages * 1e6:11.0f}")


if __name__ == "__main__":
    main()
