"""What the estimate misses of a model on a machine: how much longer its runs took there than the machine's rates say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from parlaunch.errors import ProbeError
from parlaunch.frozen import dataclass
from parlaunch.model.architecture import Architecture
from parlaunch.model.recipe import Recipe

SIZES = (
    "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels", "vocab_size", "num_moe_experts",
    "moe_ffn_hidden_size", "moe_router_topk",
)  # fmt: skip
"""What layers are known by. Their number is left out: a model with some of its layers, as on a small machine, is missed alike."""
MOST = 4.0
"""Times as long, or as short, that a model's runs may take: what is further off is another run, or another unit."""
HINT = "write one with `parlaunch calibrate`"


@dataclass(frozen=True, slots=True)
class Pace:
    """Of one model: seconds of its iterations over those that the rates say."""

    model: str  # for whoever reads it
    task: str
    sizes: tuple[tuple[str, int], ...]  # by Megatron's names; what the model does not have is left out
    slower: float


def sizes_of(architecture: Architecture) -> tuple[tuple[str, int], ...]:
    """What this model is known by."""
    every = ((name, getattr(architecture, name)) for name in SIZES)
    dense = not architecture.num_moe_experts
    return tuple((name, size) for name, size in every if size and not (dense and "moe" in name))


def learnt(recipe: Recipe, paces: Sequence[Pace]) -> Pace | None:
    """What is known of runs of this model and task; None: nothing."""
    if not paces:
        return None
    sizes = sizes_of(recipe.architecture)
    return next((p for p in paces if p.task == recipe.task and p.sizes == sizes), None)


def slower(recipe: Recipe, paces: Sequence[Pace]) -> float:
    """Seconds of its iterations over those that the rates say; 1 where nothing is known."""
    pace = learnt(recipe, paces)
    return 1.0 if pace is None else pace.slower


def paces_to_json(paces: Sequence[Pace]) -> list[dict[str, Any]]:
    """As machine files and plans have them."""
    return [{"model": p.model, "task": p.task, "sizes": dict(p.sizes), "slower": p.slower} for p in paces]


def paces_from_json(found: object) -> tuple[Pace, ...]:
    """What `paces_to_json` wrote. Raises `ProbeError` for what is none."""
    if not isinstance(found, list):
        raise ProbeError(f"the machine file's models are {json.dumps(found)[:80]}: they are a list", hint=HINT)
    return tuple(map(_pace, found))


def _pace(given: object) -> Pace:
    if not isinstance(given, Mapping) or not isinstance(given.get("sizes"), Mapping):
        raise ProbeError(f"the machine file has a model {json.dumps(given)[:80]}: it has no sizes", hint=HINT)
    name, slower = str(given.get("model")), given.get("slower")
    if not isinstance(slower, (int, float)) or isinstance(slower, bool) or not 1 / MOST <= slower <= MOST:
        raise ProbeError(
            f"the machine file has runs of {name} {json.dumps(slower)} times as long as its rates say: it is a number from "
            f"{1 / MOST} to {MOST}",
            hint=HINT,
        )
    sizes = given["sizes"]
    for key, size in sizes.items():
        if key not in SIZES or not isinstance(size, int) or isinstance(size, bool):
            raise ProbeError(
                f"the machine file has {key} {json.dumps(size)} of {name}: sizes are whole numbers of {', '.join(SIZES)}",
                hint=HINT,
            )
    return Pace(name, str(given.get("task")), tuple((key, sizes[key]) for key in SIZES if key in sizes), float(slower))
