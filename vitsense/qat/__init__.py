"""Quantization-aware training.

The model side: `prepare.prepare_qat` makes a model whose sites are quantized by learned steps
(`quantizers`), computed with little memory (`functions`); `oscillation`, `regularize` and
`anneal` watch and steady its weights; `prepare.convert` fixes the grid.
"""
