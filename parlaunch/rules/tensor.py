"""What tensor and context parallelism must divide."""

from __future__ import annotations

from math import lcm

from parlaunch.hardware.rates import Rates
from parlaunch.model.architecture import Architecture
from parlaunch.model.layout import Layout
from parlaunch.model.recipe import Recipe
from parlaunch.rules.rule import Chapter

TENSOR = Chapter()

CP_COMM_TYPES = ("p2p", "a2a", "a2a+p2p", "all_gather")


def cp_comm_type(a: Architecture, cp: int) -> str | None:
    """How CP ranks exchange keys and values: the ring, and all-gather for sparse attention, which knows nothing else. None
    without CP."""
    if cp == 1:
        return None
    return "all_gather" if a.experimental_attention_variant == "dsa" else "p2p"


@TENSOR.rule("tp-heads", "num_attention_heads % TP == 0", "megatron/core/transformer/transformer_config.py:1323")
def heads(x: Layout, r: Recipe, _m: Rates) -> str | None:
    a = r.architecture
    for count in (a.num_attention_heads, a.sliding_attention_heads):
        if count and count % x.tp:
            return f"TP {x.tp} does not divide the {count} attention heads"
    return None


@TENSOR.rule(
    "tp-groups", "num_query_groups % TP == 0 or TP % num_query_groups == 0",
    "megatron/core/transformer/transformer_config.py:1342",
)  # fmt: skip
def groups(x: Layout, r: Recipe, _m: Rates) -> str | None:
    a = r.architecture
    for count in (a.num_query_groups, a.num_global_query_groups):
        if count and count % x.tp and x.tp % count:
            return f"TP {x.tp} neither divides the {count} key/value groups nor is a multiple of them"
    return None


@TENSOR.rule("tp-ffn", "ffn % TP == 0; expert ffn % ETP == 0", "megatron/core/tensor_parallel/layers.py:965")
def widths(x: Layout, r: Recipe, _m: Rates) -> str | None:
    a = r.architecture
    shared = a.moe_shared_expert_intermediate_size if a.num_moe_experts else None
    for name, width, size in (
        ("feed-forward width", a.ffn_hidden_size, x.tp),
        ("shared expert's width", shared, x.tp),
    ):
        if width and width % size:
            return f"TP {size} does not divide the {name} of {width}"
    width = a.moe_ffn_hidden_size or a.ffn_hidden_size
    if a.num_moe_experts and width % x.etp:
        return f"ETP {x.etp} does not divide the experts' width of {width}"
    return None


@TENSOR.rule("sp-seq", "SP -> (seq/CP) % TP == 0", "megatron/core/tensor_parallel/mappings.py:72")
def sequence_scatters(x: Layout, r: Recipe, _m: Rates) -> str | None:
    local = r.seq_length // x.cp
    if not x.sequence_parallel or local % x.tp == 0:
        return None
    return f"sequence parallelism splits {local} tokens over TP {x.tp}, and that is not whole"


@TENSOR.rule(
    "tp-bias-moe", "num_moe_experts and add_bias_linear -> ETP == 1",
    "megatron/core/transformer/transformer_config.py:2280",
)  # fmt: skip
def expert_bias(x: Layout, r: Recipe, _m: Rates) -> str | None:
    a = r.architecture
    if a.num_moe_experts and a.add_bias_linear and x.etp > 1:
        return f"experts with biases need ETP 1, not {x.etp}"
    return None


@TENSOR.rule(
    "tp-mamba-heads", "nheads % TP == 0 and ngroups % TP == 0 and nheads % ngroups == 0",
    "megatron/core/ssm/mamba_mixer.py:260",
)  # fmt: skip
def mamba_heads(x: Layout, r: Recipe, _m: Rates) -> str | None:
    a = r.architecture
    for name, count in (("heads", a.mamba_num_heads), ("groups", a.mamba_num_groups)):
        if count and count % x.tp:
            return f"TP {x.tp} does not divide the {count} Mamba {name}"
    return None


@TENSOR.rule(
    "tp-gdn", "k_heads % (TP*CP) == 0 and v_heads % (TP*CP) == 0",
    "megatron/core/transformer/transformer_config.py:1368",
)  # fmt: skip
def delta_net_heads(x: Layout, r: Recipe, _m: Rates) -> str | None:
    a = r.architecture
    for name, count in (("key", a.linear_num_key_heads), ("value", a.linear_num_value_heads)):
        if count and count % (x.tp * x.cp):
            return f"TP·CP = {x.tp * x.cp} does not divide the {count} {name} heads of the gated delta net"
    return None


@TENSOR.rule(
    "tp-mamba-fp8", "fp8 -> (2*d_inner + 2*ngroups*d_state + nheads)/TP % 16 == 0",
    "megatron/core/ssm/mamba_mixer.py:252",
)  # fmt: skip
def mamba_fp8(x: Layout, r: Recipe, _m: Rates) -> str | None:
    a = r.architecture
    if not a.mamba_num_heads or not r.precision.startswith("fp8") or a.mamba_num_heads % x.tp:
        return None
    inner = a.mamba_num_heads * (a.mamba_head_dim or 0)
    width = 2 * inner + 2 * (a.mamba_num_groups or 0) * (a.mamba_state_dim or 0) + a.mamba_num_heads
    return None if width % 16 == 0 else f"FP8 needs Mamba's input projection in sixteens, and it is {width} wide"


