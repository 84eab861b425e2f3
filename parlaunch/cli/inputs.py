"""From what was typed to the three values that `plan` takes: Recipe, Cluster, Wishes."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from parlaunch.cli.request import RECOMPUTE_MODULES, Request
from parlaunch.errors import ParlaunchError, ProbeError, UsageError
from parlaunch.layout import FULL_RECOMPUTE, NO_RECOMPUTE, Recompute
from parlaunch.machine import Cluster
from parlaunch.plan import Wishes
from parlaunch.recipe import PRECISIONS, Features, Recipe


def note(sentence: str) -> None:
    """Say something beside the data: on stderr."""
    print(sentence, file=sys.stderr)


def write(path: Path, text: str, option: str) -> None:
    """Put text into the file that an option names. Raises `ParlaunchError` naming both."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ParlaunchError(
            f"{option} {path}: {error.strerror}", hint="choose a folder that exists and is yours"
        ) from error
    note(f"wrote {path}")


def choice(option: str, value: str, known: tuple[str, ...]) -> None:
    """Raise `UsageError` unless the value is one of those known."""
    if value not in known:
        raise UsageError(f"{option} {value!r} is not known", hint=f"one of: {', '.join(known)}")


def merged_pins(request: Request) -> dict[str, Any]:
    """Sizes fixed by options and by KEY=VALUE overrides; both may speak, but not against each other."""
    from parlaunch.overrides import pins_from

    pins: dict[str, Any] = dict(pins_from(request.overrides))
    names = ("tp", "pp", "vp", "cp", "ep", "etp", "micro_batch_size", "global_batch_size", "seq_length", "fsdp")
    for name in names:
        value = getattr(request, name)
        if value is None:
            continue
        if name in pins and pins[name] is not None and pins[name] != value:
            option = "--" + name.replace("_", "-")
            raise UsageError(
                f"{option} {value} contradicts an override that sets it to {pins[name]}", hint="keep one of the two"
            )
        pins[name] = value
    if request.recompute is not None:
        wanted = recompute_of(request.recompute)
        if pins.get("recompute") not in (None, wanted):
            raise UsageError("--recompute contradicts the model.recompute_* overrides", hint="keep one of the two")
        pins["recompute"] = wanted
    return pins


def recompute_of(text: str) -> Recompute:
    """`none`, `full`, `full:block:4`, `selective`, or a comma list of modules."""
    kind, _, rest = text.partition(":")
    if kind == "none":
        return NO_RECOMPUTE
    if kind == "full":
        method, _, layers = rest.partition(":")
        if rest and (method not in ("uniform", "block") or not (layers or "1").isdigit()):
            raise UsageError(f"--recompute {text!r} is not readable", hint="full, full:uniform:1 or full:block:4")
        return Recompute(granularity="full", method=method, num_layers=int(layers or 1)) if rest else FULL_RECOMPUTE
    if kind == "selective":
        return Recompute(granularity="selective", modules=tuple(m for m in rest.split(",") if m) or ("core_attn",))
    modules = tuple(text.split(","))
    for module in modules:
        choice("--recompute", module, ("none", "full", "selective", *RECOMPUTE_MODULES))
    return Recompute(granularity="selective", modules=modules)


def wishes_of(request: Request, pins: Mapping[str, Any]) -> Wishes:
    """What the user fixed. Raises `UsageError` for an unknown objective."""
    choice("--objective", request.objective, ("time", "memory"))
    sizes = {k: pins.get(k) for k in ("tp", "pp", "vp", "cp", "ep", "etp", "micro_batch_size", "recompute")}
    return Wishes(
        **sizes,
        fsdp=pins.get("fsdp"),
        objective=request.objective,
        headroom=request.headroom,
        top=request.top,
        evidence=request.evidence,
    )


def recipe_of(request: Request, pins: Mapping[str, Any]) -> Recipe:
    """The recipe that was named, with the user's sequence length, batch and precision."""
    if (request.recipe is None) == (request.model_config is None):
        given = "both --recipe and --model-config" if request.recipe else "neither --recipe nor --model-config"
        raise UsageError(f"{given} given", hint="for example: parlaunch --recipe llama32_1b_pretrain_config --dry-run")
    found = (
        _from_config(request.model_config) if request.model_config else _by_name(str(request.recipe), request.device)
    )
    changes: dict[str, Any] = {}
    features: dict[str, Any] = {}
    if seq := pins.get("seq_length"):
        changes["seq_length"] = seq
    if batch := pins.get("global_batch_size"):
        changes["global_batch_size"] = batch
    if (freeze := pins.get("frozen_language_model")) is not None:
        features["frozen_language_model"] = freeze
    if pins.get("sequence_parallel") is False:
        _without_sequence_parallel(found, pins)
        features["sequence_parallel"] = False
    elif pins.get("sequence_parallel") and pins.get("tp") == 1:
        raise UsageError(
            "model.sequence_parallel=True needs TP above 1", hint="leave it out: it comes with TP by itself"
        )
    if request.precision:
        choice("--precision", request.precision, PRECISIONS)
        changes["precision"] = request.precision
    return replace(found, features=replace(found.features, **features), **changes)


def _without_sequence_parallel(recipe: Recipe, pins: Mapping[str, Any]) -> None:
    """Raise `UsageError` where Megatron would refuse: experts under TP train with sequence parallelism only."""
    if recipe.architecture.num_moe_experts and pins.get("tp") != 1:
        raise UsageError(
            "model.sequence_parallel=False: experts and TP above 1 need sequence parallelism in training",
            hint="leave it out, or fix --tp 1",
        )


