"""PyTorch models that the project is proved and measured with; needs torch, which the project itself does not.

Each comes small, for the exports that tests read, and in the size that step times are compared at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

torch.backends.mha.set_fastpath_enabled(False)


def mlp(small: bool) -> nn.Module:
    width = 24 if small else 200
    sizes = (64 if small else 784, width, width, 10)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:3]), nn.ReLU(), nn.Linear(*sizes[2:])
    )


def fedavg_cnn(small: bool) -> nn.Module:
    a, b, hidden, side = (6, 8, 24, 3) if small else (32, 64, 512, 7)
    return nn.Sequential(
        nn.Conv2d(1, a, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(b * side * side, hidden), nn.ReLU(), nn.Linear(hidden, 10),
    )  # fmt: skip


def cnn1d(small: bool) -> nn.Module:
    a, b, hidden, length = (8, 12, 16, 16) if small else (32, 64, 128, 128)
    return nn.Sequential(
        nn.Conv1d(9, a, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(a, b, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2),
        nn.Flatten(), nn.Linear(b * length // 4, hidden), nn.ReLU(), nn.Linear(hidden, 6),
    )  # fmt: skip


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(h + self.shortcut(x))


def resnet(small: bool) -> nn.Module:
    a, b = (6, 10) if small else (16, 32)
    return nn.Sequential(
        nn.Conv2d(3, a, 3, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU(),
        Residual(a, a, 1), Residual(a, b, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(b, 10),
    )  # fmt: skip


class Inverted(nn.Module):
    """MobileNet's block: widen, convolve each channel by itself, narrow."""

    def __init__(self, inputs: int, outputs: int, stride: int, widening: int) -> None:
        super().__init__()
        wide = inputs * widening
        self.adds = stride == 1 and inputs == outputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
            nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)  # type: ignore[no-any-return]


def mobilenet(small: bool) -> nn.Module:
    a, b, widening = (6, 8, 3) if small else (16, 24, 4)
    return nn.Sequential(
        nn.Conv2d(3, a, 3, 2, 1, bias=False), nn.BatchNorm2d(a), nn.ReLU6(),
        Inverted(a, a, 1, widening), Inverted(a, b, 2, widening), Inverted(b, b, 1, widening),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(b, 10),
    )  # fmt: skip


class Transformer(nn.Module):
    """An encoder over tokens; its layers start as copies of one another."""

    def __init__(self, words: int, width: int, heads: int, hidden: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, hidden, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(tokens) + self.position).mean(1))  # type: ignore[no-any-return]


def transformer(small: bool) -> nn.Module:
    return Transformer(20, 12, 2, 16, 7) if small else Transformer(1000, 64, 4, 128, 32)


class Recurrent(nn.Module):
    """The last state of a recurrent layer, classified."""

    def __init__(self, kind: type[nn.RNNBase], inputs: int, width: int) -> None:
        super().__init__()
        self.layer = kind(inputs, width, batch_first=True)
        self.head = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])  # type: ignore[no-any-return]


def lstm(small: bool) -> nn.Module:
    return Recurrent(nn.LSTM, 9, 12 if small else 128)


def gru(small: bool) -> nn.Module:
    return Recurrent(nn.GRU, 9, 12 if small else 128)


class Causal(nn.Module):
    """A block of a temporal convolutional network: dilated, padded on the left, cut on the right."""

    def __init__(self, inputs: int, outputs: int, dilation: int) -> None:
        super().__init__()
        self.cut = 2 * dilation
        self.conv1 = nn.Conv1d(inputs, outputs, 3, padding=self.cut, dilation=dilation)
        self.conv2 = nn.Conv1d(outputs, outputs, 3, padding=self.cut, dilation=dilation)
        self.down = nn.Conv1d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv1(x)[:, :, : -self.cut])
        return torch.relu(torch.relu(self.conv2(h)[:, :, : -self.cut]) + self.down(x))


class Tcn(nn.Module):
    """Dilated causal convolutions and a classifier of the last position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Causal(9, width, 1), Causal(width, width, 2), Causal(width, width, 4))
        self.head = nn.Linear(width, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x)[:, :, -1])  # type: ignore[no-any-return]


def tcn(small: bool) -> nn.Module:
    return Tcn(8 if small else 32)


def autoencoder(small: bool) -> nn.Module:
    a, b = (4, 8) if small else (16, 32)
    return nn.Sequential(
        nn.Conv2d(1, a, 3, 2, 1), nn.ReLU(), nn.Conv2d(a, b, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(b, a, 3, 2, 1, output_padding=1), nn.ReLU(),
        nn.ConvTranspose2d(a, 1, 3, 2, 1, output_padding=1), nn.Sigmoid(),
    )  # fmt: skip


class Factors(nn.Module):
    """Matrix factorisation: who rates what, from two embeddings and their biases."""

    def __init__(self, users: int, items: int, width: int) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, width), nn.Embedding(items, width)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        rating = (self.user(user) * self.item(item)).sum(-1)
        return rating + self.user_bias(user).squeeze(-1) + self.item_bias(item).squeeze(-1)  # type: ignore[no-any-return]


def matrix_factorisation(small: bool) -> nn.Module:
    return Factors(30, 40, 6) if small else Factors(1000, 2000, 32)


class UNet(nn.Module):
    """Down once and up once, the fine features concatenated."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = nn.Conv2d(1, width, 3, padding=1)
        self.coarse = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.nearest, self.linear = nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2, mode="bilinear")
        self.bottom = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.joined = nn.Conv2d(5 * width, width, 3, padding=1)
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = torch.relu(self.fine(x))
        coarse = torch.relu(self.coarse(nn.functional.max_pool2d(fine, 2)))
        bottom = torch.relu(self.bottom(coarse))
        joined = torch.cat([fine, self.nearest(coarse), self.linear(bottom)], 1)
        return self.head(torch.relu(self.joined(joined)))  # type: ignore[no-any-return]


