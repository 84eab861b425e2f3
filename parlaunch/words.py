"""A layout in words, the same on the screen, in the report and in scripts."""

from __future__ import annotations

from parlaunch.layout import Layout
from parlaunch.plan import Candidate


def layout_words(layout: Layout) -> str:
    """Every size above one in Megatron's capitals; TP, PP and DP always.

    >>> layout_words(Layout(world=64, tp=4, pp=2, vp=5))
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
    words += ["sequence parallel"] if x.sequence_parallel else []
    words += ["FSDP"] if x.fsdp else []
    return " · ".join(words)


def candidate_words(candidate: Candidate) -> str:
    """The sizes without recomputation, as `--why-not` takes them."""
    return str(candidate.layout).split(" recompute=")[0]
