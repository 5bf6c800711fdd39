"""Pure tensor maths of quantization: formats, grids, rounding, ranges, distances."""

from vitsense.formats import ALLOWED_BITS
from vitsense.numerics.distance import cosine, kl_nats, mse, signal_noise, sqnr_db, top1_agree
from vitsense.numerics.fake_quant import AnyGrid, dequantize, fake_quantize, quantize
from vitsense.numerics.floats import (
    BlockGrid,
    FloatGrid,
    ScaleRounding,
    float_grid,
    round_to_float,
    shared_scale,
)
from vitsense.numerics.grid import (
    Format,
    Granularity,
    Grid,
    PerChannel,
    PerGroup,
    PerHead,
    PerTensor,
)
from vitsense.numerics.log2 import Log2Grid
from vitsense.numerics.ranges import (
    Distribution,
    RangeMethod,
    grid_from_distribution,
    grid_from_tensor,
)

__all__ = [
    "ALLOWED_BITS",
    "AnyGrid",
    "BlockGrid",
    "Distribution",
    "FloatGrid",
    "Format",
    "Granularity",
    "Grid",
    "Log2Grid",
    "PerChannel",
    "PerGroup",
    "PerHead",
    "PerTensor",
    "RangeMethod",
    "ScaleRounding",
    "cosine",
    "dequantize",
    "fake_quantize",
    "float_grid",
    "grid_from_distribution",
    "grid_from_tensor",
    "kl_nats",
    "mse",
    "quantize",
    "round_to_float",
    "shared_scale",
    "signal_noise",
    "sqnr_db",
    "top1_agree",
]
