"""Lost GPUs, MIG, cut names and the heads of newer drivers, in every form that nvidia-smi prints them."""

from __future__ import annotations

import pytest

from parlaunch.doctor.preflight import examine
from parlaunch.hardware.cluster import UNKNOWN, Cluster
from parlaunch.hardware.datasheet import product
from parlaunch_probes.files import read_hardware
from tests.probes_files.conftest import Read
from tests.probes_files.samples import matrix

HEAD = "| NVIDIA-SMI {v}              {driver} Version: {v}     CUDA {umd}Version: 13.3     |\n"
ROW = """|   {i}  {name}                On  |   00000000:{bus}:00.0 Off |                    {ecc} |
| N/A   34C    P0            100W /  700W |        80MiB /  {memory}MiB |      0%      Default |
|                                         |                        |              {mig} |
+-----------------------------------------+------------------------+----------------------+
"""


def row(
    i: int, bus: str, name: str = "NVIDIA H100 80GB HBM3", memory: int = 81559, mig: str = "Disabled", ecc: str = "0"
) -> str:
    return ROW.format(i=i, bus=bus, name=name, memory=memory, mig=mig, ecc=ecc)


LOST = {
    "above a table": "Unable to determine the device handle for GPU1: 0000:34:00.0: Unknown Error\n" + row(0, "16") + row(2, "AC"),
    "without a number": "Unable to determine the device handle for GPU 0000:34:00.0: GPU is lost.  Reboot the system to recover this GPU\n"
    + row(0, "16") + row(2, "AC"),
    "a name of errors": row(0, "16") + row(1, "34", name="ERR!", ecc="ERR!") + row(2, "AC"),
    "a row of errors": row(0, "16") + row(1, "34").replace("80MiB /  81559MiB", "GPU is lost       ") + row(2, "AC"),
    "-L": "GPU 0: NVIDIA H200 (UUID: GPU-00000000-1111)\nGPU 1: NVIDIA H200 (UUID: Unknown Error)\n"
    "GPU 2: NVIDIA H200 (UUID: GPU-00000000-2222)\n",
    "-q": "\n".join(
        f"GPU 00000000:{bus}:00.0\n    Product Name : {name}\n    GPU UUID : {name}\n    FB Memory Usage\n        Total : {total}"
        for bus, name, total in (("16", "NVIDIA H200", "143771 MiB"), ("34", "Unknown Error", "GPU is lost"), ("AC", "NVIDIA H200", "143771 MiB"))
    ),
    "csv": "index, name, pci.bus_id, memory.total [MiB]\n0, NVIDIA H200, 00000000:16:00.0, 143771 MiB\n"
    "1, [GPU is lost], 00000000:34:00.0, [GPU is lost]\n2, NVIDIA H200, 00000000:AC:00.0, 143771 MiB\n",
    "xml": "<nvidia_smi_log><attached_gpus>3</attached_gpus>"
    + "".join(
        f'<gpu id="00000000:{bus}:00.0"><product_name>{name}</product_name><fb_memory_usage><total>{total}</total></fb_memory_usage></gpu>'
        for bus, name, total in (("16", "NVIDIA H200", "143771 MiB"), ("34", "NVIDIA H200", "GPU requires reset"), ("AC", "NVIDIA H200", "143771 MiB"))
    )
    + "</nvidia_smi_log>",
}  # fmt: skip


@pytest.mark.parametrize("how", LOST)
def test_a_lost_gpu_is_named_and_the_others_are_read(read: Read, how: str) -> None:
    cluster = read(LOST[how])
    node = cluster.nodes[0]
    listed = how == "-L"  # which has no addresses
    assert [g.pci for g in node.gpus] == ([None, None] if listed else ["0000:16:00.0", "0000:ac:00.0"])
    assert [(g.index, g.pci) for g in node.gpus_unusable] == [(1, None if listed else "0000:34:00.0")]
    assert [f.severity for f in examine(cluster) if f.check == "gpu-lost"] == ["FAIL"]


