"""A made-up run folder for the report: plausible tables of any size, without a model or torch."""

from __future__ import annotations

import atexit
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from report_groups import groups_table
from report_record import IMAGES, WIDTHS, entry_of, plan_of, record_of

from vitsense.plan.additivity import additivity_rows
from vitsense.plan.cost import cost_of
from vitsense.runfolder import RunFolder
from vitsense.schemas import SCHEMAS
from vitsense.sensitivity.result import Outcome

CORRECT = 912
"""Images that the made-up model gets right in full precision."""

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    '#panic("no") $x^2$ *bold* @ref',
    "quotes \" ' ` & < >",
    "\u05e9\u05dc\u05d5\u05dd.\u0645\u0631\u062d\u0628\u0627",
    "emoji.\U0001f9e0.block",
    "long." + "name_" * 39,
    "{{ 7*7 }}{% raw %}",
    "=1+1,\u202egnp.exe",
)
"""Module names that try to be markup, typst, a template, right to left; one is 200 long."""

_VIT = (
    "attn.qkv.q",
    "attn.qkv.k",
    "attn.qkv.v",
    "attn.qk_product",
    "attn.pv_product",
    "attn.proj",
    "mlp.fc1",
    "mlp.fc2",
)
_VIT_ROLES = ("q", "k", "v", "qk_product", "pv_product", "projection", "ffn", "ffn")


def make_run(
    folder: Path,
    modules: int = 60,
    models: Sequence[str] = ("vit_made_up", "resnet_made_up"),
    *,
    labelled: Sequence[bool] | bool = True,
    hostile: bool = False,
    status: str = "complete",
    warnings: Sequence[str] = (),
    unmeasured: bool = False,
) -> RunFolder:
    """A run of ``models`` with ``modules`` modules each; every second model is a ConvNet.

    Args:
        folder: Where the run goes; it is made.
        modules: Modules of each model.
        models: Keys.
        labelled: Whether there are labels, for all models or for each.
        hostile: Give the first modules the names in `HOSTILE`.
        status: Of the run.
        warnings: Of the run.
        unmeasured: Leave one cell of each model without a measurement.
    """
    settings = (modules, *models, labelled, hostile, status, *warnings, unmeasured)
    kept = _KEPT / sha256(repr(settings).encode()).hexdigest()
    if not kept.is_dir():
        _write_run(kept, modules, models, labelled, hostile, status, warnings, unmeasured)
    return RunFolder.open(Path(shutil.copytree(kept, folder, dirs_exist_ok=True)))


_KEPT = Path(tempfile.mkdtemp(prefix="vitsense-tests-"))
"""Runs that were made, by what was asked for: many tests begin with the same one."""
atexit.register(shutil.rmtree, _KEPT, ignore_errors=True)


def _write_run(
    folder: Path,
    modules: int,
    models: Sequence[str],
    labelled: Sequence[bool] | bool,
    hostile: bool,
    status: str,
    warnings: Sequence[str],
    unmeasured: bool,
) -> None:
    run = RunFolder.at(folder)
    known = [labelled] * len(models) if isinstance(labelled, bool) else list(labelled)
    parts = [
        _model(key, number, modules, known[number], hostile, unmeasured)
        for number, key in enumerate(models)
    ]
    for name in parts[0]["frames"]:
        run.write_table(name, pd.concat([p["frames"][name] for p in parts], ignore_index=True))
    for name in ("histograms", "channels"):
        run.write_arrays(name, {k: v for p in parts for k, v in p[name].items()})
    for number, part in enumerate(parts):
        part["plan"].save(run.plan_path(None if number == 0 else models[number]))
    run.write_run(record_of([p["entry"] for p in parts], models, any(known), status, warnings))


