"""What a layer keeps for its backward pass, and what its backward pass needs on top, in bytes a token.

Counted from what autograd holds on to when Megatron runs on Transformer Engine: norm inputs, inputs of matrix products
(in FP8 where those run in FP8), queries, keys, values and output of fused attention, inputs of the activation function.
Elements are two bytes unless said otherwise. A *token* is one of the `micro_batch_size · seq_length / cp` tokens that a
tensor-parallel group works on together.

Background: Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models" (arXiv:2205.05198), whose
figures `tests/estimate/test_memory.py` reproduces with dropout and unfused attention switched on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from parlaunch.frozen import HashedOnce, dataclass
from parlaunch.model.architecture import FUSED_ACTIVATIONS, Architecture, LayerKind
from parlaunch.model.layout import NO_RECOMPUTE, Recompute
from parlaunch.model.precision import QUANTIZED

WIDE = 2  # bytes of a bf16 or fp16 element

WIDEST_HEAD = 256
"""Size of a head up to which fused attention trains: Transformer Engine takes its unfused kernels beyond, on every GPU (FlashAttention in
`get_attention_backend`, `pytorch/attention/dot_product_attention/utils.py`; cuDNN in `common/fused_attn/fused_attn.cpp`)."""

CAPPED_SCORES = ("gemma2",)
"""Families whose scores go through a tanh: Bridge runs their attention in its own unfused modules (`Gemma2DotProductAttention`)."""

PLAIN_NORMS = ("gemma4", "gemma4_text")
"""Families with norms in plain torch: around their experts (Bridge, `Gemma4TransformerLayer` and `Gemma4MoELayer`), or, without any, everywhere,
with Megatron Core's own attention (`get_gemma4_layer_spec`)."""

NORMS_BEHIND = ("exaone4", "exaone4_5", "exaone4_5_text")
"""Families with no norm in front of attention and MLP, and with Megatron Core's own attention (Bridge, `exaone4_layer_spec`)."""

FUSED_SOFTMAX = {"core": 4096, "engine": 16384}
"""Tokens up to which the unfused attention of Megatron Core (`fusions/fused_softmax.py`) and of Transformer Engine has a softmax in 16 bits;
beyond it is made in float32, and kept beside its copy."""

WIDE_SOFTMAX = ("exaone4_5", "exaone4_5_text")
"""Those with Core's own attention that Bridge has `attention_softmax_in_fp32` on for (`exaone45_provider.py`)."""

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
class Surroundings(HashedOnce):
    """What decides, beside the layer, how much is kept."""

    tp: int = 1
    sequence_parallel: bool = True
    etp: int = 1
    precision: str = "bf16"
    recompute: Recompute = NO_RECOMPUTE
    offload: tuple[str, ...] = ()  # Megatron's `offload_modules`
    imbalance: float = 1.0  # tokens on the fullest expert-parallel rank, over the mean
    frozen: bool = False  # weights without gradients
    adapters: tuple[str, ...] = ()  # modules with a low-rank adapter beside them
    adapter_rank: int = 0
    adapter_dropout: bool = False
    fp8_attention: bool = False
    fp8_activation_input: bool = False
    swapped_heads: bool = (
        False  # context parallelism by all-to-all: attention works on all tokens of a part of the heads
    )
    dropout: bool = False
    unfused_attention: bool = False
    fused_v4: bool = (
        False  # DeepSeek-V4's kernels, of its sparse attention and for the residual streams of hyper-connections
    )
    plain_activation: bool = False  # no kernel is asked to make the product of a gate and its activation
    fused_operations: bool = False  # experts as operations of Transformer Engine that clamp inside
    plain_rotation: bool = False  # no kernel rotates queries and keys
    seq_length: int = (
        0  # for unfused attention, also that of heads beyond `WIDEST_HEAD`: its score matrix grows with the square
    )


class Kept(NamedTuple):
    """Bytes a token of one layer."""

    saved: float  # from forward to backward
    rerun: float  # comes back for the backward of the module that is recomputed
    grads: float  # gradients and gathered inputs that live at the worst moment of the layer's backward pass
    x: float  # the layer's input alone, all that full recomputation keeps


def _residual_share(s: Surroundings) -> float:
    """Share of a token's hidden state that one rank keeps between the tensor-parallel regions."""
    return 1 / s.tp if s.sequence_parallel else 1.0


