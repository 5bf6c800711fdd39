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

_RECOVERY = {
    "recovery": "float64",
    "recovery_low": "float64",
    "recovery_high": "float64",
    "recovery_distinguishable": "boolean",
    "regained": "Int64",
    "relost": "Int64",
    "recovery_kl": "float64",
    "recovery_kl_low": "float64",
    "recovery_kl_high": "float64",
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

_BEFORE = (
    "n_before",
    "kl_before_low",
    "kl_before_high",
    "drop_before_low",
    "drop_before_high",
    "agreement_before",
    "agreement_before_low",
    "agreement_before_high",
)

OPTIONAL = {"causes": _BEFORE}
"""Columns that tables of runs from before they were written lack; they are read as unknown."""

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
    "groups": {
        "model": "str",
        "by": "str",
        "group": "str",
        "members": "int64",
        "params": "int64",
        "direction": "str",
        "part": "str",
        "bits": "int64",
        "format": "str",
        "status": "str",
        "reason": "str",
        **_OUTCOME,
        **_RECOVERY,
    },
    "estimates": {
        "model": "str",
        "module": "str",
        "bits": "int64",
        "format": "str",
        "fisher_kl": "float64",
        "fisher_low": "float64",
        "fisher_high": "float64",
        "hessian_kl": "float64",
        "hessian_low": "float64",
        "hessian_high": "float64",
        "hessian_trace": "float64",
        "weight_sqnr_db": "float64",
        "activation_sqnr_db": "float64",
    },
    "predictors": {
        "model": "str",
        "scope": "str",
        "bits": "int64",
        "format": "str",
        "statistic": "str",
        "target": "str",
        "n": "int64",
        "spearman": "float64",
        "low": "float64",
        "high": "float64",
        "kendall": "float64",
    },
    "causes": {
        "model": "str",
        "module": "str",
        "site": "str",
        "bits": "int64",
        "format": "str",
        "cause": "str",
        "value": "float64",
        "detail": "str",
        "remedy": "str",
        "kl_before": "float64",
        "kl_after": "float64",
        "kl_after_low": "float64",
        "kl_after_high": "float64",
        "drop_before": "float64",
        "drop_after": "float64",
        "drop_after_low": "float64",
        "drop_after_high": "float64",
        **dict.fromkeys(_BEFORE, "float64"),
    },
    "joint": {"model": "str", "plan": "str", **_PREDICTED, **_OUTCOME},
    "refinement": {
        "model": "str",
        "start": "str",
        "number": "int64",
        "images": "int64",
        "changed": "int64",
        "expected": "float64",
        "before": "float64",
        "after": "float64",
        "taken": "boolean",
    },
    "additivity": {
        "model": "str",
        "plan": "str",
        "avg_bits": "float64",
        "n": "Int64",
        **dict.fromkeys(
            (
                *("sum_kl", "sum_kl_low", "sum_kl_high", "kl", "kl_low", "kl_high"),
                *("ratio", "ratio_low", "ratio_high"),
                *("sum_loss", "loss", "loss_low", "loss_high"),
            ),
            "float64",
        ),
    },
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

_TENSOR_WORDS = {
    "variance": "variance of {}",
    "kurtosis": "excess kurtosis of {}",
    "outliers_3": "share of {} beyond 3σ",
    "outliers_4": "share of {} beyond 4σ",
    "outliers_6": "share of {} beyond 6σ",
    "sdam": "SDAM of {}",
    "channel_max_to_median": "largest over median channel of {}",
}

TENSOR_STATISTICS = tuple(_TENSOR_WORDS)
"""Columns of ``statistics.csv`` whose rank correlation with sensitivity is looked at."""

STATISTIC_WORDS = {
    **{f"weight_{name}": words.format("weights") for name, words in _TENSOR_WORDS.items()},
    **{f"activation_{name}": words.format("activations") for name, words in _TENSOR_WORDS.items()},
    "weight_sqnr_db": "signal to rounding noise of weights",
    "activation_sqnr_db": "signal to rounding noise of activations",
    "fisher_kl": "Fisher estimate",
    "hessian_kl": "Hessian trace times rounding error (HAWQ-V2)",
    "hessian_trace": "mean Hessian trace of the weight",
}
"""Statistics and what they are called; of several activations the heaviest-tailed one counts."""
