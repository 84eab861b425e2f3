"""From machine, recipe and wishes to a plan: the layout, its neighbours, and the reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import lcm
from typing import Any

from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.estimate.cross_entropy import with_loss_of
from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.timing.bands import WIDE
from parlaunch.estimate.training import Goal, training
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.cpu import device_of
from parlaunch.hardware.installed import Installed, differing, installed_on
from parlaunch.hardware.mixed import cost
from parlaunch.hardware.paces import learnt, learnt_of_split
from parlaunch.hardware.rates import HEADROOM, Rates, rates_of
from parlaunch.model.layout import FULL_RECOMPUTE, NO_RECOMPUTE, SIZES, Layout
from parlaunch.model.precision import QUANTIZED
from parlaunch.model.recipe import Recipe
from parlaunch.planning.advice import no_layout, roomier
from parlaunch.planning.as_written import as_recipe, as_started
from parlaunch.planning.evidence import Published, published
from parlaunch.planning.experience import facts, failed_switches, proven_here, runs_like, without_failed
from parlaunch.planning.objective import OBJECTIVES, Objective
from parlaunch.planning.plan import Candidate, Plan, Refusal, Wishes
from parlaunch.planning.reasons import because, needs, slower, where
from parlaunch.planning.search import Search, grid_of, nearest_batches, nearest_worlds
from parlaunch.planning.space import cuts, divisors, exchange, inside, reach
from parlaunch.planning.switching import BINDING, NOTICED, Chooser, bound, switched, why_not_switch
from parlaunch.rules import fewest_gpus, violations
from parlaunch.rules import why_not as rule_broken
from parlaunch.rules.switches import DEEPEP_GPU, GRAPHS, HYBRIDEP_GPU
from parlaunch.rules.working import instead
from parlaunch.switches.table import CPU_RANKS, SWITCHES, not_on_cpu
from parlaunch.switches.wanted import AS_RECIPE, Wanted
from parlaunch.units import gib, percent, seconds


def plan(
    cluster: Cluster,
    recipe: Recipe,
    wishes: Wishes,
    *,
    rates: Rates | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    software: Installed | None = None,
) -> Plan:
    """The best layout for `recipe` on `cluster` that keeps the wishes, with alternatives and reasons.

    With every size pinned it is that layout, evaluated, fitting or not. `rates`: the machine's figures when they were
    measured; else its data sheet. `history`: rows of one's own runs (`parlaunch.check.remembered`), of which those of this training
    on such a machine are evidence. `software`: what is installed there; else as the cluster's probe says, or the newest release.

    Raises `UsageError` for pins that no number of GPUs or no batch allows, `NoLayoutError` when nothing fits.
    """
    rates = rates or rates_of(cluster)
    # As recipe switches have it: a dispatcher that runs on none of these GPUs is replaced. Ours to choose, it is one of the choices;
    # with a paged stash there is no other.
    choosing = wishes.switches.open("dispatcher") and device_of(cluster) == "cuda" and not recipe.features.paged_stash
    replaced = None if choosing else _dispatcher_problem(recipe, rates)
    recipe = _as_wished(recipe, wishes) if choosing else _as_run(recipe, wishes, rates)
    software = software or installed_on(cluster)
    recipe = with_loss_of(recipe, software.version("transformer_engine"))
    failed = failed_switches(history, rates) if wishes.evidence else {}
    chooser = _chooser(cluster, recipe, rates, software, wishes, failed)
    _check(chooser.fullest, rates, wishes)
    objective = OBJECTIVES[wishes.objective]
    search, ranked = _walked(chooser, wishes, objective)
    if not ranked and wishes.recompute is None:
        # Graphs or an overlap may be all that is in the way of full recomputation.
        freed = _chooser(cluster, recipe, rates, software, replace(wishes, recompute=FULL_RECOMPUTE), failed)
        if freed.open != chooser.open:
            chooser = freed
            search, ranked = _walked(chooser, wishes, objective)
    ranked = ranked or [_as_pinned(chooser, wishes)]
    if objective.switches:
        ranked = chooser.together(search, ranked, wishes)
    evidence = published(recipe, rates) if wishes.evidence else ()
    free = [row.name for row in SWITCHES if row.chosen and chooser.wanted.open(row.name)]
    runs = runs_like(history, recipe, rates, free=free) if wishes.evidence else ()
    left, avoided = without_failed(ranked, runs)
    taken = objective.take(left, search, evidence, chooser)
    mine = proven_here(runs, wishes, taken.chosen, evaluate=partial(chooser.held, search))
    if wishes.objective == "time" and mine is not None:
        taken = replace(taken, chosen=mine[0], because=(mine[1],))
    chosen = taken.chosen
    others = [c for c in left if grid_of(c.layout) != grid_of(chosen.layout)]
    beside = objective.beside(chosen, others, search, chooser, wishes.top)
    if chosen.features is not None or chooser.fixed is not recipe:  # reasons are about what will be on
        configured = replace(recipe, features=chosen.features or chooser.fixed.features)
        search = Search(configured, rates, wishes, crowded=search.crowded)
        chosen = replace(chosen, features=search.recipe.features)
    started = as_started(cluster, recipe, rates)
    return Plan(
        recipe=recipe,
        cluster=cluster,
        rates=rates,
        chosen=chosen,
        objective=wishes.objective,
        because=(*_failed(chooser), *avoided, *taken.because, *because(search, chosen)),
        alternatives=tuple(beside),
        rejected=_rejected(search, chosen),
        warnings=(
            *((f"alltoall dispatches tokens: {replaced}",) if replaced else ()),
            *filter(None, (cost(cluster),)),
            *differing(cluster),
            *_warnings(search, chosen),
        ),
        evidence=(*(facts(run, recipe, rates) for run in runs[-5:]), *(_shown(row, chosen) for row in evidence[:5])),
        switches=(
            *switched(chooser, chosen),
            *(bound(chooser.recipe, chosen, rates, started) if wishes.switches.auto else ()),
        ),
        as_recipe=as_recipe(recipe, started, headroom=wishes.headroom),
        software=chooser.place.installed,
    )


def with_candidate(plan: Plan, candidate: Candidate) -> Plan:
    """The plan with another of its layouts, and with that one's switches."""
    if candidate == plan.chosen:
        return plan
    asked = Wanted(fixed=tuple((s.name, s.value) for s in plan.switches if s.recipe_value is None))
    chooser = _chooser(plan.cluster, plan.recipe, plan.rates, plan.software, Wishes(switches=asked))
    made = switched(chooser, candidate)
    if any(s.name == BINDING for s in plan.switches):
        made += bound(plan.recipe, candidate, plan.rates, as_started(plan.cluster, plan.recipe, plan.rates))
    return replace(plan, chosen=candidate, switches=made)


