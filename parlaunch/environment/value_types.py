"""Whether a user's value is what its field takes, as far as the field is of one simple type.

Hydra hands on what it reads, and dataclasses ask nothing: a word in place of a number stops the training when the number is needed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache

from parlaunch.data import load
from parlaunch.environment.override_grammar import value
from parlaunch.errors import UsageError
from parlaunch.model.sections import MODULES, SCOPE

EXPECTED = {
    "bool": ("True or False", "True"),
    "int": ("a number", "8"),
    "float": ("a number", "0.1"),
    "list": ("a list", "[…]"),
}
"""What each type is called, and an example."""

OPTIMIZER = "optimizer.optimizer"
EMERGING = (
    "muon|adaptive_muon|muon_hyperball|mop|polargrad|scion|spel|soap|kl_soap|kl_m_soap|stacked_soap|moso|rekls|rekls_v3|tp_rekls|"
    "psgd_pro|iso|oblique_sgd|oblique_adam|lion|signum|laprop|sim_ademamix"
)
"""What the package emerging-optimizers registers, of which Megatron takes each (megatron/core/optimizer/emerging_optimizers.py:495)."""

CAPTURED = "attn|mlp|moe|moe_router|moe_preprocess|mamba|full|full_iteration|full_iteration_inference"
WORDS: Mapping[str, str] = {
    OPTIMIZER: f"adam|sgd|{EMERGING}",  # megatron/core/optimizer/__init__.py:1038, :767
    MODULES: CAPTURED,  # megatron/core/transformer/enums.py:61, cuda_graph_config.py:11
    SCOPE: CAPTURED,
    # megatron/core/transformer/transformer_config.py:1853
    "model.offload_modules": "core_attn|attn_proj|expert_fc1|fused_group_mlp|moe_act|attn_norm|mlp_norm|qkv_linear",
    # megatron/core/transformer/transformer_config.py:991, and what GLM's benchmarks say
    "model.cp_comm_type": "p2p|all_gather|a2a|a2a+p2p|allgather",
    # megatron/core/transformer/moe/router.py:172, and what DeepSeek V4 has (bridge/models/deepseek/deepseek_v4_bridge.py:488)
    "model.moe_router_load_balancing_type": "aux_loss|seq_aux_loss|global_aux_loss|sinkhorn|quantile_balancing|none|noaux_tc",
    # More than Megatron's own types have: DeepSeek V4, and benchmarks of Qwen3 (bridge/perf_recipes/qwen/gb200/qwen3_moe.py:755).
    "model.experimental_attention_variant": "gated_delta_net|dsa|dsv4_hybrid",
    "model.moe_router_dtype": "fp32|fp64|float32|float64|bf16",
    "dataset.dataloader_type": "single|cyclic|batch|external",  # bridge/data/base.py:31
    # megatron/core/distributed/fsdp/src/megatron_fsdp/param_and_grad_buffer.py:2323
    "ddp.data_parallel_sharding_strategy": "no_shard|optim|optim_grads|optim_grads_params",
}
"""What fields take that are called words in Megatron, or lists of them, and of which it knows some."""

NAMED, NUMBERED = "logger.logging_level", ("train.exit_signal", "model.attention_backend")
"""A level that Python knows by name too; enumerations whose words have numbers."""

DTYPES = (
    "fp32", "float32", "32", "32-true", "fp16", "float16", "16", "16-mixed", "bf16", "bfloat16", "bf16-mixed", "fp8",
    "float8_e4m3fn", "float8_e5m2",
)  # fmt: skip
"""Names that Bridge makes torch's types of, with `torch.` in front or without (bridge/utils/activation_map.py:95)."""

INSIDE = "model.transformer."
"""Where newer models keep their sizes; Bridge hears them one level up too."""


def check_values(given: Mapping[str, str]) -> None:
    """Raise `UsageError` for the first value that its field does not take. Null is nobody's wrong type, and what Hydra fills in
    (`${…}`) is not known."""
    for key, text in given.items():
        if text.strip().startswith("${") or takes(key, value(text)):
            continue
        kind = str(type_of(key))
        if text.lower() == "none" and "none" not in kind.split("|"):
            raise UsageError(f"{key}={text}: to Hydra that is a word", hint=f"for nothing at all say {key}=null")
        if kind in EXPECTED:
            what, example = EXPECTED[kind]
            word = f"[{text}]" if kind == "list" else example
            raise UsageError(f"{key}={text}: {text!r} is not {what}", hint=f"for example {key}={word}")
        words = DTYPES if kind == "dtype" else kind.split("|")
        near = difflib.get_close_matches(text.strip("[]"), words, n=1)
        hint = f"nearest: {near[0]}; one of: {', '.join(words)}" if near else f"one of: {', '.join(words)}"
        raise UsageError(f"{key}={text}: it has no value {text!r}", hint=hint)


@cache
def types() -> Mapping[str, str]:
    """Key to the type that its field has in every listed version: bool, int, float, list, dtype, or words with | between."""
    listed = {
        f"{section}.{name}": kind
        for kind, sections in load("bridge_fields.json")["values"].items()
        for section, names in sections.items()
        for name in names.split()
    }
    return {**listed, **WORDS}


def type_of(key: str) -> str | None:
    """What the field of that key takes; None: not known, or of no simple type."""
    return types().get(f"model.{key.removeprefix(INSIDE)}" if key.startswith(INSIDE) else key)


def takes(key: str, found: object) -> bool:
    """Whether a field takes the value, as far as its type is known."""
    kind = type_of(key)
    if key == NAMED or (key in NUMBERED and isinstance(found, int)):
        return True
    if key == OPTIMIZER and isinstance(found, str):
        found = found.removeprefix("dist_")  # how it was distributed once (megatron/core/optimizer/__init__.py:745)
    parts = found if isinstance(found, list) and key in WORDS else [found]
    return kind is None or all(_is(kind, part) for part in parts)


def _is(kind: str, found: object) -> bool:
    if found is None:
        return True
    match kind:
        case "bool":
            return isinstance(found, int)  # some fields of that type hold numbers, as `train.manual_gc_eval` does
        case "int":
            return isinstance(found, int | float)  # minutes, say, that are compared with a clock need not be whole
        case "float":
            return isinstance(found, int | float) or str(found).lower().lstrip("+-") in ("inf", "nan")
        case "list":
            return isinstance(found, list)
        case "dtype":
            return str(found).removeprefix("torch.") in DTYPES
    return str(found).rpartition(".")[2] in kind.split("|")
