"""Peak memory: against measured runs and published analyses, against a simulated schedule, and by rules that always hold."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parlaunch.estimate import memory as estimates
from parlaunch.estimate.allocator import CROWDED
from parlaunch.estimate.cross_entropy import loss_of, with_loss_of
from parlaunch.estimate.memory import estimate_memory, peak_and_spare, stage_memories
from parlaunch.estimate.micro_batches import held
from parlaunch.estimate.states import bytes_a_parameter
from parlaunch.estimate.values import MEMORY_PARTS, TIME_PARTS, Breakdown, Memory
from parlaunch.hardware.cpu import CPU_RANK
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import Rates, rates_of
from parlaunch.model.architecture import Architecture, architecture_from_json
from parlaunch.model.catalog import architecture, recipe
from parlaunch.model.layout import FULL_RECOMPUTE, NO_RECOMPUTE, Layout, Recompute
from parlaunch.model.recipe import Features, Recipe

GIB = 2**30
SELECTIVE = Recompute(granularity="selective", modules=("core_attn",))


def machine(name: str, nodes: int = 1) -> Rates:
    return rates_of(preset(name, nodes))


def of(a: Architecture, **changes: Any) -> Recipe:
    given: dict[str, Any] = {
        "seq_length": 4096,
        "global_batch_size": 512,
        "precision": "bf16",
        "task": "pretrain",
    } | changes
    return Recipe(name="test", source="catalog", model="test", model_id=None, architecture=a, **given)


def gpt(layers: int, hidden: int, heads: int, vocab: int = 250880) -> Architecture:
    return architecture_from_json({
        "num_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "vocab_size": vocab,
        "share_embeddings_and_output_weights": True, "normalization": "LayerNorm", "add_bias_linear": True,
    })  # fmt: skip


# --- measured ----------------------------------------------------------------------------------------------------------

# Layers, hidden, heads, GPUs, tp, pp, micro batch, precision, GB that nvidia-smi showed on the embedding's stage.
# bigscience-workshop/bigscience, train/tr11-176B-ml/chronicles-prequel.md; the number is the line.
BLOOM = {
    583: (80, 13824, 64, 320, 8, 10, 1, "fp16", 33), 586: (80, 13824, 64, 320, 8, 10, 8, "fp16", 73),
    607: (72, 14336, 64, 384, 8, 12, 1, "fp16", 29), 615: (72, 14336, 64, 384, 8, 6, 1, "fp16", 38),
    633: (84, 13824, 64, 384, 8, 12, 4, "fp16", 52), 729: (72, 14336, 256, 384, 8, 6, 4, "fp16", 54),
    818: (96, 12288, 64, 384, 1, 48, 1, "fp16", 58), 884: (78, 13824, 64, 384, 4, 6, 4, "fp16", 75),
    891: (106, 12288, 64, 384, 4, 12, 2, "fp16", 44), 908: (106, 12288, 128, 384, 4, 12, 2, "bf16", 67),
    919: (100, 12288, 64, 384, 8, 6, 2, "bf16", 61), 928: (82, 13312, 64, 384, 8, 12, 4, "bf16", 52),
    946: (70, 14336, 64, 384, 8, 12, 2, "bf16", 40), 948: (70, 14336, 112, 384, 4, 12, 2, "bf16", 59),
}  # fmt: skip
BLOOM_OUT_OF_MEMORY = {917: (100, 12288, 64, 384, 4, 6, 2, "bf16"), 918: (100, 12288, 64, 384, 4, 6, 1, "bf16")}


def bloom(layers: int, hidden: int, heads: int, gpus: int, tp: int, pp: int, mbs: int, precision: str) -> Memory:
    features = Features(framework="Megatron-DeepSpeed")
    trained = of(
        gpt(layers, hidden, heads), seq_length=2048, global_batch_size=2048, precision=precision, features=features
    )
    layout = Layout(world=gpus, tp=tp, pp=pp, micro_batch_size=mbs, global_batch_size=2048, recompute=FULL_RECOMPUTE)
    return estimate_memory(trained, layout, machine("dgx-a100-80g", gpus // 8), headroom=0.0)


@pytest.mark.parametrize("line", BLOOM)
def test_a_measured_run_peaks_where_it_did(line: int) -> None:
    *run, gigabytes = BLOOM[line]
    measured = gigabytes * 1000 * 2**20  # nvidia-smi prints MiB, and the table divides by a thousand
    assert bloom(*run).peak == pytest.approx(measured, rel=0.10)  # type: ignore[arg-type]


def test_measured_runs_are_met_within_five_percent_on_average() -> None:
    errors = [abs(bloom(*run).peak / (gb * 1000 * 2**20) - 1) for *run, gb in BLOOM.values()]  # type: ignore[arg-type]
    assert sum(errors) / len(errors) < 0.05


@pytest.mark.parametrize("line", BLOOM_OUT_OF_MEMORY)
def test_a_run_that_ran_out_of_memory_does_not_fit(line: int) -> None:
    memory = bloom(*BLOOM_OUT_OF_MEMORY[line])
    assert not memory.fits


# NVIDIA's published runs on the brink of their GPUs: layouts and batches of Megatron Bridge's performance summary.
BRINK: dict[str, tuple[str, str, str, Layout, dict[str, Any]]] = {
    "Llama 3.1 405B, FP8, 256 GB200": (
        "meta-llama/Meta-Llama-3.1-405B", "gb200-nvl72", "fp8cs",
        Layout(world=256, tp=4, pp=16, vp=4, global_batch_size=1536), {"tp_overlap": True, "fp8_param_gather": True},
    ),
    "Llama 3.1 405B, MXFP8, 256 GB200": (
        "meta-llama/Meta-Llama-3.1-405B", "gb200-nvl72", "fp8mx",
        Layout(world=256, tp=4, pp=16, vp=8, global_batch_size=1536), {"tp_overlap": True, "fp8_param_gather": True},
    ),
    "Llama 3 70B, FP8 and FSDP, half of the layers offloaded, 64 GB200": (
        "meta-llama/Meta-Llama-3-70B", "gb200-nvl72", "fp8cs",
        Layout(world=64, micro_batch_size=2, global_batch_size=256, fsdp=True),
        {"fp8_param_gather": True, "cpu_offload_layers": 40},
    ),
    "Llama 3.1 405B, FP8, 1024 H100": (
        "meta-llama/Meta-Llama-3.1-405B", "dgx-h100", "fp8cs",
        Layout(world=1024, tp=8, pp=8, vp=8, cp=2, global_batch_size=1536), {"tp_overlap": True, "fp8_param_gather": True},
    ),
}  # fmt: skip


def brink(name: str) -> tuple[Recipe, Layout, Rates]:
    model, hardware, precision, layout, features = BRINK[name]
    trained = of(
        architecture(model), seq_length=8192, precision=precision, global_batch_size=layout.global_batch_size,
        features=Features(**features), benchmark=True,
    )  # fmt: skip
    return trained, layout, machine(hardware, layout.world // preset(hardware).gpus_per_node)


@pytest.mark.parametrize("name", BRINK)
def test_published_runs_fit_their_gpus_and_would_not_with_twice_the_micro_batch(name: str) -> None:
    trained, layout, rates = brink(name)
    assert estimate_memory(trained, layout, rates).runs
    twice = replace(layout, micro_batch_size=2 * layout.micro_batch_size)
    assert not estimate_memory(trained, twice, rates).runs


# --- published analysis ------------------------------------------------------------------------------------------------

# arXiv:2205.05198, figure 1: GiB of parameters and optimizer (without the embedding), and of activations.
FIGURE_1 = [
    (gpt(48, 6144, 64, 51200), 1, None, 4, NO_RECOMPUTE, 45.56, 59.25),
    (gpt(48, 6144, 64, 51200), 1, None, 4, SELECTIVE, 45.56, 9.56),
    (gpt(96, 12288, 96, 51200), 8, 3, 1, NO_RECOMPUTE, 45.56, 66.84),
    (gpt(96, 12288, 96, 51200), 8, 3, 1, SELECTIVE, 45.56, 12.35),
    (gpt(105, 20480, 128, 51200), 35, 3, 1, NO_RECOMPUTE, 31.64, 114.02),
    (gpt(105, 20480, 128, 51200), 35, 3, 1, SELECTIVE, 31.64, 23.08),
    (gpt(128, 25600, 160, 51200), 64, None, 1, NO_RECOMPUTE, 32.96, 131.25),
    (gpt(128, 25600, 160, 51200), 64, None, 1, SELECTIVE, 32.96, 26.56),
]


@pytest.mark.parametrize(("a", "pp", "vp", "mbs", "recompute", "static", "activations"), FIGURE_1)
def test_the_analysis_of_a_paper_is_reproduced(
    a: Architecture, pp: int, vp: int | None, mbs: int, recompute: Recompute, static: float, activations: float
) -> None:
    features = Features(
        framework="Megatron-LM",
        distributed_optimizer=False,
        sequence_parallel=recompute is SELECTIVE,
        cross_entropy="te",
    )
    trained = of(a, seq_length=2048, precision="fp16", features=features)
    layout = Layout(world=8 * pp, tp=8, pp=pp, vp=vp, micro_batch_size=mbs, global_batch_size=512, recompute=recompute)
    m = estimate_memory(trained, layout, machine("dgx-a100-80g", pp))
    embedding = 18 * 51200 * a.hidden_size / 8
    assert m.weights + m.gradients + m.optimizer == pytest.approx(static * GIB + embedding, rel=0.01)
    # The figure leaves out what the backward pass of one layer needs: up to one gibibyte here.
    assert activations * GIB * 0.99 < m.activations < activations * GIB + 1.31 * GIB


def test_bytes_a_parameter_are_megatrons() -> None:
    """Megatron-Core's table for the distributed optimizer: 2 + 4 + 12/d in bf16 with float32 gradients, 2 + 2 + 12/d without."""
    assert bytes_a_parameter("bf16", Features(grad_reduce_fp32=True), "hopper") == (2, 2, 4, 12)
    assert bytes_a_parameter("bf16", Features(), "hopper") == (2, 2, 2, 12)
    assert bytes_a_parameter("fp8cs", Features(fp8_param_gather=True), "blackwell").layer_weight == 1
    assert bytes_a_parameter("fp8cs", Features(fp8_param_gather=True), "hopper").layer_weight == 2
    assert bytes_a_parameter("fp8mx", Features(), "blackwell").layer_weight == 2 + 2 * 33 / 32
    assert bytes_a_parameter("nvfp4", Features(), "blackwell").layer_weight == 2 + 2 * (0.5 + 1 / 16)
    # What Bridge's preset for NVFP4 says of FP8 is for FP8 alone.
    assert bytes_a_parameter("nvfp4", Features(fp8_param_gather=True), "blackwell").layer_weight == 2 + 2 * (
        0.5 + 1 / 16
    )
    assert bytes_a_parameter("nvfp4", Features(fp4_param_gather=True), "blackwell").layer_weight == 2 * (0.5 + 1 / 16)
    assert bytes_a_parameter("bf16", Features(fp4_param_gather=True), "blackwell").layer_weight == 2
    aware = Features(precision_aware_optimizer=True, moments="bfloat16")
    assert bytes_a_parameter("bf16", aware, "hopper").optimizer == 2 + 2 * 2
    assert bytes_a_parameter("bf16", replace(aware, optimizer_offload=1.0), "hopper").optimizer == 0


