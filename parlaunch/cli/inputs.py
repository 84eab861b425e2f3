"""From what was typed to the three values that `plan` takes: Recipe, Cluster, Wishes."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from parlaunch.cli.files import read_json, regular, there
from parlaunch.cli.options import recompute_words
from parlaunch.cli.request import Request
from parlaunch.errors import ParlaunchError, ProbeError, UsageError
from parlaunch.estimate.training import Goal
from parlaunch.hardware.cluster import Cluster, Gpu
from parlaunch.hardware.datasheet import MOST_NODES, Product
from parlaunch.hardware.installed import Installed
from parlaunch.model.layout import FULL_RECOMPUTE, NO_RECOMPUTE, SIZES, Recompute, selective
from parlaunch.model.recipe import PRECISIONS, Recipe
from parlaunch.planning.plan import Wishes
from parlaunch.units import COUNT, amount, speed


def note(sentence: str) -> None:
    """Say something beside the data: on stderr."""
    print(sentence, file=sys.stderr)


def write(path: Path, text: str, option: str) -> None:
    """Put text into the file that an option names; on a full disk what was there stays. Raises `ParlaunchError` naming both."""
    from parlaunch_launch.history import replaced

    try:
        if path.is_file() and os.access(path.resolve().parent, os.W_OK):
            replaced(path, text.encode())
        else:
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
    from parlaunch.environment.user_overrides import pins_from

    pins: dict[str, Any] = dict(pins_from(request.overrides))
    for name in (*SIZES, "global_batch_size", "seq_length", "fsdp"):
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
        if rest and (method not in ("uniform", "block") or not re.fullmatch(COUNT, layers or "1")):
            raise UsageError(f"--recompute {text!r} is not readable", hint="full, full:uniform:1 or full:block:4")
        return Recompute(granularity="full", method=method, num_layers=int(layers or 1)) if rest else FULL_RECOMPUTE
    if kind == "selective":
        return selective([m for m in rest.split(",") if m] or None)
    modules = tuple(text.split(","))
    for module in modules:
        choice("--recompute", module, recompute_words())
    return Recompute(granularity="selective", modules=modules)


def wishes_of(request: Request, pins: Mapping[str, Any]) -> Wishes:
    """What the user fixed."""
    from parlaunch.environment.override_grammar import value
    from parlaunch.environment.user_overrides import read_overrides
    from parlaunch.switches.wanted import wanted_from

    given = read_overrides(request.overrides).given
    wanted = wanted_from(request.switches, {key: value(text) for key, text in given.items()})
    for name, wish in wanted.pins().items():
        if pins.get(name) not in (None, wish):
            raise UsageError(
                f"--switches contradicts another option, which has {name} {pins[name]}", hint="keep one of the two"
            )
        pins = {**pins, name: wish}
    return Wishes(
        switches=wanted,
        **{name: pins.get(name) for name in (*SIZES, "recompute", "fsdp", "cp_comm_type")},
        stages=read_overrides(request.overrides).stages,
        objective=request.objective,
        headroom=request.headroom,
        top=request.top,
        evidence=request.evidence,
    )


def goal_of(request: Request) -> Goal:
    """What the user said of the whole run. Raises `UsageError` naming the option."""
    return Goal(
        iterations=_iterations(request), tokens=_read("--tokens", request.tokens, amount), samples=_read("--samples", request.samples, amount),
        price=request.price, mtbf_hours=request.mtbf,
        storage_bytes_per_s=_read("--storage", request.storage, speed),
    )  # fmt: skip


def _read(option: str, text: str | None, reading: Callable[[str], float]) -> float | None:
    if text is None:
        return None
    try:
        return reading(text)
    except ValueError as error:
        what, _, hint = str(error).partition(": ")
        raise UsageError(f"{option}: {what}", hint=hint) from error


def named_here(request: Request) -> None:
    """Raise `UsageError` for a recipe that no node can know; quickly, so without asking an installed Bridge."""
    from parlaunch.model.catalog import recipe
    from parlaunch_probes import bridge

    _one_model(request)
    if request.model_config:
        _from_config(request.model_config)
        return
    try:
        recipe(str(request.recipe))
    except UsageError:
        if bridge.version() is None:
            raise


def _one_model(request: Request) -> None:
    if (request.recipe is None) == (request.model_config is None):
        given = "both --recipe and --model-config" if request.recipe else "neither --recipe nor --model-config"
        raise UsageError(f"{given} given", hint="for example: parlaunch --recipe llama32_1b_pretrain_config --dry-run")


def named(request: Request) -> Recipe:
    """The recipe that was named, or made of a model's config, as it comes."""
    _one_model(request)
    if request.model_config:
        from parlaunch.environment.runner_options import task_in

        made = _from_config(request.model_config)
        return replace(made, task=task_in(request.runner_args) or made.task)
    return _by_name(str(request.recipe), request.device)


