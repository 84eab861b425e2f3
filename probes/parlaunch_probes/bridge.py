"""The recipe as the installed Megatron Bridge builds it, asked in a child process: importing Bridge loads torch.

The answer is kept in the user's cache folder, under Bridge's version, since asking takes many seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from parlaunch.errors import ProbeError
from parlaunch.model.architecture import architecture_from_json
from parlaunch.model.layout import recompute_from_json
from parlaunch.model.recipe import PLACEHOLDER, Defaults, Recipe, features_from_json
from parlaunch_probes.bridge_child import HELD

TIMEOUT_S = 180.0
ANSWER = 9
"""Counts up when `bridge_child.describe` says more: what an older parlaunch kept is asked anew."""


def version() -> str | None:
    """The installed megatron-bridge's version; None when there is none. Costs no import of it."""
    import importlib.util

    spec = importlib.util.find_spec("megatron")  # the metadata of packages takes long to load
    if spec is None or not any(
        os.path.isdir(os.path.join(at, "bridge")) for at in spec.submodule_search_locations or ()
    ):
        return None
    import importlib.metadata

    try:
        return importlib.metadata.version("megatron-bridge")
    except importlib.metadata.PackageNotFoundError:
        return None


FORGET_S = 3600.0
"""A failure is remembered for so long: a login node without access to a hub should not pay for it at every dry run."""


def recipe(name: str, known: Recipe | None = None, *, build: str, prepare: str = "") -> Recipe:
    """The recipe that the installed Bridge builds under `name`.

    `known` is the catalog's entry: it fills what a configuration object does not say (task, model name, what it was written
    for). `build` names the function, "module:name", that makes the configuration as the runner would train it; `prepare`
    one that the child calls before it imports Bridge. Raises `ProbeError`
    when Bridge does not know the name, fails, or takes longer than `TIMEOUT_S`.
    """
    env = dict(os.environ)
    answer = _kept(_cache(env, name))
    if answer is None:
        answer = _ask("bridge_child", [name, build, *([prepare] if prepare else [])], env)
        keep(name, answer, env)
    if "error" in answer:
        raise ProbeError(f"the installed megatron.bridge could not build {name}: {answer['error']}")
    return _recipe(name, answer, known)


def keys(name: str, environ: Mapping[str, str]) -> frozenset[str] | None:
    """Every key of the recipe's configuration that an override may set, sections and dotted; None where the installed
    Bridge was not asked for this recipe, or could not build it."""
    answer = _kept(_cache(environ, name)) if version() is not None else None
    return frozenset(answer["keys"]) if answer and "keys" in answer else None


def _cache(env: Mapping[str, str], name: str) -> Path:
    home = env.get("XDG_CACHE_HOME") or str(Path(env.get("HOME", "/tmp")) / ".cache")
    return Path(home) / "parlaunch" / "bridge" / f"{version()}-{ANSWER}" / f"{name}.json"


def _kept(path: Path) -> dict[str, Any] | None:
    """What was answered before; a failure only while it is young."""
    try:
        answer = json.loads(path.read_text(encoding="utf-8"))
        old = time.time() - path.stat().st_mtime > FORGET_S
    except (OSError, ValueError):
        return None
    return answer if isinstance(answer, dict) and not ("error" in answer and old) else None


