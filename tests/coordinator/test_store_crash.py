"""SIGKILL at any moment: what was reported committed is there, and a round is wholly ended or wholly open."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from test_store import DIGEST, TASK, open_store

WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import DIGEST, TASK, a_round, closed, commit, open_store, tickets_of
from coordinator.store import JournalRow, NewDelta

store = open_store(Path(sys.argv[1]), seed=int(sys.argv[3]))
print("start", store.next_incarnation(), flush=True)
while True:
    record = store.open_round(TASK)
    if record is None:
        record = a_round(store, store.latest_checkpoint(TASK).round + 1 if store.latest_checkpoint(TASK) else 1)
        store.insert_tickets(tickets_of(record, 60))
    tickets = store.tickets(TASK, record.number, record.attempt)
    todo = [t for t in tickets if t.state == "invited"]
    for start in range(0, len(todo), 4):
        batch = todo[start : start + 4]
        store.put_chunks([(t.ticket, DIGEST, 12_000, 0, t.ticket * 750) for t in batch])
        seqs = store.journal([JournalRow(t.ticket, DIGEST, store.assemble(t.ticket, DIGEST)) for t in batch])
        for seq, t in zip(seqs, batch):
            print("journalled", record.number, seq, t.ticket.hex(), flush=True)
    tickets = store.tickets(TASK, record.number, record.attempt)
    verdicts = {t.ticket: ("counted", "") if t.state == "journalled" else ("missing", "") for t in tickets}
    delta = NewDelta(b"delta %d" % record.number, 3, 1 << 20)
    last = closed(record, max(t.seq or 0 for t in tickets))
    commit(store, last, verdicts, parameters=b"after %d" % record.number, model_delta=delta)
    print("closed", record.number, flush=True)
"""


def run_until_killed(path: Path, seed: int, seconds: float) -> list[list[str]]:
    """What the writer said before SIGKILL came."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent), str(seed)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    process.wait()
    process.stdout.close()
    whole = (first + rest).rpartition("\n")[0]  # the last line may be cut
    return [line.split() for line in whole.splitlines()]


def test_everything_reported_committed_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    draw = random.Random(20_240)
    journalled: dict[bytes, tuple[int, int]] = {}
    closed_rounds: set[int] = set()
    for run in range(6):
        said = run_until_killed(path, 1000 * run, draw.uniform(0.0, 0.3))
        assert said[0] == ["start", str(run + 1)]
        for line in said[1:]:
            if line[0] == "closed":
                closed_rounds.add(int(line[1]))
            else:
                journalled[bytes.fromhex(line[3])] = (int(line[1]), int(line[2]))
        store = open_store(path, seed=1000 * run + 500)
        assert not store.restored and store.incarnation == run + 1
        open_round = store.open_round(TASK)
        replayed = {}
        if open_round is not None:
            rows = store.journalled(TASK, open_round.number, open_round.attempt)
            replayed = {ticket: (seq, payload) for seq, ticket, _, payload in rows}
        for ticket, (number, seq) in journalled.items():
            record = store.ticket(ticket)
            assert record is not None and record.digest == DIGEST and record.seq == seq
            if open_round is not None and open_round.number == number:
                assert replayed[ticket] == (seq, ticket * 750)
            else:
                assert record.state == "counted"
        for round_record in store.rounds(TASK, 1000):
            if round_record.phase == "closed":
                states = {t.state for t in store.tickets(TASK, round_record.number, 0)}
                assert states <= {"counted", "missing"}
        latest = store.latest_checkpoint(TASK)
        finished = {record.number for record in store.rounds(TASK, 1000) if record.phase == "closed"}
        assert closed_rounds <= finished
        if latest is not None and finished:
            assert latest.round == max(finished)
            assert store.get_blob(latest.parameters_digest) == b"after %d" % latest.round
            deltas = store.deltas(TASK)
            assert [delta.round for delta in deltas] == list(range(max(1, latest.round - 2), latest.round + 1))
            assert deltas[-1].target == latest.parameters_digest
            assert [store.get_blob(delta.digest) for delta in deltas] == [b"delta %d" % delta.round for delta in deltas]
        store.close()
    assert len(journalled) > 50, "the writer was killed before it had written anything worth losing"
