"""What a layer keeps for its backward pass, and what its backward pass needs on top, in bytes a token.

Counted from what autograd holds on to when Megatron runs on Transformer Engine: norm inputs, inputs of matrix products
(in FP8 where those run in FP8), queries, keys, values and output of fused attention, inputs of the activation function.
Elements are two bytes unless said otherwise. A *token* is one of the `micro_batch_size · seq_length / cp` tokens that a
tensor-parallel group works on together.

Background: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (arXiv:2205.05198), whose
figures `tests/test_memory.py` reproduces with dropout and unfused attention switched on.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from parlaunch.architecture import Architecture, LayerKind
from parlaunch.layout import NO_RECOMPUTE, Recompute

WIDE = 2  # bytes of a bf16 or fp16 element

SAVED_INPUT = {
    # Bytes that a matrix product keeps of each element of its input: the column-wise copy alone, with its scales.
    "fp8cs": 1.0,
    "fp8ds": 1.0,
    "fp8sc": 1 + 4 / 128,  # one float32 scale for 128 elements
    "fp8mx": 1 + 1 / 32,  # one E8M0 scale for 32
    "nvfp4": 0.5 + 1 / 16,  # one E4M3 scale for 16
    "fp32": 4.0,
}


@dataclass(frozen=True, slots=True)
class Setting:
    """What decides, beside the layer, how much is kept."""

    tp: int = 1
    sequence_parallel: bool = True
    etp: int = 1
    precision: str = "bf16"
    recompute: Recompute = NO_RECOMPUTE
    offload: tuple[str, ...] = ()  # Megatron's `offload_modules`
    imbalance: float = 1.0  # tokens on the fullest expert-parallel rank, over the mean
    frozen: bool = False  # weights without gradients
    adapters: bool = False  # beside them, as LoRA has
    dropout: bool = False
    unfused_attention: bool = False
    seq_length: int = 0  # for unfused attention: its score matrix grows with the square


class Kept(NamedTuple):
    """Bytes a token of one layer."""

    saved: float  # from forward to backward
    rerun: float  # comes back for the backward of the module that is recomputed
    grads: float  # gradients and gathered inputs that live at the worst moment of the layer's backward pass
    x: float  # the layer's input alone, all that full recomputation keeps


def _residual_share(s: Setting) -> float:
    """Share of a token's hidden state that one rank keeps between the tensor-parallel regions."""
    return 1 / s.tp if s.sequence_parallel else 1.0


class _Items:
    """A layer's saved tensors by the module that asks for them: kept, or dropped and computed again."""

    def __init__(self, s: Setting) -> None:
        self.setting = s
        self.saved = 0.0
        self.rerun = 0.0
        self._modules = frozenset(s.recompute.modules) if s.recompute.granularity == "selective" else frozenset()

    def add(self, size: float, *recomputed_by: str, offloaded_by: str = "") -> None:
        if any(module in self._modules for module in recomputed_by):
            self.rerun += size
        elif not (offloaded_by and offloaded_by in self.setting.offload):
            self.saved += size


def _input_bytes(s: Setting) -> float:
    """Of a linear layer's input; an adapter beside a frozen layer keeps it unquantized, and the frozen layer not at all."""
    if s.frozen:
        return WIDE if s.adapters else 0
    return SAVED_INPUT.get(s.precision, WIDE)


def _in_low_precision(s: Setting) -> bool:
    return s.precision.startswith(("fp8", "nvfp4")) and not s.frozen


def _attend(items: _Items, q: float, k: float, v: float, out: float, heads: float, *modules: str) -> float:
    """Queries, keys, values, output and log-sum-exp of the attention core; returns the bytes of their gradients.

    `modules`: what recomputes queries, keys and values.
    """
    s = items.setting
    items.add(WIDE * (q + k + v), *modules, offloaded_by="core_attn")
    if s.unfused_attention:
        # Softmax output (two bytes a score), its dropout mask (one) and the dropped-out scores (two).
        per_score = 2 + (3 if s.dropout else 0)
        items.add(heads * s.seq_length * per_score, "core_attn")
    else:
        items.add(4 * heads, "core_attn")
    items.add(WIDE * out, offloaded_by="attn_proj")
    if _in_low_precision(s):
        items.add(_input_bytes(s) * out)
    grads = WIDE * (q + k + v + out)
    return grads + (WIDE * 2 * heads * s.seq_length if s.unfused_attention else 0)


