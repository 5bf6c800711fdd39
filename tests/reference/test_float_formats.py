"""Floating-point and block formats against torch's casts, torchao, and the specification's text."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from vitsense.errors import MeasurementError, UserInputError
from vitsense.formats import FLOAT_FORMATS, format_of, known_formats
from vitsense.numerics import (
    Format,
    Log2Grid,
    PerChannel,
    PerGroup,
    PerTensor,
    ScaleRounding,
    fake_quantize,
    round_to_float,
    shared_scale,
)
from vitsense.numerics.floats import BlockGrid, FloatGrid, float_grid, largest_of

TORCH_TYPES = {"fp8_e4m3": torch.float8_e4m3fn, "fp8_e5m2": torch.float8_e5m2}
MX = [name for name in FLOAT_FORMATS if name.startswith("mx")]

# the tables of the specifications: largest, smallest normal, smallest subnormal
LIMITS = {
    "mxfp4": (6.0, 1.0, 0.5),
    "mxfp6_e2m3": (7.5, 1.0, 0.125),
    "mxfp6_e3m2": (28.0, 0.25, 0.0625),
    "fp8_e4m3": (448.0, 2.0**-6, 2.0**-9),
    "fp8_e5m2": (57344.0, 2.0**-14, 2.0**-16),
}


def elements(name: str) -> list[Fraction]:
    """Every non-negative element, enumerated code by code as the specification writes them."""
    form = format_of(name)
    bias = 2 ** (form.exponent_bits - 1) - 1
    found = []
    for exponent in range(2**form.exponent_bits):
        for mantissa in range(2**form.mantissa_bits):
            part = Fraction(mantissa, 2**form.mantissa_bits)
            if exponent == 0:
                value = Fraction(2) ** (1 - bias) * part
            else:
                value = Fraction(2) ** (exponent - bias) * (1 + part)
            if value <= Fraction(form.largest):  # the rest are infinity and NaN of the 8-bit ones
                found.append(value)
    return found


def nearest(value: float, table: list[Fraction]) -> float:
    """The nearest element, ties to the even code; beyond the largest, the largest."""
    size = min(Fraction(abs(value)), table[-1])
    best = min(range(len(table)), key=lambda i: (abs(table[i] - size), i % 2))
    return math.copysign(float(table[best]), value)


def literal_mx(values: list[float], name: str) -> list[float]:
    """One block by the text of OCP MX v1.0, section 6.3, in exact arithmetic."""
    form = format_of(name)
    largest = max(Fraction(abs(v)) for v in values)
    exponent = -10_000
    if largest:
        emax = math.floor(math.log2(form.largest))
        exponent = 0
        while Fraction(2) ** (exponent + 1) <= largest:
            exponent += 1
        while Fraction(2) ** exponent > largest:
            exponent -= 1
        exponent -= emax
    scale = Fraction(2) ** max(-127, min(127, exponent))
    table = elements(name)
    return [nearest(Fraction(v) / scale, table) * float(scale) for v in values]


def samples(*shape: int, seed: int = 0) -> torch.Tensor:
    """Values over many magnitudes, with exact ties and zeros among them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(2, size=shape) * 10.0 ** rng.uniform(-4, 4, size=shape)
    x = np.where(rng.random(shape) < 0.1, 0.0, x)
    ties = rng.integers(-64, 65, size=shape) / 16
    return torch.from_numpy(np.where(rng.random(shape) < 0.3, ties, x)).float()


@pytest.mark.parametrize("name", TORCH_TYPES)
def test_rounding_equals_torchs_cast_in_every_bit(name: str) -> None:
    bits = torch.arange(-(2**31), 2**31, 9973, dtype=torch.int64).to(torch.int32)
    x = bits.view(torch.float32)
    x = x[x.isfinite()]
    form = format_of(name)
    kept = x.clamp(-form.largest, form.largest)  # torch's cast of more has changed over versions
    expected = kept.to(TORCH_TYPES[name]).float()
    assert torch.equal(round_to_float(x, form).view(torch.int32), expected.view(torch.int32))
    half = x.bfloat16()
    assert torch.equal(round_to_float(half, form), round_to_float(half.float(), form))