def _model(
    key: str, number: int, count: int, labelled: bool, hostile: bool, unmeasured: bool
) -> dict[str, Any]:
    rng = np.random.default_rng(number + 1)
    vit = number % 2 == 0
    modules = _modules(key, count, vit, hostile, rng)
    costs = 10 ** rng.normal(-3.0, 0.7, count)  # divergence at 4 bits, nats
    sensitivity = _sensitivity(modules, costs, labelled)
    if unmeasured:
        _forget(sensitivity)
    total = int(modules["params"].sum()) + 12_345
    shared = (modules, dict(zip(modules["module"], costs, strict=True)), total)
    front, front_bits = _front(key, *shared)
    bits = _bits_for(*shared[:2], 4.0)
    plans, joint, outcome = _joint(key, *shared, bits, labelled)
    sums = [{"model": key, **row} for row in additivity_rows(sensitivity, joint, plans)]
    statistics, histograms = _statistics(modules, vit, rng)
    fp = outcome.fp_top1
    return {
        "frames": {
            "modules": modules,
            "statistics": statistics,
            "sensitivity": sensitivity,
            "grids": _grids(statistics),
            "joint": joint,
            "groups": groups_table(*shared[:2], _outcome, labelled),
            "additivity": pd.DataFrame(sums).astype(SCHEMAS["additivity"]),
            "pareto": front,
            "pareto_bits": front_bits,
            "coverage": _coverage(key, modules),
        },
        "histograms": histograms,
        "channels": _channels(statistics, rng),
        "plan": plan_of(key, *shared, bits, _predicted(*shared, bits), outcome),
        "entry": entry_of(key, vit, total, fp and [fp.value, fp.low, fp.high]),
    }


def _modules(
    key: str, count: int, vit: bool, hostile: bool, rng: np.random.Generator
) -> pd.DataFrame:
    rows = []
    for i in range(count):
        block, place = divmod(i, len(_VIT) if vit else 3)
        role = _VIT_ROLES[place] if vit else "conv"
        path = f"blocks.{block}" if vit else f"layer{1 + 4 * i // count}.{block}"
        name = f"{path}.{_VIT[place]}" if vit else f"{path}.conv{place + 1}"
        if hostile and i < len(HOSTILE):
            name = HOSTILE[i]
        product = role.endswith("product")
        params = 0 if product else int(rng.integers(20, 600)) * 192
        rows.append(
            {
                "model": key,
                "module": name,
                "index": i,
                "kind": "product" if product else "linear" if vit else "conv",
                "role": role,
                "block": path,
                "stage": "",
                "depth": i / max(count - 1, 1),
                "heads": 3 if vit else None,
                "params": params,
                "macs": int(rng.integers(1, 90)) * 10**6,
                "weight_shape": "" if product else f"192x{params // 192}",
                "sites": "query;key" if product else "weight;input",
            }
        )
    return pd.DataFrame(rows).astype(SCHEMAS["modules"])


def _outcome(kl: float, labelled: bool) -> Outcome:
    """What ``IMAGES`` images would show at a divergence."""
    away = round(IMAGES * -math.expm1(-8 * kl**0.8))
    lost = min(CORRECT, round(0.8 * away))
    signal = 4e3 * IMAGES
    noise = signal * min(kl, 10.0)
    return Outcome(
        n=IMAGES,
        labelled=IMAGES if labelled else 0,
        fp_correct=CORRECT if labelled else 0,
        lost=lost if labelled else 0,
        gained=min(round(0.1 * away), IMAGES - CORRECT) if labelled else 0,
        agree=IMAGES - away,
        kl=IMAGES * kl,
        kl2=3.0 * IMAGES * kl * kl,
        signal=signal,
        noise=noise,
        signal2=1.1 * signal**2 / IMAGES,
        noise2=2.0 * noise**2 / IMAGES,
        cross=1.05 * signal * noise / IMAGES,
    )


