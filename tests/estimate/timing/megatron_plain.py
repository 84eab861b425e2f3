"""Bytes that Megatron Core's own rotation and router move where no kernel does it at once, one JSON object:

    python tests/estimate/timing/megatron_plain.py
    {"plain": [FORWARD, BACKWARD], "latent": [FORWARD, BACKWARD], "routers": {"biased": [FORWARD, BACKWARD], …}}

`plain`: for an element of queries or keys; `latent`: for a head and token, of all that multi-latent attention does between its projections
up and the core; `routers`: for a token and expert. Runs on the CPU and adds up what every operator of torch reads and writes; what is once for all heads is left out by the
difference between few and many (heads, experts). An expanded tensor counts as what it is in memory.
"""

# ruff: noqa: E402  # torch and Megatron are imported once they can be

from __future__ import annotations

import json
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"

from parlaunch_launch.cpu.bridge_runner import importable

importable()

import torch
from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd
from megatron.core.transformer.moe.moe_utils import (
    compute_routing_scores_for_aux_loss,
    topk_routing_with_score_function,
)
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SEQ, MBS, RANK = 16, 2, 32
PLAIN, ROTATED, VALUE = 128, 64, 128
MADE = ("detach", "_unsafe_view", "empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided")
FILLED = ("zero_", "fill_", "zeros", "zeros_like", "new_zeros")


def size(tensor: Any) -> int:
    """Bytes in memory."""
    elements = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= length if stride else 1
    return int(elements * tensor.element_size())


class Moved(TorchDispatchMode):  # type: ignore[misc]
    """Adds up what operators read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view or name in MADE:
            return out
        read, written = (
            sum(size(leaf) for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
            for tree in ((args, kwargs), out)
        )
        if name == "slice_backward":  # a tensor of zeros, and a copy into it
            written += read
        elif name == "copy_":
            read -= size(args[0])
        self.bytes += written + (0 if name in FILLED else read)
        return out


def moved(run: Callable[[], Any]) -> list[int]:
    """Forward and backward."""
    with Moved() as forward:
        out = run()
    out = out if isinstance(out, tuple) else (out,)
    gradients = [torch.zeros(x.shape, dtype=x.dtype) for x in out]
    with Moved() as backward:
        torch.autograd.backward(out, gradients)
    return [forward.bytes, backward.bytes]


def leaf(*shape: int) -> Any:
    return torch.zeros(*shape, dtype=torch.bfloat16, requires_grad=True)


def plain(heads: int) -> list[int]:
    angles, x = torch.zeros(SEQ, 1, 1, ROTATED), leaf(SEQ, MBS, heads, ROTATED)
    return moved(lambda: _apply_rotary_pos_emb_bshd(x, angles))


class Positions:
    """YaRN's embedding, as attention asks it."""

    def get_rotary_seq_len(self, *_: Any) -> int:
        return SEQ

    def __call__(self, *_: Any, **__: Any) -> Any:
        return torch.zeros(SEQ, 1, 1, ROTATED), 1.0


def latent(heads: int) -> list[int]:
    q, kv = leaf(SEQ, MBS, heads * (PLAIN + ROTATED)), leaf(SEQ, MBS, heads * (PLAIN + VALUE))
    down = leaf(SEQ, MBS, RANK), leaf(SEQ, MBS, RANK + ROTATED)
    config = {
        "apply_rope_fusion": False, "rope_type": "yarn", "q_lora_rank": RANK, "kv_lora_rank": RANK, "qk_head_dim": PLAIN,
        "qk_pos_emb_head_dim": ROTATED, "v_head_dim": VALUE, "context_parallel_size": 1, "cache_mla_latents": False,
        "sequence_parallel": False, "rotary_interleaved": False, "multi_latent_attention": True, "mrope_section": None,
    }  # fmt: skip
    attention: Any = SimpleNamespace(
        config=SimpleNamespace(**config), rotary_pos_emb=Positions(), pg_collection=SimpleNamespace(cp=object(), tp=None), tp_group=None,
        num_attention_heads_per_partition=heads, q_head_dim=PLAIN + ROTATED, recompute_up_proj=False, cache_mla_latents=False,
        q_layernorm=torch.nn.Identity(), kv_layernorm=torch.nn.Identity(), _qkv_down_projection=lambda _: down,
        linear_q_up_proj=lambda _: (q, None), linear_kv_up_proj=lambda _: (kv, None),
    )  # fmt: skip
    hidden = torch.zeros(SEQ, MBS, 8, dtype=torch.bfloat16)
    return moved(lambda: MLASelfAttention.get_query_key_value_tensors(attention, hidden)[:3])


def a_head(count: Callable[[int], list[int]]) -> list[float]:
    """What one head more moves, a token."""
    return [(b - a) / (64 * SEQ * MBS) for a, b in zip(count(64), count(128), strict=True)]


ROUTERS: dict[str, dict[str, Any]] = {
    "biased": {"score_function": "sigmoid", "num_groups": 8, "group_topk": 4},  # DeepSeek-V3
    "grouped": {"use_pre_softmax": True, "num_groups": 8, "group_topk": 3},  # DeepSeek-V2
    "plain": {},
}


def router(kind: str, experts: int) -> list[int]:
    scores, losses = (torch.randn(SEQ * MBS, experts).requires_grad_() for _ in range(2))
    bias = {"expert_bias": torch.zeros(experts)} if kind == "biased" else {}
    score = ROUTERS[kind].get("score_function", "softmax")
    chosen = moved(lambda: topk_routing_with_score_function(scores, 8, **ROUTERS[kind], **bias)[0])
    balance = moved(lambda: compute_routing_scores_for_aux_loss(losses, 8, score)[1])
    return [a + b for a, b in zip(chosen, balance, strict=True)]


def an_expert(kind: str) -> list[float]:
    """What one expert more moves, a token."""
    few, many = router(kind, 128), router(kind, 256)
    return [(b - a) / (128 * SEQ * MBS) for a, b in zip(few, many, strict=True)]


def main() -> None:
    print(
        json.dumps(
            {
                "plain": [x / ROTATED for x in a_head(plain)],
                "latent": a_head(latent),
                "routers": {kind: an_expert(kind) for kind in ROUTERS},
            }
        )
    )


if __name__ == "__main__":
    main()
