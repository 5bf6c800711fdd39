"""Train one of the two models that ship with vitsense.

    python examples/train_zoo.py --model glyph_swin --out vitsense/zoo
    python examples/train_zoo.py --model glyph_resnet --out vitsense/zoo

It takes about 16 minutes (Swin) and 10 (ResNet) on one CPU core. ``--measure`` trains nothing: it
measures the shipped weights again and writes their card.

Images are drawn once from `vitsense.glyphs` and kept in memory. The first epochs see an easier set
(larger characters, no stray lines), because the Swin stays at chance for long otherwise.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from vitsense.glyphs import DEFAULT_SPEC, GlyphSpec, glyph_digest, glyph_images
from vitsense.sensitivity.interval import proportion
from vitsense.zoo import ARCHITECTURES, MEAN, STD, ZOO, zoo_card, zoo_file

EASY = replace(DEFAULT_SPEC, scale=(0.8, 1.0), shift=1.5, lines=0, noise=0.02, blur=0.4)


def main() -> None:
    options = parse()
    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    weights = options.out / f"{options.model}.safetensors"
    if options.measure:
        weights = zoo_file(options.model)
        record = {key: zoo_card(options.model)[key] for key in ("training", "torch", "seconds")}
    else:
        record = trained(weights, options)
    card = measured(options, weights) | record
    (options.out / f"{options.model}.json").write_text(json.dumps(card, indent=2) + "\n")
    print(
        f"top-1 {card['top1']} % on {card['evaluated']} images, {card['parameters']:,} parameters"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(ZOO), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=72_000)
    parser.add_argument("--easy-epochs", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=8, help="epochs over the full set")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--evaluate", type=int, default=3600)
    parser.add_argument("--measure", action="store_true", help="measure the shipped weights only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def trained(weights: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train, write the weights, and give the card's record of how."""
    started = time.time()
    model = ZOO[options.model]()
    print(f"{options.model}: {sum(p.numel() for p in model.parameters()):,} parameters")
    easy = draw(EASY, options.images // 4)
    full = draw(DEFAULT_SPEC, options.images)
    print(f"drew {options.images * 5 // 4} images in {time.time() - started:.0f} s")
    train(model, easy, full, options)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    left_out = {"out", "model", "measure"}
    return {
        "training": {key: value for key, value in vars(options).items() if key not in left_out},
        "torch": torch.__version__,
        "seconds": round(time.time() - started),
    }


def draw(spec: GlyphSpec, n: int) -> tuple[Tensor, Tensor]:
    images, labels = glyph_images("train", n, spec=spec)
    return torch.from_numpy(images), torch.from_numpy(labels)


def normalize(images: Tensor) -> Tensor:
    """`(B, 32, 32, 3)` bytes to the model's input `(B, 3, 32, 32)`."""
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def train(
    model: nn.Module,
    easy: tuple[Tensor, Tensor],
    full: tuple[Tensor, Tensor],
    options: argparse.Namespace,
) -> None:
    schedule = [easy] * options.easy_epochs + [full] * options.epochs
    steps = sum(len(labels) // options.batch for _, labels in schedule)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    kept = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=options.lr)
    cosine = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps)
    generator = torch.Generator().manual_seed(options.seed)
    for epoch, (images, labels) in enumerate(schedule):
        model.train()
        started, losses = time.time(), []
        for batch in torch.randperm(len(labels), generator=generator).split(options.batch):
            if len(batch) < options.batch:
                continue
            logits = model(normalize(images[batch]))
            loss = F.cross_entropy(logits, labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            cosine.step()
            losses.append(loss.item())
        seconds = time.time() - started
        print(f"epoch {epoch} loss {np.mean(losses[-100:]):.3f} {seconds:.0f} s", flush=True)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    """Number of images read correctly."""
    model.eval()
    batches = zip(images.split(256), labels.split(256), strict=True)
    return sum(int((model(normalize(x)).argmax(1) == y).sum()) for x, y in batches)


def measured(options: argparse.Namespace, weights: Path) -> dict[str, Any]:
    """The card of a file of weights, without the record of its training."""
    model = ZOO[options.model]()
    model.load_state_dict(load_file(weights), strict=True)
    images, labels = glyph_images("evaluation", options.evaluate)
    correct = accuracy(model, torch.from_numpy(images), torch.from_numpy(labels))
    top1 = proportion(correct, options.evaluate).scaled(100)
    return {
        "name": options.model,
        "correct": correct,
        "evaluated": options.evaluate,
        "top1": round(top1.value, 3),
        "top1_low": round(top1.low, 3),
        "top1_high": round(top1.high, 3),
        "parameters": sum(p.numel() for p in model.parameters()),
        "architecture": ARCHITECTURES[options.model],
        "mean": MEAN,
        "std": STD,
        "glyphs": asdict(DEFAULT_SPEC),
        "evaluation_digest": glyph_digest("evaluation", 360),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }


if __name__ == "__main__":
    main()