class _Items:
    """A layer's saved tensors by the module that asks for them: kept, or dropped and computed again."""

    def __init__(self, s: Surroundings) -> None:
        self.around = s
        self.saved = 0.0
        self.rerun = 0.0
        self.modules = frozenset(s.recompute.modules) if s.recompute.granularity == "selective" else frozenset()

    def add(self, size: float, *recomputed_by: str, offloaded_by: str = "") -> None:
        if any(module in self.modules for module in recomputed_by):
            self.rerun += size
        elif not (offloaded_by and offloaded_by in self.around.offload):
            self.saved += size


def _in_low_precision(s: Surroundings) -> bool:
    return s.precision.startswith(QUANTIZED) and not s.frozen


def _product_input(s: Surroundings, module: str, width: float, whole: float | None = None) -> float:
    """Bytes that a matrix product keeps of an input of that width.

    A trained one keeps it in its own format. A frozen one keeps nothing; an adapter beside it keeps it in 16 bits, and behind
    dropout a copy of its own with a mask; `_low_rank` has what its second matrix keeps. `whole`: the width where an adapter has it
    gathered from the tensor ranks, as Megatron Bridge's have (`peft/utils.py`, `return_layernorm_output_gathered`).
    """
    if not s.frozen:
        return SAVED_INPUT.get(s.precision, WIDE) * width
    if module not in s.adapters:
        return 0.0
    return (WIDE + s.adapter_dropout) * (width if whole is None else whole)


def _low_rank(s: Surroundings, *modules: str) -> float:
    """Bytes that the second matrices of these modules' adapters keep: what the first ones made, whole on every tensor rank."""
    return WIDE * s.adapter_rank * sum(module in s.adapters for module in modules) if s.frozen else 0.0


def _statistics(a: Architecture) -> int:
    """Bytes a row that a norm keeps beside its input: the deviation in float32, and the mean where it takes that off."""
    return 8 if a.normalization == "LayerNorm" else 4


def _gathered(s: Surroundings, width: float) -> float | None:
    return width if s.sequence_parallel else None


def _attend(
    items: _Items,
    q: float,
    k: float,
    v: float,
    out: float,
    heads: float,
    *modules: str,
    scores: float = 0.0,
    mask: float = 0.0,
) -> float:
    """Queries, keys, values, output and log-sum-exp of the attention core, and the output that the projection keeps beside them;
    returns the bytes of their gradients.

    `modules`: what recomputes queries, keys and values. `scores`: bytes of one where today's software has no fused kernel; `mask`: of one
    that all heads share.
    """
    s = items.around
    unfused = s.unfused_attention or scores > 0
    narrow = s.fp8_attention and not unfused
    if scores:  # keys and values are repeated for every head (Transformer Engine, `UnfusedDotProductAttention`)
        k, v = q, out
    items.add((1 if narrow else WIDE) * (q + k + v), *modules, offloaded_by="core_attn")
    if unfused:
        # Softmax output (two bytes a score), its dropout mask (one) and the dropped-out scores (two).
        per_score = scores or 2 + (3 if s.dropout else 0)
        items.add((heads * per_score + mask) * s.seq_length, "core_attn")
    else:
        items.add(4 * heads, "core_attn")
    # With delayed scaling the output stays in FP8 too, else in 16 bits (`_dpa_fp8_cs_o_in_f16` in Transformer Engine's
    # `context_parallel.py` and `backends.py`).
    narrow_output = narrow and s.precision == "fp8ds"
    items.add((1 if narrow_output else WIDE) * out, offloaded_by="attn_proj")
    # The projection gets the tensor that attention keeps, unless heads were swapped back for tokens (`out_part` and `out_ret` of
    # `AttnFuncWithCPAndQKVOA2A`) or it was widened.
    own = narrow_output or s.swapped_heads
    if _in_low_precision(s) and s.precision == "fp8ds":
        items.add(_product_input(s, "linear_proj", out))
    elif _in_low_precision(s) or not s.frozen:
        # Megatron has the projection keep what it was given, not a quantized copy (`set_save_original_input`, `attention.py`).
        items.add(WIDE * out if own else 0.0)
    elif "linear_proj" in s.adapters and (own or s.adapter_dropout):
        items.add(_product_input(s, "linear_proj", out))
    items.add(_low_rank(s, "linear_proj"))
    grads = WIDE * (q + k + v + out)
    return grads + (WIDE * 2 * heads * s.seq_length if unfused else 0)


