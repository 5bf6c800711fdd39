"""What quantization-aware training costs: a step and its memory against full precision.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/qat_step.py deit_tiny_patch16_224

All variants alternate in one process over the same images. Time is the CPU time of one step
(forward, backward, AdamW), as a ratio to full precision: the median over rounds, and minimum over
minimum in brackets. Memory is what autograd keeps for the backward pass: bytes of distinct
storages seen by `torch.autograd.graph.saved_tensors_hooks`, parameters left out. Weights are random
and 4 bits everywhere: costs only. torchao and brevitas are measured where they are installed.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitsense.discover import find_sites
from vitsense.freed_memory import keep_freed_memory
from vitsense.plan.plan import ModulePlan, Plan
from vitsense.qat.oscillation import OscillationTracker
from vitsense.qat.prepare import QuantizedModel, prepare_qat
from vitsense.qat.regularize import dampening_loss, obr_loss
from vitsense.qat.settings import Offsets, QatSettings
from vitsense.sites import Kind, ModuleRole, SiteCatalog


@dataclass
class Variant:
    """A model that is trained, and what was measured."""

    name: str
    model: nn.Module
    term: Callable[[nn.Module], Tensor] | None = None
    after: Callable[[nn.Module], None] | None = None
    seconds: list[float] = field(default_factory=list)
    saved: int = 0
    optimizer: torch.optim.Optimizer | None = None


def main() -> None:
    """Print one row per variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="deit_tiny_patch16_224", help="a timm name")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--only", default="", help="variants whose name holds one of these texts (with commas)"
    )
    parser.add_argument(
        "--return-memory", action="store_true",
        help="leave the C library's allocator as it is; default: as the program sets it",
    )  # fmt: skip
    options = parser.parse_args()
    if not options.return_memory:
        print(f"freed memory is kept: {keep_freed_memory()}")
    torch.set_num_threads(options.threads)
    if os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE":
        print("note: set OMP_WAIT_POLICY=PASSIVE, or waiting threads count as work")
    torch.manual_seed(0)
    model = timm.create_model(options.model, pretrained=False).train()
    images = torch.randn(options.batch, *model.default_cfg["input_size"])
    labels = torch.randint(0, model.num_classes, (options.batch,))
    chosen = variants(model, images, options.only.split(","))
    for variant in chosen:
        variant.model.train()
        variant.optimizer = torch.optim.AdamW(variant.model.parameters(), lr=1e-6)
        step(variant, images, labels)  # allocates the optimizer's state
        variant.saved = kept_bytes(variant, images, labels)
    for _ in range(options.rounds):
        for variant in chosen:
            gc.collect()
            variant.seconds.append(step(variant, images, labels))
    print(
        f"{options.model}, batch {options.batch}, {options.rounds} rounds, {options.threads} "
        f"thread(s), {platform.machine()}, torch {torch.__version__}, timm {timm.__version__}\n"
    )
    report(chosen)


FLOAT = "full precision"


def variants(model: nn.Module, images: Tensor, wanted: list[str]) -> list[Variant]:
    """What can be measured here and has one of the wanted texts in its name."""
    catalog = find_sites(model, images[:1])
    few = images[:4]
    lsq = QatSettings(offsets=Offsets.NEVER)
    common = QatSettings(offsets=Offsets.NEVER, share_inputs=True)

    def ours(settings: QatSettings, plan: Plan) -> QuantizedModel:
        return prepare_qat(model, plan, settings=settings, calibration=[few])

    layers, everything = plan_of(catalog, products=False), plan_of(catalog, products=True)

    def whole() -> QuantizedModel:
        return ours(QatSettings(), everything)

    def tracked() -> Variant:
        watched = whole()
        return Variant(
            "... with oscillation tracking", watched, after=OscillationTracker(watched).update
        )

    makers: dict[str, Callable[[], Variant | nn.Module]] = {
        FLOAT: lambda: copy.deepcopy(model),
        "vitsense, linear layers, one step for q, k, v inputs": lambda: ours(common, layers),
        "vitsense, linear layers, q, k, v apart": lambda: ours(lsq, layers),
        "vitsense, every site, q, k, v apart, offsets": whole,
        "... with bin regularization": lambda: Variant("", whole(), term=obr_loss),
        "... with dampening": lambda: Variant("", whole(), term=dampening_loss),
        "... with oscillation tracking": tracked,
        "plain LSQ function": lambda: swapped(model, PlainLinear),
        "torch._fake_quantize_learnable_*": lambda: swapped(model, LearnableLinear),
    }
    for name, build in (("torchao", torchao_model), ("brevitas", brevitas_model)):
        if importlib.util.find_spec(name) is not None:
            makers[name] = lambda build=build: build(copy.deepcopy(model))
    found = []
    for name, maker in makers.items():
        if name == FLOAT or any(text in name for text in wanted):
            made = maker()
            variant = made if isinstance(made, Variant) else Variant(name, made)
            variant.name = name
            found.append(variant)
    return found


def plan_of(catalog: SiteCatalog, *, products: bool) -> Plan:
    """4 bits for every linear layer inside the model, and for everything else if asked for."""
    return Plan(
        modules=tuple(
            ModulePlan(name=m.name, bits=4)
            for m in catalog
            if products or (m.kind is Kind.LINEAR and m.role is not ModuleRole.HEAD)
        )
    )


