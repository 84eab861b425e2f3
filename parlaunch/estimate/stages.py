"""The stages of a pipeline: which layers each holds, and what stands there whatever a micro batch is."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from parlaunch.estimate.cross_entropy import CAPPED, LOGIT
from parlaunch.estimate.states import Bytes
from parlaunch.estimate.timing.software import software_of
from parlaunch.model.activations import WIDE
from parlaunch.model.architecture import Architecture, LayerKind
from parlaunch.model.matrices import adapter_size, matrix_shapes
from parlaunch.model.parameters import (
    embedding_weights,
    head_weights,
    layer_weights,
    mtp_weights,
    padded_vocab,
    split_layers,
)
from parlaunch.model.recipe import Features, Recipe

IMAGES = 0.25
"""Share of a sample's tokens that stand for images, where the encoder in front is trained: what the data decides, and we assume.
An image token is made of `spatial_merge_size` squared patches."""

MERGE = 2
"""Patches that are merged in each direction, where the encoder's configuration does not say."""


class Given(NamedTuple):
    """What of recipe, layout and machine the per-token figures depend on."""

    architecture: Architecture
    precision: str
    features: Features
    frozen: bool
    frozen_encoder: bool
    images: float  # patches a token
    adapters: bool
    balanced: bool
    loss: str
    tp: int
    pp: int
    vp: int | None
    cp: int
    ep: int
    etp: int
    fsdp: bool
    cp_comm_type: str | None
    layers_per_chunk: tuple[int, ...] | None
    dummies: str
    fused_v4: bool  # DeepSeek-V4's kernels run, as Bridge has it on Blackwell


class Standing(NamedTuple):
    """What stands on a stage, whatever is recomputed and however many micro batches are in flight."""

    layer_params: float  # quantizable, spread over dp·cp
    other_params: float  # embedding, output
    routed_params: float  # spread over expert data parallelism
    wide_params: float  # of the layers', those in 16 bits whatever the others are in
    wide_routed_params: float
    adapter_params: float
    encoder_params: float  # with gradients or without
    logits: float  # bytes a token, when the loss runs backward
    logit_gradients: float  # bytes a token, when the output matrix does
    largest_logits: float  # bytes a token of the widest of them
    buffers: float  # bytes a token
    unit_dense: float  # parameters of the largest FSDP unit
    unit_routed: float
    embedding_gradient: float  # bytes: autograd makes it whole, before it is added to the main gradient
    dummies: float  # bytes of gradients that nobody reads, of matrices in layers
    head_dummy: float  # bytes of the output matrix's


class Chunk(NamedTuple):
    """The layers of one virtual stage: how many of each kind, and their order where it matters."""

    counts: tuple[tuple[LayerKind, int], ...]
    order: tuple[LayerKind, ...]


@lru_cache(maxsize=4096)
def chunks_of(
    a: Architecture, pp: int, vp: int | None, sizes: tuple[int, ...] | None, wide: tuple[int, int]
) -> tuple[Chunk, ...]:
    """The layers of each virtual stage, in order. Equal ones are one object. `wide`: first and last layers in 16 bits."""
    split = split_layers(a, pp, vp, sizes, wide)
    made = {kinds: Chunk(tuple(Counter(kinds).items()), kinds) for kinds in set(split)}
    return tuple(made[kinds] for kinds in split)


@lru_cache(maxsize=65536)
def _held_params(a: Architecture, kind: LayerKind, tp: int, ep: int, etp: int) -> tuple[int, int]:
    """Parameters of one layer on one GPU: outside of routed experts, and in them."""
    weights = layer_weights(a, kind)
    return weights.dense(tp), weights.experts(ep, etp)


class Place(NamedTuple):
    """A stage and the layers on it."""

    at: int
    chunks: tuple[Chunk, ...]
    counts: tuple[tuple[LayerKind, int], ...]  # of all its chunks together


