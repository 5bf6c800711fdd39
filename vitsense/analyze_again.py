"""Another budget for a run that is finished, with the model at hand: search, and measure the plan.

`vitsense.plan.again` solves from the tables alone. Here the model and the images of the run are
opened again, refused if they are no longer those that it measured, and the solved plan is improved
as a whole, as the run improved its own: on calibration images, from kept results where there are
any. The plan that comes out is measured on the evaluation images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vitsense import provenance
from vitsense.analyze_kept import KeptCompany, KeptResults
from vitsense.analyze_refine import RefineStage, refined
from vitsense.analyze_statistics import Calibrating, calibrate
from vitsense.data import labelled_for
from vitsense.deadline import Deadline
from vitsense.discover import find_sites
from vitsense.errors import StaleResultError
from vitsense.export.reopened import Reopened, reopen
from vitsense.formats import FormatLike
from vitsense.in_use import sole_writer
from vitsense.plan.again import Again, Bounds, solved_again
from vitsense.plan.plan import Plan
from vitsense.plan.refine import Refined
from vitsense.plan.solve import assignment_of
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.runfolder import RunFolder
from vitsense.sensitivity.company import plan_digest
from vitsense.sensitivity.portions import Supply
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.sweep import measure_joint
from vitsense.settings import AnalyzeSettings
from vitsense.sites import SiteCatalog
from vitsense.team import ALONE

_BATCH = 16
"""Images at once, where the run does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Improved:
    """A plan that was searched for."""

    plan: Plan
    path: Path
    found: Refined | None
    """How; None where time ended before."""


def plan_improved(
    run: RunFolder,
    budget: str,
    *,
    steps: int,
    images: int = 64,
    model: str | None = None,
    pins: Mapping[str, FormatLike] | None = None,
    keep_default_pins: bool = True,
    tie: str | None = None,
    profile: Path | None = None,
    out: Path | None = None,
    device: torch.device | None = None,
    deadline: Deadline | None = None,
    progress: Progress = NO_PROGRESS,
) -> Improved:
    """Write a plan for one model of a run that was improved as a whole, and measured.

    Everything that is measured is kept in the run: the same call continues after an interruption.

    Args:
        run: Must hold finished measurements, and be of this version.
        budget: As `Budget.parse` reads it; for ``max-drop`` the solved plan's bits are held.
        steps: Of the search, at most, from each start.
        images: Calibration images on which exchanges are measured, at most; at most half of them.
        model: Key; None is the first of the run.
        pins: Modules fixed at given bits or formats.
        keep_default_pins: Whether the first and last module stay at 8 bits.
        tie: ``qkv`` or ``block``: equal bits within these groups.
        profile: A latency profile, for a budget of ``latency-ms``.
        out: File; None is the run's own plan file.
        device: None is the processor.
        deadline: The search ends there; then the solved plan stands.
        progress: Told of everything that takes long.

    Raises:
        StaleResultError: weights, images, sites or version are no longer those of the run.
        InputMissingError: weights or images are not there.
        SiteMismatchError: the run has no such model, or a pinned module does not exist.
        UserInputError: the budget is wrong or cannot be met.
        InUseError: another process writes into the run.
    """
    bounds = Bounds(pins=pins or {}, keep_default_pins=keep_default_pins, tie=tie, profile=profile)
    again = solved_again(run, budget, model, bounds)
    refuse_other_version(run)
    place = torch.device("cpu") if device is None else device
    limit = Deadline() if deadline is None else deadline
    with sole_writer(run.path, progress):
        bench = _Bench.of(reopen(run, model=model, device=place), run, place, progress)
        found = refined(
            bench.stage(again, steps, images, limit.part(0.7)),
            again.setting.problem,
            again.budget,
            again.setting.curve,
            again.solved,
        )
        chosen = again.solved
        if found is not None:
            chosen = assignment_of(again.setting.problem, found.formats, again.setting.curve)
        measured = bench.measured(again, chosen.formats, limit)
        search = None if found is None else _said(found)
        made = again.setting.plan(chosen, again.budget, measured=measured, search=search)
        return Improved(plan=made, path=again.setting.write(made, out), found=found)


