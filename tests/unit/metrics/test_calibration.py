"""Every metric against independent oracles: netcal, torchmetrics, relplot, scikit-learn, loops.

Where oracles disagree the text decides: bins are (lo, hi], the first closed at 0 and the last at 1.
netcal and torchmetrics agree with that away from edges; torchmetrics puts 1.0 into a bin of its
own, and netcal interpolates the edges of equal-mass bins between samples.
"""

import itertools
import math

import numpy as np
import pytest
import relplot
import torch
from hypothesis import given
from hypothesis import strategies as st
from netcal.metrics import ECE, MCE
from sklearn.metrics import log_loss, roc_auc_score
from torchmetrics.functional.classification import binary_calibration_error

from layercal import InputError
from layercal.metrics import calibration


def naive_bins(confidence, correct, n_bins):
    """Samples of each bin by the definition: (lo, hi], the first closed at 0."""
    for b in range(n_bins):
        low, high = b / n_bins, (b + 1) / n_bins
        inside = [i for i, c in enumerate(confidence) if low < c <= high or (b == 0 and c == 0)]
        if inside:
            yield [(float(confidence[i]), float(correct[i])) for i in inside]


def naive_mass_bins(confidence, correct, n_bins):
    """Equal-mass bins of untied samples: sorted, cut into equal parts."""
    n = len(confidence)
    pairs = sorted(zip(map(float, confidence), map(float, correct), strict=True))
    cuts = [math.ceil(b * n / n_bins) for b in range(n_bins + 1)]
    return [pairs[a:b] for a, b in itertools.pairwise(cuts)]


def gap_of(pairs):
    return sum(y - c for c, y in pairs) / len(pairs)


def naive_ece(bins, n):
    return sum(len(pairs) / n * abs(gap_of(pairs)) for pairs in bins)


def naive_mce(bins, min_count=1):
    gaps = [abs(gap_of(pairs)) for pairs in bins if len(pairs) >= min_count]
    return max(gaps) if gaps else float("nan")


def naive_debiased(bins, n):
    total = 0
    for pairs in bins:
        if len(pairs) > 1:
            accuracy = sum(y for _, y in pairs) / len(pairs)
            variance = accuracy * (1 - accuracy) / (len(pairs) - 1)
            total += len(pairs) / n * (gap_of(pairs) ** 2 - variance)
    return math.sqrt(max(total, 0))


def cases():
    rng = np.random.default_rng(0)
    for n in (1, 7, 285, 4000):
        confidence = rng.uniform(0.25, 1, n)
        yield f"random-{n}", confidence, rng.random(n) < confidence**2
    tied = rng.choice([0.26, 0.55, 0.81], 200)
    yield "tied", tied, rng.random(200) < 0.6
    confidence = rng.uniform(0.25, 1, 60)
    yield "all-correct", confidence, np.ones(60, bool)
    yield "all-wrong", confidence, np.zeros(60, bool)
    yield "constant", np.full(50, 0.37), rng.random(50) < 0.5


CASES = [pytest.param(c, y, id=name) for name, c, y in cases()]
EDGES = [
    pytest.param(np.array(values), np.arange(len(values)) % 2 == 0, id=name)
    for name, values in {
        "zero": [0.0, 0.0, 0.05],
        "quarter": [0.25] * 6,
        "one": [1.0, 1.0, 0.95],
        "tenths": [b / 10 for b in range(11)] * 2,
        "fifteenths": [b / 15 for b in range(16)] * 2,
    }.items()
]


@pytest.mark.parametrize("n_bins", [1, 2, 10, 15])
@pytest.mark.parametrize(("confidence", "correct"), CASES + EDGES)
def test_binned_errors_equal_loops(confidence, correct, n_bins):
    n = len(confidence)
    bins = list(naive_bins(confidence, correct, n_bins))
    assert calibration.ece(confidence, correct, n_bins) == pytest.approx(
        naive_ece(bins, n), abs=1e-12
    )
    for count in (1, 3):
        assert calibration.mce(confidence, correct, n_bins, count) == pytest.approx(
            naive_mce(bins, count), abs=1e-12, nan_ok=True
        )
    assert calibration.debiased_ece(confidence, correct, n_bins, "width") == pytest.approx(
        naive_debiased(bins, n), abs=1e-9
    )


@pytest.mark.parametrize("n_bins", [2, 10, 15])
@pytest.mark.parametrize(("confidence", "correct"), CASES)
def test_equal_width_errors_equal_libraries(confidence, correct, n_bins):
    ece = calibration.ece(confidence, correct, n_bins)
    mce = calibration.mce(confidence, correct, n_bins)
    # both libraries take a binary problem; its calibration error is that of the confidences
    assert ece == pytest.approx(ECE(n_bins).measure(confidence, correct.astype(int)), abs=1e-9)
    assert mce == pytest.approx(MCE(n_bins).measure(confidence, correct.astype(int)), abs=1e-9)
    for norm, found in (("l1", ece), ("max", mce)):
        expected = binary_calibration_error(
            torch.tensor(confidence), torch.tensor(correct).int(), n_bins=n_bins, norm=norm
        )
        assert found == pytest.approx(expected.item(), abs=1e-6)


