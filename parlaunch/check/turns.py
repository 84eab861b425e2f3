"""Whose turn it is: which of a plan's layouts is measured next, by what came of those before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from parlaunch.check.symptoms import another_plan_helps
from parlaunch.planning.plan import Candidate

T = TypeVar("T")


class Turns(Generic[T]):
    """Plans that wait to be measured, the most worth a try first: the first `top` whatever becomes of them, and at most `retries` more in
    place of those that another plan can help (out of memory, a switch that was refused). A NaN or a broken machine would meet
    the next plan as well. `candidate` tells what a plan is expected to take."""

    def __init__(
        self, plans: Sequence[T], *, top: int = 1, retries: int = 0, candidate: Callable[[T], Candidate]
    ) -> None:
        self.waiting, self.candidate = deque(plans), candidate
        self.left, self.retries = top, retries

    def take(self) -> T | None:
        """The plan whose turn it is; None when all is measured that was to be."""
        if not self.left or not self.waiting:
            return None
        self.left -= 1
        return self.waiting.popleft()

    def ended(self, plan: T, status: str, *, without: Callable[[], Sequence[T]] | None = None) -> None:
        """What came of a plan. `without` gives those that wait, made anew without the switch that failed: the others have it
        too. It is not given where there is none to drop, and then no other plan helps."""
        if not another_plan_helps(status) or not self.retries:
            return
        if status == "switch":
            if without is None or not (anew := without()):
                return
            self.waiting = deque(anew)
        elif status == "oom":  # what is expected to need less than the one that did not fit comes before the rest
            peak = self.candidate(plan).memory.peak
            self.waiting = deque(sorted(self.waiting, key=lambda p: self.candidate(p).memory.peak >= peak))
        if self.waiting:
            self.retries, self.left = self.retries - 1, self.left + 1
