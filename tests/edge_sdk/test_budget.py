"""Budgets of bytes: what work costs, what is declined, and that no device goes beyond, on a broker and on any day."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeBroker
from hand_made import blobs, mlp_program, start
from hypothesis import given, settings
from hypothesis import strategies as st
from one_federation import CLASSES, FEATURES, Diary, Federation, wait
from test_session import PARAMETERS, PLAN, PROGRAM, TERMS, Bench, of

from device_sim.broker import PrivateBroker
from device_sim.counting_proxy import CountingProxy
from device_sim.scenario import FAULTY, NetworkFaults, Scenario, run
from edge_sdk.codecs import CodecSettings, frame_bytes_max
from edge_sdk.device.daily_traffic import DailyTraffic
from edge_sdk.device.data_quota import BYTES_PER_DAY_MIN, RESERVE_BYTES, DataQuota
from edge_sdk.device.files import MemoryFiles
from edge_sdk.device.limits import Limits
from edge_sdk.device.progress import ProgressKind
from edge_sdk.device.session import CancelTraining, SetQuotaExhausted, StartTraining
from edge_sdk.device.training_job import OverQuota, TrainingJob
from edge_sdk.device.work import TrainingWork
from edge_sdk.errors import ConfigurationError
from edge_sdk.mqtt import Meter
from edge_sdk.training.bundle import encode_parameters
from edge_sdk.wire.envelope import Envelope, encode_message
from edge_sdk.wire.messages import Accept, CheckIn, Decline, Invite, Update, introduction_id
from edge_sdk.wire.plan import Plan
from edge_sdk.wire.ranges import CHUNK_BYTES_MAX
from edge_sdk.wire.terms import Terms
from edge_sdk.wire.topics import Topics
from edge_sdk.wire.wire_costs import UPDATE_HEAD_BYTES_MAX, Costs

COSTS = Costs("federation", "default", "device-00042")
SPARSE = Plan(training=PLAN.training, codec=CodecSettings("sparse", density=0.5))
MakeFederation = Callable[..., Federation]
NAMES = (f"budget-{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def broker(mosquitto: MakeBroker) -> Iterator[PrivateBroker]:
    with mosquitto() as started:
        yield started


@pytest.fixture
def federation(broker: PrivateBroker, tmp_path: Path) -> MakeFederation:
    def make(**tables: dict[str, Any]) -> Federation:
        return Federation(tmp_path / "coordinator", broker.url, next(NAMES), **tables)

    return make


def quota(limit: int = 0, per_update: int = 0) -> DataQuota:
    return DataQuota(DailyTraffic(MemoryFiles(), lambda: 0, limit), COSTS, per_update)


# --- what work costs -------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 20), st.booleans())
def test_an_update_within_a_limit_costs_no_more_and_a_larger_one_does(limit: int, tls: bool) -> None:
    costs = Costs("federation", "default", "device-00042", tls=tls)
    largest = costs.update_bytes_within(limit)
    assert largest == 0 or costs.upload(largest) <= limit
    assert costs.upload(largest + 256) > limit, "a small last chunk has shorter lengths and fewer records of TLS"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1 << 40), st.integers(0, 1 << 18), st.integers(0, 1 << 18), st.floats(-1e12, 1e12))
def test_the_numbers_beside_the_frames_of_an_update_have_a_bound(
    examples: int, frame: int, buffers: int, loss: float
) -> None:
    update = Update(
        examples, examples, loss, True, abs(loss) / 1e3, "onnxruntime", {"delta": (bytes(frame), bytes(buffers))},
        evaluation=(loss, loss, examples),
    )  # fmt: skip
    assert len(update.encode()) <= frame + buffers + UPDATE_HEAD_BYTES_MAX


def test_a_connection_with_tls_costs_more() -> None:
    assert Costs("f", "t", "d", tls=True).upload(200_000) > Costs("f", "t", "d").upload(200_000)


def test_the_estimate_of_a_download_is_above_its_bytes_and_not_far() -> None:
    assert 1_000_000 < COSTS.download(1_000_000, CHUNK_BYTES_MAX) < 1_000_000 * 1.02
    assert COSTS.download(10, CHUNK_BYTES_MAX) < 1000


# --- what is declined ------------------------------------------------------------------------------------------------


def terms_of(plan: Plan = PLAN) -> Terms:
    return replace(TERMS, plan=plan)


def test_without_limits_nothing_is_declined() -> None:
    assert quota().why_not(terms_of(), (1 << 30, 1 << 30)) is None


def test_work_that_does_not_fit_into_today_is_declined_and_what_is_here_costs_nothing() -> None:
    terms = terms_of()
    downloads = (len(PROGRAM), len(PARAMETERS))
    tight = quota(40_000)
    assert tight.why_not(terms, downloads) is None
    tight.traffic.count(10_000, 0.0)
    code, detail = tight.why_not(terms, downloads) or ("", "")
    assert code == "bytes_per_day" and "10000 of 40000 bytes are used today" in detail
    assert tight.why_not(terms, ()) is None


def test_the_coordinators_limits_are_in_force_where_they_are_smaller() -> None:
    asked = Plan(training=PLAN.training, codec=PLAN.codec, bytes_per_device_per_day_max=20_000)
    free = quota()
    assert (free.why_not(terms_of(asked), (len(PROGRAM), len(PARAMETERS))) or ("",))[0] == "bytes_per_day"
    assert free.traffic.bytes_max == 20_000
    small = Plan(training=PLAN.training, codec=PLAN.codec, bytes_per_update_max=5_000)
    assert (quota().why_not(terms_of(small), ()) or ("",))[0] == "bytes_per_update"
    assert (quota(0, 4_000).why_not(terms_of(), ()) or ("",))[0] == "bytes_per_update"


def test_a_daily_limit_that_is_far_too_low_still_lets_the_device_hear_of_a_better_one() -> None:
    found = quota()
    hopeless = Plan(training=PLAN.training, codec=PLAN.codec, bytes_per_device_per_day_max=1)
    assert (found.why_not(terms_of(hopeless), ()) or ("",))[0] == "bytes_per_day"
    assert found.affords_connection()
    assert found.why_not(terms_of(), ()) is None and not found.limited


def test_sparse_is_made_to_fit_and_what_cannot_be_is_declined_before_anything_is_fetched() -> None:
    terms = terms_of(SPARSE)
    assert quota(0, 2_000).why_not(terms, (10, 10)) is None
    assert (quota(0, 500).why_not(terms, (10, 10)) or ("",))[0] == "bytes_per_update"


def test_what_the_program_itself_told_is_remembered() -> None:
    terms, found = terms_of(SPARSE), quota(0, 3_000)
    assert found.why_not(terms, ()) is None
    found.note_unfit(terms.program, terms.plan)
    assert (found.why_not(terms, ()) or ("",))[0] == "bytes_per_update"
    other = Plan(training=PLAN.training, codec=CodecSettings("sparse", density=0.01))
    assert found.why_not(terms_of(other), ()) is None


def test_a_message_is_weighed_with_what_it_asks_for_and_what_waits() -> None:
    tight = quota(40_000)
    tight.traffic.count(20_000, 0.0)
    room = 40_000 - 20_000 - RESERVE_BYTES
    assert tight.affords_message("t", 100, 0, room - 200)
    assert not tight.affords_message("t", 100, 0, room)
    assert not tight.affords_message("t", 100, room - 50, 0)
    tight.expect(room - 200)
    assert not tight.affords_message("t", 200, 0, 0)
    tight.arrived("f/to/d/bytes", 5_000)
    assert tight.affords_message("t", 200, 0, 0)


def test_what_comes_with_an_invite_is_within_the_limit_too() -> None:
    limit, topics = 40_000, Topics("federation")
    name = introduction_id(bytes(16), {})
    check_in = encode_message(Envelope(), CheckIn(bytes(8), name, bytes(16), {}))
    invite = Invite(bytes(8), bytes(16), 1, 0, bytes(32), 600.0, TERMS.encode(), inline=(bytes(4096),))
    sent = "device-00042", CheckIn.kind, len(check_in)
    answered = "device-00042", Invite.kind, len(encode_message(Envelope(), invite))
    for used in range(0, limit, 16):
        tight = quota(limit)
        tight.traffic.count(used, 0.0)
        if tight.affords_message(topics.from_device(*sent[:2]), sent[2], 0, 0):
            most = used
    costs = COSTS.message(topics.from_device(*sent[:2]), sent[2]) + COSTS.message(
        topics.to_device(*answered[:2]), answered[2]
    )
    assert most + costs + 1024 <= limit, "and a goodbye"


def test_the_limit_is_reached_a_reserve_before_it() -> None:
    tight, meter = quota(40_000), Meter()
    for _ in range(100):
        meter.received += 1_000
        if tight.meter(meter, 0.0):
            break
    assert meter.total <= tight.traffic.bytes_today < 40_000 <= meter.total + RESERVE_BYTES + 1_000


def order(frames_bytes_max: int, codec: CodecSettings) -> TrainingJob:
    program = mlp_program()
    begun = StartTraining(
        bytes(16), b"", "default", 1, 0, "0", program.digest, bytes(32), Plan(PLAN.training, codec), 50.0
    )
    return TrainingJob(
        begun, program.encode(), encode_parameters(start(program)), lambda spec: {},
        lambda length: True, 0, lambda: False, lambda steps, loss: None, frames_bytes_max,
    )  # fmt: skip


@pytest.mark.parametrize("limit", [60, 100, 200])
def test_an_encoded_update_is_never_above_what_it_may_be(limit: int) -> None:
    product = TrainingWork(lambda: blobs(60)).run(order(limit, CodecSettings("sparse", density=1.0)))
    assert sum(map(len, Update.decode(product.update.payload or b"").frames())) <= limit
    assert len(product.update.payload or b"") <= limit + UPDATE_HEAD_BYTES_MAX
    assert np.abs(product.vectors_after["residual"]).sum() > 0.0, "what is left comes later"


def test_an_update_that_cannot_be_small_enough_is_found_out_before_training() -> None:
    asked: list[int] = []
    with pytest.raises(OverQuota, match="bytes_per_update_max leaves for it"):
        TrainingWork(lambda: asked.append(1)).run(order(100, CodecSettings("dense")))
    assert not asked


# --- the session -----------------------------------------------------------------------------------------------------


def test_who_has_declined_for_the_day_checks_in_again_when_the_day_has_changed() -> None:
    bench = Bench()
    bench.session._work._over_quota = lambda terms, downloads: (ProgressKind.BYTES_PER_DAY, str(downloads))
    bench.check_in()
    bench.hear(bench.invite())
    assert [message.reason for message in bench.said(Decline)] == ["bytes_per_day"] and not bench.said(Accept)
    bench.announce(round=2)
    bench.announce(round=3, after=600.0)
    assert bench.due is None and len(bench.said(CheckIn)) == 1
    bench.play(SetQuotaExhausted(False), after=3600.0)
    bench.tick()
    assert len(bench.said(CheckIn)) == 2


def test_a_budget_that_runs_out_gives_work_back_and_keeps_what_is_finished() -> None:
    bench = Bench()
    bench.training()
    bench.play(SetQuotaExhausted(True))
    assert [message.reason for message in bench.said(Decline)] == ["bytes_per_day"]
    assert of(bench.actions, CancelTraining) and bench.session.state == "idle"
    bench = Bench()
    bench.check_in()
    bench.play(SetQuotaExhausted(True))
    assert bench.session.state == "idle" and bench.due is None
    bench = Bench()
    bench.uploading()
    bench.play(SetQuotaExhausted(True))
    assert bench.session.state == "uploading", "the update stays in the outbox until there is a new day"


# --- on a real broker ------------------------------------------------------------------------------------------------


def test_a_devices_own_count_is_what_a_proxy_counts(federation: MakeFederation, tmp_path: Path) -> None:
    options: dict[str, Any] = {"limits": Limits(bytes_per_device_per_day_max=100_000_000)}
    with federation(stopping={"rounds_max": 3}) as plant, CountingProxy(broker_port(plant.url)) as proxy:
        options["broker"] = proxy.url
        with plant.client(tmp_path / "pi", **options) as client:
            wait(lambda: client.status.counted == 3, lambda: client.status)
            quiet(proxy)
            status = client.status
            assert (status.bytes_up, status.bytes_down) == (proxy.up, proxy.down)
            assert status.bytes_today == proxy.total and status.bytes_per_day_max == 100_000_000
        with plant.client(tmp_path / "pi", **options) as client:
            wait(lambda: client.status.connected)
            quiet(proxy)
            assert proxy.total == client.status.bytes_today, "a restart in the middle of the day forgets nothing"


def quiet(proxy: CountingProxy) -> None:
    """Wait until nothing is under way any more."""
    seen = [-1, proxy.total]

    def still() -> bool:
        time.sleep(0.3)
        seen.append(proxy.total)
        return seen[-1] == seen[-2] == seen[-3]

    wait(still)


def broker_port(url: str) -> int:
    return int(url.rsplit(":", 1)[1])


def test_at_its_limit_a_device_says_so_and_stays_away(federation: MakeFederation, tmp_path: Path) -> None:
    diary, limit = Diary(), 30_000
    limits = Limits(bytes_per_device_per_day_max=limit)
    with federation() as plant, CountingProxy(broker_port(plant.url)) as proxy:
        with plant.client(tmp_path / "pi", broker=proxy.url, limits=limits, on_progress=diary) as client:
            detail = diary.detail("bytes_per_day")
            wait(lambda: len(plant.rounds) > 0 and "bytes are used today" in client.status.error)  # declined, or left
        assert f"of {limit} bytes are used today" in detail and client.status.counted >= 1
        assert proxy.total <= limit
        unheard = proxy.total - client.status.bytes_today
        assert 0 <= unheard <= RESERVE_BYTES, "what the broker said while the device was leaving is in the reserve"
        used = proxy.total
        for _ in range(40):  # restarts come out of the same budget, until there is none left
            with plant.client(tmp_path / "pi", broker=proxy.url, limits=limits, on_progress=diary) as client:
                wait(lambda: client.status.error or client.status.phase != "idle")
            if proxy.total == used:
                break
            used = proxy.total
        assert proxy.total == used <= limit


def test_the_coordinators_limit_of_an_update_reaches_the_device(federation: MakeFederation, tmp_path: Path) -> None:
    size, asked = FEATURES * CLASSES + CLASSES, CodecSettings("sparse", density=1.0)
    limit = COSTS.upload(UPDATE_HEAD_BYTES_MAX + frame_bytes_max(size, asked)) - 20
    with federation(codec={"name": "sparse", "density": 1.0, "bytes_per_update_max": limit}) as plant:
        costs = Costs(plant.name, "default", "pi")
        with plant.client(tmp_path / "pi") as client:
            wait(lambda: client.status.counted >= 3, lambda: client.status)
        outcome = plant.rounds[0].summary
    assert 0 < outcome["update_bytes"] <= costs.update_bytes_within(limit)


def test_a_device_declines_what_its_own_limit_of_an_update_forbids(federation: MakeFederation, tmp_path: Path) -> None:
    diary = Diary()
    small = Limits(bytes_per_update_max=300)
    with (
        federation(codec={"name": "dense", "density": None}) as plant,
        plant.client(tmp_path / "pi", limits=small, on_progress=diary),
    ):
        assert "bytes_per_update_max" in diary.detail("bytes_per_update")
        wait(lambda: "bytes_per_update" in plant.reasons("declined"))
    assert not diary.of("training")


def test_a_limit_that_no_update_can_keep_is_refused_by_the_coordinator(
    federation: MakeFederation, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"codec\.bytes_per_update_max = 300: .* takes \d+ bytes at least"):
        federation(codec={"name": "dense", "density": None, "bytes_per_update_max": 300})


def test_a_daily_limit_that_is_worth_no_connection_is_refused() -> None:
    for wrong in (1, BYTES_PER_DAY_MIN - 1, -1, True):
        with pytest.raises(ConfigurationError, match=r"limits\.bytes_per_device_per_day_max"):
            Limits(bytes_per_device_per_day_max=wrong)


# --- over several days -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "limit", "days", "faults", "cuts"), [(0, 16_000, 1, NetworkFaults(), 0.0), (1, 16_000, 1, FAULTY, 0.3)]
)
def test_no_device_ever_exceeds_its_budget_of_a_day(
    seed: int, limit: int, days: int, faults: NetworkFaults, cuts: float
) -> None:
    scenario = Scenario(
        devices=6,
        rounds=10,
        goal_count=2,
        bytes_per_device_per_day_max=limit,
        faults=faults,
        device_crashes_per_hour=cuts,
        hours_max=24.0 * 20,
    )
    outcome = run(scenario, seed)  # the books of the days are kept as it goes, beside the devices' own counts
    assert outcome.virtual_seconds > days * 86_400, "work that one day does not allow is done on the next"
    assert len(outcome.rounds) == scenario.rounds
