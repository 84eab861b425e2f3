"""Time of one layer for one micro batch on one rank, forward and backward, apart by what the time is spent on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from parlaunch.estimate.cross_entropy import loss_of
from parlaunch.estimate.timing.collectives import Links
from parlaunch.estimate.timing.feedforward import FeedForward
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.mixers import Mixers
from parlaunch.estimate.timing.pieces import ZERO, Cost, Split, Workload, add, added
from parlaunch.estimate.timing.software import Software
from parlaunch.frozen import dataclass
from parlaunch.model.architecture import LayerKind
from parlaunch.model.parameters import padded_vocab
from parlaunch.model.recipe import Recipe

LOSS = {"te": (6.0, 4.0), "te_wide": (8.0, 14.0), "native": (22.0, 14.0), "unfused": (38.0, 14.0)}
"""Bytes that the cross entropy moves for a logit, forward and backward. Transformer Engine's reads it twice and leaves the gradient
in its place, which the gradient of the loss then scales (`pytorch/triton/cross_entropy.py`); as of 2.18 that is done in float32.
Megatron Core's compiled one (`fusions/fused_cross_entropy.py`) writes the logits in float32, their exponentials and the softmax,
one after the other; uncompiled (`tensor_parallel/cross_entropy.py`) every step reads and writes them."""


@dataclass(frozen=True, slots=True)
class LayerTime:
    """What one layer costs for one micro batch."""

    forward: Cost
    backward: Cost  # gradients of inputs and weights, without recompute
    recompute: Cost  # forward work repeated in the backward pass


class Layers(Workload):
    """Layer times of one recipe on one machine, each computed once."""

    def __init__(self, recipe: Recipe, software: Software, kernels: Kernels, links: Links) -> None:
        super().__init__(recipe, software, kernels, links)
        every = self.arch.layers() + self.arch.mtp_layers()
        self.kinds = tuple(dict.fromkeys(every))  # what is hashed once here is a small number from now on
        self.number = {kind: i for i, kind in enumerate(self.kinds)}
        self._wide: Layers | None = None
        if any(recipe.features.wide_ends(recipe.precision)):
            self._wide = Layers(replace(recipe, precision="bf16"), software, kernels, links)
            self.number |= {kind._replace(wide=True): len(self.kinds) + i for kind, i in self.number.items()}
        self._layers: dict[Split, tuple[LayerTime, ...]] = {}
        self._wholes: dict[Split, tuple[_Part, ...]] = {}
        self._dense: dict[Split, tuple[tuple[_Part, _Part | None], ...]] = {}
        self._ends: dict[Split, tuple[LayerTime, LayerTime, LayerTime]] = {}

    def of(self, split: Split) -> tuple[LayerTime, ...]:
        """A time for each of `kinds`, and for each of them in 16 bits where a recipe has some layers in those."""
        known = self._layers.get(split)
        if known is None:
            known = self._layers[split] = tuple(
                LayerTime(
                    whole.forward,
                    whole.backward,
                    add(whole.forward, whole.late, -1.0) if split.full else _repeated(whole, split.modules),
                )
                for whole in self._whole(split.plain)
            )
            if self._wide is not None:
                known = self._layers[split] = known + self._wide.of(split)
        return known

    def _whole(self, split: Split) -> tuple[_Part, ...]:
        known = self._wholes.get(split)
        if known is None:
            builder, beside = _Builder(self, split), self._beside(split.dense)
            experts = builder.experts() if any(mlp is None for _, mlp in beside) else NOTHING
            known = self._wholes[split] = tuple(builder.layer(mixer, mlp or experts) for mixer, mlp in beside)
        return known

    def _beside(self, split: Split) -> tuple[tuple[_Part, _Part | None], ...]:
        """Mixer and MLP of each of `kinds`; None: experts, whose spread is all that many a split differs in."""
        known = self._dense.get(split)
        if known is None:
            builder = _Builder(self, split)
            known = self._dense[split] = tuple((builder.mixer(kind), builder.dense(kind)) for kind in self.kinds)
        return known

    def ends(self, split: Split) -> tuple[LayerTime, LayerTime, LayerTime]:
        """The embedding; the final norm with output layer and loss; and what one depth of multi-token prediction has in front of its
        layers."""
        split = split.dense
        known = self._ends.get(split)
        if known is None:
            builder = _Builder(self, split)
            known = self._ends[split] = (builder.embedding(), builder.head(), builder.predicting())
        return known


class _Part(NamedTuple):
    """A layer, or its mixer or MLP."""

    forward: Cost
    backward: Cost
    again: Mapping[str, Cost] = MappingProxyType(
        {}
    )  # forward work of the modules that may be recomputed, by their names
    late: Cost = ZERO  # of the forward pass, what stays away where it is repeated


NOTHING = _Part(ZERO, ZERO)

OF_MOE = ("moe_act", "shared_experts")
"""Modules that are parts of another, `moe`."""


def _repeated(part: _Part, modules: tuple[str, ...]) -> Cost:
    """Forward work that is done once more where these modules are recomputed."""
    total = ZERO
    for module, cost in part.again.items():
        if module in modules and not (module in OF_MOE and "moe" in modules):
            total = add(total, cost)
    return total


class _Builder(Mixers, FeedForward):
    """Adds up one layer for one split."""

    def layer(self, mixer: _Part, mlp: _Part) -> _Part:
        """The two together, and their norms."""
        forward, backward = add(mixer.forward, mlp.forward), add(mixer.backward, mlp.backward)
        norm = Cost(self._norm()[0], host=2 * self.host)
        return _Part(forward, backward, {**mixer.again, **mlp.again, "layernorm": norm}, mlp.late)

    def mixer(self, kind: LayerKind) -> _Part:
        """What mixes tokens, as far as the layer has it."""
        if kind.mixer is None:
            return NOTHING
        if kind.mixer in ("mamba", "gated_delta_net"):
            return _Part(*self.scan(kind))
        f, b, core, up = self.attention(kind)
        return _Part(f, b, {"core_attn": core, "mla_up_proj": up})

    def dense(self, kind: LayerKind) -> _Part | None:
        """The MLP, as far as the layer has it; None: experts."""
        if kind.mlp is None:
            return NOTHING
        if kind.mlp != "dense":
            return None
        f, b = self.mlp()
        return _Part(f, b, {"mlp": f})

    def experts(self) -> _Part:
        """The same in every layer that has them."""
        f, b, act, shared, late = self.moe()
        return _Part(f, b, {"moe": add(f, late, -1.0), "moe_act": act, "shared_experts": shared}, late)

    def embedding(self) -> LayerTime:
        move = self.tokens * self.h
        f = self.k.stream(move * 4.0, kernels=2)
        b = self.k.stream(move * 8.0, kernels=3)
        if not self.o.frozen and not self.o.features.fsdp:
            # Its gradient has all rows, most of them zero, and no product adds it to the sum (Megatron-Core, tensor_parallel/layers.py:
            # `F.embedding`; distributed/distributed_data_parallel.py: `param.main_grad.add_`).
            rows = padded_vocab(self.arch, self.s.tp) // self.s.tp
            b += self.k.stream(rows * self.h * (2.0 + added(self.o)), kernels=2)
        tp = self.o.links.gather(2.0 * move, self.tp_group)
        return LayerTime(Cost(f, tp, host=4 * self.host), Cost(b, tp, host=6 * self.host), ZERO)

    def head(self) -> LayerTime:
        """Final norm, output layer over this rank's slice of the vocabulary, cross entropy."""
        vocab = max(1, padded_vocab(self.arch, self.s.tp) // self.s.tp)
        fmt = self.o.narrow if self.o.features.fp8_output and self.o.recipe.precision == "fp8mx" else self.o.wide
        f, b, _ = self._linear(self.tokens, vocab, self.h, fmt, side="column")
        norm = self._norm(block=False)
        older = self.software.logits_bytes
        each = (older / 2.0, older / 2.0) if older else LOSS[loss_of(self.o.recipe)]
        loss = [self.k.stream(self.tokens * vocab * moved, kernels=6) for moved in each]
        tp = self._tp_exposed(self.h, fmt)
        return LayerTime(
            Cost(f + norm[0] + loss[0], tp[0], host=20 * self.host),
            Cost(b + norm[1] + loss[1], tp[1], host=24 * self.host),
            ZERO,
        )

    def predicting(self) -> LayerTime:
        """In front of the layers of multi-token prediction: the embedding of the next token, a norm of it and one of the hidden state,
        both joined and projected to one (Megatron-Core transformer/multi_token_prediction.py, `_get_embeddings`, `_concat_embeddings`)."""
        if not self.arch.mtp_num_layers:
            return LayerTime(ZERO, ZERO, ZERO)
        embedding, t, h = self.embedding(), self.tokens, self.h
        # Not in FP4 (`_proj_and_transformer_layer`).
        fmt = self.o.wide if self.o.recipe.precision == "nvfp4" else self.o.narrow
        f, b, n = self._linear(t, max(1, h // self.s.tp), 2 * h, fmt, side="column")
        # Two norms, and the copy that joins them; its gradient is cut in two views, which the norms copy.
        held = self.region * h * self.fused
        own = Cost(
            f + self.k.stream(16.0 * held, kernels=3), self._projected(2 * h), host=(n + 7) * self.host,
        )  # fmt: skip
        back = Cost(
            b + self.k.stream(24.0 * held, kernels=4), self._projected(4 * h), host=1.6 * (n + 7) * self.host,
        )  # fmt: skip
        return LayerTime(add(embedding.forward, own), add(embedding.backward, back), ZERO)

    def _projected(self, width: int) -> float:
        """Seconds that tensor ranks gather so much a token, and what one of them made of it."""
        if self.s.tp == 1:
            return 0.0
        moved = 2.0 * self.tokens
        return self.o.links.gather(moved * width, self.tp_group) + self.o.links.gather(moved * self.h, self.tp_group)
