"""What runs were made with: a framework's name as tables of runs write it, and what follows from it.

Planning always means Megatron Bridge as it is today. A new framework is a row here; what it does differently is in
`SOFTWARE` (time), `KEEPING` (memory) and in the band.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple


class Framework(NamedTuple):
    """One generation of training software."""

    starts: tuple[str, ...]  # how its names begin, in lower case
    software: str  # a key of `estimate.timing.software.SOFTWARE`
    keeping: str  # a key of `estimate.states.KEEPING`
    band: float | None  # ± share of the iteration time of two of three measured runs; None: as Megatron Bridge's


BRIDGE = Framework(("megatron-bridge",), "megatron-bridge", "megatron", None)
OTHER = Framework((), "megatron-bridge", "megatron", 0.20)
"""One that no open row was made with: predicted as Megatron Bridge's, within what frameworks other than NVIDIA's were off by."""
PYTORCH = (
    "pytorch", "fsdp", "torchtitan", "llm-foundry", "mosaicml", "composer", "hugging face", "huggingface", "transformers", "accelerate",
    "axolotl", "llama-factory", "litgpt", "lit-gpt", "lightning", "colossal-ai", "colossalai", "nanotron", "olmo", "fairseq", "metaseq",
)  # fmt: skip
"""Training with PyTorch's own kernels and a flash attention: no open row was made with them."""
FRAMEWORKS = (
    BRIDGE,
    Framework(("megatron-core", *(f"megatron-lm {year}" for year in range(2023, 2027))), "megatron-core", "megatron-core", 0.075),
    Framework(
        (
            *(f"nemo mlperf training v{round_}" for round_ in ("3", "4", "5.0")), "nemo 1", "nemo 23", "nemo 24", "nemo 25.02",
            "nemo 25.04",
        ),
        "nemo-2025", "nemo-2025", None,
    ),
    Framework(("nemo 2.0", "nemo 2.1", "nemo 2.2", "nemo 2.3"), "nemo-2025", "nemo", None),
    # Containers that have Megatron Bridge inside, over Megatron Core from 0.15 on.
    Framework(("nemo mlperf training v6", "nemo 25.11", "nemo 26"), "megatron-bridge", "megatron", None),
    Framework(("nemo megatron", "nemo 22"), "megatron-lm-2022", "megatron-lm", OTHER.band),
    Framework(("nemo",), "megatron-bridge", "nemo", None),
    Framework(
        ("megatron-lm sc21", "megatron-lm v1", "megatron-lm v2", *(f"megatron-lm {year}" for year in range(2019, 2022))),
        "megatron-lm-2021", "megatron-lm", 0.05,
    ),
    Framework(("megatron-lm",), "megatron-lm-2022", "megatron-lm", 0.05),
    Framework(("megatron-deepspeed blocking",), "megatron-lm-2021-blocking", "deepspeed", 0.16),
    Framework(("megatron-deepspeed",), "megatron-lm-2021", "deepspeed", 0.095),
    Framework(("deepspeed",), "pytorch", "deepspeed", OTHER.band),
    Framework(PYTORCH, "pytorch", "pytorch", OTHER.band),
    Framework(("gpt-neox",), "megatron-lm-2021", "deepspeed", 0.22),
    Framework(("internevo",), "internevo", "megatron", 0.08),
)  # fmt: skip
"""The first of which a start fits, as `_spelt`. Bands: `estimate/timing/bands.py` says how Megatron-Core's was settled; the older ones'
hold two of three of their own rows, on whose clusters alone they were run, and none is under 5 %."""


_SPELLINGS = (
    (r"^mcore|^megatron[ _]core", "megatron-core"),
    (r"^megatron[ _](?=\w)", "megatron-"),
    (r"^deepspeed[ -]megatron", "megatron-deepspeed"),
    (r"^llm foundry", "llm-foundry"),
    (r"^mlperf training (v\S+) nemo", r"nemo mlperf training \1"),
    (r"^bignlp|^nemo[ -](framework )?megatron", "nemo megatron"),
    (r"^nemo[ -](framework )?", "nemo "),
    (r"^megatron-lm\b.*\b(m?core|transformer engine|te\b).*", "megatron-core"),
    (r"^megatron-lm\b.*\bsc ?21\b.*", "megatron-lm sc21"),
    (r"^megatron-lm\b.*\b(20[12]\d)\b.*", r"megatron-lm \1"),
    (r"^megatron-lm\b.*\b(2\d)\.(0[1-9]|1[0-2])\b.*", r"megatron-lm 20\1"),  # a container's month
    (r"^megatron-lm (?=\d\.\d)", "megatron-lm v"),
)
"""How names are brought into the form of the table, in this order: what says the generation of Megatron-LM comes from wherever it stands
("Megatron-LM (Narayanan et al. 2021)")."""


def _spelt(framework: str) -> str:
    """A name as `FRAMEWORKS` has them: in lower case, without brackets."""
    name = " ".join(re.sub(r"[()\[\],']", " ", framework.lower()).split())
    for pattern, ours in _SPELLINGS:
        name = re.sub(pattern, ours, name)
    return name


def named(framework: str | None) -> Framework | None:
    """The framework that a name of a table means ("Megatron-LM (SC21)", "megatron-bridge 26.04"); None when it is in no row."""
    name = _spelt(framework or "")
    return next((f for f in FRAMEWORKS if name.startswith(f.starts)), None)


@lru_cache(maxsize=64)
def framework_of(framework: str | None) -> Framework:
    """The framework that a name means; Megatron Bridge for None, and with a wider band for unknown names."""
    return named(framework) or (OTHER if framework else BRIDGE)