def _chooser(
    cluster: Cluster,
    recipe: Recipe,
    rates: Rates,
    software: Installed | None,
    wishes: Wishes,
    failed: Mapping[tuple[str, str], str] | None = None,
) -> Chooser:
    """The choice of switches here; on CPU ranks nothing is chosen, and of what the user fixed all runs without CUDA.

    Raises `UsageError` for a switch that CPU ranks are asked for and cannot have.
    """
    wanted = wishes.switches
    if device_of(cluster) == "cpu":
        if refused := not_on_cpu(dict(wanted.fixed)):
            raise UsageError(
                f"--switches {refused} does not run on CPU ranks: {CPU_RANKS}",
                hint="leave it out, or plan it for GPUs: --hardware dgx-h100:1",
            )
        wanted = Wanted(fixed=wanted.fixed)
    return Chooser(recipe, rates, software or installed_on(cluster), wanted, failed, wishes.recompute)


def _walked(chooser: Chooser, wishes: Wishes, objective: Objective) -> tuple[Search, Sequence[Candidate]]:
    """The first search that finds a layout, and what it found: with everything on; with nothing on that costs memory; then either
    with what fits and leaves too little to run at speed."""
    fulls = (True, False) if chooser.open and objective.switches else (objective.switches,)
    for crowded in (False, True):
        searches = [_search(chooser, wishes, full=full, crowded=crowded) for full in fulls]
        for search in searches:
            if ranked := objective.search(search, wishes.top + 1).ranked:
                return search, ranked
        if not any(search.turned_away for search in searches):
            break
    return searches[-1], ()


