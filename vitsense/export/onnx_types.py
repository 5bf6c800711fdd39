"""Which ONNX type holds the codes of a site, and what an operator set cannot hold. No onnx."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum

from vitsense.errors import UserInputError
from vitsense.export.fixed import FixedModel
from vitsense.numerics.grid import Format

OLDEST_OPSET, DEFAULT_OPSET, NEWEST_OPSET = 18, 21, 25
"""torch's exporter starts at 18; QuantizeLinear has 4 and 16 bits from 21 on, 2 bits from 25 on."""

_SINCE = {2: 25, 4: 21, 8: 13, 16: 21}
"""Bits of an ONNX integer type -> first operator set whose QuantizeLinear takes it."""

_FAST = {8: 13, 16: 21}
"""The types weights get where speed is preferred: onnxruntime multiplies 8-bit codes as integers,
and turns narrower weights into floats in every run."""

_ACTIVATIONS = {8: 13, 16: 21}
"""The types activations get: onnxruntime (1.32) has no kernels that multiply 4-bit activations, and
cannot load a file in which a Relu stands before a 4-bit QuantizeLinear."""


_LIFT = 128
"""Signed 8-bit codes of activations are written as unsigned ones, this much higher, with a zero
point this much higher: the same values. onnxruntime (1.32) does that to them itself; but where it
has put another QuantizeLinear behind a Transpose, it leaves that node's ``output_dtype`` at int8,
and then refuses its own graph."""


class Prefer(Enum):
    """What the types of weights are chosen for; the numbers are the same."""

    SIZE = "size"
    """The narrowest type that holds the codes."""
    SPEED = "speed"
    """8 bits, for which onnxruntime has integer kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """How the codes of one site stand in the file."""

    site: str
    format: Format
    bits: int
    """Of the ONNX type."""
    note: str = ""
    """Where the type is not the format's own, and why."""
    lift: int = 0
    """What is added to the codes and to the zero point, so that signed ones become unsigned."""

    @property
    def type(self) -> str:
        """``int4``, as ONNX calls it in lower case."""
        return f"{'int' if self.format.signed and not self.lift else 'uint'}{self.bits}"

    @property
    def clipped(self) -> bool:
        """Whether an activation must be clipped: the type has more codes than the format."""
        return self.bits > self.format.bits


def stored_types(
    fixed: FixedModel, opset: int, *, fallback: bool, prefer: Prefer = Prefer.SIZE
) -> dict[str, Stored]:
    """The type of every quantized site, by site id.

    Args:
        fixed: The quantized model.
        opset: Operator set of the file.
        fallback: Take a wider type where the format's own needs a newer operator set.
        prefer: Whether weights of less than 8 bits are held in 8.

    Raises:
        UserInputError: the operator set is not supported, or cannot hold a site's format and
            ``fallback`` is off.
    """
    check_opset(opset)
    fast = prefer is Prefer.SPEED
    since = _FAST if fast else _SINCE
    weights = {k: _stored(k, w.grid.format, opset, since) for k, w in fixed.weights.items()}
    ranges = {k: _stored(k, g.format, opset, _ACTIVATIONS) for k, g in fixed.activations.items()}
    found = weights | ranges
    _refuse(found, weights.keys(), opset, fallback=fallback or fast)
    return found


def check_opset(opset: int) -> None:
    """Refuse an operator set that files are not written in.

    Raises:
        UserInputError: it is too old or too new.
    """
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        age = "too old" if opset < OLDEST_OPSET else "newer than vitsense and onnxruntime support"
        raise UserInputError(
            f"The operator set {opset} is {age}; use {OLDEST_OPSET} to {NEWEST_OPSET} "
            f"(default {DEFAULT_OPSET}; 2-bit types need {_SINCE[2]})."
        )


def held_bits(form: Format, opset: int, prefer: Prefer) -> int:
    """Bits of the ONNX type that holds the weights (signed) or activations of a format.

    0 where the operator set has none.
    """
    narrow = form.signed and prefer is Prefer.SIZE
    return _held(form, opset, _SINCE if narrow else _ACTIVATIONS)


def _held(form: Format, opset: int, since: Mapping[int, int]) -> int:
    return next((b for b in sorted(since) if b >= form.bits and since[b] <= opset), 0)


def _stored(site: str, form: Format, opset: int, since: Mapping[int, int]) -> Stored:
    fitting = [bits for bits in sorted(since) if bits >= form.bits]
    held = _held(form, opset, since)
    lift = _LIFT if since is _ACTIVATIONS and form.signed and held == 8 else 0
    if held == form.bits:
        note = f"{form.name} is held in uint{held}, codes and zero point {lift} higher" * bool(lift)
        return Stored(site=site, format=form, bits=held, note=note, lift=lift)
    if held == fitting[0]:
        where = "clipped and held" if since is _ACTIVATIONS else "held"
        note = f"{form.name} is {where} in {held} bits" + " for speed" * (since is _FAST)
    elif held:
        note = (
            f"{form.name} is held in {held} bits; operator set {since[fitting[0]]} has "
            f"{fitting[0]} bits"
        )
    else:
        note = f"{form.name} needs operator set {since[fitting[0]]}"
    return Stored(site=site, format=form, bits=held, note=note, lift=lift)


def _refuse(
    found: Mapping[str, Stored], weights: Collection[str], opset: int, *, fallback: bool
) -> None:
    """Weights of 2 bits in 4 are a note; 4 in 8 make the file larger and must be wanted.

    Activations are not stored, so that none makes the file larger; trained ones may be signed.
    """
    impossible = [s for s in found.values() if s.bits == 0]
    if impossible:
        raise UserInputError(
            f"Operator set {opset} cannot hold {len(impossible)} sites, first "
            f"{impossible[0].site}: {impossible[0].note}; raise --opset, or lower the bits."
        )
    wasteful = [
        s
        for s in found.values()
        if s.site in weights and s.bits >= 2 * s.format.bits and s.bits > 4
    ]
    if wasteful and not fallback:
        raise UserInputError(
            f"Operator set {opset} is too old for {len(wasteful)} sites, first "
            f"{wasteful[0].site}: {wasteful[0].note}. Use --opset {DEFAULT_OPSET} or newer, or "
            "--fallback to store them in 8 bits."
        )
