"""The ticket in hand: from the invite over fetching to the end of training, or until it is given back.

PURE, a part of the session. A newer announcement, a final verdict, the deadline, or the loss of eligibility ends the
work early; only what the coordinator cannot know is said to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from edge_sdk.device.progress import ProgressKind
from edge_sdk.device.session.events import Action, CancelTraining, Notify, Settle, StartTraining, TrainingFailed
from edge_sdk.device.session.fetch import Fetch, Ticket
from edge_sdk.device.session.liveness import Liveness
from edge_sdk.device.session.mailbox import Mailbox
from edge_sdk.device.session.settings import SessionSettings
from edge_sdk.device.session.stages import FETCHING, TRAINING, Stage
from edge_sdk.wire.envelope import Envelope
from edge_sdk.wire.messages import REASON_CHARACTERS_MAX, Accept, Announce, Decline, Invite
from edge_sdk.wire.terms import Terms

__all__ = ["Refusal", "Work"]

TRAINING_FRACTION: Final = 0.8
"""Of the time left, what training may take; the rest is for encoding and the connection."""

Refusal = tuple[ProgressKind, str]
"""Why an invite is not taken: a code and a sentence."""


class Work:
    """Takes, fetches, hands out and gives back one ticket after the other.

    Attributes:
        ticket: The ticket in hand, if any.

    Args:
        settings: Limits of this device.
        stage: Where the session stands.
        mailbox: Says accept and decline.
        liveness: Whether anybody would hear them.
        fetch: Brings what a ticket needs.
        over_quota: See :class:`edge_sdk.device.session.Session`.
    """

    def __init__(
        self,
        settings: SessionSettings,
        stage: Stage,
        mailbox: Mailbox,
        liveness: Liveness,
        fetch: Fetch,
        over_quota: Callable[[Terms, tuple[int, ...]], Refusal | None],
    ) -> None:
        self.ticket: Ticket | None = None
        self._settings = settings
        self._stage = stage
        self._mailbox = mailbox
        self._liveness = liveness
        self._fetch = fetch
        self._over_quota = over_quota

    def why_not(self, invite: Invite, terms: Terms) -> Refusal | None:
        """Why what an invite asks is nothing for this device; None where it can be done."""
        s = self._settings
        unknown = sorted(set(terms.requires) - s.supports)
        if unknown:
            return ProgressKind.UNSUPPORTED, f"the plan requires {unknown}: upgrade edgefed on this device"
        fetched = [] if terms.plan.without_parameters else [terms.parameters_bytes]
        for what, size, limit in (
            ("program", terms.program_bytes, s.program_bytes_max),
            ("parameters", max([0, *fetched, *(size for _, _, size in invite.vectors)]), s.parameters_bytes_max),
        ):
            if size > limit:
                detail = f"the {what} has {size} bytes, this device takes {limit}: raise limits.{what}_bytes_max"
                return ProgressKind.TOO_LARGE, detail
        return self._over_quota(terms, self._fetch.missing_bytes(invite, terms))

    def refuse(self, invite: Invite, why: Refusal) -> list[Action]:
        """Gives a ticket back that was not taken."""
        code, detail = why
        self._stage.step("refused")
        dropped = Notify(ProgressKind.DROPPED, code, invite.round)
        return [Notify(code, detail, invite.round), *self._say_decline(invite.ticket, code), dropped]

    def take(self, invite: Invite, terms: Terms, envelope: Envelope, sent_at: float, now: float) -> list[Action]:
        """Takes a ticket; its seconds count from when the check-in was sent."""
        self._stage.step("invited")
        self.ticket = Ticket(invite, terms, envelope.lineage, sent_at + invite.report_seconds)
        said = [self._mailbox.to_coordinator(Accept(ticket=invite.ticket)), _notice(ProgressKind.INVITED, "", invite)]
        return self.after_fetch(said + self._fetch.begin(self.ticket, now), now)

    def on_live(self, now: float) -> list[Action]:
        """A (new) coordinator is there: it hears again that the ticket is taken, and what is missing."""
        if self.ticket is None:
            return []
        accept = self._mailbox.to_coordinator(Accept(ticket=self.ticket.invite.ticket))
        return [accept, *self._fetch.on_live(now)]

    def on_announce(self, announce: Announce, lineage: bytes) -> list[Action]:
        """Work for a round that is over is dropped."""
        if self.ticket is None:
            return []
        invite = self.ticket.invite
        later = announce.phase == "done" or (announce.round, announce.attempt) > (invite.round, invite.attempt)
        return self.drop("late") if later or self.ticket.lineage != lineage else []

    def after_fetch(self, actions: list[Action], now: float) -> list[Action]:
        """Goes on where fetching has come to an end, well or badly."""
        if self.ticket is None or self._stage.now != FETCHING:
            return actions
        if self._fetch.failure:
            failed = self.drop if self._fetch.failure == "gone" else self.decline
            return [*actions, *failed(self._fetch.failure)]
        return [*actions, *self._train(self.ticket, now)] if self._fetch.complete else actions

    def _train(self, ticket: Ticket, now: float) -> list[Action]:
        invite, terms, seconds = ticket.invite, ticket.terms, (ticket.report_by - now) * TRAINING_FRACTION
        if seconds <= 0:
            return self.decline("deadline")
        self._fetch.end()
        self._stage.step("complete")
        start = StartTraining(
            ticket=invite.ticket,
            lineage=ticket.lineage,
            task=self._settings.task,
            round=invite.round,
            attempt=invite.attempt,
            shard=terms.shard,
            program=terms.program,
            parameters=invite.parameters,
            plan=terms.plan,
            seconds_max=min(seconds, terms.plan.training.seconds_max),
            vectors=tuple((name, digest) for name, digest, _ in invite.vectors),
        )
        # Nothing is trained without parameters: what the device does instead is said by its name.
        detail = terms.plan.local if terms.plan.without_parameters else ""
        return [start, _notice(ProgressKind.TRAINING, detail, invite)]

    def finish(self, ticket: bytes) -> list[Action]:
        """Training is over and its update on disk; without a step to uploading where nobody will ask for it."""
        if not self._trains(ticket):
            return [Settle(ticket, counted=False, reason="dropped")]
        self.ticket = None
        self._stage.step("trained")
        return []

    def on_training_failed(self, event: TrainingFailed) -> list[Action]:
        """There will be no update."""
        if self.ticket is None or self.ticket.invite.ticket != event.ticket:
            return []
        said, number = event.detail or event.reason, self.ticket.invite.round
        notice = Notify(ProgressKind.TRAINING_FAILED, said, number, event.public or event.reason)
        return [notice, *self.decline(event.reason, event.public)]

    def drop(self, reason: str) -> list[Action]:
        """Gives up the ticket in hand without a word to the coordinator (it knows, or cannot be told)."""
        ticket, self.ticket = self.ticket, None
        if ticket is None:
            return []
        actions = self._fetch.end()
        if self._stage.now == TRAINING:
            actions.append(CancelTraining(ticket.invite.ticket, reason))
        self._stage.step("dropped")
        return [*actions, _notice(ProgressKind.DROPPED, reason, ticket.invite)]

    def decline(self, reason: str, detail: str = "") -> list[Action]:
        """Gives the ticket in hand back to the coordinator, if there is one."""
        if self.ticket is None:
            return []
        return [*self._say_decline(self.ticket.invite.ticket, reason, detail), *self.drop(reason)]

    def _trains(self, ticket: bytes) -> bool:
        return self._stage.now == TRAINING and self.ticket is not None and self.ticket.invite.ticket == ticket

    def _say_decline(self, ticket: bytes, reason: str, detail: str = "") -> list[Action]:
        if not self._liveness.can_talk:
            return []
        message = Decline(ticket=ticket, reason=reason, detail=detail[:REASON_CHARACTERS_MAX])
        return [self._mailbox.to_coordinator(message)]


def _notice(what: ProgressKind, detail: str, invite: Invite) -> Notify:
    return Notify(what, detail, invite.round)