# --- the schedule ------------------------------------------------------------------------------------------------------


def order(stage: int, pp: int, vp: int, microbatches: int) -> list[tuple[str, int]]:
    """One rank's passes under Megatron's (interleaved) 1F1B, as (direction, chunk)."""
    total = microbatches * vp
    warmup = pp - stage - 1 if vp == 1 else 2 * (pp - stage - 1) + (vp - 1) * pp
    warmup = min(warmup, total)

    def chunk(number: int) -> int:
        return number % (pp * vp) // pp if vp > 1 else 0

    passes = [("forward", chunk(i)) for i in range(warmup)]
    for i in range(total - warmup):
        passes += [("forward", chunk(warmup + i)), ("backward", vp - 1 - chunk(i))]
    return passes + [("backward", vp - 1 - chunk(i)) for i in range(total - warmup, total)]


@given(st.integers(1, 8), st.sampled_from([1, 2, 3, 4]), st.integers(1, 5), st.data())
def test_what_a_stage_holds_is_what_the_schedule_leaves(pp: int, vp: int, rounds: int, data: st.DataObject) -> None:
    vp = 1 if pp == 1 else vp
    microbatches = rounds * pp if vp > 1 else data.draw(st.integers(1, 3 * pp))
    stage = data.draw(st.integers(0, pp - 1))
    alive, most = 0, 0
    for direction, _ in order(stage, pp, vp, microbatches):
        alive += 1 if direction == "forward" else -1
        most = max(most, alive)
    assert alive == 0
    assert sum(held(stage, pp, vp, microbatches)) == most


