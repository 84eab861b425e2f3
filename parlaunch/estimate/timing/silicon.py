"""What training keeps of a GPU's measured bursts, and costs that no table holds: each with unit, meaning and source.

`operators` has what single kernels reach on a cool GPU. A training is hours of them: the board's power limit lowers the clock of
what the tensor cores do, so a large product is never faster than watts over joules a FLOP. The joules were settled on published
runs as a whole, never for one model: H100's of dense models in bf16 and FP8 (Megatron-Core, DGX Cloud, MLPerf), B200's in bf16
(SimuMax: 0.48 of the peak where bursts reach 0.68), GB200's and GB300's in FP8. Other boards of the chip have theirs by their watts
(`CLOCK`). FP4's tables hold kernels of inference with their quantising, which are slower than Transformer Engine's: there the limit alone
says what large products reach, and the table how much less others do. Its joules are those at which twelve products of a layer take a B300
the 3.76 ms of Transformer Engine's own benchmark (docs/examples/gemm_profiling, 2026). Rubin's joules are supposed: as far under
Blackwell's as those are under Hopper's (0.83 in 16 bits, 0.75 in 8 and 4). Memory on Blackwell streams at 0.67 (SimuMax's B200)
to 0.70 of its rate (quantising in that benchmark, by the bytes it moves), which writes and turns as few others do: 0.72, and 0.82 on
Hopper, are of runs as a whole, whose small kernels are counted by what their sources move. Elsewhere memory, kernel gaps and NCCL's constants a link (20.0, 20.6 and 40.1 GB/s of 25, 25 and 50) are those of kernel benchmarks.
A machine file (`parlaunch.check.calibrate`) replaces them by what was measured on the machine itself.
"""

from __future__ import annotations

from dataclasses import replace

from parlaunch.frozen import dataclass
from parlaunch.hardware.rates import Rates

CLOCK = 0.5
"""Rate of a chip at its power limit as an exponent of the watts: the power of its tensor cores goes with the clock and the square of a
voltage that rises with the clock, so a board of fewer watts does a FLOP for fewer joules. Runs that differ in the board alone, with the
whole iteration in one graph: Llama 3 8B in FP8 on B200 against GB200 (Megatron Bridge 25.09 and 25.11; five sixths of the watts) says
0.3 to 0.5. Blackwell Ultra's boards do not: Qwen3-30B on B300 against GB300 (26.06) and Llama 3.1 8B on B300 (MLPerf) say 0.9 and more.
In 16 bits on Blackwell runs disagree by more than the watts do. Those joules, and FP4's, are taken for every board's."""
SCALED_JOULES = {"mx": 1.07, "block": 1.12}
"""Joules of a FLOP in FP8 over those with one scale a tensor, by the format that has a scale a block. MXFP8: of 16 pairs of runs that
differ in nothing else (Llama 3 8B and 70B, Llama 3.1 405B and others on B200, GB200 and GB300; Megatron Bridge 25.09 to 26.06) its took
1 to 8 % longer in all but one, where its casts alone would make it faster. Blocks of 128 on Hopper: what twelve products of a layer take
longer on H200 in Transformer Engine's benchmark (docs/examples/gemm_profiling), less the casts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silicon:
    """One GPU generation."""

    sustained_bf16: float = 1.0  # products: rate over the measured burst, the power limit apart
    sustained_fp8: float = 1.0
    joules_bf16: float = 0.0  # J that the board draws for a FLOP of a large 16-bit product; 0: no limit that shows
    joules_fp8: float = 0.0
    joules_fp4: float = 0.0
    watts_bf16: float = 0.0  # of the board that these joules are of; 0: they are every board's
    watts_fp8: float = 0.0  # the same in 8 bits
    flash: float = 1.0  # attention forward over the measured burst
    flash_backward: float  # rate of attention backward over forward (FlashAttention-3, cuDNN)
    epilogue: float  # share of the traffic of a fp32 sum that no other tile's work hides
    scan: float = 220.0  # FLOP an SM and clock in state-space scans (Mamba-2's kernels on A100)
    hbm: float = 0.84  # streaming kernels, share of HBM bandwidth
    kernel: float = 2.0e-6  # s between the end of one kernel and the start of the next that depends on it
    nvlink: float = 0.80  # NCCL bus bandwidth where no table has it, share of the links' one-direction rate
    host: float = 8e-6  # s of CPU time to issue one kernel from eager PyTorch, on the x86 servers of its time

    def sustained(self, fmt: str, burst: float, power: float | None) -> float:
        """Share of the burst rate (FLOP/s) that a format's products keep in training on a board of that many watts."""
        if fmt == "fp4":
            return power / (self.joules_fp4 * burst) if power and self.joules_fp4 else 1.0
        if fmt in ("fp8", *SCALED_JOULES):
            joules, watts, kept = self.joules_fp8, self.watts_fp8, self.sustained_fp8
            joules *= SCALED_JOULES.get(fmt, 1.0)
        else:
            joules, watts, kept = self.joules_bf16, self.watts_bf16, self.sustained_bf16
        if power and watts:
            power = watts * (power / watts) ** CLOCK
        return kept * (min(1.0, power / (joules * burst)) if power and joules else 1.0)