def _all_plain(a: Architecture) -> bool:
    """Whether Bridge builds its layers of Megatron Core's modules alone (dense Gemma 4)."""
    return a.model_type in PLAIN_NORMS and not a.num_moe_experts


def attends_in_core(a: Architecture) -> bool:
    """Whether Bridge puts Megatron Core's own attention into its layers, which no kernel fuses."""
    return a.model_type in NORMS_BEHIND or _all_plain(a)


def keeps_scores(a: Architecture, k: LayerKind) -> bool:
    """Whether a layer's attention is not fused in today's software."""
    return k.mixer == "attention" and (k.head_dim > WIDEST_HEAD or a.model_type in CAPPED_SCORES or attends_in_core(a))


def _scores(a: Architecture, k: LayerKind, s: Surroundings) -> float:
    """Bytes that are kept of one score; 0 in fused attention, and where software of its time fuses none."""
    if s.unfused_attention or not keeps_scores(a, k):
        return 0.0
    capped, core = a.model_type in CAPPED_SCORES, attends_in_core(a)
    wide = s.seq_length > FUSED_SOFTMAX["core" if capped or core else "engine"]
    wide = wide and (not core or a.model_type in WIDE_SOFTMAX)
    return (WIDE if capped else 0) + (4 + WIDE if wide else WIDE)  # the tanh's output, the softmax


def _mask(a: Architecture, s: Surroundings) -> float:
    """Bytes of what says which scores Core's softmax in plain torch leaves out, made in each layer for all heads."""
    return float(attends_in_core(a) and (_all_plain(a) or s.seq_length > FUSED_SOFTMAX["core"]))


def _angles(s: Surroundings, dim: int) -> float:
    """Cosines and sines that a rotation in plain torch keeps, of queries and of keys a set each, in every layer (Megatron-Core
    rope_utils.py, `_apply_rotary_pos_emb_bshd`): of each place in the sequence, so less a token where a micro batch has several."""
    return 2 * 2 * WIDE * dim if s.plain_rotation else 0.0


def _self_attention(items: _Items, a: Architecture, k: LayerKind) -> float:
    s = items.around
    r, h = _residual_share(s), a.hidden_size
    q, kv = k.heads * k.head_dim / s.tp, k.groups * k.head_dim / s.tp
    gate = q if a.attention_output_gate and not a.head_wise_attn_gate else 0
    items.add(_product_input(s, "linear_qkv", h * r, _gathered(s, h)), offloaded_by="qkv_linear")
    items.add(_low_rank(s, "linear_qkv"))
    if a.qk_layernorm and _all_plain(a):
        rows = (k.heads + k.groups) / s.tp
        items.add(_plain_norm(q + kv, rows))
        if not k.borrows_kv:  # values have one without weights
            items.add(4 * kv + 2 * 4 * k.groups / s.tp)
    elif a.qk_layernorm:
        items.add(WIDE * (q + kv) + (4 if a.kind == "diffusion" else _statistics(a)) * (k.heads + k.groups) / s.tp)
    if gate:
        items.add((4 + WIDE) * q)  # the gate's sigmoid, in float32, and the output it multiplied
    if a.kind == "diffusion":
        # Attention to the text, once more: its norm's input and output, queries before and behind theirs, the output; the text's keys
        # are few. And what the gates multiply: the outputs of the attention and of the MLP (Bridge, `wan/wan_layer_spec.py`).
        items.add(
            WIDE * h * r
            + _statistics(a) * r
            + _product_input(s, "linear_qkv", h * r)
            + (3 * WIDE * k.head_dim + 2 * 4) * k.heads / s.tp
            + 2 * WIDE * h * r
        )
    items.add(_angles(s, k.head_dim))
    scores = _scores(a, k, s)
    if "core_attn" in items.modules and not (s.unfused_attention or scores):
        # A recomputed core keeps what it is given, and its values are a view of the projection's whole output.
        items.add(WIDE * (q + kv))
    return _attend(items, q, kv, kv, q, k.heads / s.tp, scores=scores, mask=_mask(a, s))