def test_the_chunks_of_a_stage_fill_from_the_front() -> None:
    assert held(0, 4, 2, 16) == (7, 4)
    assert held(3, 4, 2, 16) == (4, 1)
    assert held(0, 4, None, 2) == (2,)
    assert sum(held(0, 4, 2, 16, overlap=True)) == 12


# --- rules -------------------------------------------------------------------------------------------------------------

LLAMA_8B = architecture("meta-llama/Meta-Llama-3-8B")
H100 = machine("dgx-h100", 8)
MODELS = [LLAMA_8B, architecture("Qwen/Qwen3-30B-A3B"), architecture("deepseek-ai/DeepSeek-V3"),
          architecture("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16"), architecture("Qwen/Qwen3.5-35B-A3B")]  # fmt: skip


@st.composite
def plans(draw: st.DrawFn) -> tuple[Recipe, Layout]:
    a = draw(st.sampled_from(MODELS))
    tp, pp, cp = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2]))
    recompute = draw(
        st.sampled_from(
            [NO_RECOMPUTE, SELECTIVE, FULL_RECOMPUTE, Recompute(granularity="full", method="block", num_layers=2)]
        )
    )
    layout = Layout(
        world=64, tp=tp, pp=pp, vp=draw(st.sampled_from([None, 2])) if pp > 1 else None, cp=cp,
        ep=draw(st.sampled_from([1, 4])) if a.num_moe_experts else 1, micro_batch_size=draw(st.sampled_from([1, 2])),
        global_batch_size=512, recompute=recompute,
    )  # fmt: skip
    precision = draw(st.sampled_from(["bf16", "fp8cs", "fp8mx"]))
    features = Features(grad_reduce_fp32=draw(st.booleans()), fp8_param_gather=draw(st.booleans()))
    return of(a, precision=precision, features=features, task=draw(st.sampled_from(["pretrain", "peft"]))), layout


