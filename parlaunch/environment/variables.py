"""The environment as a table: name, value as a function of the situation, reason, source.

`B/` is Megatron Bridge `src/megatron/bridge/`, `S/` its `scripts/performance/`, `M/` Megatron-LM `megatron/`. Values are
those of NVIDIA's benchmark recipes wherever these follow a rule; `TUNED` holds what they set for single models.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import Cluster
from parlaunch.hardware.datasheet import Product
from parlaunch.hardware.derived import sheet_of
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Features, Recipe
from parlaunch.rules.switches import DETERMINISTIC

USUAL_RACK = 72
"""GPUs that NVLink joins where it leaves the node and no data sheet says how far."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What an entry may look at."""

    cluster: Cluster
    recipe: Recipe
    layout: Layout
    features: Features  # the recipe's or the plan's, less what this layout or machine makes illegal
    planned: Features | None = None  # the plan's, where it chose any
    torch: tuple[int, int] | None = None
    device: str = "cuda"

    @cached_property
    def sheet(self) -> Product | None:
        """The GPU's data sheet; None when there is none."""
        return sheet_of(self.cluster.gpu)

    @property
    def repeats(self) -> bool:
        """Whether a second run has to give the same numbers, bit by bit."""
        return DETERMINISTIC in self.recipe.unsettled

    @property
    def hardware(self) -> str | None:
        """The GPU as Megatron Bridge's recipes name it, "h100"; None when none was written for it."""
        return self.sheet.hardware if self.sheet else None

    @cached_property
    def capability(self) -> tuple[int, int] | None:
        return self.cluster.gpu.compute_capability or (self.sheet.compute_capability if self.sheet else None)

    @property
    def nics_behind_cpu(self) -> bool:
        """GPU and NIC meet at the CPU that the GPU is built with."""
        return self.multi_node and self.sheet is not None and self.sheet.nics_behind_cpu

    @property
    def blackwell(self) -> bool:
        """Blackwell or newer, where kernels of several queues run side by side as launched."""
        return (self.capability or (0, 0)) >= (10, 0)

    @cached_property
    def rack_nvlink(self) -> bool:
        """NVLink leaves the node, and IMEX lets us use it there."""
        nodes = self.cluster.nodes
        if any(node.imex_channels == 0 for node in nodes):
            return False
        named = self.sheet is not None and self.sheet.rack_gpus is not None
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
        whole = (self.sheet and self.sheet.rack_gpus) or USUAL_RACK
        half = whole // 2  # as NVL36 has it
        sizes = [len(domain) for domain in self.cluster.nvlink_domains]
        return half if sizes.count(half) > 1 and max(sizes) == half else whole

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
class Entry:
    """One variable, with its value where the facts ask for one."""

    name: str
    value: Callable[[Facts], Value]
    reason: str
    source: str
    tuning: bool = False  # a recipe that says its own environment decides alone
    neutral: str | None = None  # undoes the recipe's default where this entry leaves the variable alone
    devices: tuple[str, ...] = ("cuda",)


# --- Values -----------------------------------------------------------------------------------------------------------


def connections(s: Facts) -> Value:
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
        if s.features.dispatcher == "alltoall" and s.recipe.architecture.kind == "llm":
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


def _margin(_s: Facts) -> Value:
    return "20"


def _record_streams(s: Facts) -> Value:
    if s.full_iteration and not s.features.nccl_ub:
        return "0", "a full-iteration CUDA graph keeps tensors alive itself; the allocator records streams for it"
    return "1"


def _allocator(s: Facts) -> str | None:
    if not s.expandable:
        return None
    graph = ",graph_capture_record_stream_reuse:True" if s.full_iteration else ""
    return "expandable_segments:True" + graph


def _allocator_both(s: Facts) -> str | None:
    """Under the new name too, where torch prefers it: 2.9 to 2.11 read it in part only (pytorch issue 183387)."""
    return _allocator(s) if s.torch is not None and s.torch >= (2, 12) else None


def _graph_register(s: Facts) -> Value:
    return "0" if s.expandable else None


def _nvls(s: Facts) -> Value:
    if s.features.nccl_ub:
        return "1", "NCCL user buffers are for NVLink SHARP; Megatron forces it on with them"
    return "0"


def _cta_policy(s: Facts) -> Value:
    return "1" if s.features.nccl_ub else None


def _repeatable(s: Facts) -> Value:
    if s.repeats:  # bridge/recipes/utils/determinism_utils.py:38
        return "0", "deterministic_mode: only attention that repeats its result"
    # A recipe that sets variables has it among them, or not.
    return "0" if s.recipe.folder == "deepseek" and not s.recipe.env else None


