"""The stages of one model of a run: sites, statistics, sensitivity, plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pandas as pd
import torch

from vitsense.analyze_explain import Explaining, explain, unexplained
from vitsense.analyze_grids import grids_frame
from vitsense.analyze_groups import GroupStage, groups_frame
from vitsense.analyze_kept import KeptCompany, KeptResults
from vitsense.analyze_plans import finished_plan, full_precision, plan_and_measure
from vitsense.analyze_refine import RefineStage, refined
from vitsense.analyze_sweep import Sweep, measure_cells
from vitsense.analyze_tables import ModelTables, framed, modules_frame, site_arrays
from vitsense.data import ImageSet
from vitsense.deadline import Deadline
from vitsense.discover import find_sites
from vitsense.errors import MeasurementError
from vitsense.formats import FormatLike
from vitsense.models import LoadedModel
from vitsense.observe import ReplaySession, preserved
from vitsense.progress import Progress
from vitsense.runfolder import RunFolder
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Outcome
from vitsense.sensitivity.sweep import OUT_OF_TIME, measure_joint
from vitsense.settings import AnalyzeSettings
from vitsense.sites import SiteCatalog
from vitsense.statistics.collect import collect_statistics
from vitsense.verdict import best_predictor, verdict

LARGEST_BATCH = 32
"""Images per micro-batch, where memory would allow more."""

_CELLS_SHARE = 2 / 3


def analyze_model(
    model: LoadedModel,
    settings: AnalyzeSettings,
    calibration: ImageSet,
    evaluation: ImageSet,
    run: RunFolder,
    state: Sequence[Mapping[str, Any]],
    device: torch.device,
    progress: Progress,
    deadline: Deadline | None = None,
) -> ModelTables:
    """Measure one model and plan for it; results are appended to the run's state as they come.

    Of the time until ``deadline``, two thirds are for single modules; whole plans see at least one
    batch of images.
    """
    whole = Deadline() if deadline is None else deadline
    cells_until = whole.part(_CELLS_SHARE)
    key, module = model.key, model.module
    example = next(calibration.batches(model.preprocessing, 1, device))[0]
    catalog = find_sites(module, example)
    batch = settings.batch or choose_batch(module, catalog, example, settings.memory)
    progress.start(len(calibration), f"{key} statistics")
    statistics = collect_statistics(
        module,
        catalog,
        (images for images, _ in calibration.batches(model.preprocessing, batch, device)),
        progress=progress,
    )
    quantizers = Quantizers(catalog, statistics, settings.quant, device)
    store = KeptResults(run, key, state)
    sweep = Sweep(
        key=key,
        model=module,
        catalog=catalog,
        quantizers=quantizers,
        batches=lambda: evaluation.batches(model.preprocessing, batch, device),
        read=lambda numbers: evaluation.read(model.preprocessing, numbers, device),
        images=len(evaluation),
        largest=batch,
        settings=settings,
        deadline=cells_until,
        kept=store,
        progress=progress,
    )
    measured = measure_cells(sweep)
    if cells_until.came:
        whole.came = True
        settings = replace(settings, by=())  # groups would take what plans need
    modules = modules_frame(key, catalog)
    sensitivity = framed("sensitivity", key, [m.row(settings.mode.value) for m in measured])
    if whole.came:
        _keep_unplannable(run, modules, sensitivity)

    def measure(plans: Mapping[str, Mapping[str, FormatLike]]) -> dict[str, Outcome]:
        part = settings.planned_part
        done = {name: store.plan(bits, part) for name, bits in plans.items()}
        todo = {name: plans[name] for name, outcome in done.items() if outcome is None}
        progress.start(len(evaluation) * len(todo), f"{key} whole plans")
        fresh = {}
        if todo:
            batches = evaluation.batches(model.preprocessing, batch, device)
            fresh = measure_joint(
                module,
                catalog,
                quantizers,
                batches,
                todo,
                part=part,
                deadline=whole,
                progress=progress,
            )
        for name, outcome in fresh.items():
            if outcome.n == len(evaluation):  # not what a deadline cut off
                store.keep_plan(plans[name], outcome, part)
        return {name: outcome or fresh[name] for name, outcome in done.items()}

    groups = groups_frame(
        GroupStage(
            key=key,
            model=module,
            catalog=catalog,
            quantizers=quantizers,
            batches=lambda: evaluation.batches(model.preprocessing, batch, device),
            images=len(evaluation),
            settings=settings,
            kept=store,
            progress=progress,
        )
    )
    # at most half of the time that is left, so that plans can be measured on evaluation images
    searching = RefineStage(
        key=key,
        model=module,
        catalog=catalog,
        quantizers=quantizers,
        read=lambda span: calibration.read(
            model.preprocessing, range(span.start, span.stop), device
        ),
        images=len(calibration),
        settings=settings,
        memory=KeptCompany(run, key, state),
        deadline=whole.part(0.5),
        progress=progress,
    )
    planned = plan_and_measure(
        model, settings, modules, sensitivity, measure, partial(refined, searching)
    )
    fp = full_precision(planned.outcomes)
    explaining = Explaining(
        sweep=sweep,
        rated=measured,
        statistics=statistics,
        modules=modules,
        sensitivity=sensitivity,
        example=example,
    )
    # with no time left, nothing is explained
    explained = unexplained(key) if whole.came else explain(explaining)
    frames = {
        **explained,
        "modules": modules,
        "statistics": framed("statistics", key, [s.row() for s in statistics.values()]),
        "sensitivity": sensitivity,
        "grids": grids_frame(
            key, module, catalog, quantizers, statistics, example, settings.widths
        ),
        "groups": groups,
        "joint": planned.joint,
        "refinement": planned.refinement,
        "additivity": planned.additivity,
        "pareto": planned.front,
        "pareto_bits": planned.front_bits,
        "coverage": framed("coverage", key, [asdict(u) for u in catalog.uncovered]),
    }
    cut = [] if not whole.came else [f"{key}: {_missing(sensitivity, settings, len(evaluation))}"]
    facts = {
        "sites_digest": catalog.digest,
        "batch": batch,
        "drop_model": asdict(planned.drop_model),
        "pins": dict(planned.problem.pins),
    }
    return ModelTables(
        frames=frames,
        arrays=site_arrays(key, statistics),
        fp=fp,
        facts=facts,
        plan=finished_plan(model, settings, planned, catalog),
        verdict=[
            *verdict(key, fp, sensitivity, planned.joint),
            *filter(None, [best_predictor(key, explained["predictors"])]),
        ],
        warnings=[*([f"{key}: {planned.note}"] if planned.note else []), *cut],
    )


def _keep_unplannable(run: RunFolder, modules: pd.DataFrame, sensitivity: pd.DataFrame) -> None:
    """Write what is known of a model for which time was too short to plan, and say so.

    Raises:
        MeasurementError: some module was not looked at in any format.
    """
    known = set(sensitivity.loc[sensitivity["kl"].notna(), "module"])
    missing = [name for name in modules["module"] if name not in known]
    if missing:
        run.write_table("modules", modules)
        run.write_table("sensitivity", sensitivity)
        raise MeasurementError(
            f"The time budget ended before {len(missing)} of {len(modules)} modules were looked "
            f"at, first {missing[0]!r}: too early for a plan. What was measured is kept; the same "
            "command continues, without --budget-time or with more."
        )


def _missing(sensitivity: pd.DataFrame, settings: AnalyzeSettings, images: int) -> str:
    """What a time budget left out."""
    unseen = int((sensitivity["reason"] == OUT_OF_TIME).sum())
    return (
        f"The time budget of {settings.budget_time:g} s ended: {unseen} of {len(sensitivity)} "
        f"cells were not looked at, the others and the whole plans may have seen fewer of the "
        f"{images} images. The same command without --budget-time continues."
    )


def choose_batch(
    module: torch.nn.Module, catalog: SiteCatalog, example: torch.Tensor, memory: int
) -> int:
    """Images per micro-batch whose remembered activations fit ``memory`` bytes; at least one."""
    fitting = max(1, memory // remembered_bytes(module, catalog, example))
    return int(min(LARGEST_BATCH, 2 ** (fitting.bit_length() - 1)))


def remembered_bytes(module: torch.nn.Module, catalog: SiteCatalog, example: torch.Tensor) -> int:
    """What replay remembers of one image."""
    with preserved(module), ReplaySession.open(module, catalog) as session:
        session.record(example)
        return max(session.remembered_bytes(), 1)