@given(plans())
def test_the_three_views_are_ordered_and_every_part_is_there(plan: tuple[Recipe, Layout]) -> None:
    m = estimate_memory(*plan, H100)
    assert 0 < m.allocated <= m.reserved <= m.peak
    assert min(m.weights, m.optimizer, m.activations, m.buffers, m.runtime, m.gradients) > 0
    assert m.capacity == H100.memory_bytes
    assert m.limit == int(m.capacity * 0.92)
    assert 0 <= m.stage < plan[1].pp
    assert m.runs or not m.fits


@given(plans())
def test_more_tokens_cost_more_and_more_replicas_or_recomputation_never_do(plan: tuple[Recipe, Layout]) -> None:
    trained, layout = plan
    every = stage_memories(trained, layout, H100)
    longer = stage_memories(replace(trained, seq_length=8192), layout, H100)
    more = stage_memories(trained, replace(layout, world=128, global_batch_size=1024), machine("dgx-h100", 16))
    full = stage_memories(trained, replace(layout, recompute=FULL_RECOMPUTE), H100)
    plain = stage_memories(trained, replace(layout, recompute=NO_RECOMPUTE), H100)
    adapted = stage_memories(replace(trained, task="peft"), layout, H100)
    for i, m in enumerate(every):
        assert longer[i].allocated >= m.allocated - 8  # rounding of eight parts
        assert more[i].optimizer <= m.optimizer
        assert full[i].allocated <= plain[i].allocated + 8
        assert adapted[i].optimizer <= m.optimizer


