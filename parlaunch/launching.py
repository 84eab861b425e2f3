"""A plan made whole: the environment, the overrides and the command that follow from its layout.

Pure. What holds of the process that will start the ranks (its variables, its Python, the torch it finds) is handed in as a
`Start`: the command line fills it from where it stands, a library user as far as they know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace

from parlaunch.environment import torchrun
from parlaunch.environment.binding import VARIABLE, Binding, decide, variable
from parlaunch.environment.bridge_versions import UNSPLIT_BY_ITSELF, Version, heard, known_wrong, name_in
from parlaunch.environment.needed import check_data
from parlaunch.environment.override_grammar import pairs_of, value
from parlaunch.environment.override_keys import check_keys, left_on, not_planned_for, overruled
from parlaunch.environment.overrides import SPLIT, alone, overrides
from parlaunch.environment.settings import node_settings, problems, settings
from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.cpu import device_of
from parlaunch.model.recipe import Recipe
from parlaunch.model.tiny import tiny_overrides
from parlaunch.planning.plan import Plan, Variable

BRIDGE_RUNNER = ("-m", "parlaunch_launch.bridge_runner")
"""What every rank runs where no other runner is named: Megatron Bridge's recipe, trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How the ranks will be started: what is there, and what the user said about it."""

    environ: Mapping[str, str] = field(default_factory=dict)  # what the ranks inherit; a value that is set stands
    python: str = "python"
    torch_version: str | None = None  # of the torch that will run; None: not known, every release is served
    interface: str | None = None  # of NCCL's and Gloo's sockets; None: by the route to the first node
    numactl: bool = False  # the command is there, without which torchrun's own binding stops the launch
    runner: tuple[str, ...] = BRIDGE_RUNNER  # goes behind torchrun's options
    bridge: Version | None = (
        None  # the Megatron Bridge that will train; None: not known, spoken to as the newest release
    )
    runner_args: tuple[str, ...] = ()  # the last words of the command
    overrides: tuple[str, ...] = ()  # the user's KEY=VALUE, behind ours
    keys: frozenset[str] | None = None  # of the recipe's configuration in the Bridge that will run; None: not known
    env: bool = True  # False: no variable is set
    numa: bool = True  # False: no rank is bound to CPUs
    rendezvous: torchrun.Rendezvous = field(default_factory=torchrun.Rendezvous)


def complete(
    plan: Plan,
    start: Start | None = None,
    *,
    node: int | None = None,
    recipe: Recipe | None = None,
    said: Sequence[str] | None = None,
) -> Plan:
    """The plan with `environment`, `overrides`, `argv` and `rank_order`, as a launch would have them.

    `node` is the place in `plan.cluster.nodes` of the node whose variables and command these are; None: of the first, with
    a command that every node can run (NODE_RANK and MASTER_ADDR stay words for a shell). `recipe` is the recipe as the
    runner will make it, where the plan's differs by a wish (FSDP). `said` are all overrides, where they are known (a saved
    plan); else they follow from the layout.
    """
    start = start or Start()
    recipe = recipe or plan.recipe
    check_keys(start.overrides, recipe, start.keys)
    theirs = pairs_of(start.overrides)
    check_data(theirs, recipe, start.bridge)
    aside = not_planned_for(theirs, recipe)
    unheard = tuple(f"not planned for: {key}" for key in aside)
    made = replace(
        plan,
        environment=variables(recipe, plan, start, node=node or 0),
        overrides=tuple(said) if said is not None else spelled(recipe, plan, start),
        rank_order=tuple(n.hostname for n in plan.cluster.nodes),
        not_planned_for=aside,
    )
    made = replace(
        made,
        warnings=(
            *problems(made.environment), *known_wrong(start.bridge, recipe, plan.layout), *untuned(recipe, plan, start), *uncached(recipe, start),
            *plan.warnings, *unheard,
            *unsplit(plan, start), *overruled(theirs, recipe), *left_on(theirs, recipe),
        ),
    )  # fmt: skip
    return replace(made, argv=command(made, start, node=node))


CHECKPOINT, LOAD = "checkpoint.pretrained_checkpoint", "checkpoint.load"


def untuned(recipe: Recipe, plan: Plan, start: Start) -> tuple[str, ...]:
    """A sentence where nothing says which weights are tuned, of which no recipe has a place: Megatron Bridge stops at its start
    (bridge/training/config.py:1488, bridge/training/finetune.py:50). A benchmark of full fine-tuning takes random ones."""
    said = pairs_of(start.overrides)
    ours = any(word == BRIDGE_RUNNER[-1] or word.endswith("run_recipe.py") for word in start.runner)
    if not ours or CHECKPOINT in said or device_of(plan.cluster) != "cuda":
        return ()
    if recipe.task == "peft":
        return (f"adapters need the weights that they are for, or Megatron Bridge stops: say {CHECKPOINT}=FOLDER",)
    if recipe.task == "sft" and not recipe.benchmark and LOAD not in said:
        return (f"nothing says which weights are tuned, and Megatron Bridge stops without: say {CHECKPOINT}=FOLDER",)
    return ()


