"""Time of one training iteration: stages, pipeline, data parallelism, optimizer, host."""

from __future__ import annotations

from dataclasses import dataclass

from parlaunch.flops import model_flops_per_token
from parlaunch.layout import Layout
from parlaunch.parameters import split_layers, stage_weights
from parlaunch.plan import Breakdown, Estimate
from parlaunch.rates import Rates
from parlaunch.recipe import Recipe
from parlaunch.timing.bands import error_band
from parlaunch.timing.collectives import Links
from parlaunch.timing.kernels import Kernels
from parlaunch.timing.layers import Layers
from parlaunch.timing.pieces import ZERO, Cost, Split, add, split_of
from parlaunch.timing.schedule import pipeline_time
from parlaunch.timing.silicon import GRACE
from parlaunch.timing.software import software_of

DP_SHARE_HIDDEN = 0.9
"""Share of data-parallel traffic that hides where there is compute to hide it under: the last bucket never does."""
DP_SLOWDOWN = 0.12
"""Compute beside a collective loses SMs, memory and clock: share of the collective's time that shows up in it."""
HOST_PER_CHUNK = 600e-6
"""CPU seconds a micro batch and chunk beside issuing kernels: schedule bookkeeping, autograd, synchronisation."""
C2C = 225e9
"""Bytes/s one way between a GPU and the Grace CPU that it shares with another (NVLink-C2C: 450 GB/s a CPU)."""
OFFLOADED = 24.0
"""Bytes of activations a token and hidden element that offloading a layer moves; `OFFLOADED_MODULE` for one module of it."""
OFFLOADED_MODULE = 4.0
HOST_BLEND = 5.0
"""GPU and host run side by side, but neither is ever the only limit: the queue of issued kernels runs dry now and then.
Their times add as a norm of this order (infinite: perfect overlap; 1: none)."""


@dataclass(frozen=True, slots=True)
class _Stage:
    """One pipeline stage, one micro batch: the sum over its chunks."""

    forward: Cost
    backward: Cost  # with recompute
    seconds: float
    host_exposed: float
    forward_share: float


@dataclass(frozen=True, slots=True)
class _Parts:
    """What one pipeline stage holds: (number of the layer kind, layers of its chunk, how many)."""

    layers: tuple[tuple[int, int, int], ...]
    first: bool
    last: bool


