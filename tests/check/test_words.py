"""Rows of tables as people write them: read as they were meant, with what is supposed said, or refused with the reason."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from parlaunch.check.measured import Machines, Run, memory_of, run_of
from parlaunch.check.validate import validate
from parlaunch.check.words import features_of, size_in
from parlaunch.data import load
from parlaunch.errors import UsageError
from parlaunch.estimate.frameworks import framework_of
from parlaunch.estimate.timing import estimate_time
from parlaunch.estimate.timing.bands import error_band
from parlaunch.hardware.datasheet import product
from parlaunch.model.catalog import architecture
from parlaunch.model.layout import NO_RECOMPUTE, Recompute
from parlaunch.model.recipe import Features, features_from_json

ROW: dict[str, Any] = {
    "id": "a", "model_id": "meta-llama/Meta-Llama-3-8B", "task": "pretrain", "hardware": "dgx-h100", "gpus": 16, "precision": "bf16",
    "seq": 4096, "gbs": 64, "mbs": 1, "tp": 2, "framework": "Megatron-Core", "iteration_time_s": 1.0,
}  # fmt: skip


def read(*without: str, **change: Any) -> Run:
    """The row with a change, and without some of its fields."""
    return run_of({k: v for k, v in ROW.items() if k not in without} | change, Machines())


def refused(*without: str, **change: Any) -> str:
    with pytest.raises(UsageError) as error:
        read(*without, **change)
    return f"{error.value.problem} {error.value.hint or ''}"


PLAIN = read()


@pytest.mark.parametrize(
    ("without", "change"),
    [
        (("tp", "mbs", "gbs"), {"tensor_model_parallel_size": 2, "micro_batch_size": 1, "global_batch_size": 64}),
        (("seq",), {"seq_len": "4k"}),
        (("seq",), {"sequence_length": "4,096"}),
        (("gpus",), {"nodes": 2}),
        (("gpus",), {"dp": 8}),
        (("gpus", "hardware"), {"hardware": "dgx-h100:2"}),
        (("gbs",), {"num_microbatches": 8}),
        (("gbs",), {"gradient_accumulation_steps": 8}),
        (("tp",), {"TP": 2.0}),
        (("mbs", "gpus"), {"Micro-batch size": "1", "# GPUs": "16"}),
        ((), {"vp": 0, "ep": "-", "cp": "nan"}),
        (
            ("tp", "mbs", "gbs", "seq", "precision"),
            {
                "model.tensor_model_parallel_size": "2",
                "train.micro_batch_size": 1,
                "config.train.global_batch_size": 64,
                "dataset.seq_length": 4096,
                "mixed_precision": "bf16_mixed",
                "model.recompute_granularity": "None",
                "model.recompute_modules": "[core_attn]",
            },
        ),
    ],
)
def test_other_names_of_a_field_mean_the_same(without: tuple[str, ...], change: dict[str, Any]) -> None:
    run = read(*without, **change)
    assert (run.layout, run.recipe, run.rates, run.scored) == (PLAIN.layout, PLAIN.recipe, PLAIN.rates, True)


def test_recomputation_is_read_from_the_fields_of_a_configuration() -> None:
    full = {
        "model.recompute_granularity": "full",
        "model.recompute_method": "block",
        "model.recompute_num_layers": "4.0",
    }
    assert read(**full).layout.recompute == Recompute(granularity="full", method="block", num_layers=4)
    some = read(recompute_granularity="selective", recompute_modules="['core_attn', 'mlp']").layout.recompute
    assert (some.granularity, set(some.modules)) == ("selective", {"core_attn", "mlp"})


def test_out_of_memory_in_the_place_of_a_number_is_how_the_run_ended() -> None:
    for cell in ({"iteration_time_s": "OOM"}, {"tokens/s/GPU": "oom"}, {"peak memory (GiB)": "OOM on rank 0"}):
        run = read("iteration_time_s", **cell)
        assert (run.oom, run.measured) == (True, {})


def test_a_name_that_nothing_reads_is_said() -> None:
    assert read(seqs=1, comment="x", _mine=2).notes == ("not read: seqs",)
    assert read(features={"fp8_parameters": True}).notes == ("not read: features.fp8_parameters",)


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [
        ({"step time (s)": "12.5"}, 12.5),
        ({"Iteration time, ms": "12,500"}, 12.5),
        ({"ms/iter": 12500}, 12.5),
        ({"elapsed time per iteration (ms)": "12500.0"}, 12.5),
        ({"step time": "12.5 s"}, 12.5),
        ({"step time": "12500ms"}, 12.5),
        ({"s/iter": "12,5"}, 12.5),
    ],
)
def test_a_measured_time_is_read_as_people_write_it(cell: dict[str, Any], seconds: float) -> None:
    assert read("iteration_time_s", **cell).measured["iteration_time_s"] == pytest.approx(seconds)


@pytest.mark.parametrize("name", ["tokens/s/GPU", "Tok/s/GPU", "tokens per second per gpu"])
def test_a_measured_rate_is_read_as_people_write_it(name: str) -> None:
    assert read(**{name: "12,900"}).measured["tokens_per_s_per_gpu"] == 12900
    assert read(**{"TFLOP/s/GPU": "412"}).measured["tflops_per_gpu"] == 412
    assert (read(peak_mem="70 GB").memory_unit, read(peak_mem="70 GiB").memory_unit) == (10**9, 2**30)


@pytest.mark.parametrize("value", ["fast", "12.5 parsecs", "1.2.3", "12 ms", "--"])
def test_a_rate_that_is_no_number_is_refused(value: str) -> None:
    assert f"tokens_per_s_per_gpu is {value!r}" in refused(tokens_per_s_per_gpu=value)


def test_a_model_that_nobody_knows_is_named_with_the_nearest() -> None:
    assert "no model is known as 'Qwen/Qwen3-9B'" in refused("model_id", "arch", model="Qwen/Qwen3-9B")
    assert read("model_id", "arch", model="Qwen/Qwen3-8B").recipe.architecture.num_layers == 36


@pytest.mark.parametrize("value", [-2, 1.5, "two", True])
def test_a_size_that_is_no_size_is_refused(value: Any) -> None:
    assert "tp is" in refused(tp=value)


def test_two_of_one_thing_that_differ_are_refused_and_a_dp_that_is_not_the_gpus_is_said() -> None:
    assert "two of" in refused("mbs", micro_batch_size=1, micro_batch=2)
    assert "dp 3 is not that of 16 GPUs: taken as 8" in read(dp=3).notes
    assert "less than one micro batch" in refused(gbs=4, mbs=2)
    assert "pp·vp is 2" in refused(pp=2, layers_per_chunk=[16, 8, 8])


@pytest.mark.parametrize(
    ("given", "short"),
    [
        ("BF16", "bf16"), ("bfloat16", "bf16"), ("bf16-mixed", "bf16"), ("FP16", "fp16"), ("TF32", "fp32"), ("MXFP8", "fp8mx"),
        ("fp8-cs", "fp8cs"), ("fp8 (delayed scaling)", "fp8ds"), ("bf16 (FP8 current scaling)", "fp8cs"), ("fp8_blockwise", "fp8sc"),
        ("bf16_with_mxfp8_mixed", "fp8mx"), ("NVFP4", "nvfp4"),
    ],
)  # fmt: skip
def test_a_format_is_read_in_any_spelling(given: str, short: str) -> None:
    run = read(hardware="dgx-b200", precision=given)
    assert (run.recipe.precision, run.notes) == (short, ())


def test_fp8_alone_is_scaled_as_its_software_did_and_what_is_no_format_is_refused() -> None:
    new, old = read(precision="fp8"), read(precision="FP8", framework="NeMo 24.09")
    assert (new.recipe.precision, old.recipe.precision) == ("fp8cs", "fp8ds")
    assert all("does not say its scaling" in run.notes[0] for run in (new, old))
    assert read(precision="bf16 + fp32 grad accumulation").recipe.features.grad_reduce_fp32
    assert "is unknown" in refused(precision="bf16 int8")


@pytest.mark.parametrize(
    ("given", "task"), [("LoRA", "peft"), ("SFT", "sft"), ("pre-training", "pretrain"), ("fine-tuning", "sft")]
)
def test_a_task_is_read_in_any_spelling(given: str, task: str) -> None:
    assert read(task=given).recipe.task == task


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("Full", Recompute(granularity="full", method="uniform", num_layers=1)),
        ("full (block, 8 layers)", Recompute(granularity="full", method="block", num_layers=8)),
        ({"granularity": "full"}, Recompute(granularity="full", method="uniform", num_layers=1)),
        ("selective", Recompute(granularity="selective", modules=("core_attn",))),
        ("selective (mlp, layernorm)", Recompute(granularity="selective", modules=("mlp", "layernorm"))),
        (["mlp"], Recompute(granularity="selective", modules=("mlp",))),
        ({"modules": ["mlp"]}, Recompute(granularity="selective", modules=("mlp",))),
        ({"granularity": "none"}, NO_RECOMPUTE),
        ("no", NO_RECOMPUTE),
    ],
)
def test_recomputation_is_read_in_any_spelling(given: Any, meant: Recompute) -> None:
    assert read(recompute=given).layout.recompute == meant


def test_recomputation_that_says_neither_how_much_nor_what_is_refused() -> None:
    assert "neither how much nor what" in refused(recompute="activation checkpointing")
    assert "neither how much nor what" in refused(recompute=True)


@pytest.mark.parametrize(
    ("change", "preset"),
    [
        ({"gpu_type": "H100"}, "dgx-h100"), ({"gpu": "NVIDIA H100 80GB HBM3"}, "dgx-h100"), ({"gpu_type": "A100-80GB"}, "dgx-a100-80g"),
        ({"gpu_type": "A100-40GB-SXM"}, "dgx-a100-40g"), ({"gpu_type": "A100-80GB-PCIe"}, "a100-pcie-8"), ({"gpu_type": "H20-96GB"}, "hgx-h20"),
        ({"gpu_type": "H200-141GB-SXM"}, "dgx-h200"), ({"hardware": "GB200 NVL72"}, "gb200-nvl72"), ({"hardware": "8x H100"}, "dgx-h100"),
        ({"hardware": "RTX PRO 6000"}, "rtxpro6000-8"), ({"hardware": "H100 SXM"}, "dgx-h100"), ({"hardware": "DGX H100"}, "dgx-h100"),
    ],
)  # fmt: skip
def test_a_machine_is_known_by_any_name_of_it_or_of_its_gpu(change: dict[str, Any], preset: str) -> None:
    assert read("hardware", **change).rates == read(hardware=preset).rates


def test_a_machine_that_is_none_is_refused_with_the_nearest() -> None:
    assert "unknown machine 'MI300X'" in refused(hardware="MI300X")


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({"model_id": "Qwen/Qwen3-8B-Base"}, "Qwen/Qwen3-8B"), ({"model_id": "meta-llama/Llama-3.1-8B"}, "meta-llama/Meta-Llama-3.1-8B"),
        ({"model_id": "deepseek-ai/DeepSeek-V3-Base"}, "deepseek-ai/DeepSeek-V3"), ({"model_id": None, "model": "llama3_8b"}, "meta-llama/Meta-Llama-3-8B"),
        ({"model_id": None, "model": "GPT-3 175B"}, "explicit:gpt3_175b"),
    ],
)  # fmt: skip
def test_a_model_by_another_name_is_taken_as_the_known_one_and_said(change: dict[str, Any], known: str) -> None:
    run = read(**change)
    assert run.recipe.architecture == read(model_id=known).recipe.architecture
    assert any(note.endswith(f"taken as {known}") for note in run.notes)


def test_another_model_is_none_that_is_like_it() -> None:
    assert "unknown model" in refused(model_id="meta-llama/Llama-2-70b-hf")


SIZES = {"layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8, "ffn": 14336, "vocab": 128256}


@pytest.mark.parametrize(
    "arch",
    [
        SIZES | {"gated_mlp": True, "activation_func": "silu"},
        SIZES | {"activation": "swiglu"},
        SIZES | {"activation_func": "SwiGLU", "layers": "32", "hidden": 4096.0},
        {
            "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
            "vocab_size": 128256, "swiglu": True, "hidden_act": "silu", "tie_word_embeddings": False,
        },
    ],
)  # fmt: skip
def test_sizes_of_a_model_are_read_in_any_spelling(arch: dict[str, Any]) -> None:
    made = read("model_id", arch=arch).recipe.architecture
    assert (made.num_query_groups, made.gated_linear_unit, made.activation_func) == (8, True, "silu")
    assert (made.num_layers, made.ffn_hidden_size, made.vocab_size) == (32, 14336, 128256)


@pytest.mark.parametrize("whole", [True, False])
def test_every_known_model_is_the_same_one_inline(whole: bool) -> None:
    """As the catalog's table writes it, and as `Architecture.shape` does."""
    for name, entry in load("architectures.json").items():
        known = architecture(name)
        if known.complete:
            assert read("model_id", arch=entry if whole else known.shape()).recipe.architecture == known, name


