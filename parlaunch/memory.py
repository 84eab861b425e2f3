"""Memory of the fullest GPU: what stays (weights, gradients, optimizer), what a micro batch leaves, and what comes on top.

Everything follows from the layer kinds (`parlaunch.activations`), the parameters of each stage (`parlaunch.parameters`) and
the bytes of a parameter (`parlaunch.states`). The constants below are the only ones, each with its unit and source.

Built to be asked thousands of times: what depends on the sizes of the layout alone is computed once and cached; a call is
then a few multiplications for each stage that could be the fullest.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from parlaunch.activations import WIDE, Kept, Setting, layer_activations
from parlaunch.architecture import Architecture, LayerKind
from parlaunch.layout import NO_RECOMPUTE, Layout, Recompute
from parlaunch.parameters import (
    NOTHING,
    Weights,
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
from parlaunch.states import bytes_a_parameter, keeping_of
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
forces balance. Routers just initialised are worse for some iterations."""

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
    peft: bool
    loss: str
    gpu_arch: str
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


def _kept(kind: LayerKind, p: _Plan, s: Setting, full: Setting, *, recomputed: bool) -> Kept:
    """The layer's figures; fully recomputed, it keeps its input and re-creates everything."""
    if not recomputed:
        return layer_activations(p.architecture, kind, s)
    everything = layer_activations(p.architecture, kind, full)
    return Kept(everything.x, everything.saved, everything.grads, everything.x)


def _setting(p: _Plan) -> Setting:
    f = p.features
    software = software_of(f.framework)
    return Setting(
        tp=p.tp,
        sequence_parallel=f.sequence_parallel and software.sequence_parallel,
        etp=p.etp,
        precision=p.precision,
        recompute=p.recompute if p.recompute.granularity == "selective" else NO_RECOMPUTE,
        offload=f.offload_modules,
        imbalance=1.0 if f.force_balance or p.ep == 1 else IMBALANCE,
        frozen=p.peft,
        dropout=software.dropout,
        unfused_attention=not software.fused_attention,
    )


def _chunk(kinds: tuple[LayerKind, ...], p: _Plan, s: Setting, seq_length: int) -> tuple[float, float]:
    """Bytes a token that one chunk of layers keeps, and the most that one of them needs for its backward."""
    r = p.recompute
    saved = transient = 0.0
    full = r.granularity == "full"
    unit = max(r.num_layers or 1, 1)
    for i, kind in enumerate(kinds):
        recomputed = full and (r.method != "block" or i < unit)
        k = _kept(kind, p, s, s, recomputed=recomputed)
        if recomputed and r.method != "block":
            saved += k.saved if i % unit == 0 else 0.0
            transient = max(transient, k.rerun * unit + k.grads)
        else:
            saved += k.saved
            transient = max(transient, k.rerun + k.grads)
    return saved, transient


