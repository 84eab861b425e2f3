"""Memory of the fullest GPU: what stays (weights, gradients, optimizer), what a micro batch leaves, and what comes on top.

Everything follows from the layer kinds (`parlaunch.model.activations`), the parameters of each stage (`parlaunch.model.parameters`) and
the bytes of a parameter (`parlaunch.estimate.states`). The constants below are the only ones, each with its unit and source.

Built to be asked thousands of times: what depends on the sizes of the layout alone is computed once and cached; a call is
then a few multiplications for each stage that could be the fullest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from parlaunch.estimate.states import BUCKET, FRAGMENTS, Bytes, Keeping, bytes_a_parameter, keeping_of, loss_of
from parlaunch.estimate.timing.software import software_of
from parlaunch.estimate.values import Memory
from parlaunch.hardware.cpu import CPU_RANK
from parlaunch.hardware.rates import HEADROOM, Rates
from parlaunch.model.activations import WIDE, Surroundings, keeps_scores, layer_activations
from parlaunch.model.architecture import Architecture, LayerKind
from parlaunch.model.layout import NO_RECOMPUTE, Layout, Recompute
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

GIB = 2**30
MIB = 2**20

CONTEXT = {"volta": 0.5, "turing": 0.4, "ampere": 0.55, "ada": 0.5, "hopper": 0.75, "blackwell": 0.9, "rubin": 0.9}
"""GiB of a CUDA context with the kernels of torch, cuBLAS, cuDNN and Transformer Engine loaded (lazy loading)."""

COMMUNICATOR = 256 * MIB
"""Device memory of one NCCL communicator: 16 to 32 channels, about 10 MiB of protocol buffers a channel and peer."""

WORKSPACE = {"hopper": 32 * MIB, "blackwell": 32 * MIB, "rubin": 32 * MIB}
"""cuBLASLt workspace as Transformer Engine sizes it; 4 MiB before Hopper. Torch holds one of its own, grouped GEMMs four."""

IMBALANCE = 1.2
"""Tokens on the fullest expert-parallel rank over the mean, for a trained router with a balancing loss; 1 where the recipe
forces balance, as benchmarks do. Routers just initialised are worse for some iterations. An assumption: nobody publishes it."""

GRAPH = 2 * GIB
"""Kernel nodes, their parameters and static inputs of captured CUDA graphs: "a few GB" for scoped graphs in Megatron
Bridge's notes on them."""

GRAPH_POOL = {"full_iteration": 0.20}
"""Share of what comes and goes that a graph's private pool holds on top, because nothing is freed into it while it is
captured. The same notes say up to half the peak and more; NVIDIA's tuned layouts with such graphs leave room for a quarter."""

CROWDED = 1 * GIB
"""What has to stay free beside all that the caching allocator reserves: a run that filled the last GiB took six times as long."""
HOLES = 0.8
"""Of the largest tensor that comes and goes, what growing segments leave empty at most (`scripts/bench/segments.py`): what of it `slack`
does not hold has to be free as well."""
OVERLAP_POOLS = 3.0
"""Times what the backward pass of one layer needs that the allocator holds on top where expert traffic overlaps: two micro batches
run in turn, on two streams, and a block that one stream freed is never the other's: four times instead of once. DeepSeek-V3 with 14
layers on 64 H100 reserved 5.8 GB more with it, and allocated 0.2 GB more (NVIDIA/Megatron-LM PR #6429); this says 5.6."""

DEEPEP_BUFFER = 1 * GIB
"""NVLink and RDMA buffers of DeepEP's normal kernels for hidden sizes around 7,168."""

LOGIT = {"te": (2, 2), "te_wide": (6, 4), "native": (10, 4), "unfused": (6, 4)}
"""Bytes of one logit: at the worst moment, and kept until backward. Transformer Engine's loss works in place in bf16; in 2.18 it makes
the gradient in float32 beside them (`pytorch/triton/cross_entropy.py`, `grad_input`). The native one (Megatron Core, `fusions/fused_cross_entropy.py`) keeps the softmax in float32; its backward
pass, as torch compiles it, makes a second one for the scatter and the gradient in bf16 (`tests/model/test_cross_entropy.py`); unfused
(`tensor_parallel/cross_entropy.py`) it works in place and makes the gradient alone."""