def as_said(found: Recipe, request: Request, pins: Mapping[str, Any]) -> Recipe:
    """The recipe with the user's sequence length, batch and precision."""
    from parlaunch.environment.user_overrides import changed, contradicted, read_overrides, with_precision

    said = read_overrides(request.overrides)
    found = changed(found, said)
    changes: dict[str, Any] = {}
    features: dict[str, Any] = {}
    if (seq := pins.get("seq_length")) is not None:
        changes["seq_length"] = seq
    if (batch := pins.get("global_batch_size")) is not None:
        changes["global_batch_size"] = batch
    for part in ("frozen_language_model", "frozen_encoder"):
        if (freeze := pins.get(part)) is not None:
            features[part] = freeze
    if pins.get("sequence_parallel") is False:
        _without_sequence_parallel(found, pins)
        features["sequence_parallel"] = False
    if (iterations := _iterations(request)) is not None:
        changes["train_iters"] = iterations
    if request.precision:
        choice("--precision", request.precision, PRECISIONS)
        if said.precision not in (None, request.precision):
            raise UsageError(
                f"--precision {request.precision} contradicts the mixed_precision override, which is {said.precision}",
                hint="keep one of the two",
            )
        found = with_precision(found, request.precision)
        contradicted(found.spoken, said, f"--precision {request.precision}")
    return replace(found, features=replace(found.features, **features), **changes)


def _iterations(request: Request) -> int | None:
    """What the overrides say of the length of the run; the last one stands, as with Megatron Bridge."""
    key = "train.train_iters="
    said = [pair.removeprefix(key) for pair in request.overrides if pair.startswith(key)]
    if not said or not re.fullmatch("[0-9]{1,18}", said[-1]):
        return None
    if request.tokens is not None or request.samples is not None:
        option = "--tokens" if request.tokens is not None else "--samples"
        raise UsageError(f"{option} and {key}{said[-1]} both say how long it trains", hint="keep one of the two")
    return int(said[-1])


def _without_sequence_parallel(recipe: Recipe, pins: Mapping[str, Any]) -> None:
    """Raise `UsageError` where Megatron would refuse: experts under TP train with sequence parallelism only."""
    if recipe.architecture.num_moe_experts and pins.get("tp") != 1:
        raise UsageError(
            "model.sequence_parallel=False: experts and TP above 1 need sequence parallelism in training",
            hint="leave it out, or fix --tp 1",
        )


def _by_name(name: str, device: str) -> Recipe:
    from parlaunch.model.catalog import recipe

    try:
        known, unknown = recipe(name), None
    except UsageError as error:
        known, unknown = None, error
    from parlaunch_probes import bridge

    # The tiny model for CPU keeps the family only: what the catalog knows of it is enough, and Bridge takes long to ask.
    if bridge.version() is not None and not (device == "cpu" and known is not None):
        try:
            return bridge.recipe(
                name, known,
                build="parlaunch_launch.bridge_runner:found", prepare="parlaunch_launch.cpu.bridge_runner:importable",
            )  # fmt: skip
        except ProbeError as error:
            if known is not None:
                note(f"note: {error.problem}; planning from the catalog's entry")
    if known is None:
        assert unknown is not None
        raise unknown
    return known


def with_software(cluster: Cluster) -> Cluster:
    """This machine with what is installed on it for training, asked in a child process."""
    from parlaunch_probes.software import software

    found = software(os.environ)
    return replace(cluster, nodes=tuple(replace(node, software=found) for node in cluster.nodes))


