"""The stages of vitsense from Python, one after the other, on a shipped model.

python examples/python_api.py
"""

from __future__ import annotations

import torch

from vitsense import AnalyzeSettings, ModelRequest, collect_statistics, find_sites, load_model
from vitsense.data import Draw, draw_images, open_source
from vitsense.sensitivity.quantizers import Quantizers
from vitsense.sensitivity.sweep import measure_exact, measure_joint

device = torch.device("cpu")
model = load_model(ModelRequest(name="zoo/glyph_swin"), device)
calibration, evaluation = draw_images(open_source(None), Draw(evaluation=72, calibration=32))


def batches(images):
    return images.batches(model.preprocessing, 24, device)


# 1. where can it be quantized?
image = next(batches(calibration))[0][:1]
catalog = find_sites(model.module, image)
print(f"{len(catalog)} modules, {len(catalog.uncovered)} entries left in float")

# 2. what do its tensors look like?
statistics = collect_statistics(model.module, catalog, (x for x, _ in batches(calibration)))
heaviest = max(statistics.values(), key=lambda s: float(s.tensor.kurtosis[0]))
print(f"heaviest tail: {heaviest.site.id}, excess kurtosis {heaviest.tensor.kurtosis[0]:.1f}")

# 3. what does quantizing each module cost?
settings = AnalyzeSettings(model=ModelRequest(name="zoo/glyph_swin"))
quantizers = Quantizers(catalog, statistics, settings.quant, device)
table = measure_exact(model.module, catalog, quantizers, batches(evaluation), bits=(4, 3))
worst = max(table, key=lambda m: m.outcome.kl if m.outcome else 0.0)
print(f"most sensitive: {worst.cell.module} at {worst.cell.bits} bits")

# 4. and all of them together?
plan = {module.name: 4 for module in catalog}
outcome = measure_joint(model.module, catalog, quantizers, batches(evaluation), {"4 bits": plan})
drop = outcome["4 bits"].drop
assert drop is not None
print(f"4 bits everywhere: drop {drop.value:.1f} points ({drop.low:.1f} to {drop.high:.1f})")
