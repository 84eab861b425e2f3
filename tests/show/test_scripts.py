"""Plans as text for other programs: a shell runs the one, sbatch takes the other."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from parlaunch.errors import UsageError
from parlaunch.hardware.datasheet import preset
from parlaunch.model.catalog import recipe
from parlaunch.planning.plan import Plan, Variable, Wishes
from parlaunch.planning.planner import plan
from parlaunch.show.formats import FORMATS, Page, render
from tests.conftest import need

NASTY = "a 'b' \"c\" $HOME `id`; exit 7 # \\ ü"
COMMAND = ("parlaunch", "--recipe", "llama32_1b_pretrain_config", "model.path=/a b")
FAKE = """\
#!{python}
import json, os, sys
print(json.dumps({{"argv": sys.argv[1:], "nasty": os.environ.get("NASTY"), "kept": os.environ.get("KEPT")}}))
"""


@pytest.fixture(scope="module")
def made() -> Plan:
    """A plan for two nodes with variables and words that no shell should take apart."""
    found = plan(preset("dgx-h100", 2), recipe("llama32_1b_pretrain_config"), Wishes(top=0))
    variables = (
        Variable(name="NASTY", value=NASTY, reason="two\nlines of reason", source="test"),
        Variable(name="KEPT", value="ours", reason="r", source="test", kept=True, warning="slow\nhere"),
    )
    argv = ("python", "-m", "runner", "--node-rank", "${NODE_RANK}", f"model.name={NASTY}", "model.list=[a,b]")
    return replace(found, environment=variables, argv=argv)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script with a python and an srun that print what they got."""
    need(shutil.which("bash"), "bash")
    for name in ("python", "srun"):
        (tmp_path / name).write_text(FAKE.format(python=sys.executable))
        (tmp_path / name).chmod(0o755)

    def go(text: str, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
        env = dict(os.environ) | {"PATH": f"{tmp_path}:{os.environ['PATH']}", **environ}
        return subprocess.run(
            ["bash", *options], input=text, env=env, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return go


def test_pasted_into_a_shell_the_command_gets_every_word_and_variable(
    made: Plan, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run(render("shell", made), NODE_RANK="1")
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)
    assert got == {"argv": ["-m", "runner", "--node-rank", "1", *made.argv[5:]], "nasty": NASTY, "kept": None}


def test_the_shell_text_gives_the_reasons_as_comments(made: Plan) -> None:
    lines = render("shell", made).splitlines()
    for sentence in (*made.because, "two", "lines of reason", "here"):
        assert f"# {sentence}" in lines


def test_the_batch_script_starts_one_task_a_node_with_our_command(
    made: Plan, run: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    text = render("sbatch", made, Page(command=COMMAND, container_image="nemo sq.sqsh", container_mounts="/data:/data"))
    assert run(text, "-n").returncode == 0
    got = json.loads(run(text).stdout)
    assert got["argv"] == [
        "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--container-image=nemo sq.sqsh",
        "--container-mounts=/data:/data", *COMMAND,
    ]  # fmt: skip
    assert "#SBATCH --nodes=2" in text
    assert "#SBATCH --gpus-per-node=8" in text


def test_an_option_of_the_user_takes_the_place_of_ours(made: Plan) -> None:
    lines = render(
        "sbatch", made, Page(command=COMMAND, options=("--time=1-0", "-p=h100", "--no-requeue", "--comment=two words"))
    ).splitlines()
    assert "#SBATCH --time=1-0" in lines
    assert "#SBATCH --partition=h100" in lines
    assert '#SBATCH --comment="two words"' in lines
    assert "#SBATCH --requeue" not in lines
    assert sum(line.startswith("#SBATCH --time") for line in lines) == 1


@pytest.mark.parametrize(
    "option", ["--gres=gpu:8", "--gres=nvme:1,gpu:h100:8", "--gpus=16", "-G16", "--gpus-per-task=8"]
)
def test_gpus_in_the_sites_words_take_the_place_of_ours(made: Plan, option: str) -> None:
    lines = render("sbatch", made, Page(command=COMMAND, options=(option,))).splitlines()
    said = [line for line in lines if re.match("#SBATCH (--gpus|--gres|-G)", line)]
    assert said == [f"#SBATCH {option.replace('-G', '--gpus=')}"]


@pytest.mark.parametrize("option", ["--gres=gpu:4", "--gres=gpu", "--gpus=8", "-G=8", "--gpus-per-node=h100:4"])
def test_other_gpus_than_the_plans_are_refused(made: Plan, option: str) -> None:
    with pytest.raises(UsageError, match=r"would contradict the plan, which has (8|16) GPUs there"):
        render("sbatch", made, Page(command=COMMAND, options=(option,)))


def test_what_asks_for_no_gpu_leaves_ours(made: Plan) -> None:
    text = render("sbatch", made, Page(command=COMMAND, options=("--gres=nvme:1", "-ph100")))
    assert "#SBATCH --gpus-per-node=8\n" in text
    assert "#SBATCH --gres=nvme:1\n#SBATCH --partition=h100\n" in text


@pytest.mark.parametrize(
    "option", ["partition=h100", "--x\nrm -rf /", "--nodes=4", "-N=4", "-N4", "-n=2", "--ntasks-per-node=8"]
)
def test_an_option_that_cannot_be_is_refused(made: Plan, option: str) -> None:
    with pytest.raises(UsageError):
        render("sbatch", made, Page(command=COMMAND, options=(option,)))


def test_no_reason_can_run(made: Plan, run: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    evil = replace(made, because=("x\nexit 9",))
    for text in (render("shell", evil), render("sbatch", evil, Page(command=COMMAND))):
        assert run(text, NODE_RANK="0").returncode == 0


@pytest.mark.parametrize("name", [*FORMATS, "report"])
def test_every_format_names_the_recipe_and_ends_its_last_line(made: Plan, name: str) -> None:
    text = render(name, made)
    assert "llama32_1b_pretrain" in text
    assert text.endswith("\n")
