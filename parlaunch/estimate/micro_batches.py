"""What micro batches leave on a stage until their backward pass: how many are in flight, and what each keeps."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from parlaunch.estimate.routing import fullest
from parlaunch.estimate.stages import Chunk, Given, Place, residual_share
from parlaunch.estimate.states import keeping_of
from parlaunch.estimate.timing.software import software_of
from parlaunch.model.activations import WIDE, Surroundings, keeps_scores, layer_activations, prediction_activations
from parlaunch.model.architecture import Architecture
from parlaunch.model.layout import NO_RECOMPUTE, Recompute
from parlaunch.model.recipe import predicted_in, rotated_in_one


class Left(NamedTuple):
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


def squares(p: Given) -> bool:
    """Whether what is kept of a token depends on how long its sequence is: where scores are, or something once for all of a micro batch's."""
    sparse = p.architecture.experimental_attention_variant in ("dsa", "dsv4_hybrid")
    return sparse or not software_of(p.features.framework).fused_attention or _scores_are_kept(p.architecture)


def imbalances(p: Given, seq_length: int, micro_batch_size: int) -> tuple[float, float]:
    """Tokens of the fullest expert-parallel rank over the mean: of all layers on a stage, whose favourites differ, and of one layer alone."""
    a, f = p.architecture, p.features
    if f.expert_capacity or p.balanced or p.ep == 1 or not a.num_moe_experts:
        even = f.expert_capacity or 1.0
        return even, even
    tokens = micro_batch_size * seq_length * p.ep * p.etp / (p.cp * p.tp)
    one, together = (
        fullest(a.num_moe_experts, a.moe_router_topk, tokens, p.ep, seq_length, layers)
        for layers in (1, max(1, _with_experts(a) // p.pp))
    )
    return together, one


@lru_cache(maxsize=512)
def _with_experts(a: Architecture) -> int:
    return sum(kind.mlp == "moe" for kind in a.layers())


def surroundings(p: Given, recompute: Recompute, seq_length: int, imbalance: float) -> Surroundings:
    """What the activations of a layer depend on beside the layer."""
    f = p.features
    software = software_of(f.framework)
    return Surroundings(
        tp=p.tp,
        sequence_parallel=f.sequence_parallel and software.sequence_parallel,
        etp=p.etp,
        precision=p.precision,
        recompute=recompute if recompute.granularity == "selective" else NO_RECOMPUTE,
        offload=f.offload_modules,
        imbalance=imbalance,
        frozen=p.frozen,
        adapters=f.adapter_targets if p.adapters else (),
        adapter_rank=f.adapter_rank if p.adapters else 0,
        adapter_dropout=f.adapter_dropout,
        fp8_attention=f.fp8_attention,
        fp8_activation_input=f.fp8_activation_input,
        swapped_heads=p.cp > 1 and p.cp_comm_type == "a2a",
        dropout=software.dropout,
        unfused_attention=not software.fused_attention,
        fused_v4=p.fused_v4,
        plain_activation=not f.activation_fusion,
        fused_operations=f.paged_stash,
        plain_rotation=p.architecture.rotary and not rotated_in_one(p.architecture, f),
        seq_length=seq_length // p.cp if squares(p) else 0,
    )


def _chunk(chunk: Chunk, a: Architecture, r: Recompute, s: Surroundings, one: Surroundings) -> tuple[float, float]:
    """Bytes a token that one chunk of layers keeps, and the most that one of them needs for its backward. `one`: around a layer alone."""
    saved = transient = 0.0
    if r.granularity != "full":
        for kind, count in chunk.counts:
            saved += count * layer_activations(a, kind, s).saved
            k = layer_activations(a, kind, one)
            transient = max(transient, k.rerun + k.grads)
        return saved, transient
    unit = max(r.num_layers or 1, 1)
    if r.method == "block":  # the first layers keep their input, the others everything
        for part, again in ((chunk.order[:unit], True), (chunk.order[unit:], False)):
            for kind in dict.fromkeys(part):
                k = layer_activations(a, kind, s)
                saved += part.count(kind) * (k.x if again else k.saved)
                k = layer_activations(a, kind, one)
                transient = max(transient, k.grads + (k.saved if again else 0.0))
        return saved, transient
    for kind, _ in chunk.counts:
        k = layer_activations(a, kind, one)
        saved = max(saved, k.x)
        transient = max(transient, k.saved * min(unit, len(chunk.order)) + k.grads)
    return saved * -(-len(chunk.order) // unit), transient


def kept_by_predictions(a: Architecture, r: Recompute, s: Surroundings, one: Surroundings) -> tuple[float, float]:
    """The same of all depths of multi-token prediction with their layers, each computed again as a whole, or by the method "block" not at all (Core,
    `_checkpointed_forward` of `MultiTokenPredictionLayer`)."""
    again = r.granularity == "full" and r.method != "block"
    depth, around = a.mtp_num_layers or 0, prediction_activations(a, s)
    layers = Chunk(tuple(Counter(a.mtp_layers()).items()), a.mtp_layers())
    saved, transient = _chunk(layers, a, r if again or r.granularity != "full" else NO_RECOMPUTE, s, one)
    if again:
        return depth * around.x, around.rerun + transient
    return saved + depth * around.saved, transient


def left_on(
    place: Place,
    p: Given,
    recompute: Recompute,
    s: Surroundings,
    alone: Surroundings,
    microbatches: int,
    *,
    overlap: bool,
) -> Left:
    """What so many micro batches leave on a stage. `alone`: around one of its layers. `overlap`: the expert all-to-all of one runs under the compute of another."""
    a, f, h = p.architecture, p.features, p.architecture.hidden_size
    i, residual, layers = place.at, residual_share(p), 0
    saved = transient = first = one = most = 0.0
    last: Chunk | None = None
    output = WIDE * h * residual if p.pp > 1 and keeping_of(f.framework).stage_outputs else 0.0
    in_flight = held(i, p.pp, p.vp, microbatches, overlap=overlap)
    for count, chunk in zip(in_flight, place.chunks, strict=True):
        if chunk is not last:  # all but the first and the last mostly are the same
            (one, most), last = _chunk(chunk, a, recompute, s, alone), chunk
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
            last_in = predicted_in(a, f, s.precision)
            around, around_one = (x if last_in == x.precision else replace(x, precision=last_in) for x in (s, alone))
            kept, most = kept_by_predictions(a, recompute, around, around_one)
            saved += kept
            transient = max(transient, most)
    return Left(saved, transient, first)
