"""What ran here before: one's own measured runs of the same training on the same machine, as evidence for the next plan.

A layout that was measured is taken where the model's error bar cannot tell it from the best predicted one; one that failed in
a way that another plan can help is avoided, and with an out of memory every layout that is predicted to need as much.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from parlaunch.errors import ParlaunchError
from parlaunch.frozen import dataclass
from parlaunch.hardware.rates import Rates, rates_from_json
from parlaunch.model.layout import SIZES, Layout, layout_from_json, layout_to_json
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Candidate, Wishes, recipe_from_json
from parlaunch.switches.table import SWITCHES, with_values
from parlaunch.units import gib, percent, seconds

AVOIDED = ("oom", "refused")
"""Ends of a run that another layout can help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One run. `seconds` of an iteration, None when it failed; `predicted_peak` in bytes, as the plan of the run said."""

    id: str
    when: str  # ISO time
    layout: Layout
    status: str
    seconds: float | None
    predicted_peak: int | None

    @property
    def day(self) -> str:
        return self.when[:10]


def runs_like(
    history: Sequence[Mapping[str, Any]], recipe: Recipe, rates: Rates, *, free: Collection[str] = ()
) -> tuple[Ran, ...]:
    """The runs of this training on such a machine, oldest first: same model, task, sequence, batch, precision and switches but for
    the `free` ones, by name, which a plan chooses; same product, number of GPUs and NVLink. Rows that do not say what they were
    planned with are passed over."""
    found = []
    for row in history:
        if (row.get("gpus"), row.get("seq"), row.get("gbs")) != (
            rates.world_size, recipe.seq_length, recipe.global_batch_size,
        ) or not row.get("planned"):  # fmt: skip
            continue
        try:
            planned = row["planned"]
            theirs, machine = recipe_from_json(planned["recipe"]), rates_from_json(planned["rates"], where="history")
            layout = layout_from_json(planned["layout"])
            took = row.get("iteration_time_s")
            peak = (row.get("predicted") or {}).get("peak_bytes")
            ran = Ran(
                id=str(row.get("id")), when=str(row.get("when")), layout=layout, status=str(row.get("status")),
                seconds=None if took is None else float(took), predicted_peak=None if peak is None else int(peak),
            )  # fmt: skip
        except (ParlaunchError, KeyError, TypeError, ValueError, AttributeError):
            continue
        if _trained(_less(theirs, free)) == _trained(_less(recipe, free)) and _machine(machine) == _machine(rates):
            found.append(ran)
    return tuple(found)


def _less(recipe: Recipe, free: Collection[str]) -> Recipe:
    """The recipe with those switches off."""
    return with_values(recipe, {row.name: row.known_off for row in SWITCHES if row.name in free})


def failed_switches(history: Sequence[Mapping[str, Any]], rates: Rates) -> dict[tuple[str, str], str]:
    """Switches, by name and value, that failed on such a machine and have not run there since, with the day of the last failure."""
    found: dict[tuple[str, str], str] = {}
    for row in history:
        try:
            machine = rates_from_json(row["planned"]["rates"], where="history")
            if _machine(machine) != _machine(rates):
                continue
            if failed := row.get("failed_switch"):
                found[str(failed["name"]), str(failed["value"])] = str(row["when"])[:10]
            elif row.get("status") == "ok":
                features = recipe_from_json(row["planned"]["recipe"]).features
                for known in SWITCHES:
                    found.pop((known.name, known.read(features) or ""), None)
        except (ParlaunchError, KeyError, TypeError, ValueError, AttributeError):
            continue
    return found


def _trained(recipe: Recipe) -> tuple[object, ...]:
    return (recipe.architecture, recipe.task, recipe.precision, recipe.features, recipe.optimizer, recipe.packing)


def _machine(rates: Rates) -> tuple[object, ...]:
    return (rates.product.name, rates.gpus_per_node, rates.nvlink_domain, rates.memory_bytes)


def without_failed(ranked: Sequence[Candidate], runs: Sequence[Ran]) -> tuple[Sequence[Candidate], tuple[str, ...]]:
    """The layouts without those that failed here, and a sentence for each failure that moved the choice. All of them stay where
    nothing else is left, or the user has fixed it so."""
    last = {run.layout: run for run in runs}  # a later run speaks louder
    failed = [run for run in last.values() if run.status in AVOIDED]
    full = [r.predicted_peak for r in failed if r.status == "oom" and r.predicted_peak is not None]
    worked = [r.predicted_peak for r in last.values() if r.seconds is not None and r.predicted_peak is not None]
    # What is predicted to need less than a run that went well is not given up for another's failure.
    limit = min((p for p in full if p > max(worked, default=0)), default=None)
    names = {run.layout for run in failed}
    proven = {run.layout for run in last.values() if run.seconds is not None}

    def kept(c: Candidate) -> bool:
        return c.layout in proven or (c.layout not in names and (limit is None or c.memory.peak < limit))

    left = [c for c in ranked if kept(c)]
    if not left:
        return ranked, tuple(f"It failed here: {r.status} on {r.day}." for r in failed if r.layout == ranked[0].layout)
    met = [r for r in failed if r.layout in {c.layout for c in ranked}]
    said = [f"Avoided: {r.layout} failed here on {r.day} ({r.status})." for r in met[-2:]]
    if not met and left[0] is not ranked[0]:
        run = next(r for r in failed if r.predicted_peak == limit)
        said.append(f"Avoided: {ranked[0].layout} needs as much memory as {run.layout}, which ran out of it here on {run.day} "
                    f"({gib(limit or 0)} predicted).")  # fmt: skip
    return left, tuple(said)


def proven_here(
    runs: Sequence[Ran], wishes: Wishes, chosen: Candidate, *, evaluate: Callable[[Layout], Candidate | None]
) -> tuple[Candidate, str] | None:
    """The fastest layout that ran here, when `chosen` ran here too, or else when the model is not sure that it is slower than
    `chosen`, with the sentence that says so; None when there is none."""
    last = {run.layout: run for run in runs}
    good = sorted((r for r in last.values() if r.seconds is not None), key=lambda r: r.seconds or 0.0)
    slower = next((r for r in good if r.layout == chosen.layout), None)
    for run in good:
        took = seconds(run.seconds or 0.0)
        if run.layout == chosen.layout:
            return chosen, f"It ran here on {run.day}: {took} an iteration."
        if not keeps(wishes, run.layout) or (made := evaluate(run.layout)) is None:
            continue
        if slower is not None:  # what was measured needs no model
            than = f"{chosen.layout}, predicted best, took {seconds(slower.seconds or 0.0)} on {slower.day}."
            return made, f"Proven here on {run.day}: {took} an iteration; {than}"
        beside = within_band(made, chosen)
        return None if beside is None else (made, f"Proven here on {run.day}: {took} an iteration; {beside}")
    return None


def within_band(proven: Candidate, chosen: Candidate) -> str | None:
    """How the best predicted layout compares with one that was measured, as the end of a sentence; None where the model is sure
    that the measured one is slower.
    """
    share, band = proven.estimate.iteration_time_s / chosen.estimate.iteration_time_s - 1, chosen.estimate.error_band
    if share > band:
        return None
    side = "faster" if share > 0 else "slower"
    return f"{chosen.layout} is predicted {percent(abs(share))} {side}, within the model's ± {percent(band)}."


def keeps(wishes: Wishes, layout: Layout) -> bool:
    """Whether a layout keeps the user's pins."""
    # No interleaving is VP None in a layout, and pinned as 1.
    sizes = [(getattr(wishes, name), getattr(layout, name) or 1) for name in SIZES]
    more = ((wishes.recompute, layout.recompute), (wishes.fsdp, layout.fsdp))
    return all(pin is None or pin == value for pin, value in (*sizes, *more))


def facts(run: Ran, recipe: Recipe, rates: Rates) -> dict[str, object]:
    """The run among the `evidence` of a plan, as JSON values."""
    tokens = None if not run.seconds else recipe.global_batch_size * recipe.seq_length / run.seconds / rates.world_size
    took = f"{seconds(run.seconds)} an iteration" if run.seconds else f"failed: {run.status}"
    return {
        "name": run.id, "source": "history", "gpus": run.layout.world, "product": rates.product.name,
        "precision": recipe.precision, "seq_length": recipe.seq_length, "global_batch_size": recipe.global_batch_size,
        "layout": layout_to_json(run.layout), "model_tflops_per_gpu": None, "tokens_per_s_per_gpu": tokens,
        "framework": None, "sentence": f"Here on {run.day}: {run.layout}, {took}",
    }  # fmt: skip