def _sensitivity(modules: pd.DataFrame, costs: Any, labelled: bool) -> pd.DataFrame:
    rows = [
        {
            "model": row["model"],
            "module": row["module"],
            "part": "both",
            "bits": width,
            "format": f"int{width}",
            "status": "measured",
            "reason": "",
            **_outcome(cost * 4.0 ** (4 - width), labelled).row(),
            "mode": "exact",
        }
        for row, cost in zip(modules.to_dict("records"), costs, strict=True)
        for width in WIDTHS
    ]
    return pd.DataFrame(rows).astype(SCHEMAS["sensitivity"])


def _forget(sensitivity: pd.DataFrame) -> None:
    last = sensitivity.index[-1]
    for column, kind in SCHEMAS["sensitivity"].items():
        if kind in ("float64", "Int64", "boolean") and column != "bits":
            sensitivity.loc[last, column] = pd.NA if kind != "float64" else math.nan
    sensitivity.loc[last, "status"] = "unmeasured"
    sensitivity.loc[last, "reason"] = "the quantized model's logits are not finite"


def _bits_for(modules: pd.DataFrame, costs: dict[str, float], mean: float) -> dict[str, int]:
    """Widths by rank of divergence, about ``mean`` on average; first and last stay at 8."""
    order = sorted(costs, key=lambda name: -costs[name])
    place = {name: i / max(len(order) - 1, 1) for i, name in enumerate(order)}
    ends = {modules["module"].iloc[0], modules["module"].iloc[-1]}

    def width(name: str) -> int:
        wanted = mean + 2.0 * (0.5 - place[name])
        return 8 if name in ends else min(WIDTHS, key=lambda w: abs(w - wanted))

    return {name: width(name) for name in modules["module"]}


def _predicted(
    modules: pd.DataFrame, costs: dict[str, float], total: int, bits: dict[str, int]
) -> dict[str, float]:
    kl = sum(costs[name] * 4.0 ** (4 - width) for name, width in bits.items())
    drop = 90 * -math.expm1(-kl)
    cost = cost_of(modules, bits, total)
    return {
        **asdict(cost),
        "predicted_kl": kl,
        "predicted_drop": drop,
        "predicted_low": 0.6 * drop,
        "predicted_high": min(1.6 * drop, 95.0),
    }


