"""Rounded operations and their gradients against autograd of the definition in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitsense.numerics import Format
from vitsense.qat import attention, functions
from vitsense.qat.quantizers import LearnedQuantizer, lsq_factor, module_factor
from vitsense.qat.rounding import LearnedGrid, Rounding, quantize
from vitsense.qat.settings import StepGradient, WeightMethod

SIGNED, UNSIGNED = Rounding(-8, 7), Rounding(0, 15)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_()


def definition(x: Tensor, step: Tensor, offset: Tensor | None, rounding: Rounding) -> Tensor:
    """LSQ+ with a straight-through rounding, differentiated by autograd."""
    v = (x if offset is None else x - offset) / step
    clipped = v.clamp(rounding.qmin, rounding.qmax)
    code = clipped + (clipped.round() - clipped).detach()
    return code * step if offset is None else code * step + offset


def same(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    """Equal values, and equal gradients of every tensor for a random gradient of the output."""
    mine, other = [leaf(t) for t in tensors], [leaf(t) for t in tensors]
    result, expected = ours(*mine), theirs(*other)
    torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    gradient = random(*expected.shape, seed=9)
    result.backward(gradient.clone())
    expected.backward(gradient)
    for number, (a, b) in enumerate(zip(mine, other, strict=True)):
        assert b.grad is not None
        assert float(b.grad.abs().sum()) > 0, number
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-8, msg=f"tensor {number}")


GRIDS = {
    "tensor": ((), None),
    "channel": ((6, 1), None),
    "tensor with offset": ((), -0.17),
    "channel with offset": ((6, 1), -0.17),
}


@pytest.mark.parametrize(("shape", "offset"), GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("rounding", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
def test_rounding(shape: tuple[int, ...], offset: float | None, rounding: Rounding) -> None:
    x, step = random(4, 6, 50), 0.15 + 0.1 * random(*shape, seed=1).abs()
    assert bool((x > 0.15 * 8).any())  # some values lie beyond the grid
    shift = [] if offset is None else [offset + 0.01 * random(*shape, seed=2)]
    same(
        lambda x, s, *o: quantize(x, LearnedGrid(s, o[0] if o else None, rounding)),
        lambda x, s, *o: definition(x, s, o[0] if o else None, rounding),
        [x, step, *shift],
    )


def test_rounding_equals_torchs_learnable_kernels_where_they_agree() -> None:
    """They differ only where x is within half a step beyond the last code."""
    x = random(6, 80).float()
    for shape in ((), (6, 1)):
        step = (0.15 + 0.05 * random(*shape, seed=1).abs()).float()
        v = x / step
        between = ((v > -8.5) & (v < -8)) | ((v > 7) & (v < 7.5))
        x = torch.where(between, 0.3 * x, x)
        mine, theirs = leaf(x), leaf(x)
        my_step, their_step = leaf(step), leaf(step.reshape(-1))
        result = quantize(mine, LearnedGrid(my_step, None, SIGNED))
        zero = torch.zeros_like(their_step)
        if shape:
            expected = torch._fake_quantize_learnable_per_channel_affine(
                theirs, their_step, zero, 0, -8, 7, 1.0
            )
        else:
            expected = torch._fake_quantize_learnable_per_tensor_affine(
                theirs, their_step, zero, -8, 7, 1.0
            )
        assert torch.equal(result, expected)
        result.sum().backward()
        expected.sum().backward()
        assert torch.equal(mine.grad, theirs.grad)
        torch.testing.assert_close(my_step.grad.reshape(-1), their_step.grad, rtol=1e-4, atol=1e-4)


def test_values_on_the_ends_of_the_grid_are_inside() -> None:
    for rounding, values in ((SIGNED, [-8.0, 7.0, 0.0]), (UNSIGNED, [0.0, 15.0, -0.0])):
        for shape in ((), (3,)):
            x, step = leaf(torch.tensor(values) * 0.3), torch.full(shape, 0.3)
            quantize(x, LearnedGrid(step, None, rounding)).sum().backward()
            assert x.grad.tolist() == [1.0, 1.0, 1.0]


def test_linear() -> None:
    tensors = [random(3, 5, 20), random(7, 20, seed=1), random(7, seed=2)]
    steps = [torch.tensor(0.2).double(), torch.tensor(-0.3).double(), 0.1 + random(7, 1).abs()]
    same(
        lambda x, w, b, xs, xo, ws: functions.linear(
            x, w, b, LearnedGrid(xs, xo, UNSIGNED), LearnedGrid(ws, None, SIGNED)
        ),
        lambda x, w, b, xs, xo, ws: F.linear(
            definition(x, xs, xo, UNSIGNED), definition(w, ws, None, SIGNED), b
        ),
        tensors + steps,
    )


def test_linear_with_one_operand_rounded() -> None:
    x, w, step = random(9, 20), random(7, 20, seed=1), torch.tensor(0.2).double()
    same(
        lambda x, w, s: functions.linear(x, w, None, None, LearnedGrid(s, None, SIGNED)),
        lambda x, w, s: F.linear(x, definition(w, s, None, SIGNED)),
        [x, w, step],
    )
    same(
        lambda x, w, s: functions.linear(x, w, None, LearnedGrid(s, None, SIGNED), None),
        lambda x, w, s: F.linear(definition(x, s, None, SIGNED), w),
        [x, w, step],
    )


@pytest.mark.parametrize("groups", [1, 4])
def test_convolution(groups: int) -> None:
    tensors = [random(2, 8, 9, 9), random(12, 8 // groups, 3, 3, seed=1), random(12, seed=2)]
    steps = [torch.tensor(0.25).double(), 0.1 + random(12, 1, 1, 1, seed=3).abs()]
    geometry = ([2, 1], [1, 1], [1, 1], groups)
    same(
        lambda x, w, b, xs, ws: functions.convolution(
            x, w, b, LearnedGrid(xs, None, SIGNED), LearnedGrid(ws, None, SIGNED), geometry
        ),
        lambda x, w, b, xs, ws: F.conv2d(
            definition(x, xs, None, SIGNED), definition(w, ws, None, SIGNED), b, *geometry
        ),
        tensors + steps,
    )


@pytest.mark.parametrize("offset", [None, -0.4])
def test_the_step_of_images_gets_its_gradient_without_one_of_the_images(
    offset: float | None,
) -> None:
    x, w, geometry = random(2, 3, 9, 9), random(5, 3, 3, 3, seed=1), ([2, 2], [1, 1], [1, 1], 1)
    shift = [] if offset is None else [torch.tensor(offset).double()]
    same(
        lambda w, s, *o: functions.convolution(
            x, w, None, LearnedGrid(s, o[0] if o else None, UNSIGNED), None, geometry
        ),
        lambda w, s, *o: F.conv2d(
            definition(x, s, o[0] if o else None, UNSIGNED), w, None, *geometry
        ),
        [w, torch.tensor(0.12).double(), *shift],
    )


@pytest.mark.parametrize("shape", [(), (3, 1, 1)], ids=["per tensor", "per head"])
def test_product(shape: tuple[int, ...]) -> None:
    same(
        lambda a, b, s, t: functions.product(
            a, b, LearnedGrid(s, None, SIGNED), LearnedGrid(t, None, SIGNED)
        ),
        lambda a, b, s, t: definition(a, s, None, SIGNED) @ definition(b, t, None, SIGNED),
        [
            random(2, 3, 5, 8),
            random(2, 3, 8, 4, seed=1),
            0.2 + 0.1 * random(*shape, seed=2).abs(),
            0.3 + 0.1 * random(*shape, seed=3).abs(),
        ],
    )


MASKS = {"none": None, "table": (3, 6, 6), "shared": (1, 3, 6, 6), "each image": (4, 1, 6, 6)}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("at_once", [1 << 26, 1], ids=["together", "in turns"])
@pytest.mark.parametrize("shape", [(), (3, 1, 1)], ids=["per tensor", "per head"])
def test_attention(
    mask: tuple[int, ...] | None,
    at_once: int,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "ATTENTION_BYTES", at_once)
    operands = [random(4, 3, 6, 8, seed=seed) for seed in (1, 2, 3)]
    steps = [c + 0.1 * random(*shape, seed=4).abs() for c in (0.2, 0.25, 0.02, 0.3)]
    masks = [] if mask is None else [random(*mask, seed=5)]
    rules = (SIGNED, SIGNED, UNSIGNED, SIGNED)

    def ours(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        grids = [LearnedGrid(s, None, r) for s, r in zip(rest[:4], rules, strict=True)]
        return attention.attention(q, k, v, rest[4] if masks else None, 0.35, grids)

    def theirs(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        q, k = definition(q, rest[0], None, SIGNED), definition(k, rest[1], None, SIGNED)
        scores = 0.35 * q @ k.transpose(-2, -1)
        probs = (scores + rest[4] if masks else scores).softmax(-1)
        return definition(probs, rest[2], None, UNSIGNED) @ definition(v, rest[3], None, SIGNED)

    same(ours, theirs, operands + steps + masks)


def test_single_precision_is_close_to_double() -> None:
    """The step's gradient is a difference of two sums; that must not cost its accuracy."""
    x, w = random(64, 17, 96), random(48, 96, seed=1)
    gradient = random(64, 17, 48, seed=2)
    for bits in (3, 4, 8):
        rounding = Rounding(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        found = []
        for kind in (torch.float32, torch.float64):
            leaves = [leaf(t.to(kind)) for t in (x, w, torch.tensor(3.0 / rounding.qmax))]
            grid = LearnedGrid(leaves[2], None, rounding)
            functions.linear(leaves[0], leaves[1], None, grid, grid).backward(gradient.to(kind))
            found.append([t.grad.double() for t in leaves])
        for single, double in zip(*found, strict=True):
            # single values may round to the other side of a threshold
            assert float((single - double).norm() / double.norm()) < 2e-3


def test_mixed_precision_gives_nearly_the_same_gradients() -> None:
    x, w = random(16, 9, 32).float(), random(24, 32, seed=1).float()
    steps = torch.tensor(0.3), torch.tensor(0.25)
    found = []
    for mixed in (False, True):
        leaves = [leaf(t) for t in (x, w, *steps)]
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            grids = [LearnedGrid(s, None, SIGNED) for s in leaves[2:]]
            result = functions.linear(leaves[0], leaves[1], None, *grids)
        assert result.dtype is (torch.bfloat16 if mixed else torch.float32)
        result.float().square().sum().backward()
        found.append([t.grad for t in leaves])
    for exact, rough in zip(*found, strict=True):
        assert rough.dtype is torch.float32
        assert float((exact - rough).norm() / exact.norm()) < 0.03


def test_the_gradient_factors_are_those_of_the_papers() -> None:
    weight = random(6, 20).float()
    form, gradient = Format(4), torch.ones_like(weight)

    def step_gradient(kind: StepGradient, scale: Tensor, repeats: int = 1) -> Tensor:
        made = LearnedQuantizer(
            form,
            scale,
            values=weight.numel() // scale.numel(),
            repeats=repeats,
            gradient=kind,
            is_weight=True,
        )
        made(weight).backward(gradient)
        assert made.scale is not None
        return made.scale.grad

    scale = torch.tensor(0.3)
    plain = step_gradient(StepGradient.NONE, scale)
    assert step_gradient(StepGradient.LSQ, scale) == pytest.approx(
        float(plain) / math.sqrt(120 * 7), rel=1e-5
    )
    assert step_gradient(StepGradient.MODULE, scale) == pytest.approx(
        float(plain) / math.sqrt(7 * float(weight.abs().sum())), rel=1e-5
    )
    heads = torch.full((2, 1), 0.3)  # three rows each
    plain, module = (step_gradient(k, heads, 3) for k in (StepGradient.NONE, StepGradient.MODULE))
    sums = weight.abs().reshape(2, -1).sum(1)
    torch.testing.assert_close(module[:, 0], plain[:, 0] / (7 * sums).sqrt())
    assert lsq_factor(100, 7) == pytest.approx(1 / math.sqrt(700))
    assert float(module_factor(torch.tensor(25.0), 4)) == pytest.approx(0.1)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_statistic_steps_are_those_of_the_published_formula(bits: int) -> None:
    """OFQ: scale 2 mean|w|, clipped to [-1, 1), half-integer levels, identity gradient."""
    weight = leaf(random(6, 20).float())
    made = LearnedQuantizer(
        Format(bits), torch.ones(6, 1), values=20, is_weight=True, method=WeightMethod.STATISTIC
    )
    expected = torch.empty(6, 20)
    for row in range(6):
        scale = 2 * float(weight.detach()[row].abs().mean())
        for column in range(20):
            v = min(max(float(weight.detach()[row, column]) / scale, -1.0), 1 - 1e-6)
            n = 2 ** (bits - 1)
            expected[row, column] = scale * (round(v * n - 0.5) + 0.5) / n
    result = made(weight)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    result.sum().backward()
    assert weight.grad.tolist() == torch.ones(6, 20).tolist()
    assert list(made.parameters()) == []


def test_a_step_below_zero_counts_as_its_size() -> None:
    made = LearnedQuantizer(Format(4), torch.tensor(-0.25), values=4)
    assert made(torch.tensor([0.3, -0.9])).tolist() == [0.25, -1.0]