def test_latent_attention_and_shared_experts_are_read_by_their_names_in_a_configuration() -> None:
    made = read("model_id", arch={
        "num_hidden_layers": 4, "hidden_size": 2048, "num_attention_heads": 16, "vocab_size": 32000, "n_routed_experts": 64,
        "num_experts_per_tok": 6, "moe_intermediate_size": 1408, "n_shared_experts": 2, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64, "v_head_dim": 128, "first_k_dense_replace": 1, "intermediate_size": 10944,
    })  # fmt: skip
    a = made.recipe.architecture
    assert made.notes == ()
    assert (a.layers()[0].mixer, a.layers()[0].mlp, a.layers()[1].mlp) == ("mla", "dense", "moe")
    assert (a.qk_head_dim, a.qk_pos_emb_head_dim, a.moe_shared_expert_intermediate_size) == (128, 64, 2816)


def test_what_is_supposed_of_a_model_is_said() -> None:
    run = read("model_id", arch={"layers": 24, "hidden": 2048, "heads": 16, "gated_mlp": True, "lags": 3})
    assert [note.split(":")[0] for note in run.notes] == [
        "not read", "a vocabulary of 51,200", "an MLP four times as wide as the model, as Megatron has it where nobody says",
    ]  # fmt: skip
    assert run.scored
    assert read(arch={"num_layers": 12}).recipe.architecture.num_layers == 12
    assert "is no decoder" in refused(arch=SIZES | {"type": "t5"})
    every_other = read("model_id", arch=SIZES | {"experts": 8, "topk": 2, "moe_layer_freq": 2}).recipe.architecture
    assert [kind.mlp for kind in every_other.layers()[:3]] == ["moe", "dense", "moe"]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("GPT-22B", 22e9), ("BLOOM candidate 200B", 200e9), ("llama2_70b", 70e9), ("GPT 1.3 B", 1.3e9), ("gpt2-345m", 345e6), ("1T", 1e12),
     ("Qwen3-30B-A3B", 30e9), ("Mixtral 8x7B", None), ("A3B", None), ("BERT", None), (None, None)],
)  # fmt: skip
def test_the_size_that_a_name_says_is_the_models_whole(name: str | None, parameters: float | None) -> None:
    assert size_in(name) == parameters


