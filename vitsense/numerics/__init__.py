"""Pure tensor maths of quantization: formats, grids, rounding, ranges, distances."""

from vitsense.numerics.distance import cosine, kl_nats, mse, signal_noise, sqnr_db, top1_agree
from vitsense.numerics.fake_quant import dequantize, fake_quantize, quantize
from vitsense.numerics.grid import (
    ALLOWED_BITS,
    Format,
    Granularity,
    Grid,
    PerChannel,
    PerGroup,
    PerHead,
    PerTensor,
)
from vitsense.numerics.ranges import (
    Distribution,
    RangeMethod,
    grid_from_distribution,
    grid_from_tensor,
)

__all__ = [
    "ALLOWED_BITS",
    "Distribution",
    "Format",
    "Granularity",
    "Grid",
    "PerChannel",
    "PerGroup",
    "PerHead",
    "PerTensor",
    "RangeMethod",
    "cosine",
    "dequantize",
    "fake_quantize",
    "grid_from_distribution",
    "grid_from_tensor",
    "kl_nats",
    "mse",
    "quantize",
    "signal_noise",
    "sqnr_db",
    "top1_agree",
]
