"""Every field of Megatron Bridge's configuration, in any version: planned with, known to leave the plan alone, or neither."""

from __future__ import annotations

import re

import pytest

from parlaunch.environment.override_keys import HARMLESS, NOT_SO, harmless, not_planned_for, set_last_by, shipped_keys
from parlaunch.environment.user_overrides import planned_keys
from parlaunch.front import plan
from parlaunch.model import catalog
from parlaunch.model.recipe import Recipe
from parlaunch.switches.table import SWITCHES

MOE, DENSE = (catalog.recipe(name) for name in ("qwen3_30b_a3b_pretrain_config", "llama3_8b_pretrain_config"))
FIELDS = sorted(key for key in shipped_keys() if "." in key)


@pytest.mark.parametrize("recipe", [MOE, DENSE], ids=["with its sections", "with empty sections"])
def test_every_field_is_in_exactly_one_class(recipe: Recipe) -> None:
    planned, aside = planned_keys(recipe), set(not_planned_for(FIELDS, recipe))
    for key in FIELDS:
        classes = [key in planned, harmless(key), set_last_by(key, recipe) is not None, key in aside]
        assert sum(classes) == 1, f"{key}: {classes}"


@pytest.mark.parametrize("table", [HARMLESS, NOT_SO])
def test_every_word_of_the_tables_names_a_field_of_some_version(table: dict[str, str]) -> None:
    for section, words in table.items():
        for word in words.split():
            pattern = re.escape(f"{section}.{word}").replace(r"\*", ".*").replace(r"\?", ".") + r"(\..*)?"
            assert any(re.fullmatch(pattern, key) for key in FIELDS), f"{section}: no version has {word}"


def test_what_a_plan_says_to_bridge_is_never_harmless() -> None:
    """What is worth saying for the sake of time, memory or layout is so whoever says it."""
    said = {key for row in SWITCHES for key in row.user_keys}
    for recipe, machine in (
        ("gpt_oss_20b_pretrain_8gpu_gb200_nvfp4_config", "gb200-nvl72:2"),
        ("qwen3_30b_a3b_pretrain_config", "dgx-h100:2"),
        ("llama3_8b_sft_config", "dgx-a100-80g:1"),
        ("nemotron_3_nano_pretrain_config", "dgx-b200:2"),
    ):
        made = plan(recipe, machine, evidence=False)
        said |= {pair.partition("=")[0] for pair in made.overrides}
        said |= {key for switch in made.switches for key, _ in switch.keys}
    assert len(said) > 50
    assert [key for key in sorted(said) if harmless(key)] == []


TELLING = re.compile(
    r"parallel|recompute|offload|overlap|fus(ed|ion)|fp8|fp4|fp16|bf16|dtype|dropout|graph|batch_size|buffer|pixels|frames|seq_?len|"
    r"precision|dispatcher|expert|hidden|heads|vocab|backend|kernel|sync_|unused|determin|layers|pack|pad_"
)
THOUGH = re.compile(
    r"checkpoint\..*|logger\.(modules_to_filter|.*loggers|tensorboard_queue_size)|dataset\.(shuffle_buffer_size|token_dtype_code)|"
    r"dist\.flight_recorder_trace_buffer_size|tokenizer\.null_tokenizer_pad_id|model\.(inference_.*|seq_len_interpolation_factor|.*pad_token_id)|ft\.enable_ft_package|"
    r"rng\.data_parallel_random_init|nvrx_straggler\..*|dataset\.allow_ambiguous_pad_tokens"
)
"""Fields with such a word that were read: they write, watch, infer, or are the number of a token."""


def test_a_field_whose_name_speaks_of_sizes_kernels_or_overlap_is_not_harmless_unread() -> None:
    assert [key for key in FIELDS if harmless(key) and TELLING.search(key) and not THOUGH.fullmatch(key)] == []


@pytest.mark.parametrize(
    "key",
    [
        "train.empty_unused_memory_level", "train.check_optimizer_step_success", "model.hidden_dropout", "model.deterministic_mode",
        "model.fp16_lm_cross_entropy", "model.bias_dropout_fusion", "dataset.create_attention_mask", "dataset.task_encoder.max_pixels",
        "dataset.dataset_kwargs", "dist.distributed_backend", "rerun_state_machine.rerun_mode", "validation.eval_micro_batch_size",
        "tokenizer.use_tokenizer_vocab_size", "optimizer.muon_num_ns_steps", "ddp.check_for_nan_in_grad", "logger.timing_log_level",
    ],
)  # fmt: skip
def test_what_waits_for_the_gpu_keeps_more_or_changes_a_size_is_named(key: str) -> None:
    assert key in shipped_keys()
    assert not_planned_for([key], MOE) == (key,)
