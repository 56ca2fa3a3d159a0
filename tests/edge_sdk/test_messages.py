"""The control messages: committed bytes decode for ever, honest ones survive the trip, hostile ones only raise ours."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import re
import tracemalloc
from pathlib import Path
from typing import Any, ClassVar

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_sdk.codecs import CodecSettings
from edge_sdk.errors import DecodeError, ProtocolError, VersionError
from edge_sdk.wire.envelope import Envelope, decode_message, encode_message
from edge_sdk.wire.fields import integer
from edge_sdk.wire.messages import (
    BODY_BYTES_MAX,
    MESSAGES,
    RANGES_MAX,
    Accept,
    Announce,
    BlobGone,
    CheckIn,
    Chunk,
    ComeBack,
    Decline,
    Have,
    Invite,
    Message,
    Offer,
    RangeData,
    RangeRequest,
    Update,
    Verdict,
    introduction_id,
    short,
)
from edge_sdk.wire.outcomes import OUTCOMES
from edge_sdk.wire.plan import Plan, TrainingPlan
from edge_sdk.wire.records import key_of, on_wire, to_map
from edge_sdk.wire.terms import Terms, terms_id

GOLDEN = Path(__file__).parent.parent / "golden"
PAGE = Path(__file__).parents[2] / "docs" / "wire-format.md"
ENVELOPE = Envelope("harvest", bytes(range(8)))
TICKET, NONCE, DIGEST = bytes(range(16)), bytes(range(100, 108)), bytes(range(200, 232))
PLAN = Plan(
    training=TrainingPlan(
        epochs=2, batch_size=16, steps_max=40, seconds_max=60.0, scalars={"lr": 0.25}, held_out=0.125, clip_norm=3.0
    ),
    codec=CodecSettings("sparse", density=0.0625),
    examples_max=5_000,
    weighting="uniform",
)
VERDICT = Verdict(ticket=TICKET, digest=short(DIGEST), outcome="refused", reason="norm", retry_seconds=2.5)
CAPABILITIES: dict[str, Any] = {"sdk": "0.1.0", "engine": "numpy", "supports": ["codec:dense", "codec:sparse"]}
TERMS = Terms(
    program=DIGEST,
    program_bytes=4_096,
    parameters_bytes=70_000,
    plan=PLAN,
    chunk_bytes_max=59_392,
    blob_bytes=16_384,
    requires=("codec:sparse",),
    shard="6fa1b2c3",
)
EXPECTED: dict[str, Message] = {
    "announce": Announce(round=3, attempt=1, phase="working", fraction=0.25, window_seconds=10.0),
    "verdict": VERDICT,
    "checkin": CheckIn(
        nonce=NONCE,
        introduction=introduction_id(TICKET[::-1], CAPABILITIES),
        instance=TICKET[::-1],
        capabilities=CAPABILITIES,
        unsettled=(TICKET,),
    ),
    "invite": Invite(
        nonce=NONCE,
        ticket=TICKET,
        round=3,
        attempt=1,
        parameters=DIGEST[::-1],
        report_seconds=600.0,
        terms=TERMS.encode(),
        verdicts=(VERDICT,),
    ),
    "come_back": ComeBack(nonce=NONCE, seconds=900.0, hold=True, reason="round_full", verdicts=(VERDICT,)),
    "accept": Accept(ticket=TICKET),
    "decline": Decline(ticket=TICKET, reason="no_examples", detail="log.csv, line 3: not a number"),
    "want": RangeRequest(digest=short(DIGEST), ranges=((0, 4096), (8192, 9000))),
    "bytes": RangeData(digest=short(DIGEST), offset=4096, data=b"piece of a blob"),
    "gone": BlobGone(digest=short(DIGEST)),
    "offer": Offer(ticket=TICKET, digest=DIGEST, total=12_345),
    "have": Have(ticket=TICKET, digest=short(DIGEST), ranges=((0, 1024), (4096, 12_345)), chunk_bytes_max=1024),
    "chunk": Chunk(ticket=TICKET, digest=DIGEST, total=12_345, offset=1024, data=b"piece of an update"),
}
CHECKIN, INVITE = EXPECTED["checkin"], EXPECTED["invite"]
assert isinstance(CHECKIN, CheckIn) and isinstance(INVITE, Invite)
WITH_LINKS: dict[str, Message] = {
    "checkin_holds": CheckIn(
        nonce=NONCE,
        introduction=CHECKIN.introduction,
        holds=(short(DIGEST), short(DIGEST[::-1])),
        terms=(terms_id(TERMS.encode()),),
    ),
    "come_back_introduce": ComeBack(nonce=NONCE, introduce=True),
    "invite_known": dataclasses.replace(INVITE, terms=terms_id(TERMS.encode()), verdicts=()),
    "invite_links": dataclasses.replace(INVITE, base=short(DIGEST), deltas=((DIGEST[::-1], 900), (DIGEST, 1_234))),
    "invite_vectors": dataclasses.replace(
        INVITE,
        terms=dataclasses.replace(
            TERMS,
            plan=dataclasses.replace(PLAN, local="control_variates", local_settings={"option": 2.0}),
            requires=("codec:sparse", "local:control_variates"),
        ).encode(),
        vectors=(("control", DIGEST, 70_000),),
    ),
}
UPDATE = Update(
    examples=360,
    steps=46,
    loss=0.75,
    complete=True,
    seconds=12.125,
    engine="numpy",
    vectors={"delta": (b"a frame of the codec", b"that of the buffers"), "local.c": (b"a second vector",)},
    numbers={"tau": 46.0},
    evaluation=(31.5, 40.0, 45),
)


def golden(kind: str) -> bytes:
    return (GOLDEN / f"message_{kind}.bin").read_bytes()


def decode(payload: bytes, kind: str, peer: str = "device") -> tuple[Envelope, Message]:
    return decode_message(payload, kind, peer=peer)


def keyed(kind: type[Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Changes by the keys of the wire in place of the fields' names; other names stay as they are."""
    keys = {field.name: key_of(field) for field in dataclasses.fields(kind)}
    return {keys.get(name, name): value for name, value in changes.items()}


