"""Overrides: ours make Megatron run one layout and nothing else; the user's are read and pinned."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch import catalog
from parlaunch.datasheet import preset
from parlaunch.errors import UsageError
from parlaunch.layout import FULL_RECOMPUTE, NO_RECOMPUTE, Layout, Recompute
from parlaunch.overrides import (
    account_flags,
    explained,
    hydra,
    legal_features,
    override_reasons,
    overrides,
    pins_from,
    pipeline_layout,
    read_overrides,
    spoken,
)
from tests.conftest import need

ROOT = Path(__file__).parent.parent
NAMED = os.environ.get("PARLAUNCH_BRIDGE_PYTHON")  # read before the tests' environment is cleaned
ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT}:{ROOT / 'launch'}",
    "PATH": os.environ.get("PATH", ""),
    "HOME": os.environ.get("HOME", "/"),
}
DENSE = catalog.recipe("llama32_1b_pretrain_config")
MOE = catalog.recipe("qwen3_30b_a3b_pretrain_config")


def lines(recipe: Any = DENSE, device: str = "cuda", machine: str | None = None, **sizes: Any) -> dict[str, str]:
    x = Layout(**({"world": 8, "global_batch_size": recipe.global_batch_size} | sizes))
    cluster = preset(machine) if machine else None
    return dict(pair.split("=", 1) for pair in overrides(recipe, x, device=device, cluster=cluster))


def with_features(recipe: Any, **features: Any) -> Any:
    return replace(recipe, features=replace(recipe.features, **features))


# --- Ours -------------------------------------------------------------------------------------------------------------


def test_every_size_is_said_even_where_it_is_one() -> None:
    made = lines()
    assert {k.removeprefix("model."): v for k, v in made.items() if k.startswith("model.") and "size" in k} == {
        "tensor_model_parallel_size": "1", "pipeline_model_parallel_size": "1",
        "virtual_pipeline_model_parallel_size": "null", "context_parallel_size": "1",
        "expert_model_parallel_size": "1", "expert_tensor_parallel_size": "1",
    }  # fmt: skip
    assert made["train.micro_batch_size"] == "1"
    assert made["model.sequence_parallel"] == "False"


def test_nothing_of_convergence_is_touched() -> None:
    allowed = {"model", "train", "dist", "ddp", "comm_overlap", "checkpoint", "dataset", "mixed_precision"}
    for name in catalog.recipe_names():
        recipe = catalog.recipe(name)
        made = lines(recipe, tp=2, pp=2, micro_batch_size=2)
        assert {k.split(".")[0] for k in made} <= allowed
        assert not {"train.global_batch_size", "model.seq_length", "dataset.seq_length", "train.train_iters"} & set(
            made
        )


def test_a_batch_is_said_when_the_user_asked_for_another() -> None:
    assert lines(DENSE, global_batch_size=96)["train.global_batch_size"] == "96"
    assert spoken(DENSE, seq_length=4096, precision="fp8cs") == (
        "model.seq_length=4096", "dataset.seq_length=4096", "mixed_precision=bf16_with_fp8_current_scaling_mixed",
    )  # fmt: skip
    assert spoken(DENSE) == ()


def test_recomputation_is_said_whole() -> None:
    def of(recompute: Recompute) -> dict[str, str]:
        return {
            k.removeprefix("model.recompute_"): v for k, v in lines(recompute=recompute).items() if "recompute" in k
        }

    assert of(NO_RECOMPUTE) == {"granularity": "null", "method": "null", "num_layers": "null", "modules": "[core_attn]"}
    assert of(FULL_RECOMPUTE) == {
        "granularity": "full",
        "method": "uniform",
        "num_layers": "1",
        "modules": "[core_attn]",
    }
    some = Recompute(granularity="selective", modules=("layernorm", "mlp"))
    assert of(some) == {
        "granularity": "selective",
        "method": "null",
        "num_layers": "null",
        "modules": "[layernorm,mlp]",
    }


@pytest.mark.parametrize(
    ("chunks", "layout", "embedding", "loss"),
    [
        ((8, 8), "null", "False", "False"),
        ((8, 7), "null", "False", "True"),
        ((7, 8, 8, 7), "null", "True", "True"),
        ((9, 7), "Et*9|t*7L", "False", "False"),
        ((1, 15), "Et|t*15L", "False", "False"),
        ((8, 8, 0), "Et*8|t*8|L", "False", "False"),
    ],
)
def test_stages_are_flags_where_flags_say_it_and_a_layout_elsewhere(
    chunks: tuple[int, ...], layout: str, embedding: str, loss: str
) -> None:
    made = lines(pp=len(chunks), world=len(chunks), layers_per_chunk=chunks)
    assert made["model.pipeline_model_parallel_layout"] == layout
    assert made["model.account_for_embedding_in_pipeline_split"] == embedding
    assert made["model.account_for_loss_in_pipeline_split"] == loss


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
def test_the_layouts_letters_are_the_layers(chunks: list[int]) -> None:
    text = pipeline_layout(chunks, mtp_layers=1)
    parts = text.split("|")
    assert text.startswith("E")
    assert text.endswith("mL")
    counts = [int(p.split("t*")[1].rstrip("mL")) if "t*" in p else p.count("t") for p in parts]
    assert counts == chunks


@given(st.integers(1, 8), st.integers(3, 8), st.booleans(), st.booleans())
def test_flags_stand_for_exactly_one_layer_each(layers: int, count: int, embedding: bool, loss: bool) -> None:
    chunks = [layers] * count
    chunks[0] -= embedding
    chunks[-1] -= loss
    assert account_flags(chunks) == (embedding, loss)


def test_an_expert_overlap_that_the_layout_forbids_is_off_and_says_why() -> None:
    busy = with_features(MOE, ep_overlap=True)
    assert "comm_overlap.overlap_moe_expert_parallel_comm" not in lines(busy, ep=8)
    for sizes, why in (
        ({"ep": 1}, "needs ep above 1"),
        ({"ep": 4, "pp": 2}, "virtual stages"),
        ({"ep": 4, "recompute": FULL_RECOMPUTE}, "full recomputation"),
        ({"ep": 4, "recompute": Recompute(granularity="selective", modules=("moe",))}, "recomputing the experts"),
    ):
        x = Layout(**({"world": 8, "global_batch_size": MOE.global_batch_size} | sizes))
        assert why in override_reasons(busy, x)["comm_overlap.overlap_moe_expert_parallel_comm"]
        assert lines(busy, **sizes)["comm_overlap.delay_wgrad_compute"] == "False"
        assert not legal_features(busy, x).ep_overlap


def test_switches_fall_with_what_they_need() -> None:
    assert lines(with_features(DENSE, tp_overlap=True))["comm_overlap.tp_comm_overlap"] == "False"
    graphs = with_features(DENSE, cuda_graph="transformer_engine", cuda_graph_scope=("attn",))
    assert lines(graphs, recompute=FULL_RECOMPUTE)["model.cuda_graph_impl"] == "none"
    assert "model.cuda_graph_impl" not in lines(graphs)
    assert lines(with_features(DENSE, cpu_offload_layers=4), pp=2)["model.cpu_offloading"] == "False"
    assert (
        lines(recompute=Recompute(granularity="selective", modules=("shared_experts",)))[
            "model.moe_shared_expert_overlap"
        ]
        == "False"
    )


@pytest.mark.parametrize(
    ("kind", "machine", "sizes", "replaced"),
    [
        ("deepep", "dgx-h100", {"ep": 8}, False),
        ("deepep", "dgx-b200", {"ep": 8}, False),
        ("deepep", "gb200-nvl72", {"ep": 4, "world": 4}, True),
        ("deepep", "dgx-h100", {"ep": 1}, True),
        ("hybridep", "gb200-nvl72", {"ep": 4, "world": 4}, False),
        ("hybridep", "dgx1-v100", {"ep": 8}, True),
    ],
)
def test_a_dispatcher_that_this_gpu_cannot_run_is_replaced(
    kind: str, machine: str, sizes: dict[str, Any], replaced: bool
) -> None:
    made = lines(with_features(MOE, dispatcher=kind), machine=machine, **sizes)
    assert (made.get("model.moe_token_dispatcher_type") == "alltoall") is replaced


def test_megatron_fsdp_comes_and_goes_with_its_checkpoints() -> None:
    on = lines(fsdp=True)
    assert on["dist.use_megatron_fsdp"] == on["ddp.use_megatron_fsdp"] == "True"
    assert on["checkpoint.ckpt_format"] == "fsdp_dtensor"
    off = lines(with_features(DENSE, fsdp=True))
    assert off["ddp.use_megatron_fsdp"] == "False"
    assert off["checkpoint.ckpt_format"] == "torch_dist"
    assert not any("fsdp" in k for k in lines())


def test_masked_tokens_with_context_parallelism_are_averaged_by_token() -> None:
    tuning = replace(DENSE, task="sft")
    assert lines(tuning, cp=2)["model.calculate_per_token_loss"] == "True"
    assert "model.calculate_per_token_loss" not in lines(cp=2)
    assert "model.calculate_per_token_loss" not in lines(tuning)


def test_cpu_ranks_hear_only_of_the_model_and_the_batch() -> None:
    made = lines(with_features(MOE, ep_overlap=True), device="cpu", tp=2, pp=2, fsdp=True)
    assert {k.split(".")[0] for k in made} == {"model", "train"}


def test_every_override_has_a_reason_and_no_key_comes_twice() -> None:
    for name in catalog.recipe_names()[::7]:
        recipe = catalog.recipe(name)
        made = explained(recipe, Layout(world=16, tp=2, pp=2, cp=2, global_batch_size=recipe.global_batch_size))
        assert all(len(o.reason) > 8 for o in made)
        assert len({o.key for o in made}) == len(made)


# --- The user's -------------------------------------------------------------------------------------------------------


def test_overrides_that_name_a_planned_size_are_pins() -> None:
    given_ = (
        "model.tensor_model_parallel_size=2", "+model.pipeline_model_parallel_size=4", "++model.context_parallel_size=1_0",
        "model.virtual_pipeline_model_parallel_size=null", "train.micro_batch_size='2'", "train.global_batch_size=512",
        "dataset.seq_length=8192", "optimizer.lr=3e-4", "~checkpoint.save", "model.sequence_parallel=true",
        "dist.use_megatron_fsdp=False", "model.expert_tensor_parallel_size=null",
    )  # fmt: skip
    assert pins_from(given_) == {
        "tp": 2, "pp": 4, "cp": 10, "vp": 1, "micro_batch_size": 2, "global_batch_size": 512, "seq_length": 8192,
        "sequence_parallel": True, "fsdp": False,
    }  # fmt: skip
    assert read_overrides(given_).pairs == given_


def test_the_last_of_a_repeated_key_counts() -> None:
    assert pins_from(["model.tensor_model_parallel_size=2", "model.tensor_model_parallel_size=4"]) == {"tp": 4}


@pytest.mark.parametrize(
    ("pairs", "wanted"),
    [
        (["model.recompute_granularity=null"], NO_RECOMPUTE),
        (["model.recompute_granularity=full"], FULL_RECOMPUTE),
        (["model.recompute_method=block", "model.recompute_num_layers=3"], Recompute(granularity="full", method="block", num_layers=3)),
        (["model.recompute_modules=[mlp, layernorm]"], Recompute(granularity="selective", modules=("mlp", "layernorm"))),
        (["model.recompute_granularity=selective"], Recompute(granularity="selective", modules=("core_attn",))),
    ],
)  # fmt: skip
def test_recomputation_is_pinned_as_one(pairs: list[str], wanted: Recompute) -> None:
    assert pins_from(pairs) == {"recompute": wanted}


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("model.tensor_model_parallel_size=two", "'two' is not a whole number of 1 or more"),
        ("model.tensor_model_parallel_size=2.0", "'2.0' is not a whole number"),
        ("model.tensor_model_parallel_size=0", "'0' is not a whole number"),
        ("model.pipeline_model_parallel_size=null", "'null' is not a whole number"),
        ("train.micro_batch_size=-1", "'-1' is not"),
        ("train.global_batch_size=", "'' is not"),
        ("model.sequence_parallel=1", "'1' is not True or False"),
        ("model.recompute_granularity=some", "'some' is not full, selective or null"),
        ("model.recompute_modules=mlp", "'mlp' is not a list"),
        ("--tp", "'--tp' is no KEY=VALUE override"),
        ("=3", "'=3' is no KEY=VALUE override"),
    ],
)
def test_a_wrong_value_is_named_with_its_key_and_what_was_expected(pair: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        pins_from([pair])
    assert said in caught.value.problem
    assert caught.value.exit_code == 2
    assert pair.split("=")[0] in caught.value.problem
    assert caught.value.hint


def test_two_keys_for_one_size_must_agree() -> None:
    assert pins_from(["model.seq_length=4096", "dataset.seq_length=4096"]) == {"seq_length": 4096}
    with pytest.raises(UsageError, match="contradict"):
        pins_from(["model.seq_length=4096", "dataset.seq_length=8192"])
    with pytest.raises(UsageError, match="neither"):
        pins_from(["model.recompute_granularity=selective", "model.recompute_method=block"])


@given(st.lists(st.text(max_size=30), max_size=4))
def test_odd_text_is_a_usage_error_or_handed_on(pairs: list[str]) -> None:
    try:
        assert read_overrides(pairs).pairs == tuple(pairs)
    except UsageError:
        return


VALUES = (None, True, 8, "torch.bfloat16", "Et*4|t*3mL", ("core_attn", "mlp"), "a b", "it's", "")
READ = """
import json, sys
from hydra.core.override_parser.overrides_parser import OverridesParser
print(json.dumps([OverridesParser.create().parse_override("key=" + text).value() for text in json.load(sys.stdin)], default=str))
"""


@pytest.mark.bridge
def test_hydra_reads_what_we_write() -> None:
    written = json.dumps([hydra(v) for v in VALUES])
    done = subprocess.run([bridge_python(), "-c", READ], input=written, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [list(v) if isinstance(v, tuple) else v for v in VALUES]


# --- Megatron itself --------------------------------------------------------------------------------------------------


def fuzz(python: str, *more: str) -> str:
    """scripts/fuzz_overrides.py in a process of its own: Megatron is patched there for want of a GPU."""
    done = subprocess.run(
        [python, "-W", "ignore", str(ROOT / "scripts" / "fuzz_overrides.py"), *more],
        capture_output=True, text=True, timeout=300, env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_megatron_core_accepts_random_plans() -> None:
    need(importlib.util.find_spec("megatron") and importlib.util.find_spec("torch"), "megatron-core")
    assert "300 cases" in fuzz(sys.executable, "--cases", "300", "--seed", "3")


@pytest.mark.bridge
def test_megatron_bridge_accepts_random_plans(tmp_path: Path) -> None:
    python = bridge_python()
    hub = [python, str(ROOT / "scripts" / "bridge_hub.py"), str(tmp_path)]
    subprocess.run(hub, check=True, capture_output=True, timeout=120, env=ENVIRONMENT)
    said = fuzz(python, "--cases", "150", "--seed", "5", "--hub", str(tmp_path))
    accepted = int(said.split("Bridge ")[1].split()[0])
    assert accepted > 50


def bridge_python() -> str:
    """The interpreter that has Bridge: the one named by `PARLAUNCH_BRIDGE_PYTHON`, or this one."""
    have = importlib.util.find_spec("megatron") is not None and importlib.util.find_spec("megatron.bridge") is not None
    python = NAMED or (sys.executable if have else None)
    need(python, "an environment with megatron-bridge (PARLAUNCH_BRIDGE_PYTHON)")
    return str(python)
