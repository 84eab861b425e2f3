"""Is what parlaunch plans what Megatron Bridge builds? Random command lines, each held against the finished configuration.

    python scripts/fuzz/bridge_hub.py HUB
    python scripts/fuzz/bridge.py --hub HUB --cases 10000 [--jobs 2] [--seed 1] [--first 0] [--planned 0.03] [--bridge CHECKOUT]

A case is a command line of `parlaunch plan`: a recipe that loads here, a machine, pins, options and KEY=VALUE. Its plan is
made as the command makes it; the runner's arguments go through our runner up to the configuration it would train, or with
`--bridge` through that checkout's own `scripts/training/run_recipe.py`; Bridge finishes the configuration for the plan's
number of GPUs (mixed precision, communication overlap, validation, the model provider's own checks); and every planned
quantity is compared with it, the layers of each pipeline stage as Megatron Core counts them.

Case N of a seed is the same whatever `--jobs` is and wherever `--first` begins: a long run may be made in parts.

Prints differences and refusals by kind, with one command line each, and exits 1 if there are any. CUDA and Transformer
Engine are not needed: their versions and the GPU's name are answered for.
"""

from __future__ import annotations

import argparse
import builtins
import functools
import gc
import importlib
import io
import logging
import multiprocessing
import os
import pkgutil
import random
import shlex
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

from overrides import MACHINES, NODES, built_layers, draw_layout, kind_of

from parlaunch.cli.job import finish, job_of
from parlaunch.cli.launch import situation_of
from parlaunch.cli.options import described
from parlaunch.cli.request import Request
from parlaunch.environment.bridge_versions import said
from parlaunch.environment.override_grammar import hydra
from parlaunch.errors import ParlaunchError
from parlaunch.hardware.installed import releases
from parlaunch.hardware.rates import rates_of
from parlaunch.model import catalog
from parlaunch.model.architecture import Architecture
from parlaunch.model.layout import Layout
from parlaunch.model.parameters import chunk_sizes
from parlaunch.model.recipe import Features, features_from_json
from parlaunch.model.sections import OVERLAP, placed, places
from parlaunch.planning.plan import Plan, Wishes
from parlaunch.rules.switches import legal_features
from parlaunch.switches.graphs import GRAPHED
from parlaunch.switches.offloading import OFFLOADED
from parlaunch.switches.table import SWITCHES, with_values
from parlaunch_launch.runners import checkout_version
from parlaunch_probes import bridge as probe

# --- Drawing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """One command line of `parlaunch plan`."""

    request: Request

    def __str__(self) -> str:
        """As it is typed in a shell."""
        asked = ((option, getattr(self.request, option.field)) for option in described(Request))
        options = (option.spelled(value) for option, value in asked if value != option.default)
        return shlex.join(["parlaunch", "plan", *chain.from_iterable(options), *self.request.overrides])