def test_a_row_without_layers_has_those_that_make_its_name() -> None:
    shape = {"layers": None, "hidden": 14336, "heads": 112, "vocab": 250880}
    run = read("model_id", model="BLOOM-176B", arch=shape)
    assert run.recipe.architecture.num_layers == 70
    assert "70 layers: what makes 'BLOOM-176B' of its other sizes" in run.notes
    assert run.scored
    assert "lacks num_layers" in refused("model_id", model="BLOOM", arch=shape)


def test_software_that_nobody_measured_is_said_and_its_band_is_wide() -> None:
    def band(run: Run) -> float:
        return error_band(run.recipe, run.layout, run.rates)

    strange, ours = read(framework="Alpa"), read(framework="Megatron Bridge")
    assert strange.notes == ("framework 'Alpa' is not known: predicted as Megatron Bridge's",)
    assert ours.notes == ()
    assert band(strange) >= 3 * band(ours)
    for name in ("mcore 0.8", "Megatron Core", "Megatron-LM core_r0.9"):
        assert band(read(framework=name)) == band(PLAIN)


@pytest.mark.parametrize(
    "name", ["torchtitan", "LLM Foundry", "PyTorch FSDP", "HuggingFace Accelerate", "DeepSpeed ZeRO-3"]
)
def test_eager_pytorch_is_slower_than_fused_kernels_and_sums_no_gradients_beside_products(name: str) -> None:
    eager, fused = (read(framework=f, tp=1, sharding="FSDP") for f in (name, "Megatron-Core"))
    slow, quick = (estimate_time(run.recipe, run.layout, run.rates).iteration_time_s for run in (eager, fused))
    assert 1.03 < slow / quick < 1.15
    assert framework_of(name).software == "pytorch"
    assert any("with which no run here was made" in note for note in eager.notes)
    assert error_band(eager.recipe, eager.layout, eager.rates) >= 0.2


