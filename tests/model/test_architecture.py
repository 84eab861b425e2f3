"""Layer kinds: what each layer of a model is made of, and values that come back from JSON as they went."""

from __future__ import annotations

from collections import Counter

import pytest

from parlaunch.data import load
from parlaunch.model.architecture import Architecture, Encoder, LayerKind, architecture_from_json
from parlaunch.model.catalog import architecture

LLAMA = architecture("meta-llama/Meta-Llama-3-8B")


@pytest.mark.parametrize("model", load("architectures.json"))
def test_an_architecture_survives_the_way_through_json(model: str) -> None:
    known = architecture(model)
    assert architecture_from_json(known.shape()) == known


@pytest.mark.parametrize("model", load("architectures.json"))
def test_every_layer_is_counted_once(model: str) -> None:
    row = load("architectures.json")[model]
    layers = architecture(model).layers()
    if "num_layers" in row:
        assert len(layers) == row["num_layers"]
    if row.get("num_moe_layers"):
        assert sum(k.mlp == "moe" for k in layers) == row["num_moe_layers"]


@pytest.mark.parametrize("model", [m for m, row in load("architectures.json").items() if row.get("layer_counts")])
def test_hybrids_have_the_layers_that_their_entry_counts(model: str) -> None:
    counts = load("architectures.json")[model]["layer_counts"]
    names = {
        "mamba": ("mamba", None), "attention": ("attention", None), "mlp": (None, "dense"), "moe": (None, "moe"),
        "linear_attention": ("gated_delta_net",), "full_attention": ("attention",),
    }  # fmt: skip
    for name, count in counts.items():
        want = names[name]
        assert sum((k.mixer, k.mlp)[: len(want)] == want for k in architecture(model).layers()) == count


def test_a_dense_model_has_one_kind_of_layer() -> None:
    assert set(LLAMA.layers()) == {LayerKind("attention", "dense", 32, 8, 128)}


def test_windows_alternate_where_the_model_says_so() -> None:
    windows = Counter(k.window for k in architecture("openai/gpt-oss-120b").layers())
    assert windows == {128: 18, None: 18}
    assert [k.window for k in architecture("google/gemma-3-27b-it").layers()][:6] == [1024] * 5 + [None]


def test_every_nth_layer_is_without_a_window_when_the_pattern_is_a_number() -> None:
    a = architecture_from_json({**LLAMA.shape(), "num_layers": 4, "window_size": [127, 0], "window_attn_skip_freq": 2})
    assert [k.window for k in a.layers()] == [128, None, 128, None]


def test_layers_with_a_window_may_have_heads_of_their_own() -> None:
    kinds = architecture("stepfun-ai/Step-3.5-Flash").layers()
    assert {(k.window, k.heads) for k in kinds} == {(None, 64), (512, 96)}
    assert {(k.head_dim, k.groups) for k in architecture("google/gemma-4-26B-A4B-it").layers()} == {(256, 8), (512, 2)}


def test_the_last_layers_borrow_keys_and_values() -> None:
    kinds = architecture("google/gemma-4-E4B-it").layers()
    assert [k.borrows_kv for k in kinds] == [False] * 24 + [True] * 18


def test_dense_layers_come_first() -> None:
    assert [k.mlp for k in architecture("deepseek-ai/DeepSeek-V3").layers()] == ["dense"] * 3 + ["moe"] * 58
    a = architecture_from_json({**LLAMA.shape(), "num_layers": 3, "num_moe_experts": 8, "first_k_dense": 1})
    assert [k.mlp for k in a.layers()] == ["dense", "moe", "moe"]


def test_prediction_heads_repeat_the_last_layer_or_their_own_pattern() -> None:
    assert architecture("deepseek-ai/DeepSeek-V3").mtp_layers() == architecture("deepseek-ai/DeepSeek-V3").layers()[-1:]
    heads = architecture("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16").mtp_layers()
    assert [(k.mixer, k.mlp) for k in heads] == [("attention", None), (None, "moe")] * 2
    assert LLAMA.mtp_layers() == ()


def test_some_sparse_layers_take_the_keys_that_another_chose() -> None:
    assert sum(k.indexer for k in architecture("zai-org/GLM-5.1").layers()) == 78
    assert sum(k.indexer for k in architecture("zai-org/GLM-5.2").layers()) == 21


def test_missing_sizes_are_megatrons_defaults() -> None:
    a = architecture_from_json({"num_layers": 2, "hidden_size": 1024, "num_attention_heads": 16, "vocab_size": 100})
    assert (a.ffn_hidden_size, a.num_query_groups, a.kv_channels) == (4096, 16, 64)


def test_a_template_without_sizes_says_so() -> None:
    assert not architecture("explicit:vanilla_gpt").complete
    assert LLAMA.complete


def test_an_encoder_without_a_count_is_counted_from_its_sizes() -> None:
    assert Encoder(num_layers=2, hidden_size=10, ffn_hidden_size=40).total_params == 2 * 10 * (40 + 80)
    assert Encoder(params=5).total_params == 5
    assert Encoder().total_params == 0


def test_equal_architectures_hash_alike() -> None:
    again = architecture_from_json(LLAMA.shape())
    assert again is not LLAMA
    assert hash(again) == hash(LLAMA)
    assert isinstance({LLAMA: 1}[again], int)
    assert isinstance(again, Architecture)
