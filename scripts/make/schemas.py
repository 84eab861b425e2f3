"""Write the JSON schemas of what parlaunch prints: one for each of SCHEMAS, in parlaunch/data/schemas.

    python scripts/make/schemas.py            writes them
    python scripts/make/schemas.py --check    exit 1 when one is stale

Types follow the values' own annotations and descriptions the comments beside them, so that a new field is described where it is
declared. What is put together by hand in the code (a plan's frame, a table of runs) is put together by hand here. Fields are added
to these objects, never renamed: nothing here forbids more.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from written import write_or_check

from parlaunch.check.verdict import Compared, FailedRank, Failure, Iteration
from parlaunch.doctor.finding import SEVERITIES, Finding
from parlaunch.estimate.timing.silicon import Silicon
from parlaunch.estimate.training import Training
from parlaunch.estimate.values import Breakdown, Memory
from parlaunch.hardware.cluster import WORDS, Cluster
from parlaunch.hardware.installed import PACKAGES
from parlaunch.hardware.paces import FORMATS
from parlaunch.hardware.paces import SIZES as SIZES_OF_LAYERS
from parlaunch.hardware.rates import Rates
from parlaunch.model.architecture import Architecture
from parlaunch.model.layout import SIZES, Layout, Recompute
from parlaunch.model.recipe import Features, Recipe
from parlaunch.planning.plan import AsRecipe, Switched, Variable

FOLDER = Path(__file__).parents[2] / "parlaunch" / "data" / "schemas"
Schema = dict[str, Any]
NAMES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def comments(kind: type) -> dict[str, str]:
    """What stands beside each field of a dataclass, or above it where a line of its own."""
    lines = inspect.getsource(kind).splitlines()
    found = {}
    for node in ast.parse(inspect.cleandoc("\n".join(lines))).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            beside = re.search(r"  # (.+)$", lines[node.lineno - 1])
            above = re.match(r"\s*# (.+)$", lines[node.lineno - 2])
            said = beside or above
            if said:
                found[node.target.id] = said[1]
    return found


DEFINITIONS: dict[str, Schema] = {}
"""Objects that stand in several places, each written once."""


def defined(name: str, schema: Schema) -> Schema:
    """A reference to a schema that is kept under a name."""
    DEFINITIONS[name] = schema
    return {"$ref": f"#/$defs/{name}"}


def of(kind: Any) -> Schema:
    """The schema of an annotated type."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        made = [of(i) for i in inside if i is not type(None)]
        if type(None) not in inside:
            return {"anyOf": made}
        if len(made) == 1 and set(made[0]) == {"type"}:
            return {"type": [made[0]["type"], "null"]}
        return {"anyOf": [*made, {"type": "null"}]}
    if origin is tuple:
        if inside[-1] is Ellipsis:
            return {"type": "array", "items": of(inside[0])}
        return {"type": "array", "prefixItems": [of(i) for i in inside], "minItems": len(inside)}
    if origin is not None and issubclass(origin, typing.Mapping):  # type: ignore[arg-type]
        return {"type": "object", "additionalProperties": of(inside[1])}
    if is_dataclass(kind):
        return defined(kind.__name__, record(typing.cast(type, kind)))
    return {"type": NAMES[kind]} if kind in NAMES else {}


def record(kind: type, *, without: tuple[str, ...] = (), **more: Schema) -> Schema:
    """The object of a dataclass; `more` stands in for fields, or comes on top."""
    hints, said = typing.get_type_hints(kind), comments(kind)
    properties = {}
    for f in fields(kind):  # type: ignore[arg-type]
        if f.name in without:
            continue
        unsaid = f.name in WORDS and kind.__module__ == Cluster.__module__
        made = more.pop(f.name, None) or of(hints[f.name] | None if unsaid else hints[f.name])
        properties[f.name] = made | ({"description": said[f.name].replace("UNKNOWN", "null")} if f.name in said else {})
    text = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
    return {"type": "object", "description": text, "properties": properties | more, "required": [*properties, *more]}


