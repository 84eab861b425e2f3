"""What autograd keeps of one layer built from Megatron Core's own modules, in bytes a token.

    echo '[{"num_layers": 1, ..., "world_size": 8}]' | python tests/model/megatron_saved.py      one number a line

Runs forward on the CPU and adds up the storages that are saved for backward, weights apart. Stand-ins, each saving what
Transformer Engine's module saves: norm (input and its statistics, a float each a row), attention (queries, keys, values, output, one float a
row), the duplicated linear layer of latent attention and latent experts; a grouped product, which saves its inputs; and the kernels around a
gated delta rule, each saving what flash-linear-attention's and causal-conv1d's save. Collectives go to torch's "fake" process group.
With `adapters` (Bridge's `LoRA` settings) the weights are frozen and Megatron Bridge puts its adapters beside them; with `block`
("joint" or "single" of FLUX, "wan") the layer is Bridge's of a diffusion transformer; with `post_norms` norms of Bridge's stand behind
attention and MLP. All three need Bridge. With `vocab_size` it is a whole model, from its embedding to its losses, less its logits.
"""

# ruff: noqa: E402  # torch and Megatron are imported once they can be

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # fused activation functions as plain Python: what they save is the same

from parlaunch_launch.cpu.bridge_runner import importable

importable()  # Core of 0.17 and newer, and Bridge's adapters

import megatron_shards as shards  # type: ignore[import-not-found]
import torch
import torch.distributed as dist
from megatron.core import parallel_state as mpu
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.tensor_parallel import random
from megatron.core.transformer import multi_latent_attention, transformer_config
from megatron.core.transformer.moe import moe_layer, moe_utils, router
from megatron.core.transformer.transformer_block import TransformerBlock
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

CPU = torch.device("cpu")
SEQ, MBS = 64, 4


class FusedNorm(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, statistics: int) -> Any:
        ctx.save_for_backward(x, weight, torch.zeros(*x.shape[:-1], statistics))
        return torch.zeros_like(x)


class Norm(torch.nn.Module):  # type: ignore[misc]
    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=torch.bfloat16))
        self.statistics = 2 if config.normalization == "LayerNorm" else 1  # the mean, and the deviation

    def forward(self, x: Any) -> Any:
        return FusedNorm.apply(x.contiguous(), self.weight, self.statistics)


class Centred(Norm):
    """A norm with a mean, whatever the others are."""

    def __init__(self, config: Any, hidden_size: int, **_: Any) -> None:
        super().__init__(config, hidden_size)
        self.statistics = 2


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


class GroupedProduct(torch.autograd.Function):  # type: ignore[misc]
    @staticmethod
    def forward(ctx: Any, x: Any, weights: Any) -> Any:
        ctx.save_for_backward(x, weights)
        return torch.zeros(x.shape[0], weights.shape[-1], dtype=x.dtype)

    @staticmethod
    def gmm(x: Any, weights: Any, *_: Any, **__: Any) -> Any:
        return GroupedProduct.apply(x, weights)


class Convolution(torch.autograd.Function):  # type: ignore[misc]
    """`CausalConv1dFn` of causal-conv1d, `CausalConv1dFunction` of flash-linear-attention since 0.4.2: their input as it is."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any) -> Any:
        ctx.save_for_backward(x, weight)
        return torch.zeros_like(x)


class Normalised(torch.autograd.Function):  # type: ignore[misc]
    """`L2NormFunction` of flash-linear-attention (`fla/modules/l2norm.py`): its output, and a float a row."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        y = torch.zeros_like(x)
        ctx.save_for_backward(y, torch.zeros(x.shape[:-1]))
        return y


class DeltaRule(torch.autograd.Function):  # type: ignore[misc]
    """`ChunkGatedDeltaRuleFunction` (`fla/ops/gated_delta_rule/chunk.py`): inputs, and of each chunk of 64 tokens the inverse `A`."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any, g: Any, beta: Any) -> Any:
        inverse = torch.zeros(*v.shape[:3], 64, dtype=k.dtype)
        ctx.save_for_backward(q, k, v, g, beta, inverse)
        return torch.zeros_like(v)


class GatedNorm(torch.autograd.Function):  # type: ignore[misc]
    """Transformer Engine's norm (its input, a float a row), and what torch compiles behind it: both inputs of the product."""

    @staticmethod
    def forward(ctx: Any, x: Any, gate: Any) -> Any:
        ctx.save_for_backward(x, torch.zeros(x.shape[:-1]), torch.zeros_like(x), gate)
        return torch.zeros_like(x)


