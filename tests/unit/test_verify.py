"""Results against committed numbers: what may differ, what may not, and what is said."""

import json
import subprocess

import pytest

from layercal import verify

NUMBERS = {
    "n": 281,
    "accuracy_final": 0.5,
    "ece_final": 0.07,
    "ece_peak": 0.34,
    "correction": 0.27,
    "decision_layer": 24,
    "peak_layer": 24,
    "final_layer": 28,
}


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("n", 281, 280),
        ("accuracy_final", 0.515, 0.525),
        ("ece_final", 0.055, 0.045),
        ("ece_peak", 0.365, 0.375),
        ("correction", 0.305, 0.32),
        ("decision_layer", 25, 26),
        ("decision_layer", 23, None),
        ("peak_layer", 23, 22),
        ("final_layer", 28, 27),
    ],
)
def test_tolerances(name, inside, outside):
    assert verify.compare(NUMBERS, NUMBERS | {name: inside}) == []
    (line,) = verify.compare(NUMBERS, NUMBERS | {name: outside})
    assert line.startswith(f"{name} is {outside}, committed is {NUMBERS[name]} (tolerance ")


def test_every_committed_number_has_a_tolerance():
    from layercal.stages.measure_calibration import NUMBERS as written

    assert set(verify.TOLERANCES) == set(written)


def git(*command):
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    subprocess.run(["git", *identity, *command], check=True, capture_output=True)


def test_what_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"verify: git ls-tree: .*; this needs a Git clone"):
        verify.main()
    git("init", "--quiet")
    git("commit", "--allow-empty", "--message", "empty")
    with pytest.raises(SystemExit, match="no numbers are committed under metrics/"):
        verify.main()
    paths = [tmp_path / f"metrics/{study}/v1.5/mmlu.json" for study in ("one", "two")]
    for path in paths:
        write(path, NUMBERS)
    git("add", ".")
    git("commit", "--message", "numbers")
    # a clone in which nothing has run has the committed files, and no results
    said = failed(capsys)
    for study in ("one", "two"):
        phase = f"results/{study}/lens/v1.5/mmlu/phase.json"
        assert f"metrics/{study}/v1.5/mmlu.json is committed, but {phase} not there" in said
    assert "make study" in said and "make hydrate" in said
    results = [tmp_path / f"results/{study}/lens/v1.5/mmlu/phase.json" for study in ("one", "two")]
    for result in results:
        write(result, NUMBERS | {"reason": "A phase."})
    write(paths[0], NUMBERS | {"ece_final": 0.071})
    verify.main()
    assert "all numbers agree with those committed; 1 file(s) byte for byte" in (
        capsys.readouterr().out
    )
    # what was measured counts, not the file that Git restores
    write(results[0], NUMBERS | {"ece_final": 0.2})
    paths[1].unlink()
    said = failed(capsys)
    assert "metrics/one/v1.5/mmlu.json: ece_final is 0.2, committed is 0.07 (tolerance 0." in said
    assert "metrics/two/v1.5/mmlu.json is committed, but metrics/two/v1.5/mmlu.json not" in said


def write(path, numbers):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(numbers))


def failed(capsys):
    with pytest.raises(SystemExit) as stopped:
        verify.main()
    assert stopped.value.code == 1
    return capsys.readouterr().out
