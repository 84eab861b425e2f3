"""Train one small model of Megatron Core's on one device for a few iterations, and say what it took. A process of its own, since a
peak of memory is a process's:

    echo '{"arch": {...}, "seq": 4096, ...}' | python -m parlaunch_launch.one_gpu --device cuda

The question is a row of a table of runs (`parlaunch.check.measured`) without its measurements; the answer, one JSON object on the
last line, is what was measured. Layers are Transformer Engine's where it is installed, else Core's own around torch's fused attention.
`--device cpu` runs the same steps on a CPU, whose times and memory mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

from parlaunch.errors import ParlaunchError
from parlaunch.model.architecture import Architecture, architecture_from_json
from parlaunch.model.precision import SCALINGS

LATENT = ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim")
SIZES = ("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels")
TRAITS = ("normalization", "add_bias_linear", "add_qkv_bias", "qk_layernorm", "gated_linear_unit")
EXPERTS = ("num_moe_experts", "moe_ffn_hidden_size", "moe_router_topk", "moe_shared_expert_intermediate_size")
RECIPES = {ours: theirs for theirs, ours in SCALINGS.items()}
"""Megatron's `fp8_recipe` for our names of precisions."""
FIRST = 3
"""Iterations that are not timed: kernels are loaded and chosen, segments grow."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--libraries", action="store_true", help="only say which of them load here, with what GPU")
    asked = parser.parse_args()
    if asked.libraries:
        print("\n" + json.dumps(libraries()), flush=True)
        return
    device, row = asked.device, json.load(sys.stdin)
    try:
        answer = train(row, device)
    except ParlaunchError as error:
        raise SystemExit(f"error: {error.problem}; {error.hint}") from error
    print("\n" + json.dumps(answer), flush=True)


def libraries() -> dict[str, Any]:
    """What a training would find: the GPU that torch sees, Transformer Engine with why it does not load, fused accumulation."""
    torch = import_module("torch") if _found("torch") else None
    cuda = torch is not None and torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name(0) if torch is not None and cuda else None,
        "engine": engine(), "why": unloaded(), "fused": fused_accumulation(),
    }  # fmt: skip


@cache
def unloaded() -> str | None:
    """Why Transformer Engine does not load here: one of another torch or CUDA is found, and fails; None where it does."""
    if find_spec("transformer_engine") is None:
        return "it is not installed"
    try:
        import_module("transformer_engine.pytorch")
    except Exception as error:  # a symbol, a library, a version: it has many ways
        return next(iter(str(error).splitlines()), type(error).__name__)
    return None


def engine() -> bool:
    """Whether Transformer Engine's layers can be had here."""
    return unloaded() is None


def fused_accumulation() -> bool:
    """Whether Megatron Core can add weight gradients to the main gradients where they are made: with apex's extension
    (`tensor_parallel/layers.py`, which refuses to build an output layer without)."""
    return engine() and find_spec("fused_weight_gradient_mlp_cuda") is not None


