"""What is configured once: variables, files here, of the user and of the site, and what stands above what."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from parlaunch.cli import config
from parlaunch.cli.options import described, variable_of
from parlaunch.cli.request import Request, Trial
from tests.cli.conftest import Said

PLAN = ("plan", "--recipe", "llama3_8b_pretrain_config", "--hardware", "dgx-h100:2")
Run = Callable[..., Said]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The three files, none of them there."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(config, "SITE", tmp_path / "etc" / "parlaunch.toml")
    found = {
        "here": Path("parlaunch.toml"), "user": tmp_path / "home" / "parlaunch" / "parlaunch.toml", "site": tmp_path / "etc" / "parlaunch.toml",
    }  # fmt: skip
    for path in found.values():
        path.parent.mkdir(exist_ok=True, parents=True)
    return found


def origins(said: Said) -> dict[str, tuple[object, str]]:
    values = json.loads(said.out)["values"]
    return {key: (row["value"], row["origin"]) for key, row in values.items()}


def test_the_nearer_file_stands_above_the_farther_and_a_variable_above_all(
    parlaunch: Run, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    places["site"].write_text("price = 1.0\nheadroom = 0.1\npartition = 'site'\ntokens = '1T'\n")
    places["user"].write_text("price = 2.0\nheadroom = 0.2\npartition = 'user'\n")
    places["here"].write_text("price = 3.0\nheadroom = 0.3\n")
    monkeypatch.setenv("PARLAUNCH_PRICE", "4")
    assert origins(parlaunch("config", "--format", "json")) == {
        "price": ("4", "PARLAUNCH_PRICE"),
        "headroom": (0.3, "parlaunch.toml"),
        "partition": ("user", str(places["user"])),
        "tokens": ("1T", str(places["site"])),
    }


def test_the_command_line_stands_above_all(
    parlaunch: Run, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    places["here"].write_text("tp = 8\n")
    assert "tp=8" in parlaunch(*PLAN, "-q").out
    monkeypatch.setenv("PARLAUNCH_TP", "4")
    assert "tp=4" in parlaunch(*PLAN, "-q").out
    assert "tp=2" in parlaunch(*PLAN, "-q", "--tp", "2").out


def test_every_option_has_a_variable_that_does_what_the_option_does(
    parlaunch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in (Request, Trial):
        names = {f.name for f in fields(source)} - {"command", "runner_args", "overrides", "configured"}
        assert {d.field for d in described(source)} == names
        for d in described(source):
            assert d.info.envvar == variable_of(d.name)
    monkeypatch.setenv("PARLAUNCH_RECIPE", "llama3_8b_pretrain_config")
    monkeypatch.setenv("PARLAUNCH_HARDWARE", "dgx-h100:2")
    monkeypatch.setenv("PARLAUNCH_QUIET", "1")
    assert parlaunch("plan").out == parlaunch(*PLAN, "-q").out


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("prise = 2.5", "unknown key 'prise'", "nearest: price"),
        ("qqqq = 1", "unknown key 'qqqq'", "keys are the options of"),
        ("[machine]\ntp = 1", "unknown key 'machine'", "nearest: machine-file"),
        ("[plan]\ntp = 1", "plan = {'tp': 1} is no text", "--plan"),
        ("headroom = 'much'", "headroom = 'much' is no number, 0 or more, 0.9 or less", "--headroom"),
        ("headroom = 1.5", "headroom = 1.5 is no number", "--headroom"),
        ("tp = true", "tp = True is no whole number, 1 or more", "--tp"),
        ("tp = 2.5", "tp = 2.5 is no whole number", "--tp"),
        ("evidence = 'no'", "evidence = 'no' is no true or false", "--evidence"),
        ("sbatch-arg = [1]", "sbatch-arg = [1] is no list of words", "--sbatch-arg"),
        ("recipe = ", "is not TOML", "for example"),
        (f"top = {'9' * 5000}", "is not TOML", "for example"),
        (f"price = {'9' * 400}", "is no number, 0 or more", "--price"),
        (f"top = {'[' * 5000}", "is not TOML", "for example"),
        ("price = inf", "price = inf is no number, 0 or more", "--price"),
    ],
)
def test_what_a_file_cannot_mean_is_named_with_the_nearest(
    parlaunch: Run, places: dict[str, Path], text: str, said: str, hint: str
) -> None:
    places["user"].write_text(text)
    for command in (PLAN, ("config",)):
        answer = parlaunch(*command)
        assert answer.code == 2
        assert str(places["user"]) in answer.err
        assert said in answer.err
        assert hint in answer.err


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(parlaunch: Run, places: dict[str, Path]) -> None:
    os.mkfifo(places["here"])
    said = parlaunch(*PLAN)
    assert said.code == 2
    assert "parlaunch.toml is a pipe" in said.err


def test_keys_are_spelt_with_dashes_or_underscores(parlaunch: Run, places: dict[str, Path]) -> None:
    places["here"].write_text("machine_file = 'a.json'\nglobal-batch-size = 64\n")
    assert set(origins(parlaunch("config", "--format", "json"))) == {"machine-file", "global-batch-size"}


def test_a_path_is_beside_the_file_that_names_it(parlaunch: Run, places: dict[str, Path]) -> None:
    places["user"].write_text("machine-file = 'rates.json'\n")
    value, _ = origins(parlaunch("config", "--format", "json"))["machine-file"]
    assert value == str(places["user"].parent / "rates.json")


def test_a_home_that_nobody_has_is_a_folder_of_that_name(parlaunch: Run, places: dict[str, Path]) -> None:
    places["here"].write_text("machine-file = '~nobody-of-that-name/rates.json'\n")
    said = parlaunch(*PLAN)
    assert said.code == 2
    assert "--machine-file ~nobody-of-that-name/rates.json: No such file" in said.err


def test_what_is_configured_gives_way_to_what_contradicts_it_on_the_command_line(
    parlaunch: Run, places: dict[str, Path], tmp_path: Path
) -> None:
    saved = tmp_path / "plan.json"
    assert parlaunch(*PLAN, "-q", "--save-plan", str(saved)).code == 0
    places["here"].write_text("recipe = 'llama3_70b_pretrain_config'\nsamples = '1M'\ntp = 2\n")
    assert parlaunch("plan", "--plan", str(saved), "-q").code == 0
    assert parlaunch(*PLAN, "--tokens", "1T").code == 0


def test_the_batch_script_has_what_is_configured_and_other_formats_do_not_mind(
    parlaunch: Run, places: dict[str, Path]
) -> None:
    places["site"].write_text(
        "partition = 'h100'\ncontainer-image = 'nemo.sqsh'\nsbatch-arg = ['--account=me']\nheadroom = 0.1\nprice = 2\n"
    )
    script = parlaunch(*PLAN, "--format", "sbatch").out
    assert "#SBATCH --partition=h100\n" in script
    assert "#SBATCH --account=me\n" in script
    assert "--container-image=nemo.sqsh" in script
    # On the nodes the file need not be there: what it says of the job is in the script.
    assert script.splitlines()[-1].endswith("parlaunch --recipe llama3_8b_pretrain_config --headroom 0.1")
    assert parlaunch(*PLAN).code == 0
    assert parlaunch(*PLAN, "--partition", "h100").code == 2


def test_a_variable_that_is_nobodys_is_pointed_out(parlaunch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARLAUNCH_HEADROM", "0.1")
    monkeypatch.setenv("PARLAUNCH_CPUS", "0-3")
    said = parlaunch(*PLAN, "-q").err
    assert "PARLAUNCH_HEADROM is no variable of ours; did you mean PARLAUNCH_HEADROOM?" in said
    assert "PARLAUNCH_CPUS" not in said


def test_defaults_are_shown_when_asked(parlaunch: Run) -> None:
    assert "nothing is configured" in parlaunch("config").out
    every = origins(parlaunch("config", "--all", "--format", "json"))
    assert every["headroom"] == (0.08, "default")
    assert set(every) == set(config.options())


def test_a_launch_stands_on_its_own_machine_whatever_is_configured(
    parlaunch: Run, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    places["user"].write_text("hardware = 'dgx-h100:2'\nrecipe = 'llama3_8b_pretrain_config'\n")
    asked: list[str] = []
    monkeypatch.setattr("parlaunch.cli.launch.run", lambda request: asked.append(request.hardware))
    parlaunch("--tp", "1")
    parlaunch("--dry-run")
    parlaunch("plan")
    assert asked == ["auto", "dgx-h100:2", "dgx-h100:2"]


@pytest.mark.parametrize(
    ("words", "variable", "value", "shown"),
    [
        (("recipes", "llama3", "8b"), "PARLAUNCH_RECIPES_TASK", "sft", "llama3_8b_sft_config"),
        (("recipes", "show", "llama3_8b_sft_config"), "PARLAUNCH_RECIPES_SHOW_FORMAT", "json", '"aliases"'),
        (("machines", "h200"), "PARLAUNCH_MACHINES_FORMAT", "json", "parlaunch.machines/1"),
        (("config",), "PARLAUNCH_CONFIG_ALL", "1", "headroom"),
    ],
)
def test_the_options_of_other_commands_have_variables_with_their_names(
    parlaunch: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], variable: str, value: str, shown: str
) -> None:
    plain = parlaunch(*words)
    monkeypatch.setenv(variable, value)
    said = parlaunch(*words)
    assert said.code == 0
    assert shown in said.out
    assert said.out != plain.out
    assert variable not in parlaunch(*PLAN, "-q").err


@pytest.mark.checkout
def test_the_page_of_commands_has_a_variable_for_every_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `-")]
    assert len(rows) > 90
    assert all(row[2].startswith("`PARLAUNCH_") for row in rows)
