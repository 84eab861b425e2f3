"""A plan as one screen of text: the decision, what it beats, the whys that matter and what to mind; with `verbose` all of it.

Colour where there is a terminal, plain and stable where there is none. Every part of a bar has a mark of its own: it is
read without colour too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from parlaunch.errors import UsageError
from parlaunch.estimate.values import MEMORY_PARTS, TIME_PARTS, breakdown, components
from parlaunch.frozen import dataclass
from parlaunch.hardware.cluster import UNKNOWN, Cluster
from parlaunch.hardware.cpu import device_of
from parlaunch.hardware.datasheet import preset_of, product, trays
from parlaunch.model.parameters import active_params, total_params
from parlaunch.planning.plan import Candidate, Plan
from parlaunch.planning.reasons import needs, slower
from parlaunch.planning.switching import BINDING
from parlaunch.show.compare import own_layout
from parlaunch.show.formats import Page
from parlaunch.show.lines import EMPTY, Line, Piece, beside, length, table, text, wrapped
from parlaunch.show.lines import line as line_of
from parlaunch.show.scripts import quoted
from parlaunch.show.switches import assumed, line, worth
from parlaunch.show.words import layout_words, training_words
from parlaunch.units import count, gib, percent, rate, seconds
from parlaunch.version import __version__

MEMORY_STYLES = (
    ("█", "blue"), ("▓", "cyan"), ("▒", "magenta"), ("▚", "green"), ("▀", "yellow"), ("▄", "red"), ("░", "bright_black"),
)  # fmt: skip
"""Mark and colour of each of `MEMORY_PARTS`."""
TIME_STYLES = (
    ("█", "green"), ("▓", "cyan"), ("▒", "blue"), ("▚", "magenta"), ("░", "bright_black"), ("▄", "yellow"), ("▀", "red"),
    ("▌", "magenta"), ("▂", "bright_black"),
)  # fmt: skip
"""Mark and colour of each of `TIME_PARTS`."""

LINES = 40
"""The decision is one screen of at most so many lines, a hundred columns wide."""


@dataclass(frozen=True, slots=True)
class Room:
    """How much of each list the screen has room for."""

    whys: int
    close: int
    warnings: int
    measured: int = 1


ROOMS = tuple(
    Room(*sizes) for sizes in ((3, 3, 4), (3, 3, 2), (2, 3, 2), (2, 2, 1), (1, 1, 1), (1, 0, 1, 0), (0, 0, 1, 0))
)
"""From most to least: the first one that keeps within `LINES` is taken."""


def render(plan: Plan, page: Page) -> str:
    """One screen, or the layout alone; painted where the page takes colour, else plain and the same everywhere."""
    if page.quiet:
        return f"{plan.layout}\n"
    return as_text(plan, width=page.columns, verbose=page.verbose, colour=page.colour)


def as_text(plan: Plan, *, width: int = 100, verbose: bool = False, colour: bool = False) -> str:
    """The decision on one screen, or, `verbose`, all there is; no blanks at the ends of lines."""
    return text(_whole(plan, width) if verbose else _decision(plan, width), colour=colour)


def _decision(plan: Plan, width: int) -> Iterable[Line]:
    """What fits on one screen, with as much of the lists as it has lines for."""
    head = [*_head(plan, width)]
    for room in ROOMS:
        rest = [*_rest(plan, room, width)]
        if len(head) + len(rest) <= LINES:
            break
    return [*head, *rest]


def _head(plan: Plan, width: int) -> Iterable[Line]:
    yield from _title(plan, width)
    yield EMPTY
    yield from _facts(plan, width)
    yield from _bars(plan, width)
    if chosen := [s for s in plan.switches if s.name != BINDING]:
        yield from _list("Switches", (*map(line, chosen), *filter(None, (worth(plan), assumed(plan)))), width)
    if plan.training:
        yield from _list("The whole run", training_words(plan.training), width)


def _rest(plan: Plan, room: Room, width: int) -> Iterable[Line]:
    """The lists below the bars, each cut to its room, and how to see the rest."""
    if room.close:
        yield from _close(plan, plan.alternatives[: room.close], width)
    yield from _list("Why", plan.because[: room.whys], width)
    measured = [row for row in plan.evidence if _was_measured(row)][: room.measured]
    yield from _list("Measured elsewhere", map(_sentence, measured), width)
    more = len(plan.warnings) - room.warnings
    rest = (f"and {more} more (-v shows them)",) if more > 0 else ()
    yield from _list("Mind", (*plan.warnings[: room.warnings], *rest), width, "yellow")
    yield EMPTY
    for hint in (
        "-v: every reason and layout, what was refused, environment, overrides, command",
        "--why-not tp=8,pp=2: about another layout · --report FILE.html: to look at",
    ):
        yield from wrapped((Piece(hint, "bright_black"),), width)


def _whole(plan: Plan, width: int) -> Iterable[Line]:
    """All there is."""
    yield from _head(plan, width)
    yield from _list("Why", plan.because, width)
    measured = [row for row in plan.evidence if _was_measured(row)]
    published = [row for row in plan.evidence if not _was_measured(row)]
    yield from _list("Measured elsewhere", map(_sentence, measured), width)
    yield from _list("Published elsewhere, without a measurement", map(_sentence, published), width)
    yield from _close(plan, plan.alternatives, width)
    yield from _list("Refused", (f"{r.layout}: {r.reason}" for r in plan.rejected), width)
    yield from _list("Mind", plan.warnings, width, "yellow")
    if plan.environment:
        yield from _heading("Environment")
        yield from _environment(plan, width)
    yield from _list("Overrides", (" ".join(plan.overrides),) if plan.overrides else (), width)
    yield from _list("Command", (quoted(plan.argv),) if plan.argv else (), width)


def _was_measured(row: Mapping[str, object]) -> bool:
    return row.get("tokens_per_s_per_gpu") is not None or row.get("model_tflops_per_gpu") is not None


def _sentence(row: Mapping[str, object]) -> str:
    return str(row.get("sentence", row))


def _heading(word: str, style: str = "") -> tuple[Line, Line]:
    return EMPTY, (Piece(word, f"bold {style}".strip()),)


def _list(word: str, sentences: Iterable[str], width: int, style: str = "") -> Iterable[Line]:
    """Sentences below their heading; nothing where there is none."""
    found = [one for sentence in sentences for one in _item(sentence, width)]
    return [*_heading(word, style), *found] if found else []


def _item(sentence: str | Line, width: int) -> list[Line]:
    return wrapped(sentence, width, indent=2)


def _title(plan: Plan, width: int) -> Iterable[Line]:
    r = plan.recipe
    said = f"   parlaunch {__version__}, recipe from {r.source}"
    yield from wrapped((Piece(r.name, "bold"), Piece(said, "bright_black")), width)
    active = active_params(r.architecture)
    size = count(total_params(r.architecture)) + " parameters"
    size += f", {count(active)} active" if active < total_params(r.architecture) else ""
    if (encoder := r.architecture.encoder) is not None:
        seen = count(encoder.total_params) if encoder.total_params else "unknown size"
        size += f", and an encoder of {seen}"
    task = f"{r.task}, language model frozen" if r.features.frozen_language_model else r.task
    wide = sum(r.features.wide_ends(r.precision))
    precision = r.precision + (f", {wide} layers bf16" if wide else "")
    words = f"{task} · {size} · {precision} · {r.seq_length:,} tokens · global batch {r.global_batch_size:,}"
    yield from wrapped(words, width)


def _facts(plan: Plan, width: int) -> Iterable[Line]:
    c, x = plan.cluster, plan.layout
    nodes = len(c.nodes)
    gpus = f"{nodes:,} node{'s' if nodes > 1 else ''} × {c.gpus_per_node} {c.gpu.name} = {c.world_size:,}"
    if c.world_size == 1:
        gpus = f"1 node with 1 {c.gpu.name}"
    sizes = sorted({len(d) for d in c.nvlink_domains})
    nvlink = "NVLink domains of " + ", ".join(map(str, sizes)) if sizes else "no NVLink"
    nvlink = _racks(c) or nvlink
    if device_of(c) == "cpu":
        there = "this machine" if nodes == 1 else f"{nodes:,} nodes"
        gpus, nvlink = f"{c.world_size} CPU rank{'s' if c.world_size > 1 else ''} on {there}", "gloo"
    elif c.world_size == 1:
        nvlink = ""
    unknown = f"{c.fabric.rails} rails of an unknown fabric" if c.fabric.rails else "fabric unknown"
    fabric = {"none": "no fabric", UNKNOWN: unknown}.get(c.fabric.kind, c.fabric.kind)
    if c.fabric.bytes_per_s_per_gpu and nodes > 1:
        fabric += f" {rate(c.fabric.bytes_per_s_per_gpu)} a GPU"
    machine, source = " · ".join(filter(None, (gpus, nvlink, fabric if nodes > 1 else ""))), f"[{c.source}]"
    gap = "  " if len(machine) + len(source) + 13 <= width else "\n"
    facts = {
        "machine": f"{machine}{gap}{source}",
        "layout": layout_words(plan.layout, split=plan.sequence_parallel),
        "batch": f"micro batch {x.micro_batch_size} × {x.num_microbatches} accumulated × DP {x.dp} = {x.global_batch_size:,}",
        "recompute": str(x.recompute),
    }
    if (bound := next((s for s in plan.switches if s.name == BINDING), None)) is not None:
        facts["binding"] = bound.reason
    if x.world < c.world_size:
        facts["idle"] = f"{c.world_size - x.world} GPUs"
    wide = max(map(len, facts))
    for word, said in facts.items():
        yield from _labelled(word, wide, wrapped(said, width - wide - 2))


def _labelled(word: str, wide: int, lines: Sequence[Line]) -> Iterable[Line]:
    """Lines behind a bold word in a column so wide."""
    return beside([([(Piece(word, "bold"),)], wide), (lines, 0)])


def _racks(c: Cluster) -> str:
    """How much of an NVLink rack, or how many; empty where NVLink stays inside the node."""
    sheet, name = product(c.gpu.name), preset_of(c.source.removeprefix("preset ").partition(":")[0])
    if sheet is None or not sheet.rack_gpus or c.nvlink_domain_size <= c.gpus_per_node:
        return ""
    full = max(len(n.gpus) + len(n.gpus_left_out) for n in c.nodes)
    whole = trays(name) if name else sheet.rack_gpus // full
    domain = c.nvlink_domain_size // c.gpus_per_node
    racks = -(-len(c.nodes) // domain)
    if racks == 1:
        return (
            f"{domain} of a rack's {whole} trays" if domain < whole else f"one rack of {whole} trays, joined by NVLink"
        )
    if domain == whole:
        return f"{racks} racks of {whole} trays, each joined by NVLink"
    return f"{racks} racks with {domain} of their {whole} trays, each joined by NVLink"


def _bar(parts: Sequence[tuple[float, str, str]], room: float, width: int) -> Line:
    """The parts as shares of `room`, which ends where dots end; at a mark when they need more than there is."""
    needed = sum(size for size, _, _ in parts)
    total = max(room, needed)
    bar: list[Piece] = []
    shown, used = 0, 0.0
    for size, glyph, style in parts:
        used += size
        end = min(width, round(width * used / total)) if total else 0
        bar.append(Piece(glyph * (end - shown), style))
        shown = end
    bar.append(Piece("·" * (width - shown), "bright_black"))
    if needed > room * 1.001:
        return _marked(bar, round(width * room / total))
    return tuple(bar)


def _marked(bar: Sequence[Piece], place: int) -> Line:
    """The bar with a mark at a place of it."""
    found, at = [], 0
    for piece in bar:
        inside = place - at
        if 0 <= inside < len(piece.text):
            found += [
                Piece(piece.text[:inside], piece.style),
                Piece("┃", "bold red"),
                Piece(piece.text[inside + 1 :], piece.style),
            ]
        else:
            found.append(piece)
        at += len(piece.text)
    return tuple(found)


def _bars(plan: Plan, width: int) -> Iterable[Line]:
    m, e = plan.chosen.memory, plan.chosen.estimate
    narrow = width < 90
    room = max(10, min(50, width - (12 if narrow else 50)))
    memory = Piece(f"{gib(m.peak)} ± {percent(m.error_band)} of {gib(m.capacity)}", "" if m.fits else "red")
    took = Piece(f"{seconds(e.iteration_time_s)} ± {percent(e.error_band)} an iteration")
    sizes = [
        (part.word, size, glyph, style)
        for part, size, (glyph, style) in zip(MEMORY_PARTS, components(m).values(), MEMORY_STYLES, strict=True)
    ]
    times = [
        (part.word, time, glyph, style)
        for part, time, (glyph, style) in zip(TIME_PARTS, breakdown(e).values(), TIME_STYLES, strict=True)
    ]
    whole = e.breakdown.total
    memory_bar = _bar([part[1:] for part in sizes], m.capacity, room)
    time_bar = _bar([part[1:] for part in times], whole, room)
    yield EMPTY
    for word, bar, figure in (("memory", memory_bar, memory), ("time", time_bar, took)):
        beneath = [bar, *wrapped((figure,), width - 8)]
        yield from _labelled(word, 6, beneath if narrow else [(*bar, Piece("  "), figure)])
    if not m.fits:
        lack = f"does not fit: {gib(m.peak - m.limit)} more than the {gib(m.limit)} usable"
        yield from _item((Piece(lack, "bold red"),), width)
    yield from _item(_speed(plan), width)
    yield from _legend("memory", [(word, gib(size), g, s) for word, size, g, s in sizes if size], width)
    yield from _legend("time", [(word, seconds(t), g, s) for word, t, g, s in times if t > 0.0005 * whole], width)


def _speed(plan: Plan) -> str:
    e = plan.chosen.estimate
    if device_of(plan.cluster) == "cpu":  # no peak to hold it against
        return f"{e.tokens_per_s_per_gpu:,.0f} tokens/s a rank"
    tokens = f"{e.tokens_per_s_per_gpu:,.0f} tokens/s/GPU"
    return f"{tokens} · {e.model_tflops_per_gpu:,.0f} TFLOP/s/GPU · MFU {percent(e.mfu)}"


def _legend(word: str, parts: Sequence[tuple[str, str, str, str]], width: int) -> Iterable[Line]:
    """The bar's parts with their sizes; a line breaks between two parts, never inside one."""
    lines = [line_of("  ", Piece(f"{word}: ", "bright_black"))]
    for at, (name, value, glyph, style) in enumerate(parts):
        part = line_of(Piece(glyph, style), f" {name} {value}")
        if at:
            lines[-1] += line_of(Piece(" ·", "bright_black"))
        if at and length(lines[-1]) + length(part) + 4 > width:
            lines.append(line_of(" " * (len(word) + 4)))
        elif at:
            lines[-1] += line_of(" ")
        lines[-1] += part
    return lines


