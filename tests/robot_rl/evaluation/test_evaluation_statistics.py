"""Worked examples, scipy, and properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from robot_rl.evaluation import PairedCounts, mcnemar_p, mean_gains, paired_difference_interval, wilson_interval

counts = st.builds(PairedCounts, *[st.integers(0, 40)] * 4).filter(lambda c: c.pairs > 0)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    # The four proportions that Newcombe (1998), Stat. Med. 17:857-872, works with; scipy gives the same below.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_worked_examples(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 300), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_properties(trials: int, data: st.DataObject, confidence: float) -> None:
    successes = data.draw(st.integers(0, trials))
    low, high = wilson_interval(successes, trials, confidence)
    assert 0 <= low <= successes / trials <= high <= 1
    reference = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=1e-9)
    assert wilson_interval(trials - successes, trials, confidence) == pytest.approx((1 - high, 1 - low))
    if successes < trials:
        higher = wilson_interval(successes + 1, trials, confidence)
        assert higher[0] > low
        assert higher[1] > high or high == 1


@pytest.mark.parametrize(("successes", "trials"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="not a proportion"):
        wilson_interval(successes, trials)


@pytest.mark.parametrize(
    ("table", "low", "high", "digits"),
    [
        # Cavo et al. (2012), as in the tests of `contingencytables`, the R package of Fagerland, Lydersen & Laake's book.
        (PairedCounts(59, 6, 16, 80), -0.1186, -0.0046, 4),
        # Bentur et al. (2009) in the same book, Altman et al. (2000) table 6.2, and a case with an empty cell: tables from the
        # literature, limits worked out from the formula in a separate script.
        (PairedCounts(1, 1, 7, 12), -0.5069, -0.0256, 4),
        (PairedCounts(14, 5, 0, 22), 0.0115, 0.2265, 4),
        (PairedCounts(36, 12, 2, 0), 0.0569, 0.3404, 4),
    ],
)
def test_newcombe_worked_examples(table: PairedCounts, low: float, high: float, digits: int) -> None:
    assert paired_difference_interval(table) == pytest.approx((low, high), abs=0.51 * 10**-digits)


def test_newcombe_without_correlation_is_the_independent_interval() -> None:
    """With an empty margin phi is 0, which leaves Newcombe's method 10 for independent samples: Wilson intervals, squared and added."""
    low, high = paired_difference_interval(PairedCounts(0, 12, 0, 8))
    l1, u1 = wilson_interval(12, 20)
    _, u2 = wilson_interval(0, 20)
    assert low == pytest.approx(0.6 - np.hypot(0.6 - l1, u2))
    assert high == pytest.approx(0.6 + (u1 - 0.6))


@given(counts, st.sampled_from([0.5, 0.95, 0.99]))
def test_newcombe_properties(table: PairedCounts, confidence: float) -> None:
    low, high = paired_difference_interval(table, confidence)
    assert -1 <= low <= table.difference <= high <= 1
    swapped = PairedCounts(table.both, table.second_only, table.first_only, table.neither)
    assert paired_difference_interval(swapped, confidence) == pytest.approx((-high, -low))
    wider = paired_difference_interval(table, 0.999)
    assert wider[0] <= low + 1e-12
    assert wider[1] >= high - 1e-12


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20), st.integers(1, 20))
def test_a_pair_more_for_the_first_arm_raises_the_interval(both: int, first: int, second: int, neither: int) -> None:
    """A failure of both becomes a success of the first only: nothing may go down (phi's shrinkage has a kink, hence the slack)."""
    before = PairedCounts(both, first, second, neither)
    after = PairedCounts(both, first + 1, second, neither - 1)
    assert after.difference > before.difference
    assert sum(paired_difference_interval(after)) > sum(paired_difference_interval(before)) - 0.01


@given(counts)
def test_mcnemar_is_the_binomial_test(table: PairedCounts) -> None:
    discordant = table.first_only + table.second_only
    reference = stats.binomtest(table.first_only, discordant).pvalue if discordant else 1.0
    assert mcnemar_p(table) == pytest.approx(reference)
    assert mcnemar_p(table) == mcnemar_p(PairedCounts(0, table.second_only, table.first_only, 0))
    more_extreme = PairedCounts(0, table.first_only + table.second_only, 0, 0)
    assert mcnemar_p(more_extreme) <= mcnemar_p(table)


