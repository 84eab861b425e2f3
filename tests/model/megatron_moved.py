"""Bytes that Megatron Core's own modules move beside their products, where no kernel of Transformer Engine fuses them.

    python tests/model/megatron_moved.py      one JSON object

Runs pieces of a layer on the CPU in bfloat16, forward and backward, under a mode that adds up what each operator reads and writes.
"""

# ruff: noqa: E402  # torch and Megatron are imported once they can be

from __future__ import annotations

import json
import os
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # what is compiled, as plain Python

from parlaunch_launch.cpu.bridge_runner import importable

importable()

import megatron_saved as saved  # type: ignore[import-not-found]
import megatron_shards as shards  # type: ignore[import-not-found]
import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.fusions.fused_bias_geglu import weighted_bias_quick_geglu_impl
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.tensor_parallel import random
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.transformer_block import TransformerBlock
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

TOKENS, HIDDEN = 64, 256
COPIES, PRODUCTS, SUMS = ("clone", "cat", "_to_copy", "copy_"), ("mm",), ("add", "add_")


class Moved(TorchDispatchMode):  # type: ignore[misc]
    """Bytes by operator, and operators, of tensors of at least `least` elements; views move none."""

    def __init__(self, least: int = 0) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.kernels: Counter[str] = Counter()
        self.least = least

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            name = func.overloadpacket.__name__
            for t in (tensors := [t for t in tree_leaves((args, kwargs, out)) if self.counts(t)]):
                self.bytes[name] += t.numel() * t.element_size()
            self.kernels[name] += bool(tensors)
        return out

    def counts(self, t: Any) -> bool:
        return isinstance(t, torch.Tensor) and t.numel() >= self.least

    def of(self, names: tuple[str, ...]) -> int:
        return sum(self.bytes[name] for name in names)


def both(run: Any, least: int = 0) -> tuple[Moved, Moved]:
    """What `run` moves, and what the backward pass of its results does."""
    with Moved(least) as forward:
        results = run()
    given = [torch.ones_like(r) for r in results]
    with Moved(least) as backward:
        torch.autograd.backward(results, given)
    return forward, backward


class Projected(torch.nn.Module):  # type: ignore[misc]
    """A projection that is there already."""

    def forward(self, x: Any) -> Any:
        return x, None


