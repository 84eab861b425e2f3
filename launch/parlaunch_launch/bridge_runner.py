"""Train a Megatron Bridge recipe through the installed `megatron.bridge`. Every rank of torchrun runs this.

    torchrun … -m parlaunch_launch.bridge_runner --recipe llama32_1b_pretrain_config train.train_iters=20

Takes what Bridge's own `scripts/training/run_recipe.py` takes and takes its steps to a finished configuration, for
environments that have the package and no checkout.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import math
from collections.abc import Sequence
from typing import Any

from parlaunch.environment.runner_options import OPTIONS
from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass
from parlaunch_launch.bridge_recipes import TEXT_STEPS, benchmark, find_recipe, forward_step, mode_of, step_of
from parlaunch_launch.rank import run_rank


@dataclass(frozen=True, slots=True)
class Training:
    """What is handed to Bridge: the configuration, which of its loops takes it, and the name of the forward step."""

    config: Any
    loop: str  # pretrain | finetune
    step: str
    step_mode: str  # what a diffusion step is made for

    def run(self) -> None:
        """Train."""
        run = getattr(importlib.import_module(f"megatron.bridge.training.{self.loop}"), self.loop)
        run(config=self.config, forward_step_func=forward_step(self.step, self.step_mode))


def arguments() -> argparse.ArgumentParser:
    """The options of Bridge's script, with its names, short and long."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--recipe")
    what.add_argument(
        "--model-config", help="a Hugging Face config.json: a plain training of that model, by --mode, on mock data"
    )
    parser.add_argument("--mode", choices=("pretrain", "sft", "lora", "dora"), help="default: by the recipe's name")
    parser.add_argument("--step_func", "--step-func", dest="step_func", help="default: by the recipe's name")
    parser.add_argument("--dataset", help="a data set preset of Bridge, in place of the recipe's")
    parser.add_argument("--deterministic", action="store_true")
    for option in OPTIONS:
        parser.add_argument(*option.flags, dest=option.name, help=f"the same as {option.key}=VALUE")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    return parser


def prepared(argv: Sequence[str] | None = None) -> Training:
    """The configuration that these arguments train, and by which loop and step. Raises UsageError for what cannot be."""
    args = arguments().parse_intermixed_args(argv)
    said = [f"{o.key}={value}" for o in OPTIONS if (value := getattr(args, o.name)) is not None]
    name = args.recipe or "pretrain"
    mode = args.mode or mode_of(name)
    config = from_config(args.model_config, mode) if args.model_config else built(name, mode)
    if args.dataset is not None:
        config.dataset = _dataset(config, args.dataset)
    if args.deterministic:
        from megatron.bridge.recipes.utils.determinism_utils import apply_determinism_overrides

        apply_determinism_overrides(config)
    loop = "pretrain" if mode == "pretrain" else "finetune"
    config = configured(config, [*said, *args.overrides], loop)
    measured = benchmark(name)
    packs = getattr(getattr(config, "dataset", None), "packing_buffer_size", None) is not None
    return Training(
        config,
        "pretrain" if measured else loop,  # benchmarks of fine-tuning run on mock data, through pretraining's loop
        args.step_func or step_of(name, energon_packing=packs),
        measured["task"] if measured else loop,
    )


def from_config(path: str, mode: str = "pretrain") -> Any:
    """A plain training of the model that a Hugging Face config.json describes: Bridge's own conversion of it with random
    weights, its defaults for everything beside the model, mock data and no tokenizer. Data come by override, and for fine-tuning
    (`mode` sft, lora or dora) the checkpoint that is tuned.

    Raises UsageError for a model that this Bridge does not convert.
    """
    from megatron.bridge import AutoBridge
    from megatron.bridge.recipes.common import _peft_common, _pretrain_common, _sft_common
    from transformers import AutoConfig

    try:
        model = AutoBridge.from_hf_config(AutoConfig.from_pretrained(path)).to_megatron_provider(load_weights=False)
    except (ValueError, KeyError, ImportError) as error:
        text = str(error).strip().splitlines()
        raise UsageError(
            f"--model-config {path}: the installed megatron.bridge does not convert this model: {text[0] if text else error}",
            hint="train a recipe of its family, or upgrade megatron-bridge and transformers",
        ) from error
    config = {"pretrain": _pretrain_common, "sft": _sft_common}.get(mode, _peft_common)()
    config.model = model
    if mode in ("lora", "dora"):
        from megatron.bridge.recipes.utils.dataset_utils import default_peft_config

        config.peft = default_peft_config(mode)
    if mode != "pretrain":
        config.dataset = _dataset(config, "mock")
        model.seq_length = config.dataset.seq_length
    config.tokenizer.tokenizer_type, config.tokenizer.tokenizer_model = "NullTokenizer", None
    config.tokenizer.vocab_size = model.vocab_size
    return config