@pytest.mark.parametrize(
    ("given", "sharded", "fsdp"),
    [("None", False, False), ("DDP", False, False), ("zero-0", False, False), ("ZeRO-1", True, False), ("ZeRO 3", True, True), ("FSDP2", True, True),
     ("FULL_SHARD", True, True), ("fully sharded", True, True), ("FSDP (SHARD_GRAD_OP)", True, False), ("FSDP NO_SHARD", False, False),
     ("HYBRID_SHARD", True, False), ("DeepSpeed ZeRO stage-3", True, True), ("distributed_optimizer", True, False)],
)  # fmt: skip
def test_sharding_is_read_in_any_spelling(given: str, sharded: bool, fsdp: bool) -> None:
    run = read(sharding=given)
    assert (run.recipe.features.distributed_optimizer, run.layout.fsdp) == (sharded, fsdp)


def test_sharding_in_the_name_of_a_framework_counts_where_nothing_else_says() -> None:
    assert read(framework="torchtitan (FSDP2)").layout.fsdp
    assert read(framework="DeepSpeed ZeRO-3").layout.fsdp
    assert not read(framework="DeepSpeed ZeRO-3", sharding="ZeRO-1").layout.fsdp
    usual = read(framework="LLM Foundry")
    assert usual.layout.fsdp
    assert "fully sharded, as llm foundry shards unless told otherwise" in usual.notes
    assert not read(framework="torchtitan", sharding="DDP").layout.fsdp