@lru_cache(maxsize=65536)
def _stages(p: _Plan, seq_length: int) -> tuple[_Stage, ...]:
    """The stages that could be the fullest: none of the others exceeds one of these in any figure."""
    a, f = p.architecture, p.features
    s = _setting(p)
    if s.unfused_attention:
        s = Setting(**{n: getattr(s, n) for n in Setting.__slots__} | {"seq_length": seq_length // p.cp})
    chunks = split_layers(a, p.pp, p.vp, p.layers_per_chunk)
    residual = 1 / p.tp if s.sequence_parallel else 1.0
    h = a.hidden_size
    peak_logit, kept_logit = LOGIT[p.loss]
    rows = padded_vocab(a, p.tp) / p.tp
    stages = []
    for i in range(p.pp):
        layers = [kind for c in range(p.vp or 1) for kind in chunks[c * p.pp + i]]
        dense = NOTHING
        for kind in layers:
            dense = dense.plus(layer_weights(a, kind))
        other = NOTHING
        saved = transient = logits = embedding_gradient = first = 0.0
        for count, chunk in zip(
            held(i, p.pp, p.vp, p.microbatches, overlap=f.ep_overlap), range(p.vp or 1), strict=True
        ):
            one, most = _chunk(chunks[chunk * p.pp + i], p, s, seq_length)
            saved += count * one
            transient = max(transient, most)
            first = first or one
        if f.cpu_offload_layers and layers:
            saved *= max(0.0, 1 - f.cpu_offload_layers / len(layers))
        if i == 0:
            other = other.plus(embedding_weights(a, p.tp))
            embedding_gradient = 0.0 if p.peft else WIDE * rows * h
            if a.encoder:
                other = other.plus(Weights(a.encoder.total_params))
        if i == p.pp - 1:
            other = other.plus(head_weights(a, p.tp))
            logits = rows * peak_logit
            saved += 2 * WIDE * h * residual
            if a.mtp_num_layers:
                dense = dense.plus(mtp_weights(a))
                for kind in a.mtp_layers():
                    k = _kept(kind, p, s, s, recomputed=p.recompute.granularity == "full")
                    saved += k.saved
                    transient = max(transient, k.rerun + k.grads)
                saved += a.mtp_num_layers * 6 * WIDE * h * residual  # both norms in and out, and their concatenation
                logits += a.mtp_num_layers * rows * kept_logit
            if p.pp > 1 and (a.share_embeddings_and_output_weights or a.mtp_num_layers):
                other = other.plus(Weights(0, padded_vocab(a, p.tp) * h))
        units = [layer_weights(a, kind) for kind in set(layers)]
        adapters = sum(adapter_weights(a, kind) for kind in layers) / p.tp if p.peft else 0.0
        stages.append(
            _Stage(
                i, dense.dense(p.tp), other.dense(p.tp), dense.experts(p.ep, p.etp), adapters, saved, transient, logits,
                _communication(p, residual, layers),
                max((u.dense(p.tp) for u in units), default=0), max((u.experts(p.ep, p.etp) for u in units), default=0),
                embedding_gradient, first,
            )
        )  # fmt: skip
    return tuple(_worst(stages))


def _worst(stages: list[_Stage]) -> list[_Stage]:
    """Drops stages that another one matches or exceeds in every figure."""
    kept: list[_Stage] = []
    for stage in stages:
        if not any(all(b >= a for a, b in zip(stage[1:], other[1:], strict=True)) for other in kept):
            kept.append(stage)
    return kept


def _communication(p: _Plan, residual: float, layers: list[LayerKind]) -> float:
    """Bytes a token of buffers that hold what travels: pipeline, context and expert parallelism, tensor-parallel overlap."""
    a, h = p.architecture, p.architecture.hidden_size
    size = 0.0
    if p.pp > 1:
        size += 2 * WIDE * h * residual  # one received, one being sent
    if p.cp > 1:
        kv = max((2 * k.groups * k.head_dim for k in layers if k.mixer in ("attention", "mla")), default=0) / p.tp
        q = max((k.heads * k.head_dim for k in layers if k.mixer in ("attention", "mla")), default=0) / p.tp
        # The ring holds the next keys and values beside these, in backward with their gradients; all-to-all swaps all four.
        size += WIDE * (2 * q + kv if p.cp_comm_type == "a2a" else 3 * kv)
    if p.tp > 1 and p.features.tp_overlap:
        size += 6 * WIDE * h  # user buffers of four layers' forward and two of their backward
    if p.ep > 1 and p.features.dispatcher == "hybridep":
        # Receive buffers for dispatch and combine, sized for every rank of the group sending everything here.
        width = a.moe_latent_size or h
        size += 2 * WIDE * width * p.ep / p.tp
    return size


def loss_of(recipe: Recipe) -> str:
    """Which cross entropy: as the features say, else Transformer Engine's in benchmark recipes and the native one elsewhere."""
    return recipe.features.cross_entropy or ("te" if recipe.benchmark else "native")


def estimate_memory(recipe: Recipe, layout: Layout, rates: Rates, *, headroom: float = 0.08) -> Memory:
    """Peak memory of the fullest GPU of the fullest stage, in bytes, with the machine's capacity beside it."""
    f, a, gpu = recipe.features, recipe.architecture, rates.product.arch
    vp, pp = layout.vp, layout.pp
    fsdp = layout.fsdp or f.fsdp
    p = _Plan(
        a, recipe.precision, f, recipe.task == "peft", loss_of(recipe), gpu, layout.tp, pp, vp, layout.cp, layout.ep,
        layout.etp, layout.recompute, fsdp, layout.cp_comm_type, layout.layers_per_chunk,
        min(layout.num_microbatches, 2 * pp + 1) or 1,
    )  # fmt: skip
    each = bytes_a_parameter(recipe.precision, f, gpu)
    tokens = layout.micro_batch_size * recipe.seq_length / layout.cp
    replicas = max(layout.world // (layout.tp * pp), 1)
    expert_replicas = max(layout.edp, 1)
    spread = replicas if f.distributed_optimizer or fsdp else 1
    expert_spread = expert_replicas if f.distributed_optimizer or fsdp else 1
    best: tuple[float, ...] = (-1.0,)
    for st in _stages(p, recipe.seq_length):
        if p.peft:
            weights = st.layer_params * each.layer_weight + st.other_params * 2 + st.routed_params * each.layer_weight
            weights += st.adapter_params * 2
            gradients = st.adapter_params * each.gradient
            optimizer = st.adapter_params * each.optimizer / spread
        else:
            weights = (st.layer_params + st.routed_params) * each.layer_weight + st.other_params * each.other_weight
            gradients = (st.layer_params + st.routed_params + st.other_params) * each.gradient
            optimizer = (st.layer_params + st.other_params) * each.optimizer / spread
            optimizer += st.routed_params * each.optimizer / expert_spread
        working = 0.0
        if fsdp:
            weights, gradients, working = _sharded(st, each.layer_weight, each.gradient, spread, expert_spread)
        logits = st.logits * tokens
        on_top = max(st.transient * tokens, st.embedding_gradient - st.one * tokens)
        activations = st.saved * tokens + max(0.0, on_top - logits)
        buffers = st.buffers * tokens + working
        total = weights + gradients + optimizer + logits + activations + buffers
        if total > best[0]:
            best = (total, weights, gradients, optimizer, activations, logits, buffers, st.at)
    _, weights, gradients, optimizer, activations, logits, buffers, index = best
    workspace: float = WORKSPACE.get(gpu, 4 * MIB) * (2 + (4 if a.num_moe_experts else 0))
    if layout.ep > 1 and f.dispatcher == "deepep":
        workspace += DEEPEP_BUFFER
    keeping = keeping_of(f.framework)
    if keeping.buckets and spread > 1:
        workspace += keeping.buckets.get(recipe.precision, 0)
    buffers += workspace
    slack = int(keeping.slack * (activations + logits + buffers))
    groups = (
        sum(n > 1 for n in (layout.tp, pp, layout.cp, layout.ep, layout.etp, layout.dp, layout.edp))
        + keeping.communicators
    )
    runtime = int((CONTEXT.get(gpu, 0.6) + keeping.loading) * GIB + groups * COMMUNICATOR) + slack
    return Memory(
        weights=int(weights),
        gradients=int(gradients),
        optimizer=int(optimizer),
        activations=int(activations),
        logits=int(logits),
        buffers=int(buffers),
        runtime=runtime,
        slack=slack,
        capacity=rates.memory_bytes,
        limit=int(rates.memory_bytes * (1 - headroom)),
        stage=int(index),
    )


def _sharded(st: _Stage, weight: float, gradient: float, spread: int, expert_spread: int) -> tuple[float, float, float]:
    """Weights and gradients under FSDP, and the whole copies at work.

    Two layers are gathered at a time, one at work and one on its way, with the gradients of one; embedding and output
    are gathered as a whole.
    """
    dense = st.layer_params * weight + st.other_params * 2
    weights = dense / spread + st.routed_params * weight / expert_spread
    gradients = (st.layer_params + st.other_params) * gradient / spread + st.routed_params * gradient / expert_spread
    unit = st.unit_dense + st.unit_routed
    return weights, gradients, unit * (2 * weight + gradient) + st.other_params * 2
