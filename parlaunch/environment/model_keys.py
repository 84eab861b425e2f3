"""A user's keys about how a model computes, and what Megatron wants said beside them: padding and capacity of experts, activations,
the loss, numbers that repeat.

Each row has its source, and answers with what has to be said too; it raises `UsageError` for what excludes another key.
"""

from __future__ import annotations

from collections.abc import Mapping

from parlaunch.environment.exclusive import DISPATCHER, PADDED, Given, Row, one_of, said
from parlaunch.environment.override_grammar import value
from parlaunch.environment.user_switches import CAPACITY, FILLED, FUSED_LOSS, LOSS_KERNEL, NOT_REPEATED, REPEATS
from parlaunch.errors import UsageError
from parlaunch.model.recipe import Recipe
from parlaunch.rules.switches import DETERMINISTIC


def _unpadded(r: Recipe, given: Given) -> dict[str, object]:
    # megatron/core/transformer/transformer_config.py:2317
    asked = next((key for key in PADDED if said(given, key) is True), None)
    if asked and not r.architecture.num_moe_experts:
        raise UsageError(f"{asked}=True: {r.model} has no experts", hint="leave it out")
    if asked and r.features.dispatcher == "allgather":
        raise one_of(given, DISPATCHER, asked) if DISPATCHER in given else _not_gathered(asked)
    if asked:
        return {}
    gathered = said(given, DISPATCHER) == "allgather" and r.features.router_padding
    return dict.fromkeys(PADDED, False) if gathered or any(key in given for key in PADDED) else {}


def _not_gathered(key: str) -> UsageError:
    return UsageError(f"{key}=True: the allgather dispatcher excludes it", hint=f"add {DISPATCHER}=alltoall")


LENGTHS_VARY = "model.variable_seq_lengths"


def _varying(r: Recipe, given: Given) -> dict[str, object]:
    # megatron/core/transformer/transformer_config.py:2644; where there are no experts, Megatron's own default is in the way
    if said(given, LENGTHS_VARY) is not True:
        return {}
    if said(given, DISPATCHER) == "allgather":
        raise one_of(given, LENGTHS_VARY, DISPATCHER)
    if r.features.dispatcher == "allgather":
        raise _not_gathered(LENGTHS_VARY)
    return {} if r.architecture.num_moe_experts else {DISPATCHER: "alltoall"}


def _deterministic(r: Recipe, given: Given) -> dict[str, object]:
    # bridge/training/config.py:1052; what Bridge's own recipes take back with it: bridge/recipes/utils/determinism_utils.py:36
    if DETERMINISTIC not in r.unsettled:
        return {}
    if said(given, FUSED_LOSS) is True:
        if REPEATS in given:
            raise one_of(given, REPEATS, FUSED_LOSS)
        raise UsageError(
            f"{FUSED_LOSS}=True: the recipe says {REPEATS}, which excludes it", hint=f"add {REPEATS}=False"
        )
    return dict(NOT_REPEATED) if REPEATS in given else {}


def _loss(r: Recipe, given: Given) -> dict[str, object]:
    # A recipe may have another kernel ready than Megatron's own default, and the fusion off.
    return {LOSS_KERNEL: r.features.cross_entropy} if said(given, FUSED_LOSS) is True else {}


ACTIVATION, FUSED_BIAS = "model.activation_func", "model.bias_activation_fusion"
ACTIVATIONS: Mapping[str, str] = {
    **{name: name for name in ("gelu", "relu", "silu", "sigmoid", "tanh", "squared_relu", "fast_gelu", "quick_gelu")},
    "relu2": "squared_relu", "gelu_pytorch_tanh": "fast_gelu",
}  # fmt: skip
"""Names that Bridge makes functions of, and what it calls them itself (bridge/utils/activation_map.py:41)."""


def activation(text: str) -> str:
    """What Bridge calls the function of that name. Raises `UsageError` for one that it does not know."""
    named = str(value(text)).rpartition(".")[2]
    if named not in ACTIVATIONS:
        raise UsageError(
            f"{ACTIVATION}={text}: Megatron Bridge knows no such function", hint=f"one of: {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[named]


SHIFTED = ("gpt_oss", "minimax_m3_vl")
"""Models that shift what their activation gates, for which its own is the only kernel (bridge/models/gpt_oss/gpt_oss_bridge.py:84)."""


def _activated(r: Recipe, given: Given) -> dict[str, object]:
    # megatron/core/transformer/transformer_config.py:2114
    a = r.architecture
    fits = {
        "silu": a.model_type not in SHIFTED,
        "gelu": a.model_type not in SHIFTED and (a.gated_linear_unit or a.add_bias_linear),
        "quick_gelu": a.gated_linear_unit,
    }
    if ACTIVATION not in given or fits.get(a.activation_func):
        return {}
    if said(given, FUSED_BIAS) is True:
        raise one_of(given, ACTIVATION, FUSED_BIAS)
    return {FUSED_BIAS: False}


DROPS = "moe_expert_capacity_factor"
"""As `unsettled` names a recipe's own capacity of experts, beyond which tokens are dropped."""


def drops(r: Recipe, given: Given) -> bool:
    """Whether experts have a capacity, beyond which tokens are dropped."""
    return said(given, CAPACITY) is not None if CAPACITY in given else DROPS in r.unsettled


def _filled(r: Recipe, given: Given) -> dict[str, object]:
    # megatron/core/transformer/transformer_config.py:1687
    if drops(r, given):
        return {}
    if said(given, FILLED) is True:
        raise UsageError(f"{FILLED}=True: experts have no capacity that could be filled", hint=f"add {CAPACITY}=1.0")
    return {FILLED: False} if CAPACITY in given and DROPS in r.unsettled else {}


BALANCE = "model.moe_router_load_balancing_type"
DROPPING = ("aux_loss", "seq_aux_loss", "global_aux_loss", "none")
"""Ways of balancing experts beside which tokens may be dropped (megatron/core/transformer/transformer_config.py:1675)."""


def _capacity(r: Recipe, given: Given) -> dict[str, object]:
    if not drops(r, given):
        return {}
    kinds = value(given[BALANCE]) if BALANCE in given else UNDROPPED.get(str(r.architecture.model_type))
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind not in (None, *DROPPING):
            raise UsageError(
                f"{CAPACITY}={given.get(CAPACITY, 'as the recipe says')}: the router balances by {kind}, which drops no tokens",
                hint=f"say {BALANCE}=none" if BALANCE in given else f"add {BALANCE}=none",
            )
    return {}


UNDROPPED: Mapping[str, str] = {"deepseek_v4": "noaux_tc"}
"""How models balance their experts that do it in another of Megatron's ways (bridge/models/deepseek/deepseek_v4_bridge.py)."""


MODEL_KEYS: tuple[Row, ...] = (
    _unpadded, _varying, _deterministic, _loss, _activated, _filled, _capacity,
)  # fmt: skip
