"""A layout in words, the same on the screen, in the report and in scripts."""

from __future__ import annotations

from math import floor, log10

from parlaunch.estimate.training import Training
from parlaunch.model.layout import Layout
from parlaunch.units import count, duration, gib, percent


def layout_words(layout: Layout, *, split: bool) -> str:
    """Every size above one in Megatron's capitals; TP, PP and DP always. `split`: whether TP splits sequences too.

    >>> layout_words(Layout(world=64, tp=4, pp=2, vp=5), split=True)
    'TP 4 · PP 2 · VP 5 · DP 8 · sequence parallel'
    """
    x = layout
    words = [f"TP {x.tp}", f"PP {x.pp}"]
    words += [f"VP {x.vp}"] if x.vp else []
    words += [f"CP {x.cp}"] if x.cp > 1 else []
    words += [f"EP {x.ep}"] if x.ep > 1 else []
    words += [f"ETP {x.etp}"] if x.etp > 1 else []
    words += [f"DP {x.dp}"]
    words += [f"expert DP {x.edp}"] if x.ep > 1 else []
    words += ["sequence parallel"] if split else []
    words += ["FSDP"] if x.fsdp else []
    return " · ".join(words)


def training_words(t: Training) -> tuple[str, ...]:
    """The whole run in one or two sentences: time and money with their bands, then checkpoints and failures."""
    said = []
    if t.tokens and t.iterations and t.days and t.gpu_hours:
        run = f"{count(t.tokens)} tokens in {t.iterations:,} iterations"
        time = f"{_banded(t.days, t.error_band)} days, {_banded(t.gpu_hours, t.error_band)} GPU-hours"
        money = f", {_banded(t.cost, t.error_band)} at {t.price:g} each" if t.cost is not None else ""
        said.append(f"{run}: {time}{money}")
    elif t.cost_per_billion_tokens is not None:
        said.append(
            f"a billion tokens cost {_banded(t.cost_per_billion_tokens, t.error_band)} at {t.price:g} a GPU-hour; the recipe does "
            "not say how many: --tokens 1T"
        )
    if t.checkpoint_interval_s is not None and t.checkpoint_s is not None and t.mtbf_s is not None:
        said.append(
            f"a failure every {duration(t.mtbf_s)}, a checkpoint of {gib(t.checkpoint_bytes)} in "
            f"{duration(t.checkpoint_s)}: one every {duration(t.checkpoint_interval_s)} loses least, "
            f"{percent(t.lost_share or 0.0)} of the time (checkpoint.save_interval={t.checkpoint_interval_iterations})"
        )
    elif t.mtbf_s is not None:
        said.append(
            f"a failure every {duration(t.mtbf_s)}, a checkpoint of {gib(t.checkpoint_bytes)}: "
            "--storage 20GB/s says how often to write one"
        )
    return tuple(said)


def _banded(value: float, band: float) -> str:
    """ "41.2 ± 2.9", "3,590,000 ± 250,000": two digits of the band, and no more of the value."""
    spread = value * band
    digits = 1 - floor(log10(spread)) if spread > 0 else 2
    shown = max(0, digits)
    return f"{round(value, digits):,.{shown}f} ± {round(spread, digits):,.{shown}f}"