def software_of(spec: str | None) -> Installed | None:
    """What `--software` names: a release, or the machine of a saved probe. None: nothing was said.

    Raises `UsageError` for a name that is none, or a file that does not say what is installed.
    """
    from parlaunch.hardware.installed import installed_on, release

    if spec is None:
        return None
    if not there(spec):
        return release(spec)
    from parlaunch_probes.files import read_hardware

    cluster = read_hardware(spec, None)
    if all(node.software is None for node in cluster.nodes):
        raise UsageError(
            f"--software {spec} does not say what is installed", hint="write it there with `parlaunch probe --save`"
        )
    return installed_on(cluster)


def keys_of(request: Request) -> frozenset[str] | None:
    """The keys of the recipe's configuration in the installed Bridge, where it was asked; None: not known."""
    from parlaunch_probes import bridge

    return bridge.keys(request.recipe, os.environ) if request.recipe else None


def _from_config(given: Path) -> Recipe:
    """The training of a model's config.json: a file, the folder it lies in, or a model of the hub that is in the cache here."""
    from parlaunch.model.hf_config import recipe_from_hf

    path = _config_path(given)
    config = read_json(path, "--model-config", hint="give a Hugging Face config.json")
    return recipe_from_hf(config, path=str(path))


def _config_path(given: Path) -> Path:
    """The file that was meant. Raises `UsageError` for a model that is not in the cache, naming the cache."""
    from parlaunch_launch.cpu.hub_cache import config_of, folder_of

    if os.path.isdir(given):
        return given / "config.json"
    if there(given) or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(given)) or given.suffix == ".json":
        return given
    found = config_of(str(given), os.environ)
    if found is None:
        raise UsageError(
            f"--model-config {given}: there is no such file or folder, and no such model in {folder_of(os.environ)}",
            hint=f"on a machine with a network: hf download {given} config.json",
        )
    return found


def assumed(recipe: Recipe, pins: Mapping[str, Any]) -> tuple[str, ...]:
    """What a model's config.json does not say and the user has not said either."""
    if recipe.source != "hf-config":
        return ()
    said = (
        ("seq_length", f"sequences of {recipe.seq_length:,} tokens", "--seq-length"),
        ("global_batch_size", f"batches of {recipe.global_batch_size} sequences", "--global-batch-size"),
    )
    return tuple(f"assumed: {what}; {option} says yours" for name, what, option in said if pins.get(name) is None)


def hardware_of(spec: str, *, gpu: str | None = None) -> Cluster:
    """`auto`, a preset and a count, or a file and a count. Raises ParlaunchError naming what was given.

    `gpu` is the product where the machine does not say it, or says one without a data sheet; against what it does say, it
    is an error.
    """
    from parlaunch.hardware.mixed import even

    if gpu is None:
        return even(_machine(spec, None))
    sheet = _product(gpu)
    return even(_with_gpu(_machine(spec, sheet), sheet, gpu, spec))


def _product(name: str) -> Product:
    """The data sheet that a name means. Raises `UsageError` with the nearest products."""
    import difflib

    from parlaunch.hardware.datasheet import product, product_names, products_like

    sheet = product(name)
    if sheet is None:
        spellings = {n.lower(): n.replace(" ", "-") for n in product_names()}
        near = [s.name.replace(" ", "-") for s in products_like(name)]
        near = near or [
            n for low, n in spellings.items() if re.sub(r"[^a-z0-9]", "", name.lower()) in re.sub(r"[^a-z0-9]", "", low)
        ]
        near = near or [spellings[low] for low in difflib.get_close_matches(name.lower(), spellings, n=5, cutoff=0.3)]
        raise UsageError(
            f"--gpu {name!r} is no product with a data sheet",
            hint="nearest: " + ", ".join(near[:6] or spellings.values()),
        )
    return sheet


