"""How much of the fall one shift, the question's own change and another's bring."""

import numpy as np
import pytest
from scipy.special import softmax

from layercal.metrics import calibration
from layercal.steering import dimensions


def test_dimensions(rng):
    """Logits fall from sharp to calibrated in two steps: the second dimension brings the rest."""
    n = 800
    calibrated = 1.2 * rng.normal(size=(n, 4))
    answer = (rng.random((n, 1)) > softmax(calibrated, -1).cumsum(-1)).sum(-1).clip(0, 3)
    own = np.stack([factor * calibrated for factor in (4.0, 2.0, 1.0, 1.0)], 1)
    # one shift for all brings the first step, that of another question nothing
    mean = np.stack([factor * calibrated for factor in (4.0, 2.0, 2.0, 1.0)], 1)
    others = np.stack([factor * calibrated for factor in (4.0, 4.0, 4.0, 1.0)], 1)
    read = np.stack([own, mean, others])[None]
    found = dimensions.table(read, answer, np.arange(n), [7], [0, 1, 2], 300, 0)
    assert found["rank"].tolist() == 3 * [0, 1, 2] and set(found["layer"]) == {7}
    of = found.set_index(["source", "rank"])
    p = softmax(2 * calibrated, -1)
    assert of.loc[("own", 1), "ece"] == pytest.approx(
        calibration.ece(p.max(-1), p.argmax(-1) == answer)
    )
    fall = [-np.log(softmax(f * calibrated, -1)[np.arange(n), answer]) for f in (4, 2, 1)]
    expected = (fall[0] - fall[1]).mean() / (fall[0] - fall[2]).mean()
    assert of.loc[("own", 1), "nll_share"] == pytest.approx(expected)
    for score in ("nll", "ece"):
        share = of[f"{score}_share"]
        assert share["own"].tolist()[::2] == pytest.approx([0, 1])
        assert share["mean", 2] == share["own", 1] and (share["another's"] == 0).all()
        low, high = (of.loc[("own", 1), f"{score}_share_{end}"] for end in ("low", "high"))
        assert 0 < low < share["own", 1] < high < 1
    assert dimensions.mean_shift(found, 7)["nll_share"] == of.loc[("mean", 2), "nll_share"]
    said = dimensions.in_words(found, 7)
    assert f"the same for every question, brings {expected:.0%} of NLL (" in said
    assert "in 1 principal direction(s) the question's own change brings" in said
    assert "in 8" not in said
    still = np.repeat(read[:, :, :, :1], 4, 3)
    none = dimensions.table(still, answer, np.arange(n), [7], [0, 1, 2], 300, 0)
    assert none["nll_share"].isna().all() and none["ece_share"].isna().all()
    assert "brings no share of NLL, since a fall is not shown" in dimensions.in_words(none, 7)
