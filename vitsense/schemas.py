"""Columns and types of the tables in a run folder."""

from __future__ import annotations

EXPORT_SCHEMA = "vitsense.export/1"
"""Schema of ``export.json``; a larger number after the slash is a newer version's."""

_OUTCOME = {
    "n": "Int64",
    "drop": "float64",
    "drop_low": "float64",
    "drop_high": "float64",
    "distinguishable": "boolean",
    "lost": "Int64",
    "gained": "Int64",
    "agreement": "float64",
    "agreement_low": "float64",
    "agreement_high": "float64",
    "kl": "float64",
    "kl_low": "float64",
    "kl_high": "float64",
    "sqnr_db": "float64",
    "sqnr_low": "float64",
    "sqnr_high": "float64",
}

_PREDICTED = {
    "avg_bits": "float64",
    "size_mb": "float64",
    "bitops_g": "float64",
    "predicted_kl": "float64",
    "predicted_drop": "float64",
    "predicted_low": "float64",
    "predicted_high": "float64",
}

RATED = ("measured", "estimated")
"""Statuses of rows of ``sensitivity.csv`` that have a divergence."""

SCHEMAS: dict[str, dict[str, str]] = {
    "modules": {
        "model": "str",
        "module": "str",
        "index": "int64",
        "kind": "str",
        "role": "str",
        "block": "str",
        "stage": "str",
        "depth": "float64",
        "heads": "Int64",
        "params": "int64",
        "macs": "int64",
        "weight_shape": "str",
        "sites": "str",
    },
    "statistics": {
        "model": "str",
        "module": "str",
        "site": "str",
        "tensor": "str",
        "count": "int64",
        "mean": "float64",
        "variance": "float64",
        "skewness": "float64",
        "kurtosis": "float64",
        "minimum": "float64",
        "maximum": "float64",
        "q001": "float64",
        "q01": "float64",
        "q05": "float64",
        "q50": "float64",
        "q95": "float64",
        "q99": "float64",
        "q999": "float64",
        "outliers_3": "float64",
        "outliers_4": "float64",
        "outliers_6": "float64",
        "sdam": "float64",
        "channel_max_to_median": "float64",
        "channels": "int64",
        "heads": "int64",
    },
    "sensitivity": {
        "model": "str",
        "module": "str",
        "part": "str",
        "bits": "int64",
        "format": "str",
        "status": "str",
        "reason": "str",
        **_OUTCOME,
        "mode": "str",
    },
    "grids": {
        "model": "str",
        "module": "str",
        "site": "str",
        "bits": "int64",
        "format": "str",
        "scales": "int64",
        "scale": "float64",
        "scale_min": "float64",
        "scale_max": "float64",
        "zero_point": "float64",
        "low": "float64",
        "high": "float64",
        "clipped": "float64",
    },
    "joint": {"model": "str", "plan": "str", **_PREDICTED, **_OUTCOME},
    "pareto": {"model": "str", "point": "int64", "budget_bits": "float64", **_PREDICTED},
    "pareto_bits": {
        "model": "str",
        "point": "int64",
        "module": "str",
        "bits": "int64",
        "format": "str",
    },
    "coverage": {
        "model": "str",
        "name": "str",
        "operation": "str",
        "reason": "str",
        "params": "int64",
    },
}
"""Table name -> column -> pandas dtype; files are ``<name>.csv``."""
