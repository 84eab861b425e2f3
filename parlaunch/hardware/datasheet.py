"""Data sheets: what a GPU product and a machine of a known name can do. Numbers live in `data/`, each with its source."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import cache
from typing import Any

from parlaunch.data import load
from parlaunch.errors import UsageError
from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import Cluster, Fabric, Gpu, Nic, Node, domains_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One GPU product. Rates per second, one direction; FLOP/s dense."""

    name: str
    arch: str  # its generation: pascal | volta | turing | ampere | ada | hopper | blackwell | rubin
    compute_capability: tuple[int, int]
    memory_bytes: int
    hbm_bytes_per_s: float
    sms: int
    boost_clock_hz: float
    flops: Mapping[str, float] = field(hash=False)  # by format: fp32, tf32, fp16, bf16, fp8, nvfp4
    nvlinks: int | None
    nvlink_bytes_per_s: float | None
    pcie_bytes_per_s: float
    source: str
    power_w: float | None = None  # the most that the board may draw
    # How servers join GPUs of this product: nvswitch | nvswitch_mnnvl | sxm2 (cube mesh or pairs) | grace |
    # pairs (sold with a bridge) | bridge (one may be fitted) | pcie
    board: str = "pcie"
    silicon: str = ""  # whose shares and latencies it has: `parlaunch.estimate.timing.silicon`
    dispatchers: tuple[str, ...] = ()  # of tokens to experts, beside alltoall and allgather, that run on it
    pci: tuple[str, ...] = ()  # device ids of vendor 10de
    hardware: str | None = None  # its name in Megatron Bridge's recipes: h100, gb200, …
    ecc: bool = False  # a data-centre product: ECC is on unless somebody turned it off
    cpu: str | None = None  # the coherent CPU that it is built with: grace | vera
    c2c_bytes_per_s: float | None = None  # between one GPU and that CPU
    nics_behind_cpu: bool = False  # GPU and NIC meet at that CPU, not at a PCIe switch
    rack_gpus: int | None = None  # GPUs of the rack that NVLink joins, where it leaves the node
    single_core_ranks: bool = False  # NVIDIA pins ranks of its benchmarks to single cores
    network_bytes_per_s: float | None = None  # one way, over its lanes to the network card; None: as the ports carry
    unified_memory: bool = False  # CPU and GPU share one memory: what the system uses is gone
    assumed: tuple[str, ...] = ()  # fields recalled or derived, not read from the source
    derived: str | None = None  # no product's sheet: how it was made

    def peak_flops(self, precision: str) -> float:
        """Dense peak for a training precision (`fp8mx`, `bf16`, …); the nearest wider format where this GPU lacks it."""
        chain = {"nvfp4": ("nvfp4", "fp8", "bf16", "fp16"), "fp32": ("tf32", "fp32"), "fp16": ("fp16",)}
        formats = chain.get(precision) or (("fp8", "bf16", "fp16") if precision.startswith("fp8") else ("bf16", "fp16"))
        return next(self.flops[f] for f in (*formats, "fp32") if f in self.flops)

    @property
    def shares_its_name(self) -> bool:
        """The driver gives other products the same name: every Jetson Orin module is "Orin (nvgpu)"."""
        return "match" in self.assumed

    def assumes(self, *fields: str) -> tuple[str, ...]:
        """One sentence on those of the fields that are recalled or derived; none when all were read in the data sheet."""
        words = [_WORDS[f](self) for f in fields if f in self.assumed]
        if not words:
            return ()
        why = f"derived, {self.derived}" if self.derived else "recalled or derived, not read in its data sheet"
        return (f"{', '.join(words)} of {self.name}: {why}",)


_WORDS: Mapping[str, Callable[[Product], str]] = {
    "memory_bytes": lambda p: f"{p.memory_bytes / 2**30:.0f} GiB of memory",
    "flops": lambda p: f"peaks of {max(p.flops.values()) / 1e12:,.0f} TFLOP/s and less",
    "hbm_bytes_per_s": lambda p: f"{p.hbm_bytes_per_s / 1e12:.2f} TB/s of memory bandwidth",
    "sms": lambda p: f"{p.sms} SMs",
    "boost_clock_hz": lambda p: f"{p.boost_clock_hz / 1e9:.2f} GHz",
    "compute_capability": lambda p: "compute capability " + ".".join(map(str, p.compute_capability)),
    "nvlink_bytes_per_s": lambda p: f"{(p.nvlink_bytes_per_s or 0.0) / 1e9:,.0f} GB/s of NVLink",
    "pcie_bytes_per_s": lambda p: f"{p.pcie_bytes_per_s / 1e9:,.0f} GB/s of PCIe",
}
"""A plan's word for a field of a data sheet; fields that no plan computes with have none."""


