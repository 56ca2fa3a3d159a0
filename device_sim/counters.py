"""What is counted in the simulated network."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Counters", "Traffic"]


@dataclass(slots=True)
class Traffic:
    """What one client sent to the broker (up) and got from it (down): PUBLISH packets only, resends included."""

    messages_up: int = 0
    bytes_up: int = 0
    messages_down: int = 0
    bytes_down: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(slots=True)
class Counters:
    """What happened at the broker.

    Attributes:
        connections: Connections that the broker accepted.
        drops: Connections cut by chance, by ``cut`` or by a partition.
        takeovers: Connections ended by another with the same client id.
        wills: Last wills published.
        crashes: Deaths of the broker.
        lost: Copies of messages lost by chance on the way to a subscriber.
        duplicated: Copies sent twice.
        reordered: Copies that left their place.
        overflowed: Copies dropped at a full queue.
        expired: Copies dropped because their time was over.
    """

    connections: int = 0
    drops: int = 0
    takeovers: int = 0
    wills: int = 0
    crashes: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    overflowed: int = 0
    expired: int = 0