def with_body(message: Message, **changes: Any) -> bytes:
    """An honest message with some fields of its body changed; ``...`` removes a field."""
    outer = msgpack.unpackb(encode_message(ENVELOPE, message))
    body = msgpack.unpackb(outer["b"]) | keyed(type(message), changes)
    outer["b"] = msgpack.packb({name: value for name, value in body.items() if value is not ...})
    return bytes(msgpack.packb(outer))


def with_envelope(message: Message, **changes: Any) -> bytes:
    """An honest message with some keys of its envelope changed; ``...`` removes one."""
    outer = msgpack.unpackb(encode_message(ENVELOPE, message)) | changes
    return bytes(msgpack.packb({name: value for name, value in outer.items() if value is not ...}))


def update_with(**changes: Any) -> bytes:
    """The update with some fields changed."""
    return bytes(msgpack.packb(msgpack.unpackb(UPDATE.encode()) | keyed(Update, changes)))


# --- committed bytes -------------------------------------------------------------------------------------------------


def test_there_is_a_golden_file_for_every_kind() -> None:
    assert EXPECTED.keys() == MESSAGES.keys()
    assert {path.stem for path in GOLDEN.glob("message_*.bin")} == {
        f"message_{name}" for name in [*EXPECTED, *WITH_LINKS, "update"]
    }


@pytest.mark.parametrize("kind", EXPECTED)
def test_committed_bytes_decode_to_the_expected_message(kind: str) -> None:
    assert decode(golden(kind), kind) == (ENVELOPE, EXPECTED[kind])


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_expected_message_encodes_to_the_committed_bytes(kind: str) -> None:
    assert encode_message(ENVELOPE, EXPECTED[kind]) == golden(kind)


@pytest.mark.parametrize("name", WITH_LINKS)
def test_what_is_said_of_links_has_committed_bytes_too(name: str) -> None:
    message = WITH_LINKS[name]
    assert encode_message(ENVELOPE, message) == golden(name)
    assert decode(golden(name), message.kind) == (ENVELOPE, message)