@cache
def _product(name: str) -> Product:
    row = load("products.json")["products"][name]
    family = generation(row["compute_capability"])
    assert family is not None, "the schema's test holds every product to a generation"
    given = {k: family[k] for k in ("arch", "silicon", "dispatchers")} | row
    known = Product.__dataclass_fields__
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if k in known}
    return Product(name=name, **fields)


def generation(capability: Sequence[int]) -> Mapping[str, Any] | None:
    """The row of the generation of a compute capability; of an unknown minor number, the newest with the same major one."""
    table: Mapping[str, Mapping[str, Any]] = load("products.json")["generations"]
    major, minor = capability
    near = [k for k in table if k.startswith(f"{major}.")]
    return table.get(f"{major}.{minor}", table[max(near)] if near else None)


def capability_of(gpu_name: str) -> tuple[int, int] | None:
    """The compute capability of the generation that a product's name belongs to; None when no series has it."""
    table: Mapping[str, Mapping[str, Any]] = load("products.json")["generations"]
    found = next(
        (k for k, row in table.items() if "series" in row and re.search(row["series"], gpu_name.lower())), None
    )
    if found is None:
        return None
    major, minor = found.split(".")
    return int(major), int(minor)


def name_key(gpu_name: str) -> str:
    """A name without the maker's words and punctuation, which drivers changed over time: "Tesla V100-SXM2-16GB" and
    "NVIDIA V100-SXM2-16GB" agree. Everything that tells products apart stays: "RTX A4000" is not "A40"."""
    words = re.sub(r"\b(nvidia|corporation|tesla|geforce)\b", " ", gpu_name.lower())
    return re.sub(r"[^a-z0-9]", "", words)


@cache
def _by_key() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name, row in load("products.json")["products"].items():
        for spelling in (name, *row["match"]):
            found.setdefault(name_key(spelling), name)
    return found


def product(gpu_name: str) -> Product | None:
    """The data sheet of a GPU as NVML, or we ourselves, name it; None when it is not in the table."""
    name = _by_key().get(name_key(gpu_name))
    return None if name is None else _product(name)


def products_like(words: str) -> tuple[Product, ...]:
    """The products that an incomplete name ("h100", "NVIDIA A100-SXM") may mean, in the order of the table."""
    start = name_key(words)
    if not start:
        return ()
    names = dict.fromkeys(name for spelling, name in _by_key().items() if spelling.startswith(start))
    return tuple(_product(name) for name in names)


def product_of_pci(device: str) -> Product | None:
    """The data sheet of an NVIDIA PCI device id ("2330", any case, with or without 0x); None when unknown or shared."""
    wanted = device.lower().removeprefix("0x")
    names = [name for name, row in load("products.json")["products"].items() if wanted in row["pci"]]
    return _product(names[0]) if len(names) == 1 else None


def name_of_pci(device: str) -> str | None:
    """What the driver calls an NVIDIA GPU of this PCI device id ("2330"); None when unknown or when several boards share it."""
    sheet = product_of_pci(device)
    if sheet is not None:
        return nvml_name(sheet)
    names: list[str] = load("pci_names.json")["names"].get(device.lower().removeprefix("0x"), [])
    return names[0] if len(names) == 1 else None


def nvml_name(sheet: Product) -> str:
    """The name that NVML gives this product."""
    name = load("products.json")["products"][sheet.name]["match"][0]
    assert isinstance(name, str)
    return name


def spellings(sheet: Product) -> tuple[str, ...]:
    """The product's names without the maker's words: ours, and those that drivers give it."""
    names = (sheet.name, *load("products.json")["products"][sheet.name]["match"])
    return tuple(dict.fromkeys(map(name_key, names)))


def product_names() -> tuple[str, ...]:
    """Every product in the table."""
    return tuple(load("products.json")["products"])


@cache
def _spellings() -> Mapping[str, str]:
    """Every accepted spelling of a preset in lower case; Azure's also without its prefix."""
    data = load("presets.json")
    found = {alias: name for alias, name in data["aliases"].items()}
    for name in data["presets"]:
        found[name.lower()] = name
        found.setdefault(name.lower().removeprefix("standard_"), name)
    return found


def preset_names() -> tuple[str, ...]:
    """Names that `preset` takes: those of the table, then the short ones."""
    data = load("presets.json")
    return (*data["presets"], *data["aliases"])


