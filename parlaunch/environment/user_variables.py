"""What a value that the user has set will do to this run: the consequence in Megatron's, NCCL's or CUDA's terms.

A value stands whatever it is. Here is only what breaks the run or takes away what the layout counts on; the rest of the
differences between the user's values and ours are visible in the plan and need no warning.
"""

from __future__ import annotations

from collections.abc import Callable

from parlaunch.environment.variables import Facts, connections, hybrid_ranks
from parlaunch.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Danger:
    """`consequence(value, situation)`: a sentence, or None when the value is harmless here."""

    name: str
    consequence: Callable[[str, Facts], str | None]
    source: str


def _number(value: str) -> int | None:
    return int(value) if value.strip().isdigit() else None


def _connections(value: str, s: Facts) -> str | None:
    x, number = s.layout, _number(value)
    if number is None or not 1 <= number <= 32:
        return "CUDA takes a whole number from 1 to 32 here and ignores anything else"
    if x.fsdp and number == 1:
        return "Megatron-FSDP stops at start-up: it asks for more than 1, or unset"
    ordered = not (s.blackwell or x.fsdp or s.features.ep_overlap) and (x.tp > 1 or x.cp > 1)
    if ordered and number != 1:
        return (
            f"before Blackwell, tp={x.tp} cp={x.cp} counts on launch order: Megatron-LM stops at start-up unless it is 1, "
            "Megatron Bridge runs on with communication stuck behind the GEMMs that should hide it"
        )
    if s.features.ep_overlap and number == 1:
        return "one queue puts the expert all-to-all behind the compute it should overlap with"
    if s.blackwell and number == 1 and (s.moe or x.tp > 1 or x.cp > 1):
        value_ours = connections(s)
        ours = value_ours[0] if isinstance(value_ours, tuple) else value_ours
        return (
            f"on Blackwell one queue takes away the overlap of communication and compute; NVIDIA's recipes set {ours}"
        )
    return None


def _allocator(value: str, s: Facts) -> str | None:
    growing = "expandable_segments:true" in value.replace(" ", "").lower()
    if growing and s.features.nccl_ub and (s.torch is None or s.torch < (2, 11)):
        return "Megatron's DDP configuration refuses expandable_segments with NCCL user buffers before torch 2.11"
    return None


def _graph_register(value: str, s: Facts) -> str | None:
    if value.strip() != "0" and s.expandable and s.features.cuda_graph == "transformer_engine":
        return "Megatron stops when it captures CUDA graphs: growing segments need NCCL_GRAPH_REGISTER=0"
    return None


def _offload(value: str, s: Facts) -> str | None:
    if s.features.offload_modules and value.strip() != "1":
        return "Megatron Bridge stops: fine-grained activation offloading needs 1 on Transformer Engine 2.10 and newer"
    return None


DETERMINISTIC = ("Tree", "Ring", "CollnetDirect", "CollnetChain", "^NVLS")


def _algorithm(value: str, s: Facts) -> str | None:
    if "NCCL_ALGO" in s.recipe.env or s.repeats:
        if value not in DETERMINISTIC:
            return f"Megatron Bridge's deterministic mode stops: it takes one of {', '.join(DETERMINISTIC)}"
        return None
    if value.strip() and not value.startswith("^"):
        return f"NCCL is held to {value} for every collective and size, whatever is fastest for it"
    return None


def _blocking(value: str, s: Facts) -> str | None:
    if value.strip() not in ("", "0"):
        graph = "; CUDA graphs cannot be captured at all" if s.features.cuda_graph else ""
        return f"every kernel launch waits for its kernel: no overlap of any kind{graph}"
    return None


def _no_p2p(value: str, s: Facts) -> str | None:
    if value.strip() == "1" and s.cluster.nvlink_domains:
        return "NCCL goes through host memory instead of NVLink: the layout's tensor and expert parallelism become slow"
    return None


def _p2p_level(value: str, s: Facts) -> str | None:
    if value.strip().upper() in ("0", "LOC"):
        return _no_p2p("1", s)
    return None


