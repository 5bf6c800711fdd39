"""One forward and one backward pass that show every site's tensor together with its gradient.

Every use of a tensor at a site goes through an identity whose backward receives the gradient that
flows back through this one use (an input shared by q, k and v has three). Nothing is registered on
the model beyond the hooks of `intercepting`, no parameter gets a gradient, and the model is as it
was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vitsense.errors import MeasurementError
from vitsense.observe.attention import attention_output, attention_scores
from vitsense.observe.operations import Call, Op
from vitsense.observe.stack import intercepting
from vitsense.observe.visiting import SiteHandler, as_index
from vitsense.sites import SiteCatalog, SiteModule, SiteRole


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flow:
    """What went through one module in the forward pass and came back in the backward pass.

    Gradients are those of the sum over images of the chosen scalar of each image.
    """

    module: SiteModule
    values: Mapping[SiteRole, Tensor]
    """The activations at its sites."""
    gradients: Mapping[SiteRole, Tensor]
    """Gradient at each of them through this module alone, in the shape of the value."""
    batch_axis: int
    """Axis of the images; it may hold several rows (windows) of each image, one after another."""
    call: Call | None = None
    """The linear or convolution with this module's rows of the weight; None for products."""
    output_gradient: Tensor | None = None
    """Gradient at the output of ``call``."""


FlowVisit = Callable[[Sequence[Flow]], None]
"""Called when the backward pass reaches an operation; all flows share their activations."""

Direction = Callable[[Tensor], Tensor]
"""From logits `(B, classes)` to the vector `(B, classes)` that is sent back."""


class _Through(torch.autograd.Function):
    """An identity with several outputs that hands their gradients over on the way back."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, seen: Callable[..., None], *tensors: Tensor) -> Any:
        ctx.seen = seen
        ctx.like = anchor
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        with torch.no_grad():
            ctx.seen(gradients)
        return (torch.zeros_like(ctx.like), None, *gradients)


class _FlowHandler(SiteHandler):
    """Wraps the operands of every catalogued operation."""

    def __init__(self, model: nn.Module, catalog: SiteCatalog, visit: FlowVisit) -> None:
        super().__init__(model, catalog)
        self._visit_flows = visit
        self._images_axis = 0
        # the backward of every wrapped use ends here, whether or not it depends on the images
        self.anchor: Tensor | None = None

    def _expanded(self, call: Call, path: str) -> Any:
        # torch's own multi-head attention keeps images along the second axis of its projections
        self._images_axis = 1 if call.function is torch.nn.functional.linear else 0
        try:
            return super()._expanded(call, path)
        finally:
            self._images_axis = 0

    def _through(self, seen: Callable[..., None], *tensors: Tensor) -> tuple[Tensor, ...]:
        wrapped: tuple[Tensor, ...] = _Through.apply(self.anchor, seen, *tensors)
        return wrapped

    def _run_layer(self, call: Call, modules: list[SiteModule], channel_axis: int) -> Any:
        parts = [_rows_of(call, module) for module in modules]
        outputs: list[Tensor] = [torch.empty(0)] * len(parts)
        came_back: dict[int, Tensor] = {}
        x, axis = call.input, self._images_axis

        def seen(gradients: tuple[Tensor, ...]) -> None:
            self._visit_flows(
                [
                    Flow(
                        module=module,
                        values={SiteRole.INPUT: x},
                        gradients={SiteRole.INPUT: gradient},
                        batch_axis=axis,
                        call=part,
                        output_gradient=came_back.pop(number),
                    )
                    for number, (module, part, gradient) in enumerate(
                        zip(modules, parts, gradients, strict=True)
                    )
                ]
            )

        inputs = self._through(seen, *[x] * len(modules))
        for number, (part, wrapped) in enumerate(zip(parts, inputs, strict=True)):
            output = part.put(0, "input", wrapped).run()
            # called before the gradient at the input is there; an in-place change of the output
            # afterwards does not reach a hook that is already on it
            output.register_hook(_keeping(came_back, number))
            outputs[number] = output
        return (
            outputs[0] if modules[0].channels is None else _joined(outputs, modules, channel_axis)
        )

    def _run_product(self, call: Call, modules: list[SiteModule]) -> Any:
        (module,) = modules
        roles = [site.role for site in module.sites]
        left, right = self._product_operands(module, roles, call.operands())
        return call.with_operands(left, right).run()

    def _run_attention(self, call: Call, modules: list[SiteModule]) -> Any:
        scores, mix = modules
        query, key = self._product_operands(
            scores, [SiteRole.QUERY, SiteRole.KEY], (call.get(0, "query"), call.get(1, "key"))
        )
        probs = attention_scores(call.put(0, "query", query).put(1, "key", key))
        probs, value = self._product_operands(
            mix, [SiteRole.ATTENTION_PROBS, SiteRole.VALUE], (probs, call.get(2, "value"))
        )
        return attention_output(call, probs, value)

    def _product_operands(
        self, module: SiteModule, roles: Sequence[SiteRole], operands: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        values = dict(zip(roles, operands, strict=True))

        def seen(gradients: tuple[Tensor, ...]) -> None:
            found = dict(zip(roles, gradients, strict=True))
            self._visit_flows([Flow(module=module, values=values, gradients=found, batch_axis=0)])

        return self._through(seen, *operands)

    def handle(self, op: Op | None, call: Call, path: str) -> Any:
        """Run the call with its operands wrapped, where it belongs to the catalog."""
        if op is Op.LINEAR or op is Op.CONV:
            modules = self.layers_of(call, path)
            axis = -1 if op is Op.LINEAR else -call.weight.dim() + 1
            return self._run_layer(call, modules, axis) if modules else call.run()
        if op is Op.PRODUCT or op is Op.SDPA:
            found = self.products_of(path)
            if not found:
                return call.run()
            run = self._run_attention if op is Op.SDPA else self._run_product
            return run(call, found)
        return super().handle(op, call, path)


def _keeping(kept: dict[int, Tensor], number: int) -> Callable[[Tensor], None]:
    def keep(gradient: Tensor) -> None:
        kept[number] = gradient

    return keep


def _rows_of(call: Call, module: SiteModule) -> Call:
    """The call with the module's output channels alone."""
    if module.channels is None:
        return call
    rows = as_index(module.channels)
    bias = None if call.bias is None else call.bias[rows]
    return call.with_layer(call.input, call.weight[rows], bias)


