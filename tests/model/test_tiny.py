"""Recipes shrunken for CPU: their family stays, every layout of a few ranks fits, and overrides carry all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.errors import ParlaunchError
from parlaunch.model.catalog import recipe, recipe_names
from parlaunch.model.parameters import total_params
from parlaunch.model.tiny import sentence, shrink, tiny_overrides

LLAMA, QWEN, DEEPSEEK = "llama32_1b_pretrain_config", "qwen3_30b_a3b_pretrain_config", "deepseek_v3_pretrain_config"


def pairs(name: str, ranks: int = 4) -> dict[str, str]:
    return dict(o.split("=", 1) for o in tiny_overrides(shrink(recipe(name), ranks)))


def test_every_language_model_of_the_catalog_shrinks_to_below_two_million_parameters() -> None:
    seen = set()
    for name in recipe_names():
        found = recipe(name)
        if found.architecture.kind == "diffusion" or found.architecture in seen:
            continue
        seen.add(found.architecture)
        tiny = shrink(found, 4)
        assert 50_000 < total_params(tiny.architecture) < 2_000_000, name
        assert tiny.name == name
    assert len(seen) > 30


def test_the_family_stays() -> None:
    llama, qwen, deepseek = (shrink(recipe(name), 4).architecture for name in (LLAMA, QWEN, DEEPSEEK))
    assert llama.share_embeddings_and_output_weights
    assert llama.gated_linear_unit
    assert llama.num_query_groups < llama.num_attention_heads
    assert llama.num_moe_experts is None
    assert qwen.num_moe_experts == 4
    assert qwen.qk_layernorm
    assert not qwen.share_embeddings_and_output_weights
    assert deepseek.multi_latent_attention
    assert deepseek.moe_shared_expert_intermediate_size
    assert deepseek.first_k_dense == 1


def test_what_was_tuned_for_the_real_size_is_forgotten() -> None:
    tiny = shrink(recipe(DEEPSEEK), 4)
    assert tiny.defaults.pp is None
    assert tiny.gpus is None
    assert tiny.features.dispatcher == "allgather"
    assert (tiny.seq_length, tiny.global_batch_size, tiny.precision) == (64, 8, "bf16")


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 4), st.integers(1, 6), st.integers(1, 64))
def test_sizes_divide_by_the_pins_and_the_batch_by_the_ranks(tp: int, pp: int, vp: int, ep: int, ranks: int) -> None:
    tiny = shrink(recipe(QWEN), ranks, keep={"tp": tp, "pp": pp, "vp": vp, "ep": ep})
    a = tiny.architecture
    assert a.num_layers % (pp * vp) == 0
    assert a.num_attention_heads % tp == 0
    assert a.num_query_groups % tp == 0
    assert (a.num_moe_experts or 0) % ep == 0
    assert tiny.global_batch_size % ranks == 0


def test_a_pinned_batch_and_length_stay() -> None:
    tiny = shrink(recipe(LLAMA), 4, keep={"seq_length": 128, "global_batch_size": 12})
    assert (tiny.seq_length, tiny.global_batch_size) == (128, 12)
    assert "dataset.seq_length=128" in tiny_overrides(tiny)
    assert "train.global_batch_size=12" in tiny_overrides(tiny)


def test_the_overrides_carry_the_model_and_leave_no_files() -> None:
    said = pairs(DEEPSEEK)
    assert said["model.num_layers"] == "4"
    assert said["model.moe_layer_freq"] == "[0,1,1,1]"
    assert said["model.kv_lora_rank"] == "32"
    assert said["checkpoint.save"] == said["checkpoint.load"] == said["logger.tensorboard_dir"] == "null"
    assert "model.kv_lora_rank" not in pairs(LLAMA)
    assert "model.num_moe_experts" not in pairs(LLAMA)


def test_the_sentence_says_what_was_done_and_left_out() -> None:
    said = sentence(recipe(DEEPSEEK), shrink(recipe(DEEPSEEK), 4))
    assert "4 layers of 64 instead of 61 of 7168" in said
    assert "4 experts instead of 256" in said
    assert "without multi-token prediction" in said


def test_a_diffusion_model_is_refused() -> None:
    name = next(n for n in recipe_names() if recipe(n).architecture.kind == "diffusion")
    with pytest.raises(ParlaunchError, match="is a diffusion transformer"):
        shrink(recipe(name), 4)


def test_full_precision_stays_full_precision() -> None:
    assert shrink(replace(recipe(LLAMA), precision="fp32"), 2).precision == "fp32"
    assert shrink(replace(recipe(LLAMA), precision="fp8cs"), 2).precision == "bf16"
