"""Pure tensor maths of quantization: formats, grids, rounding, ranges, distances."""
