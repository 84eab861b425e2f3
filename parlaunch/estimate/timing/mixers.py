"""Layers that mix tokens: attention in its kinds, fused or not, context parallelism around it, and scans."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from parlaunch.estimate.timing.pieces import COPIED, LOW, QUANTISE_KERNELS, Cost, Pieces, quantised_bytes
from parlaunch.model.architecture import LayerKind
from parlaunch.model.flops import TEXT
from parlaunch.model.recipe import rotated_in_one

UNFUSED_SOFTMAX = 12
"""Kernels of a softmax in plain PyTorch, with its conversions, mask and scale."""


PLAIN_ROTATION = (24.0, 28.0)
"""Bytes an element of queries and keys moves, forward and backward, where no kernel rotates them in one: products with cosines and
sines, the halves turned, their sum, and what joins and cuts them, each by itself (Megatron-Core rope_utils.py,
`_apply_rotary_pos_emb_bshd`; tests/estimate/timing/test_plain_torch.py counts them). Megatron Bridge takes the kernel back for all but
plain rotary embeddings (utils/fusions.py:84), so for YaRN and for those of several axes; and its own recipes of most models are
without."""
LATENT_ROTATION = (28.0, 42.0)
"""The same in multi-latent attention, whose elements are put in order first (`mla_rotary_interleaved`)."""
FIRST_FLASH = 2.0
"""Time of the first FlashAttention over that of the second and its like ("around 2x speedup", arXiv:2307.08691, on A100)."""
CAST_BACK = 3.0
"""Bytes an element that comes back from FP8 moves."""


class _Inputs(NamedTuple):
    """What stands before core attention, on one rank: the projections of queries, keys and values, with what prepares them."""

    forward: float  # seconds
    backward: float
    up: float  # seconds forward of what recomputing `mla_up_proj` runs again
    kernels: float  # forward
    qk: int  # elements of a head of queries and keys
    value: int
    kv_elements: int  # elements of keys and values a token that context parallelism passes on


class Mixers(Pieces):
    """Time of a layer's mixer, with the norm in front and the residual behind."""

    def attention(self, kind: LayerKind) -> tuple[Cost, Cost, Cost, Cost]:
        """Forward, backward, and the forward work of core attention and of MLA's up-projections, for recompute."""
        heads = max(1, kind.heads // self.s.tp)
        if kind.mixer == "mla":
            x = self._latent(heads)
        elif kind.mixer == "csa":
            x = self._compressed(kind, heads)
        else:
            x = self._grouped(kind, heads)
        core = self._core(kind, heads, x.qk, x.value)
        f3, b3, n3 = self._output(kind, heads * x.value)
        forward, backward, kernels = x.forward, x.backward, x.kernels
        if not self.software.fused_attention and self._softmax_refused(heads):
            kernels += UNFUSED_SOFTMAX
        if kind.mixer == "attention" and self.arch.kind == "diffusion":
            text = self._to_the_text(kind, heads)
            forward, backward = forward + text[0], backward + text[1]
            kernels *= 1.6
        norm = self._norm()
        forward = forward + core[0] + f3 + norm[0]
        backward = backward + core[1] + b3 + norm[1]
        if self.arch.add_bias_linear and self.arch.num_moe_experts:
            # The output's bias is added by itself: nothing fuses it with the residual beside experts that have one (Megatron-Core
            # transformer/moe/experts.py, "bias_dropout_fusion is not supported").
            forward += self.k.stream(self.region * self.h * 4.0)
            backward += self.k.stream(self.region * self.h * 2.0)
            kernels += 1
        cp = self._context(x.kv_elements, heads * x.qk, core)
        exposed = self._tp_exposed(self.h, pair=("linear_qkv", "linear_proj"))
        f, b = self._pair((forward, backward), exposed, kernels + n3 + 8)
        return (
            f._replace(cp=cp[0]),
            b._replace(cp=cp[1]),
            Cost(core[0], cp=cp[0], host=2 * self.host),
            Cost(x.up, host=6 * self.host),
        )

    def _grouped(self, kind: LayerKind, heads: int) -> _Inputs:
        """Multi-head and grouped-query attention: one projection to queries, keys and values, and the rotation."""
        a, t, dim = self.arch, self.tokens, kind.head_dim
        groups = max(1, kind.groups // self.s.tp)
        kv = 0 if kind.borrows_kv else 2 * groups
        gate = heads if a.attention_output_gate and not a.head_wise_attn_gate else 0
        f0, b0, n0 = self._linear(t, (heads + kv + gate) * dim, self.h, module="linear_qkv", side="norm")
        rotate, turned, n1 = self._rotated(t * (heads + groups) * dim)
        gating = self.k.stream(t * heads * dim * 6.0) if a.attention_output_gate else 0.0
        apart = self._taken_apart(t * dim, heads + gate, groups, kv)
        return _Inputs(
            forward=f0 + rotate + gating + apart[0], backward=b0 + turned + 1.6 * gating + apart[1], up=0.0,
            kernels=float(n0 + n1 + (4 if a.qk_layernorm else 0)), qk=dim, value=dim, kv_elements=2 * groups * dim,
        )  # fmt: skip

    def _taken_apart(self, each: float, heads: int, groups: int, kv: int) -> tuple[float, float]:
        """Copies of queries, keys and values on their way from one projection to attention, each head `each` elements: seconds forward and
        backward.

        Queries, where several heads share a key (Megatron-Core transformer/attention.py, `query.reshape`); keys in front of their norm; of
        both, and of values, what no kernel rotated (Transformer Engine, dot_product_attention/utils.py, `get_qkv_layout`: `contiguous`, but
        where each head has a key and all three are read as they lie). Backward all are joined (utils.py, `SplitAlongDim`)."""
        a = self.arch
        rotated = a.rotary
        if not self.software.fused_attention or not (rotated or a.qk_layernorm or groups < heads):
            return 0.0, 0.0  # copied beside the scores, or read where the projection wrote them
        copied = kv / 2.0 * (2.0 if a.qk_layernorm or not rotated else 1.0) + (heads if 1 < groups < heads else 0)
        return (
            self.k.stream(COPIED * each * copied, kernels=2),
            self.k.stream(COPIED * each * (heads + kv)),
        )

    def _rotated(self, elements: float) -> tuple[float, float, int]:
        """Rotating so many elements of queries and keys, and their norms: seconds forward and backward, and forward kernels beside."""
        a = self.arch
        if not a.rotary:
            return 0.0, 0.0, 6
        norms = 4.0 * elements * self.fused if a.qk_layernorm else 0.0
        if rotated_in_one(a, self.o.features):
            both = self.k.stream(4.0 * elements * self.fused + norms, kernels=2)
            return both, 1.3 * both, 6
        forward, backward = PLAIN_ROTATION
        return (
            self.k.stream(forward * elements + norms, kernels=24),
            self.k.stream(backward * elements + 1.3 * norms, kernels=14),
            28,
        )

    def _to_the_text(self, kind: LayerKind, heads: int) -> tuple[float, float]:
        """A video's attention to its text, forward and backward."""
        text, dim = self.s.mbs * TEXT, kind.head_dim
        f0, b0, _ = self._linear(self.tokens, heads * dim, self.h)
        f1, b1, _ = self._linear(text, 2 * max(1, kind.groups // self.s.tp) * dim, self.h)
        flops = 4.0 * self.tokens * TEXT * heads * dim
        attention = partial(self.k.attention, sequence=TEXT, head_dim=dim, value_dim=dim, heads=heads * self.s.mbs)
        f2, b2 = attention(flops=flops, backward=False), attention(flops=2.5 * flops, backward=True)
        f3, b3, _ = self._output(kind, heads * dim)
        return f0 + f1 + f2 + f3, b0 + b1 + b2 + b3

    def _latent(self, heads: int) -> _Inputs:
        """MLA: down to low-rank queries and keys, still split over the sequence, and up to every head's."""
        a, t = self.arch, self.tokens
        rope, value, kv_rank = a.qk_pos_emb_head_dim or 0, a.v_head_dim or 0, a.kv_lora_rank or 0
        qk = (a.qk_head_dim or 0) + rope
        # Each of the two that read the hidden state quantises it, and autograd adds their gradients of it.
        f0, b0, n0 = self._linear(self.region, kv_rank + rope, self.h)
        b0 += self.k.stream(6.0 * self.region * self.h)
        source = self.h
        if a.q_lora_rank:
            source = a.q_lora_rank
            down = self._linear(self.region, source, self.h)
            f0, b0, n0 = f0 + down[0], b0 + down[1], n0 + down[2]
        f1, b1, n1 = self._linear(t, heads * qk, source, side="norm" if a.q_lora_rank else "column")
        f2, b2, n2 = self._linear(t, heads * ((a.qk_head_dim or 0) + value), kv_rank, side="norm")
        # The norms in front of the projections up, over what a rank holds of the sequence; what cuts keys from the compressed vectors
        # is a view, and its gradient a copy.
        normed = self.region * (kv_rank + (a.q_lora_rank or 0))
        norms = self.k.stream(4.0 * self.fused * normed, kernels=2)
        back = self.k.stream(8.0 * self.fused * normed + 4.0 * self.region * (kv_rank + rope), kernels=3)
        rotate, turned, n3 = self._joined(t, heads, qk - rope, rope, value)
        up = f1 + f2 + norms + rotate
        # Sparse attention works on the compressed vectors.
        sparse = a.experimental_attention_variant == "dsa"
        return _Inputs(
            forward=f0 + up, backward=b0 + b1 + b2 + back + turned, up=up,
            kernels=float(n0 + n1 + n2 + n3), qk=qk, value=value,
            kv_elements=kv_rank + rope if sparse else heads * (qk + value),
        )  # fmt: skip

    def _joined(self, t: float, heads: int, plain: int, rope: int, value: int) -> tuple[float, float, int]:
        """MLA's queries, keys and values made of what the projections up give, of `plain` elements a head and `rope` that are rotated:
        seconds forward and backward, and forward kernels (Megatron-Core transformer/multi_latent_attention.py,
        `qkv_up_proj_and_rope_apply`; the same test counts them)."""
        if rotated_in_one(self.arch, self.o.features):
            # Queries are rotated in place; keys and values are read once and written apart (fusions/fused_mla_yarn_rope_apply.py).
            both = self.k.stream(t * heads * (4.0 * (plain + value) + 6.0 * rope), kernels=2)
            return both, both, 4
        forward, backward = LATENT_ROTATION
        rotated = t * (heads + 1) * rope  # the positional part of the keys is one for all heads
        # Both are joined of their parts, values copied out; going back gradients are joined in turn, and those of that part summed.
        joined = t * heads * (8.0 * plain + 6.0 * rope + 4.0 * value)
        return (
            self.k.stream(forward * rotated + joined, kernels=29),
            self.k.stream(backward * rotated + joined, kernels=29),
            31,
        )

    def _compressed(self, kind: LayerKind, heads: int) -> _Inputs:
        """DeepSeek-V4: one key that is its own value, low-rank queries, and beside the key compressed ones."""
        a, t, dim = self.arch, self.tokens, kind.head_dim
        rank = a.q_lora_rank or self.h
        f0, b0, n0 = self._linear(self.region, rank + dim, self.h)
        f1, b1, n1 = self._linear(t, heads * dim, rank)
        if kind.compress:
            # Keys and gates that are compressed; at a ratio of 4 twice as wide, and once more for the indexer.
            wide = 2 * dim * (2 if kind.compress == 4 else 1)
            index = (a.dsa_indexer_n_heads or 0) * (a.dsa_indexer_head_dim or 0)
            if kind.compress == 4:
                wide += 4 * (a.dsa_indexer_head_dim or 0)
                f2, b2, n2 = self._linear(t, index, rank)
                f1, b1, n1 = f1 + f2, b1 + b2, n1 + n2
            f2, b2, n2 = self._linear(self.region, wide, self.h)
            f1, b1, n1 = f1 + f2, b1 + b2, n1 + n2
        glue = self.k.stream(t * heads * dim * 8.0 * self.fused, kernels=6)
        up = f1 + glue
        return _Inputs(
            forward=f0 + up, backward=b0 + (b1 + 1.3 * glue), up=up,
            kernels=float(n0 + n1 + 12), qk=dim, value=dim, kv_elements=2 * dim,
        )  # fmt: skip

    def _output(self, kind: LayerKind, width: int) -> tuple[float, float, int]:
        """The projection of `width` elements of attention's output back to the model: seconds, and forward kernels."""
        a, t, tp = self.arch, self.tokens, self.s.tp
        if kind.mixer != "csa" or not (a.o_groups and a.o_lora_rank):
            return self._linear(t, self.h, width, module="linear_proj", side="row")
        # In two stages: every group of heads to its own rank, then all to the model.
        f3, b3, n3 = self._linear(t, a.o_lora_rank, max(1, width * tp // a.o_groups), groups=max(1, a.o_groups // tp))
        f4, b4, n4 = self._linear(t, self.h, max(1, a.o_groups * a.o_lora_rank // tp))
        return f3 + f4, b3 + b4, n3 + n4

    def _core(self, kind: LayerKind, heads: int, qk: int, value: int) -> tuple[float, float]:
        """Core attention over this rank's share of the sequence, causal; what chooses its keys comes on top."""
        if not self.software.fused_attention:
            return self._unfused(heads, qk)
        seq, rows = self.o.recipe.seq_length, self.s.mbs * self.seq
        seen = self._seen(kind)
        reach = 2 * seen
        windowed = kind.window is not None and kind.window < seq and kind.mixer != "csa"
        if windowed:
            seen, reach = min(seen + self.k.window_edge(qk, seq, self.s.mbs * heads), seq / 2.0), seq
        each = 2.0 * rows * heads * (qk + value)  # FLOPs forward for a key that every query sees
        # A rank of a ring attends to one block at a time; where heads are exchanged, to the whole with a part of the heads.
        ring, beside = self._ring()
        span, together = int(min(seq // ring, reach)), max(1, self.s.mbs * heads // beside)
        fmt = "bf16"
        if self.o.features.fp8_attention and self.o.narrow in LOW:
            fmt = "mx" if self.o.narrow == "mx" else "fp8"
        # In FP8 a window saves nothing backward: GPT-OSS with 128 keys takes as long as with all (cudnn-frontend, cuDNN 9.22).
        back = seq / 2.0 if windowed and fmt != "bf16" else seen
        whole = ring > 1 or self.arch.kind == "diffusion"  # of the blocks of a ring all but one
        attention = partial(
            self.k.attention, sequence=span, head_dim=qk, value_dim=value, heads=together, fmt=fmt, whole=whole
        )
        f, b = attention(flops=each * seen, backward=False), attention(flops=2.5 * each * back, backward=True)
        if self.software.first_flash:
            f, b = FIRST_FLASH * f, FIRST_FLASH * b
        if fmt != "bf16":
            cast = self._cast_for_attention(kind, heads, qk, value)
            f, b = f + cast[0], b + cast[1]
        choosing = self._choosing(kind)
        return f + choosing, b + 2.0 * choosing

    def _cast_for_attention(self, kind: LayerKind, heads: int, qk: int, value: int) -> tuple[float, float]:
        """Seconds forward and backward of what stands around attention in FP8, whose layers are in 16 bits: queries, keys and values are
        quantised, and the gradient of the output; with delayed scaling the output and three gradients come back in FP8 (Transformer
        Engine, dot_product_attention/backends.py: `combine_and_quantize`, `out_.dequantize`, `combine_and_dequantize`)."""
        groups = max(1, kind.groups // self.s.tp) if kind.mixer == "attention" else heads
        rows, precision = self.s.mbs * self.seq, self.o.recipe.precision
        given, out = rows * (heads * qk + groups * (qk + value)), rows * heads * value
        into = quantised_bytes(precision, "", frozen=self.o.narrow != "mx")
        back = CAST_BACK if precision == "fp8ds" else 0.0
        kernels = QUANTISE_KERNELS.get(precision, 1) + (1 if back else 0)
        return (
            self.k.stream(into * given + back * out, kernels=kernels),
            self.k.stream(into * out + back * given, kernels=kernels),
        )

    def _seen(self, kind: LayerKind) -> float:
        """Keys that a query attends to: half of all on average under a causal mask; a diffusion transformer has none."""
        a, seq = self.arch, self.o.recipe.seq_length
        seen = float(seq) if a.kind == "diffusion" else seq / 2.0
        if kind.window is not None and kind.window < seq:
            seen = kind.window * (1 - kind.window / (2.0 * seq))
        if kind.mixer == "csa" and kind.compress:
            there = seq // (2 * kind.compress)
            seen += min(a.dsa_indexer_topk or seq, there) if kind.compress == 4 else there
        if kind.mixer == "mla" and a.experimental_attention_variant == "dsa" and a.dsa_indexer_topk:
            seen = min(seen, float(a.dsa_indexer_topk))
        return seen

    def _choosing(self, kind: LayerKind) -> float:
        """Seconds forward of the indexer that scores all keys for sparse attention; 0 in layers without one."""
        a, rows = self.arch, self.s.mbs * self.seq
        if not (kind.indexer or (kind.mixer == "csa" and kind.compress == 4)) or not a.dsa_indexer_n_heads:
            return 0.0
        n, d = a.dsa_indexer_n_heads, a.dsa_indexer_head_dim or 0
        keys = self.o.recipe.seq_length / 2.0 / max(1, kind.compress)
        products = 2.0 * rows * keys * n * d / (self.k.attention_peak * 0.3)
        return products + self.k.stream(rows * keys * 8.0, kernels=4)

    def _unfused(self, heads: int, dim: int) -> tuple[float, float]:
        """Attention whose scores go through memory: batched products, scale-mask-softmax and dropout kernels.

        Bytes a score: products write and read it in 16 bits, softmax and dropout read and write it, masks are a byte.
        """
        s, batch = self.o.recipe.seq_length, self.s.mbs * heads
        scores = float(batch) * s * s
        # Rows of operands that are no multiple of 16 bytes keep batched products off the tensor cores.
        wide = self.o.wide if dim % 8 == 0 else "vector"
        products = sum(self.k.gemm(s, n, k, wide, groups=batch, fused=True) for n, k in ((s, dim), (dim, s)))
        forward = products + self.k.stream(scores * (4.0 + 5.0), kernels=2)
        backward = 2.0 * products + self.k.stream(scores * (5.0 + 6.0), kernels=2)
        copies = self.k.stream(self.tokens * heads * dim * 16.0, kernels=4)
        # Where the fused kernel refuses, softmax runs in fp32 in five steps: convert, scale, mask, softmax, convert.
        plain = self.k.stream(scores * 32.0, kernels=UNFUSED_SOFTMAX) if self._softmax_refused(heads) else 0.0
        return forward + copies + plain, backward + copies + plain

    def _softmax_refused(self, heads: int) -> bool:
        return (self.s.mbs * heads) % self.software.softmax_batch != 0

    def _ring(self) -> tuple[int, int]:
        """Blocks of the sequence that pass round the context-parallel group, and ranks that exchange heads instead."""
        cp, kind = self.s.cp, self.s.cp_comm_type or "p2p"
        if kind == "all_gather":
            return 1, 1
        if not kind.startswith("a2a"):
            return cp, 1
        inner = cp if kind == "a2a" else min(cp, self.cp_group.inside)
        return cp // inner, inner

    def _context(self, kv_elements: int, q_width: int, core: tuple[float, float]) -> tuple[float, float]:
        """Exposed context-parallel communication of keys and values (ring), or of heads (all-to-all)."""
        cp = self.s.cp
        if cp == 1:
            return 0.0, 0.0
        links, group = self.o.links, self.cp_group
        kind = self.s.cp_comm_type or "p2p"
        kv = 2.0 * self.tokens * kv_elements
        exchange = 0.0
        if kind.startswith("a2a"):
            # Heads for sequence and back, inside the domain; what is left of the group passes keys and values round.
            cp, beside = self._ring()
            inner = group if kind == "a2a" else links.group(beside, self.s.tp)
            heads = 2.0 * self.tokens * q_width
            exchange = links.all_to_all(kv + heads, inner) + links.all_to_all(heads, inner)
            if cp == 1:
                return exchange, exchange
        if kind == "all_gather":
            one = links.gather(kv * cp, group)
            return one, 2.0 * one
        step = links.send(kv, group)
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
            heads = max(1, (a.mamba_num_heads or 0) // tp)
            dim, state = a.mamba_head_dim or 0, a.mamba_state_dim or 0
            groups = max(1, (a.mamba_num_groups or 0) // tp)
            inner, mixed = heads * dim, heads * dim + 2 * groups * state
            f0, b0, n0 = self._linear(t, inner + mixed + heads, self.h, module="in_proj", side="norm")
            chunk, passes = 256, 14.0
            # Sequence by sequence in memory for the scan, token by token around it (Megatron-Core, ssm/mamba_mixer.py: `_ssm_training`).
            turned = COPIED * t * (inner + mixed + heads) if self.s.mbs > 1 else 0.0
            back = COPIED * t * inner if self.s.mbs > 1 else 0.0
            f0, b0 = f0 + self.k.stream(turned + back, kernels=0), b0 + self.k.stream(turned, kernels=0)
        else:
            heads = max(1, (a.linear_num_value_heads or 0) // tp)
            dim, state = a.linear_value_head_dim or 0, a.linear_key_head_dim or 0
            keys = max(1, (a.linear_num_key_heads or 0) // tp)
            inner, mixed = heads * dim, heads * dim + 2 * keys * state
            f0, b0, n0 = self._linear(t, inner + mixed + 2 * heads, self.h, module="in_proj", side="norm")
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
        f1, b1, n1 = self._linear(t, self.h, inner, module="out_proj", side="row")
        norm = self._norm()
        gate = self.k.stream(t * inner * 8.0, kernels=1)
        context = self._context(0, mixed, (0.0, 0.0)) if self.s.cp > 1 else (0.0, 0.0)
        f, b = self._pair(
            (
                f0 + forward + f1 + gate + norm[0],
                b0 + backward + b1 + 2 * gate + norm[1],
            ),
            self._tp_exposed(self.h),
            n0 + n1 + 24,
        )
        return f._replace(cp=context[0]), b._replace(cp=context[1])
