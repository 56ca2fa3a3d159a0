"""From an inference model to a bundle: import, differentiate, emit, verify."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Final, Literal

import numpy as np
import onnx

from coordinator.compile.batch_first import batch_first
from coordinator.compile.batch_size import naming_fixed_batch
from coordinator.compile.emit import (
    evaluate_graph,
    infer_graph,
    scalars_of,
    state_of,
    to_onnx,
    to_plan,
    train_graph,
)
from coordinator.compile.freezing import freeze as frozen_model
from coordinator.compile.graph import BATCH, Graph, Model, Value
from coordinator.compile.heads import are_probabilities, logits_of, with_scores
from coordinator.compile.import_ import import_model
from coordinator.compile.loop import with_loop_if_faster
from coordinator.compile.lora import Lora, with_adapters
from coordinator.compile.losses import LOSSES, LossOptions, class_count
from coordinator.compile.masking import with_mask
from coordinator.compile.optimizers import OPTIMIZERS, Pulls
from coordinator.compile.oracle import session_of
from coordinator.compile.raw_inputs import (
    REGRESSIONS,
    TARGET_MEAN,
    NormaliseOptions,
    feature_axis,
    normalise_of,
    normalised_already,
    raw_input,
    score_of,
    target_of,
    with_constants,
    with_raw_input,
)
from coordinator.compile.simplify import simplified
from coordinator.compile.sklearn import cut_heads
from coordinator.compile.verify import verify_program
from edge_sdk.errors import CompileError, DecodeError
from edge_sdk.parameters import ParameterSpec
from edge_sdk.training.bundle import Bundle, Input, Program
from edge_sdk.training.normalise import Normalise

__all__ = ["compile_model"]

PLAIN: Final = LossOptions()


def compile_model(
    model: onnx.ModelProto,
    *,
    loss: str,
    optimizer: str = "sgd",
    proximal: bool = False,
    weight_decay: bool = False,
    clipped: bool = False,
    loss_options: LossOptions = PLAIN,
    output: str | None = None,
    frozen: Collection[str] = (),
    train: Sequence[str] = (),
    freeze: Sequence[str] = (),
    lora: Lora | None = None,
    normalise: NormaliseOptions | None = None,
    name: str,
    verify: bool = True,
    loop: bool | Literal["auto"] = "auto",
) -> Bundle:
    """Compile an ONNX inference model into a bundle that devices can train.

    Args:
        model: The inference model: float32, default domain, batch first in every input and output.
        loss: One of ``LOSSES``, computed on the model's raw output (logits); where the model ends in the Softmax or
            Sigmoid that belongs to the loss, on that operator's input.
        optimizer: One of ``OPTIMIZERS``.
        proximal: Add FedProx's proximal term, with the scalar input ``mu`` and inputs ``anchor/<parameter>``.
        weight_decay: Add weight decay, with the scalar input of that name.
        clipped: Scale gradients down to a global norm of at most the scalar input ``gradient_norm_max``.
        loss_options: Class weights, label smoothing and ignored labels, for softmax_cross_entropy; a mask of positions.
        output: The output that the loss is computed on; the first by default.
        frozen: Parameters (initializers) that are not trained and stay inside the graphs.
        train: Patterns (``fc*``) of the parameters that are trained; none for all.
        freeze: Patterns of those that are not.
        lora: Low-rank adapters; with them only they, and what ``train`` names, are trained.
        normalise: Let the program normalise the one float32 input, so that it takes raw units; None for not.
        name: Human name of the model.
        verify: Check the result numerically (see ``verify``); a model that fails does not compile.
        loop: Whether the program gets a graph that makes many steps in one run (see ``loop``); ``"auto"`` measures on
            this machine, unless ``verify`` is False, which leaves it out. For the same program everywhere: True or
            False.

    Raises:
        CompileError: Says which node, tensor or parameter is at fault and what to do.
    """
    if loss not in LOSSES:
        raise CompileError(f"loss {loss!r} is not one of {', '.join(LOSSES)}")
    if optimizer not in OPTIMIZERS:
        raise CompileError(f"optimizer {optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
    model = batch_first(model)
    with naming_fixed_batch(model, name):
        if normalise is None:
            imported = import_model(model, name=name, frozen={*frozen, *normalised_already(model)}, asked=train)
        else:
            told = _told(model, normalise, loss_options.mask, name)
            of_target, seen = _told_of_target(model, told, normalise, loss, loss_options, output, name)
            model = with_raw_input(
                model, told, normalise.missing, indicator=normalise.indicator, target=of_target, output=seen
            )
            constants = [constant for each in (told, of_target) if each for constant in (each.mean, each.scale)]
            imported = import_model(model, name=name, frozen={*frozen, *constants}, asked=train)
            imported = with_constants(imported, told, normalise.missing, of_target)
        if lora is not None:
            imported, train = with_adapters(imported, lora, train=train)
        imported = frozen_model(imported, train=train, frozen=freeze)
        _check_finite(imported)
        pulls = Pulls(proximal, weight_decay, clipped)
        program, steps = _program(imported, loss, loss_options, optimizer, pulls, _output(imported, output))
        bundle = Bundle(program, program.spec.flatten(imported.parameters))
        if verify:
            exported = normalise is None and TARGET_MEAN in normalised_already(model)
            verify_program(cut_heads(model), bundle, same_loss=not exported)
    if loop is True or (loop == "auto" and verify):
        bundle = with_loop_if_faster(bundle, steps, always=loop is True)
    return bundle


def _told(model: onnx.ModelProto, options: NormaliseOptions, mask: str, name: str) -> Normalise:
    value = raw_input(model, mask)
    axis = feature_axis(import_model(model, name=name), value.name) if options.axis is None else options.axis
    return normalise_of(options, value, axis)


def _told_of_target(
    model: onnx.ModelProto,
    told: Normalise,
    options: NormaliseOptions,
    loss: str,
    loss_options: LossOptions,
    output: str | None,
    name: str,
) -> tuple[Normalise | None, str]:
    """How the target is normalised, and the output that is compared with it; ``(None, "")`` where it is not."""
    if options.target and loss not in REGRESSIONS:
        raise CompileError(
            f"normalise_target: goes with the losses {', '.join(sorted(REGRESSIONS))}, not with {loss}; leave it out"
        )
    if options.target is False or loss not in REGRESSIONS:
        return None, ""
    chosen = _output(import_model(model, name=name), output)
    return target_of(told, LOSSES[loss].target(chosen, loss_options)), chosen.name


def _check_finite(model: Model) -> None:
    for name, array in model.parameters.items():
        if not np.all(np.isfinite(array)):
            raise CompileError(f"initializer {name!r}: holds NaN or infinity; training cannot start from it")


def _output(model: Model, name: str | None) -> Value:
    names = [value.name for value in model.outputs]
    if name is not None and name not in names:
        raise CompileError(f"output {name!r}: the model has no such output; it has {', '.join(names)}")
    return next(value for value in model.outputs if name in (None, value.name))


def _program(
    model: Model, loss_name: str, options: LossOptions, optimizer_name: str, pulls: Pulls, output: Value
) -> tuple[Program, Graph]:
    loss, optimizer = LOSSES[loss_name], OPTIMIZERS[optimizer_name]
    _check_options(loss_name, options, output, model)
    target = loss.target(output, options)
    logits = logits_of(model, output, loss, options)
    # A regression is trained in standard deviations of its target, and evaluated in the target's unit.
    score = score_of(model, output) if loss_name in REGRESSIONS else None
    infer = infer_graph(model)
    infer_bytes = to_onnx(infer).SerializeToString(deterministic=True)
    if options.mask:
        model = with_mask(model, target, options.mask, classes=loss_name == "softmax_cross_entropy")
    if loss_name == "softmax_cross_entropy" and logits is output:
        run = session_of(infer_bytes, "the inference graph")
        if are_probabilities(model, output, options, run):
            model, logits = with_scores(model, output)
    scores = score or logits
    train = train_graph(simplified(model, scores.name), scores, target, loss, options, optimizer, pulls)
    evaluate = evaluate_graph(model, logits, target, loss, options)
    try:
        program = Program(
            name=model.name,
            kind="graph",
            spec=ParameterSpec((key, array.shape, model.kind(key)) for key, array in model.parameters.items()),
            inputs=tuple(_input(value) for value in model.inputs),
            target=_input(target),
            loss=loss_name,
            optimizer=optimizer_name,
            metric=loss.metric,
            state=state_of(model, optimizer),
            scalars=scalars_of(model, loss, options, optimizer, pulls),
            train=to_onnx(train).SerializeToString(deterministic=True),
            evaluate=to_onnx(evaluate).SerializeToString(deterministic=True),
            infer=infer_bytes,
            train_plan=to_plan(train),
            evaluate_plan=to_plan(evaluate),
            infer_plan=to_plan(infer),
            classes=class_count(output, target, options),
            ignore_index=options.ignore_index,
            mask=options.mask,
            normalise=model.normalise,
            normalise_target=model.normalise_target,
            missing=model.missing,
        )
    except DecodeError as error:  # the checks are those for programs from the network
        raise CompileError(f"model {model.name!r}: cannot be written as a program: {error}") from error
    return program, train


def _check_options(loss: str, options: LossOptions, output: Value, model: Model) -> None:
    if output.dtype != "float32":
        raise CompileError(f"{loss}: output {output.name!r} is {output.dtype}, a loss is computed on float32")
    if loss != "softmax_cross_entropy" and replace(options, mask="") != PLAIN:
        raise CompileError(f"{loss}: {options} is for softmax_cross_entropy; leave it out")
    if loss == "reconstruction" and output.shape not in [i.shape for i in model.inputs if i.dtype == "float32"]:
        shapes = ", ".join(f"{i.name!r} {i.dtype}{list(i.shape)}" for i in model.inputs)
        raise CompileError(
            f"reconstruction: output {output.name!r} has shape {list(output.shape)}, and no input has it ({shapes}); "
            "with another target use mean_squared_error"
        )


def _input(value: Value) -> Input:
    return Input(value.name, value.dtype, tuple(None if d == BATCH else int(d) for d in value.shape))
