"""How many parameters a model has, and how many of them one GPU of each pipeline stage holds.

Three ways in which Megatron lays a weight over GPUs: the same on every tensor-parallel rank (norms, routers, low-rank
down projections), split over tensor parallelism, and routed experts, split over expert and expert-tensor parallelism.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from parlaunch.architecture import Architecture, LayerKind
from parlaunch.layout import Layout


class Weights(NamedTuple):
    """Parameters by the way they are laid over GPUs."""

    replicated: int = 0  # on every rank of the tensor-parallel group
    sharded: int = 0  # split over tp
    routed: int = 0  # routed experts: split over ep and etp
    routed_replicated: int = 0  # of routed experts, but whole on every etp rank (output biases)

    def plus(self, other: Weights) -> Weights:
        return Weights(*(a + b for a, b in zip(self, other, strict=True)))

    def times(self, count: int) -> Weights:
        return Weights(*(a * count for a in self))

    @property
    def total(self) -> int:
        return sum(self)

    def dense(self, tp: int) -> int:
        """What one GPU holds outside of routed experts."""
        return self.replicated + -(-self.sharded // tp)

    def experts(self, ep: int, etp: int) -> int:
        """What one GPU holds of routed experts."""
        return -(-self.routed // (ep * etp)) + -(-self.routed_replicated // ep)


NOTHING = Weights()


def _norm(a: Architecture, size: int) -> int:
    return size * (2 if a.normalization == "LayerNorm" else 1)


def _attention(a: Architecture, k: LayerKind) -> Weights:
    h, q, kv = a.hidden_size, k.heads * k.head_dim, k.groups * k.head_dim
    values = 0 if a.attention_k_eq_v and k.window is None else kv  # values are the keys
    keys_and_values = 0 if k.borrows_kv else kv + values
    gate = (k.heads if a.head_wise_attn_gate else q) if a.attention_output_gate else 0
    bias = q + keys_and_values if a.add_qkv_bias or a.add_bias_linear else 0
    sharded = h * (2 * q + keys_and_values + gate) + bias
    sharded += k.heads if a.softmax_type == "learnable" else 0
    replicated = h if a.add_bias_linear else 0
    if a.qk_layernorm:
        replicated += _norm(a, k.head_dim) * (1 if k.borrows_kv else 2)
    if k.indexer:
        heads, dim = a.dsa_indexer_n_heads or 0, a.dsa_indexer_head_dim or 0
        replicated += h * (heads + 1) * dim + dim
    return Weights(replicated, sharded)


def _mla(a: Architecture, k: LayerKind) -> Weights:
    h, q_rank, kv_rank = a.hidden_size, a.q_lora_rank, a.kv_lora_rank or 0
    rope, nope, v = a.qk_pos_emb_head_dim or 0, a.qk_head_dim or 0, a.v_head_dim or 0
    heads = a.num_attention_heads
    replicated = h * (kv_rank + rope) + _norm(a, kv_rank)
    sharded = kv_rank * heads * (nope + v) + heads * v * h
    if q_rank:
        replicated += h * q_rank + _norm(a, q_rank)
    sharded += (q_rank or h) * heads * (nope + rope)
    if k.indexer:
        index_heads, dim = a.dsa_indexer_n_heads or 0, a.dsa_indexer_head_dim or 0
        # Query up projection, key, its LayerNorm (weight and bias), and one weight a head.
        replicated += (q_rank or h) * index_heads * dim + h * dim + 2 * dim + h * index_heads
    return Weights(replicated, sharded)


def _compressor(h: int, dim: int, ratio: int) -> int:
    """Keys and gates of compressed attention; at a ratio of 4 the windows overlap and the projection is twice as wide."""
    wide = 2 * dim if ratio == 4 else dim
    return 2 * h * wide + ratio * wide + dim


def _csa(a: Architecture, k: LayerKind) -> Weights:
    h, q_rank, dim, heads = a.hidden_size, a.q_lora_rank or 0, k.head_dim, k.heads
    o_rank, groups = a.o_lora_rank or 0, a.o_groups or 1
    replicated = h * q_rank + q_rank + h * dim + dim
    if k.compress:
        replicated += _compressor(h, dim, k.compress)
    if k.compress == 4:
        index_heads, index_dim = a.dsa_indexer_n_heads or 0, a.dsa_indexer_head_dim or 0
        replicated += q_rank * index_heads * index_dim + h * index_heads + _compressor(h, index_dim, 4)
    sharded = q_rank * heads * dim + heads * dim * o_rank + groups * o_rank * h + heads
    return Weights(replicated, sharded)


def _streams(a: Architecture) -> int:
    """Hyper-connections: for attention and for the MLP, the mixing matrix of the residual streams, its base and scale."""
    n = a.num_residual_streams or 0
    return (2 + n) * n * (n * a.hidden_size + 1) + 3 if n > 1 else 0


def _mamba(a: Architecture) -> Weights:
    heads, h = a.mamba_num_heads or 0, a.hidden_size
    inner = heads * (a.mamba_head_dim or 0)
    states = 2 * (a.mamba_num_groups or 0) * (a.mamba_state_dim or 0)
    projections = h * (2 * inner + states + heads) + inner * h
    convolution = (inner + states) * (4 + 1)  # kernel of 4, and a bias
    return Weights(0, projections + convolution + 3 * heads + inner)


def _gated_delta_net(a: Architecture) -> Weights:
    h, heads = a.hidden_size, a.linear_num_value_heads or 0
    qk = (a.linear_num_key_heads or 0) * (a.linear_key_head_dim or 0)
    v = heads * (a.linear_value_head_dim or 0)
    projections = h * (2 * qk + 2 * v + 2 * heads) + v * h
    return Weights(a.linear_value_head_dim or 0, projections + (2 * qk + v) * a.linear_conv_kernel_dim + 2 * heads)


def _joint(a: Architecture, k: LayerKind) -> Weights:
    """FLUX's block of two streams: attention, MLP and modulation for the image and for the text."""
    h, ffn = a.hidden_size, a.ffn_hidden_size
    return Weights(4 * k.head_dim, 2 * (4 * h * h + 4 * h + 2 * h * ffn + ffn + h + 6 * (h * h + h)))


