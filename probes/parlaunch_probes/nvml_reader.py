"""The questions put to NVML, and the program that puts them: `python -c "... main()"` prints one JSON line an answer.

It runs in a process of its own, because a call into a sick driver can hang in the kernel, where neither a thread nor
a signal ends it. Every question is optional: an answer, or the name of the error that came instead.
"""

from __future__ import annotations

import ctypes
import json
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` and `dataclasses` would cost the reader 10 ms
    from collections.abc import Callable
    from typing import Any

# Errors after which a GPU will not answer anything else: asking on costs seconds each.
FATAL = frozenset({"GPU_IS_LOST", "RESET_REQUIRED", "GPU_NOT_FOUND", "INSUFFICIENT_POWER", "IRQ_ISSUE"})
P2P = {
    0: "OK",
    1: "CHIPSET_NOT_SUPPORTED",
    2: "GPU_NOT_SUPPORTED",
    3: "IOH_TOPOLOGY_NOT_SUPPORTED",
    4: "DISABLED_BY_REGKEY",
    5: "NOT_SUPPORTED",
}
LEVELS = {0: "INTERNAL", 10: "PIX", 20: "PXB", 30: "PHB", 40: "NODE", 50: "SYS"}
FIELDS = {
    91: "nvlink_count",
    38: "nvlink_crc_flit",
    45: "nvlink_crc_data",
    52: "nvlink_replay",
    59: "nvlink_recovery",
    230: "recovery_action",
}
WORDS = 32  # 64-bit words of a CPU or NUMA mask: 2048 of them


class FabricV2(ctypes.Structure):
    """nvmlGpuFabricInfo_v2_t; the bindings' own was wrong in several releases."""

    _fields_ = (
        ("version", ctypes.c_uint),
        ("uuid", ctypes.c_ubyte * 16),
        ("status", ctypes.c_int),
        ("clique", ctypes.c_uint),
        ("state", ctypes.c_ubyte),
        ("mask", ctypes.c_uint),
    )
    VERSION = 0x02000024


class FabricV3(ctypes.Structure):
    """nvmlGpuFabricInfo_v3_t: with a summary of the health."""

    _fields_ = (*FabricV2._fields_, ("summary", ctypes.c_ubyte))
    VERSION = 0x03000028


def _bits(words: Any) -> list[int]:
    return [64 * i + bit for i, word in enumerate(words) for bit in range(64) if word >> bit & 1]


def _text(answer: Any) -> str:
    return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else str(answer)


def _processes(answer: Any) -> list[list[int | None]]:
    return [[int(p.pid), None if p.usedGpuMemory is None else int(p.usedGpuMemory)] for p in answer]


# One call about one GPU each: the key of its answer, the binding's function, more arguments, how to make it JSON.
QUESTIONS: tuple[tuple[str, str, tuple[int, ...], Callable[[Any], Any]], ...] = (
    ("name", "nvmlDeviceGetName", (), _text),
    ("uuid", "nvmlDeviceGetUUID", (), _text),
    ("pci", "nvmlDeviceGetPciInfo", (), lambda pci: _text(pci.busId)),
    ("minor", "nvmlDeviceGetMinorNumber", (), int),
    ("serial", "nvmlDeviceGetSerial", (), _text),
    ("vbios", "nvmlDeviceGetVbiosVersion", (), _text),
    ("capability", "nvmlDeviceGetCudaComputeCapability", (), list),
    ("cores", "nvmlDeviceGetNumGpuCores", (), int),
    ("bus_width", "nvmlDeviceGetMemoryBusWidth", (), int),
    ("virtualization", "nvmlDeviceGetVirtualizationMode", (), int),
    ("numa", "nvmlDeviceGetMemoryAffinity", (WORDS, 0), _bits),
    ("cpus", "nvmlDeviceGetCpuAffinity", (WORDS,), _bits),
    ("numa_memory", "nvmlDeviceGetNumaNodeId", (), int),
    ("processes", "nvmlDeviceGetComputeRunningProcesses_v3", (), _processes),
    ("clock_sm", "nvmlDeviceGetClockInfo", (1,), int),
    ("clock_memory", "nvmlDeviceGetClockInfo", (2,), int),
    ("clock_sm_max", "nvmlDeviceGetMaxClockInfo", (1,), int),
    ("clock_memory_max", "nvmlDeviceGetMaxClockInfo", (2,), int),
    ("clock_sm_app", "nvmlDeviceGetApplicationsClock", (1,), int),
    ("power", "nvmlDeviceGetPowerUsage", (), int),
    ("power_limit", "nvmlDeviceGetEnforcedPowerLimit", (), int),
    ("power_default", "nvmlDeviceGetPowerManagementDefaultLimit", (), int),
    ("power_range", "nvmlDeviceGetPowerManagementLimitConstraints", (), list),
    ("temperature", "nvmlDeviceGetTemperature", (0,), int),
    # The old name: the new one (...ClocksEventReasons) is younger than drivers in use, this one is in all of them.
    ("throttle", "nvmlDeviceGetCurrentClocksThrottleReasons", (), int),
    ("pstate", "nvmlDeviceGetPerformanceState", (), int),
    ("persistence", "nvmlDeviceGetPersistenceMode", (), int),
    ("compute_mode", "nvmlDeviceGetComputeMode", (), int),
    ("ecc", "nvmlDeviceGetEccMode", (), list),
    ("ecc_uncorrected", "nvmlDeviceGetTotalEccErrors", (1, 0), int),
    ("ecc_sram_uncorrected", "nvmlDeviceGetMemoryErrorCounter", (1, 0, 7), int),
    ("remapped_rows", "nvmlDeviceGetRemappedRows", (), list),
    ("retired_pending", "nvmlDeviceGetRetiredPagesPendingStatus", (), int),
    ("mig", "nvmlDeviceGetMigMode", (), list),
    ("pcie_gen", "nvmlDeviceGetCurrPcieLinkGeneration", (), int),
    ("pcie_width", "nvmlDeviceGetCurrPcieLinkWidth", (), int),
    ("pcie_gen_max", "nvmlDeviceGetMaxPcieLinkGeneration", (), int),
    ("pcie_width_max", "nvmlDeviceGetMaxPcieLinkWidth", (), int),
)


class Lost(Exception):
    """This GPU answers nothing any more."""


class Reader:
    """Asks through an imported pynvml and hands every finished piece to `say`."""

    def __init__(self, pynvml: Any, say: Callable[[dict[str, Any]], None], skip: frozenset[int] = frozenset()) -> None:
        self.nv = pynvml
        self.say = say
        self.skip = skip  # GPUs that made an earlier attempt hang
        self.names = {v: k[11:] for k, v in vars(pynvml).items() if k.startswith("NVML_ERROR_")}

    def why(self, error: Exception) -> str:
        """The name of an NVML error; other exceptions come from the bindings and keep their own."""
        value = getattr(error, "value", None)
        if isinstance(value, int):
            return str(self.names.get(value, f"error {value}"))
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__

    def call(self, function: str, *args: Any) -> Any:
        ask = getattr(self.nv, function, None)
        if ask is None:
            raise LookupError(f"these bindings have no {function}")
        return ask(*args)

    def read(self) -> None:
        """Everything. Errors of the library itself end it, those of one GPU do not."""
        self.say({"at": "nvmlInit"})
        try:
            self.call("nvmlInit")
        except Exception as error:  # an OSError, UnicodeDecodeError or ctypes' own as well as NVML's
            self.say({"error": self.why(error)})
            return
        try:
            self.system()
            handles = self.gpus()
            self.pairs(handles)
            self.say({"done": True})
        finally:
            self.nv.nvmlShutdown()

    def system(self) -> None:
        answers: dict[str, Any] = {}
        reasons: dict[str, str] = {}
        for key, function in (
            ("driver", "nvmlSystemGetDriverVersion"),
            ("nvml", "nvmlSystemGetNVMLVersion"),
            ("cuda", "nvmlSystemGetCudaDriverVersion"),
            ("count", "nvmlDeviceGetCount"),
        ):
            try:
                answer = self.call(function)
                answers[key] = answer if isinstance(answer, int) else _text(answer)
            except Exception as error:
                reasons[key] = self.why(error)
        try:
            answers["confidential"] = int(self.call("nvmlSystemGetConfComputeState").ccFeature)
        except Exception as error:
            reasons["confidential"] = self.why(error)
        if answers.get("confidential") == 1:
            try:
                settings = self.nv.c_nvmlSystemConfComputeSettings_v1_t()
                # These bindings hand NVML's code on as it is.
                if (code := self.call("nvmlSystemGetConfComputeSettings", ctypes.byref(settings))) != 0:
                    reasons["confidential_peers"] = f"code {code}"
                else:
                    answers["confidential_peers"] = int(settings.multiGpuMode)
            except Exception as error:
                reasons["confidential_peers"] = self.why(error)
        self.count = answers.get("count", 0)
        self.say({"system": {"answers": answers, "reasons": reasons}})

    def gpus(self) -> dict[int, Any]:
        handles: dict[int, Any] = {}
        for index in range(self.count):
            if index in self.skip:
                continue
            self.say({"at": f"GPU {index}"})
            gpu: dict[str, Any] = {"index": index, "answers": {}, "reasons": {}}
            try:
                handle = self.call("nvmlDeviceGetHandleByIndex", index)
                self.gpu(handle, gpu["answers"], gpu["reasons"])
                handles[index] = handle
            except Lost as lost:
                gpu["lost"] = str(lost)
            except Exception as error:
                gpu["lost"] = self.why(error)
            self.say({"gpu": gpu})
        return handles

    def gpu(self, handle: Any, answers: dict[str, Any], reasons: dict[str, str]) -> None:
        def keep(key: str, ask: Callable[[], Any]) -> None:
            try:
                answers[key] = ask()
            except Exception as error:
                reasons[key] = self.why(error)
                if reasons[key] in FATAL:
                    raise Lost(reasons[key]) from error

        for key, function, args, make in QUESTIONS:
            keep(key, lambda f=function, a=args, m=make: m(self.call(f, handle, *a)))  # type: ignore[misc]
        keep("memory", lambda: self.memory(handle))
        keep("fields", lambda: self.fields(handle))
        keep("links", lambda: self.links(handle, answers.get("fields", {}).get("nvlink_count")))
        keep("fabric", lambda: self.fabric(handle))
        if (answers.get("mig") or [0])[0] == 1:
            keep("mig_devices", lambda: self.mig_devices(handle))

    def memory(self, handle: Any) -> dict[str, int]:
        """Version 2 knows what the driver keeps for itself; version 1 counts that as used."""
        try:
            got = self.call("nvmlDeviceGetMemoryInfo", handle, self.nv.nvmlMemory_v2)
            return {"total": int(got.total), "reserved": int(got.reserved), "used": int(got.used)}
        except Exception as error:
            if self.why(error) in FATAL:
                raise
            got = self.call("nvmlDeviceGetMemoryInfo", handle)
            return {"total": int(got.total), "used": int(got.used)}

    def fields(self, handle: Any) -> dict[str, int]:
        got = self.call("nvmlDeviceGetFieldValues", handle, list(FIELDS))
        # The value is a union: a count of 32 bits leaves the upper half of `ullVal` as the driver had it.
        wide = {"nvlink_crc_flit", "nvlink_crc_data", "nvlink_replay", "nvlink_recovery"}
        return {
            name: int(value.value.ullVal if name in wide and value.valueType in (2, 3) else value.value.uiVal)
            for value, name in zip(got, FIELDS.values(), strict=True)
            if value.nvmlReturn == 0
        }

    def links(self, handle: Any, count: int | None) -> list[dict[str, Any]]:
        """Every NVLink that this GPU has: its state and what is at its far end."""
        links: list[dict[str, Any]] = []
        for number in range(count if count is not None else self.nv.NVML_NVLINK_MAX_LINKS):
            link: dict[str, Any] = {"link": number}
            try:
                link["up"] = self.call("nvmlDeviceGetNvLinkState", handle, number) == 1
            except Exception as error:
                # NOT_SUPPORTED: no NVLink at all; INVALID_ARGUMENT: past the last link, whatever MAX_LINKS says.
                if self.why(error) in FATAL or not (links or self.why(error) in ("NOT_SUPPORTED", "INVALID_ARGUMENT")):
                    raise
                if count is None or self.why(error) in ("NOT_SUPPORTED", "INVALID_ARGUMENT"):
                    break
                link["up"] = None
            if link["up"]:
                for key, function, make in (
                    ("type", "nvmlDeviceGetNvLinkRemoteDeviceType", int),
                    ("pci", "nvmlDeviceGetNvLinkRemotePciInfo", lambda pci: _text(pci.busId)),
                    ("version", "nvmlDeviceGetNvLinkVersion", int),
                ):
                    try:
                        link[key] = make(self.call(function, handle, number))
                    except Exception as error:
                        if self.why(error) in FATAL:
                            raise
                        link[key] = None
            links.append(link)
        return links

    def fabric(self, handle: Any) -> dict[str, Any]:
        refused: Exception | None = None
        for kind in (FabricV3, FabricV2):
            info = kind(version=kind.VERSION)
            try:
                self.call("nvmlDeviceGetGpuFabricInfoV", handle, ctypes.byref(info))
            except Exception as error:
                if self.why(error) != "ARGUMENT_VERSION_MISMATCH":
                    raise
                refused = error  # the driver is older than this version of the struct
                continue
            return {
                "state": int(info.state),
                "status": int(info.status),
                "clique": int(info.clique),
                "uuid": bytes(info.uuid).hex(),
                "mask": int(info.mask),
                "summary": int(info.summary) if isinstance(info, FabricV3) else None,
            }
        raise refused or LookupError("no fabric")

    def mig_devices(self, handle: Any) -> list[dict[str, Any]]:
        found = []
        for number in range(self.call("nvmlDeviceGetMaxMigDeviceCount", handle)):
            try:
                device = self.call("nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            except Exception as error:
                if self.why(error) in ("NOT_FOUND", "INVALID_ARGUMENT"):
                    continue  # holes are normal
                raise
            one: dict[str, Any] = {}
            for key, ask in (
                ("uuid", lambda d: _text(self.call("nvmlDeviceGetUUID", d))),
                ("name", lambda d: _text(self.call("nvmlDeviceGetName", d))),
                ("gi", lambda d: int(self.call("nvmlDeviceGetGpuInstanceId", d))),
                ("ci", lambda d: int(self.call("nvmlDeviceGetComputeInstanceId", d))),
                ("memory", lambda d: int(self.call("nvmlDeviceGetMemoryInfo", d).total)),
            ):
                try:
                    one[key] = ask(device)
                except Exception:
                    one[key] = None
            found.append(one)
        return found

    def pairs(self, handles: dict[int, Any]) -> None:
        """For every two GPUs: the PCI level that they share, and whether peer reads and NVLink work."""
        self.say({"at": "pairs of GPUs"})
        found: list[list[Any]] = []
        gone: set[int] = set()
        indexes = sorted(handles)
        for at, a in enumerate(indexes):
            for b in indexes[at + 1 :]:
                if a in gone or b in gone:
                    continue
                row: list[Any] = [a, b]
                # 0 and 2, not the bindings' names: NVML_P2P_CAPS_INDEX_READ is a tuple there.
                for function, more, words in (
                    ("nvmlDeviceGetTopologyCommonAncestor", (), LEVELS),
                    ("nvmlDeviceGetP2PStatus", (0,), P2P),
                    ("nvmlDeviceGetP2PStatus", (2,), P2P),
                ):
                    try:
                        row.append(words.get(int(self.call(function, handles[a], handles[b], *more)), "UNKNOWN"))
                    except Exception as error:
                        row.append(None)
                        if self.why(error) in FATAL:
                            gone |= self.dead(handles, a, b)
                found.append(row)
        self.say({"pairs": found, "lost": {str(g): "GPU_IS_LOST" for g in gone}})

    def dead(self, handles: dict[int, Any], *indexes: int) -> set[int]:
        """Which of the two does not answer alone either."""
        silent = set()
        for index in indexes:
            try:
                self.call("nvmlDeviceGetUUID", handles[index])
            except Exception as error:
                if self.why(error) in FATAL:
                    silent.add(index)
        return silent


def main(skip: str = "") -> None:
    """Read all that NVML says and print it, a JSON object a line, as it comes."""

    def say(piece: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(piece) + "\n")
        sys.stdout.flush()

    try:
        import pynvml
    except Exception as error:  # a broken install may raise anything
        say({"error": f"nvidia-ml-py cannot be imported: {type(error).__name__}: {error}"})
        return
    if not hasattr(pynvml, "nvmlDeviceGetGpuFabricInfoV"):
        say({"old_bindings": str(getattr(pynvml, "__file__", "pynvml"))})
    Reader(pynvml, say, frozenset(int(n) for n in skip.split(",") if n)).read()
