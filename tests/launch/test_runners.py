"""Which program the ranks run, by what is installed and what was said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parlaunch.errors import ParlaunchError, UsageError
from parlaunch_launch import runners


def checkout(home: Path) -> Path:
    script = home / "scripts" / "training" / "run_recipe.py"
    script.parent.mkdir(parents=True)
    script.write_text("")
    return script


def find(tmp_path: Path, installed: tuple[str, ...] = (), **given: Any) -> runners.Runner:
    given = {"environ": {}, "python": "py", "container_home": tmp_path / "opt", **given}
    return runners.find(has=lambda name: name in installed, rank_has=lambda name: name in installed, **given)


def test_a_script_and_a_module_that_are_named_win(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("")
    assert find(tmp_path, ("megatron.bridge",), script=script).argv == (str(script),)
    assert find(tmp_path, ("mine.train",), module="mine.train").argv == ("-m", "mine.train")


def test_the_checkout_that_is_named_comes_before_the_container_s(tmp_path: Path) -> None:
    mine, theirs = checkout(tmp_path / "home"), checkout(tmp_path / "opt")
    assert find(tmp_path, environ={"MEGATRON_BRIDGE_HOME": str(tmp_path / "home")}).argv == (str(mine),)
    assert find(tmp_path).argv == (str(theirs),)
    assert find(tmp_path).kind == "bridge-checkout"


def test_an_installed_bridge_without_a_checkout_gets_our_runner(tmp_path: Path) -> None:
    assert find(tmp_path, ("megatron.bridge", "megatron.core")).argv == ("-m", "parlaunch_launch.bridge_runner")


def test_on_cpu_bridge_trains_where_it_is_and_core_where_it_is_not(tmp_path: Path) -> None:
    checkout(tmp_path / "opt")  # its script asks for CUDA
    assert find(tmp_path, ("megatron.bridge", "megatron.core"), device="cpu").kind == "bridge-cpu"
    assert find(tmp_path, ("megatron.core",), device="cpu").argv == ("-m", "parlaunch_launch.cpu.core_runner")


def packaged(home: Path, major: int, minor: int, patch: int) -> Path:
    """A checkout of that version."""
    checkout(home)
    package = home / "src" / "megatron" / "bridge"
    package.mkdir(parents=True)
    (package / "package_info.py").write_text(f"MAJOR = {major}\nMINOR = {minor}\nPATCH = {patch}\n")
    return home


def test_a_checkout_says_its_version_and_an_old_one_is_told_the_step(tmp_path: Path) -> None:
    old, new = packaged(tmp_path / "old", 0, 5, 1), packaged(tmp_path / "new", 0, 6, 0)
    found = find(tmp_path, environ={"MEGATRON_BRIDGE_HOME": str(old)}, recipe="qwen3_vl_8b_sft_config")
    assert (found.version, found.argv[1:]) == ((0, 5, 1), ("--step_func", "qwen3_vl_step"))
    found = find(tmp_path, environ={"MEGATRON_BRIDGE_HOME": str(old)}, recipe="llama3_8b_sft_config")
    assert found.argv[1:] == ()
    found = find(tmp_path, environ={"MEGATRON_BRIDGE_HOME": str(new)}, recipe="qwen3_vl_8b_sft_config")
    assert (found.version, found.argv[1:]) == ((0, 6, 0), ())


def test_an_installed_bridge_says_its_version_and_may_be_too_old(tmp_path: Path) -> None:
    assert find(tmp_path, ("megatron.bridge",), version=lambda: "0.6.2").version == (0, 6, 2)
    with pytest.raises(ParlaunchError, match="is older than"):
        find(tmp_path, ("megatron.bridge",), version=lambda: "0.2.1")


def test_a_model_s_config_is_trained_by_our_module_beside_any_checkout(tmp_path: Path) -> None:
    checkout(tmp_path / "opt")
    assert find(tmp_path, ("megatron.bridge",), model_config=True).argv == ("-m", runners.BRIDGE_MODULE)
    with pytest.raises(ParlaunchError, match="trains through the installed megatron"):
        find(tmp_path, ("megatron.core",), model_config=True, device="cpu")


def test_every_module_that_is_named_exists() -> None:
    import importlib.util

    for module in (runners.BRIDGE_MODULE, runners.BRIDGE_CPU_MODULE, runners.CORE_CPU_MODULE):
        assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({}, ParlaunchError, "there is no Megatron Bridge to run"),
        ({"device": "cpu"}, ParlaunchError, "trains with Megatron Core, which py does not have"),
        ({"script": "nowhere.py"}, UsageError, "--script nowhere.py: there is no such file"),
        ({"module": "nowhere"}, UsageError, "--module nowhere: py has no module of that name"),
        ({"script": "a.py", "module": "b"}, UsageError, "both --script and --module"),
        ({"environ": {"MEGATRON_BRIDGE_HOME": "/nowhere"}}, UsageError, "MEGATRON_BRIDGE_HOME=/nowhere has no"),
    ],
)
def test_what_is_missing_is_said_with_what_to_try(
    tmp_path: Path, given: dict[str, Any], error: type[ParlaunchError], said: str
) -> None:
    with pytest.raises(error, match=said) as caught:
        find(tmp_path, **given)
    assert type(caught.value) is error
    assert caught.value.hint
