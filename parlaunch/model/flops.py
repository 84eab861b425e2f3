"""Floating-point operations a token costs, as published model TFLOP/s count them.

Megatron Bridge's own counting (`training/utils/flop_utils.py`): forward once and backward twice, matrix
products of the layers and the logits, causal attention at half its square, padded vocabulary, no recomputation, no
router. Dividing a published TFLOP/s by it gives tokens a second.
"""

from __future__ import annotations

from functools import lru_cache

from parlaunch.model.architecture import Architecture, LayerKind
from parlaunch.model.parameters import padded_vocab

TEXT = 512
"""Tokens of the text that a diffusion transformer's video attends to (`context_seq_len` of Bridge's WAN data)."""


def _context(a: Architecture, k: LayerKind, seq_length: float) -> float:
    """Keys an average token looks at: under a causal mask half of all, in a diffusion transformer every one."""
    if a.kind == "diffusion":
        return seq_length
    if k.window is not None and k.window < seq_length:
        return k.window - k.window * (k.window - 1) / (2 * seq_length)
    return seq_length / 2


def _attention(a: Architecture, k: LayerKind, s: float) -> float:
    q, kv = k.heads * k.head_dim, k.groups * k.head_dim
    gate = q if a.attention_output_gate and not a.head_wise_attn_gate else 0
    keys_and_values = 0 if k.borrows_kv else 2 * kv
    to_the_text = 0.0
    if a.kind == "diffusion":  # queries, scores and output once more, against keys and values of the text
        to_the_text = 2 * q * a.hidden_size + 2 * q * TEXT + a.hidden_size * 2 * kv * TEXT / s
    return a.hidden_size * (2 * q + keys_and_values + gate) + 2 * q * _context(a, k, s) + to_the_text


def _mla(a: Architecture, k: LayerKind, s: float) -> float:
    h, heads, kv = a.hidden_size, a.num_attention_heads, a.kv_lora_rank or 0
    nope, rope, v = a.qk_head_dim or 0, a.qk_pos_emb_head_dim or 0, a.v_head_dim or 0
    q = a.q_lora_rank * (h + heads * (nope + rope) + 1) if a.q_lora_rank else h * heads * (nope + rope)
    projections = q + kv * (h + heads * (nope + v) + 1) + h * rope + heads * v * h
    return projections + _context(a, k, s) * heads * (nope + rope + v)


def _csa(a: Architecture, k: LayerKind, s: float) -> float:
    """Compressed sparse attention: low-rank queries, one key, and what compresses it (twice as wide, and once more for an indexer, at
    ratio 4)."""
    h, q_rank, dim, heads = a.hidden_size, a.q_lora_rank or 0, k.head_dim, k.heads
    o_rank = a.o_lora_rank or 0
    flops: float = q_rank * (h + heads * dim + 1) + h * dim + dim
    flops += heads * dim * o_rank + (a.o_groups or 1) * o_rank * h
    if k.compress == 4:
        n, d = a.dsa_indexer_n_heads or 0, a.dsa_indexer_head_dim or 0
        flops += 2 * h * 2 * dim + 2 * h * 2 * d + q_rank * n * d + h * n
    elif k.compress:
        flops += 2 * h * dim
    return flops + _csa_scores(a, k, s)