def thing(description: str, /, optional: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object put together by hand."""
    return {
        "type": "object", "description": description, "properties": properties,
        "required": [name for name in properties if name not in optional],
    }  # fmt: skip


def known(schema: Schema, otherwise: str) -> Schema:
    """That schema, or null with what null means."""
    return {"anyOf": [schema, {"type": "null"}], "description": otherwise}


def text(description: str, *, null: bool = False) -> Schema:
    return {"type": ["string", "null"] if null else "string", "description": description}


def number(description: str, *, null: bool = False, whole: bool = False) -> Schema:
    kind = "integer" if whole else "number"
    return {"type": [kind, "null"] if null else kind, "description": description}


def truth(description: str) -> Schema:
    return {"type": "boolean", "description": description}


def many(items: Schema, description: str) -> Schema:
    return {"type": "array", "items": items, "description": description}


def whole(description: str, *, null: bool = False) -> Schema:
    return number(description, null=null, whole=True)


RECOMPUTE = of(Recompute)
LAYOUT = defined("layout", record(
    Layout, without=("world",), recompute=RECOMPUTE, world_size=whole("GPUs of the job"), dp=whole("data parallel size"),
    edp=whole("data parallel size of the experts"), num_microbatches=whole("micro batches of one iteration on one replica"),
    sequence_parallel=truth("activations outside tensor parallel blocks are split over TP"),
))  # fmt: skip
ESTIMATE = defined("estimate", thing(
    "Predicted time of one iteration and what follows from it.",
    iteration_time_s=number("seconds"),
    error_band=number("± share of the time"),
    tokens_per_s_per_gpu=number("tokens a second and GPU"),
    model_tflops_per_gpu=number("model TFLOP/s of a GPU, as Megatron counts them"),
    mfu=number("model FLOP/s over the dense peak of the precision"),
    breakdown=of(Breakdown),
))  # fmt: skip
MEMORY = defined("memory", thing(
    "Peak bytes on the fullest GPU.",
    peak_bytes=whole("what nvidia-smi would show"),
    allocated_bytes=whole("what torch.cuda.max_memory_allocated would say"),
    reserved_bytes=whole("what torch.cuda.max_memory_reserved would say"),
    slack_bytes=whole("what the caching allocator holds beyond the tensors"),
        pool_bytes=whole("what CUDA graphs keep for themselves"),
    spare_bytes=whole("what has to be free beside the peak: with less the allocator gives back and asks again in every iteration"),
    at_speed=truth("so much is free"),
        risk_band=number("share on top of the peak that one run of twenty needs"),
    error_band=number("± share of the peak"),
    capacity_bytes=whole("memory of the GPU"),
    limit_bytes=whole("capacity less the headroom"),
    fits=truth("the peak is within the limit"),
    stage=whole("the pipeline stage it is about"),
    components=thing(
        "The parts of the peak, in bytes.",
        **{f.name: whole(f.name) for f in fields(Memory) if "part" in f.metadata},
    ),
))  # fmt: skip
SWITCHED_ON = defined("Features", record(
    Features,
    dp_overlap={"type": "boolean", "description": "gradients are reduced under the backward pass and weights gathered under the forward pass, both"},
))  # fmt: skip
FEATURES = known(SWITCHED_ON, "what it was estimated with, as the recipe's features; null: the recipe's own")
CANDIDATE = thing(
    "A layout with its estimate and memory.",
    ("features",),
    layout=LAYOUT,
    estimate=ESTIMATE,
    memory=MEMORY,
    features=FEATURES,
)
CANDIDATE = defined("candidate", CANDIDATE)
RECIPE = record(
    Recipe,
    without=("model", "model_id", "architecture", "defaults", "spoken"),
    model=record(
        Architecture,
        id=text("Hugging Face name", null=True),
        total_params=whole("parameters of the language model"),
        active_params=whole("parameters that one token passes through"),
    ),
    family=text("the model's name in the recipe"),
    micro_batch_size=whole("sequences a forward pass, as the recipe has it", null=True),
    defaults={"type": "object", "description": "the recipe's own layout; null: it names none"},
    features=SWITCHED_ON,
)
HARDWARE = record(
    Cluster,
    gpus_per_node=whole("GPUs of one node"),
    world_size=whole("GPUs of all nodes"),
)
VARIABLE = of(Variable)


# A GPU's compute capability is text in JSON: "9.0".
DEFINITIONS["Gpu"]["properties"]["compute_capability"] = text("major.minor", null=True)


def sentences(description: str) -> Schema:
    return many({"type": "string"}, description)


def framed(name: str, title: str, description: str, /, optional: tuple[str, ...] = (), **properties: Schema) -> Schema:
    body = thing(description, optional, schema={"const": f"parlaunch.{name}/1"}, **properties)
    made = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title, **body}
    used: set[str] = set()
    found = _named(body)
    while found - used:
        used |= found
        found = {inner for outer in used for inner in _named(DEFINITIONS[outer])}
    return made | ({"$defs": {name: DEFINITIONS[name] for name in sorted(used)}} if used else {})


def _named(schema: Schema) -> set[str]:
    return set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema)))


SOFTWARE = thing(
    "What is taken to be installed.",
    **{
        package: text(f"version of {words}; null: missing or not known", null=True)
        for package, words in PACKAGES.items()
    },
    missing=sentences("packages known not to be there"),
    source=text("a release, or the machine that was asked"),
    assumed=truth("nobody looked: the newest release is taken"),
)
PACES = many(
    thing(
        "A model whose runs took longer than the rates say, or shorter.",
        model=text("as the first of its runs has it"),
        task=text("pretrain, sft or peft"),
        format={"type": ["string", "null"], "enum": [*FORMATS, None], "description": "of its matrix products; null: whichever"},
        sizes={
            "type": "object", "description": "what it is known by, in Megatron's names: any number of such layers",
            "properties": {key: {"type": "integer"} for key in SIZES_OF_LAYERS}, "additionalProperties": False,
        },
        slower=number("times as long as the rates say"),
    ),
    "what was learnt of single models",
)  # fmt: skip
SPLIT_PACES = many(
    thing(
        "A split whose runs took longer than the rates say, or shorter, whatever they trained.",
        tp=whole("tensor parallel"), pp=whole("pipeline parallel"), micro_batch_size=whole("sequences of a micro batch"),
        slower=number("times as long as the rates say"),
    ),
    "what was learnt of single splits",
)  # fmt: skip
PLAN = framed(
    "plan", "parlaunch plan --format json", "A plan. Unknown is null; fields are added, never renamed.",
    ("rates", "objective", "not_planned_for", "training", "features", "switches", "estimate_as_recipe", "software"),
    version=text("of parlaunch"),
    recipe=RECIPE,
    hardware=HARDWARE,
    rates=record(Rates, models=PACES, splits=SPLIT_PACES, product={"type": ["string", "object"], "description": "the data sheet: its name, or whole where it was derived"}),
    layout=LAYOUT,
    estimate=ESTIMATE,
    memory=MEMORY,
    objective=text("what it is best at: time or memory"),
    environment=many(VARIABLE, "variables of the ranks, each with its reason and source"),
    overrides=sentences("KEY=VALUE for Megatron Bridge, in order"),
    argv=sentences("the command, word by word"),
    rank_order=sentences("host names in the order of node ranks"),
    because=sentences("why this layout"),
    alternatives=many(CANDIDATE, "other layouts, in the order in which they are worth a try beside this one"),
    rejected=many(thing("A layout that was refused.", layout=LAYOUT, reason=text("why")), "refused layouts"),
    warnings=sentences("what the user has to know"),
    training=of(Training | None),
    features=FEATURES,
    switches=many(
        record(Switched, keys={"type": "object", "description": "what Megatron Bridge hears of it"}),
        "switches that are not as the recipe has them",
    ),
    estimate_as_recipe=of(AsRecipe | None),
    software=known(SOFTWARE, "null: not asked"),
    not_planned_for=sentences("overrides whose effect the plan does not contain"),
    evidence=many({"type": "object"}, "published layouts for this model and machine"),
)  # fmt: skip
PROBE = framed(
    "probe", "parlaunch probe --format json", "A machine as it was found.",
    hardware=HARDWARE,
    notes=sentences("what was left out, and why"),
)  # fmt: skip
FIGURES = thing(
    "Predicted or measured figures of one run, under one set of names.",
    ("tokens_per_s_per_gpu", "iteration_time_s", "model_tflops_per_gpu", "peak_memory_gb"),
    tokens_per_s_per_gpu=number("tokens a second and GPU", null=True),
    iteration_time_s=number("seconds", null=True),
    model_tflops_per_gpu=number("model TFLOP/s of a GPU", null=True),
    peak_memory_gb=number("10^9 bytes, of the kind that was measured", null=True),
)
VALIDATE = framed(
    "validate", "parlaunch validate FILE --format json", "Predicted beside measured for a table of runs.",
    machine_file=text("that the predictions rest on", null=True),
    rows=many(
        thing(
            "One run.", ("predicted", "measured", "fits", "note"),
            id=text("of the row"),
            predicted=known(FIGURES, "null: it could not be predicted"),
            measured=known(FIGURES, "null: nothing was measured"),
            fits={"type": ["boolean", "null"], "description": "predicted to fit"},
            note=text("why it could not be predicted, or what was assumed", null=True),
        ),
        "in the order of the file",
    ),
    summary={"type": "object", "description": "errors by quantity, rank correlation and regret by group, refusals"},
)  # fmt: skip
BYTES = {
    "peak_allocated_bytes": "most that torch allocated after the optimizer's first step, on the fullest GPU whose rank reports",
    "peak_reserved_bytes": "most that torch's allocator held",
    "early_allocated_bytes": "what was printed before the optimizer's first step was over: a lower bound",
    "host_peak_bytes": "host memory of a rank, where ranks run on CPUs",
    "sampled_peak_bytes": "most that was seen from outside, as nvidia-smi shows it",
}
RUN = thing(
    "One run, held against its plan.",
    layout=text("as one line"),
    sizes=LAYOUT,
    status=text("ok, or how it failed: a kind of the failure catalogue"),
    returncode=whole("of the launcher; null: the run is long over", null=True),
    machine_file=text("that the prediction rests on", null=True),
    seconds=number("that it took in all", null=True),
    log=text("path of the whole log"),
    rank_log=text("path of the log of the rank that failed first", null=True),
    sentences=sentences("what went wrong, and what to try"),
    last_lines=sentences("of the log, where the failure was not recognised"),
    failed_rank=of(FailedRank | None),
    failures=many(of(Failure), "what was recognised in the log, the cause first"),
    checks=many(record(Compared), "every comparison"),
    iteration_time_s=number("median after the warm-up", null=True),
    iterations=many(record(Iteration, without=("of", "tflops", "global_batch", "nans")), "line by line"),
    model_tflops_per_gpu=number("by Megatron's own count", null=True),
    steps=whole("that the optimizer made"),
    skipped=whole("iterations without a step"),
    loss=number("the last one", null=True),
    layout_in_log={
        "type": "object",
        "additionalProperties": {"type": "integer"},
        "description": "sizes that the log names",
    },
    **{name: whole(words, null=True) for name, words in BYTES.items()},
)
VERIFY = framed(
    "verify", "parlaunch verify --format json", "Runs held against their plans. Unknown is null.",
    ok=truth("one of them passed"),
    signal=whole("that ended verify early", null=True),
    winner=whole("number of the fastest run that passed, from 0", null=True),
    runs=many(RUN, "in the order they ran"),
)  # fmt: skip
DOCTOR = framed(
    "doctor", "parlaunch doctor --format json", "What is wrong with a machine, the worst first.",
    ok=truth("nothing is a FAIL: the exit code is 0"),
    nodes=many(text("host name"), "all that were looked at; one that did not come is among them"),
    counts=thing("Findings by severity.", **{name: whole(f"findings that are {name}") for name in SEVERITIES}),
    findings=many(
        record(Finding, node=text("host name; null: it is about all of them", null=True),
               severity={"enum": list(SEVERITIES), "description": "FAIL stops a launch"}),
        "the worst first; what was not read makes none",
    ),
    unknown=many(
        thing("Something that nobody could read.", what=text("what"), nodes=many(text("host name"), "where")),
        "what is not known",
    ),
)  # fmt: skip
SIZES_OF_RUN = {
    "gpus": "all of the run", "gbs": "sequences of one iteration", "mbs": "sequences of a micro batch", "tp": "tensor parallel",
    "pp": "pipeline parallel", "vp": "virtual pipeline", "cp": "context parallel", "ep": "expert parallel",
    "etp": "expert tensor parallel",
}  # fmt: skip
ROW = thing(
    "One run that was measured. Rows of older releases lack fields.", ("nodes", "site", "software", "why", "failed_switch", "planned"),
    schema={"const": "parlaunch.run/1"},
    id=text("recipe, layout and time"),
    when=text("ISO time"),
    source=text("who measured: verify, or log for a run that was over"),
    recipe=text("its name"),
    model_id=text("Hugging Face name", null=True),
    arch={"type": "object", "description": "the shape of the model"},
    task=text("pretrain, sft or peft"),
    hardware=text("the preset most like it", null=True),
    machine=text("where the description of the machine came from"),
    gpu=text("as NVML names it"),
    site=text("the cluster's own name", null=True),
    nodes=sentences("host names"),
    driver=text("version", null=True),
    fabric_bytes_per_s_per_gpu=number("one direction", null=True),
    software={"type": "object", "additionalProperties": {"type": ["string", "null"]}, "description": "version by package"},
    precision=text("of the recipe"),
    seq=whole("tokens of a sequence"),
    **{name: whole(words, null=True) for name, words in SIZES_OF_RUN.items()},
    recompute=RECOMPUTE,
    status=text("ok, or how it failed"),
    why=text("it failed, in a sentence", null=True),
    failed_switch={
        "type": ["object", "null"], "description": "the switch that its log blames: `name` and `value`",
        "additionalProperties": {"type": "string"},
    },
    iteration_time_s=number("null for a run that failed", null=True),
    tokens_per_s_per_gpu=number("null for a run that failed", null=True),
    model_tflops_per_gpu=number("by Megatron's own count", null=True),
    peak_memory_gb=number("in `unit`, of the kind `peak_memory_metric`", null=True),
    unit=text("of the memory: GiB"),
    peak_memory_metric=text("allocated, or nvidia-smi"),
    predicted=thing(
        "What the plan said.",
        iteration_time_s=number("seconds"),
        peak_bytes=whole("what nvidia-smi would show"),
        allocated_bytes=whole("what torch would say"),
    ),
    planned=thing(
        "What the prediction was made with: read back, it gives the same one.",
        recipe={"type": "object", "description": "as in a plan"},
        layout=LAYOUT,
        rates={"type": "object", "description": "as in a plan"},
    ),
)  # fmt: skip
HISTORY = framed(
    "history", "parlaunch history --format json", "The runs that verify has measured.",
    path=text("of the history"),
    rows=many(ROW, "the newest last"),
)  # fmt: skip
DIFF = framed(
    "diff", "parlaunch diff --format json", "What changed from one plan to another.",
    changes=many(
        thing("One change; null: it is not there.", part=text("recipe, hardware, layout, switches, memory, time, environment or override"),
              name=text("of what changed"), before={"description": "any JSON value"}, after={"description": "any JSON value"}),
        "part by part",
    ),
)  # fmt: skip
LISTED = thing(
    "A recipe of the catalog.",
    name=text("its full name"),
    aliases=sentences("other names that are understood"),
    task=text("pretrain, sft or peft"),
    model=text("family"),
    model_id=text("Hugging Face name", null=True),
    benchmark=truth("a benchmark recipe, else one of the library"),
    total_params=whole("parameters"),
    active_params=whole("that one token passes through"),
    precision=text("of the recipe"),
    seq_length=whole("tokens of a sequence"),
    global_batch_size=whole("sequences of one iteration"),
    gpus=whole("that it was written for", null=True),
    hardware=text("that it was written for", null=True),
    defaults=thing("Its own layout; null: it does not say.", **{name: whole(name, null=True) for name in SIZES}),
)
RECIPE_SHOWN = framed(
    "recipe", "parlaunch recipes show NAME --format json", "One recipe.",
    **LISTED["properties"],
    fewest_gpus=many(
        thing("A machine that holds it.", hardware=text("a preset"), gpus=whole("the fewest"), layout=LAYOUT,
              peak_bytes=whole("on the fullest GPU")),
        "for each kind of machine",
    ),
)  # fmt: skip
RECIPES = framed(
    "recipes", "parlaunch recipes --format json", "Recipes of the catalog.",
    recipes=many(LISTED, "those that pass every filter"),
)  # fmt: skip
COMPARED = thing(
    "One machine. Where `refused` says why no plan was made, nothing else stands here.",
    ("gpus", "gpu", "nodes", "tokens_per_s", "layout", "estimate", "memory", "features", "training"),
    hardware=text("as it was given"),
    what_if=text("assumption it was planned under", null=True),
    best=sentences("in which columns it is the best"),
    refused=text("why there is no plan", null=True),
    gpus=whole("of all nodes"),
    gpu=text("as NVML names it"),
    nodes=whole("of the machine"),
    tokens_per_s=number("of all GPUs"),
    **DEFINITIONS["candidate"]["properties"],
    training=of(Training | None),
)
COMPARE = framed(
    "compare", "parlaunch compare --format json", "Plans for several machines.",
    machines=many(COMPARED, "in the order given"),
    machine_file=text("that the estimates rest on", null=True),
)  # fmt: skip
MACHINES = framed(
    "machines", "parlaunch machines --format json", "Machines and GPU products that are known by name.",
    machines=many(
        thing(
            "A preset.", name=text("for --hardware"), aliases=sentences("other names"), gpu=text("a name among `products`"),
            gpus_per_node=whole("GPUs"), nvlink_gpus=whole("that NVLink joins, over nodes"), fabric=text("kind"),
            fabric_bytes_per_s_per_gpu=number("one direction"), source=text("where it is published"),
            assumed=sentences("fields that are published nowhere"),
        ),
        "presets",
    ),
    products=many(
        thing(
            "A GPU.", name=text("as in the data sheets"), memory_bytes=whole("bytes"),
            flops={"type": "object", "additionalProperties": {"type": "number"}, "description": "dense FLOP/s by precision"},
            hbm_bytes_per_s=number("memory bandwidth"), nvlink_bytes_per_s=number("one direction", null=True),
            source=text("where it is published"), assumed=sentences("fields that are published nowhere"),
        ),
        "data sheets",
    ),
)  # fmt: skip
CONFIG = framed(
    "config", "parlaunch config --format json", "What is configured, and where.",
    files=many(thing("A file.", path=text("where it is looked for"), exists=truth("it is there")), "the nearest first"),
    values={
        "type": "object",
        "description": "by option",
        "additionalProperties": thing(
            "A value.", value={"description": "any JSON value"}, origin=text("a file, a variable, or default")
        ),
    },
)  # fmt: skip
RATE = {"type": "number", "exclusiveMinimum": 0}
MEASURED: Schema = {
    name: RATE | {"description": said or "share of the measured burst that training keeps"}
    for name, said in ((f.name, comments(Silicon).get(f.name)) for f in fields(Silicon))
}
for share in ("gemm_bf16", "gemm_fp8", "gemm_fp4"):
    MEASURED[share] = RATE | {"maximum": 1, "description": "share of the peak that a large product reaches"}
MEASURED["hbm"]["maximum"] = 1
for bus in ("nvlink", "fabric"):
    MEASURED[f"{bus}_bus_bytes_per_s"] = RATE | {"description": "bytes/s, as nccl-tests define bus bandwidth"}
MACHINE = framed(
    "machine", "parlaunch calibrate --format json", "What a machine reaches, in place of its data sheet: for --machine-file.",
    gpu=text("the product, as the data sheets call it"),
    measured={
        "type": "object", "description": "values by name", "properties": MEASURED, "additionalProperties": False,
    },
    models=PACES,
    splits=SPLIT_PACES,
    fit=thing(
        "How it was found.",
        ("rows", "recipes", "mean_error_before", "mean_error_after", "sure", "left_out", "changed"),
        method=text("micro-benchmarks or measured runs"),
        rows=whole("runs that were used"),
        recipes=whole("different trainings among them"),
        mean_error_before=number("share of the time, over these runs, by the tables"),
        mean_error_after=number("the same, by this file"),
        sure=number("how sure the runs are that the machine is another than its tables have it, 0 to 1: the share of the likeliest changes that is made"),
        left_out={
            "type": ["object", "null"], "description": "each recipe (or run) predicted from the others; null: there is one run",
            "properties": {
                "by": text("recipe or run"), "before": number("mean error by the tables"), "after": number("by fits to the others"),
            },
        },
        changed=truth("the tables' values are replaced; where it would not help they stay"),
        notes=sentences("what was skipped, and why nothing was changed"),
    ),
)  # fmt: skip
SCHEMAS = {
    "machine": MACHINE, "plan": PLAN, "probe": PROBE, "validate": VALIDATE, "verify": VERIFY, "doctor": DOCTOR, "history": HISTORY, "diff": DIFF,
    "recipe": RECIPE_SHOWN, "recipe_list": RECIPES, "compare": COMPARE, "machines": MACHINES, "config": CONFIG,
}  # fmt: skip


def main() -> None:
    write_or_check(
        {
            FOLDER / f"{name}.json": json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
            for name, schema in SCHEMAS.items()
        }
    )


if __name__ == "__main__":
    main()
