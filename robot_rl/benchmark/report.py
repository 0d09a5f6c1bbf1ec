"""The page of a benchmark: one HTML file that a lab could put beside its paper."""

from __future__ import annotations

from pathlib import Path

from robot_rl.benchmark.result import BenchmarkResult


def write_benchmark_report(path: Path, result: BenchmarkResult, videos: int, workers: int) -> None:
    """Record up to `videos` failures and write the page."""
