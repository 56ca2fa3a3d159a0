"""The connection, and the coordinator behind it: whether anybody hears what this device says.

PURE, a part of the session. A coordinator's retained state names the *lineage* of its database, which is random and
made with the database, and its *incarnation*, which counts the starts on that database. Incarnations are ordered within
one lineage only. Which lineage is followed:

* the first that says online for this device's task;
* another one, at once, when it comes online while this device listens: a coordinator with a new database is believed;
* after a subscription several retained states may come in any order, one of them left by a coordinator that is no more:
  then the lineage of the task's announcement decides, because there is one announcement for a task.

A last will is heeded where it is of the followed lineage and not of an earlier incarnation than the one that is known.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from edge_sdk.device.session.events import Action, Subscribe
from edge_sdk.wire.coordinator_state import CoordinatorState
from edge_sdk.wire.topics import Topics

__all__ = ["Change", "Liveness"]

LINEAGES_KEPT: Final = 8
LISTEN_SECONDS: Final = 60.0
LISTEN_SECONDS_MAX: Final = 600.0
NEVER: Final = float("inf")


class Change(NamedTuple):
    """What a state or an announcement has changed.

    ``gone``: the coordinator that was spoken to is not there any more. ``live``: one can be spoken to from now on, and
    what was said before may be lost. ``anew``: it has started since this device last heard of it.
    """

    gone: bool = False
    live: bool = False
    anew: bool = False


UNCHANGED: Final = Change()


class Liveness:
    """Whether there is a connection, and a coordinator of this device's task behind it.

    Attributes:
        online: Whether the broker has taken the connection.
        live: Whether a coordinator can be spoken to.
        known: Whether a coordinator of the task has been heard of in this connection, live or not.
        deadline: When ``on_deadline`` is due.

    Args:
        topics: The federation's topics.
        task: The device's task.
        device: The device.
        rng: For jitter.
    """

    def __init__(self, topics: Topics, task: str, device: str, rng: np.random.Generator) -> None:
        self.online = False
        self.live = False
        self.known = False
        self.deadline = NEVER
        self._task = task
        self._retained = (topics.lineage_states, topics.announce(task))
        self._inbox = topics.to_device(device, "+")
        self._rng = rng
        self._listen_seconds = LISTEN_SECONDS
        self._announced = b""  # lineage of the last announcement
        self._last: tuple[bytes, int] | None = None  # lineage and incarnation that this device last spoke to
        self._followed: tuple[bytes, int] | None = None  # the same, as far as this connection knows
        self._others: dict[bytes, int] = {}  # lineages that said online and are not followed: their incarnations

    @property
    def can_talk(self) -> bool:
        """Whether anything that is said now may be heard."""
        return self.live and self.online

    def on_online(self, now: float) -> list[Action]:
        """A new connection: nothing is known before the retained messages come."""
        self.online, self.live, self.known = True, False, False
        self._followed = None
        self._others.clear()
        self._listen(now, LISTEN_SECONDS)
        return [Subscribe((*self._retained, self._inbox))]

    def on_offline(self) -> None:
        """The connection is gone."""
        self.online = self.live = False
        self.deadline = NEVER

    def on_deadline(self, now: float) -> list[Action]:
        """While no coordinator is live, what it has said may have been lost: subscribing again brings it once more."""
        if not self.online or self.live:
            self.deadline = NEVER
            return []
        self._listen(now, 2.0 * self._listen_seconds)
        return [Subscribe(self._retained)]

    def stop(self) -> None:
        """Nothing is waited for any more."""
        self.deadline = NEVER

    def on_state(self, state: CoordinatorState, retained: bool, now: float) -> Change:
        """A coordinator has said, or left behind, that it is there or not."""
        followed = self._followed
        self.known |= self._task in state.tasks
        if followed is None or state.lineage != followed[0]:
            return self._on_other(state, retained, now)
        if state.incarnation < followed[1]:
            return UNCHANGED  # the last will of an earlier start, late
        if not state.online or self._task not in state.tasks:
            return self._lose(now)
        if self.live and state.incarnation == followed[1]:
            return UNCHANGED
        return self._follow(state.lineage, state.incarnation)

    def on_announced(self, lineage: bytes) -> Change:
        """The task's announcement came from the coordinator of this lineage."""
        self._announced = lineage
        incarnation = self._others.get(lineage)
        return UNCHANGED if incarnation is None else self._follow(lineage, incarnation)

    def _on_other(self, state: CoordinatorState, retained: bool, now: float) -> Change:
        if not state.online or self._task not in state.tasks:
            self._others.pop(state.lineage, None)
            if self._followed is None and self.deadline == NEVER:
                self._listen(now, LISTEN_SECONDS)
            return UNCHANGED
        followed = self._followed
        if self.live and retained and followed is not None and followed[0] == self._announced:
            self._others[state.lineage] = state.incarnation
            while len(self._others) > LINEAGES_KEPT:
                del self._others[next(iter(self._others))]
            return UNCHANGED
        return self._follow(state.lineage, state.incarnation)

    def _follow(self, lineage: bytes, incarnation: int) -> Change:
        was_live, self.live = self.live, True
        before = self._followed
        if before is not None and before[0] != lineage and was_live:
            self._others[before[0]] = before[1]
        self._others.pop(lineage, None)
        self.deadline = NEVER
        self._followed = (lineage, incarnation)
        anew, self._last = self._last != self._followed, self._followed
        return Change(gone=was_live, live=True, anew=anew)

    def _lose(self, now: float) -> Change:
        if self.deadline == NEVER:
            self._listen(now, LISTEN_SECONDS)
        was_live, self.live = self.live, False
        return Change(gone=was_live)

    def _listen(self, now: float, seconds: float) -> None:
        self._listen_seconds = min(seconds, LISTEN_SECONDS_MAX)
        self.deadline = now + self._listen_seconds * (1.0 + 0.5 * float(self._rng.random()))
