"""Fetching what a ticket needs: the program, the parameters and further vectors, by digest, unless they are here.
A plan may do without the parameters.

PURE, a part of the session. Where the invite names deltas that lead from parameters that are here, the deltas are
fetched and followed; whatever goes wrong with that, the parameters come whole. What has arrived goes to the blobs at
once, and only they know what is here. Before anything but the program is downloaded, the local examples are looked at:
a device whose examples do not fit has no use for a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np

from edge_sdk.device.progress import ProgressKind
from edge_sdk.device.session.download import Download
from edge_sdk.device.session.events import Action, CheckExamples, ExamplesFit, Notify
from edge_sdk.device.session.liveness import Liveness
from edge_sdk.device.session.mailbox import Mailbox
from edge_sdk.device.session.settings import SessionSettings
from edge_sdk.errors import DecodeError
from edge_sdk.wire.messages import BlobGone, Invite, RangeData, short
from edge_sdk.wire.ranges import ChunkSize, Reassembly
from edge_sdk.wire.terms import Terms

__all__ = ["Blobs", "Fetch", "Ticket"]

NEVER: Final = float("inf")
MODEL_DELTA: Final = "model_delta"


class Blobs(Protocol):
    """What a device holds of programs and parameters."""

    def has(self, digest: bytes) -> bool:
        """Whether a blob is here."""
        ...

    def parameters(self) -> tuple[bytes, ...]:
        """Digests of the parameters that are here, the newest first."""
        ...

    def keep(self, kind: str, digest: bytes, data: memoryview) -> None:
        """Takes a blob that was fetched whole and whose digest holds."""
        ...

    def follow(self, base: bytes, deltas: tuple[memoryview, ...], target: bytes) -> str:
        """Makes the parameters ``target`` out of those of ``base`` and keeps them; returns why not, "" for success."""
        ...


@dataclass(frozen=True, slots=True)
class Ticket:
    """The piece of work in hand: the invite, its terms, the lineage it came from, and until when a report counts."""

    invite: Invite
    terms: Terms
    lineage: bytes
    report_by: float


class Fetch:
    """Brings the blobs of one ticket after the other.

    Attributes:
        complete: Whether everything is here.
        failure: Why there will be no work, "" while there may be: ``digest``, ``gone``, ``deadline``.

    Args:
        settings: Limits of this device.
        mailbox: Asks for ranges.
        blobs: Where things go.
        liveness: Whether asking makes sense.
        rng: For jitter.
    """

    def __init__(
        self,
        settings: SessionSettings,
        mailbox: Mailbox,
        blobs: Blobs,
        liveness: Liveness,
        rng: np.random.Generator,
    ) -> None:
        self.complete = False
        self.failure = ""
        self.chunk = ChunkSize()
        self._settings = settings
        self._mailbox = mailbox
        self._blobs = blobs
        self._liveness = liveness
        self._rng = rng
        self._ticket: Ticket | None = None
        self._download: Download | None = None
        self._deltas: dict[bytes, memoryview | None] | None = None  # by digest; None: the parameters come whole
        self._inline: tuple[bytes, ...] = ()  # what the invite has brought and nobody has looked at yet
        self._wrong_digests = 0
        self._examples_fit = False  # those of this device, as far as this ticket's job has said

    @property
    def deadline(self) -> float:
        """When ``on_deadline`` is due."""
        ticket, download = self._ticket, self._download
        if ticket is None:
            return NEVER
        if download is not None and download.deadline < ticket.report_by and self._liveness.can_talk:
            return download.deadline
        return ticket.report_by

    def missing_bytes(self, invite: Invite, terms: Terms) -> tuple[int, ...]:
        """Sizes of what is to be downloaded for an invite."""
        sizes = [] if self._blobs.has(terms.program) else [terms.program_bytes]
        if self._lacks_parameters(invite, terms) and not self._is_inline(invite):
            deltas = self._usable_deltas(invite, terms)
            sizes += [terms.parameters_bytes] if deltas is None else [size for _, size in invite.deltas]
        return (*sizes, *(size for _, digest, size in invite.vectors if not self._blobs.has(digest)))

    def begin(self, ticket: Ticket, now: float) -> list[Action]:
        """Takes up a ticket."""
        self._ticket, self._download = ticket, None
        self.complete, self.failure = False, ""
        self._wrong_digests = 0
        self._examples_fit = False
        self._deltas = self._usable_deltas(ticket.invite, ticket.terms)
        self._inline = ticket.invite.inline
        return self._next(now)

    def on_live(self, now: float) -> list[Action]:
        """There is a (new) connection or coordinator: everything that is missing is asked for again."""
        return self._download.start(now) if self._download is not None else []

    def end(self) -> list[Action]:
        """The ticket is given up, or everything is here; no subscription is left behind."""
        download, self._download, self._ticket, self._deltas = self._download, None, None, None
        return download.stop() if download is not None and self._liveness.online else []

    def on_deadline(self, now: float) -> list[Action]:
        """The report would come too late, or nothing has come for too long."""
        ticket, download = self._ticket, self._download
        if ticket is not None and ticket.report_by <= now:
            self.failure = "deadline"
        elif download is not None and self._liveness.can_talk and download.deadline <= now:
            return download.on_stall(now)
        return []

    def on_examples_fit(self, event: ExamplesFit, now: float) -> list[Action]:
        """The rest may be downloaded."""
        if self._ticket is None or self._ticket.invite.ticket != event.ticket or self._examples_fit:
            return []
        self._examples_fit = True
        return self._next(now)

    def on_range(self, message: RangeData, now: float) -> list[Action]:
        """A range that was asked for."""
        download = self._download
        if download is None or message.digest != short(download.digest):
            return []
        actions = download.on_range(message.offset, message.data, now)
        return actions + (self._take(download, now) if download.complete else [])

    def on_retained(self, digest: str, offset: str, data: bytes, now: float) -> list[Action]:
        """A piece out of the retained cache."""
        download = self._download
        if download is None or digest != download.digest.hex() or not offset.isdecimal():
            return []
        actions = download.on_retained(int(offset), data, now)
        return actions + (self._take(download, now) if download.complete else [])

    def on_gone(self, message: BlobGone, now: float) -> list[Action]:
        """Nobody serves this blob any more."""
        download = self._download
        if download is None or message.digest != short(download.digest):
            return []
        if download.kind == MODEL_DELTA:
            return download.stop() + self._without_deltas("a model delta is gone", now)
        self.failure = "gone"
        return []

    def _usable_deltas(self, invite: Invite, terms: Terms) -> dict[bytes, memoryview | None] | None:
        """The deltas to fetch, if they start from what is here and cost less than the parameters themselves."""
        deltas = dict(invite.deltas)
        if not deltas or len(deltas) != len(invite.deltas) or sum(deltas.values()) >= terms.parameters_bytes:
            return None
        return dict.fromkeys(deltas) if self._base_of(invite) else None

    def _base_of(self, invite: Invite) -> bytes:
        """The parameters that the deltas start from, empty where they are not here."""
        return next((digest for digest in self._blobs.parameters() if short(digest) == invite.base), b"")

    def _is_inline(self, invite: Invite) -> bool:
        """Whether the invite itself has brought what leads to its parameters."""
        return bool(invite.inline) and (not invite.base or bool(self._base_of(invite)))

    def _lacks_parameters(self, invite: Invite, terms: Terms) -> bool:
        return not terms.plan.without_parameters and not self._blobs.has(invite.parameters)

    def _next(self, now: float) -> list[Action]:
        """The next thing that is missing."""
        if self._ticket is None:
            return []
        invite, terms, s = self._ticket.invite, self._ticket.terms, self._settings
        if not self._blobs.has(terms.program):
            return self._start("program", terms.program, terms.program_bytes, s.program_bytes_max, now)
        if self._lacks_parameters(invite, terms):
            if self._inline:
                return self._take_inline(invite, now)
            if self._deltas is None:
                return self._start("parameters", invite.parameters, terms.parameters_bytes, s.parameters_bytes_max, now)
            for digest, total in invite.deltas:
                if self._deltas[digest] is None:
                    return self._start(MODEL_DELTA, digest, total, s.parameters_bytes_max, now)
            return self._follow(invite, now)
        for _, digest, total in invite.vectors:
            if not self._blobs.has(digest):
                return self._start("vector", digest, total, s.parameters_bytes_max, now)
        self.complete = True
        return []

    def _start(self, kind: str, digest: bytes, total: int, bytes_max: int, now: float) -> list[Action]:
        if self._ticket is None:
            return []
        invite, terms = self._ticket.invite, self._ticket.terms
        # Retained are the program, and what leads to the parameters where the invite names that and does not bring it.
        named = kind == MODEL_DELTA or (kind == "parameters" and not invite.deltas and not invite.inline)
        if kind != "program" and not self._examples_fit:
            return [CheckExamples(invite.ticket, terms.program)]
        self._download = Download(
            kind,
            digest,
            total,
            blob_bytes=terms.blob_bytes if kind == "program" or named else 0,
            bytes_max=bytes_max,
            chunk=lambda: self.chunk,
            range_bytes_max=terms.chunk_bytes_max,
            topics=self._mailbox.topics,
            send=self._mailbox.to_coordinator,
            rng=self._rng,
        )
        return self._download.start(now) if self._liveness.can_talk else []

    def _take(self, download: Download, now: float) -> list[Action]:
        actions = download.stop()
        try:
            data = download.take()
        except DecodeError as error:
            actions.append(Notify(ProgressKind.BAD_DIGEST, str(error)))
            if download.kind == MODEL_DELTA:
                return actions + self._without_deltas("a model delta has another digest", now)
            self._wrong_digests += 1
            if self._wrong_digests > 1:
                self.failure = "digest"
                return actions
            return actions + download.start(now)
        self._wrong_digests = 0
        self._download = None
        if download.kind == MODEL_DELTA and self._deltas is not None:
            self._deltas[download.digest] = data
        else:
            self._blobs.keep(download.kind, download.digest, data)
        return actions + self._next(now)

    def _take_inline(self, invite: Invite, now: float) -> list[Action]:
        """Uses what the invite has brought: model deltas, or the parameters themselves."""
        inline, self._inline = tuple(memoryview(data) for data in self._inline), ()
        if invite.base:
            return self._follow_all(invite, inline, now)
        try:
            whole = Reassembly(invite.parameters, len(inline[0]), bytes_max=self._settings.parameters_bytes_max)
            whole.add(0, inline[0])
            self._blobs.keep("parameters", invite.parameters, whole.take())
        except DecodeError as error:
            return [Notify(ProgressKind.BAD_DIGEST, str(error)), *self._next(now)]
        return self._next(now)

    def _follow(self, invite: Invite, now: float) -> list[Action]:
        deltas, self._deltas = self._deltas or {}, None
        return self._follow_all(invite, tuple(d for d in deltas.values() if d is not None), now)

    def _follow_all(self, invite: Invite, deltas: tuple[memoryview, ...], now: float) -> list[Action]:
        error = self._blobs.follow(self._base_of(invite), deltas, invite.parameters)
        if error:
            return self._without_deltas(error, now)
        return [Notify(ProgressKind.DELTAS_APPLIED, f"{len(deltas)}", invite.round), *self._next(now)]

    def _without_deltas(self, why: str, now: float) -> list[Action]:
        """Whatever is wrong with them, the parameters are there as a whole too."""
        self._deltas, self._download = None, None
        number = self._ticket.invite.round if self._ticket is not None else 0
        return [Notify(ProgressKind.DELTAS_FAILED, why, number), *self._next(now)]
