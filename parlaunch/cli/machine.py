"""`parlaunch probe` and `parlaunch doctor`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from parlaunch.cli.inputs import choice, hardware_of, note
from parlaunch.machine import cluster_to_json


def coloured() -> bool:
    """Colour only on a terminal, and never against NO_COLOR."""
    import os

    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def columns() -> int:
    """Width of the terminal; 100 where there is none."""
    import shutil

    return shutil.get_terminal_size((100, 40)).columns if sys.stdout.isatty() else 100


def probe(hardware: str, *, gpu: str | None = None, format: str, save: Path | None, redact: bool) -> None:
    """Print what is here, or save it as a capture."""
    choice("--format", format, ("text", "json"))
    if save is None and not redact:
        cluster = hardware_of(hardware, gpu=gpu)
    else:
        from parlaunch_probes import capture

        taken = capture.take() if hardware == "auto" else capture.Capture(hardware_of(hardware, gpu=gpu))
        if save is not None:
            note(f"wrote {capture.save(save, taken, redact=redact)}")
        cluster = capture.redacted(taken).cluster if redact else taken.cluster
    if format == "json":
        print(
            json.dumps(
                {"schema": "parlaunch.probe/1", "hardware": cluster_to_json(cluster), "notes": list(cluster.notes)},
                indent=2,
            )
        )
        return
    from parlaunch.probe_view import probe_to_text

    print(probe_to_text(cluster, colour=coloured(), width=columns()))


def doctor(hardware: str, *, gpu: str | None = None, format: str) -> None:
    """Print what is wrong here; exit code 1 on a FAIL."""
    from parlaunch.doctor import examine, findings_to_json, findings_to_text

    choice("--format", format, ("text", "json"))
    cluster = hardware_of(hardware, gpu=gpu)
    findings = examine(cluster)
    if format == "json":
        print(json.dumps(findings_to_json(findings), indent=2))
    else:
        print(findings_to_text(findings, colour=coloured(), width=columns()))
    if any(f.severity == "FAIL" for f in findings):
        sys.exit(1)