def test_where_the_libraries_disagree():
    confidence, correct = np.array([0.95, 1.0]), np.array([0, 1])
    assert calibration.ece(confidence, correct) == pytest.approx(0.475)
    assert ECE(10).measure(confidence, correct) == pytest.approx(0.475)
    own_bin = binary_calibration_error(torch.tensor(confidence), torch.tensor(correct), n_bins=10)
    assert own_bin.item() == pytest.approx((0.95 + 0) / 2)


def test_edges_fall_where_the_definition_says():
    for n_bins in (4, 10, 15):
        for b in range(n_bins + 1):
            edge = b / n_bins
            found = calibration.bin_table([edge], [1], n_bins).count.argmax()
            assert found == max(b - 1, 0), (n_bins, edge)
            if b < n_bins:
                above = np.nextafter(edge, 2)
                assert calibration.bin_table([above], [1], n_bins).count.argmax() == b


@pytest.mark.parametrize("n_bins", [2, 7, 10])
@pytest.mark.parametrize("n", [10, 11, 285, 4000])
def test_equal_mass_errors_equal_loops(rng, n, n_bins):
    confidence = rng.permutation(np.linspace(0.25, 1, n))
    correct = rng.random(n) < confidence**2
    bins = naive_mass_bins(confidence, correct, n_bins)
    sizes = calibration.bin_table(confidence, correct, n_bins, "mass").count
    assert sizes.max() - sizes.min() <= 1
    found = calibration.ece(confidence, correct, n_bins, "mass")
    assert found == pytest.approx(naive_ece(bins, n), abs=1e-12)
    found = calibration.debiased_ece(confidence, correct, n_bins)
    assert found == pytest.approx(naive_debiased(bins, n), abs=1e-9)


def test_equal_mass_keeps_ties_together():
    confidence = [0.3] * 6 + [0.9] * 4
    table = calibration.bin_table(confidence, [1, 0] * 5, 5, "mass")
    assert sorted(table.count[table.count > 0]) == [4, 6]


@pytest.mark.parametrize("n", [50, 285, 3000])
@pytest.mark.parametrize("power", [0.5, 1, 2, 6])
def test_smooth_ece_equals_relplot(rng, n, power):
    confidence = rng.uniform(0.25, 1, n)
    correct = (rng.random(n) < confidence**power).astype(float)
    # relplot finds the bandwidth in steps of 2^-10 and evaluates on 200 points
    expected = relplot.smECE(confidence, correct)
    assert calibration.smooth_ece(confidence, correct) == pytest.approx(expected, abs=2e-3)


def test_smooth_ece_equals_quadrature(rng):
    """The definition, integrated on a fine grid at the bandwidth found."""
    confidence = rng.uniform(0.25, 1, 80)
    correct = (rng.random(80) < confidence**3).astype(float)
    found = float(calibration.smooth_ece(confidence, correct))
    width = float(calibration.smooth_bandwidth(confidence, correct))
    assert found == pytest.approx(width, abs=1e-5)
    at = np.linspace(0, 1, 4001)
    smoothed = np.zeros(4001)
    for c, y in zip(confidence, correct, strict=True):
        for mirror in (c, -c, 2 - c, c - 2, c + 2):
            smoothed += (y - c) * np.exp(-0.5 * ((at - mirror) / width) ** 2)
    smoothed /= 80 * width * math.sqrt(2 * math.pi)
    assert found == pytest.approx(np.trapezoid(np.abs(smoothed), at), abs=1e-4)


def softmax_cases():
    rng = np.random.default_rng(1)
    for options in (2, 4, 10):
        logits = rng.normal(size=(120, options)) * 2
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        yield pytest.param(p, rng.integers(0, options, 120), id=f"{options}-options")


@pytest.mark.parametrize(("p", "answer"), list(softmax_cases()))
def test_scores_of_the_distribution(p, answer):
    options = p.shape[1]
    assert calibration.nll(p, answer) == pytest.approx(
        log_loss(answer, p, labels=list(range(options)))
    )
    squares = [
        sum((p[i, k] - (k == right)) ** 2 for k in range(options)) for i, right in enumerate(answer)
    ]
    assert calibration.brier(p, answer) == pytest.approx(np.mean(squares))
    by_class = [ECE(10).measure(p[:, k], (answer == k).astype(int)) for k in range(options)]
    assert calibration.classwise_ece(p, answer) == pytest.approx(np.mean(by_class), abs=1e-9)


@pytest.mark.parametrize(("confidence", "correct"), CASES)
def test_auroc_and_gap(confidence, correct):
    gap = confidence.mean() - correct.mean()
    assert calibration.signed_gap(confidence, correct) == pytest.approx(gap)
    found = calibration.auroc(confidence, correct)
    if correct.all() or not correct.any():
        assert np.isnan(found)
    else:
        assert found == pytest.approx(roc_auc_score(correct, confidence))