def test_an_update_has_committed_bytes_too() -> None:
    assert UPDATE.encode() == golden("update")
    assert Update.decode(golden("update")) == UPDATE


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_envelope_says_only_what_the_topic_does_not_and_the_body_is_bytes(kind: str) -> None:
    outer = msgpack.unpackb(golden(kind))
    body = outer.pop("b")
    assert isinstance(body, bytes)
    assert outer == {"v": 1, "t": "harvest", "l": bytes(range(8))}
    assert msgpack.unpackb(encode_message(Envelope(), EXPECTED[kind])).keys() == {"v", "b"}
    fields = dataclasses.fields(EXPECTED[kind])
    told = [key_of(f) for f in fields if not f.metadata["brief"] or getattr(EXPECTED[kind], f.name) != f.default]
    assert list(msgpack.unpackb(body)) == told


@pytest.mark.parametrize("kind", EXPECTED)
def test_every_key_of_a_message_is_one_letter(kind: str) -> None:
    assert all(len(key_of(field)) == 1 for field in dataclasses.fields(EXPECTED[kind]))


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_page_of_the_wire_format_names_the_fields_of_every_message_with_their_keys(kind: str) -> None:
    (row,) = re.findall(rf"^\| `{kind}` \| (`.` .*) \|$", PAGE.read_text(), re.MULTILINE)
    written = [re.match(r"`(.)` (\w+)(.*)", field) for field in row.split("; ")]
    fields = dataclasses.fields(EXPECTED[kind])
    assert [found and found.groups()[:2] for found in written] == [(key_of(field), field.name) for field in fields]
    assert [found and " = " in found[3] for found in written] == [field.metadata["brief"] for field in fields]


@pytest.mark.parametrize(
    ("kind", "begins", "ends", "before"),
    [(Update, "## Update", "## Update frame", [("v", "version")]), (Terms, "### Terms", "### Who answers what", [])],
)
def test_the_page_of_the_wire_format_names_the_fields_of_updates_and_terms_with_their_keys(
    kind: type[Any], begins: str, ends: str, before: list[tuple[str, str]]
) -> None:
    page = PAGE.read_text()
    section = page[page.index(f"\n{begins}\n") : page.index(f"\n{ends}\n")]
    written = re.findall(r"^\| `(.)` \| (\w+) \|", section, re.MULTILINE)
    assert written == [*before, *((key_of(field), field.name) for field in dataclasses.fields(kind))]


def test_two_fields_of_a_record_cannot_have_the_same_key() -> None:
    @dataclasses.dataclass(frozen=True)
    class Twice:
        kind: ClassVar[str] = "twice"
        first: int = on_wire(integer(0, 9), 0, key="a")
        second: int = on_wire(integer(0, 9), 0, key="a")

    with pytest.raises(TypeError, match="Twice: two fields have the same key"):
        to_map(Twice())


def test_a_float_that_is_a_whole_number_takes_the_bytes_of_an_integer() -> None:
    whole, other = (len(encode_message(Envelope(), ComeBack(NONCE, seconds))) for seconds in (60.0, 60.25))
    assert other - whole == 8
    back = decode(encode_message(Envelope(), ComeBack(NONCE, 60.0)), "come_back")[1]
    assert isinstance(back, ComeBack) and type(back.seconds) is float and back.seconds == 60.0
    for loss in (1e300, -0.0, float(1 << 53), 0.1):
        assert msgpack.unpackb(dataclasses.replace(UPDATE, loss=loss).encode())["l"] == loss


# --- honest messages -------------------------------------------------------------------------------------------------

