"""Message counters by reason: counted in memory, written along with whatever is written next."""

from __future__ import annotations

from collections import Counter
from typing import Final

from coordinator.store.database import Database

__all__ = ["Counters"]

REASONS_MAX: Final = 1000
OTHER: Final = "other"


class Counters:
    """How often each reason was met; beyond a thousand different ones the rest is counted as "other"."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pending: Counter[str] = Counter()
        self._written: Counter[str] = Counter()
        self._flushing: Counter[str] = Counter()
        if not database.readonly:
            database.before_commit.append(self._flush)
            database.after_rollback.append(self._restore)
            self._written = self._load()

    def count(self, reason: str, n: int) -> None:
        with self._database.lock:
            known = reason in self._pending or reason in self._written
            full = len(self._pending) + len(self._written) >= REASONS_MAX
            self._pending[reason if known or not full else OTHER] += n

    def all(self) -> dict[str, int]:
        with self._database.lock:
            written = self._load() if self._database.readonly else self._written
            return dict(sorted((written + self._pending).items()))

    def flush(self) -> None:
        """Write what is pending now."""
        with self._database.transaction():
            self._flush()

    def _flush(self) -> None:
        pending, self._pending = self._pending, Counter()
        if not pending:
            return
        self._flushing += pending
        self._written += pending
        self._database.write_many(
            "INSERT INTO counters (reason, count) VALUES (?, ?) "
            "ON CONFLICT (reason) DO UPDATE SET count = count + excluded.count",
            list(pending.items()),
        )
        self._database.after_commit.append(self._flushing.clear)

    def _restore(self) -> None:
        self._written -= self._flushing
        self._pending += self._flushing
        self._flushing = Counter()

    def _load(self) -> Counter[str]:
        return Counter(dict(self._database.rows("SELECT reason, count FROM counters")))