def _latent_attention(items: _Items, a: Architecture) -> float:
    """MLA: the norm is a module of its own, low-rank queries and keys stay split over the sequence, then come up."""
    s = items.around
    r, h = _residual_share(s), a.hidden_size
    heads = a.num_attention_heads / s.tp
    qk, v = (a.qk_head_dim or 0) + (a.qk_pos_emb_head_dim or 0), a.v_head_dim or 0
    down, up = ("linear_q_down_proj", "linear_kv_down_proj"), ("linear_q_up_proj", "linear_kv_up_proj")
    # The two down projections share the norm's output, or keep a quantized copy each.
    shared = 0.0 if s.frozen and not {*down, "linear_q_proj"} & {*s.adapters} else WIDE * h * r
    quantized = 2 * _product_input(s, down[0], h * r)
    items.add(quantized if _in_low_precision(s) else shared, "layernorm", offloaded_by="qkv_linear")
    ranks = ((a.q_lora_rank or 0) * r, (a.kv_lora_rank or 0) * r)
    for rank, module in zip(ranks, up, strict=True):
        if rank:
            items.add(WIDE * rank + _product_input(s, module, rank) + _statistics(a) * r)
    items.add(_low_rank(s, *(down + up if a.q_lora_rank else ("linear_q_proj", down[1], up[1]))))
    if "mla_up_proj" in items.modules:
        # What is recomputed keeps the positional part of the keys: gathered, or a view of the down projection's whole output.
        items.add(WIDE * ((a.qk_pos_emb_head_dim or 0) + (0.0 if r < 1 else ranks[1])))
    items.add(_angles(s, a.qk_pos_emb_head_dim or 0), "mla_up_proj")
    return _attend(items, heads * qk, heads * qk, heads * v, heads * v, heads, "mla_up_proj")


def _absorbed_attention(items: _Items, a: Architecture, k: LayerKind) -> float:
    """Sparse latent attention: every head works on the latent keys themselves, which are its values too, and what it makes comes up behind
    (Core, `absorbed_mla.py`); the kernels keep what they chose of them and, of a layer that chooses, the gradients of its indexer's own
    loss (`dsa_cudnn_kernels.py`, `FusedIndexerSparseAttnFunc`)."""
    s = items.around
    r, h = _residual_share(s), a.hidden_size
    heads, rank, pos = a.num_attention_heads / s.tp, a.kv_lora_rank or 0, a.qk_pos_emb_head_dim or 0
    q, key, q_rank = heads * (rank + pos), rank + pos, (a.q_lora_rank or 0) * r
    down = ("linear_q_down_proj", "linear_kv_down_proj")
    shared = 0.0 if s.frozen and not {*down, "linear_q_proj"} & {*s.adapters} else WIDE * h * r
    quantized = 2 * _product_input(s, down[0], h * r)
    items.add(quantized if _in_low_precision(s) else shared, "layernorm", offloaded_by="qkv_linear")
    if q_rank:
        items.add(WIDE * q_rank + _product_input(s, "linear_q_up_proj", q_rank) + _statistics(a) * r)
    items.add(WIDE * rank * r + _statistics(a) * r)
    items.add(_low_rank(s, *down, "linear_q_up_proj" if q_rank else "linear_q_proj", "linear_proj"))
    up = WIDE * heads * ((a.qk_head_dim or 0) + pos)  # the keys' up projection multiplies a part of them
    items.add(up + _angles(s, pos), "mla_up_proj")
    if "mla_up_proj" in items.modules:  # what is recomputed keeps both parts of its keys
        items.add(WIDE * (key + (0.0 if r < 1 else rank)))
    items.add(WIDE * (q + key), "mla_up_proj", offloaded_by="core_attn")
    chosen = min(a.dsa_indexer_topk or 0, s.seq_length or math.inf)
    items.add(WIDE * heads * rank + 4 * heads + 4 * chosen, "core_attn")
    if s.seq_length:  # the values' up projection, laid out anew for each micro batch
        items.add(WIDE * heads * rank * (a.v_head_dim or 0) / s.seq_length, "core_attn")
    if k.indexer:
        n, dim = a.dsa_indexer_n_heads or 0, a.dsa_indexer_head_dim or 0
        items.add(WIDE * (n * dim + dim + n) + WIDE * dim + 8 + _angles(s, pos), "core_attn")
        if r < 1:  # it works on the whole sequence
            items.add(WIDE * (h + (a.q_lora_rank or 0)), "core_attn")
    values = heads * (a.v_head_dim or 0)
    items.add(_product_input(s, "linear_proj", values) if s.frozen else WIDE * values, offloaded_by="attn_proj")
    return WIDE * (q + key + heads * rank + values) + up