def _by_name(name: str, device: str) -> Recipe:
    from parlaunch.catalog import recipe

    try:
        known, unknown = recipe(name), None
    except UsageError as error:
        known, unknown = None, error
    from parlaunch_probes import bridge

    # The tiny model for CPU keeps the family only: what the catalog knows of it is enough, and Bridge takes long to ask.
    if bridge.version() is not None and not (device == "cpu" and known is not None):
        try:
            return bridge.recipe(name, known, prepare="parlaunch_launch.cpu.bridge_runner:importable")
        except ProbeError as error:
            if known is not None:
                note(f"note: {error.problem}; planning from the catalog's entry")
    if known is None:
        assert unknown is not None
        raise unknown
    return known


def _from_config(path: Path) -> Recipe:
    from parlaunch.hf_config import architecture_from_hf

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--model-config {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(
            f"--model-config {path} is not JSON: {error}", hint="give a Hugging Face config.json"
        ) from error
    if not isinstance(config, dict):
        raise UsageError(f"--model-config {path} is no object", hint="give a Hugging Face config.json")
    name = str(config.get("_name_or_path") or config.get("model_type") or path.stem)
    return Recipe(
        name=path.name, source="hf-config", task="pretrain", model=name, model_id=None,
        architecture=architecture_from_hf(config), seq_length=4096, global_batch_size=256, precision="bf16",
        features=Features(grad_reduce_fp32=True),  # Megatron Bridge's bf16_mixed
    )  # fmt: skip


def hardware_of(spec: str, *, gpu: str | None = None) -> Cluster:
    """`auto`, a preset and a count, or a file and a count. Raises ParlaunchError naming what was given.

    `gpu` is the product where the machine does not say it; against what it does say, it is an error.
    """
    found = _machine(spec)
    return found if gpu is None else with_gpu(found, gpu, spec)


def with_gpu(cluster: Cluster, name: str, spec: str) -> Cluster:
    """The cluster with its unnamed GPUs being of this product. Raises `UsageError` with the nearest products."""
    import difflib

    from parlaunch.datasheet import nvml_name, product, product_names
    from parlaunch.machine import UNKNOWN

    sheet = product(name)
    if sheet is None:
        spellings = {n.lower(): n.replace(" ", "-") for n in product_names()}
        near = [
            n for low, n in spellings.items() if re.sub(r"[^a-z0-9]", "", name.lower()) in re.sub(r"[^a-z0-9]", "", low)
        ]
        near = near or [spellings[low] for low in difflib.get_close_matches(name.lower(), spellings, n=5, cutoff=0.3)]
        raise UsageError(
            f"--gpu {name!r} is no product with a data sheet",
            hint="nearest: " + ", ".join(near[:6] or spellings.values()),
        )
    known = {g.name for n in cluster.nodes for g in n.gpus} - {UNKNOWN}
    if wrong := [n for n in sorted(known) if (other := product(n)) is None or other.name != sheet.name]:
        raise UsageError(
            f"--gpu {name} contradicts --hardware {spec}, which has {', '.join(wrong)}", hint="leave --gpu out"
        )
    named = nvml_name(sheet)
    nodes = tuple(
        replace(node, gpus=tuple(replace(g, name=named) if g.name == UNKNOWN else g for g in node.gpus))
        for node in cluster.nodes
    )
    notes = tuple(n for n in cluster.notes if not n.startswith("the GPU model is not in this file"))
    return replace(
        cluster,
        nodes=nodes,
        notes=(*notes, f"the GPU is taken to be {named}, as --gpu says") if known != {named} else notes,
    )


def _machine(spec: str) -> Cluster:
    if spec == "auto":
        from parlaunch_probes import probe

        return probe(environ=dict(os.environ))
    name, nodes = spec, 1
    if (counted := re.fullmatch(r"(.+):(\d+)", spec)) and not Path(spec).exists():
        name, nodes = counted[1], int(counted[2])
    if Path(name).exists():
        from parlaunch_probes.files import read_hardware, replicate

        found = read_hardware(name)
        return replicate(found, nodes) if nodes != len(found.nodes) and counted else found
    if "/" in name or re.search(r"\.(json|xml|txt|tar|bz2|gz)$", name):
        raise ProbeError(f"--hardware {name}: there is no such file", hint="check the path")
    from parlaunch.datasheet import preset

    return preset(name, nodes)


def only(cluster: Cluster, gpus: int) -> Cluster:
    """The cluster with the first `gpus` GPUs of each node."""
    from parlaunch.machine import domains_of

    if gpus > cluster.gpus_per_node:
        raise ParlaunchError(
            f"--nproc-per-node {gpus}, but a node has {cluster.gpus_per_node} GPUs",
            hint=f"leave it out, or give at most {cluster.gpus_per_node}",
        )
    nodes = tuple(replace(node, gpus=node.gpus[:gpus]) for node in cluster.nodes)
    return replace(cluster, nodes=nodes, nvlink_domains=domains_of(nodes))


def sizes_from(text: str) -> dict[str, int]:
    """`tp=8,pp=2,mbs=1` as sizes. Raises `UsageError` naming the part that cannot be read."""
    names = {"tp", "pp", "vp", "cp", "ep", "etp", "micro_batch_size"}
    sizes = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        name = {"mbs": "micro_batch_size"}.get(name.lower(), name.lower())
        if name not in names or not value.isdigit() or int(value) < 1:
            raise UsageError(f"--why-not {text!r}: {part.strip()!r} is no size", hint="for example tp=8,pp=2,mbs=1")
        sizes[name] = int(value)
    return sizes