def _single(a: Architecture, k: LayerKind) -> Weights:
    h, ffn = a.hidden_size, a.ffn_hidden_size
    return Weights(2 * k.head_dim, 4 * h * h + 2 * h * ffn + 5 * h + ffn + 3 * (h * h + h))


def _dense_mlp(a: Architecture, ffn: int) -> Weights:
    up = 2 if a.gated_linear_unit else 1
    bias = a.add_bias_linear
    return Weights(a.hidden_size if bias else 0, (up + 1) * a.hidden_size * ffn + (up * ffn if bias else 0))


def _moe(a: Architecture) -> Weights:
    h, experts, ffn = a.hidden_size, a.num_moe_experts or 0, a.moe_ffn_hidden_size or a.ffn_hidden_size
    up = 2 if a.gated_linear_unit else 1
    width = a.moe_latent_size or h
    replicated = h * experts + (experts if a.add_bias_linear else 0)
    replicated += 2 * h * a.moe_latent_size if a.moe_latent_size else 0
    shared = NOTHING
    if a.moe_shared_expert_intermediate_size:
        shared = _dense_mlp(a, a.moe_shared_expert_intermediate_size)
        replicated += h if a.moe_shared_expert_gate else 0
    bias = a.add_bias_linear
    routed = experts * ((up + 1) * width * ffn + (up * ffn if bias else 0))
    return Weights(replicated, 0, routed, experts * width if bias else 0).plus(shared)


