"""How strong the regularizers' gradients are against the task's, at strength 1.

    python benchmarks/obr_gradient.py

The shipped Swin right after calibration, cross-entropy on 64 training glyphs; norms over all
parameters of the model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vitsense.discover import find_sites
from vitsense.glyphs import glyph_images
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.qat.prepare import QuantizedModel, prepare_qat
from vitsense.qat.regularize import BinReduction, dampening_loss, obr_loss
from vitsense.qat.settings import QatSettings
from vitsense.settings import Granule
from vitsense.zoo import MEAN, STD, create_zoo_model


def main() -> None:
    """Print one row per width and granularity."""
    torch.set_num_threads(1)
    pixels, labels = glyph_images("train", 64)
    mean, std = (torch.tensor(numbers).view(1, 3, 1, 1) for numbers in (MEAN, STD))
    images = (torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
    model = create_zoo_model("glyph_swin")
    catalog = find_sites(model, images[:1])
    ends = (catalog.modules[0].name, catalog.modules[-1].name)
    print("| weights | steps | task | OBR sum | paper | published | dampening |")
    print("|---|---|---|---|---|---|---|")
    for bits in (2, 3, 4):
        plan = Plan(
            modules=tuple(
                ModulePlan(name=m.name, bits=8 if m.name in ends else bits) for m in catalog
            )
        )
        for granule in Granule:
            settings = QatSettings(weight_granularity=granule)
            prepared = prepare_qat(model, plan, settings=settings, calibration=[images[:32]])
            task = norm(prepared, F.cross_entropy(prepared.eval()(images), torch.tensor(labels)))
            terms = [norm(prepared, obr_loss(prepared, r)) / task for r in BinReduction]
            terms.append(norm(prepared, dampening_loss(prepared)) / task)
            cells = " | ".join(f"{term:.2g}" for term in terms)
            print(f"| {bits} bits | {granule.value} | {task:.2f} | {cells} |")


def norm(model: QuantizedModel, loss: Tensor) -> float:
    """Norm of the gradient of all weights of the model."""
    model.zero_grad()
    loss.backward()
    grads = [p.grad for p in model.weight_parameters() if p.grad is not None]
    return float(torch.stack([g.square().sum() for g in grads]).sum().sqrt())


if __name__ == "__main__":
    main()
