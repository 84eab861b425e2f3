"""One thing that preflight has to say, and the shape of the inspections that say it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import Cluster, Gpu, Node
from parlaunch.hardware.rates import HEADROOM

FAIL, WARN, INFO = "FAIL", "WARN", "INFO"
SEVERITIES = (FAIL, WARN, INFO)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What the findings are judged for. `known` False: for no job, the machine itself is looked at. `ranks_per_node` None:
    as many as there are GPUs; `headroom`: the share of GPU memory that the plan leaves free; `multi_node_nvlink`: the plan
    counts on NVLink between nodes."""

    nodes: int = 1
    known: bool = False
    ranks_per_node: int | None = None
    headroom: float = HEADROOM
    multi_node_nvlink: bool = False

    @property
    def spans(self) -> bool:
        """Traffic leaves the node: the fabric matters."""
        return self.nodes > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was seen, why it matters for the job, and what to do. `node` is "" when it is about all of them."""

    check: str
    severity: str  # FAIL | WARN | INFO
    node: str
    saw: str
    why: str
    do: str


Sight = tuple[str, str] | tuple[str, str, str]  # severity, what was seen, and where it differs from the row: what to do


@dataclass(frozen=True, slots=True)
class Inspection:
    """One row of the catalogue: how to look at a node, why what it finds matters, what to do, and where that is from."""

    name: str
    look: Callable[[Node, Use], Iterable[Sight]]
    why: str
    do: str
    source: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of the catalogue that looks at several nodes: it names the nodes, with what differs about them."""

    name: str
    look: Callable[[Cluster, Use], Iterable[tuple[str, str, str]]]  # severity, node, what was seen
    why: str
    do: str
    source: str


def numbers(indexes: Iterable[int]) -> str:
    """`0-3, 7`."""
    runs: list[list[int]] = []
    for i in sorted(indexes):
        if runs and i == runs[-1][1] + 1:
            runs[-1][1] = i
        else:
            runs.append([i, i])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def of_gpus(gpus: Sequence[Gpu], say: Callable[[Gpu], tuple[str, str] | None]) -> Iterator[tuple[str, str]]:
    """What `say` has to say about single GPUs; the same words about several become one sight."""
    seen: dict[tuple[str, str], list[int]] = {}
    for gpu in gpus:
        said = say(gpu)
        if said is not None:
            seen.setdefault(said, []).append(gpu.index)
    for (severity, words), indexes in seen.items():
        yield severity, f"GPU {numbers(indexes)}: {words}"
