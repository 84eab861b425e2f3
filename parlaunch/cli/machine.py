"""`parlaunch probe` and `parlaunch machines`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from parlaunch.cli.inputs import choice, hardware_of, note, with_software
from parlaunch.cli.terminal import coloured, columns
from parlaunch.errors import UsageError
from parlaunch.hardware.cluster import Cluster, cluster_to_json


def probe(hardware: str, *, gpu: str | None = None, format: str, save: Path | None, redact: bool) -> None:
    """Print what is here, or save it as a capture."""
    if hardware == "list":
        return listing(format=format)
    choice("--format", format, ("text", "json"))
    if save is None and not redact:
        cluster = _with_software(hardware_of(hardware, gpu=gpu), hardware)
    else:
        from parlaunch_probes import capture

        taken = capture.take() if hardware == "auto" else capture.Capture(hardware_of(hardware, gpu=gpu))
        taken = replace(taken, cluster=_with_software(taken.cluster, hardware))
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
    from parlaunch.show.probe_view import probe_to_text

    print(probe_to_text(cluster, colour=coloured(), width=columns()))


def _with_software(cluster: Cluster, hardware: str) -> Cluster:
    """This machine with its software; another one as it was read."""
    return with_software(cluster) if hardware == "auto" else cluster


def listing(search: str = "", *, format: str = "text") -> None:
    """Print the machines and products that are known by name and have all the words of `search`."""
    from parlaunch.show.machines import machines_to_json, to_markdown, to_text

    choice("--format", format, ("text", "json", "markdown"))
    if format == "json":
        print(json.dumps(machines_to_json(), indent=2))
        return
    text = to_markdown() if format == "markdown" else to_text(search)
    if not text:
        raise UsageError(f"no machine has {search!r}", hint="`parlaunch machines` lists all")
    print(text)
    if format == "text":
        note(
            "\n*: assumed, published nowhere. --hardware NAME:NODES, and NAME:2racks where NVLink joins a rack; rates one direction"
        )
