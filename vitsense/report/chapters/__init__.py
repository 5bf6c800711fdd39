"""The chapters of the report that stand beside its fixed parts.

A chapter is a function in a file of this package: from a `Source` (and, for a chapter of one model,
the model's key) to a `Section`, or None where the run has nothing to say. To add one, write the
file, import its function here, and put it into the tuple at the place where readers meet it.
"""

from __future__ import annotations

from collections.abc import Callable

from vitsense.report.chapters.ablation import ablation
from vitsense.report.chapters.additivity import additivity_chapter
from vitsense.report.chapters.causes import causes
from vitsense.report.chapters.deployment import deployment
from vitsense.report.chapters.groups import groups_chapter
from vitsense.report.chapters.predictors import predictors
from vitsense.report.chapters.refinement import refinement_chapter
from vitsense.report.chapters.training import training
from vitsense.report.section import Section
from vitsense.report.source import Source

RunChapter = Callable[[Source], Section | None]
ModelChapter = Callable[[Source, str], Section | None]

FOR_THE_RUN: tuple[RunChapter, ...] = ()
"""After the models, before the method."""

FOR_EACH_MODEL: tuple[ModelChapter, ...] = (
    refinement_chapter,
    groups_chapter,
    additivity_chapter,
    causes,
    predictors,
    training,
    ablation,
    deployment,
)
"""In the part of each model, after its plans."""


def run_chapters(source: Source) -> tuple[Section, ...]:
    """The chapters about the whole run that have something to say."""
    return tuple(s for s in (chapter(source) for chapter in FOR_THE_RUN) if s is not None)


def model_chapters(source: Source, model: str) -> tuple[Section, ...]:
    """The chapters about one model that have something to say."""
    return tuple(s for s in (chapter(source, model) for chapter in FOR_EACH_MODEL) if s is not None)