def preset_of(text: str) -> str | None:
    """The preset that a vendor's machine name means ("p5.48xlarge", "Standard_ND96asr_v4", "dgx-h100"), or None."""
    return _spellings().get(text.strip().lower())


def preset_row(name: str) -> Mapping[str, Any]:
    """The row of a machine in the table. Raises `UsageError` with the nearest names."""
    known = preset_of(name)
    if known is None:
        near = difflib.get_close_matches(name.lower(), _spellings(), n=4, cutoff=0.4)
        raise UsageError(
            f"unknown machine {name!r}: neither a preset nor a file",
            hint=("nearest: " + ", ".join(near) if near else "`parlaunch machines` lists all"),
        )
    row = load("presets.json")["presets"][known]
    assert isinstance(row, Mapping)
    return row


def trays(name: str) -> int:
    """Nodes of a rack of this machine that NVLink joins. Raises `UsageError` for one that has no such racks."""
    nodes = preset_row(name)["nvlink_domain_nodes"]
    if nodes == 1:
        raise UsageError(f"{name} does not come in racks that NVLink joins", hint=f"count its nodes: {name}:4")
    return int(nodes)


MOST_NODES = 100_000
"""A hundred times the largest jobs; more takes minutes to plan."""


def preset(name: str, nodes: int = 1, gpu: Product | None = None) -> Cluster:
    """A cluster of `nodes` machines of a known kind, with that `gpu` in place of theirs. Raises `UsageError` with the nearest names.

    A job larger than one NVLink rack takes the same number of nodes of each, as `sbatch --segment` asks for: the most
    that divide `nodes`. Where that is less than half a rack, racks are filled in order and the last one is a part."""
    row = preset_row(name)
    if nodes < 1:
        raise UsageError(f"{name}:{nodes} has no node", hint=f"write {name}:1 or more")
    if nodes > MOST_NODES:
        raise UsageError(f"{name}:{nodes}: no job has so many nodes", hint=f"at most {name}:{MOST_NODES}")
    sheet = gpu or _product(row["gpu"])
    count, group = row["gpus_per_node"], row["nvlink_group"]
    fabric, ports, cpu = row["fabric"], row["fabric"]["ports_per_node"], row["cpu"]
    sockets = cpu["sockets"]
    gpus = tuple(
        Gpu(
            index=i,
            name=nvml_name(sheet),
            memory_bytes=sheet.memory_bytes,
            compute_capability=sheet.compute_capability,
            numa=i * sockets // count if sockets else None,
            nvlink_domain=i // group if group > 1 else None,
            nvlinks=sheet.nvlinks if group > 1 else 0,
        )
        for i in range(count)
    )
    nics = tuple(
        Nic(name=f"nic{i}", kind=fabric["kind"], bytes_per_s=fabric["bytes_per_s_per_port"], up=True, rail=True)
        for i in range(ports)
    )
    rack_nodes = row["nvlink_domain_nodes"]
    even = max(n for n in range(1, min(nodes, rack_nodes) + 1) if nodes % n == 0)
    made = []
    for at in range(nodes):
        rack = at // (even if 2 * even >= rack_nodes or nodes <= rack_nodes else rack_nodes)
        shared = row["nvlink_domain_nodes"] > 1
        mine = tuple(replace(g, fabric_id=(f"rack-{rack}", 0)) for g in gpus) if shared else gpus
        made.append(
            Node(
                hostname=f"{name}-{at:05d}",
                gpus=mine,
                nics=nics,
                link_type=row["link_type"],
                cpu_model=cpu["model"],
                sockets=sockets,
                cores=cpu["cores"],
                memory_bytes=cpu["memory_bytes"],
            )
        )
    assumed = sheet.assumes("memory_bytes")
    if nodes > 1 and "fabric" in row["assumed"]:
        each = fabric["bytes_per_s_per_port"] / 1e9
        assumed += (f"{ports} × {each:g} GB/s of {fabric['kind']} a node of {name}: usual there, published nowhere",)
    if group > 1 and "nvlink_group" in row["assumed"]:
        assumed += (f"NVLink between {group} GPUs of {name}: bridges are sold apart",)
    return Cluster(
        source=f"preset {name}:{nodes}",
        assumed=assumed,
        nodes=tuple(made),
        nvlink_domains=domains_of(tuple(made)),
        fabric=Fabric(
            kind=fabric["kind"],
            rails=ports,
            bytes_per_s_per_gpu=fabric["bytes_per_s_per_port"] * ports / count,
        ),
    )
