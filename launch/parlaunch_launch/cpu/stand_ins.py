"""What Megatron Core asks of CUDA and Transformer Engine, answered on a CPU. Each stand-in says what it is for.

Nothing of Megatron's parallelism is replaced: process groups, sharded layers, pipeline schedules, data-parallel buffers
and optimizers are its own. Tried with Core 0.16.1 and 0.19.2. With a GPU none of this is used.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from megatron.core import parallel_state as mpu
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region, random
from megatron.core.transformer import multi_latent_attention
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.moe import moe_utils
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


class CudaMeansCpu(TorchFunctionMode):  # type: ignore[misc]  # torch has no types here
    """Serves the few calls in which Megatron spells out "cuda" from the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("device") == "cuda":  # torch.zeros(..., device="cuda")
            kwargs = {**kwargs, "device": CPU}
        elif kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        elif func is torch.Tensor.cuda:  # weight.data.cuda()
            return args[0]
        elif func is torch.Tensor.type and len(args) == 1:  # param.type() == "torch.cuda.FloatTensor"
            return func(*args).replace("torch.", "torch.cuda.")
        return func(*args, **kwargs)


class NoStream:
    """A CUDA stream, or an event in it, with nothing to wait for."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes what a stream takes."""

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: self


def train_on_cpu() -> None:
    """Put the stand-ins in place, once, before a model is built."""
    torch.cuda.current_device = lambda: CPU  # Megatron passes it as `device=` wherever it allocates
    torch.cuda.Stream = torch.cuda.current_stream = NoStream
    torch.cuda.synchronize = lambda *_: None
    CudaMeansCpu().__enter__()
    random.initialize_rng_tracker(inference_rng_tracker=True)  # the tracker that leaves CUDA generators alone
    random._get_cuda_rng_state = random._set_cuda_rng_state = lambda *_, **__: None  # saved for recomputation
    without_transformer_engine()


def without_transformer_engine() -> None:
    """What Megatron asks of Transformer Engine by name, where it is missing: on a CPU, and on GPUs too."""
    if not isinstance(multi_latent_attention.TELinear, type):  # asked by isinstance, where it is None
        multi_latent_attention.TELinear = type("TransformerEngineIsAbsent", (), {})
    moe_utils.te_general_gemm = None  # Core 0.16 forgets to define it where Transformer Engine is missing


class Norm:
    """A torch norm that, unlike Megatron's fallback, allows sequence parallelism: its gradients are summed over TP."""

    def __new__(cls, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        norm = getattr(torch.nn, config.normalization)(hidden_size, eps=eps, dtype=config.params_dtype)
        for weight in norm.parameters():
            weight.sequence_parallel = config.sequence_parallel
        return norm


def token_order(length: int) -> list[Any]:
    """Positions held by each context-parallel rank: Megatron deals every rank an early and a late chunk."""
    size = mpu.get_context_parallel_world_size()
    chunks = torch.arange(length).chunk(2 * size)
    return [torch.cat((chunks[r], chunks[-1 - r])) for r in range(size)]


class Attention(DotProductAttention):  # type: ignore[misc]
    """Megatron's own attention, for context parallelism too (there only Transformer Engine's is allowed).

    Keys and values are gathered from the whole context-parallel group.
    """

    def __init__(self, config: Any, **kwargs: Any) -> None:
        config = copy(config)
        config.context_parallel_size = 1
        for later in ("k_channels", "v_channels"):  # multi-latent attention passes them; this one reads the shapes
            kwargs.pop(later, None)
        super().__init__(config, **kwargs)

    def forward(self, query: Any, key: Any, value: Any, _mask: Any, **kwargs: Any) -> Any:
        group = mpu.get_context_parallel_group()
        if group.size() > 1:
            key = gather_from_sequence_parallel_region(key, group=group)
            value = gather_from_sequence_parallel_region(value, group=group)
        order = token_order(len(key))
        future = order[group.rank()][:, None] < torch.cat(order)
        return super().forward(query, key, value, future[None, None], **kwargs)


def with_own_modules(spec: Any) -> Any:
    """A block's layer specs with the norm and attention from here."""
    spec.layer_norm = Norm
    for layer in spec.layer_specs:
        layer.submodules.input_layernorm = layer.submodules.pre_mlp_layernorm = Norm
        attention = layer.submodules.self_attention.submodules
        attention.core_attention = Attention
        for name in ("q_layernorm", "k_layernorm", "kv_layernorm"):
            if getattr(attention, name, None) not in (None, IdentityOp):
                setattr(attention, name, Norm)
    return spec


def cpu_layers(config: Any, vp_stage: int | None = None) -> Any:
    """The decoder block of a pipeline stage in Megatron's own modules, without Transformer Engine."""
    return with_own_modules(get_gpt_decoder_block_spec(config, use_transformer_engine=False, vp_stage=vp_stage))