CHANGES: tuple[tuple[str, ...], ...] = (
    ("model.num_layers=8",),
    ("model.num_layers=16",),
    ("model.num_layers=12", "model.hidden_size=2048", "model.ffn_hidden_size=8192"),
    ("model.num_attention_heads=32",),
    ("model.num_moe_experts=16",),
    ("model.mtp_num_layers=null",),
    ("mixed_precision=bf16_mixed",),
    ("mixed_precision=bf16_with_fp8_current_scaling_mixed",),
    ("mixed_precision=fp16_mixed",),
    ("ddp.grad_reduce_in_fp32=False",),
    ("optimizer.optimizer_cpu_offload=True",),
    ("model.moe_token_dispatcher_type=alltoall",),
    ("comm_overlap.tp_comm_overlap=False",),
    ("model.cuda_graph_impl=none",),
    ("dataset.seq_length=2048",),
    ("train.train_iters=50", "logger.log_interval=1"),
    ("model.recompute_num_layers=1000",),
    ("model.recompute_granularity=full", "model.recompute_method=block", "model.recompute_num_layers=3"),
    ("ddp.use_distributed_optimizer=False",),
    ("ddp.nccl_ub=False",),
    ("peft.dim=16",),
    ("optimizer.lr=0.0001",),
    # Shapes and stages of one's own.
    ("model.moe_router_topk=2",),
    ("model.moe_ffn_hidden_size=1536", "model.moe_shared_expert_intermediate_size=1024"),
    ("model.moe_layer_freq=2",),
    ("model.mtp_num_layers=1",),
    ("model.num_query_groups=4", "model.kv_channels=64"),
    ("model.vocab_size=200000", "model.make_vocab_size_divisible_by=100"),
    ("model.account_for_embedding_in_pipeline_split=True", "model.account_for_loss_in_pipeline_split=True"),
    ("model.num_layers_in_first_pipeline_stage=5",),
    ("model.num_layers_in_last_pipeline_stage=3",),
    ("model.pipeline_model_parallel_layout='Et*9|t*10|t*7|t*6L'",),
    # Keys of which Megatron takes one.
    ("ddp.bucket_size=1000000",),
    ("ddp.num_buckets=8",),
    ("comm_overlap.bucket_size=1000000",),
    ("comm_overlap=null",),
    ("mixed_precision=null",),
    ("mixed_precision.fp8=null",),
    ("mixed_precision.fp8_recipe=delayed",),
    ("mixed_precision.fp8_param_gather=False",),
    ("model.cuda_graph_impl=full_iteration",),
    ("model.cuda_graph_impl=transformer_engine",),
    ("model.cuda_graph_impl=transformer_engine", "model.cuda_graph_scope=[attn]"),
    ("model.cuda_graph_impl=transformer_engine", "model.cuda_graph_modules=[attn]"),
    ("model.external_cuda_graph=False",),
    ("train.train_samples=10000",),
    (
        "train.train_samples=10000",
        "train.train_iters=null",
        "scheduler.lr_warmup_iters=0",
        "scheduler.lr_decay_iters=null",
    ),
    ("dataset.enable_offline_packing=False", "dataset.offline_packing_specs=null"),
    ("dataset.enable_in_batch_packing=True",),
    ("dataset.enable_in_batch_packing=False",),
    # Sharding, offloading, optimizers.
    ("ddp.num_distributed_optimizer_instances=2",),
    ("ddp.data_parallel_sharding_strategy=optim_grads_params",),
    ("ddp.fsdp_double_buffer=True",),
    ("ddp.nccl_ub=True", "ddp.fsdp_manual_registration=True"),
    ("ddp.average_in_collective=True",),
    ("checkpoint.ckpt_format=fsdp_dtensor",),
    ("checkpoint.async_save=True", "checkpoint.save_interval=100"),
    ("validation.eval_global_batch_size=16",),
    ("model.cpu_offloading=True", "model.cpu_offloading_num_layers=2"),
    ("model.fine_grained_activation_offloading=True", "model.offload_modules=[core_attn]"),
    ("optimizer.use_precision_aware_optimizer=True", "optimizer.exp_avg_dtype=bf16"),
    ("optimizer.optimizer=dist_muon",),
    ("optimizer.optimizer=adam",),
    ("optimizer.optimizer_cpu_offload=True", "optimizer.optimizer_offload_fraction=0.5"),
    # Experts and kernels.
    ("model.moe_token_dispatcher_type=flex", "model.moe_flex_dispatcher_backend=hybridep"),
    ("model.moe_token_dispatcher_type=flex", "model.moe_flex_dispatcher_backend=deepep"),
    ("model.moe_token_dispatcher_type=allgather",),
    ("model.moe_router_force_load_balancing=True",),
    ("model.moe_shared_expert_overlap=True",),
    ("model.cross_entropy_loss_fusion=False",),
    ("model.attention_backend=unfused",),
    ("model.attention_dropout=0.1", "model.hidden_dropout=0.1"),
    ("model.recompute_granularity=selective", "model.recompute_modules=[core_attn,mlp]"),
)
"""What users type. A recipe that has no such section or part may refuse it: that is an answer too."""


