"""Time of one training iteration: stages, pipeline, data parallelism, optimizer, host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from math import log, pi, sqrt

from parlaunch.estimate.states import MOMENT
from parlaunch.estimate.timing.bands import error_band
from parlaunch.estimate.timing.casts import cast_time
from parlaunch.estimate.timing.collectives import Group, Links
from parlaunch.estimate.timing.feedforward import ep_overlap
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.layers import Layers
from parlaunch.estimate.timing.pieces import ZERO, Cost, Split, add, split_of
from parlaunch.estimate.timing.schedule import pipeline_time
from parlaunch.estimate.timing.silicon import across, to_host
from parlaunch.estimate.timing.software import software_of
from parlaunch.estimate.values import Breakdown, Estimate
from parlaunch.frozen import dataclass
from parlaunch.hardware.paces import least_split, slower, slower_split
from parlaunch.hardware.rates import Rates
from parlaunch.model.flops import model_flops_per_token
from parlaunch.model.layout import Layout
from parlaunch.model.matrices import adapter_size
from parlaunch.model.parameters import padded_vocab, split_layers, stage_weights
from parlaunch.model.recipe import Recipe, predicted_in

DP_SHARE_HIDDEN = 0.8
"""Share of data-parallel traffic that hides where there is compute to hide it under: the last bucket never does."""
DP_SLOWDOWN = 0.12
"""Compute beside a collective loses SMs, memory and clock: share of the collective's time that shows up in it."""
BUCKET = 2.0**27
"""Parameters of a bucket of gradients or weights (Megatron Bridge, training/comm_overlap.py)."""
BUCKETED = 12.0
"""Bytes a parameter around an all-reduce in 16 bits that is no view of the gradients: flattened, divided by the ranks, copied back
(InternLM, solver/optimizer/hybrid_zero_optim.py, `_reduce_and_copy`; utils.py, `reduce_tensor`)."""
SPREAD = 0.0093
"""Standard deviation over its mean of the time that GPUs of one product take for the same work: under the power limit no two
clock alike (Sinha et al., "Not All GPUs Are Created Equal", SC22). All wait for the slowest once an iteration."""
HOST_PER_CHUNK = 600e-6
"""CPU seconds a micro batch and chunk beside issuing kernels: schedule bookkeeping, autograd, synchronisation."""
OFFLOADED = 24.0
"""Bytes of activations a token and hidden element that offloading a layer moves; `OFFLOADED_MODULE` for one module of it."""
OFFLOADED_MODULE = 4.0
CPU_ADAM, CPU_ADAM_GRACE = 15e9, 150e9
"""Bytes a second of a rank at which Adam on the host goes through gradients, master weights and moments. Measured: 14.3 GB/s on a
DGX H100 (three shares of Qwen3-30B-A3B's optimizer, skills of Megatron Bridge). A CPU that is built with its GPU has its memory for
two of them: assumed, no measured run has its optimizer there."""
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
    hidden_ep: float  # of the expert all-to-all, where another micro batch runs beside

    @property
    def passes(self) -> tuple[float, float]:
        """Seconds of the forward and of the backward pass, where the GPU waits for the CPU too: traffic does not."""
        return self.forward_share * self.seconds, (1.0 - self.forward_share) * self.seconds

    @property
    def gpu(self) -> float:
        """Seconds that the GPU computes and waits for other ranks' tensors."""
        return self.forward.gpu + self.backward.gpu


@dataclass(frozen=True, slots=True)
class _Parts:
    """What one pipeline stage holds: (number of the layer kind, layers of its chunk, how many)."""

    layers: tuple[tuple[int, int, int], ...]
    first: bool
    last: bool


