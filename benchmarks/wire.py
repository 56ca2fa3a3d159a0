"""Bytes of one update on the wire: the whole PUBLISH packets of its upload, with topic, envelope and digests."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure, at_most, skipped
from benchmarks.vectors import DENSITY, gaussian, real
from benchmarks.wire_count import measure_count
from edge_sdk.codecs import CodecSettings, encode_update
from edge_sdk.mqtt.sizes import publish_bytes
from edge_sdk.training.bundle import digest_of
from edge_sdk.wire.envelope import Envelope, encode_message
from edge_sdk.wire.messages import DELTA, Chunk, Offer, Update
from edge_sdk.wire.ranges import CHUNK_BYTES_MAX, plan_chunks
from edge_sdk.wire.topics import Topics

__all__ = ["measure"]

TOPICS: Final = Topics("federation")
DEVICE: Final = "device-00042"
GAUSSIAN_KB: Final = 14.5
REAL_KB: Final = 11.0
REAL_NAME: Final = "update on the wire, delta + residual of MNIST 784-1000-200-10 after 20 rounds, 1 %"


def measure() -> list[Figure]:
    """kB (1,000 bytes) of the bulk packets; the largest one of a cohort."""
    zeros = np.zeros(1_000_000, dtype=np.float32)
    largest = max(sum(packets(gaussian(seed=seed), zeros)[1:]) for seed in range(3))
    figures = [at_most("update on the wire, Gaussian, 1,000,000 parameters, 1 %", largest / 1e3, "kB", GAUSSIAN_KB)]
    figures += measure_count()
    vectors = real()
    if vectors is None:
        return [*figures, skipped(REAL_NAME, "kB", f"<= {REAL_KB:g}")]
    sizes = [packets(vector, None) for vector in vectors]
    bulk = [sum(size[1:]) / 1e3 for size in sizes]
    return [
        *figures,
        at_most(f"{REAL_NAME}, mean of the cohort", float(np.mean(bulk)), "kB", REAL_KB),
        Figure(f"{REAL_NAME}, smallest", min(bulk), "kB"),
        Figure(f"{REAL_NAME}, largest", max(bulk), "kB"),
        Figure("float32 / update on the wire, MNIST", 4 * vectors[0].size / 1e3 / float(np.mean(bulk)), "x"),
        Figure("offer of an update, beside it", float(sizes[0][0]), "bytes"),
    ]


def packets(delta: NDArray[np.float32], residual: NDArray[np.float32] | None) -> list[int]:
    """Bytes of the offer's PUBLISH packet, then of each chunk's."""
    frame = encode_update(
        delta, None if residual is None else {"residual": residual}, CodecSettings("sparse", density=DENSITY), seed=0
    ).frame
    payload = Update(
        examples=600, steps=19, loss=0.25, complete=True, seconds=1.5, engine="numpy", vectors={DELTA: (frame,)}
    )
    data = payload.encode()
    ticket, digest = bytes(range(16)), digest_of(data)
    envelope = Envelope(lineage=bytes(8))
    offer = encode_message(envelope, Offer(ticket=ticket, digest=digest, total=len(data)))
    sizes = [publish_bytes(TOPICS.from_device(DEVICE, Offer.kind), len(offer))]
    for start, stop in plan_chunks([(0, len(data))], CHUNK_BYTES_MAX):
        chunk = Chunk(ticket=ticket, digest=digest, total=len(data), offset=start, data=data[start:stop])
        sizes.append(publish_bytes(TOPICS.up("0", DEVICE), len(encode_message(envelope, chunk))))
    return sizes
