"""What each module alone costs, against one prepared model per module."""

from __future__ import annotations

import torch
from small_models import BUILDERS, images
from torch.nn import functional as F

from vitsense.discover import find_sites
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.qat.prepare import prepare_qat
from vitsense.qat.sensitivities import module_divergences, sensitivity_rows


def test_each_module_is_rounded_alone_from_the_latent_weights() -> None:
    model = BUILDERS["vit"]()
    names = [module.name for module in find_sites(model, images(1))]
    seen = images(20)  # two batches
    whole = Plan(modules=tuple(ModulePlan(name=name, bits=3) for name in names))
    quantized = prepare_qat(model, whole, calibration=[images(4)])
    before = module_divergences(quantized, seen)
    assert list(before) == names
    reference = F.log_softmax(model.eval()(seen).double(), 1)
    for name in names[1::4]:
        alone = Plan(modules=(ModulePlan(name=name, bits=3),))
        one = prepare_qat(model, alone, calibration=[images(4)]).eval()
        logits = F.log_softmax(one(seen).double(), 1)
        kl = (reference.exp() * (reference - logits)).sum(1)
        found = before[name]
        assert (found.bits, found.n) == (3, 20)
        torch.testing.assert_close(torch.tensor(found.kl), kl.mean().float(), rtol=1e-3, atol=1e-7)
        assert found.low <= found.kl <= found.high
    # afterwards: other latent weights, whose full precision is then the reference
    with torch.no_grad():
        for parameter in quantized.weight_parameters():
            parameter.mul_(0.5)
    after = module_divergences(quantized, seen)
    rows = sensitivity_rows(before, after)
    assert [row["module"] for row in rows] == names
    assert all(row["kl_before"] == before[row["module"]].kl for row in rows)
    assert all(row["kl_after"] != row["kl_before"] for row in rows)