@pytest.mark.parametrize("name", LIMITS)
def test_elements_are_those_of_the_specification(name: str) -> None:
    form = format_of(name)
    table = elements(name)
    largest, normal, subnormal = LIMITS[name]
    assert float(table[-1]) == largest == form.largest
    assert float(min(v for v in table if v)) == subnormal
    assert 2.0**form.least_exponent == normal
    x = samples(600).flatten()
    expected = [nearest(v, table) for v in x.tolist()]
    assert round_to_float(x, form).tolist() == expected
    exact = torch.tensor([float(v) for v in table])
    assert torch.equal(round_to_float(exact, form), exact)
    middles = (exact[1:] + exact[:-1]) / 2
    expected = [nearest(v, table) for v in middles.tolist()]
    assert round_to_float(middles, form).tolist() == expected


def test_special_values() -> None:
    x = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 1e-45])
    found = round_to_float(x, format_of("mxfp4"))
    assert found[0].isnan()
    assert found[1:].tolist() == [6.0, -6.0, -0.0, 0.0]
    assert math.copysign(1, float(found[3])) == -1
    block = torch.ones(2, 32)
    block[0, 3] = math.nan
    rounded = fake_quantize(block, BlockGrid(format_of("mxfp4")))
    assert rounded[0].isnan().all()  # the shared scale of the block is NaN
    assert torch.equal(rounded[1], block[1])


@pytest.mark.parametrize("name", MX)
def test_blocks_equal_the_text_of_the_specification(name: str) -> None:
    x = samples(6, 80, seed=1)
    x[2, :32] = 0
    x[3, :32] *= 2.0**-120  # scales at the end of their range
    x[4, :32] *= 1e-30
    found = fake_quantize(x, BlockGrid(format_of(name)))
    for row, given in zip(found.tolist(), x.tolist(), strict=True):
        for start in range(0, 80, 32):  # 80 is two blocks and a half
            expected = literal_mx(given[start : start + 32], name)
            assert row[start : start + 32] == expected


@pytest.mark.parametrize("axis", [0, 1, -2])
def test_blocks_run_along_the_axis_that_is_named(axis: int) -> None:
    x = samples(5, 40, 7, seed=2)
    grid = BlockGrid(format_of("mxfp6_e3m2"), axis=axis)
    expected = fake_quantize(x.movedim(axis, -1).contiguous(), BlockGrid(grid.format))
    assert torch.equal(fake_quantize(x, grid), expected.movedim(-1, axis))


def test_weights_share_scales_within_an_output_channel() -> None:
    weight = samples(6, 5, 3, 3, seed=3)
    grid = BlockGrid(format_of("mxfp4"), rows=True)
    expected = fake_quantize(weight.reshape(6, 45), BlockGrid(grid.format)).reshape(weight.shape)
    assert torch.equal(fake_quantize(weight, grid), expected)


def literal_nvfp4(block: list[float], whole: float) -> list[float]:
    scales, table = elements("fp8_e4m3"), elements("mxfp4")
    largest = np.float32(max(abs(v) for v in block))
    scale = np.float32(nearest(float(largest / np.float32(6) / np.float32(whole)), scales))
    scale = scale * np.float32(whole)
    if scale == 0:
        return [0.0] * len(block)
    return [float(np.float32(nearest(float(np.float32(v) / scale), table)) * scale) for v in block]


def test_nvfp4_equals_a_literal_loop() -> None:
    x = samples(8, 40, seed=4)
    x[1, :16] = 0
    grid = float_grid(format_of("nvfp4"), x.abs().amax())
    whole = float(grid.tensor_scale)
    assert whole == pytest.approx(float(x.abs().max()) / (448 * 6))
    found = fake_quantize(x, grid)
    assert torch.equal(found, fake_quantize(x, BlockGrid(format_of("nvfp4"))))
    for row, given in zip(found.tolist(), x.tolist(), strict=True):
        for start in range(0, 40, 16):
            assert row[start : start + 16] == literal_nvfp4(given[start : start + 16], whole)


def torchao_mx():
    return pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")


@pytest.mark.parametrize("rounding", ScaleRounding)
@pytest.mark.parametrize("name", MX)
def test_blocks_equal_torchao(name: str, rounding: ScaleRounding) -> None:
    mx = torchao_mx()
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2

    theirs = {
        "mxfp4": torch.float4_e2m1fn_x2,
        "mxfp6_e2m3": DTYPE_FP6_E2M3,
        "mxfp6_e3m2": DTYPE_FP6_E3M2,
        "mxfp8_e4m3": torch.float8_e4m3fn,
        "mxfp8_e5m2": torch.float8_e5m2,
    }[name]
    mode = {
        ScaleRounding.FLOOR: ScaleCalculationMode.FLOOR,
        ScaleRounding.CEIL: ScaleCalculationMode.RCEIL,
    }[rounding]
    x = samples(64, 128, seed=5)
    scale, data = mx.to_mx(x, theirs, 32, mode)
    expected = mx.to_dtype(data, scale, theirs, 32, torch.float32)
    found = fake_quantize(x, BlockGrid(format_of(name), rounding=rounding))
    assert torch.equal(found, expected)
    largest = x.unflatten(-1, (-1, 32)).abs().amax(-1)
    assert torch.equal(shared_scale(largest, format_of(name), rounding), scale.float())


