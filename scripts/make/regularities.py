"""The ten regularities in NVIDIA's tuned layouts, each shown by plans: writes docs/regularities.md.

    python scripts/make/regularities.py > docs/regularities.md

Every plan is blind: no published measurement, no recipe's own layout.
"""

from __future__ import annotations

from dataclasses import replace

from parlaunch.environment.settings import settings
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import rates_of
from parlaunch.model import catalog
from parlaunch.model.layout import Layout, Recompute
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Candidate, Wishes
from parlaunch.planning.planner import plan
from parlaunch.planning.search import Search
from parlaunch.rules import why_not
from parlaunch.units import gib, percent, seconds

BLIND = Wishes(evidence=False)


def bare(name: str, **changes: object) -> Recipe:
    """The recipe by name with some of it changed; FSDP off unless a row asks for it."""
    recipe = catalog.recipe(name)
    features = replace(recipe.features, fsdp=bool(changes.pop("fsdp", False)))
    return replace(recipe, features=features, **changes)  # type: ignore[arg-type]


def best(recipe: Recipe, machine: str, nodes: int, wishes: Wishes = BLIND) -> Candidate:
    return plan(preset(machine, nodes), recipe, wishes).chosen


def line(label: str, c: Candidate) -> str:
    e = c.estimate
    return f"| {label} | `{c.layout}` | {gib(c.memory.peak)} | {seconds(e.iteration_time_s)} | {e.model_tflops_per_gpu:,.0f} |"


def table(rows: list[tuple[str, Candidate]]) -> str:
    head = "| | layout | memory a GPU | iteration | TFLOP/s a GPU |\n|---|---|---|---|---|\n"
    return head + "\n".join(line(label, c) for label, c in rows)


def weak_scaling() -> str:
    name = "qwen3_235b_a22b_pretrain_256gpu_gb200_bf16_config"
    rows = []
    for nodes in (64, 128, 256):
        recipe = bare(name, global_batch_size=32 * nodes * 4)
        rows.append((f"{nodes * 4} GB200, batch {recipe.global_batch_size:,}", best(recipe, "gb200-nvl72", nodes)))
    return table(rows)


def generations() -> str:
    name = "llama3_70b_pretrain_64gpu_h100_bf16_config"
    rows = [(f"64 {m}", best(bare(name), machine, nodes)) for m, machine, nodes in (
        ("H100", "dgx-h100", 8), ("B200", "dgx-b200", 8), ("B300", "dgx-b300", 8), ("GB300", "gb300-nvl72", 16),
    )]  # fmt: skip
    return table(rows)


def expert_domain() -> str:
    name = "deepseek_v3_pretrain_256gpu_gb200_fp8mx_config"
    rows = [(f"256 {m}", best(bare(name), machine, nodes)) for m, machine, nodes in (
        ("GB200 (domain 64)", "gb200-nvl72", 64), ("GB300 (domain 64)", "gb300-nvl72", 64), ("B300 (domain 8)", "dgx-b300", 32),
    )]  # fmt: skip
    return table(rows)


def memory_sets_the_micro_batch() -> str:
    name = "llama3_8b_pretrain_8gpu_h100_bf16_config"
    rows = [(f"8 {m}", best(bare(name), machine, nodes)) for m, machine, nodes in (
        ("H100", "dgx-h100", 1), ("B200", "dgx-b200", 1), ("GB200", "gb200-nvl72", 2), ("B300", "dgx-b300", 1),
        ("GB300", "gb300-nvl72", 2),
    )]  # fmt: skip
    return table(rows)


def little_tensor_parallelism_for_experts() -> str:
    name = "qwen3_235b_a22b_pretrain_256gpu_gb200_bf16_config"
    hopper = bare("qwen3_235b_a22b_pretrain_256gpu_h100_bf16_config", global_batch_size=8192)
    rows = [("256 H100", best(hopper, "dgx-h100", 32)), ("256 GB200", best(bare(name), "gb200-nvl72", 64))]
    one, two = (best(bare(name), "gb200-nvl72", 64, replace(BLIND, tp=tp)) for tp in (1, 2))
    share = two.estimate.iteration_time_s / one.estimate.iteration_time_s - 1
    return table(rows) + f"\n\nOn GB200 the best layout with TP 2 is {percent(share)} slower than the best with TP 1."


def with_and_without_fsdp(
    label: str, name: str, machine: str, nodes: int, **changes: object
) -> list[tuple[str, Candidate]]:
    """The best plans without FSDP and with it, and how much longer the latter takes."""
    without, sharded = (best(bare(name, fsdp=on, **changes), machine, nodes) for on in (False, True))
    share = sharded.estimate.iteration_time_s / without.estimate.iteration_time_s - 1
    return [(f"{label}, without", without), (f"{label}, FSDP ({share:+.1%})", sharded)]


def precision() -> str:
    name = "llama3_70b_pretrain_64gpu_gb200_bf16_config"
    kinds = ("bf16", "fp8mx", "nvfp4")
    return table(
        [row for kind in kinds for row in with_and_without_fsdp(kind, name, "gb200-nvl72", 16, precision=kind)]
    )