class _Model:
    """Everything about one recipe on one machine that layouts share."""

    def __init__(self, recipe: Recipe, rates: Rates, kernels: Kernels, links: Links) -> None:
        self.recipe, self.rates, self.kernels, self.links = recipe, rates, kernels, links
        self.software = software_of(recipe.features.framework)
        self.layers = Layers(recipe, self.software, self.kernels, self.links)
        # Layers of multi-token prediction, which may be in another format.
        last = predicted_in(recipe.architecture, recipe.features, recipe.precision)
        self.predicted = self.layers
        if last != recipe.precision and recipe.architecture.mtp_num_layers:
            self.predicted = Layers(replace(recipe, precision=last), self.software, self.kernels, self.links)
        self.mtp = tuple(self.layers.number[kind] for kind in recipe.architecture.mtp_layers())
        self.graphed = _graphed(recipe)
        self.slower = slower(recipe, rates.models)
        f, arch = recipe.features, recipe.architecture
        self.adapters = 0.0
        if recipe.task == "peft":
            self.adapters = float(sum(adapter_size(arch, k, f.adapter_rank, f.adapter_targets) for k in arch.layers()))
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
            chunks = split_layers(self.recipe.architecture, *key, self.recipe.features.wide_ends(self.recipe.precision))
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
        embedding, head, predicting = self.layers.ends(split)
        if parts.first:
            forward, backward = add(forward, embedding.forward), add(backward, embedding.backward)
        if parts.last:
            depth = self.recipe.architecture.mtp_num_layers or 0
            forward, backward = add(forward, head.forward, 1 + depth), add(backward, head.backward, 1 + depth)
            forward, backward = add(forward, predicting.forward, depth), add(backward, predicting.backward, depth)
            for kind in self.mtp:
                time = self.predicted.of(split)[kind]
                forward = add(forward, time.forward)
                backward = add(add(backward, time.backward), time.recompute)
        if self.kernels.product.arch == "blackwell":
            older = self.software.blackwell
            forward = forward._replace(compute=older * forward.compute)
            backward = backward._replace(compute=older * backward.compute)
        hidden = self._overlapped(forward, backward)
        if hidden:
            left = 1.0 - hidden / (forward.ep + backward.ep)
            forward, backward = forward._replace(ep=left * forward.ep), backward._replace(ep=left * backward.ep)
        gpu = forward.gpu + backward.gpu
        issue = 0.0
        if self.graphed < 1.0:
            issue = (1.0 - self.graphed) * (forward.host + backward.host)
            issue += self.software.host * across(self.rates) * HOST_PER_CHUNK * (layout.vp or 1)
        order = 1.0 if self.software.blocking else HOST_BLEND
        both = (gpu**order + issue**order) ** (1.0 / order)
        return _Stage(forward, backward, both, both - gpu, forward.gpu / gpu, hidden)

    def _overlapped(self, forward: Cost, backward: Cost) -> float:
        """Seconds of the expert all-to-all that hide under what else the stage does, one micro batch forward beside another backward."""
        ep = forward.ep + backward.ep
        return min(ep_overlap(self.recipe.features) * ep, forward.gpu + backward.gpu - ep)

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

    def pace(self, layout: Layout) -> float:
        """Times as long as is estimated that iterations of this model take, split so."""
        return self.slower * slower_split(layout, self.rates.splits)

    def least_pace(self, layout: Layout) -> float:
        """The same on whichever number of stages takes the least."""
        return self.slower * least_split(layout, self.rates.splits)

    def trained(self, layout: Layout) -> tuple[float, float]:
        """Those of them that get gradients; of frozen ones, the adapters beside them."""
        if not self.recipe.frozen:
            return self.parameters(layout)
        return self.adapters / (layout.pp * layout.tp), 0.0


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
    # Most launches of a layer with experts are theirs, whatever else is captured.
    most = "attn" in scope and ("moe_router" in scope or not recipe.architecture.num_moe_experts)
    return min(0.95, (0.30 if most else 0.15) * len(scope))


@lru_cache(maxsize=4)
def _machine(rates: Rates) -> tuple[Kernels, Links]:
    return Kernels(rates), Links(rates)


@lru_cache(maxsize=32)
def _model(recipe: Recipe, rates: Rates) -> _Model:
    return _Model(recipe, rates, *_machine(rates))


def estimate_time(recipe: Recipe, layout: Layout, rates: Rates) -> Estimate:
    """Predicted seconds of one iteration of a legal layout, apart by what they are spent on.

    The breakdown follows the slowest pipeline stage and adds up to the iteration.
    """
    return _estimate(_model(recipe, rates), layout)


def ask_of(kernels: Kernels, links: Links, recipe: Recipe, layout: Layout, rates: Rates) -> None:
    """Ask these for all that an estimate of this layout rests on."""
    _estimate(_Model(recipe, rates, kernels, links), layout)


