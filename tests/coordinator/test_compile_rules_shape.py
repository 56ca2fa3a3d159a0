"""Gradient rules of moving, cutting, repeating, gathering and scattering, and of Resize; both engines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gradient_cases import Case, assert_gradients
from onnx_graphs import gradients, model_of

from coordinator.compile import compile_model
from edge_sdk.errors import CompileError

END = np.iinfo(np.int64).max
BEGIN = np.iinfo(np.int64).min


def moved(label: str, text: str, x: tuple[int, ...], width: int, **operands: Any) -> Case:
    """``text`` behind a product that makes h [batch, *x[:-1], width]."""
    return Case(label, f"h = MatMul(x, w); {text}", {"w": (x[-1], width)}, x, operands)


def over_batch(label: str, text: str, **operands: Any) -> Case:
    """``text`` makes e of h [batch, 4], other examples than there were; y is [batch, 1] again."""
    text = f"h = MatMul(x, w); {text}; q = ReduceSumSquare<keepdims=0>(e); l = ReduceSum(h, last); y = Mul(l, q)"
    return Case(label, text, {"w": (3, 4)}, (3,), {"last": [1], **operands})


def of_weight(label: str, text: str, weight: tuple[int, ...], **operands: Any) -> Case:
    """``text`` makes m of a weight; x [batch, 4] meets it."""
    return Case(label, f"{text}; y = MatMul(x, m)", {"w": weight}, (4,), operands)


def sliced(label: str, *operands: list[int]) -> Case:
    names = ("starts", "ends", "axes", "steps")[: len(operands)]
    given = dict(zip(names, operands, strict=True))
    return moved(f"Slice-{label}", f"y = Slice(h, {', '.join(names)})", (3, 4), 7, **given)


def padded(label: str, pads: list[int], mode: str = "constant", arguments: str = "pads", **operands: Any) -> Case:
    return moved(f"Pad-{label}", f'y = Pad<mode="{mode}">(h, {arguments})', (4, 3), 5, pads=pads, **operands)


SHAPES = [
    moved("Concat-features", "t = Tanh(h); y = Concat<axis=-1>(h, x, t)", (3, 2), 4),
    over_batch("Concat-batch", "t = Tanh(h); e = Concat<axis=0>(h, t)"),
    of_weight("Concat-weights", "v = Neg(w); m = Concat<axis=1>(w, v)", (4, 2)),
    moved("Split-lengths", "a, b = Split<axis=1>(h, s); t = Tanh(a); y = Concat<axis=1>(b, t)", (4, 2), 3, s=[1, 3]),
    moved("Split-count", "a, b, c = Split<axis=-1, num_outputs=3>(h); t = Mul(a, b); y = Sub(t, c)", (2,), 6),
    moved("Split-uneven", "a, b = Split<axis=1, num_outputs=2>(h); y = Concat<axis=1>(b, a)", (5, 2), 3),
    moved("Split-unused", "a, b, c = Split<axis=1, num_outputs=3>(h); y = Mul(a, a)", (6, 2), 3),
    of_weight("Split-weight", "a, b = Split<axis=0, num_outputs=2>(w); m = Add(a, b)", (8, 3)),
    sliced("plain", [1, 2], [3, 5], [1, 2]),
    sliced("open-ends", [-4], [END], [-1]),
    sliced("beyond", [-99], [99], [2]),
    sliced("steps", [0, 1], [3, 7], [1, 2], [2, 3]),
    sliced("backwards", [-1, 6], [BEGIN, 0], [1, 2], [-1, -2]),
    sliced("all-axes", [0, 1, 2], [END, 3, 6]),
    over_batch("Slice-batch", "e = Slice(h, s, t)", s=[1], t=[2]),
    over_batch("Slice-batch-from-end", "e = Slice(h, s, t)", s=[-2], t=[END]),
    over_batch("Slice-batch-before-end", "e = Slice(h, s, t)", s=[-3], t=[-1]),
    sliced("one", [4], [5], [2], [3]),
    of_weight("Slice-weight", "m = Slice(w, s, e)", (6, 5), s=[1, 0], e=[5, 2]),
    padded("constant", [0, 1, 2, 0, 0, 3]),
    Case(
        "Pad-cutting",
        "h = MatMul(x, w); y = Pad(h, pads)",
        {"w": (3, 5)},
        (4, 3),
        {"pads": [0, -1, 2, 0, 1, -2], "starts": [0, 1, 0], "ends": [END, 4, 3], "margins": [0, 0, 2, 0, 1, 0]},
        "h = MatMul(x, w); c = Slice(h, starts, ends); y = Pad(c, margins)",
    ),
    padded("axes", [1, 2], arguments="pads, , axes", axes=[-1]),
    padded("value", [0, 1, 0, 0, 0, 1], arguments="pads, value", value=np.float32(3)),
    padded("reflect", [0, 3, 2, 0, 1, 4], "reflect"),
    padded("reflect-axes", [2, 1], "reflect", "pads, , axes", axes=[1]),
    padded("edge", [0, 2, 0, 0, 1, 3], "edge"),
    padded("edge-axes-turned", [2, 1, 0, 3], "edge", "pads, , axes", axes=[2, 1]),
    padded("wrap", [0, 2, 1, 0, 4, 3], "wrap"),
    padded("nothing", [0, 0, 0, 0, 0, 0]),
    Case(
        "Pad-learned-value",
        "h = MatMul(x, w); v = ReduceSum<keepdims=0>(q); y = Pad(h, pads, v)",
        {"w": (3, 3), "q": (2,)},
        (3,),
        {"pads": [0, 1, 0, 2]},
    ),
    of_weight("Pad-weight", "m = Pad(w, pads)", (3, 2), pads=[1, 0, 0, 1]),
    Case("Expand-bias", "e = Expand(b, s); y = Add(x, e)", {"b": (1, 3)}, (2, 3), {"s": [2, 1]}),
    Case(
        "Expand-token",
        "n = Shape<start=0, end=1>(x); s = Concat<axis=0>(n, r); e = Expand(token, s); y = Concat<axis=1>(e, x)",
        {"token": (1, 1, 3)},
        (2, 3),
        {"r": [1, 3]},
    ),
    Case(
        "Expand-token-as-pytorch-writes-it",
        "n = Shape<start=0, end=1>(x); s = Concat<axis=0>(n, r); c = Equal(s, minus); f = Where(c, ones, s);"
        "e = Expand(token, f); y = Concat<axis=1>(e, x)",
        {"token": (1, 1, 3)},
        (2, 3),
        {"r": [-1, -1], "minus": [-1, -1, -1], "ones": [1, 1, 1]},
    ),
    moved("Expand-middle", "u = Unsqueeze(h, a); y = Expand(u, s)", (2, 3), 3, a=[2], s=[1, 1, 4, 1]),
    moved("Tile", "y = Tile(h, r)", (2, 3), 4, r=[1, 3, 2]),
    over_batch("Tile-batch", "e = Tile(h, r)", r=[2, 3]),
    moved("Tile-once", "y = Tile(h, r)", (2, 3), 4, r=[1, 1, 1]),
    of_weight("Tile-weight", "m = Tile(w, r)", (2, 3), r=[2, 1]),
    *(
        Case(
            f"DepthToSpace-{mode}",
            f'h = Conv(x, w); y = DepthToSpace<blocksize=2, mode="{mode}">(h)',
            {"w": (8, 2, 1, 1)},
            (2, 3, 2),
        )
        for mode in ("DCR", "CRD")
    ),
    Case("SpaceToDepth", "h = Conv(x, w); y = SpaceToDepth<blocksize=2>(h)", {"w": (3, 2, 1, 1)}, (2, 4, 6)),
    *(
        moved(f"CumSum-{e}{r}", f"y = CumSum<exclusive={e}, reverse={r}>(h, a)", (3, 4), 5, a=np.array(1))
        for e in (0, 1)
        for r in (0, 1)
    ),
    moved("Trilu", "y = Trilu(h)", (4, 3), 5),
    moved("Trilu-lower", "y = Trilu<upper=0>(h, k)", (4, 3), 5, k=np.array(1)),
]

INDICES = [
    Case(
        "Gather-embedding",
        "i = Cast<to=7>(x); e = Gather(table, i); y = MatMul(e, w)",
        {"table": (6, 3), "w": (3, 2)},
        (4,),
    ),
    of_weight("Gather-rows-twice", "m = Gather(w, i)", (3, 5), i=[2, 0, -1, 2]),
    moved("Gather-columns", "y = Gather<axis=2>(h, i)", (3, 4), 5, i=np.array([[0, 4], [-2, 4]])),
    moved("Gather-middle", "y = Gather<axis=1>(h, i)", (3, 4), 5, i=[2, 0, 2, 1]),
    moved("Gather-one", "y = Gather<axis=1>(h, i)", (3, 4), 5, i=np.array(-2)),
    over_batch("Gather-batch", "e = Gather(h, i)", i=[2, 0, 0, 1]),
    over_batch("Gather-one-of-batch", "e = Gather(h, i)", i=np.array([1])),
    of_weight("Gather-one-row", "r = Gather(w, i); m = Transpose(r)", (3, 2, 4), i=np.array(1)),
    moved("GatherElements", "i = ArgMax<axis=2>(h); y = GatherElements<axis=2>(h, i)", (3, 4), 5),
    Case(
        "GatherElements-weight",
        "m = GatherElements<axis=0>(w, i); y = MatMul(x, m)",
        {"w": (3, 5)},
        (4,),
        {"i": np.array([[0, 1, 2, 0, -1], [1, 1, 1, 1, 1], [2, 0, 2, 0, 0], [0, 0, 0, 0, 0]])},
    ),
    of_weight("GatherND", "m = GatherND(w, i)", (3, 2, 5), i=np.array([[0, 1], [2, 0], [0, 1], [-1, -2]])),
    moved(
        "GatherND-batched",
        "a = ArgMax<axis=1, keepdims=0>(h); u = Unsqueeze(a, last); y = GatherND<batch_dims=1>(h, u)",
        (6,),
        5,
        last=[1],
    ),
    moved(
        "GatherND-two-batches",
        "a = ArgMax<axis=2, keepdims=1>(h); y = GatherND<batch_dims=2>(h, a)",
        (3, 4),
        5,
    ),
    *(
        Case(
            f"ScatterND-{reduction}",
            f'a = Neg(q); n = Neg(v); m = ScatterND<reduction="{reduction}">(a, i, n); y = MatMul(x, m)',
            {"q": (4, 5), "v": (2, 5)},
            (4,),
            {"i": np.array([[3], [0]])},
        )
        for reduction in ("none", "add")
    ),
    *(
        Case(
            f"ScatterElements-{reduction}",
            f'a = Neg(q); n = Neg(v); m = ScatterElements<axis=0, reduction="{reduction}">(a, i, n); y = MatMul(x, m)',
            {"q": (4, 3), "v": (2, 3)},
            (4,),
            {"i": np.array([[0, 3, 1], [2, -2, 0]])},
        )
        for reduction in ("none", "add")
    ),
    moved("TopK", "v, i = TopK<axis=1>(h, k); y = Mul(v, v)", (5, 4), 3, k=[2]),
    moved("TopK-smallest", "v, i = TopK<axis=-1, largest=0>(h, k); y = Tanh(v)", (4,), 6, k=[3]),
]


def resized(label: str, attributes: str, sizes: tuple[int, ...], **operands: Any) -> Case:
    """A Resize to ``scales`` or ``sizes`` of images [batch, 3, *sizes]."""
    arguments = "h, , scales" if "scales" in operands else "h, , , sizes"
    point = (3, 2, *(1 for _ in sizes))
    return Case(
        f"Resize-{label}", f"h = Conv(x, w); y = Resize<{attributes}>({arguments})", {"w": point}, (2, *sizes), operands
    )


def scales(*factors: float) -> Any:
    return np.array([1, 1, *factors], np.float32)


RESIZES = [
    resized(
        "nearest-asymmetric",
        'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"',
        (3, 4),
        scales=scales(2, 3),
    ),
    resized("nearest-half-pixel", 'mode="nearest"', (3, 4), scales=scales(2, 2)),
    resized("nearest-1d", 'mode="nearest", nearest_mode="floor"', (5,), scales=scales(2)),
    resized("nearest-3d", 'mode="nearest", nearest_mode="floor"', (2, 3, 2), scales=scales(1, 2, 2)),
    resized("nearest-uneven", 'mode="nearest", nearest_mode="ceil"', (5, 4), scales=scales(1.5, 0.5)),
    *(
        resized(
            f"linear-{mode}", f'mode="linear", coordinate_transformation_mode="{mode}"', (4, 3), scales=scales(2, 3)
        )
        for mode in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    ),
    resized(
        "linear-down",
        'mode="linear", coordinate_transformation_mode="pytorch_half_pixel"',
        (6, 8),
        scales=scales(0.5, 0.25),
    ),
    resized(
        "linear-one-axis",
        'mode="linear", axes=[3]',
        (4, 3),
        scales=np.array([2.0], np.float32),
    ),
    resized("cubic", 'mode="cubic", coordinate_transformation_mode="align_corners"', (5, 4), scales=scales(2, 1.5)),
    Case(
        "Resize-sizes",
        'h = Conv(x, w); n = Shape<start=0, end=2>(h); s = Concat<axis=0>(n, r); y = Resize<mode="linear">(h, , , s)',
        {"w": (3, 2, 1, 1)},
        (2, 3, 4),
        {"r": [7, 6]},
    ),
    Case(
        "Resize-position-embedding",
        'p = Resize<mode="linear">(table, , f); y = Add(x, p)',
        {"table": (1, 3, 4)},
        (3, 6),
        {"f": np.array([1, 1, 1.5], np.float32)},
    ),
]

CASES = [*SHAPES, *INDICES, *RESIZES]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradient_equals_central_differences(case: Case) -> None:
    assert_gradients(case)


def test_a_row_that_is_looked_up_twice_gets_both_gradients() -> None:
    model = model_of(
        "e = Gather(table, i); y = Add(e, x)", {"table": np.zeros((3, 1)), "i": [1, 1]}, inputs={"x": ("batch", 2, 1)}
    )
    bundle = compile_model(model, loss="mean_squared_error", name="twice", verify=False)
    batch = {"x": np.zeros((1, 2, 1), np.float32), "target": np.full((1, 2, 1), -1, np.float32)}
    assert gradients(bundle, batch)[1]["table"].ravel().tolist() == [0, 2, 0]


@pytest.mark.parametrize(
    ("text", "constants", "message"),
    [
        (
            "e = Slice(h, i, j, i, s); q = ReduceSum(e, i); y = Add(h, q)",
            {"i": [0], "j": [4], "s": [2]},
            "one of 2 examples of the batch",
        ),
        ('y = Resize<coordinate_transformation_mode="tf_crop_and_resize">(h, r, f)', {}, "tf_crop_and_resize"),
        ('y = ScatterND<reduction="mul">(h, i, u)', {"i": np.array([[0]]), "u": np.ones((1, 4))}, "reduction='mul'"),
    ],
)
def test_what_has_no_gradient_is_refused_by_name(text: str, constants: dict[str, Any], message: str) -> None:
    floats = {"w": np.ones((4, 4)), "r": np.array([0, 0, 1, 1]), "f": np.array([1, 2])}
    constants = {**constants, **{k: v.astype(np.float32) for k, v in floats.items()}}
    model = model_of(f"h = MatMul(x, w); {text}", constants, inputs={"x": ("batch", 4)})
    with pytest.raises(CompileError, match=message):
        compile_model(model, loss="mean_squared_error", name="refused", verify=False)