def fsdp() -> str:
    name = "llama31_405b_pretrain_512gpu_h100_bf16_config"
    machines = (("512 H100", "dgx-h100", 64), ("128 B300", "dgx-b300", 16))
    return table(
        [
            row
            for m, machine, nodes in machines
            for row in with_and_without_fsdp(m, name, machine, nodes, global_batch_size=768)
        ]
    )


def graphs() -> str:
    name = "llama3_8b_pretrain_8gpu_b300_bf16_config"
    rows = []
    for label, kind in (("no graph", None), ("full iteration", "full_iteration")):
        for m, machine in (("H100", "dgx-h100"), ("B300", "dgx-b300")):
            recipe = bare(name)
            recipe = replace(recipe, features=replace(recipe.features, cuda_graph=kind, cuda_graph_scope=()))
            made = Search(recipe, rates_of(preset(machine)), BLIND).candidate(
                Layout(world=8, cp=2, global_batch_size=128, cp_comm_type="p2p")
            )
            host = made.estimate.breakdown.host_s / made.estimate.iteration_time_s
            rows.append((f"8 {m}, {label}: the host is {percent(host)} of the iteration", made))
    return table(rows)


def narrow_recompute() -> str:
    name = "deepseek_v3_pretrain_256gpu_gb200_bf16_config"
    recipe = bare(name)
    rows = [("256 GB200", best(recipe, "gb200-nvl72", 64)), ("256 GB300", best(recipe, "gb300-nvl72", 64))]
    base = replace(rows[0][1].layout, recompute=Recompute())
    search = Search(recipe, rates_of(preset("gb200-nvl72", 64)), BLIND)
    text = [
        "",
        "",
        "What recomputation costs that first layout, were there memory enough without:",
        "",
        "| recomputed | memory a GPU | slower by |",
        "|---|---|---|",
    ]
    plain = search.candidate(base)
    for again in (
        Recompute(), Recompute(granularity="selective", modules=("mla_up_proj",)),
        Recompute(granularity="selective", modules=("moe_act", "layernorm")),
        Recompute(granularity="selective", modules=("mla_up_proj", "moe_act", "layernorm", "mlp")),
        Recompute(granularity="full", method="uniform", num_layers=1),
    ):  # fmt: skip
        c = search.candidate(replace(base, recompute=again))
        text.append(
            f"| {again} | {gib(c.memory.peak)} | {c.estimate.iteration_time_s / plain.estimate.iteration_time_s - 1:.1%} |"
        )
    return table(rows) + "\n".join(text)


def dispatcher_and_environment() -> str:
    recipe = bare("deepseek_v3_pretrain_256gpu_gb200_bf16_config")
    cluster = preset("gb200-nvl72", 64)
    layout = plan(cluster, recipe, BLIND).layout
    lines = [f"For `{layout}` on 256 GB200:", ""]
    lines += [f"- `{v.name}={v.value}`: {v.reason}" for v in settings(cluster, recipe, layout, {})]
    refused = why_not(replace(layout, ep=128, world=1024), recipe, rates_of(preset("gb200-nvl72", 256)))
    return "\n".join([*lines, "", f"And EP 128 there is refused: {refused}."])


SECTIONS = (
    ("GPU count is weak scaling", "The layout stays, the batch grows, and more GPUs become DP.", weak_scaling),
    ("H100 carries the model parallelism", "Llama-3 70B in BF16, by generation.", generations),
    ("EP follows the NVLink domain", "DeepSeek-V3 in MXFP8.", expert_domain),
    ("Memory sets micro batch and PP", "Llama-3 8B.", memory_sets_the_micro_batch),
    ("Experts hardly use TP away from H100", "Qwen3-235B-A22B.", little_tensor_parallelism_for_experts),
    ("Precision changes the layout", "Llama-3 70B on 64 GB200: what FSDP costs.", precision),
    ("FSDP is the answer of large memory to dense models", "Llama-3.1 405B, batch 768: what FSDP costs.", fsdp),
    ("CUDA graphs follow hardware", "One layout of Llama-3 8B, and what of an iteration waits for the host.", graphs),
    ("Recompute is narrow", "DeepSeek-V3 in BF16: a few modules, and fewer where there is more memory.", narrow_recompute),
    ("Dispatcher and environment follow fixed rules", "DeepSeek-V3 in BF16.", dispatcher_and_environment),
)  # fmt: skip


def main() -> None:
    print(
        "# Ten regularities\n\nWhat can be read out of NVIDIA's tuned layouts stands in the headings, what plans of ours make of it below them: most "
        "show it, and where they do not the tables say so.\nBlind plans: the model, the machine and the batch decide.\nWritten by `python scripts/make/regularities.py > docs/regularities.md`; the figures are predictions."
    )
    for number, (title, text, make) in enumerate(SECTIONS, 1):
        print(f"\n## {number}. {title}\n\n{text}\n\n{make()}")


if __name__ == "__main__":
    main()