def _estimate(model: _Model, layout: Layout) -> Estimate:
    recipe, rates, links, software = model.recipe, model.rates, model.links, model.software
    split = split_of(layout)
    stages = model.stage_times(layout, split)
    m, pp, vp = max(1, layout.num_microbatches), layout.pp, layout.vp or 1
    slow = max(stages, key=lambda s: s.seconds)

    # Pipeline
    send = 0.0
    if pp > 1:
        moved = 2.0 * split.mbs * (recipe.seq_length // layout.cp) * recipe.architecture.hidden_size
        moved /= layout.tp  # each TP rank sends its slice
        send = links.send(moved, links.group(pp, layout.world // pp))
    ideal = m * slow.seconds
    ahead, back = zip(*(s.passes for s in stages), strict=True)
    bubble = max(0.0, pipeline_time(ahead, back, vp=vp, microbatches=m) - ideal)
    # Steady state: an interleaved pipeline sends while it computes, plain 1F1B waits for both directions.
    hidden = 0.9 if software.p2p_overlap and vp > 1 else 0.3 if software.p2p_overlap else 0.0
    p2p = 2.0 * send * (m * vp * (1.0 - hidden) + (pp - 1)) if pp > 1 else 0.0

    # Alone, and with their all-to-all free, run the passes that fill the pipeline and those that empty it: with one stage the first
    # forward and the last backward (Megatron-Core, pipeline_parallel/combined_1f1b.py; schedules.py, `get_pp_rank_microbatches`).
    alone = slow.hidden_ep * min(m, pp)

    data = _data_parallel(model, layout, slow, m)
    optimizer = _optimizer(model, layout)
    host = m * (slow.host_exposed + _offload(model, layout, slow)) + software.iteration_s
    f, b = slow.forward, slow.backward
    data += SPREAD * largest(layout.world) * m * slow.gpu
    parts = Breakdown(
        compute_s=m * (f.compute + b.compute) + cast_time(recipe, layout, model.kernels),
        tp_s=m * (f.tp + b.tp),
        cp_s=m * (f.cp + b.cp),
        ep_s=m * (f.ep + b.ep) + alone,
        pp_bubble_s=bubble,
        pp_p2p_s=p2p,
        dp_exposed_s=data,
        optimizer_s=optimizer,
        host_s=host,
    ).times(model.pace(layout))
    total = parts.total
    # Of a batch that is no multiple of what runs at once the rest stays away, from the time too.
    batch = m * layout.micro_batch_size * layout.dp if layout.num_microbatches else layout.global_batch_size
    tokens = batch * recipe.seq_length / layout.world
    arch, seq = recipe.architecture, recipe.seq_length
    flops = model_flops_per_token(arch, seq, layout.tp, peft=recipe.task == "peft")  # as Bridge counts what it prints
    done = model_flops_per_token(arch, seq, layout.tp, peft=recipe.frozen)
    per_gpu = tokens / total
    return Estimate(
        iteration_time_s=total,
        error_band=error_band(recipe, layout, rates),
        tokens_per_s_per_gpu=per_gpu,
        model_tflops_per_gpu=per_gpu * flops / 1e12,
        mfu=per_gpu * done / rates.product.peak_flops(recipe.precision),
        breakdown=parts,
    )


def micro_batch_time(recipe: Recipe, layout: Layout, rates: Rates) -> float:
    """Seconds that one more micro batch takes on a single pipeline stage, at the pace of the number of stages that is known for the best;
    of a stage that offloads, without the host's share and the transfers."""
    model, features = _model(recipe, rates), recipe.features
    stage = model.stage_times(layout, split_of(layout))[0]
    if features.cpu_offload_layers or features.offload_modules:
        return model.least_pace(layout) * (stage.seconds - stage.host_exposed)
    sharded = layout.fsdp or features.fsdp
    return model.least_pace(layout) * (stage.seconds + (_sharded(model, layout, stage, 1) if sharded else 0.0))


def stage_times(recipe: Recipe, layout: Layout, rates: Rates) -> tuple[tuple[float, float], ...]:
    """Seconds of (forward, backward) of one micro batch on each virtual stage, in order of execution: what
    `schedule.timeline` plays. The chunks of one pipeline stage share its time evenly."""
    model, vp = _model(recipe, rates), layout.vp or 1
    pace = model.pace(layout)
    stages = [(pace * s.seconds / vp, s.forward_share) for s in model.stage_times(layout, split_of(layout))]
    each = [(seconds * forward, seconds * (1.0 - forward)) for seconds, forward in stages]
    return tuple(each * vp)


def largest(ranks: int) -> float:
    """Standard deviations over the mean at which the largest of that many normally distributed times is expected."""
    if ranks < 2:
        return 0.0
    root = sqrt(2.0 * log(ranks))
    return root - (log(log(ranks)) + log(4.0 * pi)) / (2.0 * root) + 0.5772 / root


def _data_parallel(model: _Model, layout: Layout, stage: _Stage, m: int) -> float:
    """Exposed seconds of gradient and weight traffic over data-parallel ranks."""
    recipe, links, software = model.recipe, model.links, model.software
    features = recipe.features
    if layout.fsdp or features.fsdp:
        return _sharded(model, layout, stage, m)
    dense, routed = model.trained(layout)
    replicas = layout.dp * layout.cp  # gradients are summed over context parallelism too
    gradient = features.gradient_bytes
    distributed = features.distributed_optimizer and software.distributed_optimizer
    if not distributed or software.dealt_tensors:
        wide, experts = links.group(replicas, layout.tp), links.group(max(1, layout.edp), layout.ep * layout.etp)
        summed = links.reduce(gradient * dense, wide) + links.reduce(gradient * routed, experts)
        return _dealt(model, layout, stage, summed) if distributed else summed
    shards, expert_shards = _shards(model, layout)
    inner, inner_experts = links.group(shards, layout.tp), links.group(expert_shards, layout.ep * layout.etp)
    # MXFP8 travels in 16 bits, from which both orientations are cast (`reuse_grad_buf_for_mxfp8_param_ag`).
    low = features.gathered_low(recipe.precision) and recipe.precision != "fp8mx"
    weight = (0.5 if recipe.precision == "nvfp4" else 1.0) if low else 2.0
    in_16_bits = sum(features.wide_ends(recipe.precision)) / max(1, len(recipe.architecture.layers()))
    weight += in_16_bits * (2.0 - weight)
    buckets, of_experts = (max(1.0, held / BUCKET) for held in (dense, routed))

    def in_buckets(send: Callable[[float, Group], float], each: float) -> float:
        """Every bucket pays the latency once."""
        whole = buckets * send(each * dense / buckets, inner)
        return whole + of_experts * send(each * routed / of_experts, inner_experts)

    scatter, gather = in_buckets(links.scatter, gradient), in_buckets(links.gather, weight)
    # Shards are summed over the optimizers that have the same (Megatron-Core, distributed/param_and_grad_buffer.py:
    # `inter_distributed_optimizer_instance_group`).
    across = links.group(replicas // shards, layout.tp * shards)
    experts_across = links.group(max(1, layout.edp) // expert_shards, layout.ep * layout.etp * expert_shards)
    scatter += links.reduce(gradient * dense / shards, across)
    scatter += links.reduce(gradient * routed / expert_shards, experts_across)
    f, b = stage.passes
    # Gradients are complete only in the last micro batch's backward pass; weights are needed in the first forward.
    # Other stages' fill and drain do not help the slowest stage.
    exposed = beside = 0.0
    for seconds, under, overlapped in ((scatter, b, features.reduce_overlap), (gather, f, features.gather_overlap)):
        hides = software.dp_overlap and overlapped
        exposed += max(seconds * (1 - DP_SHARE_HIDDEN), seconds - under) if hides else seconds
        beside += seconds if hides else 0.0
    return exposed + DP_SLOWDOWN * min(beside, stage.gpu)


def _dealt(model: _Model, layout: Layout, stage: _Stage, summed: float) -> float:
    """The same where tensors are dealt out whole: gradients are `summed` seconds under the last backward pass, in buckets that are copied
    to and fro; broadcasts follow the step."""
    links, tensors = model.links, _tensors(model, layout)
    dense, routed = model.trained(layout)
    summed += model.kernels.stream(BUCKETED * (dense + routed))
    shards, expert_shards = _shards(model, layout)
    shared = links.broadcast(2.0 * dense, links.group(shards, layout.tp), min(shards, tensors))
    experts = links.group(expert_shards, layout.ep * layout.etp)
    shared += links.broadcast(2.0 * routed, experts, min(expert_shards, tensors))
    _, b = stage.passes
    return max(summed * (1 - DP_SHARE_HIDDEN), summed - b) + DP_SLOWDOWN * min(summed, stage.gpu) + shared


def _shards(model: _Model, layout: Layout) -> tuple[int, int]:
    """Ranks that share one optimizer: of dense parameters, and of routed ones."""
    instances = model.recipe.features.optimizer_instances
    return max(1, layout.dp * layout.cp // instances), max(1, max(1, layout.edp) // instances)


def _tensors(model: _Model, layout: Layout) -> int:
    """Tensors of a stage that are dealt out whole: those of its layers, embedding, output and last norm."""
    layers = -(-len(model.recipe.architecture.layers()) // layout.pp)
    return model.software.dealt_tensors * layers + 3


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
    link = model.rates.product.c2c_bytes_per_s or model.rates.node_bytes_per_s
    moved = each * tokens * arch.hidden_size
    one = moved / (to_host(link, model.rates) * 0.8)
    f, b = stage.forward.gpu, stage.backward.gpu
    # Copy engines carry them, which take no multiprocessor away (Transformer Engine, pytorch/cpu_offload.py: `copy_` between pinned memory
    # and the GPU on a stream of its own): what compute loses is the memory's bandwidth.
    return max(0.0, one - f) + max(0.0, one - b) + 2.0 * moved / model.kernels.hbm


def _sharded(model: _Model, layout: Layout, stage: _Stage, m: int) -> float:
    """Fully sharded: weights are gathered for forward and backward of every micro batch, gradients scattered in each; frozen weights
    have none."""
    links = model.links
    dense, routed = model.parameters(layout)
    learnt, learnt_routed = model.trained(layout)
    group = links.group(layout.dp * layout.cp, layout.tp)
    inner = links.group(max(1, layout.edp), layout.ep * layout.etp)
    gather = links.gather(2.0 * dense, group) + links.gather(2.0 * routed, inner)
    scatter = links.scatter(2.0 * learnt, group) + links.scatter(2.0 * learnt_routed, inner)
    f, b = stage.passes
    exposed = max(0.08 * gather, gather - f) + max(0.08 * (gather + scatter), gather + scatter - b)
    slowed = DP_SLOWDOWN * min(2 * gather + scatter, stage.gpu)
    return m * (exposed + slowed)


def _optimizer(model: _Model, layout: Layout) -> float:
    """Adam over this rank's shard, and what is done once an iteration to gradients wherever they stand whole."""
    features = model.recipe.features
    shards, expert_shards = (layout.dp * layout.cp, max(1, layout.edp)) if layout.fsdp else _shards(model, layout)
    sharded = (features.distributed_optimizer and model.software.distributed_optimizer) or layout.fsdp
    dense, routed = model.trained(layout)
    mine = dense / (shards if sharded else 1) + routed / (expert_shards if sharded else 1)
    if model.software.dealt_tensors:  # who has the embedding, the largest tensor, has all of it
        arch = model.recipe.architecture
        mine = max(mine, padded_vocab(arch, layout.tp) // layout.tp * arch.hidden_size)
    local = model.kernels.stream(mine * (model.software.step_bytes or step_bytes(model.recipe)), kernels=40)
    if features.optimizer_offload:
        # Gradients go to the host and weights come back; Adam runs on the CPU at its own pace.
        product = model.rates.product
        link, adam = product.c2c_bytes_per_s or model.links.pcie, CPU_ADAM_GRACE if product.cpu else CPU_ADAM
        link, away = to_host(link, model.rates), mine * features.optimizer_offload
        local = local * (1 - features.optimizer_offload) + away * 6.0 / link + away * 24.0 / adam
    local += 1e-3  # the norm's all-reduce, and the host's wait for it
    if layout.fsdp or features.fsdp or not model.software.fused_accumulation:
        return local
    # Buffers of gradients are set to zero; experts' are scaled to the mean over all data-parallel ranks, of which theirs are a part
    # (Megatron-Core, distributed/param_and_grad_buffer.py: `reset`, `bucket.grad_data *= bucket.gradient_scaling_factor`).
    scaled = 2.0 if layout.edp != layout.dp * layout.cp else 0.0
    return local + model.kernels.stream(features.gradient_bytes * (dense + (1.0 + scaled) * routed), kernels=4)


def step_bytes(recipe: Recipe) -> float:
    """Bytes that the step moves for a parameter of this rank's shard.

    Gradients become float32 where they are not (Megatron-Core, optimizer/distrib_optimizer.py: `shard_model_grad.float()`), and are read
    for their norm; Adam reads them and reads and writes master weights and both moments; weights are made of masters by another kernel
    (`_copy_main_params_to_model_params`). A precision-aware optimizer reads gradients as they are and writes weights itself, but for
    formats whose weights somebody has to cast (optimizer_config.py: `use_precision_aware_optimizer_no_fp8_or_ds_fp8`)."""
    f = recipe.features
    gradient = f.gradient_bytes
    moments = MOMENT.get(f.moments, 4)
    if f.precision_aware_optimizer and recipe.precision not in ("fp8cs", "fp8sc", "fp8mx"):
        return 2.0 * gradient + 8.0 + 4.0 * moments + 2.0
    converted = 0.0 if gradient == 4 else gradient + 4.0
    return converted + 4.0 + 4.0 + 8.0 + 4.0 * moments + 4.0 + 2.0
