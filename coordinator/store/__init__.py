"""All that the coordinator must not forget, in one SQLite file.

``Store`` is the only writer. Its methods may be called from any thread, alone (each is one transaction) or inside
``with store.transaction():``, where all of them are committed together (group commit: one fsync for many).
"""

from __future__ import annotations

from coordinator.store.delta_ways import deltas_kept, way_from
from coordinator.store.opening import backup_path
from coordinator.store.reader import StoreReader
from coordinator.store.records import (
    ENDED_PHASES,
    Checkpoint,
    ChunkRefused,
    DeviceRecord,
    JournalRow,
    ModelDeltaRecord,
    NewDelta,
    QuotaExceeded,
    RoundRecord,
    TicketRecord,
    Verdict,
)
from coordinator.store.store import Store

__all__ = [
    "ENDED_PHASES",
    "Checkpoint",
    "ChunkRefused",
    "DeviceRecord",
    "JournalRow",
    "ModelDeltaRecord",
    "NewDelta",
    "QuotaExceeded",
    "RoundRecord",
    "Store",
    "StoreReader",
    "TicketRecord",
    "Verdict",
    "backup_path",
    "deltas_kept",
    "way_from",
]
