"""The ONNX export: write the file, run it, and say how well it agrees and how fast it is."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitsense.export.floor import floor_of
from vitsense.export.onnx_graph import float_graph, need_onnx, quantized_graph, write_graph
from vitsense.export.onnx_types import DEFAULT_OPSET, Prefer, Stored, stored_types
from vitsense.export.parity import both_logits, double_logits, parity_of
from vitsense.export.record import entry_of, export_path, keep_export, record_path
from vitsense.export.session import EXACT, Session, latencies, versions
from vitsense.export.site_parity import SiteDifference, compare_sites, explained, summary
from vitsense.export.source import ExportSource
from vitsense.plan.latency import LatencyProfile
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.runfolder import atomic_write

_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxOptions:
    """What an ONNX export may decide."""

    opset: int = DEFAULT_OPSET
    fallback: bool = False
    """Store a weight in a wider type where the operator set has none of its width."""
    images: int = 64
    """Held-back images the file is compared on."""
    runs: int = 30
    """Timed runs of the file and of its float counterpart; 0 leaves the timing out."""
    prefer: Prefer = Prefer.SIZE
    """What the types of weights are chosen for."""
    profile: Path | None = None
    """A latency profile, to compare its prediction with what is measured; None: the one the plan
    was made with, if any."""


def export_onnx(
    source: ExportSource,
    out: Path | None = None,
    options: OnnxOptions | None = None,
    *,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Write an ONNX file, run it by onnxruntime, and record how well both agree.

    Returns:
        The entry of ``export.json``.

    Raises:
        InputMissingError: the packages of the extra ``onnx`` are not installed, or no images.
        UserInputError: the operator set cannot hold a format, or the file cannot be written.
        VitsenseError: torch cannot export the model.
    """
    need_onnx()
    options = options or OnnxOptions()
    predicted = _predicted(source, options.profile)
    stored = stored_types(
        source.fixed, options.opset, fallback=options.fallback, prefer=options.prefer
    )
    path = export_path(source, ".onnx", out)
    batches = source.batches(options.images, _BATCH)
    image = batches[0][0][:1]
    progress.note(f"{source.key}: exporting to operator set {options.opset}")
    graph = quantized_graph(source.fixed, image, stored, options.opset)
    raw = write_graph(graph)
    session = Session(raw)
    atomic_write(path, raw)
    count = sum(len(labels) for _, labels in batches)
    progress.start(count, f"{source.key}: comparing on {count} images")
    mine, theirs = both_logits(source.fixed, session, batches, progress)
    parity = parity_of(mine, theirs, torch.cat([labels for _, labels in batches]).numpy())
    worst = torch.cat([images for images, _ in batches])[list(parity.worst)]
    progress.note(f"{source.key}: comparing site by site on {len(worst)} images")
    sites = compare_sites(source.fixed, graph, worst)
    entry = {
        **entry_of(source, "onnx", path),
        "opset": options.opset,
        "prefer": options.prefer.value,
        "versions": versions(),
        "types": _types(stored),
        "sites": [_site_row(s) for s in stored.values()] + _left_rows(source),
        "parity": {**asdict(parity), "identical": parity.identical, "asked": options.images},
        "first_difference": _first(sites),
        "compared_sites": {"images": len(worst), "sites": len(sites), **summary(sites)},
        "site_differences": [{**asdict(s), "suspicious": s.suspicious} for s in sites],
        "arithmetic": None,
        "session": dict(EXACT),
        "by_itself": _by_itself(raw, session, batches[0][0]),
        "latency": None,
    }
    if not parity.identical:
        progress.note(f"{source.key}: comparing the torch model with itself in double precision")
        double = double_logits(source.fixed, batches)
        floor = floor_of(mine, theirs, double, step=parity.step)
        entry["arithmetic"] = {
            **asdict(floor),
            "within": floor.within,
            "conclusion": floor.conclusion,
        }
    if options.runs:
        progress.note(f"{source.key}: timing")
        entry["latency"] = _timed(source, session, image, options) | {"predicted": predicted}
    keep_export(record_path(source.run, path), entry)
    return entry


def _by_itself(raw: bytes, session: Session, images: torch.Tensor) -> float:
    """Largest difference of a logit between onnxruntime's own settings and those of `EXACT`."""
    usual = Session(raw, exact=False).logits(images.numpy())
    return float(np.abs(usual - session.logits(images.numpy())).max())


def _predicted(source: ExportSource, file: Path | None) -> dict[str, Any] | None:
    """What a profile says that the model takes; None without one."""
    if file is None:
        said: dict[str, Any] | None = source.plan.provenance.get("latency")
        return said
    profile = LatencyProfile.load(file)
    rows = [{"module": m.name, "params": m.params, "macs": m.macs} for m in source.fixed.catalog]
    return profile.prediction(rows, source.plan.formats)


def _types(stored: dict[str, Stored]) -> dict[str, int]:
    """Number of sites by format and type: ``{"int3 in int4": 5}``."""
    counts = Counter(
        s.type if s.type == s.format.name else f"{s.format.name} in {s.type}"
        for s in stored.values()
    )
    return dict(sorted(counts.items()))


def _site_row(stored: Stored) -> dict[str, str]:
    return {
        "site": stored.site,
        "format": stored.format.name,
        "type": stored.type,
        "note": stored.note,
    }


def _left_rows(source: ExportSource) -> list[dict[str, str]]:
    note = "stays in float: the format has no evenly spaced integer codes"
    return [
        {"site": key, "format": form, "type": "float32", "note": note}
        for key, form in source.fixed.left.items()
    ]


def _first(sites: list[SiteDifference]) -> dict[str, Any] | None:
    """The first site whose codes differ; later ones inherit its difference."""
    found = next((site for site in sites if site.as_it_runs.differing), None)
    if found is None:
        return None
    return {
        "site": found.site,
        "values": found.values,
        **asdict(found.as_it_runs),
        "explanation": explained(found.as_it_runs, found.values),
        "differing_sites": sum(site.as_it_runs.differing > 0 for site in sites),
    }


def _timed(
    source: ExportSource, session: Session, image: torch.Tensor, options: OnnxOptions
) -> dict[str, Any]:
    """Latency of the file against the same architecture in float, one image, one thread."""
    plain = Session(write_graph(float_graph(source.fixed.model, image, options.opset)))
    quantized, full = latencies([session, plain], image.numpy(), runs=options.runs)
    return {
        "batch": 1,
        "threads": 1,
        "quantized_ms": asdict(quantized),
        "float_ms": asdict(full),
        "speedup": full.median / quantized.median,
    }
