"""``vitsense profile``: how long each module of a model takes on this machine, in each format."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitsense.discover import find_sites
from vitsense.errors import StaleResultError, UserInputError
from vitsense.export.module_graph import FLOAT, ModuleShape, empty_graph, module_graph
from vitsense.export.onnx_graph import INPUT, float_graph, need_onnx, write_graph
from vitsense.export.onnx_types import DEFAULT_OPSET, Prefer
from vitsense.export.session import Latency, Session, latencies, versions
from vitsense.formats import format_of
from vitsense.models import load_model
from vitsense.observe import Visit, observing, preserved
from vitsense.plan.latency import PROFILE_SCHEMA
from vitsense.progress import NO_PROGRESS, Progress
from vitsense.provenance import machine
from vitsense.runfolder import atomic_write, json_text, read_json
from vitsense.settings import ModelRequest
from vitsense.sites import Kind, SiteCatalog, SiteModule

Row = dict[str, dict[str, float]]
"""Format -> median, quartiles and number of runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions:
    """What a profile decides by itself."""

    formats: tuple[str, ...] = ("int8", "int4")
    """Integer formats; float is always timed as well."""
    runs: int = 50
    """Timed runs of each graph; graphs of one module alternate."""
    opset: int = DEFAULT_OPSET
    prefer: Prefer = Prefer.SIZE
    """As the file will be exported."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserInputError: a format has no integer codes, or there is nothing to time.
        """
        wrong = [name for name in self.formats if not format_of(name).is_integer]
        if wrong:
            raise UserInputError(
                f"onnxruntime cannot run {', '.join(wrong)}: profile integer formats, for example "
                "int8,int4."
            )
        if not self.formats or self.runs < 1:
            raise UserInputError("--formats is empty, or --runs less than 1: nothing to time.")


def profile_model(
    request: ModelRequest,
    out: Path,
    options: ProfileOptions | None = None,
    *,
    progress: Progress = NO_PROGRESS,
) -> dict[str, Any]:
    """Time every shape of a model's modules by onnxruntime, and write a latency profile.

    Every shape is written when it is known: the same call goes on after an interruption, and what
    another model with the same shapes has measured into the file is not measured again.

    Args:
        request: The model; its weights do not matter.
        out: The profile.
        options: Formats and number of runs.
        progress: Told of every shape.

    Returns:
        The profile, as in the file.

    Raises:
        InputMissingError: the packages of the extra ``onnx`` are not installed.
        StaleResultError: the file was measured on another machine or in another way.
        UserInputError: it is no profile, or cannot be written.
    """
    need_onnx()
    options = options or ProfileOptions()
    loaded = load_model(request, torch.device("cpu"))
    image = torch.randn(
        1, *loaded.preprocessing.input_size, generator=torch.Generator().manual_seed(0)
    )
    catalog = find_sites(loaded.module, image)
    shapes = module_shapes(loaded.module, catalog, image)
    unique = {shape.key: shape for shape in shapes.values()}
    conditions = _conditions(options)
    known = _known(out, conditions)
    wanted = (FLOAT, *(format_of(name).name for name in options.formats))
    profile: dict[str, Any] = {"schema": PROFILE_SCHEMA, "status": "running"}
    profile |= {"name": _name(conditions), **conditions, "shapes": known}
    progress.start(len(unique), f"{loaded.key}: {len(unique)} shapes of {len(shapes)} modules")
    for key, shape in unique.items():
        missing = [form for form in wanted if form not in known.get(key, {})]
        if missing:
            known[key] = known.get(key, {}) | _timed(shape, missing, options)
            atomic_write(out, json_text(profile))
        progress.advance(1, key)
    progress.note(f"{loaded.key}: timing the whole model in float")
    whole = _whole(loaded.module, image, options)
    modules = sum(known[shape.key][FLOAT]["median"] for shape in shapes.values())
    profile |= {
        "status": "complete",
        "model": {"key": loaded.key, "sites_digest": catalog.digest},
        "float_ms": asdict(whole),
        "rest_ms": max(whole.median - modules, 0.0),
        "measured": {
            name: {form: known[shape.key][form]["median"] for form in wanted}
            for name, shape in shapes.items()
        },
    }
    atomic_write(out, json_text(profile))
    return profile


