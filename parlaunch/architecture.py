"""The shape of a model in Megatron's field names, with its parameter counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One language model. Sizes are elements; fields are named as in Megatron's TransformerConfig."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    vocab_size: int
    kv_channels: int
    gated_linear_unit: bool = False
    share_embeddings_and_output_weights: bool = False
    make_vocab_size_divisible_by: int = 128
    num_moe_experts: int | None = None
    moe_ffn_hidden_size: int | None = None
    moe_router_topk: int = 2
    moe_shared_expert_intermediate_size: int | None = None
    moe_layer_pattern: tuple[int, ...] | None = None
    mtp_num_layers: int | None = None

    @property
    def total_params(self) -> int:
        return self._params(self.num_moe_experts or 0)

    @property
    def active_params(self) -> int:
        return self._params(self.moe_router_topk)

    def _params(self, experts: int) -> int:
        h, up = self.hidden_size, 3 if self.gated_linear_unit else 2
        attention = 2 * h * self.kv_channels * (self.num_attention_heads + self.num_query_groups)
        dense = up * h * self.ffn_hidden_size
        shared = up * h * (self.moe_shared_expert_intermediate_size or 0)
        moe = up * h * (self.moe_ffn_hidden_size or 0) * experts + shared + h * (self.num_moe_experts or 0)
        pattern = self.moe_layer_pattern or ((1 if self.num_moe_experts else 0,) * self.num_layers)
        layers = sum(attention + (moe if is_moe else dense) + 2 * h for is_moe in pattern)
        tables = 1 if self.share_embeddings_and_output_weights else 2
        return layers + tables * self.vocab_size * h + h

    def shape(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def architecture_from_json(data: Mapping[str, Any]) -> Architecture:
    names = {f.name for f in fields(Architecture)}
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in names and v is not None}
    heads = given.get("num_attention_heads") or 1
    hidden = given.get("hidden_size") or 1
    return Architecture(**{
        "num_layers": 1, "hidden_size": hidden, "ffn_hidden_size": 4 * hidden, "num_attention_heads": heads,
        "num_query_groups": heads, "kv_channels": hidden // heads, "vocab_size": 0,
    } | given)  # fmt: skip