@pytest.mark.parametrize(
    ("name", "like"),
    [("Megatron-LM 2021", "Megatron-LM (SC21)"), ("Megatron-LM v2.6", "Megatron-LM (SC21)"), ("Megatron-LM 2024", "Megatron-Core"),
     ("NeMo 24.09", "NeMo (MLPerf Training v4.1)"), ("Megatron-LM v3.0", "Megatron-LM 2022"),
     ("Megatron-LM SC'21", "Megatron-LM (SC21)"), ("Megatron-LM (Narayanan et al. 2021)", "Megatron-LM (SC21)"),
     ("Megatron-LM 2.6", "Megatron-LM (SC21)"), ("Megatron-LM (Korthikanti et al. 2022)", "Megatron-LM"),
     ("Megatron-LM (Oct 2023)", "Megatron-Core"), ("Megatron-LM 24.05", "Megatron-Core"), ("Megatron-LM (core r0.7)", "Megatron-Core"),
     ("Megatron-LM + TE", "Megatron-Core"), ("DeepSpeed-Megatron", "Megatron-DeepSpeed"),
     ("NeMo Framework 24.05", "NeMo 24.05"), ("NeMo (MLPerf Training v3.1)", "NeMo (MLPerf Training v4.0)"),
     ("MLPerf Training v4.1 (NeMo)", "NeMo (MLPerf Training v4.1)"), ("NeMo 2.1.0", "NeMo 2.0 (docs)"),
     ("BigNLP 22.02", "NeMo Megatron 22.11"), ("NeMo 26.02", "megatron-bridge 26.02")],
)  # fmt: skip
def test_a_year_or_version_says_which_generation_of_software_it_was(name: str, like: str) -> None:
    old, known = (read(framework=f, hardware="dgx-a100-80g", precision="fp16").recipe.features for f in (name, like))
    assert framework_of(old.framework)[1:] == framework_of(known.framework)[1:]
    assert old.sequence_parallel == known.sequence_parallel