@lru_cache(maxsize=4096)
def layer_weights(a: Architecture, k: LayerKind) -> Weights:
    """The parameters of one layer of this kind, its norms included."""
    if k.mixer == "joint":
        return _joint(a, k)
    if k.mixer == "single":
        return _single(a, k)
    norm = _norm(a, a.hidden_size) * (2 if a.post_norms else 1)
    weights = NOTHING
    if k.mixer:
        mixer = {
            "attention": lambda: _attention(a, k), "mla": lambda: _mla(a, k), "csa": lambda: _csa(a, k),
            "mamba": lambda: _mamba(a), "gated_delta_net": lambda: _gated_delta_net(a),
        }[k.mixer]()  # fmt: skip
        weights = mixer.plus(Weights(norm + _streams(a)))
        if a.kind == "diffusion":  # attention to the text, once more
            weights = weights.plus(mixer)
    if k.mlp:
        mlp = _moe(a) if k.mlp == "moe" else _dense_mlp(a, a.ffn_hidden_size)
        weights = weights.plus(mlp).plus(Weights(norm + _streams(a)))
    if a.per_layer_embed_dim:
        weights = weights.plus(Weights(2 * a.hidden_size * a.per_layer_embed_dim + a.hidden_size + 1))
    return weights


def padded_vocab(a: Architecture, tp: int) -> int:
    """Vocabulary rows as Megatron pads them, so that they divide over tensor-parallel ranks; 0 for diffusion."""
    if a.kind == "diffusion":  # what its provider calls a vocabulary is the text encoder's
        return 0
    unit = a.make_vocab_size_divisible_by * tp
    return -(-a.vocab_size // unit) * unit


@lru_cache(maxsize=1024)
def embedding_weights(a: Architecture, tp: int = 0) -> Weights:
    """What stands before the first layer; `tp` 0: the vocabulary as published, not padded."""
    if a.kind == "diffusion":
        return NOTHING
    rows = padded_vocab(a, tp) if tp else a.vocab_size
    positions = a.max_position_embeddings * a.hidden_size if a.position_embedding_type == "learned_absolute" else 0
    weights = Weights(positions, rows * a.hidden_size)
    if a.per_layer_embed_dim:
        width = a.num_layers * a.per_layer_embed_dim
        weights = weights.plus(
            Weights(a.hidden_size * width + a.per_layer_embed_dim, (a.per_layer_embed_vocab_size or rows) * width)
        )
    return weights


@lru_cache(maxsize=1024)
def head_weights(a: Architecture, tp: int = 0) -> Weights:
    """What stands behind the last layer: the final norm, and the output matrix where it is not the embedding."""
    if a.kind == "diffusion":
        return NOTHING
    rows = padded_vocab(a, tp) if tp else a.vocab_size
    streams = a.num_residual_streams or 0
    mixing = streams * (streams * a.hidden_size + 1) + 1 if streams > 1 else 0
    output = 0 if a.share_embeddings_and_output_weights else rows * a.hidden_size
    return Weights(_norm(a, a.hidden_size) + mixing, output)


@lru_cache(maxsize=1024)
def mtp_weights(a: Architecture) -> Weights:
    """Multi-token prediction: one layer (or more, in a hybrid) a depth, two norms before it, one behind, and a projection.

    Depths that repeat one layer hold it once.
    """
    depth = a.mtp_num_layers or 0
    if not depth:
        return NOTHING
    layers = a.mtp_layers()
    one = Weights(3 * _norm(a, a.hidden_size), 2 * a.hidden_size * a.hidden_size)
    for kind in layers[: len(layers) // depth]:
        one = one.plus(layer_weights(a, kind))
    return one.times(1 if a.mtp_use_repeated_layer else depth)


def total_params(a: Architecture, experts: int | None = None) -> int:
    """Parameters of the language model, counting `experts` of the routed experts of each layer (None: all).

    As model cards count: without multi-token prediction, vision and audio; a tied output matrix once.
    """
    share = (a.num_moe_experts or 0) if experts is None else experts
    total = embedding_weights(a).total + head_weights(a).total
    for kind in a.layers():
        w = layer_weights(a, kind)
        total += w.replicated + w.sharded
        if a.num_moe_experts:
            total += (w.routed + w.routed_replicated) * share // a.num_moe_experts
    return total


@lru_cache(maxsize=4096)
def split_layers(
    a: Architecture, pp: int, vp: int | None = None, layers_per_chunk: tuple[int, ...] | None = None
) -> tuple[tuple[LayerKind, ...], ...]:
    """The decoder layers of each virtual stage, in order of execution: as the layout says, else equal chunks.

    Where the layers do not divide, loss and embedding count as layers of the last and first chunk, as Megatron's
    `account_for_loss_in_pipeline_split` and `account_for_embedding_in_pipeline_split` do.
    """
    layers = a.layers()
    sizes = layers_per_chunk or _equal(len(layers), pp * (vp or 1), mtp=bool(a.mtp_num_layers))
    ends = list(accumulate(sizes))
    return tuple(layers[end - size : end] for size, end in zip(sizes, ends, strict=True))


def chunk_sizes(a: Architecture, layout: Layout) -> tuple[int, ...]:
    """Decoder layers of each virtual stage, in order of execution."""
    return layout.layers_per_chunk or _equal(len(a.layers()), layout.chunks, mtp=bool(a.mtp_num_layers))


@lru_cache(maxsize=4096)
def _equal(layers: int, chunks: int, *, mtp: bool) -> tuple[int, ...]:
    for extra in (0, 1, 2) if chunks > 1 else (0,):
        size, rest = divmod(layers + extra, chunks)
        if not rest:
            return (size - (extra > 1),) + (size,) * (chunks - 2) + (size - (extra > 0),) if chunks > 1 else (size,)
    # As Bridge lays out DeepSeek-V3 and Kimi K2: the last chunk has what equal ones leave over, none only beside MTP.
    size = -(-layers // chunks)
    full, rest = divmod(layers, size)
    if rest and (full == chunks - 1 or (full == chunks - 2 and mtp)):
        return (*(size,) * full, rest, 0)[:chunks]
    size, rest = divmod(layers, chunks)
    return tuple(size + (i < rest) for i in range(chunks))


ADAPTER_RANK = 32
"""Rank of a LoRA adapter in Megatron Bridge's recipes (`peft/lora.py`: dim 32 on qkv, proj, fc1 and fc2)."""


@lru_cache(maxsize=4096)
def adapter_weights(a: Architecture, k: LayerKind) -> int:
    """Parameters of the LoRA adapters of one layer: rank times input and output width of each adapted matrix.

    Routed experts share one adapter; multi-latent attention is adapted at its output only.
    """
    h = a.hidden_size
    widths = 0
    if k.mixer == "attention":
        q, kv = k.heads * k.head_dim, k.groups * k.head_dim
        widths += h + q + 2 * kv + q + h
    elif k.mixer in ("mla", "csa"):
        widths += a.num_attention_heads * (a.v_head_dim or 0) + h
    if k.mlp:
        ffn = (a.moe_ffn_hidden_size or a.ffn_hidden_size) if k.mlp == "moe" else a.ffn_hidden_size
        widths += 2 * h + (3 if a.gated_linear_unit else 2) * ffn
    return ADAPTER_RANK * widths


class StageWeights(NamedTuple):
    """Parameters on one GPU of a pipeline stage."""

    dense: int
    routed: int

    @property
    def total(self) -> int:
        return self.dense + self.routed


def stage_weights(a: Architecture, layout: Layout) -> tuple[StageWeights, ...]:
    """One entry per pipeline stage: what one of its GPUs holds, routed experts apart.

    The first stage holds the embedding, the last one the output matrix (a second copy of a tied embedding) and
    multi-token prediction, which needs the embedding once more.
    """
    tp, pp = layout.tp, layout.pp
    sums = [NOTHING] * pp
    for chunk, kinds in enumerate(split_layers(a, pp, layout.vp, layout.layers_per_chunk)):
        for kind in kinds:
            sums[chunk % pp] = sums[chunk % pp].plus(layer_weights(a, kind))
    embedding, head = embedding_weights(a, tp), head_weights(a, tp)
    sums[0] = sums[0].plus(embedding)
    sums[-1] = sums[-1].plus(head).plus(mtp_weights(a))
    if pp > 1 and (a.share_embeddings_and_output_weights or a.mtp_num_layers):
        copy = Weights(0, padded_vocab(a, tp) * a.hidden_size)
        sums[-1] = sums[-1].plus(copy)
    if a.encoder:
        sums[0] = sums[0].plus(Weights(a.encoder.total_params))
    return tuple(StageWeights(w.dense(tp), w.experts(layout.ep, layout.etp)) for w in sums)
