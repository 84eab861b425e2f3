"""Recognition by content, refusals that name the file, copies of a node, and damage of every kind."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parlaunch.errors import ParlaunchError, ProbeError, UsageError
from parlaunch.hardware.cluster import Cluster, cluster_from_json, cluster_to_json, domains_of
from parlaunch_probes import capture
from parlaunch_probes.files import read_hardware, replicate
from tests.probes_files import samples
from tests.probes_files.conftest import Read
from tests.probes_files.test_tools import LSPCI, archive, imex
from tests.probes_files.test_xml import dgx

MACHINES = Path(__file__).parent.parent / "machines"
EXPECTED = json.loads((Path(__file__).parent / "machines.json").read_text())
NICS = {f"NIC{n}": ["PIX" if n == g else "SYS" for g in range(4)] for n in range(4)}
TEXTS: dict[str, bytes] = {
    "topo": samples.matrix(4, lambda a, b: "NV4", nics=NICS, names={"NIC0": "mlx5_0"}).encode(),
    "smi_q": samples.smi_q("NVIDIA A100-SXM4-80GB", 3, mig="Enabled", slices=2).encode(),
    "smi_xml": samples.smi_xml("NVIDIA GB200", 2, slices=1, fabric="Completed", cluster="12345678-0000").encode(),
    "nccl": dgx().encode(),
    "lspci": LSPCI.format(acs="+").encode(),
    "ibstat": samples.ibstat([("mlx5_0", "MT4129", "Active", "LinkUp", 400, "InfiniBand")]).encode(),
    "imex": imex(["READY"] * 3).encode(),
    "tar": archive("w:"),
    "tar.gz": archive("w:gz"),
    "netq": json.dumps([{"DomainUUID": "u", "GpuIDList": [1, 2], "Name": "n", "LocationInfo": {}}]).encode(),
    "capture": (MACHINES / "b200_lost_link" / "capture.json").read_bytes(),
    "probe": json.dumps(
        {"schema": "parlaunch.probe/1", "hardware": {"source": "x", "nodes": [{"hostname": "a"}]}}
    ).encode(),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_a_file_is_known_by_what_it_holds_and_not_by_its_name(kind: str, tmp_path: Path) -> None:
    for name in ("a.json", "b.xml", "c.txt", "d"):
        path = tmp_path / name
        path.write_bytes(TEXTS[kind])
        cluster = read_hardware(path)
        assert cluster.nodes
        assert cluster.source == f"file {name}"
        assert cluster_from_json(json.loads(json.dumps(cluster_to_json(cluster)))) == cluster


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"hello there\n", "begins 'hello there'"),
        (b"NVIDIA-SMI has failed because it couldn't communicate\n", "could not reach the driver"),
        (b"No devices were found\n", "found no GPU"),
        (bytes(range(1, 32)) * 20, "binary"),
        (b"<html><body>404</body></html>", "web page"),
        (b"PK\x03\x04rest", "zip"),
        (b'{"schema": "something/9"}', "something/9"),
        (b'{"schema": "parlaunch.probe/1", ', "looks like JSON"),
        (b'{"nodes": 3}', "kind that we do not know"),
        (b'{"nodes": [3]}', "not a machine"),
        (b"<?xml version='1.0'?><svg/>", "no description of a machine"),
        (b"Model name: Some CPU\nSocket(s): 2\n", "no description of a machine"),
    ],
)
def test_what_is_no_machine_is_refused_with_the_file_its_looks_and_what_is_taken(
    content: bytes, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "given"
    path.write_bytes(content)
    with pytest.raises(ProbeError) as caught:
        read_hardware(path)
    assert says in caught.value.problem
    assert str(path) in caught.value.problem


def test_a_missing_file_and_a_folder_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="cannot read"):
        read_hardware(tmp_path / "missing")
    with pytest.raises(ProbeError, match="folder without a capture"):
        read_hardware(tmp_path)


def test_a_gzipped_listing_is_unpacked(read: Read) -> None:
    import gzip

    assert len(read(gzip.compress(TEXTS["topo"])).nodes[0].gpus) == 4


def test_copies_have_names_of_their_own_and_no_borrowed_identity(read: Read) -> None:
    one = read(TEXTS["smi_q"].replace(b"Enabled", b"Disabled"))
    four = replicate(one, 4)
    assert len({n.hostname for n in four.nodes}) == 4
    assert {g.uuid for n in four.nodes for g in n.gpus} == {None}
    assert four.world_size == 12
    assert four.nvlink_domains == domains_of(four.nodes)
    assert len(four.nvlink_domains) == 4
    assert replicate(one, 1) is one


def test_trays_fill_racks_of_eighteen(read: Read) -> None:
    tray = read(TEXTS["smi_xml"].replace(b"<current_mig>Enabled", b"<current_mig>Disabled"))
    assert tray.nodes[0].link_type == "nvswitch_mnnvl"
    assert [len(d) for d in replicate(tray, 20).nvlink_domains] == [36, 4]


def test_several_nodes_can_only_be_multiplied(read: Read) -> None:
    rack = read(TEXTS["imex"])
    assert [len(d) for d in replicate(rack, 6).nvlink_domains] == [12, 12]
    with pytest.raises(UsageError, match="describes 3 nodes, 4 were asked for"):
        replicate(rack, 4)
    with pytest.raises(UsageError, match="make no cluster"):
        replicate(rack, 0)


@pytest.mark.parametrize("name", EXPECTED)
def test_a_captured_machine_is_concluded_as_its_owner_describes_it(name: str) -> None:
    folder = MACHINES / name
    assert (folder / "about").read_text().strip(), "one line on where it comes from"
    cluster = read_hardware(folder)
    node = cluster.nodes[0]
    assert {
        "nodes": len(cluster.nodes),
        "gpus": len(node.gpus),
        "link_type": node.link_type,
        "domains": sorted({len(d) for d in cluster.nvlink_domains}),
        "nvlink_domain_size": cluster.nvlink_domain_size,
        "fabric": cluster.fabric.kind,
        "rails": cluster.fabric.rails,
        "numa": [g.numa for g in node.gpus],
    } == EXPECTED[name]
    assert cluster.nvlink_domains == domains_of(cluster.nodes)


def test_saving_a_machine_read_from_a_file_and_reading_it_again_changes_nothing(read: Read, tmp_path: Path) -> None:
    for kind in ("topo", "nccl", "lspci", "imex"):
        cluster = read(TEXTS[kind])
        path = capture.save(tmp_path / f"{kind}.json", capture.Capture(cluster))
        again = read_hardware(path)
        assert (again.nodes, again.nvlink_domains, again.fabric, again.notes) == (
            cluster.nodes, cluster.nvlink_domains, cluster.fabric, cluster.notes,
        )  # fmt: skip


PIECES = (
    b"GPU0", b"NV18", b"\t", b"\n", b"\r\n", b"\x00", b"\xff\xfe", b"99999999999999999999", b"-1", b"N/A", b"<pci>",
    b"</object>", b"GPU 00000000:18:00.0\n", b"0000:ff:ff.7", b"0-4294967295", b"[", b"{", b"&x;", b"0x" + b"f" * 200,
)  # fmt: skip


def mutated(content: bytes, seed: int) -> bytes:
    """The content after a few random changes: cuts, flipped bytes, lost and doubled lines, other numbers, odd pieces."""
    rnd = random.Random(seed)
    for _ in range(rnd.randrange(1, 4)):
        kind = rnd.randrange(7)
        if kind == 0:
            content = content[: rnd.randrange(len(content) + 1)]
        elif kind == 1:
            content = content[rnd.randrange(len(content) + 1) :]
        elif kind == 2 and content:
            changed = bytearray(content)
            for _ in range(rnd.choice((1, 5, 50))):
                changed[rnd.randrange(len(changed))] = rnd.randrange(256)
            content = bytes(changed)
        elif kind == 3:
            lines = content.split(b"\n")
            rnd.shuffle(lines)
            content = b"\n".join(lines[: rnd.randrange(1, len(lines) + 1)])
        elif kind == 4:
            at = rnd.randrange(len(content) + 1)
            content = content[:at] + rnd.choice(PIECES) + content[at:]
        elif kind == 5:
            numbers = rnd.choice((b"0", b"-1", b"65536", b"999999999999", b""))
            content = content.replace(str(rnd.randrange(100)).encode(), numbers)
        else:
            content = content + rnd.choice(list(TEXTS.values()))
    return content


@given(kind=st.sampled_from(sorted(TEXTS)), seed=st.integers(0, 2**32))
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_file_is_a_machine_or_a_refusal_and_never_a_traceback(kind: str, seed: int, tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    path.write_bytes(mutated(TEXTS[kind], seed))
    cluster: Cluster | None = None
    said = str(path)
    try:
        cluster = read_hardware(path)
    except ParlaunchError as refusal:
        said = str(refusal)
    assert str(path) in said, "a refusal names the file"
    if cluster is None:
        return
    written = json.loads(json.dumps(cluster_to_json(cluster)))
    assert cluster_from_json(written) == cluster
    assert cluster.nvlink_domain_size >= 1
    if cluster.nodes:
        assert len(replicate(cluster, 2 * len(cluster.nodes)).nodes) == 2 * len(cluster.nodes)
