"""A recipe: what is trained, and what of it is not ours to change.

Sequence length, global batch, precision, optimizer and data stay as the recipe or the user says; the layout, micro batch,
recompute and environment are what the planner chooses. Three sources give one `Recipe` value: the installed Megatron Bridge,
the catalog in this package (`parlaunch.model.catalog`), and a Hugging Face config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from parlaunch.frozen import HashedOnce, dataclass
from parlaunch.model.architecture import FUSED_ACTIVATIONS, Architecture
from parlaunch.model.layout import Recompute, Sizes
from parlaunch.model.matrices import ADAPTED, ADAPTER_RANK
from parlaunch.model.precision import QUANTIZED

PRECISIONS = ("bf16", "fp16", "fp32", "fp8cs", "fp8ds", "fp8sc", "fp8mx", "nvfp4")
"""bf16, fp16, fp32; FP8 with current, delayed or subchannel (block) scaling; MXFP8; NVFP4. Names as Megatron Bridge's recipes."""

TASKS = ("pretrain", "sft", "peft")


@dataclass(frozen=True, slots=True, kw_only=True)
class Features(HashedOnce):
    """What a recipe switches on that costs or saves time or memory."""

    dispatcher: str | None = None  # MoE: allgather | alltoall | deepep | hybridep; None: the default of the machine
    ep_overlap: bool = False  # expert all-to-all under the next micro batch's compute
    tp_overlap: bool = False  # userbuffer GEMM overlap
    gather_in_step: bool = False  # weights are gathered while the optimizer steps
    cuda_graph: str | None = None  # None | "transformer_engine" | "local" | "full_iteration"
    cuda_graph_scope: tuple[str, ...] = ()  # modules captured; empty with a graph: everything the implementation takes
    fsdp: bool = False  # Megatron-FSDP
    nccl_ub: bool = False  # NCCL user buffers
    distributed_optimizer: bool = True
    optimizer_instances: int = 1  # of the data-parallel ranks: `num_distributed_optimizer_instances`
    grad_reduce_fp32: bool = False
    fp8_param_gather: bool = False
    fp4_param_gather: bool = False
    precision_aware_optimizer: bool = False
    moments: str = "float32"  # dtype of Adam's moments
    master: str = "float32"  # of its master weights, where the optimizer is precision-aware
    optimizer_offload: float = 0.0  # share of the optimizer kept in host memory
    offload_modules: tuple[str, ...] = ()  # fine-grained activation offloading
    cpu_offload_layers: int = 0  # layers whose activations go to host memory
    force_balance: bool = False  # router made uniform: benchmarks only
    # Tokens over an even share that every expert takes: more are dropped, fewer filled up; 0: none is dropped.
    expert_capacity: float = 0.0  # `moe_expert_capacity_factor`, with `moe_pad_expert_input_to_capacity`
    paged_stash: bool = False
    router_padding: bool = False  # each expert's tokens padded to what FP8 or FP4 multiplies
    cross_entropy: str | None = None  # te | te_wide | native | unfused; None: nobody said, so as the framework has it
    external_cuda_graph: bool = False  # captured by Megatron's older switch, which `cuda_graph_impl` does not undo
    frozen_language_model: bool = False  # only what feeds it is trained: vision, projection
    frozen_encoder: bool = False  # what stands in front of the language model is not trained
    # With task peft; defaults of Megatron Bridge's `peft/lora.py`. Dropout stands before an adapter.
    adapter_rank: int = ADAPTER_RANK
    adapter_targets: tuple[str, ...] = ADAPTED
    adapter_dropout: bool = False
    adapter_a2a: bool = False  # `a2a_experimental`: what row-parallel layers add travels all to all, not gathered whole
    fp8_attention: bool = False  # `fp8_dot_product_attention`, and `fp8_multi_head_attention` for what stands around it
    fp8_output: bool = False  # `fp8_output_proj`: the output layer too, where the others are in MXFP8
    bf16_ends: tuple[int, int] = (0, 0)  # first and last layers that stay in 16 bits: `first_last_layers_bf16`
    module_formats: tuple[tuple[str, str], ...] = ()  # (module, precision) where it is not the recipe's: `quant_recipe`
    fp8_activation_input: bool = False  # `activation_func_fp8_input_store`
    fused_accumulation: bool = (
        True  # products of weight gradients add to the sum themselves: `gradient_accumulation_fusion`
    )
    reduce_overlap: bool = True  # gradients are reduced under the backward pass: `overlap_grad_reduce`
    gather_overlap: bool = True  # weights are gathered under the forward pass: `overlap_param_gather`
    router_fusion: bool = True  # kernels of their own score and choose experts: `moe_router_fusion`
    activation_fusion: bool = True  # one kernel for a gated activation: `bias_activation_fusion`
    rope_fusion: bool = True  # one kernel rotates queries and keys, where there is one: `apply_rope_fusion`
    transformer_impl: str = "transformer_engine"  # or local: what Megatron's conditions go by
    transpose_cache: bool = True  # not `disable_parameter_transpose_cache`: FP8 weights stay transposed as well
    # What runs of other years and frameworks differ in.
    sequence_parallel: bool = True  # with TP
    framework: str | None = None  # software generation of a published run; None: Megatron Bridge as it is today

    def gathered_low(self, precision: str) -> bool:
        """Whether weights in this precision are kept and gathered in 8 or 4 bits, with no copy in 16."""
        return self.fp4_param_gather if precision == "nvfp4" else self.fp8_param_gather and precision.startswith("fp8")

    def wide_ends(self, precision: str) -> tuple[int, int]:
        """First and last layers that are in 16 bits where the others are in 8 or 4; delayed scaling has none
        (megatron/core/transformer/transformer_config.py:1402)."""
        return self.bf16_ends if precision.startswith(QUANTIZED) and precision != "fp8ds" else (0, 0)

    @property
    def dp_overlap(self) -> bool:
        """Whether gradients are reduced under the backward pass and weights gathered under the forward pass, both."""
        return self.reduce_overlap and self.gather_overlap

    @property
    def gradient_bytes(self) -> int:
        """Of an element of the buffers that gradients are summed in."""
        return 4 if self.grad_reduce_fp32 else 2