def delta_net() -> Any:
    """Core's gated delta net over the kernels above."""
    from megatron.core.ssm import gated_delta_net as module
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.spec_utils import ModuleSpec

    def rule(q: Any, k: Any, v: Any, g: Any, beta: Any, **_: Any) -> Any:
        return DeltaRule.apply(q, k, v, g, beta), None

    # Core 0.19 has a package of modules that take the kernels by name.
    for part in (module, *(getattr(module, name) for name in ("common", "gdn") if hasattr(module, name))):
        part.HAVE_FLA, part.l2norm, part.chunk_gated_delta_rule = True, Normalised.apply, rule
        part.causal_conv1d_fn = lambda x, weight, **_: Convolution.apply(x, weight)
        part.causal_conv1d = lambda x, weight, **_: (Convolution.apply(x, weight), None)
    module.GatedDeltaNet._apply_gated_norm = lambda _, x, gate: GatedNorm.apply(x, gate)
    parts = module.GatedDeltaNetSubmodules(
        in_proj=ColumnParallelLinear, out_norm=shards.Norm, out_proj=RowParallelLinear
    )
    return ModuleSpec(module=module.GatedDeltaNet, submodules=parts)


def sparse(config: Any) -> Any:
    """Core's sparse latent attention over stand-ins for what its own functions call: FlashMLA and cuDNN."""
    from megatron.core.models.gpt import experimental_attention_variant_module_specs as specs
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
    from megatron.core.transformer.experimental_attention_variant import absorbed_mla
    from megatron.core.transformer.experimental_attention_variant import dsa_cudnn_kernels as kernels

    def chosen(q: Any, _k: Any, _w: Any, count: int, **__: Any) -> Any:
        indices = torch.arange(count, dtype=torch.int32).expand(*q.shape[:2], count).contiguous()
        return indices, torch.full(q.shape[:2], count, dtype=torch.int32), object()

    def attended(q: Any, *_: Any, d_v: int, **__: Any) -> Any:
        return torch.zeros(*q.shape[:2], d_v, dtype=q.dtype), torch.zeros(q.shape[:2])

    def loss_and_gradients(**given: Any) -> Any:
        return torch.zeros(()), *(torch.zeros_like(given[name]) for name in ("q_idx_bshd", "k_idx_bsd", "w_bsh"))

    absorbed_mla.TELinear = Duplicated
    kernels._ensure_dsa_namespace = lambda: None
    kernels._indexer_topk_bshd, kernels._dsa_fwd_flash_mla = chosen, attended
    kernels._compute_sparse_indexer_loss_and_grads = loss_and_gradients
    kernels._supports_flash_mla_value_layout = kernels._flash_mla_supports_head_count = lambda *_: True

    backend: Any = types.SimpleNamespace(
        linear=lambda: Duplicated,
        column_parallel_linear=lambda: ColumnParallelLinear,
        row_parallel_linear=lambda: RowParallelLinear,
        layer_norm=lambda rms_norm, **_: shards.Norm if rms_norm else Centred,
    )
    return specs.get_dsa_module_spec_for_backend(config, backend)


