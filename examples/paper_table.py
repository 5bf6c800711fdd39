"""The paper's leave-one-out table for any model: everything quantized but one group.

python examples/paper_table.py                       # the shipped Swin, in a minute
python examples/paper_table.py --model deit_t --checkpoint FILE --data FOLDER --formats 4,3

Beside leave-one-out stands one-at-a-time: only the group quantized. Recovery is the drop of
everything quantized minus the drop of everything but the group, paired on the same images, with a
95 % interval. Quantization is post-training; the paper trains the quantized model.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import torch

from vitsense import ModelRequest, QuantSettings, collect_statistics, find_sites, load_model
from vitsense.data import Draw, draw_images, open_source
from vitsense.provenance import versions
from vitsense.sensitivity.group_sweep import MeasuredGroup, measure_groups
from vitsense.sensitivity.groups import groups_of
from vitsense.sensitivity.interval import Interval
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.settings import By, Direction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="zoo/glyph_swin")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--data", help="as vitsense analyze takes it; default: generated glyphs")
    parser.add_argument("--calibration-data", help="default: other images of --data")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--calibration", type=int, default=32)
    parser.add_argument("--formats", default="4,3", help="bits, or names such as mxfp4")
    parser.add_argument("--by", default="role", choices=[by.value for by in By])
    parser.add_argument("--batch", type=int, default=25)
    options = parser.parse_args()
    print(tables(options))


def tables(options: argparse.Namespace) -> str:
    device = torch.device("cpu")
    model = load_model(ModelRequest(name=options.model, checkpoint=options.checkpoint), device)
    draw = Draw(evaluation=options.images, calibration=options.calibration)
    other = open_source(options.calibration_data) if options.calibration_data else None
    calibration, evaluation = draw_images(open_source(options.data), draw, other)

    def batches(images):
        return images.batches(model.preprocessing, options.batch, device)

    catalog = find_sites(model.module, next(batches(calibration))[0][:1])
    statistics = collect_statistics(model.module, catalog, (x for x, _ in batches(calibration)))
    found = measure_groups(
        model.module,
        catalog,
        Quantizers(catalog, statistics, QuantSettings(), device),
        batches(evaluation),
        groups_of(catalog, By(options.by)),
        formats=[int(f) if f.isdecimal() else f for f in options.formats.split(",")],
    )
    seen = versions()
    lines = [
        f"{model.resolved.name}, weights {model.digest}, {len(evaluation)} images, "
        f"{len(calibration)} for calibration; {platform.machine()}, torch {seen['torch']}, "
        f"timm {seen['timm']}",
    ]
    for name in dict.fromkeys(m.cell.format for m in found):
        lines += ["", *table(name, [m for m in found if m.cell.format == name])]
    return "\n".join(lines)


def table(name: str, rows: list[MeasuredGroup]) -> list[str]:
    whole = next(m for m in rows if m.group.by == "model")
    assert whole.found is not None
    fp = whole.found.outcome.fp_top1
    by = {(m.cell.direction, m.cell.group): m for m in rows}
    lines = [
        f"## {name}: full precision {fp.value if fp else float('nan'):.1f} % top-1; everything "
        f"quantized loses {loss(whole)}",
        "",
        "| group | weights | only this: drop | only this: KL | all but this: drop | recovery "
        "(points) | recovery (KL, nats) |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for group in (m.group for m in rows if m.cell.direction is Direction.SPARED):
        alone = by[Direction.ALONE, group.name]
        spared = by[Direction.SPARED, group.name]
        if alone.found is None or spared.found is None or spared.found.recovery is None:
            continue
        kl = alone.found.outcome.kl_nats
        back = spared.found.recovery
        lines.append(
            f"| {group.name} | {group.params:,} | {loss(alone)} | {interval(kl, 3)} | "
            f"{loss(spared)} | {interval(back.points, 1)} | {interval(back.kl_nats, 3)} |"
        )
    return lines


def loss(row: MeasuredGroup) -> str:
    assert row.found is not None
    drop = row.found.outcome.drop
    if drop is None:
        kept = row.found.outcome.agreement
        return f"agreement {kept.value:.1f} %"
    return interval(drop, 1)


def interval(value: Interval, digits: int) -> str:
    low, middle, high = (f"{v:.{digits}f}" for v in (value.low, value.value, value.high))
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
