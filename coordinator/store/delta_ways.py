"""Which model deltas bring a device to the newest parameters in the fewest bytes, and which need not be kept. PURE.

There is one model delta a round, and merged ones of 2, 4, 8, .. rounds. So a device that has missed n rounds fetches
about 2 log2(n) of them, in fewer bytes than n: what moved twice is told once, and the more coordinates move, the fewer
bits each of their places takes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from coordinator.store.records import ModelDeltaRecord, NewDelta
from edge_sdk.wire.messages import short

__all__ = ["deltas_kept", "way_from"]


def way_from(deltas: Sequence[ModelDeltaRecord], holds: Collection[bytes]) -> tuple[ModelDeltaRecord, ...]:
    """The model deltas, in order, that lead from something that a device holds to the newest parameters.

    Args:
        deltas: All there are, in the order of their rounds.
        holds: Short digests of the parameters that the device has.

    Returns:
        Those of the fewest bytes; none where the device needs the whole parameters or has the newest ones.
    """
    if not deltas:
        return ()
    ways = _ways(deltas)
    held = [digest for digest in ways if short(digest) in holds]
    if not held:
        return ()
    reached, newest, found = min(held, key=lambda digest: ways[digest][0]), deltas[-1].target, []
    while reached != newest:
        following = ways[reached][1]
        assert following is not None
        found.append(following)
        reached = following.target
    return tuple(found)


def deltas_kept(deltas: Sequence[ModelDeltaRecord], new: NewDelta | None) -> list[ModelDeltaRecord]:
    """Those that stay: of so many rounds, and as long as the way has no more bytes, as the newest one came with.

    Args:
        deltas: All there are, in the order of their rounds, those of the newest round among them.
        new: The newest one; without one the chain ends.
    """
    rounds = [delta for delta in deltas if delta.rounds == 1]
    if new is None or not rounds:
        return []
    rounds, ways = rounds[-new.deltas_max :], _ways(deltas)
    while rounds and ways[rounds[0].base][0] > new.bytes_max:
        rounds = rounds[1:]
    return [delta for delta in deltas if rounds and delta.round - delta.rounds >= rounds[0].round - 1]


def _ways(deltas: Sequence[ModelDeltaRecord]) -> dict[bytes, tuple[int, ModelDeltaRecord | None]]:
    """For each parameters the bytes of the shortest way from them, and its first step."""
    ways: dict[bytes, tuple[int, ModelDeltaRecord | None]] = {deltas[-1].target: (0, None)}
    # Each leads to a later round, whose way is known by then.
    for delta in sorted(deltas, key=lambda delta: delta.round - delta.rounds, reverse=True):
        if delta.target in ways:
            total = ways[delta.target][0] + delta.bytes
            if delta.base not in ways or total < ways[delta.base][0]:
                ways[delta.base] = (total, delta)
    return ways
