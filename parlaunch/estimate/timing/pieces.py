"""What layers are made of: a linear layer, TP's exposed communication, a norm with its residual, and how costs add up.

What a layer costs has two sides: the GPU's kernels and exposed communication, and the CPU's time to issue the kernels. A
stage takes the larger of the two.
"""

from __future__ import annotations

from typing import NamedTuple

from parlaunch.estimate.states import NEEDS_TRANSPOSE
from parlaunch.estimate.timing.collectives import Links
from parlaunch.estimate.timing.kernels import OPERAND_BYTES, PRECISION_OF, Kernels
from parlaunch.estimate.timing.software import Software
from parlaunch.frozen import dataclass
from parlaunch.model.layout import SELECTIVE_RECOMPUTE, Layout
from parlaunch.model.precision import QUANTIZED, USER_BUFFERED
from parlaunch.model.recipe import Recipe

LOW = ("fp8", "block", "mx", "fp4")


class Cost(NamedTuple):
    """Seconds of one direction of a layer, or of a part of it."""

    compute: float = 0.0  # kernels
    tp: float = 0.0  # exposed communication
    cp: float = 0.0
    ep: float = 0.0
    host: float = 0.0  # CPU time to issue the kernels

    @property
    def gpu(self) -> float:
        """All that the GPU is busy with."""
        return self.compute + self.tp + self.cp + self.ep


ZERO = Cost()

TP_OVERLAP = 0.79
"""Share of TP's collectives hidden by user-buffer overlap (chunks pipelined with the product; the first and last are not)."""
LATE = 70e-6
"""Seconds that a collective beside a product waits for multiprocessors where nothing keeps launches in order: on Blackwell and newer,
whose 32 queues (`CUDA_DEVICE_MAX_CONNECTIONS` of NVIDIA's recipes; before them 1) let the product come first. They come free when its
first tiles end: one of 256 by 256, on two of them, takes a B200 0.07 ms at a depth of 8,192 in 16 bits. Runs without user buffers with
TP 2 and 8 on B200, GB200 and GB300 (SimuMax, Megatron Bridge) took 5 and 15 % longer than without it; TP 4 did not."""


