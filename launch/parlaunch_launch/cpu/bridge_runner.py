"""Run a Megatron Bridge recipe's own pretrain() on CPU, with a tiny model. Every rank of torchrun runs this.

    python -m torch.distributed.run --standalone --nproc-per-node=4 -m parlaunch_launch.cpu.bridge_runner \\
        --recipe llama32_1b_pretrain_config model.tensor_model_parallel_size=2 model.pipeline_model_parallel_size=2

Recipe, overrides, validation, data set, training loop and log are Bridge's. `before_bridge` replaces what asks for CUDA,
`cpu_config` the settings that name CUDA kernels. Tried with Bridge 0.6.2 on Megatron Core 0.19.2.
"""

from __future__ import annotations

import argparse
import builtins
import functools
import importlib.util
import json
import os
import sys
import types
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from parlaunch.errors import ParlaunchError
from parlaunch.model.recipe import Recipe
from parlaunch.model.tiny import shrink, tiny_overrides
from parlaunch_launch.cpu import hub_cache
from parlaunch_launch.cpu.missing import fill_in
from parlaunch_launch.cpu.report import say, say_layout
from parlaunch_launch.rank import run_rank


def importable() -> None:
    """Make `import megatron.bridge` work where its CUDA packages are not installed: enough to build a recipe."""
    fill_in()
    if importlib.util.find_spec("transformer_engine") is None:
        import torch

        _lora_without_transformer_engine(torch)


def before_bridge() -> None:
    """Put in place what Bridge's modules ask for, and what its training asks of CUDA."""
    importable()
    from parlaunch_launch.cpu.stand_ins import train_on_cpu

    train_on_cpu()

    import megatron.core.datasets.utils as dataset_utils

    dataset_utils.compile_helpers = lambda: None  # built with the package; its Makefile is not installed

    import megatron.bridge.training.setup as setup

    initialize = setup.initialize_megatron

    @functools.wraps(initialize)
    def initialize_without_cuda(*args: Any, **kwargs: Any) -> Any:
        groups = initialize(*args, **{**kwargs, "allow_no_cuda": True})
        say_layout()
        return groups

    setup.initialize_megatron = initialize_without_cuda


