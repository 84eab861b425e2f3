"""Figures in the documentation are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from parlaunch.cli.request import Request, Trial
from parlaunch.estimate.timing.iteration import DP_SHARE_HIDDEN
from parlaunch.estimate.training import RESTART_S, STATE, WEIGHT
from parlaunch.hardware.rates import HEADROOM
from parlaunch.planning.preference import YIELDS
from parlaunch.planning.reasons import LOW_MFU
from parlaunch.planning.search import RESOLUTION
from parlaunch.show.screen import LINES

ROOT = Path(__file__).parent.parent
WORDS = {5: "five", 8: "eight", 40: "forty"}
REQUEST, TRIAL = Request(command="plan"), Trial()


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("docs/how-it-works.md", f"({RESOLUTION['dense'] * 100:g} % for dense models, {RESOLUTION['experts'] * 100:g} % with experts)"),
        ("docs/how-it-works.md", f"slower by more ({YIELDS['dense'] * 100:g} % for dense models, {YIELDS['experts'] * 100:g} % with experts)"),
        ("docs/how-it-works.md", f"`--headroom` ({HEADROOM * 100:g} %)"),
        ("docs/how-it-works.md", f"parallelism {DP_SHARE_HIDDEN * 100:g} % hides where"),
        ("docs/reading-a-plan.md", f"{WORDS[round(HEADROOM * 100)].capitalize()} per cent of the GPU are left free"),
        ("docs/reading-a-plan.md", f"below {LOW_MFU * 100:g} % the first sentence under *Why*"),
        ("docs/when-it-does-not-fit.md", f"{WORDS[round(HEADROOM * 100)]} per cent of GPU memory are left free by default"),
        ("docs/time-and-money.md", f"{WEIGHT + STATE} bytes a parameter"),
        ("docs/time-and-money.md", f"{WORDS[round(RESTART_S / 60)]} minutes to notice"),
        ("docs/slurm.md", f"`--agree-timeout` seconds ({REQUEST.agree_timeout:g})"),
        ("docs/verifying.md", f"`--timeout {TRIAL.timeout:g}` seconds"),
        ("CHANGELOG.md", f"one screen of at most {WORDS[LINES]} lines"),
    ],
)  # fmt: skip
def test_a_figure_in_the_documentation_is_that_of_the_code(page: str, said: str) -> None:
    text = re.sub(r"\s+", " ", (ROOT / page).read_text(encoding="utf-8"))
    assert said in text


def test_every_option_that_a_page_names_is_one() -> None:
    ours = set(re.findall(r"--[a-z][a-z-]+", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")))
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        text = page.read_text(encoding="utf-8")
        blocks = "\n".join(
            [
                *re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL),
                *re.findall(r"^    .*$", text, re.MULTILINE),
            ]
        )
        for line in re.findall(r"^ *(?:\$ )?parlaunch (.*)$", blocks.replace("\\\n", " "), re.MULTILINE):
            for option in re.findall(r"(?:^|\s)(--[a-z][a-z-]+)", line.partition(" -- ")[0]):
                assert option in ours | {"--help-all", "--install-completion", "--show-completion"}, (
                    f"{page.name}: {line}"
                )
