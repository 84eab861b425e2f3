"""What the estimate misses on a machine beside its rates: how much longer runs of a model took there, and runs with one split."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from parlaunch.errors import ProbeError
from parlaunch.frozen import dataclass
from parlaunch.model.architecture import Architecture
from parlaunch.model.layout import Layout
from parlaunch.model.precision import product_format
from parlaunch.model.recipe import Recipe

SIZES = (
    "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels", "vocab_size", "num_moe_experts",
    "moe_ffn_hidden_size", "moe_router_topk",
)  # fmt: skip
"""What layers are known by. Their number is left out: a model with some of its layers, as on a small machine, is missed alike."""
FORMATS = ("fp32", "bf16", "fp8", "fp4")
"""Of a model's products, as `product_format` has them. What the estimate misses of a model in one says little of another."""
SPLIT = ("tp", "pp", "micro_batch_size")
"""What cuts the products of a layer, and the pipeline: runs that are alike here are missed alike, whatever they train."""
MOST = 4.0
"""Times as long, or as short, that runs may take: what is further off is another run, or another unit."""
HINT = "write one with `parlaunch calibrate`"


@dataclass(frozen=True, slots=True)
class Pace:
    """Of one model: seconds of its iterations over those that the rates say."""

    model: str  # for whoever reads it
    task: str
    sizes: tuple[tuple[str, int], ...]  # by Megatron's names; what the model does not have is left out
    slower: float
    format: str | None = None  # of its products; None: whichever, as older files have it


@dataclass(frozen=True, slots=True)
class SplitPace:
    """Of one split: seconds of its iterations over those that the rates say."""

    tp: int
    pp: int
    micro_batch_size: int
    slower: float

    def __str__(self) -> str:
        return f"TP {self.tp}, PP {self.pp} and micro batch {self.micro_batch_size}"


def sizes_of(architecture: Architecture) -> tuple[tuple[str, int], ...]:
    """What this model is known by."""
    every = ((name, getattr(architecture, name)) for name in SIZES)
    dense = not architecture.num_moe_experts
    return tuple((name, size) for name, size in every if size and not (dense and "moe" in name))


def learnt(recipe: Recipe, paces: Sequence[Pace]) -> Pace | None:
    """What is known of runs of this model and task in this format; None: nothing."""
    if not paces:
        return None
    sizes, given = sizes_of(recipe.architecture), (product_format(recipe.precision), None)
    return next((p for p in paces if p.task == recipe.task and p.sizes == sizes and p.format in given), None)


def learnt_of_split(layout: Layout, paces: Sequence[SplitPace]) -> SplitPace | None:
    """What is known of runs that are split so; None: nothing."""
    if not paces:
        return None
    mine = layout.tp, layout.pp, layout.micro_batch_size
    return next((p for p in paces if (p.tp, p.pp, p.micro_batch_size) == mine), None)


def slower(recipe: Recipe, paces: Sequence[Pace]) -> float:
    """Seconds of its iterations over those that the rates say; 1 where nothing is known."""
    pace = learnt(recipe, paces)
    return 1.0 if pace is None else pace.slower


def slower_split(layout: Layout, paces: Sequence[SplitPace]) -> float:
    """The same of a layout, whatever it trains."""
    pace = learnt_of_split(layout, paces)
    return 1.0 if pace is None else pace.slower


def least_split(layout: Layout, paces: Sequence[SplitPace]) -> float:
    """The same, over whichever number of stages takes the least."""
    mine = layout.tp, layout.micro_batch_size
    return min([1.0, *(p.slower for p in paces if (p.tp, p.micro_batch_size) == mine)])


def paces_to_json(paces: Sequence[Pace]) -> list[dict[str, Any]]:
    """As machine files and plans have them."""
    return [
        {"model": p.model, "task": p.task, "format": p.format, "sizes": dict(p.sizes), "slower": p.slower}
        for p in paces
    ]


def splits_to_json(paces: Sequence[SplitPace]) -> list[dict[str, Any]]:
    """As machine files and plans have them."""
    return [{name: getattr(p, name) for name in (*SPLIT, "slower")} for p in paces]


def paces_from_json(found: object) -> tuple[Pace, ...]:
    """What `paces_to_json` wrote. Raises `ProbeError` for what is none."""
    return tuple(map(_pace, _listed(found, "models")))


def splits_from_json(found: object) -> tuple[SplitPace, ...]:
    """What `splits_to_json` wrote. Raises `ProbeError` for what is none."""
    return tuple(map(_split, _listed(found, "splits")))


def _listed(found: object, what: str) -> list[object]:
    if not isinstance(found, list):
        raise ProbeError(f"the machine file's {what} are {json.dumps(found)[:80]}: they are a list", hint=HINT)
    return found


def _pace(given: object) -> Pace:
    if not isinstance(given, Mapping) or not isinstance(given.get("sizes"), Mapping):
        raise ProbeError(f"the machine file has a model {json.dumps(given)[:80]}: it has no sizes", hint=HINT)
    name, sizes, fmt = str(given.get("model")), given["sizes"], given.get("format")
    slower = _times(given, name)
    for key, size in sizes.items():
        if key not in SIZES or not _whole(size):
            raise ProbeError(
                f"the machine file has {key} {json.dumps(size)} of {name}: sizes are whole numbers of {', '.join(SIZES)}",
                hint=HINT,
            )
    if fmt is not None and fmt not in FORMATS:
        raise ProbeError(
            f"the machine file has {name} in the format {json.dumps(fmt)}: it is one of {', '.join(FORMATS)}", hint=HINT
        )
    known = tuple((key, sizes[key]) for key in SIZES if key in sizes)
    return Pace(name, str(given.get("task")), known, slower, fmt)


def _split(given: object) -> SplitPace:
    if not isinstance(given, Mapping) or not all(_whole(given.get(key)) for key in SPLIT):
        raise ProbeError(
            f"the machine file has a split {json.dumps(given)[:80]}: it has whole numbers of {', '.join(SPLIT)}",
            hint=HINT,
        )
    sizes = {key: int(given[key]) for key in SPLIT}
    words = ", ".join(f"{key} {size}" for key, size in sizes.items())
    return SplitPace(**sizes, slower=_times(given, words))


def _times(given: Mapping[str, object], name: str) -> float:
    slower = given.get("slower")
    if not isinstance(slower, (int, float)) or isinstance(slower, bool) or not 1 / MOST <= slower <= MOST:
        raise ProbeError(
            f"the machine file has runs of {name} {json.dumps(slower)} times as long as its rates say: it is a number from "
            f"{1 / MOST} to {MOST}",
            hint=HINT,
        )
    return float(slower)


def _whole(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)
