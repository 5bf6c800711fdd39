"""What mode fast costs and how well it ranks modules, against the measured divergence.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/fast_cost.py zoo/glyph_swin zoo/glyph_resnet
    OMP_WAIT_POLICY=PASSIVE python benchmarks/fast_cost.py deit_t --checkpoint FILE --data FOLDER

Printed for each model: the cost of one estimate of all modules at all widths, in F (a plain forward
of the same images), and the rank correlation (Spearman, 95 % interval of Bonett and Wright) of the
estimates with the measured divergence, for each width. The two are timed in turn, batch by batch,
in one process; time is process CPU time, which other programs disturb least. Grids are made before.
The half-split column is the rank correlation of the measured divergence of one half of the images
with the other's: no estimate can be expected to rank better than the measurement itself.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.stats import spearmanr

from vitsense.data import Draw, draw_images, open_source
from vitsense.discover import find_sites
from vitsense.models import load_model
from vitsense.provenance import versions
from vitsense.sensitivity.fisher import estimate_fisher
from vitsense.sensitivity.ledger import Ledger
from vitsense.sensitivity.meter import Batch
from vitsense.sensitivity.predictors import rank_correlation
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.result import Cell
from vitsense.sensitivity.sweep import measure_exact
from vitsense.settings import ModelRequest, QuantSettings
from vitsense.sites import SiteCatalog
from vitsense.statistics.collect import collect_statistics

CPU = torch.device("cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--every", type=int, default=1, help="measure every n-th module")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4, 3, 2])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = versions()
    print(
        f"# {platform.machine()}, {os.cpu_count()} processors, {options.threads} thread(s), torch "
        f"{found['torch']}, timm {found['timm']}, {options.images} images, batch {options.batch}, "
        f"bits {options.bits}, every {options.every}. module measured"
    )
    print("| model | cost of all widths (F) | bits | modules | Spearman | 95 % | half split |")
    print("|---|--:|--:|--:|--:|---|--:|")
    for name in options.models:
        rows(name, options)


def rows(name: str, options: argparse.Namespace) -> None:
    loaded = load_model(ModelRequest(name=name, checkpoint=options.checkpoint), CPU)
    model, shape = loaded.module, loaded.preprocessing
    source = open_source(options.data, at_most=options.images + 64)
    calibration, evaluation = draw_images(
        source, Draw(evaluation=options.images, calibration=64, seed=0)
    )
    batches = [batch for batch, _ in calibration.batches(shape, options.batch, CPU)]
    catalog = find_sites(model, batches[0][:1])
    table = collect_statistics(model, catalog, batches)
    quantizers = Quantizers(catalog, table, QuantSettings(), "cpu")
    images = list(evaluation.batches(shape, options.batch, CPU))
    estimate_fisher(model, catalog, quantizers, images[:1], bits=options.bits)  # makes the grids
    untouched, costs, estimates = copy.deepcopy(model), [], {}

    def plain(batch: torch.Tensor) -> None:
        with torch.no_grad():
            untouched(batch)

    for batch in images:
        before = cpu(lambda b=batch: plain(b[0]))
        ours = cpu(
            lambda b=batch: estimate_fisher(model, catalog, quantizers, [b], bits=options.bits)
        )
        after = cpu(lambda b=batch: plain(b[0]))
        costs.append(2 * ours / (before + after))
    for found in estimate_fisher(model, catalog, quantizers, images, bits=options.bits):
        estimates[found.cell] = found.estimate.kl
    some = SiteCatalog(modules=catalog.modules[:: options.every])
    measured = measure(model, some, quantizers, images, options)
    cost = statistics.median(costs)
    for bits in options.bits:
        cells = [cell for cell in measured[0] if cell.bits == bits]
        whole = [sum(half[cell] for half in measured) for cell in cells]
        r, low, high, _ = rank_correlation([estimates[cell] for cell in cells], whole)
        halves = [[half[cell] for cell in cells] for half in measured]
        split = spearmanr(*halves).statistic
        print(
            f"| {name} | {cost:.2f} | {bits} | {len(cells)} | {r:.3f} | {low:.3f} to {high:.3f} | "
            f"{split:.3f} |",
            flush=True,
        )


def measure(
    model: torch.nn.Module,
    catalog: SiteCatalog,
    quantizers: Quantizers,
    images: list[Batch],
    options: argparse.Namespace,
) -> list[dict[Cell, float]]:
    """Measured divergence of every cell on each half of the batches."""
    middle = max(1, len(images) // 2)
    found = []
    for half in (images[:middle], images[middle:]):
        if half:
            cells = measure_exact(
                model, catalog, quantizers, half, bits=options.bits, ledger=Ledger()
            )
            found.append({m.cell: m.outcome.kl for m in cells})
    return found if len(found) == 2 else found * 2


def cpu(work: Callable[[], object]) -> float:
    """Process CPU seconds of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