@TENSOR.rule("cp-seq", "CP>1 -> seq_length % (2*CP) == 0", "bridge/training/config.py:1436")
def context_splits(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if x.cp == 1 or r.seq_length % (2 * x.cp) == 0:
        return None
    return f"CP {x.cp} cuts a sequence into {2 * x.cp} chunks, and {r.seq_length} tokens do not divide into them"


@TENSOR.rule("cp-pad-multiple", "SFT: seq % lcm(2*CP if CP>1, CP*TP if SP) == 0", "bridge/training/config.py:1228")
def padded_multiple(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if r.task == "pretrain":
        return None
    unit = lcm(2 * x.cp if x.cp > 1 else 1, x.cp * x.tp if x.sequence_parallel else 1)
    return None if r.seq_length % unit == 0 else f"fine-tuning pads to multiples of {unit}, and {r.seq_length} is none"


@TENSOR.rule(
    "cp-mamba", "(nheads/TP) % CP == 0 and (ngroups/TP % CP == 0 or CP % (ngroups/TP) == 0)",
    "megatron/core/ssm/mamba_context_parallel.py:106",
)  # fmt: skip
def mamba_context(x: Layout, r: Recipe, _m: Rates) -> str | None:
    a = r.architecture
    if x.cp == 1 or not a.mamba_num_heads or a.mamba_num_heads % x.tp:
        return None
    local = a.mamba_num_heads // x.tp
    if local % x.cp:
        return f"CP {x.cp} does not divide the {local} Mamba heads of a TP rank"
    states = (a.mamba_num_groups or 1) // x.tp
    if states and states % x.cp and x.cp % states:
        return f"CP {x.cp} and the {states} Mamba groups of a TP rank do not divide one another"
    return None


@TENSOR.rule(
    "cp-dsa", "dsa and CP>1 -> cp_comm_type == all_gather", "megatron/core/transformer/transformer_config.py:2845"
)
def sparse_context(x: Layout, r: Recipe, _m: Rates) -> str | None:
    only = cp_comm_type(r.architecture, x.cp)
    if only in (None, "p2p", x.cp_comm_type):
        return None
    return f"sparse attention with CP {x.cp} works by {only} only, not {x.cp_comm_type}"


@TENSOR.rule("cp-comm-type", "cp_comm_type in {p2p, a2a, a2a+p2p, all_gather}", "bridge/training/config.py:1534")
def comm_type(x: Layout, _r: Recipe, _m: Rates) -> str | None:
    if x.cp == 1 or x.cp_comm_type is None or x.cp_comm_type in CP_COMM_TYPES:
        return None
    return f"cp_comm_type {x.cp_comm_type!r} is none of {', '.join(CP_COMM_TYPES)}"


@TENSOR.rule(
    "cp-a2a-heads", "a2a -> (heads/TP) % CP == 0 and (groups/TP) % CP == 0",
    "transformer_engine/pytorch/attention/dot_product_attention/context_parallel.py",
)  # fmt: skip
def all_to_all_heads(x: Layout, r: Recipe, _m: Rates) -> str | None:
    if x.cp == 1 or x.cp_comm_type != "a2a":
        return None
    a = r.architecture
    for name, count in (("heads", a.num_attention_heads), ("key/value groups", a.num_query_groups)):
        local = max(1, count // x.tp)
        if local % x.cp:
            return f"CP {x.cp} by all-to-all gives each rank whole heads, and {local} {name} a TP rank do not divide"
    return None


def hierarchy(x: Layout, a: Architecture, domain: int) -> tuple[int, int] | None:
    """How `a2a+p2p` divides CP: the ranks beside each other that exchange heads, as many as NVLink joins and heads divide by, and
    the rings between those. None where no two levels are possible."""
    whole = (max(1, a.num_attention_heads // x.tp), max(1, (a.num_query_groups or a.num_attention_heads) // x.tp))
    inner = [
        d for d in range(2, x.cp) if x.cp % d == 0 and x.tp * d <= domain and all(count % d == 0 for count in whole)
    ]
    return (inner[-1], x.cp // inner[-1]) if inner else None


@TENSOR.rule(
    "grid-hcp", "a2a+p2p -> hierarchical sizes whose product is CP, the inner one inside a node",
    "bridge/training/config.py:1544",
)  # fmt: skip
def hierarchical_context(x: Layout, r: Recipe, m: Rates) -> str | None:
    if x.cp_comm_type != "a2a+p2p" or x.cp == 1:
        return None
    if hierarchy(x, r.architecture, max(m.nvlink_domain, 1)) is not None:
        return None
    return f"a2a+p2p needs CP {x.cp} in two levels, of which the inner one divides the heads of a TP rank and stays inside NVLink"