def _joined(outputs: list[Tensor], modules: list[SiteModule], channel_axis: int) -> Tensor:
    """The outputs of slices in the order of the fused layer's channels."""
    together = torch.cat(outputs, dim=channel_axis)
    order = [channel for module in modules for channel in module.channels or ()]
    if order == sorted(order):
        return together
    places = torch.tensor(order, device=together.device).argsort()
    return together.index_select(channel_axis, places)


class FlowSession:
    """A model prepared for passes there and back; made by `flowing`."""

    def __init__(self, model: nn.Module, handler: _FlowHandler, mode: Any) -> None:
        self._model = model
        self._handler = handler
        self._mode = mode

    def run(self, images: Tensor, direction: Direction) -> Tensor:
        """Logits `(B, classes)` of the images; the visit sees every operation on the way back.

        Raises:
            MeasurementError: the model's output is not differentiable.
        """
        self._handler.anchor = torch.zeros((), device=images.device, requires_grad=True)
        try:
            with torch.enable_grad():
                with self._mode:
                    logits: Tensor = self._model(images)
                scalar = (logits * direction(logits.detach()).to(logits.dtype)).sum()
                _backward(scalar, self._handler.anchor)
            return logits.detach()
        finally:
            self._handler.anchor = None


def _backward(scalar: Tensor, anchor: Tensor) -> None:
    try:
        torch.autograd.grad(scalar, [anchor])  # parameters are no inputs: they get no gradient
    except RuntimeError as error:
        raise MeasurementError(
            f"The gradient of this model cannot be computed ({str(error).splitlines()[0]}): use "
            "--mode exact or adaptive."
        ) from error


@contextmanager
def flowing(model: nn.Module, catalog: SiteCatalog, visit: FlowVisit) -> Iterator[FlowSession]:
    """A `FlowSession` with its hooks installed for the length of the context."""
    handler = _FlowHandler(model, catalog, visit)
    with intercepting(model, handler) as mode:
        yield FlowSession(model, handler, mode)
