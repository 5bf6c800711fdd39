"""vitsense shows where a vision model breaks under quantization.

The public names are loaded when they are first used, so that ``import vitsense`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ALONE": "vitsense.team",
    "AnalyzeSettings": "vitsense.settings",
    "Budget": "vitsense.plan.budget",
    "LatencyProfile": "vitsense.plan.latency",
    "ModelRequest": "vitsense.settings",
    "OnnxOptions": "vitsense.export.onnx_file",
    "Part": "vitsense.settings",
    "Plan": "vitsense.plan.plan",
    "Prefer": "vitsense.export.onnx_types",
    "ProfileOptions": "vitsense.export.profile",
    "QuantSettings": "vitsense.settings",
    "Run": "vitsense.report.summary",
    "RunFolder": "vitsense.runfolder",
    "SiteCatalog": "vitsense.sites",
    "VitsenseError": "vitsense.errors",
    "WeightSource": "vitsense.settings",
    "collect_statistics": "vitsense.statistics.collect",
    "export_config": "vitsense.export.configs",
    "export_onnx": "vitsense.export.onnx_file",
    "export_packed": "vitsense.export.packed_file",
    "find_sites": "vitsense.discover",
    "import_plan": "vitsense.plan.outside",
    "load_model": "vitsense.models",
    "measure_exact": "vitsense.sensitivity.sweep",
    "measure_joint": "vitsense.sensitivity.sweep",
    "observing": "vitsense.observe",
    "plan_again": "vitsense.plan.again",
    "plan_improved": "vitsense.analyze_again",
    "plan_measured": "vitsense.plan.measured",
    "profile_model": "vitsense.export.profile",
    "read_packed": "vitsense.export.packed",
    "restored": "vitsense.export.source",
    "run_analysis": "vitsense.analyze",
    "source_of_run": "vitsense.export.source",
    "source_of_training": "vitsense.export.trained",
    "write_comparison": "vitsense.report",
    "write_report": "vitsense.report",
}

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vitsense' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