def _chunk_size(s: Facts) -> Value:
    return "2097152" if s.recipe.folder == "llama" and s.layout.pp > 1 and s.recipe.task != "peft" else None


def _ignore_affinity(s: Facts) -> Value:
    return "1" if s.sheet is not None and s.sheet.single_core_ranks else None


def _mnnvl_use(s: Facts) -> Value:
    if not s.hybridep:
        return None
    if s.rack_nvlink:
        return "1", "NVLink joins nodes here, HybridEP may use it between them"
    return "0", "NVLink ends at the node here"


def _domain_size(s: Facts) -> Value:
    return str(s.nvlink_domain) if s.hybridep else None


def hybrid_ranks(s: Facts) -> Value:
    """Ranks of one expert group within reach of NVLink; None without HybridEP."""
    if not s.hybridep:
        return None
    return str(max(n for n in range(1, s.in_reach + 1) if s.layout.ep % n == 0))


def _combine_chunk(s: Facts) -> Value:
    return "128" if s.hybridep else None


def _no_imex(s: Facts) -> Value:
    blind = [n.hostname for n in s.cluster.nodes if n.imex_channels == 0 and n.link_type == "nvswitch_mnnvl"]
    if blind and s.multi_node:
        return (
            "0",
            f"no IMEX channel on {blind[0]}: NCCL would try NVLink between nodes and stop with CUDA_ERROR_NOT_PERMITTED",
        )
    return None


def _c2c(s: Facts) -> Value:
    return "1" if s.nics_behind_cpu else None


def _gdr_level(s: Facts) -> Value:
    if _slingshot(s):
        return "PHB", "Slingshot: the adapter sits on the GPU's own socket, and GPUDirect works that far"
    return "PHB" if s.nics_behind_cpu else None


def _efa(s: Facts) -> bool:
    return s.multi_node and s.cluster.fabric.kind == "efa"


def _libfabric(s: Facts) -> Value:
    """The provider of libfabric for fabrics that NCCL reaches through the aws-ofi-nccl plugin alone."""
    if _slingshot(s):
        return "cxi", "Slingshot: libfabric's provider for HPE's adapters"
    return "efa" if _efa(s) else None


def _slingshot(s: Facts) -> bool:
    return s.multi_node and s.cluster.fabric.kind == "slingshot"


def _only_slingshot(value: str) -> Callable[[Facts], Value]:
    return lambda s: value if _slingshot(s) else None


def _gid_index(s: Facts) -> Value:
    old = s.torch is not None and s.torch < (2, 5)  # NCCL before 2.21 cannot choose by itself
    return "3" if s.multi_node and s.cluster.fabric.kind == "roce" and old else None


def _threads(s: Facts) -> Value:
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


def _cluster_order(s: Facts) -> Value:
    return "PCI_BUS_ID"


SLINGSHOT = "NCCL guides of CSCS (docs.cscs.ch) and Isambard (docs.isambard.ac.uk)"
BENCHMARKS = "Megatron Bridge benchmark recipes, B/perf_recipes"