def test_nvfp4_equals_torchao() -> None:
    torchao_mx()
    from torchao.prototype.mx_formats import kernels, nvfp4_tensor

    rng = torch.Generator().manual_seed(6)
    x = torch.randn(64, 128, generator=rng)
    whole = nvfp4_tensor.per_tensor_amax_to_scale(x.abs().max())
    scales, packed = nvfp4_tensor.nvfp4_quantize(x, 16, whole)
    codes = kernels.f4_unpacked_to_f32(kernels.unpack_uint4(packed)).reshape(64, 8, 16)
    expected = (codes * scales.float().reshape(64, 8, 1) * whole).reshape(64, 128)
    found = fake_quantize(x, float_grid(format_of("nvfp4"), x.abs().max()))
    # they multiply by a reciprocal, we divide: a value at a tie may fall to the other side
    close = torch.isclose(found, expected, rtol=1e-6, atol=0)
    assert close.float().mean() > 0.999


@pytest.mark.parametrize("name", TORCH_TYPES)
def test_scaled_floats_bring_the_largest_value_to_the_end(name: str) -> None:
    x = samples(6, 50, seed=7)
    for granularity in (PerTensor(), PerChannel(0), PerChannel(-1)):
        grid = float_grid(format_of(name), largest_of(x, granularity))
        assert isinstance(grid, FloatGrid)
        scale = grid.scale.expand(granularity.scale_shape(tuple(x.shape)))
        assert scale.shape == granularity.scale_shape(tuple(x.shape))
        expected = (x / scale).to(TORCH_TYPES[name]).float() * scale
        assert torch.equal(fake_quantize(x, grid), expected)
        assert fake_quantize(x.double(), grid).dtype is torch.float64
        assert fake_quantize(x.half(), grid).dtype is torch.float16


def test_log2_holds_the_powers_of_two_down_to_the_last_code() -> None:
    x = torch.rand(2000, generator=torch.Generator().manual_seed(8)) ** 6
    x[0], x[1] = 0.0, 1.0
    for bits in (2, 3, 4):
        found = fake_quantize(x, Log2Grid(Format(bits, signed=False)))
        for value, rounded in zip(x.tolist(), found.tolist(), strict=True):
            code = 2**bits - 1
            if value > 0:
                code = min(max(round(-math.log2(value)), 0), code)
            assert rounded == 2.0**-code
    assert Log2Grid(Format(4, signed=False)).format.name == "uint4"


def test_effective_bits_count_the_scales_of_blocks() -> None:
    effective = {name: format_of(name).effective_bits for name in known_formats()}
    assert effective["int4"] == 4
    assert effective["fp8_e5m2"] == 8
    assert effective["mxfp4"] == 4.25
    assert effective["mxfp6_e2m3"] == 6.25
    assert effective["nvfp4"] == 4.5
    assert format_of("mxfp4").block_scale_bits((10, 80)) == 10 * 3 * 8
    assert format_of("nvfp4").block_scale_bits((6, 5, 3, 3)) == 6 * 3 * 8
    assert format_of(4).block_scale_bits((10, 80)) == 0
    assert format_of("mxfp4").block_scale_bits(()) == 0
    scales = [format_of(n).wide_scales((10, 80)) for n in ("int4", "fp8_e4m3", "mxfp4", "nvfp4")]
    assert scales == [10, 10, 0, 1]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserInputError, match="int8, int7.*mxfp4"):
        format_of("fp4")
    with pytest.raises(UserInputError, match="no number format"):
        format_of(9)
    with pytest.raises(UserInputError, match="no floating-point format"):
        float_grid(format_of(4), torch.ones(()))
    with pytest.raises(MeasurementError, match="not finite"):
        float_grid(format_of("fp8_e4m3"), torch.tensor(math.inf))
    with pytest.raises(UserInputError, match="per tensor or per channel"):
        largest_of(torch.ones(2, 2), PerGroup(2))