CAPPED = 2
"""Bytes of one logit that a tanh over the logits keeps: its output, in bf16 (Bridge, `models/gemma/gemma2_provider.py`)."""

IMAGES = 0.25
"""Share of a sample's tokens that stand for images, where the encoder in front is trained: what the data decides, and we assume.
An image token is made of `spatial_merge_size` squared patches."""
MERGE = 2
"""Patches that are merged in each direction, where the encoder's configuration does not say."""


class _Plan(NamedTuple):
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


class _Standing(NamedTuple):
    """What stands on a stage, whatever is recomputed and however many micro batches are in flight."""

    layer_params: float  # quantizable, spread over dp·cp
    other_params: float  # embedding, output
    routed_params: float  # spread over expert data parallelism
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


class _Left(NamedTuple):
    """What micro batches leave on a stage, in bytes a token."""

    saved: float  # all micro batches in flight
    transient: float  # of the layer whose backward runs
    one: float  # that the micro batch in backward kept: gone when the embedding's gradient comes


def held(stage: int, pp: int, vp: int | None, microbatches: int, *, overlap: bool = False) -> tuple[int, ...]:
    """Micro batches whose activations a stage holds at its fullest moment, for each of its chunks.

    1F1B: stage i runs pp - i forward passes before its first backward. Interleaved: 2·(pp - i - 1) + (vp - 1)·pp warm-up
    passes and one more, dealt to the chunks in groups of pp. With expert all-to-all overlap one more runs beside a backward.
    """
    if not vp or vp == 1:
        return (min(pp - stage + (1 if overlap and pp > 1 else 0), microbatches),)
    passes = min(2 * (pp - stage - 1) + (vp - 1) * pp + 1 + (1 if overlap else 0), microbatches * vp)
    rounds, rest = divmod(passes, pp * vp)
    return tuple(rounds * pp + min(max(rest - chunk * pp, 0), pp) for chunk in range(vp))


@lru_cache(maxsize=512)
def _scores_are_kept(a: Architecture) -> bool:
    return any(keeps_scores(a, kind) for kind in a.layers())


def _squares(p: _Plan) -> bool:
    """Whether activations grow with the square of the sequence."""
    return not software_of(p.features.framework).fused_attention or _scores_are_kept(p.architecture)


def _surroundings(p: _Plan, recompute: Recompute, seq_length: int) -> Surroundings:
    f = p.features
    software = software_of(f.framework)
    return Surroundings(
        tp=p.tp,
        sequence_parallel=f.sequence_parallel and software.sequence_parallel,
        etp=p.etp,
        precision=p.precision,
        recompute=recompute if recompute.granularity == "selective" else NO_RECOMPUTE,
        offload=f.offload_modules,
        imbalance=1.0 if p.balanced or p.ep == 1 else IMBALANCE,
        frozen=p.frozen,
        adapters=f.adapter_targets if p.adapters else (),
        adapter_rank=f.adapter_rank if p.adapters else 0,
        adapter_dropout=f.adapter_dropout,
        fp8_attention=f.fp8_attention,
        fp8_activation_input=f.fp8_activation_input,
        swapped_heads=p.cp > 1 and p.cp_comm_type == "a2a",
        dropout=software.dropout,
        unfused_attention=not software.fused_attention,
        seq_length=seq_length // p.cp if _squares(p) else 0,
    )


class _Chunk(NamedTuple):
    """The layers of one virtual stage: how many of each kind, and their order where it matters."""

    counts: tuple[tuple[LayerKind, int], ...]
    order: tuple[LayerKind, ...]


@lru_cache(maxsize=4096)
def _chunks(a: Architecture, pp: int, vp: int | None, sizes: tuple[int, ...] | None) -> tuple[_Chunk, ...]:
    split = split_layers(a, pp, vp, sizes)
    made = {kinds: _Chunk(tuple(Counter(kinds).items()), kinds) for kinds in set(split)}
    return tuple(made[kinds] for kinds in split)


