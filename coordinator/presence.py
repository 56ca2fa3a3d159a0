"""Which coordinators a federation has: one for each task. PURE.

Each coordinator keeps a retained word about itself, ``coordinator/<lineage>/state``: who it is, which tasks it serves,
whether it is there. Its last will says the opposite. Before one speaks it *claims* its tasks: it publishes a claim and
waits until the claim comes back to it. By then the broker has also handed out the retained states, so it knows who
else says that it serves one of these tasks.

* Nobody: it serves.
* An earlier start on the same database: that process is gone, since the database can only be open once. It serves.
* Somebody else: a living coordinator answers a claim with its state. Where no answer comes, the state is a leftover,
  and is cleared. Where one comes, the newcomer steps back and asks again after growing pauses, or as soon as the
  other one's last will is published.

Two that claim at the same time, or that find each other after a network was divided, are told apart by lineage and
incarnation: the smaller pair goes on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from coordinator.events import CONTROL, Effect, Publish, SteppedBack
from edge_sdk.wire.coordinator_state import CoordinatorState
from edge_sdk.wire.topics import Topics

__all__ = ["Presence"]

ANSWER_SECONDS: Final = 3.0
PAUSE_SECONDS: Final = 5.0
PAUSE_SECONDS_MAX: Final = 300.0

AWAY: Final = "away"
CLAIMING: Final = "claiming"
ASKING: Final = "asking"
SERVING: Final = "serving"
STANDING_BACK: Final = "standing_back"


class Presence:
    """This coordinator among the others of its federation.

    Args:
        federation: Topic segment.
        tasks: What it serves.
        lineage: The database's lineage.
        incarnation: This start's number.
        session: 8 random bytes of this process.
        rng: For jitter.

    Attributes:
        state: ``away`` (no connection), ``claiming``, ``asking`` (whether another one lives), ``serving`` or
            ``standing_back``.
        due: When :meth:`tick` is due, None for never.
        reason: Why it does not serve, for people; empty where it does.
        entitled: Whether what devices say is this coordinator's business: it serves, or did so before its connection
            was cut.
    """

    def __init__(
        self,
        federation: str,
        tasks: Sequence[str],
        lineage: bytes,
        incarnation: int,
        session: bytes,
        rng: np.random.Generator,
    ) -> None:
        self.topics = Topics(federation)
        self.state = AWAY
        self.due: float | None = None
        self.entitled = False
        self.reason = "no connection to the broker"
        self._federation = federation
        self._tasks = tuple(tasks)
        self._lineage = lineage
        self._incarnation = incarnation
        self._session = session
        self._rng = rng
        self._others: dict[bytes, CoordinatorState] = {}
        self._pauses = 0

    @property
    def serving(self) -> bool:
        """Whether the tasks may speak."""
        return self.state == SERVING

    def will(self) -> tuple[str, bytes]:
        """Topic and retained payload of the last will: this coordinator is gone."""
        return self.topics.lineage_state(self._lineage), self._payload(online=False)

    # --- the connection ---

    def on_up(self, now: float) -> list[Effect]:
        """Both connections are there: claims the tasks.

        Retained states of others may have come before, as soon as the first of the connections was there.
        """
        return self._claim(now)

    def on_down(self, *, deaf: bool) -> None:
        """A connection is gone: whoever else is there may take over.

        Args:
            deaf: Whether it was the one on which others are heard. Their retained states come again with the next one.
        """
        if deaf:
            self._others.clear()
        self.state, self.due, self.reason = AWAY, None, "no connection to the broker"

    # --- what others say ---

    def on_claim(self, lineage: str, payload: bytes, now: float) -> list[Effect]:
        """A claim: our own comes back, or another coordinator wants one of our tasks.

        Raises:
            DecodeError: It makes no sense.
        """
        said = CoordinatorState.decode(payload, lineage)
        if said.session == self._session:
            return self._claim_is_back(now) if self.state == CLAIMING else []
        if not self._shares(said):
            return []
        if self.state == SERVING:
            return [self._say()]
        if self.state in (CLAIMING, ASKING) and self._yields_to(said):
            return self._step_back(said, now)
        return []

    def on_state(self, lineage: str, payload: bytes, now: float, *, retained: bool) -> list[Effect]:
        """What a coordinator says of itself: now, or long ago (``retained``); an empty payload clears it.

        Raises:
            DecodeError: It makes no sense.
        """
        if not payload:
            self._others = {known: other for known, other in self._others.items() if known.hex() != lineage}
            return []
        said = CoordinatorState.decode(payload, lineage)
        ours = said.session == self._session
        if ours or (said.lineage == self._lineage and said.incarnation < self._incarnation):
            # The last will of an earlier connection or start may come late, and all devices would wait.
            contradicted = self.state == SERVING and not (ours and said.online)
            return [self._say()] if contradicted else []
        if not said.online:
            self._others.pop(said.lineage, None)
            return self._claim(now) if self.state == STANDING_BACK else []
        if not self._shares(said):
            return []
        self._others[said.lineage] = said
        if self.state in (CLAIMING, ASKING) and not retained:
            return self._step_back(said, now)  # it lives: this is its answer
        if self.state == SERVING:
            return self._step_back(said, now) if self._yields_to(said) else [self._say()]
        return []

    # --- time ---

    def tick(self, now: float) -> list[Effect]:
        """Does what is due."""
        if self.due is None or now < self.due:
            return []
        self.due = None
        if self.state == STANDING_BACK:
            return self._claim(now)
        if self.state == CLAIMING:
            return self._claim_is_back(now)  # it was lost, or may not be read: the states are here by now
        if self.state == ASKING:
            # Nobody has answered: what is retained was left behind by a coordinator that is gone.
            cleared: list[Effect] = [
                Publish(CONTROL, self.topics.lineage_state(lineage), b"", retain=True)
                for lineage in self._others
                if lineage != self._lineage
            ]
            self._others.clear()
            return [*cleared, *self._serve()]
        return []

    # --- steps ---

    def _claim(self, now: float) -> list[Effect]:
        self.state, self.due = CLAIMING, now + ANSWER_SECONDS
        self.reason = "asking whether another coordinator serves this task"
        return [Publish(CONTROL, self.topics.lineage_claim(self._lineage), self._payload(online=True))]

    def _claim_is_back(self, now: float) -> list[Effect]:
        if not self._others:
            return self._serve()
        self.state, self.due = ASKING, now + ANSWER_SECONDS
        return []

    def _serve(self) -> list[Effect]:
        self.state, self.due, self.reason, self._pauses = SERVING, None, "", 0
        self.entitled = True
        return [self._say()]

    def _step_back(self, other: CoordinatorState, now: float) -> list[Effect]:
        tasks = ", ".join(sorted(set(other.tasks) & set(self._tasks)))
        seconds = min(PAUSE_SECONDS * 2.0**self._pauses, PAUSE_SECONDS_MAX) * (1.0 + 0.2 * float(self._rng.random()))
        self._pauses += 1
        self.entitled = False
        served, self.state, self.due = self.serving, STANDING_BACK, now + seconds
        self.reason = (
            f"another coordinator serves task {tasks} of federation {self._federation} (database "
            f"{other.lineage.hex()}, start {other.incarnation}): stop one of them, or give the task another name"
        )
        effects: list[Effect] = [SteppedBack(self.reason, seconds)]
        if served and other.lineage != self._lineage:
            topic, payload = self.will()
            effects.append(Publish(CONTROL, topic, payload, retain=True))
        return effects

    def _yields_to(self, other: CoordinatorState) -> bool:
        if other.lineage == self._lineage:
            return (other.incarnation, other.session) > (self._incarnation, self._session)  # a newer start of a copy
        return other.lineage < self._lineage

    def _say(self) -> Publish:
        topic, _ = self.will()
        return Publish(CONTROL, topic, self._payload(online=True), retain=True)

    def _shares(self, other: CoordinatorState) -> bool:
        return not set(other.tasks).isdisjoint(self._tasks)

    def _payload(self, *, online: bool) -> bytes:
        state = CoordinatorState(self._lineage, self._incarnation, online, self._tasks, self._session)
        return state.encode(self._federation)