def rotated_in_one(a: Architecture, f: Features) -> bool:
    """Whether one kernel rotates queries, and one keys: Megatron Bridge takes it back for all but plain rotary embeddings."""
    return f.rope_fusion and a.position_embedding_type == "rope"


def activated_in_one(a: Architecture, f: Features) -> bool:
    """Whether one kernel makes the product of a gate and its activation."""
    return f.activation_fusion and a.activation_func in FUSED_ACTIVATIONS


MTP = "mtp"
"""Name of the layers of multi-token prediction among `Features.module_formats`."""


def predicted_in(a: Architecture, f: Features, precision: str) -> str:
    """What layers of multi-token prediction train in: what the recipe says of them; Megatron Core has them not in FP4, but for stacks of
    hybrids, which see to it themselves (megatron/core/transformer/multi_token_prediction.py, `_proj_and_transformer_layer`;
    models/hybrid/hybrid_block.py:329)."""
    own = "bf16" if precision == "nvfp4" and not a.hybrid_layer_pattern else precision
    return dict(f.module_formats).get(MTP, own) if precision.startswith(QUANTIZED) else own


def features_from_json(data: Mapping[str, Any] | None) -> Features:
    """Features as `recipes.json` and tables of runs write them."""
    given = dict(data or {})
    impl = "transformer_engine" if given.get("external_cuda_graph") else None  # what Megatron makes of its older switch
    scope: tuple[str, ...] = ()
    if (graph := given.get("cuda_graph")) and graph[0] not in (None, "none"):
        impl = graph[0]
        modules = graph[1] if len(graph) > 1 else ()
        scope = tuple([modules] if isinstance(modules, str) else modules or ())
        if "full_iteration" in scope or impl == "full_iteration":
            impl, scope = "full_iteration", ()
    return Features(
        dispatcher=given.get("dispatcher"),
        ep_overlap=bool(given.get("ep_overlap")),
        tp_overlap=bool(given.get("tp_overlap")),
        gather_in_step=bool(given.get("gather_in_step")),
        cuda_graph=impl,
        cuda_graph_scope=scope,
        fsdp=bool(given.get("fsdp")),
        nccl_ub=bool(given.get("nccl_ub")),
        distributed_optimizer=not given.get("no_distributed_optimizer"),
        optimizer_instances=int(given.get("optimizer_instances") or 1),
        reduce_overlap=not (given.get("no_dp_overlap") or given.get("no_reduce_overlap")),
        gather_overlap=not (given.get("no_dp_overlap") or given.get("no_gather_overlap")),
        grad_reduce_fp32=bool(given.get("grad_reduce_fp32")),
        fp8_param_gather=bool(given.get("fp8_param_gather")),
        fp4_param_gather=bool(given.get("fp4_param_gather")),
        precision_aware_optimizer=bool(given.get("precision_aware_optimizer")),
        moments=str(given.get("moments") or "float32"),
        master=str(given.get("master") or "float32"),
        optimizer_offload=float(given.get("optimizer_offload") or 0.0),
        offload_modules=tuple(given.get("offload_modules") or ()),
        cpu_offload_layers=int(given.get("cpu_offload_layers") or 0),
        force_balance=bool(given.get("force_balance")),
        expert_capacity=float(given.get("expert_capacity") or 0.0),
        paged_stash=bool(given.get("paged_stash")),
        router_padding=bool(given.get("router_padding")),
        cross_entropy=given.get("cross_entropy"),
        external_cuda_graph=bool(given.get("external_cuda_graph")),
        frozen_language_model=bool(given.get("frozen_language_model")),
        frozen_encoder=bool(given.get("frozen_encoder")),
        adapter_rank=int(given.get("adapter_rank") or ADAPTER_RANK),
        adapter_targets=tuple(given.get("adapter_targets") or ADAPTED),
        adapter_dropout=bool(given.get("adapter_dropout")),
        adapter_a2a=bool(given.get("adapter_a2a")),
        fp8_attention=bool(given.get("fp8_attention")),
        fp8_output=bool(given.get("fp8_output")),
        bf16_ends=_ends(given.get("bf16_ends")),
        module_formats=tuple(sorted((given.get("module_formats") or {}).items())),
        fp8_activation_input=bool(given.get("fp8_activation_input")),
        fused_accumulation=bool(given.get("fused_accumulation", True)),
        router_fusion=bool(given.get("router_fusion", True)),
        activation_fusion=bool(given.get("activation_fusion", True)),
        rope_fusion=bool(given.get("rope_fusion", True)),
        transformer_impl=str(given.get("transformer_impl") or "transformer_engine"),
        transpose_cache=bool(given.get("transpose_cache", True)),
        sequence_parallel=bool(given.get("sequence_parallel", True)),
        framework=given.get("framework"),
    )


