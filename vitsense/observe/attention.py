"""Fused attention, spelled out so that the tensors inside it can be visited."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vitsense.observe.operations import Call

Run = Callable[[Call], Any]


def attention_scores(call: Call) -> Tensor:
    """softmax(Q·Kᵀ·scale + mask) of a `scaled_dot_product_attention` call, `(B, H, N, M)`.

    Source: Vaswani et al. 2017, eq. 1; arguments as documented for
    `torch.nn.functional.scaled_dot_product_attention`.
    """
    query, key = call.get(0, "query"), call.get(1, "key")
    mask, causal = call.get(3, "attn_mask"), call.get(5, "is_causal", False)
    scale = call.kwargs.get("scale")
    if call.kwargs.get("enable_gqa"):
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    factor = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    if mask is not None:
        hidden = mask.dtype == torch.bool
        scores = scores.masked_fill(~mask, float("-inf")) if hidden else scores + mask
    probs = scores.softmax(dim=-1)
    dropout = call.get(4, "dropout_p", 0.0)
    return F.dropout(probs, dropout) if dropout else probs


def attention_output(call: Call, probs: Tensor, value: Tensor) -> Tensor:
    """Probabilities times value, `(B, H, N, D)`."""
    if call.kwargs.get("enable_gqa"):
        value = value.repeat_interleave(probs.shape[-3] // value.shape[-3], dim=-3)
    return probs @ value


_POSITIONS = (
    "query",
    "key",
    "value",
    "embed_dim_to_check",
    "num_heads",
    "in_proj_weight",
    "in_proj_bias",
    "bias_k",
    "bias_v",
    "add_zero_attn",
    "dropout_p",
    "out_proj_weight",
    "out_proj_bias",
    "training",
    "key_padding_mask",
    "need_weights",
    "attn_mask",
    "use_separate_proj_weight",
    "q_proj_weight",
    "k_proj_weight",
    "v_proj_weight",
    "static_k",
    "static_v",
    "average_attn_weights",
    "is_causal",
)


def can_expand(call: Call) -> bool:
    """Whether `multi_head_attention` understands the call (the plain self-attention of ViTs)."""
    given = dict(zip(_POSITIONS, call.args, strict=False)) | dict(call.kwargs)
    unusual = ("bias_k", "bias_v", "static_k", "static_v", "key_padding_mask")
    return (
        all(given.get(name) is None for name in unusual)
        and not given.get("add_zero_attn")
        and not given.get("use_separate_proj_weight")
        and not given.get("need_weights", True)
        and given["query"] is given["key"]
        and given["key"] is given["value"]
        and given["query"].dim() == 3
    )


def multi_head_attention(call: Call, run: Run) -> tuple[Tensor, None]:
    """`torch.nn.MultiheadAttention` as projection, attention and projection, each through ``run``.

    Shapes: input `(N, B, C)`, in projection `(3C, C)`, output `(N, B, C)`.
    """
    given = dict(zip(_POSITIONS, call.args, strict=False)) | dict(call.kwargs)
    x, heads = given["query"], given["num_heads"]
    tokens, batch, width = x.shape
    fused = run(Call(F.linear, (x, given["in_proj_weight"], given["in_proj_bias"]), {}))

    def split(part: Tensor) -> Tensor:
        # (N, B, C) -> (N, B, H, D) -> (B, H, N, D)
        return part.view(tokens, batch, heads, width // heads).permute(1, 2, 0, 3)

    query, key, value = (split(part) for part in fused.chunk(3, dim=-1))
    dropout = given["dropout_p"] if given.get("training", True) else 0.0
    mixed = run(
        Call(
            F.scaled_dot_product_attention,
            (query, key, value),
            {
                "attn_mask": given.get("attn_mask"),
                "dropout_p": dropout,
                # a mask that is given wins over the hint that it is causal
                "is_causal": bool(given.get("is_causal")) and given.get("attn_mask") is None,
            },
        )
    )
    # (B, H, N, D) -> (N, B, H, D) -> (N, B, C)
    joined = mixed.permute(2, 0, 1, 3).reshape(tokens, batch, width)
    return run(Call(F.linear, (joined, given["out_proj_weight"], given["out_proj_bias"]), {})), None