def keep(name: str, answer: Mapping[str, Any], environ: Mapping[str, str]) -> None:
    """Remember what Bridge says of a recipe, for every later `recipe` of this user."""
    path = _cache(environ, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(f".{os.getpid()}").write_text(json.dumps(answer), encoding="utf-8")
        path.with_suffix(f".{os.getpid()}").replace(path)
    except OSError:
        pass  # a read-only home costs time at the next start, nothing else


def built(
    argv: Sequence[str], *, world: int, gpu: str, capability: tuple[int, int], keys: Sequence[str],
    variables: Mapping[str, str], build: str, prepare: str, asking: Callable[[], None],
) -> dict[str, Any]:  # fmt: skip
    """What the installed Bridge builds of a runner's arguments on `world` GPUs, as `bridge_built.answer` says it.

    `variables` are those of the plan, `keys` places in the configuration whose values are wanted too; `build` and `prepare` name
    functions as for `recipe`. The same question is answered from memory; `asking` is called where it has to be put, which takes
    seconds. Raises `ProbeError` where Bridge cannot be asked here.
    """
    question = {
        "argv": list(argv), "world": world, "gpu": gpu, "capability": capability, "keys": list(keys), "build": build,
        "prepare": prepare,
    }  # fmt: skip
    text = json.dumps(question)
    name = hashlib.sha256(json.dumps([text, sorted(variables.items())]).encode()).hexdigest()[:32]
    answer = _kept(_cache(os.environ, name))
    if answer is None:
        asking()
        answer = _ask("bridge_built", [], {**os.environ, **variables, "WORLD_SIZE": str(world), "RANK": "0"}, text)
        keep(name, answer, os.environ)
    if "error" in answer:
        raise ProbeError(f"the installed megatron.bridge could not be asked: {answer['error']}")
    return answer


def _ask(child: str, words: Sequence[str], env: Mapping[str, str], question: str = "") -> dict[str, Any]:
    """What a module of this package answers as a child process, to words or to a question on its standard input."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", f"parlaunch_probes.{child}", *words], input=question,
            capture_output=True, text=True, timeout=TIMEOUT_S, env={**env, "CUDA_VISIBLE_DEVICES": ""}, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"it took longer than {TIMEOUT_S:.0f} s"}
    line = next((x for x in reversed(done.stdout.splitlines()) if x.startswith("{")), None)
    if done.returncode or line is None:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    answer = json.loads(line)
    assert isinstance(answer, dict)
    return answer


def _facts(said: Mapping[str, Any], known: Recipe | None) -> dict[str, Any]:
    """What a recipe is beside its sizes: as Bridge has it, as the catalog has it where Bridge does not say."""
    names = ("folder", "packing", "loader", "optimizer", "train_iters")
    filled = {name: getattr(known, name) for name in names} if known else {}
    return filled | {name: said[name] for name in names if said.get(name) is not None}


def _recipe(name: str, answer: Mapping[str, Any], known: Recipe | None) -> Recipe:
    model, layout = answer["model"], answer["layout"]
    if known is not None:  # the catalog's architecture has every field; Bridge's word stands where both speak
        model = {k: v for k, v in known.architecture.shape().items() if v is not None} | model
    family = known.model if known else name.split("_pretrain_")[0].split("_sft_")[0].split("_peft_")[0]
    features = features_from_json(answer["features"])
    mock = known.mock_tokens if known else None
    return Recipe(
        name=name,
        source="bridge",
        task=known.task if known else ("sft" if "_sft_" in name else "peft" if "_peft_" in name else "pretrain"),
        model=family,
        model_id=known.model_id if known else None,
        architecture=architecture_from_json(model),
        seq_length=mock if mock is not None and answer["seq_length"] == PLACEHOLDER else answer["seq_length"],
        global_batch_size=answer["global_batch_size"],
        precision=answer["precision"] or (known.precision if known else "bf16"),
        gpus=known.gpus if known else None,
        hardware=known.hardware if known else None,
        defaults=Defaults(
            **{k: layout[k] for k in ("tp", "pp", "vp", "cp", "ep", "etp", "micro_batch_size", "sequence_parallel")},
            recompute=recompute_from_json(layout["recompute"]),
            layers_per_chunk=known.defaults.layers_per_chunk if known else None,
        ),
        features=features,
        benchmark="perf_recipes" in (answer.get("facts") or {}).get("module", ""),
        mock_tokens=mock,
        added_mtp_layers=0 if model.get("mtp_num_layers") else known.added_mtp_layers if known else 0,
        unsettled=tuple(
            dict.fromkeys(
                (
                    *(n for n in (known.unsettled if known else ()) if n not in HELD),
                    *(answer.get("unsettled") or ()),
                )
            )
        ),
        bare=tuple(answer.get("bare") or ()),
        lacks=tuple(answer.get("lacks") or ()),
        **_facts(answer.get("facts") or {}, known),
        env=answer["env"],
    )
