"""Everything that was asked on one command line of launch or plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

RECOMPUTE_MODULES = ("core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts", "mhc")
"""What Megatron Core can recompute one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of `parlaunch launch` and `parlaunch plan`, as typed."""

    command: str
    overrides: tuple[str, ...] = ()
    runner_args: tuple[str, ...] = ()  # after `--`
    recipe: str | None = None
    model_config: Path | None = None
    seq_length: int | None = None
    global_batch_size: int | None = None
    precision: str | None = None
    script: Path | None = None
    module: str | None = None
    hardware: str = "auto"
    gpu: str | None = None
    device: str = "cuda"
    machine_file: Path | None = None
    spares: int = 0
    topology: Path | None = None  # the text of `scontrol show topology`
    tp: int | None = None
    pp: int | None = None
    vp: int | None = None
    cp: int | None = None
    ep: int | None = None
    etp: int | None = None
    micro_batch_size: int | None = None
    recompute: str | None = None
    fsdp: bool | None = None
    objective: str = "time"
    headroom: float = 0.08
    evidence: bool = True
    env: bool = True
    numa: bool = True
    strict: bool = False
    force: bool = False
    plan_file: Path | None = None
    nnodes: str | None = None
    nproc_per_node: int | None = None
    node_rank: int | None = None
    master_addr: str | None = None
    master_port: int | None = None
    rdzv_backend: str | None = None
    rdzv_endpoint: str | None = None
    rdzv_id: str | None = None
    max_restarts: int | None = None
    srun_arg: tuple[str, ...] = ()
    agree_timeout: float = 120.0
    dry_run: bool = False
    format: str = "text"
    sbatch_arg: tuple[str, ...] = ()
    container_image: str | None = None
    container_mounts: str | None = None
    why_not: tuple[str, ...] = ()
    explain: bool = False
    top: int = 5
    report: Path | None = None
    save_plan: Path | None = None
    quiet: bool = False
    verbose: bool = False