bytes_of = st.binary
words = st.text(max_size=40)
seconds = st.floats(0, 1e9)
tickets = bytes_of(min_size=16, max_size=16)
digests = bytes_of(min_size=32, max_size=32)
short_digests = bytes_of(min_size=8, max_size=8)
nonces = bytes_of(min_size=8, max_size=8)
sizes = st.integers(1, 1 << 31)
numbers = st.integers(0, 1 << 40)
spans = st.tuples(st.integers(0, 1 << 30), st.integers(1, 1 << 30)).map(lambda pair: (pair[0], pair[0] + pair[1]))
verdicts = st.builds(
    Verdict,
    ticket=tickets,
    digest=st.one_of(st.just(b""), short_digests),
    outcome=st.sampled_from(OUTCOMES),
    reason=words,
    retry_seconds=seconds,
)
plans = st.builds(
    Plan,
    training=st.builds(
        TrainingPlan,
        epochs=st.integers(1, 10_000),
        batch_size=st.integers(1, 1 << 20),
        steps_max=st.integers(0, 1 << 31),
        seconds_max=st.floats(0, 1e7),
        scalars=st.dictionaries(words, st.floats(-1e9, 1e9), max_size=4),
        held_out=st.floats(0, 0.9),
        held_out_last=st.booleans(),
        clip_norm=st.floats(0, 1e9),
    ),
    codec=st.sampled_from([CodecSettings("dense"), CodecSettings("int8", block_size=64), CodecSettings("sparse")]),
    examples_max=st.integers(1, 1 << 40),
    weighting=st.sampled_from(["examples", "uniform"]),
)
vector_names = st.text(min_size=1, max_size=32)
updates = st.builds(
    Update,
    examples=st.integers(1, 1 << 40),
    steps=st.integers(0, 1 << 40),
    loss=st.floats(-1e12, 1e12),
    complete=st.booleans(),
    seconds=seconds,
    engine=words,
    vectors=st.dictionaries(vector_names, st.lists(bytes_of(max_size=40), max_size=18).map(tuple), max_size=8),
    numbers=st.dictionaries(vector_names, st.floats(-1e12, 1e12), max_size=16),
    evaluation=st.one_of(st.none(), st.tuples(st.floats(0, 1e9), st.floats(0, 1e9), st.integers(1, 1 << 40))),
)
asked = st.builds(
    Terms,
    program=digests,
    program_bytes=sizes,
    parameters_bytes=sizes,
    plan=plans,
    chunk_bytes_max=st.integers(256, BODY_BYTES_MAX),
    blob_bytes=st.integers(0, BODY_BYTES_MAX),
    requires=st.lists(words, max_size=4).map(tuple),
)
replies = st.lists(verdicts, max_size=8).map(tuple)
messages: st.SearchStrategy[Message] = st.one_of(
    verdicts,
    st.builds(
        CheckIn,
        nonce=nonces,
        introduction=short_digests,
        instance=tickets,
        capabilities=st.dictionaries(words, st.one_of(words, st.lists(words, max_size=5)), max_size=5),
        unsettled=st.lists(tickets, max_size=8).map(tuple),
        holds=st.lists(short_digests, max_size=2).map(tuple),
    ),
    st.builds(
        Invite,
        nonce=nonces,
        ticket=tickets,
        round=numbers,
        attempt=st.integers(0, 1 << 30),
        parameters=digests,
        report_seconds=seconds,
        terms=bytes_of(min_size=8, max_size=200),
        verdicts=replies,
        base=st.one_of(st.just(b""), short_digests),
        deltas=st.lists(st.tuples(digests, sizes), max_size=20).map(tuple),
        vectors=st.lists(st.tuples(vector_names, digests, sizes), max_size=8).map(tuple),
    ),
    st.builds(ComeBack, nonce=nonces, seconds=seconds, hold=st.booleans(), reason=words, verdicts=replies),
    st.builds(
        Have,
        ticket=tickets,
        digest=short_digests,
        ranges=st.lists(spans, max_size=20).map(tuple),
        chunk_bytes_max=st.integers(0, BODY_BYTES_MAX),
    ),
    st.builds(RangeRequest, digest=short_digests, ranges=st.lists(spans, max_size=20).map(tuple)),
    st.builds(
        Chunk,
        ticket=tickets,
        digest=digests,
        total=sizes,
        offset=st.integers(0, 1 << 31),
        data=bytes_of(max_size=5_000),
    ),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(messages)
def test_every_message_survives_the_trip(message: Message) -> None:
    assert decode(encode_message(ENVELOPE, message), message.kind) == (ENVELOPE, message)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(updates)
def test_every_update_survives_the_trip(update: Update) -> None:
    assert Update.decode(update.encode()) == update


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(asked)
def test_all_terms_survive_the_trip(terms: Terms) -> None:
    assert Terms.decode(terms.encode()) == terms


def test_terms_are_named_by_the_bytes_that_were_sent_whatever_a_newer_peer_put_in() -> None:
    data = bytes(msgpack.packb(msgpack.unpackb(TERMS.encode()) | {"later": 1}))
    assert Terms.decode(data) == TERMS and terms_id(data) != terms_id(TERMS.encode())
    assert terms_id(data) == short(hashlib.sha256(data).digest())


def test_an_introduction_names_instance_and_capabilities() -> None:
    names = {
        introduction_id(instance, capabilities)
        for instance in (TICKET, DIGEST[:16])
        for capabilities in ({}, CAPABILITIES, CAPABILITIES | {"engine": "onnxruntime"})
    }
    assert len(names) == 6 and all(len(name) == 8 for name in names)


def test_an_update_says_which_vector_it_lacks() -> None:
    assert UPDATE.frames() == UPDATE.vectors["delta"] and UPDATE.frames("local.c") == (b"a second vector",)
    with pytest.raises(DecodeError, match=r"update\.vectors: has no 'control'"):
        UPDATE.frames("control")


def test_a_plan_says_what_a_device_must_understand() -> None:
    tensors = (("*.bias", CodecSettings("dense")), ("fc*", CodecSettings("sparse")))
    assert PLAN.requires == ("codec:sparse",)
    more = dataclasses.replace(PLAN, codec=CodecSettings("auto", tensors=tensors), local="proximal")
    assert more.requires == ("codec:auto", "codec:dense", "codec:sparse", "local:proximal")


def test_a_number_among_the_capabilities_is_taken_as_text() -> None:
    _, message = decode(with_body(EXPECTED["checkin"], capabilities={"memory_mb": 512, "gpu": False}), "checkin")
    assert isinstance(message, CheckIn) and message.capabilities == {"memory_mb": "512", "gpu": "False"}


@pytest.mark.parametrize("kind", EXPECTED)
def test_unknown_fields_are_ignored_on_both_levels(kind: str) -> None:
    message = EXPECTED[kind]
    assert decode(with_body(message, colour="green", later={"a": [1, 2]}), kind) == (ENVELOPE, message)
    assert decode(with_envelope(message, trace="abc", phase=5, group="g", sig=b"a signature to come"), kind) == (
        ENVELOPE,
        message,
    )


def test_a_field_with_a_default_may_be_absent() -> None:
    _, message = decode(with_body(EXPECTED["have"], chunk_bytes_max=...), "have")
    assert isinstance(message, Have) and message.chunk_bytes_max == 0


def test_limits_of_bytes_travel_in_the_plan_and_are_left_out_where_there_are_none() -> None:
    limited = dataclasses.replace(PLAN, bytes_per_update_max=20_000, bytes_per_device_per_day_max=1 << 40)
    assert Plan.from_wire(limited.to_wire()) == limited
    assert PLAN.to_wire().keys().isdisjoint(limited.to_wire().keys() - PLAN.to_wire().keys())
    for value in (-1, True, 1.5, "1", None, 1 << 60):
        with pytest.raises(DecodeError, match=r"plan\.bytes_per_update_max"):
            Plan.from_wire(PLAN.to_wire() | {"bytes_per_update_max": value})


def test_a_codec_that_this_side_does_not_know_is_a_question_of_versions() -> None:
    with pytest.raises(VersionError, match="upgrade this side"):
        Terms.decode(terms_with(plan=PLAN.to_wire() | {"codec": {"name": "zip"}}))


def terms_with(**changes: Any) -> bytes:
    """The terms with some fields changed."""
    return bytes(msgpack.packb(msgpack.unpackb(TERMS.encode()) | keyed(Terms, changes)))


# --- versions, federations, kinds ------------------------------------------------------------------------------------


def test_a_newer_version_says_that_this_side_must_be_upgraded() -> None:
    with pytest.raises(VersionError, match="upgrade edgefed on this side"):
        decode(with_envelope(EXPECTED["accept"], v=2), "accept")


@pytest.mark.parametrize("version", [0, -1, None, "1", True, ..., b"\x01"])
def test_any_other_version_says_that_the_peer_must_be_upgraded(version: object) -> None:
    with pytest.raises(VersionError, match="upgrade edgefed on the coordinator"):
        decode(with_envelope(EXPECTED["gone"], v=version), "gone", peer="coordinator")


def test_an_update_of_another_version_is_refused_as_such() -> None:
    with pytest.raises(VersionError, match="this side speaks 1"):
        Update.decode(update_with(v=9))


def test_a_kind_that_nobody_speaks_is_refused() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(golden("chunk"), "party")
    assert caught.value.reason == "kind"


def test_a_message_is_read_as_the_kind_that_its_topic_names() -> None:
    with pytest.raises(DecodeError, match=r"offer\.digest: missing"):
        decode(golden("accept"), "offer")


def test_an_encrypted_body_is_refused_until_it_is_spoken() -> None:
    with pytest.raises(DecodeError, match="encrypted"):
        decode(with_envelope(EXPECTED["offer"], enc={"scheme": "x"}), "offer")


# --- hostile messages ------------------------------------------------------------------------------------------------

NASTY: list[tuple[str, dict[str, Any]]] = [
    ("accept", {"ticket": b"short"}),
    ("accept", {"ticket": "0123456789abcdef"}),
    ("accept", {"ticket": ...}),
    ("checkin", {"nonce": b""}),
    ("checkin", {"unsettled": [TICKET] * 9}),
    ("checkin", {"unsettled": TICKET}),
    ("checkin", {"capabilities": {str(i): "x" for i in range(33)}}),
    ("checkin", {"capabilities": {"supports": ["x"] * 65}}),
    ("checkin", {"capabilities": {str(i): ["x" * 64] * 64 for i in range(3)}}),
    ("checkin", {"capabilities": {"supports": ["x" * 65]}}),
    ("checkin", {"capabilities": {"deep": {"er": 1}}}),
    ("checkin", {"introduction": b"short"}),
    ("checkin", {"instance": b"short"}),
    ("checkin", {"instance": b""}),
    ("checkin", {"terms": [NONCE] * 3}),
    ("checkin", {"terms": [TICKET]}),
    ("checkin", {"holds": [NONCE] * 3}),
    ("checkin", {"holds": [TICKET]}),
    ("checkin", {"holds": NONCE}),
    ("offer", {"total": 0}),
    ("offer", {"total": 1 << 32}),
    ("offer", {"total": True}),
    ("offer", {"total": 3.0}),
    ("want", {"ranges": [[5, 5]]}),
    ("want", {"ranges": [[6, 5]]}),
    ("want", {"ranges": [[-1, 5]]}),
    ("want", {"ranges": [[0, 1, 2]]}),
    ("want", {"ranges": [[0, 1]] * 65}),
    ("want", {"ranges": {"0": 1}}),
    ("have", {"ranges": [[i, i + 1] for i in range(0, 2 * RANGES_MAX + 2, 2)]}),
    ("chunk", {"offset": -1}),
    ("chunk", {"data": "text"}),
    ("chunk", {"data": None}),
    ("announce", {"phase": "party"}),
    ("announce", {"fraction": 1.5}),
    ("announce", {"fraction": float("nan")}),
    ("announce", {"window_seconds": float("inf")}),
    ("announce", {"attempt": -1}),
    ("decline", {"reason": "x" * 401}),
    ("decline", {"detail": "x" * 401}),
    ("verdict", {"outcome": "counted"}),
    ("verdict", {"outcome": 9}),
    ("verdict", {"outcome": -1}),
    ("verdict", {"outcome": True}),
    ("verdict", {"outcome": [2]}),
    ("verdict", {"digest": b"x" * 9}),
    ("invite", {"terms": b"x" * 7}),
    ("invite", {"terms": "terms"}),
    ("invite", {"terms": None}),
    ("invite", {"verdicts": [1]}),
    ("invite", {"report_seconds": -1.0}),
    ("invite", {"base": b"x" * 9}),
    ("invite", {"deltas": [DIGEST]}),
    ("invite", {"deltas": [[DIGEST, 0]]}),
    ("invite", {"deltas": [[TICKET, 5]]}),
    ("invite", {"deltas": [[DIGEST, 5, 6]]}),
    ("invite", {"deltas": [[DIGEST, 5]] * 257}),
    ("invite", {"vectors": [["c", DIGEST]]}),
    ("invite", {"vectors": [["", DIGEST, 5]]}),
    ("invite", {"vectors": [["c" * 33, DIGEST, 5]]}),
    ("invite", {"vectors": [["c", DIGEST, 0]]}),
    ("invite", {"vectors": [["c", DIGEST, 5]] * 9}),
    ("come_back", {"hold": 1}),
    ("come_back", {"introduce": 1}),
    ("come_back", {"seconds": "soon"}),
]


@pytest.mark.parametrize(("kind", "changes"), NASTY, ids=[f"{kind}-{i}" for i, (kind, _) in enumerate(NASTY)])
def test_a_field_out_of_range_is_refused_and_named(kind: str, changes: dict[str, Any]) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(with_body(EXPECTED[kind], **changes), kind)
    assert next(iter(changes)) in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "changes",
    [
        {"plan": None},
        {"plan": {}},
        {"plan": PLAN.to_wire() | {"weighting": "mine"}},
        {"plan": PLAN.to_wire() | {"codec": {"name": "sparse", "density": 2.0}}},
        {"plan": PLAN.to_wire() | {"training": PLAN.training.to_wire() | {"epochs": 0}}},
        {"plan": PLAN.to_wire() | {"training": PLAN.training.to_wire() | {"scalars": {"lr": float("inf")}}}},
        {"chunk_bytes_max": 1},
        *({"shard": shard} for shard in ("x" * 65, "a/b", "+", b"0")),
        {"plan": PLAN.to_wire() | {"local": ""}},
        {"plan": PLAN.to_wire() | {"local_settings": {"mu": float("nan")}}},
        {"plan": PLAN.to_wire() | {"local_settings": {str(i): 0.0 for i in range(33)}}},
    ],
)
def test_a_field_of_terms_that_is_out_of_range_is_refused_and_named(changes: dict[str, Any]) -> None:
    with pytest.raises(DecodeError) as caught:
        Terms.decode(terms_with(**changes))
    assert next(iter(changes)) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"vectors": None}, "vectors"),
        ({"vectors": {}, "numbers": {str(i): 0.0 for i in range(17)}}, "numbers"),
        ({"vectors": {str(i): [] for i in range(9)}}, "vectors"),
        ({"vectors": {"d" * 33: []}}, "vectors"),
        ({"vectors": {"": []}}, "vectors"),
        ({"vectors": {"delta": [b""] * 19}}, "vectors"),
        ({"vectors": {"delta": ["text"]}}, "vectors"),
        ({"vectors": {"delta": b"not a list"}}, "vectors"),
        ({"numbers": {"tau": float("nan")}}, "numbers"),
        ({"numbers": {"tau": True}}, "numbers"),
        ({"numbers": {"tau": "1"}}, "numbers"),
        ({"examples": 0}, "examples"),
        ({"loss": float("inf")}, "loss"),
        ({"evaluation": [1.0, 2.0]}, "evaluation"),
    ],
)
def test_a_field_of_an_update_that_is_out_of_range_is_refused_and_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(DecodeError, match=rf"update\.{named}"):
        Update.decode(update_with(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        *({"t": task} for task in ("a/b", "+", "", None)),
        *({"l": lineage} for lineage in (b"x" * 17, "text")),
        *({"b": body} for body in ("text", ..., b"", b"\xc0")),
    ],
)
def test_an_envelope_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode(with_envelope(EXPECTED["accept"], **changes), "accept")