def train(row: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Seconds of an iteration and peaks of memory in bytes (None on a CPU), the loss at both ends, and the parameters.

    Raises ParlaunchError where torch or Megatron Core is missing.
    """
    for module in ("torch", "megatron.core"):
        if not _found(module):
            raise ParlaunchError(
                f"{module} is not installed here", hint="run it in the container or environment that trains"
            )
    import torch
    import torch.distributed as dist

    if device == "cpu":
        from parlaunch_launch.cpu.missing import fill_in

        fill_in()
        from parlaunch_launch.cpu.stand_ins import train_on_cpu

        train_on_cpu()
    else:
        if not torch.cuda.is_available():
            raise ParlaunchError(
                f"torch {torch.__version__} sees no GPU", hint="`parlaunch doctor` says what is wrong with the machine"
            )
        torch.cuda.set_device(0)
    from megatron.core import parallel_state as mpu
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder, "store")), 1)
        dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=0, world_size=1)
        mpu.initialize_model_parallel()
        torch.manual_seed(1234)
        if device == "cuda":
            model_parallel_cuda_manual_seed(1234)
        try:
            return _iterations(row, device)
        finally:
            mpu.destroy_model_parallel()
            dist.destroy_process_group()


def _found(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def _iterations(row: Mapping[str, Any], device: str) -> dict[str, Any]:
    import torch
    from megatron.core.pipeline_parallel import get_forward_backward_func

    a = architecture_from_json(row["arch"])
    model, optimizer = _prepared(a, row, device)
    micro_batches = row["gbs"] // row["mbs"]
    data = _samples(a, row, device, micro_batches)
    run, seconds, losses = get_forward_backward_func(), [], []
    for _ in range(int(row["iterations"])):
        _wait(device)
        started = time.perf_counter()
        model.zero_grad_buffer()
        optimizer.zero_grad()
        results = run(
            forward_step_func=_step, data_iterator=data, model=[model], num_microbatches=micro_batches,
            seq_length=row["seq"], micro_batch_size=row["mbs"], forward_only=False,
        )  # fmt: skip
        optimizer.step()
        _wait(device)
        seconds.append(time.perf_counter() - started)
        losses.append(float(sum(float(result["lm loss"]) for result in results) / len(results)))
    cuda = device == "cuda"
    return {
        "iteration_time_s": median(seconds[min(FIRST, len(seconds) - 1) :]),
        "allocated": torch.cuda.max_memory_allocated() if cuda else None,
        "reserved": torch.cuda.max_memory_reserved() if cuda else None,
        "losses": [losses[0], losses[-1]],
        "parameters": sum(p.numel() for p in model.parameters()),
        "transformer_engine": engine() and cuda,
    }


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _prepared(a: Architecture, row: Mapping[str, Any], device: str) -> tuple[Any, Any]:
    """The model in Core's data-parallel wrapper, and Core's distributed optimizer, of one rank."""
    import torch
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
    from megatron.core.transformer.module import Float16Module

    with_engine = device == "cuda" and engine()
    config = _config(a, row, device, with_engine)
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=with_engine)
    if not with_engine:
        spec = _own(spec)
    unit = a.make_vocab_size_divisible_by
    model = GPTModel(
        config, spec, -(-a.vocab_size // unit) * unit, row["seq"], position_embedding_type="rope",
        share_embeddings_and_output_weights=a.share_embeddings_and_output_weights,
    )  # fmt: skip
    if device == "cuda":
        model = model.cuda()
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
    wrapped = DistributedDataParallel(config, ddp, Float16Module(config, model))
    settings = OptimizerConfig(
        optimizer="adam", lr=1e-3, bf16=True, params_dtype=torch.bfloat16, use_distributed_optimizer=True, clip_grad=1.0
    )
    return wrapped, get_megatron_optimizer(settings, [wrapped])


def _config(a: Architecture, row: Mapping[str, Any], device: str, with_engine: bool) -> Any:
    import torch
    from megatron.core.distributed import finalize_model_grads
    from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

    from parlaunch_launch.cpu.core_runner import activation

    given: dict[str, Any] = {name: getattr(a, name) for name in (*SIZES, *TRAITS)}
    if a.num_moe_experts:
        given |= {name: getattr(a, name) for name in EXPERTS} | {
            "moe_router_force_load_balancing": True, "moe_grouped_gemm": with_engine, "moe_permute_fusion": with_engine,
            # The all-to-all one takes its split sizes from CUDA tensors only.
            "moe_token_dispatcher_type": "alltoall" if device == "cuda" else "allgather",
        }  # fmt: skip
    if a.multi_latent_attention:
        given |= {name: getattr(a, name) for name in LATENT if getattr(a, name) is not None}
        given |= {"multi_latent_attention": True, "rope_type": "rope"}
        given.pop("num_query_groups")
    recompute = row.get("recompute") or {}
    given |= {f"recompute_{name}": value for name, value in recompute.items() if value is not None}
    if with_engine and row["precision"] in RECIPES:
        given |= {"fp8": "hybrid", "fp8_recipe": RECIPES[row["precision"]]}
    kind = MLATransformerConfig if a.multi_latent_attention else TransformerConfig
    return kind(
        **given, activation_func=activation(a.activation_func, a.gated_linear_unit), hidden_dropout=0.0, attention_dropout=0.0,
        bf16=True, params_dtype=torch.bfloat16, pipeline_dtype=torch.bfloat16, use_cpu_initialization=device == "cpu",
        gradient_accumulation_fusion=with_engine and fused_accumulation(), bias_activation_fusion=device == "cuda" and a.gated_linear_unit,
        masked_softmax_fusion=False, apply_rope_fusion=with_engine and not a.multi_latent_attention,
        finalize_model_grads_func=finalize_model_grads,
    )  # fmt: skip


def _own(spec: Any) -> Any:
    """A block of Core's own modules: torch's norms, and torch's fused attention as the core."""
    import torch

    from parlaunch_launch.cpu.stand_ins import with_own_modules, without_transformer_engine

    without_transformer_engine()

    class Fused(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
        """Causal attention over [tokens, samples, heads, size], in whichever fused kernel torch takes."""

        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__()

        def forward(self, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
            q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
            out = torch.nn.functional.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=q.size(1) != k.size(1)
            )
            return out.permute(2, 0, 1, 3).flatten(2)

    spec = with_own_modules(spec)
    for layer in spec.layer_specs:
        layer.submodules.self_attention.submodules.core_attention = Fused
    return spec


def _samples(a: Architecture, row: Mapping[str, Any], device: str, count: int) -> Iterator[Any]:
    """The same samples in every iteration, on the device before the first: making and copying one makes a GPU wait."""
    from parlaunch_launch.cpu.core_runner import batches

    made = batches(a.vocab_size, row["seq"], row["mbs"], seed=0)
    return cycle([sample.to(device) for sample in islice(made, count)])


def _step(data: Any, model: Any) -> Any:
    """One micro batch through the model, and the function that makes its loss."""
    import torch

    sample = next(data)
    tokens, labels = sample[:, :-1].contiguous(), sample[:, 1:].contiguous()
    positions = torch.arange(tokens.size(1), device=tokens.device).expand(tokens.size(0), -1)

    def loss_function(losses: Any) -> Any:
        losses = losses.float()
        # Filled where it is: a copy from the host waits for the GPU.
        count = torch.full((), losses.numel(), dtype=torch.int, device=losses.device)
        return losses.sum(), count, {"lm loss": losses.detach().mean()}

    return model(tokens, positions, None, labels=labels), loss_function


if __name__ == "__main__":
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    main()
