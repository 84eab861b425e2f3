"""How many parameters a model has, and how many of them one GPU of each pipeline stage holds.

Three ways in which Megatron lays a weight over GPUs: the same on every tensor-parallel rank (norms, routers, low-rank
down projections), split over tensor parallelism, and routed experts, split over expert and expert-tensor parallelism.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import accumulate
from operator import add, sub
from typing import NamedTuple

from parlaunch.model.architecture import Architecture, LayerKind
from parlaunch.model.layout import Layout
from parlaunch.model.matrices import WHOLE, Matrix, layer_matrices, mixer_matrices


class Weights(NamedTuple):
    """Parameters by the way they are laid over GPUs."""

    replicated: int = 0  # on every rank of the tensor-parallel group
    sharded: int = 0  # split over tp
    routed: int = 0  # routed experts: split over ep and etp
    routed_replicated: int = 0  # of routed experts, but whole on every etp rank (output biases)

    def plus(self, other: Weights) -> Weights:
        return Weights(*map(add, self, other))

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
    q, kv = k.heads * k.head_dim, k.groups * k.head_dim
    values = 0 if a.attention_k_eq_v and k.window is None else kv
    bias = q + (0 if k.borrows_kv else kv + values) if a.add_qkv_bias or a.add_bias_linear else 0
    replicated = a.hidden_size if a.add_bias_linear else 0
    if a.qk_layernorm:
        replicated += _norm(a, k.head_dim) * (1 if k.borrows_kv else 2)
    if k.indexer:
        replicated += a.dsa_indexer_head_dim or 0
    return Weights(replicated, bias + (k.heads if a.softmax_type == "learnable" else 0))


def _mla(a: Architecture, k: LayerKind) -> Weights:
    replicated = _norm(a, a.kv_lora_rank or 0) + (_norm(a, a.q_lora_rank) if a.q_lora_rank else 0)
    # The norm of the indexer's key has weight and bias.
    return Weights(replicated + (2 * (a.dsa_indexer_head_dim or 0) if k.indexer else 0))


def _compressor(dim: int, ratio: int) -> int:
    """Positions in a window, one row each, and a norm."""
    return ratio * (2 * dim if ratio == 4 else dim) + dim


def _csa(a: Architecture, k: LayerKind) -> Weights:
    replicated = (a.q_lora_rank or 0) + k.head_dim
    if k.compress:
        replicated += _compressor(k.head_dim, k.compress)
    if k.compress == 4:
        replicated += _compressor(a.dsa_indexer_head_dim or 0, 4)
    return Weights(replicated, k.heads)


def _streams(a: Architecture) -> int:
    """Hyper-connections: for attention and for the MLP, the mixing matrix of the residual streams, its base and scale."""
    n = a.num_residual_streams or 0
    return (2 + n) * n * (n * a.hidden_size + 1) + 3 if n > 1 else 0


def _mamba(a: Architecture) -> Weights:
    heads = a.mamba_num_heads or 0
    inner = heads * (a.mamba_head_dim or 0)
    states = 2 * (a.mamba_num_groups or 0) * (a.mamba_state_dim or 0)
    convolution = (inner + states) * (4 + 1)  # kernel of 4, and a bias
    return Weights(0, convolution + 3 * heads + inner)


def _gated_delta_net(a: Architecture) -> Weights:
    heads = a.linear_num_value_heads or 0
    qk = (a.linear_num_key_heads or 0) * (a.linear_key_head_dim or 0)
    v = heads * (a.linear_value_head_dim or 0)
    return Weights(a.linear_value_head_dim or 0, (2 * qk + v) * a.linear_conv_kernel_dim + 2 * heads)


def _diffusion(a: Architecture, k: LayerKind) -> Weights:
    """FLUX: norms of queries and keys, and the biases of each stream's matrices."""
    streams = 2 if k.mixer == "joint" else 1
    return Weights(2 * streams * k.head_dim, sum(m.outputs * m.streams for m in mixer_matrices(a, k)))


def _mlp_biases(a: Architecture, ffn: int) -> Weights:
    up = 2 if a.gated_linear_unit else 1
    return Weights(a.hidden_size, up * ffn) if a.add_bias_linear else NOTHING


