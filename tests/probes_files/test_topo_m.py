"""`nvidia-smi topo -m` of every layout: links, domains, NUMA nodes, nearest NICs, and what it cannot tell."""

from __future__ import annotations

import pytest

from parlaunch.hardware.cluster import UNKNOWN
from parlaunch_probes.files import replicate
from tests.probes_files.conftest import Read
from tests.probes_files.samples import LEGEND, NVLINKS, matrix


def switched(a: int, b: int) -> str:
    return "NV18"


def nowhere(a: int, b: int) -> str:
    return "SYS"


def test_every_gpu_with_all_its_links_to_each_other_is_an_nvswitch_board(read: Read) -> None:
    cluster = read(matrix(8, switched))
    node = cluster.nodes[0]
    assert node.link_type == "nvswitch"
    assert cluster.nvlink_domains == (tuple(range(8)),)
    assert len(node.nvlinks) == 28
    assert set(node.nvlinks) >= {(0, 1, 18), (6, 7, 18)}
    assert [g.nvlinks for g in node.gpus] == [18] * 8


def test_four_links_to_each_of_three_others_are_a_direct_mesh(read: Read) -> None:
    node = read(matrix(4, lambda a, b: "NV4")).nodes[0]
    assert node.link_type == "mesh"
    assert [g.nvlinks for g in node.gpus] == [12] * 4


def test_links_that_do_not_join_all_pairs_are_a_cube_mesh(read: Read) -> None:
    ring = {(i, (i + 1) % 8) for i in range(8)}
    cluster = read(matrix(8, lambda a, b: "NV2" if (a, b) in ring or (b, a) in ring else "SYS"))
    assert cluster.nodes[0].link_type == "cube_mesh"
    assert cluster.nvlink_domains == (tuple(range(8)),)


def test_bridges_are_pairs_wherever_the_partner_sits(read: Read) -> None:
    cluster = read(matrix(4, lambda a, b: "NV12" if b - a == 2 else "SYS"))
    assert cluster.nodes[0].link_type == "pairs"
    assert cluster.nvlink_domains == ((0, 2), (1, 3))


def test_two_of_a_boards_eight_gpus_still_sit_on_an_nvswitch(read: Read) -> None:
    assert read(matrix(2, switched)).nodes[0].link_type == "nvswitch"


def test_no_link_at_all_is_known_to_be_none(read: Read) -> None:
    cluster = read(matrix(4, nowhere))
    assert cluster.nodes[0].link_type == "none"
    assert cluster.nvlink_domains == ()
    assert [g.nvlinks for g in cluster.nodes[0].gpus] == [0] * 4


def test_the_pci_only_matrix_proves_no_absence_of_nvlink(read: Read) -> None:
    node = read(matrix(8, nowhere, legend=LEGEND)).nodes[0]
    assert node.link_type is None
    assert node.gpus[0].nvlinks is None
    asked = read("user@host:~$ nvidia-smi topo -mp\n" + matrix(8, nowhere))
    assert asked.nodes[0].link_type is None
    assert any("topo -mp" in note for note in asked.notes)


def test_drivers_from_before_nvlink_have_a_legend_of_their_own(read: Read) -> None:
    old = "\nLegend:\n\n  X   = Self\n  SOC = Path over a socket link\n  PHB = Path over a host bridge\n"
    text = matrix(4, lambda a, b: "SOC" if (a < 2) != (b < 2) else "PHB", headings=("CPU Affinity",), legend=old,
                  affinity=lambda i: ("0-11" if i < 2 else "12-23",))  # fmt: skip
    node = read(text).nodes[0]
    assert node.link_type == "none"
    assert (0, 2, "SYS") in node.gpu_distances
    assert [g.numa for g in node.gpus] == [0, 0, 1, 1]


def test_a_gpu_off_the_fabric_stands_alone_and_is_named(read: Read) -> None:
    cluster = read(matrix(8, lambda a, b: "NODE" if 2 in (a, b) else "NV18"))
    assert cluster.nvlink_domains == ((0, 1, 3, 4, 5, 6, 7),)
    assert cluster.nodes[0].gpus[2].nvlink_domain is None
    assert any("GPU 2 has no NVLink" in note for note in cluster.notes)


def test_fewer_links_between_some_pairs_are_told(read: Read) -> None:
    cluster = read(matrix(8, lambda a, b: "NV17" if 5 in (a, b) else "NV18"))
    assert cluster.nodes[0].link_type == "nvswitch"
    assert any("links are down" in note for note in cluster.notes)


