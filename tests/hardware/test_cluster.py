"""The values that the probe fills go to JSON and come back the same."""

from __future__ import annotations

import dataclasses
import json
import types
import typing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parlaunch.errors import ProbeError
from parlaunch.hardware.cluster import Cluster, Fabric, Gpu, Nic, Node, cluster_from_json, cluster_to_json


def values(kind: typing.Any) -> st.SearchStrategy[typing.Any]:
    """Any value of an annotated type; the shared dataclasses field by field."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([values(k) for k in inside])
    if origin is tuple and inside[-1] is Ellipsis:
        return st.lists(values(inside[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*[values(k) for k in inside])
    if dataclasses.is_dataclass(kind):
        return records(typing.cast(type, kind))
    return {
        int: st.integers(0, 2**40),
        float: st.floats(0, 1e15),
        str: st.text(max_size=8),
        bool: st.booleans(),
        type(None): st.none(),
    }[kind]


def records(kind: type) -> st.SearchStrategy[typing.Any]:
    hints = typing.get_type_hints(kind)
    fields = {f.name: values(hints[f.name]) for f in dataclasses.fields(kind)}
    if kind is Gpu:
        fields["compute_capability"] = st.none() | st.tuples(st.integers(1, 12), st.integers(0, 9))
    return st.fixed_dictionaries({}, optional=fields).map(lambda some: _fill(kind, some))


def _fill(kind: type, some: dict[str, typing.Any]) -> typing.Any:
    needed: dict[type, dict[str, typing.Any]] = {
        Gpu: {"index": 0, "name": "NVIDIA H100 80GB HBM3"},
        Nic: {"name": "mlx5_0", "kind": "infiniband"},
        Node: {"hostname": "n1"},
        Fabric: {"kind": "infiniband"},
        Cluster: {"source": "probe", "nodes": ()},
    }
    return kind(**needed[kind] | some)


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(records(Cluster))
def test_any_cluster_comes_back_from_its_json(cluster: Cluster) -> None:
    assert cluster_from_json(json.loads(json.dumps(cluster_to_json(cluster)))) == cluster


def test_json_of_something_else_is_refused_with_its_name() -> None:
    with pytest.raises(ProbeError, match=r"box\.json is not a machine as parlaunch writes it"):
        cluster_from_json({"nodes": [{"gpus": [{"compute_capability": "nine"}]}]}, where="box.json")


@pytest.mark.parametrize(
    ("field", "value"), [("memory_bytes", "lots"), ("numa", [1]), ("name", 7), ("nvlinks_down", [[1]]), ("mig", 1)]
)
def test_a_value_of_the_wrong_type_is_refused_by_name(field: str, value: object) -> None:
    data = cluster_to_json(Cluster(source="probe", nodes=(Node(hostname="a", gpus=(Gpu(index=0, name="X"),)),)))
    data["nodes"][0]["gpus"][0][field] = value
    with pytest.raises(ProbeError, match=f"{field} of a Gpu cannot be"):
        cluster_from_json(data)


def test_fields_that_a_newer_parlaunch_wrote_are_skipped() -> None:
    data = cluster_to_json(Cluster(source="probe", nodes=(Node(hostname="a", gpus=(Gpu(index=0, name="X"),)),)))
    data["nodes"][0]["gpus"][0]["quantum"] = 1
    assert cluster_from_json(data).nodes[0].gpus[0].name == "X"