def _compressed_attention(items: _Items, a: Architecture, k: LayerKind) -> float:
    """DeepSeek-V4: one shared key/value head, compressed keys beside it, grouped low-rank output."""
    s = items.around
    r, h, heads = _residual_share(s), a.hidden_size, k.heads / s.tp
    items.add(0.0 if s.frozen else WIDE * h * r, "layernorm", "mhc", offloaded_by="qkv_linear")
    q_rank = (a.q_lora_rank or 0) * r
    items.add(WIDE * q_rank + _product_input(s, "linear_q_up_proj", q_rank) + _low_rank(s, "linear_q_up_proj"))
    items.add(
        WIDE * heads * (k.head_dim + 1) + WIDE * k.head_dim + 4, "mla_up_proj"
    )  # queries and keys in front of their norms
    # What attention made, rotated back into a tensor of its own, in front of what projects it in groups, and behind.
    items.add(0.0 if s.frozen else WIDE * heads * k.head_dim)
    items.add(_product_input(s, "linear_proj", (a.o_groups or 1) * (a.o_lora_rank or 0) / s.tp))
    if k.compress:
        wide = 2 if k.compress == 4 else 1
        # Shares of a window in float32 and as they weigh what they join, that, and what is normed behind (Core, `csa.py`, `Compressor`).
        items.add((4 + 2 * WIDE) * wide * k.head_dim + WIDE * k.head_dim / k.compress)
    seen: float = k.window or 0  # keys, of which a few tokens at the beginning have fewer
    if k.compress == 4:
        chosen = min(s.seq_length / 4 if s.seq_length else math.inf, a.dsa_indexer_topk or 0)
        seen += chosen
        # Of its indexer what compresses keys, queries, keys and weights, or their gradients (`FusedDSAIndexerLoss`).
        n, dim = a.dsa_indexer_n_heads or 0, a.dsa_indexer_head_dim or 0
        items.add((4 + 2 * WIDE) * 2 * dim + WIDE * (n * dim + dim / 2) + 4 * n, "core_attn")
        if not s.fused_v4:
            items.add(WIDE * heads * k.head_dim, "core_attn", "mla_up_proj")
            items.add(4 * heads + 8 * chosen, "core_attn")
    elif k.compress:
        seen += s.seq_length / k.compress
    if s.fused_v4:
        items.add(4 * seen)
        return _attend(items, heads * k.head_dim, k.head_dim, 0, heads * k.head_dim, heads, "mla_up_proj")
    # Keys as each token sees them, queries and scores in float32, scores on both sides of the softmax (`unfused_compressed_sparse_attn`).
    items.add(WIDE * k.head_dim, "mla_up_proj")
    items.add((8 + 1 + 4 * k.head_dim) * seen + heads * (4 * k.head_dim + 2 * 4 * seen + 8 + 3 * 4), "core_attn")
    return (4 + WIDE) * heads * k.head_dim + 2 * 4 * (k.head_dim + heads) * seen


def _mamba(items: _Items, a: Architecture) -> float:
    """The fused scan keeps the projection's output and what it gated (`out_x`, mamba_ssm `ops/triton/ssd_combined.py`), the
    output norm its input, the projection the normed output."""
    s = items.around
    inner = (a.mamba_num_heads or 0) * (a.mamba_head_dim or 0) / s.tp
    states = 2 * (a.mamba_num_groups or 0) * (a.mamba_state_dim or 0) / s.tp
    projected = 2 * inner + states + (a.mamba_num_heads or 0) / s.tp
    items.add(_product_input(s, "in_proj", a.hidden_size * _residual_share(s), _gathered(s, a.hidden_size)))
    items.add(WIDE * (projected + 2 * inner) + _statistics(a) * (a.mamba_num_groups or 0) / s.tp)
    items.add(_product_input(s, "out_proj", inner) + _low_rank(s, "in_proj", "out_proj"))
    return WIDE * (2 * projected + 2 * inner)


DELTA_CHUNK = 64
"""Tokens that the gated delta rule's kernels work on at once (flash-linear-attention, `ops/gated_delta_rule/chunk.py`)."""


