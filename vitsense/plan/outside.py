"""Plans made elsewhere: ModelOpt's and AIMET's configurations, or a table of bits. No torch."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitsense.errors import InputMissingError, SiteMismatchError, UserInputError
from vitsense.formats import ALLOWED_BITS
from vitsense.plan.cost import cost_of
from vitsense.plan.plan import ModulePlan, Plan, near_names
from vitsense.settings import Part

if TYPE_CHECKING:
    from vitsense.runfolder import RunFolder

Widths = tuple[int | None, int | None]
"""Bits of the weight and of the input of a layer; None is float."""


def import_plan(
    run: RunFolder, file: Path, tool: str, *, model: str | None = None, out: Path | None = None
) -> tuple[Plan, Path]:
    """Write bits that were chosen elsewhere as a plan for a model of a run.

    Args:
        run: Knows the model's modules.
        file: A ``quant_cfg`` of ModelOpt (JSON), encodings of AIMET (JSON), or a CSV with the
            columns ``module`` and ``bits``.
        tool: ``modelopt``, ``aimet`` or ``csv``.
        model: Its key; None is the first of the run.
        out: The plan; None is ``plan-imported.json`` in the run.

    Returns:
        The plan and where it was written. Modules that the file leaves in float are not in it.

    Raises:
        InputMissingError: no such file.
        UserInputError: the file is not what ``tool`` writes, or says what a plan cannot.
        SiteMismatchError: it names modules that the model does not have.
    """
    entries = {entry["key"]: entry for entry in run.read_run()["models"]}
    key = model or next(iter(entries))
    if key not in entries:
        raise SiteMismatchError(f"The run has no model {key!r}; it has {', '.join(entries)}.")
    if not file.is_file():
        raise InputMissingError(f"There is no file {file}; check its name.")
    frame = run.table("modules")
    frame = frame[frame["model"] == key]
    weighted = list(frame.loc[frame["params"] > 0, "module"])
    names = list(frame["module"]) if tool == "csv" else weighted
    widths = READERS[tool](file, names)
    _check(widths, file)
    has_input = [taken is not None for _, taken in widths.values()]
    if any(has_input) and not all(has_input):
        name = next(n for n, (_, taken) in widths.items() if taken is None)
        raise UserInputError(
            f"{file}: {name} has a quantized weight and an input in float, others have both "
            "quantized; a plan quantizes inputs everywhere or nowhere. Give every layer an input "
            "width, or none."
        )
    plan = Plan(
        modules=tuple(_module(name, *both) for name, both in widths.items()),
        model={k: entries[key].get(k) for k in ("key", "name", "weights_digest", "num_classes")},
        quantization={"part": (Part.BOTH if all(has_input) else Part.WEIGHTS).value},
        cost=asdict(
            cost_of(frame, {n: w or 8 for n, (w, _) in widths.items()}, entries[key]["params"])
        ),
        provenance={"imported": tool},
    )
    path = out or run.path / "plan-imported.json"
    plan.save(path)
    return plan, path


def _module(name: str, weight: int | None, taken: int | None) -> ModulePlan:
    bits = weight or taken
    assert bits is not None
    return ModulePlan(
        name=name,
        bits=bits,
        weight=f"int{weight}" if weight else None,
        activation=f"uint{taken}" if taken else None,
        reason="chosen elsewhere",
    )


def _check(widths: Mapping[str, Widths], file: Path) -> None:
    if not widths:
        raise UserInputError(f"{file} quantizes no layer of this model; is it for another one?")
    for name, both in widths.items():
        for bits in both:
            if bits is not None and bits not in ALLOWED_BITS:
                allowed = ", ".join(map(str, ALLOWED_BITS))
                raise UserInputError(f"{file}: {name} has {bits} bits; allowed are {allowed}.")


def _layer_of(module: str) -> str:
    """The torch layer of a module: parts of a fused projection are called ``LAYER.q``."""
    head, _, last = module.rpartition(".")
    return head if last in ("q", "k", "v") and head.endswith(("qkv", "kv", "qk")) else module


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserInputError(
            f"{file} is not valid JSON ({error}): write it again with the tool that made it, or "
            "make a table with the columns module and bits and take that with --from csv."
        ) from error


def _modelopt(file: Path, names: list[str]) -> dict[str, Widths]:
    """Later rows win, as in ModelOpt; both its list and its older dictionary are read."""
    data = _json(file)
    rows = data.get("quant_cfg") if isinstance(data, dict) else None
    if isinstance(rows, dict):
        rows = [
            {"quantizer_name": pattern, "cfg": cfg, "enable": cfg.get("enable", True)}
            for pattern, cfg in rows.items()
            if isinstance(cfg, dict)
        ]
    if not isinstance(rows, list):
        raise UserInputError(
            f"{file} has no quant_cfg: it is no configuration of ModelOpt. Write the one that "
            "mtq.quantize takes as JSON, or choose another --from."
        )

    found = {}
    for name in names:
        layer = _layer_of(name)
        weight = _last_width(rows, f"{layer}.weight_quantizer", file)
        both = (weight, _last_width(rows, f"{layer}.input_quantizer", file))
        if both != (None, None):
            found[name] = both
    return found


def _last_width(rows: list[Any], quantizer: str, file: Path) -> int | None:
    """The bits that the last fitting row gives a quantizer; None where it is off."""
    found: int | None = None
    for row in rows:
        if row.get("parent_class") or not fnmatchcase(quantizer, str(row["quantizer_name"])):
            continue
        width = (row.get("cfg") or {}).get("num_bits")
        if row.get("enable", True) is False:
            found = None
        elif isinstance(width, int):
            found = width
        elif width is not None:
            raise UserInputError(
                f"{file}: {row['quantizer_name']} has num_bits {width!r}; only whole numbers "
                "(integer formats) are imported."
            )
    return found


def _aimet(file: Path, names: list[str]) -> dict[str, Widths]:
    """The layout of version 0.6.1, by modules of torch."""
    data = _json(file)
    parameters = data.get("param_encodings") if isinstance(data, dict) else None
    if not isinstance(parameters, dict):
        raise UserInputError(
            f"{file} has no param_encodings by name: export AIMET's encodings for torch "
            "(save_encodings_to_json)."
        )
    activations = data.get("activation_encodings") or {}
    known = {f"{_layer_of(name)}.weight" for name in names}
    unknown = [k for k in parameters if k.endswith(".weight") and k not in known]
    if len(unknown) == len(parameters) and unknown:
        raise SiteMismatchError(
            f"{file} names no layer of this model, first {unknown[0]!r}: it is another model's."
        )
    found: dict[str, Widths] = {}
    for name in names:
        layer = _layer_of(name)
        rows = parameters.get(f"{layer}.weight")
        taken = activations.get(layer, {}).get("input", {}).get("0", {}).get("bitwidth")
        weight = rows[0]["bitwidth"] if rows else None
        if weight is not None or taken is not None:
            found[name] = (weight, taken)
    return found


def _csv(file: Path, names: list[str]) -> dict[str, Widths]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        if not {"module", "bits"} <= set(reader.fieldnames or ()):
            raise UserInputError(f"{file} needs the columns module and bits in its first line.")
        found: dict[str, Widths] = {}
        for number, row in enumerate(reader, start=2):
            name, text = str(row["module"]).strip(), str(row["bits"]).strip()
            if name not in names:
                raise SiteMismatchError(
                    f"{file}, line {number}: the model has no module {name!r}."
                    + (near_names(name, names) or " modules.csv of the run lists them.")
                )
            if not text.isdecimal():
                raise UserInputError(f"{file}, line {number}: bits is {text!r}, no whole number.")
            found[name] = (int(text), int(text))
    return found


READERS: dict[str, Callable[[Path, list[str]], dict[str, Widths]]] = {
    "modelopt": _modelopt,
    "aimet": _aimet,
    "csv": _csv,
}
"""What can be imported, by the name of ``--from``."""
