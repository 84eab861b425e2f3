"""The environment as a table: name, value as a function of the situation, reason, source.

`B/` is Megatron Bridge `src/megatron/bridge/`, `S/` its `scripts/performance/`, `M/` Megatron-LM `megatron/`. Values are
those of NVIDIA's benchmark recipes wherever these follow a rule; `TUNED` holds what they set for single models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from parlaunch.datasheet import product
from parlaunch.layout import Layout
from parlaunch.machine import Cluster
from parlaunch.recipe import Features, Recipe

NVL72 = ("GB200", "GB300", "VR200")
"""Products whose NVLink leaves the node."""

RACK_GPUS, HALF_RACK_GPUS = 72, 36  # what one rack joins, NVL72 and NVL36


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What a rule may look at."""

    cluster: Cluster
    recipe: Recipe
    layout: Layout
    features: Features  # the recipe's, less what this layout or machine makes illegal
    torch: tuple[int, int] | None = None
    device: str = "cuda"

    @cached_property
    def gpu(self) -> str:
        """Short product name, "H100 SXM"; NVML's where no data sheet knows it."""
        sheet = product(self.cluster.gpu.name)
        return sheet.name if sheet else self.cluster.gpu.name

    @cached_property
    def capability(self) -> tuple[int, int] | None:
        sheet = product(self.cluster.gpu.name)
        return self.cluster.gpu.compute_capability or (sheet.compute_capability if sheet else None)

    @property
    def blackwell(self) -> bool:
        """Blackwell or newer, where kernels of several queues run side by side as launched."""
        return (self.capability or (0, 0)) >= (10, 0)

    @property
    def hopper(self) -> bool:
        return (self.capability or (0, 0))[0] == 9

    @cached_property
    def rack_nvlink(self) -> bool:
        """NVLink leaves the node, and IMEX lets us use it there."""
        nodes = self.cluster.nodes
        if any(node.imex_channels == 0 for node in nodes):
            return False
        named = any(self.gpu.startswith(name) for name in NVL72)
        return named or any(node.link_type == "nvswitch_mnnvl" for node in nodes)

    @cached_property
    def in_reach(self) -> int:
        """GPUs of this job that one NVLink domain joins."""
        sizes = [len(domain) for domain in self.cluster.nvlink_domains]
        largest = max(sizes, default=1)
        return largest if self.rack_nvlink else min(largest, max(self.cluster.gpus_per_node, 1))

    @cached_property
    def nvlink_domain(self) -> int:
        """GPUs that one NVLink domain joins: the rack's where it is one, whatever part of it the job holds."""
        if not self.rack_nvlink:
            return self.in_reach
        sizes = [len(domain) for domain in self.cluster.nvlink_domains]
        return HALF_RACK_GPUS if sizes.count(HALF_RACK_GPUS) > 1 and max(sizes) == HALF_RACK_GPUS else RACK_GPUS

    @property
    def multi_node(self) -> bool:
        return len(self.cluster.nodes) > 1

    @property
    def full_iteration(self) -> bool:
        return self.features.cuda_graph == "full_iteration"

    @property
    def moe(self) -> bool:
        return bool(self.recipe.architecture.num_moe_experts)

    @property
    def hybridep(self) -> bool:
        return self.moe and self.features.dispatcher == "hybridep"

    @cached_property
    def op_fuser(self) -> bool:
        """Transformer Engine's fused grouped MLP: MXFP8 experts behind HybridEP on Blackwell, where a recipe keeps
        every shape static: paged stash, a full-iteration graph, or captured Mamba layers on a rack."""
        if not (self.blackwell and self.hybridep and self.recipe.precision == "fp8mx"):
            return False
        mamba = "mamba" in self.features.cuda_graph_scope and self.rack_nvlink
        return self.features.paged_stash or self.full_iteration or mamba

    @property
    def expandable(self) -> bool:
        """The allocator may grow segments: not with NCCL's own buffers, nor under Megatron-FSDP."""
        return not (self.features.nccl_ub or self.layout.fsdp)


Value = str | tuple[str, str] | None
"""A value, a value with its own reason, or None: leave the variable alone."""


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    value: Callable[[Situation], Value]
    reason: str
    source: str
    tuning: bool = False  # a recipe that says its own environment decides alone
    neutral: str | None = None  # undoes the recipe's default where this rule leaves the variable alone
    devices: tuple[str, ...] = ("cuda",)


# --- Values -----------------------------------------------------------------------------------------------------------