def case_of(
    dice: random.Random, names: list[str], loads: Callable[[str], bool], share: float, overridden: float
) -> Case:
    """A command line for a recipe that loads; a share of them leaves the layout to the planner, the others fix a legal one."""
    while True:
        name = dice.choice(names)
        machine, nodes = dice.choice(MACHINES), dice.choice(NODES)
        extra: dict[str, Any] = {}
        if dice.random() < 0.2:
            extra["global_batch_size"] = dice.choice([32, 64, 128, 256, 512, 1024])
        if dice.random() < 0.1:
            extra["seq_length"] = dice.choice([2048, 4096, 8192, 16384])
        if dice.random() < 0.1:
            extra["precision"] = dice.choice(["bf16", "fp16", "fp32", "fp8cs", "fp8mx", "nvfp4"])
        typed: tuple[str, ...] = ()
        if dice.random() < overridden:
            typed = dice.choice(CHANGES) if dice.random() < 0.75 else as_typed(dice, name)
        if not loads(name):
            continue
        asked = Request(
            command="plan",
            recipe=name,
            hardware=f"{machine}:{nodes}",
            evidence=False,
            overrides=typed + theirs(name),
            **extra,
        )
        if dice.random() < share:
            return Case(with_switches(dice, asked))
        if (pinned := with_layout(dice, asked)) is not None:
            return Case(with_switches(dice, pinned))


def with_switches(dice: random.Random, asked: Request) -> Request:
    """The request with switches fixed by the user, two of three times, for the software of some release."""
    words = [dice.choice(["auto", "recipe"])]
    for row in dice.sample(SWITCHES, dice.choice([0, 1, 2])):
        value = dice.choice(row.values)
        if row.name in LISTED and dice.random() < 0.5:
            value = "+".join(dice.sample(LISTED[row.name], dice.choice([1, 2, 3])))
        words.append(f"{row.name}={value}")
    return replace(asked, switches=",".join(words), software=dice.choice([None, *(r.source for r in releases())]))


def as_typed(dice: random.Random, name: str) -> tuple[str, ...]:
    """A switch as KEY=VALUE."""
    row = dice.choice(SWITCHES)
    value = dice.choice(row.values)
    recipe = with_values(catalog.recipe(name), {row.name: value})
    return tuple(f"{key}={hydra(v)}" for key, v in placed(row.keys(recipe, value), recipe).items())


LISTED = {"graphs": GRAPHED, "offload": OFFLOADED}
"""Switches that take a list of modules."""


def theirs(name: str) -> tuple[str, ...]:
    """What a user must give some recipes before Bridge takes them: a checkpoint to tune, a data set's place."""
    said = () if catalog.recipe(name).task == "pretrain" else (f"checkpoint.pretrained_checkpoint={os.getcwd()}",)
    return (*said, f"dataset.path={os.getcwd()}") if "energon" in name else said


def with_layout(dice: random.Random, asked: Request) -> Request | None:
    """The request with every size fixed to a layout that our rules call legal; None where none was found."""
    try:
        job = job_of(asked, situation_of(asked))
    except ParlaunchError:
        return asked  # let the comparison see how it is refused
    wishes = Wishes(
        tp=dice.choice([None, None, 1, 2, 4, 8]), pp=dice.choice([None, None, 1, 2, 4]), cp=dice.choice([None, 1, 1, 2])
    )
    x = draw_layout(dice, job.recipe, rates_of(job.cluster), wishes)
    if x is None:
        return None
    again = (
        "none"
        if x.recompute.granularity is None
        else "full"
        if x.recompute.granularity == "full"
        else ",".join(x.recompute.modules)
    )
    return replace(
        asked, tp=x.tp, pp=x.pp, vp=x.vp or 1, cp=x.cp, ep=x.ep, etp=x.etp, micro_batch_size=x.micro_batch_size,
        recompute=again, fsdp=x.fsdp,
    )  # fmt: skip


