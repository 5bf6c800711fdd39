"""What a run would cost, without doing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from vitsense.analyze import pick_device
from vitsense.analyze_budget import refuse_impossible_budget
from vitsense.analyze_model import choose_batch, remembered_bytes
from vitsense.data import Draw, ImageSet, draw_images, labelled_for, open_source
from vitsense.discover import find_sites
from vitsense.models import LoadedModel, load_model
from vitsense.observe import ReplaySession, preserved
from vitsense.passes import Passes, passes_of
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.stopping import effort
from vitsense.sensitivity.sweep import measurable
from vitsense.sensitivity.work import remaining_share
from vitsense.settings import AnalyzeSettings, SweepMode
from vitsense.sites import SiteCatalog
from vitsense.statistics.collect import collect_statistics

_STATE_BYTES = 220  # of one outcome in state.jsonl
_PROBED = 6  # modules whose replay is timed
_TIMED = ("statistics", "estimates")  # stages whose passes are times already


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What one model of a run would take."""

    model: str
    cells: int
    images: int
    passes: float
    """Forward passes of all images that the run is worth, in the mode asked for."""
    most: float
    """The same, when everything that depends on what is found takes longest."""
    stages: dict[str, float]
    """Of `passes`, by stage."""
    seconds: float | None
    """Of `passes`, divided by the processes; None where nothing was probed."""
    memory_bytes: int
    """What replay would remember of one batch."""
    batch: int
    disk_bytes: int
    alternatives: dict[str, float]
    """Passes with other options, where they are fewer."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def forecast(
    settings: AnalyzeSettings, *, probe: bool = False, processes: int = 1
) -> list[Forecast]:
    """Forecast every model of a run: sites are found with one image, and nothing is measured.

    Args:
        settings: Of the run.
        probe: Time two batches, for an estimate in seconds.
        processes: How many would share the work.

    Raises:
        UserInputError: the budget is below the smallest plan of a model.
    """
    device = pick_device(settings.device)
    source = open_source(settings.data, at_most=settings.images + settings.calibration)
    draw = Draw(
        evaluation=settings.images,
        calibration=settings.calibration,
        seed=settings.seed,
        strict=settings.strict,
    )
    calibration, evaluation = draw_images(source, draw, None)
    found = []
    for request in (settings.model, *settings.compares):
        model = load_model(request, device)
        images = evaluation if labelled_for(source, model) else evaluation.without_labels()
        found.append(_forecast(model, settings, calibration, len(images), device, probe))
    return [
        replace(one, seconds=None if one.seconds is None else round(one.seconds / processes, 1))
        for one in found
    ]


def _forecast(
    model: LoadedModel,
    settings: AnalyzeSettings,
    calibration: ImageSet,
    images: int,
    device: torch.device,
    probe: bool,
) -> Forecast:
    example = calibration.read(model.preprocessing, [0], device)[0]
    catalog = find_sites(model.module, example)
    refuse_impossible_budget(settings, model.key, model.params, catalog)
    batch = settings.batch or choose_batch(model.module, catalog, example, settings.memory)
    cells = sum(map(len, measurable(catalog, settings.format_names, settings.parts).values()))
    stages = passes_of(settings, catalog, images, batch)
    whole = sum(stages.values(), start=Passes(0.0, 0.0))
    seconds = None
    if probe:
        plain, ratio = probed(model, catalog, settings, calibration, batch, device)
        plainly = sum(stages[name].about for name in _TIMED if name in stages)
        # rounding takes time that multiplications do not count
        replayed = (whole.about - plainly) * ratio / remaining_share(catalog)
        seconds = (plainly + replayed) * plain * images
    looks = images if settings.mode is SweepMode.EXACT else effort(cells, images) // max(cells, 1)
    return Forecast(
        model=model.key,
        cells=cells,
        images=images,
        passes=round(whole.about, 1),
        most=round(whole.most, 1),
        stages={name: round(passes.about, 1) for name, passes in stages.items()},
        seconds=seconds,
        memory_bytes=batch * remembered_bytes(model.module, catalog, example),
        batch=batch,
        disk_bytes=cells * (looks // batch + 1) * _STATE_BYTES,
        alternatives=_cheaper(settings, catalog, images, batch, whole.about),
    )


def _cheaper(
    settings: AnalyzeSettings, catalog: SiteCatalog, images: int, batch: int, passes: float
) -> dict[str, float]:
    """Passes with other options, of those that take fewer."""
    others = {f"--mode {mode.value}": (replace(settings, mode=mode), images) for mode in SweepMode}
    others["--by none"] = (replace(settings, by=()), images)
    others["--refine 0"] = (replace(settings, refine=0), images)
    half = max(images // 2, 1)
    found = {
        name: sum(p.about for p in passes_of(other, catalog, count, batch).values())
        for name, (other, count) in others.items()
    }
    fewer = passes_of(settings, catalog, half, batch).values()
    found[f"--images {half}"] = sum(p.about for p in fewer) * half / images
    return {name: round(n, 1) for name, n in found.items() if n < passes - 0.05}


def probed(
    model: LoadedModel,
    catalog: SiteCatalog,
    settings: AnalyzeSettings,
    calibration: ImageSet,
    batch: int,
    device: torch.device,
) -> tuple[float, float]:
    """Seconds of a forward pass per image, and a replayed cell's share of it, from two batches."""
    count = min(batch, len(calibration))
    images = calibration.read(model.preprocessing, range(count), device)[0]
    table = collect_statistics(model.module, catalog, [images])
    quantizers = Quantizers(catalog, table, settings.quant, device)
    form, part = settings.format_names[0], settings.planned_part
    modules: Sequence[Any] = catalog.modules[:: max(len(catalog) // _PROBED, 1)]
    with preserved(model.module), ReplaySession.open(model.module, catalog) as session:
        session.record(images)
        for module in modules:  # the first batch also makes the grids
            session.replay(quantizers.visits(module, form, part), module)
        plain = _timed(lambda: session.full({}), device)
        replays = [
            _timed(lambda m=module: session.replay(quantizers.visits(m, form, part), m), device)
            for module in modules
        ]
    return plain / count, sum(replays) / len(replays) / plain


def _timed(work: Any, device: torch.device) -> float:
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