def test_mcnemar_worked_example_and_large_counts() -> None:
    assert mcnemar_p(PairedCounts(1, 1, 7, 12)) == 2 * (1 + 8) / 2**8
    assert mcnemar_p(PairedCounts(0, 0, 0, 9)) == 1.0
    assert mcnemar_p(PairedCounts(0, 3000, 2800, 0)) == pytest.approx(stats.binomtest(2800, 5800).pvalue)


def test_paired_counts() -> None:
    table = PairedCounts.of([True, True, False, False, True], [True, False, True, False, False])
    assert table == (1, 2, 1, 1)
    assert table.rates == (0.6, 0.4)
    assert table.difference == pytest.approx(0.2)
    with pytest.raises(ValueError, match="equally long"):
        PairedCounts.of([True], [])


def episodes(table: PairedCounts) -> tuple[list[bool], list[bool]]:
    """Pairs of outcomes that are counted so."""
    pairs = np.repeat(np.array([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=bool), table, axis=0)
    return pairs[:, 0].tolist(), pairs[:, 1].tolist()


def test_mean_gains_against_a_plain_bootstrap() -> None:
    """Counts of how often an episode is drawn have the distribution of resampling indices."""
    cells = [episodes(PairedCounts(10, 8, 2, 5)), episodes(PairedCounts(3, 9, 4, 14))]
    gains = mean_gains(cells, seed=0)
    assert gains.difference == pytest.approx((6 / 25 + 5 / 30) / 2)
    assert gains.relative_gain == pytest.approx((6 / 12 + 5 / 7) / 2)

    generator = np.random.default_rng(1)
    differences, relatives = np.zeros((2, 4000)), np.zeros((2, 4000))
    for number, cell in enumerate(cells):
        pairs = np.array(cell).T
        for resample in range(4000):
            first, second = pairs[generator.integers(len(pairs), size=len(pairs))].mean(axis=0)
            differences[number, resample] = first - second
            relatives[number, resample] = (first - second) / max(second, 1 / len(pairs))
    expected = np.quantile(differences.mean(axis=0), [0.025, 0.975])
    assert gains.difference_interval == pytest.approx(expected, abs=0.015)
    expected = np.quantile(relatives.mean(axis=0), [0.025, 0.975])
    assert gains.relative_gain_interval == pytest.approx(expected, abs=0.1)


def test_cells_from_the_same_initial_states_are_no_independent_evidence() -> None:
    """A second policy that does what the first does adds nothing to what is known; on other states it narrows the interval."""
    cell = episodes(PairedCounts(20, 30, 10, 40))
    alone, together, apart = (
        np.ptp(mean_gains(cells, 0, strata).difference_interval)
        for cells, strata in (([cell], None), ([cell, cell], ["task", "task"]), ([cell, cell], ["task", "another"]))
    )
    assert together == pytest.approx(alone)
    assert apart == pytest.approx(alone / np.sqrt(2), rel=0.1)


def test_a_cell_that_ended_early_has_the_first_of_the_states() -> None:
    long, short = episodes(PairedCounts(20, 30, 10, 40)), ([True] * 25, [False] * 25)
    gains = mean_gains([long, short], 0, ["task", "task"])
    assert gains.difference == pytest.approx((0.2 + 1) / 2)
    assert np.ptp(gains.difference_interval) == pytest.approx(np.ptp(mean_gains([long], 0).difference_interval) / 2)


@given(st.lists(counts, min_size=1, max_size=5), st.integers(0, 2**32))
def test_mean_gains_properties(tables: list[PairedCounts], seed: int) -> None:
    cells = [episodes(table) for table in tables]
    gains = mean_gains(cells, seed, resamples=200)
    assert gains == mean_gains(cells, seed, resamples=200)
    low, high = gains.difference_interval
    assert -1 <= low <= high <= 1
    assert low - 1e-9 <= gains.difference <= high + 1e-9
    assert np.isfinite([gains.relative_gain, *gains.relative_gain_interval]).all()


def test_a_base_that_never_succeeds_has_a_finite_gain() -> None:
    gains = mean_gains([episodes(PairedCounts(0, 5, 0, 15))], seed=0)
    assert gains.relative_gain == pytest.approx(5.0)
    assert mean_gains([episodes(PairedCounts(0, 0, 0, 20))], seed=0).relative_gain == 0
