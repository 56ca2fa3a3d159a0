"""When to check in, and the check-in that is out.

PURE, a part of the session. An announcement is a hint (rule 3), and there is one for each attempt at a round: that it
begins. The device draws whether it is within the announced fraction and, if so, at which moment of the window it
checks in. Replies that echo the nonce of one of the last check-ins count, all others are dropped; their seconds count
from when *that* one was sent. Nobody is answered before the window is over; silence after that repeats the check-in
with backoff, each time with a new nonce.

What is retained may have been said long ago. A device whose process is new checks in once whatever the fraction is: it
may have been invited before a power cut, and gets the same ticket again. So does one whose check-in may have been lost
with the connection. The coordinator tells those whom it does not expect to come back later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from edge_sdk.device.pending import PendingUpdate
from edge_sdk.device.progress import ProgressKind
from edge_sdk.device.session.events import Action, Notify
from edge_sdk.device.session.mailbox import Mailbox
from edge_sdk.device.session.settings import SessionSettings
from edge_sdk.wire.messages import HOLDS_MAX, Announce, CheckIn, ComeBack, introduction_id, short

__all__ = ["CheckingIn"]

REPLY_SECONDS: Final = 5.0
REPLY_SECONDS_MAX: Final = 300.0
ATTEMPTS_UNTIL_HINT: Final = 4
NONCES_KEPT: Final = 4
SETTLE_WINDOW_SECONDS: Final = 10.0
SETTLE_SECONDS_MAX: Final = 900.0
RESUME_WINDOW_SECONDS: Final = 5.0
INTRODUCE_SECONDS: Final = 1.0
NEVER: Final = float("inf")

Asked = tuple[bytes, int, int, bool]
"""What an announcement asks for, so that it is answered once: lineage, round, attempt, whether all is done."""


class _Sent(NamedTuple):
    """A check-in that is out: when it was sent, what it answers, to whom, and whether it says what the device is."""

    at: float
    asked: Asked | None
    lineage: bytes
    introduced: bool


class CheckingIn:
    """Decides when to check in, and repeats the check-in that is out.

    Attributes:
        deadline: When something is due: the check-in, or while one is out, its repetition.
        unwilling: Why this device asks for no work now: ``not_eligible``, ``bytes_per_day``, ``leaving``.

    Args:
        settings: Whose check-ins they are.
        mailbox: Sends them.
        holds: Digests of the parameters that are here, the newest first.
        terms: Short digests of the terms that are known, those used last first.
        rng: For nonces, draws and jitter.
    """

    def __init__(
        self,
        settings: SessionSettings,
        mailbox: Mailbox,
        holds: Callable[[], tuple[bytes, ...]],
        terms: Callable[[], tuple[bytes, ...]],
        rng: np.random.Generator,
    ) -> None:
        self.deadline = NEVER
        self.unwilling: set[str] = set()
        self._settings = settings
        self._mailbox = mailbox
        self._holds = holds
        self._terms = terms
        self._rng = rng
        # announcements
        self._announce: Announce | None = None
        self._window_ends = float("-inf")
        self._drawn: Asked | None = None
        self._draw = 0.0
        self._answered: Asked | None = None
        self._unanswered: Asked | None = None
        self._fresh = True  # this process has neither checked in nor heard of a round from its beginning
        # what replies have said
        self._hold_until = float("-inf")
        self._come_back_at: float | None = None
        # the check-in that is out
        self._nonces: dict[bytes, _Sent] = {}
        self._attempts = 0
        # who knows this device
        self._introduction = b""  # made with the first check-in
        self._known_to = b""  # lineage of the coordinator that has answered an introduction

    # --- when ---

    def on_announce(self, announce: Announce, retained: bool, now: float) -> None:
        """The coordinator has said what it is doing: now, or some time before this device came (``retained``)."""
        self._announce = announce
        self._window_ends = now + announce.window_seconds
        self._fresh &= retained or announce.phase != "selection"

    def on_new_start(self) -> None:
        """The coordinator has started anew: whom it had asked, and had held, it may ask again."""
        self._hold_until = float("-inf")
        self._answered = None

    def arm(self, unsettled: PendingUpdate | None, now: float) -> None:
        """Sets the deadline for the next check-in; to be called while none is out and one could be sent."""
        due = None if self.unwilling else self._due(unsettled, now)
        self.deadline = NEVER if due is None else max(due, self._hold_until)

    def disarm(self) -> None:
        """No check-in is to be sent, and none is out."""
        self._nonces.clear()
        self.deadline = NEVER

    def _due(self, left: PendingUpdate | None, now: float) -> float | None:
        announce, asked = self._announce, self._asked
        if announce is not None and asked != self._answered:
            if asked != self._drawn:
                self._drawn, self._draw = asked, float(self._rng.random())
            chance = float(self._rng.random())
            resumes = self._fresh or asked == self._unanswered
            if announce.phase == "selection" and (resumes or self._draw < announce.fraction):
                window = announce.window_seconds
                return now + chance * (min(window, RESUME_WINDOW_SECONDS) if resumes else window)
            if announce.phase == "working" and resumes:
                return now + chance * RESUME_WINDOW_SECONDS
            if left is not None and (announce.phase == "done" or announce.round > left.round):
                return now + chance * max(announce.window_seconds, SETTLE_WINDOW_SECONDS)
        if left is not None and self._come_back_at is None:
            # The announcement that would tell may be lost.
            self._come_back_at = now + SETTLE_SECONDS_MAX * (1.0 + 0.5 * float(self._rng.random()))
        return self._come_back_at

    @property
    def _asked(self) -> Asked | None:
        announce = self._announce
        if announce is None:
            return None
        return self._mailbox.lineage, announce.round, announce.attempt, announce.phase == "done"

    # --- the check-in that is out ---

    def begin(self, unsettled: tuple[bytes, ...], now: float) -> list[Action]:
        """Checks in."""
        self._attempts = 0
        self._come_back_at = None
        self._fresh = False
        return self._send(unsettled, now)

    def repeat(self, unsettled: tuple[bytes, ...], now: float) -> list[Action]:
        """Nobody has answered: checks in again, and says after a while what the silence may mean."""
        hint = [Notify(ProgressKind.NO_ANSWER, self._silence)] if self._attempts == ATTEMPTS_UNTIL_HINT else []
        return [*hint, *self._send(unsettled, now)]

    def take_answer(self, nonce: bytes) -> float | None:
        """When the check-in with this nonce was sent; None for a reply to nothing that is out."""
        found = self._nonces.get(nonce)
        if found is None:
            return None
        self._answered = found.asked
        if found.introduced:
            self._known_to = found.lineage
        self._unanswered = None
        self._hold_until = float("-inf")
        self.disarm()
        return found.at

    def on_come_back(self, message: ComeBack, sent_at: float) -> Notify:
        """Not now; ``sent_at`` is when the check-in was sent that this answers."""
        if message.introduce:
            self._known_to = b""
            self._come_back_at = sent_at + INTRODUCE_SECONDS
            return Notify(ProgressKind.COME_BACK, "the coordinator asks what this device is")
        self._come_back_at = sent_at + message.seconds if message.seconds > 0 else None
        if message.hold:
            self._hold_until = sent_at + message.seconds
        return Notify(ProgressKind.COME_BACK, message.reason or f"in {message.seconds:.0f} s")

    def _send(self, unsettled: tuple[bytes, ...], now: float) -> list[Action]:
        nonce, lineage = self._rng.bytes(8), self._mailbox.lineage
        introduces = not lineage or lineage != self._known_to
        self._nonces[nonce] = _Sent(now, self._asked, lineage, introduces)
        self._unanswered = self._asked
        while len(self._nonces) > NONCES_KEPT:
            del self._nonces[next(iter(self._nonces))]
        seconds = min(REPLY_SECONDS * 2.0 ** min(self._attempts, 8), REPLY_SECONDS_MAX)
        self.deadline = max(now, self._window_ends) + seconds * (1.0 + 0.5 * float(self._rng.random()))
        self._attempts += 1
        s = self._settings
        self._introduction = self._introduction or introduction_id(s.instance, s.capabilities)
        message = CheckIn(
            nonce=nonce,
            introduction=self._introduction,
            instance=s.instance if introduces else b"",
            capabilities=s.capabilities if introduces else {},
            unsettled=unsettled,
            holds=tuple(short(digest) for digest in self._holds()[:HOLDS_MAX]),
            terms=self._terms(),
        )
        return [self._mailbox.to_coordinator(message)]

    @property
    def _silence(self) -> str:
        root, device = self._mailbox.topics.root, self._settings.device
        return (
            f"no answer to {self._attempts} check-ins: the round waits for more devices; or, if others take part, the "
            f"broker's ACL keeps this device from writing {root}/from/{device}/# or reading {root}/to/{device}/#"
        )