def planned(case: Case) -> Plan:
    """The plan as the command makes it. Raises ParlaunchError for what it refuses."""
    job = job_of(case.request, situation_of(case.request))
    return finish(job, job.cluster)


# --- Bridge -----------------------------------------------------------------------------------------------------------


class Bridge:
    """Megatron Bridge in this process, up to the configuration that its training would start with."""

    def __init__(self, hub: Path, checkout: Path | None) -> None:
        os.environ["HF_HUB_OFFLINE"], os.environ["HF_HOME"] = "1", str(hub)
        if checkout is not None:
            # The runner is its script, spoken to as its version wants; the probe answers for that version too.
            os.environ["MEGATRON_BRIDGE_HOME"] = str(checkout)
            probe.version = lambda: said(checkout_version(checkout) or (0, 0, 0))
            sys.path.insert(0, str(checkout / "src"))
            sys.path.insert(0, str(checkout / "scripts" / "training"))
        from parlaunch_launch.cpu.bridge_runner import before_bridge

        importing = builtins.__import__
        before_bridge()
        import megatron.bridge.peft as adapters

        for module in pkgutil.walk_packages(adapters.__path__, f"{adapters.__name__}."):
            importlib.import_module(module.name)
        builtins.__import__ = (
            importing  # what adapters inherit from is needed once, and each later import is quicker so
        )
        self._answer_for_the_gpu()
        self.script: Any = None
        if checkout is not None:
            import run_recipe

            self.script = run_recipe
        self.loaded: dict[str, bool] = {}
        self.missing: dict[str, str] = {}

    def _answer_for_the_gpu(self) -> None:
        import megatron.bridge.models.hf_pretrained.safe_config_loader as loader
        import megatron.bridge.training.comm_overlap as comm_overlap
        import megatron.bridge.training.config as config
        import megatron.core.transformer.transformer_config as core_config
        import megatron.core.utils as utils
        import torch
        from packaging.version import Version

        logging.disable(logging.WARNING)
        loader.time.sleep = lambda _seconds: None  # it waits between tries; what is not in the cache does not come
        utils.get_te_version = lambda: Version("2.14.0")
        core_config._validate_dsa_kernel_backend_dependencies = lambda _backend: None  # kernels, which are not here
        comm_overlap.HAVE_TE = True
        for module in [m for n, m in sys.modules.items() if n.startswith("megatron.")]:
            if hasattr(module, "is_te_min_version"):
                module.is_te_min_version = lambda *_a, **_k: True  # type: ignore[attr-defined]
        self.world, self.device = 1, object
        config.get_world_size_safe = lambda: self.world
        torch.cuda.get_device_properties = lambda *_a: self.device

        # Kernels of Transformer Engine, which is not here: a plan is for machines that have them.
        kernels = {
            "megatron.core.models.common.embeddings.rope_utils": ("fused_apply_rotary_pos_emb", "fused_apply_rotary_pos_emb_thd"),
            "megatron.core.transformer.moe.moe_utils": (
                "fused_permute", "fused_permute_with_probs", "fused_sort_chunks_by_index",
                "fused_sort_chunks_by_index_with_probs", "fused_unpermute",
            ),
        }  # fmt: skip
        for module, names in kernels.items():
            for name in names:
                setattr(importlib.import_module(module), name, object())

        class FusedAdam:
            """What Core asks of Transformer Engine's Adam while a configuration is checked: that it takes these."""

            def __init__(
                self, master_weight_dtype: Any, exp_avg_dtype: Any, exp_avg_sq_dtype: Any, use_decoupled_grad: Any
            ) -> None: ...

        for name in ("transformer_engine", "transformer_engine.pytorch", "transformer_engine.pytorch.optimizers"):
            sys.modules.setdefault(name, types.ModuleType(name))
        sys.modules["transformer_engine.pytorch.optimizers"].FusedAdam = FusedAdam  # type: ignore[attr-defined]

    def loads(self, name: str) -> bool:
        """Whether the recipe can be built here; why not is remembered."""
        from parlaunch_launch.bridge_runner import found
        from parlaunch_probes import bridge_child

        if name not in self.loaded:
            try:
                config, module = found(name)
                answer = bridge_child.describe(config, module) | {"keys": bridge_child.keys(config)}
                probe.keep(name, answer, os.environ)
                self.loaded[name] = True
            except Exception as error:
                self.loaded[name], self.missing[name] = False, kind_of(error)
        return self.loaded[name]

    def finished(self, plan: Plan) -> Any:
        """The configuration that Bridge trains when it is given the plan's command. Raises what Bridge raises."""
        gpu = plan.cluster.gpu
        self.world = plan.layout.world
        capability = gpu.compute_capability or (9, 0)
        self.device = type("Device", (), {"major": capability[0], "minor": capability[1], "name": gpu.name})
        argv = list(plan.argv)
        argv = argv[argv.index("--recipe" if "--recipe" in argv else "--model-config") :]
        environment = {v.name: v.value for v in plan.environment} | {"WORLD_SIZE": str(self.world), "RANK": "0"}
        with patched_environment(environment):
            config = self._prepared(argv)
            from megatron.bridge.training.config import runtime_config_update

            runtime_config_update(config)
            self._provide(getattr(config.model, "transformer", config.model), config.model)
        return config

    def _provide(self, m: Any, provider: Any) -> None:
        """What building the model changes in its configuration, beside the weights (bridge/models/gpt_provider.py: provide)."""
        from megatron.bridge.models.gpt_provider import GPTModelProvider
        from megatron.bridge.utils.fusions import validate_rope_fusion_compatibility

        if isinstance(provider, GPTModelProvider) and not validate_rope_fusion_compatibility(m):
            m.apply_rope_fusion = False

    def _prepared(self, argv: list[str]) -> Any:
        if self.script is None:
            from parlaunch_launch.bridge_runner import prepared

            return prepared(argv).config
        seen: list[Any] = []
        here = os.getcwd()
        with patch.multiple(
            self.script,
            run_config=lambda **given: seen.append(given["config"]),
            bootstrap_recipe_environment=lambda config, **_: self.script.apply_runtime_environment(config),
            load_forward_step=lambda *_a, **_k: None,
        ):
            try:
                self.script.main(argv)
            finally:
                os.chdir(here)
        return seen[0]


