"""What the coordinator says of all bytes is what goes between broker and devices, counted a second time here."""

from __future__ import annotations

from typing import Any

import pytest
from wired import TASK, TOPICS, Pair, larger_bundle

from coordinator.downlink import Downlink
from coordinator.events import Publish
from coordinator.stopping import StoppingRule
from coordinator.wire_meter import WireMeter
from edge_sdk.device.session import Subscribe, Unsubscribe
from edge_sdk.mqtt.sizes import PUBACK_BYTES, publish_bytes, suback_bytes, subscribe_bytes

DEVICES = ("a", "b", "c")


class Counted(Pair):
    """Counts what devices send and receive, but for connections and what these bring."""

    def __init__(self, *devices: str, **changes: Any) -> None:
        self.up = self.down = 0
        super().__init__(*devices, **changes)

    def _to_coordinator(self, device: str, topic: str, payload: bytes, token: int) -> None:
        self.up += publish_bytes(topic, len(payload))
        self.down += PUBACK_BYTES
        super()._to_coordinator(device, topic, payload, token)

    def _deliver(self, device: str, topic: str, payload: bytes, *, retained: bool = False) -> None:
        if "/blobs/" in topic or not (retained or "/coordinator/" in topic):
            self.down += publish_bytes(topic, len(payload))
            self.up += PUBACK_BYTES
        super()._deliver(device, topic, payload, retained=retained)

    def _perform(self, device: str, action: Any) -> None:
        match action:
            case Subscribe(filters) if "/blobs/" in filters[0]:
                self.up += subscribe_bytes(filters)
                self.down += suback_bytes(len(filters))
            case Unsubscribe(filters):
                self.up += subscribe_bytes(filters) - len(filters)
                self.down += suback_bytes(len(filters))
            case _:
                pass
        super()._perform(device, action)


def run(**changes: Any) -> Counted:
    pair = Counted(*DEVICES, made=larger_bundle(), stopping=StoppingRule(rounds_max=4), **changes)
    pair.run(600.0)
    assert pair.desk.core.finished is not None
    return pair


@pytest.mark.parametrize("small", [False, True], ids=["asked for", "inline"])
@pytest.mark.parametrize("downlink", [None, Downlink(density=0.2, whole_bytes_min=0)], ids=["whole", "deltas"])
def test_the_count_is_exact_where_devices_ask(small: bool, downlink: Downlink | None) -> None:
    pair = run(small=small, downlink=downlink)
    meter = pair.desk.task.meter
    assert (meter.up, meter.down) == (pair.up, pair.down)


def test_the_count_is_near_where_devices_read_retained_pieces() -> None:
    pair = run(retained_blobs="always", downlink=Downlink(density=0.2, whole_bytes_min=0))
    meter = pair.desk.task.meter
    assert 0.9 < meter.up / pair.up < 1.15 and 0.97 < meter.down / pair.down < 1.03


def test_every_byte_belongs_to_one_round() -> None:
    pair = run()
    records = pair.desk.store.rounds(TASK, 100)
    told = [sum(record.summary[name] for record in records) for name in ("bytes_up", "bytes_down")]
    meter = pair.desk.task.meter
    after = [
        effect
        for effect in pair.desk.effects
        if isinstance(effect, Publish) and "/to/" in effect.topic and effect.topic.endswith("/verdict")
    ]
    last = sum(publish_bytes(effect.topic, len(effect.payload)) for effect in after[-len(DEVICES) :])
    assert told[0] <= meter.up and 0 < meter.down - told[1] < 3 * last, "outcomes of the last round, and the end"
    assert all(record.summary["bytes_up"] > record.summary["update_bytes"] for record in records)


def test_an_announcement_counts_for_every_device_that_hears_it() -> None:
    meter = WireMeter(TOPICS)
    meter.sent("t", 10, devices=3)
    assert (meter.up, meter.down) == (3 * PUBACK_BYTES, 3 * publish_bytes("t", 10))
