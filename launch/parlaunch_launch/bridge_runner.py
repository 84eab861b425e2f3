"""Train a Megatron Bridge recipe through the installed `megatron.bridge`. Every rank of torchrun runs this.

    torchrun … -m parlaunch_launch.bridge_runner --recipe llama32_1b_pretrain_config train.train_iters=20

Takes what Bridge's own `scripts/training/run_recipe.py` takes (`--recipe`, `--step_func`, KEY=VALUE), for environments
that have the package and no checkout. Recipes of `megatron.bridge.recipes` and of `megatron.bridge.perf_recipes`.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

from parlaunch.errors import ParlaunchError, UsageError
from parlaunch_launch.rank import run_rank

STEPS = (
    ("qwen_omni", "megatron.bridge.models.qwen_omni.qwen3_omni_step", "forward_step"),
    ("qwen2_audio", "megatron.bridge.training.audio_lm_step", "forward_step"),
    ("nemotron_omni", "megatron.bridge.training.nemotron_omni_step", "forward_step"),
    ("qwen_vl.qwen3", "megatron.bridge.models.qwen_vl.qwen3_vl_step", "forward_step"),
    ("qwen_vl.qwen35", "megatron.bridge.models.qwen_vl.qwen3_vl_step", "forward_step"),
    ("flux", "megatron.bridge.diffusion.models.flux.flux_step", "FluxForwardStep"),
    ("wan", "megatron.bridge.diffusion.models.wan.wan_step", "WanForwardStep"),
    ("_vl", "megatron.bridge.training.vlm_step", "forward_step"),
    ("", "megatron.bridge.training.gpt_step", "forward_step"),
)
"""Part of the module that defines a model's provider, and the forward step its batches need. The first that fits counts."""


def _families(package: ModuleType) -> Iterator[ModuleType]:
    """The packages of recipe families, and the per-hardware packages inside them."""
    for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        if found.ispkg and not found.name.rsplit(".", 1)[1].startswith("_"):
            family = importlib.import_module(found.name)
            yield family
            yield from _families(family)


def find_recipe(name: str) -> Callable[..., Any]:
    """The function that builds the recipe. Raises UsageError with the nearest names that this Bridge has."""
    recipes = importlib.import_module("megatron.bridge.recipes")
    if callable(build := getattr(recipes, name, None)):
        return build  # type: ignore[no-any-return]
    names = set(dir(recipes))
    for package in ("megatron.bridge.recipes", "megatron.bridge.perf_recipes"):
        try:
            root = importlib.import_module(package)
        except ModuleNotFoundError:
            continue  # Bridge before 0.5 has no perf_recipes
        for family in _families(root):
            if callable(build := getattr(family, name, None)):
                return build  # type: ignore[no-any-return]
            names |= set(dir(family))
    near = difflib.get_close_matches(name, [n for n in names if n.endswith("_config")], n=5, cutoff=0.6)
    raise UsageError(
        f"the installed megatron.bridge has no recipe {name!r}", hint="nearest: " + ", ".join(near) if near else ""
    )


def configured(config: Any, overrides: Sequence[str]) -> Any:
    """The recipe's configuration with the overrides applied by Bridge's own parser, lengths of model and data set equal."""
    from megatron.bridge.training.utils.omegaconf_utils import process_config_with_overrides

    config = process_config_with_overrides(config, cli_overrides=list(overrides) or None)
    data = getattr(config, "dataset", None)
    length = getattr(data, "seq_length", None) or getattr(data, "sequence_length", None)
    if length and hasattr(config.model, "seq_length"):
        config.model.seq_length = length
    return config


def task_of(name: str) -> str:
    """pretrain or finetune, from the recipe's name as Bridge reads it."""
    words = ("finetune", "sft", "peft", "lora")
    return "finetune" if any(word in name for word in words) and "pretrain" not in name else "pretrain"


def forward_step(config: Any, named: str | None = None, mode: str = "pretrain") -> Any:
    """The forward step for a configuration's model, or the one named (`vlm_step`, as in Bridge's own script)."""
    provider = f"{type(config.model).__module__}"
    rows = (
        [row for row in STEPS if row[0] in provider]
        if named is None
        else [r for r in STEPS if r[1].endswith(f".{named}")]
    )
    if not rows:
        known = ", ".join(sorted({module.rsplit(".", 1)[1] for _, module, _ in STEPS}))
        raise UsageError(f"--step_func {named}: there is no such step", hint=f"one of: {known}")
    _, module, attribute = rows[0]
    try:
        step: Any = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ParlaunchError(
            f"the installed megatron.bridge has no {module}: {error}", hint="name another with `-- --step_func NAME`"
        ) from error
    if not inspect.isclass(step):
        return step
    make: Any = step
    return make(mode=mode) if "mode" in inspect.signature(make).parameters else make()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--step_func", "--step-func", default=None, help="default: by the recipe's model")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    run_rank(lambda: train(args.recipe, args.overrides, args.step_func))


def train(name: str, overrides: Sequence[str], step_func: str | None = None) -> None:
    """Load the recipe, apply the overrides, pretrain or finetune."""
    from megatron.bridge.training.finetune import finetune
    from megatron.bridge.training.pretrain import pretrain

    config = configured(find_recipe(name)(), overrides)
    mode = task_of(name)
    run = pretrain if mode == "pretrain" else finetune
    run(config=config, forward_step_func=forward_step(config, step_func, mode))


if __name__ == "__main__":
    main()
