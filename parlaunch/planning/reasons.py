"""Why this layout: sentences that hold the chosen sizes against their neighbours, with the numbers that decided."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from parlaunch.estimate.values import MEMORY_PARTS, TIME_PARTS, Memory, breakdown, components
from parlaunch.frozen import dataclass
from parlaunch.hardware.cpu import CPU_RANK
from parlaunch.model.layout import NO_RECOMPUTE, Layout
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Candidate
from parlaunch.planning.search import Search
from parlaunch.planning.space import exchange, inside, reach
from parlaunch.units import gib, percent


def largest(memory: Memory) -> tuple[str, int]:
    """The component that takes most, as a word, and its bytes."""
    sizes = components(memory)
    part = max(MEMORY_PARTS, key=lambda p: sizes[p.name])
    return part.phrase, sizes[part.name]


def needs(memory: Memory) -> str:
    """ "needs 91.2 GiB of 73.3 GiB"; where it fits, what that leaves its allocator."""
    if memory.fits:
        return f"needs {gib(memory.peak)} of {gib(memory.capacity)}, and {crowding(memory)}"
    return f"needs {gib(memory.peak)} of {gib(memory.limit)}"


def crowding(memory: Memory) -> str:
    """What becomes of a layout that fits, where its allocator has too little left."""
    return (
        f"the {gib(memory.capacity - memory.peak)} that it leaves free are less than the {gib(memory.spare)} with which the allocator "
        "keeps what it frees: the run may take many times as long"
    )


def slower(than: Candidate, other: Candidate) -> str:
    """ "12% slower", "1.4% faster", "no faster"."""
    share = other.estimate.iteration_time_s / than.estimate.iteration_time_s - 1
    if abs(share) < 0.005:
        return "no faster"
    return f"{percent(abs(share))} {'slower' if share > 0 else 'faster'}"


def where(than: Candidate, other: Candidate) -> str:
    """What of the other's iteration takes more time: the part that grew most, with its share of the iteration."""
    mine, theirs = breakdown(than.estimate), breakdown(other.estimate)
    part = max(TIME_PARTS, key=lambda p: theirs[p.name] - mine[p.name])
    grown = theirs[part.name] - mine[part.name]
    return f"{part.phrase} takes {grown / than.estimate.iteration_time_s:.1%} of the iteration more"


@dataclass(frozen=True, slots=True)
class _Neighbour:
    """The same layout with one size changed, and how it does."""

    name: str
    value: int
    verdict: str  # sentence without subject: "needs 91 GiB of 73 GiB"


def _verdict(search: Search, chosen: Candidate, other: Layout) -> str | None:
    """How the other layout does beside the chosen one; None when Megatron refuses it."""
    if not search.legal(other):
        return None
    memory = search.memory(other)
    if not memory.fits:
        return needs(memory)
    return f"is {slower(chosen, search.candidate(other))}"


def _beside(search: Search, chosen: Candidate, name: str, values: tuple[int, ...]) -> Iterator[_Neighbour]:
    x = chosen.layout
    for value in values:
        if value < 1 or value == getattr(x, name):
            continue
        other = _with(search, x, name, value)
        verdict = None if other is None else _verdict(search, chosen, other)
        if verdict is not None:
            yield _Neighbour(name, value, verdict)


def _with(search: Search, x: Layout, name: str, value: int) -> Layout | None:
    """The layout with one size changed and the rest as near as it can be; None when no split of layers exists."""
    changed = {name: value}
    if name == "cp":
        return replace(x, cp=value, cp_comm_type=exchange(search.recipe, search.wishes, value))
    if name != "pp":
        return replace(x, **changed)  # type: ignore[arg-type]
    if x.world % (x.tp * x.cp * value):
        return None
    for vp in (x.vp if value > 1 else None, None):
        base = replace(x, pp=value, vp=vp, layers_per_chunk=None)
        for _, made in search.bases(base):
            if made.vp == vp:
                return made
    return None


def because(search: Search, chosen: Candidate) -> tuple[str, ...]:
    """Why it is slow, if it is, and a sentence on each of the sizes that were ours to choose."""
    said = [make(search, chosen) for make in _SENTENCES]
    return tuple(s for s in said if s)


LOW_MFU = 0.35
"""Below this share of the peak a reader asks what is wrong: published runs of this kind of software are above it."""


def _slow(search: Search, c: Candidate) -> str:
    """What most of the time goes to, where little of it goes to the model's own arithmetic."""
    e, recipe, x = c.estimate, search.recipe, c.layout
    if e.mfu >= LOW_MFU or search.rates.product.name == CPU_RANK.name:
        return ""
    whole, parts = e.breakdown.total, breakdown(e)
    useful = e.mfu * e.iteration_time_s
    lost = parts | {"compute_s": parts["compute_s"] - useful}
    worst = max(TIME_PARTS, key=lambda p: lost[p.name])
    head, share = f"MFU {percent(e.mfu)}", percent(parts[worst.name] / whole)
    batch = f"a batch of {recipe.global_batch_size:,} on {x.world:,} GPUs"
    if worst.name == "compute_s":
        return (
            f"{head}: compute alone runs at {percent(useful / parts['compute_s'])} of the peak, {_narrow(recipe, x)}."
        )
    if worst.name in ("pp_bubble_s", "pp_p2p_s"):
        batches = f"{x.num_microbatches} micro batch{'es' if x.num_microbatches > 1 else ''}"
        return f"{head}: {batch} leaves {batches} for {x.pp} stages, and {worst.phrase} takes {share} of the iteration."
    if worst.name in ("tp_s", "cp_s", "ep_s"):
        return f"{head}: {worst.phrase} takes {share} of the iteration."
    tokens = recipe.global_batch_size * recipe.seq_length / x.world
    return f"{head}: {batch} is {tokens:,.0f} tokens a GPU, and {worst.phrase} takes {share} of the iteration."


