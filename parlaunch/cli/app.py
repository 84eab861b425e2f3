"""The commands, and the options that launch and plan share."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import typer

from parlaunch import __version__
from parlaunch.cli.request import RECOMPUTE_MODULES, Request

app = typer.Typer(
    name="parlaunch",
    help="Probe the machine, plan the parallel layout, launch the job.\n\n"
    "`parlaunch --recipe NAME` launches; add --dry-run to see what it would do.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

WHAT, MACHINE, PINS, CHOICE, RANKS, OUTPUT = (
    "What to train", "Machine", "Pins: sizes you fix; the planner chooses the rest", "Choice",
    "Launch, as torchrun", "Output",
)  # fmt: skip


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"parlaunch {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Probe the machine, plan the parallel layout, launch the job."""


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def names_of(kind: str) -> Any:
    """A completer that loads the catalog only when a shell asks."""

    def complete(incomplete: str) -> list[str]:
        names: tuple[str, ...]
        if kind == "recipe":
            from parlaunch.catalog import recipe_names

            names = recipe_names()
        elif kind == "gpu":
            from parlaunch.datasheet import product_names

            names = tuple(name.replace(" ", "-") for name in product_names())
        elif kind == "precision":
            from parlaunch.recipe import PRECISIONS

            names = PRECISIONS
        else:
            from parlaunch.datasheet import preset_names

            names = preset_names()
        return [name for name in names if name.startswith(incomplete)]

    return complete