def _search(chooser: Chooser, wishes: Wishes, *, full: bool, crowded: bool) -> Search:
    """The search over layouts: with everything on that helps, or with what the recipe has; less what each layout forbids."""
    if not chooser.open:
        whole = None if chooser.fixed is chooser.recipe else lambda _layout, _recompute: chooser.fixed
        forbids = None if chooser.wanted == AS_RECIPE else chooser.forbids
        return Search(chooser.fixed, chooser.rates, wishes, at=whole, forbids=forbids, crowded=crowded)
    if full:
        return Search(chooser.fullest, chooser.rates, wishes, at=chooser.at, forbids=chooser.forbids, crowded=crowded)
    return Search(chooser.fixed, chooser.rates, wishes, at=chooser.plain, forbids=chooser.forbids, crowded=crowded)


def _failed(chooser: Chooser) -> Iterator[str]:
    """A sentence for each switch that is left off because it failed here."""
    for (name, value), day in chooser.place.failed.items():
        yield f"Avoided: {name}={value} failed here on {day}; --switches {name}={value} tries it again."


def _as_pinned(chooser: Chooser, wishes: Wishes) -> Candidate:
    """The layout whose every size is pinned, where no search finds one that fits. Raises `UsageError` or `NoLayoutError` where a size is
    free, or the layout cannot be."""
    # What is wrong with it may lie in no switch: with what runs here, and nothing else looked at.
    rates = chooser.rates
    plain = Search(chooser.without_refused(_as_run(chooser.fixed, wishes, rates)), rates, wishes)
    fixed = _evaluation(plain)
    if (sentence := _refused(chooser, plain, fixed)) is not None:
        raise UsageError(sentence, hint="leave it out, or the size that excludes it")
    if fixed is None:
        raise _nothing(plain)
    return fixed


def _refused(chooser: Chooser, plain: Search, fixed: Candidate | None) -> str | None:
    """Why no layout runs with what the user fixed, though one does without; None where that is not the trouble. `fixed`: the
    layout whose every size is pinned, fitting or not."""
    if not chooser.wanted.fixed and not chooser.said:
        return None
    found = [fixed] if fixed is not None else plain.run(keep=1).ranked
    if not found:
        return None
    layout = found[0].layout
    if typed := chooser.unsaid(layout, chooser.fixed):
        return typed
    sentence = chooser.forbids(layout, chooser.fixed)
    return f"--switches: {sentence}" if sentence and chooser.wanted.fixed else sentence


def lasting(plan: Plan, goal: Goal) -> Plan:
    """The plan with what the whole run takes in time and money, as far as the goal or the recipe says how long it is.

    Raises `UsageError` for a goal that contradicts itself or is never reached.
    """
    said = training(
        goal, plan.recipe, plan.chosen.estimate, gpus=plan.cluster.world_size, nodes=len(plan.cluster.nodes)
    )
    return replace(plan, training=said or (plan.training if goal == Goal() else None))


