"""Small quantized models and a small run, for the tests of exports."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from small_models import BUILDERS, IMAGE_SIZE, images

from vitsense.discover import find_sites
from vitsense.export.fixed import FixedModel, fix_model
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.settings import QuantSettings

MIXED = (8, 4, 6, 3, 2, 5)


def plan_of(catalog: Any, bits: Any) -> Plan:
    """Bits in turn for the modules, in order."""
    rows = [
        ModulePlan(
            name=module.name,
            bits=bits[i % len(bits)],
            weight=f"int{bits[i % len(bits)]}" if module.params else None,
            activation=f"uint{bits[i % len(bits)]}",
            reason="because",
        )
        for i, module in enumerate(catalog)
    ]
    return Plan(modules=tuple(rows))


@lru_cache(maxsize=8)
def fixed_model(name: str, bits: tuple[int, ...] = MIXED) -> tuple[FixedModel, Plan]:
    """A tiny model with random weights, quantized; nobody may change it."""
    model = BUILDERS[name]()
    catalog = find_sites(model, images(1))
    plan = plan_of(catalog, bits)
    return fix_model(model, catalog, plan, [images(4)], QuantSettings()), plan


def about(requested: str = "package:factory", source: str = "factory") -> dict[str, Any]:
    """What a packed file says about a tiny model."""
    return {
        "key": "tiny",
        "requested": requested,
        "name": requested,
        "source": source,
        "num_classes": 10,
        "params": 1,
        "weights_digest": "0" * 16,
        "preprocessing": {
            "input_size": [3, IMAGE_SIZE, IMAGE_SIZE],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
        },
        "draw": {"images": 4, "calibration": 4, "seed": 0},
        "generated_images": False,
    }


def logits(model: torch.nn.Module, n: int = 4) -> torch.Tensor:
    """Without gradients."""
    with torch.no_grad():
        found: torch.Tensor = model(images(n))
    return found


def small_run(folder: Path) -> Path:
    """The shipped ResNet, measured on few images."""
    from vitsense import cli

    command = ["analyze", "--model", "zoo/glyph_resnet", "--images", "24", "--calibration", "8"]
    command += ["--bits", "8,4", "--budget", "avg-bits=6", "--refine", "0"]
    command += ["--no-report", "-q"]
    assert cli.run([*command, "--out", str(folder)]) == 0
    return folder
