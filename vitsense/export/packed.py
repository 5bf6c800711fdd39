"""One safetensors file that holds a quantized model: packed codes, scales, ranges and the plan.

The layout is described in ``docs/packed-format.md``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitsense.errors import InputMissingError, SchemaVersionError, UserInputError
from vitsense.export.bitstream import pack_codes, unpack_codes
from vitsense.export.fixed import FixedModel, FixedWeight, runner_of
from vitsense.numerics.grid import Format, Grid
from vitsense.plan.plan import Plan
from vitsense.runfolder import atomic_write
from vitsense.sites import SiteCatalog

PACKED_SCHEMA = "vitsense.packed/1"
"""Schema of the metadata; a larger number after the slash is a newer version's."""

_FLOAT = "float/"
"""What stands before the name of a tensor that is not quantized."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedSize:
    """What a packed file consists of, bytes."""

    codes: int
    scales: int
    parameters: int
    """Parameters that are not quantized, in float."""
    buffers: int
    """Running means and variances of batch normalization and the like."""
    header: int
    """Names, shapes, ranges of activations, the plan."""
    total: int
    predicted_mb: float | None
    """What the plan predicted, 10^6 bytes: codes, scales and parameters."""

    @property
    def weights_to_predicted(self) -> float | None:
        """Codes, scales and parameters by the prediction; 1 is as predicted."""
        if not self.predicted_mb:
            return None
        return (self.codes + self.scales + self.parameters) / 1e6 / self.predicted_mb

    @property
    def total_to_predicted(self) -> float | None:
        """The whole file by the prediction."""
        return self.total / 1e6 / self.predicted_mb if self.predicted_mb else None


def save_packed(path: Path, fixed: FixedModel, plan: Plan, about: Mapping[str, Any]) -> PackedSize:
    """Write the file whole or not at all.

    Args:
        path: Ends in ``.safetensors``.
        fixed: The quantized model.
        plan: Stored without its reasons.
        about: The model (name, source, classes, preprocessing) and how images were drawn; plain
            values, read again by `read_packed`.

    Raises:
        UserInputError: the folder cannot be written.
    """
    from safetensors.torch import save

    tensors, rows = _weight_tensors(fixed)
    rest = _not_quantized(fixed)
    tensors |= {_FLOAT + key: value for key, value in rest.items()}
    ranges = {key: _grid_entry(grid, key, tensors) for key, grid in fixed.activations.items()}
    metadata = {
        "schema": PACKED_SCHEMA,
        "model": dict(about),
        "plan": _lean(plan),
        "sites_digest": fixed.catalog.digest,
        "weights": rows,
        "activations": ranges,
    }
    if fixed.trained is not None:
        metadata["trained"] = dict(fixed.trained)
    metadata["digest"] = _digest(metadata, tensors)
    # one entry: safetensors writes several in any order, and equal models shall be equal files
    raw = save(tensors, metadata={"vitsense": _canonical(metadata)})
    atomic_write(path, raw)
    return _size(tensors, rest, fixed.model, len(raw), plan)


def _weight_tensors(fixed: FixedModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    rows: dict[str, Any] = {}
    for key, weight in fixed.weights.items():
        form = weight.grid.format
        name = key.rpartition(":")[0]
        tensors[f"{name}.codes"] = torch.from_numpy(pack_codes(weight.codes.numpy(), form.bits))
        rows[name] = {
            "shape": list(weight.codes.shape),
            **_grid_entry(weight.grid, name, tensors),
        }
    return tensors, rows


def _grid_entry(grid: Grid, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A grid as metadata; more than one scale becomes a tensor, and so does a shift."""
    entry: dict[str, Any] = {"format": grid.format.name}
    half = grid.shift is not None and torch.equal(grid.shift, grid.scale * 0.5)
    if half:
        entry["shift_in_steps"] = 0.5
    if grid.scale.numel() == 1:
        shape = list(grid.scale.shape)
        entry |= {"scale": float(grid.scale), "zero_point": int(grid.zero_point)}
        if grid.shift is not None and not half:
            entry["shift"] = float(grid.shift)
        return entry if not shape else {**entry, "scale_shape": shape}
    if grid.shift is not None and not half:
        tensors[f"{name}.shift"] = grid.shift.float().contiguous()
    tensors[f"{name}.scale"] = grid.scale.float().contiguous()
    if bool((grid.zero_point != 0).any()):
        tensors[f"{name}.zero_point"] = grid.zero_point.to(torch.int32).contiguous()
    return entry