def module_shapes(model: nn.Module, catalog: SiteCatalog, image: Tensor) -> dict[str, ModuleShape]:
    """The shape of every module for one image `(1, 3, H, W)`, by module name."""
    seen: dict[str, tuple[int, ...]] = {}

    def looking(site: str) -> Visit:
        def look(tensor: Tensor) -> None:
            seen[site] = tuple(tensor.shape)

        return look

    visits = {site.id: looking(site.id) for site in catalog.sites}
    with preserved(model), torch.no_grad(), observing(model, catalog, visits):
        model(image)
    return {module.name: _shape(model, module, seen) for module in catalog}


def _shape(
    model: nn.Module, module: SiteModule, seen: Mapping[str, tuple[int, ...]]
) -> ModuleShape:
    weight = module.weight_site
    left, *others = (seen[site.id] for site in module.sites if site != weight)
    if module.kind is Kind.PRODUCT:
        right = others[0]
        if left[-1] != right[-2]:  # fused attention gets keys as (..., tokens, channels)
            right = (*right[:-2], right[-1], right[-2])
        return ModuleShape(module.kind, (left, right))
    assert weight is not None
    operands = (left, seen[weight.id])
    if module.kind is Kind.LINEAR:
        return ModuleShape(module.kind, operands)
    return ModuleShape(module.kind, operands, _geometry(model.get_submodule(module.path), operands))


def _geometry(layer: nn.Module, operands: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Strides, paddings, dilations and groups; where the layer does not say, the plainest."""
    left, weight = operands
    kernel = weight[2:]

    def spread(name: str, default: int) -> tuple[int, ...]:
        value = getattr(layer, name, default)
        return tuple(value) if isinstance(value, (tuple, list)) else (value,) * len(kernel)

    padding: tuple[int, ...]
    if isinstance(getattr(layer, "padding", 0), str):
        padding = tuple((n - 1) // 2 if layer.padding == "same" else 0 for n in kernel)
    else:
        padding = spread("padding", 0)
    return (*spread("stride", 1), *padding, *spread("dilation", 1), left[1] // weight[1])


def _timed(shape: ModuleShape, forms: Sequence[str], options: ProfileOptions) -> Row:
    """Medians of the formats, run in turn, without what a call costs by itself."""
    sessions = [Session(empty_graph(options.opset), ["output"])]
    sessions += [
        Session(module_graph(shape, form, options.opset, options.prefer), ["output"])
        for form in forms
    ]
    feeds = shape.feeds()
    first = {"left": feeds["left"].reshape(-1)[:1]}
    empty, *rows = latencies(sessions, [first, *([feeds] * len(forms))], runs=options.runs)
    return {form: _net(row, empty.median) for form, row in zip(forms, rows, strict=True)}


def _net(row: Latency, call: float) -> dict[str, float]:
    least = 1e-4  # a profile holds positive numbers
    return {
        "median": max(row.median - call, least),
        "low": max(row.low - call, least),
        "high": max(row.high - call, least),
        "runs": row.runs,
    }


def _whole(model: nn.Module, image: Tensor, options: ProfileOptions) -> Latency:
    session = Session(write_graph(float_graph(model, image, options.opset)))
    return latencies([session], [{INPUT: image.numpy()}], runs=options.runs)[0]


def _conditions(options: ProfileOptions) -> dict[str, Any]:
    """What must be equal for numbers to stand in one file."""
    return {
        "machine": {**machine(), "processor": _processor()},
        "onnxruntime": versions()["onnxruntime"],
        "threads": 1,
        "opset": options.opset,
        "prefer": options.prefer.value,
        "runs": options.runs,
    }


def _processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")


def _name(conditions: Mapping[str, Any]) -> str:
    processor = conditions["machine"]["processor"] or conditions["machine"]["machine"]
    return f"{processor}, onnxruntime {conditions['onnxruntime']}, 1 thread"


def _known(out: Path, conditions: Mapping[str, Any]) -> dict[str, Row]:
    """What the file already holds; nothing where there is none."""
    if not out.is_file():
        return {}
    data = read_json(out, PROFILE_SCHEMA)
    differing = [key for key, value in conditions.items() if data.get(key) != value]
    if differing:
        raise StaleResultError(
            f"{out} was measured otherwise; different are: {', '.join(differing)}. Numbers of two "
            "machines or versions do not add up: choose another --out, or delete the file."
        )
    found: dict[str, Row] = data.get("shapes", {})
    return found
