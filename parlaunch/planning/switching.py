"""Switches beside sizes: which are worth asking about, which are best in each layout, and what the choice says of itself.

The search goes through layouts with every switch on that is ours to choose and that the place allows, less what a layout makes
illegal (`Chooser.at`); then each of the layouts that are left is tried with every combination (`Chooser.best`). A value other than
the recipe's own has to gain more than its margin (`Switch.error`), so that near ties keep the recipe's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from math import prod

from parlaunch.errors import UsageError
from parlaunch.estimate.memory import estimate_memory
from parlaunch.estimate.timing import estimate_time, micro_batch_time
from parlaunch.frozen import replaced
from parlaunch.hardware.cpu import CPU_RANK
from parlaunch.hardware.installed import Installed
from parlaunch.hardware.rates import Rates
from parlaunch.model.layout import NO_RECOMPUTE, Layout, Recompute
from parlaunch.model.recipe import Features, Recipe
from parlaunch.model.sections import OVERLAP, placed
from parlaunch.planning.plan import Candidate, Switched, Wishes
from parlaunch.planning.reasons import needs
from parlaunch.planning.search import Search
from parlaunch.planning.space import inside
from parlaunch.rules import why_not
from parlaunch.switches.switch import Place, Switch
from parlaunch.switches.table import CPU_RANKS, SWITCHES, problem, stopped, switch, with_values
from parlaunch.switches.wanted import Wanted
from parlaunch.units import percent, seconds

DETERMINISTIC = "CUBLAS_WORKSPACE_CONFIG"
"""A variable that only recipes for reproducible runs set (bridge/recipes/utils/determinism_utils.py:40)."""
ANOTHER_DISPATCHER = 1.1
"""How much the bound of a node with the usual dispatcher may lie above the best and still be looked at with another one."""

Values = tuple[tuple[str, str], ...]
"""Switches that are ours to choose, with a value each, in the order of `SWITCHES`."""


class Chooser:
    """The choice of switches for one recipe at one place.

    `recipe` is the recipe as the user said it; what they fixed is in `fixed`, and the estimates are of that.
    """

    def __init__(
        self,
        recipe: Recipe,
        rates: Rates,
        installed: Installed,
        wanted: Wanted,
        failed: Mapping[tuple[str, str], str] | None = None,
        recompute: Recompute | None = None,
    ) -> None:
        """`failed`: values that did not run here, with the day; those that the user fixed stay. `recompute`: what the user fixed."""
        self.recipe, self.rates, self.wanted = recipe, rates, wanted
        self.recompute = recompute or NO_RECOMPUTE
        ours = {key: day for key, day in (failed or {}).items() if wanted.open(key[0])}
        self.place = Place(rates=rates, installed=installed, failed=ours)
        self.fixed = with_values(recipe, dict(wanted.fixed))
        self.said = said(recipe, dict(wanted.given))
        self._variants: dict[Values, Recipe] = {}
        self._settled: dict[tuple[object, ...], Recipe] = {}
        reproducible = DETERMINISTIC in recipe.env  # it asks for runs that are equal bit by bit: every switch stays
        self.open: tuple[Switch, ...] = ()
        if not reproducible:
            free = tuple(s for s in SWITCHES if wanted.open(s.name))
            self.open = tuple(s for s in free if self._worth_asking(s))
            self.open = tuple(s for s in free if s in self.open or self._falls_with_others(s))
        self.fullest = self._fullest()

    def _choices(self, row: Switch) -> tuple[str, ...]:
        """What this switch may be: the recipe's own value, and what the planner may take in its place."""
        own = row.read(self.fixed.features)
        offered = row.choices(self.fixed, self.place) if row.choices else ()
        if own is None or not offered:
            return ()
        return tuple(dict.fromkeys((own, *offered)))

    def _worth_asking(self, row: Switch) -> bool:
        """Whether some value gains its margin in the layouts where it can gain most, or the recipe's own cannot be on in one."""
        others = self._choices(row)[1:]
        if not others:
            return False
        if row.once:
            return self.rates.world_size > 1
        for layout in self._likely():
            before = with_values(self.fixed, {row.name: self._choices(row)[0]})
            if row.refused(layout, before, self.place) is not None:
                return True
            time = micro_batch_time(before, layout, self.rates)
            for value in others:
                after = with_values(self.fixed, {row.name: value})
                allowed = row.refused(layout, after, self.place) is None
                if allowed and time / micro_batch_time(after, layout, self.rates) - 1 > self.least_gain(
                    row, value, layout
                ):
                    return True
        return False

    def _falls_with_others(self, row: Switch) -> bool:
        """Whether the recipe's own value cannot be on where the switches asked about are as they can be here: CUDA graphs with another
        dispatcher."""
        if not self.open or not self._choices(row):
            return False
        return any(row.refused(x, self._settle(self.fixed, x), self.place) is not None for x in self._likely())

    def without_refused(self, recipe: Recipe) -> Recipe:
        """The recipe with every switch off that is ours to choose and cannot be on in any layout, with what the user recomputes."""
        for row in self.open:
            if all(row.refused(x, recipe, self.place) is not None for x in self._likely()):
                recipe = with_values(recipe, {row.name: row.known_off})
        return recipe

    def _likely(self) -> tuple[Layout, ...]:
        """One micro batch where switches gain most: products as narrow, and experts spread as wide, as NVLink and network allow;
        small, where the host is the limit, and large, where it is not."""
        rates, a = self.rates, self.fixed.architecture
        reach = max(rates.nvlink_domain, min(rates.gpus_per_node, rates.world_size))
        heads = a.num_attention_heads or a.mamba_num_heads or 1
        narrow = max(d for d in range(1, reach + 1) if heads % d == 0)
        experts = a.num_moe_experts or 1
        wide = {max(d for d in range(1, min(experts, n) + 1) if experts % d == 0) for n in (reach, rates.world_size)}
        return tuple(
            Layout(
                world=max(tp, ep), tp=tp, ep=ep, micro_batch_size=mbs, global_batch_size=mbs * max(tp, ep),
                fsdp=self.fixed.features.fsdp, recompute=self.recompute,
            )
            for mbs in (1, 8) for tp in (1, narrow) for ep in sorted(wide)
        )  # fmt: skip

    def variants(self) -> tuple[Values, ...]:
        """Every combination of the switches that are ours to choose; the recipe's own values first."""
        names = [row.name for row in self.open]
        return tuple(tuple(zip(names, values, strict=True)) for values in product(*map(self._choices, self.open)))

    def with_(self, values: Values) -> Recipe:
        """The recipe with these values; one object for each, so that estimates know it again."""
        known = self._variants.get(values)
        if known is None:
            known = self._variants[values] = with_values(self.fixed, dict(values))
        return known

    def _fullest(self) -> Recipe:
        """The recipe with everything on that helps somewhere: of dispatchers, the one that is fastest on a likely group."""
        values: dict[str, str] = {}
        for row in self.open:
            offered = [v for v in self._choices(row) if v != row.known_off]
            if row.name == "dispatcher":
                values[row.name] = self._fastest_dispatcher(row)
            elif offered:
                values[row.name] = offered[-1]
        return self.with_(tuple(values.items()))

    def _fastest_dispatcher(self, row: Switch) -> str:
        """Of those that can run here in a usual group: as many GPUs as NVLink joins, or as there are."""
        alone = self._likely()[0]
        own = row.read(self.fixed.features)
        able = {kind: with_values(self.fixed, {row.name: kind}) for kind in self._choices(row)}
        able = {kind: recipe for kind, recipe in able.items() if self.problem(alone, recipe) is None}

        def charged(kind: str) -> float:
            margin = 0.0 if kind == own else self.least_gain(row, kind, alone)
            return (1 + margin) * micro_batch_time(able[kind], alone, self.rates)

        return min(able, key=charged, default="alltoall")

    def at(self, layout: Layout, recompute: Recompute) -> Recipe:
        """`fullest` less what cannot be on in this layout that recomputes so: switches of ours fall, what the user fixed stays."""
        return self._legal("fullest", self.fullest, layout, recompute)

    def plain(self, layout: Layout, recompute: Recompute) -> Recipe:
        """The recipe's own switches less what cannot be on in this layout that recomputes so."""
        return self._legal("plain", self.fixed, layout, recompute)

    def _legal(self, kind: str, recipe: Recipe, x: Layout, recompute: Recompute) -> Recipe:
        if not self.open:
            return self.fixed
        again = recompute.granularity, recompute.modules  # how many layers of a chunk is nothing to a switch
        key = (kind, x.world, x.tp, x.pp > 1, x.vp is None, x.ep, x.etp, again, x.fsdp)
        known = self._settled.get(key)
        if known is None:
            known = self._settled[key] = self._settle(recipe, replaced(x, recompute=recompute))
        return known

    def _settle(self, recipe: Recipe, layout: Layout) -> Recipe:
        for row in self.open:
            if row.refused(layout, recipe, self.place) is None:
                continue
            own = row.read(self.fixed.features)
            for value in dict.fromkeys((own or row.known_off, row.known_off)):
                fallen = with_values(recipe, {row.name: value})
                if row.refused(layout, fallen, self.place) is None:
                    recipe = fallen
                    break
        return self.with_(tuple((row.name, row.read(recipe.features) or "") for row in self.open))

    def margin(self, features: Features, layout: Layout) -> float:
        """What these switches have to gain over the recipe's own, as a share of the iteration; nothing where the recipe's own
        cannot be on."""
        total = 1.0
        for row in self.open:
            own, value = row.read(self.fixed.features), row.read(features)
            if value != own and row.refused(layout, self.fixed, self.place) is None:
                total *= 1 + self.least_gain(row, value or "", layout)  # so that each has to gain its own
        return total - 1

    def least_gain(self, row: Switch, value: str, layout: Layout) -> float:
        """What a value of a switch has to gain in this layout, as a share of the iteration."""
        return row.margin(value, near=self._near(layout))

    def _near(self, x: Layout) -> bool:
        """Whether experts stay inside an NVLink domain."""
        return inside(x.ep * x.etp, self.rates, x.world)

    def _certain_margin(self, recipe: Recipe, *, near: bool) -> float:
        """The part of the margin that is known without asking Megatron: the recipe has these switches off, which is allowed
        everywhere."""
        pairs = ((row, row.read(self.fixed.features), row.read(recipe.features)) for row in self.open)
        least = (row.margin(value or "", near=near) for row, own, value in pairs if own == row.known_off != value)
        return prod(1 + share for share in least) - 1

    def best(self, found: Candidate, *, headroom: float) -> Candidate:
        """The layout with the switches that suit it best; as it was found where nothing of ours is legal and fits."""
        if not self.open:
            return found
        x, best, least, most = found.layout, found, float("inf"), 0
        for values in self.variants():
            recipe = self.with_(values)
            if self.forbids(x, recipe) is not None:
                continue
            estimate = estimate_time(recipe, x, self.rates)
            charged = estimate.iteration_time_s * (1 + self.margin(recipe.features, x))
            if (charged >= least and most == 2) or why_not(x, recipe, self.rates) is not None:
                continue
            memory = estimate_memory(recipe, x, self.rates, headroom=headroom)
            # First what runs at speed, then what fits; where it was found not to fit, all are alike.
            room = memory.fits + (memory.fits and memory.at_speed) if found.memory.fits else 2
            if room > most or (room == most > 0 and charged < least):
                best = replace(found, memory=memory, estimate=estimate, features=recipe.features)
                least, most = charged, room
        return best

    def held(self, search: Search, layout: Layout) -> Candidate | None:
        """What a search has of a layout, with the switches that suit it best; None where it does not run."""
        found = search.held(layout)
        return found and self.best(found, headroom=search.wishes.headroom)

    def together(self, search: Search, ranked: Sequence[Candidate], wishes: Wishes) -> list[Candidate]:
        """What a search with everything on found, each with the switches that suit it; and the best layout of every other
        combination where that is better still: one that needs less memory may do without recomputation.

        Only nodes that the search came by can be better: with everything on no layout is slower (`fullest` has the dispatcher that
        is fastest in a usual group; another one is allowed `ANOTHER_DISPATCHER`).
        """
        found = [self.best(c, headroom=wishes.headroom) for c in ranked]
        if not found or not self.open:
            return found
        least = min(c.estimate.iteration_time_s * (1 + self.charged(c)) for c in found)
        full = self.fullest.features
        seen = [(bound, node, self._near(node)) for bound, node in search.seen]
        for values in self.variants():
            recipe = self.with_(values)
            if recipe is self.fullest:
                continue
            slack = 1.0 if recipe.features.dispatcher == full.dispatcher else ANOTHER_DISPATCHER
            mine = Search(recipe, self.rates, wishes, at=_always(recipe), forbids=self.forbids, like=search)
            for near in (True, False):  # each with a charge of its own
                charge = 1 + self._certain_margin(recipe, near=near)
                dearer = charge / (1 + self._certain_margin(self.fullest, near=near))
                nodes = [
                    node
                    for bound, node, here in seen
                    if here is near
                    and bound * charge < least * slack
                    and (mine.pass_of(node) * dearer < search.pass_of(node) or not search.roomy(node))
                ]
                made = mine.faster(nodes, least / charge)
                if made is None:
                    continue
                charged = made.estimate.iteration_time_s * (1 + self.charged(made))
                if charged < least:
                    found, least = [made, *found], charged
        return found

    def forbids(self, layout: Layout, recipe: Recipe) -> str | None:
        """Why the switches cannot be on in this layout at this place, those that the user fixed among them."""
        fixed = dict(self.wanted.fixed)
        return self.problem(layout, recipe) or stopped(layout, recipe, fixed) or self.unsaid(layout, recipe)

    def unsaid(self, layout: Layout, recipe: Recipe) -> str | None:
        """Why a KEY=VALUE of the user's cannot be in this layout, of those that set a switch."""
        for row, value in self.said:
            if why := row.stops(layout, recipe, value):
                keys = row.own_keys()
                typed = (f"{k}={_listed(v)}" for k, v in self.wanted.given if k in keys)
                return f"{' '.join(typed)}: {why}"
        return None

    def problem(self, layout: Layout, recipe: Recipe, *asked: str) -> str | None:
        """Why a switch that we choose, or that the user fixed or asks about, cannot be on in this layout at this place."""
        w = self.wanted
        ours = {*(row.name for row in self.open), *dict(w.fixed), *w.spoken_for, *asked}
        return problem(layout, recipe, self.place, given=self.recipe, ours=ours)

    def charged(self, c: Candidate) -> float:
        """The candidate's margin, as a share of its time."""
        return self.margin(c.features or self.fixed.features, c.layout)


