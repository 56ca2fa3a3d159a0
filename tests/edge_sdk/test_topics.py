"""Topics: built and taken apart in one place; nothing can be smuggled into a segment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import ConfigurationError
from edge_sdk.wire.topics import Topics, check_segment, client_id, is_segment

TOPICS = Topics("garden")
segments = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)


def test_the_topics_are_those_of_the_protocol() -> None:
    digest = bytes(32)
    assert TOPICS.announce("default") == "fl/v1/garden/tasks/default/announce"
    assert TOPICS.blob(digest, 16384) == f"fl/v1/garden/blobs/{'00' * 32}/16384"
    assert TOPICS.to_device("pi-1", "invite") == "fl/v1/garden/to/pi-1/invite"
    assert TOPICS.from_device("pi-1", "checkin") == "fl/v1/garden/from/pi-1/checkin"
    assert TOPICS.up("0", "pi-1") == "fl/v1/garden/up/0/pi-1"
    assert TOPICS.status("pi-1") == "fl/v1/garden/status/pi-1"
    assert TOPICS.lineage_state(b"\x01\xff") == "fl/v1/garden/coordinator/01ff/state"
    assert TOPICS.lineage_claim(b"\x01\xff") == "fl/v1/garden/coordinator/01ff/claim"
    assert TOPICS.lineage_states == "fl/v1/garden/coordinator/+/state"
    assert TOPICS.lineage_claims == "fl/v1/garden/coordinator/+/claim"
    assert TOPICS.task_round("default") == "fl/v1/garden/tasks/default/round"


@given(segments, segments)
def test_what_is_built_can_be_taken_apart(device: str, kind: str) -> None:
    assert TOPICS.parse(TOPICS.to_device(device, kind)) == ("to", device, kind)
    assert TOPICS.parse(TOPICS.from_device(device, kind)) == ("from", device, kind)
    assert TOPICS.parse(TOPICS.up(kind, device)) == ("up", kind, device)
    assert TOPICS.parse(TOPICS.status(device)) == ("status", device)
    assert TOPICS.parse(TOPICS.lineage_state(bytes(16))) == ("coordinator", "00" * 16, "state")
    assert TOPICS.parse(TOPICS.lineage_claim(bytes(16))) == ("coordinator", "00" * 16, "claim")
    assert TOPICS.parse(TOPICS.task_round(kind)) == ("tasks", kind, "round")


def test_no_topic_has_more_than_seven_slashes() -> None:
    longest = Topics("f" * 64).blob(bytes(32), 1 << 40)
    assert longest.count("/") <= 7 and Topics("f").from_device("d", "k").count("/") <= 7


@pytest.mark.parametrize("value", ["", "a/b", "+", "#", "$share", "a b", "é", "a\n", "x" * 65, "a\0"])
def test_a_segment_cannot_smuggle_anything(value: str) -> None:
    assert not is_segment(value)
    with pytest.raises(ConfigurationError, match=r"device: .* use 1 to 64 characters"):
        check_segment(value, "device")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "fl/v1/garden",
        "fl/v1/garden/",
        "fl/v1/other/from/a/checkin",
        "fl/v2/garden/from/a/checkin",
        "fl/v1/garden/from/a",
        "fl/v1/garden/from/a/checkin/more",
        "fl/v1/garden/from//checkin",
        "fl/v1/garden/from/+/checkin",
        "fl/v1/garden/unknown/a/b",
        "fl/v1/garden/blobs/x/" + "9" * 300,
        "$SYS/broker/uptime",
    ],
)
def test_a_topic_of_something_else_is_none(topic: str) -> None:
    assert TOPICS.parse(topic) is None


@given(st.text(max_size=100))
def test_any_text_is_taken_apart_without_an_exception(text: str) -> None:
    parts = TOPICS.parse("fl/v1/garden/" + text)
    assert parts is None or all(is_segment(part) for part in parts)


def test_a_device_has_a_client_identifier_of_its_own_in_each_federation_and_task() -> None:
    names = ("a", "a-b", "b", "b-c")
    identifiers = {client_id(f, t, d) for f in names for t in names for d in names}
    assert len(identifiers) == len(names) ** 3