def _grid_of(entry: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor]) -> Grid:
    form = Format.parse(entry["format"])
    if "scale" in entry:
        shape = entry.get("scale_shape", [])
        scale = torch.full(shape, entry["scale"], dtype=torch.float32)
        zeros = torch.full(shape, float(entry["zero_point"]))
        shift = torch.full(shape, entry["shift"]) if "shift" in entry else None
    else:
        scale = tensors[f"{name}.scale"]
        zero_point = tensors.get(f"{name}.zero_point")
        zeros = torch.zeros_like(scale) if zero_point is None else zero_point.float()
        shift = tensors.get(f"{name}.shift")
    if "shift_in_steps" in entry:
        shift = scale * entry["shift_in_steps"]
    return Grid(form, scale, zeros, shift)


def covered_parameters(fixed: FixedModel) -> dict[str, list[str]]:
    """Parameters whose every value is quantized: name -> the ids of the weight sites in it."""
    found: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for module in fixed.catalog:
        site = module.weight_site
        if module.derived_weight and fixed.trained is not None:
            continue  # its runner computes the weight from the parameter again
        if site is not None and module.weight is not None and site.id in fixed.weights:
            found.setdefault(module.weight, []).append(site.id)
            counts[module.weight] = counts.get(module.weight, 0) + module.params
    sizes = {name: p.numel() for name, p in fixed.model.named_parameters()}
    return {name: ids for name, ids in found.items() if counts[name] == sizes[name]}


def _not_quantized(fixed: FixedModel) -> dict[str, Tensor]:
    covered = covered_parameters(fixed)
    return {
        # copied: safetensors refuses tensors that share memory
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in fixed.model.state_dict().items()
        if key not in covered
    }


def _lean(plan: Plan) -> dict[str, Any]:
    """The plan without the sentences, which would be a tenth of a small file."""
    return replace(plan, modules=tuple(replace(m, reason="") for m in plan.modules)).to_json()


def _canonical(metadata: Mapping[str, Any]) -> str:
    return json.dumps(metadata, separators=(",", ":"), sort_keys=True, allow_nan=False)


