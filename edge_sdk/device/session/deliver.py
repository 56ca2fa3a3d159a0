"""A finished update on its way to its outcome: the upload, the receipt, and what came of it.

PURE, a part of the session. The update is on disk before it gets here. Receipt and outcome are two things (rule 4): the
receipt ends the upload and lets the payload go; until the outcome is known the update is *unsettled*, is named in every
check-in, and keeps the device from taking another ticket.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from edge_sdk.device.pending import PendingUpdate
from edge_sdk.device.progress import ProgressKind
from edge_sdk.device.session.events import Action, MarkReceived, Notify, Settle
from edge_sdk.device.session.liveness import Liveness
from edge_sdk.device.session.mailbox import Mailbox
from edge_sdk.device.session.settings import SessionSettings
from edge_sdk.device.session.upload import Upload
from edge_sdk.wire.messages import Have, Verdict, short
from edge_sdk.wire.outcomes import BUSY, COUNTED, FINAL_OUTCOMES, RECEIVED, REFUSED
from edge_sdk.wire.ranges import ChunkSize

__all__ = ["Deliver"]

NEVER: Final = float("inf")


class Deliver:
    """Uploads one update and waits for its outcome.

    Attributes:
        unsettled: The update that the coordinator has and whose outcome is not known yet.

    Args:
        settings: Limits of this device.
        mailbox: Sends offers and chunks.
        liveness: Whether a coordinator would hear them.
        chunk: Gives the connection's chunk size.
        rng: For jitter.
    """

    def __init__(
        self,
        settings: SessionSettings,
        mailbox: Mailbox,
        liveness: Liveness,
        chunk: Callable[[], ChunkSize],
        rng: np.random.Generator,
    ) -> None:
        self._settings = settings
        self.unsettled: PendingUpdate | None = None
        self._mailbox = mailbox
        self._liveness = liveness
        self._chunk = chunk
        self._rng = rng
        self._upload: Upload | None = None

    @property
    def deadline(self) -> float:
        """When ``on_deadline`` is due."""
        upload = self._upload
        return upload.deadline if upload is not None and self._liveness.can_talk else NEVER

    @property
    def uploading(self) -> bool:
        """Whether an update waits for its receipt."""
        return self._upload is not None

    def begin(self, update: PendingUpdate, now: float) -> list[Action]:
        """Brings an update to the coordinator that it was made for, or offers it to the next one that is live."""
        self._upload = Upload(
            update,
            chunk=self._chunk,
            send_offer=lambda offer: self._mailbox.to_coordinator(offer, lineage=update.lineage),
            send_chunk=lambda chunk: self._mailbox.chunk(chunk, update),
            rng=self._rng,
            direct_bytes_max=self._settings.direct_bytes_max,
        )
        if not self._liveness.can_talk:
            return []
        is_its_own = update.lineage == self._mailbox.lineage
        return self._upload.begin(now) if is_its_own else self._upload.offer(now)

    def pause(self) -> None:
        """The connection or the coordinator is gone."""
        if self._upload is not None:
            self._upload.pause()

    def on_live(self, now: float) -> list[Action]:
        """A (new) coordinator is there: the update is offered to it."""
        return self._upload.offer(now) if self._upload is not None else []

    def on_deadline(self, now: float) -> list[Action]:
        """No answer for too long."""
        upload = self._upload
        if upload is None or not self._liveness.can_talk or upload.deadline > now:
            return []
        return upload.on_silence(now)

    def on_have(self, message: Have, now: float) -> list[Action]:
        """What the coordinator has of the update."""
        upload = self._upload
        if upload is None or (message.ticket, message.digest) != (upload.update.ticket, short(upload.update.digest)):
            return []
        return upload.on_have(message, now)

    def on_published(self, token: int, now: float) -> list[Action]:
        """The broker has one chunk."""
        return self._upload.on_published(token, now) if self._upload is not None else []

    def judge(self, verdict: Verdict, now: float) -> list[Action] | None:
        """What a verdict on the update that is being uploaded, or is unsettled, means; None where it is on neither."""
        upload, left = self._upload, self.unsettled
        if upload is not None and verdict.ticket == upload.update.ticket:
            return self._judge_upload(upload, verdict, now)
        if left is not None and verdict.ticket == left.ticket and verdict.outcome in FINAL_OUTCOMES:
            return self._settle(left, verdict)
        return None

    def _judge_upload(self, upload: Upload, verdict: Verdict, now: float) -> list[Action]:
        update = upload.update
        if verdict.digest not in (b"", short(update.digest)):
            return []
        if verdict.outcome == BUSY:
            upload.postpone(verdict.retry_seconds, now)
            return [Notify(ProgressKind.BUSY, verdict.reason, update.round)]
        self._upload = None
        if verdict.outcome == RECEIVED:
            self.unsettled = update.without_payload()
            return [MarkReceived(update.ticket), Notify(ProgressKind.RECEIVED, "", update.round)]
        return self._settle(update, verdict)

    def _settle(self, update: PendingUpdate, verdict: Verdict) -> list[Action]:
        self.unsettled = None
        counted = verdict.outcome == COUNTED
        detail = verdict.reason or verdict.outcome
        what = ProgressKind.COUNTED if counted else ProgressKind.NOT_COUNTED
        if verdict.outcome == REFUSED:
            what = ProgressKind.REFUSED
        return [Settle(update.ticket, counted, detail), Notify(what, detail, update.round)]
