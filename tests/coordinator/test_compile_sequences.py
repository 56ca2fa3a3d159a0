"""What PyTorch's newer exporter writes for ``chunk`` and for numbers beside tensors compiles and trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_graphs import model_of

from coordinator.compile import compile_model
from edge_sdk.errors import CompileError

W = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)


def compiled(text: str, **constants: Any) -> Any:
    model = model_of(text, {"w": W, **constants}, inputs={"x": ("batch", 4)})
    return compile_model(model, loss="mean_squared_error", name="sequences")


def operators(bundle: Any) -> set[str]:
    return {node.op for node in bundle.program.infer_plan.nodes}


@pytest.mark.parametrize("split", [np.array(3), np.array([3, 3, 1])])
def test_a_split_into_a_sequence_is_a_split(split: Any) -> None:
    text = (
        "h = MatMul(x, w); s = SplitToSequence<axis=-1>(h, split); a = SequenceAt(s, one); b = SequenceAt(s, last);"
        "c = SequenceAt(s, one); d = Mul(a, c); y = Add(b, d)"
    )
    bundle = compiled(text, split=split, one=np.array(0), last=np.array(-1))  # verified against the source model
    assert operators(bundle) == {"Add", "Identity", "MatMul", "Mul", "Split"}


def test_a_cast_by_example_is_a_cast_or_nothing() -> None:
    text = "h = MatMul(x, w); b = Greater(h, half); f = CastLike(b, h); g = Mul(h, f); "
    text += "k = CastLike(half, h); y = Add(g, k)"
    assert operators(compiled(text, half=np.float32(0.5))) == {"Add", "Cast", "Greater", "MatMul", "Mul"}
    of_constants = "h = MatMul(x, w); f = CastLike(number, h); y = Mul(h, f)"
    assert operators(compiled(of_constants, number=np.array(3))) == {"MatMul", "Mul"}


def test_a_sequence_that_is_used_whole_is_refused_by_name() -> None:
    text = (
        "h = MatMul(x, w); s = SplitToSequence<axis=1>(h, n); c = ConcatFromSequence<axis=1>(s);"
        "r = ReduceSum(c, axis); y = Mul(h, r)"
    )
    with pytest.raises(CompileError, match=r"node 's' \(SplitToSequence, opset 21\).*no gradient rule"):
        compiled(text, n=np.array(2), axis=np.array([1]))
