"""What others measured: published layouts for the same model, machine and count, beside which a plan is shown.

A measured layout beats a predicted one: where the model's error bar cannot tell the two apart, the proven one is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from parlaunch.architecture import Architecture
from parlaunch.catalog import load
from parlaunch.layout import Layout, layout_to_json, recompute_from_json
from parlaunch.plan import Candidate
from parlaunch.rates import Rates
from parlaunch.recipe import Recipe
from parlaunch.units import percent

if TYPE_CHECKING:
    from parlaunch.search import Search


@dataclass(frozen=True, slots=True)
class Published:
    """One published layout. `tflops` and `tokens` are model TFLOP/s and tokens/s a GPU; None: published without a measurement."""

    name: str
    source: str
    gpus: int
    product: str
    precision: str
    seq_length: int
    global_batch_size: int
    layout: Layout
    tflops: float | None
    tokens: float | None
    framework: str | None

    @property
    def measured(self) -> bool:
        return self.tokens is not None

    def facts(self) -> dict[str, object]:
        """As JSON values."""
        return {
            "name": self.name, "source": self.source, "gpus": self.gpus, "product": self.product,
            "precision": self.precision, "seq_length": self.seq_length, "global_batch_size": self.global_batch_size,
            "layout": layout_to_json(self.layout), "model_tflops_per_gpu": self.tflops,
            "tokens_per_s_per_gpu": self.tokens, "framework": self.framework,
        }  # fmt: skip

    def sentence(self) -> str:
        """ "NVIDIA on 256 × GB200, batch 4096: tp=1 pp=4 …, measured 704 TFLOP/s a GPU (megatron-bridge 26.08)"."""
        head = f"NVIDIA on {self.gpus} × {self.product}, batch {self.global_batch_size:,}: {self.layout}"
        if self.tflops is None and self.tokens is None:
            return f"{head}, tuned, published without a measurement ({self.name})"
        what = f"{self.tflops:,.0f} TFLOP/s" if self.tflops is not None else f"{self.tokens:,.0f} tokens/s"
        return f"{head}, measured {what} a GPU ({self.framework})"


def chunks_of(row: Mapping[str, Any], a: Architecture) -> tuple[int, ...] | None:
    """Decoder layers of each virtual stage of a published layout, embedding and loss counted as it says.

    Where it names no split and layers do not divide, its recipe sets one in code: the nearest even one stands for it.
    """
    from parlaunch.space import splits

    chunks = row.get("layers_per_chunk")
    if chunks is not None:
        return tuple(chunks)
    layers, parts = len(a.layers()), row["pp"] * (row.get("vp") or 1)
    first = bool(row.get("account_for_embedding_in_pipeline_split"))
    last = bool(row.get("account_for_loss_in_pipeline_split"))
    if parts > 1 and (first or last) and (layers + first + last) % parts == 0:
        size = (layers + first + last) // parts
        return (size - first, *([size] * (parts - 2)), size - last)
    if layers % parts == 0 or row.get("equal"):
        return None
    found = splits(a, row["pp"], row.get("vp"))
    return found[0] if found else None


def layout_of(row: Mapping[str, Any], *, gpus: int, gbs: int, a: Architecture, fsdp: bool) -> Layout:
    """A published layout as a value."""
    cp = row.get("cp") or 1
    sparse = a.experimental_attention_variant == "dsa"
    return Layout(
        world=gpus, tp=row["tp"], pp=row["pp"], vp=row.get("vp"), cp=cp, ep=row.get("ep") or 1, etp=row.get("etp") or 1,
        micro_batch_size=row["mbs"], global_batch_size=gbs, recompute=recompute_from_json(row.get("recompute")),
        fsdp=fsdp, cp_comm_type=None if cp == 1 else "all_gather" if sparse else "p2p",
        layers_per_chunk=chunks_of(row, a),
    )  # fmt: skip


@lru_cache(maxsize=1)
def _rows() -> tuple[Mapping[str, Any], ...]:
    return tuple(load("evidence.json")["rows"])


def broken_as_published(name: str, layout: Layout) -> bool:
    """Whether this is the layout of a published recipe that is known not to run as written."""
    for row in _rows():
        if row["name"] != name or row.get("feasible", True):
            continue
        x = row["layout"]
        sizes = (x["tp"], x["pp"], x.get("vp"), x.get("cp") or 1, x.get("ep") or 1, x["mbs"])
        return sizes == (layout.tp, layout.pp, layout.vp, layout.cp, layout.ep, layout.micro_batch_size)
    return False


def published(recipe: Recipe, rates: Rates) -> tuple[Published, ...]:
    """Published layouts of this model on this product in this precision: the same number of GPUs first, then the nearest;
    measured ones, the fastest first, before those without a measurement."""
    found = []
    for row in _rows():
        same = (row["model_id"], row["product"], row["precision"], row["task"], row["seq"])
        mine = (recipe.model_id, rates.product.name, recipe.precision, recipe.task, recipe.seq_length)
        if same != mine or not row.get("feasible", True):
            continue
        found.append(
            Published(
                name=row["name"],
                source=row["source"],
                gpus=row["gpus"],
                product=row["product"],
                precision=row["precision"],
                seq_length=row["seq"],
                global_batch_size=row["gbs"],
                layout=layout_of(
                    row["layout"], gpus=row["gpus"], gbs=row["gbs"], a=recipe.architecture, fsdp=bool(row.get("fsdp"))
                ),
                tflops=row.get("tflops"),
                tokens=row.get("tokens"),
                framework=row.get("framework"),
            )
        )
    world = rates.world_size
    found.sort(key=lambda p: (abs(p.gpus - world), p.tokens is None, -(p.tokens or 0.0), p.name))
    # One layout is measured with every release: its best stands for it.
    return tuple({p.layout: p for p in reversed(found)}.values())[::-1]


def _keeps(search: Search, layout: Layout) -> bool:
    """Whether the layout keeps the user's pins."""
    w = search.wishes
    pins = (
        (w.tp, layout.tp), (w.pp, layout.pp), (w.vp, layout.vp or 1), (w.cp, layout.cp), (w.ep, layout.ep),
        (w.etp, layout.etp), (w.micro_batch_size, layout.micro_batch_size), (w.recompute, layout.recompute),
        (w.fsdp, layout.fsdp),
    )  # fmt: skip
    return all(pin is None or pin == size for pin, size in pins)


