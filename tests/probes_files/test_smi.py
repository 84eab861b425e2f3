"""What nvidia-smi prints besides the matrix: `-q`, `-q -x`, `-L`, `nvlink -s`, CSV queries, its table."""

from __future__ import annotations

import pytest

from parlaunch.doctor.preflight import examine
from parlaunch.errors import ProbeError
from parlaunch.hardware.cluster import UNKNOWN
from parlaunch_probes.files import replicate
from tests.probes_files.conftest import Read
from tests.probes_files.samples import matrix, smi_q, smi_xml

H100 = "NVIDIA H100 80GB HBM3"
DONE = {
    "State": "Completed",
    "Status": "Success",
    "CliqueId": "0",
    "ClusterUUID": "00000000-0000-0000-0000-000000000000",
}


def test_blocks_give_identity_memory_and_the_board_of_the_product(read: Read) -> None:
    cluster = read(smi_q(H100, 8, fabric=DONE))
    node = cluster.nodes[0]
    assert (node.driver, node.cuda) == ("570.86.15", "12.8")
    assert [g.name for g in node.gpus] == [H100] * 8
    assert node.gpus[1].pci == "0000:19:00.0"
    assert node.gpus[1].uuid == "GPU-00000001-1111-2222-3333-444444444444"
    assert node.gpus[0].memory_bytes == 81559 * 2**20
    assert node.gpus[0].compute_capability == (9, 0)
    assert node.link_type == "nvswitch"
    assert cluster.nvlink_domains == (tuple(range(8)),)
    assert any("NVLink is not in this file" in note for note in cluster.notes)


def test_an_all_zero_cluster_uuid_is_no_domain_across_nodes(read: Read) -> None:
    gpu = read(smi_q(H100, 8, fabric=DONE)).nodes[0].gpus[0]
    assert gpu.fabric_state == "completed"
    assert gpu.fabric_cluster == "00000000-0000-0000-0000-000000000000"
    assert gpu.fabric_id is None


def test_a_real_cluster_uuid_and_clique_are_the_key_of_a_rack(read: Read) -> None:
    uuid = "3143b15b-c2cd-192b-28cc-9b5473fb5b93"
    cluster = read(smi_q("NVIDIA GB200", 4, fabric=DONE | {"ClusterUUID": uuid, "CliqueId": "32766"}))
    assert cluster.nodes[0].gpus[0].fabric_id == (uuid, 32766)
    assert cluster.nodes[0].link_type == "nvswitch_mnnvl"


def test_gpus_that_still_register_with_the_fabric_are_in_no_domain(read: Read) -> None:
    cluster = read(smi_q("NVIDIA GB300", 4, fabric={"State": "In Progress", "Status": "N/A"}))
    assert cluster.nvlink_domains == ()
    assert any("not registered" in note for note in cluster.notes)


@pytest.mark.parametrize(
    ("name", "count", "minors", "virtual", "kind", "domains"),
    [
        ("NVIDIA A100-SXM4-40GB", 4, [0, 1, 2, 3], "None", "mesh", ((0, 1, 2, 3),)),
        ("NVIDIA A100-SXM4-40GB", 4, [3, 4, 5, 6], "None", "nvswitch", ((0, 1, 2, 3),)),
        ("NVIDIA A100-SXM4-40GB", 4, [0, 1, 2, 3], "Pass-Through", "nvswitch", ((0, 1, 2, 3),)),
        (H100, 4, [0, 1, 2, 3], "None", "mesh", ((0, 1, 2, 3),)),
        ("NVIDIA H200", 1, [0], "Pass-Through", "nvswitch", ()),
        ("NVIDIA H100 NVL", 4, [0, 1, 2, 3], "None", "pairs", ((0, 1), (2, 3))),
        ("NVIDIA GH200 480GB", 1, [0], "Pass-Through", "none", ()),
        ("NVIDIA A40", 3, [0, 1, 2], "None", "none", ()),
        ("Tesla V100-SXM2-16GB", 8, list(range(8)), "None", "cube_mesh", (tuple(range(8)),)),
        ("NVIDIA GeForce RTX 4090", 2, [0, 1], "None", "none", ()),
        ("NVIDIA Some New Card", 2, [0, 1], "None", None, ()),
    ],
)
def test_the_board_follows_from_product_count_and_view(
    read: Read, name: str, count: int, minors: list[int], virtual: str, kind: str | None, domains: object
) -> None:
    cluster = read(smi_q(name, count, minors=minors, virtual=virtual))
    assert cluster.nodes[0].link_type == kind
    assert cluster.nvlink_domains == domains


def test_a_peer_type_of_switch_settles_it(read: Read) -> None:
    assert read(smi_q(H100, 4, peer="Switch Connected")).nodes[0].link_type == "nvswitch"


