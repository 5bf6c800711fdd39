"""Train a model at uniform bits by several methods with one budget, over seeds; prints the table.

    python benchmarks/qat_methods.py --model zoo/glyph_swin --bits 2 --out /tmp/ablation

First and last weights stay at 8 bits. Trainings that are complete are not done again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from vitsense.freed_memory import keep_freed_memory
from vitsense.models import load_model
from vitsense.progress import PlainProgress
from vitsense.qat.ablate import ablate
from vitsense.qat.recipes import load_recipe
from vitsense.qat.request import QatRequest
from vitsense.qat.uniform import uniform_plan
from vitsense.settings import ModelRequest


def main() -> None:
    options = parse()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    device = torch.device("cpu")
    request = ModelRequest(name=options.model, checkpoint=options.checkpoint)
    model = load_model(request, device)
    changes = dict(text.split("=", 1) for text in options.set)
    training = QatRequest(
        plan=uniform_plan(model, options.bits),
        model=request,
        recipe=load_recipe(options.recipe, changes),
        data=options.data,
        images=options.images,
        eval_data=options.eval_data,
        eval_images=options.eval_images,
    )
    names = options.variants.split(",") if options.variants else None
    seeds = [int(seed) for seed in options.seeds.split(",")]
    where = options.out / f"{model.key}-w{options.bits}a{options.bits}"
    print(ablate(training, where, device, seeds, PlainProgress(), names).read_text())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="zoo/glyph_swin")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--variants", help="names with commas; default: all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data")
    parser.add_argument("--images", type=int)
    parser.add_argument("--eval-data")
    parser.add_argument("--eval-images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
