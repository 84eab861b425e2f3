"""Dense MLPs and mixtures of experts: router, dispatch, grouped products, shared expert."""

from __future__ import annotations

from math import comb

from parlaunch.estimate.routing import fullest
from parlaunch.estimate.timing.pieces import Cost, Pieces
from parlaunch.model.recipe import Features, activated_in_one

EP_OVERLAP = 0.93
"""Share of the expert all-to-all that hides under another micro batch's compute, as far as there is that much of it."""
EP_OVERLAP_EAGER = 0.54
"""The same where the host issues what overlaps: two micro batches' kernels in turn, with waits in between."""
UNDER = 0.46
"""Share of the work on experts and their tokens that the issuing of what follows hides under: the host gets ahead only once."""
EXPERT_KERNELS = 5.5
"""Launches for one local expert, forward: its products and splitting; what quantises comes on top, once a product and expert."""
SPLIT, LAUNCH = 0.7, 0.3
"""Of the host's time for one launch from PyTorch: what it takes to make the tensor of an expert's quantised tokens (C++ and Python objects,
a piece of an allocation), and what CUDA alone takes for a kernel (2 to 2.5 us): one call of Transformer Engine's `split_quantize` does both
for all experts (csrc/extensions/cast.cpp)."""
SPLIT_KERNELS = {"fp8cs": 4}
"""Kernels for one expert's tokens in it, where not one: with current scaling the largest value is set to zero, found, and made a scale first
(`Float8CurrentScalingQuantizer::quantize_impl`). NVFP4's work on all experts from 2.11 on (`split_quantize_nvfp4_impl`), but one stands in
front of each product. Delayed scaling has one for all experts where it transposes as well (`nvte_multi_cast_transpose`)."""
EXPERT_BIAS = (28.0, 40.0)
"""Bytes an element of the experts' output moves, forward and backward, where a bias stands behind it: weighed by the fp32 shares of
the router, added, joined and converted expert by expert (Megatron-Core transformer/moe/experts.py, `_apply_bias`)."""
CLAMPED = (16.0, 30.0)
"""Bytes an element of a gated quick-GELU's output moves beside it, forward and backward: its two inputs are clamped one after the other
and joined, and the gradients masked and joined, each by itself (Megatron-Core fusions/fused_bias_geglu.py,
`weighted_bias_quick_geglu_impl`: GPT-OSS, MiniMax-M3)."""
PLAIN_GATE = (14.0, 26.0)
"""Bytes an element of a gated activation's output, forward and backward, where no kernel does the whole (Gemma's): the activation of one
half, an offset to the other, their product; the two gradients of that, that of the activation, and both halves joined (Megatron-Core
transformer/mlp.py, `glu`)."""
PLAIN_SHARES = (12.0, 34.0)
"""The same more where the shares of the router weigh it, in float32 and back (transformer/moe/experts.py, `bias_act_func`)."""
WEIGHED = 6.0
"""Bytes an element of a gated activation's output that the gradient of its weights moves: its sum over half the columns is a kernel of its
own, which reads both inputs and the gradient again (Megatron-Core fusions/fused_bias_swiglu.py, `weighted_swiglu_back`). Without gates
it is part of the other's (fused_weighted_squared_relu.py)."""
GATED = 16.0
"""Bytes a token and hidden element of the backward pass of the router's product in 32 bits: its input is converted (6) and read as such (2),
the gradient written as such (2) and converted (6) (moe_utils.py, `RouterGatingLinearFunction`)."""
SUMMED = 6.0
"""Bytes an element of two tensors in 16 bits whose sum is a third: gradients of what goes to the router, the experts and the shared
expert; the outputs of the last two (transformer/moe/moe_layer.py)."""
IN_PRODUCTS = (2.1, 6.2)
"""Bytes an element of the activation's output that the experts' products move more where activation and quantising in MXFP8 are part of
them, forward and backward: both orientations are written; its inputs are read, and their gradients written in both (Transformer Engine
2.15, pytorch/ops/fused/forward_grouped_mlp.py and backward: `grouped_gemm_glu_kernel`, `grouped_gemm_dglu_kernel`)."""
PLAIN_ROUTER = {
    "biased": (134.0, 96.0, 32, 22), "grouped": (110.0, 49.0, 24, 9), "plain": (78.0, 28.0, 15, 8),
}  # fmt: skip
"""Bytes that scores of a token move for each expert, forward and backward, and kernels, where none does it at once: with a bias for every
expert (sigmoids, groups), with groups alone, with neither; of the choice and of the balancing loss (Megatron-Core
transformer/moe/moe_utils.py, `topk_routing_with_score_function`, `compute_routing_scores_for_aux_loss`;
tests/estimate/timing/test_plain_torch.py counts them)."""
FUSED_ROUTER = (26.0, 25.0, 2, 2)
"""The same of two kernels, each half of it (Transformer Engine, common/fused_router/fused_topk_with_score_function.cu)."""
DROPPED = 24
"""Kernels more, or passes as long as one, where tokens over the experts' capacity are dropped: each expert's most probable ones are chosen
among all, two bits of their scores after two (torch.topk's radix select), and the others' scores made 0 (transformer/moe/moe_utils.py,
`apply_router_token_dropping`). What they read is small, and stays in the cache."""
MOE_KERNELS = 370
"""Kernels of router, permutation, dispatch, combine and glue of one eager MoE layer, forward."""
SYNC = 100e-6
"""Seconds from the counts' arrival on the GPU to the first kernel that needed them: copy, wake-up, first launches."""
MOE_GRAPHED = 0.32
"""Share of an MoE layer's launches that CUDA graphs of router and preprocessing hold; what follows the token counts is eager."""

