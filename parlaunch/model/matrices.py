"""The weight matrices of a layer under Megatron's module names: what parameters, adapters and dummy gradients are counted from.

Whatever else a layer holds (norms, biases, convolutions, mixing weights) are vectors, counted in `parlaunch.model.parameters`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from parlaunch.model.architecture import Architecture, LayerKind

COLUMN, ROW, WHOLE = "column", "row", "whole"


class Matrix(NamedTuple):
    """One weight matrix, one of each routed expert, or one of each stream of tokens."""

    module: str  # Megatron's name of the linear layer
    outputs: int
    inputs: int
    split: str  # which side tensor parallelism cuts: column (outputs), row (inputs), or whole on every rank
    experts: int = 0  # routed experts that have one each; 0: the layer has one
    streams: int = 1  # kinds of tokens (image, text) that have one each: a token goes through its own

    @property
    def size(self) -> int:
        """Parameters, those of all experts and streams together."""
        return self.outputs * self.inputs * (self.experts or 1) * self.streams

    def shape(self, tp: int, etp: int) -> tuple[int, int]:
        """Rows and columns on one GPU; tensor parallelism of experts is their own."""
        over = etp if self.experts else tp
        outputs = -(-self.outputs // over) if self.split == COLUMN else self.outputs
        return outputs, -(-self.inputs // over) if self.split == ROW else self.inputs


def _attention(a: Architecture, k: LayerKind) -> list[Matrix]:
    h, q, kv = a.hidden_size, k.heads * k.head_dim, k.groups * k.head_dim
    values = 0 if a.attention_k_eq_v and k.window is None else kv  # values are the keys
    keys_and_values = 0 if k.borrows_kv else kv + values
    gate = (k.heads if a.head_wise_attn_gate else q) if a.attention_output_gate else 0
    found = [Matrix("linear_qkv", q + keys_and_values + gate, h, COLUMN), Matrix("linear_proj", h, q, ROW)]
    if k.indexer:
        heads, dim = a.dsa_indexer_n_heads or 0, a.dsa_indexer_head_dim or 0
        found += [Matrix("linear_wq_b", heads * dim, h, WHOLE), Matrix("linear_wk", dim, h, WHOLE)]
    return found


def _to_the_text(a: Architecture, k: LayerKind) -> list[Matrix]:
    """WAN's attention from the video to its text: keys and values are the text's."""
    h, q, kv = a.hidden_size, k.heads * k.head_dim, k.groups * k.head_dim
    return [Matrix("linear_q", q, h, COLUMN), Matrix("linear_kv", 2 * kv, h, COLUMN), Matrix("linear_proj", h, q, ROW)]


def _mla(a: Architecture, k: LayerKind) -> list[Matrix]:
    h, q_rank, kv_rank, heads = a.hidden_size, a.q_lora_rank, a.kv_lora_rank or 0, a.num_attention_heads
    rope, nope, v = a.qk_pos_emb_head_dim or 0, a.qk_head_dim or 0, a.v_head_dim or 0
    found = [
        Matrix("linear_kv_down_proj", kv_rank + rope, h, WHOLE),
        Matrix("linear_kv_up_proj", heads * (nope + v), kv_rank, COLUMN),
        Matrix("linear_proj", h, heads * v, ROW),
    ]
    if q_rank:
        found.append(Matrix("linear_q_down_proj", q_rank, h, WHOLE))
        found.append(Matrix("linear_q_up_proj", heads * (nope + rope), q_rank, COLUMN))
    else:
        found.append(Matrix("linear_q_proj", heads * (nope + rope), h, COLUMN))
    if k.indexer:
        index_heads, dim = a.dsa_indexer_n_heads or 0, a.dsa_indexer_head_dim or 0
        found += [
            Matrix("linear_wq_b", index_heads * dim, q_rank or h, WHOLE),
            Matrix("linear_wk", dim, h, WHOLE),
            Matrix("linear_weights_proj", index_heads, h, WHOLE),
        ]
    return found


def _compressor(h: int, dim: int, ratio: int) -> list[Matrix]:
    """Keys and gates of compressed attention; at a ratio of 4 the windows overlap and the projection is twice as wide."""
    wide = 2 * dim if ratio == 4 else dim
    return [Matrix("linear_wkv", wide, h, WHOLE), Matrix("linear_wgate", wide, h, WHOLE)]


def _csa(a: Architecture, k: LayerKind) -> list[Matrix]:
    h, q_rank, dim = a.hidden_size, a.q_lora_rank or 0, k.head_dim
    o_rank, groups = a.o_lora_rank or 0, a.o_groups or 1
    found = [
        Matrix("linear_q_down_proj", q_rank, h, WHOLE),
        Matrix("linear_kv_proj", dim, h, WHOLE),
        Matrix("linear_q_up_proj", k.heads * dim, q_rank, COLUMN),
        Matrix("linear_o_group_proj", groups * o_rank, k.heads * dim // groups, COLUMN),
        Matrix("linear_proj", h, groups * o_rank, ROW),
    ]
    if k.compress:
        found += _compressor(h, dim, k.compress)
    if k.compress == 4:
        index_heads, index_dim = a.dsa_indexer_n_heads or 0, a.dsa_indexer_head_dim or 0
        found += [
            Matrix("linear_wq_b", index_heads * index_dim, q_rank, WHOLE),
            Matrix("linear_weights_proj", index_heads, h, WHOLE),
            *_compressor(h, index_dim, 4),
        ]
    return found


def _mamba(a: Architecture) -> list[Matrix]:
    heads, h = a.mamba_num_heads or 0, a.hidden_size
    inner = heads * (a.mamba_head_dim or 0)
    states = 2 * (a.mamba_num_groups or 0) * (a.mamba_state_dim or 0)
    return [Matrix("in_proj", 2 * inner + states + heads, h, COLUMN), Matrix("out_proj", h, inner, ROW)]


def _gated_delta_net(a: Architecture) -> list[Matrix]:
    h, heads = a.hidden_size, a.linear_num_value_heads or 0
    qk = (a.linear_num_key_heads or 0) * (a.linear_key_head_dim or 0)
    v = heads * (a.linear_value_head_dim or 0)
    return [Matrix("in_proj", 2 * qk + 2 * v + 2 * heads, h, COLUMN), Matrix("out_proj", h, v, ROW)]


def _diffusion(a: Architecture, streams: int) -> list[Matrix]:
    """FLUX: attention, MLP and modulation; the joint block has them for the image and for the text."""
    h, ffn = a.hidden_size, a.ffn_hidden_size
    one = [
        Matrix("linear_qkv", 3 * h, h, COLUMN), Matrix("linear_proj", h, h, ROW),
        Matrix("linear_fc1", ffn, h, COLUMN), Matrix("linear_fc2", h, ffn, ROW),
        Matrix("adaln", (6 if streams > 1 else 3) * h, h, COLUMN),
    ]  # fmt: skip
    return [m._replace(streams=streams) for m in one]


def _mlp(a: Architecture, width: int, ffn: int, experts: int = 0) -> list[Matrix]:
    up = 2 if a.gated_linear_unit else 1
    return [Matrix("linear_fc1", up * ffn, width, COLUMN, experts), Matrix("linear_fc2", width, ffn, ROW, experts)]


def _moe(a: Architecture) -> list[Matrix]:
    h, experts, ffn = a.hidden_size, a.num_moe_experts or 0, a.moe_ffn_hidden_size or a.ffn_hidden_size
    found = [Matrix("router", experts, h, WHOLE), *_mlp(a, a.moe_latent_size or h, ffn, experts)]
    if latent := a.moe_latent_size:
        found += [Matrix("fc1_latent_proj", latent, h, WHOLE), Matrix("fc2_latent_proj", h, latent, WHOLE)]
    if shared := a.moe_shared_expert_intermediate_size:
        found += _mlp(a, h, shared)
    return found


@lru_cache(maxsize=4096)
def mixer_matrices(a: Architecture, k: LayerKind) -> tuple[Matrix, ...]:
    """Those that mix tokens: attention with its projections, or what stands in its place."""
    if k.mixer in ("joint", "single"):
        return tuple(_diffusion(a, 2 if k.mixer == "joint" else 1))
    if k.mixer == "attention":
        return tuple(_attention(a, k) + (_to_the_text(a, k) if a.kind == "diffusion" else []))
    if k.mixer == "mla":
        return tuple(_mla(a, k))
    if k.mixer == "csa":
        return tuple(_csa(a, k))
    if k.mixer == "mamba":
        return tuple(_mamba(a))
    return tuple(_gated_delta_net(a)) if k.mixer else ()


@lru_cache(maxsize=4096)
def layer_matrices(a: Architecture, k: LayerKind) -> tuple[Matrix, ...]:
    """All of one layer of this kind: the mixer's, then those of its MLP or experts."""
    found = mixer_matrices(a, k)
    if k.mixer in ("joint", "single"):
        return found
    if k.mlp == "moe":
        return found + tuple(_moe(a))
    return found + tuple(_mlp(a, a.hidden_size, a.ffn_hidden_size) if k.mlp else ())


TORCH = ("router", "adaln", "linear_weights_proj")
"""Modules whose product is torch's own: their gradient comes from autograd, as every other parameter's."""


@lru_cache(maxsize=16384)
def matrix_shapes(a: Architecture, k: LayerKind, tp: int, etp: int) -> frozenset[tuple[int, int]]:
    """The distinct shapes of one GPU's matrices that Transformer Engine multiplies."""
    return frozenset(m.shape(tp, etp) for m in layer_matrices(a, k) if m.module not in TORCH)


ADAPTER_RANK, ADAPTED = 32, ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2")
"""What LoRA is in Megatron Bridge unless a recipe says otherwise (`peft/lora.py`): rank, and the modules that have an adapter."""


@lru_cache(maxsize=4096)
def adapter_size(a: Architecture, k: LayerKind, rank: int, targets: tuple[str, ...]) -> int:
    """Parameters of the adapters of one layer: rank times input and output width of each adapted matrix.

    Routed experts share one adapter.
    """
    return rank * sum(m.streams * (m.inputs + m.outputs) for m in layer_matrices(a, k) if m.module in targets)
