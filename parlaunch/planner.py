"""From machine, recipe and wishes to a plan: the layout, its neighbours, and the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import lcm

from parlaunch.advice import no_layout
from parlaunch.errors import UsageError
from parlaunch.evidence import Published, proven, published
from parlaunch.layout import FULL_RECOMPUTE, NO_RECOMPUTE, Layout
from parlaunch.machine import Cluster
from parlaunch.plan import Candidate, Plan, Refusal, Wishes
from parlaunch.preference import CANDIDATES, near_tie, preferred
from parlaunch.rates import Rates, rates_of
from parlaunch.reasons import because, needs, slower, where
from parlaunch.recipe import PLACEHOLDER, Recipe, sample_tokens
from parlaunch.rules import violations
from parlaunch.rules import why_not as rule_broken
from parlaunch.search import Search, grid_of, kind_of, nearest_batches, nearest_worlds
from parlaunch.space import cp_comm_type, inside, reach, splits
from parlaunch.units import gib, percent, seconds

SIZES = ("tp", "pp", "vp", "cp", "ep", "etp", "micro_batch_size")


def plan(cluster: Cluster, recipe: Recipe, wishes: Wishes, *, rates: Rates | None = None) -> Plan:
    """The best layout for `recipe` on `cluster` that keeps the wishes, with alternatives and reasons.

    With every size pinned it is that layout, evaluated, fitting or not. `rates`: the machine's figures when they were
    measured; else its data sheet.

    Raises `UsageError` for pins that no number of GPUs or no batch allows, `NoLayoutError` when nothing fits.
    """
    rates = rates or rates_of(cluster)
    recipe = _as_wished(recipe, wishes)
    _check(recipe, rates, wishes)
    search = Search(recipe, rates, wishes)
    found = (
        search.run(keep=max(wishes.top + 1, CANDIDATES[kind_of(recipe)]))
        if wishes.objective == "time"
        else search.least(keep=wishes.top + 1)
    )
    ranked = found.ranked
    if not ranked:
        fixed = _evaluation(search)
        if fixed is None:
            raise _nothing(search)
        ranked = [fixed]
    evidence = published(recipe, rates) if wishes.evidence else ()
    chosen = ranked[0]
    sentences: tuple[str, ...] = ()
    if wishes.objective == "time":
        ranked = preferred(ranked, recipe, rates)
        chosen = ranked[0]
        taken = proven(evidence, search, chosen)
        if taken is None:
            sentences = near_tie(chosen, ranked, recipe, rates)
        else:
            chosen, sentence = taken
            sentences = (sentence,)
    others = [c for c in ranked if grid_of(c.layout) != grid_of(chosen.layout)]
    return Plan(
        recipe=recipe,
        cluster=cluster,
        chosen=chosen,
        because=(*sentences, *because(search, chosen))[:6],
        alternatives=tuple(others[: wishes.top]),
        rejected=_rejected(search, chosen),
        warnings=_warnings(search, chosen),
        evidence=tuple(_shown(row, chosen) for row in evidence[:5]),
    )


def why_not(cluster: Cluster, recipe: Recipe, layout_pins: Mapping[str, int], wishes: Wishes, plan: Plan) -> str:
    """Why the plan does not use these sizes: the rule, the memory, or how much slower and where."""
    rates = rates_of(cluster)
    given = {name: value for name, value in layout_pins.items() if name in SIZES}
    search = Search(recipe, rates, replace(wishes, **given))  # type: ignore[arg-type]
    found = search.run(keep=1)
    if found.ranked:
        other, mine = found.ranked[0], plan.chosen
        if other.layout == mine.layout:
            return f"this is the plan: {other.layout}."
        share = slower(mine, other)
        times = f"{seconds(other.estimate.iteration_time_s)} against {seconds(mine.estimate.iteration_time_s)}"
        text = f"it runs and fits as {other.layout}, and is {share} ({times})"
        return f"{text}: {where(mine, other)}." if share.endswith("slower") else f"{text}."
    layout = _pinned_layout(recipe, rates, search.wishes)
    sentence = rule_broken(layout, recipe, rates)
    if sentence is not None:
        return f"Megatron refuses {layout}: {sentence}."
    memory = search.least(keep=1).closest
    if memory is None:
        return f"no layout with these sizes keeps Megatron's rules on {rates.world_size} GPUs."
    return f"its leanest form, {memory[0]}, {needs(memory[1])}."


def frontier(
    cluster: Cluster, recipe: Recipe, wishes: Wishes, *, limit: int = 200, rates: Rates | None = None
) -> tuple[Candidate, ...]:
    """Memory against time: legal layouts, with and without recomputation, at most `limit`, fastest bound first.

    Layouts that do not fit are among them; the report draws the limit through the points.
    """
    rates = rates or rates_of(cluster)
    search = Search(_as_wished(recipe, wishes), rates, wishes)
    points: dict[Layout, Candidate] = {}
    for _, node in sorted(search.nodes(rates.world_size, everything=True), key=lambda n: (n[0], str(n[1]))):
        bases = sorted(search.bases(node), key=lambda b: b[0])
        for base in dict.fromkeys(b for _, b in (*bases[:1], *bases[-1:])):
            for again in (NO_RECOMPUTE, FULL_RECOMPUTE) if wishes.recompute is None else (wishes.recompute,):
                layout = replace(base, recompute=again)
                if len(points) < limit and search.legal(layout):
                    points[layout] = search.candidate(layout)
        if len(points) >= limit:
            break
    return tuple(points.values())


# --- Before the search ------------------------------------------------------------------------------------------------


def _as_wished(recipe: Recipe, wishes: Wishes) -> Recipe:
    """The recipe with FSDP as the user wants it; everything else of it is not ours to change."""
    if wishes.fsdp is None or wishes.fsdp == recipe.features.fsdp:
        return recipe
    return replace(recipe, features=replace(recipe.features, fsdp=wishes.fsdp))


def _check(recipe: Recipe, rates: Rates, wishes: Wishes) -> None:
    """Raise `UsageError` for what no search can answer."""
    if not recipe.architecture.complete:
        raise UsageError(
            f"{recipe.name} is a template: it does not say how large its model is",
            hint="give the model with --model-config FILE, a Hugging Face config.json",
        )
    for name in SIZES:
        value = getattr(wishes, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} {value} is not 1 or more", hint="leave it out to let the planner choose")
    if not 0 <= wishes.headroom < 1:
        raise UsageError(f"headroom {wishes.headroom} is no share of memory", hint="for example --headroom 0.08")
    if recipe.global_batch_size < 1 or recipe.seq_length < 1:
        raise UsageError(
            f"a batch of {recipe.global_batch_size} sequences of {recipe.seq_length} tokens is nothing to train"
        )
    # The first broken rule of the sizes that are pinned, whatever the others will be.
    alone = replace(_pinned_layout(recipe, rates, wishes), world=10**9)
    for rule, sentence in violations(alone, recipe, rates):
        if rule.id in _PINS_OF and all(getattr(wishes, n) is not None for n in _PINS_OF[rule.id]):
            raise UsageError(f"{sentence}", hint=_divisor_hint(rule.id, recipe))


_PINS_OF: Mapping[str, tuple[str, ...]] = {
    "tp-heads": ("tp",), "tp-groups": ("tp",), "tp-ffn": (), "tp-mamba-heads": ("tp",), "cp-seq": ("cp",),
    "ep-needs-moe": (), "ep-divides": ("ep",), "ep-hybridep-domain": ("ep",), "seq-match": (), "prec-gpu": (),
    "ep-deepep-gpu": (), "ep-hybridep-gpu": (), "ep-dispatcher": (), "cg-impl": (), "rc-modules": ("recompute",),
    "rc-modes": ("recompute",), "rc-fp8": ("recompute",), "tp-bias-moe": ("etp",), "mbs-offline-pack": ("micro_batch_size",),
    "opt-precision": (), "cg-scopes": (), "ep-group-topk": (), "ep-paged-stash": (), "off-fine": (),
}  # fmt: skip
"""Rules that the pinned sizes break by themselves; with no pin named, the recipe on this machine does."""


def _divisor_hint(rule: str, recipe: Recipe) -> str:
    a = recipe.architecture
    return {
        "tp-heads": f"TP must divide {a.num_attention_heads}",
        "ep-divides": f"EP must divide {a.num_moe_experts}",
        "ep-needs-moe": "leave --ep and --etp out",
        "cp-seq": f"CP must divide {recipe.seq_length // 2}",
        "ep-hybridep-domain": "take EP 64 or less",
        "ep-deepep-gpu": "model.moe_token_dispatcher_type=alltoall runs everywhere",
        "ep-hybridep-gpu": "model.moe_token_dispatcher_type=alltoall runs everywhere",
    }.get(rule, "")


def _pinned_layout(recipe: Recipe, rates: Rates, wishes: Wishes) -> Layout:
    """The pinned sizes as a layout; what is free is 1, equal, and nothing."""
    pp, vp, cp = wishes.pp or 1, wishes.vp, wishes.cp or 1
    vp = vp if vp and vp > 1 else None
    even = splits(recipe.architecture, pp, vp) if pp > 1 else (None,)
    return Layout(
        world=rates.world_size, tp=wishes.tp or 1, pp=pp, vp=vp, cp=cp, ep=wishes.ep or 1, etp=wishes.etp or 1,
        micro_batch_size=wishes.micro_batch_size or 1, global_batch_size=recipe.global_batch_size,
        recompute=wishes.recompute or NO_RECOMPUTE, fsdp=bool(recipe.features.fsdp),
        cp_comm_type=cp_comm_type(recipe, cp), layers_per_chunk=even[0] if even else None,
    )  # fmt: skip


# --- After it ---------------------------------------------------------------------------------------------------------


def _evaluation(search: Search) -> Candidate | None:
    """With every size pinned: that layout in its leanest form, though it does not fit; None when a size is free or the
    layout is not legal."""
    w, moe = search.wishes, search.recipe.architecture.num_moe_experts
    if None in (w.tp, w.pp, w.cp, w.micro_batch_size) or (moe and w.ep is None):
        return None
    closest = search.least(keep=1, sizes=(search.rates.world_size,)).closest
    if closest is None:
        return None
    layout = closest[0]
    return search.candidate(layout)


def _nothing(search: Search) -> UsageError | Exception:
    """The error for a search that found nothing: sizes that no world takes, or memory."""
    recipe, rates, wishes = search.recipe, search.rates, search.wishes
    leanest = search.least(keep=1)
    if leanest.closest is not None:
        return no_layout(search, leanest.closest)
    layout = _pinned_layout(recipe, rates, wishes)
    sentence = rule_broken(layout, recipe, rates)
    pins = {name: getattr(wishes, name) for name in SIZES if getattr(wishes, name) is not None}
    said = " ".join(f"{n}={v}" for n, v in pins.items())
    block = layout.model_parallel
    grid = layout.pp * max(layout.tp * layout.cp, layout.ep * layout.etp)
    world = rates.world_size
    broken = next((rule.id for rule, _ in violations(layout, recipe, rates)), None)
    if pins and broken in ("grid-dense", "grid-expert"):
        step = lcm(block, layout.pp * layout.ep * layout.etp)
        near = sorted({max(step, world // step * step), -(-world // step) * step})
        return UsageError(
            f"{said} does not go into {world} GPUs: {sentence or f'it takes {grid}'}",
            hint="numbers of GPUs that work: " + ", ".join(map(str, near)),
        )
    if broken in (None, "gbs-divides"):
        batches = nearest_batches(recipe, max(1, layout.dp * layout.micro_batch_size))
        worlds = nearest_worlds(recipe, world, block)
        hint = (
            f"nearest batches: {', '.join(map(str, batches))}; nearest numbers of GPUs: {', '.join(map(str, worlds))}"
        )
    else:
        hint = "leave one of these sizes out, and the planner chooses it" if pins else ""
    return UsageError(
        f"no layout keeps Megatron's rules{f' with {said}' if said else ''} on {world} GPUs: "
        f"{sentence or f'global batch {recipe.global_batch_size} does not spread over them'}",
        hint=hint,
    )


def _rejected(search: Search, chosen: Candidate) -> tuple[Refusal, ...]:
    """Layouts beside the chosen one that a reader might expect, with what speaks against them: a rule, the NVLink domain,
    the memory. Slower ones are among the reasons and the alternatives."""
    x, out = chosen.layout, []
    changes: list[dict[str, int]] = [{"tp": x.tp * 2}, {"cp": x.cp * 2}, {"micro_batch_size": x.micro_batch_size * 2}]
    if search.recipe.architecture.num_moe_experts:
        changes.append({"ep": x.ep * 2})
    changes += [{name: getattr(x, name) // 2} for name in ("tp", "cp", "ep") if getattr(x, name) % 2 == 0]
    for change in changes:
        other = replace(x, **change, cp_comm_type=cp_comm_type(search.recipe, change.get("cp", x.cp)))  # type: ignore[arg-type]
        if other.dp < 1 or other.edp < 1:
            continue  # more GPUs than there are
        sentence = rule_broken(other, search.recipe, search.rates)
        if sentence is None and not inside(other.tp, search.rates, other.world):
            sentence = f"TP {other.tp} leaves the NVLink domain of {reach(search.rates)} GPUs"
        if sentence is None and not (memory := search.memory(other)).fits:
            sentence = needs(memory)
        if sentence is not None:
            out.append(Refusal(layout=other, reason=sentence))
    return tuple(out)


def _warnings(search: Search, chosen: Candidate) -> tuple[str, ...]:
    x, rates, m = chosen.layout, search.rates, chosen.memory
    out = [f"assumed: {what}" for what in rates.assumed]
    if x.world < rates.world_size:
        out.append(
            f"{rates.world_size - x.world} of {rates.world_size} GPUs stay idle, the last in rank order: "
            f"no layout on all of them is as fast"
        )
    if x.tp > 1 and not inside(x.tp, rates, x.world):
        out.append(f"TP {x.tp} crosses the NVLink domain of {reach(rates)} GPUs: expect a fraction of the speed")
    recipe = search.recipe
    if recipe.architecture.kind == "diffusion" and recipe.seq_length == sample_tokens(recipe.model, PLACEHOLDER):
        out.append(
            f"assumed: {recipe.seq_length:,} tokens a sample, as in the recipe's mock data; --seq-length says yours"
        )
    if m.fits and m.peak * (1 + m.error_band) > m.capacity:
        out.append(
            f"tight: {gib(m.peak)} ± {percent(m.error_band)} of {gib(m.capacity)}; the first iterations will tell"
        )
    return tuple(out)


def _shown(row: Published, chosen: Candidate) -> dict[str, object]:
    ours = f"ours: predicted {chosen.estimate.model_tflops_per_gpu:,.0f} TFLOP/s a GPU"
    return {**row.facts(), "sentence": f"{row.sentence()}; {ours}"}


__all__ = ["frontier", "plan", "why_not"]
