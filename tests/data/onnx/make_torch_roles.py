"""Exports modules with buffers beside parameters: ``python tests/data/onnx/make_torch_roles.py``; needs torch.

``roles/<module>.<exporter>.onnx``, where the exporter is ``dynamo`` (with ``optimize=False``), ``optimised`` (dynamo as
it is by default, which folds BatchNorm away) or ``script``. What the exporter says of each tensor is kept.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "roles"


class Normalised(nn.Module):
    """BatchNorm behind convolutions with and without bias, a learned factor and a fixed one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.fc = nn.Linear(64, 3)
        self.learned = nn.Parameter(torch.tensor([0.7]))
        self.register_buffer("factor", torch.tensor([0.707]))
        for module in (self.bn1, self.bn2):
            nn.init.uniform_(module.running_var, 0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.fc(x.flatten(1)) * self.learned * self.factor


class Attention(nn.Module):
    """One attention with learned positions, rotary frequencies, a sinusoidal table and a causal mask."""

    def __init__(self, width: int = 8, length: int = 10) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, width)
        self.positions = nn.Parameter(torch.randn(1, length, width))
        self.query, self.key, self.out = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 2)
        frequencies = 10_000.0 ** (-torch.arange(0, width, 2) / width)
        angles = torch.arange(length)[:, None] * frequencies
        self.register_buffer("rotary", frequencies)
        self.register_buffer("table", torch.stack([angles.sin(), angles.cos()], -1).reshape(1, length, width))
        self.register_buffer("causal", torch.triu(torch.full((length, length), float("-inf")), 1))

    def turned(self, x: Tensor) -> Tensor:
        angles = torch.arange(x.shape[1])[:, None] * self.rotary
        a, b = x.chunk(2, -1)
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embedding(tokens) + self.positions + self.table
        scores = self.turned(self.query(h)) @ self.turned(self.key(h)).transpose(1, 2) / h.shape[-1] ** 0.5
        return self.out((torch.softmax(scores + self.causal, -1) @ h).mean(1))


def main() -> None:
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1, max=4096)
    for module, x in ((Normalised(), torch.zeros(2, 1, 8, 8)), (Attention(), torch.zeros(2, 10, dtype=torch.long))):
        module.eval()
        name = type(module).__name__.lower()
        for exporter in ("dynamo", "optimised", "script"):
            path = FOLDER / f"{name}.{exporter}.onnx"
            if exporter == "script":
                axes = {"x": {0: "batch"}}
                torch.onnx.export(module, (x,), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
            else:
                torch.onnx.export(
                    module, (x,), path, dynamo=True, optimize=exporter == "optimised", dynamic_shapes=({0: batch},),
                    external_data=False, verbose=False,
                )  # fmt: skip
            model = onnx.load(path)
            for node in model.graph.node:  # stack traces of the machine that exported
                node.doc_string = ""
                del node.metadata_props[:]
            del model.graph.value_info[:]
            path.write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
