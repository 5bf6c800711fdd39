"""What a run would cost, without doing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from vitsense.analyze import pick_device
from vitsense.analyze_model import choose_batch, remembered_bytes
from vitsense.data import Draw, ImageSet, draw_images, labelled_for, open_source
from vitsense.discover import find_sites
from vitsense.models import LoadedModel, load_model
from vitsense.observe import ReplaySession, preserved
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.stopping import effort
from vitsense.sensitivity.sweep import measurable
from vitsense.settings import AnalyzeSettings, SweepMode
from vitsense.sites import SiteCatalog
from vitsense.statistics.collect import collect_statistics

_STATE_BYTES = 220  # of one outcome in state.jsonl
_PROBED = 6  # modules whose replay is timed


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What the sweep of one model would take; whole plans come on top, a pass each."""

    model: str
    cells: int
    images: int
    passes: float
    """Forward passes of all images that the single modules are worth, in the mode asked for."""
    seconds: float | None
    """Of the same; None where nothing was probed."""
    memory_bytes: int
    """What replay would remember of one batch."""
    batch: int
    disk_bytes: int
    alternatives: dict[str, float]
    """Passes in other modes, or on other numbers of images."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def forecast(settings: AnalyzeSettings, *, probe: bool = False) -> list[Forecast]:
    """Forecast every model of a run: sites are found with one image, and nothing is measured.

    Args:
        settings: Of the run.
        probe: Time two batches, for an estimate in seconds.
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
    return found


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
    batch = settings.batch or choose_batch(model.module, catalog, example, settings.memory)
    cells = sum(map(len, measurable(catalog, settings.format_names, settings.parts).values()))
    share = remaining_share(catalog)
    passes = {
        SweepMode.EXACT: 1 + cells * share,
        SweepMode.ADAPTIVE: 2 + effort(cells, images) / images * share,
        SweepMode.FAST: 4.0,
    }
    others = {f"--mode {m.value}": n for m, n in passes.items() if m is not settings.mode}
    half = max(images // 2, 1)
    others[f"--images {half}"] = passes[settings.mode] * half / images
    seconds = None
    if probe:
        plain, ratio = probed(model, catalog, settings, calibration, batch, device)
        seconds = passes[settings.mode] * plain * images * ratio / share
    looks = images if settings.mode is SweepMode.EXACT else effort(cells, images) // cells
    return Forecast(
        model=model.key,
        cells=cells,
        images=images,
        passes=round(passes[settings.mode], 1),
        seconds=None if seconds is None else round(seconds, 1),
        memory_bytes=batch * remembered_bytes(model.module, catalog, example),
        batch=batch,
        disk_bytes=cells * (looks // batch + 1) * _STATE_BYTES,
        alternatives={name: round(n, 1) for name, n in others.items()},
    )


def remaining_share(catalog: SiteCatalog) -> float:
    """Mean share of the multiplications that come with or after a module: what replay computes."""
    macs = [module.macs for module in catalog]
    total, after, sums = sum(macs), 0, 0.0
    for count in reversed(macs):
        after += count
        sums += after / max(total, 1)
    return sums / max(len(macs), 1)


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