class Dropped(torch.autograd.Function):  # type: ignore[misc]
    """Dropout as torch's CUDA kernel has it: a mask of a byte an element, and an output of its own."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(torch.ones_like(x, dtype=torch.bool))
        return x.clone()


def bridge_packages(*names: str) -> None:
    """Packages of Megatron Bridge that can be imported from without what their `__init__` would bring."""
    found = importlib.util.find_spec("megatron")
    assert found is not None
    for name in names:
        module = types.ModuleType(name)
        places = [Path(root, *name.split(".")[1:]) for root in found.submodule_search_locations or ()]
        module.__path__ = [str(place) for place in places if place.is_dir()]
        sys.modules.setdefault(name, module)


def adapted(block: Any, settings: dict[str, Any]) -> Any:
    """The block with Megatron Bridge's low-rank adapters and nothing else to train. Of Bridge only `peft` is imported."""
    bridge_packages("megatron.bridge", "megatron.bridge.utils", "megatron.bridge.peft")
    speech: Any = types.ModuleType("megatron.bridge.utils.common_utils")  # brings all of megatron.training with it
    speech.print_rank_0 = print
    sys.modules.setdefault(speech.__name__, speech)
    from megatron.bridge.peft import utils
    from megatron.bridge.peft.lora import LoRA

    torch.nn.Dropout.forward = lambda self, x: Dropped.apply(x) if self.p else x
    utils.HAVE_TE = False  # Core has the names of Transformer Engine's layers, but no classes
    return LoRA(**settings)(block, training=True)


class Modulated(torch.autograd.Function):  # type: ignore[misc]
    """`AdaLN.modulated_layernorm` as torch compiles it: its input, the scale of each sample, mean and deviation of each row."""

    @staticmethod
    def forward(ctx: Any, x: Any, shift: Any, scale: Any) -> Any:
        ctx.save_for_backward(x, torch.zeros(*x.shape[:-1], 2))
        return torch.zeros_like(x)


class Gated(torch.autograd.Function):  # type: ignore[misc]
    """`AdaLN.scale_add` as torch compiles it: what it multiplies, and the gate of each sample."""

    @staticmethod
    def forward(ctx: Any, residual: Any, x: Any, gate: Any) -> Any:
        ctx.save_for_backward(x)
        return torch.zeros_like(residual)


class Standing(torch.nn.Module):  # type: ignore[misc]
    """A norm with weights and a mean, as torch's on a GPU: its statistics in float32."""

    def __init__(self, normalized_shape: int, **_: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(normalized_shape, dtype=torch.bfloat16))

    def forward(self, x: Any) -> Any:
        return FusedNorm.apply(x, self.weight, 2)


COLUMNS = ("linear_qkv", "added_linear_qkv", "linear_q", "linear_kv", "linear_fc1")
ROWS = ("linear_proj", "linear_fc2")
NORMS = ("q_layernorm", "k_layernorm", "added_q_layernorm", "added_k_layernorm")


def in_cores_modules(submodules: Any) -> Any:
    """A diffusion block's submodules, in place of Transformer Engine's."""
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

    for part in vars(submodules).values():
        inner: Any = getattr(part, "submodules", None)
        replaced = dict.fromkeys(COLUMNS, ColumnParallelLinear) | dict.fromkeys(ROWS, RowParallelLinear)
        for name, module in (replaced | dict.fromkeys(NORMS, shards.Norm)).items():
            if hasattr(inner, name):
                setattr(inner, name, module)
        if hasattr(inner, "core_attention"):
            inner.core_attention = shards.Attention
    return submodules


