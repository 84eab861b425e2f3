"""Layers that mix tokens: attention in its kinds, fused or not, context parallelism around it, and scans."""

from __future__ import annotations

from parlaunch.architecture import LayerKind
from parlaunch.timing.pieces import Cost, Pieces

UNFUSED_SOFTMAX = 12
"""Kernels of a softmax in plain PyTorch, with its conversions, mask and scale."""


class Mixers(Pieces):
    """Time of a layer's mixer, with the norm in front and the residual behind."""

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
        # Rows of operands that are no multiple of 16 bytes keep batched products off the tensor cores.
        wide = self.o.wide if dim % 8 == 0 else "vector"
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
