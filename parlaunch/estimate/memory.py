"""Memory of the fullest GPU: what stays (weights, gradients, optimizer), what a micro batch leaves, and what comes on top.

What stands on a stage is `stages`' to say, what micro batches leave there `micro_batches`', what a process holds on top
`allocator`'s; constants stand where they are used, each with its unit and source.

Built to be asked thousands of times: what depends on the sizes of the layout alone is computed once and cached; a call is
then a few multiplications for each stage that could be the fullest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

from parlaunch.estimate.allocator import (
    DEEPEP_BUFFER,
    GRAPH,
    graph_pool,
    kept_free,
    outside,
    reserved_beyond,
    unused,
    workspace,
    written,
)
from parlaunch.estimate.cross_entropy import loss_of
from parlaunch.estimate.micro_batches import Left, imbalances, left_on, squares, surroundings
from parlaunch.estimate.stages import (
    Given,
    Place,
    Standing,
    chunks_of,
    encoder_frozen,
    patches,
    place_of,
    places,
    standing_on,
    states_of,
    step_bytes,
)
from parlaunch.estimate.states import BUCKET, Keeping, bytes_a_parameter, keeping_of
from parlaunch.estimate.values import Memory
from parlaunch.hardware.cpu import CPU_RANK
from parlaunch.hardware.rates import HEADROOM, Rates
from parlaunch.model.activations import WIDE, Surroundings
from parlaunch.model.layout import Layout, Recompute
from parlaunch.model.recipe import Features, Recipe

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
    even = f.force_balance or f.expert_capacity or recipe.benchmark
    if recipe.architecture.num_moe_experts and layout.ep > 1 and not even:
        wider += WIDER["imbalance"]
    if f.ep_overlap:
        wider += WIDER["overlap"]
    if patches(recipe):
        wider += WIDER["images"]
    if layout.fsdp or f.fsdp:
        wider += WIDER["fsdp"]
    if f.cuda_graph:
        wider += WIDER["graph"]
    if f.cpu_offload_layers or f.offload_modules or f.optimizer_offload:
        wider += WIDER["offload"]
    return wider


class _Stage(NamedTuple):
    """One stage, whatever a micro batch is and whatever of it is recomputed."""

    place: Place
    standing: Standing
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

    p: Given  # with the switches `OFF`
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
    reserved: tuple[float, float] = (0.0, 0.0)  # `allocator.reserved_beyond` of them
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
        self.step = step_bytes(self.each, recipe.features, recipe.frozen)
        self._frames: dict[tuple[object, ...], _Frame] = {}
        self._kept: dict[tuple[object, ...], tuple[Left, ...]] = {}
        self._surroundings: dict[tuple[object, ...], Surroundings] = {}

    def frame(self, key: tuple[object, ...], x: Layout) -> _Frame:
        known = self._frames.get(key)
        if known is None:
            known = self._frames[key] = self._frame(x)
        return known

    def _frame(self, layout: Layout) -> _Frame:
        recipe, f, a, keeping = self.recipe, self.recipe.features, self.recipe.architecture, self.keeping
        fsdp, gpu, pp = layout.fsdp or f.fsdp, self.rates.product.arch, layout.pp
        p = Given(
            a, recipe.precision, f, recipe.frozen, encoder_frozen(recipe), patches(recipe), recipe.task == "peft",
            f.force_balance or recipe.benchmark, loss_of(recipe), layout.tp, pp, layout.vp, layout.cp, layout.ep, layout.etp,
            fsdp, layout.cp_comm_type, layout.layers_per_chunk,
            # Accumulation is not fused under FSDP, nor in the diffusion recipes; where it is not, a gradient lives until it is added.
            "none" if fsdp or a.kind == "diffusion" else keeping.dummies if f.fused_accumulation else "passing",
            gpu in ("blackwell", "rubin"),
        )  # fmt: skip
        spread = expert_spread = 1
        if f.distributed_optimizer or fsdp:
            parts = 1 if fsdp else f.optimizer_instances
            spread, expert_spread = max(layout.world // (layout.tp * pp * parts), 1), max(layout.edp // parts, 1)
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
                    p.cp if squares(p) else 0,
                ),
                pp,
                p.vp,
                p.layers_per_chunk,
            ),
            tuple(
                self.stage(place, p, spread, expert_spread)
                for place in places(a, pp, layout.vp, p.layers_per_chunk, f.wide_ends(recipe.precision))
            ),
            2 * pp + 1 if layout.vp else pp + 1,
            workspace(gpu, experts=bool(a.num_moe_experts)),
            outside(gpu, keeping, communicators),
            self.rates.product != CPU_RANK,
            f,
        )

    def stage(self, place: Place, p: Given, spread: int, expert_spread: int) -> _Stage:
        st = standing_on(place, p)
        held_back = self.keeping.sharded if spread > 1 else 0.0
        of_all, of_half = self.step
        stepping = 0.0
        if of_all + of_half:
            encoder = 0.0 if p.frozen_encoder else st.encoder_params
            dense = (st.layer_params + st.other_params + encoder) / spread
            routed = st.routed_params / expert_spread
            stepping = of_all * (dense + routed) + of_half * max(dense, routed)
        each = self.each_of_fsdp if p.fsdp else self.each
        weights, gradients, optimizer, working = states_of(st, p, each, held_back, spread, expert_spread)
        return _Stage(place, st, weights, gradients, optimizer, working, stepping)

    def kept(self, x: _Frame, layout: Layout, recompute: Recompute) -> tuple[Left, ...]:
        """What micro batches leave on each of the frame's stages."""
        microbatches = min(layout.num_microbatches, x.in_flight) or 1
        uneven = imbalances(x.p, self.recipe.seq_length, layout.micro_batch_size)
        key = (x.around, uneven, recompute, microbatches, x.features.ep_overlap)
        known = self._kept.get(key)
        if known is None:
            known = self._kept[key] = self.left(x, uneven, recompute, microbatches)
        return known

    def left(self, x: _Frame, uneven: tuple[float, float], recompute: Recompute, microbatches: int) -> tuple[Left, ...]:
        together, alone = (self._surrounded(x, recompute, imbalance) for imbalance in uneven)
        overlap = x.features.ep_overlap
        return tuple(
            left_on(stage.place, x.p, recompute, together, alone, microbatches, overlap=overlap) for stage in x.stages
        )

    def _surrounded(self, x: _Frame, recompute: Recompute, imbalance: float) -> Surroundings:
        key = (x.around.sharing, imbalance, recompute.granularity, recompute.modules)
        around = self._surroundings.get(key)
        if around is None:  # one object for all: what is remembered by it is found at once
            around = self._surroundings[key] = surroundings(x.p, recompute, self.recipe.seq_length, imbalance)
        return around


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
            reserved=reserved_beyond(bare.keeping, f),
            written=written(self.recipe, x),
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