def _narrow(recipe: Recipe, x: Layout) -> str:
    """What makes the arithmetic of this layout slow."""
    a, tokens = recipe.architecture, x.micro_batch_size * recipe.seq_length // x.cp
    if x.recompute.granularity == "full":
        return "since full recomputation does the forward pass twice"
    if a.num_moe_experts and a.moe_ffn_hidden_size:
        return f"with experts {a.moe_ffn_hidden_size // x.etp:,} wide"
    split = f", split over TP {x.tp}" if x.tp > 1 else ""
    return f"with {tokens:,} tokens at a time in matrices {a.hidden_size:,} wide{split}"


def _compare(name: str, found: list[_Neighbour]) -> str:
    return "; ".join(f"{name} {n.value} {n.verdict}" for n in found) if found else ""


def _tensor(search: Search, c: Candidate) -> str:
    x = c.layout
    beside = _compare("TP", list(_beside(search, c, "tp", (x.tp // 2 if x.tp % 2 == 0 else 0, x.tp * 2))))
    if x.tp == 1:
        return f"TP 1: {beside}." if beside else ""
    place = (
        f"inside one NVLink domain of {search.rates.nvlink_domain}"
        if search.rates.nvlink_domain > 1
        else "inside the node"
    )
    if not inside(x.tp, search.rates, x.world):
        place = f"beyond the {reach(search.rates)} GPUs that NVLink joins: every layer waits for the network"
    split = ", with sequence parallelism" if search.recipe.features.sequence_parallel else ""
    return f"TP {x.tp}, {place}{split}{': ' + beside if beside else ''}."


def _pipeline(search: Search, c: Candidate) -> str:
    x = c.layout
    if x.fsdp:
        return f"FSDP instead of pipeline stages: weights, gradients and optimizer are spread over {x.dp * x.cp} GPUs."
    beside = _compare("PP", list(_beside(search, c, "pp", (x.pp // 2 if x.pp % 2 == 0 else 0, x.pp * 2))))
    if x.pp == 1:
        return f"PP 1, so no bubble{': ' + beside if beside else ''}."
    bubble = c.estimate.breakdown.pp_bubble_s / c.estimate.iteration_time_s
    turns = f" with VP {x.vp}" if x.vp else ""
    plain = ""
    if x.vp:
        flat = _with(search, replace(x, vp=None), "pp", x.pp)
        verdict = None if flat is None else _verdict(search, c, flat)
        plain = f"without interleaving it {verdict}" if verdict else ""
    rest = "; ".join(part for part in (plain, beside) if part)
    return f"PP {x.pp}{turns}: the bubble is {percent(bubble)} of the iteration{'; ' + rest if rest else ''}."


def _context(search: Search, c: Candidate) -> str:
    x, seq = c.layout, search.recipe.seq_length
    beside = list(_beside(search, c, "cp", (x.cp // 2 if x.cp % 2 == 0 else 0, x.cp * 2)))
    if x.cp == 1 and (seq < 8192 or not beside):
        return ""
    text = _compare("CP", beside)
    return f"CP {x.cp}: {seq // x.cp:,} of {seq:,} tokens a GPU{'; ' + text if text else ''}."


def _experts(search: Search, c: Candidate) -> str:
    x, experts = c.layout, search.recipe.architecture.num_moe_experts
    if not experts:
        return ""
    beside = _compare("EP", list(_beside(search, c, "ep", (x.ep // 2 if x.ep % 2 == 0 else 0, x.ep * 2))))
    place = ""
    if x.ep > 1:
        crossing = x.ep * x.etp > reach(search.rates)
        place = ", across NVLink domains" if crossing else f", inside the NVLink domain of {search.rates.nvlink_domain}"
    return f"EP {x.ep}{place}: {experts // x.ep} of {experts} experts a GPU{'; ' + beside if beside else ''}."


def _batch(search: Search, c: Candidate) -> str:
    x = c.layout
    beside = _compare(
        "micro batch", list(_beside(search, c, "micro_batch_size", (x.micro_batch_size // 2, x.micro_batch_size * 2))),
    )  # fmt: skip
    return (
        f"Micro batch {x.micro_batch_size}, {x.num_microbatches} of them on "
        f"{f'each of {x.dp} replicas' if x.dp > 1 else 'the one replica'}"
        f"{': ' + beside if beside else ''}."
    )


def _recompute(search: Search, c: Candidate) -> str:
    x = c.layout
    if not x.recompute.granularity:
        return ""
    without = _verdict(search, c, replace(x, recompute=NO_RECOMPUTE))
    return f"Recompute {x.recompute}: without it the layout {without}." if without else f"Recompute {x.recompute}."


_SENTENCES: tuple[Callable[[Search, Candidate], str], ...] = (
    _slow, _tensor, _pipeline, _experts, _context, _batch, _recompute,
)  # fmt: skip