def test_an_oversize_message_is_refused_before_it_is_looked_at() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(b"\x00" * (BODY_BYTES_MAX + 1), "chunk")
    assert caught.value.reason == "oversize"


@pytest.mark.parametrize(
    "payload",
    [
        b"\x91" * 100_000,
        b"\x81\xa1a" * 100_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xffabc",
        b"\xdc\xff\xff" + b"\x90" * 65_535,
        b"\x81\xa1b\xc4\xff",
        b"\xc7\xff\x05",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\x81\x01\x02",
        b"",
    ],
    ids=["lists", "maps", "list32", "map32", "bin32", "many", "cut", "ext", "timestamp", "integer key", "nothing"],
)
def test_bombs_cost_little_memory_and_only_raise_ours(payload: bytes) -> None:
    tracemalloc.start()
    try:
        for data in (payload, with_envelope(EXPECTED["accept"], b=payload)):
            with pytest.raises(ProtocolError):
                decode(data, "accept")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_megabyte_of_empty_lists_is_refused_before_it_is_built() -> None:
    payload = b"\xdd\x00\x0f\xff\x00" + b"\x90" * 0xFFF00
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            decode(payload, "accept")
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("field", ["v", "t", "l", "enc", "b"])
@pytest.mark.parametrize("depth", [9, 400, 1_500])
def test_a_kilobyte_of_nesting_only_raises_ours(field: str, depth: int) -> None:
    # str() of a list that is nested a thousand times deep raises RecursionError.
    key = bytes((0xA0 + len(field),)) + field.encode()
    for payload in (b"\x81" + key + b"\x91" * depth + b"\x01", b"\x81" + key + b"\x81\xa1a" * depth + b"\x01"):
        with pytest.raises(ProtocolError):
            decode(payload, "accept")
        with pytest.raises(ProtocolError):
            Update.decode(payload)


