"""Random (recipe, machine, pins): does Megatron accept the configuration that our overrides make?

    python scripts/fuzz/overrides.py --cases 10000 [--seed 1] [--planned 0.0]

Each case draws a recipe of the catalog, a machine and pins, takes a layout that our rules call legal (or, for a share of
`--planned`, the planner's own choice), and holds its overrides against Megatron Core itself: TransformerConfig with the
model's shape, the layers of every stage as Core counts them, and `parallel_state` of the whole world in torch's fake
process group. What Megatron Bridge makes of a plan is asked by `scripts/fuzz/bridge.py`.

Prints what was refused, by kind, and exits 1 if anything was. CUDA and Transformer Engine are not needed: their versions
and the GPU's name are answered for.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parlaunch.environment.overrides import overrides
from parlaunch.errors import ParlaunchError
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import Rates, rates_of
from parlaunch.model import catalog
from parlaunch.model.layout import FULL_RECOMPUTE, NO_RECOMPUTE, Layout, Recompute
from parlaunch.model.recipe import Recipe
from parlaunch.planning.plan import Wishes
from parlaunch.planning.space import divisors, module_sets, splits
from parlaunch.rules import cp_comm_type, why_not
from parlaunch_probes.bridge_built import layers_built

MACHINES = (
    "dgx-a100-80g",
    "dgx-h100",
    "dgx-h200",
    "dgx-b200",
    "dgx-b300",
    "gb200-nvl72",
    "gb300-nvl72",
    "l40s-pcie-8",
    "h100-pcie-8",
)
NODES = (1, 1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class Case:
    recipe: Recipe
    cluster: Cluster
    layout: Layout

    def __str__(self) -> str:
        return f"{self.recipe.name} on {self.cluster.source} [{self.layout}] gbs={self.layout.global_batch_size}"


# --- Drawing ----------------------------------------------------------------------------------------------------------


def draw_layout(dice: random.Random, recipe: Recipe, rates: Rates, wishes: Wishes) -> Layout | None:
    """A legal layout that keeps the pins; None after too many misses."""
    a, world = recipe.architecture, rates.world_size
    for _ in range(60):
        tp = wishes.tp or dice.choice([n for n in divisors(world) if n <= 8])
        pp = wishes.pp or dice.choice([n for n in divisors(world) if n <= 16])
        cp = wishes.cp or dice.choice([1, 1, 1, 2, 4])
        ep = etp = 1
        if a.num_moe_experts:
            ep = dice.choice([n for n in divisors(world) if a.num_moe_experts % n == 0])
            etp = dice.choice([1, 1, 1, tp])
        if world % (tp * pp * cp) or world % (pp * ep * etp):
            continue
        vp = dice.choice([None, None, 2, 3, 4]) if pp > 1 else None
        options = splits(a, pp, vp)
        if not options:
            continue
        kind = dice.choice(["none", "none", "full", "modules"])
        again = {"none": NO_RECOMPUTE, "full": FULL_RECOMPUTE}.get(kind) or Recompute(
            granularity="selective", modules=dice.choice(module_sets(a)) or ("core_attn",)
        )
        layout = Layout(
            world=world, tp=tp, pp=pp, vp=vp, cp=cp, ep=ep, etp=etp, micro_batch_size=dice.choice([1, 1, 2, 4]),
            global_batch_size=recipe.global_batch_size, recompute=again, cp_comm_type=cp_comm_type(recipe.architecture, cp),
            layers_per_chunk=dice.choice(options), fsdp=recipe.features.fsdp if dice.random() < 0.9 else not recipe.features.fsdp,
        )  # fmt: skip
        if why_not(layout, recipe, rates) is None:
            return layout
    return None


def planned(recipe: Recipe, cluster: Cluster, wishes: Wishes) -> Layout | None:
    from parlaunch.planning.planner import plan

    try:
        return plan(cluster, recipe, wishes).layout
    except ParlaunchError:
        return None


def cases(dice: random.Random, names: list[str], share: float) -> Iterator[Case]:
    clusters = {(m, n): preset(m, n) for m in MACHINES for n in NODES}
    rates = {key: rates_of(c) for key, c in clusters.items()}
    while True:
        recipe = catalog.recipe(dice.choice(names))
        key = dice.choice(MACHINES), dice.choice(NODES)
        if dice.random() < 0.2:
            recipe = replace(recipe, global_batch_size=dice.choice([32, 64, 128, 256, 512, 1024]))
        wishes = Wishes(
            tp=dice.choice([None, None, 1, 2, 4, 8]),
            pp=dice.choice([None, None, 1, 2, 4]),
            cp=dice.choice([None, 1, 1, 2]),
        )
        layout = (
            planned(recipe, clusters[key], wishes)
            if dice.random() < share
            else draw_layout(dice, recipe, rates[key], wishes)
        )
        if layout is not None:
            yield Case(recipe, clusters[key], layout)


# --- Megatron ---------------------------------------------------------------------------------------------------------


def answer_for_the_gpu() -> None:
    """What is asked of CUDA and Transformer Engine while a configuration is checked, answered without either."""
    from parlaunch_launch.cpu.missing import fill_in

    fill_in()
    import torch
    from packaging.version import Version

    torch.cuda.current_device = lambda: torch.device("cpu")
    import megatron.core.utils as utils

    utils.get_te_version = lambda: Version("2.14.0")
    utils.is_te_min_version = lambda version, check_equality=True: True


def value_of(text: str) -> Any:
    import ast

    if text in ("null", "True", "False"):
        return {"null": None, "True": True, "False": False}[text]
    if text.startswith("["):
        return [part for part in text[1:-1].split(",") if part]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def check_core(case: Case, lines: tuple[str, ...]) -> None:
    """Megatron Core with this model and these overrides. Raises whatever Megatron raises."""
    import torch
    from megatron.core.transformer import transformer_config
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    from parlaunch.model.parameters import chunk_sizes

    a, x = case.recipe.architecture, case.layout
    mla = a.multi_latent_attention
    kind = MLATransformerConfig if mla else TransformerConfig
    known = set(kind.__dataclass_fields__)
    shape = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
             "gated_linear_unit", "add_bias_linear", "num_moe_experts", "moe_ffn_hidden_size", "moe_router_topk",
             "moe_shared_expert_intermediate_size", "mtp_num_layers")  # fmt: skip
    fields: dict[str, Any] = {k: getattr(a, k) for k in shape if getattr(a, k) is not None}
    fields["num_layers"] = len(a.layers())
    if mla:
        fields |= {
            k: getattr(a, k)
            for k in ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "v_head_dim")
            if getattr(a, k) is not None
        }
    for line in lines:
        key, _, text = line.partition("=")
        name = key.removeprefix("model.")
        if key.startswith("model.") and name in known and name != "pipeline_dtype":
            fields[name] = value_of(text)
    if stages := fields.get("pipeline_model_parallel_layout"):
        fields["mtp_num_layers"] = stages.count("m") or None
    if fields.get("cp_comm_type") is None:
        fields.pop("cp_comm_type", None)
    if "mhc" in fields.get("recompute_modules", ()) and "mhc" not in Path(transformer_config.__file__).read_text():
        raise LookupError("this Megatron Core has no hyper-connections")
    batched = not x.vp
    config = kind(
        **{"moe_token_dispatcher_type": "alltoall"} | fields, pipeline_dtype=torch.bfloat16, params_dtype=torch.bfloat16, bf16=True, gradient_accumulation_fusion=False,
        moe_grouped_gemm=bool(a.num_moe_experts), overlap_p2p_comm=not batched, batch_p2p_comm=batched,
    )  # fmt: skip
    assert config.sequence_parallel == x.sequence_parallel
    check_groups(case)
    if a.hybrid_layer_pattern:
        return
    built = layers_built(config, pp=x.pp, vp=x.vp)
    chunks = chunk_sizes(a, x)
    assert built == chunks, f"Megatron builds {built} layers, the layout has {chunks}"


def check_groups(case: Case) -> None:
    import torch.distributed as dist
    from megatron.core import parallel_state as mpu
    from torch.testing._internal.distributed.fake_pg import FakeStore

    x = case.layout
    if x.world > 64:
        generate = mpu.RankGenerator(tp=x.etp, ep=x.ep, dp=x.edp, pp=x.pp, cp=1, order="tp-cp-ep-dp-pp")
        dense = mpu.RankGenerator(tp=x.tp, ep=1, dp=x.dp, pp=x.pp, cp=x.cp, order="tp-cp-ep-dp-pp")
        assert generate.get_ranks("pp") == dense.get_ranks("pp")
        return
    dist.init_process_group("fake", store=FakeStore(), rank=x.world - 1, world_size=x.world)
    try:
        mpu.initialize_model_parallel(
            tensor_model_parallel_size=x.tp, pipeline_model_parallel_size=x.pp, context_parallel_size=x.cp,
            virtual_pipeline_model_parallel_size=x.vp, expert_model_parallel_size=x.ep,
            expert_tensor_parallel_size=x.etp, create_gloo_process_groups=False,
        )  # fmt: skip
    finally:
        mpu.destroy_model_parallel()
        dist.destroy_process_group()


# --- Counting ---------------------------------------------------------------------------------------------------------


def kind_of(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:170]}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--planned", type=float, default=0.0, help="share of cases that the planner chooses")
    parser.add_argument("--only", default="", help="recipes whose name contains this")
    args = parser.parse_args(argv)
    dice = random.Random(args.seed)
    names = [n for n in catalog.recipe_names() if catalog.recipe(n).feasible and args.only in n]
    answer_for_the_gpu()
    refused: Counter[str] = Counter()
    example: dict[str, str] = {}
    done: Counter[str] = Counter()
    started = time.monotonic()
    for case in cases(dice, names, args.planned):
        if done["cases"] == args.cases:
            break
        done["cases"] += 1
        if case.recipe.architecture.kind == "diffusion":
            continue
        try:
            check_core(case, tuple(map(str, overrides(case.recipe, case.layout, cluster=case.cluster))))
            done["accepted"] += 1
        except LookupError as error:
            done[str(error)] += 1
        except Exception as error:
            kind = kind_of(error)
            refused[kind] += 1
            example.setdefault(kind, str(case))
    print(f"{done['cases']} cases in {time.monotonic() - started:.0f} s: Core accepted {done['accepted']}")
    for kind, count in refused.most_common():
        print(f"{count:6} {kind}\n         {example[kind]}")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
