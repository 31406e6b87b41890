"""Steered readings: what was recorded prompt by prompt is what is read, by name."""

import numpy as np
import pandas as pd
import pytest
import torch

from layercal.results import Run
from layercal.steering import steered, tally
from layercal.steering.steered import Steered

COUNTS = [4, 4, 2, 4, 3, 4]  # options of each question
FOLD = np.array([0, 1, 2, 1, 0, 2])


@pytest.fixture
def recorded(tmp_path):
    """A run of six prompts in two shards, written in another order, and what was read of each."""
    prompts = pd.DataFrame({"question_id": list("abcdef"), "answer": [0, 1, 1, 3, 2, 0]})
    prompts["option_ids"], prompts["input_ids"] = [[1] * count for count in COUNTS], [[2]] * 6
    prompts = prompts.assign(category="c", language="en", prompt="")
    run, cells = Run(tmp_path / "prompts.parquet", prompts), tally.cells(prompts, FOLD)
    given, paths = {}, []
    for shard, rows in enumerate([[5, 0, 3], [2, 1, 4]]):
        recorder = steered.Recorder(cells, 4, 10)
        for row in rows:
            torch.manual_seed(row)
            count = COUNTS[row]
            given[row] = Steered(
                fitted=torch.randn(2, 3, 1, 2, count),
                frozen=torch.randn(2, 3, 1, 2, count),
                controls=torch.randn(5, 1, 2, count),
                growth=torch.rand(3, 1, 2),
            )
            recorder.add(row, prompts["answer"][row], {"lens": given[row]})
        paths.append(tmp_path / f"logits-{shard}.safetensors")
        run.write(paths[-1], {"rows": torch.tensor(rows), **recorder.tensors()})
    return run, paths, given, cells


def test_shards_are_gathered_in_the_order_of_the_prompts(recorded):
    run, paths, given, cells = recorded
    found, sums = steered.load(run, paths)
    assert list(found) == list(sums) == ["lens"]
    expected = np.zeros((3, 1, 5, 2, 13))
    whole = found["lens"]
    for name in ("fitted", "frozen"):
        stored = getattr(whole, name)
        setattr(whole, name, np.stack([stored[:, variant] for variant in range(2)], 1))
    for row, one in given.items():
        read, count = whole.take(row), COUNTS[row]
        np.testing.assert_array_equal(read.growth, one.growth)
        for name, like in (
            ("fitted", one.fitted),
            ("frozen", one.frozen),
            ("controls", one.controls[:1]),
        ):
            logits = getattr(read, name)
            np.testing.assert_array_equal(logits[..., :count], like)
            assert np.isneginf(logits[..., count:]).all()
        answer = run.prompts["answer"].to_numpy()[[row]]
        scored = tally.score_rows(one.controls.numpy()[..., None, :], answer, 10)[..., 0, :]
        expected[cells[row]] += scored.swapaxes(0, 1)
    np.testing.assert_allclose(sums["lens"], expected, rtol=1e-6)


@pytest.mark.parametrize("rows", [[0, 3], [5, 2, 1], []])
def test_some_of_the_prompts_are_kept_without_a_read(recorded, monkeypatch, rows):
    run, paths, given, _ = recorded
    monkeypatch.setattr(steered, "BLOCK", 2)  # of shards of three
    found, _ = steered.load(run, paths)
    some = found["lens"].take(np.array(rows, int)).fitted
    again = found["lens"].take(np.isin(np.arange(6), rows)).fitted[:, 1]
    assert len(some[:, 1]) == len(again) == len(rows)
    for place, row in enumerate(rows):
        np.testing.assert_array_equal(some[:, 1][place, ..., : COUNTS[row]], given[row].fitted[1])
        np.testing.assert_array_equal(again[sorted(rows).index(row)], some[:, 1][place])
    with pytest.raises(TypeError, match=r"as \[rows\] or \[:, variant\]"):
        some[..., 0]


def test_what_a_page_shows_is_read_alone(recorded):
    run, paths, given, _ = recorded
    found = steered.shown(run, paths, "lens", FOLD)
    assert found.shape == (2, 1, 2, 6, 4)
    for row, one in given.items():
        count = COUNTS[row]
        np.testing.assert_array_equal(found[0, :, :, row, :count], one.fitted[0, FOLD[row]])
        np.testing.assert_array_equal(found[1, :, :, row, :count], one.controls[0])