class Norm(torch.nn.Module):  # type: ignore[misc]
    """One product in place of a norm, of which no part is a sum of two tensors."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=torch.bfloat16))

    def forward(self, x: Any) -> Any:
        return x * self.weight


class Attention(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def forward(self, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> Any:
        return (q * k * v).reshape(*q.shape[:2], -1)


def taken_apart(heads: int, groups: int, size: int) -> tuple[int, int]:
    """Copies of queries, keys and values out of their projection: queries by Core, values in front of attention, by it; joined again."""
    mixed = torch.randn(TOKENS, 1, (heads + 2 * groups) * size, dtype=torch.bfloat16, requires_grad=True)
    attention: Any = SimpleNamespace(
        linear_qkv=Projected(), num_attention_heads_per_partition=heads, num_query_groups_per_partition=groups,
        hidden_size_per_attention_head=size, config=SimpleNamespace(num_query_groups=groups, test_mode=False), world_size=1,
        q_layernorm=None, k_layernorm=None,
    )  # fmt: skip

    def run() -> Any:
        query, key, value = SelfAttention.get_query_key_value_tensors(attention, mixed)
        return query, key, value.contiguous()

    forward, backward = both(run)
    return forward.of(COPIES), backward.of(COPIES)


def unjoined(*, weighed: bool) -> tuple[int, int]:
    """What a gated activation without a kernel of the whole moves, `weighed` in 32 bits or not; its own function is compiled, as torch's is
    one kernel."""
    x = torch.randn(TOKENS, 2 * HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    tanh = partial(torch.nn.functional.gelu, approximate="tanh")
    config: Any = SimpleNamespace(
        use_te_activation_func=False, bias_activation_fusion=False, gated_linear_unit=True, activation_func=tanh,
        activation_func_clamp_value=None, glu_linear_offset=0.0,
    )  # fmt: skip
    mlp: Any = SimpleNamespace(config=config, activation_func=tanh, linear_fc1=Projected(), linear_fc2=Projected())
    shares = torch.ones(TOKENS, requires_grad=True) if weighed else None
    forward, backward = both(lambda: [MLP.forward(mlp, x, shares)[0]], TOKENS * HIDDEN)
    return sum(forward.bytes.values()), sum(backward.bytes.values())


def clamped() -> list[tuple[int, int]]:
    """What clamping both halves of a gated quick-GELU's input moves, and its kernels, forward and backward."""
    x = torch.randn(TOKENS, 2 * HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    shares = torch.ones(TOKENS, 1, requires_grad=True)
    run = partial(weighted_bias_quick_geglu_impl, x, None, shares, fp8_input_store=False, linear_offset=1.0)
    passes = zip(
        both(lambda: [run(clamp_value=7.0)], TOKENS * HIDDEN), both(lambda: [run()], TOKENS * HIDDEN), strict=True
    )
    return [((on.bytes - off.bytes).total(), (on.kernels - off.kernels).total()) for on, off in passes]


def gated(dtype: Any) -> int:
    """What the router's product moves backward of its tokens."""
    x = torch.randn(TOKENS, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(4, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    _, backward = both(lambda: [moe_utils.router_gating_linear(x, weight, None, dtype)], TOKENS * HIDDEN)
    return backward.of(COPIES + PRODUCTS)


def summed(**model: Any) -> tuple[int, int]:
    """What sums of two tensors of the hidden size move in a layer of experts, its two residuals' included, which Core compiles."""
    sizes = {"num_layers": 1, "hidden_size": HIDDEN, "num_attention_heads": 4, "ffn_hidden_size": 64}
    experts = {
        "num_moe_experts": 4,
        "moe_ffn_hidden_size": 64,
        "moe_router_topk": 2,
        "moe_token_dispatcher_type": "alltoall",
    }
    config = shards.config_of(
        {"bf16": True, "params_dtype": torch.bfloat16, "gated_linear_unit": True} | sizes | experts | model
    )
    config.use_cpu_initialization = True
    spec = shards.with_stand_ins(get_gpt_decoder_block_spec(config, use_transformer_engine=False))
    block = TransformerBlock(config, spec, post_process=False).train().to(torch.bfloat16)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(TOKENS, 1, HIDDEN, dtype=torch.bfloat16, requires_grad=True)
    forward, backward = both(lambda: [block(x, None)], TOKENS * HIDDEN)
    return forward.of(SUMS), backward.of(SUMS)


def main() -> None:
    saved.alike()
    shards.Norm, shards.Attention = Norm, Attention
    torch.cuda.current_device = lambda: saved.CPU
    torch.cuda.Stream = torch.cuda.current_stream = saved.NoStream
    saved.CudaMeansCpu().__enter__()
    random.initialize_rng_tracker(inference_rng_tracker=True)
    moe_utils.te_general_gemm = None
    dist.init_process_group("fake", store=saved.FakeStore(), rank=0, world_size=1)
    mpu.initialize_model_parallel(create_gloo_process_groups=False)
    print(
        json.dumps(
            {
                "grouped": taken_apart(8, 2, 32),
                "alone": taken_apart(8, 8, 32),
                "unjoined": unjoined(weighed=False),
                "weighed": unjoined(weighed=True),
                "clamped": clamped(),
                "router": gated(torch.float32) - gated(torch.bfloat16),
                "experts": summed(),
                "shared": summed(moe_shared_expert_intermediate_size=64),
            }
        )
    )


if __name__ == "__main__":
    main()
