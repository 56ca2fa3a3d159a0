"""The update codec beside its limits: bytes, errors, CPU time; group ``codec`` of ``python -m benchmarks``.

CPU times are the thread's own, with BLAS on one thread; "argp" is ``np.argpartition`` of the same vector's magnitudes,
taken in turn with the codec in the same run. Real deltas are of this repository's own federations: ``delta +
residual`` of a cohort after twenty rounds of plain SGD with ``sparse`` at 1 %.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.bench_codec import LAYERS
from benchmarks.codec_models import gru_model
from benchmarks.codec_tasks import federation
from benchmarks.figures import Figure, at_most, skipped
from benchmarks.vectors import gaussian, mnist_file, real
from coordinator.compile import build_zoo_model, compile_model
from edge_sdk.aggregation.sums import FixedPoint, WeightedMean
from edge_sdk.codecs import CodecSettings, Decoded, decode_update, encode_update
from edge_sdk.codecs.frames import groups_of
from edge_sdk.codecs.index_coding import Matrix, best_parameter, encode_indices
from edge_sdk.errors import ConfigurationError
from edge_sdk.parameters import ParameterSpec
from edge_sdk.training.engine import make_engine
from edge_sdk.training.local import train_locally
from edge_sdk.wire.plan import TrainingPlan

__all__ = ["measure"]

Vector = NDArray[np.float32]
SIZE: Final = 1_000_000
DENSITIES: Final = (0.1, 0.01, 0.001)
RATES: Final = (0.05, 0.09, 0.25, 1.0, 2.0, 4.0, 8.0)
LLOYD_MAX: Final = {1: 0.36338, 2: 0.11748, 4: 0.0095010, 8: 4.1185e-5}
"""Distortion of the optimal quantiser of a normal distribution with 2^bits levels (Max, 1960, table 1)."""
ROUNDS: Final = 20
REPEATS: Final = 25


def measure() -> list[Figure]:
    """All gauges, each with its limit."""
    vector = gaussian(SIZE)
    return [*_indices(vector), *_real_indices(), *_times(vector), *_real_times(), _overhead(vector), *_errors(vector)]


# --- indices ---------------------------------------------------------------------------------------------------------


def _indices(vector: Vector) -> list[Figure]:
    name = "index bits / log2 C(n, k), random, n = 1,000,000, {:g} %"
    return [at_most(name.format(100 * d), index_ratio([vector], d, ()), "", 1.01) for d in DENSITIES]


def _real_indices() -> list[Figure]:
    name, figures = "index bits / log2 C(n, k), real SGD deltas, 1 %, {}", []
    for model, take in (("MLP 784-1000-200-10", _mlp), ("CNN", _cnn), ("GRU", _gru)):
        try:
            vectors, matrices = take()
        except ConfigurationError:
            figures.append(skipped(name.format(model), "", "<= 0.75"))
        else:
            figures.append(at_most(name.format(model), index_ratio(vectors, 0.01, matrices), "", 0.75))
    return figures


def index_ratio(vectors: list[Vector], density: float, matrices: tuple[Matrix, ...]) -> float:
    """Bits of the index section in bits of the limit, both summed over the vectors."""
    bits = limit = 0.0
    for vector in vectors:
        indices = _sent(vector, CodecSettings("sparse", density=density)).indices
        assert indices is not None
        bits += 8 * len(encode_indices(indices, vector.size, matrices)[0])
        limit += log2_choose(vector.size, indices.size)
    return bits / limit


def log2_choose(n: int, k: int) -> float:
    """log2 of the number of ways to choose ``k`` of ``n``."""
    return (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2)


def _mlp() -> tuple[list[Vector], tuple[Matrix, ...]]:
    vectors = real()
    if vectors is None:
        raise ConfigurationError("mnist.npz is not here")
    layers = [
        entry
        for number, (rows, columns) in enumerate(itertools.pairwise(LAYERS))
        for entry in ((f"w{number}", (rows, columns), "trainable"), (f"b{number}", (columns,), "trainable"))
    ]
    return vectors, _matrices(ParameterSpec(layers))


def _cnn() -> tuple[list[Vector], tuple[Matrix, ...]]:
    """The zoo's, 215,370 parameters: two convolutions 5x5, two pools, a dense layer of 128."""
    return _cohort(
        "cnn", build_zoo_model("cnn", inputs=(1, 28, 28), outputs=10, channels=(16, 32), hidden=(128,), seed=0)
    )


