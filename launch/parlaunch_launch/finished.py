"""The configuration that Megatron Bridge would start a training with, made without its GPUs.

`finished` takes the arguments of `parlaunch_launch.bridge_runner` through recipe, overrides, validation and the model provider's
own checks. The number of ranks and the GPU are answered for, and Transformer Engine where it is not installed: a plan is for machines
that have it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import types
from collections.abc import Sequence
from typing import Any

NEWEST_ENGINE = "2.14.0"
"""The Transformer Engine that is answered for where none is installed."""

KERNELS = {
    "megatron.core.models.common.embeddings.rope_utils": (
        "fused_apply_rotary_pos_emb", "fused_apply_rotary_pos_emb_thd",
    ),
    "megatron.core.transformer.moe.moe_utils": (
        "fused_permute", "fused_permute_with_probs", "fused_sort_chunks_by_index", "fused_sort_chunks_by_index_with_probs",
        "fused_unpermute",
    ),
}  # fmt: skip
"""Transformer Engine's kernels by the module of Megatron Core that asks whether they are there."""


def without_gpus() -> None:
    """Make Bridge's modules importable here, and what they ask for answered; before the first import of Bridge."""
    from parlaunch_launch.cpu.bridge_runner import importable

    logging.disable(logging.WARNING)
    importable()
    import megatron.bridge.training.config  # noqa: F401  # what is answered below has to be loaded
    from megatron.core.transformer import transformer_config

    transformer_config._validate_dsa_kernel_backend_dependencies = lambda _backend: None  # kernels of other packages
    if importlib.util.find_spec("transformer_engine") is None:
        _engine()


def _engine() -> None:
    """Transformer Engine, as far as it is asked for while a configuration is checked."""
    import megatron.bridge.training.comm_overlap as comm_overlap
    import megatron.core.utils as utils
    from packaging.version import Version

    from parlaunch_launch.cpu.stand_ins import without_transformer_engine

    without_transformer_engine()
    comm_overlap.HAVE_TE = True
    utils.get_te_version = lambda: Version(NEWEST_ENGINE)
    for module in [m for n, m in sys.modules.items() if n.startswith("megatron.")]:
        if hasattr(module, "is_te_min_version"):
            module.is_te_min_version = lambda *_a, **_k: True  # type: ignore[attr-defined]
    for name, kernels in KERNELS.items():
        for kernel in kernels:
            setattr(importlib.import_module(name), kernel, object())
    for name in ("transformer_engine", "transformer_engine.pytorch", "transformer_engine.pytorch.optimizers"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["transformer_engine.pytorch.optimizers"].FusedAdam = FusedAdam  # type: ignore[attr-defined]


class FusedAdam:
    """What Core asks of Transformer Engine's Adam while a configuration is checked: that it takes these."""

    def __init__(
        self, master_weight_dtype: Any, exp_avg_dtype: Any, exp_avg_sq_dtype: Any, use_decoupled_grad: Any
    ) -> None:
        """Makes nothing."""


def finished(argv: Sequence[str], *, world: int, gpu: str, capability: tuple[int, int]) -> Any:
    """The `ConfigContainer` that our runner's arguments make on `world` GPUs of that name and compute capability.

    Raises what Bridge raises, and `UsageError` for arguments that are none.
    """
    from parlaunch_launch.bridge_runner import prepared

    config = prepared(argv).config
    finish(config, world=world, gpu=gpu, capability=capability)
    return config


def finish(config: Any, *, world: int, gpu: str, capability: tuple[int, int]) -> None:
    """Take a configuration that all overrides have reached through Bridge's last steps before the model is built."""
    import megatron.bridge.training.config as training_config
    import torch

    major, minor = capability
    device = types.SimpleNamespace(name=gpu, major=major, minor=minor)
    training_config.get_world_size_safe = lambda: world
    torch.cuda.get_device_properties = lambda *_a: device
    training_config.runtime_config_update(config)
    _provided(getattr(config.model, "transformer", config.model), config.model)


def _provided(m: Any, provider: Any) -> None:
    """What building the model changes in its configuration, beside the weights (bridge/models/gpt_provider.py: provide)."""
    from megatron.bridge.models.gpt_provider import GPTModelProvider
    from megatron.bridge.utils.fusions import validate_rope_fusion_compatibility

    if isinstance(provider, GPTModelProvider) and not validate_rope_fusion_compatibility(m):
        m.apply_rope_fusion = False
