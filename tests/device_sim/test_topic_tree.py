"""Topics and filters: the trees against the definition in regular expressions."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.world.topic_tree import FilterTree, TopicTree, is_filter

LEVELS = st.sampled_from(["a", "b", "", "$x"])
TOPICS = st.lists(LEVELS, min_size=1, max_size=4).map("/".join).filter(bool)
FILTERS = (
    st.tuples(st.lists(LEVELS | st.just("+"), max_size=4), st.booleans())
    .map(lambda parts: "/".join([*parts[0], "#"] if parts[1] else parts[0]))
    .filter(bool)
)


def matches(pattern: str, topic: str) -> bool:
    """The oracle: a filter as a regular expression over the whole topic (MQTT 5, sections 4.7.1 and 4.7.2)."""
    if topic.startswith("$") and pattern[0] in "+#":
        return False
    body = re.escape(pattern).replace(re.escape("+"), "[^/]*")
    if pattern == "#":
        body = ".*"
    elif pattern.endswith("/#"):
        body = body[: -len(re.escape("/#"))] + "(/.*)?"
    return re.fullmatch(body, topic) is not None


@given(
    st.lists(st.tuples(FILTERS, st.integers(0, 4)), max_size=12), st.lists(TOPICS, min_size=1, max_size=4), st.data()
)
def test_a_topic_finds_the_filters_that_match_it(
    pairs: list[tuple[str, int]], topics: list[str], data: st.DataObject
) -> None:
    tree: FilterTree[int] = FilterTree()
    kept: set[tuple[str, int]] = set()
    for pattern, value in pairs:
        tree.add(pattern, value)
        kept.add((pattern, value))
        tree.match(topics[0])  # what it remembers must not outlive a change
        if data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(pairs))
            tree.discard(*gone)
            kept.discard(gone)
    for topic in topics:
        assert sorted(tree.match(topic)) == sorted(value for pattern, value in kept if matches(pattern, topic))


@given(st.lists(TOPICS, max_size=12), st.lists(FILTERS, min_size=1, max_size=5), st.data())
def test_a_filter_finds_the_topics_that_it_matches(topics: list[str], patterns: list[str], data: st.DataObject) -> None:
    tree: TopicTree[int] = TopicTree()
    kept: dict[str, int] = {}
    for number, topic in enumerate(topics):
        tree.set(topic, number)
        kept[topic] = number
        if data.draw(st.booleans()):
            gone = data.draw(st.sampled_from(topics))
            tree.discard(gone)
            kept.pop(gone, None)
    assert len(tree) == len(kept)
    assert {topic: tree.get(topic) for topic in topics} == {topic: kept.get(topic) for topic in topics}
    for pattern in patterns:
        found = tree.match(pattern)
        assert len(dict(found)) == len(found)
        assert dict(found) == {topic: number for topic, number in kept.items() if matches(pattern, topic)}
    tree.clear()
    assert tree.match("#") == [] and len(tree) == 0


def test_what_is_removed_leaves_no_branches_behind() -> None:
    filters: FilterTree[int] = FilterTree()
    topics: TopicTree[int] = TopicTree()
    for i in range(100):
        filters.add(f"to/{i}/+", i)
        topics.set(f"to/{i}/x", i)
    for i in range(100):
        filters.discard(f"to/{i}/+", i)
        topics.discard(f"to/{i}/x")
    assert not filters._root.children
    assert not topics._root.children


@pytest.mark.parametrize("text", ["#", "+", "a/#", "+/b/+", "/", "a//b", "$SYS/#", "+/#"])
def test_a_filter_may_have_wildcards_as_whole_levels(text: str) -> None:
    assert is_filter(text)


@pytest.mark.parametrize("text", ["", "a#", "#/a", "a/#/b", "a+", "+a/b", "a/b+/c", "a\0b", "a" * 65_536])
def test_anything_else_is_no_filter(text: str) -> None:
    assert not is_filter(text)
