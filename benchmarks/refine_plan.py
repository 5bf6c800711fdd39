"""What improving a plan as a whole gains over the plan that is solved from single modules.

    python benchmarks/refine_plan.py deit_tiny_patch16_224 --checkpoint FILE --data VALIDATION \
        --calibration-data TRAINING --images 200 --avg-bits 4 --bits 8,6,4,3

Single modules are rated by --rate (``fast``: estimated from one pass there and back; ``exact``:
measured) on calibration images, on which the search goes on. Every plan is then measured
on evaluation images, which decided nothing. Printed: the steps of the search, then the plans.
Costs are process CPU time on one thread, in F, one plain forward of --images images.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from vitsense.analyze_plans import recommend
from vitsense.analyze_refine import RefineStage, search_of
from vitsense.analyze_tables import framed, modules_frame
from vitsense.data import Draw, draw_images, open_source
from vitsense.deadline import Deadline
from vitsense.discover import find_sites
from vitsense.models import load_model
from vitsense.plan.budget import Budget
from vitsense.plan.predict import DropModel
from vitsense.plan.refine import refine
from vitsense.plan.solve import assignment_of, make_problem
from vitsense.progress import NO_PROGRESS
from vitsense.provenance import versions
from vitsense.sensitivity.company import CompanyMemory
from vitsense.sensitivity.draws import Draws
from vitsense.sensitivity.estimate import Estimated
from vitsense.sensitivity.fisher import estimate_fisher
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Measured
from vitsense.sensitivity.sweep import measure_exact, measure_joint
from vitsense.settings import AnalyzeSettings, ModelRequest, QuantSettings
from vitsense.sites import SiteCatalog
from vitsense.statistics.collect import collect_statistics

ANY_CURVE = DropModel(ceiling=100, log_c=2.3, exponent=1, scatter=1, points=0, basis="modules")
"""The search minimises divergence; the curve only serves predictions, which are not used here."""


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    cpu, made_with = torch.device("cpu"), versions()
    print(
        f"# {options.model}, {platform.machine()}, {os.cpu_count()} processors, 1 thread, torch "
        f"{made_with['torch']}, timm {made_with['timm']}"
    )
    loaded = load_model(ModelRequest(name=options.model, checkpoint=options.checkpoint), cpu)
    model, how = loaded.module.eval(), loaded.preprocessing
    draw = Draw(evaluation=options.images, calibration=options.calibration, seed=0, strict=False)
    other = None if options.calibration_data is None else open_source(options.calibration_data)
    calibration, evaluation = draw_images(open_source(options.data), draw, other)
    pictures = torch.cat([x for x, _ in calibration.batches(how, options.batch, cpu)])
    catalog = find_sites(model, pictures[:1])
    statistics = collect_statistics(model, catalog, pictures.split(options.batch))
    quantizers = Quantizers(catalog, statistics, QuantSettings(), cpu)
    few = pictures[: options.rate_images]
    started = time.process_time()
    with torch.no_grad():
        model(few)
    forward = (time.process_time() - started) * options.images / len(few)

    started = time.process_time()
    bits = [int(width) for width in options.bits.split(",")]
    found = rated(
        options.rate == "fast", model, catalog, quantizers, few.split(options.batch), bits
    )
    rows = [cell.row(options.rate) for cell in found]
    rating = time.process_time() - started
    problem = make_problem(
        modules_frame("m", catalog), framed("sensitivity", "m", rows), loaded.params
    )
    budget = Budget.parse(f"avg-bits={options.avg_bits}")
    problem, best, note = recommend(problem, budget, ANY_CURVE)
    solved = dict(best.formats)
    if note:
        print(f"\n{note}")
    even = dict.fromkeys(solved, f"int{int(options.avg_bits)}")
    stage = RefineStage(
        key="m",
        model=model,
        catalog=catalog,
        quantizers=quantizers,
        read=lambda span: (pictures[span.start : span.stop], torch.full((len(span),), -1)),
        images=len(pictures),
        settings=AnalyzeSettings(model=ModelRequest(name=options.model), refine=options.steps),
        memory=CompanyMemory(),
        deadline=Deadline(),
        progress=NO_PROGRESS,
    )
    plans = {f"{int(options.avg_bits)} bits everywhere": even, "solved": solved}
    print("\n| start | step | images | modules changed | expected | before | after | kept |")
    print("|---|--:|--:|--:|--:|--:|--:|---|")
    started = time.process_time()
    starts = {"solved": solved, "uniform": even | dict(problem.pins)}
    better = refine(problem, budget, ANY_CURVE, starts, search_of(stage, problem))
    plans[f"searched (from {better.start})"] = dict(better.formats)
    for s in better.steps:
        print(
            f"| {s.start} | {s.number} | {s.images} | {s.changed} | {s.expected:.3f} | "
            f"{s.before:.3f} | {s.after:.3f} | {'yes' if s.taken else 'no'} |"
        )
    searching = time.process_time() - started
    outcomes = measure_joint(
        model, catalog, quantizers, evaluation.batches(how, options.batch, cpu), plans
    )
    first = next(iter(outcomes.values())).fp_top1
    print(
        f"\nFull precision {first.value if first else float('nan'):.1f} % on {options.images} "
        f"images. Rating single modules on {len(few)} images took {rating / forward:.2f} F, the "
        f"search {searching / forward:.2f} F.\n"
    )
    print("| plan | average bits | divergence, nats | points lost | same class, % |")
    print("|---|--:|--:|--:|--:|")
    for name, outcome in outcomes.items():
        kl, drop, same = outcome.kl_nats, outcome.drop, outcome.agreement
        cost = assignment_of(problem, plans[name], ANY_CURVE).cost
        lost = "" if drop is None else f"{drop.value:.1f} ({drop.low:.1f} to {drop.high:.1f})"
        print(
            f"| {name} | {cost.avg_bits:.2f} | {kl.value:.3g} ({kl.low:.3g} to {kl.high:.3g}) | "
            f"{lost} | {same.value:.1f} |",
            flush=True,
        )


def rated(
    fast: bool,
    model: torch.nn.Module,
    catalog: SiteCatalog,
    quantizers: Quantizers,
    parts: Sequence[torch.Tensor],
    bits: Sequence[int],
) -> Sequence[Estimated | Measured]:
    """Every module at every width, on images without labels."""
    if not fast:
        batches = [(part, torch.full((len(part),), -1)) for part in parts]
        return measure_exact(model, catalog, quantizers, batches, bits=bits)
    images = torch.cat(list(parts))
    labels = torch.full((len(images),), -1)
    return estimate_fisher(
        model,
        catalog,
        quantizers,
        lambda numbers: (images[list(numbers)], labels[list(numbers)]),
        Draws.every(len(images)),
        bits=bits,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--calibration-data")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--calibration", type=int, default=128)
    parser.add_argument("--rate-images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--avg-bits", type=float, default=4.0)
    parser.add_argument("--bits", default="8,6,4,3,2")
    parser.add_argument("--rate", choices=["fast", "exact"], default="exact")
    parser.add_argument("--steps", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
