"""Weights, activations, FLOPs and time of one layer are counted in four places: for every known model they tell of the same matrices."""

from __future__ import annotations

from typing import Any

import pytest

from parlaunch.data import load
from parlaunch.estimate.timing.collectives import Links
from parlaunch.estimate.timing.kernels import Kernels
from parlaunch.estimate.timing.layers import Layers
from parlaunch.estimate.timing.pieces import Split
from parlaunch.estimate.timing.software import software_of
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.rates import Rates, rates_of
from parlaunch.model.activations import PLAIN_NORMS, WIDE, Surroundings, layer_activations
from parlaunch.model.architecture import Architecture, LayerKind
from parlaunch.model.catalog import architecture
from parlaunch.model.flops import TEXT, attention_macs, layer_macs
from parlaunch.model.matrices import COLUMN, Matrix, layer_matrices, mixer_matrices
from parlaunch.model.parameters import layer_weights
from parlaunch.model.recipe import Features, Recipe

MODELS = [name for name in load("architectures.json") if architecture(name).complete]
A_SAMPLE = ("router", "adaln")
"""Matrices that are not multiplied with every token in the training format: the router's, and what modulates a whole sample."""
SEQ = 4096
RATES = rates_of(preset("dgx-h100"))


def _each(a: Architecture, k: LayerKind) -> list[tuple[Matrix, float]]:
    """The matrices that a token goes through, and how many of their kind."""

    def times(m: Matrix) -> float:
        return TEXT / SEQ if m.module == "linear_kv" else a.moe_router_topk if m.experts else 1

    return [(m, times(m)) for m in layer_matrices(a, k) if m.module not in A_SAMPLE]


def _products(a: Architecture, k: LayerKind) -> float:
    """Multiply-adds a token of all of them."""
    return sum(m.outputs * m.inputs * times for m, times in _each(a, k))


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_matrices_and_a_few_vectors(name: str) -> None:
    a = architecture(name)
    for k in dict.fromkeys((*a.layers(), *a.mtp_layers())):
        matrices = sum(m.size for m in layer_matrices(a, k))
        whole = layer_weights(a, k).total
        # Hyper-connections and per-layer embeddings have mixing weights of their own.
        own = 0.05 if a.num_residual_streams or a.per_layer_embed_dim else 0.01
        assert matrices <= whole <= matrices * (1 + own), k


@pytest.mark.parametrize("name", MODELS)
def test_what_is_multiplied_is_kept(name: str) -> None:
    """A layer keeps the input of every matrix, what the column-parallel ones make, and the inputs of its norms; beyond that come
    gates, normed heads and what scans keep, which no model has more than three quarters of."""
    a = architecture(name)
    for k in dict.fromkeys(a.layers()):
        inputs: dict[object, float] = {}
        made = 0.0
        for i, (m, times) in enumerate(_each(a, k)):
            of_mixer = i < len(mixer_matrices(a, k))
            shared = m.inputs == a.hidden_size and not m.experts  # the norm's output, one tensor for all that read it
            inputs[("norm", of_mixer) if shared else i] = m.inputs * times
            made += m.outputs * times if m.split == COLUMN else 0.0
        norms = a.hidden_size * sum(part is not None for part in (k.mixer, k.mlp))
        least = WIDE * (sum(inputs.values()) + made + norms)
        # Norms in plain torch keep float32 copies too, around experts or everywhere (`test_activations.py`).
        copies = 0
        if a.model_type in PLAIN_NORMS:
            heads = (k.heads + k.groups) * k.head_dim
            copies = 17 * 4 * a.hidden_size if k.mlp == "moe" else 12 * (5 * a.hidden_size + heads)
        if (
            n := a.num_residual_streams
        ):  # those of hyper-connections, and what goes back to them; queries and the output once more
            copies = WIDE * 2 * (n * a.hidden_size + a.hidden_size + k.heads * k.head_dim)
        assert least <= layer_activations(a, k, Surroundings(fused_v4=True)).saved - copies <= 1.75 * least, k


@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_of_the_matrices(name: str) -> None:
    """One multiply-add a weight and token, scores apart. Bridge's count of Mamba takes another width than the layer has; delta rules
    and compressed keys have work without weights."""
    a = architecture(name)
    for k in dict.fromkeys(a.layers()):
        if k.mixer != "mamba":
            multiplied = sum(layer_macs(a, k, SEQ)) - attention_macs(a, k, SEQ)
            assert multiplied == pytest.approx(_products(a, k), rel=0.055), k


class Counting(Kernels):
    """Kernels that remember what they were asked for."""

    def __init__(self, rates: Rates) -> None:
        super().__init__(rates)
        self.asked: list[tuple[float, int]] = []  # multiply-adds of a product, and its smallest side
        self.scores: dict[bool, float] = {False: 0.0, True: 0.0}  # FLOPs of attention, forward and backward
        self.edge = 0.0  # keys beside a window's own

    def gemm(self, m: int, n: int, k: int, fmt: str, **how: Any) -> float:
        self.asked.append((float(m) * n * k * how.get("groups", 1), min(n, k)))
        return super().gemm(m, n, k, fmt, **how)

    def attention(self, *, flops: float, backward: bool, **shape: Any) -> float:
        self.scores[backward] += flops
        return super().attention(flops=flops, backward=backward, **shape)

    def window_edge(self, *shape: int) -> float:
        self.edge = super().window_edge(*shape)
        return self.edge


def _timed(a: Architecture, k: LayerKind) -> Counting:
    """What is timed of one layer, of one sequence on one GPU."""
    kernels = Counting(RATES)
    recipe = Recipe(
        name="counted", source="catalog", task="pretrain", model="counted", model_id=None, architecture=a, seq_length=SEQ,
        global_batch_size=1, precision="bf16", features=Features(force_balance=True),
    )  # fmt: skip
    layers = Layers(recipe, software_of(None), kernels, Links(RATES))
    layers.kinds, kernels.asked = (k,), []
    layers.of(Split(tp=1, cp=1, ep=1, etp=1, mbs=1, cp_comm_type=None, modules=(), full=False))
    return kernels


@pytest.mark.parametrize("name", MODELS)
def test_time_is_that_of_the_matrices(name: str) -> None:
    """Each is multiplied once forward and twice backward; the router is timed besides, in whatever format it has."""
    a = architecture(name)
    for k in dict.fromkeys(a.layers()):
        done = sum(macs for macs, _ in _timed(a, k).asked) - (a.num_moe_experts or 0) * a.hidden_size * SEQ * (
            k.mlp == "moe"
        )
        assert done / SEQ == pytest.approx(3 * _products(a, k), rel=0.03), k


@pytest.mark.parametrize("name", MODELS)
def test_attention_takes_the_time_of_its_flops(name: str) -> None:
    """Two FLOPs a multiply-add forward, two and a half times that backward, where the scores are made again; a window costs its edges
    besides."""
    a = architecture(name)
    for k in dict.fromkeys(a.layers()):
        timed = _timed(a, k)
        scores, counted = timed.scores, 2 * SEQ * attention_macs(a, k, SEQ)
        assert scores[True] == pytest.approx(2.5 * scores[False]), k
        if k.window is not None and k.window < SEQ and k.mixer != "csa":
            seen = k.window * (1 - k.window / (2 * SEQ))
            counted *= min(seen + timed.edge, SEQ / 2) / seen
        if k.mixer != "csa" and not k.indexer and a.experimental_attention_variant != "dsa":
            assert scores[False] == pytest.approx(counted, rel=0.02), k
