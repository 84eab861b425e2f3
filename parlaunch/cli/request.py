"""Everything that can be asked on one command line of launch, plan or verify: each option once, with its type, its default and
its help. The commands take their parameters from here."""

from pathlib import Path
from typing import Annotated

import typer

from parlaunch.cli.options import names_of, option, words
from parlaunch.frozen import dataclass
from parlaunch.hardware.rates import HEADROOM
from parlaunch.model.layout import SIZES
from parlaunch.show.formats import FORMATS

WHAT, RUN, MACHINE, PINS, CHOICE, RANKS, OUTPUT, VERIFY = (
    "What to train", "The whole run: time and money", "Machine", "Pins: sizes you fix; the planner chooses the rest", "Choice",
    "Launch, as torchrun", "Output", "Verify",
)  # fmt: skip

PLANNED = (
    "recipe", "model_config", *SIZES, "recompute", "fsdp", "seq_length", "global_batch_size", "precision", "machine_file",
)  # fmt: skip
"""What a saved plan has said already: it is launched without them."""

OFTEN = frozenset({
    "recipe", "model_config", "seq_length", "global_batch_size", "precision", "hardware", "machines", "tokens", "price", "prices",
    "tp", "pp", "cp", "ep", "micro_batch_size", "recompute", "iterations", "dry_run", "format", "why_not", "what_if", "report",
    "save_plan", "verbose",
})  # fmt: skip
"""Options that the short help of a command shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of `parlaunch launch` and `parlaunch plan`, as typed."""

    command: str
    runner_args: tuple[str, ...] = ()  # after `--`
    configured: frozenset[str] = frozenset()  # fields that a variable or a file filled, not the command line
    overrides: Annotated[
        tuple[str, ...],
        typer.Argument(metavar="KEY=VALUE", help="Megatron Bridge overrides, handed on in order", show_default=False),
    ] = ()
    recipe: Annotated[
        str | None, option("--recipe", panel=WHAT, help="a Megatron Bridge recipe", autocompletion=names_of("recipe"))
    ] = None
    model_config: Annotated[
        Path | None, option("--model-config", panel=WHAT, help="a Hugging Face config.json instead of a recipe")
    ] = None
    seq_length: Annotated[int | None, option("--seq-length", panel=WHAT, help="tokens a sequence", min=1)] = None
    global_batch_size: Annotated[
        int | None, option("--global-batch-size", panel=WHAT, help="sequences an iteration", min=1)
    ] = None
    precision: Annotated[
        str | None,
        option(
            "--precision",
            panel=WHAT,
            help="bf16 fp16 fp8cs fp8ds fp8sc fp8mx nvfp4",
            autocompletion=names_of("precision"),
        ),
    ] = None
    script: Annotated[
        Path | None,
        option("--script", panel=WHAT, help="the runner: a training script that takes --recipe and overrides"),
    ] = None
    module: Annotated[
        str | None, option("--module", panel=WHAT, help="the runner: a Python module instead of a script")
    ] = None
    tokens: Annotated[str | None, option("--tokens", panel=RUN, help="tokens of the whole run: 15T, 300B")] = None
    samples: Annotated[
        str | None, option("--samples", panel=RUN, help="sequences of the whole run, instead of tokens")
    ] = None
    price: Annotated[float | None, option("--price", panel=RUN, help="of one GPU for an hour: 2.50", min=0.0)] = None
    mtbf: Annotated[
        float | None, option("--mtbf", panel=RUN, help="hours between failures of one node: 50000", min=1e-3)
    ] = None
    storage: Annotated[
        str | None, option("--storage", panel=RUN, help="rate at which the job writes a checkpoint: 20GB/s")
    ] = None
    hardware: Annotated[
        str,
        option(
            "--hardware",
            panel=MACHINE,
            help="auto, a name and a count (dgx-h100:4), a file; list",
            autocompletion=names_of("preset"),
        ),
    ] = "auto"
    gpu: Annotated[
        str | None,
        option(
            "--gpu",
            panel=MACHINE,
            help="the GPU product, where a hardware file does not name it: H100-SXM",
            autocompletion=names_of("gpu"),
        ),
    ] = None
    device: Annotated[
        str,
        option(
            "--device",
            panel=MACHINE,
            help="cuda, or cpu: gloo ranks here, a tiny version of the model",
            autocompletion=words("cuda", "cpu"),
        ),
    ] = "cuda"
    machine_file: Annotated[
        Path | None, option("--machine-file", panel=MACHINE, help="measured rates, from `parlaunch calibrate`")
    ] = None
    topology: Annotated[
        Path | None,
        option("--topology", panel=MACHINE, help="the text of `scontrol show topology`, where Slurm says nothing else"),
    ] = None
    software: Annotated[
        str | None,
        option(
            "--software",
            panel=MACHINE,
            help="what is installed there: a release (nemo-26.06, bridge-0.6), or a file of `parlaunch probe --save`",
            autocompletion=names_of("software"),
        ),
    ] = None
    spares: Annotated[
        int, option("--spares", panel=MACHINE, help="nodes of the allocation that may be left out when sick", min=0)
    ] = 0
    tp: Annotated[int | None, option("--tp", panel=PINS, help="tensor parallel size", min=1)] = None
    pp: Annotated[int | None, option("--pp", panel=PINS, help="pipeline parallel size", min=1)] = None
    vp: Annotated[
        int | None, option("--vp", panel=PINS, help="virtual pipeline chunks a stage; 1: no interleaving", min=1)
    ] = None
    cp: Annotated[int | None, option("--cp", panel=PINS, help="context parallel size", min=1)] = None
    ep: Annotated[int | None, option("--ep", panel=PINS, help="expert parallel size", min=1)] = None
    etp: Annotated[int | None, option("--etp", panel=PINS, help="expert tensor parallel size", min=1)] = None
    micro_batch_size: Annotated[
        int | None, option("--micro-batch-size", panel=PINS, help="sequences a forward pass", min=1)
    ] = None
    recompute: Annotated[
        str | None,
        option(
            "--recompute",
            panel=PINS,
            help="none, full, selective, or modules",
            autocompletion=names_of("recompute"),
        ),
    ] = None
    fsdp: Annotated[bool | None, option("--fsdp/--no-fsdp", panel=PINS, help="Megatron-FSDP, or never")] = None
    switches: Annotated[
        str,
        option(
            "--switches",
            panel=CHOICE,
            help="auto, recipe (as the recipe has them), or NAME=VALUE,…: dispatcher=hybridep,graphs=off",
            autocompletion=names_of("switches"),
        ),
    ] = "auto"
    objective: Annotated[
        str,
        option("--objective", panel=CHOICE, help="time or memory", autocompletion=names_of("objective")),
    ] = "time"
    headroom: Annotated[
        float, option("--headroom", panel=CHOICE, help="share of GPU memory left free", min=0.0, max=0.9)
    ] = HEADROOM
    evidence: Annotated[
        bool, option("--evidence/--no-evidence", panel=CHOICE, help="let measured layouts decide close calls")
    ] = True
    env: Annotated[bool, option("--env/--no-env", panel=CHOICE, help="set environment variables")] = True
    numa: Annotated[bool, option("--numa/--no-numa", panel=CHOICE, help="bind ranks to the CPUs of their GPU")] = True
    strict: Annotated[bool, option("--strict", panel=CHOICE, help="a warning stops the launch")] = False
    force: Annotated[bool, option("--force", panel=CHOICE, help="launch in spite of a preflight FAIL")] = False
    plan_file: Annotated[Path | None, option("--plan", panel=CHOICE, help="launch exactly this saved plan")] = None
    interface: Annotated[
        str | None,
        option(
            "--interface", panel=RANKS, help="network interface of NCCL's and Gloo's sockets; default: by the route"
        ),
    ] = None
    python: Annotated[
        str | None, option("--python", panel=RANKS, help="the interpreter of the ranks; default: this one")
    ] = None
    nnodes: Annotated[str | None, option("--nnodes", panel=RANKS, help="nodes of the job")] = None
    nproc_per_node: Annotated[
        int | None, option("--nproc-per-node", panel=RANKS, help="ranks a node; default: its GPUs", min=1)
    ] = None
    node_rank: Annotated[int | None, option("--node-rank", panel=RANKS, help="number of this node")] = None
    master_addr: Annotated[str | None, option("--master-addr", panel=RANKS, help="address of the first node")] = None
    master_port: Annotated[
        int | None, option("--master-port", panel=RANKS, help="port on the first node", min=0, max=65535)
    ] = None
    rdzv_backend: Annotated[str | None, option("--rdzv-backend", panel=RANKS, help="c10d or static")] = None
    rdzv_endpoint: Annotated[str | None, option("--rdzv-endpoint", panel=RANKS, help="HOST:PORT of the rendezvous")] = (
        None
    )
    rdzv_id: Annotated[str | None, option("--rdzv-id", panel=RANKS, help="name of the rendezvous")] = None
    max_restarts: Annotated[
        int | None, option("--max-restarts", panel=RANKS, help="restarts that torchrun may try", min=0)
    ] = None
    srun_arg: Annotated[
        tuple[str, ...], option("--srun-arg", panel=RANKS, help="handed to srun when we call it; repeat")
    ] = ()
    agree_timeout: Annotated[
        float, option("--agree-timeout", panel=RANKS, help="seconds to wait for every node", min=1.0)
    ] = 120.0
    silence_timeout: Annotated[
        float,
        option(
            "--silence-timeout",
            panel=RANKS,
            help="seconds of silence of a node after which training ends; 0: never",
            min=0.0,
        ),
    ] = 1800.0
    dry_run: Annotated[bool, option("--dry-run", panel=OUTPUT, help="print the plan, do nothing")] = False
    format: Annotated[
        str,
        option(
            "--format",
            panel=OUTPUT,
            help=f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}",
            autocompletion=words(*FORMATS),
        ),
    ] = "text"
    partition: Annotated[str | None, option("--partition", panel=OUTPUT, help="in the batch script: its partition")] = (
        None
    )
    sbatch_arg: Annotated[
        tuple[str, ...],
        option("--sbatch-arg", panel=OUTPUT, help="a line of the batch script: --sbatch-arg=--partition=h100; repeat"),
    ] = ()
    container_image: Annotated[
        str | None, option("--container-image", panel=OUTPUT, help="in the batch script: image that srun starts")
    ] = None
    container_mounts: Annotated[
        str | None, option("--container-mounts", panel=OUTPUT, help="in the batch script: its mounts, /data:/data")
    ] = None
    why_not: Annotated[
        tuple[str, ...], option("--why-not", panel=OUTPUT, help="ask about a layout: tp=8,pp=2; repeat")
    ] = ()
    what_if: Annotated[
        tuple[str, ...],
        option("--what-if", panel=OUTPUT, help="change the machine: fabric=25GB/s,gpus=512; repeat"),
    ] = ()
    explain: Annotated[
        bool, option("--explain", panel=OUTPUT, help="also: where we are, who sits where, every reason")
    ] = False
    top: Annotated[int, option("--top", panel=OUTPUT, help="other layouts worth a try to show", min=0, max=100)] = 5
    report: Annotated[Path | None, option("--report", panel=OUTPUT, help="write an HTML page to look at")] = None
    save_plan: Annotated[
        Path | None, option("--save-plan", panel=OUTPUT, help="write it, for --plan FILE and for diff")
    ] = None
    quiet: Annotated[bool, option("--quiet", "-q", panel=OUTPUT, help="only the layout, in one line")] = False
    verbose: Annotated[bool, option("--verbose", "-v", panel=OUTPUT, help="all reasons, environment, command")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What `parlaunch verify` takes beside the options of a launch."""

    iterations: Annotated[
        int, option("--iterations", panel=VERIFY, help="iterations to run; the first two are warm-up", min=3)
    ] = 8
    retries: Annotated[
        int,
        option(
            "--retries",
            panel=VERIFY,
            help="next plans to try when one runs out of memory or a switch of it is refused",
            min=0,
        ),
    ] = 0
    timeout: Annotated[
        float,
        option(
            "--timeout",
            panel=VERIFY,
            help="seconds without an iteration, before the first without a line of log, that count as a hang",
            min=1,
        ),
    ] = 600.0
    measure: Annotated[
        int,
        option(
            "--top",
            panel=VERIFY,
            help="measure the N plans most worth a try one after the other, keep the fastest",
            min=1,
        ),
    ] = 1
    log: Annotated[
        Path | None,
        option("--log", panel=VERIFY, help="judge a run that is over by its log; a folder: every log in it"),
    ] = None
    tolerance: Annotated[
        float | None,
        option(
            "--tolerance",
            panel=VERIFY,
            help="share by which time and memory may be off, 0.2: beyond it the run fails; default: they are reported",
            min=0.0,
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """What `parlaunch compare` takes in the place of one machine and its price."""

    machines: Annotated[
        tuple[str, ...],
        option(
            "--hardware", panel=MACHINE, help="a preset and a count, or a file; one for each machine",
            autocompletion=names_of("preset"),
        ),
    ] = ()  # fmt: skip
    prices: Annotated[
        tuple[float, ...],
        option(
            "--price", panel=RUN, help="of one GPU for an hour: one for all, or one a machine in their order", min=0.0
        ),
    ] = ()