def _gated_delta_net(items: _Items, a: Architecture) -> float:
    """The delta rule keeps its inputs and, of each chunk, the inverse that joins its tokens (`A`, a row a token and head).

    Decayed keys, new values and the states between chunks come back in the backward pass, the states beside their gradients.
    """
    s = items.around
    qk = (a.linear_num_key_heads or 0) * (a.linear_key_head_dim or 0) / s.tp
    heads = (a.linear_num_value_heads or 0) / s.tp
    v = heads * (a.linear_value_head_dim or 0)
    repeated = 2 * heads * (a.linear_key_head_dim or 0)
    items.add(_product_input(s, "in_proj", a.hidden_size * _residual_share(s), _gathered(s, a.hidden_size)))
    # All that was projected, of which the convolution keeps a view (`CausalConv1dFunction` of flash-linear-attention since 0.4.2, which
    # Core takes since 0.18), and a copy of the gate.
    items.add(WIDE * (2 * qk + 2 * v + 2 * heads) + WIDE * v)
    items.add(WIDE * (2 * qk + v))  # the convolution's output
    # Normalised queries and keys for every value head, the inverse, the write strength, the output.
    items.add(WIDE * (repeated + DELTA_CHUNK * heads + heads + v))
    # In float32: the norms of queries, keys and output (fla's `modules/l2norm.py`, a number a row); the decay as it is, and before
    # and behind the softplus that it is made by (Core, `ssm/gated_delta_net.py`).
    items.add(4 * (2 * (a.linear_num_key_heads or 0) / s.tp + heads + 3 * heads))
    items.add(WIDE * v, "gdn_norm_out")
    items.add(_product_input(s, "out_proj", v) + _low_rank(s, "in_proj", "out_proj"))
    states = v * (a.linear_key_head_dim or 0) / DELTA_CHUNK
    # Gradients of all that is named above, and what comes back: keys with their gradients, new values twice, states.
    return WIDE * (2 * qk + 3 * v + 2 * repeated + 2 * v + 2 * states)


def _feed_forward(
    items: _Items,
    a: Architecture,
    width: float,
    ffn: float,
    *modules: str,
    copies: float = 0.0,
    whole: float | None = None,
) -> float:
    """A gated or plain MLP over inputs of that width; returns the bytes of its gradients. `copies`: of a token, among routed experts."""
    s = items.around
    up, expert = 2 if a.gated_linear_unit else 1, copies > 0
    items.add(_product_input(s, "linear_fc1", width, whole), *modules, offloaded_by="expert_fc1" if expert else "")
    items.add(_low_rank(s, "linear_fc1", "linear_fc2") * (copies or 1.0), *modules)
    again = (*modules, *(("moe_act",) if expert else ()))
    plain = a.gated_linear_unit and (s.plain_activation or a.activation_func not in FUSED_ACTIVATIONS)
    clamped = a.gated_linear_unit and a.clamped and not (expert and s.fused_operations)
    narrow = s.fp8_activation_input and not (plain or clamped)
    items.add((1 if narrow else WIDE) * up * ffn, *modules, offloaded_by="moe_act" if expert else "")
    if plain:
        # Both factors of the gate's product, what of the first was clamped, and the product that experts' shares weigh (Core,
        # `transformer/mlp.py` and `moe/experts.py`, `glu`).
        items.add(WIDE * (2 + clamped + expert) * ffn, *again)
    elif clamped:  # and both halves behind it, joined (`fusions/fused_bias_geglu.py`, `weighted_bias_quick_geglu_impl`)
        items.add((1 if s.fp8_activation_input else WIDE) * up * ffn, *again)
    items.add(_product_input(s, "linear_fc2", ffn), *again)
    return WIDE * (width + (up + 1) * ffn)


def _dense(items: _Items, a: Architecture) -> float:
    s = items.around
    h = a.hidden_size
    modules = () if _all_plain(a) else ("mlp",)  # its layer calls it past what recomputes it
    return _feed_forward(items, a, h * _residual_share(s), a.ffn_hidden_size / s.tp, *modules, whole=_gathered(s, h))


