"""What is wrong with the software of a node: builds that do not know its GPU or driver, packages that do not go together."""

from __future__ import annotations

from collections.abc import Iterator

from parlaunch.doctor.finding import FAIL, INFO, WARN, Inspection, Sight, Use
from parlaunch.hardware.cluster import Node
from parlaunch.hardware.installed import NEEDS, Installed, numbers, releases

FIRST_CUDA = {(10, 0): (12, 8), (10, 1): (12, 8), (12, 0): (12, 8), (10, 3): (12, 9), (12, 1): (12, 9)}
"""The first CUDA release that compiles for a compute capability: release notes of CUDA 12.8 and 12.9."""
LAST_FOR_VOLTA = 13
"""CUDA from this major release on compiles for Turing and later only: release notes of CUDA 13.0."""
FIRST_CUDNN = (9, 3)
"""Transformer Engine 2 asks for cuDNN 9.3 and later: its installation page."""


def _installed(node: Node) -> Installed:
    return Installed(versions=node.software or ())


def _capabilities(node: Node) -> tuple[tuple[int, int], ...]:
    return tuple(sorted({g.compute_capability for g in node.gpus if g.compute_capability is not None}))


def _too_old_or_new(node: Node, _use: Use) -> Iterator[Sight]:
    have = _installed(node)
    cuda = have.version("cuda")
    for capability in _capabilities(node) if cuda else ():
        assert cuda is not None
        gpu = f"compute capability {capability[0]}.{capability[1]}"
        first = FIRST_CUDA.get(capability)
        if first is not None and cuda[:2] < first:
            yield (
                FAIL,
                f"PyTorch is built with CUDA {have.text('cuda')}, which knows no {gpu}: CUDA {first[0]}.{first[1]} is the first",
            )
        elif capability < (7, 5) and cuda[0] >= LAST_FOR_VOLTA:
            yield FAIL, f"PyTorch is built with CUDA {have.text('cuda')}, which no longer compiles for {gpu}"


def _driver(node: Node, _use: Use) -> Iterator[Sight]:
    have = _installed(node)
    built, driver = have.version("cuda"), numbers(node.cuda)
    if built and driver and built[0] > driver[0]:
        yield (
            WARN,
            f"PyTorch is built with CUDA {have.text('cuda')}, and driver {node.driver} knows CUDA {node.cuda} at most",
        )


def _core(node: Node, _use: Use) -> Iterator[Sight]:
    have = _installed(node)
    bridge, core = have.version("megatron_bridge"), have.version("megatron_core")
    if bridge is None or core is None:
        return
    wanted = next(
        (r.version("megatron_core") for r in releases() if (r.version("megatron_bridge") or ())[:2] == bridge[:2]), None
    )
    if wanted is not None and wanted[:2] != core[:2]:
        yield (
            WARN,
            (
                f"Megatron Bridge {have.text('megatron_bridge')} with Megatron Core {have.text('megatron_core')}; "
                f"it is released with {wanted[0]}.{wanted[1]}"
            ),
        )


def _cudnn(node: Node, _use: Use) -> Iterator[Sight]:
    have = _installed(node)
    engine = have.version("transformer_engine")
    if engine is not None and engine >= (2,) and have.before("cudnn", FIRST_CUDNN):
        yield WARN, f"Transformer Engine {have.text('transformer_engine')} with cuDNN {have.text('cudnn')}"


def _deepep(node: Node, _use: Use) -> Iterator[Sight]:
    have = _installed(node)
    bridge = have.version("megatron_bridge")
    hopper = any(capability[0] == 9 for capability in _capabilities(node))
    if bridge is not None and bridge[:2] == (0, 2) and hopper and have.text("deep_ep"):
        yield WARN, f"DeepEP {have.text('deep_ep')} with Megatron Bridge {have.text('megatron_bridge')} on Hopper"


def _lost(node: Node, _use: Use) -> Iterator[Sight]:
    """What parlaunch leaves off because of an old package."""
    have = _installed(node)
    for need in NEEDS:
        if have.before(need.package, need.version):
            yield INFO, f"{have.words(need.package)}: {need.what}"


SOFTWARE_INSPECTIONS: tuple[Inspection, ...] = (
    Inspection("software-gpu", _too_old_or_new, "its kernels do not run there: `no kernel image is available for execution on the device`", "take a container whose CUDA knows the GPU", "release notes of CUDA 12.8, 12.9 and 13.0"),
    Inspection("software-driver", _driver, "without CUDA's forward compatibility package the first CUDA call fails", "take a newer driver, a container with cuda-compat, or one of the driver's CUDA", "NVIDIA, CUDA compatibility"),
    Inspection("software-core", _core, "configurations of the one have fields that the other lacks", "install the pair of one release: `pip install megatron-bridge` brings it", "Megatron Bridge docs/releases/software-versions.md"),
    Inspection("software-cudnn", _cudnn, "fused attention is refused, and scores go through memory", "bring cuDNN to 9.3 or later", "Transformer Engine, installation"),
    Inspection("software-deepep", _deepep, "DeepSeek-V3 stops with `DeepEP error: timeout (dispatch CPU)`", "--switches dispatcher=alltoall, or another release", "Megatron Bridge docs/releases/known-issues.md, 25.11"),
    Inspection("software-switches", _lost, "parlaunch leaves it off", "a newer release allows it", "megatron/core/transformer/transformer_config.py, bridge/training/comm_overlap.py"),
)  # fmt: skip
"""Rows of the catalogue that look at versions; a version that is not known makes no finding."""