def _with_gpu(cluster: Cluster, sheet: Product, name: str, spec: str) -> Cluster:
    """The cluster with its unnamed GPUs being of this product; those of a product without a data sheet are planned for by
    this one. Raises `UsageError` where the machine has another product."""
    from parlaunch.hardware.cluster import UNKNOWN
    from parlaunch.hardware.datasheet import nvml_name, product

    known = {g.name for n in cluster.nodes for g in n.gpus} - {UNKNOWN}

    def may_be(name: str) -> bool:
        """The product that `name` is taken for has it in common with others of its generation."""
        other = product(name)
        return other is not None and other.shares_its_name and other.compute_capability == sheet.compute_capability

    if wrong := [
        n for n in sorted(known) if (other := product(n)) is not None and other.name != sheet.name and not may_be(n)
    ]:
        raise UsageError(
            f"--gpu {name} contradicts --hardware {spec}, which has {', '.join(wrong)}", hint="leave --gpu out"
        )
    named = nvml_name(sheet)

    def gpu(g: Gpu) -> Gpu:
        if g.name == UNKNOWN or may_be(g.name):
            return replace(g, name=named)
        return replace(g, sheet=sheet.name) if product(g.name) is None else g

    nodes = tuple(replace(node, gpus=tuple(map(gpu, node.gpus))) for node in cluster.nodes)
    notes = [n for n in cluster.notes if not n.startswith("the GPU model is not in this file")]
    if strange := sorted(n for n in known if product(n) is None):
        notes.append(f"{', '.join(strange)} has no data sheet: planned with that of {sheet.name}, as --gpu says")
    elif not known or any(map(may_be, known)):
        notes.append(f"the GPU is taken to be {named}, as --gpu says")
    return replace(cluster, nodes=nodes, notes=tuple(dict.fromkeys(notes)))


def _machine(spec: str, gpu: Product | None) -> Cluster:
    if spec == "auto":
        from parlaunch_probes import probe

        return probe(environ=dict(os.environ))
    if not spec:
        raise UsageError("--hardware names nothing", hint="for example --hardware dgx-h100:4, or leave it out")
    name, nodes = spec, 1
    if (counted := re.fullmatch(r"(.+):(\d{1,12})(racks?)?", spec)) and not there(spec):
        name, nodes = counted[1], int(counted[2])
        if counted[3]:
            from parlaunch.hardware.datasheet import trays

            nodes *= trays(name)
        if nodes > MOST_NODES:
            raise UsageError(f"--hardware {spec}: no job has so many nodes", hint=f"at most {name}:{MOST_NODES}")
    if name == "auto":
        raise UsageError(
            f"--hardware {spec}: auto is what is here",
            hint=f"for more of it: parlaunch probe --save here.json, then --hardware here.json:{nodes}",
        )
    from parlaunch.hardware.datasheet import preset, preset_of

    if there(name):
        from parlaunch_probes.files import is_machine, read_hardware, replicate

        if not os.path.isdir(name):
            regular(Path(name), "--hardware")
        elif preset_of(name) is not None and not is_machine(name):
            return preset(name, nodes)  # a folder of results, say, that has the machine's name
        found = read_hardware(name, gpu)
        return replicate(found, nodes) if nodes != len(found.nodes) and counted else found
    if "/" in name or re.search(r"\.(json|xml|txt|tar|bz2|gz)$", name):
        raise ProbeError(f"--hardware {name}: there is no such file", hint="check the path")
    return preset(name, nodes)


def only(cluster: Cluster, gpus: int) -> Cluster:
    """The cluster with the first `gpus` GPUs of each node."""
    from parlaunch.hardware.cluster import domains_of

    if gpus > cluster.gpus_per_node:
        raise ParlaunchError(
            f"--nproc-per-node {gpus}, but a node has {cluster.gpus_per_node} GPUs",
            hint=f"leave it out, or give at most {cluster.gpus_per_node}",
        )
    nodes = tuple(replace(node, gpus=node.gpus[:gpus]) for node in cluster.nodes)
    return replace(cluster, nodes=nodes, nvlink_domains=domains_of(nodes))


def sizes_from(text: str) -> dict[str, int]:
    """`tp=8,pp=2,mbs=1` as sizes. Raises `UsageError` naming the part that cannot be read."""
    sizes = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        name = {"mbs": "micro_batch_size"}.get(name.lower(), name.lower())
        if name not in SIZES or not re.fullmatch(COUNT, value):
            raise UsageError(f"--why-not {text!r}: {part.strip()!r} is no size", hint="for example tp=8,pp=2,mbs=1")
        sizes[name] = int(value)
    return sizes
