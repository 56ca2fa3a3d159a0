"""``edge-coordinator serve`` as a process, with real devices over a real broker, through all that may go wrong."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import FEDERATION, HandMade, Served, dense_frame, digits_of, update_of, write_held_out
from typer.testing import CliRunner

from coordinator.__main__ import app
from coordinator.setup import build_bundle, prepare
from device_sim.broker import PrivateBroker
from edge_sdk.client import EdgeClient
from edge_sdk.errors import StateError
from edge_sdk.mqtt.loop import EventLoop
from edge_sdk.training.bundle import digest_of
from edge_sdk.wire.messages import Accept, CheckIn, Chunk, Decline, Have, Invite, Offer, Verdict, short
from edge_sdk.wire.topics import Topics

Serve = Callable[..., Served]
ByHand = Callable[[EventLoop, str], HandMade]
PARAMETERS = 650


@pytest.fixture
def serve(tmp_path: Path, mosquitto_broker: PrivateBroker) -> Iterator[Serve]:
    """Starts a coordinator and devices; tables of the configuration as keywords."""
    made: list[Served] = []

    def start(devices: int = 6, **tables: Any) -> Served:
        made.append(Served(tmp_path, mosquitto_broker.settings(), mosquitto_broker.url, devices, **tables))
        return made[-1]

    yield start
    for served in made:
        served.close()


@pytest.fixture
def by_hand(mosquitto_broker: PrivateBroker) -> Iterator[ByHand]:
    """Makes devices that the test speaks for."""
    made: list[HandMade] = []

    def make(loop: EventLoop, device: str) -> HandMade:
        made.append(HandMade(loop, mosquitto_broker.settings(), device))
        return made[-1]

    yield make
    for device in made:
        device.close()


def status_of(served: Served) -> dict[str, Any]:
    """What ``edge-coordinator status --json`` prints."""
    result = CliRunner().invoke(app, ["status", str(served.path), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_six_embedded_clients_finish_three_rounds(
    tmp_path: Path, mosquitto_broker: PrivateBroker, serve: Serve
) -> None:
    write_held_out(tmp_path)
    served = serve(devices=0, evaluation={"data": "heldout.npz"})
    clients = [
        EdgeClient(
            broker=mosquitto_broker.url,
            federation=FEDERATION,
            device_id=f"device-{number}",
            load_examples=lambda examples=examples: examples,  # type: ignore[misc]
            state_dir=tmp_path / f"device-{number}",
            engine="numpy",
        ).start()
        for number, examples in enumerate(digits_of(6))
    ]
    served.run_until_finished()
    for client in clients:
        client.request_stop()
    for client in clients:
        client.stop()
    output = served.coordinator.output()
    assert "finished: round budget: 3 rounds done" in output
    assert "new, begins with round 1" in output and "650 parameters" in output
    assert output.count(" closed: counted ") == 3 and "accuracy" in output
    with served.store() as store:
        rounds = [record for record in store.rounds("default") if record.phase == "closed"]
        assert [record.number for record in rounds] == [3, 2, 1]
        assert rounds[0].summary["metrics"]["accuracy"] > rounds[2].summary["metrics"]["accuracy"]
    assert (tmp_path / "state" / f"{FEDERATION}-default.db.backup").exists()


def test_a_killed_coordinator_goes_on_with_the_same_round_tickets_and_bytes(serve: Serve, by_hand: ByHand) -> None:
    served = serve(
        devices=5,
        model={"zoo": "mlp", "hidden": [24]},
        codec={"name": "dense", "density": None},
        selection={"goal_count": 6, "over_selection": 1.0},
        transfer={"chunk_bytes_max": 4096},  # several chunks an update
        stopping={"rounds_max": 1},
    )
    devices, coordinator = served.devices, served.coordinator
    devices.gate.hold(*devices.names)
    hand = by_hand(devices.fleet.loop, "hand")
    served.run_until_said("broker: connected")
    served.run_until(lambda: hand.subscribed, "the hand")
    hand.check_in()
    served.run_until(lambda: hand.last(Invite) is not None, "an invite")
    ticket = hand.invite().ticket
    hand.say(Accept(ticket=ticket))
    served.run_until_tickets(accepted=6)
    tickets = {ticket.ticket: ticket.device for ticket in served.tickets()}
    payload = update_of(dense_frame(np.full(build_bundle(served.config).program.spec.size, 0.001, dtype=np.float32)))
    digest, total, half = digest_of(payload), len(payload), 3000
    devices.books.payloads[digest] = payload
    hand.say(Chunk(ticket=ticket, digest=digest, total=total, offset=0, data=payload[:half]))
    hand.say(Offer(ticket=ticket, digest=digest, total=total))
    served.run_until(lambda: hand.last(Have) is not None, "an answer")
    coordinator.kill()  # everybody at work, and one update half here

    hand.received.clear()
    coordinator.start()
    served.run_until_said("broker: connected")
    hand.say(Offer(ticket=ticket, digest=digest, total=total))
    served.run_until(lambda: hand.last(Have) is not None, "an answer")
    assert hand.last(Have).ranges == ((0, half),)  # type: ignore[union-attr]
    for start in range(half, total, half):
        data = payload[start : start + half]
        hand.say(Chunk(ticket=ticket, digest=digest, total=total, offset=start, data=data))
    devices.gate.release(*devices.names[:2])
    served.run_until_tickets(journalled=3)
    coordinator.kill()  # some updates in the journal, others still to come
    assert {t.ticket: t.device for t in served.tickets()} == tickets, "a restart gives out no other tickets"
    journalled = {t.device for t in served.tickets() if t.state == "journalled"}
    assert journalled == {"hand", *devices.names[:2]}

    coordinator.start()
    served.run_until_said("goes on with round 1")
    devices.gate.release()
    served.run_until_finished()
    with served.store() as store:
        assert {t.ticket: t.device for t in store.tickets("default", 1, 0) if t.state == "counted"} == tickets
    served.check_books()


def test_broker_and_coordinator_may_die_together_in_the_middle_of_a_round(
    serve: Serve, mosquitto_broker: PrivateBroker
) -> None:
    served = serve(stopping={"rounds_max": 2})
    devices = served.devices
    devices.gate.hold(*devices.names)
    served.run_until_tickets(accepted=4)
    tickets = {ticket.ticket for ticket in served.tickets()}
    mosquitto_broker.kill()
    devices.gate.release()
    served.run_until(lambda: devices.fleet.connected == 0, "every device notices")
    mosquitto_broker.start()
    served.run_until(lambda: served.coordinator.output().count("broker: connected") == 2, "it is back by itself")
    devices.run_for(random.Random(5).uniform(0.0, 0.3))  # anywhere: between two updates, in a commit
    served.coordinator.kill()
    mosquitto_broker.restart()
    served.coordinator.start()
    served.run_until_finished()
    served.check_books()
    with served.store() as store:
        assert tickets <= {ticket.ticket for ticket in store.tickets("default", 1, 0)}


def test_hostile_messages_are_counted_by_reason_and_the_round_goes_on(serve: Serve, by_hand: ByHand) -> None:
    served = serve(
        devices=4,
        codec={"name": "dense", "density": None},
        selection={"goal_count": 11, "over_selection": 1.0, "selection_seconds_max": 60.0},
        stopping={"rounds_max": 2},
    )
    devices, loop = served.devices, served.devices.fleet.loop
    devices.gate.hold(*devices.names)
    names = ("nan", "shape", "cut", "huge", "digest", "noise", "fair")
    hands = {name: by_hand(loop, f"hand-{name}") for name in names}
    served.run_until_said("broker: connected")
    served.run_until(lambda: all(hand.subscribed for hand in hands.values()), "all hands")
    for hand in hands.values():
        hand.check_in()
    served.run_until(lambda: all(hand.last(Invite) for hand in hands.values()), "all hands are invited")
    for hand in hands.values():
        hand.say(Accept(ticket=hand.invite().ticket))
    served.run_until_tickets(accepted=11)

    ones = np.full(PARAMETERS, 0.001, dtype=np.float32)
    fair = update_of(dense_frame(ones))
    devices.books.payloads[digest_of(fair)] = fair
    hands["nan"].send_update(update_of(dense_frame(ones * np.float32("nan"))))
    hands["shape"].send_update(update_of(dense_frame(ones[1:])))
    hands["cut"].send_update(update_of(dense_frame(ones)[:-3]))
    hands["huge"].send_update(update_of(dense_frame(ones * 1e6)))
    hands["digest"].send_update(fair, digest=os.urandom(32))
    hands["noise"].send_update(os.urandom(300))
    hands["fair"].send_update(fair)
    served.run_until_tickets(journalled=1, refused=6)

    # Now whoever has no ticket, has spent it, or speaks another language.
    fair_hand, stranger = hands["fair"], by_hand(loop, "hand-stranger")
    served.run_until(lambda: stranger.subscribed, "the stranger")
    stranger.lineage = fair_hand.lineage
    topics = Topics(FEDERATION)
    stranger.publish(topics.from_device("hand-stranger", "checkin"), os.urandom(200))
    stranger.publish(topics.up(hand.shard, "hand-stranger"), b"")
    stranger.publish(topics.from_device("hand-stranger", "gossip"), b"")
    check_in = CheckIn(nonce=bytes(8), introduction=bytes(8), instance=bytes(16), capabilities={})
    stranger.say(check_in, task="another")  # another coordinator's, perhaps: ignored
    stranger.send_update(fair, ticket=os.urandom(16))
    stranger.send_update(fair, ticket=fair_hand.invite().ticket)
    hands["nan"].send_update(fair)
    fair_hand.send_update(fair)
    fair_hand.send_update(update_of(dense_frame(-ones)))
    stranger.say(Offer(ticket=os.urandom(16), digest=bytes(32), total=1000))
    honest = next(t for t in served.tickets() if t.device == devices.names[0])
    stranger.say(Accept(ticket=honest.ticket))
    hands["nan"].check_in()  # counters are written with whatever is written next
    wanted = {
        "values": 1,
        "size": 1,
        "checksum": 1,
        "value": 1,
        "digest": 1,
        "malformed": 3,
        "kind": 1,
        "upload_unknown": 3,
        "stranger": 2,
        "upload_duplicate": 1,
        "upload_spent": 2,
    }
    served.run_until(lambda: sum(status_of(served)["messages"].values()) >= sum(wanted.values()), "all is counted")
    status = status_of(served)
    assert status["messages"] == wanted
    assert status["served"] and status["round"]["number"] == 1
    assert status["round"]["tickets"] == {"accepted": 4, "journalled": 1, "refused": 6}

    devices.gate.release()
    served.run_until(lambda: status_of(served)["completed"] == 1, "the first round is closed")
    fair_hand.send_update(fair)  # of a round that is over
    served.run_until(lambda: status_of(served)["messages"].get("upload_counted") == 1, "it is counted as such")
    verdict = fair_hand.last(Verdict)
    assert verdict is not None and (verdict.digest, verdict.outcome) == (short(digest_of(fair)), "counted")
    for hand in hands.values():
        hand.check_in()
    served.run_until(lambda: all(hand.invite().round == 2 for hand in hands.values()), "all are invited again")
    for hand in hands.values():
        hand.say(Decline(ticket=hand.invite().ticket, reason="enough"))
    served.run_until_finished()
    served.check_books()


def test_it_waits_for_a_broker_keeps_its_database_to_itself_and_leaves_politely(
    serve: Serve, tmp_path: Path, mosquitto_broker: PrivateBroker
) -> None:
    mosquitto_broker.kill()
    served = serve(devices=2)
    served.run_until_said("nothing listens at")
    with pytest.raises(StateError, match="another coordinator uses this database"):
        prepare([served.config], wall=lambda: 1e9, new_id=os.urandom)
    mosquitto_broker.start()
    served.run_until_said("broker: connected")
    assert served.coordinator.output().count("nothing listens at") == 1, "said once, not for each attempt"
    assert status_of(served)["served"]
    assert served.coordinator.terminate() == 0
    assert "stopped; start again to go on" in served.coordinator.output()
    assert not list(tmp_path.glob("state/*-wal")), "the database is closed"
    assert not status_of(served)["served"]