def test_missing_minors_and_a_higher_count_are_told(read: Read) -> None:
    cluster = read(smi_q("NVIDIA L40S", 2, attached=8, minors=[0, 6]))
    assert any("counts 8 GPUs, this file shows 2" in note for note in cluster.notes)
    assert any("minors [1, 2, 3, 4, 5]" in note for note in cluster.notes)
    assert [g.minor for g in cluster.nodes[0].gpus] == [0, 6]


def test_a_listing_that_is_there_twice_counts_once(read: Read) -> None:
    cluster = read(2 * smi_q("NVIDIA L40S", 2))
    assert len(cluster.nodes[0].gpus) == 2
    assert any("repeat" in note for note in cluster.notes)


def test_a_block_that_is_cut_off_keeps_what_it_said(read: Read) -> None:
    text = smi_q(H100, 8, fabric=DONE)
    cluster = read(text[: text.index("FB Memory Usage")])
    assert len(cluster.nodes[0].gpus) == 1
    assert cluster.nodes[0].gpus[0].memory_bytes is None
    assert cluster.nodes[0].gpus[0].name == H100


def test_mig_slices_are_neither_gpus_nor_the_whole_gpus_memory(read: Read) -> None:
    for text in (
        smi_q("NVIDIA A100-SXM4-80GB", 2, mig="Enabled", slices=3),
        smi_xml("NVIDIA A100-SXM4-80GB", 2, slices=3),
    ):
        cluster = read(text)
        gpus = cluster.nodes[0].gpus
        assert len(gpus) == 2
        assert gpus[0].mig is True
        assert gpus[0].memory_bytes == 81559 * 2**20
        assert gpus[0].mig_devices == tuple((f"gi {n + 3} ci 0", "14 SMs", 19968 * 2**20) for n in range(3))
        assert cluster.nvlink_domains == ()
        assert any("MIG is on for GPU 0, 1" in note for note in cluster.notes)


def test_the_xml_says_what_the_text_says(read: Read) -> None:
    text, xml = read(smi_q(H100, 8)).nodes[0], read(smi_xml(H100, 8)).nodes[0]
    assert [(g.name, g.pci, g.uuid, g.minor, g.memory_bytes) for g in xml.gpus] == [
        (g.name, g.pci, g.uuid, g.minor, g.memory_bytes) for g in text.gpus
    ]
    assert (xml.driver, xml.cuda, xml.link_type) == (text.driver, text.cuda, text.link_type)
    rack = read(smi_xml("NVIDIA GB200", 4, fabric="Completed", cluster="3143b15b-c2cd-192b-28cc-9b5473fb5b93")).nodes[0]
    assert rack.gpus[0].fabric_id == ("3143b15b-c2cd-192b-28cc-9b5473fb5b93", 7)


def test_a_cut_xml_gives_the_gpus_before_the_cut(read: Read) -> None:
    text = smi_xml("NVIDIA A10G", 4)
    cluster = read(text[: text.rindex("<gpu id")])
    assert len(cluster.nodes[0].gpus) == 3
    assert any("cut off" in note for note in cluster.notes)


def links(count: int, inactive: frozenset[int] = frozenset()) -> str:
    return "".join(f"\t Link {n}: {'<inactive>' if n in inactive else '25 GB/s'}\n" for n in range(count))


def test_nvlink_status_counts_links_and_names_a_degraded_gpu(read: Read) -> None:
    text = "".join(
        f"GPU {i}: Tesla V100-SXM2-32GB (UUID: GPU-{i:08x}-0000-0000-0000-000000000000)\n"
        + links(6, frozenset({3, 5}) if i == 3 else frozenset())
        for i in range(8)
    )
    cluster = read(text)
    gpus = cluster.nodes[0].gpus
    assert [g.nvlinks for g in gpus] == [6, 6, 6, 4, 6, 6, 6, 6]
    assert gpus[3].nvlinks_down == (3, 5)
    assert any("GPU 3 has 4 of 6 NVLinks: degraded" in note for note in cluster.notes)


def test_a_gpu_whose_links_are_all_inactive_is_out_of_the_domain(read: Read) -> None:
    text = "".join(
        f"GPU {i}: NVIDIA B200 (UUID: GPU-{i:08x}-0000-0000-0000-000000000000)\n"
        + ("NVML: Unable to retrieve NVLink information as all links are inActive\n" if i == 2 else links(18))
        for i in range(8)
    )
    cluster = read(text)
    assert cluster.nvlink_domains == ((0, 1, 3, 4, 5, 6, 7),)
    assert any("GPU 2 has 0 of 18" in note for note in cluster.notes)


