"""Floating-point formats: rounding to elements, and grids with a scale per tensor or block."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from vitsense.errors import MeasurementError, UserInputError
from vitsense.formats import FLOAT_FORMATS, Family, NumberFormat
from vitsense.numerics.grid import Granularity, PerChannel, PerTensor

_EXPONENT = 0x7F800000  # bits of the exponent in float32
_SCALE = FLOAT_FORMATS["fp8_e4m3"]
"""Format of the block scales of nvfp4."""

LEAST_SHARED, MOST_SHARED = -127, 127
"""Exponents an E8M0 scale can hold (OCP MX v1.0, section 5.4.1)."""


class ScaleRounding(Enum):
    """How the shared exponent of a microscaling block is rounded."""

    FLOOR = "floor"
    """floor(log2(largest of the block)) - emax, as the specification says; the largest element may
    be clipped by up to a quarter."""
    CEIL = "ceil"
    """The least power of two with which no element is clipped."""


def round_to_float(x: Tensor, form: NumberFormat) -> Tensor:
    """``x`` rounded to elements of ``form`` without a scale, `x.shape`, float32.

    To nearest, ties to even, with subnormals; beyond the largest element, infinity included, it
    saturates. NaN stays NaN. Equal in every bit to torch's casts to float8 where those do not
    overflow (tested).

    Source: OCP MX specification v1.0, section 5.3 (element formats) and 6.3 (saturation).
    """
    clipped = x.float().clamp(-form.largest, form.largest)
    # 2^floor(log2|x|): a float32 with its sign and significand taken away
    power = (clipped.view(torch.int32) & _EXPONENT).view(torch.float32)
    step = power.clamp_(min=2.0**form.least_exponent).mul_(2.0**-form.mantissa_bits)
    # both operations are exact: the step is a power of two
    return clipped.div_(step).round_().mul_(step)


@dataclass(frozen=True, slots=True, eq=False)
class FloatGrid:
    """The numbers ``scale * element``."""

    format: NumberFormat
    scale: Tensor
    """Float32, broadcastable against the tensor."""

    def fake_quantize(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid, `x.shape` and the type of ``x``."""
        return round_to_float(x / self.scale, self.format).mul_(self.scale).to(x.dtype)

    def to(self, device: torch.device) -> FloatGrid:
        """The same grid on another device."""
        return FloatGrid(self.format, self.scale.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class BlockGrid:
    """Elements under a scale that each block of neighbours along an axis finds for itself.

    Where the block does not divide the axis, the last block is short.
    """

    format: NumberFormat
    axis: int = -1
    """Along which neighbours share a scale: the one that is summed over."""
    rows: bool = False
    """For weights: neighbours along all axes but the first, flattened."""
    tensor_scale: Tensor | None = None
    """Float32, nvfp4 only; None: from the tensor that is rounded."""
    rounding: ScaleRounding = ScaleRounding.FLOOR

    def fake_quantize(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid, `x.shape` and the type of ``x``."""
        if self.rows:
            flat = self._along_last(x.reshape(x.shape[0], -1))
        else:
            flat = self._along_last(x.movedim(self.axis, -1)).movedim(-1, self.axis)
        return flat.reshape(x.shape).to(x.dtype)

    def _along_last(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        # zeros change no largest value
        padded = torch.nn.functional.pad(x.float(), (0, -length % self.format.block))
        blocks = padded.reshape(*padded.shape[:-1], -1, self.format.block)
        largest = blocks.abs().amax(dim=-1, keepdim=True)
        if self.format.family is Family.NVFP4:
            scale = self._nvfp4_scale(largest)
        else:
            scale = shared_scale(largest, self.format, self.rounding)
        # a block whose scale is zero holds nothing but zeros
        elements = torch.where(scale == 0, 0.0, blocks / scale)
        return round_to_float(elements, self.format).mul_(scale).flatten(-2)[..., :length]

    def _nvfp4_scale(self, largest: Tensor) -> Tensor:
        """Scale of each block: a float32 of the tensor times an e4m3 of the block.

        Source: NVIDIA, "Introducing NVFP4 for Efficient and Accurate Low-Precision Inference"
        (2025): the tensor's scale brings the largest block scale to 448.
        """
        whole = self.tensor_scale
        if whole is None:
            whole = nvfp4_tensor_scale(largest.amax())
        return round_to_float(largest / self.format.largest / whole, _SCALE) * whole


def shared_scale(largest: Tensor, form: NumberFormat, rounding: ScaleRounding) -> Tensor:
    """The power of two that the elements of a block share, shape of ``largest``, float32.

    Args:
        largest: Largest magnitude of each block.
        form: The element's format.
        rounding: `ScaleRounding`.

    Source: OCP MX specification v1.0, section 6.3: shared_exp = floor(log2(max|V|)) - emax_elem,
    kept within E8M0's -127 to 127. A block of zeros gets 2^-127; one that holds NaN is NaN.
    """
    finite = largest.clamp(max=torch.finfo(torch.float32).max)
    if rounding is ScaleRounding.FLOOR:
        # frexp: a significand of 0.5 to 1, so that floor(log2) is the exponent less one
        exponent = torch.frexp(finite).exponent - 1 - form.largest_exponent
    else:
        ratio = torch.frexp(finite / form.largest)
        exponent = torch.where(ratio.mantissa == 0.5, ratio.exponent - 1, ratio.exponent)
    exponent = torch.where(finite == 0, LEAST_SHARED, exponent).clamp(LEAST_SHARED, MOST_SHARED)
    scale = torch.ldexp(torch.ones_like(finite, dtype=torch.float64), exponent).float()
    return torch.where(finite.isnan(), torch.nan, scale)


def nvfp4_tensor_scale(largest: Tensor) -> Tensor:
    """The float32 scale of a whole tensor whose largest magnitude is ``largest``."""
    tiny = torch.finfo(torch.float32).tiny
    return (largest.float() / (FLOAT_FORMATS["nvfp4"].largest * _SCALE.largest)).clamp(min=tiny)


def float_grid(
    form: NumberFormat,
    largest: Tensor,
    *,
    axis: int = -1,
    rows: bool = False,
) -> FloatGrid | BlockGrid:
    """The grid of a floating-point format for a tensor whose largest magnitude is known.

    Args:
        form: Not an integer.
        largest: Largest magnitude, `()` or one for each channel, broadcastable against the tensor;
            microscaling formats do not look at it, nvfp4 takes the largest of all.
        axis: See `BlockGrid`.
        rows: See `BlockGrid`.

    Raises:
        UserInputError: the format is an integer.
        MeasurementError: a magnitude is not finite.
    """
    if form.is_integer:
        raise UserInputError(f"{form.name} is no floating-point format; use grid_from_tensor.")
    if not bool(largest.isfinite().all()):
        raise MeasurementError(
            "A tensor to quantize holds values that are not finite (NaN or infinity): check the "
            "weights or the images it came from."
        )
    if form.family is Family.FLOAT:
        tiny = torch.finfo(torch.float32).tiny
        return FloatGrid(form, (largest.float() / form.largest).clamp(min=tiny))
    scale = nvfp4_tensor_scale(largest.amax()) if form.family is Family.NVFP4 else None
    return BlockGrid(form, axis=axis, rows=rows, tensor_scale=scale)


def largest_of(x: Tensor, granularity: Granularity) -> Tensor:
    """Largest magnitude of a tensor or of each channel, in the shape of the scale.

    Raises:
        UserInputError: a granularity other than these two.
    """
    magnitude = x.detach().float().abs()
    if isinstance(granularity, PerTensor):
        return magnitude.amax()
    if isinstance(granularity, PerChannel):
        others = [i for i in range(x.dim()) if i != granularity.axis % x.dim()]
        return magnitude.amax(dim=others, keepdim=True) if others else magnitude
    raise UserInputError("Floating-point formats are scaled per tensor or per channel.")
