"""What each codec makes of the same real updates: bytes, error, distance to the limit, and which setting to take.

Errors are normalised: the energy of the error over that of what was to be sent (NMSE), over trainable coordinates;
buffers travel as they are. For ``sparse`` what was to be sent is the delta and the residual of earlier rounds.

The error of a round's mean is what counts for the model. It is measured, not extrapolated: the mean of so many decoded
updates against the mean of what was to be sent, each of a client of its own. (Encoding one client's update several
times is no cohort: under a rotation that is shared, equal updates have equal rounding errors, and nothing averages.)

An NMSE alone cannot compare codecs that leave out with codecs that add noise: to send nothing has 1, and an honest
share of the coordinates, unbiased, more than that. What leaves out makes the step too short, which a learning rate
mends, and noise turns it. So what is compared is the error at the scale at which a mean d is unbiased along the true
one x, ``|x|^2 |d|^2 / <x, d>^2 - 1``: the tangent squared of the angle between them. Of an unbiased codec it is the
NMSE itself. What later rounds do to an error, by averaging or by feedback, is not in it: ``codec_trial.py``. PURE.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from coordinator.codec_report.cohort import Cohort
from coordinator.codec_report.frame_bytes import bytes_by_element, sparse_cost
from edge_sdk.codecs import CodecSettings, frame_codec
from edge_sdk.codecs.auto import Auto
from edge_sdk.codecs.centroids import UNIT, levels, nearest_codes
from edge_sdk.codecs.eden import SHARE_ALL, Eden, share_of
from edge_sdk.codecs.frames import EncodedFrames, decode_frames, frames_bytes_max, groups_of, joined, untrained_mask
from edge_sdk.codecs.sparse import Sparse
from edge_sdk.parameters import ParameterSpec

__all__ = ["Measurement", "TensorCost", "decoded_vector", "eden_nmse", "measure", "scaled_nmse"]


@dataclass(frozen=True, slots=True)
class TensorCost:
    """What a codec spends on one tensor, in one update.

    Attributes:
        bytes: Of the frames' bodies, mean of the clients.
        nmse: Error within the tensor; None for a tensor that has not moved, and for buffers.
        sent: Coordinates, mean of the clients.
    """

    bytes: float
    nmse: float | None
    sent: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """What a setting makes of the updates.

    Attributes:
        settings: The setting.
        codecs: Those that the main frames are in, each once.
        bytes: Of an update's frames, mean of the clients.
        bytes_max: What no update's frames exceed.
        head_bytes: Of ``bytes`` those that belong to no tensor: the heads of the frames.
        ratio: Bytes of the parameters as float32 over ``bytes``.
        nmse: Of one update.
        cohort_nmse: Of the mean of a cohort.
        scaled_nmse: The same at the scale that makes the mean unbiased; infinite where nothing of it is left.
        bits_per_nonzero: ``sparse``: bits of the body for each coordinate sent.
        index_ratio: ``sparse``: bits of the indices over log2 C(n, k).
        limit_ratio: ``eden``: NMSE times 2^(2 bits) - 1, that is over the least NMSE of an unbiased code of that rate.
        limit_theory: ``eden``: the same by its theory.
        tensors: In the order of the specification.
        progress: Where training through the codec has come to: the share of the rounds after which it is there with
            updates as they are (``codec_trial.py``); None where it was not tried.
    """

    settings: CodecSettings
    codecs: tuple[str, ...]
    bytes: float
    bytes_max: int
    head_bytes: float
    ratio: float
    nmse: float
    cohort_nmse: float
    scaled_nmse: float
    bits_per_nonzero: float | None
    index_ratio: float | None
    limit_ratio: float | None
    limit_theory: float | None
    tensors: tuple[TensorCost, ...]
    progress: float | None = None

    @property
    def label(self) -> str:
        """The codec and the number that it reads: ``sparse 1%``, ``eden 0.09``, ``int8``."""
        codec = self.settings.codec
        if isinstance(codec, Sparse):
            return f"sparse {100.0 * codec.density:g}%"
        return f"{codec.name} {codec.bits:g}" if isinstance(codec, Eden | Auto) else codec.name


def measure(cohort: Cohort, settings: CodecSettings, updates: int) -> Measurement:
    """What ``settings`` make of the updates; the mean is of the first ``updates`` (at least 1) of them."""
    spec, clients = cohort.spec, len(cohort.deltas)
    energy, squares, spent, sent = np.zeros((4, spec.size))
    sums = _Sums(energy, squares, spent, sent)
    mean_error, mean = np.zeros(spec.size), np.zeros(spec.size)
    for client in range(clients):
        wanted = cohort.wanted(settings, client)
        frames = cohort.encoded(settings, client)
        error = decoded_vector(frames, settings, spec) - wanted
        if (mask := untrained_mask(spec)) is not None:
            error[mask] = 0.0
        sums.add(frames, settings, spec, wanted, error)
        if client < updates:
            mean_error += error
            mean += wanted
    in_bytes = sums.bytes / clients
    nmse = float(sums.error.sum() / sums.energy.sum())
    eden = settings.codec.bits if sums.codecs == {"eden"} and isinstance(settings.codec, Eden | Auto) else None
    least = None if eden is None else 1.0 / (2.0 ** (2.0 * eden) - 1.0)
    return Measurement(
        settings=settings,
        codecs=tuple(sorted(sums.codecs)),
        bytes=in_bytes,
        bytes_max=frames_bytes_max(spec, settings),
        head_bytes=in_bytes - float(sums.spent.sum()) / clients,
        ratio=4.0 * spec.size / in_bytes,
        nmse=nmse,
        cohort_nmse=float(np.square(mean_error).sum() / max(float(np.dot(mean, mean)), np.finfo(float).tiny)),
        scaled_nmse=scaled_nmse(mean, mean + mean_error),
        bits_per_nonzero=_mean(sums.bits_per_nonzero),
        index_ratio=_mean(sums.index_ratios),
        limit_ratio=None if least is None else nmse / least,
        limit_theory=None if eden is None or least is None else eden_nmse(eden) / least,
        tensors=sums.by_tensor(spec, clients),
    )


def eden_nmse(bits: float) -> float:
    """The NMSE of ``eden`` in theory: of the best unbiased scale over levels of a normal distribution.

    Below one bit pi / (2 share) - 1 (Vargaftik et al., "EDEN", 2022, section 5); else E[q^2] / E[z q]^2 - 1 for the
    level q of a normal z.
    """
    width, share = share_of(bits)
    if width == 1:
        return math.pi / 2.0 * SHARE_ALL / share - 1.0
    z = np.linspace(-8.0, 8.0, (1 << 17) + 1)
    weights = np.exp(-z * z / 2.0)
    weights /= weights.sum()
    level = levels(width)[nearest_codes(z.astype(np.float32), width)].astype(np.float64) / UNIT
    return float((weights * level * level).sum() / (weights * z * level).sum() ** 2 - 1.0)


def scaled_nmse(true: NDArray[np.float64], decoded: NDArray[np.float64]) -> float:
    """The NMSE of ``decoded`` (float64[P], as ``true``) at the scale at which it is unbiased along ``true``; infinite
    where it has no part along it."""
    inner = float(np.dot(true, decoded))
    if inner <= 0.0:
        return math.inf
    across = decoded * (float(np.dot(true, true)) / inner) - true
    return float(np.dot(across, across) / np.dot(true, true))


def decoded_vector(frames: EncodedFrames, settings: CodecSettings, spec: ParameterSpec) -> NDArray[np.float64]:
    """float64[P]: what the frames of an update say, zero where nothing was sent."""
    parts = decode_frames(frames.frames, settings, spec)
    whole = joined(groups_of(spec, settings), [part.plain().dense() for part in parts])
    return whole.astype(np.float64)


@dataclass(slots=True, eq=False)
class _Sums:
    """Sums over clients: by element, and by frame."""

    energy: NDArray[np.float64]
    error: NDArray[np.float64]
    spent: NDArray[np.float64]
    sent: NDArray[np.float64]
    bytes: int = 0
    codecs: set[str] = field(default_factory=set)
    bits_per_nonzero: list[float | None] = field(default_factory=list)
    index_ratios: list[float | None] = field(default_factory=list)

    def add(
        self,
        frames: EncodedFrames,
        settings: CodecSettings,
        spec: ParameterSpec,
        wanted: NDArray[np.float64],
        error: NDArray[np.float64],
    ) -> None:
        self.energy += wanted * wanted
        self.error += error * error
        groups = groups_of(spec, settings)
        self.bytes += sum(map(len, frames.frames))
        for group, frame in zip(groups, frames.frames, strict=True):
            spent = bytes_by_element(frame, group.size, group.settings)
            self.spent[group.where] += spent
            cost = sparse_cost(frame, group.size, group.settings)
            if cost is None:
                self.sent[group.where] += spent > 0.0
            else:
                self.sent[group.positions(cost.indices)] += 1.0
            if group.kind == "main":
                self.codecs.add(frame_codec(frame))
                if cost is not None:
                    self.bits_per_nonzero.append(cost.bits_per_nonzero)
                    self.index_ratios.append(cost.index_ratio)

    def by_tensor(self, spec: ParameterSpec, clients: int) -> tuple[TensorCost, ...]:
        costs = []
        for tensor in spec:
            part = slice(tensor.offset, tensor.offset + tensor.size)
            energy, error = float(self.energy[part].sum()), float(self.error[part].sum())
            nmse = error / energy if energy > 0.0 else None
            costs.append(
                TensorCost(float(self.spent[part].sum()) / clients, nmse, float(self.sent[part].sum()) / clients)
            )
        return tuple(costs)


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