def diffusion_block(config: Any, kind: str) -> tuple[Any, Any]:
    """Bridge's block in Core's modules, and what calls it as a layer of one stream: a joint one of FLUX with as many tokens of text as of
    the image, half of all each; WAN's beside one token of text a sample."""
    models = "megatron.bridge.diffusion.models"
    packages = [f"{models}.{name}" for name in ("flux", "wan", "common")]
    bridge_packages("megatron.bridge", "megatron.bridge.diffusion", models, *packages)
    from megatron.bridge.diffusion.models.flux import flux_layer_spec as flux
    from megatron.bridge.diffusion.models.wan import wan_layer_spec as wan

    config.enable_cuda_graph = config.test_mode = False
    spec = {
        "joint": flux.get_flux_double_transformer_engine_spec, "single": flux.get_flux_single_transformer_engine_spec,
        "wan": wan.get_wan_block_with_transformer_engine_spec,
    }[kind]()  # fmt: skip
    flux.AdaLN.modulated_layernorm = lambda _, x, shift, scale, layernorm_idx=0: Modulated.apply(x, shift, scale)
    wan.WanAdaLN.normalize_modulate = lambda _, norm, x, shift, scale: Modulated.apply(x, shift, scale)
    for modulation in (flux.AdaLN, wan.WanAdaLN):
        modulation.scale_add = lambda _, residual, x, gate: Gated.apply(residual, x, gate)
    if kind == "wan":
        spec.submodules.norm3 = Standing
        config.layernorm_across_heads, config.crossattn_emb_size = False, config.hidden_size
    layer = spec.module(config=config, submodules=in_cores_modules(spec.submodules)).train()
    condition = torch.zeros(MBS, config.hidden_size, dtype=torch.bfloat16)

    def called(x: Any, *_: Any, **__: Any) -> Any:
        if kind == "single":
            return layer(x, emb=condition)
        if kind == "wan":
            packs = {"self_attention": None, "cross_attention": None}
            time, text = condition[:, None].expand(-1, 6, -1), condition[None].clone()
            return layer(x, attention_mask=time, context=text, packed_seq_params=packs)
        # Streams of their own, as they come from two layers: views of one tensor would be counted once.
        image, words = (part.detach().clone().requires_grad_() for part in x.chunk(2))
        return layer(image, encoder_hidden_states=words, emb=condition)

    return layer, called


def norms_behind(block_spec: Any) -> None:
    """Bridge's row-parallel layers with a norm behind them (Gemma 2 and 3) in a block of Core's modules."""
    bridge_packages(
        "megatron.bridge", "megatron.bridge.utils", "megatron.bridge.models", "megatron.bridge.models.common"
    )
    from megatron.core.extensions import transformer_engine
    from megatron.core.tensor_parallel.layers import RowParallelLinear

    transformer_engine.TERowParallelLinear, transformer_engine.TENorm = RowParallelLinear, shards.Norm
    from megatron.bridge.models.common.te_layers import TERowParallelLinearLayerNorm

    for layer in block_spec.layer_specs:
        attention, mlp = layer.submodules.self_attention, layer.submodules.mlp
        attention.submodules.linear_proj = TERowParallelLinearLayerNorm
        parts = mlp.keywords["submodules"] if hasattr(mlp, "keywords") else mlp.submodules
        if hasattr(parts, "linear_fc2"):  # not experts
            parts.linear_fc2 = TERowParallelLinearLayerNorm


def gemma4_modules() -> None:
    """Makes Bridge's modules of Gemma 4 importable."""
    bridge_packages(
        "megatron.bridge", "megatron.bridge.utils", "megatron.bridge.models", "megatron.bridge.models.gemma"
    )
    gemma3: Any = types.ModuleType(
        "megatron.bridge.models.gemma.gemma3_provider"
    )  # brings all of Bridge's models with it
    gemma3.TERowParallelLinearLayerNorm = gemma3._is_local_attn_layer = None
    sys.modules.setdefault(gemma3.__name__, gemma3)


def norms_around_experts(block_spec: Any) -> None:
    """Bridge's layer of Gemma 4, with its router and its experts, in a block of Core's modules, behind `norms_behind`."""
    gemma4_modules()
    from megatron.bridge.models.gemma import modeling_gemma4 as gemma4

    for layer in block_spec.layer_specs:
        layer.module, mlp = gemma4.Gemma4TransformerLayer, layer.submodules.mlp
        mlp.keywords["submodules"].router = gemma4.Gemma4TopKRouter
        layer.submodules.mlp = functools.partial(gemma4.Gemma4MoELayer, *mlp.args, **mlp.keywords)


