"""The stages of one model of a run: sites, statistics, sensitivity, plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import pandas as pd
import torch

from vitsense import provenance
from vitsense.analyze_explain import Explaining, explain, unexplained
from vitsense.analyze_grids import grids_frame
from vitsense.analyze_groups import groups_frame
from vitsense.analyze_in_time import keep_unplannable, left_out, rated_in_time, row_of
from vitsense.analyze_kept import KeptCompany, KeptResults
from vitsense.analyze_plans import Planned, finished_plan, full_precision, plan_and_measure
from vitsense.analyze_refine import RefineStage, refined
from vitsense.analyze_statistics import Calibrating, calibrate
from vitsense.analyze_sweep import Sweep
from vitsense.analyze_tables import ModelTables, framed, modules_frame, site_arrays
from vitsense.compare.best_known import best_known
from vitsense.data import ImageSet
from vitsense.deadline import Deadline
from vitsense.discover import find_sites
from vitsense.formats import FormatLike, format_of
from vitsense.models import LoadedModel
from vitsense.observe import ReplaySession, preserved
from vitsense.progress import Progress
from vitsense.runfolder import RunFolder
from vitsense.sensitivity.checked import said_of
from vitsense.sensitivity.company import plan_digest
from vitsense.sensitivity.portions import Supply
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Outcome
from vitsense.sensitivity.sweep import OUT_OF_TIME, measure_joint
from vitsense.settings import AnalyzeSettings
from vitsense.sites import SiteCatalog
from vitsense.statistics.collect import SiteStatistics
from vitsense.team import ALONE, Team
from vitsense.verdict import best_predictor, verdict

_CELLS = ("sensitivity", "modules", "groups", "causes")
"""The tables that know single modules."""

LARGEST_BATCH, LARGEST_SMALL_BATCH = 32, 128
"""Images per micro-batch, where memory would allow more; and of models of little work."""

ENOUGH_WORK = 2**31
"""Multiplications of a micro-batch below which several threads wait more than they compute.