def why_not(plan: Plan, layout_pins: Mapping[str, int], wishes: Wishes) -> str:
    """Why the plan does not use these sizes: the rule, the memory, or how much slower and where."""
    recipe, rates = plan.configured, plan.rates
    given = {name: value for name, value in layout_pins.items() if name in SIZES}
    pinned = replace(wishes, **given)  # type: ignore[arg-type]
    search = Search(recipe, rates, pinned)
    found = search.run(keep=1)
    if not found.ranked and search.turned_away:
        found = Search(recipe, rates, pinned, crowded=True).run(keep=1)
    if found.ranked:
        other, mine = found.ranked[0], plan.chosen
        if other.layout == mine.layout:
            return f"this is the plan: {other.layout}."
        if mine.memory.at_speed and not other.memory.at_speed:
            return f"{other.layout} {needs(other.memory)}."
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


def why_not_switched(plan: Plan, name: str, value: str, wishes: Wishes) -> str:
    """Why the plan does not have a switch so, whoever set it: a rule, the memory, what it would cost, or its doubtful gain."""
    chooser = _chooser(
        plan.cluster, plan.recipe, plan.rates, plan.software, replace(wishes, switches=Wanted(auto=True))
    )
    asked = {s.name: s.value for s in plan.switches if s.recipe_value is None}
    return why_not_switch(chooser, plan.chosen, name, value, headroom=wishes.headroom, asked=asked)


def frontier(recipe: Recipe, rates: Rates, wishes: Wishes, *, limit: int = 200) -> tuple[Candidate, ...]:
    """Memory against time: legal layouts, with and without recomputation, at most `limit`, fastest bound first.

    Layouts that do not fit are among them; the report draws the limit through the points.
    """
    search = Search(_as_run(recipe, wishes, rates), rates, wishes)
    points: dict[Layout, Candidate] = {}
    for _, node in sorted(search.nodes(rates.world_size, everything=True), key=lambda n: (n.bound, str(n.layout))):
        bases = sorted(search.bases(node), key=lambda b: b.bound)
        for base in dict.fromkeys(b.layout for b in (*bases[:1], *bases[-1:])):
            for again in (NO_RECOMPUTE, FULL_RECOMPUTE) if wishes.recompute is None else (wishes.recompute,):
                layout = replace(base, recompute=again)
                if len(points) < limit and search.legal(layout):
                    points[layout] = search.candidate(layout)
        if len(points) >= limit:
            break
    return tuple(points.values())


# --- Before the search ------------------------------------------------------------------------------------------------


def _as_run(recipe: Recipe, wishes: Wishes, rates: Rates) -> Recipe:
    """The recipe with FSDP as the user wants it, and with a dispatcher of tokens that runs here, without CUDA graphs where that
    one excludes them; everything else of it is not ours to change."""
    wished = _as_wished(recipe, wishes)
    if _dispatcher_problem(recipe, rates) is None:
        return wished
    made = replace(wished, features=replace(wished.features, dispatcher="alltoall"))
    if _graphs_problem(made, rates) is None:
        return made
    return replace(made, features=replace(made.features, cuda_graph=None, cuda_graph_scope=()))


def _as_wished(recipe: Recipe, wishes: Wishes) -> Recipe:
    """The recipe with FSDP as the user wants it."""
    if wishes.fsdp is None or wishes.fsdp == recipe.features.fsdp:
        return recipe
    return replace(recipe, features=replace(recipe.features, fsdp=wishes.fsdp))


def _dispatcher_problem(recipe: Recipe, rates: Rates) -> str | None:
    """Why the recipe's dispatcher runs on none of these GPUs, whatever the layout; None when it does."""
    found = (gpu.broken(Layout(), recipe, rates.product) for gpu in (DEEPEP_GPU, HYBRIDEP_GPU))
    return next((sentence for sentence in found if sentence), None)


def _graphs_problem(recipe: Recipe, rates: Rates) -> str | None:
    """Why the recipe's CUDA graphs run with its dispatcher on none of these GPUs, whatever the layout; None when they do."""
    return GRAPHS.broken(Layout(), recipe, rates.product)


