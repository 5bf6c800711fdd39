"""Quantization-aware training in a loop of your own, on a shipped model.

python examples/own_training_loop.py
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from vitsense import ModelRequest, find_sites, load_model
from vitsense.data import Draw, draw_images, open_source
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.qat.oscillation import OscillationTracker
from vitsense.qat.prepare import convert, prepare_qat
from vitsense.qat.regularize import obr_loss, ramp

STEPS = 12
device = torch.device("cpu")
model = load_model(ModelRequest(name="zoo/glyph_swin"), device)
# generated characters, to show the calls; yours calibrates and trains on its training images
calibration, training = draw_images(open_source(None), Draw(evaluation=STEPS * 32, calibration=32))
batches = [x for x, _ in calibration.batches(model.preprocessing, 32, device)]
images = list(training.batches(model.preprocessing, 32, device))

# 1. a plan: by `vitsense plan`, or by hand
catalog = find_sites(model.module, batches[0][:1])
plan = Plan(modules=tuple(ModulePlan(name=module.name, bits=3) for module in catalog))

# 2. the given model is left alone; the prepared one is called like it
student = prepare_qat(model.module, plan, calibration=batches)
tracker = OscillationTracker(student)
optimizer = torch.optim.AdamW(
    [
        {"params": student.weight_parameters(), "weight_decay": 1e-4},
        {"params": student.scale_parameters(), "weight_decay": 0.0},
    ],
    lr=2e-4,
)

# 3. any loss: here the full-precision model teaches
student.train()
for step, (x, _labels) in enumerate(images):
    with torch.no_grad():
        target = model.module(x).softmax(-1)
    loss = F.cross_entropy(student(x), target)
    (loss + 0.01 * ramp(step / STEPS) * obr_loss(student)).backward()
    optimizer.step()
    optimizer.zero_grad()
    tracker.update(student)
    print(f"step {step}: loss {float(loss.detach()):.3f}")

# 4. the grid is fixed; logits stay the same in every bit
fixed = convert(student)
with torch.no_grad():
    assert torch.equal(fixed(x), student.eval()(x))
print(f"{100 * tracker.total_share():.2f} % of the weights oscillate")