@given(plans())
def test_fsdp_shards_what_stays(plan: tuple[Recipe, Layout]) -> None:
    trained, layout = plan
    layout = replace(layout, pp=1, vp=None)
    sharded = estimate_memory(trained, replace(layout, fsdp=True), H100)
    whole = estimate_memory(trained, layout, H100)
    assert sharded.weights < whole.weights
    assert sharded.gradients <= whole.gradients
    assert sharded.buffers > whole.buffers


@given(
    plans(), st.sampled_from([{}, {"framework": "Megatron-Core"}, {"nccl_ub": True}, {"cuda_graph": "full_iteration"}])
)
def test_the_fullest_stage_is_the_fullest(plan: tuple[Recipe, Layout], switches: dict[str, Any]) -> None:
    """With all that the allocator holds beyond the tensors: without growing segments that is most beside the logits."""
    recipe, layout = plan
    recipe = replace(recipe, features=replace(recipe.features, **switches))
    m = estimate_memory(recipe, layout, H100)
    every = stage_memories(recipe, layout, H100)
    assert len(every) == layout.pp
    assert m == every[m.stage]
    assert m.peak >= max(stage.peak for stage in every) - 8  # rounding of eight parts


@pytest.mark.parametrize(
    "framework", [None, "megatron-lm"]
)  # the second's activations grow with the sequence of a rank
@pytest.mark.parametrize("model", MODELS, ids=lambda a: a.kind)
def test_what_layouts_share_changes_no_answer(model: Architecture, framework: str | None) -> None:
    trained = of(model, features=Features(framework=framework))
    experts = ((1, 1), (4, 1), (4, 2)) if model.num_moe_experts else ((1, 1),)
    again = (NO_RECOMPUTE, SELECTIVE, FULL_RECOMPUTE)
    layouts = [
        Layout(
            world=64, tp=tp, pp=pp, vp=vp, cp=cp, ep=ep, etp=etp, cp_comm_type=comm, global_batch_size=batch, recompute=r,
            micro_batch_size=mbs,
        )
        for tp in (1, 2) for pp, vp in ((1, None), (4, None), (4, 2)) for cp, comm in ((1, None), (2, "p2p"), (2, "a2a"), (4, "p2p"))
        for ep, etp in experts for batch, mbs in ((64, 1), (512, 2)) for r in again
    ]  # fmt: skip
    together = [estimate_memory(trained, layout, H100) for layout in layouts]
    assert [peak_and_spare(trained, layout, H100) for layout in layouts] == [(m.peak, m.spare) for m in together]
    for layout, memory in list(zip(layouts, together, strict=True))[::7]:
        estimates._model.cache_clear()
        assert estimate_memory(trained, layout, H100) == memory, layout


def test_uneven_stages_move_the_peak() -> None:
    trained, rates = of(LLAMA_8B, features=Features(cross_entropy="te")), machine("dgx-h100")
    even = estimate_memory(trained, Layout(world=8, pp=4, global_batch_size=512), rates)
    light_first = Layout(world=8, pp=4, global_batch_size=512, layers_per_chunk=(5, 9, 9, 9))
    assert estimate_memory(trained, light_first, rates).stage == 1
    assert even.stage == 0


def test_the_loss_stage_is_the_fullest_of_a_small_model_with_a_large_vocabulary() -> None:
    trained = of(architecture("google/gemma-3-1b-pt"), seq_length=8192)
    m = estimate_memory(trained, Layout(world=8, pp=2, micro_batch_size=4, global_batch_size=512), machine("dgx-h100"))
    assert m.stage == 1
    assert m.logits == 4 * 8192 * 262144 * 10


def test_the_loss_is_the_one_that_the_recipe_asks_for() -> None:
    layout = Layout(world=8, global_batch_size=512)
    native = estimate_memory(of(LLAMA_8B), layout, H100).logits
    assert native == 5 * estimate_memory(of(LLAMA_8B, benchmark=True), layout, H100).logits
    assert loss_of(recipe("llama3_8b_pretrain_config")) == "te"
    assert loss_of(recipe("llama3_8b_sft_config")) == "native"
    assert loss_of(recipe("qwen3_next_80b_a3b_pretrain_config")) == "native"


