"""Rotary embeddings and routers: the bytes that they move with kernels of their own and without, against Megatron Core's own functions."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from parlaunch.estimate.timing.collectives import Links
from parlaunch.estimate.timing.feedforward import FUSED_ROUTER
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.layers import Layers
from parlaunch.estimate.timing.pieces import COPIED, split_of
from parlaunch.estimate.timing.software import software_of
from parlaunch.model.architecture import Architecture
from parlaunch.model.catalog import architecture
from tests.conftest import HANGS_S, need
from tests.estimate.timing.make import dense, features, layout, rates, recipe

BRIDGE = os.environ.get("BRIDGE_PYTHON", "")
LATENT = architecture("deepseek-ai/DeepSeek-V3")
APART = (COPIED * 64, COPIED * 3 * 64)
"""Bytes forward and backward of a head of 64 that is taken out of the projection: its values, and gradients of all three (`test_moved.py`)."""


class Bytes(Kernels):
    """Kernels that take as many seconds as they move bytes; products and attention take none."""

    def gemm(self, *_: Any, **__: Any) -> float:
        return 0.0

    def attention(self, **_: Any) -> float:
        return 0.0

    def stream(self, moved: float, *, kernels: float = 1.0) -> float:
        return moved


def a_head(a: Architecture, **on: Any) -> tuple[float, float]:
    """Bytes forward and backward of one head more, a token and layer."""

    def layer(heads: int) -> tuple[float, float]:
        made = recipe(replace(a, num_attention_heads=heads, num_query_groups=heads), features=features(**on))
        machine, x = rates(), layout(world=1)
        layers = Layers(made, software_of(None), Bytes(machine), Links(machine))
        time = layers.of(split_of(x))[-1]
        return time.forward.compute, time.backward.compute

    few, many = layer(64), layer(128)
    return (many[0] - few[0]) / (64 * 4096), (many[1] - few[1]) / (64 * 4096)


@pytest.fixture(scope="module")
def counted() -> dict[str, Any]:
    """What Megatron Core of the installed Bridge moves, by its own functions on the CPU."""
    need(BRIDGE, "an environment with megatron-bridge (BRIDGE_PYTHON)")
    done = subprocess.run(
        [BRIDGE, "-W", "ignore", str(Path(__file__).parent / "megatron_plain.py")],
        capture_output=True, text=True, timeout=HANGS_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.bridge
def test_a_rotation_in_plain_torch_moves_what_megatron_core_moves(counted: dict[str, Any]) -> None:
    plain = dense(kv_channels=64)
    # A query and a key of 64 elements.
    assert a_head(plain, rope_fusion=False) == pytest.approx(
        [2 * 64 * x + apart for x, apart in zip(counted["plain"], APART, strict=True)]
    )
    for kind in ("yarn", "mrope"):  # Bridge takes the kernel back
        assert a_head(replace(plain, position_embedding_type=kind)) == a_head(plain, rope_fusion=False)


@pytest.mark.bridge
def test_queries_and_keys_of_latent_attention_are_made_as_megatron_core_makes_them(
    counted: dict[str, Any],
) -> None:
    assert a_head(LATENT, rope_fusion=False) == pytest.approx(counted["latent"])


def test_one_kernel_of_latent_attention_rotates_queries_in_place_and_reads_and_writes_keys_and_values_once() -> None:
    """Core's `rotary_fwd_q_kernel` and `rotary_fwd_kv_kernel`, and the two that go back: 128 elements a head that are not rotated, 64
    that are, values of 128."""
    queries, keys_and_values = 2 * 2 * 64, 2 * (128 + 128) + 2 * (128 + 64 + 128)
    assert a_head(LATENT) == pytest.approx((queries + keys_and_values,) * 2)


def test_one_kernel_reads_and_writes_what_it_rotates() -> None:
    assert a_head(dense(kv_channels=64)) == pytest.approx((2 * 64 * 4.0 + APART[0], 2 * 64 * 4.0 * 1.3 + APART[1]))


def test_latent_queries_and_keys_are_projected_down_one_by_one() -> None:
    """Core's `_qkv_down_projection`, and the sum of two gradients of the hidden state; without low-rank queries their projection reads it."""

    class Products(Bytes):
        def gemm(self, m: int, n: int, k: int, *_: Any, **__: Any) -> float:
            asked.append((n, k))
            return 0.0

    def layer(a: Architecture) -> float:
        made = recipe(a)
        layers = Layers(made, software_of(None), Products(rates()), Links(rates()))
        return layers.of(split_of(layout(world=1)))[-1].backward.compute

    asked: list[tuple[int, int]] = []
    layer(LATENT)
    assert {(1536, 7168), (512 + 64, 7168), (128 * 192, 1536), (128 * 256, 512)} <= set(asked)
    asked.clear()
    layer(replace(LATENT, q_lora_rank=None))
    assert {(512 + 64, 7168), (128 * 192, 7168)} <= set(asked)


def test_norms_of_what_latent_attention_compresses_move_4_bytes_an_element_and_8_going_back() -> None:
    """Of keys 4 more: what cuts them from the rotated part is a view, and its gradient a copy."""

    def layer(**ranks: Any) -> tuple[float, float]:
        layers = Layers(recipe(replace(LATENT, **ranks)), software_of(None), Bytes(rates()), Links(rates()))
        time = layers.of(split_of(layout(world=1)))[-1]
        return time.forward.compute, time.backward.compute

    for name, more in (("q_lora_rank", 0.0), ("kv_lora_rank", 4.0)):
        few, many = layer(**{name: 512}), layer(**{name: 1024})
        assert [(b - a) / (512 * 4096) for a, b in zip(few, many, strict=True)] == pytest.approx([4.0, 8.0 + more])


@pytest.mark.bridge
@pytest.mark.parametrize(
    ("kind", "traits"),
    [
        ("biased", {"moe_router_enable_expert_bias": True, "moe_router_num_groups": 8, "moe_router_group_topk": 4}),
        ("grouped", {"moe_router_enable_expert_bias": False, "moe_router_num_groups": 8, "moe_router_group_topk": 3}),
        (
            "plain",
            {"moe_router_enable_expert_bias": False, "moe_router_num_groups": None, "moe_router_group_topk": None},
        ),
    ],
)
def test_a_router_in_plain_torch_moves_what_megatron_core_moves(
    kind: str, traits: dict[str, Any], counted: dict[str, Any]
) -> None:
    def an_expert(**on: Any) -> list[float]:
        """Bytes forward and backward of one expert more, a token."""
        few, many = (layer(experts, **on) for experts in (128, 256))
        return [(b - a) / (128 * 4096) for a, b in zip(few, many, strict=True)]

    def layer(experts: int, **on: Any) -> tuple[float, float]:
        graphed = features(force_balance=True, cuda_graph="full_iteration", **on)  # launches are no bytes
        made = recipe(replace(LATENT, num_moe_experts=experts, moe_router_topk=8, **traits), features=graphed)
        time = Layers(made, software_of(None), Bytes(rates()), Links(rates())).of(split_of(layout(world=1)))[-1]
        return time.forward.compute, time.backward.compute

    beyond = [plain - fused for plain, fused in zip(an_expert(router_fusion=False), an_expert(), strict=True)]
    assert beyond == pytest.approx(
        [x - y for x, y in zip(counted["routers"][kind], FUSED_ROUTER, strict=False)], abs=0.5
    )
