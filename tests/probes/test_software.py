"""Versions of the training software: read in a child that imports none of it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from parlaunch.cli.inputs import software_of
from parlaunch.hardware.datasheet import preset
from parlaunch.hardware.installed import PACKAGES, differing, installed_on, newest, release, releases
from parlaunch_probes import capture, software_child
from parlaunch_probes.software import read, software


def test_the_child_says_which_torch_this_python_has() -> None:
    found = software(os.environ)
    assert found is not None
    assert tuple(name for name, _ in found) == tuple(PACKAGES)
    assert dict(found)["torch"] == version("torch")


def test_the_child_imports_nothing_that_it_reports() -> None:
    import subprocess
    import sys

    code = "import sys; from parlaunch_probes.software_child import found; found(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_an_answer_that_is_cut_or_without_torch_is_no_knowledge() -> None:
    whole = json.dumps({name: None for name in PACKAGES} | {"torch": "2.11.0"})
    assert read(whole) is not None
    assert read(whole[:20]) is None
    assert read("") is None
    assert read(json.dumps({name: None for name in PACKAGES})) is None
    assert set(software_child.found()) == set(PACKAGES)


def test_nodes_that_differ_are_planned_for_by_what_all_have_and_named() -> None:
    cluster = preset("dgx-h100", 2)
    one = tuple((name, "2.0") for name in PACKAGES)
    two = tuple((name, None if name == "deep_ep" else "1.9" if name == "torch" else "2.0") for name in PACKAGES)
    mixed = replace(cluster, nodes=(replace(cluster.nodes[0], software=one), replace(cluster.nodes[1], software=two)))
    both = installed_on(mixed)
    assert (both.text("torch"), both.missing("deep_ep"), both.assumed) == ("1.9", True, False)
    assert [said.split(" differs")[0] for said in differing(mixed)] == ["PyTorch", "DeepEP"]


def test_a_machine_nobody_looked_at_has_the_newest_release_by_assumption() -> None:
    assert installed_on(preset("dgx-h100", 1)) == newest()
    assert newest().assumed
    assert release("bridge-0.6") == releases()[0]
    assert release("bridge-0.5").source == "nemo-26.06"
    assert release("bridge-0.3").source == "nemo-26.02"


def test_a_saved_probe_carries_the_software_and_names_it_for_a_plan_elsewhere(tmp_path: Path) -> None:
    one = (("torch", "2.9.0"), ("deep_ep", None))
    taken = capture.take()
    here = replace(taken, cluster=replace(taken.cluster, nodes=(replace(taken.cluster.nodes[0], software=one),)))
    for redact in (False, True):
        saved = capture.save(tmp_path / "box.json", here, redact=redact)
        assert capture.read(saved).nodes[0].software == one
        told = software_of(str(saved))
        assert told is not None
        assert (told.text("torch"), told.missing("deep_ep")) == ("2.9.0", True)