class _Model:
    """Everything about one recipe on one machine that layouts share."""

    def __init__(self, recipe: Recipe, rates: Rates) -> None:
        self.recipe, self.rates = recipe, rates
        self.software = software_of(recipe.features.framework)
        self.kernels, self.links = Kernels(rates), Links(rates)
        self.layers = Layers(recipe, self.software, self.kernels, self.links)
        self.mtp = tuple(self.layers.number[kind] for kind in recipe.architecture.mtp_layers())
        self.graphed = _graphed(recipe)
        self.parts: dict[tuple[object, ...], tuple[_Parts, ...]] = {}
        self.stages: dict[tuple[object, ...], tuple[_Stage, ...]] = {}
        self.weights: dict[tuple[object, ...], tuple[float, float]] = {}

    def stage_times(self, layout: Layout, split: Split) -> tuple[_Stage, ...]:
        r = layout.recompute
        key = (split, layout.pp, layout.vp, layout.layers_per_chunk, r.method, r.num_layers)
        known = self.stages.get(key)
        if known is None:
            known = self.stages[key] = self._stages(layout, split)
        return known

    def _parts(self, layout: Layout) -> tuple[_Parts, ...]:
        """What stands on each pipeline stage."""
        key = (layout.pp, layout.vp, layout.layers_per_chunk)
        known = self.parts.get(key)
        if known is None:
            chunks = split_layers(self.recipe.architecture, *key)
            made = []
            for stage in range(layout.pp):
                counts: dict[tuple[int, int], int] = {}
                for kinds in chunks[stage :: layout.pp]:
                    for kind in kinds:
                        at = (self.layers.number[kind], len(kinds))
                        counts[at] = counts.get(at, 0) + 1
                layers = tuple((kind, size, n) for (kind, size), n in counts.items())
                made.append(_Parts(layers, first=stage == 0, last=stage == layout.pp - 1))
            known = self.parts[key] = tuple(made)
        return known

    def _stages(self, layout: Layout, split: Split) -> tuple[_Stage, ...]:
        done: dict[_Parts, _Stage] = {}
        out = []
        for parts in self._parts(layout):
            if parts not in done:
                done[parts] = self._stage(parts, layout, split)
            out.append(done[parts])
        return tuple(out)

    def _stage(self, parts: _Parts, layout: Layout, split: Split) -> _Stage:
        layers = self.layers.of(split)
        block = layout.recompute.num_layers if layout.recompute.method == "block" else None
        forward, backward = ZERO, ZERO
        for kind, size, count in parts.layers:
            time = layers[kind]
            forward = add(forward, time.forward, count)
            backward = add(backward, time.backward, count)
            if time.recompute is not ZERO:
                again = 1.0 if block is None else min(1.0, block / size)
                backward = add(backward, time.recompute, count * again)
        embedding, head = self.layers.ends(split)
        if parts.first:
            forward, backward = add(forward, embedding.forward), add(backward, embedding.backward)
        if parts.last:
            heads = 1 + (self.recipe.architecture.mtp_num_layers or 0)
            forward, backward = add(forward, head.forward, heads), add(backward, head.backward, heads)
            for kind in self.mtp:
                time = layers[kind]
                forward = add(forward, time.forward)
                backward = add(add(backward, time.backward), time.recompute)
        gpu = sum(forward[:4]) + sum(backward[:4])
        issue = 0.0
        if self.graphed < 1.0:
            issue = (1.0 - self.graphed) * (forward[4] + backward[4])
            issue += self.software.host * HOST_PER_CHUNK * (layout.vp or 1)
        order = 1.0 if self.software.blocking else HOST_BLEND
        both = (gpu**order + issue**order) ** (1.0 / order)
        return _Stage(forward, backward, both, both - gpu, sum(forward[:4]) / gpu)

    def parameters(self, layout: Layout) -> tuple[float, float]:
        """Dense and routed parameters of the fullest stage, a rank."""
        key = (
            layout.tp,
            layout.pp,
            layout.vp,
            layout.ep,
            layout.etp,
            layout.layers_per_chunk,
        )
        known = self.weights.get(key)
        if known is None:
            stages = stage_weights(self.recipe.architecture, layout)
            fullest = max(stages, key=lambda s: s.total)
            known = self.weights[key] = (float(fullest.dense), float(fullest.routed))
        return known

    def trained(self, layout: Layout) -> tuple[float, float]:
        """Those of them that get gradients; of frozen ones, the adapters beside them."""
        dense, routed = self.parameters(layout)
        if not self.recipe.frozen:
            return dense, routed
        return (0.02 * dense if self.recipe.task == "peft" else 0.0), 0.0


def _graphed(recipe: Recipe) -> float:
    """Share of the launches that CUDA graphs take off the host."""
    features = recipe.features
    if features.cuda_graph is None:
        return 0.0
    if features.cuda_graph == "full_iteration":
        return 1.0
    scope = features.cuda_graph_scope
    if not scope:
        return 0.95
    return min(0.95, 0.30 * len(scope)) if "attn" in scope else 0.15 * len(scope)


_models: dict[tuple[int, int], _Model] = {}


def _model(recipe: Recipe, rates: Rates) -> _Model:
    """The shared part, remembered by identity: it holds on to both, so an id is not used twice."""
    key = (id(recipe), id(rates))
    known = _models.get(key)
    if known is None:
        if len(_models) >= 16:
            _models.pop(next(iter(_models)))
        known = _models[key] = _Model(recipe, rates)
    return known


