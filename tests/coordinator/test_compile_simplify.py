"""What exporters took apart is put together again, and the gradients stay those of the model as it was written."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from gradient_cases import Case, assert_gradients
from onnx_graphs import model_of

from coordinator.compile.import_ import import_model
from coordinator.compile.simplify import simplified

GELU = "h = MatMul(x, w); d = Div(h, root); e = Erf(d); a = Add(e, one); p = Mul(h, a); g = Mul(p, half)"
GELU_HALVED = "h = MatMul(x, w); d = Mul(h, share); e = Erf(d); a = Add(one, e); q = Mul(h, half); g = Mul(a, q)"
NUMBERS = {"root": np.sqrt(2.0), "share": np.sqrt(0.5), "one": 1.0, "half": 0.5}
ATTENTION = """xt = Transpose<perm=[1, 0, 2]>(x); h = MatMul(xt, w); hb = Add(h, c); r = Reshape(hb, apart);
u = Unsqueeze(r, front); t = Transpose<perm=[3, 1, 2, 0, 4]>(u); z = Squeeze(t, back);
q = Gather(z, first); k = Gather(z, second); v = Gather(z, third);
qm = Reshape(q, merged); qt = Transpose<perm=[1, 0, 2]>(qm); qh = Reshape(qt, heads);
km = Reshape(k, merged); kt = Transpose<perm=[1, 0, 2]>(km); kh = Reshape(kt, heads);
vm = Reshape(v, merged); vt = Transpose<perm=[1, 0, 2]>(vm); vh = Reshape(vt, heads);
ks = Transpose<perm=[0, 1, 3, 2]>(kh); s = MatMul(qh, ks); s2 = Mul(s, half); p = Softmax(s2); o = MatMul(p, vh);
y = Reshape(o, flat)"""
SHAPES = {
    "apart": [0, 0, 3, 6], "front": [0], "back": [3], "first": 0, "second": 1, "third": 2,
    "merged": [3, -1, 3], "heads": [-1, 2, 3, 3], "flat": [0, -1], "half": 0.5,
}  # fmt: skip
CASES = [
    Case("gelu", f"{GELU}; y = Sin(g)", {"w": (3, 4)}, (3,), NUMBERS),
    Case("gelu halved first", f"{GELU_HALVED}; y = Sin(g)", {"w": (3, 4)}, (3,), NUMBERS),
    Case("rows", "h = MatMul(x, w); a = Add(c, h); y = Tanh(a)", {"w": (4, 5), "c": (5,)}, (3, 4)),
    Case(
        "parts moved",
        "h = MatMul(x, w); r = Reshape(h, apart); t = Transpose<perm=[2, 1, 0, 3]>(r); a = Gather<axis=0>(t, first); "
        "b = Gather<axis=0>(t, second); s = Sin(a); m = Mul(s, b); y = Transpose<perm=[1, 0, 2]>(m)",
        {"w": (4, 6)},
        (3, 4),
        {"apart": [0, 3, 2, 3], "first": 0, "second": 1},
    ),
    Case("attention", ATTENTION, {"w": (4, 18), "c": (18,)}, (3, 4), SHAPES),
]


def operators(case: Case) -> Counter[str]:
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape) for name, shape in case.parameters.items()}
    model = model_of(case.text, {**arrays, **case.constants}, inputs={"x": ("batch", *case.x)})
    return Counter(node.op for node in simplified(import_model(model, name=case.label), "y").nodes)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_gradient_equals_central_differences(case: Case) -> None:
    assert_gradients(case)


@pytest.mark.parametrize("case", CASES[:2], ids=lambda case: case.label)
def test_gelu_written_with_erf_is_one_node(case: Case) -> None:
    assert operators(case) == {"MatMul": 1, "Gelu": 1, "Sin": 1}


def test_product_and_bias_over_rows_are_one_gemm() -> None:
    assert operators(CASES[2]) == {"Reshape": 2, "Gemm": 1, "Tanh": 1}


def test_parts_that_cover_an_axis_are_one_split() -> None:
    found = operators(CASES[3])
    assert found["Split"] == 1 and not found["Gather"]


def test_heads_beside_the_batch_take_one_transpose_each() -> None:
    found = operators(CASES[4])
    assert found["Split"] == 1 and not found["Gather"]
    assert found["Transpose"] == 1 + 3 + 1  # of the input, of query, key and value, and of the keys