def unet(small: bool) -> nn.Module:
    return UNet(4 if small else 16)


@dataclass(frozen=True)
class Case:
    """One model of the zoo.

    Attributes:
        build: Makes it, small or in the size of the benchmarks.
        inputs: Shape of one example of each float input, or the upper bounds and shape of integer ones.
        small: ``inputs`` of the small model.
        classes: Number of classes; 0 for regression, its target shaped like the output.
        loss: What the compiler calls its loss.
    """

    build: Callable[[bool], nn.Module]
    inputs: dict[str, tuple[int, ...]]
    small: dict[str, tuple[int, ...]]
    classes: int
    loss: str = "softmax_cross_entropy"
    integers: dict[str, tuple[int, int]] | None = None

    def draw(self, small: bool, batch: int) -> dict[str, Tensor]:
        """Random inputs."""
        found = {}
        for name, shape in (self.small if small else self.inputs).items():
            if self.integers and name in self.integers:
                found[name] = torch.randint(self.integers[name][0 if small else 1], (batch, *shape))
            else:
                found[name] = torch.randn(batch, *shape)
        return found

    def target(self, output: Tensor) -> Tensor:
        """A random target for an output."""
        if not self.classes:
            return torch.rand_like(output)
        return torch.randint(self.classes, (output.shape[0], *output.shape[2:]))

    def compute_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean loss, as PyTorch has it."""
        function = nn.functional.cross_entropy if self.classes else nn.functional.mse_loss
        return function(output, target)


CASES = {
    "mlp": Case(mlp, {"x": (1, 28, 28)}, {"x": (1, 8, 8)}, 10),
    "fedavg_cnn": Case(fedavg_cnn, {"x": (1, 28, 28)}, {"x": (1, 12, 12)}, 10),
    "cnn1d": Case(cnn1d, {"x": (9, 128)}, {"x": (9, 16)}, 6),
    "resnet": Case(resnet, {"x": (3, 32, 32)}, {"x": (3, 8, 8)}, 10),
    "mobilenet": Case(mobilenet, {"x": (3, 32, 32)}, {"x": (3, 12, 12)}, 10),
    "transformer": Case(transformer, {"x": (32,)}, {"x": (7,)}, 5, integers={"x": (20, 1000)}),
    "lstm": Case(lstm, {"x": (64, 9)}, {"x": (8, 9)}, 6),
    "gru": Case(gru, {"x": (64, 9)}, {"x": (8, 9)}, 6),
    "tcn": Case(tcn, {"x": (9, 128)}, {"x": (9, 24)}, 6),
    "autoencoder": Case(autoencoder, {"x": (1, 28, 28)}, {"x": (1, 12, 12)}, 0, "mean_squared_error"),
    "matrix_factorisation": Case(
        matrix_factorisation,
        {"user": (), "item": ()},
        {"user": (), "item": ()},
        0,
        "mean_squared_error",
        {"user": (30, 1000), "item": (40, 2000)},
    ),
    "unet": Case(unet, {"x": (1, 32, 32)}, {"x": (1, 8, 8)}, 3),
}


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a model has running buffers."""
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def export(model: nn.Module, inputs: dict[str, Tensor], path: Path, *, dynamo: bool) -> None:
    """Write an inference model with an open batch, by either of PyTorch's exporters."""
    model.eval()
    names: dict[str, Any] = {"input_names": list(inputs), "output_names": ["y"]}
    arguments = tuple(inputs.values())
    if dynamo:
        batch = torch.export.Dim("batch", min=1, max=4096)
        shapes = tuple({0: batch} for _ in inputs)
        torch.onnx.export(
            model, arguments, path, dynamo=True, optimize=False, dynamic_shapes=shapes, external_data=False,
            verbose=False, **names,
        )  # fmt: skip
    else:
        axes = {name: {0: "batch"} for name in (*inputs, "y")}
        # In its default mode this exporter folds BatchNorm into the convolution before it.
        mode = torch.onnx.TrainingMode.PRESERVE if has_batch_norm(model) else torch.onnx.TrainingMode.EVAL
        torch.onnx.export(
            model, arguments, path, dynamo=False, dynamic_axes=axes, opset_version=17, training=mode, **names
        )


class HarCnn1d(nn.Module):
    """What ``benchmarks/har.py`` trains: windows of 128 samples of 9 channels in 6 activities.

    Group normalisation keeps no running buffers, which people who move differently would disagree about.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, width, stride in ((9, 32, 9, 2), (32, 64, 5, 2), (64, 96, 5, 1)):
            layers += [nn.Conv1d(inputs, outputs, width, stride, width // 2), nn.GroupNorm(8, outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * 96, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        return self.head(torch.cat([h.mean(2), torch.amax(h, 2)], 1))  # type: ignore[no-any-return]


def main() -> None:
    """Writes ``har_cnn1d.onnx`` beside this file: ``python -m benchmarks.torch_zoo``."""
    torch.manual_seed(1)
    path = Path(__file__).with_name("har_cnn1d.onnx")
    export(HarCnn1d(), {"x": torch.randn(4, 9, 128)}, path, dynamo=False)


if __name__ == "__main__":
    main()