GENERATIONS: dict[str, Silicon] = {
    "volta": Silicon(sustained_bf16=0.90, flash=0.7, flash_backward=0.85, epilogue=0.7, hbm=0.82, kernel=2.5e-6),
    "turing": Silicon(sustained_bf16=0.85, flash=0.7, flash_backward=0.85, epilogue=0.7, hbm=0.82, kernel=2.5e-6),
    "ampere": Silicon(sustained_bf16=1.03, joules_bf16=1.25e-12, watts_bf16=400.0, flash_backward=0.85, epilogue=0.9),
    "ada": Silicon(sustained_bf16=0.95, flash_backward=0.82, epilogue=0.6, hbm=0.82),
    "hopper": Silicon(
        joules_bf16=1.09e-12, joules_fp8=0.57e-12, watts_bf16=700.0, watts_fp8=700.0, flash=0.97, flash_backward=0.83, epilogue=0.6,
        hbm=0.82, kernel=1.8e-6, nvlink=0.824, host=6.5e-6,
    ),
    "blackwell": Silicon(
        joules_bf16=0.91e-12, joules_fp8=0.43e-12, joules_fp4=0.195e-12, watts_fp8=1200.0, flash=0.97, flash_backward=0.81,
        epilogue=0.3, hbm=0.72, kernel=1.8e-6, nvlink=0.802, host=6.5e-6,
    ),
    "rubin": Silicon(
        joules_bf16=0.76e-12, joules_fp8=0.32e-12, joules_fp4=0.147e-12, flash=0.97, flash_backward=0.81, epilogue=0.3,
        hbm=0.72, kernel=1.8e-6, nvlink=0.802, host=6.5e-6,
    ),
}  # fmt: skip


GENERATIONS["blackwell_ultra"] = replace(GENERATIONS["blackwell"], watts_fp8=0.0)
"""B300 and GB300: their watts and their own tables say what is different."""


HOST = {"grace": 8e-6}
"""Seconds in place of `host`, where the CPU is built with the GPU. Of the rows in validation/ that wait for the CPU those of Grace say 8 us, those of
H100 6, of B200 and B300 with x86 6 to 7: it is the CPU's time, so that one number is for all of these."""


ACROSS = 1.5
"""Times that the host takes to issue a kernel from the other NUMA node: what it does for a launch waits for memory (the interpreter's
objects, the queue, the GPU's doorbell), which answers one and a half times as late across the socket link. All ranks wait for the
slowest, and of those that roam some are always across. Eager DeepSeek-V3 on GB200 then takes 1.08 to 1.12 times as long; PyTorch
says 1 to 10 % for most (docs.pytorch.org/docs/main/elastic/numa.html)."""
SOCKET_LINK = 100e9
"""Bytes a second, one way, between two sockets: three UPI or xGMI links. Half of a node's GPUs share it where ranks roam."""


def silicon_of(rates: Rates) -> Silicon:
    """The generation's constants, with what a machine file measured in their place, for ranks that are bound or roam."""
    base = GENERATIONS.get(rates.product.silicon, GENERATIONS["hopper"])
    base = replace(base, host=HOST.get(rates.product.cpu or "", base.host))
    changes = {name: value for name, value in rates.measured.items() if name in Silicon.__dataclass_fields__}
    # Joules that a machine file has are those of its own boards.
    changes |= {f"watts_{fmt}": 0.0 for fmt in ("bf16", "fp8") if f"joules_{fmt}" in changes}
    made = replace(base, **changes)
    return made if rates.roaming is None else replace(made, host=made.host * across(rates))


def across(rates: Rates) -> float:
    """Times that the host takes for what it does, where it may stand on the other side of the node."""
    return 1.0 if rates.roaming is None else ACROSS


def to_host(link: float, rates: Rates) -> float:
    """Bytes a second between a GPU and its rank's memory, over its link to the host and, where ranks roam, between sockets."""
    return link if rates.roaming is None else min(link, SOCKET_LINK / max(1.0, rates.gpus_per_node / 2))
