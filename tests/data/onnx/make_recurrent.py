"""Exports recurrent models and what torch.autograd finds: ``python make_recurrent.py`` from the project's folder.

Needs torch, onnx and onnxscript. The zoo has one plain LSTM and one plain GRU; here are layers on top of each other,
both directions, last states that are used, initial states that are learned, and Relu. For each model it writes, in
``recurrent/``, ``<model>.script.onnx``, ``<model>.dynamo.onnx`` and ``<model>.npz``: ``x``, ``target``, ``loss`` and
``<exporter>/<initializer>``, the gradient of each tensor of that export, differentiated in float64.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnx
import torch
from make_torch_zoo import strip
from onnx import numpy_helper

FOLDER = Path(__file__).parent / "recurrent"
BATCH, TIME, WIDTH, HIDDEN, CLASSES = 4, 7, 5, 6, 3
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
"""For each gate in ONNX's order, its place in PyTorch's: i o f g of i f g o, z r n of r z n."""


class Classifier(torch.nn.Module):
    """A recurrent network, read at its last step and from its last states."""

    def __init__(
        self, kind: str, *, layers: int = 1, both: bool = False, learned: bool = False, **options: str
    ) -> None:
        super().__init__()
        self.kind, self.layers, self.both = kind, layers, both
        self.net = getattr(torch.nn, kind)(
            WIDTH, HIDDEN, layers, batch_first=True, bidirectional=both, bias=True, **options
        )
        states, stack = (2 if kind == "LSTM" else 1), layers * (1 + both)
        if learned:
            self.start = torch.nn.ParameterList(torch.randn(stack, 1, HIDDEN) for _ in range(states))
        self.learned = learned
        self.head = torch.nn.Linear(HIDDEN * (1 + both) + HIDDEN * states, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = tuple(s.expand(-1, x.shape[0], -1).contiguous() for s in self.start) if self.learned else None
        every, last = self.net(x, state if state is None or len(state) == 2 else state[0])
        ends = last if isinstance(last, tuple) else (last,)
        return self.head(torch.cat([every[:, -1], *(end[-1] for end in ends)], dim=1))


MODELS = {
    "lstm_stack": lambda: Classifier("LSTM", layers=2, both=True),
    "lstm_learned": lambda: Classifier("LSTM", learned=True),
    "gru_stack": lambda: Classifier("GRU", layers=2, both=True, learned=True),
    "rnn_relu": lambda: Classifier("RNN", both=True, nonlinearity="relu"),
}


def packed(model: Classifier, tensors: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """W, R and B of each layer as ONNX holds them, from tensors by PyTorch's names."""
    found = []
    for layer, what in itertools.product(range(model.layers), ("weight_ih", "weight_hh", "bias")):
        parts = []
        for suffix in ("", "_reverse")[: 1 + model.both]:
            names = [f"{what}_l{layer}"] if what != "bias" else [f"bias_ih_l{layer}", f"bias_hh_l{layer}"]
            arrays = [tensors[f"net.{name}{suffix}"].detach().numpy() for name in names]
            order = GATES[model.kind]
            parts.append(np.concatenate([np.split(a, len(order))[gate] for a in arrays for gate in order]))
        found.append(np.stack(parts))
    return found


def gradients_of(model: Classifier, path: Path) -> dict[str, np.ndarray]:
    """By initializer of the export, the gradient of the torch parameters that it is made of."""
    parameters = dict(model.named_parameters())
    slopes = {name: parameter.grad for name, parameter in parameters.items()}
    pairs = [(parameters[name].detach().numpy(), slopes[name].numpy()) for name in parameters]
    pairs += zip(packed(model, parameters), packed(model, slopes), strict=True)
    found = {}
    for tensor in onnx.load(path).graph.initializer:
        array = numpy_helper.to_array(tensor)
        same = [
            g for value, g in pairs if value.shape == array.shape and np.array_equal(value.astype(np.float32), array)
        ]
        if array.dtype == np.float32 and array.ndim and np.any(array):
            (found[tensor.name],) = same
    return found


def make(name: str) -> None:
    torch.manual_seed(3)
    model = MODELS[name]()
    x, target = torch.randn(BATCH, TIME, WIDTH), torch.randint(0, CLASSES, (BATCH,))
    paths = {exporter: FOLDER / f"{name}.{exporter}.onnx" for exporter in ("script", "dynamo")}
    names = {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(model, (x,), paths["script"], dynamo=False, dynamic_axes={"x": {0: "b"}, "y": {0: "b"}}, **names)
    shapes = {"x": {0: torch.export.Dim("b")}}
    torch.onnx.export(
        model, (x,), paths["dynamo"], dynamo=True, dynamic_shapes=shapes, external_data=False, optimize=False, **names
    )
    model.double()
    loss = torch.nn.functional.cross_entropy(model(x.double()), target)
    loss.backward()
    arrays = {"x": x.numpy(), "target": target.numpy(), "loss": loss.detach().numpy()}
    for exporter, path in paths.items():
        strip(path)
        arrays.update({f"{exporter}/{key}": g.astype(np.float32) for key, g in gradients_of(model, path).items()})
    np.savez_compressed(FOLDER / f"{name}.npz", **arrays)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in MODELS:
        make(name)