def _close(plan: Plan, others: Sequence[Candidate], width: int) -> Iterable[Line]:
    """The plan with the others that are worth a try, and the layout that it takes the place of."""
    best = plan.chosen.estimate.iteration_time_s
    rows = [
        (
            c.layout.sizes, str(c.layout.recompute), gib(c.memory.peak), seconds(c.estimate.iteration_time_s),
            "chosen" if c is plan.chosen else f"{c.estimate.iteration_time_s / best - 1:+.1%}",
        )
        for c in (plan.chosen, *others)
    ]  # fmt: skip
    own = _own(plan)
    if others or own:
        yield from _heading(f"Beside it{_turn(plan, others)}")
    if others:
        right = ("memory", "time", "slower")
        yield from table(("layout", "recompute", *right), rows, width, right=right)
    if own:
        yield from _item(own, width)


def _turn(plan: Plan, others: Sequence[Candidate]) -> str:
    """How the others are ordered (`parlaunch.planning.alternatives`), where no column shows it."""
    times = [c.estimate.iteration_time_s for c in others]
    plain = plan.objective != "time" or times == sorted(times)
    return "" if plain else ", most worth a try first: fast, unlike those above"


def _own(plan: Plan) -> str:
    """The recipe's own layout beside the plan; empty where it has none, or none for this machine."""
    try:
        own = own_layout(plan)
    except UsageError:
        return ""
    if own.layout == plan.layout:
        return "This is the recipe's own layout."
    head = f"The recipe's own layout, {own.layout}:"
    if not own.memory.fits:
        return f"{head} {needs(own.memory)}."
    return f"{head} {gib(own.memory.peak)}, {seconds(own.estimate.iteration_time_s)}, {slower(plan.chosen, own)}."


def _environment(plan: Plan, width: int) -> Iterable[Line]:
    """Each variable with its reason beside it, or beneath it where two columns would leave it too narrow to read."""
    settings = {
        f"{v.name}={v.value}": f"yours, kept: {v.warning or v.reason}" if v.kept else v.reason for v in plan.environment
    }
    room = min(max(map(len, settings)) + 2, 50)
    for setting, reason in settings.items():
        why = (Piece(reason, "bright_black"),)
        if width < 90:
            yield from wrapped(setting, width, indent=2)
            yield from wrapped(why, width, indent=6)
        else:
            yield from beside([(wrapped(setting, room, indent=2), room), (wrapped(why, width - room - 2), 0)])
