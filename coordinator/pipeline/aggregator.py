"""The pure part of the pipeline: from the bytes of updates to the next model. No database, no clock, no chance.

    begin(model, memory)             a round begins with empty sums
    examine(bytes) -> DecodedUpdate  decoded, checked, changed by the steps; or refused
    add(update)                      into the sums, or into the rows
    finish() -> Finished             the next model, what is remembered, what devices get

The service's worker (:mod:`coordinator.pipeline.worker`) journals between ``examine`` and ``add``; ``simulate`` calls
the four in a loop. The same updates give the same bits in any order.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO, Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from coordinator.downlink import Downlink, moved_by, next_model
from coordinator.pipeline.gate import Gate
from coordinator.pipeline.memory import Memory, PartMemory
from coordinator.pipeline.metrics import RoundMetrics
from coordinator.pipeline.round_pipeline import Finished
from coordinator.pipeline.step import Counted, DecodedUpdate, Step
from coordinator.server_optimizers import FedAvg, ServerOptimizer
from coordinator.validate import Validation
from edge_sdk.aggregation.algorithm import DELTA, Algorithm, Contribution
from edge_sdk.aggregation.mean import Mean
from edge_sdk.aggregation.partial_sums import PartialSums
from edge_sdk.aggregation.rows import Facts, Rows
from edge_sdk.aggregation.sums import ROTATION_MASK, FixedPoint
from edge_sdk.codecs import Rotated
from edge_sdk.codecs.frames import DecodedParts, decode_frames, groups_of, joined, shared_seed, untrained_mask
from edge_sdk.errors import ConfigurationError, ProtocolError, StateError, TrainingError
from edge_sdk.training.bundle import Program, decode_parameters, digest_of, encode_parameters
from edge_sdk.training.model_delta import spans_of
from edge_sdk.wire.messages import Update
from edge_sdk.wire.plan import Plan

__all__ = ["Aggregator", "PipelineSettings"]

ALGORITHM: Final = "algorithm"
OPTIMIZER: Final = "optimizer"
GATE: Final = "gate"
DOWNLINK: Final = "downlink"
OWED: Final = "owed"
"""What the optimiser has moved beyond the model, and model deltas have left out so far: float32[P]."""
ROWS_IN_MEMORY_BYTES: Final = 32 << 20
"""Up to here the updates of a rule that needs all of them stay in memory, and there is no file."""


@dataclass(frozen=True, slots=True)
class PipelineSettings:
    """What a pipeline is made of.

    Attributes:
        validation: The bounds of the gate.
        algorithm: How updates become one delta.
        optimizer: How the delta moves the model.
        fixed_point: Scale and bounds of the sums.
        downlink: How the model travels to devices.
        steps: Further steps by name, in order, behind the gate.
        directory: Where temporary files are made; None for the system's own place.
    """

    validation: Validation
    algorithm: Algorithm = Mean()
    optimizer: ServerOptimizer = FedAvg()
    fixed_point: FixedPoint = FixedPoint()
    downlink: Downlink = Downlink()
    steps: tuple[tuple[str, Step], ...] = ()
    directory: str | None = None


class Aggregator:
    """The pipeline of one task.

    Args:
        program: The task's program.
        plan: What devices were asked to do.
        settings: What the pipeline is made of.

    Raises:
        ConfigurationError: Two steps have the same name, or the plan asks for another local algorithm.
    """

    def __init__(self, program: Program, plan: Plan, settings: PipelineSettings) -> None:
        self.program = program
        self.plan = plan
        self.settings = settings
        self._algorithm = settings.algorithm
        gate = Gate(settings.validation, 1.0 if program.metric == "accuracy" else None)
        self._steps: dict[str, Step] = {GATE: gate, **dict(settings.steps)}
        if len(self._steps) != len(settings.steps) + 1:
            raise ConfigurationError("aggregation.step: two steps have the same name")
        self._names = (DELTA, *self._algorithm.vectors)
        self._groups = groups_of(program.spec, plan.codec)
        self._trained = sum(group.size for group in self._groups)
        self._buffers = untrained_mask(program.spec)
        self._fixed = program.spec.mask("constant")
        self._spans = spans_of(program.spec, "buffer")
        self._fixed_spans = spans_of(program.spec, "constant")
        self._rows: Rows | None = None

    # --- between rounds ---

    def initial_memory(self) -> Memory:
        """What the parts remember before the first round."""
        return {name: init() for name, init in self._parts().items()}

    def broadcast(self, vector: NDArray[np.float32], memory: Memory) -> dict[str, bytes]:
        """Blobs of the vectors that devices of the next round get beside the model, by name.

        Raises:
            TrainingError: A vector that the algorithm gave has another length or is not finite.
        """
        given = self._algorithm.broadcast(vector, memory[ALGORITHM])
        if given.keys() != set(self._algorithm.broadcasts):
            raise TrainingError(
                f"the algorithm broadcasts {sorted(given)}, and it has declared {sorted(self._algorithm.broadcasts)}"
            )
        return {name: encode_parameters(self._checked(name, given[name])) for name in self._algorithm.broadcasts}

    # --- a round ---

    def begin(self, parameters: bytes, memory: Memory, base: bytes | None = None, stalled: int = 0) -> None:
        """A round begins.

        Args:
            parameters: The model's parameters blob.
            memory: What the parts remember; parts that are new begin with nothing.
            base: Its SHA-256, where it is known.
            stalled: How many attempts at this round have failed because most updates were too long.
        """
        self._parameters = decode_parameters(parameters, self.program.spec)
        self._before = parameters
        self._base = digest_of(self._before) if base is None else base
        self._memory: Memory = {**memory}
        for name, part in self._parts().items():
            if name not in self._memory:  # new in the configuration
                self._memory[name] = part()
        self._views: dict[str, Any] = {
            name: step.begin(self._memory[name], stalled) for name, step in self._steps.items()
        }
        self._rotation = shared_seed(self._base) & ROTATION_MASK
        self._metrics = RoundMetrics(self.plan, self.program.metric)
        self._counted: list[Counted] = []
        self._weight_sum = 0
        self._moved = 0
        self.close()
        if self._algorithm.needs_all:
            # Closed with the rows.
            file = tempfile.SpooledTemporaryFile(  # noqa: SIM115
                max_size=ROWS_IN_MEMORY_BYTES, dir=self.settings.directory
            )
            self._rows = Rows(self.program.spec.size, self._names, cast(IO[bytes], file))
        else:
            groups = dict.fromkeys(self._names, self._groups)
            self._sums = PartialSums(groups, self.settings.fixed_point, self._rotation, self._algorithm.totals)

    def examine(self, payload: bytes, digest: bytes | None = None, pending_weight: int = 0) -> DecodedUpdate:
        """One update, decoded, checked and changed by the steps; nothing is added yet.

        Args:
            payload: The update's bytes, which nobody vouches for.
            digest: Their SHA-256, where it is known.
            pending_weight: Weights of updates that were examined and are not added yet.

        Raises:
            ProtocolError: It is refused.
        """
        update = self._decoded(payload, digest)
        for name, step in self._steps.items():
            update = step.admit(update, self._views[name])
        self._algorithm.check(_contribution(update))
        if not self._algorithm.needs_all and pending_weight + update.weight + self._weight_sum > (
            self.settings.fixed_point.weight_sum_max
        ):
            raise ProtocolError("update: the round's sum of weights is full", reason="weight")
        return update

    def again(self, payload: bytes) -> DecodedUpdate:
        """An update that was examined and journalled before a crash: whatever the gate says today, it counts.

        Raises:
            StateError: The configuration has changed so much that it cannot be used any more.
        """
        try:
            update = self._decoded(payload, None)
            for name, step in self._steps.items():
                try:
                    update = step.admit(update, self._views[name])
                except ProtocolError:
                    if name != GATE:
                        raise
                    norm = self.settings.validation.measure(update.vectors[DELTA], update.groups)
                    update = replace(update, norm=norm)
            self._algorithm.check(_contribution(update))
        except ProtocolError as error:
            raise StateError(
                f"the open round holds an update that the configuration cannot use any more ({error}); put the former "
                "[codec], [aggregation] and [validation] tables back until the round has ended, then change them"
            ) from error
        return update

    def add(self, update: DecodedUpdate) -> None:
        """Adds an update that :meth:`examine` has let in."""
        said = update.update
        if self._rows is None:
            self._algorithm.accumulate(self._sums, _contribution(update))
        else:
            rows = {name: self._whole(parts) for name, parts in update.vectors.items()}
            self._rows.append(update.digest, rows, Facts(update.weight, said.steps, said.numbers))
        self._weight_sum += update.weight
        self._moved += moved_by(update.vectors[DELTA])
        self._metrics.add(said, update.weight, said.frames()[0] if self._groups[0].kind == "main" else b"")
        self._counted.append(Counted(update.digest, update.weight, update.norm))

    def finish(self) -> Finished:
        """The next model, from all updates that were added.

        Raises:
            EdgeFedError, ValueError: Nothing was added, or the model has diverged.
        """
        if not self._counted:
            raise ValueError("a round without updates has no result")
        counted = sorted(self._counted)
        report = self._algorithm.report(self._sums) if self._rows is None else self._algorithm.finish(self._rows)
        self.close()
        for name, step in self._steps.items():
            report = step.finish(report, counted, self._views[name])
        downlink = self.settings.downlink.suited(self._moved / max(1, len(counted) * self._trained))
        start = self._start(downlink.keeps)
        delta, state = self._algorithm.apply(start, report, self._memory[ALGORITHM])
        checked = self._checked(DELTA, delta)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused in words
            wanted, moved = self.settings.optimizer.apply(start, checked, self._memory[OPTIMIZER], self._buffers)
        if self._fixed_spans:  # an algorithm or optimiser of the user's own may have moved them
            wanted = np.where(self._fixed, self._parameters, wanted)
        made = next_model(downlink, self._before, wanted, self._spans, self._fixed_spans, base_digest=self._base)
        vector = decode_parameters(made.parameters, self.program.spec)
        memory: Memory = {
            OPTIMIZER: dict(moved),
            ALGORITHM: {name: self._checked(name, value) for name, value in state.items()},
            DOWNLINK: {} if made.model_delta is None else {OWED: wanted - vector},
            **{name: step.remember(self._memory[name], counted) for name, step in self._steps.items()},
        }
        broadcast = self.broadcast(vector, memory)
        return Finished(made.parameters, vector, memory, made.model_delta, broadcast, self._metrics.report())

    def close(self) -> None:
        """Gives up what an unfinished round holds."""
        if self._rows is not None:
            self._rows.close()
            self._rows = None

    def _start(self, keeps: float) -> NDArray[np.float32]:
        """The model with what is still owed, from which the optimiser goes on."""
        owed = self._memory[DOWNLINK].get(OWED)
        if owed is None:
            return self._parameters
        return self._parameters + np.float32(keeps) * owed.astype(np.float32, copy=False)

    def _parts(self) -> dict[str, Callable[[], PartMemory]]:
        """How each part's memory begins."""
        size = self.program.spec.size
        return {
            OPTIMIZER: lambda: dict(self.settings.optimizer.init(size)),
            ALGORITHM: lambda: dict(self._algorithm.init(size)),
            DOWNLINK: dict,
            **{name: step.init for name, step in self._steps.items()},
        }

    # --- one update ---

    def _decoded(self, payload: bytes, digest: bytes | None) -> DecodedUpdate:
        update = Update.decode(payload)
        sent = update.vectors
        if sent.keys() != set(self._names):
            raise ProtocolError(
                f"update: brings {', '.join(sorted(sent))}, the algorithm needs {', '.join(self._names)}",
                reason="vectors",
            )
        missing = [name for name in self._algorithm.numbers if name not in update.numbers]
        if missing:
            raise ProtocolError(f"update: lacks the numbers {', '.join(missing)}", reason="numbers")
        spec, codec = self.program.spec, self.plan.codec
        vectors = {name: self._summable(decode_frames(frames, codec, spec)) for name, frames in sent.items()}
        weight = 1 if self.plan.weighting == "uniform" else min(update.examples, self.plan.examples_max)
        return DecodedUpdate(digest or digest_of(payload), update, vectors, self._groups, weight)

    def _summable(self, parts: DecodedParts) -> DecodedParts:
        """What does not share the round's rotation is rotated back at once, so that its values are checked."""
        if self._rows is not None:
            return tuple(part.plain() for part in parts)
        return tuple(
            part if isinstance(part, Rotated) and part.seed == self._rotation else part.plain() for part in parts
        )

    def _whole(self, parts: DecodedParts) -> NDArray[np.float32]:
        return joined(self._groups, [part.dense() for part in parts])

    def _checked(self, name: str, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        if vector.dtype != np.float32 or vector.shape != (self.program.spec.size,) or not np.isfinite(vector.sum()):
            raise TrainingError(
                f"the algorithm's {name} is {vector.dtype}{list(vector.shape)}, expected finite "
                f"float32[{self.program.spec.size}]"
            )
        return vector


def _contribution(update: DecodedUpdate) -> Contribution:
    return Contribution(update.vectors, update.weight, update.update.steps, update.update.numbers)
