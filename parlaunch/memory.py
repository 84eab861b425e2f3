"""Memory of the fullest GPU: what stays (weights, gradients, optimizer), what a micro batch leaves, and what comes on top.

Everything follows from the layer kinds (`parlaunch.activations`), the parameters of each stage (`parlaunch.parameters`) and
the bytes of a parameter (`parlaunch.states`). The constants below are the only ones, each with its unit and source.

Built to be asked thousands of times: what depends on the sizes of the layout alone is computed once and cached; a call is
then a few multiplications for each stage that could be the fullest.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import NamedTuple

from parlaunch.activations import WIDE, Setting, layer_activations
from parlaunch.architecture import Architecture, LayerKind
from parlaunch.layout import NO_RECOMPUTE, Layout, Recompute
from parlaunch.parameters import (
    adapter_weights,
    embedding_weights,
    head_weights,
    layer_weights,
    mtp_weights,
    padded_vocab,
    split_layers,
)
from parlaunch.plan import Memory
from parlaunch.rates import Rates
from parlaunch.recipe import Features, Recipe
from parlaunch.states import BUCKET, Bytes, Keeping, bytes_a_parameter, keeping_of
from parlaunch.timing.software import software_of

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

DEEPEP_BUFFER = 1 * GIB
"""NVLink and RDMA buffers of DeepEP's normal kernels for hidden sizes around 7,168."""

LOGIT = {"te": (2, 2), "native": (6, 4)}
"""Bytes of one logit: at the worst moment, and kept until backward. Transformer Engine's loss works in place in bf16; the
native one makes a float32 copy, which becomes the softmax."""


class _Plan(NamedTuple):
    """What of recipe, layout and machine the per-token figures depend on."""

    architecture: Architecture
    precision: str
    features: Features
    frozen: bool
    adapters: bool
    balanced: bool
    loss: str
    tp: int
    pp: int
    vp: int | None
    cp: int
    ep: int
    etp: int
    recompute: Recompute
    fsdp: bool
    cp_comm_type: str | None
    layers_per_chunk: tuple[int, ...] | None
    microbatches: int


class _Stage(NamedTuple):
    """One stage in numbers that only need tokens and group sizes."""

    at: int
    layer_params: float  # quantizable, spread over dp·cp
    other_params: float  # embedding, output
    routed_params: float  # spread over expert data parallelism
    adapter_params: float
    saved: float  # bytes a token, all micro batches in flight
    transient: float  # bytes a token, of the layer whose backward runs
    logits: float  # bytes a token
    buffers: float  # bytes a token
    unit_dense: float  # parameters of the largest FSDP unit
    unit_routed: float
    embedding_gradient: float  # bytes: autograd makes it whole, before it is added to the main gradient
    one: float  # bytes a token that the micro batch in backward kept: gone when the embedding's gradient comes


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