def words(*known: str) -> Any:
    """A completer for an option with few values."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in known if word.startswith(incomplete)]

    return complete


def _plan_or_launch(
    ctx: typer.Context,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Megatron Bridge overrides, handed on in order", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None, _option("--recipe", panel=WHAT, help="a Megatron Bridge recipe", autocompletion=names_of("recipe"))
    ] = None,
    model_config: Annotated[
        Path | None, _option("--model-config", panel=WHAT, help="a Hugging Face config.json instead of a recipe")
    ] = None,
    seq_length: Annotated[int | None, _option("--seq-length", panel=WHAT, help="tokens a sequence")] = None,
    global_batch_size: Annotated[
        int | None, _option("--global-batch-size", panel=WHAT, help="sequences an iteration")
    ] = None,
    precision: Annotated[
        str | None,
        _option(
            "--precision",
            panel=WHAT,
            help="bf16 fp16 fp8cs fp8ds fp8sc fp8mx nvfp4",
            autocompletion=names_of("precision"),
        ),
    ] = None,
    script: Annotated[
        Path | None,
        _option("--script", panel=WHAT, help="the runner: a training script that takes --recipe and overrides"),
    ] = None,
    module: Annotated[
        str | None, _option("--module", panel=WHAT, help="the runner: a Python module instead of a script")
    ] = None,
    hardware: Annotated[
        str,
        _option(
            "--hardware",
            panel=MACHINE,
            help="auto, a preset and a count (dgx-h100:4), or a file",
            autocompletion=names_of("preset"),
        ),
    ] = "auto",
    gpu: Annotated[
        str | None,
        _option(
            "--gpu",
            panel=MACHINE,
            help="the GPU product, where a hardware file does not name it: H100-SXM",
            autocompletion=names_of("gpu"),
        ),
    ] = None,
    device: Annotated[
        str,
        _option(
            "--device",
            panel=MACHINE,
            help="cuda, or cpu: gloo ranks here, a tiny version of the model",
            autocompletion=words("cuda", "cpu"),
        ),
    ] = "cuda",
    machine_file: Annotated[
        Path | None, _option("--machine-file", panel=MACHINE, help="measured rates, from `parlaunch calibrate`")
    ] = None,
    topology: Annotated[
        Path | None,
        _option(
            "--topology", panel=MACHINE, help="the text of `scontrol show topology`, where Slurm says nothing else"
        ),
    ] = None,
    spares: Annotated[
        int, _option("--spares", panel=MACHINE, help="nodes of the allocation that may be left out when sick", min=0)
    ] = 0,
    tp: Annotated[int | None, _option("--tp", panel=PINS, help="tensor parallel size", min=1)] = None,
    pp: Annotated[int | None, _option("--pp", panel=PINS, help="pipeline parallel size", min=1)] = None,
    vp: Annotated[
        int | None, _option("--vp", panel=PINS, help="virtual pipeline chunks a stage; 1: no interleaving", min=1)
    ] = None,
    cp: Annotated[int | None, _option("--cp", panel=PINS, help="context parallel size", min=1)] = None,
    ep: Annotated[int | None, _option("--ep", panel=PINS, help="expert parallel size", min=1)] = None,
    etp: Annotated[int | None, _option("--etp", panel=PINS, help="expert tensor parallel size", min=1)] = None,
    micro_batch_size: Annotated[
        int | None, _option("--micro-batch-size", panel=PINS, help="sequences a forward pass", min=1)
    ] = None,
    recompute: Annotated[
        str | None,
        _option(
            "--recompute",
            panel=PINS,
            help="none, full, selective, or modules: moe_act,layernorm",
            autocompletion=words("none", "full", "selective", *RECOMPUTE_MODULES),
        ),
    ] = None,
    fsdp: Annotated[bool | None, _option("--fsdp/--no-fsdp", panel=PINS, help="Megatron-FSDP, or never")] = None,
    objective: Annotated[
        str,
        _option("--objective", panel=CHOICE, help="time or memory", autocompletion=words("time", "memory")),
    ] = "time",
    headroom: Annotated[
        float, _option("--headroom", panel=CHOICE, help="share of GPU memory left free", min=0.0, max=0.9)
    ] = 0.08,
    evidence: Annotated[
        bool, _option("--evidence/--no-evidence", panel=CHOICE, help="let measured layouts decide close calls")
    ] = True,
    env: Annotated[bool, _option("--env/--no-env", panel=CHOICE, help="set environment variables")] = True,
    numa: Annotated[bool, _option("--numa/--no-numa", panel=CHOICE, help="bind ranks to the CPUs of their GPU")] = True,
    strict: Annotated[bool, _option("--strict", panel=CHOICE, help="a warning stops the launch")] = False,
    force: Annotated[bool, _option("--force", panel=CHOICE, help="launch in spite of a preflight FAIL")] = False,
    plan_file: Annotated[Path | None, _option("--plan", panel=CHOICE, help="launch exactly this saved plan")] = None,
    nnodes: Annotated[str | None, _option("--nnodes", panel=RANKS, help="nodes of the job")] = None,
    nproc_per_node: Annotated[
        int | None, _option("--nproc-per-node", panel=RANKS, help="ranks a node; default: its GPUs", min=1)
    ] = None,
    node_rank: Annotated[int | None, _option("--node-rank", panel=RANKS, help="number of this node")] = None,
    master_addr: Annotated[str | None, _option("--master-addr", panel=RANKS, help="address of the first node")] = None,
    master_port: Annotated[int | None, _option("--master-port", panel=RANKS, help="port on the first node")] = None,
    rdzv_backend: Annotated[str | None, _option("--rdzv-backend", panel=RANKS, help="c10d or static")] = None,
    rdzv_endpoint: Annotated[
        str | None, _option("--rdzv-endpoint", panel=RANKS, help="HOST:PORT of the rendezvous")
    ] = None,
    rdzv_id: Annotated[str | None, _option("--rdzv-id", panel=RANKS, help="name of the rendezvous")] = None,
    max_restarts: Annotated[
        int | None, _option("--max-restarts", panel=RANKS, help="restarts that torchrun may try", min=0)
    ] = None,
    srun_arg: Annotated[
        list[str] | None, _option("--srun-arg", panel=RANKS, help="handed to srun when we call it; repeat")
    ] = None,
    agree_timeout: Annotated[
        float, _option("--agree-timeout", panel=RANKS, help="seconds to wait for every node", min=1.0)
    ] = 120.0,
    dry_run: Annotated[bool, _option("--dry-run", panel=OUTPUT, help="print what would be done, do nothing")] = False,
    format: Annotated[
        str,
        _option(
            "--format",
            panel=OUTPUT,
            help="text, json, shell or sbatch",
            autocompletion=words("text", "json", "shell", "sbatch"),
        ),
    ] = "text",
    sbatch_arg: Annotated[
        list[str] | None,
        _option("--sbatch-arg", panel=OUTPUT, help="a line of the batch script: --sbatch-arg=--partition=h100; repeat"),
    ] = None,
    container_image: Annotated[
        str | None, _option("--container-image", panel=OUTPUT, help="in the batch script: image that srun starts")
    ] = None,
    container_mounts: Annotated[
        str | None, _option("--container-mounts", panel=OUTPUT, help="in the batch script: its mounts, /data:/data")
    ] = None,
    why_not: Annotated[
        list[str] | None, _option("--why-not", panel=OUTPUT, help="ask about a layout: tp=8,pp=2; repeat")
    ] = None,
    explain: Annotated[
        bool, _option("--explain", panel=OUTPUT, help="also: where we are, who sits where, every reason")
    ] = False,
    top: Annotated[int, _option("--top", panel=OUTPUT, help="runners-up to show", min=0, max=100)] = 5,
    report: Annotated[
        Path | None, _option("--report", panel=OUTPUT, help="write one HTML file a person can look at")
    ] = None,
    save_plan: Annotated[
        Path | None, _option("--save-plan", panel=OUTPUT, help="write the plan for --plan and `parlaunch diff`")
    ] = None,
    quiet: Annotated[bool, _option("--quiet", "-q", panel=OUTPUT, help="only the layout, in one line")] = False,
    verbose: Annotated[bool, _option("--verbose", "-v", panel=OUTPUT, help="nothing left out")] = False,
) -> None:
    from parlaunch.cli.launch import run

    run(_request(ctx, {k: v for k, v in locals().items() if k not in ("ctx", "run")}))


def _request(ctx: typer.Context, given: dict[str, Any]) -> Request:
    for name in ("overrides", "srun_arg", "why_not", "sbatch_arg"):
        given[name] = tuple(given[name] or ())
    return Request(command=ctx.info_name or "launch", runner_args=tuple(ctx.obj or ()), **given)


VERIFY = "Verify"


def _verify_options(
    iterations: Annotated[
        int, _option("--iterations", panel=VERIFY, help="iterations to run; the first two are warm-up", min=3)
    ] = 8,
    retries: Annotated[
        int, _option("--retries", panel=VERIFY, help="next plans to try when one runs out of memory", min=0)
    ] = 0,
    timeout: Annotated[
        float,
        _option("--timeout", panel=VERIFY, help="seconds without a line of log before it counts as a hang", min=1),
    ] = 600.0,
    measure: Annotated[
        int,
        _option("--top", panel=VERIFY, help="measure the N best plans one after the other, keep the fastest", min=1),
    ] = 1,
) -> None:
    """The options that verify has on top of those of launch."""


def _verify(ctx: typer.Context, **given: Any) -> None:
    extra = {name: given.pop(name) for name in signature(_verify_options).parameters}
    request = _request(ctx, given | {"top": max(extra["measure"] - 1, extra["retries"])})
    from parlaunch.cli.verify import run

    run(request, **extra)


def _combined(function: Any, *others: Any, without: tuple[str, ...] = ()) -> Any:
    """`function` with the options of the others in front of its own."""
    parameters = [p for f in others for p in signature(f, eval_str=True).parameters.values() if p.name not in without]
    function.__signature__ = signature(function).replace(parameters=parameters)
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    return function


app.command("launch", help="Plan, then launch. The default: no command word needed.")(_plan_or_launch)
app.command("plan", help="Plan only: never launches, needs no GPU.")(_plan_or_launch)
app.command("verify", help="Run the plan for a few iterations and hold it against the prediction.")(
    _combined(_verify, _plan_or_launch, _verify_options, without=("top",))
)