def place_of(at: int, chunks: tuple[Chunk, ...], stages: int) -> Place:
    """The stage at this place of the pipeline, given all chunks."""
    counts: Counter[LayerKind] = Counter()
    mine = chunks[at::stages]
    for chunk in mine:
        counts.update(dict(chunk.counts))
    return Place(at, mine, tuple(counts.items()))


@lru_cache(maxsize=4096)
def places(
    a: Architecture, pp: int, vp: int | None, sizes: tuple[int, ...] | None, wide: tuple[int, int]
) -> tuple[Place, ...]:
    """The stages; of those that hold the same layers only the first, which holds most micro batches."""
    chunks = chunks_of(a, pp, vp, sizes, wide)
    first: dict[object, int] = {}
    for i in range(pp):
        first.setdefault((*map(id, chunks[i::pp]), i == 0, i == pp - 1), i)  # equal chunks are one object
    return tuple(place_of(i, chunks, pp) for i in first.values())


def standing_on(place: Place, p: Given) -> Standing:
    """What stands on a stage."""
    a, f, h = p.architecture, p.features, p.architecture.hidden_size
    rows, residual = padded_vocab(a, p.tp) / p.tp, residual_share(p)
    dense = routed = wide = wide_routed = unit_dense = unit_routed = 0
    logits = logit_gradients = largest_logits = embedding_gradient = other = adapters = head_dummy = encoder = 0.0
    kinds = {kind for kind, _ in place.counts}
    for kind, n in place.counts:
        d, e = _held_params(a, kind, p.tp, p.ep, p.etp)
        dense, routed = dense + n * d, routed + n * e
        if kind.wide:
            wide, wide_routed = wide + n * d, wide_routed + n * e
        unit_dense, unit_routed = max(unit_dense, d), max(unit_routed, e)
        adapters += n * adapter_size(a, kind, f.adapter_rank, f.adapter_targets) / p.tp if p.adapters else 0.0
    if place.at == 0:
        other += embedding_weights(a, p.tp).dense(p.tp)
        encoder = a.encoder.total_params if a.encoder else 0.0
        embedding_gradient = 0.0 if p.frozen else WIDE * rows * h
    if place.at == p.pp - 1:
        capped = CAPPED if a.final_logit_softcapping else 0
        peak_logit, kept_logit = (size + capped for size in LOGIT[p.loss])
        other += head_weights(a, p.tp).dense(p.tp)
        logits, logit_gradients, largest_logits = rows * peak_logit, WIDE * rows, rows * kept_logit
        head_dummy = 0.0 if p.frozen or p.dummies == "none" else WIDE * rows * h
        if a.mtp_num_layers:
            mtp = mtp_weights(a)
            dense, routed = dense + mtp.dense(p.tp), routed + mtp.experts(p.ep, p.etp)
            kinds |= {*a.mtp_layers()}
            logits += a.mtp_num_layers * rows * kept_logit
        if p.pp > 1 and (a.share_embeddings_and_output_weights or a.mtp_num_layers):
            other += rows * h
    return Standing(
        dense, other, routed, wide, wide_routed, adapters, encoder, logits, logit_gradients, largest_logits,
        _communication(p, residual, kinds), unit_dense, unit_routed, embedding_gradient,
        _dummies(p, kinds), head_dummy,
    )  # fmt: skip


def residual_share(p: Given) -> float:
    """Share of a token's hidden state that one rank keeps between the tensor-parallel regions."""
    split = p.features.sequence_parallel and software_of(p.features.framework).sequence_parallel
    return 1 / p.tp if split else 1.0


def _dummies(p: Given, kinds: set[LayerKind]) -> float:
    """Bytes of the gradients that Transformer Engine returns to autograd beside those it has added to the main gradients.

    Nobody reads them: there is one for each distinct shape (`get_dummy_wgrad`, `module/base.py`, since 2.4), or one at a time.
    """
    if p.dummies == "none" or p.frozen:
        return 0.0
    sizes = [
        rows * columns
        for rows, columns in frozenset().union(*(matrix_shapes(p.architecture, k, p.tp, p.etp) for k in kinds))
    ]
    return WIDE * float(max(sizes, default=0) if p.dummies == "passing" else sum(sizes))