def _gru() -> tuple[list[Vector], tuple[Matrix, ...]]:
    """Of width 192, 154,374 parameters, over sixteen steps of UCI HAR."""
    return _cohort("gru", gru_model(0, inputs=(16, 72), hidden=192, classes=6))


def _cohort(task: str, model: onnx.ModelProto) -> tuple[list[Vector], tuple[Matrix, ...]]:
    """``delta + residual`` of the last cohort of a model among the clients of a task of ``reproduce_codec``."""
    world = federation(task, 0)
    bundle = compile_model(model, loss="softmax_cross_entropy", name=task, verify=False)
    engine, parameters = make_engine(bundle.program), bundle.parameters
    plan = TrainingPlan(epochs=1, batch_size=10, seconds_max=1e6, scalars={"lr": 0.1})
    sparse = CodecSettings("sparse", density=0.01)
    kept: dict[int, dict[str, Vector]] = {}
    vectors: list[Vector] = []
    for number in range(ROUNDS):
        vectors.clear()
        mean, cohort = np.zeros_like(parameters), world.cohort(number)
        for client in cohort:
            rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([number, client])))
            delta = train_locally(engine, parameters, world.clients[client], plan, rng=rng, clock=time.monotonic).delta
            residual = kept.get(client, {}).get("residual")
            encoded = encode_update(delta, kept.get(client), sparse, seed=0)
            kept[client] = encoded.kept
            mean += decode_update(encoded.frame, delta.size, sparse).dense() / np.float32(len(cohort))
            vectors.append(delta if residual is None else delta + residual)
        parameters = parameters + mean
    return vectors, _matrices(bundle.program.spec)


def _matrices(spec: ParameterSpec) -> tuple[Matrix, ...]:
    return groups_of(spec, CodecSettings("sparse"))[0].matrices


# --- time ------------------------------------------------------------------------------------------------------------


def _times(vector: Vector) -> list[Figure]:
    residual = np.zeros_like(vector)
    eden = CodecSettings("eden", bits=0.05)
    sparse = CodecSettings("sparse", density=0.01)
    return [
        *(
            at_most(
                f"sparse {100 * density:g} %, n = 1,000,000: encode with residual / argpartition, CPU",
                _against_argpartition(vector, residual, CodecSettings("sparse", density=density), density),
                "",
                bound,
            )
            for density, bound in ((0.01, 1.0), (0.1, 2.5))
        ),
        at_most(
            "eden 1 bit, n = 1,000,000: encode / argpartition, CPU",
            _against_argpartition(vector, None, CodecSettings("eden", bits=1), 0.01),
            "",
            2.0,
        ),
        at_most("sparse 1 %, n = 1,000,000: decode and accumulate, CPU", 1e3 * _summing(vector, sparse), "ms", 0.4),
        at_most("eden 0.05, n = 1,000,000: decode and accumulate, CPU", 1e3 * _summing(vector, eden), "ms", 2.0),
    ]


def _real_times() -> list[Figure]:
    name = "sparse {:g} %, real MLP delta, n = 987,210: encode with residual / argpartition, CPU"
    bounds = ((0.01, 1.0), (0.1, 2.5))
    if mnist_file() is None:
        return [skipped(name.format(100 * density), "", f"<= {bound:g}") for density, bound in bounds]
    vectors, matrices = _mlp()
    residual = np.zeros_like(vectors[0])
    return [
        at_most(
            name.format(100 * density),
            _against_argpartition(vectors[0], residual, CodecSettings("sparse", density=density), density, matrices),
            "",
            bound,
        )
        for density, bound in bounds
    ]


