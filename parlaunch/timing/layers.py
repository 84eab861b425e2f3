"""Time of one layer for one micro batch on one rank, forward and backward, apart by what the time is spent on.

`Cost` is (compute, tp, cp, ep, host): seconds on the GPU of kernels and of exposed communication, and seconds of CPU
time to issue the kernels. A stage takes the larger of the two sides.
"""

from __future__ import annotations

from dataclasses import dataclass

from parlaunch.architecture import LayerKind
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
EP_OVERLAP = 0.80
"""Share of the expert all-to-all that hides under another micro batch's compute."""
LORA_RANK = 32
MOE_KERNELS = 180
"""Kernels of router, permutation, dispatch, combine and glue of one eager MoE layer, forward."""
MOE_WAIT = 1.0
"""Share of the time to issue an MoE layer that stands free, since dropless routing waits for the token counts."""
UNFUSED_SOFTMAX = 12
"""Kernels of a softmax in plain PyTorch, with its conversions, mask and scale."""


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


@dataclass(frozen=True, slots=True)
class LayerTime:
    forward: Cost
    backward: Cost  # gradients of inputs and weights, without recompute
    recompute: Cost  # forward work repeated in the backward pass


def split_of(layout: Layout) -> Split:
    r = layout.recompute
    return Split(
        tp=layout.tp, cp=layout.cp, ep=layout.ep, etp=layout.etp, mbs=layout.micro_batch_size,
        cp_comm_type=layout.cp_comm_type,
        modules=(r.modules or ("core_attn",)) if r.granularity == "selective" else (),
        full=r.granularity == "full",
    )  # fmt: skip


class Layers:
    """Layer times of one recipe on one machine, each computed once."""

    def __init__(self, recipe: Recipe, software: Software, kernels: Kernels, links: Links) -> None:
        self.recipe, self.arch, self.software = recipe, recipe.architecture, software
        self.kernels, self.links, self.features = kernels, links, recipe.features
        p = recipe.precision
        self.wide = "fp16" if p == "fp16" else "fp32" if p == "fp32" else "bf16"
        self.narrow = {"nvfp4": "fp4", "fp8mx": "mx"}.get(p, "fp8" if p.startswith("fp8") else self.wide)
        if self.narrow in ("fp8", "mx", "fp4") and "fp8" not in kernels.product.flops:
            self.narrow = self.wide
        self.peft = recipe.task == "peft"
        every = self.arch.layers() + self.arch.mtp_layers()
        self.kinds = tuple(dict.fromkeys(every))  # what is hashed once here is a small number from now on
        self.number = {kind: i for i, kind in enumerate(self.kinds)}
        self._layers: dict[Split, tuple[LayerTime, ...]] = {}
        self._ends: dict[Split, tuple[LayerTime, LayerTime]] = {}

    def of(self, split: Split) -> tuple[LayerTime, ...]:
        """A time for each of `kinds`."""
        known = self._layers.get(split)
        if known is None:
            builder = _Builder(self, split)
            known = self._layers[split] = tuple(builder.layer(kind) for kind in self.kinds)
        return known

    def ends(self, split: Split) -> tuple[LayerTime, LayerTime]:
        """The embedding, and the final norm with output layer and loss."""
        known = self._ends.get(split)
        if known is None:
            builder = _Builder(self, split)
            known = self._ends[split] = (builder.embedding(), builder.head())
        return known


# Bytes moved a quantised element: reading 16 bits, finding the largest value, writing both orientations.
_QUANTISE = {"fp8cs": 6.0, "fp8ds": 4.0, "fp8sc": 6.0, "fp8mx": 6.0, "nvfp4": 14.0}
_QUANTISE_KERNELS = {"fp8cs": 3, "fp8ds": 1, "fp8sc": 2, "fp8mx": 1, "nvfp4": 3}