@contextmanager
def patched_environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ |= values
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


PLACEHOLDER = 1024  # `seq_length` of diffusion recipes, whose mock data are as long as they are

# --- Comparing --------------------------------------------------------------------------------------------------------

SHAPE = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels", "vocab_size",
    "num_moe_experts", "moe_ffn_hidden_size", "moe_router_topk", "moe_shared_expert_intermediate_size",
    "multi_latent_attention", "q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim",
    "mtp_num_layers", "gated_linear_unit", "share_embeddings_and_output_weights",
)  # fmt: skip
"""Sizes of the model that memory and time are made of, under the name that both sides use."""


def differences(plan: Plan, config: Any) -> dict[str, str]:
    """What of the plan is not so in the finished configuration: quantity to "planned … , Bridge …"."""
    from parlaunch_probes import bridge_child

    got = bridge_child.describe(config)
    want, have = quantities(plan), finished_quantities(plan, got, config)
    for name, key, value in asked_keys(plan):
        want[f"switch {name}, {key}"] = value
        have[f"switch {name}, {key}"] = as_asked(config, key)
    return {
        name: f"planned {value}, Bridge {have[name]}"
        for name, value in want.items()
        if name in have and value != have[name]
    }


def asked_keys(plan: Plan) -> Iterator[tuple[str, str, object]]:
    """Keys of the switches that the user fixed and the estimates do not know, each with its value; of communication overlap those
    that act, to which Bridge hands its section's."""
    empty = replace(plan.recipe, bare=(OVERLAP,))
    for s in plan.switches:
        if s.recipe_value is None:
            yield from ((s.name, place, value) for key, value in s.keys for place in places(key, empty))