def test_rails_are_the_nics_behind_a_switch_with_a_gpu(read: Read) -> None:
    near = {f"NIC{n}": ["PXB" if n == g else "NODE" for g in range(4)] for n in range(4)}
    storage = {"NIC4": ["NODE"] * 4}
    names = {f"NIC{n}": f"mlx5_{n + 2}" for n in range(5)}
    node = read(matrix(4, switched, nics=near | storage, names=names)).nodes[0]
    assert [n.name for n in node.nics if n.rail] == ["mlx5_2", "mlx5_3", "mlx5_4", "mlx5_5"]
    out = next(n for n in node.nics if not n.rail)
    assert out.name == "mlx5_6"
    assert out.why_not is not None
    assert node.nics[1].distances == ((0, "NODE"), (1, "PXB"), (2, "NODE"), (3, "NODE"))
    assert node.nics[0].kind == UNKNOWN


def test_a_bond_is_no_rail_and_ethernet(read: Read) -> None:
    nics = {"NIC0": ["NODE", "NODE"], "NIC1": ["NODE", "NODE"]}
    node = read(matrix(2, nowhere, nics=nics, names={"NIC0": "mlx5_0", "NIC1": "mlx5_bond_0"})).nodes[0]
    assert [n.rail for n in node.nics] == [True, False]
    assert node.nics[1].kind == "roce"
    assert "bond" in (node.nics[1].why_not or "")


@pytest.mark.parametrize(
    ("numa", "own", "expected"),
    [("1", "N/A", 1), ("0-3", "N/A", None), ("0,5-11", "4", 0), ("", "N/A", None), ("N/A", "N/A", None)],
)
def test_the_numa_column_is_a_node_only_where_it_can_be(read: Read, numa: str, own: str, expected: int | None) -> None:
    heads = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")
    text = matrix(2, lambda a, b: "NV6", headings=heads, affinity=lambda i: ("0-71", numa, "", own))
    assert [g.numa for g in read(text).nodes[0].gpus] == [expected] * 2


def test_a_blank_cpu_column_shifts_nothing(read: Read) -> None:
    heads = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")
    text = matrix(2, nowhere, headings=heads, affinity=lambda i: ("0" if i == 0 else "", str(i), "", "N/A"))
    for spelled in (text, text.expandtabs(8)):
        gpus = read(spelled).nodes[0].gpus
        assert [g.numa for g in gpus] == [0, 1]
        assert [g.cpus for g in gpus] == [(0,), None]


def test_grace_gpus_with_all_links_to_each_other_belong_to_a_rack(read: Read) -> None:
    heads = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")

    def sockets(i: int) -> tuple[str, ...]:
        return (
            ("N/A", "N/A", "N/A") if i == 3 else (f"{i // 2 * 72}-{i // 2 * 72 + 71}", f"{i // 2},4-9", str(4 + 8 * i))
        )

    node = read(matrix(4, switched, headings=heads, affinity=sockets)).nodes[0]
    assert node.link_type == "nvswitch_mnnvl"
    assert [g.numa for g in node.gpus] == [0, 0, 1, 1]
    assert [g.numa_memory for g in node.gpus] == [4, 12, 20, None]


def test_grace_gpus_whose_links_are_shared_out_have_no_switch_and_no_rack(read: Read) -> None:
    names = "".join(f"GPU {n}: NVIDIA GB200 (UUID: GPU-00000000-{n:04}-aaaa)\n" for n in range(4))
    board = read(names + matrix(4, lambda a, b: "NV6"))
    assert board.nodes[0].link_type == "mesh"
    assert [len(d) for d in replicate(board, 3).nvlink_domains] == [4, 4, 4]
    assert [len(d) for d in replicate(read(names + matrix(4, switched)), 3).nvlink_domains] == [12]


def test_azures_names_tell_rails_from_the_front_end(read: Read) -> None:
    nics = {f"NIC{n}": ["SYS"] * 8 for n in range(9)}
    names = {f"NIC{n}": f"mlx5_ib{n}" for n in range(8)} | {"NIC8": "mlx5_an0"}
    node = read(matrix(8, switched, nics=nics, names=names)).nodes[0]
    assert [(n.name, n.kind) for n in node.nics if n.rail] == [(f"mlx5_ib{n}", "infiniband") for n in range(8)]


def test_cells_that_grew_together_and_colours_and_line_ends_do_no_harm(read: Read) -> None:
    nics = {f"NIC{n}": ["PXB", "NODE"] for n in range(3)}
    text = matrix(2, switched, nics=nics)
    expected = read(text)
    grown = text.replace("PXB\tPXB", "PXBPXB").replace("NODE\tNODE", "NODENODE")
    header, rest = text.split("\n", 1)
    coloured = f"\x1b[4m{header}\x1b[0m\n{rest}"
    for spelled in (
        grown,
        coloured,
        text.replace("\n", "\r\n"),
        "\ufeff" + text,
        "[user@node ~]$ nvidia-smi topo -m\n" + text,
    ):
        found = read(spelled)
        assert found.nodes[0].nvlinks == expected.nodes[0].nvlinks
        assert [n.distances for n in found.nodes[0].nics] == [n.distances for n in expected.nodes[0].nics]
    assert read(text.encode("utf-16")).nodes[0].nvlinks == expected.nodes[0].nvlinks