def test_lists_of_other_tools_name_the_gpus_of_a_matrix(read: Read) -> None:
    report = "PyTorch version: 2.5.1\nGPU models and configuration:\nGPU 0,1: NVIDIA L40S\n\nNvidia driver version: 550.54\n\n"
    node = read(report + matrix(2, lambda a, b: "NODE")).nodes[0]
    assert [g.name for g in node.gpus] == ["NVIDIA L40S"] * 2
    assert node.driver == "550.54"
    assert node.link_type == "none"


def test_a_csv_query_is_read_by_its_heading(read: Read) -> None:
    text = (
        "name, index, pci.bus_id, memory.total [MiB], compute_cap\n"
        "NVIDIA L40S, 0, 00000000:01:00.0, 46068 MiB, 8.9\nNVIDIA L40S, 1, 00000000:41:00.0, 46068 MiB, 8.9\n"
    )
    gpus = read(text).nodes[0].gpus
    assert [(g.index, g.pci, g.memory_bytes) for g in gpus] == [
        (0, "0000:01:00.0", 46068 * 2**20),
        (1, "0000:41:00.0", 46068 * 2**20),
    ]
    assert gpus[0].compute_capability == (8, 9)


TABLE = """
| NVIDIA-SMI 550.54.14    Driver Version: 550.54.14    CUDA Version: 12.4     |
|   0  {name:<28}  {mode}| 00000000:01:00.0 Off |                  Off |
| 30%   29C    P8              27W / 300W |      2MiB / 49140MiB |      0%      Default |
"""


def test_names_that_the_table_cuts_are_completed_only_when_one_product_fits(read: Read) -> None:
    whole = read(TABLE.format(name="NVIDIA RTX 6000 Ada Gene...", mode="On  ")).nodes[0]
    assert whole.gpus[0].name == "NVIDIA RTX 6000 Ada Generation"
    assert whole.gpus[0].memory_bytes == 49140 * 2**20
    assert (whole.driver, whole.cuda) == ("550.54.14", "12.4")
    assert read(TABLE.format(name="NVIDIA RTX PRO 6000 Blac...", mode="Off ")).nodes[0].gpus[0].name == UNKNOWN


@pytest.mark.parametrize(
    "rows",
    [
        "0, NVIDIA L40S, 46068 MiB\n1, NVIDIA L40S, 46068 MiB\n",
        "NVIDIA L40S, 3 MiB, 46065 MiB, 46068 MiB\nNVIDIA L40S, 46060 MiB, 8 MiB, 46068 MiB\n",
        "GPU-00000000-0001, NVIDIA L40S, 46068 MiB, 570.86.15\nGPU-00000000-0002, NVIDIA L40S, 46068 MiB, 570.86.15\n",
    ],
)
def test_a_query_without_its_heading_tells_by_its_look(read: Read, rows: str) -> None:
    node = read("$ nvidia-smi --query-gpu=… --format=csv,noheader\n" + rows).nodes[0]
    assert [(g.index, g.name, g.memory_bytes) for g in node.gpus] == [(n, "NVIDIA L40S", 46068 << 20) for n in (0, 1)]
    assert node.driver in (None, "570.86.15")


def test_sentences_with_commas_are_no_query(read: Read) -> None:
    with pytest.raises(ProbeError):
        read("We have, as you know, NVIDIA H100, and more\n")


def test_hidden_uuids_name_nobody(read: Read) -> None:
    node = read("".join(f"GPU {n}: NVIDIA L40S (UUID: GPU-<redacted>)\n" for n in range(2))).nodes[0]
    assert [(g.index, g.name, g.uuid) for g in node.gpus] == [(0, "NVIDIA L40S", None), (1, "NVIDIA L40S", None)]


def test_a_virtual_gpu_is_told_by_its_name(read: Read) -> None:
    cluster = read("GPU 0: NVIDIA L40S-48C (UUID: GPU-00000000-0001)\n")
    assert cluster.nodes[0].gpus[0].vgpu
    assert any(f.check == "gpu-shared" for f in examine(cluster))


def test_grace_gpus_without_a_fabric_to_register_with_are_no_trays(read: Read) -> None:
    alone = {"State": "N/A", "Status": "N/A"}
    board = replicate(read(smi_q("NVIDIA GB200", 4, memory="189471 MiB", fabric=alone)), 2)
    assert ([n.link_type for n in board.nodes], [len(d) for d in board.nvlink_domains]) == (["mesh"] * 2, [4, 4])
    station = replicate(read(smi_q("NVIDIA GB300", 1, memory="258000 MiB", fabric=alone)), 2)
    assert ([n.link_type for n in station.nodes], station.nvlink_domains) == (["none"] * 2, ())
    assert not any("trays" in n for n in station.notes)
