"""What Megatron Core's own modules hold: parameters on one GPU of every pipeline stage of a layout.

    echo '[{"num_layers": 8, ..., "world_size": 64}]' | python tests/model/megatron_shards.py      one JSON answer a line

One process stands in for each rank in turn: torch's "fake" process group has no peers, the "meta" device no memory. Run as
a process of its own, because it puts stand-ins into torch where Megatron spells out "cuda" (and Transformer Engine's norm,
which torch's replaces). Keys are those of Megatron's TransformerConfig, and a few of the model's.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

warnings.filterwarnings("ignore")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from megatron.core import parallel_state as mpu  # noqa: E402
from megatron.core.fusions.fused_bias_geglu import quick_gelu  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec, get_gpt_mtp_block_spec  # noqa: E402
from megatron.core.models.gpt.gpt_model import GPTModel  # noqa: E402
from megatron.core.tensor_parallel import random  # noqa: E402
from megatron.core.transformer import multi_latent_attention  # noqa: E402
from megatron.core.transformer.identity_op import IdentityOp  # noqa: E402
from megatron.core.transformer.moe import moe_layer, moe_utils  # noqa: E402
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

GROUPS = (
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "virtual_pipeline_model_parallel_size",
    "context_parallel_size", "expert_model_parallel_size", "expert_tensor_parallel_size",
)  # fmt: skip
NORMS = ("input_layernorm", "pre_mlp_layernorm", "q_layernorm", "k_layernorm", "kv_layernorm", "enorm", "hnorm")


class Norm:
    """A torch norm that allows sequence parallelism, which Megatron's fallback does not."""

    def __new__(cls, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> Any:
        return getattr(torch.nn, config.normalization)(hidden_size, eps=eps)


class Attention(torch.nn.Module):  # type: ignore[misc]
    """The attention core has no parameters, and the one without Transformer Engine refuses latent attention's head sizes."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


class Duplicated(torch.nn.Module):  # type: ignore[misc]
    """Transformer Engine's linear layer as latent attention uses it for the down projections: whole on every rank."""

    def __init__(self, inputs: int, outputs: int, *_: Any, parallel_mode: str, **__: Any) -> None:
        super().__init__()
        assert parallel_mode == "duplicated"
        self.weight = torch.nn.Parameter(torch.empty(outputs, inputs))


def with_stand_ins(spec: Any) -> Any:
    """Every norm and attention core of a block or layer spec replaced, however deep it lies."""
    if getattr(spec, "core_attention", None) is not None:
        spec.core_attention = Attention
    for name in ("linear_q_down_proj", "linear_kv_down_proj"):
        if getattr(spec, name, None) is not None:
            setattr(spec, name, Duplicated)
    for name in (*NORMS, "layer_norm"):
        if getattr(spec, name, None) not in (None, IdentityOp):
            setattr(spec, name, Norm)
    for name in ("submodules", "self_attention", "mlp", "mtp_model_layer", "transformer_layer"):
        if getattr(spec, name, None) is not None:
            with_stand_ins(getattr(spec, name))
    for layer in getattr(spec, "layer_specs", None) or ():
        with_stand_ins(layer)
    return spec


def config_of(spec: dict[str, Any]) -> Any:
    gated = spec.pop("gated_linear_unit", True)
    plain = quick_gelu if spec.pop("activation_func", "") == "quick_gelu" else torch.nn.functional.silu
    kind = MLATransformerConfig if spec.get("multi_latent_attention") else TransformerConfig
    return kind(
        **{"virtual_pipeline_model_parallel_size": None, "normalization": "RMSNorm", "add_bias_linear": False, **spec},
        gated_linear_unit=gated,
        activation_func=plain if gated else torch.nn.functional.gelu,
        hidden_dropout=0.0, attention_dropout=0.0, pipeline_dtype=torch.float32, gradient_accumulation_fusion=False,
        perform_initialization=False, masked_softmax_fusion=False, apply_rope_fusion=False,
    )  # fmt: skip


def chunks_of(config: Any, vocab: int, seq_length: int, tied: bool) -> list[Any]:
    """The model chunks of the rank that the fake process group says we are."""
    chunks = []
    for number in range(config.virtual_pipeline_model_parallel_size or 1):
        stage = None if config.virtual_pipeline_model_parallel_size is None else number
        block = with_stand_ins(get_gpt_decoder_block_spec(config, use_transformer_engine=False, vp_stage=stage))
        last = mpu.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage)
        mtp = None
        if config.mtp_num_layers and last:
            mtp = with_stand_ins(get_gpt_mtp_block_spec(config, block, use_transformer_engine=False, vp_stage=stage))
        chunks.append(
            GPTModel(
                config, block, vocab, seq_length, mtp_block_spec=mtp, vp_stage=stage,
                pre_process=mpu.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage), post_process=last,
                share_embeddings_and_output_weights=tied, position_embedding_type="rope",
            )
        )  # fmt: skip
    return chunks


def parameters(spec: dict[str, Any]) -> list[list[int]]:
    """[all, of routed experts] for one GPU of each stage."""
    world, vocab = spec.pop("world_size"), spec.pop("vocab_size")
    tied = spec.pop("share_embeddings_and_output_weights", False)
    stages = spec.get("pipeline_model_parallel_size", 1)
    unit = 128 * spec.get("tensor_model_parallel_size", 1)
    counts = []
    for stage in range(stages):
        dist.init_process_group("fake", store=FakeStore(), rank=stage * (world // stages), world_size=world)
        mpu.initialize_model_parallel(create_gloo_process_groups=False, **{k: spec[k] for k in GROUPS if k in spec})
        with torch.device("meta"):
            chunks = chunks_of(config_of(dict(spec)), -(-vocab // unit) * unit, 64, tied)
        # Shards of routed experts are the parameters that are not averaged over the plain data-parallel group.
        held = [(getattr(p, "allreduce", True), p.numel()) for chunk in chunks for p in chunk.parameters()]
        counts.append([sum(n for _, n in held), sum(n for everywhere, n in held if not everywhere)])
        mpu.destroy_model_parallel()
        dist.destroy_process_group()
    return counts


def main() -> None:
    torch.cuda.current_device = lambda: torch.device("meta")
    torch.Tensor.cuda = lambda self, *_, **__: self
    random.initialize_rng_tracker(inference_rng_tracker=True)
    moe_utils.te_general_gemm = None
    multi_latent_attention.TELinear = moe_layer.TELinear = Duplicated
    moe_layer.HAVE_TE = True
    for question in json.load(sys.stdin):
        print(json.dumps(parameters(question)), flush=True)


if __name__ == "__main__":
    main()
