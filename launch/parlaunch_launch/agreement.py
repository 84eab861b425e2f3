"""The nodes of a job agree on one plan: each brings what it found, the first node plans, all get the same bytes.

    every node:   prove, claim a seat, bring the probe   -> wait for the verdict -> check the plan -> wait for "go"
    first node:   wait for all, compare, plan            -> verdict              -> wait for all   -> "go", or "stop"

Nobody waits for ever, and whatever goes wrong on one node stops all of them with the same sentence: what a node refuses
before it comes here, it brings here. Nobody is heard who has not proved to know the job's secret.

`meet` is for nodes that stay together and agree again, on what each has found out meanwhile: who is gone by then is left out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from parlaunch.errors import ParlaunchError, UsageError
from parlaunch.where.situation import Situation
from parlaunch_launch.first_node import FirstNode
from parlaunch_launch.meeting import open_meeting
from parlaunch_launch.other_node import OtherNode
from parlaunch_launch.party import Agreement, Brought, Objection, Party, Planner
from parlaunch_launch.secret import Keys, Secret


def agree(
    situation: Situation,
    mine: Brought,
    plan: Planner,
    *,
    secret: Secret | None = None,
    timeout_s: float = 120.0,
    spares: int = 0,
    check: Objection | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Agreement:
    """Meet the other nodes of `situation` and come away with one plan.

    `mine` is this node's probe, and under `version` and `command` what has to be equal everywhere; or what this node refuses
    with, which is then every node's refusal. `plan` runs on the first node only, with every node's `mine` in the launcher's
    order, each with `agreement: {hostname, seat, address, ahead_s}` added, the last the seconds that its clock is ahead of the
    first node's, as far as that is certain. It returns the plan as bytes; a JSON object with `rank_order` (host names) numbers
    the nodes, and so does a second value, seats by node rank. Nodes left out are spares.
    `check` gets the plan and this node's rank, and says what is wrong with it here. With `spares`, as many nodes may be missing.

    Raises ParlaunchError (UsageError, NoLayoutError) with one text on every node: a node that did not come or went
    away, two with one rank, other versions or command lines, what `plan` raised, what a `check` said. `told` is set on it
    where another node prints it into the same log.
    """
    with meet(situation, mine, secret=secret, timeout_s=timeout_s, spares=spares, say=say) as party:
        return party.agree(mine, plan, check)


def meet(
    situation: Situation,
    mine: Brought,
    *,
    secret: Secret | None = None,
    timeout_s: float = 120.0,
    spares: int = 0,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> Party:
    """The nodes of `situation` for as long as the context lasts. Raises as `agree` does, or `mine` where nobody hears it."""
    if (situation.nnodes or 1) < 2:
        raise AssertionError("one node has nobody to agree with")
    if situation.nodelist and situation.nnodes != len(situation.nodelist):
        raise UsageError(
            f"the node list names {len(situation.nodelist)} nodes and the launcher counts {situation.nnodes}",
            hint="unset SLURM_* variables that were exported by hand",
        )
    keys = Keys(secret or Secret(value=None, source="nothing"), situation, os.environ)
    try:
        meeting = open_meeting(situation, keys, timeout_s=timeout_s)
    except ParlaunchError:
        if isinstance(mine, ParlaunchError):
            raise mine from None  # its own reason is nearer than that nobody is there to hear it
        raise
    if meeting.door is not None:
        return FirstNode(meeting, meeting.door, situation, keys, timeout_s, spares, say)
    assert meeting.channel is not None
    return OtherNode(meeting, meeting.channel, situation, keys, timeout_s, say)
