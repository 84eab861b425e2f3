"""The page on verifying: every paragraph and bullet promises something, and each promise is held by a test that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "verifying.md"

pytestmark = pytest.mark.checkout

PROMISES = {
    "which layout it would take, how long an iteration takes": "planning/test_plan: test_",
    "without checkpoints and validation": "test_verifying_page: test_a_short_run_has_no_checkpoint_and_no_validation",
    "`--dry-run` prints what would run": "cli/test_verify_log: test_a_dry_run_of_verify_runs_nothing_and_prints_the_short_run",
    "`parlaunch.verify/1`": "cli/test_schema: test_what_verify_and_history_print_is_as_the_schemas_say",
    "exit code 0 after all iterations": "check/test_verdict: test_too_few_iterations_fail_although_the_exit_code_is_0",
    "the optimizer made a step": "check/test_verdict: test_a_run_whose_every_iteration_was_skipped_has_not_trained",
    "the loss is finite at the end": "check/test_verdict: test_a_loss_that_was_finite_and_is_not_at_the_end_fails",
    "are those of the plan": "check/test_verdict: test_the_batch_and_the_precision_are_those_that_were_planned",
    "layout, batch, recomputation": "check/test_verdict: test_another_layout_than_planned_fails_and_says_which_size",
    "recomputation and precision": "check/test_verdict: test_other_recomputation_than_planned_fails",
    "are **reported**": "check/test_verdict: test_a_time_outside_the_band_is_reported_and_fails_nothing",
    "`--tolerance 0.2`": "check/test_verdict: test_with_a_tolerance_time_and_memory_count",
    "compared as each source counts": "check/test_verdict: test_memory_is_compared_as_each_source_counts_it",
    "a lower bound": "check/test_verdict: test_memory_printed_before_the_optimizer_stepped_is_a_lower_bound",
    "through the supervisor of a launch": "slurm/test_verify: test_two_nodes_are_verified_through_the_supervisor",
    "the first node judges": "slurm/test_verify: test_out_of_memory_on_one_node_is_everybodys_and_the_next_plan_is_tried",
    "a node that dies": "slurm/test_verify: test_a_node_that_dies_in_the_middle_ends_all_and_the_table_is_kept",
    "the rank that failed first": "launch/test_training_log: test_the_rank_that_failed_first_is_read_from_torchrun_s_report",
    "for a failure that nobody knows": "check/test_verdict: test_a_failure_that_nobody_knows_shows_the_last_lines_and_the_rank",
    "the exact line, the cause": "launch/test_training_log: test_each_failure_is_recognised_and_explained_in_a_sentence",
    "which component was underestimated": "check/test_verdict: test_out_of_memory_names_the_part_that_was_underestimated",
    "`--retries 2` tries": "launch/test_verify: test_out_of_memory_is_explained_and_the_next_plan_is_tried",
    "a switch was refused": "launch/test_verify: test_a_refused_switch_is_worth_another_plan",
    "never after a NaN": "launch/test_verify: test_what_another_plan_does_not_mend_is_not_tried_again",
    "the rank that does not answer is named": "launch/test_verify: test_a_hang_names_the_rank_that_does_not_answer_and_kills_it",
    "end the run with all its processes": "launch/test_verify: test_told_to_end_it_takes_every_rank_with_it",
    "a second Ctrl-C does so at once": "slurm/test_verify: test_a_second_interrupt_ends_ranks_that_hear_nothing_at_once",
    "whatever becomes of each": "launch/test_verify: test_top_measures_as_many_as_asked_whatever_becomes_of_the_first",
    "writes the fastest": "launch/test_verify: test_top_measures_the_best_and_keeps_the_fastest",
    "exactly the same prediction": "check/test_remembered: test_a_row_of_any_recipe_read_back_gives",
    "is appended to a history": "launch/test_history: test_two_writers_lose_nothing",
    "calibrate` read it too": "cli/test_history: test_a_history_with_a_truncated_line_is_still_a_table_of_runs",
    "takes this machine's": "check/test_calibrate: test_of_two_kinds_of_gpu_the_one_that_is_asked_for_is_calibrated",
    "A run that is over": "cli/test_verify_log: test_a_log_is_judged_and_remembered",
    "NeMo 1 and 2": "launch/test_training_log: test_lines_of_nemo_are_read_as_it_prints_them",
    "recomputation that it names": "launch/test_training_log: test_what_is_computed_again_is_read_from_the_configuration",
    "A folder is a table of runs": "cli/test_verify_log: test_a_folder_of_logs_is_a_table_and_the_worst_decides",
    "are one run": "cli/test_verify_log: test_the_ranks_of_one_run_are_read_together",
    "Runs of others": "check/test_validate: test_both_spellings_of_a_model_are_the_same_model",
    "common tables mean the same": "check/test_words: test_other_names_of_a_field_mean_the_same",
    "what nothing reads is said beside it": "check/test_words: test_a_name_that_nothing_reads_is_said",
    "costs no other": "check/test_words: test_a_row_that_cannot_be_predicted_costs_no_other",
    "takes what ran here as evidence": "planning/test_experience: test_a_layout_that_ran_here_is_taken_within_the_error_bar_and_the_plan_says_so",
    "is avoided": "planning/test_experience: test_a_layout_that_ran_out_of_memory_here_is_avoided_with_all_that_need_as_much",
    "`--no-evidence` plans without": "planning/test_experience: test_without_evidence_no_run_counts",
    "compares with the recipe's own layout": "cli/test_saved_plans: test_diff_against_the_recipes_own_layout",
    "refuses on other hardware": "cli/test_saved_plans: test_on_other_hardware_it_is_refused_with_the_difference",
}
"""Words of the page, and the test that holds what they say."""
NO_PROMISE = ("No plan is to be believed", "It **fails**")
"""Beginnings of paragraphs that only lead to others."""


def paragraphs() -> list[str]:
    text = re.sub(r"```.*?```", "", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    parts = re.split(r"\n\s*\n|\n(?=- )", text)
    return [" ".join(p.split()) for p in parts if p.strip() and not p.strip().startswith("#")]


def test_every_paragraph_promises_what_a_test_holds() -> None:
    for paragraph in paragraphs():
        if not paragraph.startswith(NO_PROMISE):
            assert any(words in paragraph for words in PROMISES), paragraph


@pytest.mark.parametrize("words", PROMISES)
def test_every_promise_is_on_the_page_and_its_test_is_there(words: str) -> None:
    assert any(words in paragraph for paragraph in paragraphs())
    file, _, name = PROMISES[words].partition(": ")
    tree = ast.parse((TESTS / f"{file}.py").read_text(encoding="utf-8"))
    assert any(isinstance(node, ast.FunctionDef) and node.name.startswith(name) for node in ast.walk(tree))


def test_a_short_run_has_no_checkpoint_and_no_validation() -> None:
    from parlaunch_launch.verify import verify_overrides

    said = dict(line.split("=") for line in verify_overrides(5))
    assert said["train.train_iters"] == "5"
    assert (said["validation.eval_iters"], said["checkpoint.save"], said["checkpoint.save_interval"]) == (
        "0",
        "null",
        "0",
    )
