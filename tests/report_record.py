"""The plan and ``run.json`` of the made-up run of `report_fixture`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from vitsense.plan.cost import cost_of
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.sensitivity.result import Outcome

WIDTHS = (8, 6, 4, 3, 2)
IMAGES = 1000


def plan_of(
    key: str,
    modules: pd.DataFrame,
    costs: dict[str, float],
    total: int,
    bits: dict[str, int],
    predicted: dict[str, float],
    outcome: Outcome,
) -> Plan:
    ends = {modules["module"].iloc[0], modules["module"].iloc[-1]}
    return Plan(
        modules=tuple(
            ModulePlan(
                name=row["module"],
                bits=bits[row["module"]],
                role=row["role"],
                weight=f"int{bits[row['module']]}" if row["params"] else None,
                activation=f"uint{bits[row['module']]}",
                pinned=row["module"] in ends,
                reason=f"{costs[row['module']]:.2g} nats at 4 bits",
            )
            for row in modules.to_dict("records")
        ),
        model={"key": key, "name": key, "weights_digest": "0123456789abcdef", "num_classes": 1000},
        budget="avg-bits=4",
        cost=asdict(cost_of(modules, bits, total)),
        predicted={k.removeprefix("predicted_"): v for k, v in list(predicted.items())[3:]},
        measured=outcome.row(),
    )


def entry_of(key: str, vit: bool, total: int, fp: list[float] | None) -> dict[str, Any]:
    return {
        "key": key,
        "requested": key,
        "name": key,
        "source": "timm",
        "family": "vit" if vit else "convnet",
        "weights": "hub",
        "checkpoint": None,
        "weights_digest": "0123456789abcdef",
        "num_classes": 1000,
        "params": total,
        "input_size": [3, 224, 224],
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "interpolation": "bicubic",
        "crop_pct": 0.9,
        "notes": [],
        "fp": None
        if fp is None
        else {"n": IMAGES, **dict(zip(("top1", "top1_low", "top1_high"), fp, strict=True))},
        "seconds": 321.0,
        "sites_digest": "feedbead",
        "drop_model": {
            "ceiling": 90.0,
            "log_c": 4.5,
            "exponent": 1.0,
            "scatter": 0.25,
            "points": 5,
            "basis": "plans",
        },
    }


def record_of(
    entries: list[dict[str, Any]],
    models: Sequence[str],
    labelled: bool,
    status: str,
    warnings: Sequence[str],
) -> dict[str, Any]:
    command = ["vitsense", "analyze", "--model", models[0]]
    for other in models[1:]:
        command += ["--compare", other]
    return {
        "status": status,
        "settings": {
            "bits": list(WIDTHS),
            "parts": ["both"],
            "seed": 7,
            "quant": {
                "weight_granularity": "per_channel",
                "weight_range": "mse",
                "activation_range": "mse",
            },
        },
        "fingerprint": {},
        "provenance": {
            "versions": {"python": "3.11.7", "vitsense": "0.1.0", "torch": "2.9.0"},
            "machine": {"system": "Linux", "machine": "x86_64", "processors": 2},
            "seed": 7,
        },
        "models": entries,
        "data": {
            "spec": "pictures",
            "kind": "folder",
            "labelled": labelled,
            "images_total": 5000,
            "calibration": 128,
            "evaluation": IMAGES,
            "calibration_spec": "pictures",
            "skipped": [],
            "evaluation_digest": "fedcba9876543210",
            "calibration_digest": "0011223344556677",
        },
        "timings": dict.fromkeys(models, 321.0),
        "warnings": list(warnings),
        "commands": [command],
        "verdict": [],
    }
