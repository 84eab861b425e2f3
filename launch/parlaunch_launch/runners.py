"""Which program every rank runs: the user's, Megatron Bridge's own script, our module over Bridge, or one for CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from parlaunch.errors import ParlaunchError, UsageError
from parlaunch_launch.become import installed

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


def find(
    *,
    device: str = "cuda",
    script: Path | str | None = None,
    module: str | None = None,
    environ: Mapping[str, str],
    python: str = "python",
    has: Callable[[str], bool] = installed,
    container_home: Path = CONTAINER_HOME,
) -> Runner:
    """The first of: `--script`, `--module`, (on CPU: Bridge, then Core), `$MEGATRON_BRIDGE_HOME`, the container's checkout, Bridge.

    Raises UsageError for a script or home that was named and is not there, ParlaunchError when nothing is installed;
    `python` is named in the error. `has` says whether a module can be imported.
    """
    if script is not None and module is not None:
        raise UsageError("both --script and --module are given", hint="keep one: the runner is a script or a module")
    if script is not None:
        if not Path(script).is_file():
            raise UsageError(f"--script {script}: there is no such file", hint="check the path")
        return Runner(argv=(str(script),), kind="script", why="--script names it")
    if module is not None:
        if not has(module):
            raise UsageError(f"--module {module}: {python} has no module of that name", hint="check PYTHONPATH")
        return Runner(argv=("-m", module), kind="module", why="--module names it")
    if device == "cpu":
        return _on_cpu(has, python)
    return _on_gpu(environ, has, python, container_home)


def _on_cpu(has: Callable[[str], bool], python: str) -> Runner:
    if has("megatron.bridge"):
        why = "megatron.bridge is installed: its own recipe, validation and pretrain() run on CPU"
        return Runner(argv=("-m", BRIDGE_CPU_MODULE), kind="bridge-cpu", why=why)
    if has("megatron.core"):
        why = "megatron.core is installed, megatron.bridge is not: our trainer over Megatron Core"
        return Runner(argv=("-m", CORE_CPU_MODULE), kind="core-cpu", why=why)
    raise ParlaunchError(
        f"--device cpu trains with Megatron Core, which {python} does not have",
        hint="pip install 'parlaunch[cpu]'",
    )


def _on_gpu(environ: Mapping[str, str], has: Callable[[str], bool], python: str, container_home: Path) -> Runner:
    home = environ.get("MEGATRON_BRIDGE_HOME")
    if home:
        if not Path(home, SCRIPT).is_file():
            raise UsageError(
                f"MEGATRON_BRIDGE_HOME={home} has no {SCRIPT}",
                hint="point it at a checkout of Megatron-Bridge, or unset it",
            )
        return Runner(
            argv=(str(Path(home, SCRIPT)),), kind="bridge-checkout", why="MEGATRON_BRIDGE_HOME names a checkout"
        )
    if (container_home / SCRIPT).is_file():
        return Runner(
            argv=(str(container_home / SCRIPT),), kind="bridge-checkout", why=f"the container has {container_home}"
        )
    if has("megatron.bridge"):
        why = "megatron.bridge is installed; no checkout with its script was found"
        return Runner(argv=("-m", BRIDGE_MODULE), kind="bridge", why=why)
    raise ParlaunchError(
        f"there is no Megatron Bridge to run: none in {python}, none at {container_home}, and MEGATRON_BRIDGE_HOME is not set",
        hint="start NVIDIA's NeMo container, or pip install megatron-bridge, or set MEGATRON_BRIDGE_HOME to a checkout, "
        "or name a training script with --script",
    )
