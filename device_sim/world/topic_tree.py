"""MQTT topics and topic filters (MQTT 5, section 4.7) in trees with one level of the tree for each level of the topic.

``FilterTree`` holds filters, to be found by a topic (subscriptions); ``TopicTree`` holds topics, to be found by a
filter (retained messages). The cost of a look-up grows with the levels of a topic and with what is found, not with
what is stored: with 10,000 devices that each subscribe to ``.../to/<device>/+`` this decides whether a run ends.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

__all__ = ["FilterTree", "TopicTree", "is_filter"]

_Value = TypeVar("_Value")

TEXT_BYTES_MAX: Final = 65_535
CACHE_TOPICS_MAX: Final = 100_000


def is_filter(text: str) -> bool:
    """Whether ``text`` may be subscribed to: wildcards fill whole levels and ``#`` is the last one."""
    if not 0 < len(text.encode()) <= TEXT_BYTES_MAX or "\0" in text:
        return False
    levels = text.split("/")
    if any("#" in level for level in levels[:-1]) or ("#" in levels[-1] and levels[-1] != "#"):
        return False
    return all(level == "+" for level in levels if "+" in level)


class _Node(Generic[_Value]):
    __slots__ = ("children", "values")

    def __init__(self) -> None:
        self.children: dict[str, _Node[_Value]] = {}
        self.values: dict[_Value, None] = {}  # a set that keeps its order, so that a run can be replayed


class FilterTree(Generic[_Value]):
    """A set of (topic filter, value) pairs."""

    __slots__ = ("_cache", "_root")

    def __init__(self) -> None:
        self._root: _Node[_Value] = _Node()
        self._cache: dict[str, tuple[_Value, ...]] = {}  # topic -> match; emptied whenever a pair comes or goes

    def add(self, pattern: str, value: _Value) -> None:
        """Add a pair; adding it again changes nothing."""
        self._cache.clear()
        node = self._root
        for level in pattern.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        node.values[value] = None

    def discard(self, pattern: str, value: _Value) -> None:
        """Remove a pair, if it is there, and the branch that it leaves empty."""
        self._cache.clear()
        path = [self._root]
        levels = pattern.split("/")
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return
            path.append(child)
        path[-1].values.pop(value, None)
        for level in reversed(levels):
            node = path.pop()
            if node.values or node.children:
                return
            del path[-1].children[level]

    def match(self, topic: str) -> tuple[_Value, ...]:
        """The values of all filters that match ``topic``; a value under several of them comes several times."""
        found = self._cache.get(topic)
        if found is None:
            if len(self._cache) >= CACHE_TOPICS_MAX:
                self._cache.clear()
            found = self._cache[topic] = self._search(topic)
        return found

    def _search(self, topic: str) -> tuple[_Value, ...]:
        found: list[_Value] = []
        nodes = [self._root]
        wildcards = not topic.startswith("$")  # $SYS and the like want to be asked for by name
        for level in topic.split("/"):
            following = []
            for node in nodes:
                children = node.children
                if level in children:
                    following.append(children[level])
                if wildcards and "+" in children:
                    following.append(children["+"])
                if wildcards and "#" in children:
                    found.extend(children["#"].values)
            nodes = following
            wildcards = True
        for node in nodes:
            found.extend(node.values)
            if "#" in node.children:  # "a/#" matches "a" as well
                found.extend(node.children["#"].values)
        return tuple(found)


class _Place(Generic[_Value]):
    __slots__ = ("children", "topic", "value")

    def __init__(self) -> None:
        self.children: dict[str, _Place[_Value]] = {}
        self.topic: str | None = None  # None where a topic only passes through
        self.value: _Value | None = None


class TopicTree(Generic[_Value]):
    """One value for each topic."""

    __slots__ = ("_places", "_root")

    def __init__(self) -> None:
        self._root: _Place[_Value] = _Place()
        self._places: dict[str, _Place[_Value]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def set(self, topic: str, value: _Value) -> None:
        """Store a value in place of any earlier one."""
        place = self._places.get(topic)
        if place is None:
            place = self._root
            for level in topic.split("/"):
                child = place.children.get(level)
                if child is None:
                    child = place.children[level] = _Place()
                place = child
            place.topic = topic
            self._places[topic] = place
        place.value = value

    def get(self, topic: str) -> _Value | None:
        """The value of a topic, or None."""
        place = self._places.get(topic)
        return None if place is None else place.value

    def discard(self, topic: str) -> None:
        """Remove a topic, if it is there, and the branch that it leaves empty."""
        place = self._places.pop(topic, None)
        if place is None:
            return
        place.topic, place.value = None, None
        levels = topic.split("/")
        path = [self._root]
        for level in levels:
            path.append(path[-1].children[level])
        for level in reversed(levels):
            node = path.pop()
            if node.children or node.topic is not None:
                return
            del path[-1].children[level]

    def clear(self) -> None:
        """Remove everything."""
        self._root = _Place()
        self._places.clear()

    def match(self, pattern: str) -> list[tuple[str, _Value]]:
        """The topics that a filter matches, with their values."""
        found: list[tuple[str, _Value]] = []
        places = [self._root]
        levels = pattern.split("/")
        for depth, level in enumerate(levels):
            if level == "#":
                for place in places:
                    self._below(place, found, hidden=depth == 0)
                return found
            if level == "+":
                hidden = depth == 0
                places = [c for p in places for name, c in p.children.items() if not (hidden and name.startswith("$"))]
            else:
                places = [p.children[level] for p in places if level in p.children]
        for place in places:
            self._take(place, found)
        return found

    def _below(self, top: _Place[_Value], found: list[tuple[str, _Value]], hidden: bool) -> None:
        """Everything at and under a place; at the root, levels that begin with $ stay hidden."""
        self._take(top, found)
        stack = [c for name, c in reversed(top.children.items()) if not (hidden and name.startswith("$"))]
        while stack:
            place = stack.pop()
            self._take(place, found)
            stack.extend(reversed(place.children.values()))

    @staticmethod
    def _take(place: _Place[_Value], found: list[tuple[str, _Value]]) -> None:
        if place.topic is not None and place.value is not None:
            found.append((place.topic, place.value))