def as_asked(config: Any, key: str) -> object:
    """What the finished configuration has under a key; what it keeps as an enumeration or a tensor type by its name."""
    for part in key.split("."):
        config = getattr(config, part, None)
    return config


def quantities(plan: Plan) -> dict[str, Any]:
    """Every planned quantity, by name."""
    x, r = plan.layout, plan.configured
    f, a = legal_features(r, x, plan.cluster), r.architecture
    again = x.recompute
    found: dict[str, Any] = {
        "tp": x.tp, "pp": x.pp, "vp": x.vp, "cp": x.cp, "ep": x.ep, "dp": x.dp,
        "sequence_parallel": x.sequence_parallel and f.sequence_parallel,
        "micro_batch_size": x.micro_batch_size, "global_batch_size": x.global_batch_size,
        "micro batches": x.num_microbatches, "seq_length": r.seq_length, "precision": r.precision,
        "recompute": (again.granularity, *((again.method, again.num_layers) if again.granularity == "full" else (tuple(sorted(again.modules)),))),
        "layers of each stage": chunk_sizes(a, x),
    }  # fmt: skip
    if a.num_moe_experts:
        found["etp"] = x.etp
    if x.cp > 1:
        found["cp_comm_type"] = x.cp_comm_type
    for name in SHAPE:
        if a.num_moe_experts or not name.startswith("moe_"):
            found[f"model.{name}"] = getattr(a, name) or None
    for f_ in fields(Features):
        if f_.name not in ("sequence_parallel", "framework"):
            found[f"features.{f_.name}"] = getattr(f, f_.name)
    if not a.num_moe_experts:
        del found["features.dispatcher"]
    elif f.dispatcher is None:
        found["features.dispatcher"] = "alltoall"
    return found


