"""Record every multiplying operation of one forward, and how attention hangs together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vitsense.observe.attention import can_expand, multi_head_attention
from vitsense.observe.operations import Call, Op, layer_macs, product_macs
from vitsense.observe.replay import tensors_in
from vitsense.observe.stack import parameter_names
from vitsense.sites import Uncovered


@dataclass(eq=False, slots=True, kw_only=True)
class LayerEvent:
    """A linear or convolution call with a learned weight."""

    op: Op
    path: str
    weight: str
    derived: bool
    shape: tuple[int, ...]
    in_channels: int
    groups: int
    macs: int
    tick: int
    input_key: tuple[int, int]
    sees_image: bool
    """Whether its input has the image's channels and nothing learned came before it."""
    output: Tensor


@dataclass(eq=False, slots=True, kw_only=True)
class ProductEvent:
    """A product of two activations; a fused attention is one event with three operands."""

    path: str
    call: int
    operands: tuple[Tensor, ...]
    macs: int
    tick: int
    fused: bool = False
    einsum: bool = False
    feeds_softmax: bool = False
    probs_operand: int | None = None
    scores: tuple[ProductEvent, ...] = ()
    """The products whose softmax is the operand ``probs_operand``."""


@dataclass(frozen=True, slots=True)
class _Tag:
    """Marks tensors that come from a product: as scores before the softmax, as probs after."""

    event: ProductEvent
    after_softmax: bool

    def alive_in(self, path: str) -> bool:
        scope = self.event.path
        return scope == "" or path == scope or path.startswith(scope + ".")


@dataclass(slots=True)
class Trace:
    """What one forward did, in order."""

    layers: list[LayerEvent] = field(default_factory=list)
    products: list[ProductEvent] = field(default_factory=list)
    notes: dict[tuple[str, str], Uncovered] = field(default_factory=dict)

    def note(self, path: str, operation: str, reason: str) -> None:
        """Remember an operation that gets no quantizer (once per place)."""
        key = (path, operation)
        self.notes.setdefault(key, Uncovered(name=path, operation=operation, reason=reason))


_MULTIPLY = {torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__imul__}
_TAGS = "_vitsense_tags"
_FROM_IMAGE = "_vitsense_from_image"
_LEARNED = "_vitsense_learned"


