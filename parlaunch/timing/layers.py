"""Time of one layer for one micro batch on one rank, forward and backward, apart by what the time is spent on."""

from __future__ import annotations

from dataclasses import dataclass

from parlaunch.architecture import LayerKind
from parlaunch.parameters import padded_vocab
from parlaunch.recipe import Recipe
from parlaunch.timing.collectives import Links
from parlaunch.timing.feedforward import FeedForward
from parlaunch.timing.kernels import Kernels
from parlaunch.timing.mixers import Mixers
from parlaunch.timing.pieces import ZERO, Cost, Setting, Split, add
from parlaunch.timing.software import Software


@dataclass(frozen=True, slots=True)
class LayerTime:
    forward: Cost
    backward: Cost  # gradients of inputs and weights, without recompute
    recompute: Cost  # forward work repeated in the backward pass


class Layers(Setting):
    """Layer times of one recipe on one machine, each computed once."""

    def __init__(self, recipe: Recipe, software: Software, kernels: Kernels, links: Links) -> None:
        super().__init__(recipe, software, kernels, links)
        every = self.arch.layers() + self.arch.mtp_layers()
        self.kinds = tuple(dict.fromkeys(every))  # what is hashed once here is a small number from now on
        self.number = {kind: i for i, kind in enumerate(self.kinds)}
        self._layers: dict[Split, tuple[LayerTime, ...]] = {}
        self._ends: dict[Split, tuple[LayerTime, LayerTime]] = {}

    def of(self, split: Split) -> tuple[LayerTime, ...]:
        """A time for each of `kinds`."""
        known = self._layers.get(split)
        if known is None:
            builder = _Builder(self, split)
            known = self._layers[split] = tuple(builder.layer(kind) for kind in self.kinds)
        return known

    def ends(self, split: Split) -> tuple[LayerTime, LayerTime]:
        """The embedding, and the final norm with output layer and loss."""
        known = self._ends.get(split)
        if known is None:
            builder = _Builder(self, split)
            known = self._ends[split] = (builder.embedding(), builder.head())
        return known


class _Builder(Mixers, FeedForward):
    """Adds up one layer for one split."""

    def layer(self, kind: LayerKind) -> LayerTime:
        forward, backward, again = ZERO, ZERO, ZERO
        modules = self.s.modules
        if kind.mixer in ("mamba", "gated_delta_net"):
            f, b = self.scan(kind)
            forward, backward = add(forward, f), add(backward, b)
        elif kind.mixer is not None:
            f, b, core, up = self.attention(kind)
            forward, backward = add(forward, f), add(backward, b)
            if "core_attn" in modules:
                again = add(again, core)
            if "mla_up_proj" in modules:
                again = add(again, up)
        if kind.mlp == "dense":
            f, b, act = self.mlp()
            forward, backward = add(forward, f), add(backward, b)
            if "mlp" in modules:
                again = add(again, f)
        elif kind.mlp == "moe":
            f, b, act, shared = self.moe()
            forward, backward = add(forward, f), add(backward, b)
            if "moe" in modules:
                again = add(again, f)
            elif "moe_act" in modules:
                again = add(again, act)
            if "shared_experts" in modules and "moe" not in modules:
                again = add(again, shared)
        if "layernorm" in modules:
            again = add(again, (self._norm()[0], 0.0, 0.0, 0.0, 2 * self.host))
        if self.s.full:
            again = forward
        return LayerTime(forward, backward, again)

    def embedding(self) -> LayerTime:
        move = self.tokens * self.h
        f = self.k.stream(move * 4.0, kernels=2)
        b = self.k.stream(move * 8.0, kernels=3)
        tp = self.o.links.gather(2.0 * move, self.tp_group)
        return LayerTime((f, tp, 0.0, 0.0, 4 * self.host), (b, tp, 0.0, 0.0, 6 * self.host), ZERO)

    def head(self) -> LayerTime:
        """Final norm, output layer over this rank's slice of the vocabulary, cross entropy."""
        vocab = max(1, padded_vocab(self.arch, self.s.tp) // self.s.tp)
        f, b, _ = self._linear(self.tokens, vocab, self.h, self.o.wide)
        norm = self._norm()
        loss = self.k.stream(self.tokens * vocab * self.software.logits_bytes / 2.0, kernels=6)
        tp = self._tp_exposed(self.h)
        return LayerTime(
            (f + norm[0] + loss, tp[0], 0.0, 0.0, 20 * self.host),
            (b + norm[1] + loss, tp[1], 0.0, 0.0, 24 * self.host),
            ZERO,
        )