def _csa_scores(a: Architecture, k: LayerKind, s: float) -> float:
    """Over a window of raw keys, and compressed ones, which an indexer chooses at ratio 4."""
    seen, indexed = float(k.window or 0), 0.0
    if k.compress == 4:
        chosen = min(a.dsa_indexer_topk or 0, s // 4)
        seen += chosen * (1 - chosen * 4 / (2 * s))
        indexed = (a.dsa_indexer_n_heads or 0) * (a.dsa_indexer_head_dim or 0) * (s // 4)
    elif k.compress:
        seen += (s // k.compress) / 2
    return 2 * k.heads * seen * k.head_dim + indexed


def _mamba(a: Architecture) -> float:
    """Bridge takes an inner width of twice the hidden size, whatever the heads say; the scan is 7 operations a state."""
    h, states = a.hidden_size, a.mamba_state_dim or 0
    inner = 2 * h
    projections = h * (2 * inner + 2 * (a.mamba_num_groups or 0) * states + (a.mamba_num_heads or 0)) + inner * h
    return projections + 3.5 * inner * states


def _gated_delta_net(a: Architecture) -> float:
    heads, v_dim = a.linear_num_value_heads or 0, a.linear_value_head_dim or 0
    qk, v = (a.linear_num_key_heads or 0) * (a.linear_key_head_dim or 0), heads * v_dim
    convolution = a.linear_conv_kernel_dim * (2 * qk + v)
    return a.hidden_size * (2 * qk + 3 * v + 2 * heads) + convolution + 4 * heads * v_dim**2


def _moe(a: Architecture) -> float:
    up = 3 if a.gated_linear_unit else 2
    ffn, latent = a.moe_ffn_hidden_size or a.ffn_hidden_size, a.moe_latent_size
    routed = up * ffn * a.moe_router_topk * (latent or a.hidden_size)
    through = 2 * a.hidden_size * latent if latent else 0
    return routed + through + up * (a.moe_shared_expert_intermediate_size or 0) * a.hidden_size


@lru_cache(maxsize=4096)
def layer_macs(a: Architecture, k: LayerKind, seq_length: float) -> tuple[float, float]:
    """Multiply-adds a token of the mixer and of the MLP of one layer, forward only."""
    mixer = 0.0
    if k.mixer in ("joint", "single"):
        h = a.hidden_size  # of a joint block a token goes through its own stream, and attends to both
        return 4.0 * h * h + 2 * h * seq_length, 2.0 * h * a.ffn_hidden_size
    if k.mixer == "attention":
        mixer = _attention(a, k, seq_length)
    elif k.mixer == "mla":
        mixer = _mla(a, k, seq_length)
    elif k.mixer == "csa":
        mixer = _csa(a, k, seq_length)
    elif k.mixer == "mamba":
        mixer = _mamba(a)
    elif k.mixer == "gated_delta_net":
        mixer = _gated_delta_net(a)
    mlp = 0.0
    if k.mlp == "moe":
        mlp = _moe(a)
    elif k.mlp == "dense":
        mlp = (3 if a.gated_linear_unit else 2) * float(a.hidden_size) * a.ffn_hidden_size
    return mixer, mlp


def attention_macs(a: Architecture, k: LayerKind, seq_length: float) -> float:
    """The part of `layer_macs` that multiplies activations with each other: scores and values, without weights."""
    if k.mixer in ("joint", "single"):
        return 2.0 * a.hidden_size * seq_length
    if k.mixer == "attention":
        text = TEXT if a.kind == "diffusion" else 0
        return 2 * k.heads * k.head_dim * (_context(a, k, seq_length) + text)
    if k.mixer == "mla":
        width = (a.qk_head_dim or 0) + (a.qk_pos_emb_head_dim or 0) + (a.v_head_dim or 0)
        return _context(a, k, seq_length) * a.num_attention_heads * width
    if k.mixer == "csa":
        return _csa_scores(a, k, seq_length)
    return 0.0


@lru_cache(maxsize=1024)
def model_flops_per_token(a: Architecture, seq_length: int, tp: int = 1, *, peft: bool = False) -> float:
    """FLOPs of forward and backward for one token of a sequence of that length, as published TFLOP/s are counted.

    `tp` matters only through the padding of the vocabulary. Sub-sequences of a packed sequence are counted by their own
    length: pass that length for fine-tuning on packed data. `peft`: frozen weights have no gradient, so that backward
    costs as much as forward, attention apart.
    """
    depth = a.mtp_num_layers or 0
    layers = (*a.layers(), *a.mtp_layers())
    macs = sum(sum(layer_macs(a, k, seq_length)) for k in layers)
    if depth and not a.hybrid_layer_pattern:
        macs += depth * (3 * a.hidden_size + 2 * a.hidden_size**2)
    macs += a.hidden_size * padded_vocab(a, tp) * (1 + depth)
    if not peft:
        return 6.0 * macs
    return 4.0 * macs + 2.0 * sum(attention_macs(a, k, seq_length) for k in layers)
