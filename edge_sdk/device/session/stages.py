"""The table of the session: what a device may be doing, what leads on from there, and which messages it heeds then."""

from __future__ import annotations

from typing import Final

from edge_sdk.wire.messages import BlobGone, ComeBack, Have, Invite, RangeData, Verdict

__all__ = ["CHECKING_IN", "FETCHING", "HEEDED", "IDLE", "TRAINING", "TRANSITIONS", "UPLOADING", "Stage"]

IDLE: Final = "idle"
CHECKING_IN: Final = "checking_in"
FETCHING: Final = "fetching"
TRAINING: Final = "training"
UPLOADING: Final = "uploading"

TRANSITIONS: Final[dict[str, dict[str, str]]] = {
    IDLE: {"due": CHECKING_IN, "restored": UPLOADING},
    CHECKING_IN: {"invited": FETCHING, "refused": IDLE, "told to come back": IDLE, "cut": IDLE, "exhausted": IDLE},
    FETCHING: {"complete": TRAINING, "dropped": IDLE},
    TRAINING: {"trained": UPLOADING, "dropped": IDLE},
    UPLOADING: {"judged": IDLE},
}
"""State, what happens, and the state that follows. What is not listed is a mistake of this code, and raises."""

HEEDED: Final[dict[str, frozenset[str]]] = {
    IDLE: frozenset({Verdict.kind}),
    CHECKING_IN: frozenset({Verdict.kind, Invite.kind, ComeBack.kind}),
    FETCHING: frozenset({Verdict.kind, RangeData.kind, BlobGone.kind}),
    TRAINING: frozenset({Verdict.kind}),
    UPLOADING: frozenset({Verdict.kind, Have.kind}),
}
"""Messages to this device that mean something in a state. Others are late or strange, and are ignored."""


class Stage:
    """Where a session stands; it moves along the table only."""

    def __init__(self) -> None:
        self.now = IDLE

    def step(self, happening: str) -> None:
        """Goes on to what the table says.

        Raises:
            RuntimeError: The table has no such step.
        """
        following = TRANSITIONS[self.now].get(happening)
        if following is None:
            raise RuntimeError(f"session: {happening!r} leads nowhere from {self.now}")
        self.now = following