def _no_shared_memory(value: str, s: Facts) -> str | None:
    if value.strip() == "1" and not s.cluster.nvlink_domains and s.cluster.gpus_per_node > 1:
        return "GPUs of one node that cannot reach each other over PCIe talk through the network instead of host memory"
    return None


def _network(value: str, s: Facts) -> str | None:
    if value.strip().lower() == "socket":
        return _no_ib("1", s)
    return None


def _gpu_direct(value: str, s: Facts) -> str | None:
    if value.strip().upper() in ("0", "LOC") and s.multi_node and s.cluster.fabric.kind in ("infiniband", "roce"):
        return "no GPUDirect RDMA: everything between nodes goes through host memory first"
    return None


def _channels(value: str, s: Facts) -> str | None:
    number = _number(value)
    if number is not None and 0 < number <= FEW_CHANNELS and s.cluster.world_size > 1:
        return f"NCCL spreads a collective over {number} blocks at most: NVLink and several NICs stay mostly idle"
    return None


FEW_CHANNELS = 4
"""Blocks that cannot fill NVLink, nor several NICs, whatever they copy."""


def _no_cumem(value: str, s: Facts) -> str | None:
    return _mnnvl("0", s) if value.strip() == "0" else None


def _checked(value: str, _s: Facts) -> str | None:
    if value.strip().upper() == "DETAIL":
        return "torch compares every collective over all ranks before it runs it, on the host"
    return None


def _waiting(value: str, _s: Facts) -> str | None:
    if value.strip().lower() in ON:
        return "the host waits for every collective: nothing is issued meanwhile, and nothing overlaps"
    return None


ON = ("1", "true", "t", "yes", "y", "on")


def _uncached(value: str, s: Facts) -> str | None:
    if not value:
        return None
    graph = "; CUDA graphs cannot be captured" if s.features.cuda_graph else ""
    return f"every tensor is allocated and freed by the driver, which waits for the GPU{graph}"


def _uncompiled(value: str, _s: Facts) -> str | None:
    if value.strip().lower() in ON:
        return "Megatron's fused element-wise kernels are made by torch.compile: each operation is a kernel of its own instead"
    return None


def _deterministic(value: str, s: Facts) -> str | None:
    if value.strip() == "0" and not s.repeats and "NVTE_ALLOW_NONDETERMINISTIC_ALGO" not in s.recipe.env:
        return "Transformer Engine leaves out attention kernels whose sums have no fixed order, the fastest backward passes among them"
    return None


def _no_ib(value: str, s: Facts) -> str | None:
    if value.strip() == "1" and s.multi_node and s.cluster.fabric.kind in ("infiniband", "roce"):
        return "NCCL falls back to TCP sockets between nodes"
    return None


def _mnnvl(value: str, s: Facts) -> str | None:
    if (
        value.strip() == "0"
        and s.multi_node
        and s.rack_nvlink
        and max(s.layout.tp, s.layout.ep) > s.cluster.gpus_per_node
    ):
        return f"NVLink between nodes is off, and tp={s.layout.tp} ep={s.layout.ep} reaches over nodes"
    return None


def _use_mnnvl(value: str, s: Facts) -> str | None:
    if s.hybridep and value.strip() == "1" and not s.rack_nvlink:
        return "HybridEP would map memory of other nodes over NVLink, which ends at the node here"
    if s.hybridep and value.strip() == "0" and s.rack_nvlink and s.layout.ep > s.cluster.gpus_per_node:
        return "HybridEP would go over the network inside the NVLink rack"
    return None


def _ranks(value: str, s: Facts) -> str | None:
    if not s.hybridep:
        return None
    number, ours = _number(value), hybrid_ranks(s)
    if not number or number > s.nvlink_domain or s.layout.ep % number:
        return f"HybridEP splits ep={s.layout.ep} into NVLink groups of that size, and a domain here has {s.nvlink_domain} GPUs: {ours} fits"
    return None


def _attention(value: str, _s: Facts) -> str | None:
    if value.strip() == "1":
        return None
    return (
        "Megatron sets this from model.attention_backend and stops on another value: the default, auto, asks for 1; "
        "unset it and override model.attention_backend instead"
    )


def _positive(value: str, _s: Facts) -> str | None:
    return None if _number(value) else "OpenMP takes a whole number of 1 or more and ignores anything else"