ENTRIES: tuple[Entry, ...] = (
    Entry(
        "CUDA_DEVICE_MAX_CONNECTIONS", connections, "how many queues feed the GPU",
        "M/training/arguments.py:1414, B/training/config.py:1102, S/utils/overrides.py:257",
    ),
    Entry(
        "CUDA_DEVICE_ORDER", _cluster_order,
        "CUDA's numbers follow PCI addresses, as NVML's, nvidia-smi's and ours do; its default puts the fastest first",
        "CUDA C++ Programming Guide, environment variables",
    ),
    Entry(
        "NVTE_FWD_LAYERNORM_SM_MARGIN", _margin, "layer norms leave SMs to the communication kernels that run beside them",
        BENCHMARKS, tuning=True,
    ),
    Entry(
        "NVTE_BWD_LAYERNORM_SM_MARGIN", _margin, "layer norms leave SMs to the communication kernels that run beside them",
        BENCHMARKS, tuning=True,
    ),
    Entry(
        "TORCH_NCCL_HIGH_PRIORITY", lambda _s: "1", "communication streams go first, so that compute does not hold them back",
        "B/recipes/utils/environment_utils.py",
    ),
    Entry(
        "TORCH_NCCL_AVOID_RECORD_STREAMS", _record_streams,
        "tensors in flight are held by reference: recorded streams would keep their memory longer",
        "B/recipes/utils/environment_utils.py, B/perf_recipes/llama/gb200/llama3.py:65",
    ),
    Entry(
        "PYTORCH_CUDA_ALLOC_CONF", _allocator, "segments that grow: less memory lost to fragmentation in a long run",
        "B/recipes/utils/environment_utils.py, M/core/distributed/distributed_data_parallel_config.py:257",
        neutral="expandable_segments:False",
    ),
    Entry(
        "PYTORCH_ALLOC_CONF", _allocator_both,
        "the same under the name this torch reads first; Megatron's own checks look at the old one",
        "pytorch c10/core/AllocatorConfig.cpp",
    ),
    Entry(
        "NCCL_GRAPH_REGISTER", _graph_register,
        "growing segments cannot be registered by NCCL when a CUDA graph is captured: Megatron asks for 0 with them",
        "M/core/transformer/cuda_graphs.py:2103",
    ),
    Entry(
        "NCCL_NVLS_ENABLE", _nvls, "NVLink SHARP takes SMs and buffer memory, and pays only with NCCL user buffers",
        "B/recipes/utils/environment_utils.py, M/core/nccl_allocator.py:154",
    ),
    Entry(
        "NCCL_CTA_POLICY", _cta_policy, "with user buffers, NCCL needs fewer thread blocks: leave the SMs to compute",
        "S/utils/overrides.py:299", tuning=True,
    ),
    Entry(
        "NCCL_P2P_NET_CHUNKSIZE", _chunk_size, "pipeline stages send large activations: bigger pieces for the network",
        "B/perf_recipes/llama/gb200/llama31.py:64, S/utils/overrides.py:286", tuning=True,
    ),
    Entry(
        "NCCL_IGNORE_CPU_AFFINITY", _ignore_affinity,
        "on B300, NVIDIA pins ranks to single cores, which NCCL's own threads must be free to leave",
        "B/perf_recipes/llama/b300/llama31.py:78", neutral="0",
    ),
    Entry(
        "USE_MNNVL", _mnnvl_use, "does NVLink leave the node", "S/utils/utils.py:284",
    ),
    Entry(
        "NVLINK_DOMAIN_SIZE", _domain_size, "GPUs that HybridEP reaches over NVLink", "S/utils/utils.py:284",
    ),
    Entry(
        "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN", hybrid_ranks,
        "expert parallel ranks inside one NVLink domain; HybridEP sends the rest over the network",
        "S/utils/overrides.py:265, S/utils/utils.py:284",
    ),
    Entry(
        "NUM_OF_TOKENS_PER_CHUNK_COMBINE_API", _combine_chunk, "tokens HybridEP combines at a time", BENCHMARKS, tuning=True,
    ),
    Entry(
        "NVTE_CUTEDSL_FUSED_GROUPED_MLP", lambda s: "1" if s.op_fuser else None,
        "unset, Transformer Engine silently skips the fused grouped MLP that this recipe is written for",
        "M/core/transformer/moe/experts.py:398", neutral="0",
    ),
    Entry(
        "CUDNNFE_CLUSTER_OVERLAP_MARGIN",
        lambda s: "8" if s.op_fuser and (s.features.ep_overlap or "mamba" in s.features.cuda_graph_scope) else None,
        "the fused grouped MLP leaves clusters to the all-to-all beside it", "B/perf_recipes/qwen/gb200/qwen3_moe.py:187",
        tuning=True,
    ),
    Entry(
        "NVTE_CPU_OFFLOAD_V1", lambda s: "1" if s.features.offload_modules else None,
        "fine-grained activation offloading: Megatron stops without it on Transformer Engine 2.10 and newer",
        "B/training/config.py:2055",
    ),
    Entry(
        "NVTE_USE_FAST_MATH", lambda s: "1" if s.recipe.precision == "nvfp4" else None,
        "NVFP4 quantisation with the faster, slightly less exact arithmetic NVIDIA measures with", BENCHMARKS, tuning=True,
    ),
    Entry(
        "NVTE_ALLOW_NONDETERMINISTIC_ALGO", _repeatable, "DeepSeek's attention: only kernels that repeat their result",
        "B/perf_recipes/deepseek/gb200/deepseek_v3.py:75",
    ),
    Entry(
        "NCCL_ALGO", lambda s: "Ring" if s.repeats else None,
        "deterministic_mode: Megatron Bridge stops without an algorithm that sums in the same order", "B/training/config.py:1057",
    ),
    Entry(
        "CUBLAS_WORKSPACE_CONFIG", lambda s: ":4096:8" if s.repeats else None,
        "deterministic_mode: torch refuses cuBLAS without a workspace of fixed size", "B/recipes/utils/determinism_utils.py:38",
    ),
    Entry("NVTE_NORM_FWD_USE_CUDNN", lambda _s: None, "norms by cuDNN, where NVIDIA measured them faster", BENCHMARKS, tuning=True),
    Entry("NVTE_NORM_BWD_USE_CUDNN", lambda _s: None, "norms by cuDNN, where NVIDIA measured them faster", BENCHMARKS, tuning=True),
    Entry(
        "NCCL_MNNVL_ENABLE", _no_imex, "NVLink between nodes needs IMEX", "NCCL user guide; NVIDIA/nccl issues 1483, 1925",
    ),
    Entry(
        "NCCL_NET_GDR_C2C", _c2c, "Grace: the NIC reaches GPU memory through the CPU's own link", "S/utils/executors.py:151",
    ),
    Entry(
        "NCCL_NET_GDR_LEVEL", _gdr_level, "Grace: GPU and NIC meet at the CPU, which is no detour here", "S/utils/executors.py:151",
    ),
    Entry("FI_PROVIDER", _libfabric, "AWS: libfabric's EFA provider", "S/utils/csp_plugins.py:71; CSCS and Isambard documentation, NCCL"),
    Entry(
        "NCCL_NET", _only_slingshot("AWS Libfabric"),
        "Slingshot: NCCL stops when the aws-ofi-nccl plugin is missing, instead of going over TCP unseen", SLINGSHOT,
    ),
    Entry(
        "FI_CXI_DEFAULT_CQ_SIZE", _only_slingshot("131072"),
        "Slingshot: NCCL has more messages in flight than the provider's queue holds by default", SLINGSHOT,
    ),
    Entry(
        "FI_CXI_DISABLE_HOST_REGISTER", _only_slingshot("1"),
        "Slingshot: NCCL's buffers are registered by CUDA already; registering them again has deadlocked", SLINGSHOT,
    ),
    Entry(
        "FI_MR_CACHE_MONITOR", _only_slingshot("userfaultfd"),
        "Slingshot: the provider's default way to watch memory hooks into the allocator, which deadlocks with NCCL", SLINGSHOT,
    ),
    Entry(
        "NCCL_CROSS_NIC", _only_slingshot("1"), "Slingshot: dragonfly networks have no rails, rings may change the port", SLINGSHOT,
    ),
    Entry(
        "FI_EFA_USE_HUGE_PAGE", lambda s: "0" if _efa(s) else None,
        "AWS: huge pages do not survive the fork of data loader workers", "S/utils/csp_plugins.py:72",
    ),
    Entry(
        "NCCL_IB_GID_INDEX", _gid_index, "RoCE v2's usual index: NCCL before 2.21 cannot find it by itself",
        "NCCL user guide, NCCL_IB_GID_INDEX",
    ),
    Entry(
        "OMP_NUM_THREADS", _threads, "the rank's share of the cores, at most 8; unset, torchrun makes it 1 and warns",
        "torch/distributed/run.py", devices=("cuda", "cpu"),
    ),
)  # fmt: skip


