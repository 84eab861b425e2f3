"""What differs between versions of Megatron Bridge: how it has to be spoken to, and what it is known to compute wrongly.

Facts in tables, each with its source: a file of Bridge's, or the pull request that mended it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import lcm

from parlaunch.errors import ParlaunchError
from parlaunch.frozen import dataclass
from parlaunch.model.catalog import renamed
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe
from parlaunch.model.sections import GRAPH, MODULES, SCOPE

Version = tuple[int, int, int]

OLDEST: Version = (0, 3, 0)
"""The first with a script that trains a recipe by name (scripts/training/run_recipe.py)."""

GRAPHED_BY_MODULE: Version = (0, 5, 0)
"""The first that knows `cuda_graph_modules` (bridge/utils/cuda_graph.py)."""

UNSPLIT_BY_ITSELF: Version = (0, 4, 0)
"""The first that turns sequence parallelism off where TP is 1 (bridge/models/transformer_config.py); Megatron refuses it there."""

STEP_BY_NAME: Version = (0, 6, 0)
"""The first whose script finds a recipe's forward step itself; older ones take `--step_func`, or train text."""


def version_of(text: str | None) -> Version | None:
    """The numbers of a version, whatever stands behind them.

    >>> version_of("0.6.2"), version_of("0.7.0rc0+067f987"), version_of("main")
    ((0, 6, 2), (0, 7, 0), None)
    """
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", text or "")
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None


def check_version(version: Version | None) -> None:
    """Raise `ParlaunchError` for a Bridge that cannot be launched: too old to train a recipe by its name."""
    if version is not None and version < OLDEST:
        raise ParlaunchError(
            f"Megatron Bridge {said(version)} is older than {said(OLDEST)}, the first that trains a recipe by its name",
            hint="pip install -U megatron-bridge, or name a training script with --script",
        )


def said(version: Version) -> str:
    """As it is written: 0.6.2."""
    return ".".join(map(str, version))


def name_in(version: Version | None, name: str) -> str:
    """What this version calls the recipe; None: not known, so as the newest release does."""
    later = renamed(name)
    if later is None or (version is not None and version < (version_of(later[1]) or OLDEST)):
        return name
    return later[0]


def heard(version: Version | None, recipe: Recipe, layout: Layout, pairs: Sequence[str]) -> tuple[str, ...]:
    """The overrides as this version takes them. None: not known, so as the newest release does.

    Hydra refuses a key that is no field of its section. Since 0.7 some models keep their sizes one level down and pass on
    what is set on them (models/gpt/model_config.py); before 0.6 data sets of pretraining have `seq_length` as a property
    (training/config.py). `++` says such a key all the same, and both take it. What graphs capture has another key before 0.5.
    """
    if version is None:
        return tuple(pairs)
    if version < GRAPHED_BY_MODULE:
        pairs = _by_scope(pairs)
    added = _padding(version, recipe, layout)
    hidden = "model." if version >= (0, 7, 0) else "dataset.seq_length=" if version < (0, 6, 0) else None
    if hidden is None:
        return (*added, *pairs)
    return (*added, *(f"++{pair}" if pair.startswith(hidden) else pair for pair in pairs))


def _by_scope(pairs: Sequence[str]) -> tuple[str, ...]:
    """What graphs capture under the only key that Megatron Core 0.16 has for it, where one of the whole iteration is a scope too
    (megatron/core/transformer/transformer_config.py:776 of 0.16.1, bridge/training/config.py:1103 of 0.4.2)."""
    said = {key: value for key, _, value in (pair.partition("=") for pair in pairs) if key in (GRAPH, MODULES, SCOPE)}
    whole = said.get(GRAPH) == "full_iteration"
    scope = "[full_iteration]" if whole else said.get(MODULES) if said.get(SCOPE) in (None, "null") else said[SCOPE]
    kept = [pair for pair in pairs if pair.partition("=")[0] not in said]
    kind = {GRAPH: "local"} if whole else {GRAPH: said[GRAPH]} if GRAPH in said else {}
    named = {SCOPE: scope} if scope not in (None, "null") else {}
    return (*kept, *(f"{key}={value}" for key, value in (kind | named).items()))


