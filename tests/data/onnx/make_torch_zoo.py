"""Exports the small torch zoo and what torch.autograd finds: ``python make_torch_zoo.py`` from the project's folder.

Needs torch, onnx and onnxscript. For each model it writes ``<model>.script.onnx`` (TorchScript exporter),
``<model>.dynamo.onnx`` and ``<model>.npz``: ``input/...``, ``target``, ``loss``, and by PyTorch's name ``value/...``
and ``gradient/...`` of every parameter, differentiated in float64 and in training mode, and ``moved/...``, the running
statistics after that one pass.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnx
import torch

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parents[2]))

from benchmarks.torch_zoo import CASES, Case, export  # noqa: E402

BATCH = 6


def strip(path: Path) -> None:
    """Drop what only debuggers read: the paths and stack traces of the machine that exported."""
    model = onnx.load(path)
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    for function in model.functions:
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]
    data = model.SerializeToString(deterministic=True)
    assert not re.search(rb"/(work|home|usr)/", data), path
    path.write_bytes(data)


def settle(model: torch.nn.Module) -> None:
    """Move BatchNorm off its start, where a channel's scale cancels in the next one and has no gradient to compare."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0.3, 0.5)


def make(name: str, case: Case) -> None:
    torch.manual_seed(7)
    model = case.build(True)
    inputs = case.draw(True, BATCH)
    if name == "mobilenet":
        settle(model)
    for dynamo in (False, True):
        path = FOLDER / f"{name}.{'dynamo' if dynamo else 'script'}.onnx"
        export(model, inputs, path, dynamo=dynamo)
        strip(path)
    model.train().double()
    wide = [x.double() if x.is_floating_point() else x for x in inputs.values()]
    output = model(*wide)
    target = case.target(output)
    loss = case.compute_loss(output, target)
    loss.backward()
    arrays = {f"input/{key}": x.numpy() for key, x in inputs.items()}
    arrays["target"] = target.numpy() if case.classes else target.float().numpy()
    arrays["loss"] = loss.detach().numpy()
    arrays["loss_name"] = np.array(case.loss)
    for key, parameter in model.named_parameters():
        arrays[f"value/{key}"] = parameter.detach().float().numpy()
        arrays[f"gradient/{key}"] = parameter.grad.float().numpy()
    for key, buffer in model.named_buffers():
        if buffer.is_floating_point():
            arrays[f"moved/{key}"] = buffer.float().numpy()
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)


if __name__ == "__main__":
    for name in sys.argv[1:] or CASES:
        make(name, CASES[name])
        sizes = [f"{p.name} {p.stat().st_size // 1024} kB" for p in sorted(FOLDER.glob(f"{name}.*"))]
        sys.stdout.write(f"{' '.join(sizes)}\n")
