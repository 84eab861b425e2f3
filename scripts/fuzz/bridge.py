"""Is what parlaunch plans what Megatron Bridge builds? Random command lines, each held against the finished configuration.

    python scripts/fuzz/bridge_hub.py HUB
    python scripts/fuzz/bridge.py --hub HUB --cases 10000 [--jobs 2] [--seed 1] [--first 0] [--planned 0.03] [--bridge CHECKOUT]

A case is a command line of `parlaunch plan`: a recipe that loads here, a machine, pins, options and KEY=VALUE. Its plan is
made as the command makes it; the runner's arguments go through our runner up to the configuration it would train, or with
`--bridge` through that checkout's own `scripts/training/run_recipe.py`; Bridge finishes the configuration for the plan's
number of GPUs (mixed precision, communication overlap, validation, the model provider's own checks); and every planned
quantity is compared with it, the layers of each pipeline stage as Megatron Core counts them. What the recipe has itself has to
be of the types that we hold a user's values against.

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
import multiprocessing
import os
import pkgutil
import random
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any
from unittest.mock import patch

from overrides import MACHINES, NODES, draw_layout, kind_of

from parlaunch.check.built import compared, keys_of, runner_arguments
from parlaunch.cli.job import finish, job_of
from parlaunch.cli.launch import situation_of
from parlaunch.cli.options import described
from parlaunch.cli.request import Request
from parlaunch.environment.bridge_versions import said
from parlaunch.environment.override_grammar import hydra
from parlaunch.environment.value_types import takes, types
from parlaunch.errors import ParlaunchError
from parlaunch.hardware.installed import releases
from parlaunch.hardware.rates import rates_of
from parlaunch.model import catalog
from parlaunch.model.layout import Layout
from parlaunch.model.sections import placed
from parlaunch.planning.plan import Plan, Wishes
from parlaunch.switches.graphs import GRAPHED
from parlaunch.switches.offloading import OFFLOADED
from parlaunch.switches.table import SWITCHES, with_values
from parlaunch_launch.runners import checkout_version
from parlaunch_probes import bridge as probe
from parlaunch_probes.bridge_built import built

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
    ("model.moe_grouped_gemm=False",),
    ("model.moe_expert_capacity_factor=1.0",),
    ("model.moe_router_padding_for_fp8=True",),
    ("model.activation_func=squared_relu",),
    ("model.variable_seq_lengths=True",),
    ("model.distribute_saved_activations=True",),
    ("model.deterministic_mode=True",),
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
        if (legal := with_layout(dice, asked)) is not None:
            return Case(with_switches(dice, legal))


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
    return pinned(asked, x)


def pinned(asked: Request, x: Layout) -> Request:
    """The request with every size fixed to the layout's."""
    r = x.recompute
    again = "none" if r.granularity is None else "full" if r.granularity == "full" else ",".join(r.modules)
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
        from parlaunch_launch.finished import without_gpus

        importing = builtins.__import__
        without_gpus()
        import megatron.bridge.models.hf_pretrained.safe_config_loader as loader

        loader.time.sleep = lambda _seconds: None  # it waits between tries; what is not in the cache does not come
        import megatron.bridge.peft as adapters

        for module in pkgutil.walk_packages(adapters.__path__, f"{adapters.__name__}."):
            importlib.import_module(module.name)
        builtins.__import__ = (
            importing  # what adapters inherit from is needed once, and each later import is quicker so
        )
        self.script: Any = None
        if checkout is not None:
            import run_recipe

            self.script = run_recipe
        self.loaded: dict[str, bool] = {}
        self.untaken: dict[str, tuple[str, ...]] = {}
        self.missing: dict[str, str] = {}

    def loads(self, name: str) -> bool:
        """Whether the recipe can be built here; why not is remembered."""
        from parlaunch_launch.bridge_runner import found
        from parlaunch_probes import bridge_child

        if name not in self.loaded:
            try:
                config, module = found(name)
                answer = bridge_child.describe(config, module) | {"keys": bridge_child.keys(config)}
                probe.keep(name, answer, os.environ)
                self.loaded[name], self.untaken[name] = True, untaken(config)
            except Exception as error:
                self.loaded[name], self.missing[name] = False, kind_of(error)
        return self.loaded[name]

    def finished(self, plan: Plan) -> Any:
        """The configuration that Bridge trains when it is given the plan's command. Raises what Bridge raises."""
        from parlaunch_launch.finished import finish

        gpu, world = plan.cluster.gpu, plan.layout.world
        environment = {v.name: v.value for v in plan.environment} | {"WORLD_SIZE": str(world), "RANK": "0"}
        with patched_environment(environment):
            config = self._prepared(runner_arguments(plan))
            finish(config, world=world, gpu=gpu.name, capability=gpu.compute_capability or (9, 0))
        return config

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
    counts = count(try_one, range(args.first, args.first + args.cases), args.jobs)
    for why, times in counts.missing.most_common(args.why):
        print(f"{times:6} {why}")
    return counts.show(why=bool(args.why))