def _moe(a: Architecture) -> Weights:
    h, experts, ffn = a.hidden_size, a.num_moe_experts or 0, a.moe_ffn_hidden_size or a.ffn_hidden_size
    vectors = NOTHING
    if a.add_bias_linear:
        up = 2 if a.gated_linear_unit else 1
        vectors = Weights(experts, 0, experts * up * ffn, experts * (a.moe_latent_size or h))
    if shared := a.moe_shared_expert_intermediate_size:
        vectors = vectors.plus(_mlp_biases(a, shared)).plus(Weights(h if a.moe_shared_expert_gate else 0))
    return vectors


MIXERS: Mapping[str, Callable[[Architecture, LayerKind], Weights]] = {
    "attention": _attention, "mla": _mla, "csa": _csa,
    "mamba": lambda a, _: _mamba(a), "gated_delta_net": lambda a, _: _gated_delta_net(a),
}  # fmt: skip
"""The vectors of each mixer: norms, biases, convolutions, one number a head."""


def _laid(m: Matrix) -> Weights:
    if m.experts:
        return Weights(routed=m.size)
    return Weights(m.size) if m.split == WHOLE else Weights(0, m.size)


@lru_cache(maxsize=4096)
def layer_weights(a: Architecture, k: LayerKind) -> Weights:
    """The parameters of one layer of this kind: its matrices, and its vectors with the norms."""
    weights = NOTHING
    for matrix in layer_matrices(a, k):
        weights = weights.plus(_laid(matrix))
    if k.mixer in ("joint", "single"):
        return weights.plus(_diffusion(a, k))
    norm = _norm(a, a.hidden_size) * (2 if a.post_norms else 1)
    if k.mixer:
        vectors = MIXERS[k.mixer](a, k)
        weights = weights.plus(vectors.times(2 if a.kind == "diffusion" else 1)).plus(Weights(norm + _streams(a)))
    if k.mlp:
        vectors = _moe(a) if k.mlp == "moe" else _mlp_biases(a, a.ffn_hidden_size)
        weights = weights.plus(vectors).plus(Weights(norm + _streams(a)))
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


@lru_cache(maxsize=4096)
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


def active_params(a: Architecture) -> int:
    """Parameters that one token passes through: of the routed experts, as many as the router picks."""
    return total_params(a, experts=a.moe_router_topk)


@lru_cache(maxsize=4096)
def split_layers(
    a: Architecture,
    pp: int,
    vp: int | None = None,
    layers_per_chunk: tuple[int, ...] | None = None,
    wide: tuple[int, int] = (0, 0),
) -> tuple[tuple[LayerKind, ...], ...]:
    """The decoder layers of each virtual stage, in order of execution: as the layout says, else equal chunks. So many of the first and
    the last are `wide`.

    Where the layers do not divide, loss and embedding count as layers of the last and first chunk, as Megatron's
    `account_for_loss_in_pipeline_split` and `account_for_embedding_in_pipeline_split` do.
    """
    layers, (first, last) = a.layers(), wide
    if first or last:
        narrow = range(first, len(layers) - last)
        layers = tuple(kind if i in narrow else kind._replace(wide=True) for i, kind in enumerate(layers))
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


@lru_cache(maxsize=512)
def _running(a: Architecture) -> tuple[Weights, ...]:
    """Parameters of the first so many decoder layers."""
    return tuple(accumulate((layer_weights(a, kind) for kind in a.layers()), Weights.plus, initial=NOTHING))


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
    before, end = _running(a), 0
    for chunk, size in enumerate(chunk_sizes(a, layout)):
        start, end = end, end + size
        sums[chunk % pp] = Weights(*map(add, sums[chunk % pp], map(sub, before[end], before[start])))
    embedding, head = embedding_weights(a, tp), head_weights(a, tp)
    sums[0] = sums[0].plus(embedding)
    sums[-1] = sums[-1].plus(head).plus(mtp_weights(a))
    if pp > 1 and (a.share_embeddings_and_output_weights or a.mtp_num_layers):
        copy = Weights(0, padded_vocab(a, tp) * a.hidden_size)
        sums[-1] = sums[-1].plus(copy)
    if a.encoder:
        sums[0] = sums[0].plus(Weights(a.encoder.total_params))
    return tuple(StageWeights(w.dense(tp), w.experts(layout.ep, layout.etp)) for w in sums)