def _parts(stage: _Stage, left: Left, x: _Frame, tokens: float) -> tuple[float, ...]:
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
    slack = unused(comes_and_goes, largest, keeping, f)
    pool = graph_pool(comes_and_goes, f)
    runtime = int(x.outside + (registered + x.registered)) + slack + pool
    made = (weights, gradients, optimizer, activations, logits, buffers)
    free = kept_free(slack, largest, transient, overlapped=f.ep_overlap and x.p.ep > 1) if x.cached else 0.0
    return (*map(int, made), runtime, slack, pool, int(free))


def _fullest(model: _Model, layout: Layout, recompute: Recompute) -> tuple[_Stage, tuple[float, ...], _Frame]:
    """The stage that holds most, with its parts."""
    x, tokens, most = model.frame(layout), model.tokens(layout), -1.0
    kept = model.bare.kept(x, layout, recompute)
    share, fragments = x.reserved
    for stage, left in zip(x.stages, kept, strict=True):
        parts = _parts(stage, left, x, tokens)
        total = sum(parts[:-2]) + share * (parts[3] + parts[4] + parts[5]) + fragments * parts[7]
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
    chunks = chunks_of(p.architecture, p.pp, p.vp, p.layers_per_chunk, p.features.wide_ends(p.precision))
    x = x._replace(
        stages=tuple(bare.stage(place_of(i, chunks, p.pp), p, x.spread, x.expert_spread) for i in range(p.pp))
    )
    uneven = imbalances(p, recipe.seq_length, layout.micro_batch_size)
    kept = bare.left(x, uneven, layout.recompute, min(layout.num_microbatches, x.in_flight) or 1)
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