def _experts(items: _Items, a: Architecture) -> float:
    """Router, dispatched copies through the routed experts of the fullest rank, shared experts."""
    s = items.around
    r, h, n = _residual_share(s), a.hidden_size, a.num_moe_experts or 0
    # The norm's output: input of dispatch, shared experts and the router, which keeps it frozen or not (Core, `moe/moe_utils.py`,
    # `RouterGatingLinearFunction`).
    items.add(WIDE * h * r, "layernorm", "mhc")
    # Logits and probabilities in float32, the routing map (a byte), and the permutation's row map (two int32) an expert.
    items.add((4 + 4 + 1 + 8) * n / s.tp, "moe")
    copies = a.moe_router_topk * s.etp / s.tp * s.imbalance
    width = a.moe_latent_size or h
    ffn = (a.moe_ffn_hidden_size or a.ffn_hidden_size) / s.etp
    grads = _feed_forward(items, a, copies * width, copies * ffn, "moe", copies=copies)
    if a.moe_latent_size:
        items.add(WIDE * width * r, "moe")
    if shared := a.moe_shared_expert_intermediate_size:
        own_input = h * r if _in_low_precision(s) else 0  # else it is the norm's output
        _feed_forward(items, a, own_input, shared / s.tp, "moe", "shared_experts")
        if a.moe_shared_expert_gate:  # their output and the gate that multiplies it (Core, `moe/shared_experts.py`)
            items.add(WIDE * (h + 1) * r, "moe", "shared_experts")
    if a.model_type in PLAIN_NORMS:
        _plain_norms(items, a)
    return grads + 2 * WIDE * copies * width  # sent and received copies


def _plain_norm(width: float, rows: float) -> float:
    """Bytes of a norm in plain torch: its input in float32 twice, what a weight multiplies, two numbers a row (`_gemma4_rms_norm`)."""
    return 3 * 4 * width + 2 * 4 * rows


def _embedded(items: _Items, a: Architecture) -> None:
    """What a layer of dense Gemma 4 makes of its own embedding of each token: a gate, its activation, their product, projected and normed."""
    r, h, d = _residual_share(items.around), a.hidden_size, a.per_layer_embed_dim or 0
    items.add(WIDE * (h + 4 * d) * r + _plain_norm(h * r, r))


def _plain_norms(items: _Items, a: Architecture) -> None:
    """Gemma 4's norms in front of the routed experts, of the shared ones and of the router, behind either kind and behind their sum, less the
    two fused ones that `_half` counts. The router's has no weight, and keeps nothing for one."""
    r = _residual_share(items.around)
    x, norms = WIDE * a.hidden_size * r, 3 * _plain_norm(a.hidden_size * r, r)
    items.add(norms - 2 * (x + _statistics(a) * r))
    # And the router's input before and behind its scale; its probabilities over their sum, scaled (`Gemma4TopKRouter`).
    items.add(norms - 4 * a.hidden_size * r + 2 * x + 2 * WIDE * ((a.num_moe_experts or 0) + 1) * r, "moe")
    if "moe" in items.modules:
        items.add(2 * x)  # what the recomputed layer is given: three tensors, not one


_MIXERS: Mapping[str, Callable[[_Items, Architecture, LayerKind], float]] = {
    "attention": _self_attention,
    "mla": lambda items, a, k: (
        _absorbed_attention(items, a, k) if a.experimental_attention_variant == "dsa" else _latent_attention(items, a)
    ),
    "csa": _compressed_attention,
    "mamba": lambda items, a, _: _mamba(items, a),
    "gated_delta_net": lambda items, a, _: _gated_delta_net(items, a),
}
"""By mixer: adds what it keeps, and answers with the bytes of its gradients."""


def _diffusion(items: _Items, a: Architecture, k: LayerKind, x: float) -> float:
    """A block of FLUX, for a token of one of its streams. Modulated norms keep their input with mean and deviation, gates what they
    multiply: an output of a joint block's attention and of its MLP, of a single one their sum (Bridge, `flux/flux_layer_spec.py`, `AdaLN`
    as torch compiles it)."""
    s = items.around
    width, inputs, heads = a.hidden_size / s.tp, a.hidden_size * _residual_share(s), k.heads / s.tp
    norms = 2 if k.mixer == "joint" else 1
    items.add(norms * (x + 8 * _residual_share(s)))
    items.add(norms * x)
    # A single block's attention and MLP read one norm, and in low precision a copy each.
    items.add(_product_input(s, "linear_qkv", inputs) if norms == 2 or _in_low_precision(s) else 0.0)
    items.add(WIDE * 2 * width + 4 * 2 * heads)  # normed queries and keys
    attention = _attend(items, width, width, width, width, heads)
    return max(attention, _feed_forward(items, a, inputs, a.ffn_hidden_size / s.tp))