def connections(s: Situation) -> Value:
    """CUDA_DEVICE_MAX_CONNECTIONS, by what has to be issued in order."""
    x = s.layout
    if s.blackwell:
        return (
            "32",
            "Blackwell and newer: as many hardware queues as there are, communication overlaps without ordering",
        )
    if x.fsdp:
        return "32", "Megatron-FSDP stops at start-up when this is 1: its gathers run beside the compute"
    if s.features.ep_overlap:
        if (
            s.features.dispatcher == "alltoall"
            and s.recipe.architecture.kind == "llm"
            and "qwen35" not in s.recipe.model
        ):
            return (
                "8",
                "expert all-to-all overlaps compute: 1 would put both into one queue; 8 is NVIDIA's for alltoall",
            )
        return "32", "expert all-to-all overlaps compute: 1 would put both into one queue"
    if x.tp > 1 or x.cp > 1:
        both = " and ".join(f"{n}={v}" for n, v in (("tp", x.tp), ("cp", x.cp)) if v > 1)
        return (
            "1",
            f"before Blackwell, {both} needs launch order kept, so that communication starts before the GEMM it hides under",
        )
    return "32", "neither tensor nor context parallel: nothing depends on launch order"


def _margin(_s: Situation) -> Value:
    return "20"


def _record_streams(s: Situation) -> Value:
    if s.full_iteration and not s.features.nccl_ub:
        return "0", "a full-iteration CUDA graph keeps tensors alive itself; the allocator records streams for it"
    return "1"


def _allocator(s: Situation) -> str | None:
    if not s.expandable:
        return None
    graph = ",graph_capture_record_stream_reuse:True" if s.full_iteration else ""
    return "expandable_segments:True" + graph


def _allocator_both(s: Situation) -> str | None:
    """Under the new name too, where torch prefers it: 2.9 to 2.11 read it in part only (pytorch issue 183387)."""
    return _allocator(s) if s.torch is not None and s.torch >= (2, 12) else None


def _graph_register(s: Situation) -> Value:
    return "0" if s.expandable else None


def _nvls(s: Situation) -> Value:
    if s.features.nccl_ub:
        return "1", "NCCL user buffers are for NVLink SHARP; Megatron forces it on with them"
    return "0"


def _cta_policy(s: Situation) -> Value:
    return "1" if s.features.nccl_ub else None


def _chunk_size(s: Situation) -> Value:
    llama = s.recipe.model.startswith("llama")
    return "2097152" if llama and s.layout.pp > 1 and s.recipe.task != "peft" else None


def _ignore_affinity(s: Situation) -> Value:
    return "1" if s.gpu.startswith("B300") else None


def _mnnvl_use(s: Situation) -> Value:
    if not s.hybridep:
        return None
    if s.rack_nvlink:
        return "1", "NVLink joins nodes here, HybridEP may use it between them"
    return "0", "NVLink ends at the node here"


def _domain_size(s: Situation) -> Value:
    return str(s.nvlink_domain) if s.hybridep else None


def hybrid_ranks(s: Situation) -> Value:
    """Ranks of one expert group within reach of NVLink; None without HybridEP."""
    if not s.hybridep:
        return None
    return str(max(n for n in range(1, s.in_reach + 1) if s.layout.ep % n == 0))


def _combine_chunk(s: Situation) -> Value:
    return "128" if s.hybridep else None


def _no_imex(s: Situation) -> Value:
    blind = [n.hostname for n in s.cluster.nodes if n.imex_channels == 0 and n.link_type == "nvswitch_mnnvl"]
    if blind and s.multi_node:
        return (
            "0",
            f"no IMEX channel on {blind[0]}: NCCL would try NVLink between nodes and stop with CUDA_ERROR_NOT_PERMITTED",
        )
    return None


def _c2c(s: Situation) -> Value:
    return "1" if s.multi_node and s.gpu.startswith(("GB200", "GH200")) else None


def _gdr_level(s: Situation) -> Value:
    return "PHB" if s.multi_node and s.gpu.startswith(("GB200", "GH200")) else None


def _efa(s: Situation) -> bool:
    return s.multi_node and s.cluster.fabric.kind == "efa"


def _gid_index(s: Situation) -> Value:
    old = s.torch is not None and s.torch < (2, 5)  # NCCL before 2.21 cannot choose by itself
    return "3" if s.multi_node and s.cluster.fabric.kind == "roce" and old else None