def _setting(p: _Plan, seq_length: int) -> Setting:
    f = p.features
    software = software_of(f.framework)
    return Setting(
        tp=p.tp,
        sequence_parallel=f.sequence_parallel and software.sequence_parallel,
        etp=p.etp,
        precision=p.precision,
        recompute=p.recompute if p.recompute.granularity == "selective" else NO_RECOMPUTE,
        offload=f.offload_modules,
        imbalance=1.0 if p.balanced or p.ep == 1 else IMBALANCE,
        frozen=p.frozen,
        adapters=p.adapters,
        dropout=software.dropout,
        unfused_attention=not software.fused_attention,
        seq_length=0 if software.fused_attention else seq_length // p.cp,
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


def _chunk(chunk: _Chunk, a: Architecture, r: Recompute, s: Setting) -> tuple[float, float]:
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


@lru_cache(maxsize=65536)
def _stages(p: _Plan, seq_length: int) -> tuple[_Stage, ...]:
    """The stages that could be the fullest: none of the others exceeds one of these in any figure."""
    a = p.architecture
    s = _setting(p, seq_length)
    chunks = _chunks(a, p.pp, p.vp, p.layers_per_chunk)
    per_stage = p.vp or 1
    stages: list[_Stage] = []
    seen: set[object] = set()
    for i in range(p.pp):
        mine = [chunks[c * p.pp + i] for c in range(per_stage)]
        made_of = (*map(id, mine), i == 0, i == p.pp - 1)  # equal chunks are one object
        if made_of in seen:  # an earlier stage of the same layers holds more micro batches
            continue
        seen.add(made_of)
        stages.append(_stage(i, mine, p, s))
    return tuple(_worst(stages))


def _stage(i: int, mine: list[_Chunk], p: _Plan, s: Setting) -> _Stage:
    a, f, h = p.architecture, p.features, p.architecture.hidden_size
    residual = 1 / p.tp if s.sequence_parallel else 1.0
    rows = padded_vocab(a, p.tp) / p.tp
    dense = routed = unit_dense = unit_routed = layers = 0
    saved = transient = logits = embedding_gradient = first = other = adapters = 0.0
    one = most = 0.0
    last: _Chunk | None = None
    kinds: set[LayerKind] = set()
    output = WIDE * h * residual if p.pp > 1 and keeping_of(f.framework).stage_outputs else 0.0
    for count, chunk in zip(held(i, p.pp, p.vp, p.microbatches, overlap=f.ep_overlap), mine, strict=True):
        if chunk is not last:  # all but the first and the last mostly are the same
            (one, most), last = _chunk(chunk, a, p.recompute, s), chunk
        saved += count * (one + output)
        transient = max(transient, most)
        first = first or one
        layers += len(chunk.order)
        for kind, n in chunk.counts:
            kinds.add(kind)
            d, e = _held_params(a, kind, p.tp, p.ep, p.etp)
            dense, routed = dense + n * d, routed + n * e
            unit_dense, unit_routed = max(unit_dense, d), max(unit_routed, e)
            adapters += n * adapter_weights(a, kind) / p.tp if p.adapters else 0.0
    if f.cpu_offload_layers and layers:
        saved *= max(0.0, 1 - f.cpu_offload_layers / layers)
    if i == 0:
        other += embedding_weights(a, p.tp).dense(p.tp) + (a.encoder.total_params if a.encoder else 0)
        embedding_gradient = 0.0 if p.frozen else WIDE * rows * h
    if i == p.pp - 1:
        peak_logit, kept_logit = LOGIT[p.loss]
        other += head_weights(a, p.tp).dense(p.tp)
        logits = rows * peak_logit
        saved += 2 * WIDE * h * residual
        if a.mtp_num_layers:
            mtp = mtp_weights(a)
            dense, routed = dense + mtp.dense(p.tp), routed + mtp.experts(p.ep, p.etp)
            one, most = _chunk(_Chunk(tuple(Counter(a.mtp_layers()).items()), a.mtp_layers()), a, p.recompute, s)
            # Both norms in and out, and their concatenation.
            saved += one + a.mtp_num_layers * 6 * WIDE * h * residual
            transient = max(transient, most)
            logits += a.mtp_num_layers * rows * kept_logit
        if p.pp > 1 and (a.share_embeddings_and_output_weights or a.mtp_num_layers):
            other += rows * h
    return _Stage(
        i, dense, other, routed, adapters, saved, transient, logits, _communication(p, residual, kinds),
        unit_dense, unit_routed, embedding_gradient, first,
    )  # fmt: skip


def _worst(stages: list[_Stage]) -> list[_Stage]:
    """Drops stages that another one matches or exceeds in every figure."""
    kept: list[_Stage] = []
    for stage in stages:
        if not any(all(b >= a for a, b in zip(stage[1:], other[1:], strict=True)) for other in kept):
            kept.append(stage)
    return kept


def _communication(p: _Plan, residual: float, kinds: set[LayerKind]) -> float:
    """Bytes a token of buffers that hold what travels: pipeline, context and expert parallelism, tensor-parallel overlap."""
    a, h = p.architecture, p.architecture.hidden_size
    size = 0.0
    if p.pp > 1:
        size += 2 * WIDE * h * residual  # one received, one being sent
    if p.cp > 1:
        kv = max((2 * k.groups * k.head_dim for k in kinds if k.mixer in ("attention", "mla")), default=0) / p.tp
        q = max((k.heads * k.head_dim for k in kinds if k.mixer in ("attention", "mla")), default=0) / p.tp
        # The ring holds the next keys and values beside these, in backward with their gradients; all-to-all swaps all four.
        size += WIDE * (2 * q + kv if p.cp_comm_type == "a2a" else 3 * kv)
    if p.tp > 1 and p.features.tp_overlap:
        size += 6 * WIDE * h  # user buffers of four layers' forward and two of their backward
    if p.ep > 1 and p.features.dispatcher == "hybridep":
        # Receive buffers for dispatch and combine, sized for every rank of the group sending everything here.
        width = a.moe_latent_size or h
        size += 2 * WIDE * width * p.ep / p.tp
    return size


BAND = {"dense": 0.07, "moe": 0.08}
"""± share of the peak within which nine of ten runs lie, by kind of model. Dense: the 90th percentile over the 46 open rows
with a measured peak (all of one project and machine). Mixtures: the ten published runs of Megatron Bridge in
`tests/test_memory.py` lie within 4 %; doubled, because they are few."""

WIDER = {"imbalance": 0.05, "fsdp": 0.03, "graph": 0.03, "offload": 0.05, "overlap": 0.04}
"""What no row with a measured peak has, or few have, and by how much it widens the band; by judgement."""


def error_band(recipe: Recipe, layout: Layout) -> float:
    """± share of the peak."""
    a, f = recipe.architecture, recipe.features
    band = BAND["moe" if a.num_moe_experts else "dense"]
    if a.num_moe_experts and layout.ep > 1 and not (f.force_balance or recipe.benchmark):
        band += WIDER["imbalance"]
    if f.ep_overlap:
        band += WIDER["overlap"]
    if layout.fsdp or f.fsdp:
        band += WIDER["fsdp"]
    if f.cuda_graph:
        band += WIDER["graph"]
    if f.cpu_offload_layers or f.offload_modules or f.optimizer_offload:
        band += WIDER["offload"]
    return band


TE_LOSS = (
    "deepseek", "kimi", "moonlight", "minimax_m3", "qwen3_30b", "qwen3_235b", "step35",
    *(f"{model}/pretrain" for model in (
        "llama3_8b", "llama3_70b", "llama31_8b", "llama31_70b", "llama31_405b", "llama32_1b", "llama32_3b", "qwen3_600m",
        "qwen3_1p7b", "qwen3_4b", "qwen3_8b", "qwen3_14b", "qwen3_32b", "nemotron_3_super", "nemotron_3_ultra",
    )),
)  # fmt: skip
"""Starts of `model/task` whose recipes in Megatron Bridge ask for Transformer Engine's loss; the others run the native one."""


@lru_cache(maxsize=1024)
def _loss(model: str, task: str, benchmark: bool, chosen: str | None) -> str:
    return chosen or ("te" if benchmark or f"{model}/{task}".startswith(TE_LOSS) else "native")


def loss_of(recipe: Recipe) -> str:
    """Which cross entropy, `te` or `native`: as the features say, else as the recipe in Megatron Bridge has it."""
    return _loss(recipe.model, recipe.task, recipe.benchmark, recipe.features.cross_entropy)


def _step_bytes(each: Bytes, f: Features, frozen: bool) -> tuple[float, float]:
    """Bytes a parameter of the optimizer's share that exist only while it steps: of all of it, and of the larger half.

    Plain Adam widens narrow gradients to float32 before it starts. Transformer Engine's widens both moments where they
    are narrower, for dense and for expert parameters in turn (`fused_adam.py`).
    """
    if f.optimizer_offload == 1.0 or frozen:
        return 0.0, 0.0
    if f.precision_aware_optimizer:
        return 0.0, 0.0 if f.moments == "float32" else 8.0
    return (4.0 if each.gradient < 4 else 0.0), 0.0


def _states(st: _Stage, p: _Plan, each: Bytes, held_back: float, spread: int, expert_spread: int) -> tuple[float, ...]:
    """Bytes of weights, gradients, optimizer, and of whole copies at work under FSDP.

    `held_back`: bytes a parameter that the framework keeps beside the optimizer, spread as it is.
    """
    trained_dense, trained_routed = st.layer_params + st.other_params, st.routed_params
    weights_dense = st.layer_params * each.layer_weight + st.other_params * each.other_weight
    weights_routed = st.routed_params * each.layer_weight
    if p.frozen:
        trained_dense, trained_routed = st.adapter_params, 0.0
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


class _Frame(NamedTuple):
    """What of recipe, layout and machine all stages share."""

    p: _Plan
    each: Bytes
    keeping: Keeping
    tokens: float
    spread: int
    expert_spread: int
    held_back: float
    step: tuple[float, float]


def _frame(recipe: Recipe, layout: Layout, rates: Rates) -> _Frame:
    f, a, gpu = recipe.features, recipe.architecture, rates.product.arch
    vp, pp = layout.vp, layout.pp
    fsdp = layout.fsdp or f.fsdp
    p = _Plan(
        a, recipe.precision, f, recipe.frozen, recipe.task == "peft", f.force_balance or recipe.benchmark, loss_of(recipe), layout.tp, pp, vp,
        layout.cp, layout.ep, layout.etp, layout.recompute, fsdp, layout.cp_comm_type, layout.layers_per_chunk,
        min(layout.num_microbatches, 2 * pp + 1 if vp else pp + 1) or 1,
    )  # fmt: skip
    each, keeping = bytes_a_parameter(recipe.precision, f, gpu), keeping_of(f.framework)
    spread = expert_spread = 1
    if f.distributed_optimizer or fsdp:
        spread, expert_spread = max(layout.world // (layout.tp * pp), 1), max(layout.edp, 1)
    tokens = layout.micro_batch_size * recipe.seq_length / layout.cp
    return _Frame(
        p,
        each,
        keeping,
        tokens,
        spread,
        expert_spread,
        keeping.sharded if spread > 1 else 0.0,
        _step_bytes(each, f, p.frozen),
    )


def _parts(st: _Stage, x: _Frame) -> tuple[float, float, float, float, float, float]:
    """Bytes of weights, gradients, optimizer, activations, logits and buffers of one stage."""
    weights, gradients, optimizer, working = _states(st, x.p, x.each, x.held_back, x.spread, x.expert_spread)
    logits = st.logits * x.tokens
    on_top = max(st.transient * x.tokens, st.embedding_gradient - st.one * x.tokens)
    activations = st.saved * x.tokens + max(0.0, on_top - logits)
    buffers = st.buffers * x.tokens + working
    of_all, of_half = x.step
    if of_all + of_half:
        dense, routed = (st.layer_params + st.other_params) / x.spread, st.routed_params / x.expert_spread
        optimizer += max(0.0, of_all * (dense + routed) + of_half * max(dense, routed) - activations - logits)
    return weights, gradients, optimizer, activations, logits, buffers


def _memory(
    parts: tuple[float, ...], stage: int, x: _Frame, recipe: Recipe, layout: Layout, rates: Rates, headroom: float
) -> Memory:
    """The parts of a stage, with what every process holds on top."""
    weights, gradients, optimizer, activations, logits, buffers = parts
    f, gpu, keeping = recipe.features, rates.product.arch, x.keeping
    buffers += WORKSPACE.get(gpu, 4 * MIB) * (2 + (4 if recipe.architecture.num_moe_experts else 0))
    if layout.ep > 1 and f.dispatcher == "deepep":
        buffers += DEEPEP_BUFFER
    if keeping.buckets and x.spread > 1:
        buffers += keeping.buckets.get(recipe.precision, 0) * min(
            1.0, weights / WIDE / BUCKET
        )  # no larger than the model
    comes_and_goes = activations + logits + buffers
    slack = int(keeping.slack * comes_and_goes)
    dimensions = (layout.tp, layout.pp, layout.cp, layout.ep, layout.etp, layout.dp, layout.edp)
    communicators = sum(n > 1 for n in dimensions) + keeping.communicators
    outside = (CONTEXT.get(gpu, 0.6) + keeping.loading) * GIB + communicators * COMMUNICATOR
    if f.cuda_graph:
        outside += GRAPH + GRAPH_POOL.get(f.cuda_graph, 0.0) * comes_and_goes
    return Memory(
        weights=int(weights),
        gradients=int(gradients),
        optimizer=int(optimizer),
        activations=int(activations),
        logits=int(logits),
        buffers=int(buffers),
        runtime=int(outside) + slack,
        slack=slack,
        capacity=rates.memory_bytes,
        limit=int(rates.memory_bytes * (1 - headroom)),
        stage=stage,
        error_band=error_band(recipe, layout),
    )


def estimate_memory(recipe: Recipe, layout: Layout, rates: Rates, *, headroom: float = 0.08) -> Memory:
    """Peak memory of the fullest GPU of the fullest stage, in bytes, with the machine's capacity beside it."""
    x = _frame(recipe, layout, rates)
    fullest: tuple[float, ...] = ()
    at, most = 0, -1.0
    for st in _stages(x.p, recipe.seq_length):
        parts = _parts(st, x)
        total = sum(parts)
        if total > most:
            fullest, at, most = parts, st.at, total
    return _memory(fullest, at, x, recipe, layout, rates, headroom)


def stage_memories(recipe: Recipe, layout: Layout, rates: Rates, *, headroom: float = 0.08) -> tuple[Memory, ...]:
    """The same for every pipeline stage, in order."""
    x = _frame(recipe, layout, rates)
    p = x.p
    chunks = _chunks(p.architecture, p.pp, p.vp, p.layers_per_chunk)
    setting = _setting(p, recipe.seq_length)
    made = []
    for i in range(p.pp):
        stage = _stage(i, [chunks[c * p.pp + i] for c in range(p.vp or 1)], p, setting)
        made.append(_memory(_parts(stage, x), i, x, recipe, layout, rates, headroom))
    return tuple(made)