def _check(recipe: Recipe, rates: Rates, wishes: Wishes) -> None:
    """Raise `UsageError` for what no search can answer."""
    if not recipe.architecture.complete:
        raise ParlaunchError(
            f"{recipe.name} is a template: it does not say how large its model is",
            hint="give the model with --model-config FILE, a Hugging Face config.json",
        )
    if wishes.objective not in OBJECTIVES:
        raise UsageError(f"--objective {wishes.objective!r} is not known", hint=f"one of: {', '.join(OBJECTIVES)}")
    for name in SIZES:
        value = getattr(wishes, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} {value} is not 1 or more", hint="leave it out to let the planner choose")
    if not 0 <= wishes.headroom < 1:
        raise UsageError(
            f"headroom {wishes.headroom} is no share of memory", hint=f"for example --headroom {HEADROOM:g}"
        )
    if recipe.global_batch_size < 1 or recipe.seq_length < 1:
        raise UsageError(
            f"a batch of {recipe.global_batch_size} sequences of {recipe.seq_length} tokens is nothing to train"
        )
    if wishes.stages is not None:
        _check_stages(recipe, rates, wishes)
    # The first broken rule of the sizes that are pinned, whatever the others will be.
    alone = replace(_pinned_layout(recipe, rates, wishes), world=10**9)
    for rule, sentence in violations(alone, recipe, rates):
        if rule.id in _PINS_OF and all(getattr(wishes, n) is not None for n in _PINS_OF[rule.id]):
            switched = _SWITCH_OF.get(rule.id) in dict(wishes.switches.fixed)
            typed = _PINS_OF[rule.id] or rule.id == "ep-needs-moe" or switched  # else it is the recipe on this machine
            kind = UsageError if typed else ParlaunchError
            raise kind(sentence, hint=_divisor_hint(rule.id, recipe, rates))


_PINS_OF: Mapping[str, tuple[str, ...]] = {
    "tp-heads": ("tp",), "tp-groups": ("tp",), "tp-ffn": (), "tp-mamba-heads": ("tp",), "cp-seq": ("cp",),
    "ep-needs-moe": (), "ep-divides": ("ep",), "ep-hybridep-domain": ("ep",), "prec-gpu": (), "opt-muon-fp16": (),
    "ep-dispatcher": (), "cg-impl": (), "rc-modules": ("recompute",),
    "rc-modes": ("recompute",), "rc-fp8": ("recompute",), "tp-bias-moe": ("etp",), "mbs-offline-pack": ("micro_batch_size",),
    "opt-precision": (), "cg-scopes": (), "ep-group-topk": (), "ep-paged-stash": (), "off-fine": (),
}  # fmt: skip
"""Rules that the pinned sizes break by themselves; with no pin named, the recipe on this machine does."""
_SWITCH_OF = {"off-fine": "offload", "cg-impl": "graphs", "cg-scopes": "graphs"}


def _check_stages(recipe: Recipe, rates: Rates, wishes: Wishes) -> None:
    """Raise `UsageError` when no PP and VP can cut the model as the user wants it."""
    layers = len(recipe.architecture.layers())
    stages = (wishes.pp,) if wishes.pp else tuple(d for d in divisors(rates.world_size) if d <= layers)
    chunks = (wishes.vp,) if wishes.vp else range(1, layers + 1)
    if not any(cuts(recipe.architecture, wishes, pp, vp if vp > 1 else None) for pp in stages for vp in chunks):
        sizes = f"PP {wishes.pp}" if wishes.pp else f"{rates.world_size} GPUs"
        raise UsageError(
            f"{sizes} cannot hold the {layers} layers as the pipeline overrides cut them",
            hint="fix --pp (and --vp) to the stages that they describe, or leave them out: the planner cuts evenly",
        )


