"""One matrix product in each format, to be timed: by torch, or by Transformer Engine as training has it. What neither multiplies here is
refused, never multiplied in another format.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from parlaunch.errors import ParlaunchError

WIDE = {"bf16": "bfloat16", "fp16": "float16"}
"""Formats that torch multiplies everywhere, by its names for them."""
NARROW = ("fp8", "block", "mx", "fp4")


def product(
    torch: Any, device: str, m: int, n: int, k: int, fmt: str, *, accumulate: bool = False
) -> Callable[[], object]:
    """[m, k] by [k, n] of random operands (zeros draw no power) that are quantised already. `accumulate`: added to fp32 memory.

    Raises what torch or Transformer Engine do where this GPU has no such product, and `ParlaunchError` where they are not asked.
    """
    if fmt in WIDE:
        return _wide(torch, device, (m, n, k), getattr(torch, WIDE[fmt]), accumulate=accumulate)
    if fmt not in NARROW:
        raise ParlaunchError("a machine file has no value for them")
    if fmt == "fp8" and not accumulate:
        return _scaled(torch, device, m, n, k)
    return _quantised(torch, device, (m, n, k), fmt, accumulate=accumulate)


def _wide(torch: Any, device: str, size: tuple[int, int, int], dtype: Any, *, accumulate: bool) -> Callable[[], object]:
    m, n, k = size
    if not accumulate:
        a, b = (torch.randn(rows, k, device=device, dtype=dtype) for rows in (m, n))
        return partial(torch.matmul, a, b.t())
    # A weight's gradient: that of the output, turned, by the input.
    a, b = (torch.randn(k, columns, device=device, dtype=dtype) for columns in (m, n))
    total = torch.zeros(m, n, device=device, dtype=torch.float32)
    return partial(torch.addmm, total, a.t(), b, out_dtype=torch.float32, out=total)


def _scaled(torch: Any, device: str, m: int, n: int, k: int) -> Callable[[], object]:
    """FP8 with one scale a tensor."""
    one = torch.ones((), device=device)
    a, b = (torch.randn(rows, k, device=device, dtype=torch.bfloat16).to(torch.float8_e4m3fn) for rows in (m, n))
    return partial(torch._scaled_mm, a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)


def _quantised(
    torch: Any, device: str, size: tuple[int, int, int], fmt: str, *, accumulate: bool
) -> Callable[[], object]:
    """By Transformer Engine's own product, in whose order the second operand comes first."""
    if fmt == "block" and torch.cuda.get_device_capability() >= (10, 0):
        raise ParlaunchError("from Blackwell on Transformer Engine multiplies them in MXFP8")
    try:
        general_gemm = _engine("cpp_extensions").general_gemm
    except ModuleNotFoundError as error:
        raise ParlaunchError("Transformer Engine is not installed here") from error
    m, n, k = size
    shapes = ((k, n), (k, m)) if accumulate else ((n, k), (m, k))
    weight, rows = (
        quantiser(torch.randn(*shape, device=device, dtype=torch.bfloat16))
        for quantiser, shape in zip(_quantisers(torch, device, fmt, accumulate=accumulate), shapes, strict=True)
    )
    how: dict[str, Any] = {"out_dtype": torch.bfloat16, "layout": "TN"}
    if accumulate:
        total = torch.zeros(m, n, device=device, dtype=torch.float32)
        how = {
            "out_dtype": torch.float32,
            "layout": "NT",
            "out": total,
            "accumulate": True,
            "use_split_accumulator": True,
        }
    if "workspace" in inspect.signature(general_gemm).parameters:  # up to Transformer Engine 2.9
        how["workspace"] = _engine("module.base").get_workspace()
    return partial(general_gemm, weight, rows, **how)


def _engine(module: str) -> Any:
    return import_module(f"transformer_engine.pytorch.{module}")


def _quantisers(torch: Any, device: str, fmt: str, *, accumulate: bool) -> tuple[Any, Any]:
    """Of the weight and of the tokens; of two kinds of tokens for a weight's gradient."""
    types = import_module("transformer_engine_torch").DType
    eight = types.kFloat8E4M3
    if fmt == "block":
        # Blocks of 128 by 128 of a weight, of 128 along the depth of all else.
        quantiser = _engine("tensor.float8_blockwise_tensor").Float8BlockQuantizer
        made = partial(quantiser, eight, rowwise=True, columnwise=True)
        return made(block_scaling_dim=1 if accumulate else 2), made(block_scaling_dim=1)
    one: Callable[[], Any] = {
        "fp8": lambda: _engine("tensor.float8_tensor").Float8CurrentScalingQuantizer(eight, torch.device(device)),
        "mx": lambda: _engine("tensor.mxfp8_tensor").MXFP8Quantizer(eight),
        "fp4": lambda: _engine("tensor.nvfp4_tensor").NVFP4Quantizer(types.kFloat4E2M1),
    }[fmt]
    return one(), one()
