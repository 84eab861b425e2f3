"""What makes it fit: the error for a model that fits nowhere, with the ways out computed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from parlaunch.errors import NoLayoutError
from parlaunch.estimate.memory import estimate_memory
from parlaunch.estimate.values import Memory
from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import FULL_RECOMPUTE, Layout
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Candidate, Wishes
from parlaunch.planning.reasons import largest
from parlaunch.planning.search import Search
from parlaunch.rules import why_not
from parlaunch.units import gib, percent

MOST_NODES = 1024
"""Nodes up to which more GPUs are tried."""
PINS = ("tp", "pp", "vp", "cp", "ep", "etp")
ROUND = 256
"""Tokens: sequences of a multiple of these go into parts for context and sequence parallelism."""


def no_layout(search: Search, closest: tuple[Layout, Memory]) -> NoLayoutError:
    """By how much the closest layout misses, what takes the memory, and the cheapest ways out."""
    layout, memory = closest
    recipe, rates = search.recipe, search.rates
    word, size = largest(memory)
    ways = list(ways_out(recipe, rates, search.wishes)) or list(_several(recipe, rates, search.wishes))
    hint = "; ".join(ways[:3]) if ways else "nothing within reach helps: choose a smaller model or sequence"
    return NoLayoutError(
        f"{recipe.name} fits nowhere on {rates.world_size} × {rates.product.name}: the leanest layout, {layout}, needs "
        f"{gib(memory.peak)} a GPU, {gib(memory.peak - memory.limit)} more than the {gib(memory.limit)} usable; "
        f"{word} take{'s' if word.startswith('the ') else ''} most of it, {gib(size)}",
        hint=hint,
    )


def roomier(search: Search, chosen: Candidate) -> Iterator[str]:
    """Options that leave a crowded layout's allocator what it needs, each by itself."""
    x, recipe = chosen.layout, search.recipe
    alone = replace(recipe, features=replace(recipe.features, ep_overlap=False))
    changes = [("--switches ep_overlap=off", alone, x)] if recipe.features.ep_overlap else []
    if x.micro_batch_size % 2 == 0:
        less = x.micro_batch_size // 2
        changes.append((f"--micro-batch-size {less}", recipe, replace(x, micro_batch_size=less)))
    changes.append(("--recompute full", recipe, replace(x, recompute=FULL_RECOMPUTE)))
    for words, made, layout in changes:
        if (layout == x and made is recipe) or why_not(layout, made, search.rates) is not None:
            continue
        memory = estimate_memory(made, layout, search.rates, headroom=search.wishes.headroom)
        if memory.fits and memory.at_speed:
            yield words


def ways_out(recipe: Recipe, rates: Rates, wishes: Wishes) -> Iterator[str]:
    """Sentences, the cheapest first: what costs only time, then what changes how the training works, then more GPUs."""
    if wishes.recompute is not None and (found := _fits(recipe, rates, replace(wishes, recompute=None))):
        yield f"let the planner recompute: {found.layout} fits with {gib(found.memory.peak)}"
    if (wishes.micro_batch_size or 1) > 1 and (found := _fits(recipe, rates, replace(wishes, micro_batch_size=None))):
        yield f"a smaller micro batch: {found.layout} fits"
    if any(getattr(wishes, p) is not None for p in PINS) and (found := _fits(recipe, rates, _free(wishes))):
        yield f"without your sizes {found.layout} fits"
    if recipe.features.cuda_graph is not None:
        bare = replace(recipe, features=replace(recipe.features, cuda_graph=None, cuda_graph_scope=()))
        if found := _fits(bare, rates, wishes):
            yield f"with --switches graphs=off {found.layout} fits with {gib(found.memory.peak)}"
    if wishes.headroom > 0.03 and (found := _fits(recipe, rates, replace(wishes, headroom=0.02))):
        yield (
            f"with --headroom 0.02 instead of {wishes.headroom:g}, {found.layout} fits "
            f"({percent(found.memory.peak / found.memory.capacity)} of the memory)"
        )
    if not recipe.features.fsdp and wishes.fsdp is not False:
        sharded = replace(recipe, features=replace(recipe.features, fsdp=True))
        if found := _fits(sharded, rates, replace(wishes, fsdp=True, pp=None, vp=None)):
            yield f"with --fsdp {found.layout} fits with {gib(found.memory.peak)}"
    if (nodes := _more_nodes(recipe, rates, wishes)) is not None:
        yield _enough(*nodes)


def _several(recipe: Recipe, rates: Rates, wishes: Wishes) -> Iterator[str]:
    """The first way out that changes several things at once, where none does alone."""
    free = _free(wishes)
    if free != wishes and (nodes := _more_nodes(recipe, rates, free)):
        yield f"without your sizes and recomputation {_enough(*nodes)}"
        return
    if recipe.seq_length % ROUND and (near := round(recipe.seq_length / ROUND) * ROUND):
        even, few = (
            replace(recipe, seq_length=near),
            f"few sizes divide {recipe.seq_length} tokens: with --seq-length {near}",
        )
        alone = "" if free == wishes else " and without your sizes and recomputation"
        if found := _fits(even, rates, free):
            yield f"{few}{alone} {found.layout} fits"
        elif nodes := _more_nodes(even, rates, free):
            yield f"{few}{alone} {_enough(*nodes)}"


def _free(wishes: Wishes) -> Wishes:
    """Without what the user pinned of the layout."""
    return replace(wishes, tp=None, pp=None, vp=None, cp=None, ep=None, etp=None, micro_batch_size=None, recompute=None)


def _enough(nodes: int, found: Candidate) -> str:
    return f"{nodes} nodes ({found.layout.world} GPUs) are enough: {found.layout} fits with {gib(found.memory.peak)}"


def _fits(recipe: Recipe, rates: Rates, wishes: Wishes) -> Candidate | None:
    """The fastest layout that fits on all GPUs; None when there is none."""
    search = Search(recipe, rates, replace(wishes, top=1))
    leanest = search.least(keep=1, sizes=(rates.world_size,))
    if not leanest.ranked:
        return None
    found = Search(recipe, rates, wishes).run(keep=1, sizes=(rates.world_size,))
    return found.ranked[0] if found.ranked else leanest.ranked[0]


def _more_nodes(recipe: Recipe, rates: Rates, wishes: Wishes) -> tuple[int, Candidate] | None:
    """The fewest nodes, doubling or a power of two, on which something fits."""
    per = max(1, rates.gpus_per_node)
    here = max(1, rates.world_size // per)
    per = min(per, rates.world_size) if here == 1 else per
    for nodes in sorted({base << n for base in (1, here) for n in range(MOST_NODES.bit_length())}):
        if not here < nodes <= MOST_NODES:
            continue
        larger = replace(rates, world_size=nodes * per)
        leanest = Search(recipe, larger, wishes).least(keep=1, sizes=(larger.world_size,))
        if leanest.ranked:
            return nodes, leanest.ranked[0]
    return None
