"""The machines and GPU products that are known by name, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from parlaunch.data import load
from parlaunch.hardware.datasheet import Product, preset_row, product, product_names
from parlaunch.units import rate

MACHINES = ("machine", "also", "GPUs", "NVLink joins", "fabric a GPU", "source")
PRODUCTS = ("product", "memory", "bf16", "fp8", "memory bandwidth", "NVLink", "source")


def machines_to_json() -> dict[str, Any]:
    """The object `parlaunch.machines/1`: bytes, bytes/s in one direction, dense FLOP/s."""
    return {
        "schema": "parlaunch.machines/1",
        "machines": [_machine(name) for name in _presets()],
        "products": [
            {
                "name": p.name, "memory_bytes": p.memory_bytes, "flops": dict(p.flops), "hbm_bytes_per_s": p.hbm_bytes_per_s,
                "nvlink_bytes_per_s": p.nvlink_bytes_per_s, "source": p.source, "assumed": list(p.assumed),
            }
            for p in _products()
        ],
    }  # fmt: skip


def _presets() -> tuple[str, ...]:
    return tuple(load("presets.json")["presets"])


def _products() -> tuple[Product, ...]:
    return tuple(p for name in product_names() if (p := product(name)) is not None)


def _machine(name: str) -> dict[str, Any]:
    row = preset_row(name)
    fabric, joined = row["fabric"], row["nvlink_group"] * row["nvlink_domain_nodes"]
    each = fabric["ports_per_node"] * fabric["bytes_per_s_per_port"] / row["gpus_per_node"]
    return {
        "name": name, "aliases": [a for a, known in load("presets.json")["aliases"].items() if known == name],
        "gpu": row["gpu"], "gpus_per_node": row["gpus_per_node"], "nvlink_gpus": joined, "fabric": fabric["kind"],
        "fabric_bytes_per_s_per_gpu": each, "source": row["source"], "assumed": list(row["assumed"]),
    }  # fmt: skip


def tables() -> tuple[tuple[tuple[str, ...], list[tuple[str, ...]]], ...]:
    """Head and rows of the two tables: machines, then products. A star marks what is assumed, not published."""
    machines: list[tuple[str, ...]] = [
        (
            m["name"], ", ".join(m["aliases"]), f"{m['gpus_per_node']} × {m['gpu']}",
            f"{m['nvlink_gpus']} GPUs" if m["nvlink_gpus"] > 1 else "-",
            f"{rate(m['fabric_bytes_per_s_per_gpu'])} {m['fabric']}{'*' if 'fabric' in m['assumed'] else ''}"
            if m["fabric_bytes_per_s_per_gpu"] else "-",
            m["source"],
        )
        for m in map(_machine, _presets())
    ]  # fmt: skip
    products: list[tuple[str, ...]] = [
        (
            p.name, f"{p.memory_bytes / 2**30:.0f} GiB{'*' if 'memory_bytes' in p.assumed else ''}", _peak(p, "bf16"), _peak(p, "fp8"),
            f"{p.hbm_bytes_per_s / 1e12:.3g} TB/s", rate(p.nvlink_bytes_per_s) if p.nvlink_bytes_per_s else "-", p.source,
        )
        for p in _products()
    ]  # fmt: skip
    return (MACHINES, machines), (PRODUCTS, products)


def _peak(p: Product, kind: str) -> str:
    mark = "*" if "flops" in p.assumed else ""
    return f"{p.flops[kind] / 1e12:,.0f} TFLOP/s{mark}" if kind in p.flops else "-"


def to_text(search: str = "") -> str:
    """Both tables, of the rows that have every word of `search`; without their sources."""
    parts = []
    for head, rows in tables():
        head, rows = head[:-1], [row[:-1] for row in rows if _has(row, search)]
        if not rows:
            continue
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        parts.append(
            "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in (head, *rows))
        )
    return "\n\n".join(parts)


def _has(row: Sequence[str], search: str) -> bool:
    text = " ".join(row).lower()
    return all(word in text for word in search.lower().split())


def to_markdown() -> str:
    """Both tables with their sources, as the documentation has them."""
    return "\n\n".join(
        "\n".join([_line(head), _line(["---"] * len(head)), *map(_line, rows)]) for head, rows in tables()
    )


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(c.replace('|', '/') for c in cells)} |"
