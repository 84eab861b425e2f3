"""Whole iterations: sums, monotony, and a handful of published runs."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parlaunch.check.measured import Machines, run_of
from parlaunch.estimate.timing import estimate_time, iteration, pieces
from parlaunch.estimate.timing.feedforward import EP_OVERLAP, SYNC
from parlaunch.estimate.timing.iteration import step_bytes
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.model.layout import FULL_RECOMPUTE, Layout, Recompute
from tests.estimate.timing.make import dense, features, layout, rates, recipe

DENSE_LAYOUTS = st.sampled_from([
    {}, {"tp": 2}, {"tp": 4, "pp": 2}, {"pp": 4, "vp": 2}, {"tp": 2, "cp": 2}, {"tp": 8}, {"pp": 2, "micro_batch_size": 2},
    {"tp": 2, "recompute": FULL_RECOMPUTE}, {"fsdp": True},
])  # fmt: skip
MACHINES = st.sampled_from(["dgx-a100-80g", "dgx-h100", "dgx-b200", "l40s-pcie-8", "dgx1-v100"])


@given(DENSE_LAYOUTS, MACHINES, st.sampled_from(["bf16", "fp8cs", "fp8mx", "nvfp4", "fp16"]))
@settings(max_examples=60)
def test_the_breakdown_adds_up_and_nothing_in_it_is_negative(
    sizes: dict[str, Any], machine: str, precision: str
) -> None:
    e = estimate_time(recipe(precision=precision), layout(**sizes), rates(machine))
    b = e.breakdown
    assert b.total == pytest.approx(e.iteration_time_s)
    parts = (b.compute_s, b.tp_s, b.cp_s, b.ep_s, b.pp_bubble_s, b.pp_p2p_s, b.dp_exposed_s, b.optimizer_s, b.host_s)
    assert all(part >= 0 for part in parts)
    assert 0 < e.mfu < 1
    assert e.tokens_per_s_per_gpu == pytest.approx(64 * 4096 / 8 / e.iteration_time_s)
    assert 0 < e.error_band < 0.5


@pytest.mark.parametrize("machine", ["dgx-h100", "gb300-nvl72"])
@pytest.mark.parametrize("sharded", [True, False])
def test_longer_sequences_take_no_less_time_where_the_gpu_waits_for_the_cpu(machine: str, sharded: bool) -> None:
    """Traffic hides under the time of a pass, whichever of both it waits for, and is not counted beside it once more."""
    small = recipe(dense(hidden_size=2048, ffn_hidden_size=8192, num_layers=16, num_attention_heads=32))
    times = [
        estimate_time(replace(small, seq_length=n), layout(16, fsdp=sharded), rates(machine, 4)).iteration_time_s
        for n in (256, 512, 768, 1024, 1536, 2048)
    ]
    assert times == sorted(times)


def test_frozen_weights_are_gathered_and_their_gradients_are_not_there_to_be_scattered() -> None:
    """Three passes over the network with training, two with adapters, where compute hides little of them."""
    short = recipe(
        dense(num_layers=64, hidden_size=8192, ffn_hidden_size=28672, num_attention_heads=64), seq_length=256
    )
    whole, adapted = (
        estimate_time(replace(short, task=task), layout(64, fsdp=True), rates("dgx-h100", 8)).breakdown.dp_exposed_s
        for task in ("pretrain", "peft")
    )
    assert 0.6 < adapted / whole < 0.75


def test_tensors_dealt_out_whole_are_broadcast_one_after_the_other() -> None:
    """So the time grows with the ranks and, until each has one tensor, with the roots: not where the optimizer stays in a node."""

    def exposed(nodes: int, **changes: Any) -> float:
        x = layout(8 * nodes, global_batch_size=8 * nodes)
        made = recipe(features=features(framework="InternEvo", **changes))
        return estimate_time(made, x, rates("dgx-a100-80g", nodes)).breakdown.dp_exposed_s

    few, more, many, most = (exposed(nodes) - exposed(nodes, optimizer_instances=nodes) for nodes in (2, 16, 64, 128))
    assert 0 < few < more
    assert most - few == pytest.approx(291 * 1024 * 8e-6, rel=0.1)
    assert most - many == pytest.approx(291 * 512 * 8e-6, rel=0.1)


def test_several_optimizers_sum_their_shards_and_gather_within_one() -> None:
    """Gathers stay in the node; gradients still cross, one step after the other, and each rank steps a larger share."""
    whole, apart = (
        estimate_time(
            recipe(features=features(optimizer_instances=n, reduce_overlap=False, gather_overlap=False)),
            layout(64),
            rates("dgx-h100", 8),
        ).breakdown
        for n in (1, 8)
    )
    assert 0.5 < apart.dp_exposed_s / whole.dp_exposed_s < 2.0
    assert apart.optimizer_s > 2 * whole.optimizer_s


def test_deepep_moves_what_its_multiprocessors_can_and_hybridep_what_the_links_can() -> None:
    def seconds(dispatcher: str, machine: str) -> float:
        moe = recipe("Qwen/Qwen3-30B-A3B", features=features(dispatcher=dispatcher))
        return estimate_time(moe, layout(ep=8), rates(machine)).breakdown.ep_s

    assert seconds("hybridep", "dgx-h100") == seconds("deepep", "dgx-h100")
    assert seconds("hybridep", "dgx-b200") < 0.8 * seconds("deepep", "dgx-b200")


@pytest.mark.parametrize(("mbs", "slower"), [(1, True), (4, False)])
def test_over_efa_deepep_pays_for_each_trip_and_wins_where_trips_are_long(mbs: int, slower: bool) -> None:
    def seconds(dispatcher: str, machine: str) -> float:
        moe = recipe("moonshotai/Kimi-K2-Instruct", features=features(dispatcher=dispatcher, force_balance=True))
        x = replace(
            layout(256, tp=8, pp=8, ep=32, micro_batch_size=mbs), global_batch_size=256, recompute=FULL_RECOMPUTE
        )
        return estimate_time(moe, x, rates(machine, 32)).iteration_time_s

    assert (seconds("deepep", "p6-b300.48xlarge") > seconds("alltoall", "p6-b300.48xlarge")) == slower
    assert seconds("deepep", "dgx-b300") < seconds("alltoall", "dgx-b300")


@given(DENSE_LAYOUTS, st.floats(1.0, 3.0))
@settings(max_examples=40)
def test_more_bandwidth_is_never_slower(sizes: dict[str, Any], factor: float) -> None:
    base = rates("dgx-h100", 2)
    wide = layout(16, **sizes)
    slow = estimate_time(recipe(), wide, base).iteration_time_s
    sheet = replace(base.product, hbm_bytes_per_s=base.product.hbm_bytes_per_s * factor)
    for better in (
        replace(base, nvlink_bytes_per_s=base.nvlink_bytes_per_s * factor),
        replace(base, fabric_bytes_per_s=base.fabric_bytes_per_s * factor),
        replace(base, product=sheet),
    ):
        assert estimate_time(recipe(), wide, better).iteration_time_s <= slow * (1 + 1e-9)


@given(DENSE_LAYOUTS, st.sampled_from(["num_layers", "hidden_size", "ffn_hidden_size", "vocab_size"]))
@settings(max_examples=40)
def test_a_bigger_model_is_never_faster(sizes: dict[str, Any], field: str) -> None:
    arch = dense()
    bigger = dense(**{field: 2 * getattr(arch, field)} | ({"kv_channels": 128} if field == "hidden_size" else {}))
    small = estimate_time(recipe(arch), layout(**sizes), rates()).iteration_time_s
    assert estimate_time(recipe(bigger), layout(**sizes), rates()).iteration_time_s > small


def test_recompute_costs_time_and_full_costs_most() -> None:
    def seconds(recompute: Recompute) -> float:
        return estimate_time(recipe(), layout(tp=2, recompute=recompute), rates()).iteration_time_s

    core = Recompute(granularity="selective", modules=("core_attn",))
    mlp = Recompute(granularity="selective", modules=("core_attn", "mlp"))
    half = Recompute(granularity="full", method="block", num_layers=16)
    none, full = seconds(Recompute()), seconds(FULL_RECOMPUTE)
    assert none < seconds(core) < seconds(mlp) < full
    assert none < seconds(half) < full
    assert full == pytest.approx(none * 4 / 3, rel=0.06)


def test_longer_sequences_cost_more_a_token() -> None:
    short = estimate_time(recipe(seq_length=4096), layout(tp=2), rates())
    long = estimate_time(recipe(seq_length=65536), layout(tp=2), rates())
    assert long.tokens_per_s_per_gpu < 0.8 * short.tokens_per_s_per_gpu


def test_tensor_parallelism_across_nodes_is_ruinous() -> None:
    inside = estimate_time(recipe(), layout(16, tp=8), rates("dgx-h100", 2)).iteration_time_s
    assert estimate_time(recipe(), layout(16, tp=16), rates("dgx-h100", 2)).iteration_time_s > 1.4 * inside


def test_interleaving_shrinks_the_bubble() -> None:
    plain = estimate_time(recipe(), layout(pp=4), rates()).breakdown
    woven = estimate_time(recipe(), layout(pp=4, vp=4), rates()).breakdown
    assert woven.pp_bubble_s < 0.5 * plain.pp_bubble_s


def test_overlap_hides_communication() -> None:
    plain = estimate_time(recipe(), layout(tp=8), rates()).breakdown.tp_s
    assert estimate_time(recipe(features=features(tp_overlap=True)), layout(tp=8), rates()).breakdown.tp_s < 0.6 * plain


def test_experts_over_the_network_cost_more_than_over_nvlink() -> None:
    moe = recipe("Qwen/Qwen3-30B-A3B", features=features(dispatcher="hybridep"))
    near = estimate_time(moe, layout(16, ep=8), rates("dgx-h100", 2)).breakdown.ep_s
    assert estimate_time(moe, layout(16, ep=16), rates("dgx-h100", 2)).breakdown.ep_s > 1.3 * near


def test_tokens_that_go_once_to_each_domain_beat_a_plain_all_to_all() -> None:
    def seconds(dispatcher: str) -> float:
        moe = recipe("deepseek-ai/DeepSeek-V3", features=features(dispatcher=dispatcher))
        return estimate_time(moe, layout(64, ep=64), rates("dgx-h100", 8)).breakdown.ep_s

    assert seconds("deepep") < seconds("alltoall") < seconds("allgather")


@pytest.mark.parametrize(("sizes", "alone"), [({}, 1), ({"pp": 2, "vp": 2}, 2), ({"pp": 4, "vp": 4}, 4)])
@pytest.mark.parametrize("microbatches", [1, 4, 16])
def test_experts_overlap_but_in_the_passes_that_fill_and_empty_the_pipeline(
    sizes: dict[str, int], alone: int, microbatches: int
) -> None:
    def exposed(*, on: bool) -> float:
        graphs = {"dispatcher": "hybridep", "cuda_graph": "full_iteration", "force_balance": True}
        moe = recipe("Qwen/Qwen3-30B-A3B", features=features(ep_overlap=on, **graphs))
        x = replace(layout(32, ep=8, **sizes), global_batch_size=microbatches * 32 // alone)
        return estimate_time(moe, x, rates("dgx-h100", 4)).breakdown.ep_s

    share = min(1.0, alone / microbatches)
    assert exposed(on=True) / exposed(on=False) == pytest.approx(share + (1 - share) * (1 - EP_OVERLAP))


def test_experts_overlap_no_longer_than_there_is_work_beside_them() -> None:
    graphs = {"dispatcher": "hybridep", "cuda_graph": "full_iteration", "force_balance": True}
    moe = recipe("Qwen/Qwen3-30B-A3B", features=features(ep_overlap=True, **graphs))
    far, slow = layout(64, ep=64), rates("dgx-h100", 8)
    slow = replace(slow, fabric_bytes_per_s=slow.fabric_bytes_per_s / 8)
    many = replace(far, global_batch_size=64 * 64)
    b = estimate_time(moe, many, slow).breakdown
    alone = replace(moe, features=features(**graphs))
    without = estimate_time(alone, many, slow).breakdown
    assert without.ep_s > without.compute_s
    assert b.ep_s + b.compute_s == pytest.approx(without.ep_s, rel=0.02)  # the longer of the two


@pytest.mark.parametrize("again", [Recompute(granularity="selective", modules=("moe",)), FULL_RECOMPUTE])
def test_experts_that_run_again_wait_for_their_counts_and_not_for_launches(again: Recompute) -> None:
    def added(graph: str | None) -> float:
        moe = recipe("Qwen/Qwen3-30B-A3B", features=features(dispatcher="hybridep", cuda_graph=graph))
        once = layout(ep=8)
        layouts = (once, replace(once, recompute=again))
        first, second = (estimate_time(moe, x, rates()).breakdown.compute_s for x in layouts)
        return second - first

    # 8 micro batches of 48 layers: while the backward pass behind it is issued as well, the GPU has enough to do.
    assert added(None) == pytest.approx(added("full_iteration") + 8 * 48 * SYNC)


def test_graphs_help_where_the_host_is_the_limit() -> None:
    small = dense(
        num_layers=16, hidden_size=512, ffn_hidden_size=2048, num_attention_heads=8, kv_channels=64, vocab_size=32000
    )
    eager = estimate_time(recipe(small, seq_length=1024), layout(), rates())
    graphed = estimate_time(
        recipe(small, seq_length=1024, features=features(cuda_graph="full_iteration")), layout(), rates()
    )
    assert eager.breakdown.host_s > 0.3 * eager.iteration_time_s
    assert graphed.iteration_time_s < 0.75 * eager.iteration_time_s


def test_frozen_weights_save_the_weight_gradients() -> None:
    full, lora = recipe(task="sft"), recipe(task="peft", benchmark=True)
    whole, part = (estimate_time(r, layout(), rates()) for r in (full, lora))
    assert 0.62 < part.iteration_time_s / whole.iteration_time_s < 0.78
    assert part.breakdown.dp_exposed_s < whole.breakdown.dp_exposed_s


def test_gradients_and_weights_that_do_not_travel_under_compute_stand_free() -> None:
    beside, free = (
        estimate_time(
            recipe(features=features(reduce_overlap=overlap, gather_overlap=overlap)), layout(), rates()
        ).breakdown.dp_exposed_s
        for overlap in (True, False)
    )
    assert free > 1.5 * beside


def test_adapters_that_travel_all_to_all_are_gathered_by_no_rank() -> None:
    split = layout(tp=4)
    plain, bare, adapted, exchanged = (
        estimate_time(recipe(task=task, features=features(adapter_targets=targets, adapter_a2a=a2a)), split, rates())
        for task, targets, a2a in (
            ("sft", (), False),
            ("peft", (), False),
            ("peft", ("linear_proj", "linear_fc2"), False),
            ("peft", ("linear_proj", "linear_fc2"), True),
        )
    )
    # No product of a weight's gradient hides what is scattered, but no input is gathered again.
    assert bare.breakdown.tp_s > plain.breakdown.tp_s
    assert bare.breakdown.tp_s < exchanged.breakdown.tp_s < adapted.breakdown.tp_s
    # What was gathered by width is joined in memory, all of it.
    assert bare.breakdown.compute_s < exchanged.breakdown.compute_s < adapted.breakdown.compute_s


@pytest.mark.parametrize(("machine", "waits"), [("dgx-h100", False), ("dgx-b200", True)])
def test_where_launches_keep_no_order_a_collective_finds_multiprocessors_taken(
    machine: str, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exposed(*, buffered: bool, late: float) -> float:
        monkeypatch.setattr(pieces, "LATE", late)
        iteration._model.cache_clear()
        plain = recipe(features=features(tp_overlap=buffered))
        return estimate_time(plain, layout(tp=4), rates(machine)).breakdown.tp_s

    assert (exposed(buffered=False, late=70e-6) > exposed(buffered=False, late=0.0)) == waits
    assert exposed(buffered=True, late=70e-6) == exposed(buffered=True, late=0.0)
    # No longer than if nothing hid.
    assert exposed(buffered=False, late=1e-3) == exposed(buffered=False, late=1.0)
    iteration._model.cache_clear()


def test_weights_in_16_bits_are_cast_in_the_first_micro_batch_those_in_8_come_cast() -> None:
    def cast(m: int, **given: bool) -> float:
        kept = recipe(precision="fp8cs", features=features(fp8_param_gather=True))
        wide = recipe(precision="fp8cs", features=features(**given))
        one = layout(global_batch_size=m * 8)
        assert one.num_microbatches == m
        seconds = [estimate_time(r, one, rates("dgx-b200")).breakdown.compute_s for r in (wide, kept)]
        return seconds[0] - seconds[1]

    # Llama 3 8B: 7 billion weights, 5 bytes each; 128 matrices, three launches each.
    assert cast(1) == pytest.approx(7.0e9 * 5 / Kernels(rates("dgx-b200")).hbm + 128 * 3 * 1.8e-6, rel=0.1)
    assert cast(4) == pytest.approx(cast(1), rel=1e-6)
    assert cast(4, transpose_cache=False) == pytest.approx(4 * cast(1), rel=1e-6)


def test_offloaded_activations_cost_more_over_pcie_than_over_a_grace_cpus_own_link() -> None:
    def extra(machine: str) -> float:
        away = recipe(features=features(cpu_offload_layers=16))
        here = rates(machine, 2)
        kept = estimate_time(recipe(), layout(here.world_size, global_batch_size=64), here).breakdown.host_s
        return estimate_time(away, layout(here.world_size, global_batch_size=64), here).breakdown.host_s - kept

    assert extra("dgx-b200") > 3 * extra("gb200-nvl72") > 0


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ("deepseek-ai/DeepSeek-V3", {"ep": 8, "pp": 2}),
        ("deepseek-ai/DeepSeek-V4-Flash", {"ep": 8}),
        ("nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-BF16", {"ep": 8}),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", {"ep": 8}),
        ("openai/gpt-oss-120b", {"ep": 8}),
        ("zai-org/GLM-5.1", {"ep": 8, "cp": 2, "pp": 2}),
    ],
)
def test_every_kind_of_layer_has_a_time(model: str, sizes: dict[str, int]) -> None:
    world = 16
    e = estimate_time(recipe(model), layout(world, **sizes), rates("dgx-h100", 2))
    assert 0 < e.iteration_time_s < 1000
    assert e.breakdown.ep_s > 0


def test_an_estimate_is_quick_enough_for_a_search() -> None:
    r, here = recipe("deepseek-ai/DeepSeek-V3"), rates("gb200-nvl72", 64)
    layouts = [layout(256, pp=pp, ep=ep, micro_batch_size=m) for pp in (4, 8, 16) for ep in (8, 16) for m in (1, 2)]
    for each in layouts:
        estimate_time(r, each, here)
    start = time.process_time()
    for _ in range(20):
        for each in layouts:
            estimate_time(r, each, here)
    assert (time.process_time() - start) / (20 * len(layouts)) < 500e-6  # 40 µs on an idle core; CI cores are shared


# Published runs, one for each kind of machine and model: facts with their source. The whole tables are in docs/accuracy.md.
KORTHIKANTI = {
    "arch": {"num_layers": 96, "hidden_size": 12288, "num_attention_heads": 96, "ffn_hidden_size": 49152, "vocab_size": 51200},
    "hardware": "dgx-a100-80g", "gpus": 64, "precision": "fp16", "seq": 2048, "gbs": 64, "mbs": 1, "tp": 8, "pp": 8, "vp": 3,
    "framework": "Megatron-LM", "sharding": "none", "source": "arXiv:2205.05198 table 5",
}  # fmt: skip
BRIDGE = {"framework": "megatron-bridge 26.06", "mbs": 1, "source": "Megatron Bridge docs/performance-summary.md"}
RUNS: list[tuple[dict[str, Any], float]] = [
    (KORTHIKANTI | {"recompute": "full", "iteration_time_s": 18.13}, 0.05),
    (KORTHIKANTI | {"recompute": "selective", "iteration_time_s": 13.75}, 0.05),
    (BRIDGE | {
        "model_id": "meta-llama/Meta-Llama-3-70B", "hardware": "dgx-h100", "gpus": 64, "precision": "fp8cs", "seq": 8192,
        "gbs": 256, "tp": 4, "pp": 8, "vp": 5, "features": {"tp_overlap": True, "fp8_param_gather": True},
        "tokens_per_s_per_gpu": 1639,
    }, 0.07),
    (BRIDGE | {
        "model_id": "meta-llama/Meta-Llama-3.1-405B", "hardware": "gb200-nvl72", "gpus": 256, "precision": "fp8cs",
        "seq": 8192, "gbs": 1536, "tp": 4, "pp": 16, "vp": 4, "features": {"tp_overlap": True, "fp8_param_gather": True},
        "tokens_per_s_per_gpu": 843,
    }, 0.08),
    (BRIDGE | {
        "model_id": "Qwen/Qwen3-235B-A22B", "hardware": "gb300-nvl72", "gpus": 256, "precision": "fp8mx", "seq": 4096,
        "gbs": 8192, "mbs": 2, "tp": 1, "pp": 4, "vp": 12, "ep": 32, "features": {
            "dispatcher": "hybridep", "ep_overlap": True, "cuda_graph": ["full_iteration", "full"], "force_balance": True,
        }, "tokens_per_s_per_gpu": 9015,
    }, 0.10),
    (BRIDGE | {
        "model_id": "meta-llama/Meta-Llama-3-70B", "task": "peft_lora", "hardware": "dgx-h100", "gpus": 8,
        "precision": "fp8cs", "seq": 4096, "gbs": 32, "tp": 2, "pp": 4, "vp": 20, "features": {"tp_overlap": True},
        "tokens_per_s_per_gpu": 2643,
    }, 0.08),
]  # fmt: skip


@pytest.mark.parametrize(("row", "within"), RUNS)
def test_published_runs_are_predicted(row: dict[str, Any], within: float) -> None:
    run = run_of({"id": "x"} | row, Machines())
    e = estimate_time(run.recipe, run.layout, run.rates)
    ((name, measured),) = run.measured.items()
    assert getattr(e, name) == pytest.approx(measured, rel=within)


BLOOM: dict[str, Any] = {
    "id": "bloom", "hardware": "dgx-a100-80g", "gpus": 384, "precision": "fp16", "seq": 2048, "gbs": 2048, "mbs": 4, "tp": 8, "pp": 6,
    "recompute": "full", "framework": "Megatron-DeepSpeed", "source": "bigscience tr11-176B-ml/chronicles-prequel.md",
    "arch": {
        "num_layers": 78, "hidden_size": 13824, "num_attention_heads": 96, "ffn_hidden_size": 55296, "vocab_size": 250880,
        "share_embeddings_and_output_weights": True,
    },
}  # fmt: skip


def seconds(**changes: Any) -> float:
    run = run_of(BLOOM | changes, Machines())
    return estimate_time(run.recipe, run.layout, run.rates).iteration_time_s


def test_unfused_heads_that_are_no_multiple_of_16_bytes_leave_the_tensor_cores() -> None:
    # 96 heads of 144 took 118.1 s, 128 heads of 108 took 156.8 s (lines 837 and 838 of the source).
    assert seconds(arch=BLOOM["arch"] | {"num_attention_heads": 128}) / seconds() == pytest.approx(
        156.8 / 118.1, rel=0.05
    )


def test_blocking_launches_cost_more_where_micro_batches_are_small() -> None:
    costs = [
        seconds(mbs=mbs) / seconds(mbs=mbs, source="elsewhere", fabric_bytes_per_s_per_gpu=6.25e9) for mbs in (1, 4)
    ]
    assert costs[0] > costs[1] > 1.0


def test_sums_of_gradients_in_fp32_cost_every_micro_batch() -> None:
    # Parameters a GPU: 3.8e9 of the layers' 180e9, 12 bytes each more than in fp16, at some 1.7 TB/s.
    added = seconds(precision="bf16", mbs=1) - seconds(mbs=1)
    assert added == pytest.approx(256 * 180e9 / 48 * 12 / 1.7e12, rel=0.20)


@pytest.mark.parametrize(("precision", "faster"), [("fp8mx", True), ("fp8cs", False), ("bf16", False)])
def test_an_output_layer_in_fp8_is_faster_beside_layers_in_mxfp8_alone(precision: str, faster: bool) -> None:
    def compute(*, on: bool) -> float:
        made = recipe(dense(), precision=precision, features=features(fp8_output=on))
        return estimate_time(made, layout(), rates("dgx-b200")).breakdown.compute_s

    assert (compute(on=True) < 0.97 * compute(on=False)) == faster
    assert faster or compute(on=True) == compute(on=False)


def test_unlike_stages_are_paced_by_the_slowest() -> None:
    even = Layout(world=8, pp=4, global_batch_size=64, layers_per_chunk=(8, 8, 8, 8))
    skewed = Layout(world=8, pp=4, global_batch_size=64, layers_per_chunk=(12, 8, 8, 4))
    trained = recipe(features=features(cross_entropy="te"))  # a loss that takes little of the last stage
    fair = estimate_time(trained, even, rates()).iteration_time_s
    assert estimate_time(trained, skewed, rates()).iteration_time_s > 1.1 * fair


def test_a_frozen_model_computes_no_gradients_of_weights_and_sends_none() -> None:
    trained = recipe()
    frozen = replace(trained, features=features(frozen_language_model=True))
    machine = rates(nodes=2)
    a, b = (estimate_time(r, layout(world=16, tp=2), machine) for r in (frozen, trained))
    assert 0.6 < a.breakdown.compute_s / b.breakdown.compute_s < 0.75  # two of three products
    assert a.breakdown.dp_exposed_s <= b.breakdown.dp_exposed_s
    assert a.breakdown.optimizer_s < 0.2 * b.breakdown.optimizer_s  # what remains is launches
    assert a.model_tflops_per_gpu > b.model_tflops_per_gpu  # Megatron counts all three


def test_the_first_kernels_on_blackwell_were_slower_those_on_hopper_were_not() -> None:
    def longer(machine: str) -> float:
        early = recipe(precision="fp8ds", features=features(framework="NeMo 2.0 (docs)"))
        both = [estimate_time(r, layout(), rates(machine)).breakdown for r in (early, recipe(precision="fp8ds"))]
        return both[0].compute_s / both[1].compute_s

    assert longer("dgx-h100") == pytest.approx(1.0, abs=0.01)
    assert longer("dgx-b200") == pytest.approx(1.08, abs=0.01)


def test_every_bucket_of_gradients_pays_its_way_over_the_network_and_the_pace_never_rises_with_the_machine() -> None:
    paces = []
    for nodes in (1, 4, 16, 64, 256, 2048):
        world = 8 * nodes
        e = estimate_time(
            recipe(global_batch_size=8 * world), layout(world, global_batch_size=8 * world), rates("dgx-h100", nodes)
        )
        paces.append((e.breakdown.dp_exposed_s, e.error_band))
    assert [exposed for exposed, _ in paces] == sorted(exposed for exposed, _ in paces)
    assert paces[-1][0] > 1.7 * paces[0][0]
    assert paces[-1][1] > paces[3][1] == paces[0][1]


def test_mfu_counts_no_gradients_of_frozen_weights_and_tflops_what_bridge_prints() -> None:
    trained, frozen = (
        estimate_time(recipe(features=features(frozen_language_model=frozen)), layout(), rates())
        for frozen in (False, True)
    )
    peak = rates().product.peak_flops("bf16")
    assert trained.mfu == pytest.approx(trained.model_tflops_per_gpu * 1e12 / peak)
    assert 0.6 < frozen.mfu * peak / (frozen.model_tflops_per_gpu * 1e12) < 0.75
    assert frozen.mfu < trained.mfu


@pytest.mark.parametrize(
    ("precision", "on", "expected"),
    [
        ("bf16", {"grad_reduce_fp32": True}, 38),
        ("bf16", {}, 44),
        ("bf16", {"precision_aware_optimizer": True, "moments": "bfloat16"}, 22),
        ("fp8mx", {"precision_aware_optimizer": True, "moments": "bfloat16"}, 36),
        ("fp8ds", {"precision_aware_optimizer": True, "grad_reduce_fp32": True}, 34),
    ],
)
def test_a_step_reads_and_writes_each_state(precision: str, on: dict[str, Any], expected: int) -> None:
    assert step_bytes(recipe(precision=precision, features=features(**on))) == expected