def _digest(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the metadata and every tensor's name, type, shape and bytes."""
    said = {key: value for key, value in metadata.items() if key != "digest"}
    running = hashlib.sha256(_canonical(said).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        running.update(f"|{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        running.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return running.hexdigest()


def _size(
    tensors: Mapping[str, Tensor],
    rest: Mapping[str, Tensor],
    model: nn.Module,
    total: int,
    plan: Plan,
) -> PackedSize:
    sizes = {key: value.numel() * value.element_size() for key, value in tensors.items()}
    buffers = {name for name, _ in model.named_buffers()}
    floats = {key: sizes[_FLOAT + key] for key in rest}
    return PackedSize(
        codes=sum(v for k, v in sizes.items() if k.endswith(".codes")),
        scales=sum(
            v
            for k, v in sizes.items()
            if k.endswith((".scale", ".zero_point", ".shift")) and k[:6] != _FLOAT
        ),
        parameters=sum(v for k, v in floats.items() if k not in buffers),
        buffers=sum(v for k, v in floats.items() if k in buffers),
        header=total - sum(sizes.values()),
        total=total,
        predicted_mb=(plan.cost or {}).get("size_mb"),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedFile:
    """A packed file that was read and found whole."""

    path: Path
    about: Mapping[str, Any]
    plan: Plan
    sites_digest: str
    weights: Mapping[str, FixedWeight]
    """By module name."""
    activations: Mapping[str, Grid]
    """By site id."""
    rest: Mapping[str, Tensor]
    """Parameters and buffers that are not quantized, by their names in the model."""
    trained: Mapping[str, Any] | None = None
    """What the training was; None for a model that was quantized after training."""

    def restore(self, model: nn.Module, catalog: SiteCatalog) -> FixedModel:
        """Fill a model of the same architecture and join it with the grids.

        Args:
            model: Its weights are replaced.
            catalog: Its sites.

        Raises:
            SiteMismatchError: the architecture is another one.
            UserInputError: a tensor does not fit.
        """
        from vitsense.export.fixed import check_same_sites

        check_same_sites(catalog, self.sites_digest, str(self.path))
        fixed = FixedModel(
            model,
            catalog,
            {f"{name}:weight": weight for name, weight in self.weights.items()},
            self.activations,
            trained=self.trained,
        )
        state = model.state_dict()
        parameters = dict(model.named_parameters())
        covered = covered_parameters(fixed)
        missing = [key for key in state if key not in self.rest and key not in covered]
        wrong = [k for k, v in self.rest.items() if k not in state or state[k].shape != v.shape]
        if missing or wrong:
            raise UserInputError(
                f"{self.path} does not fit the model: {len(missing)} tensors are missing and "
                f"{len(wrong)} do not fit, first {(missing + wrong)[0]!r}; it belongs to another "
                "architecture."
            )
        with torch.no_grad():
            for key, tensor in self.rest.items():
                state[key].copy_(tensor)
            for module in catalog:
                weight = self.weights.get(module.name)
                if weight is None or module.derived_weight or module.weight not in covered:
                    continue
                target = parameters[module.weight]
                rows = slice(None) if module.channels is None else list(module.channels)
                target[rows] = weight.values.reshape(target[rows].shape)
        if self.trained is not None:
            fixed.runner = runner_of(fixed)
        return fixed


def read_packed(path: Path) -> PackedFile:
    """Read a file and check every byte of it.

    Raises:
        InputMissingError: no such file.
        UserInputError: cut short, changed after it was written, or not a packed file.
        SchemaVersionError: a newer version wrote it.
    """
    data, tensors = _opened(path)
    if data.get("digest") != _digest(data, tensors):
        raise UserInputError(
            f"{path} was changed after it was written (its digest does not fit its content); "
            "fetch or export it again."
        )
    plan = Plan.from_json(data["plan"], str(path))
    weights = {}
    for name, row in data["weights"].items():
        grid = _grid_of(row, name, tensors)
        codes = unpack_codes(
            tensors[f"{name}.codes"].numpy(),
            grid.format.bits,
            tuple(row["shape"]),
            signed=grid.format.signed,
        )
        weights[name] = FixedWeight(torch.from_numpy(np.ascontiguousarray(codes)), grid)
    return PackedFile(
        path=path,
        about=data["model"],
        plan=plan,
        sites_digest=data["sites_digest"],
        weights=weights,
        activations={k: _grid_of(v, k, tensors) for k, v in data["activations"].items()},
        rest={k.removeprefix(_FLOAT): v for k, v in tensors.items() if k.startswith(_FLOAT)},
        trained=data.get("trained"),
    )


def _opened(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputMissingError(f"There is no file {path}; check its name.")
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserInputError(
            f"{path} is not a whole safetensors file ({error}); fetch or export it again."
        ) from error
    text = metadata.get("vitsense", "")
    try:
        data: dict[str, Any] = json.loads(text) if text else {"schema": ""}
        schema = data["schema"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserInputError(f"{path}: its metadata is damaged; export it again.") from error
    name, _, number = str(schema).partition("/")
    if name != PACKED_SCHEMA.partition("/")[0] or not number.isdigit():
        raise UserInputError(
            f"{path} is not a model packed by vitsense (its schema is {schema!r}); make one with "
            "vitsense export RUN --format safetensors."
        )
    if int(number) > int(PACKED_SCHEMA.partition("/")[2]):
        raise SchemaVersionError(
            f"{path} follows {schema!r}, this version reads up to {PACKED_SCHEMA!r}: update "
            "vitsense."
        )
    return data, tensors


def size_json(size: PackedSize) -> dict[str, Any]:
    """Plain values for ``export.json``."""
    return {
        **asdict(size),
        "weights_to_predicted": size.weights_to_predicted,
        "total_to_predicted": size.total_to_predicted,
    }