def said(recipe: Recipe, given: Mapping[str, object]) -> tuple[tuple[Switch, str], ...]:
    """The switches that a user's KEY=VALUE set, each with its value."""
    rows = ((row, row.said(recipe, given)) for row in SWITCHES) if given else ()
    return tuple((row, value) for row, value in rows if value is not None)


def _listed(value: object) -> object:
    """As it is typed."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else value


def _always(recipe: Recipe) -> Callable[[Layout, Recompute], Recipe]:
    return lambda _layout, _recompute: recipe


# --- What the choice says of itself -----------------------------------------------------------------------------------


def switched(chooser: Chooser, chosen: Candidate) -> tuple[Switched, ...]:
    """Every switch that is not as the recipe has it, with what it saves: seconds and bytes against the same plan with the
    recipe's own value, or against what runs here where that cannot be on."""
    features = chosen.features or chooser.fixed.features
    mine = replace(chooser.fixed, features=features)
    if chooser.rates.product == CPU_RANK:  # its runners read no such section (parlaunch_launch.cpu)
        mine = replace(mine, bare=(*mine.bare, OVERLAP))
    said = dict(chooser.wanted.fixed)
    out = []
    for row in SWITCHES:
        own, value = row.read(chooser.recipe.features), row.read(features)
        asked = said.get(row.name)
        if value is None and asked is not None:
            out.append(
                _row(row, mine, asked, None, "you asked for it; the estimates do not know what it does", None, None)
            )
            continue
        if value is None or value == own:
            continue
        other = with_values(mine, {row.name: own or row.known_off})
        why_off = row.refused(chosen.layout, other, chooser.place)
        saved = freed = None
        if not why_off:
            saved = (
                estimate_time(other, chosen.layout, chooser.rates).iteration_time_s - chosen.estimate.iteration_time_s
            )
            freed = estimate_memory(other, chosen.layout, chooser.rates).peak - chosen.memory.peak
        out.append(_row(row, mine, value, own, _reason(row, asked, why_off, saved, chosen), saved, freed))
    return tuple(out)


