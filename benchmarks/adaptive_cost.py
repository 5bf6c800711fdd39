"""What the whole sensitivity table costs: every image for every cell, against adaptive rounds.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/adaptive_cost.py zoo/glyph_resnet zoo/glyph_swin

Both sweeps fill the same table (all modules x 8, 6, 4, 3 and 2 bits) in one process, from the same
images, with grids that are found before. F is the CPU time of plain forwards of all images, taken
between the batches of the exact sweep and again between those of the adaptive one, each sweep
divided by its own. The adaptive figure includes its full-precision pass over all images. Then the
plan of each table (average of --avg-bits) is measured as a whole on all images, and the second
against the first. Printed besides: rank correlation of the divergences of both tables (the lowest
of the five widths), the share of exact drops inside the adaptive intervals, their median half
length and the share of cells whose interval lies above zero. Time is process CPU time, which is
disturbed least.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vitsense.analyze_tables import framed, modules_frame
from vitsense.data import Draw, draw_images, open_source
from vitsense.discover import find_sites
from vitsense.models import load_model
from vitsense.observe import ReplaySession, preserved
from vitsense.plan.budget import Budget
from vitsense.plan.predict import DropModel
from vitsense.plan.solve import make_problem, solve
from vitsense.provenance import versions
from vitsense.sensitivity.adaptive import measure_adaptive
from vitsense.sensitivity.doubt import doubts
from vitsense.sensitivity.meter import outcome_of
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Outcome
from vitsense.sensitivity.sweep import measure_exact, measure_joint
from vitsense.settings import ModelRequest, Part, QuantSettings
from vitsense.sites import SiteCatalog
from vitsense.statistics.collect import collect_statistics

BITS = (8, 6, 4, 3, 2)
ANY_CURVE = DropModel(ceiling=100, log_c=2.3, exponent=1, scatter=1, points=0, basis="modules")
"""The solver minimises divergence; the curve only serves predictions, which are not used here."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--calibration", type=int, default=128)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--every", type=int, default=1, help="measure every n-th module")
    parser.add_argument(
        "--exact-every",
        type=int,
        default=1,
        help="every image only for every n-th module; above 1, the exact table has no plan",
    )
    parser.add_argument("--avg-bits", type=float, default=4.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = versions()
    print(
        f"# {platform.machine()}, {os.cpu_count()} processors, 1 thread, torch {found['torch']}, "
        f"timm {found['timm']}, {options.images} images, batch {options.batch}, every "
        f"{options.every}. module, exact every {options.exact_every}., bits {BITS}"
    )
    print(
        "| model | cells | exact (F per cell) | adaptive (F per cell) | images per cell | "
        "bounded | rank correlation | exact drops inside | interval of a drop, either way | "
        "surely lossy | drop of the exact table's plan | "
        "drop of the adaptive table's plan | the second against the first | full precision |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name in options.models:
        print(row(name, options), flush=True)


class Images:
    """Evaluation images in memory; reading them times a plain forward of the same images."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, plain: Any) -> None:
        self.images, self.labels, self.plain = images, labels, plain
        self.forward, self.seen = 0.0, 0

    def read(self, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and labels of these numbers."""
        x = self.images[list(numbers)]
        started = time.process_time()
        with torch.no_grad():
            self.plain(x)
        self.forward += time.process_time() - started
        self.seen += len(x)
        return x, self.labels[list(numbers)]

    @property
    def whole_forward(self) -> float:
        """F: CPU seconds of plain forwards of all images."""
        return self.forward / self.seen * len(self.labels)


def row(name: str, options: argparse.Namespace) -> str:
    cpu = torch.device("cpu")
    loaded = load_model(ModelRequest(name=name, checkpoint=options.checkpoint), cpu)
    model, preprocessing = loaded.module.eval(), loaded.preprocessing
    draw = Draw(evaluation=options.images, calibration=options.calibration, seed=0, strict=False)
    calibration, evaluation = draw_images(open_source(options.data), draw, None)
    example = next(calibration.batches(preprocessing, 1, cpu))[0]
    whole = find_sites(model, example)
    catalog = SiteCatalog(modules=whole.modules[:: options.every], uncovered=whole.uncovered)
    table = collect_statistics(
        model, catalog, (x for x, _ in calibration.batches(preprocessing, options.batch, cpu))
    )
    quantizers = Quantizers(catalog, table, QuantSettings(), cpu)
    x, y = (
        torch.cat(parts)
        for parts in zip(*evaluation.batches(preprocessing, options.batch, cpu), strict=True)
    )
    measure_exact(model, catalog, quantizers, [(x[:2], y[:2])], bits=BITS)  # makes the grids
    some = SiteCatalog(modules=catalog.modules[:: options.exact_every], uncovered=whole.uncovered)
    adaptive, adaptive_cost = timed_adaptive(model, catalog, quantizers, x, y, options.batch)
    exact, exact_cost = timed_exact(model, some, quantizers, x, y, options.batch)
    tables = {"exact": exact, "adaptive": adaptive}
    if options.exact_every > 1:
        del tables["exact"]
    plans = {
        key: dict(chosen(frame, catalog, loaded.params, options.avg_bits).formats)
        for key, frame in tables.items()
    }
    joint = measure_joint(
        model,
        catalog,
        quantizers,
        [(x[i : i + 32], y[i : i + 32]) for i in range(0, len(y), 32)],
        plans,
    )
    drops = {key: outcome.drop for key, outcome in joint.items()}
    both = exact.merge(adaptive, on=["module", "bits"], suffixes=("", "_a"))
    seen = both[both["status_a"] == "measured"]
    ranks = [
        float(part[["kl", "kl_a"]].corr("spearman").iloc[0, 1]) for _, part in seen.groupby("bits")
    ]
    inside = (seen["drop"] >= seen["drop_low_a"]) & (seen["drop"] <= seen["drop_high_a"])
    half = (seen["drop_high_a"] - seen["drop_low_a"]) / 2
    first = next(iter(joint.values())).fp_top1
    assert first is not None
    cells = len(adaptive)
    shown = {key: f"{d.value:.1f} ({d.low:.1f} to {d.high:.1f})" for key, d in drops.items() if d}
    return (
        f"| {name} | {cells} | {exact_cost / len(exact):.3f} | {adaptive_cost / cells:.3f} | "
        f"{float(adaptive['n'].fillna(0).sum()) / cells:.0f} | "
        f"{int((adaptive['status'] == 'bounded').sum())} | {min(ranks):.3f} | "
        f"{100 * float(inside.mean()):.1f} % | {half.median():.2f} | "
        f"{100 * float((seen['drop_low_a'] > 0).mean()):.0f} % | "
        f"{shown.get('exact', 'not measured')} | {shown['adaptive']} | "
        f"{between(model, catalog, quantizers, x, y, plans)} | {first.value:.1f} % |"
    )


def between(model: Any, catalog: Any, quantizers: Any, x: Any, y: Any, plans: Any) -> str:
    """Points that the adaptive table's plan loses against the exact table's, on the same images."""
    if len(plans) < 2:
        return "not measured"
    total = Outcome()
    with preserved(model), ReplaySession.open(model, catalog) as session:
        visits = [quantizers.joint(plans[key], Part.BOTH) for key in ("exact", "adaptive")]
        for start in range(0, len(y), 32):
            session.show(x[start : start + 32])
            first, second = (session.full(visit).clone() for visit in visits)
            total = total + outcome_of(first, second, y[start : start + 32])
    found = total.drop
    return f"{found.value:.1f} ({found.low:.1f} to {found.high:.1f})" if found else "no labels"


def timed_exact(
    model: Any, catalog: Any, quantizers: Any, x: Any, y: Any, batch: int
) -> tuple[pd.DataFrame, float]:
    """The exact table, and its cost in F."""
    images = Images(x, y, copy.deepcopy(model))
    started = time.process_time()
    numbers = (range(i, min(i + batch, len(y))) for i in range(0, len(y), batch))
    found = measure_exact(model, catalog, quantizers, map(images.read, numbers), bits=BITS)
    spent = time.process_time() - started - images.forward
    frame = framed("sensitivity", "m", [m.row("exact") for m in found])
    return frame, spent / images.whole_forward


def timed_adaptive(
    model: Any, catalog: Any, quantizers: Any, x: Any, y: Any, batch: int
) -> tuple[pd.DataFrame, float]:
    """The adaptive table, and its cost in F with the pass that finds the doubtful images."""
    images = Images(x, y, copy.deepcopy(model))
    started = time.process_time()
    doubt = doubts(model, images.read, len(y), largest=batch)
    found = measure_adaptive(
        model, catalog, quantizers, images.read, doubt, bits=BITS, parts=(Part.BOTH,), largest=batch
    )
    spent = time.process_time() - started - images.forward
    frame = framed("sensitivity", "m", [m.row("adaptive") for m in found])
    return frame, spent / images.whole_forward


def chosen(frame: pd.DataFrame, catalog: Any, params: int, avg_bits: float) -> Any:
    """The plan of a table."""
    problem = make_problem(modules_frame("m", catalog), frame, params)
    return solve(problem, Budget.parse(f"avg-bits={avg_bits}"), ANY_CURVE)


if __name__ == "__main__":
    main()
