"""What an update costs the coordinator's database: ``python benchmarks/journal_cost.py [updates]``.

CPU time of this process (user and system) and wall time, for updates of 9-14 kB of random bytes, each batch one
transaction with a full sync. Also the cost of replaying them, and of the round's end, which overwrites them.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from coordinator.store import JournalRow, RoundRecord, Store, TicketRecord

PARAMETERS_BYTES = 800_000
PAYLOAD_BYTES = (9_000, 14_000)
DIGEST = b"\x11" * 32


def measure(directory: Path, count: int, batch: int, *, chunked: bool) -> str:
    draw = random.Random(1)
    store = Store(directory / "c.db", wall=time.time, new_id=draw.randbytes)
    checkpoint = store.put_initial("default", b"program", draw.randbytes(PARAMETERS_BYTES), b"")
    record = RoundRecord("default", 1, 0, "reporting", 60.0, checkpoint.parameters_digest, checkpoint.program_digest)
    store.save_round(record)
    tickets = [
        TicketRecord(draw.randbytes(16), "default", 1, 0, f"device-{i:05d}", draw.randbytes(16)) for i in range(count)
    ]
    store.insert_tickets(tickets)
    payloads = [draw.randbytes(draw.randint(*PAYLOAD_BYTES)) for _ in range(64)]
    rows = [JournalRow(ticket.ticket, DIGEST, payloads[i % 64]) for i, ticket in enumerate(tickets)]
    draw.shuffle(rows)

    cpu, wall = time.process_time(), time.perf_counter()
    for start in range(0, count, batch):
        part = rows[start : start + batch]
        if chunked:
            store.put_chunks([(row.ticket, DIGEST, len(row.payload), 0, row.payload) for row in part])
        seqs = store.journal(part)
    cpu_journal, wall_journal = time.process_time() - cpu, time.perf_counter() - wall
    cpu = time.process_time()
    assert sum(1 for _ in store.journalled("default", 1, 0)) == count
    cpu_replay = time.process_time() - cpu
    cpu = time.process_time()
    store.commit_round(
        replace(record, phase="closed", last_seq=seqs[-1]),
        parameters=draw.randbytes(PARAMETERS_BYTES),
        server_state=b"",
        verdicts={ticket.ticket: ("counted", "") for ticket in tickets},
        metrics={},
    )
    cpu_end = time.process_time() - cpu
    store.close()
    micro = 1e6 / count
    return (
        f"batch {batch:3d} {'through partials' if chunked else 'whole':16s} journal {cpu_journal * micro:6.1f} us CPU, "
        f"{wall_journal * micro:6.1f} us wall; replay {cpu_replay * micro:5.1f}; "
        f"round's end {cpu_end * micro:6.1f} us CPU"
    )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000
    for batch, chunked in ((1, False), (4, False), (16, False), (64, False), (16, True)):
        with tempfile.TemporaryDirectory() as directory:
            print(measure(Path(directory), count, batch, chunked=chunked))


if __name__ == "__main__":
    main()
