"""What others measured: published layouts for the same model, machine and count, beside which a plan is shown.

A measured layout beats a predicted one: where the model's error bar cannot tell the two apart, the proven one is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from parlaunch.data import rows
from parlaunch.frozen import dataclass
from parlaunch.hardware.rates import Rates
from parlaunch.model.architecture import Architecture
from parlaunch.model.layout import Layout, layout_to_json, recompute_from_json
from parlaunch.model.recipe import Recipe
from parlaunch.planning.experience import keeps, within_band
from parlaunch.planning.plan import Candidate, Wishes
from parlaunch.planning.space import splits
from parlaunch.rules import cp_comm_type


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
        """ "NVIDIA on 256 × GB200, batch 4,096: tp=1 pp=4 …, measured 704 TFLOP/s a GPU (megatron-bridge 26.08)"."""
        head = f"NVIDIA on {self.gpus} × {self.product}, batch {self.global_batch_size:,}: {self.layout}"
        if self.tflops is None and self.tokens is None:
            return f"{head}, tuned, published without a measurement ({self.name})"
        what = f"{self.tflops:,.0f} TFLOP/s" if self.tflops is not None else f"{self.tokens:,.0f} tokens/s"
        return f"{head}, measured {what} a GPU ({self.framework})"


def chunks_of(row: Mapping[str, Any], a: Architecture) -> tuple[int, ...] | None:
    """Decoder layers of each virtual stage of a published layout, embedding and loss counted as it says.

    Where it names no split and layers do not divide, its recipe sets one in code: the nearest even one stands for it.
    """
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
    return Layout(
        world=gpus, tp=row["tp"], pp=row["pp"], vp=row.get("vp"), cp=cp, ep=row.get("ep") or 1, etp=row.get("etp") or 1,
        micro_batch_size=row["mbs"], global_batch_size=gbs, recompute=recompute_from_json(row.get("recompute")),
        fsdp=fsdp, cp_comm_type=cp_comm_type(a, cp),
        layers_per_chunk=chunks_of(row, a),
    )  # fmt: skip


def published(recipe: Recipe, rates: Rates) -> tuple[Published, ...]:
    """Published layouts of this model on this product in this precision: the same number of GPUs first, then the nearest;
    measured ones, the fastest first, before those without a measurement."""
    found = []
    for row in rows("evidence.json", "model_id", recipe.model_id):
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


def proven(
    rows: Sequence[Published],
    recipe: Recipe,
    wishes: Wishes,
    chosen: Candidate,
    *,
    world: int,
    evaluate: Callable[[Layout], Candidate | None],
) -> tuple[Candidate, str] | None:
    """The measured layout that the plan for `world` GPUs should take, with the sentence that says so; None when there is
    none, or when the model is sure that it is slower than `chosen`. `evaluate`: a layout's candidate, None when it does not
    run here."""
    for row in rows:
        if not row.measured or row.gpus != world:
            continue
        if row.global_batch_size != recipe.global_batch_size or row.layout.fsdp != recipe.features.fsdp:
            continue
        if not keeps(wishes, row.layout) or (made := evaluate(row.layout)) is None:
            continue
        what = f"{row.tflops:,.0f} TFLOP/s" if row.tflops is not None else f"{row.tokens:,.0f} tokens/s"
        if row.layout == chosen.layout:
            return chosen, f"NVIDIA measured this very layout: {what} a GPU ({row.framework})."
        beside = within_band(made, chosen)
        return (
            None
            if beside is None
            else (made, f"Proven: NVIDIA measured {what} a GPU with this layout ({row.framework}); {beside}")
        )
    return None