BRIDGE: Bridge
"""Loaded once, before the workers are forked."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one case: kinds of difference or refusal, counts, recipes that were drawn first and do not load."""

    case: str
    wrong: tuple[str, ...]
    done: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """What came of many cases: how often each of what an `Outcome` says, one command line for each fault, and the seconds."""

    done: Counter[str]
    missing: Counter[str]
    faults: Counter[str]
    example: dict[str, str]
    took_s: float

    def show(self, *, why: bool) -> int:
        """Print it, with `why` what we refused too. 1 if anything was wrong."""
        done = self.done
        print(
            f"{done['cases']} cases in {self.took_s:.0f} s: {done['compared']} compared, {done['refused by us']} refused by us, "
            f"{self.faults.total()} wrong"
        )
        for reason, times in done.most_common():
            if reason.startswith("  ") and why:
                print(f"{times:6} {reason}")
        for fault, times in self.faults.most_common():
            print(f"{times:6} {fault}\n         {self.example[fault]}")
        return 1 if self.faults else 0


def count(try_one: Callable[[Any], Outcome], cases: Iterable[Any], jobs: int) -> Counts:
    """Try all cases in so many processes; the first of each kind of fault is printed at once."""
    counts = Counts(Counter(), Counter(), Counter(), {}, 0.0)
    started = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        for said in pool.map(try_one, cases, chunksize=10):
            counts.done["cases"] += 1
            counts.done.update(said.done)
            counts.missing.update(said.missing)
            for fault in said.wrong:
                counts.faults[fault] += 1
                if counts.example.setdefault(fault, said.case) is said.case:
                    print(f"{fault}\n         {said.case}", file=sys.stderr, flush=True)
    return replace(counts, took_s=time.monotonic() - started)


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
    try:
        plan = planned(case)
    except ParlaunchError as error:
        return Outcome(str(case), (), ("refused by us", f"  {kind_of(error)[:100]}"), tuple(missing))
    own = BRIDGE.untaken.get(str(case.request.recipe), ())
    return Outcome(str(case), (*own, *wrong(plan)), ("compared",), tuple(missing))


def untaken(config: Any) -> tuple[str, ...]:
    """Values that the recipe has itself, and that we would refuse from a user."""
    found = []
    for key in types():
        section, _, field = key.partition(".")
        place = getattr(config, section, None)
        value = getattr(getattr(place, "transformer", place), field, None)
        listed = (
            [getattr(v, "name", v) for v in value] if isinstance(value, list | tuple) else getattr(value, "name", value)
        )
        if not takes(key, listed):
            found.append(f"{key}={listed}: our own types do not take a recipe's value")
    return tuple(found)


def wrong(plan: Plan) -> tuple[str, ...]:
    """What differs in what Bridge builds of the plan, or why it refuses to."""
    try:
        with redirect_stdout(io.StringIO()):
            config = BRIDGE.finished(plan)
            _, different = compared(plan, built(config, keys_of(plan)))
    except Exception as error:
        return (f"refused: {kind_of(error)}",)
    return tuple(f"{name}: {value}" for name, value in different.items())


if __name__ == "__main__":
    sys.exit(main())