BINDING = "numa"
"""The switch that no key of Bridge's sets: ranks are bound to the CPUs beside their GPU (parlaunch.environment.binding)."""
NOTICED = 0.005
"""Share of the iteration from which binding is worth a line."""


def bound(recipe: Recipe, chosen: Candidate, rates: Rates, started: Rates) -> tuple[Switched, ...]:
    """The binding of ranks as a switch, where it saves something that Bridge's own script (`started`) leaves."""
    if rates.roaming is not None or started.roaming is None:
        return ()
    mine = recipe if chosen.features is None else replace(recipe, features=chosen.features)
    saved = estimate_time(mine, chosen.layout, started).iteration_time_s - chosen.estimate.iteration_time_s
    share = saved / (chosen.estimate.iteration_time_s + saved)
    if share < NOTICED:
        return ()
    return (
        Switched(
            name=BINDING, value="on", recipe_value="off", bytes=0, keys=(), seconds=saved, source="bridge/scripts/training/README.md:83",
            reason=f"every rank on the CPUs beside its GPU saves {percent(share)} of the iteration, {seconds(saved)}",
            numerics="none: where the host's threads run",
        ),
    )  # fmt: skip


def _row(
    row: Switch, recipe: Recipe, value: str, own: str | None, reason: str, saved: float | None, freed: int | None
) -> Switched:
    return Switched(
        name=row.name, value=value, recipe_value=own, reason=reason, source=row.source, seconds=saved, bytes=freed,
        numerics=row.numerics, keys=tuple(placed(row.keys(recipe, value), recipe).items()),
    )  # fmt: skip