@pytest.mark.parametrize(
    ("confidence", "correct", "expected"),
    [
        ([1.0] * 5, [1] * 5, 0),
        ([1.0] * 5, [0] * 5, 1),
        ([0.25] * 8, [1, 0, 0, 0, 1, 0, 0, 0], 0),
        ([0.0], [0], 0),
        ([0.6], [1], 0.4),
    ],
)
def test_by_hand(confidence, correct, expected):
    for metric in (calibration.ece, calibration.mce):
        assert metric(confidence, correct) == pytest.approx(expected)


def test_leading_axes_are_independent(rng):
    confidence = rng.uniform(0.25, 1, (3, 2, 50))
    correct = rng.random((3, 2, 50)) < confidence
    p = rng.dirichlet(np.ones(4), (3, 2, 50))
    answer = rng.integers(0, 4, 50)
    pairs = [calibration.ece, calibration.mce, calibration.smooth_ece, calibration.auroc]
    pairs += [calibration.debiased_ece, calibration.signed_gap]
    scores = [calibration.classwise_ece, calibration.brier, calibration.nll]
    for metric in pairs:
        found = metric(confidence, correct)
        assert found.shape == (3, 2)
        for i in np.ndindex(3, 2):
            assert found[i] == pytest.approx(metric(confidence[i], correct[i]))
    for metric in scores:
        found = metric(p, answer)
        assert found.shape == (3, 2)
        for i in np.ndindex(3, 2):
            assert found[i] == pytest.approx(metric(p[i], answer))


samples = st.lists(
    st.tuples(st.floats(0, 1, allow_subnormal=False), st.booleans()), min_size=1, max_size=60
)


@given(samples, st.integers(1, 20), st.integers(2, 4), st.randoms(use_true_random=False))
def test_properties(pairs, n_bins, parts, random):
    confidence, correct = (np.array(part, float) for part in zip(*pairs, strict=True))
    ece = calibration.ece(confidence, correct, n_bins)
    mce = calibration.mce(confidence, correct, n_bins)
    assert 0 <= ece <= mce + 1e-12 <= 1 + 1e-9
    order = random.sample(range(len(pairs)), len(pairs))
    assert calibration.ece(confidence[order], correct[order], n_bins) == pytest.approx(ece)
    # a bin cut into parts can only show more, and one bin shows the gap of the whole
    whole = np.digitize(confidence, np.arange(1, n_bins) / n_bins, right=True)
    finer = np.digitize(confidence, np.arange(1, n_bins * parts) / (n_bins * parts), right=True)
    if (finer // parts == whole).all():  # but for edges that floating point moves
        assert calibration.ece(confidence, correct, n_bins * parts) >= ece - 1e-12
    assert ece >= abs(float(calibration.signed_gap(confidence, correct))) - 1e-12
    assert 0 <= calibration.smooth_ece(confidence, correct) <= 1
    area = calibration.auroc(confidence, correct)
    assert np.isnan(area) or 0 <= area <= 1


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([], [], "no samples"),
        ([0.5, 0.5], [1], "same samples"),
        (0.5, 1, "same samples"),
        ([float("nan")], [1], "NaN"),
        ([1.2], [1], r"within \[0, 1\]"),
        ([-0.1], [1], r"within \[0, 1\]"),
        ([0.5], [2], "0 and 1"),
        ([0.5], [float("nan")], "0 and 1"),
    ],
)
def test_bad_pairs_are_refused(confidence, correct, message):
    for metric in (
        calibration.ece,
        calibration.mce,
        calibration.debiased_ece,
        calibration.smooth_ece,
        calibration.auroc,
        calibration.signed_gap,
    ):
        with pytest.raises(InputError, match=message):
            metric(confidence, correct)


@pytest.mark.parametrize(
    ("p", "answer", "message"),
    [
        (np.zeros((0, 4)), [], "no samples"),
        ([[0.5, 0.5]], [0, 1], "samples, options"),
        ([0.5, 0.5], [0, 1], "samples, options"),
        ([[0.5, 0.6]], [0], "sum to 1"),
        ([[1.5, -0.5]], [0], "non-negative"),
        ([[float("nan"), 0.5]], [0], "not NaN"),
        ([[0.5, 0.5]], [2], "option index, 0 to 1"),
        ([[0.5, 0.5]], [0.5], "option index"),
    ],
)
def test_bad_probabilities_are_refused(p, answer, message):
    for metric in (calibration.classwise_ece, calibration.brier, calibration.nll):
        with pytest.raises(InputError, match=message):
            metric(p, answer)


def test_too_few_samples_for_equal_mass_and_unknown_scheme():
    with pytest.raises(InputError, match="3 samples cannot fill 10 bins of equal mass"):
        calibration.ece([0.3, 0.4, 0.5], [1, 0, 1], 10, "mass")
    with pytest.raises(InputError, match="unknown binning scheme 'log'"):
        calibration.ece([0.3], [1], 10, "log")