def _against_argpartition(
    vector: Vector,
    residual: Vector | None,
    settings: CodecSettings,
    density: float,
    matrices: tuple[Matrix, ...] = (),
) -> float:
    """Median over pairs taken in turn."""
    magnitudes = np.abs(vector)
    kept = None if residual is None else {"residual": residual}
    kth = vector.size - round(density * vector.size)
    ratios = []
    for _ in range(REPEATS):
        partition = _cpu_seconds(lambda: np.argpartition(magnitudes, kth))
        encode = _cpu_seconds(lambda: encode_update(vector, kept, settings, seed=1, matrices=matrices))
        ratios.append(encode / partition)
    return float(np.median(ratios))


def _summing(vector: Vector, settings: CodecSettings) -> float:
    """CPU seconds from the frame to the sum, in a round whose rotation the update shares."""
    frame = encode_update(vector, None, settings, seed=1, shared_seed=7).frame
    mean = WeightedMean(vector.size, FixedPoint(), rotation=7)
    mean.accumulate(decode_update(frame, vector.size, settings), 1)  # the first one allocates
    seconds = [
        _cpu_seconds(lambda: mean.accumulate(decode_update(frame, vector.size, settings), 10)) for _ in range(REPEATS)
    ]
    return float(np.median(seconds))


def _cpu_seconds(action: Callable[[], object]) -> float:
    started = time.thread_time_ns()
    action()
    return (time.thread_time_ns() - started) / 1e9


# --- bytes and errors ------------------------------------------------------------------------------------------------


def _overhead(vector: Vector) -> Figure:
    """What a frame of 100 coordinates has beside the bits of their gaps, signs and magnitudes."""
    settings = CodecSettings("sparse", density=100 / SIZE)
    frame = encode_update(vector, None, settings, seed=0).frame
    sent = _sent(vector, settings)
    assert sent.indices is not None
    gaps = np.diff(sent.indices, prepend=-1) - 1
    parameter = best_parameter(sent.indices.size, SIZE)
    width, short = (parameter - 1).bit_length(), (1 << (parameter - 1).bit_length()) - parameter
    remainders = np.where(gaps % parameter < short, width - 1, width).sum()
    magnitudes = np.unique(np.abs(sent.values))  # base + q * step
    step = np.diff(magnitudes).min(initial=np.inf)
    quotients = np.rint((np.abs(sent.values) - magnitudes[0]) / step).sum()
    bits = remainders + (gaps // parameter + 1).sum() + sent.indices.size + quotients + sent.indices.size
    return at_most(
        "sparse, k = 100, n = 1,000,000: frame beside its payload bits", float(len(frame) - bits / 8), "bytes", 24
    )


def _errors(vector: Vector) -> list[Figure]:
    """NMSE * (2^2R - 1) of eden in what theory gives at the same rate; R are the bits of the whole frame."""
    figures = []
    for bits in RATES:
        settings = CodecSettings("eden", bits=bits)
        frame = encode_update(vector, None, settings, seed=11).frame
        error = decode_update(frame, SIZE, settings).dense() - vector
        found = _squares(error) / _squares(vector) * (4.0 ** (8 * len(frame) / SIZE) - 1.0)
        nmse = math.pi / (2 * bits) - 1 if bits < 1 else 1 / (1 - LLOYD_MAX[int(bits)]) - 1
        name = f"eden {bits:g} bits, n = 1,000,000: NMSE (2^2R - 1) in that of theory"
        figures.append(at_most(name, found / (nmse * (4.0**bits - 1.0)), "", 1.03))
    return figures


def _squares(vector: Vector) -> float:
    return float(np.square(vector, dtype=np.float64).sum())


def _sent(vector: Vector, settings: CodecSettings) -> Decoded:
    decoded = decode_update(encode_update(vector, None, settings, seed=0).frame, vector.size, settings)
    assert isinstance(decoded, Decoded)
    return decoded
