"""A layout: the parallel sizes of one training run, under Megatron's names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from parlaunch.frozen import HashedOnce, dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Recompute(HashedOnce):
    """Activation recomputation as Megatron names it. `granularity` None: nothing is recomputed."""

    granularity: str | None = None  # None | "selective" | "full"
    modules: tuple[str, ...] = ()  # selective: core_attn, moe_act, layernorm, mla_up_proj, mlp, moe, shared_experts
    method: str | None = None  # full: "uniform" | "block"
    num_layers: int | None = None  # full: layers a unit (uniform) or layers a stage (block)

    def __str__(self) -> str:
        if self.granularity == "full":
            return f"full ({self.method or 'uniform'} {self.num_layers or 1})"
        if self.granularity == "selective":
            return f"selective ({', '.join(self.modules)})"
        return "none"


NO_RECOMPUTE = Recompute()
SELECTIVE_RECOMPUTE = Recompute(granularity="selective", modules=("core_attn",))
"""Megatron's own modules where none are named."""
FULL_RECOMPUTE = Recompute(granularity="full", method="uniform", num_layers=1)


def selective(modules: Sequence[str] | None) -> Recompute:
    """Selective recomputation of these modules as Megatron takes them: None are its own, and of an empty list nothing is recomputed
    (megatron/core/transformer/transformer_config.py:1763)."""
    if modules is None:
        return SELECTIVE_RECOMPUTE
    return Recompute(granularity="selective", modules=tuple(modules)) if modules else NO_RECOMPUTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes that a user may fix and that a recipe may come with. None: not said."""

    tp: int | None = None
    pp: int | None = None
    vp: int | None = None
    cp: int | None = None
    ep: int | None = None
    etp: int | None = None
    micro_batch_size: int | None = None


SIZES = tuple(f.name for f in fields(Sizes))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout(HashedOnce):
    """How `world` GPUs share one training. Everything Megatron needs follows from these.

    dp = world / (tp·pp·cp); edp = world / (pp·ep·etp). Both are whole in a legal layout (`parlaunch.rules`).
    """

    world: int = 1
    tp: int = 1
    pp: int = 1
    vp: int | None = None  # virtual pipeline chunks a stage; None: no interleaving
    cp: int = 1
    ep: int = 1
    etp: int = 1
    micro_batch_size: int = 1
    global_batch_size: int = 1
    recompute: Recompute = NO_RECOMPUTE
    fsdp: bool = False  # Megatron-FSDP instead of the distributed optimizer
    cp_comm_type: str | None = None  # p2p | a2a | a2a+p2p | all_gather; None when cp is 1
    # Decoder layers of each virtual stage, in order of execution (chunk-major: stage 0..pp-1 of chunk 0, then chunk 1…);
    # None: equal chunks. Embedding and loss sit in the first and the last one and are not counted.
    layers_per_chunk: tuple[int, ...] | None = None

    @property
    def model_parallel(self) -> int:
        """GPUs that hold one replica of the model."""
        return self.tp * self.pp * self.cp

    @property
    def dp(self) -> int:
        """Replicas of the model, which share the batch out."""
        return self.world // self.model_parallel

    @property
    def edp(self) -> int:
        """Replicas of each expert."""
        return self.world // (self.pp * self.ep * self.etp)

    @property
    def sequence_parallel(self) -> bool:
        """Always on with TP: it costs nothing and saves activations."""
        return self.tp > 1

    @property
    def num_microbatches(self) -> int:
        """Of one replica; 0 where the GPUs do not make one."""
        sequences = self.micro_batch_size * self.dp
        return self.global_batch_size // sequences if sequences else 0

    @property
    def chunks(self) -> int:
        """Virtual stages of the whole pipeline."""
        return self.pp * (self.vp or 1)

    @property
    def sizes(self) -> str:
        """The sizes without recomputation, as `--why-not` takes them."""
        parts = [f"tp={self.tp}", f"pp={self.pp}"]
        if self.vp:
            parts.append(f"vp={self.vp}")
        if self.cp > 1:
            parts.append(f"cp={self.cp}")
        if self.ep > 1:
            parts.append(f"ep={self.ep}")
        if self.etp > 1:
            parts.append(f"etp={self.etp}")
        parts += [f"dp={self.dp}", f"mbs={self.micro_batch_size}"]
        if self.fsdp:
            parts.append("fsdp")
        return " ".join(parts)

    def __str__(self) -> str:
        return f"{self.sizes} recompute={self.recompute}" if self.recompute.granularity else self.sizes


def layout_to_json(layout: Layout) -> dict[str, Any]:
    """The `layout` object of `parlaunch.plan/1`."""
    return {
        "world_size": layout.world, "tp": layout.tp, "pp": layout.pp, "vp": layout.vp, "cp": layout.cp,
        "ep": layout.ep, "etp": layout.etp, "dp": layout.dp, "edp": layout.edp,
        "sequence_parallel": layout.sequence_parallel, "micro_batch_size": layout.micro_batch_size,
        "global_batch_size": layout.global_batch_size, "num_microbatches": layout.num_microbatches,
        "recompute": recompute_to_json(layout.recompute),
        "fsdp": layout.fsdp, "cp_comm_type": layout.cp_comm_type,
        "layers_per_chunk": None if layout.layers_per_chunk is None else list(layout.layers_per_chunk),
    }  # fmt: skip


def layout_from_json(data: Mapping[str, Any]) -> Layout:
    """The layout that `layout_to_json` wrote; derived fields are computed anew."""
    names = {f.name for f in fields(Layout)} - {"recompute", "world", "layers_per_chunk"}
    chunks = data.get("layers_per_chunk")
    return Layout(
        **{k: v for k, v in data.items() if k in names},
        world=data["world_size"],
        recompute=recompute_from_json(data.get("recompute")),
        layers_per_chunk=None if chunks is None else tuple(chunks),
    )


def recompute_to_json(recompute: Recompute) -> dict[str, Any]:
    """The `recompute` object of `parlaunch.plan/1`."""
    r = recompute
    return {
        "granularity": r.granularity, "modules": list(r.modules), "method": r.method, "num_layers": r.num_layers,
    }  # fmt: skip


def recompute_from_json(data: Mapping[str, Any] | None) -> Recompute:
    """What `recompute_to_json` wrote, or a recipe says; nothing is recomputed where nothing is given."""
    if not data or not data.get("granularity"):
        return NO_RECOMPUTE
    if data["granularity"] == "selective":
        return selective(data.get("modules"))
    return Recompute(
        granularity=data["granularity"],
        modules=tuple(data.get("modules") or ()),
        method=data.get("method"),
        num_layers=data.get("num_layers"),
    )