def _communication(p: Given, residual: float, kinds: set[LayerKind]) -> float:
    """Bytes a token of tensors that hold what travels between stages and context-parallel ranks."""
    h, size = p.architecture.hidden_size, 0.0
    if p.pp > 1:
        size += 2 * WIDE * h * residual  # one received, one being sent
    if p.cp > 1:
        kv = max((2 * k.groups * k.head_dim for k in kinds if k.mixer in ("attention", "mla")), default=0) / p.tp
        q = max((k.heads * k.head_dim for k in kinds if k.mixer in ("attention", "mla")), default=0) / p.tp
        # The ring holds the next keys and values beside these, in backward with their gradients; all-to-all swaps all four.
        size += WIDE * (2 * q + kv if p.cp_comm_type == "a2a" else 3 * kv)
    return size


def step_bytes(each: Bytes, f: Features, frozen: bool) -> tuple[float, float]:
    """Bytes a parameter of the optimizer's share that exist only while it steps: of all of it, and of the larger half.

    Plain Adam widens narrow gradients to float32 before it starts. Transformer Engine's widens what is narrower of moments
    and master weights, for dense and for expert parameters in turn (`get_unscaled_state`, `optimizers/fused_adam.py`).
    """
    if frozen or (f.optimizer_offload == 1.0 and f.precision_aware_optimizer):
        return 0.0, 0.0
    if f.precision_aware_optimizer:
        return 0.0, (0.0 if f.moments == "float32" else 8.0) + (0.0 if f.master == "float32" else 4.0)
    return (4.0 if each.gradient < 4 else 0.0), 0.0


def states_of(
    st: Standing, p: Given, each: Bytes, held_back: float, spread: int, expert_spread: int
) -> tuple[float, ...]:
    """Bytes of weights, gradients, optimizer, and of whole copies at work under FSDP.

    `held_back`: bytes a parameter that the framework keeps beside the optimizer, spread as it is.
    """
    encoder = 0.0 if p.frozen_encoder else st.encoder_params
    trained_dense, trained_routed = st.layer_params + st.other_params + encoder, st.routed_params
    weights_dense = st.layer_params * each.layer_weight + (st.other_params + st.encoder_params) * each.other_weight
    weights_routed = st.routed_params * each.layer_weight
    weights_dense += st.wide_params * (each.other_weight - each.layer_weight)
    weights_routed += st.wide_routed_params * (each.other_weight - each.layer_weight)
    if p.frozen:
        trained_dense, trained_routed = st.adapter_params + encoder, 0.0
        weights_dense += st.adapter_params * WIDE
    gradients_dense, gradients_routed = trained_dense * each.gradient, trained_routed * each.gradient
    optimizer = (trained_dense / spread + trained_routed / expert_spread) * (each.optimizer + held_back)
    if not p.fsdp:
        return weights_dense + weights_routed, gradients_dense + gradients_routed, optimizer, 0.0
    # Two layers are whole at a time, one at work and one on its way, and the gradients of one; embedding and output are
    # gathered as a whole, and one of them has its gradient.
    unit = st.unit_dense + st.unit_routed
    gradient = 0.0 if p.frozen else each.gradient
    working = unit * (2 * each.layer_weight + gradient) + st.other_params * (WIDE + gradient / 2)
    weights = weights_dense / spread + weights_routed / expert_spread
    return weights, gradients_dense / spread + gradients_routed / expert_spread, optimizer, working


def encoder_frozen(recipe: Recipe) -> bool:
    """Adapters freeze what they are not beside."""
    return recipe.task == "peft" or recipe.features.frozen_encoder


def patches(recipe: Recipe) -> float:
    """Patches a token whose activations a trained encoder keeps; none in benchmarks, whose samples are text or tiny images."""
    encoder = recipe.architecture.encoder
    if encoder is None or encoder_frozen(recipe) or recipe.benchmark:
        return 0.0
    return IMAGES * (encoder.spatial_merge_size or MERGE) ** 2