def step(variant: Variant, images: Tensor, labels: Tensor) -> float:
    """One optimizer step; gives its CPU seconds."""
    began = time.process_time()
    optimizer = variant.optimizer
    assert optimizer is not None
    optimizer.zero_grad(set_to_none=True)
    loss = F.cross_entropy(variant.model(images), labels)
    if variant.term is not None:
        loss = loss + 1e-3 * variant.term(variant.model)
    loss.backward()
    optimizer.step()
    if variant.after is not None:
        variant.after(variant.model)
    return time.process_time() - began


def kept_bytes(variant: Variant, images: Tensor, labels: Tensor) -> int:
    """Bytes of distinct storages that autograd keeps, parameters left out."""
    mine = {p.untyped_storage().data_ptr() for p in variant.model.parameters()}
    sizes: dict[int, int] = {}
    alive: list[Any] = []  # a freed storage's address could be given to another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in mine:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(variant.model(images), labels)
        if variant.term is not None:
            loss = loss + variant.term(variant.model)
    del loss
    return sum(sizes.values())


def report(chosen: list[Variant]) -> None:
    """A Markdown table."""
    base = chosen[0]
    print("| variant | time of a step | kept for backward |\n|---|---|---|")
    for variant in chosen:
        pairs = zip(variant.seconds, base.seconds, strict=True)
        ratio = statistics.median(mine / theirs for mine, theirs in pairs)
        best = min(variant.seconds) / min(base.seconds)
        print(
            f"| {variant.name} | {ratio:.2f} ({best:.2f}) | "
            f"{variant.saved / base.saved:.2f} ({variant.saved / 2**20:.0f} MiB) |"
        )
    print(f"\nfull precision: {statistics.median(base.seconds):.2f} CPU-s a step")


# What others do, as plainly as it is usually written ------------------------------------------


def swapped(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A copy with every linear layer but the classifier replaced."""
    twin = copy.deepcopy(model)
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.Linear) and name != "head":
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, kind(module))
    return twin


class _Lsq(torch.autograd.Function):
    """LSQ as one function that keeps x and s."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, s: Tensor, g: float) -> Tensor:
        ctx.save_for_backward(x, s)
        ctx.g = g
        return torch.clamp(torch.round(x / s), -8, 7) * s

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, s = ctx.saved_tensors
        v = x / s
        low, high = (v <= -8).float(), (v >= 7).float()
        middle = 1.0 - low - high
        slope = low * -8 + high * 7 + middle * (torch.round(v) - v)
        return grads[0] * middle, (grads[0] * slope).sum().reshape(s.shape) * ctx.g, None


class PlainLinear(nn.Module):
    """A linear layer with an LSQ function before each operand."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.x_step = nn.Parameter(torch.tensor(0.3))
        self.w_step = nn.Parameter(layer.weight.detach().abs().mean() * 0.7)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        w = self.layer.weight
        x = _Lsq.apply(x, self.x_step, (x[0].numel() * 7) ** -0.5)
        return F.linear(x, _Lsq.apply(w, self.w_step, (w.numel() * 7) ** -0.5), self.layer.bias)


class LearnableLinear(nn.Module):
    """A linear layer with torch's learnable fake quantization: tensor for x, channel for w."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        rows, mean = layer.weight.shape[0], float(layer.weight.detach().abs().mean())
        self.x_step = nn.Parameter(torch.tensor([0.3]))
        self.w_step = nn.Parameter(torch.full((rows,), 0.7 * mean))
        self.register_buffer("x_zero", torch.zeros(1))
        self.register_buffer("w_zero", torch.zeros(rows))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        w = self.layer.weight
        x = torch._fake_quantize_learnable_per_tensor_affine(
            x, self.x_step, self.x_zero, -8, 7, (x.numel() * 7) ** -0.5
        )
        w = torch._fake_quantize_learnable_per_channel_affine(
            w, self.w_step, self.w_zero, 0, -8, 7, (w.numel() * 7) ** -0.5
        )
        return F.linear(x, w, self.layer.bias)


def torchao_model(model: nn.Module) -> nn.Module:
    """Int4 weights per channel, int4 activations per token; steps are not learned."""
    from torchao.quantization import quantize_
    from torchao.quantization.granularity import PerAxis, PerToken
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    activation = IntxFakeQuantizeConfig(torch.int4, PerToken(), is_symmetric=False)
    weight = IntxFakeQuantizeConfig(torch.int4, PerAxis(0), is_symmetric=True)
    config = QATConfig(activation_config=activation, weight_config=weight, step="prepare")
    quantize_(model, config)
    return model


def brevitas_model(model: nn.Module) -> nn.Module:
    """Int4 weights per channel, int4 activations per tensor with a learned step."""
    import brevitas.nn as qnn
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "head":
            layer = qnn.QuantLinear(
                module.in_features,
                module.out_features,
                bias=module.bias is not None,
                weight_quant=Int8WeightPerChannelFloat,
                weight_bit_width=4,
                input_quant=Int8ActPerTensorFloat,
                input_bit_width=4,
            )
            layer.load_state_dict(module.state_dict(), strict=False)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
    return model


if __name__ == "__main__":
    main()
