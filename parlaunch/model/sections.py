"""Sections of Megatron Bridge's configuration that a recipe leaves empty, or that nobody asks, and where their keys are said then.

Hydra takes a KEY=VALUE only into a section that is there (bridge/training/utils/omegaconf_utils.py:158), and four of ten recipes
have no `comm_overlap`. What that section does is hand its values on to model, optimizer and DDP, and fill in defaults of its own
(bridge/training/comm_overlap.py:590); where it is empty they are said to those three, so that nothing else is switched on.
"""

from __future__ import annotations

from collections.abc import Mapping

from parlaunch.model.recipe import Recipe

OVERLAP, PRECISION = "comm_overlap", "mixed_precision"
"""The sections that some recipes leave empty, and we have something to say in: the second may also be a preset's name."""

OVERLAP_OF_DP = "comm_overlap.ddp"
"""The part of the first that is for DDP and the optimizer. It is handed on only where `ddp.use_distributed_optimizer` is set in the
recipe itself (bridge/training/comm_overlap.py:639): the optimizer's own switch and Megatron-FSDP set that too, but later
(bridge/training/config.py:1076, :1958)."""

SHARDED_DDP = "ddp.use_distributed_optimizer"

GRAPH, SCOPE, MODULES = "model.cuda_graph_impl", "model.cuda_graph_scope", "model.cuda_graph_modules"
"""How CUDA graphs are captured, and of what: under the older key and under the newer one."""

HANDED: Mapping[str, tuple[str, ...]] = {
    "tp_comm_overlap": ("model",),
    "overlap_p2p_comm": ("model",),
    "batch_p2p_comm": ("model",),
    "overlap_moe_expert_parallel_comm": ("model",),
    "delay_wgrad_compute": ("model",),
    "defer_embedding_wgrad_compute": ("model",),
    "wgrad_deferral_limit": ("model",),
    "overlap_grad_reduce": ("ddp",),
    "overlap_param_gather": ("ddp", "optimizer"),
    "overlap_param_gather_with_optimizer_step": ("optimizer",),
    "bucket_size": ("ddp",),
}
"""Whom `comm_overlap` hands each of its values to, and who acts on it there."""


def places(key: str, recipe: Recipe) -> tuple[str, ...]:
    """The keys under which this recipe's configuration hears what `key` says: itself, but for those of an empty section."""
    _, _, field = key.partition(".")
    return (key,) if heard(key, recipe) else tuple(f"{place}.{field}" for place in HANDED[field])


def heard(key: str, recipe: Recipe) -> bool:
    """Whether the key does something under its own name: not so in `comm_overlap` where that is empty or not handed on."""
    section, _, field = key.partition(".")
    if section != OVERLAP or field not in HANDED:
        return True
    return OVERLAP not in recipe.bare and not (OVERLAP_OF_DP in recipe.bare and "model" not in HANDED[field])


def placed(keys: Mapping[str, object], recipe: Recipe) -> dict[str, object]:
    """The keys with their values, each where this recipe's configuration hears it."""
    return {place: value for key, value in keys.items() for place in places(key, recipe)}