class Tracer:
    """The handler that fills a `Trace`."""

    every_function = True

    def __init__(self, model: nn.Module) -> None:
        self._names = parameter_names(model)
        self._parameters = dict(model.named_parameters())
        self._calls: dict[str, int] = defaultdict(int)
        self._tick = 0
        self._kept: list[Tensor] = []  # ids stay unique as long as the tensors live
        self.trace = Trace()

    def begin(self) -> None:
        """A forward starts."""
        self._calls.clear()

    def mark_image(self, image: Tensor) -> None:
        """Everything computed from ``image`` counts as an activation."""
        setattr(image, _FROM_IMAGE, True)

    def handle(self, op: Op | None, call: Call, path: str) -> Any:
        """Run the call and record it."""
        if op is Op.MHA and can_expand(call):
            marks = [m for m in (_FROM_IMAGE, _LEARNED) if hasattr(call.get(0, "query"), m)]
            return multi_head_attention(call, lambda inner: self._inner(inner, path, marks))
        output = call.run()
        self._tick += 1
        tags: frozenset[_Tag] = self._tags_of(call, path)
        if op is Op.LINEAR or op is Op.CONV:
            self._layer(op, call, path, output)
            tags = tags if _mixes_heads(call, tags) else frozenset()
        elif op is Op.PRODUCT:
            tags = self._product(call, path, output)
        elif op is Op.SDPA:
            tags = self._fused(call, path)
        elif op is Op.SOFTMAX:
            tags = _softmax(tags)
        elif op is Op.UNSUPPORTED or op is Op.MHA:
            name = getattr(call.function, "__name__", "operation")
            self.trace.note(path, name, "this operation is not supported; it stays in float")
        elif call.function in _MULTIPLY and len(_images(call)) == 2:
            self.trace.note(path, "elementwise product", "no sum of products; it stays in float")
        self._pass_on(call, output, tags)
        return output

    def _inner(self, call: Call, path: str, marks: list[str]) -> Any:
        """A step of a spelled-out module; reshapes between the steps do not pass marks on."""
        for mark in marks:
            setattr(call.args[0], mark, True)
        op = Op.LINEAR if call.function is torch.nn.functional.linear else Op.SDPA
        return self.handle(op, call, path)

    def _tags_of(self, call: Call, path: str) -> frozenset[_Tag]:
        found: set[_Tag] = set()
        for tensor in _tensor_arguments(call):
            found |= getattr(tensor, _TAGS, frozenset())
        return frozenset(tag for tag in found if tag.alive_in(path))

    def _pass_on(self, call: Call, output: Any, tags: frozenset[_Tag]) -> None:
        arguments = list(_tensor_arguments(call))
        from_image = any(getattr(t, _FROM_IMAGE, False) for t in arguments)
        learned = any(getattr(t, _LEARNED, False) for t in arguments)
        for tensor in tensors_in(output):
            if isinstance(tensor, nn.Parameter):
                continue
            if from_image:
                setattr(tensor, _FROM_IMAGE, True)
            if learned:
                setattr(tensor, _LEARNED, True)
            if tags or hasattr(tensor, _TAGS):
                setattr(tensor, _TAGS, tags)

    def _layer(self, op: Op, call: Call, path: str, output: Tensor) -> None:
        weight = call.weight
        name = self._names.get(id(weight))
        own = f"{path}.weight" if path else "weight"
        derived = name is None
        if derived:
            parameter = self._parameters.get(own)
            if parameter is None or parameter.numel() != weight.numel():
                learned = "from activations" if weight.requires_grad else "not learned"
                self.trace.note(path, op.value, f"its weight is {learned}; it stays in float")
                return
            name = own
        assert name is not None
        if not getattr(call.input, _FROM_IMAGE, False):
            self.trace.note(path, op.value, "does not depend on the image: computed once")
            return
        setattr(output, _LEARNED, True)
        self._kept.append(call.input)
        channels = -1 if op is Op.LINEAR else -weight.dim() + 1
        self.trace.layers.append(
            LayerEvent(
                op=op,
                path=path,
                weight=name,
                derived=derived,
                shape=tuple(weight.shape),
                in_channels=call.input.shape[channels],
                groups=call.input.shape[channels] // weight.shape[1],
                macs=layer_macs(call, output),
                tick=self._tick,
                input_key=(id(call.input), call.input._version),
                sees_image=op is Op.CONV and not getattr(call.input, _LEARNED, False),
                output=output,
            )
        )

    def _product(self, call: Call, path: str, output: Tensor) -> frozenset[_Tag]:
        operands = call.operands()
        number = self._calls[path]
        self._calls[path] += 1
        if len(operands) != 2:
            self.trace.note(path, "einsum", f"{len(operands)} operands; it stays in float")
            return frozenset()
        event = ProductEvent(
            path=path,
            call=number,
            operands=operands,
            macs=product_macs(call, output),
            tick=self._tick,
            einsum=call.function is torch.einsum,
        )
        for position, operand in enumerate(operands):
            tags: frozenset[_Tag] = getattr(operand, _TAGS, frozenset())
            scores = tuple(t.event for t in tags if t.after_softmax and t.alive_in(path))
            if scores and event.probs_operand is None:
                event.probs_operand, event.scores = position, scores
        self.trace.products.append(event)
        return frozenset({_Tag(event, after_softmax=False)})

    def _fused(self, call: Call, path: str) -> frozenset[_Tag]:
        query, key, value = (call.get(i, n) for i, n in enumerate(("query", "key", "value")))
        pairs = query.numel() // query.shape[-1] * key.shape[-2]
        self.trace.products.append(
            ProductEvent(
                path=path,
                call=self._calls[path],
                operands=(query, key, value),
                macs=int(pairs * query.shape[-1]),
                tick=self._tick,
                fused=True,
            )
        )
        self._calls[path] += 1
        return frozenset()


def _softmax(tags: frozenset[_Tag]) -> frozenset[_Tag]:
    scores = [tag.event for tag in tags if not tag.after_softmax]
    for event in scores:
        event.feeds_softmax = True
    return frozenset(_Tag(event, after_softmax=True) for event in scores)


def _mixes_heads(call: Call, tags: frozenset[_Tag]) -> bool:
    """Whether a linear only mixes attention heads ("talking heads"): scores stay scores."""
    outputs, inputs = call.weight.shape[:2]
    heads = {tag.event.operands[0].shape[1] for tag in tags if tag.event.operands[0].dim() == 4}
    return bool(tags) and outputs == inputs and heads == {inputs}


def _tensor_arguments(call: Call) -> Iterator[Tensor]:
    yield from tensors_in(call.args)
    if call.kwargs:
        yield from tensors_in(dict(call.kwargs))


def _images(call: Call) -> list[Tensor]:
    return [t for t in tensors_in(call.args) if getattr(t, _FROM_IMAGE, False)]
