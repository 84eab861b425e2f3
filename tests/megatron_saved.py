"""What autograd keeps of one layer built from Megatron Core's own modules, in bytes a token.

    echo '[{"num_layers": 1, ..., "world_size": 8}]' | python tests/megatron_saved.py      one number a line

Runs forward on the CPU and adds up the storages that are saved for backward, weights apart. Stand-ins, each saving what
Transformer Engine's module saves: norm (input and one float a row), attention (queries, keys, values, output, one float a
row), the duplicated linear layer of latent attention. Collectives go to torch's "fake" process group.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # fused activation functions as plain Python: what they save is the same

import megatron_shards as shards  # type: ignore[import-not-found]
import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.tensor_parallel import random
from megatron.core.transformer import multi_latent_attention
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.transformer_block import TransformerBlock
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

CPU = torch.device("cpu")
SEQ, MBS = 64, 4


class FusedNorm(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any) -> Any:
        ctx.save_for_backward(x, weight, torch.zeros(x.shape[:-1]))
        return torch.zeros_like(x)


class Norm(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=torch.bfloat16))

    def forward(self, x: Any) -> Any:
        return FusedNorm.apply(x.contiguous(), self.weight)


class FusedAttention(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
        out = torch.zeros(*q.shape[:3], v.shape[-1], dtype=q.dtype)
        ctx.save_for_backward(q, k, v, out, torch.zeros(q.shape[1], q.shape[2], q.shape[0]))
        return out


class Attention(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def forward(self, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> Any:
        out = FusedAttention.apply(q.contiguous(), k.contiguous(), v.contiguous())
        return out.reshape(*out.shape[:2], -1)


class Duplicated(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, inputs: int, outputs: int, *_: Any, parallel_mode: str, **__: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(outputs, inputs, dtype=torch.bfloat16))

    def forward(self, x: Any) -> Any:
        return torch.nn.functional.linear(x, self.weight), None


class CudaMeansCpu(TorchFunctionMode):  # type: ignore[misc]
    """The few calls in which Megatron Core spells out "cuda", served by the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("device") == "cuda":
            kwargs = {**kwargs, "device": CPU}
        elif func is torch.Tensor.cuda:
            return args[0]
        return func(*args, **kwargs)


class NoStream:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: self


def saved(spec: dict[str, Any]) -> float:
    world = spec.pop("world_size")
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    mpu.initialize_model_parallel(create_gloo_process_groups=False, **{k: spec[k] for k in shards.GROUPS if k in spec})
    fused = spec.get("gated_linear_unit", True)
    config = shards.config_of(
        {"bf16": True, "params_dtype": torch.bfloat16, "bias_activation_fusion": fused}
        | ({"rope_type": "rope"} if spec.get("multi_latent_attention") else {})
        | ({"moe_token_dispatcher_type": "allgather"} if spec.get("num_moe_experts") else {})
        | spec
    )
    config.use_cpu_initialization = True
    block_spec = shards.with_stand_ins(get_gpt_decoder_block_spec(config, use_transformer_engine=False))
    block = TransformerBlock(config, block_spec, post_process=False).train()
    split = config.tensor_model_parallel_size if config.sequence_parallel else 1
    x = torch.zeros(SEQ // split, MBS, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    rotary = None
    if not config.multi_latent_attention:
        rotary = RotaryEmbedding(config.kv_channels, 1.0, use_cpu_initialization=True)(SEQ)
    weights = {p.untyped_storage()._cdata for p in block.parameters()}
    kept: dict[int, Any] = {}

    def note(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        rotary_angles = tensor.dim() == 4 and tensor.shape[1:3] == (1, 1)  # one set for all layers
        if storage._cdata not in weights and not rotary_angles:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        block(x, None, rotary_pos_emb=rotary)
    mpu.destroy_model_parallel()
    dist.destroy_process_group()
    return float(sum(storage.nbytes() for storage in kept.values())) / (SEQ * MBS)


def main() -> None:
    shards.Norm, shards.Attention, shards.Duplicated = Norm, Attention, Duplicated
    torch.cuda.current_device = lambda: CPU
    torch.cuda.Stream = torch.cuda.current_stream = NoStream
    CudaMeansCpu().__enter__()
    random.initialize_rng_tracker(inference_rng_tracker=True)
    random._get_cuda_rng_state = random._set_cuda_rng_state = lambda *_, **__: None
    moe_utils.te_general_gemm = None
    multi_latent_attention.TELinear = Duplicated
    for question in json.load(sys.stdin):
        print(json.dumps(saved(question)), flush=True)


if __name__ == "__main__":
    main()