def _half(
    items: _Items,
    a: Architecture,
    x: float,
    offloaded_by: str,
    block: Callable[[], float],
    *,
    alone: bool,
    behind: str = "",
) -> float:
    """The mixer or the MLP with the norm in front and what stands behind; returns the bytes of its gradients.

    `alone`: the norm is a module of its own, not a part of the projection behind it. `behind`: what recomputes the norm that stands behind.
    """
    s = items.around
    r = _residual_share(s)
    statistics, plain = _statistics(a) * r, _plain_norm(a.hidden_size * r, r)
    streams = (a.num_residual_streams or 1) > 1
    if _all_plain(a):
        items.add(plain)
    elif a.model_type not in NORMS_BEHIND:
        items.add(statistics, *(("layernorm",) if alone else ()))
        items.add(x, "mhc" if streams else "", offloaded_by=offloaded_by)
    else:
        items.add(x + statistics, behind)
        if behind in items.modules:
            items.add(x)  # what the recomputed MLP is given
    if streams:
        # What they join is normed, and what the half makes goes back to all; without kernels they are kept in float32 too, for weights of
        # their own (Core, `hyper_connection.py`, `native_proj_rms`).
        one = WIDE * a.hidden_size * r
        items.add(one, "mhc")
        items.add(one + (0.0 if s.fused_v4 else 2 * x))
    grads = block()
    if s.dropout:
        items.add(a.hidden_size * r)  # one byte: the mask
    if a.post_norms:
        items.add(plain if _all_plain(a) else x + statistics, "" if _all_plain(a) else behind)
    return grads


@lru_cache(maxsize=16384)
def layer_activations(a: Architecture, k: LayerKind, s: Surroundings) -> Kept:
    """What one layer of this kind keeps, re-creates and needs for its gradients, in bytes a token."""
    if k.wide:
        return layer_activations(a, k._replace(wide=False), replace(s, precision="bf16"))
    h = a.hidden_size
    x = WIDE * h * _residual_share(s) * (a.num_residual_streams or 1)
    items = _Items(s)
    if k.mixer in ("joint", "single"):
        grads = _diffusion(items, a, k, x)
        return Kept(items.saved, items.rerun, grads + WIDE * h, x)
    grads, rerun_of_mixer = 0.0, 0.0
    if k.mixer:
        mixer = _MIXERS[k.mixer]
        alone = k.mixer in ("mla", "csa")
        grads = _half(items, a, x, "attn_norm", lambda: mixer(items, a, k), alone=alone)
        rerun_of_mixer, items.rerun = items.rerun, 0.0
    if k.mlp:
        sparse = k.mlp == "moe"
        mlp = _experts if sparse else _dense
        # The second norm is a part of a dense MLP's last projection (Bridge, `TERowParallelLinearLayerNorm`).
        behind = "" if sparse else "mlp"
        grads = max(grads, _half(items, a, x, "mlp_norm", lambda: mlp(items, a), alone=sparse, behind=behind))
    if a.per_layer_embed_dim and _all_plain(a):
        _embedded(items, a)
    if s.sequence_parallel and s.tp > 1:
        grads += 2 * WIDE * h  # a gathered input and the gradient of one, before it is scattered
    return Kept(items.saved, max(rerun_of_mixer, items.rerun), grads + x, x)


def prediction_activations(a: Architecture, s: Surroundings) -> Kept:
    """What one depth of multi-token prediction keeps around its layers, in bytes a token: the inputs of three norms, the concatenation
    that is projected, and its output once more, which the head reads as a part of all depths' (Core, `MultiTokenPredictionLayer` and
    `process_mtp_loss`). Under sequence parallelism the input of the layer is a view of what was projected, gathered whole. Where all
    is computed again, the embedding, the hidden state and that output stay.
    """
    r = _residual_share(s)
    x = WIDE * a.hidden_size * r
    norms = 3 * (x + _statistics(a) * r)
    saved = norms + _product_input(s, "eh_proj", 2 * a.hidden_size * r) + x
    saved += WIDE * a.hidden_size - x
    return Kept(saved, saved - 3 * x, 0.0, 3 * x)