def _lora_without_transformer_engine(torch: Any) -> None:
    """Bridge's LoRA layers inherit from Transformer Engine's Linear: they alone are given a class to inherit from."""
    absent = type("TransformerEngineIsAbsent", (torch.nn.Module,), {})
    layers = types.SimpleNamespace(Linear=absent, LayerNormLinear=absent, ops=types.SimpleNamespace(Sequential=absent))
    load = builtins.__import__

    def load_with_stand_in(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        importer = (globals or {}).get("__name__", "")
        if name == "transformer_engine.pytorch" and importer.startswith("megatron.bridge.peft."):
            return types.SimpleNamespace(pytorch=layers)
        return load(name, globals, locals, fromlist, level)

    builtins.__import__ = load_with_stand_in


def cpu_config(config: Any, said: Collection[str] = ()) -> None:
    """Switch off what only a GPU has, after the overrides: they carry sizes, not kernels. `said` are their keys."""
    import torch

    from parlaunch_launch.cpu.stand_ins import cpu_layers

    config.dist.distributed_backend = "gloo"
    model = config.model
    model.transformer_layer_spec = cpu_layers
    model.use_cpu_initialization = True
    model.apply_rope_fusion = model.masked_softmax_fusion = model.cross_entropy_loss_fusion = False
    for fusion in ("bias_activation_fusion", "bias_dropout_fusion"):  # these work, compiled: where asked for
        if f"model.{fusion}" not in said:
            setattr(model, fusion, False)
    model.moe_token_dispatcher_type, model.cuda_graph_impl = "allgather", "none"
    model.moe_shared_expert_overlap = False  # it hides under the all-to-all of GPUs
    model.moe_grouped_gemm = model.moe_permute_fusion = model.moe_router_fusion = False
    model.gradient_accumulation_fusion = False
    model.mtp_num_layers = None
    optimizer = config.optimizer
    optimizer.use_precision_aware_optimizer = False  # Transformer Engine's; without it everything is kept in fp32
    optimizer.main_grads_dtype = optimizer.main_params_dtype = torch.float32
    optimizer.exp_avg_dtype = optimizer.exp_avg_sq_dtype = torch.float32
    config.comm_overlap = None
    if (
        not isinstance(config.mixed_precision, str)
        or "fp8" in config.mixed_precision
        or "fp4" in config.mixed_precision
    ):
        config.mixed_precision = "bf16_mixed"
    config.tokenizer.tokenizer_type, config.tokenizer.tokenizer_model = "NullTokenizer", None
    config.tokenizer.vocab_size = model.vocab_size
    config.dataset.num_workers, config.dataset.persistent_workers = 0, False  # the ranks have no cores to spare


def known_recipe(name: str) -> Recipe:
    """The catalog's recipe of that name."""
    from parlaunch.model.catalog import recipe

    return recipe(name)


def offline_hub(recipe: Recipe, environ: Any) -> Path | None:
    """Point the hub's client at a cache of our own, unless the user's has the model or the family is unknown to us."""
    model = recipe.model_id
    if model is None or hub_cache.cached(model, environ) or hub_cache.family(model, recipe.architecture) is None:
        return None
    home = Path(environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME", "/tmp"), ".cache"))
    hub = home / "parlaunch" / "hub"
    environ["HF_HUB_CACHE"], environ["HF_HUB_OFFLINE"] = str(hub), "1"
    return hub


def revisions(build: Any) -> list[str]:
    """Commits that a recipe's module pins for its models."""
    names = vars(sys.modules[build.__module__])
    return [v for k, v in names.items() if k.endswith("_REVISION") and isinstance(v, str) and len(v) == 40]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe")
    what.add_argument("--model-config", help="a Hugging Face config.json instead of a recipe")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    fill_in()
    run_rank(
        lambda: (
            train_config(args.model_config, args.overrides) if args.model_config else train(args.recipe, args.overrides)
        )
    )


def why_core(recipe: Recipe) -> str | None:
    """Why Bridge does not train the tiny version of this recipe on a CPU; None when it does."""
    if reason := _no_tiny_version(recipe):
        return reason
    model = recipe.model_id or ""
    explicit = model.startswith("explicit:")  # the recipe spells its model out and asks no hub
    if not (explicit or hub_cache.family(model, recipe.architecture) or hub_cache.cached(model, os.environ)):
        return f"the configuration of {model} is on the Hugging Face hub only, and not in the cache here"
    return None


def _no_tiny_version(recipe: Recipe) -> str | None:
    """What of the model, or of how it is trained, has no tiny version that Bridge runs on a CPU; None when all has."""
    a = recipe.architecture
    if recipe.task != "pretrain":
        return "fine-tuning starts from a checkpoint and a data set of the real model"
    if a.kind != "llm":
        return "the encoder in front of the language model has no tiny version"
    if a.hybrid_layer_pattern or a.linear_attention_pattern:
        return "state-space and linear-attention layers have CUDA kernels only"
    if a.sliding_window or a.window_size:
        return "layers with and without a window need Transformer Engine's attention"
    return None


def train(name: str, overrides: Sequence[str]) -> None:
    """One rank: build the recipe, make it tiny and fit for CPU, hand it to Bridge's pretrain()."""
    recipe = known_recipe(name)
    if reason := why_core(recipe):
        from parlaunch_launch.cpu import core_runner

        if os.environ.get("RANK", "0") == "0":
            say(f"note: {reason}; Megatron Core trains the tiny model of {name} without Megatron Bridge")
        core_runner.train(name, overrides)
        return
    hub = offline_hub(recipe, os.environ)
    before_bridge()
    from parlaunch_launch.bridge_recipes import find_recipe

    build = find_recipe(name)
    if hub is not None:
        config = hub_cache.hf_config(str(recipe.model_id), recipe.architecture)
        assert config is not None
        hub_cache.write(hub, str(recipe.model_id), config, revisions(build))
    _pretrain(build(), recipe, overrides)


def train_config(path: str, overrides: Sequence[str]) -> None:
    """One rank: the model of a config.json, made tiny and fit for CPU, in a plain pretraining of Bridge's."""
    from parlaunch.model.hf_config import recipe_from_hf

    recipe = recipe_from_hf(json.loads(Path(path).read_text(encoding="utf-8")), path=path)
    if reason := _no_tiny_version(recipe):
        raise ParlaunchError(f"--device cpu: {reason}", hint="plan it for GPUs: --hardware dgx-h100:1")
    before_bridge()
    from parlaunch_launch.bridge_runner import from_config

    _pretrain(from_config(path), recipe, overrides)


def _pretrain(config: Any, recipe: Recipe, overrides: Sequence[str]) -> None:
    from megatron.bridge.training.gpt_step import forward_step
    from megatron.bridge.training.pretrain import pretrain

    from parlaunch_launch.bridge_runner import configured

    mine = tiny_overrides(shrink(recipe, int(os.environ.get("WORLD_SIZE", "1"))))  # never the real size on a CPU
    config = configured(config, [*mine, *overrides])
    cpu_config(config, {override.lstrip("+").partition("=")[0] for override in overrides})
    pretrain(config, forward_step)


if __name__ == "__main__":
    main()
