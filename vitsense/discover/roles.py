"""What a layer does in its architecture."""

from __future__ import annotations

import re

from vitsense.discover.lineage import Attention
from vitsense.discover.structure import Structure
from vitsense.discover.trace import LayerEvent, Trace
from vitsense.observe.operations import Op
from vitsense.sites import ModuleRole

_FFN = re.compile(r"(^|[._])(mlp|ffn|feed_?forward)([._]|\d|$)")
_FUSED = re.compile(r"(^|[._])qkvs?([._]|$)")
_STEM = re.compile(r"(^|[._])(patch_embed|stem|conv_proj|conv_stem|to_patch)")
_MERGING = re.compile(r"downsample|patch_merg|reduction|patch_embeds?\.[1-9]|proxy_norm")


def layer_role(
    layer: LayerEvent,
    trace: Trace,
    found: tuple[Attention, ...],
    structure: Structure,
    *,
    classes: int,
    is_first: bool,
) -> ModuleRole:
    """The role of a layer that is no projection of q, k or v.

    The classifier is the layer that makes the logits, the attention's output projection the first
    dense layer after the attention in its scope, and in a block with attention every other linear
    layer is feed-forward. Only patch embedding, merging and convolutional feed-forward need names.
    """
    if _is_head(layer, trace, classes):
        return ModuleRole.HEAD
    in_block = bool(structure.block_and_stage(layer.path)[0])
    if is_first or layer.sees_image or (_STEM.search(layer.weight) and not in_block):
        return ModuleRole.PATCH_EMBED
    if any(layer is _projection_of(attention, trace) for attention in found):
        return ModuleRole.PROJECTION
    if found and _MERGING.search(layer.weight):
        return ModuleRole.PATCH_MERGING
    if layer.groups > 1 and layer.groups == layer.in_channels:
        return ModuleRole.DEPTHWISE
    if _FFN.search(layer.weight) or _beside_attention(layer, found, structure):
        return ModuleRole.FFN
    if _FUSED.search(layer.weight):
        return ModuleRole.QKV
    return ModuleRole.CONV if layer.op is Op.CONV else ModuleRole.OTHER


def _is_head(layer: LayerEvent, trace: Trace, classes: int) -> bool:
    """Whether the layer gives the logits (models may have two classifiers that are averaged)."""
    makes_logits = [e for e in trace.layers if e.shape[0] == classes]
    if not makes_logits or layer not in makes_logits:
        return False
    position = trace.layers.index(layer)
    return all(e.shape[0] == classes for e in trace.layers[position:])


def _projection_of(attention: Attention, trace: Trace) -> LayerEvent | None:
    scope = attention.mix.path
    for event in trace.layers:
        inside = scope == "" or event.path == scope or event.path.startswith(scope + ".")
        if event.tick > attention.mix.tick and inside and event.groups == 1:
            return event
    return None


def _beside_attention(
    layer: LayerEvent, found: tuple[Attention, ...], structure: Structure
) -> bool:
    """Whether a dense layer stands in a block with attention, outside the attention's scope."""
    dense = layer.op is Op.LINEAR or (layer.groups == 1 and set(layer.shape[2:]) == {1})
    block = structure.block_and_stage(layer.path)[0]
    if not dense or not block:
        return False
    for attention in found:
        scope = attention.mix.path
        same_block = structure.block_and_stage(scope)[0] == block
        if same_block and scope and not layer.path.startswith(scope):
            return True
    return False
