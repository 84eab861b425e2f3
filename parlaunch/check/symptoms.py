"""What goes wrong in the first iterations, by the line of the log that says so: the table `symptoms.json`, ready to search."""

from __future__ import annotations

import re
from functools import cache

from parlaunch.data import load
from parlaunch.frozen import dataclass

HARMLESS = "harmless"
"""Kind of the lines that look bad and are not: a socket that is tried again is nobody's failure."""

GENERAL = ("data", "package", "override", "refused", "error")
"""Kinds of which only the last one counts: logs are full of exceptions that somebody caught."""

FORGIVEN = (*GENERAL, "network", "switch")
"""Kinds that are forgotten when the training goes on behind them."""

CAUSE_FIRST = (
    "gpu", "oom", "switch", "host-oom", "shared-memory", "disk", "nan", "hub", "checkpoint", "override", "package", "compile", "refused",
    "cuda", "crash", "killed", "data", "error", "hang", "nccl", "network", "cancelled",
)  # fmt: skip
"""Of several failures in one log, the likelier cause first: when one rank breaks, its peers report broken connections."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptom:
    """One row: the line that tells, the cause as a sentence (groups of the pattern as {0}, {1}), and the way out."""

    kind: str
    pattern: re.Pattern[str]
    sentence: str
    todo: str
    seen: tuple[str, ...]
    source: str
    another_plan: bool  # another layout can help
    switch: str | None = None  # the row of the table of switches that it speaks of

    def said(self, match: re.Match[str]) -> str:
        """The sentence for a line that fits."""
        return self.sentence.format(*(g or "" for g in match.groups())).rstrip(" :")


@cache
def symptoms() -> tuple[Symptom, ...]:
    """The table; a line counts for the first row that it fits."""
    rows = sorted(load("symptoms.json")["rows"], key=lambda row: int(row["order"]))
    return tuple(
        Symptom(
            kind=row["kind"], pattern=re.compile(row["pattern"]), sentence=row["sentence"], todo=row["todo"],
            seen=tuple(row["seen"]), source=row["source"], another_plan=row["another_plan"], switch=row.get("switch"),
        )
        for row in rows
    )  # fmt: skip


def symptom_of(line: str) -> tuple[Symptom, re.Match[str]] | None:
    """The row that a line counts for, with what its pattern found."""
    return next(((s, match) for s in symptoms() if (match := s.pattern.search(line))), None)


def another_plan_helps(kind: str) -> bool:
    """Whether a run that failed so is worth trying with another layout."""
    return any(s.another_plan for s in symptoms() if s.kind == kind)


COMPONENT_OF: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), component)
    for pattern, component in (
        (
            r"optimizer/.*:(step|prepare_grads|_init|init_state|_copy|get_parameter_state|__init__)|fused_adam",
            "optimizer",
        ),
        (r"param_and_grad_buffer|distributed_data_parallel\.py:__init__", "gradients"),
        (r"cross_entropy|compute_language_model_loss|output_layer|vocab_parallel", "logits"),
        (r"token_dispatcher|fused_a2a|moe_utils\.py|deep_ep", "buffers"),
        (r"model_provider|:provide|:get_model|:build_module", "weights"),
        (
            r"schedules\.py:backward_step|autograd/|checkpoint\.py|transformer_(block|layer)|attention|mlp|layernorm",
            "activations",
        ),
    )
)
"""File and function of a frame in the traceback, and the part of memory that grows there."""
