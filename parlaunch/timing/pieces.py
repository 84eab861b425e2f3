"""What layers are made of: a linear layer, TP's exposed communication, a norm with its residual, and how costs add up.

`Cost` is (compute, tp, cp, ep, host): seconds on the GPU of kernels and of exposed communication, and seconds of CPU
time to issue the kernels. A stage takes the larger of the two sides.
"""

from __future__ import annotations

from dataclasses import dataclass

from parlaunch.layout import Layout
from parlaunch.recipe import Recipe
from parlaunch.timing.collectives import Links
from parlaunch.timing.kernels import Kernels
from parlaunch.timing.software import Software

LOW = ("fp8", "mx", "fp4")

Cost = tuple[float, float, float, float, float]
ZERO: Cost = (0.0, 0.0, 0.0, 0.0, 0.0)

TP_OVERLAP = 0.75
"""Share of TP's collectives hidden by user-buffer overlap (chunks pipelined with the product; the first and last are not)."""
LORA_RANK = 32


def add(a: Cost, b: Cost, factor: float = 1.0) -> Cost:
    """a + factor · b."""
    return (
        a[0] + factor * b[0], a[1] + factor * b[1], a[2] + factor * b[2], a[3] + factor * b[3], a[4] + factor * b[4],
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Split:
    """What of a layout a layer's time depends on."""

    tp: int
    cp: int
    ep: int
    etp: int
    mbs: int
    cp_comm_type: str | None
    modules: tuple[str, ...]  # recomputed selectively
    full: bool  # whole layers are recomputed


def split_of(layout: Layout) -> Split:
    """What of the layout a layer's time depends on."""
    r = layout.recompute
    return Split(
        tp=layout.tp, cp=layout.cp, ep=layout.ep, etp=layout.etp, mbs=layout.micro_batch_size,
        cp_comm_type=layout.cp_comm_type,
        modules=(r.modules or ("core_attn",)) if r.granularity == "selective" else (),
        full=r.granularity == "full",
    )  # fmt: skip


class Setting:
    """One recipe on one machine: what every layer of it has in common."""

    def __init__(self, recipe: Recipe, software: Software, kernels: Kernels, links: Links) -> None:
        self.recipe, self.arch, self.software = recipe, recipe.architecture, software
        self.kernels, self.links, self.features = kernels, links, recipe.features
        p = recipe.precision
        self.wide = "fp16" if p == "fp16" else "fp32" if p == "fp32" else "bf16"
        self.narrow = {"nvfp4": "fp4", "fp8mx": "mx"}.get(p, "fp8" if p.startswith("fp8") else self.wide)
        if self.narrow in LOW and "fp8" not in kernels.product.flops:
            self.narrow = self.wide
        self.frozen = recipe.frozen
        self.adapters = recipe.task == "peft"


# Bytes moved a quantised element: reading 16 bits, finding the largest value, writing both orientations.
_QUANTISE = {"fp8cs": 6.0, "fp8ds": 4.0, "fp8sc": 6.0, "fp8mx": 6.0, "nvfp4": 14.0}
_QUANTISE_KERNELS = {"fp8cs": 3, "fp8ds": 1, "fp8sc": 2, "fp8mx": 1, "nvfp4": 3}


ACCUMULATED = {"fp16": 6.0, "bf16": 18.0, "fp32": 12.0}
"""Bytes a weight gradient moves after its product where nothing fuses the two: autograd adds it to the sum in its own format;
in bf16 the sum goes on to an fp32 buffer after every micro batch and is set to zero (DeepSpeed's `BF16_Optimizer`)."""


class Pieces:
    """The parts of layers under one split, each as seconds forward and backward."""

    def __init__(self, owner: Setting, split: Split) -> None:
        self.o, self.s, self.arch, self.k = owner, split, owner.arch, owner.kernels
        self.software = owner.software
        recipe = owner.recipe
        self.seq = recipe.seq_length // split.cp  # tokens of one sequence on this rank
        self.tokens = max(1, split.mbs * self.seq)
        self.sp = split.tp if owner.software.sequence_parallel and owner.features.sequence_parallel else 1
        self.region = self.tokens / self.sp  # tokens a rank holds between blocks
        self.h = self.arch.hidden_size
        self.tp_group = owner.links.group(split.tp, 1)
        self.cp_group = owner.links.group(split.cp, split.tp)
        self.ep_group = owner.links.group(split.ep, split.etp)
        self.etp_group = owner.links.group(split.etp, 1)
        quantised = owner.narrow in LOW
        self.quantise = _QUANTISE.get(recipe.precision, 4.0) if quantised else 0.0
        self.quantise_kernels = _QUANTISE_KERNELS.get(recipe.precision, 1) if quantised else 0
        self.host = owner.kernels.silicon.host * owner.software.host
        self.fused = owner.software.fused_elementwise

    def _linear(
        self,
        tokens: float,
        n: int,
        k: int,
        fmt: str | None = None,
        groups: int = 1,
        adapter: bool = False,
    ) -> tuple[float, float, int]:
        """Forward and backward seconds of `groups` linear layers [tokens, k] -> [tokens, n], and forward kernels.

        `adapter`: of those that LoRA adapts even when it is kept small, as benchmarks do."""
        fmt = fmt or self.o.narrow
        m = max(1, round(tokens))
        gemm = self.k.gemm
        forward = gemm(m, n, k, fmt, groups=groups)
        backward = gemm(m, k, n, fmt, groups=groups)
        if not self.o.frozen:
            backward += gemm(n, k, m, fmt, groups=groups, accumulate=self.software.fused_accumulation)
            if not self.software.fused_accumulation:
                backward += self.k.stream(ACCUMULATED[self.o.wide] * n * k * groups)
        kernels = 1
        if fmt in LOW:
            kernels += self.quantise_kernels
            forward += self.k.stream(self.quantise * tokens * k * groups, kernels=self.quantise_kernels)
            backward += self.k.stream(self.quantise * tokens * n * groups, kernels=self.quantise_kernels)
        if self.o.adapters and (adapter or not self.o.recipe.benchmark):
            forward += gemm(m, LORA_RANK, k, self.o.wide) + gemm(m, n, LORA_RANK, self.o.wide)
            backward += 2 * (gemm(m, LORA_RANK, n, self.o.wide) + gemm(m, k, LORA_RANK, self.o.wide))
            kernels += 4
        return forward, backward, kernels

    def _tp_exposed(self, width: int) -> tuple[float, float]:
        """Forward and backward seconds of TP communication around a pair of column- and row-parallel layers."""
        if self.s.tp == 1:
            return 0.0, 0.0
        moved = 2.0 * self.tokens * width
        links, group = self.o.links, self.tp_group
        if self.sp > 1:
            one = links.gather(moved, group) + self.software.collective_s
            # Forward: gather in front, scatter behind. Backward: the gather of the output gradient stands free, the
            # second gather of the input and the scatter of its gradient run beside the two products.
            forward, free, beside = 2 * one, one, 2 * one
        else:
            one = links.reduce(moved, group) + self.software.collective_s
            forward, free, beside = one, 0.0, one
        hidden = self.software.backward_overlap
        if self.o.features.tp_overlap:
            return forward * (1 - TP_OVERLAP), (free + beside) * (1 - max(TP_OVERLAP, hidden))
        return forward, free + beside * (1 - hidden)

    def _pair(
        self,
        compute: tuple[float, float],
        tp: tuple[float, float],
        kernels: float,
        back: float | None = None,
    ) -> tuple[Cost, Cost]:
        back = kernels * 1.6 if back is None else back
        return (
            (compute[0], tp[0], 0.0, 0.0, kernels * self.host),
            (compute[1], tp[1], 0.0, 0.0, back * self.host),
        )

    def _norm(self) -> tuple[float, float]:
        """One norm over the residual stream, and the residual addition behind its block."""
        move = self.region * self.h * self.fused
        dropout = 1.0 if self.software.dropout else 0.0
        streams = self.arch.num_residual_streams or 1
        if streams > 1:
            # Hyper-connections: read all streams for the mixing weights, for the block's input and for the update, and
            # write all of them, half of it in fp32; the backward pass does each twice.
            wide = self.k.stream(move * (12.0 * streams + 6.0), kernels=12)
            return self.k.stream(move * 4.0) + wide, self.k.stream(move * 8.0) + 2.0 * wide
        return (
            self.k.stream(move * (4.0 + 6.0 + dropout), kernels=2),
            self.k.stream(move * (8.0 + (3.0 if self.software.dropout else 0.0) + 2.0), kernels=2),
        )