# --- Single models ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """What NVIDIA sets for the benchmark of one model, or of one folder of models. Empty fields match everything."""

    names: tuple[str, ...]
    value: str
    models: tuple[str, ...] = ()  # as `Recipe.model` has them
    folder: str | None = None  # as `Recipe.folder` has it: every model in it
    gpus: tuple[str, ...] = ()  # as recipes name them
    precisions: tuple[str, ...] = ()
    dispatchers: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    world: tuple[int, int] = (1, 1 << 30)
    when: Callable[[Facts], bool] = lambda _s: True
    reason: str

    def fits(self, s: Facts) -> bool:
        return (
            (not self.models or s.recipe.model in self.models)
            and self.folder in (None, s.recipe.folder)
            and (not self.gpus or s.hardware in self.gpus)
            and (not self.precisions or s.recipe.precision in self.precisions)
            and (not self.dispatchers or s.features.dispatcher in self.dispatchers)
            and (not self.tasks or s.recipe.task in self.tasks)
            and self.world[0] <= s.layout.world <= self.world[1]
            and self.when(s)
        )


RACKS = ("gb200", "gb300", "vr200")
_MARGINS = ("NVTE_FWD_LAYERNORM_SM_MARGIN", "NVTE_BWD_LAYERNORM_SM_MARGIN")
_CUDNN = ("NVTE_NORM_FWD_USE_CUDNN", "NVTE_NORM_BWD_USE_CUDNN")
_BY_CUDNN = "NVIDIA measured this model with cuDNN's norms"