def found(name: str) -> tuple[Any, str]:
    """What `built` makes of a recipe, and the module that defines it."""
    return built(name), find_recipe(name).__module__


def built(name: str, mode: str = "") -> Any:
    """The recipe's configuration as Bridge's script has it before the command line speaks.

    A benchmark gets what the script adds to its function: mock data for the fine-tuning of text, and in bf16 the Adam
    that keeps its own precision (run_recipe.py: `_apply_benchmark_dataset_defaults`, `_apply_benchmark_runtime_defaults`).
    """
    build = find_recipe(name)
    parameters = inspect.signature(build).parameters
    given = {}
    if mode in ("lora", "dora"):
        scheme = next((p for p in ("peft_scheme", "peft") if p in parameters), None)
        if scheme is not None:
            given[scheme] = mode
        elif mode != "lora":
            raise UsageError(f"--mode {mode}: {name} has its adapters built in", hint="leave --mode out")
    config = build(**given)
    said = benchmark(name)
    if said is None:
        return config
    if said["task"] != "pretrain" and step_of(name) in TEXT_STEPS:
        recipes_own, config.dataset = config.dataset, _dataset(config, "mock")
        for field in ("num_workers", "pin_memory", "persistent_workers"):
            if hasattr(recipes_own, field) and hasattr(config.dataset, field):
                setattr(config.dataset, field, getattr(recipes_own, field))
        if hasattr(config.dataset, "split"):
            config.dataset.split = "99990,8,2"
    if said["precision"] == "bf16" and getattr(config.optimizer, "optimizer", None) == "adam":
        config.optimizer.use_precision_aware_optimizer = True
    return config


def _dataset(config: Any, name: str) -> Any:
    """One of Bridge's data set presets for this configuration. Raises UsageError with the names there are."""
    presets = importlib.import_module("megatron.bridge.recipes.utils.dataset_utils")
    known = getattr(presets, "DATASET_PRESETS", {})
    if name not in known:
        raise UsageError(
            f"--dataset {name}: the installed megatron.bridge has no such data set",
            hint=f"one of: {', '.join(sorted(known))}" if known else "set dataset.KEY=VALUE instead",
        )
    return presets.build_dataset_config(config, name)


def configured(config: Any, overrides: Sequence[str], loop: str = "pretrain") -> Any:
    """The configuration with the overrides applied by Bridge's own parser, and what has to agree made to agree."""
    from megatron.bridge.training.utils.omegaconf_utils import process_config_with_overrides

    config = process_config_with_overrides(config, cli_overrides=list(overrides) or None)
    if loop == "finetune":
        _loss_by_token(config)
    _pack_for_the_layout(config)
    data = getattr(config, "dataset", None)
    length = getattr(data, "seq_length", None) or getattr(data, "sequence_length", None)
    if length and hasattr(config.model, "seq_length"):
        config.model.seq_length = length
    return config


def _context_sizes(config: Any) -> set[int]:
    """Context parallel sizes of training and, where it differs, of evaluation."""
    evaluation = getattr(getattr(config, "dist", None), "eval_context_parallel_size", None)
    return {getattr(config.model, "context_parallel_size", 1), evaluation or 1}


def _loss_by_token(config: Any) -> None:
    """Context parallel ranks may hold no token with a loss: fine-tuning averages by token (Bridge's training/config.py)."""
    data = config.dataset
    if not any(hasattr(data, f) for f in ("enable_offline_packing", "enable_in_batch_packing")):
        return
    if max(_context_sizes(config)) > 1:
        config.model.calculate_per_token_loss, config.ddp.average_in_collective = True, False


def _pack_for_the_layout(config: Any) -> None:
    """Packed samples are as long as the data set's, padded so that context and sequence parallelism can cut them.

    Bridge's script does so since 0.6; packs are left alone where the data set has no such settings.
    """
    data = config.dataset
    if not getattr(data, "enable_offline_packing", False):
        return
    packing = importlib.import_module("megatron.bridge.data.packing")
    specs = getattr(data, "offline_packing_specs", None)
    if specs is None or isinstance(specs, dict):
        specs = data.offline_packing_specs = packing.PackedSequenceSpecs(**(specs or {}))
    if getattr(data, "seq_length", None) is not None:
        specs.packed_sequence_size = data.seq_length
    tp, scattered = config.model.tensor_model_parallel_size, config.model.sequence_parallel
    units = [2 * cp if cp > 1 else 1 for cp in _context_sizes(config)]
    units += [cp * tp if scattered and tp > 1 else 1 for cp in _context_sizes(config)]
    specs.pad_seq_to_mult = math.lcm(specs.pad_seq_to_mult or 1, *units)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what the command line says; `--help` lists it."""
    run_rank(lambda: prepared(argv).run())


if __name__ == "__main__":
    main()
