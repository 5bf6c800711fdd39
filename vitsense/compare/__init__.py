"""Models side by side: by role, along relative depth, and in sentences with intervals. No torch."""

from vitsense.compare.finding import Finding
from vitsense.compare.findings import findings
from vitsense.compare.tables import Comparison, compare_models

__all__ = ["Comparison", "Finding", "compare_models", "findings"]