def _padding(version: Version, recipe: Recipe, layout: Layout) -> tuple[str, ...]:
    """Packs that context and sequence parallelism can cut: from 0.6 on, Bridge's script and our runner see to it."""
    if version >= (0, 6, 0) or recipe.packing != "offline" or recipe.architecture.kind != "llm":
        return ()
    unit = lcm(2 * layout.cp if layout.cp > 1 else 1, layout.cp * layout.tp if layout.sequence_parallel else 1)
    return (f"dataset.packed_sequence_specs.pad_seq_to_mult={unit}",) if unit > 1 else ()


@dataclass(frozen=True, slots=True)
class Wrong:
    """A result that versions before `mended` get wrong, without an error."""

    mended: Version
    where: Callable[[Recipe, Layout], bool]
    sentence: str
    source: str


def _tuned_in_packs(r: Recipe, _x: Layout) -> bool:
    return r.task != "pretrain" and r.packing is not None


def _adapted_experts(r: Recipe, x: Layout) -> bool:
    return r.task == "peft" and bool(r.architecture.num_moe_experts) and (x.ep > 1 or x.edp > 1)


QWEN_VL = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")

WRONG = (
    Wrong(
        (0, 5, 0),
        lambda r, x: _tuned_in_packs(r, x) and x.pp > 2,
        "stages in the middle of the pipeline do not hear where packed samples end, and attend across them",
        "NVIDIA-NeMo/Megatron-Bridge#3926",
    ),
    Wrong(
        (0, 5, 0),
        lambda r, x: _tuned_in_packs(r, x) and bool(r.architecture.mamba_num_heads),
        "state-space layers carry their state from one packed sample into the next",
        "NVIDIA-NeMo/Megatron-Bridge#3484",
    ),
    Wrong(
        (0, 6, 0),
        _adapted_experts,
        "adapters of experts that several ranks hold are not kept equal",
        "NVIDIA-NeMo/Megatron-Bridge#5231, #5396",
    ),
    Wrong(
        (0, 6, 0),
        lambda r, x: r.architecture.model_type in QWEN_VL and x.cp > 1,
        "gradients of the vision tower are wrong with context parallelism",
        "NVIDIA-NeMo/Megatron-Bridge#4784",
    ),
    Wrong(
        (0, 6, 0),
        lambda r, _x: r.architecture.model_type == "deepseek_v3" and r.folder == "deepseek",
        "the auxiliary loss that balances experts within a sequence is left out",
        "NVIDIA-NeMo/Megatron-Bridge#5165",
    ),
    Wrong(
        (0, 6, 0),
        lambda r, x: bool(r.architecture.mtp_num_layers) and x.pp > 1,
        "the stage of multi-token prediction is missing from the group that keeps the embeddings equal",
        "NVIDIA-NeMo/Megatron-Bridge#5380",
    ),
    Wrong(
        (0, 7, 0),
        lambda r, x: _tuned_in_packs(r, x) and bool(r.architecture.num_moe_experts),
        "the padding of packs counts in the routers' statistics",
        "NVIDIA-NeMo/Megatron-Bridge#5470",
    ),
)  # fmt: skip
"""What is known, by the version that mends it."""


def known_wrong(version: Version | None, recipe: Recipe, layout: Layout) -> tuple[str, ...]:
    """One sentence for each result that this version would get wrong; none where the version is not known."""
    if version is None:
        return ()
    return tuple(
        f"Megatron Bridge {said(version)}: {row.sentence}; mended in {said(row.mended)} ({row.source})"
        for row in WRONG
        if version < row.mended and row.where(recipe, layout)
    )
