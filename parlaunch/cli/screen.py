"""A plan as one screen of text: the decision first, then why, what else was close, and what follows from it.

Colour where there is a terminal, plain and stable where there is none; NO_COLOR and narrow terminals are rich's to handle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from parlaunch import __version__
from parlaunch.cpu import CPU_RANK
from parlaunch.plan import Plan
from parlaunch.scripts import quoted
from parlaunch.units import count, gib, percent, rate, seconds
from parlaunch.words import candidate_words, layout_words

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

MEMORY_PARTS = (
    ("weights", "█", "blue"), ("gradients", "▓", "cyan"), ("optimizer", "▒", "magenta"), ("activations", "█", "green"),
    ("logits", "▓", "yellow"), ("buffers", "▒", "red"), ("runtime", "░", "bright_black"),
)  # fmt: skip
TIME_PARTS = (
    ("compute_s", "compute", "█", "green"), ("tp_s", "tensor parallel", "▓", "cyan"),
    ("cp_s", "context parallel", "▒", "blue"), ("ep_s", "expert all-to-all", "▓", "magenta"),
    ("pp_bubble_s", "pipeline bubble", "░", "bright_black"), ("pp_p2p_s", "pipeline transfer", "▒", "yellow"),
    ("dp_exposed_s", "data parallel", "▓", "red"), ("optimizer_s", "optimizer", "█", "magenta"),
    ("host_s", "host", "▒", "bright_black"),
)  # fmt: skip


def show(plan: Plan, console: Console, *, verbose: bool = False) -> None:
    """Print the whole plan on a terminal. `verbose` leaves nothing out."""
    for part in _parts(plan, console.width, verbose):
        console.print(part, highlight=False)


def as_text(plan: Plan, *, width: int = 100, verbose: bool = False) -> str:
    """The same without colour, for logs and files: no blanks at the ends of lines, the same everywhere."""
    from io import StringIO

    from rich.console import Console

    page = StringIO()
    show(plan, Console(file=page, width=width, color_system=None, legacy_windows=False), verbose=verbose)
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines()) + "\n"


def _parts(plan: Plan, width: int, verbose: bool) -> Iterable[RenderableType]:
    from rich.text import Text

    yield from _title(plan)
    yield Text()
    yield _facts(plan, width)
    yield from _bars(plan, width)
    if plan.because:
        yield _heading("Why")
        yield from (_item(sentence) for sentence in plan.because)
    if plan.evidence:
        yield _heading("Measured elsewhere")
        yield from (_item(str(row.get("sentence", row))) for row in plan.evidence[: None if verbose else 3])
    if plan.alternatives:
        yield _heading("Also close")
        yield _close(plan)
    if plan.rejected:
        yield _heading("Refused")
        shown = plan.rejected if verbose else plan.rejected[:4]
        yield from (_item(f"{r.layout}: {r.reason}") for r in shown)
        if len(shown) < len(plan.rejected):
            yield _item(f"and {len(plan.rejected) - len(shown)} more (-v shows them)")
    if plan.warnings:
        yield _heading("Mind", "yellow")
        yield from (_item(sentence) for sentence in plan.warnings)
    if plan.environment:
        yield _heading("Environment")
        yield _environment(plan, width, verbose)
    if plan.overrides:
        yield _heading("Overrides")
        yield from _overrides(plan, verbose)
    if plan.argv:
        yield _heading("Command")
        yield _item(quoted(plan.argv))


def _heading(word: str, style: str = "bold") -> Text:
    from rich.text import Text

    return Text(f"\n{word}", style=f"bold {style}")


def _item(sentence: str | Text) -> RenderableType:
    from rich.padding import Padding
    from rich.text import Text

    return Padding(sentence if isinstance(sentence, Text) else Text(sentence), (0, 0, 0, 2))


def _title(plan: Plan) -> Iterable[Text]:
    from rich.text import Text

    r = plan.recipe
    head = Text(r.name, style="bold")
    head.append(f"   parlaunch {__version__}, recipe from {r.source}", style="bright_black")
    yield head
    active = r.architecture.active_params
    size = count(r.architecture.total_params) + " parameters"
    size += f", {count(active)} active" if active < r.architecture.total_params else ""
    task = f"{r.task}, language model frozen" if r.features.frozen_language_model else r.task
    yield Text(f"{task} · {size} · {r.precision} · {r.seq_length:,} tokens · global batch {r.global_batch_size:,}")


def _facts(plan: Plan, width: int) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    c, x = plan.cluster, plan.layout
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    nodes = len(c.nodes)
    gpus = f"{nodes:,} node{'s' if nodes > 1 else ''} × {c.gpus_per_node} {c.gpu.name} = {c.world_size:,}"
    if c.world_size == 1:
        gpus = f"1 node with 1 {c.gpu.name}"
    sizes = sorted({len(d) for d in c.nvlink_domains})
    nvlink = "NVLink domains of " + ", ".join(map(str, sizes)) if sizes else "no NVLink"
    if c.gpu.name == CPU_RANK.name:
        gpus, nvlink = f"{c.world_size} CPU rank{'s' if c.world_size > 1 else ''} on this machine", "gloo"
    elif c.world_size == 1:
        nvlink = ""
    fabric = c.fabric.kind if c.fabric.kind != "none" else "no fabric"
    if c.fabric.bytes_per_s_per_gpu and nodes > 1:
        fabric += f" {rate(c.fabric.bytes_per_s_per_gpu)} a GPU"
    machine, source = " · ".join(filter(None, (gpus, nvlink, fabric if nodes > 1 else ""))), f"[{c.source}]"
    gap = "  " if len(machine) + len(source) + 13 <= width else "\n"
    table.add_row("machine", Text(f"{machine}{gap}{source}"))
    table.add_row("layout", layout_words(plan.layout))
    batch = f"micro batch {x.micro_batch_size} × {x.num_microbatches} accumulated × DP {x.dp} = {x.global_batch_size:,}"
    table.add_row("batch", batch)
    table.add_row("recompute", str(x.recompute))
    if x.world < c.world_size:
        table.add_row("idle", f"{c.world_size - x.world} GPUs")
    return table


def _bar(parts: Sequence[tuple[float, str, str]], room: float, width: int) -> Text:
    """The parts as shares of `room`, which ends where dots end; at a mark when they need more than there is."""
    from rich.text import Text

    needed = sum(size for size, _, _ in parts)
    total = max(room, needed)
    text, shown, used = Text(), 0, 0.0
    for size, glyph, style in parts:
        used += size
        end = min(width, round(width * used / total)) if total else 0
        text.append(glyph * (end - shown), style=style)
        shown = end
    text.append("·" * (width - shown), style="bright_black")
    if needed > room * 1.001:
        end = round(width * room / total)
        text = Text.assemble(text[:end], ("┃", "bold red"), text[end + 1 :])
    return text


def _bars(plan: Plan, width: int) -> Iterable[RenderableType]:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    m, e = plan.chosen.memory, plan.chosen.estimate
    b = e.breakdown
    narrow = width < 90
    room = max(10, min(50, width - (12 if narrow else 50)))
    memory = Text(f"{gib(m.peak)} ± {percent(m.error_band)} of {gib(m.capacity)}", style="" if m.fits else "red")
    time = Text(f"{seconds(e.iteration_time_s)} ± {percent(e.error_band)} an iteration")
    memory_bar = _bar([(getattr(m, n), glyph, style) for n, glyph, style in MEMORY_PARTS], m.capacity, room)
    time_bar = _bar([(getattr(b, n), glyph, style) for n, _, glyph, style in TIME_PARTS], b.total, room)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=not narrow)
    table.add_column()
    table.add_row("", "", "")
    for word, bar, figure in (("memory", memory_bar, memory), ("time", time_bar, time)):
        table.add_row(word, *([Group(bar, figure)] if narrow else [bar, figure]))
    yield table
    if not m.fits:
        yield _item(
            Text(f"does not fit: {gib(m.peak - m.limit)} more than the {gib(m.limit)} usable", style="bold red")
        )
    yield _item(_speed(plan))
    yield _legend("memory", [(n, gib(getattr(m, n)), g, s) for n, g, s in MEMORY_PARTS if getattr(m, n)], width)
    shown = [row for row in TIME_PARTS if getattr(b, row[0]) > 0.0005 * b.total]
    yield _legend("time", [(word, seconds(getattr(b, name)), g, s) for name, word, g, s in shown], width)


def _speed(plan: Plan) -> str:
    e = plan.chosen.estimate
    if plan.cluster.gpu.name == CPU_RANK.name:  # no peak to hold it against
        return f"{e.tokens_per_s_per_gpu:,.0f} tokens/s a rank"
    tokens = f"{e.tokens_per_s_per_gpu:,.0f} tokens/s/GPU"
    return f"{tokens} · {e.model_tflops_per_gpu:,.0f} TFLOP/s/GPU · MFU {percent(e.mfu)}"


def _legend(word: str, parts: Sequence[tuple[str, str, str, str]], width: int) -> RenderableType:
    """The bar's parts with their sizes; a line breaks between two parts, never inside one."""
    from rich.padding import Padding
    from rich.text import Text

    lines = [Text(f"{word}: ", style="bright_black")]
    for at, (name, value, glyph, style) in enumerate(parts):
        part = Text().append(glyph, style=style).append(f" {name} {value}")
        if at:
            lines[-1].append(" ·", style="bright_black")
        if at and len(lines[-1]) + len(part) + 4 > width - 2:
            lines.append(Text(" " * (len(word) + 2)))
        elif at:
            lines[-1].append(" ")
        lines[-1].append(part)
    return Padding(Text("\n").join(lines), (0, 0, 0, 2))