Measured with two threads: the shipped Swin takes 0.79 ms an image in batches of 32 and 0.36 in
batches of 120; with one thread 0.48 and 0.50.
"""

_STATISTICS_SHARE, _CELLS_SHARE, _GROUPS_SHARE = 0.4, 0.6, 0.5
_CHOICES_SHARE, _SEARCH_SHARE = 0.4, 0.7


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
    team: Team = ALONE,
) -> ModelTables:
    """Measure one model and plan for it; results are appended to the run's state as they come.

    Of the time until ``deadline``, two fifths are for statistics, three fifths of the rest for
    single modules and half of what is left for groups; whole plans see at least a few images.
    Statistics are made by every process of the team, alike; everything that is measured on
    evaluation images is shared.
    """
    whole = Deadline() if deadline is None else deadline
    example = next(calibration.batches(model.preprocessing, 1, device))[0]
    catalog = find_sites(model.module, example)
    batch = settings.batch or choose_batch(model.module, catalog, example, settings.memory)
    calibrating = Calibrating(
        run=run,
        model=model,
        catalog=catalog,
        calibration=calibration,
        batch=batch,
        device=device,
        deadline=whole.part(_STATISTICS_SHARE),
        team=team,
        progress=progress,
    )
    calibrated = calibrate(calibrating)
    statistics = calibrated.statistics
    whole.came |= not calibrated.whole
    sweep = Sweep(
        key=model.key,
        model=model.module,
        catalog=catalog,
        quantizers=Quantizers(catalog, statistics, settings.quant, device),
        supply=Supply(
            read=lambda numbers: evaluation.read(model.preprocessing, numbers, device),
            images=len(evaluation),
            largest=int(team.agree(batch)),
        ),
        settings=settings,
        deadline=whole.part(_CELLS_SHARE),
        # what rests on some of the calibration images is not what the finished run will measure
        kept=KeptResults(run, model.key, state, team)
        if calibrated.whole
        else KeptResults(None, model.key, [], team),
        team=team,
        progress=progress,
    )
    measured = rated_in_time(sweep, calibrated)
    modules = modules_frame(model.key, catalog)
    sensitivity = framed("sensitivity", model.key, [row_of(m, settings.mode) for m in measured])
    if sweep.deadline.came:
        whole.came = True
        keep_unplannable(run if team.first else None, modules, sensitivity)
    sweep = replace(sweep, deadline=whole)
    # while there are cells that were not looked at, groups take no time from plans
    unseen = bool((sensitivity["reason"] == OUT_OF_TIME).any())
    groups_until = whole.part(0.0 if unseen else _GROUPS_SHARE)
    groups = groups_frame(sweep, groups_until)
    whole.came |= groups_until.came
    hurried = team.any(whole.passed)
    # it ends before the time, so that plans can be measured on evaluation images
    searching = RefineStage(
        key=model.key,
        model=model.module,
        catalog=catalog,
        quantizers=sweep.quantizers,
        read=lambda span: calibration.read(
            model.preprocessing, range(span.start, span.stop), device
        ),
        images=len(calibration),
        settings=settings,
        memory=KeptCompany(sweep.kept),
        deadline=whole.part(_SEARCH_SHARE),
        team=team,
        progress=progress,
    )
    planned = plan_and_measure(
        model,
        settings,
        modules,
        sensitivity,
        partial(_measured_plans, sweep),
        partial(refined, searching),
        hurried=hurried,
    )
    whole.came |= searching.deadline.came
    explaining = Explaining(
        sweep=sweep,
        rated=measured,
        statistics=statistics,
        modules=modules,
        sensitivity=sensitivity,
        example=example,
    )
    # with no time left, nothing is explained
    late = team.any(whole.passed)
    whole.came |= late
    explained = unexplained(model.key) if late else explain(explaining)
    frames = {
        **explained,
        "modules": modules,
        "statistics": framed("statistics", model.key, [s.row() for s in statistics.values()]),
        "sensitivity": sensitivity,
        "grids": grids_frame(
            model.key,
            model.module,
            catalog,
            sweep.quantizers,
            statistics,
            example,
            settings.widths,
        ),
        "groups": groups,
        "joint": planned.joint,
        "refinement": planned.refinement,
        "additivity": planned.additivity,
        "pareto": planned.front,
        "pareto_bits": planned.front_bits,
        "coverage": framed("coverage", model.key, [asdict(u) for u in catalog.uncovered]),
    }
    left = left_out(sweep, calibrated, frames, searched=not searching.deadline.came)
    return _tables(model, sweep, statistics, planned, frames, said_of(measured), left)


def _tables(
    model: LoadedModel,
    sweep: Sweep,
    statistics: Mapping[str, SiteStatistics],
    planned: Planned,
    frames: dict[str, pd.DataFrame],
    checked: str,
    left: Mapping[str, str],
) -> ModelTables:
    """The tables, and what is said about them."""
    key, fp = model.key, full_precision(planned.outcomes)
    notes = [checked, planned.note, _differing(sweep.team, statistics)]
    if left:
        notes.append(f"the time budget (--budget-time) ended too early. {' '.join(left.values())}")
    return ModelTables(
        frames=frames,
        arrays=site_arrays(key, statistics),
        fp=fp,
        facts={
            "sites_digest": sweep.catalog.digest,
            "batch": sweep.supply.largest,
            "drop_model": asdict(planned.drop_model),
            "pins": dict(planned.problem.pins),
            "left_out": dict(left),
        },
        plan=finished_plan(model, sweep.settings, planned, sweep.catalog),
        verdict=[
            *verdict(key, fp, best_known(*map(frames.__getitem__, _CELLS)), planned.joint),
            *filter(None, [best_predictor(key, frames["predictors"])]),
        ],
        warnings=[f"{key}: {note}" for note in notes if note],
    )


def _measured_plans(
    sweep: Sweep, plans: Mapping[str, Mapping[str, FormatLike]], *, last: bool
) -> dict[str, Outcome]:
    """Outcomes of whole plans by name; those of equal plans are measured once.

    Those that are not the last leave time for the plans that follow from them.
    """
    until = sweep.deadline.part(1.0 if last else _CHOICES_SHARE)
    part = sweep.settings.planned_part
    named: dict[str, dict[str, str]] = sweep.team.agree(
        {
            name: {module: format_of(like).name for module, like in formats.items()}
            for name, formats in plans.items()
        }
    )
    digests = {name: plan_digest(formats, part) for name, formats in named.items()}
    different = {digests[name]: formats for name, formats in named.items()}
    sweep.progress.start(sweep.images * len(different), f"{sweep.key} whole plans")
    found = measure_joint(
        sweep.model,
        sweep.catalog,
        sweep.quantizers,
        sweep.supply,
        different,
        part=part,
        ledger=sweep.kept.plans(),
        deadline=until,
        team=sweep.team,
        progress=sweep.progress,
    )
    sweep.deadline.came |= until.came and last
    return {name: found[digest] for name, digest in digests.items()}


def _differing(team: Team, statistics: Mapping[str, SiteStatistics]) -> str:
    """Says so where processes do not compute the same statistics bit for bit."""
    rows = [repr(found.row()).encode() for found in statistics.values()]
    if len(set(team.gather(provenance.digest(rows)))) == 1:
        return ""
    return (
        "The processes of this run have different processors or GPUs, whose statistics differ in "
        "the last digits: its numbers are those of one process but for such rounding."
    )


def choose_batch(
    module: torch.nn.Module, catalog: SiteCatalog, example: torch.Tensor, memory: int
) -> int:
    """Images per micro-batch whose remembered activations fit ``memory`` bytes; at least one."""
    fitting = max(1, memory // remembered_bytes(module, catalog, example))
    worthwhile = ENOUGH_WORK // max(1, sum(site.macs for site in catalog.modules))
    largest = min(max(LARGEST_BATCH, worthwhile), LARGEST_SMALL_BATCH)
    return int(2 ** (min(fitting, largest).bit_length() - 1))


def remembered_bytes(module: torch.nn.Module, catalog: SiteCatalog, example: torch.Tensor) -> int:
    """What replay remembers of one image."""
    with preserved(module), ReplaySession.open(module, catalog) as session:
        session.record(example)
        return max(session.remembered_bytes(), 1)
