"""Policies x critics x suites x ways of steering, in one run: the plan, the running of it, its numbers and its page."""

from robot_rl.benchmark.elsewhere import read_elsewhere
from robot_rl.benchmark.plan import BenchmarkPlan, SuitePlan, read_plan
from robot_rl.benchmark.result import BenchmarkResult, cells_table, policies_table, remarks
from robot_rl.benchmark.run import run_benchmark

__all__ = [
    "BenchmarkPlan",
    "BenchmarkResult",
    "SuitePlan",
    "cells_table",
    "policies_table",
    "read_elsewhere",
    "read_plan",
    "remarks",
    "run_benchmark",
]
