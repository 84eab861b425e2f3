"""What a value that the user has set will do to this run: the consequence in Megatron's, NCCL's or CUDA's terms.

A value stands whatever it is. Here is only what breaks the run or takes away what the layout counts on; the rest of the
differences between the user's values and ours are visible in the plan and need no warning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from parlaunch.env_rules import Situation, connections, hybrid_ranks


@dataclass(frozen=True, slots=True)
class Danger:
    """`consequence(value, situation)`: a sentence, or None when the value is harmless here."""

    name: str
    consequence: Callable[[str, Situation], str | None]
    source: str


def _number(value: str) -> int | None:
    return int(value) if value.strip().isdigit() else None


def _connections(value: str, s: Situation) -> str | None:
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


def _allocator(value: str, s: Situation) -> str | None:
    growing = "expandable_segments:true" in value.replace(" ", "").lower()
    if growing and s.features.nccl_ub and (s.torch is None or s.torch < (2, 11)):
        return "Megatron's DDP configuration refuses expandable_segments with NCCL user buffers before torch 2.11"
    return None


def _graph_register(value: str, s: Situation) -> str | None:
    if value.strip() != "0" and s.expandable and s.features.cuda_graph == "transformer_engine":
        return "Megatron stops when it captures CUDA graphs: growing segments need NCCL_GRAPH_REGISTER=0"
    return None


def _offload(value: str, s: Situation) -> str | None:
    if s.features.offload_modules and value.strip() != "1":
        return "Megatron Bridge stops: fine-grained activation offloading needs 1 on Transformer Engine 2.10 and newer"
    return None


DETERMINISTIC = ("Tree", "Ring", "CollnetDirect", "CollnetChain", "^NVLS")


def _algorithm(value: str, s: Situation) -> str | None:
    if "NCCL_ALGO" in s.recipe.env and value not in DETERMINISTIC:
        return f"Megatron Bridge's deterministic mode stops: it takes one of {', '.join(DETERMINISTIC)}"
    return None


def _blocking(value: str, s: Situation) -> str | None:
    if value.strip() not in ("", "0"):
        graph = "; CUDA graphs cannot be captured at all" if s.features.cuda_graph else ""
        return f"every kernel launch waits for its kernel: no overlap of any kind{graph}"
    return None


def _no_p2p(value: str, s: Situation) -> str | None:
    if value.strip() == "1" and s.cluster.nvlink_domains:
        return "NCCL goes through host memory instead of NVLink: the layout's tensor and expert parallelism become slow"
    return None


def _no_ib(value: str, s: Situation) -> str | None:
    if value.strip() == "1" and s.multi_node and s.cluster.fabric.kind in ("infiniband", "roce"):
        return "NCCL falls back to TCP sockets between nodes"
    return None


def _mnnvl(value: str, s: Situation) -> str | None:
    if (
        value.strip() == "0"
        and s.multi_node
        and s.rack_nvlink
        and max(s.layout.tp, s.layout.ep) > s.cluster.gpus_per_node
    ):
        return f"NVLink between nodes is off, and tp={s.layout.tp} ep={s.layout.ep} reaches over nodes"
    return None


def _use_mnnvl(value: str, s: Situation) -> str | None:
    if s.hybridep and value.strip() == "1" and not s.rack_nvlink:
        return "HybridEP would map memory of other nodes over NVLink, which ends at the node here"
    if s.hybridep and value.strip() == "0" and s.rack_nvlink and s.layout.ep > s.cluster.gpus_per_node:
        return "HybridEP would go over the network inside the NVLink rack"
    return None


def _ranks(value: str, s: Situation) -> str | None:
    if not s.hybridep:
        return None
    number, ours = _number(value), hybrid_ranks(s)
    if not number or number > s.nvlink_domain or s.layout.ep % number:
        return f"HybridEP splits ep={s.layout.ep} into NVLink groups of that size, and a domain here has {s.nvlink_domain} GPUs: {ours} fits"
    return None


def _attention(value: str, _s: Situation) -> str | None:
    if value.strip() == "1":
        return None
    return (
        "Megatron sets this from model.attention_backend and stops on another value: the default, auto, asks for 1; "
        "unset it and override model.attention_backend instead"
    )


def _positive(value: str, _s: Situation) -> str | None:
    return None if _number(value) else "OpenMP takes a whole number of 1 or more and ignores anything else"


DANGERS: tuple[Danger, ...] = (
    Danger("CUDA_DEVICE_MAX_CONNECTIONS", _connections, "B/training/config.py:1110, M/training/arguments.py:1454"),
    Danger("PYTORCH_CUDA_ALLOC_CONF", _allocator, "M/core/distributed/distributed_data_parallel_config.py:263"),
    Danger("PYTORCH_ALLOC_CONF", _allocator, "M/core/distributed/distributed_data_parallel_config.py:263"),
    Danger("NCCL_GRAPH_REGISTER", _graph_register, "M/core/transformer/cuda_graphs.py:2194"),
    Danger("NVTE_CPU_OFFLOAD_V1", _offload, "B/training/config.py:2211"),
    Danger("NCCL_ALGO", _algorithm, "B/training/config.py:1058"),
    Danger("CUDA_LAUNCH_BLOCKING", _blocking, "CUDA C++ Programming Guide, environment variables"),
    Danger("NCCL_P2P_DISABLE", _no_p2p, "NCCL user guide, NCCL_P2P_DISABLE"),
    Danger("NCCL_IB_DISABLE", _no_ib, "NCCL user guide, NCCL_IB_DISABLE"),
    Danger("NCCL_MNNVL_ENABLE", _mnnvl, "NCCL user guide, NCCL_MNNVL_ENABLE"),
    Danger("USE_MNNVL", _use_mnnvl, "S/utils/utils.py:281"),
    Danger("NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN", _ranks, "S/utils/utils.py:281"),
    Danger("NVTE_FLASH_ATTN", _attention, "M/core/models/common/language_module/language_module.py:120"),
    Danger("NVTE_FUSED_ATTN", _attention, "M/core/models/common/language_module/language_module.py:120"),
    Danger("NVTE_UNFUSED_ATTN", _attention, "M/core/models/common/language_module/language_module.py:120"),
    Danger("OMP_NUM_THREADS", _positive, "OpenMP specification"),
)


def consequence(name: str, value: str, s: Situation) -> str | None:
    """What the user's value will do, or None when it is harmless here."""
    return next((d.consequence(value, s) for d in DANGERS if d.name == name), None)


def named() -> dict[str, str]:
    """Variables that have a check here, with its source."""
    return {d.name: d.source for d in DANGERS}