def _divisor_hint(rule: str, recipe: Recipe, rates: Rates) -> str:
    a = recipe.architecture
    return {
        "tp-heads": f"TP must divide {a.num_attention_heads}",
        "ep-divides": f"EP must divide {a.num_moe_experts}",
        "ep-needs-moe": "leave --ep and --etp out",
        "cp-seq": f"CP must divide {recipe.seq_length // 2}",
        "ep-hybridep-domain": "take EP 64 or less",
        "prec-gpu": f"--precision {instead(recipe, rates.product)}",
        "opt-muon-fp16": f"--precision {instead(recipe, rates.product)}",
        "cg-impl": "leave the graphs out: --switches graphs=off, or no key of theirs",
        "cg-scopes": "leave the graphs out: --switches graphs=off, or no key of theirs",
        "cg-recompute": "leave the graphs out: --switches graphs=off, or no key of theirs",
        "off-fine": "leave the offloading out: --switches offload=off, or no key of its",
    }.get(rule, "")


def _pinned_layout(recipe: Recipe, rates: Rates, wishes: Wishes) -> Layout:
    """The pinned sizes as a layout; what is free is 1, equal, and nothing."""
    sizes = {name: value for name in SIZES if (value := getattr(wishes, name)) is not None}
    if sizes.get("vp") == 1:
        del sizes["vp"]
    made = Layout(
        world=rates.world_size, global_batch_size=recipe.global_batch_size, fsdp=bool(recipe.features.fsdp),
        recompute=wishes.recompute or NO_RECOMPUTE, **sizes,
    )  # fmt: skip
    even = cuts(recipe.architecture, wishes, made.pp, made.vp) if made.pp > 1 else (None,)
    return replace(
        made, cp_comm_type=exchange(recipe, wishes, made.cp), layers_per_chunk=even[0] if even else None
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
    # How a batch spreads hangs on sizes that are free: a rule that is broken with any of them says more.
    found = [(rule.id, sentence) for rule, sentence in violations(layout, recipe, rates)]
    broken, sentence = min(found, key=lambda f: f[0] == "gbs-divides", default=(None, None))
    pins = {name: getattr(wishes, name) for name in SIZES if getattr(wishes, name) is not None}
    said = " ".join(f"{n}={v}" for n, v in pins.items())
    block = layout.model_parallel
    world = rates.world_size
    if pins and broken in ("grid-dense", "grid-expert"):
        step = lcm(block, layout.pp * layout.ep * layout.etp)
        near = sorted({max(step, world // step * step), -(-world // step) * step})
        return UsageError(
            f"{said} does not go into {world} GPUs: {sentence or f'it takes {fewest_gpus(layout)}'}",
            hint="numbers of GPUs that work: " + ", ".join(map(str, near)),
        )
    if broken in (None, "gbs-divides"):
        batches = nearest_batches(recipe, max(1, layout.dp * layout.micro_batch_size))
        worlds = nearest_worlds(recipe, world, block, layout.micro_batch_size)
        hint = f"nearest batches: {', '.join(map(str, batches))}; " + (
            f"nearest numbers of GPUs: {', '.join(map(str, worlds))}" if worlds else "or a smaller micro batch"
        )
    elif known := _divisor_hint(broken, recipe, rates):
        hint = known
    elif pins:
        hint = "leave one of these sizes out, and the planner chooses it"
    else:
        hint = "leave --recompute out, and the planner chooses it" if wishes.recompute else ""
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
        other = replace(x, **change, cp_comm_type=exchange(search.recipe, search.wishes, change.get("cp", x.cp)))  # type: ignore[arg-type]
        if other.dp < 1 or other.edp < 1:
            continue  # more GPUs than there are
        sentence = rule_broken(other, search.recipe, search.rates)
        if sentence is None and not inside(other.tp, search.rates, other.world):
            sentence = f"TP {other.tp} leaves the NVLink domain of {reach(search.rates)} GPUs"
        if sentence is None and not search.fits(other):
            sentence = needs(search.memory(other))
        if sentence is not None:
            out.append(Refusal(layout=other, reason=sentence))
    return tuple(out)


def _warnings(search: Search, chosen: Candidate) -> tuple[str, ...]:
    x, rates, m = chosen.layout, search.rates, chosen.memory
    assumed = rates.assumed
    if any(kind.mixer == "mamba" for kind in search.recipe.architecture.layers()):
        assumed += rates.product.assumes("boost_clock_hz")  # scans alone are timed by clocks
    out: list[str] = []
    if x.world < rates.world_size:
        out.append(
            f"{rates.world_size - x.world} of {rates.world_size} GPUs stay idle, the last in rank order: "
            f"no layout on all of them is as fast"
        )
    if x.tp > 1 and not inside(x.tp, rates, x.world):
        out.append(f"TP {x.tp} crosses the NVLink domain of {reach(rates)} GPUs: expect a fraction of the speed")
    recipe = search.recipe
    out += _kept_formats(recipe)
    if recipe.mock_tokens is not None and recipe.seq_length == recipe.mock_tokens:
        out.append(
            f"assumed: {recipe.seq_length:,} tokens a sample, as in the recipe's mock data; --seq-length says yours"
        )
    if m.fits and not m.at_speed:
        ways = ", ".join(roomier(search, chosen))
        out.append(f"crowded: it {needs(m)}; {f'room comes by {ways}' if ways else 'more GPUs make room'}")
    elif m.fits and m.peak * (1 + m.risk_band) > m.capacity:
        out.append(
            f"tight: {gib(m.peak)} of {gib(m.capacity)}, and one run of twenty needs {percent(m.risk_band)} more than predicted; "
            "the first iterations will tell: run `parlaunch verify`"
        )
    if (band := chosen.estimate.error_band) >= WIDE:
        out.append(
            f"the time is ± {percent(band)}: measured runs of this kind are that far apart; run `parlaunch verify` or "
            "`parlaunch calibrate` here"
        )
    if rates.roaming is not None:
        bound_too = estimate_time(recipe, x, replace(rates, roaming=None))
        lost = chosen.estimate.iteration_time_s - bound_too.iteration_time_s
        if lost > NOTICED * chosen.estimate.iteration_time_s:
            out.append(
                f"ranks roam over the node's NUMA nodes, {rates.roaming}: it costs {seconds(lost)}, "
                f"{percent(lost / chosen.estimate.iteration_time_s)} of the iteration"
            )
    return (*out, *_calibrated(recipe, x, rates), *(f"assumed: {what}" for what in assumed))


def _calibrated(recipe: Recipe, layout: Layout, rates: Rates) -> list[str]:
    """What the plan takes from a machine file."""
    out = []
    file = f"the machine file {rates.measured_in}" if rates.measured_in else "a machine file"
    if rates.measured:
        out.append(f"measured, from {file}: {', '.join(sorted(rates.measured))}")
    if pace := learnt(recipe, rates.models):
        out.append(f"runs of this model took {pace.slower:.3g} times as long as is estimated for others, from {file}")
    if split := learnt_of_split(layout, rates.splits):
        out.append(f"runs with {split} took {split.slower:.3g} times as long as is estimated for others, from {file}")
    return out


def _kept_formats(recipe: Recipe) -> list[str]:
    """What modules are in against the precision asked for."""
    narrow = {named for _, named in recipe.features.module_formats if named.startswith(QUANTIZED)}
    if not narrow or recipe.precision.startswith(QUANTIZED):
        return []
    kept = " and ".join(sorted(narrow))
    return [f"the recipe's model.quant_recipe has modules in {kept} whatever the precision, and no key takes it back"]


def _shown(row: Published, chosen: Candidate) -> dict[str, object]:
    ours = f"ours: predicted {chosen.estimate.model_tflops_per_gpu:,.0f} TFLOP/s a GPU"
    return {**row.facts(), "sentence": f"{row.sentence()}; {ours}"}


__all__ = ["frontier", "lasting", "plan", "why_not"]