def test_mig_is_seen_in_the_table(read: Read) -> None:
    slices = "| MIG devices:                                                                            |\n" + "".join(
        f"|  {gpu}    {gi}   0   0  |              64MiB / 40448MiB    | 60      0 |  3   0    3    0    3 |\n"
        for gpu in (0, 1)
        for gi in (1, 2)
    )
    table = row(0, "1B", mig="Enabled", ecc="On") + row(1, "43", mig="Enabled*", ecc="On") + slices
    cluster = read(table)
    assert [(g.mig, len(g.mig_devices)) for g in cluster.nodes[0].gpus] == [(True, 2), (True, 2)]
    assert cluster.nodes[0].gpus[0].mig_devices[0] == ("gi 1 ci 0", "60 SMs", 40448 << 20)
    assert cluster.nvlink_domains == ()
    assert "mig" in {f.check for f in examine(cluster) if f.severity == "FAIL"}


def test_mig_that_is_off_stays_off(read: Read) -> None:
    assert [g.mig for g in read(row(0, "1B") + row(1, "43")).nodes[0].gpus] == [False, False]


@pytest.mark.parametrize(("driver", "umd"), [("Driver", ""), ("KMD", "UMD ")])
def test_driver_and_cuda_are_read_under_their_old_and_new_names(read: Read, driver: str, umd: str) -> None:
    table = HEAD.format(v="610.57.04", driver=driver, umd=umd) + row(0, "1B", "NVIDIA B200", 183359)
    quiet = f"{driver} Version : 610.57.04\nCUDA {umd}Version : 13.3\nAttached GPUs : 1\nGPU 00000000:1B:00.0\n    Product Name : NVIDIA B200\n"
    for text in (table, quiet):
        node = read(text).nodes[0]
        assert (node.driver, node.cuda) == ("610.57.04", "13.3")


def test_a_cut_name_is_completed_by_its_memory(read: Read) -> None:
    names = {m: read(row(0, "07", "NVIDIA A100-SXM...", m)).nodes[0].gpus[0].name for m in (40960, 81920)}
    assert names == {40960: "NVIDIA A100-SXM4-40GB", 81920: "NVIDIA A100-SXM4-80GB"}


def test_a_cut_name_that_fits_several_products_asks_which(read: Read) -> None:
    cluster = read(row(0, "07", "NVIDIA H200...", 143771))
    assert cluster.nodes[0].gpus[0].name == UNKNOWN
    assert any("NVIDIA H200, NVIDIA H200 NVL" in n and "say which with --gpu" in n for n in cluster.notes)


def test_jetson_writes_its_uuid_without_a_prefix(read: Read) -> None:
    gpu = read("GPU 0: NVIDIA Thor  (UUID: 54d0709b-558d-5a59-9c65-000000000001)\n").nodes[0].gpus[0]
    assert (gpu.name, gpu.uuid) == ("NVIDIA Thor", "54d0709b-558d-5a59-9c65-000000000001")


def named(tmp: object, text: str, name: str) -> Cluster:
    path = tmp / "m.txt"  # type: ignore[operator]
    path.write_text(text)
    return read_hardware(path, product(name))


def test_the_product_is_known_before_boards_are_concluded(tmp_path: object) -> None:
    pairs = matrix(4, lambda a, b: "NV18" if a // 2 == b // 2 else "SYS")
    cluster = named(tmp_path, pairs, "H200 NVL")
    assert (cluster.nodes[0].link_type, cluster.nvlink_domains) == ("pairs", ((0, 1), (2, 3)))
    assert not [f for f in examine(cluster) if f.severity == "FAIL"]
    tray = named(tmp_path, matrix(4, lambda a, b: "NV18"), "GB200")
    assert tray.nodes[0].link_type == "nvswitch_mnnvl"