def _self_attention(items: _Items, a: Architecture, k: LayerKind) -> float:
    s = items.setting
    r, h = _residual_share(s), a.hidden_size
    q, kv = k.heads * k.head_dim / s.tp, k.groups * k.head_dim / s.tp
    gate = q if a.attention_output_gate and not a.head_wise_attn_gate else 0
    items.add(_input_bytes(s) * h * r, offloaded_by="qkv_linear")
    if a.qk_layernorm:
        items.add(WIDE * (q + kv))
    if gate:
        items.add((4 + WIDE) * q)  # the gate's sigmoid, in float32, and the output it multiplied
    return _attend(items, q, kv, kv, q, k.heads / s.tp)


def _latent_attention(items: _Items, a: Architecture) -> float:
    """MLA: the norm is a module of its own, low-rank queries and keys stay split over the sequence, then come up."""
    s = items.setting
    r, h = _residual_share(s), a.hidden_size
    heads = a.num_attention_heads / s.tp
    qk, v = (a.qk_head_dim or 0) + (a.qk_pos_emb_head_dim or 0), a.v_head_dim or 0
    # The two down projections share the norm's output, or keep a quantized copy each.
    items.add((2 * _input_bytes(s) if _in_low_precision(s) else WIDE) * h * r, "layernorm", offloaded_by="qkv_linear")
    rank = (a.q_lora_rank or 0) + (a.kv_lora_rank or 0)
    items.add((WIDE + _input_bytes(s)) * rank * r + WIDE * (a.qk_pos_emb_head_dim or 0))
    return _attend(items, heads * qk, heads * qk, heads * v, heads * v, heads, "mla_up_proj")


def _compressed_attention(items: _Items, a: Architecture, k: LayerKind) -> float:
    """DeepSeek-V4: one shared key/value head, compressed keys beside it, grouped low-rank output."""
    s = items.setting
    r, h, heads = _residual_share(s), a.hidden_size, k.heads / s.tp
    items.add(WIDE * h * r, "layernorm", offloaded_by="qkv_linear")
    items.add((WIDE + _input_bytes(s)) * (a.q_lora_rank or 0) * r)
    out_rank = (a.o_groups or 1) * (a.o_lora_rank or 0)
    items.add(_input_bytes(s) * out_rank / s.tp)
    if k.compress:
        wide = 2 if k.compress == 4 else 1
        items.add(WIDE * 2 * wide * k.head_dim)
    return _attend(items, heads * k.head_dim, k.head_dim, 0, heads * k.head_dim, heads, "mla_up_proj")


def _mamba(items: _Items, a: Architecture) -> float:
    """The fused scan keeps the projection's output and its own; the output norm keeps its result for the projection."""
    s = items.setting
    inner = (a.mamba_num_heads or 0) * (a.mamba_head_dim or 0) / s.tp
    states = 2 * (a.mamba_num_groups or 0) * (a.mamba_state_dim or 0) / s.tp
    projected = 2 * inner + states + (a.mamba_num_heads or 0) / s.tp
    items.add(_input_bytes(s) * a.hidden_size * _residual_share(s))
    items.add(WIDE * (projected + inner))
    items.add(_input_bytes(s) * inner)
    return WIDE * (2 * projected + 2 * inner)


DELTA_CHUNK = 64
"""Tokens that the gated delta rule's kernels work on at once (flash-linear-attention, `ops/gated_delta_rule/chunk.py`)."""


def _gated_delta_net(items: _Items, a: Architecture) -> float:
    """The delta rule keeps its inputs and, of each chunk, the inverse that joins its tokens (`A`, a row a token and head).

    Decayed keys, new values and the states between chunks come back in the backward pass, the states beside their gradients.
    """
    s = items.setting
    qk = (a.linear_num_key_heads or 0) * (a.linear_key_head_dim or 0) / s.tp
    heads = (a.linear_num_value_heads or 0) / s.tp
    v = heads * (a.linear_value_head_dim or 0)
    repeated = 2 * heads * (a.linear_key_head_dim or 0)
    items.add(_input_bytes(s) * a.hidden_size * _residual_share(s))
    items.add(WIDE * (2 * qk + 2 * v + 2 * heads))  # the projection's output, input of the convolution
    items.add(WIDE * (2 * qk + v))  # the convolution's output
    # Normalised queries and keys for every value head, the inverse, decay in float32 with its write strength, the output.
    items.add(WIDE * (repeated + DELTA_CHUNK * heads + v) + (4 + WIDE) * heads)
    items.add(WIDE * v, "gdn_norm_out")
    items.add(_input_bytes(s) * v)
    states = v * (a.linear_key_head_dim or 0) / DELTA_CHUNK
    # Gradients of all that is named above, and what comes back: keys with their gradients, new values twice, states.
    return WIDE * (2 * qk + 3 * v + 2 * repeated + 2 * v + 2 * states)


