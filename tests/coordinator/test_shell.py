"""The turn: decided, committed, only then spoken; devices' last wills; a clock that stands still without a broker."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from wired import ROUND, TASK, TOPICS, Desk

from coordinator.events import CONTROL, Arrived, Publish, Subscribe, Unsubscribe
from coordinator.shell import Shell
from coordinator.store import Store
from edge_sdk.errors import ConfigurationError
from edge_sdk.mqtt import Delivery
from edge_sdk.wire.envelope import decode_message
from edge_sdk.wire.messages import Accept, Invite


def status(desk: Desk, device: str, state: str, *, retained: bool = False) -> None:
    topic, payload = TOPICS.status(device), json.dumps({"state": state}).encode()
    desk.play(Arrived(CONTROL, topic, payload, Delivery(topic, payload, retained, 0)))


def test_whatever_a_device_is_told_another_process_can_read_in_the_database(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    ids = np.random.Generator(np.random.PCG64(0))
    desk = Desk(store=Store(path, wall=lambda: 0.0, new_id=ids.bytes))
    seen: list[bytes] = []

    def look(publish: Publish) -> None:
        if publish.topic.endswith("/invite"):
            _, invite = decode_message(publish.payload, "invite", peer="coordinator")
            assert isinstance(invite, Invite)
            with Store.open_readonly(path) as reader:
                assert reader.ticket(invite.ticket) is not None, "invited before it was committed"
            seen.append(invite.ticket)

    desk.on_publish = look
    desk.begin("a", "b", "c")
    assert len(seen) == 3
    desk.store.close()


def test_effects_performed_before_the_commit_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation that no test noticed while the simulator had a turn of its own."""

    def speak_first(self: Shell, handle: object, now: float, *, open_channels: bool = False) -> None:
        with self._store.transaction():
            assert callable(handle)
            handle()
            self.core.end_turn(now)
            for effect in self.core.take_effects():
                self._perform(effect)

    desk = Desk()
    monkeypatch.setattr(Shell, "_commit", speak_first)
    with pytest.raises(AssertionError, match="spoken before the commit"):
        desk.begin("a", "b", "c")


def test_a_message_that_no_packet_of_the_broker_holds_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    desk = Desk()

    def refuse_one(publish: Publish) -> None:
        if publish.topic == TOPICS.to_device("a", "invite"):
            raise ConfigurationError("publish: a payload of 5000 bytes is above the broker's limit")

    desk.on_publish = refuse_one
    invites = desk.begin("a", "b", "c")
    assert {"b", "c"} <= invites.keys()
    assert "above the broker's limit" in caplog.text


def test_the_last_will_of_an_invited_device_ends_the_waiting_for_it() -> None:
    desk = Desk(round=ROUND, stopping=Desk().settings.stopping)
    invites = desk.begin("a", "b", "c")
    assert {TOPICS.status(device) for device in "abc"} <= set(desk.filters())
    for device, invite in invites.items():
        desk.hear(device, Accept(ticket=invite.ticket))
    status(desk, "a", "offline", retained=True)
    assert desk.round is not None and not desk.round.tickets[invites["a"].ticket].away, "said before the invite"
    status(desk, "a", "offline")
    assert desk.round.tickets[invites["a"].ticket].away
    status(desk, "a", "online")
    assert not desk.round.tickets[invites["a"].ticket].away
    status(desk, "a", "offline")
    desk.check_in("a")
    assert not desk.round.tickets[invites["a"].ticket].away
    assert desk.told("a", Invite)[-1].ticket == invites["a"].ticket, "it goes on with the same ticket"


@pytest.mark.parametrize("how", ["the broker was lost", "the coordinator was killed"])
def test_wills_of_invited_devices_are_heeded_again_after(how: str) -> None:
    desk = Desk()
    desk.begin("a", "b", "c")
    desk.effects.clear()
    if how == "the broker was lost":
        desk.lose_broker()
        desk.find_broker()
    else:
        desk.crash()
    assert {TOPICS.status(device) for device in "abc"} <= set(desk.filters())


def test_wills_are_heeded_while_the_round_is_open_only() -> None:
    desk = Desk()
    desk.begin("a", "b", "c")
    desk.wait(1000.0)  # nobody reports: abandoned
    watched = [f for e in desk.effects if isinstance(e, Subscribe) for f in e.filters if "/status/" in f]
    unwatched = [f for e in desk.effects if isinstance(e, Unsubscribe) for f in e.filters]
    assert sorted(watched) == sorted(unwatched) == [TOPICS.status(device) for device in "abc"]


def test_the_clock_of_a_round_stands_still_while_the_broker_cannot_be_heard() -> None:
    desk = Desk()
    for device, invite in desk.begin("a", "b", "c").items():
        desk.hear(device, Accept(ticket=invite.ticket))
    assert desk.round is not None and desk.round.phase == "reporting"
    left = desk.round.seconds_remaining(desk.now)
    desk.lose_broker()
    desk.wait(10 * left)
    assert desk.round.seconds_remaining(desk.now) == left
    summary = desk.task.summary(desk.now)
    assert summary["remaining_seconds"] == round(left, 1) and "broker" in summary["reason"]
    desk.find_broker()
    desk.wait(left - 1.0)
    assert desk.round is not None and desk.round.phase == "reporting"
    desk.wait(1.0)
    assert desk.store.rounds(TASK)[-1].phase == "abandoned"
