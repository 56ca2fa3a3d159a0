"""The engine for devices that have NumPy and nothing else: the same graphs, run by :class:`Executor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import BundleError, TrainingError
from edge_sdk.training.engine.base import Batch, check_vector, merged_scalars, steps_one_by_one
from edge_sdk.training.engine.blas import limit_blas_threads, restore_blas_threads
from edge_sdk.training.engine.executor import Executor
from edge_sdk.training.numpy_plan import NumpyPlan
from edge_sdk.training.program import ANCHOR, NEW, Program

__all__ = ["NumpyEngine", "NumpyHandle"]


@dataclass(slots=True, eq=False)
class NumpyHandle:
    """Parameters and optimiser state by name, and the anchor. Arrays are replaced by a step, never written into."""

    tensors: dict[str, NDArray[Any]]
    anchors: dict[str, NDArray[np.float32]]


class NumpyEngine:
    """Runs a program's plans with NumPy.

    Args:
        program: What to run.
        threads: Threads of the BLAS inside of a run, where it is an OpenBLAS.

    Raises:
        BundleError: The program has no plan, or one with an operator that this engine lacks.
    """

    name = "numpy"
    steps_at_once = 1

    def __init__(self, program: Program, threads: int = 1) -> None:
        self.program = program
        self._threads = threads
        self._train = _executor(program.train_plan, "train")
        self._evaluate = _executor(program.evaluate_plan, "evaluate")
        self._infer: Executor | None = None
        changing = [t.name for t in program.spec if t.kind != "constant"]
        names = [*changing, *(name for name, _ in program.state)]
        self._updates = [(name, NEW + name) for name in names]
        self._anchored = [name for name in program.train_plan.inputs if name.startswith(ANCHOR)]

    def load(self, vector: NDArray[np.float32]) -> NumpyHandle:
        """See :class:`Engine`; the parameters stay views of ``vector`` until the first step."""
        check_vector(self.program, vector)
        tensors: dict[str, NDArray[Any]] = dict(self.program.spec.unflatten(vector))
        anchors = {name: tensors[name.removeprefix(ANCHOR)] for name in self._anchored}
        tensors.update((name, np.zeros(shape, dtype=np.float32)) for name, shape in self.program.state)
        return NumpyHandle(tensors, anchors)

    def step(self, handle: NumpyHandle, batch: Batch, scalars: Mapping[str, float]) -> float:
        """See :class:`Engine`."""
        values = {
            name: np.array(value, dtype=np.float32) for name, value in merged_scalars(self.program, scalars).items()
        }
        results = self._run(self._train, {**handle.anchors, **handle.tensors, **batch, **values})
        handle.tensors.update([(name, results[new]) for name, new in self._updates])
        return _scalar(results["loss"], "loss")

    def shift(self, handle: NumpyHandle, vector: NDArray[np.float32]) -> None:
        """See :class:`Engine`."""
        check_vector(self.program, vector)
        for name, part in self.program.spec.unflatten(vector).items():
            handle.tensors[name] = handle.tensors[name] + part

    def steps(self, handle: NumpyHandle, batches: Batch, scalars: Mapping[str, float]) -> NDArray[np.float32]:
        """See :class:`Engine`; one by one, a loop would cost the same here."""
        return steps_one_by_one(self, handle, batches, scalars)

    def read(self, handle: NumpyHandle) -> NDArray[np.float32]:
        """See :class:`Engine`."""
        try:
            return self.program.spec.flatten(handle.tensors)
        except ValueError as error:
            raise TrainingError(f"program {self.program.name!r}: its train graph changed a shape: {error}") from error

    def evaluate(self, model: NDArray[np.float32] | NumpyHandle, batch: Batch) -> tuple[float, float]:
        """See :class:`Engine`."""
        results = self._run(self._evaluate, {**self._tensors(model), **batch})
        return _scalar(results["loss_sum"], "loss_sum"), _scalar(results["metric_sum"], "metric_sum")

    def infer(self, model: NDArray[np.float32] | NumpyHandle, inputs: Batch) -> dict[str, NDArray[Any]]:
        """See :class:`Engine`."""
        if self._infer is None:
            self._infer = _executor(self.program.infer_plan, "infer")
        results = self._run(self._infer, {**self._tensors(model), **inputs})
        return {name: np.asarray(value) for name, value in results.items()}

    def _run(self, executor: Executor, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        changed = limit_blas_threads(self._threads)
        try:
            return executor.run(feeds)
        finally:
            restore_blas_threads(changed)

    def _tensors(self, model: NDArray[np.float32] | NumpyHandle) -> Mapping[str, NDArray[Any]]:
        if isinstance(model, NumpyHandle):
            return model.tensors
        check_vector(self.program, model)
        return self.program.spec.unflatten(model)


def _executor(plan: NumpyPlan, where: str) -> Executor:
    if not plan.outputs:
        raise BundleError(
            f'the program\'s {where} graph has no NumPy plan: use the onnxruntime engine (pip install "edgefed[onnx]")'
        )
    return Executor(plan, where)


def _scalar(value: Any, name: str) -> float:
    if np.size(value) != 1:
        raise TrainingError(f"the graph's output {name!r} has shape {np.shape(value)}, expected a scalar")
    return float(np.reshape(value, ()))