def finished_quantities(plan: Plan, got: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """The same quantities as Bridge has them; one that this model's configuration does not have is left out."""
    layout, m = got["layout"], getattr(config.model, "transformer", config.model)
    again = layout["recompute"]
    dp = config.data_parallel_size
    gbs, mbs = got["global_batch_size"], layout["micro_batch_size"]
    kind, mock = again["granularity"], plan.recipe.mock_tokens
    found: dict[str, Any] = {
        **{k: layout[k] for k in ("tp", "pp", "vp", "cp", "ep", "etp", "sequence_parallel", "micro_batch_size")},
        "dp": dp, "global_batch_size": gbs, "micro batches": gbs // (mbs * dp) if gbs % (mbs * dp) == 0 else f"{gbs}/({mbs}·{dp})",
        "seq_length": mock if mock and got["seq_length"] == PLACEHOLDER else got["seq_length"], "precision": got["precision"],
        "recompute": (kind, *((again["method"], again["num_layers"]) if kind == "full" else (tuple(sorted(again["modules"] if kind else ())),))),
        "cp_comm_type": getattr(m, "cp_comm_type", None),
    }  # fmt: skip
    for name in SHAPE:
        if name in Architecture.__dataclass_fields__ and (hasattr(m, name) or hasattr(config.model, name)):
            found[f"model.{name}"] = getattr(m, name, getattr(config.model, name, None)) or None
    for f, value in features_as_fields(got["features"]).items():
        found[f"features.{f}"] = value
    if (built := stages(plan.layout, config)) is not None:
        found["layers of each stage"] = built
    return found


def features_as_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    made = features_from_json(data)
    return {f.name: getattr(made, f.name) for f in fields(Features)}


def stages(x: Layout, config: Any) -> tuple[int, ...] | None:
    """Decoder layers that Megatron Core builds on each virtual stage, in order of execution; None for models whose stages
    are not cut by number."""
    m = getattr(config.model, "transformer", config.model)
    if getattr(m, "hybrid_layer_pattern", None) or getattr(m, "hybrid_override_pattern", None):
        return None
    return built_layers(m, x)


# --- Counting ---------------------------------------------------------------------------------------------------------


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--hub", type=Path, required=True, help="a hub cache written by bridge_hub.py")
    parser.add_argument("--bridge", type=Path, help="a checkout of Megatron-Bridge: its script in place of our runner")
    parser.add_argument("--planned", type=float, default=0.03, help="share of cases whose layout the planner chooses")
    parser.add_argument("--overridden", type=float, default=0.3, help="share of cases with KEY=VALUE of a user")
    parser.add_argument("--only", default="", help="recipes whose name contains this")
    parser.add_argument("--why", type=int, default=0, help="so many reasons why recipes do not load, and why we refuse")
    args = parser.parse_args(argv)
    global BRIDGE
    BRIDGE = Bridge(args.hub, args.bridge)
    os.environ["XDG_CACHE_HOME"] = str(args.hub)  # what the probe keeps
    names = [n for n in catalog.recipe_names() if args.only in n and catalog.recipe(n).feasible]
    gc.freeze()
    try_one = functools.partial(outcome, names, args.seed, args.planned, args.overridden)
    wrong, done, missing = Counter[str](), Counter[str](), Counter[str]()
    example: dict[str, str] = {}
    started = time.monotonic()
    indices = range(args.first, args.first + args.cases)
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        for said in pool.map(try_one, indices, chunksize=10):
            done["cases"] += 1
            done.update(said.done)
            missing.update(said.missing)
            for kind in said.wrong:
                wrong[kind] += 1
                if example.setdefault(kind, said.case) is said.case:
                    print(f"{kind}\n         {said.case}", file=sys.stderr, flush=True)
    took = time.monotonic() - started
    for why, count in missing.most_common(args.why):
        print(f"{count:6} {why}")
    print(f"{done['cases']} cases in {took:.0f} s: {done['compared']} compared, {done['refused by us']} refused by us")
    for why, count in done.most_common():
        if why.startswith("  ") and args.why:
            print(f"{count:6} {why}")
    for kind, count in wrong.most_common():
        print(f"{count:6} {kind}\n         {example[kind]}")
    return 1 if wrong else 0


BRIDGE: Bridge
"""Loaded once, before the workers are forked."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case: kinds of difference or refusal, counts, recipes that were drawn first and do not load."""

    case: str
    wrong: tuple[str, ...]
    done: tuple[str, ...]
    missing: tuple[str, ...]


def outcome(names: list[str], seed: int, share: float, overridden: float, index: int) -> Outcome:
    """Draw the case of that number and compare."""
    dice = random.Random(f"{seed} {index}")
    missing: list[str] = []

    def loads(name: str) -> bool:
        if BRIDGE.loads(name):
            return True
        missing.append(BRIDGE.missing[name])
        return False

    case = case_of(dice, names, loads, share, overridden)
    wrong: tuple[str, ...] = ()
    try:
        plan = planned(case)
    except ParlaunchError as error:
        return Outcome(str(case), (), ("refused by us", f"  {kind_of(error)[:100]}"), tuple(missing))
    try:
        with redirect_stdout(io.StringIO()):
            different = differences(plan, BRIDGE.finished(plan))
        wrong = tuple(f"{name}: {value}" for name, value in different.items())
    except Exception as error:
        wrong = (f"refused: {kind_of(error)}",)
    return Outcome(str(case), wrong, ("compared",), tuple(missing))


if __name__ == "__main__":
    sys.exit(main())
