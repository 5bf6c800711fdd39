"""The report: one document composed from a run's tables, rendered as HTML and as PDF. No torch."""

from vitsense.report.compose import compose
from vitsense.report.write import write_report
from vitsense.report.write_runs import write_comparison
from vitsense.report.write_training import write_training

__all__ = ["compose", "write_comparison", "write_report", "write_training"]