def _front(
    key: str, modules: pd.DataFrame, costs: dict[str, float], total: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, points = [], []
    for point, mean in enumerate(np.linspace(2.2, 8.0, 24)):
        bits = _bits_for(modules, costs, float(mean))
        found = _predicted(modules, costs, total, bits)
        rows.append({"model": key, "point": point, "budget_bits": found["avg_bits"], **found})
        points += [
            {
                "model": key,
                "point": point,
                "module": name,
                "bits": width,
                "format": f"int{width}",
            }
            for name, width in bits.items()
        ]
    return (
        pd.DataFrame(rows).astype(SCHEMAS["pareto"]),
        pd.DataFrame(points).astype(SCHEMAS["pareto_bits"]),
    )


def _joint(
    key: str,
    modules: pd.DataFrame,
    costs: dict[str, float],
    total: int,
    recommended: dict[str, int],
    labelled: bool,
) -> tuple[dict[str, dict[str, int]], pd.DataFrame, Outcome]:
    plans = {f"uniform-{w}": dict.fromkeys(costs, w) for w in WIDTHS}
    plans["recommended"] = recommended
    plans |= {f"pareto-{m:g}": _bits_for(modules, costs, m) for m in (3.0, 5.0, 6.0)}
    rows, chosen = [], Outcome()
    for name, bits in plans.items():
        found = _predicted(modules, costs, total, bits)
        outcome = _outcome(1.3 * found["predicted_kl"], labelled)
        chosen = outcome if name == "recommended" else chosen
        rows.append({"model": key, "plan": name, **found, **outcome.row()})
    return plans, pd.DataFrame(rows).astype(SCHEMAS["joint"]), chosen


def _statistics(
    modules: pd.DataFrame, vit: bool, rng: np.random.Generator
) -> tuple[pd.DataFrame, dict[str, Any]]:
    rows, histograms = [], {}
    for module in modules.to_dict("records"):
        for role in module["sites"].split(";"):
            site = f"{module['module']}:{role}"
            kurtosis = float(rng.lognormal(2.0 if vit else 0.5, 1.0)) - 1.0
            edges = np.linspace(-9.0, 14.0 if vit else 7.0, 65)
            middle = (edges[1:] + edges[:-1]) / 2
            tail = 0.02 * np.exp(-np.abs(middle)) if role != "weight" else 0.0
            counts = np.round(1e6 * (np.exp(-(middle**2) / 2) + tail))
            key = f"{module['model']}|{site}"
            histograms |= {f"{key}|edges": edges, f"{key}|counts": counts}
            rows.append(
                dict.fromkeys(SCHEMAS["statistics"], 0.5)
                | {
                    "model": module["model"],
                    "module": module["module"],
                    "site": site,
                    "tensor": site,
                    "count": 10**6,
                    "mean": 0.1,
                    "variance": float(rng.lognormal(0.0, 0.8)),
                    "kurtosis": kurtosis,
                    "minimum": -9.0,
                    "maximum": 14.0,
                    "outliers_6": 0.001 * max(kurtosis, 0.0),
                    "channel_max_to_median": float(rng.uniform(1.2, 6.0)),
                    "channels": 192,
                    "heads": 3,
                }
            )
    return pd.DataFrame(rows).astype(SCHEMAS["statistics"]), histograms


def _grids(statistics: pd.DataFrame) -> pd.DataFrame:
    """A symmetric grid for weights, one from -6 to 9 for activations."""
    rows = []
    for row in statistics.to_dict("records"):
        weight = row["site"].endswith(":weight")
        for bits in WIDTHS:
            low, high = (-4.0, 4.0) if weight else (-6.0, 9.0)
            scale = (high - low) / (2**bits - 1)
            rows.append(
                {
                    "model": row["model"],
                    "module": row["module"],
                    "site": row["site"],
                    "bits": bits,
                    "format": f"{'int' if weight else 'uint'}{bits}",
                    "scales": 192 if weight else 1,
                    "scale": scale,
                    "scale_min": 0.5 * scale if weight else scale,
                    "scale_max": 2.0 * scale if weight else scale,
                    "zero_point": 0.0 if weight else round(6.0 / scale),
                    "low": low,
                    "high": high,
                    "clipped": 0.0004,
                }
            )
    return pd.DataFrame(rows).astype(SCHEMAS["grids"])


def _channels(statistics: pd.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    """Per channel: the fifth stands out ten times; per head: the last varies four times as much."""
    found = {}
    for row in statistics.to_dict("records"):
        key = f"{row['model']}|{row['site']}"
        spread = rng.uniform(0.8, 1.2, 192).astype(np.float32)
        spread[4] = 10.0
        found |= {
            f"{key}|minimum": -3.0 * spread,
            f"{key}|maximum": 3.0 * spread,
            f"{key}|variance": spread**2,
        }
        if row["site"].endswith((":query", ":key")):
            found[f"{key}|head_variance"] = np.array([1.0, 1.0, 4.0], dtype=np.float32)
            found[f"{key}|head_kurtosis"] = np.array([0.1, 0.2, 3.0], dtype=np.float32)
    return found


def _coverage(key: str, modules: pd.DataFrame) -> pd.DataFrame:
    first = modules["module"].iloc[0]
    rows = [
        (f"{first}.bias and 11 more", "bias", "added to 32-bit accumulators", 2304),
        ("norm.weight and 3 more", "normalization", "scales and shifts in float", 768),
    ]
    columns = ["name", "operation", "reason", "params"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.assign(model=key)[list(SCHEMAS["coverage"])].astype(SCHEMAS["coverage"])
