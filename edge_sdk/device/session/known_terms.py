"""The terms that a device has heard lately: an invite that names them need not bring them. PURE, a part of the session.

They are kept in memory alone. A process that starts anew gets them once more: some hundred bytes, less than its
connection costs, and not worth a write to an SD card.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from edge_sdk.errors import DecodeError
from edge_sdk.wire.messages import ID_BYTES, TERMS_NAMED_MAX, Invite
from edge_sdk.wire.terms import Terms, terms_id

__all__ = ["KnownTerms"]

KEPT: Final = TERMS_NAMED_MAX + 1
"""One more than are named: an invite may answer the check-in before the last one."""


class KnownTerms:
    """The last few terms, by their short digests."""

    def __init__(self) -> None:
        self._terms: OrderedDict[bytes, Terms] = OrderedDict()

    def named(self) -> tuple[bytes, ...]:
        """What a check-in says: short digests, those used last first."""
        return tuple(reversed(self._terms))[:TERMS_NAMED_MAX]

    def of(self, invite: Invite) -> Terms:
        """The terms of an invite, which it brings or names.

        Raises:
            DecodeError: It names others than this device knows, or what it brings are none.
            VersionError: Their codec is one that this side does not know.
        """
        if len(invite.terms) == ID_BYTES:
            found = self._terms.get(invite.terms)
            if found is None:
                raise DecodeError("invite.terms: the device does not know them", reason="terms")
            name = invite.terms
        else:
            found, name = Terms.decode(invite.terms), terms_id(invite.terms)
        self._terms[name] = found
        self._terms.move_to_end(name)
        while len(self._terms) > KEPT:
            self._terms.popitem(last=False)
        return found