def test_rows_that_are_cut_off_are_filled_from_the_other_side(read: Read) -> None:
    text = matrix(8, switched, nics={"NIC0": ["PIX"] * 8}, rows_of_nics=False)
    cut = "\n".join(text.split("\n")[:6])[:-30]
    cluster = read(cut)
    assert len(cluster.nodes[0].gpus) == 8
    assert cluster.nodes[0].link_type == "nvswitch"
    assert any("cut off" in note for note in cluster.notes)


def test_the_model_is_unknown_until_the_file_says_it(read: Read) -> None:
    text = matrix(2, lambda a, b: "NV12")
    assert read(text).nodes[0].gpus[0].name == UNKNOWN
    listed = "".join(
        f"GPU {i}: NVIDIA A100-SXM4-80GB (UUID: GPU-{i:08x}-0000-0000-0000-000000000000)\n" for i in range(2)
    )
    both = read(listed + "\n" + text).nodes[0]
    assert [g.name for g in both.gpus] == ["NVIDIA A100-SXM4-80GB"] * 2
    assert both.link_type == "nvswitch", "an SXM pair with all twelve links to each other sits behind switches"
    assert both.nvlinks == ((0, 1, 12),)


def test_one_gpu_alone_is_read(read: Read) -> None:
    node = read(matrix(1, nowhere, affinity=lambda i: ("0-31,64-95", "0"))).nodes[0]
    assert len(node.gpus) == 1
    assert node.gpus[0].numa == 0


def test_the_peer_to_peer_matrix_counts_gpus_and_tells_no_paths(read: Read) -> None:
    cluster = read("\tGPU0\tGPU1\nGPU0\tX\tOK\nGPU1\tOK\tX\n\nLegend:\n\n  X    = Self\n  OK   = Status Ok\n")
    assert len(cluster.nodes[0].gpus) == 2
    assert cluster.nodes[0].link_type is None
    assert any("no paths" in note for note in cluster.notes)


def test_the_nvlink_legend_alone_is_enough_to_know(read: Read) -> None:
    assert read(matrix(2, nowhere, legend="\nLegend:\n" + NVLINKS)).nodes[0].link_type == "none"


def with_nics(text: str, beside: dict[str, set[str]]) -> str:
    """The matrix with PIX between NICs that are beside each other."""
    lines = text.split("\n")
    header = lines[0].split("\t")
    for at, line in enumerate(lines):
        cells = line.split("\t")
        for other in beside.get(cells[0], set()) - {cells[0]}:
            cells[header.index(other)] = "PIX"
            lines[at] = "\t".join(cells)
    return "\n".join(lines)


def test_functions_of_a_bonded_card_for_guests_are_no_rails(read: Read) -> None:
    groups = {f"NIC{20 + n}": {f"NIC{8 * n + k}" for k in range(8)} | {f"NIC{20 + n}"} for n in range(2)}
    groups |= {nic: group for group in list(groups.values()) for nic in group}
    nics = {
        nic: ["PIX" if nic in groups[f"NIC{20 + g}"] else "SYS" for g in range(2)]
        for nic in (*(f"NIC{n}" for n in range(16)), "NIC20", "NIC21")
    }
    names = {f"NIC{n}": f"mlx5_{n}" for n in range(16)} | {f"NIC{20 + n}": f"mlx5_bond_{n}" for n in range(2)}
    node = read(with_nics(matrix(2, switched, nics=nics, names=names), groups)).nodes[0]
    assert [n.name for n in node.nics if n.rail] == ["mlx5_bond_0", "mlx5_bond_1"]
    assert node.nics[0].why_not == "a virtual function of the card mlx5_bond_0, which is here itself"


def test_on_grace_a_card_of_two_ports_beside_cards_of_one_is_no_rail(read: Read) -> None:
    heads = ("CPU Affinity", "NUMA Affinity", "GPU NUMA ID")
    nics = {f"NIC{n}": ["SYS"] * 4 for n in range(6)}
    text = matrix(
        4, switched, headings=heads, nics=nics, names={f"NIC{n}": f"mlx5_{n}" for n in range(6)},
        affinity=lambda i: (f"{i // 2 * 72}-{i // 2 * 72 + 71}", f"{i // 2},4-9", str(4 + 8 * i)),
    )  # fmt: skip
    pair = {"NIC2": {"NIC2", "NIC3"}, "NIC3": {"NIC2", "NIC3"}}
    node = read(with_nics(text, pair)).nodes[0]
    assert [n.name for n in node.nics if n.rail] == ["mlx5_0", "mlx5_1", "mlx5_4", "mlx5_5"]
    assert len([n for n in read(text).nodes[0].nics if n.rail]) == 6
