"""Inner products of gradients and rounding errors, image by image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitsense.errors import MeasurementError
from vitsense.numerics.fake_quant import AnyGrid, fake_quantize, rounding_error_in_steps
from vitsense.numerics.grid import Grid
from vitsense.observe import Call

_CHUNK = 1 << 17
"""Values rounded together on a CPU: more leave the cache, fewer do not pay for the calls."""

_GRADIENT_BYTES = 64 * 1024**2
"""Memory for weight gradients of single images."""

_LOOPED_POSITIONS = 150
"""From this many output positions on, a convolution per image beats gathering its windows."""


def by_image(tensor: Tensor, images: int, axis: int) -> Tensor:
    """`(images, rows, …)`: the axis of the images first, the rows of each image beside it.

    Raises:
        MeasurementError: the axis does not hold a whole number of rows for each image.
    """
    moved = tensor if axis == 0 else tensor.movedim(axis, 0)
    if not moved.dim() or moved.shape[0] % images:
        raise MeasurementError(
            f"A tensor of shape {tuple(tensor.shape)} does not hold its {images} images along axis "
            f"{axis}, which estimates of single images need: use --mode exact or adaptive."
        )
    return moved.reshape(images, moved.shape[0] // images, *moved.shape[1:])


def rounding_products(
    value: Tensor, gradients: Sequence[Tensor], grids: Sequence[AnyGrid], *, images: int
) -> Tensor:
    """Gradient times rounding error, summed over each image, `(gradients, grids, images)`.

    Args:
        value: An activation, `(images · rows, …)`.
        gradients: At each of its uses, in its shape.
        grids: What to round to.
        images: Images in the batch.
    """
    found = torch.zeros(len(gradients), len(grids), images, device=value.device)
    step = images
    if value.device.type == "cpu":
        step = max(1, _CHUNK * images // max(value.numel(), 1))
    rows = len(value) // images
    for start in range(0, images, step):
        part, lines = (slice(n * start, n * (start + step)) for n in (1, rows))
        piece = value[lines].contiguous()
        size = (len(piece) // rows, -1)
        flat = [gradient[lines].reshape(size) for gradient in gradients]
        work, error = torch.empty_like(piece), torch.empty_like(piece)
        for number, grid in enumerate(grids):
            scale: Tensor | float = 1.0
            if isinstance(grid, Grid) and grid.scale.numel() == 1:
                rounding_error_in_steps(piece, grid, work=work, out=error)
                scale = grid.scale
            else:
                torch.sub(fake_quantize(piece, grid), piece, out=error)
            for use, gradient in enumerate(flat):
                product = torch.linalg.vecdot(gradient, error.reshape(size))
                found[use, number, part] = product * scale
    return found


def weight_products(
    call: Call, gradient: Tensor, errors: Tensor, *, images: int, axis: int
) -> Tensor:
    """Output gradient times the output's change by errors of the weight, `(errors, images)`.

    To first order in nothing: the change of the output by another weight is exact. The weight
    gradient of every image is formed once, whatever the number of errors, unless the layer has so
    few rows that running it with each error costs less.

    Args:
        call: A linear or convolution call.
        gradient: At its output.
        errors: `(errors, …)`, each in the shape of the weight.
        images: Images in the batch.
        axis: Where they stand.
    """
    x = by_image(call.input.detach(), images, axis)
    g = by_image(gradient, images, axis)
    if call.is_linear:
        return _linear(
            x.reshape(images, -1, x.shape[-1]), g.reshape(images, -1, g.shape[-1]), errors
        )
    x, g = x.flatten(0, 1), g.flatten(0, 1)  # rows of one image stay neighbours
    return _convolution(call, x, g, errors).reshape(len(errors), images, -1).sum(dim=2)


def _linear(x: Tensor, g: Tensor, errors: Tensor) -> Tensor:
    """Inputs `(B, T, I)` and output gradients `(B, T, O)`."""
    if x.shape[1] <= len(errors):
        changes = (torch.nn.functional.linear(x, error) for error in errors)
        return torch.stack([(change * g).flatten(1).sum(dim=1) for change in changes])
    return _with_gradients(lambda part: g[part].transpose(1, 2) @ x[part], len(x), errors)


def _with_gradients(gradients: Callable[[slice], Tensor], images: int, errors: Tensor) -> Tensor:
    """Products with the weight gradients `(images, …)` that are made for some images at a time."""
    table = errors.flatten(1)
    step = max(1, _GRADIENT_BYTES // (table.shape[1] * table.element_size()))
    pieces = [
        gradients(slice(start, start + step)).flatten(1) @ table.T
        for start in range(0, images, step)
    ]
    return torch.cat(pieces).T


def _convolution(call: Call, x: Tensor, g: Tensor, errors: Tensor) -> Tensor:
    """Inputs `(B, I, …)` and output gradients `(B, O, …)`."""
    shape, kernel = call.convolution(), call.weight.shape[2:]
    positions, dense = g[0, 0].numel(), shape.groups == 1
    still = set(kernel) == {1} == set(shape.stride) and not any(shape.padding or (1,))
    if dense and still:
        return _linear(x.flatten(2).transpose(1, 2), g.flatten(2).transpose(1, 2), errors)
    few = positions < (_LOOPED_POSITIONS if dense else 4 * _LOOPED_POSITIONS)
    if shape.padding is None or (few and not (dense and len(kernel) == 2)):
        changes = (call.with_layer(x, error, None).run() for error in errors)
        return torch.stack([(change * g).flatten(1).sum(dim=1) for change in changes])
    padding, options = shape.padding, (shape.stride, shape.padding, shape.dilation)

    def gathered(part: slice) -> Tensor:
        windows = torch.nn.functional.unfold(x[part], kernel, shape.dilation, padding, shape.stride)
        return g[part].flatten(2) @ windows.transpose(1, 2)

    def looped(part: slice) -> Tensor:
        rest = (*options, False, [0] * len(kernel), shape.groups, [False, True, False])
        backward = torch.ops.aten.convolution_backward
        pairs = zip(x[part, None], g[part, None], strict=True)
        return torch.stack([backward(b, a, call.weight, None, *rest)[1] for a, b in pairs])

    return _with_gradients(gathered if few else looped, len(x), errors)