def add(a: Cost, b: Cost, factor: float = 1.0) -> Cost:
    """a + factor · b."""
    return Cost(
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

    @property
    def plain(self) -> Split:
        """The same with nothing recomputed."""
        if not self.modules and not self.full:
            return self
        return Split(self.tp, self.cp, self.ep, self.etp, self.mbs, self.cp_comm_type, (), full=False)

    @property
    def dense(self) -> Split:
        """The same with nothing recomputed and experts on every rank: all that is not of experts takes as long."""
        return Split(self.tp, self.cp, 1, 1, self.mbs, self.cp_comm_type, (), full=False)


def split_of(layout: Layout) -> Split:
    """What of the layout a layer's time depends on."""
    r = layout.recompute
    return Split(
        tp=layout.tp, cp=layout.cp, ep=layout.ep, etp=layout.etp, mbs=layout.micro_batch_size,
        cp_comm_type=layout.cp_comm_type,
        modules=(r.modules or SELECTIVE_RECOMPUTE.modules) if r.granularity == "selective" else (),
        full=r.granularity == "full",
    )  # fmt: skip


class Workload:
    """One recipe on one machine: what every layer of it has in common."""

    def __init__(self, recipe: Recipe, software: Software, kernels: Kernels, links: Links) -> None:
        self.recipe, self.arch, self.software = recipe, recipe.architecture, software
        self.kernels, self.links, self.features = kernels, links, recipe.features
        p = recipe.precision
        self.wide = "fp16" if p == "fp16" else "fp32" if p == "fp32" else "bf16"
        # From Blackwell on, blocks of 128 are those of MXFP8 (Transformer Engine, csrc/extensions/gemm.cpp: `convert_block_scaling_to_mxfp8_tensor`).
        self.ordered = kernels.product.compute_capability < (10, 0)
        self.narrow = self._multiplied(p)
        # Modules that a recipe has in another format than the rest, whatever that is (`model.quant_recipe`).
        self.formats = {module: self._multiplied(named) for module, named in recipe.features.module_formats}
        self.frozen = recipe.frozen
        self.user_buffers = recipe.features.tp_overlap and p in USER_BUFFERED
        targets = BENCHMARK_ADAPTED if recipe.benchmark else recipe.features.adapter_targets
        self.adapted = targets if recipe.task == "peft" else ()

    def _multiplied(self, precision: str) -> str:
        """The format of products in a precision."""
        if not precision.startswith(QUANTIZED) or "fp8" not in self.kernels.product.flops:
            return self.wide
        block = "block" if self.ordered else "mx"
        return {"nvfp4": "fp4", "fp8mx": "mx", "fp8sc": block}.get(precision, "fp8")


BENCHMARK_ADAPTED = ("linear_qkv",)
"""What Megatron Bridge's benchmark recipes adapt (`scripts/performance`, LoRA of Llama 3)."""

# Bytes moved a quantised element: reading 16 bits, finding the largest value, writing both orientations. FP4 rotates for the weight
# gradient: the fused kernels of Transformer Engine's GEMM benchmark (docs/examples/gemm_profiling, B300, 2026) take as long as 6 bytes, the
# several of 2025 move 13.
_QUANTISE = {"fp8cs": 6.0, "fp8ds": 4.0, "fp8sc": 6.0, "fp8mx": 4.06, "nvfp4": 8.0}
_QUANTISE_ONE = {"fp8cs": 5.0, "fp8ds": 3.0, "fp8sc": 3.0, "fp8mx": 3.0, "nvfp4": 5.0}
"""The same for one orientation: nothing is transposed, nor rotated for a weight gradient (Transformer Engine, `columnwise_usage`)."""
QUANTISE_KERNELS = {"fp8cs": 3, "fp8ds": 1, "fp8sc": 2, "fp8mx": 1, "nvfp4": 3}
_ONE_SCALE = ("fp8cs", "fp8ds")
"""Formats with one scale a tensor: one orientation does for a matrix unit that takes operands in either order."""
_BEHIND_NORM = {"fp8cs": 2.0, "fp8ds": 4.0}
"""Bytes less where a norm stands in front of a layer, as one module with it: its kernel finds the largest value on its way (Transformer
Engine from 2.7 on, csrc/extensions/normalization.cpp, `FUSED_NORM_AMAX_FP8`), or writes 8 bits in place of 16 with a scale that is known
(`FULLY_FUSED`)."""
BLOCKS = ("fp8sc", "fp8mx", "nvfp4")
"""Formats with a scale for every block along the depth of a product: the two that an output's gradient goes into need it in an
orientation each, and both travel (Transformer Engine, pytorch/distributed.py: `_all_gather_mxfp8`, `_all_gather_nvfp4`)."""


def quantised_bytes(precision: str, gpu_arch: str, *, frozen: bool) -> float:
    """Bytes moved for an element that is quantised. Frozen weights need no gradient, so what meets them has one product only."""
    one = frozen or (precision in _ONE_SCALE and gpu_arch not in NEEDS_TRANSPOSE)
    return (_QUANTISE_ONE if one else _QUANTISE).get(precision, 4.0)


TRANSPOSED = 2.0
"""Bytes an element of an FP8 weight that is transposed, for the gradient of its input: read and written."""

ACCUMULATED = {"fp16": 6.0, "bf16": 18.0, "fp32": 12.0}
"""Bytes a weight gradient moves after its product where nothing fuses the two: autograd adds it to the sum in its own format;
in bf16 the sum goes on to an fp32 buffer after every micro batch and is set to zero (DeepSpeed's `BF16_Optimizer`)."""

FUSED_TILE = 256
"""Rows and columns of a tile of the kernels that multiply all experts in one (cuDNN frontend, python/cudnn/grouped_gemm: `mma_tiler_mn`)."""


def _over(size: int) -> float:
    """Whole tiles over a size: what hangs over its edge is worked off for nothing."""
    return -(-size // FUSED_TILE) * FUSED_TILE / size


def _summed(o: Workload) -> float:
    """Bytes that the gradient of a layer's weight moves on its way to the sum; 0 where its product adds it."""
    if o.software.fused_accumulation and (o.features.fused_accumulation or o.features.fsdp):
        return 0.0  # Megatron-FSDP's own way is in what is measured of it
    return added(o)


def added(o: Workload) -> float:
    """Bytes that a weight's gradient moves from where it is written to the sum."""
    if not o.software.fused_accumulation:
        return ACCUMULATED[o.wide if o.software.float32_sums or o.wide != "bf16" else "fp16"]
    # Read, and added to the sum in DDP's buffer (megatron/core/distributed/distributed_data_parallel.py: main_grad.add_).
    width, total = (4.0, 4.0) if o.wide == "fp32" else (2.0, o.features.gradient_bytes)
    return width + 2 * total


ROWS = ("linear_proj", "linear_fc2")
"""Layers that split their inputs over tensor parallelism, as adapters choose them."""
ADAPTED_FORWARD, ADAPTED_BACKWARD = 10.0, 6.0
"""Bytes an element beside an adapter: its result is scaled (4) and added to the frozen layer's (6); two gradients of the input are one."""

COPIED = 4.0
"""Bytes an element that is copied. Beside a row-parallel layer ranks have parts of the width of what its adapter adds: behind a gather all
of it is joined, and of its gradient a rank cuts its part (Megatron-Core, tensor_parallel/mappings.py, `_gather_along_last_dim`); all to all
only a rank's part is joined, and its gradient cut and joined (Bridge, peft/utils.py, `_All2AllHp2Sp`)."""


class Pieces:
    """The parts of layers under one split, each as seconds forward and backward."""

    def __init__(self, owner: Workload, split: Split) -> None:
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
        self.quantised = owner.narrow in LOW
        arch = owner.kernels.product.arch
        self.turns = self.quantised and not owner.frozen and arch in NEEDS_TRANSPOSE and recipe.precision in _ONE_SCALE
        again = owner.frozen and not owner.features.transpose_cache and arch in NEEDS_TRANSPOSE
        self.transpose = TRANSPOSED if again and recipe.precision in _ONE_SCALE else 0.0
        self.host = owner.kernels.silicon.host * owner.software.host
        self.fused = owner.software.fused_elementwise
        self.summed = _summed(owner)

    def _linear(
        self,
        tokens: float,
        n: int,
        k: int,
        fmt: str | None = None,
        groups: int = 1,
        module: str = "",
        side: str = "",
    ) -> tuple[float, float, int]:
        """Forward and backward seconds of `groups` linear layers [tokens, k] -> [tokens, n], and forward kernels.

        `module`: Megatron's name, by which adapters choose. `side`: what TP splits of it, its outputs ("column"; "norm": with the norm
        in front as one module) or its inputs ("row"); of experts that are one operation, whether the activation is behind ("first") or in
        front ("second"): it comes quantised out of the product before it, either way."""
        fmt = fmt or self.o.formats.get(module, self.o.narrow)
        m = max(1, round(tokens))
        gemm, fused = self.k.gemm, self.o.features.paged_stash
        over = [_over(x) if fused and groups > 1 else 1.0 for x in (n, k)]
        forward = gemm(m, n, k, fmt, groups=groups, fused=fused) * over[0]
        backward = gemm(m, k, n, fmt, groups=groups, fused=fused) * over[1]
        if not self.o.frozen:
            weights = gemm(n, k, m, fmt, groups=groups, accumulate=self.summed == 0.0, fused=fused)
            backward += weights * over[0] * over[1]
            if self.summed:
                backward += self.k.stream(self.summed * n * k * groups)
        kernels = 1
        if fmt in LOW:
            precision = self.o.recipe.precision if fmt == self.o.narrow else PRECISION_OF[fmt]
            launched = QUANTISE_KERNELS.get(precision, 1)
            kernels += launched
            quantised = self._quantised(tokens, n, k, "" if module in self.o.adapted else side, precision)
            forward += self.k.stream(quantised[0] * groups, kernels=launched)
            backward += self.k.stream(quantised[1] * groups, kernels=launched)
            if self.transpose:
                backward += self.k.stream(self.transpose * n * k * groups, kernels=groups)
        if module in self.o.adapted:
            # An adapter's two products are split as its layer is, the first over the rank where the layer splits its outputs.
            rank, row = self.o.features.adapter_rank, module in ROWS
            inner, outer = (rank, -(-n // self.s.tp)) if row else (-(-rank // self.s.tp), n)
            forward += gemm(m, inner, k, self.o.wide) + gemm(m, outer, rank, self.o.wide)
            backward += 2 * (gemm(m, rank, outer, self.o.wide) + gemm(m, k, inner, self.o.wide))
            # Dropout in front, with its mask; behind, the scaled result joins that of the frozen layer, as the gradients do.
            drop = 5.0 if self.o.features.adapter_dropout else 0.0
            behind = (self.region if row else tokens) * n
            forward += self.k.stream(tokens * drop * k + ADAPTED_FORWARD * behind, kernels=3)
            backward += self.k.stream(tokens * (drop + ADAPTED_BACKWARD) * k + 4.0 * behind, kernels=3)
            kernels += 7
            if row and self.s.tp > 1:
                whole, a2a = COPIED * tokens * n, self.o.features.adapter_a2a
                forward += self.k.stream(whole / self.s.tp if a2a else whole)
                backward += self.k.stream((2.0 if a2a else 1.0) * whole / self.s.tp)
        return forward, backward, kernels

    def _quantised(self, tokens: float, n: int, k: int, side: str, precision: str) -> tuple[float, float]:
        """Bytes moved to quantise a layer's input, forward, and its output's gradient, backward, for products in a precision.

        With sequence parallelism a rank quantises its own part of what is gathered, the input of a layer whose outputs are split and
        the gradient of one whose inputs are (Transformer Engine, module/layernorm_linear.py; base.py, `grad_output_preprocess`). What
        has to be transposed as well is so behind the gather, in the backward pass (distributed.py, `_all_gather_fp8`)."""
        column, row = side in ("column", "norm"), side == "row"
        moved = quantised_bytes(precision, self.k.product.arch, frozen=self.o.frozen)
        each = [0.0 if side == "second" else moved, 0.0 if side == "first" else moved]
        turned = 0.0
        if self.sp > 1 and (column or row) and self.turns and precision in _ONE_SCALE:
            each[row] -= 1.0
            turned = TRANSPOSED * tokens * (n if row else k)
        if side == "norm" and (precision != "fp8cs" or self.software.amax_in_norm):
            each[0] -= _BEHIND_NORM.get(precision, 0.0)
        mine = tokens / self.sp
        return each[0] * (mine if column else tokens) * k, each[1] * (mine if row else tokens) * n + turned

    def _tp_exposed(self, width: int, fmt: str | None = None, pair: tuple[str, str] = ("", "")) -> tuple[float, float]:
        """Forward and backward seconds of TP communication around a pair of column- and row-parallel layers, by the names by which
        adapters choose."""
        if self.s.tp == 1:
            return 0.0, 0.0
        moved = 2.0 * self.tokens * width
        links, group, wait = self.o.links, self.tp_group, self.software.collective_s
        kept, hidden = 1.0, self.software.backward_overlap
        if self.o.user_buffers:
            kept, hidden = 1 - TP_OVERLAP, max(TP_OVERLAP, hidden)
        if self.sp == 1:
            one = links.reduce(moved, group) + wait
            return kept * one, one * (kept if self.o.frozen else 1 - hidden)
        # What is gathered is an operand, quantised before it travels (Transformer Engine's quantised all-gather); what is
        # scattered are sums in 16 bits.
        fmt = fmt or self.o.formats.get(pair[0], self.o.narrow)
        operand = moved * OPERAND_BYTES[fmt] / 2.0
        scatter = links.scatter(moved, group) + wait
        gather = links.gather(operand, group) + wait
        if not self.o.frozen:
            # Forward: gather in front, scatter behind. Backward: the gather of the output gradient stands free, the
            # second gather of the input and the scatter of its gradient run beside the two products.
            beside = gather + scatter
            twice = fmt in LOW and self.o.recipe.precision in BLOCKS
            free = links.gather(2.0 * operand, group) + wait if twice else gather
            if self.o.user_buffers:
                return beside * kept, (free + beside) * (1 - hidden)
            late = 0.0 if self.o.ordered else 2.0 * LATE
            return beside, free + min(beside, beside * (1 - hidden) + late)
        # A frozen weight's gradient needs no input gathered again, nor is there a product that the scatter could run beside.
        both = (gather + scatter) * kept
        more = self._adapted_exposed(moved, gather, scatter, kept, pair)
        return both + more[0], both + more[1]

    def _adapted_exposed(
        self, moved: float, gather: float, scatter: float, kept: float, pair: tuple[str, str]
    ) -> tuple[float, float]:
        """What adapters on a pair of frozen layers add to it: `gather` and `scatter` are the seconds of the layers' own, of which
        user buffers leave the share `kept` free."""
        links, group = self.o.links, self.tp_group
        forward = backward = 0.0
        column, row = (module in self.o.adapted for module in pair)
        beside = links.gather(2.0 * self.tokens * self.o.features.adapter_rank, group)  # ranks have just met
        if column:
            # The adapter reads the norm's output, which is then gathered in 16 bits and outside of user buffers; so is its gradient
            # scattered (Bridge, `peft/utils.py`: `return_layernorm_output_gathered`).
            forward += scatter - gather * kept + beside
            backward += scatter * (1.0 - kept) + 2.0 * beside
        if row:
            # Its first product is summed; its second is gathered whole, of which a rank keeps its part of the sequence, or changes
            # its part of the width for that.
            a2a = self.o.features.adapter_a2a
            exchange = links.all_to_all(moved / self.s.tp, group) if a2a else links.gather(moved, group)
            forward += 2.0 * beside + exchange
            backward += 2.0 * beside + exchange
        return forward, backward

    def _pair(
        self,
        compute: tuple[float, float],
        tp: tuple[float, float],
        kernels: float,
    ) -> tuple[Cost, Cost]:
        return (
            Cost(compute[0], tp[0], host=kernels * self.host),
            Cost(compute[1], tp[1], host=kernels * 1.6 * self.host),
        )

    def _norm(self, *, block: bool = True) -> tuple[float, float]:
        """One norm over the residual stream, and the residual addition behind its `block`, with a second norm in front of it where a model
        has one (Gemma).

        Forward the norm reads and writes, the sum reads two and writes one (Megatron-Core fusions/fused_bias_dropout.py, compiled).
        Backward the norm reads its input and a gradient and writes one, to which autograd adds that of the residual."""
        move = self.region * self.h * self.fused
        dropout = 1.0 if self.software.dropout else 0.0
        streams = self.arch.num_residual_streams or 1
        if streams > 1:
            # Hyper-connections: read all streams for the mixing weights, for the block's input and for the update, and
            # write all of them, half of it in fp32; the backward pass does each twice.
            wide = self.k.stream(move * (12.0 * streams + 6.0), kernels=12)
            return self.k.stream(move * 4.0) + wide, self.k.stream(move * 8.0) + 2.0 * wide
        norms = 2 if block and self.arch.post_norms else 1
        return (
            self.k.stream(move * (4.0 * norms + 6.0 + dropout), kernels=norms + 1),
            self.k.stream(move * (6.0 * norms + (3.0 if self.software.dropout else 0.0) + 6.0), kernels=norms + 1),
        )
