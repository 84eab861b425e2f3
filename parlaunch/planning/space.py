"""Which layouts are worth a look: for each size the values that the model, the batch and the machine allow.

`parlaunch.planning.search` finds the best of the space without visiting all of it. What is left out
of the space is left out for a reason that no estimate could overturn, and each is written where it is decided.
"""

from __future__ import annotations

from functools import cache, lru_cache
from itertools import combinations

from parlaunch.hardware.rates import Rates
from parlaunch.model.architecture import Architecture
from parlaunch.model.layout import FULL_RECOMPUTE, NO_RECOMPUTE, Recompute
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Wishes
from parlaunch.rules import cp_comm_type

MICRO_BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
CP_TOKENS = 1024
"""Tokens of a sequence that a CP rank keeps at least: below, the ring's messages outlast the attention they hide under."""
MICRO_BATCH_TOKENS = 32768
"""Tokens of a micro batch on one rank: more fills no kernel better, and no tuned layout that is published has more."""


@lru_cache(maxsize=4096)
def divisors(n: int) -> tuple[int, ...]:
    """All divisors, ascending."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return tuple(sorted({*small, *(n // d for d in small)}))


def reach(rates: Rates) -> int:
    """Consecutive ranks with links good enough for tensor parallelism: the NVLink domain, else the node over PCIe."""
    return rates.nvlink_domain if rates.nvlink_domain > 1 else rates.gpus_per_node


def inside(size: int, rates: Rates, world: int) -> bool:
    """Whether every group of `size` consecutive ranks stays inside one domain."""
    domain = reach(rates)
    return size <= domain and (domain % size == 0 or world <= domain)


def exchange(recipe: Recipe, wishes: Wishes, cp: int) -> str | None:
    """How CP ranks exchange keys and values: as the user wishes, else as suits the model's attention."""
    if cp > 1 and wishes.cp_comm_type is not None:
        return wishes.cp_comm_type
    return cp_comm_type(recipe.architecture, cp)


def worlds(rates: Rates) -> tuple[int, ...]:
    """Numbers of GPUs that a job could use, the whole allocation first.

    Whole nodes only, since the ranks of a node start together; on one node any number. Beyond 64 nodes, numbers with a
    small odd part, which are those that batches and layers divide by.
    """
    node, count = rates.gpus_per_node, rates.world_size
    nodes = count // node if node else 0
    if nodes <= 1:
        return tuple(range(count, 0, -1))
    if nodes <= 64:
        found = {n * node for n in range(1, nodes + 1)}
    else:
        found = {odd * 2**k * node for odd in (1, 3, 5, 7, 9) for k in range(nodes.bit_length()) if odd * 2**k <= nodes}
    return tuple(sorted({count, *found, *(range(1, node))}, reverse=True))


def tp_sizes(recipe: Recipe, rates: Rates, wishes: Wishes, world: int) -> tuple[int, ...]:
    """TP inside one NVLink domain: across it, four collectives a layer wait for the network."""
    if wishes.tp is not None:
        return (wishes.tp,)
    a = recipe.architecture
    heads = a.num_attention_heads or a.mamba_num_heads or 1
    return tuple(d for d in divisors(heads) if world % d == 0 and inside(d, rates, world))


