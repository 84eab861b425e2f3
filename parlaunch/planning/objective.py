"""What a plan is to be best at: how layouts are searched for it, and which of the best is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from parlaunch.frozen import dataclass
from parlaunch.planning.evidence import Published, proven
from parlaunch.planning.plan import Candidate
from parlaunch.planning.preference import CANDIDATES, near_tie, preferred, worth_a_try
from parlaunch.planning.search import Found, Search, kind_of
from parlaunch.planning.switching import Chooser


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The choice among layouts that fit, and the sentences that say why it was not the first."""

    chosen: Candidate
    because: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Objective:
    """One row of the table."""

    search: Callable[[Search, int], Found]  # at least so many layouts that fit, the best first
    take: Callable[[Sequence[Candidate], Search, Sequence[Published], Chooser], Taken] = lambda ranked, _s, _e, _c: (
        Taken(chosen=ranked[0])
    )
    # So many of the others, in the order in which they stand beside the choice.
    beside: Callable[[Candidate, Sequence[Candidate], Search, Chooser, int], Sequence[Candidate]] = (
        lambda _chosen, others, _s, _c, count: others[:count]
    )
    switches: bool = False  # turned on for it; else they stay the recipe's own where they can be on


def _fastest(search: Search, keep: int) -> Found:
    return search.run(keep=max(keep, CANDIDATES[kind_of(search.recipe)]))


def _proven_or_preferred(
    ranked: Sequence[Candidate], search: Search, evidence: Sequence[Published], chooser: Chooser
) -> Taken:
    """Among layouts that the model cannot tell apart: one that was measured, else the one that charges least."""
    recipe, rates = search.recipe, search.rates
    ranked = sorted(ranked, key=lambda c: c.estimate.iteration_time_s)
    choice = preferred(ranked, recipe, rates, more=chooser.charged)
    evaluate = partial(chooser.held, search)
    taken = proven(evidence, recipe, search.wishes, choice, world=rates.world_size, evaluate=evaluate)
    if taken is not None:
        return Taken(chosen=taken[0], because=(taken[1],))
    return Taken(chosen=choice, because=near_tie(choice, ranked, recipe, rates))


def _worth_a_try(
    chosen: Candidate, others: Sequence[Candidate], search: Search, chooser: Chooser, count: int
) -> Sequence[Candidate]:
    return worth_a_try(chosen, others, search.recipe, search.rates, count, more=chooser.charged)


def _leanest(search: Search, keep: int) -> Found:
    return search.least(keep=keep)


OBJECTIVES: Mapping[str, Objective] = {
    "time": Objective(_fastest, _proven_or_preferred, _worth_a_try, switches=True),
    "memory": Objective(_leanest),
}
"""`--objective`, by its word."""