class Compiled(torch.autograd.Function):  # type: ignore[misc]
    """An activation function as torch compiles it: its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        ctx.save_for_backward(x)
        return torch.zeros_like(x)


def behind_alone(block_spec: Any, config: Any) -> None:
    """Bridge's layer of EXAONE 4 in a block, behind `norms_behind`: no norm in front, and Core's own attention."""
    exaone = "megatron.bridge.models.exaone"
    bridge_packages(exaone, f"{exaone}.exaone4")
    from megatron.core.extensions import transformer_engine
    from megatron.core.tensor_parallel.layers import ColumnParallelLinear

    transformer_engine.TEColumnParallelLinear = ColumnParallelLinear
    provider: Any = types.ModuleType("megatron.bridge.models.gpt_provider")
    provider.GPTModelProvider = object
    sys.modules.setdefault(provider.__name__, provider)
    from megatron.bridge.models.exaone.exaone4.exaone4_provider import exaone4_layer_spec

    block_spec.layer_specs = [exaone4_layer_spec(config)]


def embedded_layer(config: Any, width: int) -> Any:
    """Bridge's layer of dense Gemma 4, with an embedding of its own of that width for each token, and what calls it."""
    gemma4_modules()
    from megatron.bridge.models.gemma import modeling_gemma4 as gemma4

    config.activation_func, config.per_layer_embed_dim = Compiled.apply, width
    spec = gemma4.get_gemma4_layer_spec(config)
    layer = spec.module(config, spec.submodules).to(torch.bfloat16).train()
    own = torch.zeros(SEQ, MBS, width, dtype=torch.bfloat16, requires_grad=True)
    return layer, functools.partial(layer, per_layer_input=own)


def whole_model(config: Any, vocab: int) -> tuple[Any, Any]:
    """A model from its embedding to its losses, with the layers that predict further tokens, and what calls it as a layer."""
    from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper

    MTPLossLoggingHelper.tracker.clear()  # of the model before, with fewer of them
    (model,) = shards.chunks_of(config, vocab, SEQ, False)
    tokens = torch.zeros(MBS, SEQ, dtype=torch.int64)
    return model.train(), lambda *_, **__: model(tokens, tokens, None, labels=tokens)


class CudaMeansCpu(TorchFunctionMode):  # type: ignore[misc]
    """The few calls in which Megatron Core spells out "cuda", served by the CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("device") == "cuda":
            kwargs = {**kwargs, "device": CPU}
        elif kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        elif func is torch.Tensor.cuda:
            return args[0]
        return func(*args, **kwargs)


class NoFp8:
    """Transformer Engine's global state, as recomputation asks it."""

    @staticmethod
    def is_fp8_enabled() -> bool:
        return False


class NoStream:
    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: self


def decoder(config: Any, family: str, second_norms: bool) -> Any:
    """A block of one layer."""
    linear = config.experimental_attention_variant
    config.experimental_attention_variant = None  # Core 0.19 has another function for layers with one
    block_spec = shards.with_stand_ins(get_gpt_decoder_block_spec(config, use_transformer_engine=False))
    if second_norms:
        norms_behind(block_spec)
    if family == "gemma4":
        norms_around_experts(block_spec)
    if family == "exaone4":
        norms_behind(block_spec)
        behind_alone(block_spec, config)
    if linear:
        config.experimental_attention_variant = linear
        for layer in block_spec.layer_specs:
            layer.submodules.self_attention = sparse(config) if linear == "dsa" else delta_net()
    return TransformerBlock(config, block_spec, post_process=False).train()