def test_a_loss_in_float32_is_counted_where_transformer_engine_has_one() -> None:
    """2.18 makes the gradient of every logit in float32 beside the logits: `pytorch/triton/cross_entropy.py`, `grad_input`."""
    trained = of(LLAMA_8B, benchmark=True)
    assert with_loss_of(trained, None) is trained
    assert with_loss_of(trained, (2, 17, 1)) is trained
    wide = with_loss_of(trained, (2, 18))
    layout = Layout(world=8, global_batch_size=512)
    tokens, vocabulary = 4096, 128256
    more = estimate_memory(wide, layout, H100).logits - estimate_memory(trained, layout, H100).logits
    assert more == 4 * tokens * vocabulary
    native = of(LLAMA_8B, features=Features(cross_entropy="native"))
    assert with_loss_of(native, (2, 18)) is native


def test_capped_logits_keep_what_their_tanh_made() -> None:
    plain = replace(architecture("google/gemma-2-2b"), final_logit_softcapping=None)
    layout = Layout(world=8, global_batch_size=512)
    capped = estimate_memory(of(architecture("google/gemma-2-2b")), layout, H100)
    assert capped.logits - estimate_memory(of(plain), layout, H100).logits == 2 * 4096 * 256000


def test_a_trained_encoder_keeps_its_images_and_a_frozen_one_has_no_gradients() -> None:
    a = architecture("Qwen/Qwen3-VL-8B-Instruct")
    assert a.encoder is not None
    layout = Layout(world=8, pp=2, global_batch_size=512)
    trained, frozen = (
        stage_memories(of(a, task="sft", features=Features(frozen_encoder=still)), layout, H100)
        for still in (False, True)
    )
    # A quarter of 4,096 tokens, four patches each, of the two micro batches that the first of two stages holds.
    kept = 2 * 4096 * a.encoder.activations
    assert trained[0].activations - frozen[0].activations == pytest.approx(kept)
    assert trained[0].gradients - frozen[0].gradients == 2 * a.encoder.total_params
    assert trained[0].weights == frozen[0].weights
    assert trained[1] == replace(frozen[1], error_band=trained[1].error_band, risk_band=trained[1].risk_band)
    assert trained[0].error_band > frozen[0].error_band


# Moonlight 16B on eight H100, BF16, TP 2, EP 8, one micro batch of 4,096 a GPU: GB allocated at most, by what is recomputed.
# Megatron Bridge, skills/nemo-mbridge-perf-activation-recompute/SKILL.md.
MOONLIGHT = {(): 36.618, ("mla_up_proj",): 35.902, ("moe_act",): 35.941, ("layernorm", "moe_act"): 35.949}


@pytest.mark.parametrize("modules", MOONLIGHT)
def test_where_the_optimizer_peaks_recomputation_saves_little(modules: tuple[str, ...]) -> None:
    trained = replace(recipe("moonlight_16b_pretrain_config"), seq_length=4096, global_batch_size=4)
    recompute = Recompute(granularity="selective", modules=modules)
    m = estimate_memory(
        trained, Layout(world=8, tp=2, ep=8, global_batch_size=4, recompute=recompute), machine("dgx-h100")
    )
    assert m.allocated == pytest.approx(MOONLIGHT[modules] * 1e9, rel=0.05)


# Nemotron 3 Nano on sixteen H100, BF16, EP 8, 8,192 tokens a GPU: the same source. Without recomputation the hottest rank
# had 72.9 GiB when it ran out; the figures with it are of one rank.
def test_a_hybrid_mixture_peaks_where_it_was_measured() -> None:
    features = Features(force_balance=True, dispatcher="hybridep", cuda_graph="transformer_engine")
    trained = of(
        architecture("explicit:nemotron_3_nano"),
        seq_length=8192,
        global_batch_size=16,
        benchmark=True,
        features=features,
    )

    def peak(*modules: str) -> Memory:
        recompute = Recompute(granularity="selective", modules=modules) if modules else NO_RECOMPUTE
        return estimate_memory(
            trained, Layout(world=16, ep=8, global_batch_size=16, recompute=recompute), machine("dgx-h100", 2)
        )

    assert peak("moe").allocated == pytest.approx(64.653e9, rel=0.04)
    assert peak("moe", "layernorm").allocated == pytest.approx(63.639e9, rel=0.04)
    assert peak().allocated > 72.9 * GIB  # it died on the way to its peak
    assert not peak().fits
    # What one module saves is free of everything else: 4.194 and 1.014 GB.
    assert peak().allocated - peak("moe_act").allocated == pytest.approx(4.194e9, rel=0.02)
    assert peak("moe").allocated - peak("moe", "layernorm").allocated == pytest.approx(1.014e9, rel=0.02)


