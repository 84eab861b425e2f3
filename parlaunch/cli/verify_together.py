"""`parlaunch verify` on several nodes: plans agreed on one after another, each supervised as a launch is, judged by the first node.

    every node:   agree on a plan -> run it -> bring what the run showed here -> agree on the next one, or to end
    first node:   judges what all of them bring, keeps the table, and says what is next

The log of a run is that of all its nodes: iterations stand on the last one, the fullest GPU and the rank that failed first may be
on any. A node that is gone by then ends it for all: what was measured until then is kept.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from parlaunch.check.turns import Turns
from parlaunch.check.verdict import Failure, judge
from parlaunch.cli.become import refuse_conflicts
from parlaunch.cli.choices import Choice, turns_of, without_failed
from parlaunch.cli.inputs import note
from parlaunch.cli.job import Job
from parlaunch.cli.request import Request, Trial
from parlaunch.cli.together import brought, complete_here, meeting_of, objection_of, plan_for, spared, spoken
from parlaunch.cli.trial import (
    asked,
    finished,
    launch_of,
    log_not_whole,
    logs_folder,
    remember,
    sampler,
    save_table,
    shared_folder,
    shown_progress,
)  # fmt: skip
from parlaunch.errors import ParlaunchError
from parlaunch.where.nodelist import short

if TYPE_CHECKING:
    from parlaunch.check.verdict import Measured
    from parlaunch.where.situation import Situation
    from parlaunch_launch.party import Agreement
    from parlaunch_launch.verify import Run

WHOLE_LOG, ALL_LOGS = 16 * 2**20, 64 * 2**20
"""Bytes of a log that the first and the last node bring at most, and of those of all others together."""


def verify_together(request: Request, trial: Trial, job: Job | ParlaunchError, situation: Situation) -> NoReturn:
    """Run this node's part. The first node prints, remembers and keeps; all leave with the verdict's exit code."""
    mine = brought(request, job, situation)
    with meeting_of(request, mine, situation) as party:
        judges = Judge(request, trial, job, situation)
        agreed = party.agree(mine, judges.first, objection_of(job))
        assert isinstance(job, Job)  # else the agreement has raised
        if agreed.node_rank is None and not party.hosts:
            spared(situation)
        job.runner_or_error()
        judges.order = agreed.order
        said = json.loads(agreed.plan_bytes)
        while "exit" not in said["trial"]:
            shown = _run_here(job, agreed, said, request, trial, situation) if agreed.node_rank is not None else {}
            if (told := shown.get("told")) is not None:
                if party.hosts:
                    judges.told(shown, told)
                sys.exit(128 + told)
            # The first node may be a spare that only judges: then it waits for as long as the others run.
            patience = {} if agreed.node_rank is not None else {"patience_s": math.inf}
            try:
                agreed = party.agree(shown, judges.next, _no_objection(job, agreed), **patience)
            except ParlaunchError as error:
                kept = shared_folder(said["trial"]["folder"]) / "verify.json"
                if party.hosts or not kept.exists():
                    raise
                raise ParlaunchError(error.problem, hint=f"what was measured until then is in {kept}") from error
            said = json.loads(agreed.plan_bytes)
    if agreed.watch_socket is not None:
        agreed.watch_socket.close()
    if party.hosts:
        judges.leave()
    sys.exit(int(said["trial"]["exit"]))


def _no_objection(job: Job, agreed: Agreement) -> Any:
    """The check of a further plan: the last word, to end, is no plan."""
    check = objection_of(job)
    return lambda data, rank: None if "exit" in json.loads(data)["trial"] else check(data, rank)


def _run_here(
    job: Job, agreed: Agreement, said: Mapping[str, Any], request: Request, trial: Trial, situation: Situation
) -> dict[str, Any]:
    """Run the agreed plan on this node. What its log shows here, for the first node."""
    from parlaunch_launch.family import Orders
    from parlaunch_launch.verify import measure, verify_overrides

    number = said["trial"]["number"]
    plan = complete_here(job, agreed, said, short=verify_overrides(trial.iterations))
    refuse_conflicts(plan, request)
    rank, nodes = agreed.node_rank or 0, len(agreed.order)
    last = rank == nodes - 1
    here = shared_folder(said["trial"]["folder"]) / situation.hostname
    here.mkdir(parents=True, exist_ok=True)
    launch = launch_of(plan, job, here / f"ranks-{number + 1}", agreed)
    log = here / f"verify-{number + 1}.log"
    with shown_progress(trial.iterations if last else None) as progress, Orders() as orders:
        report = None if progress is None else (lambda p: progress(number, launch, p))
        run = measure(
            launch, log=log, iterations=trial.iterations, device=job.device, orders=orders, progress=report,
            # Only where iterations are written does silence mean anything; its end is everybody's.
            silence_s=trial.timeout if last else math.inf, sample=sampler(job),
            most=WHOLE_LOG if rank == 0 or last else ALL_LOGS // nodes,
        )  # fmt: skip
    hang = next((asdict(f) for f in run.measured.failures if run.verdict.status == "hang" and f.kind == "hang"), None)
    log_not_whole(run)
    return {
        "rank": rank, "host": situation.hostname, "told": orders.told, "returncode": run.returncode, "hang": hang,
        "seconds": run.seconds, "sampled_peak": run.sampled_peak, "log": str(log), "lost": run.lost, "text": run.heard.decode(errors="replace"),
        "rank_logs": _rank_logs(here / f"ranks-{number + 1}"),
    }  # fmt: skip


def _rank_logs(folder: Path) -> dict[str, str]:
    """Where each rank of this node writes its errors, by its number on the node."""
    return {file.parent.name: str(file) for file in sorted(folder.glob("*/attempt_*/*/stderr.log"))}


class Judge:
    """What the first node does between the runs."""

    def __init__(self, request: Request, trial: Trial, job: Job | ParlaunchError, situation: Situation) -> None:
        self.request, self.trial, self.job, self.situation = request, trial, job, situation
        self.runs: list[Run] = []
        self.measured: list[Choice] = []
        self.turns: Turns[Choice]
        self.choice: Choice
        self.folder: Path
        self.order: tuple[str, ...] = ()  # the nodes that run
        self.broken: ParlaunchError | None = None  # a node went away

    def first(self, everyone: list[dict[str, Any]]) -> bytes:
        """The first plan, made of what all nodes brought."""
        assert isinstance(self.job, Job)
        plan = plan_for(self.job, self.request, everyone, self.situation.nnodes or 1)
        asked(plan, self.job, self.request)
        refuse_conflicts(plan, self.request)
        self.folder = logs_folder(f"-{len(plan.cluster.nodes)}-nodes")
        nodes = len(plan.cluster.nodes)
        self.turns = turns_of(self.job, plan, self.trial)
        note(f"parlaunch: verifying {plan.recipe.name} on {nodes} nodes; logs in {self.folder}")
        return self._turn()

    def next(self, everyone: list[dict[str, Any]]) -> bytes:
        """What all nodes do after a run: the next plan, or their end. `everyone` are those that are still there."""
        shown = [one for one in everyone if "returncode" in one]
        here = {one["agreement"]["hostname"] for one in shown}
        gone = tuple(name for name in self.order if name not in here)
        run = self._judged(shown, gone)
        self._keep(run)
        if gone:
            self.broken = ParlaunchError(
                f"{_nodes(gone)} went away while plan {len(self.runs)} was measured",
                hint=f"what was measured until then is in {self.folder / 'verify.json'}; the logs beside it tell why",
            )
            if not shown:
                raise self.broken
            return self._end()
        self.turns.ended(self.choice, run.verdict.status, without=lambda: without_failed(self.choice, run.measured))
        return self._turn()

    def told(self, shown: Mapping[str, Any], signal: int) -> None:
        """This node was told to end: what it saw of the run that was going on ends the table."""
        from parlaunch_launch.verify import outcome_of

        self._keep(self._judged([shown], (), ended="interrupted"))
        finished(outcome_of(self.runs, told=signal), self.measured, self.request, self.trial)

    def leave(self) -> NoReturn:
        """All is measured: print it, and leave."""
        from parlaunch_launch.verify import outcome_of

        outcome = outcome_of(self.runs)
        if self.broken is not None:
            note(f"error: {self.broken}")
            outcome = replace(outcome, whole=False)
        finished(outcome, self.measured, self.request, self.trial)

    def _turn(self) -> bytes:
        choice = self.turns.take()
        if choice is None:
            return self._end()
        self.choice = choice
        plan = replace(choice.whole(), alternatives=(), evidence=())
        return spoken(plan, trial={"number": len(self.runs), "folder": self.folder.name})

    def _end(self) -> bytes:
        from parlaunch_launch.verify import outcome_of

        code = 1 if self.broken is not None else outcome_of(self.runs).exit_code
        return json.dumps({"trial": {"exit": code}}).encode()

    def _keep(self, run: Run) -> None:
        from parlaunch_launch.verify import verify_overrides

        self.runs.append(run)
        self.measured.append(self.choice)
        if run.verdict.status != "gone":
            remember(self.choice.short(verify_overrides(self.trial.iterations)), run)
        save_table(self.folder / "verify.json", self.runs)

    def _judged(self, shown: Sequence[Mapping[str, Any]], gone: Sequence[str], *, ended: str | None = None) -> Run:
        """The run as the logs of all nodes show it."""
        from parlaunch_launch.training_log import lines_of, read_run
        from parlaunch_launch.verify import Launch, Run, without_room

        assert isinstance(self.job, Job)
        trial, candidate, plan = self.trial, self.choice.candidate, self.choice.plan
        measured = read_run(lines_of([one["text"].encode()]) for one in shown)
        codes = [one["returncode"] for one in shown]
        for one in shown:
            if one["lost"] is not None and any(codes):
                measured = without_room(measured, Path(one["log"]).parent, one["lost"])
        hang = next((one["hang"] for one in shown if one["hang"] is not None), None)
        if hang is not None:
            ended, measured = "hang", replace(measured, failures=(Failure(**hang), *measured.failures))
        if gone:
            lost = Failure(kind="gone", sentence=f"{_nodes(gone)} went away")
            ended, measured = "gone", replace(measured, failures=(lost, *measured.failures))
        returncode = None if ended else next((code for code in codes if code), 0)
        peak = max((one["sampled_peak"] for one in shown if one["sampled_peak"] is not None), default=None)
        verdict = judge(
            candidate, measured, returncode=returncode, iterations=trial.iterations, ended=ended, device=self.job.device,
            precision=plan.recipe.precision, sampled_peak=peak, tolerance=trial.tolerance,
        )  # fmt: skip
        last = max(shown, key=lambda one: one["rank"], default={"log": self.folder})
        launch = Launch(
            argv=(), env={}, candidate=candidate, precision=plan.recipe.precision, machine_file=plan.rates.measured_in
        )
        return Run(
            launch=launch, measured=measured, verdict=verdict, returncode=returncode, log=Path(last["log"]),
            seconds=max((one["seconds"] for one in shown), default=0.0), sampled_peak=peak,
            rank_log=None if ended in ("hang", "interrupted") else _rank_log(measured, shown, plan.cluster.gpus_per_node),
        )  # fmt: skip


def _rank_log(measured: Measured, shown: Sequence[Mapping[str, Any]], gpus: int) -> Path | None:
    """The log of the rank that failed first, on its node."""
    failed = measured.failed_rank
    for one in shown:
        if failed is not None and one["rank"] == failed.rank // gpus:
            found = one["rank_logs"].get(str(failed.local_rank))
            return None if found is None else Path(found)
    return None


def _nodes(names: Sequence[str]) -> str:
    return f"{'node' if len(names) == 1 else 'nodes'} {short(tuple(names))}"
