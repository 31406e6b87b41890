"""An error that is entered once stands in every table."""

import numpy as np
import pytest
from sweeps import sweep

from layercal.metrics import readings, registry
from layercal.steering import evaluation


@pytest.fixture(params=[registry.EACH, registry.UNBINNED])
def entered(request, monkeypatch):
    """ECE of one bin, which is the absolute mean gap, as a further error."""

    def sample(confidence, correct, weights, n_bins=1):
        return registry.ece_sample(confidence, correct, weights, 1)

    entry = registry.Binned(sample=sample, bins=request.param, dose=True)
    monkeypatch.setitem(registry.BINNED, "one_bin", entry)
    return [10, 15] if request.param == registry.EACH else [0]


def test_a_new_error_is_in_the_metrics(entered, rng):
    read = readings.Readings(rng.normal(size=(2, 90, 4)), rng.integers(0, 4, 90), {})
    table = readings.metric_table(read, [10, 15], [1], 100, 0)
    rows = table[table["metric"] == "one_bin"]
    assert rows["n_bins"].tolist() == entered * 2
    gap = table[table["metric"] == "signed_gap"].set_index("layer")["value"].abs()
    np.testing.assert_allclose(rows["value"], gap[rows["layer"]], atol=1e-6)
    assert (rows["ci_low"] <= rows["ci_high"]).all() and (rows["null_mean"] > 0).all()


def test_a_new_error_is_in_the_dose_response(entered, rng):
    table = evaluation.dose_response(sweep(rng, [1.5, 1, 0.7, 1 / 3], n=90))
    steered = table[table["direction"] == "update-mean"]
    values = steered.pivot(index="alpha", columns="metric", values="value")
    expected = (values["confidence"] - values["accuracy"]).abs()
    np.testing.assert_allclose(values["one_bin"], expected, atol=1e-6)
    ends = steered[steered["metric"] == "one_bin"]
    assert (ends["ci_low"] <= ends["ci_high"]).all()
    assert "one_bin" in set(table.loc[table["kind"] == "matched", "metric"])


def test_errors_stand_in_a_fixed_order():
    listed = [(name, bins) for name, bins, _ in registry.listed([10, 15], [1, 30])]
    each = ["ece", "mce", "mce_min30"]
    rest = [("ece_mass", 10), ("debiased_ece", 10), ("smooth_ece", 0), ("classwise_ece", 10)]
    assert listed == [(name, bins) for bins in (10, 15) for name in each] + rest