def test_a_mixture_on_sixteen_gpus_peaks_where_it_was_measured() -> None:
    """Qwen3 30B-A3B, BF16, EP 16: 61.351 GB (Megatron Bridge, docs/training/moe-optimization.md)."""
    features = Features(force_balance=True, dispatcher="alltoall", cuda_graph="transformer_engine")
    trained = of(architecture("Qwen/Qwen3-30B-A3B"), global_batch_size=1024, benchmark=True, features=features)
    m = estimate_memory(trained, Layout(world=16, ep=16, global_batch_size=1024), machine("dgx-h100", 2))
    assert m.allocated == pytest.approx(61.351e9, rel=0.03)


def test_a_full_iteration_graph_holds_memory_beside_the_tensors() -> None:
    layout = Layout(world=8, micro_batch_size=2, global_batch_size=512)
    eager, graph = of(LLAMA_8B), of(LLAMA_8B, features=Features(cuda_graph="full_iteration"))
    without, within = estimate_memory(eager, layout, H100), estimate_memory(graph, layout, H100)
    assert within.allocated == without.allocated
    assert within.peak > without.peak + 2 * GIB


def test_unbalanced_experts_cost_more_than_balanced_ones() -> None:
    trained = of(MODELS[1])
    layout = Layout(world=64, ep=8, global_batch_size=512)
    balanced = replace(trained, features=Features(force_balance=True))
    assert estimate_memory(trained, layout, H100).activations > estimate_memory(balanced, layout, H100).activations
    assert estimate_memory(trained, layout, H100).error_band > estimate_memory(balanced, layout, H100).error_band
    filled, more = (replace(trained, features=Features(expert_capacity=c)) for c in (1.0, 1.5))
    assert estimate_memory(filled, layout, H100) == estimate_memory(balanced, layout, H100)
    assert estimate_memory(more, layout, H100).activations > estimate_memory(trained, layout, H100).activations


def test_offloading_takes_layers_and_optimizer_off_the_gpu() -> None:
    layout = Layout(world=8, global_batch_size=512)
    none, half = of(LLAMA_8B), of(LLAMA_8B, features=Features(cpu_offload_layers=16))
    assert estimate_memory(half, layout, H100).activations < 0.6 * estimate_memory(none, layout, H100).activations
    off = of(LLAMA_8B, features=Features(optimizer_offload=1.0, precision_aware_optimizer=True))
    assert estimate_memory(off, layout, H100).optimizer == 0


@pytest.mark.parametrize("name", ["llama3_8b_pretrain_config", "deepseek_v3_pretrain_config"])
def test_a_thousand_questions_take_no_tenth_of_a_second(name: str) -> None:
    trained, rates = recipe(name), machine("dgx-h100", 128)
    layout = Layout(world=1024, tp=2, pp=8, ep=8 if trained.architecture.num_moe_experts else 1, global_batch_size=8192)
    estimate_memory(trained, layout, rates)
    best = min(_clock(trained, layout, rates) for _ in range(5))
    assert best < 0.1


def _clock(trained: Recipe, layout: Layout, rates: Rates) -> float:
    started = time.process_time()
    for _ in range(1000):
        estimate_memory(trained, layout, rates)
    return time.process_time() - started


def test_a_frozen_language_model_has_no_gradients_no_optimizer_and_keeps_no_inputs_of_its_layers() -> None:
    vision = recipe("qwen3_vl_235b_a22b_pretrain_64gpu_gb200_bf16_config")
    assert vision.frozen  # Bridge's recipe trains the projection alone
    trained = replace(vision, features=replace(vision.features, frozen_language_model=False))
    layout = Layout(world=64, pp=8, ep=8, micro_batch_size=2, global_batch_size=1024)
    rates = rates_of(preset("gb200-nvl72", 16))
    frozen, full = (estimate_memory(r, layout, rates) for r in (vision, trained))
    assert (frozen.gradients, frozen.optimizer) == (0, 0)
    assert frozen.weights == full.weights
    assert 0.5 * full.activations < frozen.activations < full.activations
    assert frozen.fits
    assert not full.fits
    with_adapters = estimate_memory(replace(trained, task="peft"), layout, rates)
    assert frozen.activations < with_adapters.activations  # an adapter needs the input that the frozen layer does not