def test_the_ranks_that_share_an_optimizer_say_how_many_optimizers_there_are() -> None:
    all_of_them, node = (
        read(gpus=16, tp=2, gbs=64, sharding=f"ZeRO-1 over {ranks}") for ranks in ("all DP", "4 ranks")
    )
    assert (all_of_them.recipe.features.optimizer_instances, node.recipe.features.optimizer_instances) == (1, 2)


@pytest.mark.parametrize(
    ("given", "gpu", "around"),
    [("A800", "A800 SXM 80GB", "dgx-a100-80g"), ("HGX A800-80GB", "A800 SXM 80GB", "dgx-a100-80g"),
     ("A100-PCIe-40GB", "A100 PCIe 40GB", "a100-pcie-8"), ("RTX A6000", "RTX A6000", "a40-8"), ("L40", "L40", "l40s-pcie-8"),
     ("H20 141GB", "H20 141GB", "dgx-h200")],
)  # fmt: skip
def test_a_gpu_that_no_known_machine_has_stands_in_that_of_the_nearest(given: str, gpu: str, around: str) -> None:
    run = read(hardware=given)
    whole = product(gpu)
    assert whole is not None
    assert (run.rates.product, run.rates.memory_bytes) == (whole, whole.memory_bytes)
    assert f"{given}: taken as {gpu} in {around}, the machine around the nearest GPU" in run.notes
    near = read(hardware=around).rates
    assert (run.rates.nvlink_domain, run.rates.fabric_bytes_per_s) == (near.nvlink_domain, near.fabric_bytes_per_s)


