"""What one cell of the sensitivity table costs: a naive full forward against replay.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/sensitivity_cost.py deit_tiny_patch16_224 --every 3

For every n-th module at each width, three things are timed in turn, in one process: F (a plain
forward of the same images), the naive way (the same forward with the module's weight and input
fake-quantized, everything computed), and ours (replay: only what comes after the module). Printed
are medians over repetitions of the ratio to F, averaged over modules, and whether ours gave the
logits of the full pass bit for bit. Time is process CPU time, which other programs on the machine
disturb least. Weights are random unless a checkpoint is given: they do not change the cost.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from vitsense.discover import find_sites
from vitsense.models import load_model
from vitsense.observe import ReplaySession, Visit, preserved
from vitsense.provenance import versions
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.sweep import outcome_of
from vitsense.settings import ModelRequest, Part, QuantSettings, WeightSource
from vitsense.sites import SiteModule
from vitsense.statistics.collect import collect_statistics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--every", type=int, default=1, help="measure every n-th module")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = versions()
    print(
        f"# {platform.machine()}, {os.cpu_count()} processors, {options.threads} thread(s), "
        f"torch {found['torch']}, timm {found['timm']}, batch {options.batch}, "
        f"bits {options.bits}, every {options.every}. module"
    )
    print(
        "| model | cells | naive (F per cell) | ours (F per cell) | ours / naive | "
        "whole table incl. recording | bit-identical |"
    )
    print("|---|--:|--:|--:|--:|--:|---|")
    for name in options.models:
        print(row(name, options), flush=True)


def row(name: str, options: argparse.Namespace) -> str:
    weights = WeightSource.FILE if options.checkpoint else WeightSource.RANDOM
    request = ModelRequest(name=name, checkpoint=options.checkpoint, weights=weights)
    loaded = load_model(request, torch.device("cpu"))
    model, size = loaded.module, loaded.preprocessing.input_size
    images = torch.randn(options.batch, *size, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(options.batch, dtype=torch.long)
    catalog = find_sites(model, images[:1])
    table = collect_statistics(model, catalog, [images])
    quantizers = Quantizers(catalog, table, QuantSettings(), "cpu")
    untouched = copy.deepcopy(model)  # F: no hook, no mode, no override
    naive, ours, identical = [], [], True
    with torch.no_grad(), preserved(model), ReplaySession.open(model, catalog) as session:
        record = cpu(lambda: session.record(images))
        reference = session.record(images)
        plain = cpu(lambda: untouched(images))
        for module in catalog.modules[:: options.every]:
            for bits in options.bits:
                visits = quantizers.visits(module, bits, Part.BOTH)
                full = session.full(visits)  # also makes the grids, which a sweep makes once
                identical &= torch.equal(session.replay(visits, module), full)

                def one_full(visits: Mapping[str, Visit] = visits) -> None:
                    outcome_of(reference, session.full(visits), labels)

                def one_replayed(
                    visits: Mapping[str, Visit] = visits, module: SiteModule = module
                ) -> None:
                    outcome_of(reference, session.replay(visits, module), labels)

                pairs = [
                    (cpu(lambda: untouched(images)), cpu(one_full), cpu(one_replayed))
                    for _ in range(options.repeat)
                ]
                naive.append(statistics.median(n / f for f, n, _ in pairs))
                ours.append(statistics.median(o / f for f, _, o in pairs))
    cells = len(catalog) * 5
    mean_naive, mean_ours = statistics.fmean(naive), statistics.fmean(ours)
    with_record = mean_ours + record / plain / cells
    return (
        f"| {name} | {len(ours)} of {len(catalog) * len(options.bits)} | {mean_naive:.3f} | "
        f"{mean_ours:.3f} | {mean_ours / mean_naive:.3f} | {with_record:.3f} | "
        f"{'yes' if identical else 'NO'} |"
    )


def cpu(work: Callable[[], object]) -> float:
    """Process CPU seconds of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
