"""Which program every rank runs: the user's, Megatron Bridge's own script, our module over Bridge, or one for CPU."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from parlaunch.environment.bridge_versions import STEP_BY_NAME, Version, check_version, version_of
from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.frozen import dataclass
from parlaunch_launch.become import for_a_rank, installed
from parlaunch_launch.bridge_recipes import step_of

SCRIPT = Path("scripts", "training", "run_recipe.py")
"""Bridge's generic trainer inside a checkout; every version takes `--recipe NAME` and KEY=VALUE overrides."""

CONTAINER_HOME = Path("/opt/Megatron-Bridge")
"""Where NVIDIA's NeMo container keeps its checkout."""

BRIDGE_MODULE = "parlaunch_launch.bridge_runner"
BRIDGE_CPU_MODULE = "parlaunch_launch.cpu.bridge_runner"
CORE_CPU_MODULE = "parlaunch_launch.cpu.core_runner"


@dataclass(frozen=True, slots=True, kw_only=True)
class Runner:
    """`argv` goes behind torchrun's options; `--recipe NAME` and the overrides go behind it."""

    argv: tuple[str, ...]
    kind: str  # script | module | bridge-checkout | bridge | bridge-cpu | core-cpu
    why: str
    version: Version | None = None  # of the Bridge that will train; None: not known, or another program


def installed_version() -> str | None:
    """The installed megatron-bridge's version; None when there is none. Costs no import of it."""
    if importlib.util.find_spec("megatron") is None:  # the metadata of packages takes long to load
        return None
    from importlib import metadata

    try:
        return metadata.version("megatron-bridge")
    except metadata.PackageNotFoundError:
        return None


def find(
    *,
    device: str = "cuda",
    script: Path | str | None = None,
    module: str | None = None,
    environ: Mapping[str, str],
    python: str = "python",
    recipe: str | None = None,
    model_config: bool = False,
    has: Callable[[str], bool] = installed,
    rank_has: Callable[[str], bool] = for_a_rank,
    version: Callable[[], str | None] = installed_version,
    container_home: Path = CONTAINER_HOME,
) -> Runner:
    """The first of: `--script`, `--module`, (on CPU: Bridge, then Core), `$MEGATRON_BRIDGE_HOME`, the container's checkout, Bridge.

    `model_config` says that a model's config.json is trained, which only our modules over Bridge can. `recipe` is what it will train: a checkout older than 0.6 has to be told the forward step. Raises UsageError for a
    script or home that was named and is not there, ParlaunchError when nothing is installed or what is there is too old;
    `python` is named in the error. `has` says whether a module can be imported here, `rank_has` whether a rank could, `version` what Bridge is installed.
    """
    if script is not None and module is not None:
        raise UsageError("both --script and --module are given", hint="keep one: the runner is a script or a module")
    if script is not None:
        if not os.path.isfile(script):
            raise UsageError(f"--script {script}: there is no such file", hint="check the path, and who may read it")
        return Runner(argv=(str(script),), kind="script", why="--script names it")
    if module is not None:
        if not rank_has(module):
            raise UsageError(f"--module {module}: {python} has no module of that name", hint="check PYTHONPATH")
        return Runner(argv=("-m", module), kind="module", why="--module names it")
    if model_config and not has("megatron.bridge"):
        raise ParlaunchError(
            f"--model-config trains through the installed megatron.bridge, and {python} has none",
            hint="pip install megatron-bridge, start NVIDIA's NeMo container, or name a --recipe",
        )
    if device == "cpu":
        return _on_cpu(has, version, python)
    if model_config:  # Bridge's own script knows recipes only
        why = "megatron.bridge is installed, and builds the model of a config.json"
        return Runner(argv=("-m", BRIDGE_MODULE), kind="bridge", why=why, version=version_of(version()))
    home = _checkout(environ, container_home)
    if home is not None:
        return _from_checkout(*home, recipe)
    if has("megatron.bridge"):
        there = version_of(version())
        check_version(there)
        why = "megatron.bridge is installed; no checkout with its script was found"
        return Runner(argv=("-m", BRIDGE_MODULE), kind="bridge", why=why, version=there)
    raise ParlaunchError(
        f"there is no Megatron Bridge to run: none in {python}, none at {container_home}, and MEGATRON_BRIDGE_HOME is not set",
        hint="start NVIDIA's NeMo container, or pip install megatron-bridge, or set MEGATRON_BRIDGE_HOME to a checkout, "
        "or name a training script with --script",
    )


def _on_cpu(has: Callable[[str], bool], version: Callable[[], str | None], python: str) -> Runner:
    if has("megatron.bridge"):
        why = "megatron.bridge is installed: its own recipe, validation and pretrain() run on CPU"
        return Runner(argv=("-m", BRIDGE_CPU_MODULE), kind="bridge-cpu", why=why, version=version_of(version()))
    if has("megatron.core"):
        why = "megatron.core is installed, megatron.bridge is not: our trainer over Megatron Core"
        return Runner(argv=("-m", CORE_CPU_MODULE), kind="core-cpu", why=why)
    raise ParlaunchError(
        f"--device cpu trains with Megatron Core, which {python} does not have",
        hint="from a checkout: pip install '.[cpu]'",
    )


def _checkout(environ: Mapping[str, str], container_home: Path) -> tuple[Path, str] | None:
    """The checkout to run from, and why that one; None when there is none. Raises UsageError for one that is named in vain."""
    home = environ.get("MEGATRON_BRIDGE_HOME")
    if home:
        if not os.path.isfile(Path(home, SCRIPT)):
            raise UsageError(
                f"MEGATRON_BRIDGE_HOME={home} has no {SCRIPT}",
                hint="point it at a checkout of Megatron-Bridge, or unset it",
            )
        return Path(home), "MEGATRON_BRIDGE_HOME names a checkout"
    if os.path.isfile(container_home / SCRIPT):
        return container_home, f"the container has {container_home}"
    return None


def _from_checkout(home: Path, why: str, recipe: str | None) -> Runner:
    """Bridge's own script; before 0.6 it takes every model for one of text unless it is told."""
    version = checkout_version(home)
    argv: tuple[str, ...] = (str(home / SCRIPT),)
    step = step_of(recipe) if recipe is not None else "llm_step"
    if version is not None and version < STEP_BY_NAME and step != "llm_step":
        argv = (*argv, "--step_func", step)
    return Runner(argv=argv, kind="bridge-checkout", why=why, version=version)


def checkout_version(home: Path) -> Version | None:
    """As its package says; None where that cannot be read."""
    try:
        text = (home / "src" / "megatron" / "bridge" / "package_info.py").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    parts = [re.search(rf"^{name} = (\d+)$", text, re.MULTILINE) for name in ("MAJOR", "MINOR", "PATCH")]
    return version_of(".".join(p[1] for p in parts if p))


def alone(argv: Sequence[str]) -> dict[str, str]:
    """Variables for ranks that run a module of ours: a `types.py` in the working directory is not theirs to import. A script
    of the user's, or a module, finds what torchrun would let it find."""
    ours = any(word in (BRIDGE_MODULE, BRIDGE_CPU_MODULE, CORE_CPU_MODULE) for word in argv)
    return {"PYTHONSAFEPATH": "1"} if ours else {}