def _reason(row: Switch, asked: str | None, why_off: str | None, saved: float | None, chosen: Candidate) -> str:
    if asked is not None:
        return f"{row.what}: you asked for it"
    if why_off is not None:
        return f"{row.what}: {why_off}"
    share = (saved or 0.0) / (chosen.estimate.iteration_time_s + (saved or 0.0))
    if share <= 0:
        return f"{row.what}: it makes room for what is faster"
    return f"{row.what}: {percent(share)} of the iteration, {seconds(saved or 0.0)}"


def why_not_switch(
    chooser: Chooser, chosen: Candidate, name: str, value: str, *, headroom: float, asked: Mapping[str, str]
) -> str:
    """Why the plan does not have this switch so: a rule, the memory, what it would cost, that its gain is within its error, or
    that it is the user's to take. `asked`: what the user fixed of those that the estimates do not know."""
    row = switch(name)
    if row is None:
        raise UsageError(f"{name!r} is no switch", hint="one of: " + ", ".join(s.name for s in SWITCHES))
    mine = replace(chooser.fixed, features=chosen.features or chooser.fixed.features)
    other = with_values(mine, {name: value})
    here = chooser.rates.product == CPU_RANK
    if here and not row.on_cpu(value):
        told = ", ".join(v for v in row.values if row.on_cpu(v))
        left = (
            f"of {name} they take {told}"
            if told
            else f"they run with {name}={row.read(mine.features) or row.known_off}"
        )
        return f"{name}={value} does not run on CPU ranks: {CPU_RANKS}; {left}."
    if sentence := stopped(chosen.layout, other, {name: value}):
        return f"not in {chosen.layout}: {sentence}."  # though the recipe has it, perhaps: it falls there
    now = row.read(mine.features) or asked.get(name)
    if (now or (row.known_off if here else None)) == value:
        return f"this is the plan: {name}={value}."
    if row.read(other.features) is None:
        return f"{name} is left as the recipe has it: the estimates do not know what it does; --switches {name}={value} sets it."
    if sentence := chooser.problem(chosen.layout, other, name) or why_not(chosen.layout, other, chooser.rates):
        return f"not in {chosen.layout}: {sentence}."
    estimate = estimate_time(other, chosen.layout, chooser.rates)
    memory = estimate_memory(other, chosen.layout, chooser.rates, headroom=headroom)
    more = estimate.iteration_time_s / chosen.estimate.iteration_time_s - 1
    if not memory.fits or (chosen.memory.at_speed and not memory.at_speed):
        return f"{name}={value} {needs(memory)}."
    times = f"{seconds(estimate.iteration_time_s)} against {seconds(chosen.estimate.iteration_time_s)}"
    if more >= 0:
        return f"{name}={value} runs and fits, and is {percent(more)} slower ({times})."
    margin = chooser.least_gain(row, value, chosen.layout)
    faster = f"is predicted {percent(-more)} faster ({times})"
    if -more <= margin:
        return f"{name}={value} {faster}, less than the {percent(margin)} that such a prediction may be wrong by."
    yours = row.unasked(value, chooser.fixed, chooser.place)
    return (
        f"{name}={value} runs and fits, and {faster}{f', but it is yours to take: {yours}' if yours else ''}. "
        f"--switches {name}={value} takes it."
    )