def unsplit(plan: Plan, start: Start) -> tuple[str, ...]:
    """A sentence where the user asks for sequence parallelism and TP is 1. Raises `UsageError` where that stops:
    in an older Bridge, and on CPU ranks, which Megatron Core's own configuration is made for."""
    if not alone(plan.layout, pairs_of(start.overrides)):
        return ()
    older = start.bridge is not None and start.bridge < UNSPLIT_BY_ITSELF
    if older or device_of(plan.cluster) == "cpu":
        raise UsageError(f"{SPLIT}=True needs TP above 1", hint="leave it out: it comes with TP by itself")
    return (f"{SPLIT}=True does nothing at TP 1: Megatron Bridge turns it off; say --tp 2 to have it",)


CACHE, FROM_CACHE = "dataset.path_to_cache", ("dataset.fast_cache_load", "dataset.defer_npy_index_mmap")
READS_CACHE = "fast_cache_load"
"""As `unsettled` names either of the two that the recipe has on."""


def uncached(recipe: Recipe, start: Start) -> tuple[str, ...]:
    """A sentence where the recipe reads its data's indexes from a cache, and nothing says where that is: Megatron Bridge stops at its
    start (megatron/core/datasets/blended_megatron_dataset_config.py:101)."""
    said = pairs_of(start.overrides)
    on = [key for key in FROM_CACHE if key not in said or value(said[key]) is True]
    if READS_CACHE not in recipe.unsettled or CACHE in said or not on:
        return ()
    off = " ".join(f"{key}=False" for key in on)
    return (
        f"this recipe's data are read through a cache, and Megatron Bridge stops without: say {CACHE}=FOLDER, or {off}",
    )


def variables(recipe: Recipe, plan: Plan, start: Start, *, node: int = 0) -> tuple[Variable, ...]:
    """The variables of one node's ranks, beside what its environment holds already."""
    if not start.env:
        return ()
    cluster = plan.cluster
    shared = settings(
        cluster, recipe, plan.layout, start.environ, torch_version=start.torch_version, device=device_of(cluster),
        features=plan.chosen.features,
    )  # fmt: skip
    bound = variable(binding(cluster, start, node=node))
    made = (*shared, *node_settings(cluster, node, start.environ), *((bound,) if bound else ()))
    return made if start.interface is None else _over(start.interface, made)


def _over(interface: str, made: Sequence[Variable]) -> tuple[Variable, ...]:
    """The variables with sockets on the interface that the user names; one that is set already stands."""
    kept = {v.name for v in made if v.kept}
    named = [
        Variable(name=name, value=value, reason=f"{interface} is the interface that --interface names", source="you")
        for name, value in (("NCCL_SOCKET_IFNAME", f"={interface}"), ("GLOO_SOCKET_IFNAME", interface))
        if name not in kept
    ]
    return (*(v for v in made if v.name not in {n.name for n in named}), *named)


def binding(cluster: Cluster, start: Start, *, node: int = 0) -> Binding:
    """Which CPUs the ranks of a node are bound to: torchrun's option or our runner's variable. CPU ranks roam."""
    wanted = start.numa and device_of(cluster) == "cuda"
    return decide(cluster.nodes[node], torch_version=start.torch_version, numactl=start.numactl, wanted=wanted)


def roaming(cluster: Cluster, start: Start) -> str | None:
    """Why the ranks will not be bound to the CPUs beside their GPU, though others are farther away; None: they will be, or none is.

    Of the first node; where its CPUs are not known (planned from elsewhere), the launch binds them.
    """
    if device_of(cluster) != "cuda":
        return None
    made = binding(cluster, start)
    if not start.env and made.option is None and any(made.cpus):
        return f"{VARIABLE} is not set (--no-env)"
    return made.reason if made.roams else None


def spelled(recipe: Recipe, plan: Plan, start: Start) -> tuple[str, ...]:
    """Everything the runner hears about a plan: the tiny model on CPU, the layout and the switches, what the user said."""
    cluster = plan.cluster
    device = device_of(cluster)
    ours = overrides(
        recipe, plan.layout, device=device, cluster=cluster, said=start.overrides, switches=plan.switches,
        features=plan.chosen.features,
    )  # fmt: skip
    first = tiny_overrides(recipe) if device == "cpu" else ()
    return heard(start.bridge, recipe, plan.layout, (*first, *map(str, ours), *recipe.spoken, *start.overrides))


def command(plan: Plan, start: Start, *, node: int | None = None) -> tuple[str, ...]:
    """torchrun's argv for one node; None on several: words that a shell fills in stand for what the node has to know."""
    nodes = len(plan.cluster.nodes)
    if node is None and nodes == 1:
        node = 0
    name = plan.recipe.name
    what = "--model-config" if plan.recipe.source == "hf-config" else "--recipe"
    runner = [
        *start.runner,
        what,
        name if what == "--model-config" else name_in(start.bridge, name),
        *plan.overrides,
        *start.runner_args,
    ]
    argv = torchrun.command(
        runner,
        python=start.python,
        nnodes=nodes,
        nproc_per_node=plan.layout.world // nodes if plan.layout.world >= nodes else 1,
        node_rank=node,
        rendezvous=start.rendezvous,
        numa_binding=binding(plan.cluster, start, node=node or 0).option,
    )
    return tuple(argv)
