"""The engine on the stock ``onnxruntime`` wheel.

Parameters and optimiser state live in two flat buffers. A step reads one and writes the other, and the next step goes
the other way round; both ways are bound once per handle, so that a step passes only the batch. The tensors that
onnxruntime sees are views of these buffers: loading and reading are one copy each.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import BundleError, TrainingError
from edge_sdk.training.engine.base import Batch, check_vector, merged_scalars, steps_one_by_one
from edge_sdk.training.engine.onnx_bytes import check_onnx
from edge_sdk.training.program import ANCHOR, NEW, Program

__all__ = ["OnnxRuntimeEngine", "OnnxRuntimeHandle"]

STEPS_AT_ONCE: Final = 64
"""So many steps make the cost of a call small beside them; more would only make a run longer than anybody waits."""

_FATAL: Final = 4  # onnxruntime's log severity: its errors reach us as exceptions, not on stderr

_TYPES: Final = {
    "float32": "tensor(float)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "bool": "tensor(bool)",
    "uint8": "tensor(uint8)",
}

Vector: TypeAlias = NDArray[np.float32]

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class OnnxRuntimeHandle:
    """A model in training: each buffer twice; ``turn`` is the half that holds the newest values."""

    parameters: tuple[Vector, Vector]
    state: tuple[list[Vector], list[Vector]]
    scalars: dict[str, Vector]
    loss: Vector
    anchor: Vector
    bindings: tuple[Any, Any]
    turn: int = 0
    loop_bindings: tuple[Any, Any] | None = None


class OnnxRuntimeEngine:
    """Runs a program's ONNX graphs.

    Args:
        program: What to run; its graphs are handed over as bytes, never as a path.
        threads: Threads inside of one operator.

    Raises:
        TrainingError: onnxruntime is missing or broken, or refuses the graph.
        BundleError: The graph names external data or foreign operators, or its inputs are not the program's.
    """

    name = "onnxruntime"

    def __init__(self, program: Program, threads: int = 1) -> None:
        self.program = program
        self._runtime = _import_onnxruntime()
        self._options = _session_options(self._runtime, threads)
        self._run_options = self._runtime.RunOptions()
        self._run_options.log_severity_level = _FATAL
        # The default, spelt out: where it is missing onnxruntime's wrapper learns so from an exception, every step.
        self._run_options.add_run_config_entry("gpu_graph_id", "0")
        self._train = self._session(program.train, "train")
        self._inputs = {entry.name for entry in self._train.get_inputs()}
        self._constants = frozenset(t.name for t in program.spec if t.kind == "constant")
        tensors = {*(t.name for t in program.spec), *(name for name, _ in program.state)}
        self._results = {"loss", *(NEW + name for name in tensors - self._constants)}
        self._check_outputs(self._train, self._results, "train")
        self._loop: Any = None
        self.steps_at_once = STEPS_AT_ONCE if program.train_loop else 1
        self._evaluate: Any = None  # made when first asked for: a session costs megabytes
        self._infer: Any = None

    def load(self, vector: Vector) -> OnnxRuntimeHandle:
        """See :class:`Engine`."""
        check_vector(self.program, vector)
        shapes = [shape for _, shape in self.program.state]
        handle = OnnxRuntimeHandle(
            parameters=(vector.copy(), vector.copy()),  # constants are in both; no step writes them
            state=([np.zeros(s, np.float32) for s in shapes], [np.zeros(s, np.float32) for s in shapes]),
            scalars={name: np.zeros((), np.float32) for name in self.program.scalars},
            loss=np.zeros((), np.float32),
            anchor=vector,
            bindings=(self._train.io_binding(), self._train.io_binding()),
        )
        try:
            for turn, binding in enumerate(handle.bindings):
                self._bind(handle, turn, binding)
                binding.bind_ortvalue_output("loss", self._runtime.OrtValue.ortvalue_from_numpy(handle.loss))
        except Exception as error:  # onnxruntime has no exception root of its own
            raise _failed("train", error) from error
        return handle

    def step(self, handle: OnnxRuntimeHandle, batch: Batch, scalars: Mapping[str, float]) -> float:
        """See :class:`Engine`."""
        for name, number in merged_scalars(self.program, scalars).items():
            handle.scalars[name][()] = number
        binding = handle.bindings[handle.turn]
        # Kept until the run is over: onnxruntime reads these arrays where they are.
        fed = {name: np.ascontiguousarray(value) for name, value in batch.items() if name in self._inputs}
        try:
            for name, value in fed.items():
                binding.bind_cpu_input(name, value)
            self._train.run_with_iobinding(binding, self._run_options)
        except Exception as error:  # onnxruntime has no exception root of its own
            raise _failed("train", error) from error
        handle.turn = 1 - handle.turn
        return float(handle.loss)

    def shift(self, handle: OnnxRuntimeHandle, vector: Vector) -> None:
        """See :class:`Engine`; the bindings read the parameters where they are."""
        check_vector(self.program, vector)
        handle.parameters[handle.turn][:] += vector

    def steps(self, handle: OnnxRuntimeHandle, batches: Batch, scalars: Mapping[str, float]) -> Vector:
        """See :class:`Engine`; in one run where the program has a loop for it."""
        if not self._loads_loop():
            return steps_one_by_one(self, handle, batches, scalars)
        for name, number in merged_scalars(self.program, scalars).items():
            handle.scalars[name][()] = number
        losses = np.zeros(len(batches["target"]), np.float32)
        fed = {name: np.ascontiguousarray(value) for name, value in batches.items() if name in self._inputs}
        try:
            binding = self._loop_binding(handle)
            for name, value in fed.items():
                binding.bind_cpu_input(name, value)
            binding.bind_ortvalue_output("loss", self._runtime.OrtValue.ortvalue_from_numpy(losses))
            self._loop.run_with_iobinding(binding, self._run_options)
        except Exception as error:  # onnxruntime has no exception root of its own
            raise _failed("train_loop", error) from error
        handle.turn = 1 - handle.turn
        return losses

    def read(self, handle: OnnxRuntimeHandle) -> Vector:
        """See :class:`Engine`."""
        return handle.parameters[handle.turn].copy()

    def evaluate(self, model: Vector | OnnxRuntimeHandle, batch: Batch) -> tuple[float, float]:
        """See :class:`Engine`."""
        if self._evaluate is None:
            self._evaluate = self._session(self.program.evaluate, "evaluate")
            self._check_outputs(self._evaluate, {"loss_sum", "metric_sum"}, "evaluate")
        results = self._run(self._evaluate, model, batch, "evaluate")
        for name, value in results.items():
            if np.size(value) != 1:
                raise TrainingError(f"the graph's output {name!r} has shape {np.shape(value)}, expected a scalar")
        return float(results["loss_sum"].reshape(())), float(results["metric_sum"].reshape(()))

    def infer(self, model: Vector | OnnxRuntimeHandle, inputs: Batch) -> dict[str, NDArray[Any]]:
        """See :class:`Engine`."""
        if self._infer is None:
            if not self.program.infer:
                raise BundleError(f"program {self.program.name!r} has no inference graph")
            self._infer = self._session(self.program.infer, "infer")
        return self._run(self._infer, model, inputs, "infer")

    def _run(
        self, session: Any, model: Vector | OnnxRuntimeHandle, batch: Batch, where: str
    ) -> dict[str, NDArray[Any]]:
        vector = model.parameters[model.turn] if isinstance(model, OnnxRuntimeHandle) else model
        check_vector(self.program, vector)
        feeds = {**self.program.spec.unflatten(vector), **batch}
        names = [entry.name for entry in session.get_outputs()]
        wanted = {entry.name for entry in session.get_inputs()}
        try:
            values = session.run(names, {n: v for n, v in feeds.items() if n in wanted}, self._run_options)
        except Exception as error:  # onnxruntime has no exception root of its own
            raise _failed(where, error) from error
        return dict(zip(names, values, strict=True))

    def _loads_loop(self) -> bool:
        """Whether there is a loop; one that cannot be loaded here is given up, since single steps do the same."""
        if self._loop is None and self.steps_at_once > 1:
            try:
                self._loop = self._session(self.program.train_loop, "train_loop")
                self._check_outputs(self._loop, self._results, "train_loop")
            except TrainingError as error:
                log.warning("training by single steps: %s", error)
                self.steps_at_once = 1
        return self._loop is not None

    def _loop_binding(self, handle: OnnxRuntimeHandle) -> Any:
        if handle.loop_bindings is None:
            handle.loop_bindings = (self._loop.io_binding(), self._loop.io_binding())
            for turn, binding in enumerate(handle.loop_bindings):
                self._bind(handle, turn, binding)
        return handle.loop_bindings[handle.turn]

    def _bind(self, handle: OnnxRuntimeHandle, turn: int, binding: Any) -> None:
        """Bind all but batch and loss, for the steps that read the buffers ``turn`` and write the others."""
        anchors = {ANCHOR + name: value for name, value in self.program.spec.unflatten(handle.anchor).items()}
        for name, value in {**self._tensors(handle, turn), **anchors, **handle.scalars}.items():
            if name in self._inputs:
                binding.bind_cpu_input(name, value)
        for name, value in self._tensors(handle, 1 - turn).items():
            if name in self._constants:
                continue
            binding.bind_ortvalue_output(NEW + name, self._runtime.OrtValue.ortvalue_from_numpy(value))

    def _tensors(self, handle: OnnxRuntimeHandle, half: int) -> dict[str, Vector]:
        names = (name for name, _ in self.program.state)
        return {
            **self.program.spec.unflatten(handle.parameters[half]),
            **dict(zip(names, handle.state[half], strict=True)),
        }

    def _session(self, graph: bytes, where: str) -> Any:
        check_onnx(graph, f"program {self.program.name!r}, graph {where!r}")
        try:
            # There is nothing to fall back to, and onnxruntime prints to stdout while it does.
            session = self._runtime.InferenceSession(
                graph, self._options, providers=["CPUExecutionProvider"], enable_fallback=0
            )
            session.disable_fallback()
        except Exception as error:  # onnxruntime has no exception root of its own
            raise TrainingError(
                f"onnxruntime {self._runtime.__version__} does not load the graph {where!r}: {_brief(error)}; "
                f'upgrade it (pip install -U onnxruntime) or choose engine="numpy"'
            ) from error
        self._check_inputs(session, where)
        return session

    def _check_inputs(self, session: Any, where: str) -> None:
        program = self.program
        known = {entry.name: _TYPES[entry.dtype] for entry in (*program.inputs, program.target)}
        floats = [*(t.name for t in program.spec), *(ANCHOR + t.name for t in program.spec)]
        floats += [*(name for name, _ in program.state), *program.scalars]
        known.update(dict.fromkeys(floats, _TYPES["float32"]))
        for entry in session.get_inputs():
            if known.get(entry.name) != entry.type:
                raise BundleError(
                    f"program {program.name!r}: graph {where!r} has an input {entry.name[:80]!r} of {entry.type}, "
                    f"the program says {known.get(entry.name, 'nothing of it')}"
                )

    def _check_outputs(self, session: Any, expected: set[str], where: str) -> None:
        differing = sorted({entry.name for entry in session.get_outputs()} ^ expected)
        if differing:
            raise BundleError(f"program {self.program.name!r}: graph {where!r} differs in outputs: {differing[:3]}")


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except Exception as error:  # a broken wheel raises ImportError, OSError or AttributeError
        raise TrainingError(
            f"onnxruntime cannot be imported ({_brief(error)}): "
            f'install it (pip install "edgefed[onnx]") or choose engine="numpy"'
        ) from error
    return onnxruntime


def _session_options(runtime: Any, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _FATAL
    # A plan of all memory per batch size: as fast, and 10 % more of it (the CNN of the FedAvg paper, batch 32).
    options.enable_mem_pattern = False
    # Threads that spin while they wait take the one core that a small board can spare.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # The bytes are ONNX and nothing else: no format that is recognised by its first bytes.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _failed(where: str, error: Exception) -> TrainingError:
    what = f"onnxruntime failed in the graph {where!r}: "
    return TrainingError(what + _brief(error), public=what + type(error).__name__)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