class _Builder:
    """Adds up one layer for one split."""

    def __init__(self, owner: Layers, split: Split) -> None:
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

    # --- pieces -----------------------------------------------------------------------------------------------

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
        if not self.o.peft:
            backward += gemm(n, k, m, fmt, groups=groups, accumulate=True)
        kernels = 1
        if fmt in LOW:
            kernels += self.quantise_kernels
            forward += self.k.stream(self.quantise * tokens * k * groups, kernels=self.quantise_kernels)
            backward += self.k.stream(self.quantise * tokens * n * groups, kernels=self.quantise_kernels)
        if self.o.peft and (adapter or not self.o.recipe.benchmark):
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
            one = links.gather(moved, group)
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

    # --- mixers -----------------------------------------------------------------------------------------------

    def attention(self, kind: LayerKind) -> tuple[Cost, Cost, Cost, Cost]:
        """Forward, backward, and the forward work of core attention and of MLA's up-projections, for recompute."""
        tp, a, t = self.s.tp, self.arch, self.tokens
        heads = max(1, kind.heads // tp)
        groups = max(1, kind.groups // tp)
        up: tuple[float, float] = (0.0, 0.0)
        if kind.mixer == "mla":
            qk = (a.qk_head_dim or 128) + (a.qk_pos_emb_head_dim or 0)
            value = a.v_head_dim or 128
            kv_rank = a.kv_lora_rank or 512
            if a.q_lora_rank:
                f0, b0, n0 = self._linear(
                    self.region,
                    a.q_lora_rank + kv_rank + (a.qk_pos_emb_head_dim or 0),
                    self.h,
                )
                f1, b1, n1 = self._linear(t, heads * qk, a.q_lora_rank)
            else:
                f0, b0, n0 = self._linear(self.region, kv_rank + (a.qk_pos_emb_head_dim or 0), self.h)
                f1, b1, n1 = self._linear(t, heads * qk, self.h)
            f2, b2, n2 = self._linear(t, heads * ((a.qk_head_dim or 128) + value), kv_rank)
            # Two norms over the compressed vectors, the rotation, and the copies that put the two parts together.
            glue = self.k.stream(t * heads * (qk + value) * 8.0 * self.fused, kernels=6)
            up = (f1 + f2 + glue, b1 + b2 + 1.3 * glue)
            compute = [f0 + up[0], b0 + up[1]]
            kernels = float(n0 + n1 + n2 + 8)
            out_dim, kv_bytes = heads * value, heads * (qk + value)
            if a.experimental_attention_variant == "dsa":
                kv_bytes = kv_rank + (a.qk_pos_emb_head_dim or 0)  # sparse attention works on the compressed vectors
        elif kind.mixer == "csa":
            qk = value = kind.head_dim
            rank = a.q_lora_rank or self.h
            f0, b0, n0 = self._linear(self.region, rank + value, self.h)
            f1, b1, n1 = self._linear(t, heads * qk, rank)
            if kind.compress:
                # Keys and gates that are compressed; at a ratio of 4 twice as wide, and once more for the indexer.
                wide = 2 * qk * (2 if kind.compress == 4 else 1)
                index = (a.dsa_indexer_n_heads or 0) * (a.dsa_indexer_head_dim or 0)
                if kind.compress == 4:
                    wide += 4 * (a.dsa_indexer_head_dim or 0)
                    f2, b2, n2 = self._linear(t, index, rank)
                    f1, b1, n1 = f1 + f2, b1 + b2, n1 + n2
                f2, b2, n2 = self._linear(self.region, wide, self.h)
                f1, b1, n1 = f1 + f2, b1 + b2, n1 + n2
            glue = self.k.stream(t * heads * qk * 8.0 * self.fused, kernels=6)
            up = (f1 + glue, b1 + 1.3 * glue)
            compute = [f0 + up[0], b0 + up[1]]
            kernels = float(n0 + n1 + 12)
            out_dim, kv_bytes = heads * value, 2 * value
        else:
            qk = value = kind.head_dim
            kv = 0 if kind.borrows_kv else 2 * groups
            gate = heads if a.attention_output_gate and not a.head_wise_attn_gate else 0
            f0, b0, n0 = self._linear(t, (heads + kv + gate) * qk, self.h, adapter=True)
            rotate = self.k.stream(
                t * (heads + groups) * qk * 4.0 * (2.0 if a.qk_layernorm else 1.0) * self.fused,
                kernels=2,
            )
            if a.position_embedding_type in ("none", "learned_absolute"):
                rotate = 0.0
            gating = self.k.stream(t * heads * qk * 6.0) if a.attention_output_gate else 0.0
            compute = [f0 + rotate + gating, b0 + 1.3 * rotate + 1.6 * gating]
            kernels = float(n0 + 6 + (4 if a.qk_layernorm else 0))
            out_dim, kv_bytes = heads * qk, 2 * groups * qk
        core = self._core(kind, heads, qk, value)
        if kind.mixer == "csa" and a.o_groups and a.o_lora_rank:
            # The output projection is two-staged: every group of heads to its own rank, then all to the model.
            f3, b3, n3 = self._linear(
                t,
                a.o_lora_rank,
                max(1, out_dim * tp // a.o_groups),
                groups=max(1, a.o_groups // tp),
            )
            f4, b4, n4 = self._linear(t, self.h, max(1, a.o_groups * a.o_lora_rank // tp))
            f3, b3, n3 = f3 + f4, b3 + b4, n3 + n4
        else:
            f3, b3, n3 = self._linear(t, self.h, out_dim)
        if not self.software.fused_attention and self._softmax_refused(heads):
            kernels += UNFUSED_SOFTMAX
        if a.kind == "diffusion":  # attention to the text: queries and output once more, keys and values are few
            compute = [compute[0] + f0 / 2 + f3, compute[1] + b0 / 2 + b3]
            kernels *= 1.6
        norm = self._norm()
        forward = compute[0] + core[0] + f3 + norm[0]
        backward = compute[1] + core[1] + b3 + norm[1]
        cp = self._context(kv_bytes, heads * qk, core)
        pair = self._pair((forward, backward), self._tp_exposed(self.h), kernels + n3 + 8)
        f = (pair[0][0], pair[0][1], cp[0], 0.0, pair[0][4])
        b = (pair[1][0], pair[1][1], cp[1], 0.0, pair[1][4])
        return (
            f,
            b,
            (core[0], 0.0, cp[0], 0.0, 2 * self.host),
            (up[0], 0.0, 0.0, 0.0, 6 * self.host),
        )

    def _core(self, kind: LayerKind, heads: int, qk: int, value: int) -> tuple[float, float]:
        """Core attention over this rank's share of the sequence, causal."""
        seq = self.o.recipe.seq_length
        rows = self.s.mbs * self.seq
        a = self.arch
        # Keys a query sees: half of all on average under a causal mask; a diffusion transformer has none.
        seen = float(seq) if a.kind == "diffusion" else seq / 2.0
        if kind.window is not None and kind.window < seq:
            seen = kind.window * (1 - kind.window / (2.0 * seq))
        if kind.mixer == "csa" and kind.compress:
            picked = (
                min(a.dsa_indexer_topk or seq, seq // (2 * kind.compress))
                if kind.compress < 64
                else seq // (2 * kind.compress)
            )
            seen += picked
        sparse = kind.mixer == "mla" and a.experimental_attention_variant == "dsa" and a.dsa_indexer_topk
        if sparse:
            seen = min(seen, float(a.dsa_indexer_topk or seen))
        extra = [0.0, 0.0]
        if (kind.indexer or (kind.mixer == "csa" and kind.compress == 4)) and a.dsa_indexer_n_heads:
            n, d = a.dsa_indexer_n_heads, a.dsa_indexer_head_dim or 128
            keys = seq / 2.0 / max(1, kind.compress)
            score = 2.0 * rows * keys * n * d / (self.k.attention_peak * 0.3) + self.k.stream(
                rows * keys * 8.0, kernels=4
            )
            extra = [score, 2.0 * score]
        flops = 2.0 * rows * seen * heads * (qk + value)
        if not self.software.fused_attention:
            return self._unfused(heads, qk)
        span = min(seq // self.s.cp, 2 * seen)  # a context-parallel rank attends to one block at a time
        f = self.k.attention(
            flops=flops,
            sequence=int(span),
            head_dim=qk,
            value_dim=value,
            heads=heads,
            backward=False,
        )
        b = self.k.attention(
            flops=2.5 * flops,
            sequence=int(span),
            head_dim=qk,
            value_dim=value,
            heads=heads,
            backward=True,
        )
        return f + extra[0], b + extra[1]

    def _unfused(self, heads: int, dim: int) -> tuple[float, float]:
        """Attention whose scores go through memory: batched products, scale-mask-softmax and dropout kernels.

        Bytes a score: products write and read it in 16 bits, softmax and dropout read and write it, masks are a byte.
        """
        s, batch = self.o.recipe.seq_length, self.s.mbs * heads
        scores = float(batch) * s * s
        wide = self.o.wide
        products = self.k.gemm(s, s, dim, wide, groups=batch) + self.k.gemm(s, dim, s, wide, groups=batch)
        forward = products + self.k.stream(scores * (4.0 + 5.0), kernels=2)
        backward = 2.0 * products + self.k.stream(scores * (5.0 + 6.0), kernels=2)
        copies = self.k.stream(self.tokens * heads * dim * 16.0, kernels=4)
        # Where the fused kernel refuses, softmax runs in fp32 in five steps: convert, scale, mask, softmax, convert.
        plain = self.k.stream(scores * 32.0, kernels=UNFUSED_SOFTMAX) if self._softmax_refused(heads) else 0.0
        return forward + copies + plain, backward + copies + plain

    def _softmax_refused(self, heads: int) -> bool:
        return (self.s.mbs * heads) % self.software.softmax_batch != 0

    def _context(self, kv_bytes: int, q_width: int, core: tuple[float, float]) -> tuple[float, float]:
        """Exposed context-parallel communication of keys and values (ring), or of heads (all-to-all)."""
        cp = self.s.cp
        if cp == 1:
            return 0.0, 0.0
        links, group = self.o.links, self.cp_group
        kind = self.s.cp_comm_type or "p2p"
        kv = 2.0 * self.tokens * kv_bytes
        exchange = 0.0
        if kind.startswith("a2a"):
            # Heads for sequence and back, inside the domain; what is left of the group passes keys and values round.
            inner = group if kind == "a2a" else links.group(group.inside, self.s.tp)
            heads = 2.0 * self.tokens * q_width
            exchange = links.all_to_all(kv + heads, inner) + links.all_to_all(heads, inner)
            cp //= inner.size
            if cp == 1:
                return exchange, exchange
        if kind == "all_gather":
            one = links.gather(kv * cp, group)
            return one, 2.0 * one
        step = links.send(kv, near=not group.crosses)
        # Each block's output joins the others in fp32, with its softmax sums; backward, gradients of keys and values do.
        join = self.k.stream(self.tokens * q_width * 14.0, kernels=6)
        # Each of cp-1 exchanges runs under the attention of the block at hand.
        forward = (cp - 1) * max(0.15 * step, step - core[0] / cp)
        backward = (cp - 1) * max(0.3 * step, 2.0 * step - core[1] / cp)
        return exchange + forward + cp * join, exchange + backward + 1.5 * cp * join

    def scan(self, kind: LayerKind) -> tuple[Cost, Cost]:
        """Mamba-2 and gated delta net: projections, a short convolution, a chunked scan."""
        a, t, tp = self.arch, self.tokens, self.s.tp
        if kind.mixer == "mamba":
            heads = max(1, (a.mamba_num_heads or 1) // tp)
            dim, state = a.mamba_head_dim or 64, a.mamba_state_dim or 128
            groups = max(1, (a.mamba_num_groups or 8) // tp)
            inner, mixed = heads * dim, heads * dim + 2 * groups * state
            f0, b0, n0 = self._linear(t, inner + mixed + heads, self.h)
            chunk, passes = 256, 14.0
        else:
            heads = max(1, (a.linear_num_value_heads or 1) // tp)
            dim, state = a.linear_value_head_dim or 128, a.linear_key_head_dim or 128
            keys = max(1, (a.linear_num_key_heads or 1) // tp)
            inner, mixed = heads * dim, heads * dim + 2 * keys * state
            f0, b0, n0 = self._linear(t, inner + mixed + 2 * heads, self.h)
            chunk, passes = 64, 18.0
        # Inside a chunk as attention of `chunk` keys, between chunks as products with the state.
        flops = 2.0 * t * heads * (chunk * (dim + state) / 2.0 + 2.0 * dim * state)
        states = 8.0 * t / chunk * heads * dim * state  # fp32, written and read
        # Small products and exponentials: such kernels go with the SMs' clock, not with the tensor cores' peak.
        forward = max(
            flops / self.k.scan_rate,
            self.k.stream(t * mixed * passes + states, kernels=8),
        )
        backward = 2.5 * forward
        f1, b1, n1 = self._linear(t, self.h, inner)
        norm = self._norm()
        gate = self.k.stream(t * inner * 8.0, kernels=1)
        context = self._context(0, mixed, (0.0, 0.0)) if self.s.cp > 1 else (0.0, 0.0)
        pair = self._pair(
            (
                f0 + forward + f1 + gate + norm[0],
                b0 + backward + b1 + 2 * gate + norm[1],
            ),
            self._tp_exposed(self.h),
            n0 + n1 + 24,
        )
        return (
            (pair[0][0], pair[0][1], context[0], 0.0, pair[0][4]),
            (pair[1][0], pair[1][1], context[1], 0.0, pair[1][4]),
        )

    # --- MLPs -------------------------------------------------------------------------------------------------

    def _activation(self, elements: float) -> tuple[float, float]:
        """Activation over the output of a first layer `elements` wide after gating; gated ones read two halves."""
        gated = self.arch.gated_linear_unit
        return (
            self.k.stream(elements * (6.0 if gated else 4.0) * self.fused),
            self.k.stream(elements * (10.0 if gated else 6.0) * self.fused),
        )

    def mlp(self) -> tuple[Cost, Cost, Cost]:
        """A dense MLP: forward, backward, and the forward work of the activation."""
        a, t = self.arch, self.tokens
        width = max(1, a.ffn_hidden_size // self.s.tp)
        f0, b0, n0 = self._linear(t, width * (2 if a.gated_linear_unit else 1), self.h)
        f1, b1, n1 = self._linear(t, self.h, width)
        act, norm = self._activation(t * width), self._norm()
        pair = self._pair(
            (f0 + f1 + act[0] + norm[0], b0 + b1 + act[1] + norm[1]),
            self._tp_exposed(self.h),
            n0 + n1 + 5,
        )
        return pair[0], pair[1], (act[0], 0.0, 0.0, 0.0, self.host)

    def moe(self) -> tuple[Cost, Cost, Cost, Cost]:
        """Router, dispatch, grouped experts, combine, shared expert: forward, backward, activation, shared expert."""
        a, s = self.arch, self.s
        experts = a.num_moe_experts or 1
        local = max(1, experts // s.ep)
        topk = a.moe_router_topk
        gated = 2 if a.gated_linear_unit else 1
        width = max(1, (a.moe_ffn_hidden_size or a.ffn_hidden_size) // s.etp)
        own = self.tokens / s.tp  # tokens this rank routes: sequence parallelism is compulsory with TP
        inner = a.moe_latent_size or self.h
        routed = own * topk * s.etp  # tokens that reach this rank's experts when the router is balanced
        # A free router is never balanced: the fullest rank holds the others up.
        imbalance = 1.0 if self.o.features.force_balance else 1.05
        each = routed * imbalance / local
        f0, b0, n0 = self._linear(each, width * gated, inner, groups=local)
        f1, b1, n1 = self._linear(each, inner, width, groups=local)
        act = self._activation(routed * imbalance * width)
        router = self.k.gemm(max(1, round(own)), experts, self.h, self.o.wide)
        route = self.k.stream(own * (experts * 24.0 + self.h * 4.0), kernels=8)
        dispatcher = self.o.features.dispatcher or "alltoall"
        fused = dispatcher in ("deepep", "hybridep")
        # Permutation by expert in front of and behind the experts: each copy is read and written.
        passes = 1.0 if fused else 2.0
        permute = self.k.stream(
            passes * (own * (1 + topk) + routed) * inner * 2.0,
            kernels=2 if fused else 8,
        )
        latent = self._linear(own, inner, self.h) if a.moe_latent_size else (0.0, 0.0, 0)
        latent_up = self._linear(own, self.h, inner) if a.moe_latent_size else (0.0, 0.0, 0)
        norm = self._norm()
        shared_width = (a.moe_shared_expert_intermediate_size or 0) // s.tp
        shared: tuple[float, float] = (0.0, 0.0)
        shared_tp: tuple[float, float] = (0.0, 0.0)
        shared_kernels = 0
        if shared_width:
            sf0, sb0, sn0 = self._linear(self.tokens, shared_width * gated, self.h)
            sf1, sb1, sn1 = self._linear(self.tokens, self.h, shared_width)
            sact = self._activation(self.tokens * shared_width)
            shared = (sf0 + sf1 + sact[0], sb0 + sb1 + sact[1])
            shared_tp = self._tp_exposed(self.h)
            shared_kernels = sn0 + sn1 + 4
        forward = f0 + f1 + act[0] + router + route + 2 * permute + latent[0] + latent_up[0] + norm[0] + shared[0]
        backward = b0 + b1 + act[1] + 2 * router + route + 2 * permute + latent[1] + latent_up[1] + norm[1] + shared[1]
        ep = 2.0 * self._dispatch(own, topk, inner, dispatcher)
        if s.etp > 1:
            gather = self.o.links.gather(2.0 * own * s.etp * topk * inner, self.etp_group)
            ep += 2.0 * gather
        if self.o.features.ep_overlap:
            ep *= 1 - EP_OVERLAP
        # Grouped products are issued expert by expert, their operands quantised together.
        eager = (n0 + n1 + (MOE_KERNELS if fused else 1.3 * MOE_KERNELS) + 2 * local) * self.host
        # The host waits for the number of tokens of each expert before it can issue them: the queue runs dry.
        wait = 0.0 if self.o.features.cuda_graph == "full_iteration" else MOE_WAIT * eager
        host = eager + shared_kernels * self.host
        return (
            (forward + wait, shared_tp[0], 0.0, ep, host),
            (backward + 1.5 * wait, shared_tp[1], 0.0, ep, 1.5 * host),
            (act[0], 0.0, 0.0, 0.0, self.host),
            (shared[0], shared_tp[0], 0.0, 0.0, shared_kernels * self.host),
        )

    def _dispatch(self, own: float, topk: int, width: int, dispatcher: str) -> float:
        """One trip of the tokens to their experts (or back)."""
        links, group = self.o.links, self.ep_group
        n = group.size
        if n == 1:
            return 0.0
        token = 2.0 * width
        if dispatcher == "allgather":
            return links.gather(own * n * token, group)
        if dispatcher == "alltoall":
            return links.all_to_all(own * topk * token, group)
        # A token goes once to each rank that wants it, and once over the network to each domain that wants it.
        ranks = n * (1.0 - (1.0 - 1.0 / n) ** topk)
        near = own * token * ranks * (n - 1) / n / (links.nvlink * 0.85)
        if not group.crosses:
            return near + 15e-6
        domains = n / group.inside
        wanted = domains * (1.0 - (1.0 - 1.0 / domains) ** topk)
        if self.arch.moe_router_group_topk and (self.arch.moe_router_num_groups or 1) > 1:
            wanted = min(wanted, domains * self.arch.moe_router_group_topk / (self.arch.moe_router_num_groups or 1))
        far = own * token * wanted * (domains - 1) / domains / (links.fabric * 0.97)
        return max(near, far) + 40e-6

    # --- whole layers -----------------------------------------------------------------------------------------

    def layer(self, kind: LayerKind) -> LayerTime:
        forward, backward, again = ZERO, ZERO, ZERO
        modules = self.s.modules
        if kind.mixer in ("mamba", "gated_delta_net"):
            f, b = self.scan(kind)
            forward, backward = add(forward, f), add(backward, b)
        elif kind.mixer is not None:
            f, b, core, up = self.attention(kind)
            forward, backward = add(forward, f), add(backward, b)
            if "core_attn" in modules:
                again = add(again, core)
            if "mla_up_proj" in modules:
                again = add(again, up)
        if kind.mlp == "dense":
            f, b, act = self.mlp()
            forward, backward = add(forward, f), add(backward, b)
            if "mlp" in modules:
                again = add(again, f)
        elif kind.mlp == "moe":
            f, b, act, shared = self.moe()
            forward, backward = add(forward, f), add(backward, b)
            if "moe" in modules:
                again = add(again, f)
            elif "moe_act" in modules:
                again = add(again, act)
            if "shared_experts" in modules and "moe" not in modules:
                again = add(again, shared)
        if "layernorm" in modules:
            again = add(again, (self._norm()[0], 0.0, 0.0, 0.0, 2 * self.host))
        if self.s.full:
            again = forward
        return LayerTime(forward, backward, again)

    def embedding(self) -> LayerTime:
        move = self.tokens * self.h
        f = self.k.stream(move * 4.0, kernels=2)
        b = self.k.stream(move * 8.0, kernels=3)
        tp = self.o.links.gather(2.0 * move, self.tp_group)
        return LayerTime((f, tp, 0.0, 0.0, 4 * self.host), (b, tp, 0.0, 0.0, 6 * self.host), ZERO)

    def head(self) -> LayerTime:
        """Final norm, output layer over this rank's slice of the vocabulary, cross entropy."""
        vocab = max(1, self.arch.vocab_size // self.s.tp)
        f, b, _ = self._linear(self.tokens, vocab, self.h, self.o.wide)
        norm = self._norm()
        loss = self.k.stream(self.tokens * vocab * self.software.logits_bytes / 2.0, kernels=6)
        tp = self._tp_exposed(self.h)
        return LayerTime(
            (f + norm[0] + loss, tp[0], 0.0, 0.0, 20 * self.host),
            (b + norm[1] + loss, tp[1], 0.0, 0.0, 24 * self.host),
            ZERO,
        )
