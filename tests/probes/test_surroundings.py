"""What the process can learn of the job that it is in."""

from __future__ import annotations

from pathlib import Path

import pytest

from parlaunch_probes.host import Host
from parlaunch_probes.surroundings import hosts


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("PBS_NODEFILE", "gpu01\ngpu01\ngpu02\ngpu02\n"),
        ("LSB_DJOB_HOSTFILE", "gpu01\ngpu02\n"),
        ("PE_HOSTFILE", "gpu01 8 all.q@gpu01 UNDEFINED\ngpu02 8 all.q@gpu02 UNDEFINED\n"),
        ("COBALT_NODEFILE", "gpu01\n\ngpu02"),
    ],
)
def test_the_hosts_of_a_job_are_read_where_its_batch_system_lists_them(
    variable: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / "list").write_text(text)
    assert hosts({variable: "/list"}, Host(tmp_path)) == ("gpu01", "gpu02")


def test_a_job_without_such_a_file_has_no_hosts(tmp_path: Path) -> None:
    assert hosts({}, Host(tmp_path)) == ()
    assert hosts({"PBS_NODEFILE": "", "PE_HOSTFILE": "/gone"}, Host(tmp_path)) == ()
