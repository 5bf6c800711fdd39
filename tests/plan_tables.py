"""Small made-up tables of one model, for plans and comparisons."""

from __future__ import annotations

import numpy as np
import pandas as pd

from vitsense.schemas import SCHEMAS
from vitsense.sensitivity.result import Outcome

BITS = (8, 4, 3, 2)


def modules_table(n: int = 6, model: str = "m", products: int = 1, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        product = i in range(2, 2 + products)
        params = 0 if product else int(rng.integers(100, 5000))
        role = "pv_product" if product else ("ffn" if i % 2 else "projection")
        rows.append(
            {
                "model": model,
                "module": f"block.{i}",
                "index": i,
                "kind": "product" if product else "linear",
                "role": role,
                "block": f"block.{i // 2}",
                "stage": "",
                "depth": i / max(n - 1, 1),
                "heads": None,
                "params": params,
                "macs": int(rng.integers(1000, 50000)),
                "weight_shape": "" if product else f"{max(params // 50, 1)}x50",
                "sites": "input",
            }
        )
    return pd.DataFrame(rows).astype(SCHEMAS["modules"])


def sensitivity_table(
    modules: pd.DataFrame, bits: tuple[int, ...] = BITS, seed: int = 0, labelled: bool = True
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for row in modules.to_dict("records"):
        weight = rng.lognormal(0, 1)
        for width in bits:
            kl = 0.5 * weight * 4.0 ** -(width - 1)
            lost = int(min(400, 1000 * kl * 0.4))
            outcome = Outcome(
                n=1000,
                labelled=1000 if labelled else 0,
                fp_correct=900 if labelled else 0,
                lost=lost,
                gained=lost // 5,
                agree=1000 - lost,
                kl=1000 * kl,
                kl2=1500 * kl * kl,
                signal=1e6,
                noise=1e6 * kl,
                signal2=1.1e9,
                noise2=1.1e9 * kl * kl,
                cross=1e9 * kl,
            )
            rows.append(
                {
                    "model": row["model"],
                    "module": row["module"],
                    "part": "both",
                    "bits": width,
                    "format": f"int{width}",
                    "status": "measured",
                    "reason": "",
                    **outcome.row(),
                    "mode": "exact",
                }
            )
    return pd.DataFrame(rows).astype(SCHEMAS["sensitivity"])


def statistics_table(modules: pd.DataFrame, seed: int = 0, tail: float = 5.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = []
    for row in modules.to_dict("records"):
        for role in ("input",) if row["kind"] == "product" else ("weight", "input"):
            site = f"{row['module']}:{role}"
            values = dict.fromkeys(SCHEMAS["statistics"], 0.5)
            kurtosis = float(rng.lognormal(np.log(tail), 0.5))
            rows.append(
                values
                | {
                    "model": row["model"],
                    "module": row["module"],
                    "site": site,
                    "tensor": site,
                    "count": 1000,
                    "variance": float(rng.lognormal(0, 1)),
                    "kurtosis": kurtosis,
                    "minimum": -3.0,
                    "maximum": 4.0,
                    "outliers_6": 0.001,
                    "channel_max_to_median": float(rng.uniform(1, 4)),
                    "channels": 8,
                    "heads": 0,
                }
            )
    return pd.DataFrame(rows).astype(SCHEMAS["statistics"])
