"""Dense MLPs and mixtures of experts: router, dispatch, grouped products, shared expert."""

from __future__ import annotations

from math import comb

from parlaunch.timing.pieces import Cost, Pieces

EP_OVERLAP = 0.80
"""Share of the expert all-to-all that hides under another micro batch's compute."""
MOE_KERNELS = 180
"""Kernels of router, permutation, dispatch, combine and glue of one eager MoE layer, forward."""
MOE_GRAPHED = 0.25
"""Share of an MoE layer's launches that CUDA graphs of router and preprocessing hold; what follows the token counts is eager."""


class FeedForward(Pieces):
    """Time of a layer's MLP, with the norm in front and the residual behind."""

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
        eager = (n0 + n1 + MOE_KERNELS + 2 * local) * self.host
        # Dropless routing: the host waits for the number of tokens of each expert before it can issue them, the queue runs
        # dry, and the time to issue what no graph holds stands free.
        wait = self._eager_share() * eager
        host = eager + shared_kernels * self.host
        return (
            (forward + wait, shared_tp[0], 0.0, ep, host),
            (backward + 1.5 * wait, shared_tp[1], 0.0, ep, 1.5 * host),
            (act[0], 0.0, 0.0, 0.0, self.host),
            (shared[0], shared_tp[0], 0.0, 0.0, shared_kernels * self.host),
        )

    def _eager_share(self) -> float:
        """Share of an MoE layer's launches that no CUDA graph holds."""
        graph, scope = self.o.features.cuda_graph, self.o.features.cuda_graph_scope
        if graph is None:
            return 1.0
        if graph == "full_iteration":
            return 0.0
        return 1.0 - MOE_GRAPHED if not scope or {"moe_router", "moe_preprocess"} <= set(scope) else 1.0

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
        wanted = min(
            domains * (1.0 - (1.0 - 1.0 / domains) ** topk),
            group_limited(domains, self.arch.moe_router_num_groups or 1, self.arch.moe_router_group_topk or 0),
        )
        far = own * token * wanted * (domains - 1) / domains / (links.fabric * 0.97)
        return max(near, far) + 40e-6


def group_limited(domains: float, groups: int, chosen: int) -> float:
    """Domains, on average, that hold one of the `chosen` groups of experts that a token may use, of `groups` laid evenly over
    all `domains`: routers that are limited to groups send a token to fewer nodes (DeepSeek-V2, arXiv:2405.04434)."""
    if not chosen or groups == 1:
        return domains
    if domains >= groups:
        return domains * chosen / groups
    # Several groups share a domain: it is missed when all chosen ones stand elsewhere.
    elsewhere = groups - round(groups / domains)
    return domains * (1.0 - comb(elsewhere, chosen) / comb(groups, chosen))