def test_the_parts_of_a_memory_and_of_a_time_add_up_to_the_whole() -> None:
    sizes = {part.name: 3**at for at, part in enumerate(MEMORY_PARTS)}
    assert Memory(**sizes, capacity=0, limit=0).peak == sum(sizes.values())
    times = {part.name: 3.0**at for at, part in enumerate(TIME_PARTS)}
    assert Breakdown(**times).total == sum(times.values())
    assert all(part.word and part.phrase for part in (*MEMORY_PARTS, *TIME_PARTS))


# --- What has to be spare ---------------------------------------------------------------------------------------------


def test_the_last_gib_and_holes_as_large_as_the_largest_tensor_have_to_be_spare() -> None:
    trained = recipe("llama3_8b_pretrain_config")
    one = Layout(world=8, tp=8, micro_batch_size=1, global_batch_size=8)
    assert estimate_memory(trained, one, H100).spare == CROWDED
    wide = estimate_memory(trained, replace(one, tp=1, micro_batch_size=4), H100)
    assert wide.spare > 2 * CROWDED
    assert wide.at_speed == (wide.peak + wide.spare <= wide.capacity)
    cpu = replace(H100, product=CPU_RANK)
    assert estimate_memory(trained, one, cpu).spare == 0


def test_experts_whose_traffic_overlaps_keep_blocks_for_two_micro_batches_on_two_streams() -> None:
    trained = replace(recipe("deepseek_v3_pretrain_config"), seq_length=2048)
    layout = Layout(world=64, pp=4, vp=2, ep=16, global_batch_size=256, recompute=FULL_RECOMPUTE)
    spares = []
    for on in (False, True):
        features = replace(trained.features, ep_overlap=on, force_balance=True)
        spares.append(estimate_memory(replace(trained, features=features), layout, H100).spare)
    # NVIDIA/Megatron-LM PR #6429, such layers on H100: 68.392 GB reserved, and 62.570 GB without.
    assert spares[1] - spares[0] == pytest.approx(5.8e9, rel=0.05)


SHARED: tuple[dict[str, Any], ...] = (
    {"dispatcher": "deepep"}, {"dispatcher": "hybridep"}, {"ep_overlap": True}, {"external_cuda_graph": True},
    {"cuda_graph": "full_iteration"}, {"cuda_graph": "transformer_engine", "cuda_graph_scope": ("attn", "moe_router")},
)  # fmt: skip
"""Switches that recipes share a frame over, turned on."""


@pytest.mark.parametrize("on", SHARED, ids=str)
@pytest.mark.parametrize("sizes", [{"ep": 8}, {"pp": 2, "ep": 4, "fsdp": True}, {"tp": 2, "ep": 2, "etp": 2}], ids=str)
def test_what_recipes_share_on_a_stage_is_the_same_with_their_switches(
    sizes: dict[str, Any], on: dict[str, Any]
) -> None:
    layout, off = Layout(world=8, global_batch_size=64, **sizes), recipe("qwen3_30b_a3b_pretrain_config")
    off = replace(off, features=replace(off.features, **estimates.OFF))
    shared, own = (estimates._Bare(one, H100) for one in (off, replace(off, features=replace(off.features, **on))))
    ours, theirs = shared.frame((), layout), own.frame((), layout)
    theirs = theirs._replace(p=theirs.p._replace(features=off.features), features=off.features)
    assert theirs == ours
    assert own.left(theirs, (1.1, 1.4), SELECTIVE, 4) == shared.left(ours, (1.1, 1.4), SELECTIVE, 4)


def test_each_switch_that_recipes_share_frames_over_is_tried() -> None:
    assert {name for on in SHARED for name in on} == {*estimates.OFF}
