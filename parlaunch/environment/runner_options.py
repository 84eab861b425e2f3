"""Options of Megatron Bridge's own training script that set a configuration value: `-tp 4` behind `--` is an override too."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import zip_longest

from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """One option and the key it sets."""

    flags: tuple[str, ...]
    key: str

    @property
    def name(self) -> str:
        """The long flag as a Python name."""
        return self.flags[-1].removeprefix("--")


OPTIONS = (
    Option(("-ms", "--max_steps"), "train.train_iters"),
    Option(("-gb", "--global_batch_size"), "train.global_batch_size"),
    Option(("-mb", "--micro_batch_size"), "train.micro_batch_size"),
    Option(("-sl", "--seq_length"), "dataset.seq_length"),
    Option(("-tp", "--tensor_model_parallel_size"), "model.tensor_model_parallel_size"),
    Option(("-pp", "--pipeline_model_parallel_size"), "model.pipeline_model_parallel_size"),
    Option(("-cp", "--context_parallel_size"), "model.context_parallel_size"),
    Option(("-vp", "--virtual_pipeline_model_parallel_size"), "model.virtual_pipeline_model_parallel_size"),
    Option(("-ep", "--expert_model_parallel_size"), "model.expert_model_parallel_size"),
    Option(("-etp", "--expert_tensor_parallel_size"), "model.expert_tensor_parallel_size"),
    Option(("--lr",), "optimizer.lr"),
    Option(("--min_lr",), "optimizer.min_lr"),
    Option(("--warmup_iters",), "scheduler.lr_warmup_iters"),
    Option(("--pretrained_checkpoint",), "checkpoint.pretrained_checkpoint"),
    Option(("--save_dir",), "checkpoint.save"),
    Option(("--load_dir",), "checkpoint.load"),
    Option(("--save_interval",), "checkpoint.save_interval"),
)
"""scripts/training/run_recipe.py: COMMON_OVERRIDE_FIELDS."""


def overrides_in(runner_args: Sequence[str]) -> tuple[str, ...]:
    """The KEY=VALUE that these arguments of the runner amount to, in order; what sets no value is left out.

    >>> overrides_in(("-tp", "4", "--mode", "lora", "--lr=1e-4", "train.train_iters=5"))
    ('model.tensor_model_parallel_size=4', 'optimizer.lr=1e-4', 'train.train_iters=5')

    Raises `UsageError` for an option without its value.
    """
    keys = {flag: option.key for option in OPTIONS for flag in option.flags}
    found, rest = [], list(runner_args)
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        if flag in keys:
            if not equals:
                if not rest:
                    raise UsageError(f"{flag} behind `--` has no value", hint=f"for example {flag} 4")
                value = rest.pop(0)
            found.append(f"{keys[flag]}={value}")
        elif equals and re.fullmatch(r"[+]{0,2}[A-Za-z_][\w.]*", flag):
            found.append(word)
    return tuple(found)


MODES = {"pretrain": "pretrain", "sft": "sft", "lora": "peft", "dora": "peft"}
"""What `--mode` of the runner takes, and the task that it is."""


def task_in(runner_args: Sequence[str]) -> str | None:
    """The task that these arguments of the runner ask for by `--mode`; None: they say nothing of it. The last one counts.

    >>> task_in(("--mode", "lora")), task_in(("--mode=sft",)), task_in(("-tp", "4")), task_in(())
    ('peft', 'sft', None, None)
    """
    found = None
    for word, after in zip_longest(runner_args, runner_args[1:], fillvalue=""):
        if word == "--mode" or word.startswith("--mode="):
            found = MODES.get(word.partition("=")[2] or after, found)
    return found