DANGERS: tuple[Danger, ...] = (
    Danger("CUDA_DEVICE_MAX_CONNECTIONS", _connections, "B/training/config.py:1102, M/training/arguments.py:1414"),
    Danger("PYTORCH_CUDA_ALLOC_CONF", _allocator, "M/core/distributed/distributed_data_parallel_config.py:257"),
    Danger("PYTORCH_ALLOC_CONF", _allocator, "M/core/distributed/distributed_data_parallel_config.py:257"),
    Danger("NCCL_GRAPH_REGISTER", _graph_register, "M/core/transformer/cuda_graphs.py:2103"),
    Danger("NVTE_CPU_OFFLOAD_V1", _offload, "B/training/config.py:2055"),
    Danger("NCCL_ALGO", _algorithm, "B/training/config.py:1058"),
    Danger("CUDA_LAUNCH_BLOCKING", _blocking, "CUDA C++ Programming Guide, environment variables"),
    Danger("NCCL_P2P_DISABLE", _no_p2p, "NCCL user guide, NCCL_P2P_DISABLE"),
    Danger("NCCL_P2P_LEVEL", _p2p_level, "NCCL user guide, NCCL_P2P_LEVEL"),
    Danger("NCCL_SHM_DISABLE", _no_shared_memory, "NCCL user guide, NCCL_SHM_DISABLE"),
    Danger("NCCL_NET", _network, "NCCL user guide, NCCL_NET"),
    Danger("NCCL_NET_GDR_LEVEL", _gpu_direct, "NCCL user guide, NCCL_NET_GDR_LEVEL"),
    Danger("NCCL_MAX_CTAS", _channels, "NCCL user guide, NCCL_MAX_CTAS"),
    Danger("NCCL_MAX_NCHANNELS", _channels, "NCCL user guide, NCCL_MAX_NCHANNELS"),
    Danger("NCCL_CUMEM_ENABLE", _no_cumem, "NCCL user guide, NCCL_MNNVL_ENABLE"),
    Danger("TORCH_DISTRIBUTED_DEBUG", _checked, "PyTorch torch.distributed, debugging"),
    Danger("TORCH_NCCL_BLOCKING_WAIT", _waiting, "PyTorch ProcessGroupNCCL, environment variables"),
    Danger("NCCL_BLOCKING_WAIT", _waiting, "PyTorch ProcessGroupNCCL, environment variables"),
    Danger("PYTORCH_NO_CUDA_MEMORY_CACHING", _uncached, "PyTorch CUDA semantics, memory management"),
    Danger("TORCHDYNAMO_DISABLE", _uncompiled, "M/core/jit.py:21"),
    Danger("TORCH_COMPILE_DISABLE", _uncompiled, "M/core/jit.py:21"),
    Danger("NVTE_ALLOW_NONDETERMINISTIC_ALGO", _deterministic, "Transformer Engine, attention backends"),
    Danger("NCCL_IB_DISABLE", _no_ib, "NCCL user guide, NCCL_IB_DISABLE"),
    Danger("NCCL_MNNVL_ENABLE", _mnnvl, "NCCL user guide, NCCL_MNNVL_ENABLE"),
    Danger("USE_MNNVL", _use_mnnvl, "S/utils/utils.py:284"),
    Danger("NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN", _ranks, "S/utils/utils.py:284"),
    Danger("NVTE_FLASH_ATTN", _attention, "M/core/models/common/language_module/language_module.py:114"),
    Danger("NVTE_FUSED_ATTN", _attention, "M/core/models/common/language_module/language_module.py:114"),
    Danger("NVTE_UNFUSED_ATTN", _attention, "M/core/models/common/language_module/language_module.py:114"),
    Danger("OMP_NUM_THREADS", _positive, "OpenMP specification"),
)


def consequence(name: str, value: str, s: Facts) -> str | None:
    """What the user's value will do, or None when it is harmless here."""
    return next((d.consequence(value, s) for d in DANGERS if d.name == name), None)


def named() -> dict[str, str]:
    """Variables that have a check here, with its source."""
    return {d.name: d.source for d in DANGERS}