def test_truncated_messages_only_raise_ours() -> None:
    for kind in EXPECTED:
        data = golden(kind)
        for length in range(len(data)):
            with pytest.raises(ProtocolError):
                decode(data[:length], kind)


def test_mutated_messages_are_either_taken_or_refused() -> None:
    chance = random.Random(1)
    for kind in [*EXPECTED, "update"]:
        data = golden(kind)
        for _ in range(400):
            mutated = bytearray(data)
            for _ in range(chance.randint(1, 4)):
                mutated[chance.randrange(len(mutated))] = chance.randrange(256)
            try:
                Update.decode(bytes(mutated)) if kind == "update" else decode(bytes(mutated), kind)
            except ProtocolError:
                continue


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_only_raise_ours(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data, "chunk")
    with pytest.raises(ProtocolError):
        Update.decode(data)


trees = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(), words, bytes_of(max_size=40)
    ),
    lambda children: st.one_of(st.lists(children, max_size=4), st.dictionaries(words, children, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(EXPECTED)), st.data())
def test_any_value_in_any_field_is_either_taken_or_refused(kind: str, data: st.DataObject) -> None:
    names = [field.name for field in dataclasses.fields(EXPECTED[kind])]
    changes = {data.draw(st.sampled_from(names)): data.draw(trees)}
    try:
        _, message = decode(with_body(EXPECTED[kind], **changes), kind)
    except DecodeError:
        return
    assert decode(encode_message(ENVELOPE, message), kind) == (ENVELOPE, message)


def write_golden() -> None:
    """Makes the golden files anew after a change on purpose: ``python tests/edge_sdk/test_messages.py``."""
    for path in GOLDEN.glob("message_*.bin"):
        path.unlink()
    for name, message in {**EXPECTED, **WITH_LINKS}.items():
        (GOLDEN / f"message_{name}.bin").write_bytes(encode_message(ENVELOPE, message))
    (GOLDEN / "message_update.bin").write_bytes(UPDATE.encode())


if __name__ == "__main__":
    write_golden()
