"""Scores and costs of NVIDIA ModelOpt's two sensitivity methods, for `fast_cost.py --modelopt`.

Needs `pip install nvidia-modelopt requests`. Weights per output channel, inputs per tensor, both
from the largest magnitude, as in its INT8 configuration, and the same with 4 bits.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from torch.nn import functional as F

METHODS = ("gradient", "kl_div")


def version() -> str:
    import modelopt

    return str(modelopt.__version__)


def scores(
    model: torch.nn.Module, batches: list[Any], method: str, bits: tuple[int, ...] = (8, 4)
) -> tuple[float, dict[tuple[str, int], float]]:
    """Process CPU seconds, and the score of every (module, bits); the model is copied."""
    import modelopt.torch.quantization as mtq

    started = time.process_time()
    _, found = mtq.auto_quantize(
        copy.deepcopy(model),
        constraints={"effective_bits": 6.0},
        quantization_formats=[_format(width) for width in bits],
        data_loader=batches,
        forward_step=lambda net, batch: net(batch[0]),
        loss_func=lambda output, batch: F.cross_entropy(output, batch[1]),
        num_calib_steps=len(batches),
        num_score_steps=len(batches),
        method=method,
    )
    seconds = time.process_time() - started
    table = {}
    for entry in found["candidate_stats"].values():
        if len(entry["module_names"]) != 1:
            continue
        for recipe, score in zip(entry["formats"], entry["scores"], strict=True):
            width = _width(recipe, bits)
            if width is not None:
                table[entry["module_names"][0], width] = float(score)
    return seconds, table


def _format(width: int) -> dict[str, Any]:
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": width, "axis": 0}},
            {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": width, "axis": None}},
        ],
        "algorithm": "max",
    }


def _width(recipe: Any, bits: tuple[int, ...]) -> int | None:
    """The weight's bits of a recipe; None where nothing is quantized."""
    text = str(getattr(recipe, "config", recipe))
    for width in bits:
        if f"'num_bits': {width}" in text or f"num_bits={width}" in text:
            return width
    return None