def saved(spec: dict[str, Any]) -> float:
    world, cp, adapters = spec.pop("world_size"), spec.get("context_parallel_size", 1), spec.pop("adapters", None)
    second_norms, family = spec.pop("post_norms", False), spec.pop("model_type", "")
    diffusion, vocab, embedded = spec.pop("block", None), spec.pop("vocab_size", 0), spec.pop("per_layer_embed_dim", 0)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
    mpu.initialize_model_parallel(create_gloo_process_groups=False, **{k: spec[k] for k in shards.GROUPS if k in spec})
    fused = spec.get("gated_linear_unit", True)
    transformer_config._validate_dsa_kernel_backend_dependencies = lambda _: None
    config = shards.config_of(
        {"bf16": True, "params_dtype": torch.bfloat16, "bias_activation_fusion": fused}
        | ({"rope_type": "rope"} if spec.get("multi_latent_attention") else {})
        | ({"moe_token_dispatcher_type": "allgather"} if spec.get("num_moe_experts") else {})
        | spec
    )
    config.use_cpu_initialization = True
    if diffusion:
        block, call = diffusion_block(config, diffusion)
    elif vocab:
        block, call = whole_model(config, vocab)
    elif embedded:
        block, call = embedded_layer(config, embedded)
    else:
        block = call = decoder(config, family, second_norms)
    for parameter in block.parameters():  # Megatron was told not to: what stands in memory would decide the routing
        torch.nn.init.zeros_(parameter)
    if adapters:
        block = call = adapted(block, adapters)
    split = config.tensor_model_parallel_size if config.sequence_parallel else 1
    x = torch.zeros(SEQ // split, MBS, config.hidden_size, dtype=torch.bfloat16, requires_grad=True)
    rotary = None
    if not config.multi_latent_attention:
        rotary = RotaryEmbedding(config.kv_channels, 1.0, use_cpu_initialization=True)(SEQ * cp)
    weights = {p.untyped_storage()._cdata for p in block.parameters()}
    logits = vocab // config.tensor_model_parallel_size
    kept: dict[int, Any] = {}

    def note(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        shared = diffusion and tensor.dim() == 4 and tensor.shape[1:3] == (1, 1)  # angles, one set for all layers
        # Logits, and what the loss makes of them, are counted elsewhere; tokens, labels and losses are a few bytes.
        loss = tensor.dim() < 2 or tensor.shape in ((MBS, SEQ), (SEQ, MBS)) or tensor.shape[-1] == logits
        shared = shared or (vocab and loss)
        if storage._cdata not in weights and not shared:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        call(x, None, rotary_pos_emb=rotary)
    mpu.destroy_model_parallel()
    dist.destroy_process_group()
    return float(sum(storage.nbytes() for storage in kept.values())) / (SEQ * MBS)


def in_turn(logits: Any) -> Any:
    """In place of Megatron's random balancing: each token goes to the experts after those of the token before."""
    tokens = torch.arange(logits.numel() // logits.shape[-1])
    experts = torch.arange(logits.shape[-1])
    return logits - ((experts - 2 * tokens[:, None]) % logits.shape[-1]).reshape(logits.shape)


def alike() -> None:
    """Collectives among ranks that all hold what this one does: torch's "fake" group leaves what it should receive unwritten."""

    def gather(output: Any, value: Any, *_: Any, **__: Any) -> None:
        output.copy_(value.repeat(output.shape[0] // value.shape[0], *(1,) * (value.dim() - 1)))

    def exchange(output: Any, *_: Any, **__: Any) -> None:
        output.zero_()

    for name in ("all_gather_into_tensor", "_all_gather_base"):
        setattr(dist, name, gather)
    dist.all_to_all_single = exchange
    for module in list(sys.modules.values()):  # Megatron takes the gather by name when it is imported
        if getattr(module, "__name__", "").startswith("megatron.core") and hasattr(module, "dist_all_gather_func"):
            module.dist_all_gather_func = gather  # type: ignore[attr-defined]


def main() -> None:
    alike()
    shards.Norm, shards.Attention, shards.Duplicated = Norm, Attention, Duplicated
    torch.cuda.current_device = lambda: CPU
    torch.cuda.Stream = torch.cuda.current_stream = NoStream
    CudaMeansCpu().__enter__()
    random.initialize_rng_tracker(inference_rng_tracker=True)
    random._get_cuda_rng_state = random._set_cuda_rng_state = lambda *_, **__: None
    random.FP8GlobalStateManager = NoFp8
    random.activation_recompute_forward = lambda *_, **__: contextlib.nullcontext()
    moe_utils.te_general_gemm = None
    router.apply_random_logits = in_turn
    multi_latent_attention.TELinear = moe_layer.TELinear = Duplicated
    moe_layer.HAVE_TE = True  # asked before latent experts are built, of the linear layer above
    if importlib.util.find_spec("megatron.core.transformer.moe.grouped_gemm_util"):  # gone from Core 0.19
        from megatron.core.transformer.moe import grouped_gemm_util

        grouped_gemm_util.grouped_gemm, grouped_gemm_util.ops = GroupedProduct, GroupedProduct
    for question in json.load(sys.stdin):
        print(json.dumps(saved(question)), flush=True)


if __name__ == "__main__":
    main()