def proven(rows: Sequence[Published], search: Search, chosen: Candidate) -> tuple[Candidate, str] | None:
    """The measured layout that the plan should take, with the sentence that says so; None when there is none, or when
    the model is sure that it is slower than `chosen`."""
    recipe = search.recipe
    for row in rows:
        if not row.measured or row.gpus != search.rates.world_size:
            continue
        if row.global_batch_size != recipe.global_batch_size or row.layout.fsdp != search.fsdp:
            continue
        if not _keeps(search, row.layout) or not search.legal(row.layout):
            continue
        if search.memory(row.layout).peak > search.rates.memory_bytes:
            continue
        made = search.candidate(row.layout)
        what = f"{row.tflops:,.0f} TFLOP/s" if row.tflops is not None else f"{row.tokens:,.0f} tokens/s"
        if row.layout == chosen.layout:
            return chosen, f"NVIDIA measured this very layout: {what} a GPU ({row.framework})."
        share = made.estimate.iteration_time_s / chosen.estimate.iteration_time_s - 1
        if share > chosen.estimate.error_band:
            return None
        return made, (
            f"Proven: NVIDIA measured {what} a GPU with this layout ({row.framework}); {chosen.layout} is predicted "
            f"{percent(abs(share))} {'faster' if share > 0 else 'slower'}, within the model's ± {percent(chosen.estimate.error_band)}."
        )
    return None