def cp_sizes(recipe: Recipe, wishes: Wishes, world: int) -> tuple[int, ...]:
    """Context parallel sizes that the sequence and the world allow, or the one that is pinned."""
    if wishes.cp is not None:
        return (wishes.cp,)
    seq = recipe.seq_length
    floor = CP_TOKENS if recipe.architecture.kind != "diffusion" else 1
    return tuple(d for d in divisors(seq) if world % d == 0 and (d == 1 or (seq % (2 * d) == 0 and seq // d >= floor)))


def expert_sizes(recipe: Recipe, rates: Rates, wishes: Wishes, world: int) -> tuple[tuple[int, int], ...]:
    """(EP, ETP). ETP above 1 only where EP holds one expert a rank already: until then EP halves the same memory
    without cutting products narrower."""
    experts = recipe.architecture.num_moe_experts or 0
    eps = (wishes.ep,) if wishes.ep is not None else divisors(experts) if experts else (1,)
    found = []
    for ep in eps:
        if wishes.etp is not None:
            etps: tuple[int, ...] = (wishes.etp,)
        elif ep == experts and experts:
            etps = tuple(d for d in (1, 2, 4, 8) if d == 1 or ep * d <= reach(rates))
        else:
            etps = (1,)
        found += [(ep, etp) for etp in etps if world % (ep * etp) == 0]
    return tuple(found)


def micro_batches(recipe: Recipe, wishes: Wishes, per_replica: int, tokens: int) -> tuple[int, ...]:
    """Micro batches that divide a replica's share of the batch. `tokens`: of one sequence on one rank.

    Fine-tuning keeps the recipe's own: how sequences are packed decides it (packed offline: 1; in the batch: above 1).
    """
    if wishes.micro_batch_size is not None:
        sizes: tuple[int, ...] = (wishes.micro_batch_size,)
    elif recipe.task != "pretrain":
        sizes = (recipe.defaults.micro_batch_size or 1,)
    else:
        sizes = tuple(m for m in MICRO_BATCHES if m == 1 or m * tokens <= MICRO_BATCH_TOKENS)
    return tuple(m for m in sizes if per_replica % m == 0)


def stage_counts(recipe: Recipe, wishes: Wishes, world: int, fsdp: bool) -> tuple[int, ...]:
    """PP: up to one layer a stage. FSDP takes the place of stages: its gathers would repeat for each micro batch in flight."""
    if wishes.pp is not None:
        return (wishes.pp,)
    if fsdp:
        return (1,)
    layers = len(recipe.architecture.layers())
    return tuple(d for d in divisors(world) if d <= layers)


def interleavings(recipe: Recipe, wishes: Wishes, pp: int, microbatches: int) -> tuple[int | None, ...]:
    """VP, without interleaving first; at least one layer a virtual stage, but for those of the embedding and of the output layer."""
    if wishes.vp is not None:
        return (wishes.vp if wishes.vp > 1 else None,)
    if pp == 1 or recipe.architecture.hybrid_layer_pattern or microbatches % pp:
        return (None,)
    layers = len(recipe.architecture.layers())
    return (None, *range(2, (layers + 2) // pp + 1))


@lru_cache(maxsize=4096)
def _even(layers: int, parts: int, first: int, last: int) -> tuple[int, ...] | None:
    """`layers` over `parts` as if `first` and `last` more layers stood at the ends; larger parts towards the middle."""
    size, rest = divmod(layers + first + last, parts)
    counts = [size] * parts
    for i in range(rest):
        counts[(i + 1) % parts if rest < parts else i] += 1
    counts[0] -= first
    counts[-1] -= last
    return tuple(counts) if min(counts) >= 0 and 0 not in counts[1:-1] else None


@lru_cache(maxsize=512)
def end_layers(a: Architecture) -> int:
    """How many decoder layers the head weighs in matrix products: output layer and multi-token prediction."""
    from parlaunch.model.flops import model_flops_per_token

    layers = max(1, len(a.layers()))
    logits = 6.0 * a.hidden_size * a.vocab_size
    depth = a.mtp_num_layers or 0
    body = model_flops_per_token(a, 4096) - logits * (1 + depth)
    return round(logits * (1 + depth) * layers / max(body, 1.0)) + depth


@lru_cache(maxsize=8192)
def splits(a: Architecture, pp: int, vp: int | None) -> tuple[tuple[int, ...] | None, ...]:
    """Decoder layers of each virtual stage: equal, with embedding or loss counted as layers, and with the loss stage
    lightened by about what the output layer weighs. None: equal.

    With interleaving all chunks but the first and the last are equal: an uneven chunk delays every rank once a round.
    """
    layers, parts = len(a.layers()), pp * (vp or 1)
    if parts == 1:
        return (None,)
    found: list[tuple[int, ...] | None] = [None] if layers % parts == 0 else []
    if a.hybrid_layer_pattern:
        return tuple(found)
    weight = end_layers(a)
    filled = [(first, -(layers + first) % parts) for first in (0, 1)]  # all in between equal
    if vp:
        ends = [(first, last) for first, last in filled if last <= max(3, weight + 1)]
    else:
        ends = [(0, 0), (0, 1), (1, 1), (0, weight), (1, weight), (0, weight + 1)]
        # When that lightens the last stage by no more than its output layer weighs.
        ends += [(first, last) for first, last in filled if 1 < last <= weight]
    for first, last in dict.fromkeys(ends):
        counts = _even(layers, parts, first, last)
        if counts is not None and counts not in found and not (None in found and len(set(counts)) == 1):
            found.append(counts)
    return tuple(found)


def cuts(a: Architecture, wishes: Wishes, pp: int, vp: int | None) -> tuple[tuple[int, ...] | None, ...]:
    """`splits`, or the one that the user fixed: none where these stages cannot be cut so."""
    if wishes.stages is None:
        return splits(a, pp, vp)
    chunks = wishes.stages.chunks(len(a.layers()), pp, vp)
    return () if chunks is None else (chunks if len(set(chunks)) > 1 else None,)


@lru_cache(maxsize=512)
def light_modules(a: Architecture) -> tuple[str, ...]:
    """Modules whose recomputation is cheap for what it frees."""
    kinds = a.layers()
    there = (
        ("layernorm", True),
        ("moe_act", any(k.mlp == "moe" for k in kinds)),
        ("mla_up_proj", any(k.mixer in ("mla", "csa") for k in kinds)),
        ("shared_experts", bool(a.num_moe_experts and a.moe_shared_expert_intermediate_size)),
        ("mhc", (a.num_residual_streams or 1) > 1),
    )
    return tuple(name for name, present in there if present)


@lru_cache(maxsize=512)
def module_sets(a: Architecture) -> tuple[tuple[str, ...], ...]:
    """Sets of modules to recompute selectively: every set of the cheap ones, alone and with the dense MLP, then all of them
    with whole expert layers, which cost most. Not core attention: fused, it keeps nothing but what it is given."""
    light = light_modules(a)
    dense = any(k.mlp == "dense" for k in a.layers()) and "mhc" not in light
    experts = any(k.mlp == "moe" for k in a.layers())
    found: list[tuple[str, ...]] = []
    for size in range(len(light) + 1):
        for chosen in combinations(light, size):
            found += [chosen, (*chosen, "mlp")] if dense else [chosen]
    heavy = tuple(m for m in light if m not in ("moe_act", "shared_experts"))
    if experts:
        found.append((*heavy, "moe"))
    return tuple(dict.fromkeys(s for s in found if s))


def recomputes(recipe: Recipe, wishes: Wishes, layers_a_chunk: int) -> tuple[Recompute, ...]:
    """What may be recomputed, nothing first and everything last."""
    if wishes.recompute is not None:
        return (wishes.recompute,)
    return _recomputes(module_sets(recipe.architecture), layers_a_chunk)


@lru_cache(maxsize=1024)
def _recomputes(sets: tuple[tuple[str, ...], ...], layers_a_chunk: int) -> tuple[Recompute, ...]:
    selective = tuple(Recompute(granularity="selective", modules=modules) for modules in sets)
    return (NO_RECOMPUTE, *selective, *(_block(n) for n in range(1, layers_a_chunk)), FULL_RECOMPUTE)


@cache
def _block(layers: int) -> Recompute:
    return Recompute(granularity="full", method="block", num_layers=layers)