def refuse_other_version(run: RunFolder) -> None:
    """Results of another version are not mixed with those of this one.

    Raises:
        StaleResultError: another version made the run.
    """
    theirs = run.read_run().get("fingerprint", {}).get("vitsense version")
    ours = provenance.versions()["vitsense"]
    if theirs != ours:
        raise StaleResultError(
            f"{run.path} was made by vitsense {theirs}, this is {ours}: a search would mix what "
            "both measure. Run vitsense analyze again, or plan without --refine."
        )


def _said(found: Refined) -> dict[str, Any]:
    """How a plan was found, for its provenance."""
    return {
        "start": found.start,
        "calibration_kl": found.kl,
        "steps": [asdict(step) for step in found.steps],
    }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Bench:
    """The run's model, ready to be measured."""

    reopened: Reopened
    catalog: SiteCatalog
    quantizers: Quantizers
    kept: KeptResults
    device: torch.device
    batch: int
    progress: Progress

    @classmethod
    def of(
        cls, reopened: Reopened, run: RunFolder, device: torch.device, progress: Progress
    ) -> _Bench:
        """Find the sites, and calibrate, from what the run has kept."""
        loaded, calibration = reopened.loaded, reopened.calibration
        if reopened.evaluation.digest != reopened.record["data"]["evaluation_digest"]:
            raise StaleResultError(
                "The evaluation images are no longer those of the run: bring them back, or "
                "analyze again."
            )
        example = next(calibration.batches(loaded.preprocessing, 1, device))[0]
        catalog = find_sites(loaded.module, example)
        if catalog.digest != reopened.entry["sites_digest"]:
            raise StaleResultError(
                f"The sites of {loaded.key} are not those the run measured (another timm or "
                "torchvision?); analyze again."
            )
        batch = reopened.settings["batch"] or reopened.entry.get("batch") or _BATCH
        calibrated = calibrate(
            Calibrating(
                run=run,
                model=loaded,
                catalog=catalog,
                calibration=calibration,
                batch=batch,
                device=device,
                deadline=Deadline(),
                team=ALONE,
                progress=progress,
            )
        )
        return cls(
            reopened=reopened,
            catalog=catalog,
            quantizers=Quantizers(catalog, calibrated.statistics, reopened.quant, device),
            kept=KeptResults(run, loaded.key, run.read_state()),
            device=device,
            batch=batch,
            progress=progress,
        )

    def stage(self, again: Again, steps: int, images: int, deadline: Deadline) -> RefineStage:
        """What the search needs."""
        reopened = self.reopened
        loaded, calibration = reopened.loaded, reopened.calibration
        return RefineStage(
            key=loaded.key,
            model=loaded.module,
            catalog=self.catalog,
            quantizers=self.quantizers,
            read=lambda span: calibration.read(
                loaded.preprocessing, range(span.start, span.stop), self.device
            ),
            images=len(calibration),
            settings=AnalyzeSettings(
                model=reopened.request,
                parts=(again.setting.part,),
                refine=steps,
                refine_images=images,
            ),
            memory=KeptCompany(self.kept),
            deadline=deadline,
            progress=self.progress,
        )

    def measured(
        self, again: Again, formats: Mapping[str, str], deadline: Deadline
    ) -> dict[str, Any]:
        """The outcome of a whole plan on the evaluation images."""
        loaded, evaluation = self.reopened.loaded, self.reopened.evaluation
        if not labelled_for(self.reopened.source, loaded):
            evaluation = evaluation.without_labels()
        digest = plan_digest(formats, again.setting.part)
        self.progress.start(len(evaluation), f"{loaded.key} whole plan")
        found = measure_joint(
            loaded.module,
            self.catalog,
            self.quantizers,
            Supply(
                read=lambda numbers: evaluation.read(loaded.preprocessing, numbers, self.device),
                images=len(evaluation),
                largest=self.batch,
            ),
            {digest: formats},
            part=again.setting.part,
            ledger=self.kept.plans(),
            deadline=deadline,
            progress=self.progress,
        )
        return found[digest].row()