DEEPEP_SMS, DEEPEP_SMS_FAR = 470e9, 310e9
"""Bytes a second of tokens that a rank takes in over NVLink with DeepEP's 20 multiprocessors (Megatron Core's own number), from up to
16 ranks and from more: less than the links of Blackwell allow. 16 bits, dispatch and combine, what 16, 24 and 32 of them took less
what does not depend on their number, B200 and GB200 (DeepEP, docs/README_Hybrid-EP.md). HybridEP's copies fill the links there."""


class FeedForward(Pieces):
    """Time of a layer's MLP, with the norm in front and the residual behind."""

    def _activation(self, elements: float, *, weighed: bool = False) -> tuple[float, float]:
        """Activation over the output of a first layer `elements` wide after gating; gated ones read two halves. `weighed`: by the shares
        of the router, as the experts' are."""
        gated = self.arch.gated_linear_unit
        if gated and not activated_in_one(self.arch, self.o.features):
            plain = [a + (b if weighed else 0.0) for a, b in zip(PLAIN_GATE, PLAIN_SHARES, strict=True)]
            return self.k.stream(plain[0] * elements, kernels=5), self.k.stream(plain[1] * elements, kernels=9)
        forward, backward = (
            elements * (6.0 if gated else 4.0) * self.fused,
            elements * ((10.0 + (WEIGHED if weighed else 0.0)) if gated else 6.0) * self.fused,
        )
        if not gated or self.arch.activation_func != "quick_gelu" or self.o.features.paged_stash:
            return self.k.stream(forward), self.k.stream(backward)
        return (
            self.k.stream(forward + CLAMPED[0] * elements, kernels=4),
            self.k.stream(backward + CLAMPED[1] * elements, kernels=8),
        )

    def mlp(self) -> tuple[Cost, Cost]:
        """A dense MLP: forward and backward."""
        a, t = self.arch, self.tokens
        width = max(1, a.ffn_hidden_size // self.s.tp)
        f0, b0, n0 = self._linear(
            t, width * (2 if a.gated_linear_unit else 1), self.h, module="linear_fc1", side="norm"
        )
        f1, b1, n1 = self._linear(t, self.h, width, module="linear_fc2", side="row")
        act, norm = self._activation(t * width), self._norm()
        compute = (f0 + f1 + act[0] + norm[0], b0 + b1 + act[1] + norm[1])
        return self._pair(compute, self._tp_exposed(self.h, pair=("linear_fc1", "linear_fc2")), n0 + n1 + 5)

    def moe(self) -> tuple[Cost, Cost, Cost, Cost, Cost]:
        """Router, dispatch, grouped experts, combine, shared expert: forward, backward, activation, shared expert, and of the forward
        pass what stays away where it is repeated: launches that the GPU waits for, and does not where its backward pass follows."""
        a, s = self.arch, self.s
        experts = a.num_moe_experts or 1
        local = max(1, experts // s.ep)
        topk = a.moe_router_topk
        gated = 2 if a.gated_linear_unit else 1
        width = max(1, (a.moe_ffn_hidden_size or a.ffn_hidden_size) // s.etp)
        own = self.tokens / s.tp  # tokens this rank routes: sequence parallelism is compulsory with TP
        inner = a.moe_latent_size or self.h
        routed = own * topk * s.etp  # tokens that reach this rank's experts when the router is balanced
        even = self.o.features.expert_capacity or float(self.o.features.force_balance)
        imbalance = even or fullest(experts, topk, own * s.ep * s.etp, s.ep, self.o.recipe.seq_length)
        each = routed * imbalance / local
        one = self.o.features.paged_stash and self.o.narrow == "mx" and a.gated_linear_unit
        sides = ("first", "second") if one else ("", "")
        f0, b0, n0 = self._linear(each, width * gated, inner, groups=local, module="linear_fc1", side=sides[0])
        f1, b1, n1 = self._linear(each, inner, width, groups=local, module="linear_fc2", side=sides[1])
        act = self._activation(routed * imbalance * width, weighed=True)
        if one:
            between = routed * imbalance * width
            act = (
                self.k.stream(between * IN_PRODUCTS[0], kernels=0),
                self.k.stream(between * IN_PRODUCTS[1], kernels=0),
            )
        router = self.k.gemm(max(1, round(own)), experts, self.h, self.o.wide)
        dispatcher = self.o.features.dispatcher or "alltoall"
        *route, plain = self._route(own, experts, dispatcher)
        permute = self._permuted(own, topk, routed * imbalance, local, inner, dispatcher)
        latent = latent_up = (0.0, 0.0, 0)
        if a.moe_latent_size:
            latent = self._linear(own, inner, self.h, module="fc1_latent_proj")
            latent_up = self._linear(own, self.h, inner, module="fc2_latent_proj")
        norm = self._norm()
        bias = self._expert_bias(routed * imbalance * inner, local)
        shared_width = (a.moe_shared_expert_intermediate_size or 0) // s.tp
        shared: tuple[float, float] = (0.0, 0.0)
        shared_tp: tuple[float, float] = (0.0, 0.0)
        shared_kernels = 0
        if shared_width:
            sf0, sb0, sn0 = self._linear(self.tokens, shared_width * gated, self.h, module="linear_fc1", side="column")
            sf1, sb1, sn1 = self._linear(self.tokens, self.h, shared_width, module="linear_fc2", side="row")
            sact = self._activation(self.tokens * shared_width)
            shared = (sf0 + sf1 + sact[0], sb0 + sb1 + sact[1])
            shared_tp = self._tp_exposed(self.h, pair=("linear_fc1", "linear_fc2"))
            shared_kernels = sn0 + sn1 + 4
            joined = self.k.stream(SUMMED * own * self.h)
            route = [route[0] + joined, route[1] + joined]
        forward = f0 + f1 + act[0] + router + route[0] + 2 * permute + latent[0] + latent_up[0]
        forward += norm[0] + shared[0] + bias[0]
        backward = b0 + b1 + act[1] + 2 * router + route[1] + 2 * permute + latent[1] + latent_up[1]
        backward += norm[1] + shared[1] + bias[1]
        held = awaiting(self.o.features)
        ep = 2.0 * self._dispatch(own, topk, inner, dispatcher)
        if s.etp > 1:
            gather = self.o.links.gather(2.0 * own * s.etp * topk * inner, self.etp_group)
            ep += 2.0 * gather
        ep *= imbalance  # the fullest rank also receives the most
        # Grouped products are issued expert by expert, their operands quantised together.
        eager = n0 + n1 + bias[2] + plain + MOE_KERNELS + (EXPERT_KERNELS + 2 * self._split_launches()) * local
        eager *= self.host
        # Dropless routing: going forward, the host waits for the number of tokens of each expert before it can issue them. The
        # queue has run dry by then; what no graph holds is issued while the GPU sends tokens and works on experts, and stands
        # free as far as that is shorter. Going backward the numbers are known.
        under = f0 + f1 + act[0] + 2 * permute + (1.0 - ep_overlap(self.o.features)) * ep
        late = max(0.0, held * eager - UNDER * under)
        wait = held * SYNC + late
        host = eager + shared_kernels * self.host
        return (
            Cost(forward + wait, shared_tp[0], ep=ep, host=host),
            Cost(backward, shared_tp[1], ep=ep, host=1.5 * host),
            Cost(act[0], host=self.host),
            Cost(shared[0], shared_tp[0], host=shared_kernels * self.host),
            Cost(late),
        )

    def _split_launches(self) -> float:
        """Launches from PyTorch that take the host as long as quantising one expert's tokens."""
        if not self.quantised:
            return 0.0
        precision = self.o.recipe.precision
        together = precision == "fp8ds" and self.turns
        return SPLIT + (0.0 if together else LAUNCH * SPLIT_KERNELS.get(precision, 1))

    def _route(self, own: float, experts: int, dispatcher: str) -> tuple[float, float, int]:
        """What the router does beside its product for so many tokens, forward and backward, and forward kernels beyond those of one that is
        fused.

        Bytes a token and expert, in 32 bits: the product's own result (2), scores and the largest of them with the same for the auxiliary
        loss (`FUSED_ROUTER`, or `PLAIN_ROUTER`), its sums (5; 4), two gradients that are one (12), that of the shares, laid out again
        (4). Where each copy goes is counted, numbered and sorted by expert (26: common/triton/permutation.py,
        `_row_id_map_pass_1_kernel` to `3`); with HybridEP the dispatcher does. Benchmarks replace the logits by random ones (12:
        Megatron-Core transformer/moe/moe_utils.py, `RandomSTE`)."""
        a = self.arch
        kind = "biased" if a.moe_router_enable_expert_bias else "grouped" if a.moe_router_group_topk else "plain"
        scores = FUSED_ROUTER if self.o.features.router_fusion else PLAIN_ROUTER[kind]
        forward, backward = 2.0 + scores[0] + 5.0, scores[1] + 4.0 + 12.0 + 4.0
        forward += 26.0 if dispatcher != "hybridep" else 0.0
        forward += 12.0 if self.o.features.force_balance else 0.0
        drops = DROPPED if self.o.features.expert_capacity else 0
        return (
            self.k.stream(own * experts * forward, kernels=6 + scores[2] + drops),
            self.k.stream(own * (experts * backward + self.h * (GATED + SUMMED)), kernels=6 + scores[3]),
            scores[2] - FUSED_ROUTER[2] + drops,
        )

    def _permuted(self, own: float, topk: int, routed: float, local: int, width: int, dispatcher: str) -> float:
        """Seconds in which tokens are laid out by expert in front of the experts, or back behind them: each copy is read and written."""
        if dispatcher == "alltoall":
            # In front of the exchange a token becomes a copy for each of its experts; behind it they are sorted by expert, where a rank
            # has several (Megatron-Core, transformer/moe/token_dispatcher.py: `permute`, `sort_chunks_by_idxs`).
            rows, kernels = own * (1 + topk) + (2.0 * routed if local > 1 else 0.0), 8
            if self.quantised and not self.o.features.router_padding:
                # Filled up to whole blocks of rows (transformer/moe/experts.py: `quantization_padding`).
                rows += 2.0 * routed
        else:
            # A token comes once to a rank that has some of its experts, and becomes a copy for each of those.
            rows, kernels = own * self.s.etp * self._wanted(topk) + routed, 2
        return self.k.stream(2.0 * width * rows, kernels=kernels)

    def _wanted(self, topk: int) -> float:
        """Expert-parallel ranks that a token goes to, on average."""
        n = self.ep_group.size
        return n * (1.0 - (1.0 - 1.0 / n) ** topk)

    def _expert_bias(self, elements: float, local: int) -> tuple[float, float, int]:
        """The bias behind the experts, over `elements` of their output: seconds forward and backward, and forward kernels; nothing where
        the experts are one operation, which adds it to its product."""
        if not self.arch.add_bias_linear or self.o.features.paged_stash:
            return 0.0, 0.0, 0
        forward, backward = EXPERT_BIAS
        kernels = 2 * local + 2
        return (
            self.k.stream(forward * elements, kernels=kernels),
            self.k.stream(backward * elements, kernels=5 * local + 1),
            kernels,
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
        ranks = self._wanted(topk)
        most = DEEPEP_SMS if group.inside <= 16 else DEEPEP_SMS_FAR
        domains = n / group.inside
        wanted = min(
            domains * (1.0 - (1.0 - 1.0 / domains) ** topk),
            group_limited(domains, self.arch.moe_router_num_groups or 1, self.arch.moe_router_group_topk or 0),
        )
        return links.dispatch(
            own * token * ranks, own * token * wanted, group, most if dispatcher == "deepep" else None
        )


def awaiting(features: Features) -> float:
    """Share of an MoE layer's launches that wait for the experts' numbers of tokens: those that no CUDA graph holds, and none where
    every expert takes as many as any (Megatron-Core transformer/moe/token_dispatcher.py, `drop_and_pad`)."""
    graph, scope = features.cuda_graph, features.cuda_graph_scope
    if features.expert_capacity:
        return 0.0
    if graph is None:
        return 1.0
    if graph == "full_iteration":
        return 0.0
    return 1.0 - MOE_GRAPHED if not scope or {"moe_router", "moe_preprocess"} <= set(scope) else 1.0


def ep_overlap(features: Features) -> float:
    """Share of the expert all-to-all that hides in steps which run one micro batch forward beside another backward."""
    if not features.ep_overlap:
        return 0.0
    return EP_OVERLAP_EAGER if awaiting(features) else EP_OVERLAP


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