def _feed_forward(
    items: _Items, a: Architecture, width: float, ffn: float, *modules: str, expert: bool = False
) -> float:
    """A gated or plain MLP over inputs of that width; returns the bytes of its gradients."""
    s = items.setting
    up = 2 if a.gated_linear_unit else 1
    items.add(_input_bytes(s) * width, *modules, offloaded_by="expert_fc1" if expert else "")
    items.add(WIDE * up * ffn, *modules, offloaded_by="moe_act" if expert else "")
    items.add(_input_bytes(s) * ffn, *modules, *(("moe_act",) if expert else ()))
    return WIDE * (width + (up + 1) * ffn)


def _experts(items: _Items, a: Architecture) -> float:
    """Router, dispatched copies through the routed experts of the fullest rank, shared experts."""
    s = items.setting
    r, h, n = _residual_share(s), a.hidden_size, a.num_moe_experts or 0
    items.add(WIDE * h * r, "layernorm")  # the norm's output: input of router, dispatch and shared experts
    # Logits and probabilities in float32, the routing map (a byte), and the permutation's row map (two int32) an expert.
    items.add((4 + 4 + 1 + 8) * n / s.tp, "moe")
    copies = a.moe_router_topk * s.etp / s.tp * s.imbalance
    width = a.moe_latent_size or h
    ffn = (a.moe_ffn_hidden_size or a.ffn_hidden_size) / s.etp
    grads = _feed_forward(items, a, copies * width, copies * ffn, "moe", expert=True)
    if a.moe_latent_size:
        items.add(WIDE * width * r, "moe")
    if shared := a.moe_shared_expert_intermediate_size:
        own_input = h * r if _in_low_precision(s) else 0  # else it is the norm's output
        _feed_forward(items, a, own_input, shared / s.tp, "moe", "shared_experts")
    return grads + 2 * WIDE * copies * width  # sent and received copies


@lru_cache(maxsize=16384)
def layer_activations(a: Architecture, k: LayerKind, s: Setting) -> Kept:
    """What one layer of this kind keeps, re-creates and needs for its gradients, in bytes a token."""
    r, h = _residual_share(s), a.hidden_size
    streams = a.num_residual_streams or 1
    x = WIDE * h * r * streams
    items = _Items(s)
    grads = 0.0
    if k.mixer in ("joint", "single"):
        for _ in range(2 if k.mixer == "joint" else 1):
            items.add(3 * x)  # input, and both outputs that the modulation scales
            width = h / s.tp
            grads = _attend(items, width, width, width, width, k.heads / s.tp)
            grads = max(grads, _feed_forward(items, a, h * r, a.ffn_hidden_size / s.tp))
        return Kept(items.saved, items.rerun, grads + WIDE * h, x)
    if k.mixer:
        items.add(x, "mhc" if streams > 1 else "", offloaded_by="attn_norm")
        if k.mixer == "attention":
            grads = _self_attention(items, a, k)
        elif k.mixer == "mla":
            grads = _latent_attention(items, a)
        elif k.mixer == "csa":
            grads = _compressed_attention(items, a, k)
        elif k.mixer == "mamba":
            grads = _mamba(items, a)
        else:
            grads = _gated_delta_net(items, a)
        if s.dropout:
            items.add(h * r)  # one byte: the mask
        if a.post_norms:
            items.add(x)
    rerun_of_mixer, items.rerun = items.rerun, 0.0
    if k.mlp:
        items.add(x, "mhc" if streams > 1 else "", offloaded_by="mlp_norm")
        if k.mlp == "moe":
            grads = max(grads, _experts(items, a))
        else:
            grads = max(grads, _feed_forward(items, a, h * r, a.ffn_hidden_size / s.tp, "mlp"))
        if s.dropout:
            items.add(h * r)
        if a.post_norms:
            items.add(x)
    if s.sequence_parallel and s.tp > 1:
        grads += 2 * WIDE * h  # a gathered input and the gradient of one, before it is scattered
    return Kept(items.saved, max(rerun_of_mixer, items.rerun), grads + x, x)