def estimate_time(recipe: Recipe, layout: Layout, rates: Rates) -> Estimate:
    """Predicted seconds of one iteration of a legal layout, apart by what they are spent on.

    The breakdown follows the slowest pipeline stage and adds up to the iteration.
    """
    model = _model(recipe, rates)
    links, software = model.links, model.software
    split = split_of(layout)
    stages = model.stage_times(layout, split)
    m, pp, vp = max(1, layout.num_microbatches), layout.pp, layout.vp or 1
    slow = max(stages, key=lambda s: s.seconds)

    # Pipeline
    send = 0.0
    if pp > 1:
        moved = 2.0 * split.mbs * (recipe.seq_length // layout.cp) * recipe.architecture.hidden_size
        moved /= layout.tp  # each TP rank sends its slice
        near = pp * (layout.world // pp) <= links.reach
        send = links.send(moved, near=near)
    ideal = m * slow.seconds
    ahead, back = [s.forward_share * s.seconds for s in stages], [(1 - s.forward_share) * s.seconds for s in stages]
    bubble = max(0.0, pipeline_time(ahead, back, vp=vp, microbatches=m) - ideal)
    # Steady state: an interleaved pipeline sends while it computes, plain 1F1B waits for both directions.
    hidden = 0.9 if software.p2p_overlap and vp > 1 else 0.3 if software.p2p_overlap else 0.0
    p2p = 2.0 * send * (m * vp * (1.0 - hidden) + (pp - 1)) if pp > 1 else 0.0

    data, _ = _data_parallel(model, layout, slow, m)
    optimizer = _optimizer(model, layout)
    host = m * (slow.host_exposed + _offload(model, layout, slow)) + software.iteration_s
    f, b = slow.forward, slow.backward
    parts = Breakdown(
        compute_s=m * (f[0] + b[0]),
        tp_s=m * (f[1] + b[1]),
        cp_s=m * (f[2] + b[2]),
        ep_s=m * (f[3] + b[3]),
        pp_bubble_s=bubble,
        pp_p2p_s=p2p,
        dp_exposed_s=data,
        optimizer_s=optimizer,
        host_s=host,
    )
    total = parts.total
    tokens = layout.global_batch_size * recipe.seq_length / layout.world
    flops = model_flops_per_token(recipe.architecture, recipe.seq_length, layout.tp)
    if recipe.task == "peft":
        flops *= 2.0 / 3.0  # frozen weights get no gradients
    per_gpu = tokens / total
    return Estimate(
        iteration_time_s=total,
        error_band=error_band(recipe, layout, rates),
        tokens_per_s_per_gpu=per_gpu,
        model_tflops_per_gpu=per_gpu * flops / 1e12,
        mfu=per_gpu * flops / rates.product.peak_flops(recipe.precision),
        breakdown=parts,
    )


def micro_batch_time(recipe: Recipe, layout: Layout, rates: Rates) -> float:
    """Seconds that one more micro batch takes on a single pipeline stage; of a stage that offloads, without the host's share
    and the transfers."""
    model, features = _model(recipe, rates), recipe.features
    stage = model.stage_times(layout, split_of(layout))[0]
    if features.cpu_offload_layers or features.offload_modules:
        return stage.seconds - stage.host_exposed
    sharded = layout.fsdp or features.fsdp
    return stage.seconds + (_sharded(model, layout, stage, 1)[0] if sharded else 0.0)


def stage_times(recipe: Recipe, layout: Layout, rates: Rates) -> tuple[tuple[float, float], ...]:
    """Seconds of (forward, backward) of one micro batch on each virtual stage, in order of execution: what
    `schedule.timeline` plays. The chunks of one pipeline stage share its time evenly."""
    stages, vp = _model(recipe, rates).stage_times(layout, split_of(layout)), layout.vp or 1
    each = [(s.seconds * s.forward_share / vp, s.seconds * (1.0 - s.forward_share) / vp) for s in stages]
    return tuple(each * vp)


def _data_parallel(model: _Model, layout: Layout, stage: _Stage, m: int) -> tuple[float, float]:
    """Exposed seconds of gradient and weight traffic over data-parallel ranks, and the window it had to hide in."""
    recipe, links, software = model.recipe, model.links, model.software
    dense, routed = model.trained(layout)
    features = recipe.features
    replicas = layout.dp * layout.cp  # gradients are summed over context parallelism too
    wide = links.group(replicas, layout.tp)
    experts = links.group(max(1, layout.edp), layout.ep * layout.etp)
    gradient = 4.0 if features.grad_reduce_fp32 else 2.0
    weight = 1.0 if features.fp8_param_gather and recipe.precision.startswith("fp8") else 2.0
    # Buckets: every one pays the latency once.
    buckets = max(1.0, min(64.0, dense / 40e6))
    if layout.fsdp or features.fsdp:
        return _sharded(model, layout, stage, m)
    if not features.distributed_optimizer or not software.distributed_optimizer:
        traffic = links.reduce(gradient * dense, wide) + links.reduce(gradient * routed, experts)
        return traffic, 0.0
    scatter = links.gather(gradient * dense, wide) + links.gather(gradient * routed, experts)
    gather = links.gather(weight * dense, wide) + links.gather(weight * routed, experts)
    if not software.dp_overlap:
        return scatter + gather, 0.0
    small = buckets * 30e-6
    f, b = sum(stage.forward[:4]), sum(stage.backward[:4])
    # Gradients are complete only in the last micro batch's backward pass; weights are needed in the first forward.
    # Other stages' fill and drain do not help the slowest stage.
    exposed = max(scatter * (1 - DP_SHARE_HIDDEN), scatter - b) + max(gather * (1 - DP_SHARE_HIDDEN), gather - f)
    return exposed + small + DP_SLOWDOWN * min(scatter + gather, f + b), f + b


def _offload(model: _Model, layout: Layout, stage: _Stage) -> float:
    """Seconds that a micro batch loses to activations on their way to host memory and back: they travel under compute."""
    recipe, features = model.recipe, model.recipe.features
    if not features.cpu_offload_layers and not features.offload_modules:
        return 0.0
    arch = recipe.architecture
    layers = max(1, len(arch.layers()) // layout.pp)
    each = (
        OFFLOADED * min(features.cpu_offload_layers, layers) + OFFLOADED_MODULE * len(features.offload_modules) * layers
    )
    tokens = layout.micro_batch_size * recipe.seq_length / (layout.cp * layout.tp)
    link = C2C if model.rates.product.name.startswith(GRACE) else model.rates.node_bytes_per_s
    one = each * tokens * arch.hidden_size / (link * 0.8)
    f, b = sum(stage.forward[:4]), sum(stage.backward[:4])
    return max(0.0, one - f) + max(0.0, one - b) + 2.0 * DP_SLOWDOWN * one


def _sharded(model: _Model, layout: Layout, stage: _Stage, m: int) -> tuple[float, float]:
    """Fully sharded: weights are gathered for forward and backward of every micro batch, gradients scattered in each."""
    links = model.links
    dense, routed = model.parameters(layout)
    group = links.group(layout.dp * layout.cp, layout.tp)
    inner = links.group(max(1, layout.edp), layout.ep * layout.etp)
    gather = links.gather(2.0 * dense, group) + links.gather(2.0 * routed, inner)
    scatter = links.gather(2.0 * dense, group) + links.gather(2.0 * routed, inner)
    f, b = sum(stage.forward[:4]), sum(stage.backward[:4])
    exposed = max(0.08 * gather, gather - f) + max(0.08 * (gather + scatter), gather + scatter - b)
    slowed = DP_SLOWDOWN * min(2 * gather + scatter, f + b)
    return m * (exposed + slowed), f + b


def _optimizer(model: _Model, layout: Layout) -> float:
    """Adam over this rank's shard: gradients, master weights and two moments read, three of them and weights written."""
    features = model.recipe.features
    shards = layout.dp * layout.cp
    sharded = (features.distributed_optimizer and model.software.distributed_optimizer) or layout.fsdp
    dense, routed = model.trained(layout)
    mine = dense / (shards if sharded else 1) + routed / (max(1, layout.edp) if sharded else 1)
    moments = 2.0 if features.moments in ("bfloat16", "float16") else 1.0 if "8" in features.moments else 4.0
    moved = mine * (4.0 + 4.0 + 4.0 * moments + 2.0 + 4.0 + 4.0)  # with a pass for the gradient norm and clipping
    local = model.kernels.stream(moved, kernels=40)
    if features.optimizer_offload:
        # Gradients go to the host and weights come back over PCIe (or C2C); Adam runs on the CPU at its memory's pace.
        away = mine * features.optimizer_offload
        local = local * (1 - features.optimizer_offload) + away * 6.0 / model.links.pcie + away * 24.0 / 150e9
    return local + 1e-3  # the norm's all-reduce, and the host's wait for it