@lru_cache(maxsize=65536)
def _held_params(a: Architecture, kind: LayerKind, tp: int, ep: int, etp: int) -> tuple[int, int]:
    """Parameters of one layer on one GPU: outside of routed experts, and in them."""
    weights = layer_weights(a, kind)
    return weights.dense(tp), weights.experts(ep, etp)


def _chunk(chunk: _Chunk, a: Architecture, r: Recompute, s: Surroundings) -> tuple[float, float]:
    """Bytes a token that one chunk of layers keeps, and the most that one of them needs for its backward."""
    saved = transient = 0.0
    if r.granularity != "full":
        for kind, count in chunk.counts:
            k = layer_activations(a, kind, s)
            saved += count * k.saved
            transient = max(transient, k.rerun + k.grads)
        return saved, transient
    unit = max(r.num_layers or 1, 1)
    if r.method == "block":  # the first layers keep their input, the others everything
        for part, again in ((chunk.order[:unit], True), (chunk.order[unit:], False)):
            for kind in dict.fromkeys(part):
                k = layer_activations(a, kind, s)
                saved += part.count(kind) * (k.x if again else k.saved)
                transient = max(transient, k.grads + (k.saved if again else 0.0))
        return saved, transient
    for kind, _ in chunk.counts:
        k = layer_activations(a, kind, s)
        saved = max(saved, k.x)
        transient = max(transient, k.saved * min(unit, len(chunk.order)) + k.grads)
    return saved * -(-len(chunk.order) // unit), transient


class _Place(NamedTuple):
    """A stage and the layers on it."""

    at: int
    chunks: tuple[_Chunk, ...]
    counts: tuple[tuple[LayerKind, int], ...]  # of all its chunks together


def _place(at: int, chunks: tuple[_Chunk, ...], stages: int) -> _Place:
    counts: Counter[LayerKind] = Counter()
    mine = chunks[at::stages]
    for chunk in mine:
        counts.update(dict(chunk.counts))
    return _Place(at, mine, tuple(counts.items()))


@lru_cache(maxsize=4096)
def _places(a: Architecture, pp: int, vp: int | None, sizes: tuple[int, ...] | None) -> tuple[_Place, ...]:
    """The stages; of those that hold the same layers only the first, which holds most micro batches."""
    chunks = _chunks(a, pp, vp, sizes)
    first: dict[object, int] = {}
    for i in range(pp):
        first.setdefault((*map(id, chunks[i::pp]), i == 0, i == pp - 1), i)  # equal chunks are one object
    return tuple(_place(i, chunks, pp) for i in first.values())


def _standing(place: _Place, p: _Plan) -> _Standing:
    a, f, h = p.architecture, p.features, p.architecture.hidden_size
    rows, residual = padded_vocab(a, p.tp) / p.tp, _residual(p)
    dense = routed = unit_dense = unit_routed = 0
    logits = logit_gradients = largest_logits = embedding_gradient = other = adapters = head_dummy = encoder = 0.0
    kinds = {kind for kind, _ in place.counts}
    for kind, n in place.counts:
        d, e = _held_params(a, kind, p.tp, p.ep, p.etp)
        dense, routed = dense + n * d, routed + n * e
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
    return _Standing(
        dense, other, routed, adapters, encoder, logits, logit_gradients, largest_logits,
        _communication(p, residual, kinds), unit_dense, unit_routed, embedding_gradient,
        _dummies(p, kinds), head_dummy,
    )  # fmt: skip


def _left(place: _Place, p: _Plan, recompute: Recompute, s: Surroundings, microbatches: int, *, overlap: bool) -> _Left:
    a, f, h = p.architecture, p.features, p.architecture.hidden_size
    i, residual, layers = place.at, _residual(p), 0
    saved = transient = first = one = most = 0.0
    last: _Chunk | None = None
    output = WIDE * h * residual if p.pp > 1 and keeping_of(f.framework).stage_outputs else 0.0
    in_flight = held(i, p.pp, p.vp, microbatches, overlap=overlap)
    for count, chunk in zip(in_flight, place.chunks, strict=True):
        if chunk is not last:  # all but the first and the last mostly are the same
            (one, most), last = _chunk(chunk, a, recompute, s), chunk
        saved += count * (one + output)
        transient = max(transient, most)
        first = first or one
        layers += len(chunk.order)
    if f.cpu_offload_layers and layers:
        saved *= max(0.0, 1 - f.cpu_offload_layers / layers)
    if i == 0 and a.encoder:
        # Every tensor rank has all of it, and all of a sample's images.
        saved += in_flight[0] * p.images * a.encoder.activations
    if i == p.pp - 1:
        saved += 2 * WIDE * h * residual
        if a.mtp_num_layers:
            one, most = _chunk(_Chunk(tuple(Counter(a.mtp_layers()).items()), a.mtp_layers()), a, recompute, s)
            # Both norms in and out, and their concatenation.
            saved += one + a.mtp_num_layers * 6 * WIDE * h * residual
            transient = max(transient, most)
    return _Left(saved, transient, first)


def _residual(p: _Plan) -> float:
    """Share of a token's hidden state that one rank keeps between the tensor-parallel regions."""
    split = p.features.sequence_parallel and software_of(p.features.framework).sequence_parallel
    return 1 / p.tp if split else 1.0


def _dummies(p: _Plan, kinds: set[LayerKind]) -> float:
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


def _communication(p: _Plan, residual: float, kinds: set[LayerKind]) -> float:
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


def _written(recipe: Recipe, layout: Layout) -> float:
    """Bytes a token of buffers that GPUs write into each other's: their owners allocate them beside torch (`cudaMalloc` or `cuMemCreate`
    in Transformer Engine's `userbuffers-host.cpp` and in HybridEP's `allocator.cuh`)."""
    a, f, h, size = recipe.architecture, recipe.features, recipe.architecture.hidden_size, 0.0
    if layout.tp > 1 and f.tp_overlap:
        size += 6 * WIDE * h  # user buffers of four layers' forward and two of their backward
    if layout.ep > 1 and f.dispatcher == "hybridep":
        # Receive buffers for dispatch and combine, sized for every rank of the group sending everything here.
        width = a.moe_latent_size or h
        size += 2 * WIDE * width * layout.ep / layout.tp
    return size


PEAK_BAND = {"today": 0.04, "2022": 0.07}
"""± share of the peak within which two of three runs lie, by generation of the software. Today's: from the open rows of 2024 to 2026,
each source predicted by what the others leave (`scripts/make/memory_accuracy.py`); 2022: the 90th percentile over BLOOM's
candidates, all of one project and machine."""

RISK = {"today": 0.06, "2022": 0.09}
"""Share above the prediction that one run of twenty needs: the 95th percentile of the same residuals."""

WIDER = {"imbalance": 0.02, "fsdp": 0.03, "graph": 0.01, "offload": 0.03, "overlap": 0.02, "images": 0.05}
"""What few rows with a measured peak have, or none, and by how much it widens both; by judgement."""


def _wider(recipe: Recipe, layout: Layout) -> float:
    f, wider = recipe.features, 0.0
    if recipe.architecture.num_moe_experts and layout.ep > 1 and not (f.force_balance or recipe.benchmark):
        wider += WIDER["imbalance"]
    if f.ep_overlap:
        wider += WIDER["overlap"]
    if _patches(recipe):
        wider += WIDER["images"]
    if layout.fsdp or f.fsdp:
        wider += WIDER["fsdp"]
    if f.cuda_graph:
        wider += WIDER["graph"]
    if f.cpu_offload_layers or f.offload_modules or f.optimizer_offload:
        wider += WIDER["offload"]
    return wider


WIDE_LOSS = (2, 18)
"""The Transformer Engine from which on its loss makes gradients in float32."""


def with_loss_of(recipe: Recipe, transformer_engine: tuple[int, ...] | None) -> Recipe:
    """The recipe with the cross entropy that this version has under the name that it asks for; None: not known."""
    if transformer_engine is None or transformer_engine < WIDE_LOSS or loss_of(recipe) != "te":
        return recipe
    return replace(recipe, features=replace(recipe.features, cross_entropy="te_wide"))


def _step_bytes(each: Bytes, f: Features, frozen: bool) -> tuple[float, float]:
    """Bytes a parameter of the optimizer's share that exist only while it steps: of all of it, and of the larger half.

    Plain Adam widens narrow gradients to float32 before it starts. Transformer Engine's widens what is narrower of moments
    and master weights, for dense and for expert parameters in turn (`get_unscaled_state`, `optimizers/fused_adam.py`).
    """
    if frozen or (f.optimizer_offload == 1.0 and f.precision_aware_optimizer):
        return 0.0, 0.0
    if f.precision_aware_optimizer:
        return 0.0, (0.0 if f.moments == "float32" else 8.0) + (0.0 if f.master == "float32" else 4.0)
    return (4.0 if each.gradient < 4 else 0.0), 0.0


def _states(
    st: _Standing, p: _Plan, each: Bytes, held_back: float, spread: int, expert_spread: int
) -> tuple[float, ...]:
    """Bytes of weights, gradients, optimizer, and of whole copies at work under FSDP.

    `held_back`: bytes a parameter that the framework keeps beside the optimizer, spread as it is.
    """
    encoder = 0.0 if p.frozen_encoder else st.encoder_params
    trained_dense, trained_routed = st.layer_params + st.other_params + encoder, st.routed_params
    weights_dense = st.layer_params * each.layer_weight + (st.other_params + st.encoder_params) * each.other_weight
    weights_routed = st.routed_params * each.layer_weight
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


def _encoder_frozen(recipe: Recipe) -> bool:
    """Adapters freeze what they are not beside."""
    return recipe.task == "peft" or recipe.features.frozen_encoder


def _patches(recipe: Recipe) -> float:
    """Patches a token whose activations a trained encoder keeps; none in benchmarks, whose samples are text or tiny images."""
    encoder = recipe.architecture.encoder
    if encoder is None or _encoder_frozen(recipe) or recipe.benchmark:
        return 0.0
    return IMAGES * (encoder.spatial_merge_size or MERGE) ** 2


class _Stage(NamedTuple):
    """One stage, whatever a micro batch is and whatever of it is recomputed."""

    place: _Place
    standing: _Standing
    weights: float  # bytes, as are the next two
    gradients: float
    optimizer: float
    working: float  # bytes of whole copies at work under FSDP
    stepping: float  # bytes of the optimizer's that are there while it steps, where nothing else is


class _Around(NamedTuple):
    """What activations depend on beside the recipe, recomputation and micro batches in flight."""

    sharing: tuple[object, ...]  # all that `Surroundings` see of it
    pp: int
    vp: int | None
    layers_per_chunk: tuple[int, ...] | None


class _Frame(NamedTuple):
    """What layouts share that differ in micro batch and recomputation alone."""

    p: _Plan  # with the switches `OFF`
    keeping: Keeping
    spread: int  # ranks that share the optimizer
    expert_spread: int
    around: _Around
    stages: tuple[_Stage, ...]  # those that could be the fullest
    in_flight: int  # micro batches: more change nothing
    workspace: float  # bytes
    outside: float  # bytes
    cached: bool  # torch's caching allocator of CUDA memory holds it
    features: Features
    # What switches add:
    written: float = 0.0  # bytes a token of what other GPUs write to, outside of torch
    registered: float = 0.0  # bytes, whatever a micro batch is
    wider: float = 0.0  # the error bands, than those of runs like it


OFF: Mapping[str, Any] = {
    "dispatcher": None, "ep_overlap": False, "cuda_graph": None, "cuda_graph_scope": (), "external_cuda_graph": False,
}  # fmt: skip
"""Switches that change neither what stands on a stage nor what one micro batch leaves there, turned off: recipes that differ in
them alone share the rest, which a search would otherwise make for every combination."""


class _Bare:
    """What layouts share on one machine, for all recipes that are the same with those switches `OFF`."""

    def __init__(self, recipe: Recipe, rates: Rates) -> None:
        self.recipe, self.rates = recipe, rates
        self.keeping = keeping_of(recipe.features.framework)
        self.each = bytes_a_parameter(recipe.precision, recipe.features, rates.product.arch)
        # Megatron-FSDP has no buffers for packed weights (Bridge, `perf_recipes/nemotronh/common.py`).
        unpacked = replace(recipe.features, fp4_param_gather=False)
        self.each_of_fsdp = bytes_a_parameter(recipe.precision, unpacked, rates.product.arch)
        self.step = _step_bytes(self.each, recipe.features, recipe.frozen)
        self._frames: dict[tuple[object, ...], _Frame] = {}
        self._kept: dict[tuple[object, ...], tuple[_Left, ...]] = {}
        self._surroundings: dict[tuple[object, ...], Surroundings] = {}

    def frame(self, key: tuple[object, ...], x: Layout) -> _Frame:
        known = self._frames.get(key)
        if known is None:
            known = self._frames[key] = self._frame(x)
        return known

    def _frame(self, layout: Layout) -> _Frame:
        recipe, f, a, keeping = self.recipe, self.recipe.features, self.recipe.architecture, self.keeping
        fsdp, gpu, pp = layout.fsdp or f.fsdp, self.rates.product.arch, layout.pp
        p = _Plan(
            a, recipe.precision, f, recipe.frozen, _encoder_frozen(recipe), _patches(recipe), recipe.task == "peft",
            f.force_balance or recipe.benchmark, loss_of(recipe), layout.tp, pp, layout.vp, layout.cp, layout.ep, layout.etp,
            fsdp, layout.cp_comm_type, layout.layers_per_chunk,
            # Accumulation is not fused under FSDP, nor in the diffusion recipes.
            "none" if fsdp or a.kind == "diffusion" else keeping.dummies,
        )  # fmt: skip
        spread = expert_spread = 1
        if f.distributed_optimizer or fsdp:
            spread, expert_spread = max(layout.world // (layout.tp * pp), 1), max(layout.edp, 1)
        dimensions = (layout.tp, pp, layout.cp, layout.ep, layout.etp, layout.dp, layout.edp)
        communicators = sum(n > 1 for n in dimensions) + keeping.communicators
        return _Frame(
            p,
            keeping,
            spread,
            expert_spread,
            _Around(
                # Where experts stand and how sequences are split reaches activations through their surroundings alone.
                (
                    p.tp,
                    p.ep > 1,
                    p.etp,
                    p.cp > 1 and p.cp_comm_type == "a2a",
                    p.cp if _squares(p) else 0,
                ),
                pp,
                p.vp,
                p.layers_per_chunk,
            ),
            tuple(
                self.stage(place, p, spread, expert_spread) for place in _places(a, pp, layout.vp, p.layers_per_chunk)
            ),
            2 * pp + 1 if layout.vp else pp + 1,
            WORKSPACE.get(gpu, 4 * MIB) * (2 + (4 if a.num_moe_experts else 0)),
            (CONTEXT.get(gpu, 0.6) + keeping.loading) * GIB + communicators * COMMUNICATOR,
            self.rates.product != CPU_RANK,
            f,
        )

    def stage(self, place: _Place, p: _Plan, spread: int, expert_spread: int) -> _Stage:
        st = _standing(place, p)
        held_back = self.keeping.sharded if spread > 1 else 0.0
        of_all, of_half = self.step
        stepping = 0.0
        if of_all + of_half:
            encoder = 0.0 if p.frozen_encoder else st.encoder_params
            dense = (st.layer_params + st.other_params + encoder) / spread
            routed = st.routed_params / expert_spread
            stepping = of_all * (dense + routed) + of_half * max(dense, routed)
        each = self.each_of_fsdp if p.fsdp else self.each
        weights, gradients, optimizer, working = _states(st, p, each, held_back, spread, expert_spread)
        return _Stage(place, st, weights, gradients, optimizer, working, stepping)

    def kept(self, x: _Frame, recompute: Recompute, microbatches: int) -> tuple[_Left, ...]:
        """What micro batches leave on each of the frame's stages."""
        key = (x.around, recompute, microbatches, x.features.ep_overlap)
        known = self._kept.get(key)
        if known is None:
            known = self._kept[key] = self.left(x, recompute, microbatches)
        return known

    def left(self, x: _Frame, recompute: Recompute, microbatches: int) -> tuple[_Left, ...]:
        key = (x.around.sharing, recompute.granularity, recompute.modules)
        around, overlap = self._surroundings.get(key), x.features.ep_overlap
        if around is None:  # one object for all: what is remembered by it is found at once
            around = self._surroundings[key] = _surroundings(x.p, recompute, self.recipe.seq_length)
        return tuple(_left(stage.place, x.p, recompute, around, microbatches, overlap=overlap) for stage in x.stages)


class _Model:
    """Everything about one recipe on one machine that layouts share."""

    def __init__(self, recipe: Recipe, rates: Rates) -> None:
        self.recipe, self.rates = recipe, rates
        self.bare = _bare(replace(recipe, features=replace(recipe.features, **OFF)), rates)
        self._frames: dict[tuple[object, ...], _Frame] = {}

    def frame(self, x: Layout) -> _Frame:
        key = (x.world, x.tp, x.pp, x.vp, x.cp, x.ep, x.etp, x.fsdp, x.cp_comm_type, x.layers_per_chunk)
        known = self._frames.get(key)
        if known is None:
            known = self._frames[key] = self._frame(self.bare.frame(key, x), x)
        return known

    def _frame(self, bare: _Frame, x: Layout) -> _Frame:
        """The frame with the recipe's switches."""
        f = self.recipe.features
        return bare._replace(
            outside=bare.outside + (GRAPH if f.cuda_graph else 0),
            features=f,
            written=_written(self.recipe, x),
            registered=DEEPEP_BUFFER if x.ep > 1 and f.dispatcher == "deepep" else 0,
            wider=_wider(self.recipe, x),
        )

    def tokens(self, layout: Layout) -> float:
        """Of a micro batch on one rank."""
        return layout.micro_batch_size * self.recipe.seq_length / layout.cp

    def memory(self, stage: _Stage, parts: tuple[float, ...], x: _Frame, headroom: float) -> Memory:
        """The parts of a stage, with what every process holds on top."""
        weights, gradients, optimizer, activations, logits, buffers, runtime, slack, pool, spare = _figures(parts, x)
        capacity, measured = self.rates.memory_bytes, x.keeping.measured
        return Memory(
            weights=weights,
            gradients=gradients,
            optimizer=optimizer,
            activations=activations,
            logits=logits,
            buffers=buffers,
            runtime=runtime,
            slack=slack,
            pool=pool,
            spare=spare,
            capacity=capacity,
            limit=int(capacity * (1 - headroom)),
            stage=stage.place.at,
            error_band=PEAK_BAND[measured] + x.wider,
            risk_band=RISK[measured] + x.wider,
        )


@lru_cache(maxsize=16)
def _bare(recipe: Recipe, rates: Rates) -> _Bare:
    return _Bare(recipe, rates)


@lru_cache(maxsize=32)
def _model(recipe: Recipe, rates: Rates) -> _Model:
    return _Model(recipe, rates)


def _parts(stage: _Stage, left: _Left, x: _Frame, tokens: float) -> tuple[float, ...]:
    """Bytes of weights, gradients, optimizer, activations, logits and buffers of one stage, and of what is registered outside of torch;
    then of the largest tensor, and of what the backward pass of one layer needs."""
    st, reused = stage.standing, x.p.dummies == "reused"
    logits = st.logits * tokens
    head = st.logit_gradients * tokens + (0.0 if reused else st.head_dummy)
    on_top = max(left.transient * tokens, st.embedding_gradient - left.one * tokens, head)
    activations = left.saved * tokens + max(0.0, on_top - logits)
    buffers = st.buffers * tokens + stage.working + st.dummies + (st.head_dummy if reused else 0.0)
    optimizer = stage.optimizer
    if stage.stepping:
        optimizer += max(0.0, stage.stepping - activations - logits)
    largest = max(st.embedding_gradient, st.head_dummy, st.largest_logits * tokens)
    return (
        stage.weights, stage.gradients, optimizer, activations, logits, buffers, x.written * tokens,
        largest, left.transient * tokens,
    )  # fmt: skip


def _figures(parts: tuple[float, ...], x: _Frame) -> tuple[int, ...]:
    """What the memory of a stage is made of, as `Memory` has it: weights to runtime, which add up to the peak; slack, pool,
    spare."""
    weights, gradients, optimizer, activations, logits, buffers, registered, largest, transient = parts
    f, keeping = x.features, x.keeping
    buffers += x.workspace
    if keeping.buckets and x.spread > 1:
        buffers += keeping.buckets.get(x.p.precision, 0) * min(1.0, weights / WIDE / BUCKET)  # no larger than the model
    comes_and_goes = activations + logits + buffers
    fragments = FRAGMENTS if f.nccl_ub else keeping.fragments  # registered buffers exclude growing segments
    slack = int(keeping.slack * comes_and_goes + fragments * largest)
    pool = int(GRAPH_POOL.get(f.cuda_graph or "", 0.0) * comes_and_goes)
    runtime = int(x.outside + (registered + x.registered)) + slack + pool
    made = (weights, gradients, optimizer, activations, logits, buffers)
    pools = OVERLAP_POOLS * transient if f.ep_overlap and x.p.ep > 1 else 0.0
    spare = max(CROWDED, HOLES * largest - slack) + pools if x.cached else 0.0
    return (*map(int, made), runtime, slack, pool, int(spare))


def _fullest(model: _Model, layout: Layout, recompute: Recompute) -> tuple[_Stage, tuple[float, ...], _Frame]:
    """The stage that holds most, with its parts."""
    x, tokens, most = model.frame(layout), model.tokens(layout), -1.0
    kept = model.bare.kept(x, recompute, min(layout.num_microbatches, x.in_flight) or 1)
    for stage, left in zip(x.stages, kept, strict=True):
        parts = _parts(stage, left, x, tokens)
        total = sum(parts[:-2])
        if total > most:
            fullest, most = (stage, parts, x), total
    return fullest


def estimate_memory(recipe: Recipe, layout: Layout, rates: Rates, *, headroom: float = HEADROOM) -> Memory:
    """Peak memory of the fullest GPU of the fullest stage, in bytes, with the machine's capacity beside it."""
    model = _model(recipe, rates)
    return model.memory(*_fullest(model, layout, layout.recompute), headroom)


def peak_and_spare(recipe: Recipe, layout: Layout, rates: Rates, recompute: Recompute | None = None) -> tuple[int, int]:
    """The peak of `estimate_memory`, and what has to be spare beside it, in a fraction of its time; with `recompute` in place of the
    layout's own."""
    _, parts, x = _fullest(_model(recipe, rates), layout, recompute or layout.recompute)
    figures = _figures(parts, x)
    return sum(figures[:7]), figures[9]


def stage_memories(recipe: Recipe, layout: Layout, rates: Rates, *, headroom: float = HEADROOM) -> tuple[Memory, ...]:
    """The same for every pipeline stage, in order."""
    model = _model(recipe, rates)
    bare, x, tokens = model.bare, model.frame(layout), model.tokens(layout)
    p = x.p
    chunks = _chunks(p.architecture, p.pp, p.vp, p.layers_per_chunk)
    x = x._replace(stages=tuple(bare.stage(_place(i, chunks, p.pp), p, x.spread, x.expert_spread) for i in range(p.pp)))
    kept = bare.left(x, layout.recompute, min(layout.num_microbatches, x.in_flight) or 1)
    return tuple(
        model.memory(stage, _parts(stage, left, x, tokens), x, headroom)
        for stage, left in zip(x.stages, kept, strict=True)
    )


def rank_zero_memory(
    recipe: Recipe, layout: Layout, rates: Rates, *, headroom: float = HEADROOM, fullest_stage: bool = False
) -> Memory:
    """What the first data-parallel rank holds, as logs of one rank show it: its share of tokens is the mean, not the fullest.

    Of the first stage; of the fullest with `fullest_stage`, as Megatron Bridge logs (it takes the maximum over the pipeline).
    """
    mean = replace(recipe, features=replace(recipe.features, force_balance=True))
    if fullest_stage:
        return estimate_memory(mean, layout, rates, headroom=headroom)
    return stage_memories(mean, layout, rates, headroom=headroom)[0]