def _ends(given: Any) -> tuple[int, int]:
    first, last = given or (0, 0)
    return int(first), int(last)


PLACEHOLDER = 1024
"""`seq_length` of diffusion recipes that leave the number of tokens to their data: `Recipe.mock_tokens` says how many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults(Sizes):
    """The layout a recipe comes with. None: the recipe does not say, or the catalog does not know."""

    sequence_parallel: bool | None = None
    recompute: Recompute | None = None
    layers_per_chunk: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(HashedOnce):
    """One training configuration."""

    name: str
    source: str  # bridge | catalog | hf-config
    task: str  # pretrain | sft | peft
    model: str  # short family name: "llama3_8b"
    model_id: str | None  # Hugging Face name, an entry of architectures.json
    architecture: Architecture
    seq_length: int
    global_batch_size: int
    precision: str
    gpus: int | None = None  # GPUs the recipe was written for
    hardware: str | None = None  # and their model: h100, gb200, …
    defaults: Defaults = field(default_factory=Defaults)
    features: Features = field(default_factory=Features)
    benchmark: bool = False  # a performance benchmark: router balanced, layout tuned for one machine
    feasible: bool = True  # False: as published it breaks one of Megatron's own rules
    violations: tuple[str, ...] = ()  # ids of the rules that it breaks by itself, whatever the layout
    folder: str | None = None  # folder of Megatron Bridge's recipes that it is from: llama, deepseek, …
    optimizer: str = "adam"  # adam | muon
    packing: str | None = None  # offline: a pack is the micro batch | in_batch | None: samples are not packed
    loader: str | None = None  # energon: a data loader that cuts micro batches itself
    mock_tokens: int | None = None  # tokens of a sample of its mock data, where the recipe names a placeholder
    train_iters: int | None = None  # iterations of the whole run, where known
    added_mtp_layers: int = 0  # multi-token prediction layers that it adds to its model's
    unsettled: tuple[str, ...] = ()  # switches that some release of Megatron Bridge turns on for it, or no feature has
    bare: tuple[
        str, ...
    ] = ()  # sections, or parts of them, in which a key does nothing: empty, a preset's name, not handed on
    lacks: tuple[str, ...] = ()  # what the installed Megatron Core cannot do, of what newer ones can: mhc
    env: Mapping[str, str] = field(
        default_factory=dict, hash=False
    )  # variables the recipe sets by setdefault, where known
    spoken: tuple[str, ...] = ()  # KEY=VALUE that the user's options amount to, beside the planned sizes

    @property
    def frozen(self) -> bool:
        """Whether the weights of the layers get no gradients: with adapters beside them, or frozen as a whole."""
        return self.task == "peft" or self.features.frozen_language_model
