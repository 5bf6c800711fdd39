"""A fixed model as an ONNX graph, by torch's exporter. The only file that imports onnxscript.

While the model is traced, its sites call two custom operators; their translations are the ONNX
operators `QuantizeLinear` and `DequantizeLinear`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vitsense.errors import InputMissingError, VitsenseError
from vitsense.export.fixed import FixedModel, FixedWeight
from vitsense.export.onnx_types import Stored
from vitsense.numerics.fake_quant import dequantize, fake_quantize
from vitsense.numerics.grid import Format, Grid
from vitsense.observe import Visit, observing

_BATCH = 2
"""Images while tracing: torch.export would take a batch of one for a constant."""

INPUT, OUTPUT = "images", "logits"
"""Names of the graph's input and output."""


def need_onnx() -> None:
    """Check that the extra is installed.

    Raises:
        InputMissingError: a package is missing; how to install it.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise InputMissingError(
            f"This needs {', '.join(missing)}: pip install 'vitsense[onnx]' (in a checkout: "
            "pip install '.[onnx]')."
        )


@torch.library.custom_op("vitsense::fake_quantize", mutates_args=())
def _fake_quantize(
    x: Tensor,
    scale: Sequence[float],
    zero_point: Sequence[int],
    shift: Sequence[float],
    shape: Sequence[int],
    bits: int,
    signed: bool,
    held: int,  # noqa: ARG001  only the translation needs it
    lift: int,  # noqa: ARG001
    site: str,  # noqa: ARG001
) -> Tensor:
    steps = torch.tensor(scale, dtype=torch.float32).reshape(list(shape))
    zeros = torch.tensor(zero_point, dtype=torch.float32).reshape(list(shape))
    moved = torch.tensor(shift, dtype=torch.float32).reshape(list(shape)) if shift else None
    return fake_quantize(x, Grid(Format(bits, signed), steps, zeros, moved), divide=True)


@_fake_quantize.register_fake
def _(x: Tensor, *_rest: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("vitsense::dequantize", mutates_args=())
def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    shape = [-1 if i == axis else 1 for i in range(codes.dim())] if scale.dim() else []
    steps = scale.reshape(shape)
    zeros = torch.zeros_like(steps) if zero_point is None else zero_point.float().reshape(shape)
    return dequantize(codes.to(torch.int32), Grid(Format(16), steps, zeros))


@_dequantize.register_fake
def _(codes: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:  # noqa: ARG001
    return torch.empty(codes.shape, dtype=torch.float32, device=codes.device)


def _translations(opset: int) -> dict[Any, Any]:
    """Custom operator -> function that writes its ONNX operators."""
    import onnx_ir as ir
    import onnxscript

    # QuantizeLinear is the same from 21 on, but for the types it takes
    op = getattr(onnxscript, f"opset{min(opset, 21)}")

    def constant(values: Any, dtype: Any, axis: int | None) -> Any:
        array = np.asarray(values).astype(dtype)
        return op.Constant(value=ir.tensor(array[0] if axis is None else array))

    def quantize_dequantize(
        x: Any,
        scale: Sequence[float],
        zero_point: Sequence[int],
        shift: Sequence[float],
        shape: Sequence[int],
        bits: int,
        signed: bool,
        held: int,
        lift: int,
        site: str,  # noqa: ARG001
    ) -> Any:
        moved = None
        if shift:
            moved = op.Constant(value=ir.tensor(np.array(shift, dtype=np.float32).reshape(shape)))
            x = op.Sub(x, moved)
        axis = None if len(scale) == 1 else next(i for i, n in enumerate(shape) if n > 1)
        form = Format(bits, signed)
        if held > bits:
            zeros = np.array(zero_point, dtype=np.float32)
            steps = np.array(scale, dtype=np.float32)
            low, high = steps * (form.qmin - zeros), steps * (form.qmax - zeros)
            if axis is None:
                x = op.Clip(x, constant(low, np.float32, None), constant(high, np.float32, None))
            else:
                x = op.Max(x, op.Constant(value=ir.tensor(low.reshape(shape))))
                x = op.Min(x, op.Constant(value=ir.tensor(high.reshape(shape))))
        kind = f"{'int' if signed and not lift else 'uint'}{held}"
        step = constant(scale, np.float32, axis)
        zero = constant(np.asarray(zero_point) + lift, getattr(np, kind), axis)
        where = {} if axis is None else {"axis": axis - len(shape)}
        codes = op.QuantizeLinear(x, step, zero, **where)
        found = op.DequantizeLinear(codes, step, zero, **where)
        return found if moved is None else op.Add(found, moved)

    def from_codes(codes: Any, scale: Any, zero_point: Any, axis: int) -> Any:
        if zero_point is None:
            return op.DequantizeLinear(codes, scale, axis=axis)
        return op.DequantizeLinear(codes, scale, zero_point, axis=axis)

    return {
        torch.ops.vitsense.fake_quantize.default: quantize_dequantize,
        torch.ops.vitsense.dequantize.default: from_codes,
    }


class _Traced(nn.Module):
    """The fixed model with its integers as buffers and its sites as custom operators."""

    def __init__(self, fixed: FixedModel, stored: Mapping[str, Stored]) -> None:
        super().__init__()
        self.model = fixed.model
        self._catalog = fixed.catalog
        self._ranges = {
            key: _range(key, grid, stored[key]) for key, grid in fixed.activations.items()
        }
        self.names: dict[str, str] = {}
        for number, (key, weight) in enumerate(fixed.weights.items()):
            name = f"weight{number}"
            self.names[key] = name
            self._keep(name, weight)
        self.eval()

    def _keep(self, name: str, weight: FixedWeight) -> None:
        grid = weight.grid
        kind = torch.int16 if grid.format.bits > 8 else torch.int8
        self.register_buffer(f"{name}_codes", weight.codes.to(kind))
        flat = grid.scale.reshape(-1) if grid.scale.numel() > 1 else grid.scale.reshape(())
        self.register_buffer(f"{name}_scale", flat.float())
        zeros = grid.zero_point.reshape(flat.shape)
        if bool((zeros != 0).any()):  # a buffer that is None confuses torch.export 2.14
            self.register_buffer(f"{name}_zero", zeros.to(kind))
        if grid.shift is not None:
            self.register_buffer(f"{name}_shift", grid.shift.float())

    def forward(self, images: Tensor) -> Tensor:
        visits: dict[str, Visit] = {key: self._weight(name) for key, name in self.names.items()}
        visits |= {key: self._activation(key) for key in self._ranges}
        with observing(self.model, self._catalog, visits):
            logits: Tensor = self.model(images)
            return logits

    def _weight(self, name: str) -> Visit:
        parts = [getattr(self, f"{name}_{part}", None) for part in ("codes", "scale", "zero")]
        shift = getattr(self, f"{name}_shift", None)

        def made(_tensor: Tensor) -> Tensor:
            values: Tensor = torch.ops.vitsense.dequantize(*parts, 0)
            return values if shift is None else values + shift

        return made

    def _activation(self, site: str) -> Visit:
        rest = self._ranges[site]
        op = torch.ops.vitsense.fake_quantize
        made: Visit = lambda x: op(x, *rest)  # noqa: E731
        return made


def _range(site: str, grid: Grid, stored: Stored) -> tuple[Any, ...]:
    """A grid as plain values, which tracing takes for constants."""
    scale, zeros = grid.scale.reshape(-1).tolist(), grid.zero_point.reshape(-1).tolist()
    form, shape = grid.format, list(grid.scale.shape)
    shift = [] if grid.shift is None else grid.shift.reshape(-1).tolist()
    held = (stored.bits, stored.lift)
    return (scale, [int(z) for z in zeros], shift, shape, form.bits, form.signed, *held, site)


def quantized_graph(
    fixed: FixedModel, image: Tensor, stored: Mapping[str, Stored], opset: int
) -> Any:
    """The quantized model as an ``onnx_ir.Model`` with a dynamic batch.

    Args:
        fixed: The quantized model.
        image: One image, `(1, 3, H, W)`.
        stored: The type of every site.
        opset: Operator set.

    Raises:
        VitsenseError: torch cannot export this model; its reason is given.
    """
    traced = _Traced(fixed, stored)
    program = _exported(traced, image, opset, _translations(opset))
    model = program.model
    _type_weights(model, traced, stored)
    _name_sites(model, program.exported_program)
    _forget_the_trace(model)
    model.metadata_props["vitsense.sites"] = fixed.catalog.digest
    return model


def float_graph(model: nn.Module, image: Tensor, opset: int) -> Any:
    """The same model without any quantizer, to compare its latency with.

    Raises:
        VitsenseError: torch cannot export this model.
    """
    made = _exported(model.eval(), image, opset, {}).model
    _forget_the_trace(made)
    return made


def _exported(model: nn.Module, image: Tensor, opset: int, translations: dict[Any, Any]) -> Any:
    images = image.expand(_BATCH, *image.shape[1:]).contiguous()
    try:
        with _quiet(), torch.no_grad():
            return torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                custom_translation_table=translations,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
    except Exception as error:
        # torch.export raises whatever the model's own code raises
        reason = (str(error.__cause__ or error).strip().splitlines() or ["no reason given"])[0]
        raise VitsenseError(
            f"torch cannot export this model to ONNX ({type(error).__name__}: {reason[:300]}). "
            "Models whose forward depends on values or on a fixed batch cannot be exported."
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its advice for other people from the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _type_weights(model: Any, traced: _Traced, stored: Mapping[str, Stored]) -> None:
    """Give the codes of each weight their narrow type and the name of their site."""
    import ml_dtypes
    import onnx_ir as ir

    initializers = model.graph.initializers
    for key, name in traced.names.items():
        held = stored[key].bits
        for part in ("codes", "zero"):
            value = initializers.get(f"{name}_{part}")
            if value is None:
                continue
            if held < 8:
                narrow = getattr(ml_dtypes, f"int{held}")
                codes = value.const_value.numpy().astype(narrow)
                value.const_value = ir.tensor(codes, name=value.name)
                value.dtype = value.const_value.dtype
            value.name = f"{key}.{part}"
        initializers[f"{name}_scale"].name = f"{key}.scale"
        if f"{name}_shift" in initializers:
            initializers[f"{name}_shift"].name = f"{key}.shift"


def _name_sites(model: Any, program: Any) -> None:
    """Call the dequantized tensor of every site by the site.

    Sites that see the same tensor with the same range share their nodes; one of them gives the
    name.
    """
    target = torch.ops.vitsense.fake_quantize.default
    sites = {n.name: n.args[-1] for n in program.graph.nodes if n.target is target}
    for node in model.graph:
        if node.op_type not in ("DequantizeLinear", "Add") or node.outputs[0].name not in sites:
            continue
        site = sites[node.outputs[0].name]
        node.outputs[0].name = site
        if node.op_type == "Add":  # of a shifted grid
            node.name = f"{site}.shift"
            node = node.inputs[0].producer()  # noqa: PLW2901
        node.name = f"{site}.dequantize"
        quantize = node.inputs[0].producer()
        if quantize is not None:
            quantize.outputs[0].name = f"{site}.codes"
            quantize.name = f"{site}.quantize"


def _forget_the_trace(model: Any) -> None:
    """Take out the exporter's stack traces, which name the folders of this machine."""
    model.metadata_props.clear()
    for node in model.graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def write_graph(model: Any) -> bytes:
    """The bytes of an ``onnx_ir.Model``."""
    import onnx_ir as ir

    raw: bytes = ir.to_proto(model).SerializeToString()
    return raw