def test_the_machine_around_a_gpu_is_the_one_that_its_name_stands_for() -> None:
    assert read(hardware="DGX GB200").notes == ("DGX GB200: taken as gb200-nvl72, the usual machine around that GPU",)
    assert "unknown machine" in refused(hardware="MI300X")


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"overlap_moe_expert_parallel_comm": True}, {"ep_overlap": True}), ({"grad_reduce_in_fp32": True}, {"grad_reduce_fp32": True}),
        ({"fp8_param": True}, {"fp8_param_gather": True}), ({"gradient_accumulation_fusion": False}, {"fused_accumulation": False}),
        ({"moe_flex_dispatcher_backend": "deepep", "moe_token_dispatcher_type": "flex"}, {"dispatcher": "deepep"}),
        ({"moe_token_dispatcher_type": "flex", "moe_flex_dispatcher_backend": "hybridep"}, {"dispatcher": "hybridep"}),
        ({"dispatcher": "All-to-All"}, {"dispatcher": "alltoall"}), ({"dispatcher": "HybridEP"}, {"dispatcher": "hybridep"}),
        ({"use_precision_aware_optimizer": True, "exp_avg_dtype": "torch.bf16"}, {"precision_aware_optimizer": True, "moments": "bfloat16"}),
        ({"cuda_graph_impl": "local", "cuda_graph_scope": ["attn"]}, {"cuda_graph": ["local", ["attn"]]}),
        ({"cuda_graph_impl": "none"}, {"cuda_graph": None}), ({"enable_cuda_graph": True}, {"cuda_graph": ["transformer_engine", []]}),
        ({"num_distributed_optimizer_instances": 2, "lora_rank": 8}, {"optimizer_instances": 2, "adapter_rank": 8}),
    ],
)  # fmt: skip
def test_a_switch_is_read_by_megatrons_own_name(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    notes: list[str] = []
    assert features_from_json(features_of(theirs, notes)) == features_from_json(ours)
    assert notes == []


@pytest.mark.parametrize("none", [{"cuda_graph": False}, {"cuda_graph_impl": "none"}, {"enable_cuda_graph": False}])
def test_a_row_without_graphs_has_not_those_of_its_recipe(none: dict[str, Any]) -> None:
    assert features_of(none, []) == {"cuda_graph": None}


def test_a_dispatcher_that_nobody_knows_is_said() -> None:
    notes: list[str] = []
    assert features_of({"dispatcher": "pigeons"}, notes) == {}
    assert notes == ["not read: features.dispatcher"]


@pytest.mark.parametrize(
    ("given", "like"),
    [
        ({"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 4}, "full, block, 4 layers"),
        ({"method": "block", "num_layers": 4}, "block 4"), ("uniform", "full"),
        ("all layers", "full"), ("core attention", "selective"), ("attention only", "selective"),
        ({"granularity": None, "method": "uniform", "num_layers": 1}, "none"),
    ],
)  # fmt: skip
def test_recomputation_is_read_under_megatrons_names_and_in_few_words(given: Any, like: str) -> None:
    assert read(recompute=given).layout.recompute == read(recompute=like).layout.recompute


@pytest.mark.parametrize("given", ["pure bf16", "bf16-true", "bf16 params + fp32 master weights", "BF16 (AMP O2)"])
def test_a_format_is_that_of_the_products_whatever_the_optimizer_keeps(given: str) -> None:
    assert read(precision=given).recipe.precision == "bf16"


@pytest.mark.parametrize(
    ("given", "task"), [("LoRA fine-tuning", "peft"), ("supervised finetuning", "sft"), ("GPT pretraining", "pretrain")]
)
def test_a_task_is_read_out_of_several_words(given: str, task: str) -> None:
    assert read(task=given).recipe.task == task


FLAGS = [f.name for f in fields(Features) if isinstance(f.default, bool)]


@pytest.mark.parametrize("name", FLAGS)
def test_a_switch_that_a_row_names_as_we_do_is_heeded(name: str) -> None:
    usual = getattr(features_from_json({}), name)
    assert getattr(features_from_json(features_of({name: not usual}, [])), name) is not usual


def test_switches_are_read_by_the_names_of_the_frameworks_and_as_words() -> None:
    f = read(
        features={
            "tp_comm_overlap": "true",
            "use_distributed_optimizer": False,
            "fsdp": "false",
            "cuda_graph": "full_iteration",
        }
    )
    g = f.recipe.features
    assert (g.tp_overlap, g.distributed_optimizer, f.layout.fsdp, g.cuda_graph) == (
        True,
        False,
        False,
        "full_iteration",
    )
    assert read(features=["tp_overlap"]).recipe.features.tp_overlap


@pytest.mark.parametrize(
    ("change", "quantity", "value"),
    [
        ({"step_time_ms": 1500.0}, "iteration_time_s", 1.5),
        ({"tokens_per_s": 160_000.0}, "tokens_per_s_per_gpu", 10_000.0),
        ({"samples_per_s": 32.0}, "tokens_per_s_per_gpu", 8192.0),
        ({"mfu": 0.4}, "model_tflops_per_gpu", 0.4 * 989.4),
        ({"MFU": "40%"}, "model_tflops_per_gpu", 0.4 * 989.4),
    ],
)
def test_what_was_measured_is_read_in_other_units(change: dict[str, Any], quantity: str, value: float) -> None:
    assert read("iteration_time_s", **change).measured == pytest.approx({quantity: value}, rel=1e-3)


def test_a_share_of_an_unknown_peak_is_not_read() -> None:
    run = read("iteration_time_s", precision="fp8cs", mfu=0.4)
    assert run.measured == {}
    assert "MFU is not read" in run.notes[0]


@pytest.mark.parametrize(
    ("change", "kind", "unit"),
    [
        ({"unit": "MiB"}, "allocated", 2**20), ({"unit": "gib"}, "allocated", 2**30), ({"peak_memory_metric": "max reserved (GiB)"}, "reserved", 2**30),
        ({"peak_memory_metric": "NVML used"}, "nvidia-smi", 1000 * 2**20), ({}, "allocated", 10**9),
    ],
)  # fmt: skip
def test_memory_is_read_in_its_unit(change: dict[str, Any], kind: str, unit: int) -> None:
    run = read(peak_memory_gb=40.0, **change)
    assert (run.memory_kind, run.memory_unit) == (kind, unit)


def test_a_unit_that_is_none_is_refused_where_memory_was_measured() -> None:
    assert "none of memory" in refused(peak_memory_gb=40.0, unit="%")
    assert read(unit="%").measured == {"iteration_time_s": 1.0}


@pytest.mark.parametrize("status", ["OOM", "oom at iteration 2", "CUDA out of memory"])
def test_a_run_out_of_memory_is_told_from_one_that_ran(status: str) -> None:
    assert read(status=status).oom
    assert not PLAIN.oom


def test_a_row_that_cannot_be_predicted_costs_no_other() -> None:
    broken = [
        ROW | {"cp_comm_type": {"a": 1}},
        ROW | {"features": {"cross_entropy": "none such"}},
        ROW | {"gpus": 0},
        {"id": "z"},
    ]
    result = validate([*broken, ROW])
    assert [row["predicted"] is None for row in result["rows"]] == [True] * 4 + [False]
    assert all(row["note"] for row in result["rows"][:4])


def test_a_recipe_without_a_layout_of_its_own_takes_the_rows_and_one_of_another_pipeline_leaves_its_chunks() -> None:
    run = read(
        "model_id",
        recipe="deepseek_v3_pretrain_256gpu_b200_bf16_config",
        hardware="dgx-b200",
        gpus=256,
        pp=8,
        ep=32,
        tp=1,
        gbs=4096,
    )
    assert (run.layout.pp, run.layout.ep) == (8, 32)
    assert run.recipe.features.force_balance


def test_each_view_of_memory_is_that_of_the_stage_which_shows_most_of_it() -> None:
    """Without growing segments the stage of the loss reserves most, and the first one allocates most; whether it fits is all stages'."""
    long = {"pp": 8, "tp": 1, "gpus": 64, "seq": 131072, "gbs": 64, "peak_memory_gb": 1.0, "arch": {
        "num_layers": 16, "hidden_size": 2048, "num_attention_heads": 32, "num_query_groups": 8, "ffn_hidden_size": 8192, "vocab_size": 128256,
    }}  # fmt: skip
    allocated = memory_of(read("model_id", **long, peak_memory_metric="max allocated"))
    reserved = memory_of(read("model_id", **long, peak_memory_metric="max reserved"))
    assert (allocated.stage, reserved.stage) == (0, 7)
    assert allocated.allocated > reserved.allocated
    assert allocated.reserved < reserved.reserved
    (entry,) = validate([{k: v for k, v in ROW.items() if k != "model_id"} | long | {"metric": "rank 0"}])["rows"]
    assert not entry["fits"]


@pytest.mark.parametrize(
    ("notes", "features", "found"),
    [
        ("single node; FP8 attention; config MINIBS 2", {}, {"fp8_attention": True}),
        ("no FP8 attention", {}, {"fp8_attention": False}),
        ("trained without FP8 attention and with DDP overlap", {}, {"fp8_attention": False, "dp_overlap": True}),
        ("TE 2.11, no TP overlap, no DDP overlap", {}, {"tp_overlap": False, "dp_overlap": False}),
        ("TP overlap (Userbuffers)", {}, {"tp_overlap": True, "dp_overlap": True}),
        ("TP overlap", {"tp_overlap": False}, {"tp_overlap": False}),
    ],
)
def test_switches_that_only_a_rows_notes_name_are_read(
    notes: str, features: dict[str, Any], found: dict[str, bool]
) -> None:
    run = read(notes=notes, features=features)
    assert {name: getattr(run.recipe.features, name) for name in found} == found
    told = [note for note in run.notes if note.startswith("from the row's notes: ")]
    assert bool(told) == (not features)
