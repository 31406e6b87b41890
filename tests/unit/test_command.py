"""Slips in Snakemake's command line."""

import pytest

from layercal import InputError, command


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 1\n")
    (tmp_path / "more.yml").write_text("seed: 2\n")
    (tmp_path / "phase.json").write_text("{}")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("-n --configfile mine.yaml lens", "snakemake lens --configfile mine.yaml"),
        ("--configfiles mine.yaml a more.yml b", "snakemake a b --configfile mine.yaml more.yml"),
        ("--configfile mine.yaml phase.json -n", "snakemake phase.json --configfile mine.yaml"),
        ("--configfile none.yaml", "none.yaml: cannot be read: No such file"),
        ("--configfile=none.yaml lens", "none.yaml: cannot be read: No such file"),
        ("--configfile lens", "lens: cannot be read: No such file"),
    ],
)
def test_targets_taken_for_config_files_are_named(typed, message):
    with pytest.raises(InputError) as error:
        command.check(typed.split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "-n lens",
        "lens --configfile mine.yaml more.yml -n",
        "--configfile mine.yaml --config limit=40 seed=1",
        "--configfile=mine.yaml lens",
        "--configfile mine.yaml -- lens",
        "--configfile phase.json",
    ],
)
def test_what_is_right_passes(typed):
    command.check(typed.split())