def _close(plan: Plan) -> RenderableType:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=True, show_edge=False)
    for name, justify in (
        ("layout", "left"),
        ("recompute", "left"),
        ("memory", "right"),
        ("time", "right"),
        ("slower", "right"),
    ):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]  # rich spells the literals
    best = plan.chosen.estimate.iteration_time_s
    for c in (plan.chosen, *plan.alternatives):
        more = c.estimate.iteration_time_s / best - 1
        label = candidate_words(c)
        table.add_row(
            label, str(c.layout.recompute), gib(c.memory.peak), seconds(c.estimate.iteration_time_s),
            "chosen" if c is plan.chosen else f"{more:+.1%}",
        )  # fmt: skip
    return table


def _environment(plan: Plan, width: int, verbose: bool) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    rows = []
    for v in plan.environment:
        reason = f"yours, kept: {v.warning or v.reason}" if v.kept else v.reason
        rows.append((f"{v.name}={v.value}", reason if verbose else reason.partition("; the recipe's own value")[0]))
    longest = max(len(setting) for setting, _ in rows)
    if width < 90:  # two columns would leave the reasons too narrow to read
        return Group(
            *(
                item
                for setting, reason in rows
                for item in (
                    Padding(Text(setting, overflow="fold"), (0, 0, 0, 2)),
                    Padding(Text(reason, style="bright_black"), (0, 0, 0, 6)),
                )
            )
        )
    table = Table.grid(padding=(0, 2))
    table.add_column(overflow="fold", width=min(longest + 2, 50))
    table.add_column(style="bright_black")
    for setting, reason in rows:
        table.add_row(f"  {setting}", Text(reason))
    return table


def _overrides(plan: Plan, verbose: bool) -> Iterable[RenderableType]:
    """What is set; what only clears a setting of the recipe is counted, since the command below has it all."""
    shown = [o for o in plan.overrides if verbose or not o.endswith("=null")]
    yield _item(" ".join(shown))
    if cleared := len(plan.overrides) - len(shown):
        yield _item(f"and {cleared} more that set to null what this layout does not use")