TUNED: tuple[Tuned, ...] = (
    Tuned(names=_MARGINS, value="16", models=("qwen3_235b_a22b",), gpus=("b200", "h100"), dispatchers=("alltoall",),
          reason="Qwen3 235B with alltoall: NVIDIA leaves 16 SMs"),
    Tuned(names=_MARGINS, value="10", models=("qwen3_30b_a3b",), gpus=("h100",), precisions=("bf16",), dispatchers=("hybridep",),
          world=(16, 16), reason="Qwen3 30B on 16 H100: NVIDIA leaves 10 SMs"),
    Tuned(names=_MARGINS, value="10", models=("nemotron_3_5_lightning",), gpus=("h100",), precisions=("bf16",),
          dispatchers=("hybridep",), reason="Nemotron 3.5 Lightning on H100: NVIDIA leaves 10 SMs"),
    Tuned(names=_MARGINS, value="0", models=("qwen35_vl_35b_a3b",), gpus=("h100",), precisions=("bf16",),
          reason="Qwen3.5 35B VL on H100: NVIDIA leaves none"),
    Tuned(names=("NUM_OF_TOKENS_PER_CHUNK_COMBINE_API",), value="64", models=("nemotron_3_super", "qwen35_vl_35b_a3b"), gpus=("h100",),
          precisions=("bf16",), dispatchers=("hybridep",), reason="this model on H100: NVIDIA combines 64 at a time"),
    Tuned(names=("NCCL_CTA_POLICY",), value="1", models=("llama3_8b",), gpus=("h100",), precisions=("fp8cs",),
          tasks=("pretrain",), reason="Llama 3 8B in FP8 on H100: NVIDIA measured fewer thread blocks to be enough"),
    Tuned(names=("TORCH_NCCL_AVOID_RECORD_STREAMS",), value="1", models=("deepseek_v3",), gpus=("b300",),
          when=lambda s: s.full_iteration, reason="DeepSeek V3 on B300: NVIDIA holds tensors by reference under its graph too"),
    Tuned(names=("PYTORCH_CUDA_ALLOC_CONF",), value="expandable_segments:True,graph_capture_record_stream_reuse:True",
          models=("nemotron_3_ultra",), gpus=("gb200",), when=lambda s: s.expandable,
          reason="Nemotron 3 Ultra on GB200: NVIDIA reuses recorded streams without a graph too"),
    Tuned(names=("USE_MNNVL",), value="1", models=("qwen3_next_80b_a3b",), dispatchers=("alltoall",),
          when=lambda s: s.rack_nvlink, reason="Qwen3 Next: NVIDIA names the rack although alltoall does not ask"),
    Tuned(names=("NVLINK_DOMAIN_SIZE",), value="72", models=("qwen3_next_80b_a3b",), dispatchers=("alltoall",),
          when=lambda s: s.rack_nvlink, reason="Qwen3 Next: NVIDIA names the rack although alltoall does not ask"),
    Tuned(names=_CUDNN, value="1", folder="llama", tasks=("sft",), reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("llama3_8b",), gpus=("h100",), precisions=("fp8cs",), reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("llama3_70b",), gpus=RACKS, when=lambda s: s.layout.fsdp, reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("llama31_405b",), gpus=("gb200",), precisions=("fp8cs",), reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("llama31_405b",), gpus=("b200", "b300"), precisions=("fp8cs",), world=(256, 256), reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("nemotron_3_nano",), when=lambda s: s.features.cuda_graph is not None, reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("gpt_oss_20b",), gpus=RACKS, reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", folder="deepseek", precisions=("fp8mx",), when=lambda s: s.full_iteration, reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("qwen35_vl_35b_a3b",), gpus=("gb200",), reason=_BY_CUDNN),
    Tuned(names=_CUDNN, value="1", models=("qwen35_vl_35b_a3b",), gpus=("h100",), precisions=("bf16",), reason=_BY_CUDNN),
)  # fmt: skip
"""First match wins. The rest of NVIDIA's single settings, which follow no rule, are listed by scripts/bench/tuned_environments.py."""


def tuned(s: Facts, name: str) -> tuple[str, str] | None:
    """(value, reason) that NVIDIA's benchmark of this model on this machine has for a variable."""
    if not s.recipe.benchmark:
        return None
    return next(((t.value, t.reason) for t in TUNED if name in t.names and t.fits(s)), None)
