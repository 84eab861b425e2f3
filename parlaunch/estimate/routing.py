"""How unevenly a router that nothing forces to be even fills expert-parallel ranks: time and memory ask the same."""

from __future__ import annotations

from math import log, sqrt

OVERALL, IN_A_SEQUENCE = 0.375, 0.70
"""Excess of the fullest rank's tokens over the mean, of what is popular in all sequences and in one alone, where a token uses one expert of
`SPECIALISED`. Dropless runs over the same with forced balance took 1.245 and 1.15 times as long for Qwen3-235B at 16k and 64k tokens a
sequence, two and half a one in a group, and 1.045 for Mixtral 8x22B (Megatron MoE model zoo); Qwen3-30B's 16 and 32 in Megatron Bridge's
runs hold the first."""
SPECIALISED = 16
"""Experts over those that a token uses from which on they are no more particular: the most that was measured both ways."""


def fullest(experts: int, topk: int, tokens: float, ranks: int, seq_length: int, layers: int = 1) -> float:
    """Tokens of the fullest of `ranks` expert-parallel ranks over their mean, of `tokens` that all of them route together; over so many
    layers, each with favourites of its own, or in one.

    A balancing loss or bias evens out batches, not sequences: each is of a domain, and its tokens prefer that domain's experts (DeepSeek-V3,
    arXiv:2412.19437, 4.5.3). Small experts of many specialise, Mixtral's hardly (OLMoE, arXiv:2409.02060, 5.3; Mixtral, arXiv:2401.04088, 5).
    So an expert's popularity has a part that is the same for all sequences, and one of each sequence, whose variance falls with the number of
    sequences; beside them stands chance, the largest of several counts of copies. Their variances add up.
    """
    if ranks <= 1:
        return 1.0
    sequences = max(1.0, tokens / seq_length)
    particular = min(1.0, (experts / topk - 1.0) / (SPECIALISED - 1.0))
    popular = particular**2 * (OVERALL**2 + IN_A_SEQUENCE**2 / sequences)
    chance = 2.0 * log(ranks) * ranks / max(tokens * topk, 1.0)
    return min(float(ranks), 1.0 + sqrt((popular + chance) / layers))
