"""Mean and scale of a device's own examples, and examples as a model behind its normalisation sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_sdk.errors import ExamplesError
from edge_sdk.training.examples import Examples
from edge_sdk.training.normalise import NORMALISED_ABS_MAX
from edge_sdk.training.program import Program
from edge_sdk.training.program_sums import ExactProgramSums, out_of_range, program_sums

__all__ = ["normalised_examples", "own_constants", "uses_own_constants", "with_constants"]

Vector = NDArray[np.float32]


def uses_own_constants(program: Program) -> bool:
    """Whether whoever runs the program takes mean and scale from its own examples."""
    return program.normalise is not None and program.normalise.mode == "local"


def own_constants(program: Program, examples: Examples) -> Vector:
    """Mean and scale of ``examples``, float32[2 * features]: all means, then all scales.

    Behind those of the input are those of the target, where that is normalised.

    Raises:
        ExamplesError: A value is infinite, or all positions are masked, or most values of a feature are out of the
            sums' range.
        ValueError: The program normalises nothing.
    """
    if not program.normalised:
        raise ValueError(f"program {program.name!r} normalises no input")
    sums, own = ExactProgramSums(program), program_sums(program, examples)
    beyond = out_of_range(program, own)
    if beyond:
        raise ExamplesError(f"examples: {beyond}; let the coordinator raise it")
    sums.add(own)
    return np.concatenate(list(sums.constants().values()))


def with_constants(program: Program, vector: Vector, constants: Vector) -> Vector:
    """A copy of ``vector`` (float32[P]) that holds ``constants`` (float32, see above)."""
    tensors = [program.spec[name] for told in program.normalised for name in (told.mean, told.scale)]
    ends = np.cumsum([tensor.size for tensor in tensors])
    if not tensors or constants.shape != (ends[-1],):
        raise ValueError(f"{constants.shape} constants do not fit program {program.name!r}")
    copy = vector.copy()
    for tensor, part in zip(tensors, np.split(constants, ends[:-1]), strict=True):
        copy[tensor.offset : tensor.offset + tensor.size] = part
    return copy


def normalised_examples(program: Program, vector: Vector, examples: Examples) -> Examples:
    """Examples for training without the program's graphs: the input, in float32, as the model sees it.

    So is the target of a reconstruction; that of a regression is ``(target - mean) * scale`` where it is normalised.
    Without normalisation the examples are given back as they are.

    Args:
        program: The program.
        vector: float32[P] with the constants that are to be used.
        examples: Checked against the program.
    """
    normalise = program.normalise
    if normalise is None:
        return examples
    arrays = program.spec.unflatten(vector)
    mean, scale = arrays[normalise.mean], arrays[normalise.scale]

    def seen(raw: NDArray[Any]) -> Vector:
        values = raw.astype(np.float32)
        is_missing = np.isnan(values)
        with np.errstate(over="ignore"):  # what is too large is brought to the bound
            values -= mean
            values *= scale
        np.clip(values, -NORMALISED_ABS_MAX, NORMALISED_ABS_MAX, out=values)
        values[is_missing] = 0.0
        return values

    inputs = {**examples.inputs, normalise.input: seen(examples.inputs[normalise.input])}
    target = seen(examples.target) if program.loss == "reconstruction" else examples.target
    if program.normalise_target is not None:
        told = program.normalise_target
        target = (target.astype(np.float32) - arrays[told.mean]) * arrays[told.scale]
    return replace(examples, inputs=inputs, target=target)