def _threads(s: Situation) -> Value:
    """Physical cores a rank can count on, at most eight: the data loader's and the host optimizer's threads."""
    shares = []
    for node in s.cluster.nodes:
        logical = len(node.cpus_allowed) if node.cpus_allowed else None
        cores = (
            min(c for c in (node.cores, logical, node.cpu_limit) if c is not None) if node.cores or logical else None
        )
        if cores is None or not node.gpus:
            return None
        shares.append(int(cores) // len(node.gpus))
    share = max(1, min(shares, default=1))
    if s.features.optimizer_offload:
        return str(share), f"the optimizer steps on the CPU: all {share} cores of the rank's share"
    return str(min(share, 8))


def _cluster_order(s: Situation) -> Value:
    return "PCI_BUS_ID"


BENCHMARKS = "Megatron Bridge benchmark recipes, B/perf_recipes"

RULES: tuple[Rule, ...] = (
    Rule(
        "CUDA_DEVICE_MAX_CONNECTIONS", connections, "how many queues feed the GPU",
        "M/training/arguments.py:1454, B/training/config.py:1110, S/utils/overrides.py:257",
    ),
    Rule(
        "CUDA_DEVICE_ORDER", _cluster_order,
        "CUDA's numbers follow PCI addresses, as NVML's, nvidia-smi's and ours do; its default puts the fastest first",
        "CUDA C++ Programming Guide, environment variables",
    ),
    Rule(
        "NVTE_FWD_LAYERNORM_SM_MARGIN", _margin, "layer norms leave SMs to the communication kernels that run beside them",
        BENCHMARKS, tuning=True,
    ),
    Rule(
        "NVTE_BWD_LAYERNORM_SM_MARGIN", _margin, "layer norms leave SMs to the communication kernels that run beside them",
        BENCHMARKS, tuning=True,
    ),
    Rule(
        "TORCH_NCCL_HIGH_PRIORITY", lambda _s: "1", "communication streams go first, so that compute does not hold them back",
        "B/recipes/utils/environment_utils.py",
    ),
    Rule(
        "TORCH_NCCL_AVOID_RECORD_STREAMS", _record_streams,
        "tensors in flight are held by reference: recorded streams would keep their memory longer",
        "B/recipes/utils/environment_utils.py, B/perf_recipes/llama/gb200/llama3.py:67",
    ),
    Rule(
        "PYTORCH_CUDA_ALLOC_CONF", _allocator, "segments that grow: less memory lost to fragmentation in a long run",
        "B/recipes/utils/environment_utils.py, M/core/distributed/distributed_data_parallel_config.py:263",
        neutral="expandable_segments:False",
    ),
    Rule(
        "PYTORCH_ALLOC_CONF", _allocator_both,
        "the same under the name this torch reads first; Megatron's own checks look at the old one",
        "pytorch c10/core/AllocatorConfig.cpp",
    ),
    Rule(
        "NCCL_GRAPH_REGISTER", _graph_register,
        "growing segments cannot be registered by NCCL when a CUDA graph is captured: Megatron asks for 0 with them",
        "M/core/transformer/cuda_graphs.py:2194",
    ),
    Rule(
        "NCCL_NVLS_ENABLE", _nvls, "NVLink SHARP takes SMs and buffer memory, and pays only with NCCL user buffers",
        "B/recipes/utils/environment_utils.py, M/core/nccl_allocator.py:154",
    ),
    Rule(
        "NCCL_CTA_POLICY", _cta_policy, "with user buffers, NCCL needs fewer thread blocks: leave the SMs to compute",
        "S/utils/overrides.py:299", tuning=True,
    ),
    Rule(
        "NCCL_P2P_NET_CHUNKSIZE", _chunk_size, "pipeline stages send large activations: bigger pieces for the network",
        "B/perf_recipes/llama/gb200/llama31.py:66, S/utils/overrides.py:286", tuning=True,
    ),
    Rule(
        "NCCL_IGNORE_CPU_AFFINITY", _ignore_affinity,
        "on B300, NVIDIA pins ranks to single cores, which NCCL's own threads must be free to leave",
        "B/perf_recipes/llama/b300/llama31.py:79", neutral="0",
    ),
    Rule(
        "USE_MNNVL", _mnnvl_use, "does NVLink leave the node", "S/utils/utils.py:281",
    ),
    Rule(
        "NVLINK_DOMAIN_SIZE", _domain_size, "GPUs that HybridEP reaches over NVLink", "S/utils/utils.py:281",
    ),
    Rule(
        "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN", hybrid_ranks,
        "expert parallel ranks inside one NVLink domain; HybridEP sends the rest over the network",
        "S/utils/overrides.py:265, S/utils/utils.py:281",
    ),
    Rule(
        "NUM_OF_TOKENS_PER_CHUNK_COMBINE_API", _combine_chunk, "tokens HybridEP combines at a time", BENCHMARKS, tuning=True,
    ),
    Rule(
        "NVTE_CUTEDSL_FUSED_GROUPED_MLP", lambda s: "1" if s.op_fuser else None,
        "unset, Transformer Engine silently skips the fused grouped MLP that this recipe is written for",
        "M/core/transformer/moe/experts.py:454", neutral="0",
    ),
    Rule(
        "CUDNNFE_CLUSTER_OVERLAP_MARGIN",
        lambda s: "8" if s.op_fuser and (s.features.ep_overlap or "mamba" in s.features.cuda_graph_scope) else None,
        "the fused grouped MLP leaves clusters to the all-to-all beside it", "B/perf_recipes/qwen/gb200/qwen3_moe.py:186",
        tuning=True,
    ),
    Rule(
        "NVTE_CPU_OFFLOAD_V1", lambda s: "1" if s.features.offload_modules else None,
        "fine-grained activation offloading: Megatron stops without it on Transformer Engine 2.10 and newer",
        "B/training/config.py:2211",
    ),
    Rule(
        "NVTE_USE_FAST_MATH", lambda s: "1" if s.recipe.precision == "nvfp4" else None,
        "NVFP4 quantisation with the faster, slightly less exact arithmetic NVIDIA measures with", BENCHMARKS, tuning=True,
    ),
    Rule(
        "NVTE_ALLOW_NONDETERMINISTIC_ALGO", lambda s: "0" if s.recipe.model.startswith("deepseek") else None,
        "DeepSeek's attention: only kernels that repeat their result", "B/perf_recipes/deepseek/gb200/deepseek_v3.py:77",
        tuning=True,
    ),
    Rule("NVTE_NORM_FWD_USE_CUDNN", lambda _s: None, "norms by cuDNN, where NVIDIA measured them faster", BENCHMARKS, tuning=True),
    Rule("NVTE_NORM_BWD_USE_CUDNN", lambda _s: None, "norms by cuDNN, where NVIDIA measured them faster", BENCHMARKS, tuning=True),
    Rule(
        "NCCL_MNNVL_ENABLE", _no_imex, "NVLink between nodes needs IMEX", "NCCL user guide; NVIDIA/nccl issues 1483, 1925",
    ),
    Rule(
        "NCCL_NET_GDR_C2C", _c2c, "Grace: the NIC reaches GPU memory through the CPU's own link", "S/utils/executors.py:151",
    ),
    Rule(
        "NCCL_NET_GDR_LEVEL", _gdr_level, "Grace: GPU and NIC meet at the CPU, which is no detour here", "S/utils/executors.py:151",
    ),
    Rule("FI_PROVIDER", lambda s: "efa" if _efa(s) else None, "AWS: libfabric's EFA provider", "S/utils/csp_plugins.py:71"),
    Rule(
        "FI_EFA_USE_HUGE_PAGE", lambda s: "0" if _efa(s) else None,
        "AWS: huge pages do not survive the fork of data loader workers", "S/utils/csp_plugins.py:72",
    ),
    Rule(
        "NCCL_IB_GID_INDEX", _gid_index, "RoCE v2's usual index: NCCL before 2.21 cannot find it by itself",
        "NCCL user guide, NCCL_IB_GID_INDEX",
    ),
    Rule(
        "OMP_NUM_THREADS", _threads, "the rank's share of the cores, at most 8; unset, torchrun makes it 1 and warns",
        "torch/distributed/run.py", devices=("cuda", "cpu"),
    ),
)  # fmt: skip


# --- Single models ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What NVIDIA sets for one model's benchmark. Empty fields match everything."""

    names: tuple[str, ...]
    value: str
    models: tuple[str, ...]  # beginnings of `Recipe.model`
    gpus: tuple[str, ...] = ()  # beginnings of short product names
    precisions: tuple[str, ...] = ()
    dispatchers: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    world: tuple[int, int] = (1, 1 << 30)
    when: Callable[[Situation], bool] = lambda _s: True
    reason: str

    def fits(self, s: Situation) -> bool:
        return (
            s.recipe.model.startswith(self.models)
            and (not self.gpus or s.gpu.startswith(self.gpus))
            and (not self.precisions or s.recipe.precision in self.precisions)
            and (not self.dispatchers or s.features.dispatcher in self.dispatchers)
            and (not self.tasks or s.recipe.task in self.tasks)
            and self.world[0] <= s.layout.world <= self.world[1]
            and self.when(s)
        )


_MARGINS = ("NVTE_FWD_LAYERNORM_SM_MARGIN", "NVTE_BWD_LAYERNORM_SM_MARGIN")
_CUDNN = ("NVTE_NORM_FWD_USE_CUDNN", "NVTE_NORM_BWD_USE_CUDNN")
_BY_CUDNN = "NVIDIA measured this model with cuDNN's norms"

TUNED: tuple[Tuned, ...] = (
    Tuned(names=_MARGINS, value="16", models=("qwen3_235b",), gpus=("B200", "H100"), dispatchers=("alltoall",),
          reason="Qwen3 235B with alltoall: NVIDIA leaves 16 SMs"),
    Tuned(names=_MARGINS, value="10", models=("qwen3_30b",), gpus=("H100",), precisions=("bf16",), dispatchers=("hybridep",),
          world=(16, 16), reason="Qwen3 30B on 16 H100: NVIDIA leaves 10 SMs"),
    Tuned(names=_MARGINS, value="10", models=("nemotron_3_5_lightning", "nemotron_35_lightning"), gpus=("H100",), precisions=("bf16",),
          dispatchers=("hybridep",), reason="Nemotron 3.5 Lightning on H100: NVIDIA leaves 10 SMs"),
    Tuned(names=_MARGINS, value="0", models=("qwen35_vl_35b",), gpus=("H100",), precisions=("bf16",),
          reason="Qwen3.5 35B VL on H100: NVIDIA leaves none"),
    Tuned(names=("NUM_OF_TOKENS_PER_CHUNK_COMBINE_API",), value="64", models=("nemotron_3_super", "qwen35_vl_35b"), gpus=("H100",),
          precisions=("bf16",), dispatchers=("hybridep",), reason="this model on H100: NVIDIA combines 64 at a time"),
    Tuned(names=("NCCL_CTA_POLICY",), value="1", models=("llama3_8b",), gpus=("H100",), precisions=("fp8cs",),
          tasks=("pretrain",), reason="Llama 3 8B in FP8 on H100: NVIDIA measured fewer thread blocks to be enough"),
    Tuned(names=("TORCH_NCCL_AVOID_RECORD_STREAMS",), value="1", models=("deepseek_v3",), gpus=("B300",),
          when=lambda s: s.full_iteration, reason="DeepSeek V3 on B300: NVIDIA holds tensors by reference under its graph too"),
    Tuned(names=("PYTORCH_CUDA_ALLOC_CONF",), value="expandable_segments:True,graph_capture_record_stream_reuse:True",
          models=("nemotron_3_ultra",), gpus=("GB200",), when=lambda s: s.expandable,
          reason="Nemotron 3 Ultra on GB200: NVIDIA reuses recorded streams without a graph too"),
    Tuned(names=("USE_MNNVL",), value="1", models=("qwen3_next",), dispatchers=("alltoall",),
          when=lambda s: s.rack_nvlink, reason="Qwen3 Next: NVIDIA names the rack although alltoall does not ask"),
    Tuned(names=("NVLINK_DOMAIN_SIZE",), value="72", models=("qwen3_next",), dispatchers=("alltoall",),
          when=lambda s: s.rack_nvlink, reason="Qwen3 Next: NVIDIA names the rack although alltoall does not ask"),
    Tuned(names=_CUDNN, value="1", models=("llama3",), tasks=("sft",), reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("llama3_8b",), gpus=("H100",), precisions=("fp8cs",), reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("llama3_70b",), gpus=NVL72, when=lambda s: s.layout.fsdp, reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("llama31_405b",), gpus=("GB200",), precisions=("fp8cs",), reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("llama31_405b",), gpus=("B200", "B300"), precisions=("fp8cs",), world=(256, 256), reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("nemotron_3_nano",), when=lambda s: s.features.cuda_graph is not None, reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("gpt_oss_20b",), gpus=NVL72, reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("deepseek",), precisions=("fp8mx",), when=lambda s: s.full_iteration, reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("qwen35_vl_35b",), gpus=("GB200",), reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("qwen35_vl_35b",), gpus=("H100",), precisions=("bf16",), reason=_BY_CUDNN),
)  # fmt: skip
"""First match wins. The rest of NVIDIA's single settings, which follow no rule, are listed by scripts/check_environment.py."""


def tuned(s: Situation, name: str) -> tuple[str, str] | None:
    """(value, reason) that NVIDIA's benchmark of this model on this machine has for a variable."""
    if not s.recipe.benchmark:
        return None
    return next(((t.value, t.reason) for t in TUNED if name in t.names and t.fits(s)), None)
