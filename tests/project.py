"""A copy of the project in which the tests run its workflow."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml
from conftest import word_tokenizer
from families import tiny

ROOT = Path(__file__).parents[1]
NOT_COPIED = [".git", ".venv", ".snakemake", "cache", "tmp", "resources", "results", "logs"]
NOT_COPIED += ["build", "metrics", "plots", "dvc.lock", "reports/rendered", "reports/bundles"]
ANYWHERE = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*_cache")


MARKUP = "<script>alert(1)</script>"
# what a change of how calibration is measured makes again of the phase lens
AFTER_CALIBRATION = dict.fromkeys(
    ("measure_calibration", "measure_steps", "measure_comparisons", "lens"), 1
)


def copy_to(folder: Path) -> Path:
    """Copy the project without what it made."""
    made = {ROOT / name for name in NOT_COPIED}

    def ignored(parent, names):
        return ANYWHERE(parent, names) | {name for name in names if Path(parent, name) in made}

    shutil.copytree(ROOT, folder, ignore=ignored)
    return folder


def small_study(folder: Path, **settings) -> Path:
    """Copy the project, its study cut down to a tiny model and 24 questions, both local files."""
    copy_to(folder)
    tokenizer = word_tokenizer(" ABCD")
    made = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=512)
    made.save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    rows = [
        {"question": f"{MARKUP} {i} + {i}?", "subject": f"{MARKUP}{i % 2}"}
        | {letter: str(2 * i + place) for place, letter in enumerate("ABCD")}
        | {"answer": "ABCD"[i % 4]}
        for i in range(24)
    ]
    pd.DataFrame(rows).to_csv(folder / "own.csv", index=False)
    for registry, entry in {
        "models": {"tiny": {"folder": "tiny", "licence": MARKUP, "description": MARKUP}},
        "questions": {"own": {"file": "own.csv"}},
    }.items():
        path = folder / f"config/{registry}.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | entry))
    config = yaml.safe_load((folder / "config/config.yaml").read_text())
    config |= {"models": ["tiny"], "questions": ["own"], "folds": 3}
    config["extract"] |= {"shards": 2, "batch_tokens": 300, "dtype": "float32"}
    config["calibration"] |= {"draws": 100, "min_group": 10}
    config["directions"]["random"] = 2
    config["nullspace"]["rules"] = ["energy=0.9", "k=4"]  # the tiny model is 32 wide
    modes = ["lens", "through-network", "all-positions"]
    config["steering"] |= {"alphas": [0, 1], "max_layers": 2, "modes": modes}
    config["extract"] |= settings
    (folder / "config/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def environment(folder, **variables):
    """Environment in which commands run the code of the copy."""
    scripts = Path(sys.executable).parent
    return os.environ | {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "src"),
        **variables,
    }


def call(folder, *command, **variables):
    """Run a command in the copy, on the code that stands there."""
    env = environment(folder, **variables)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    done.said = done.stdout + done.stderr
    return done


def snakemake(folder, *arguments, **variables):
    """Run the workflow."""
    return call(folder, "snakemake", *arguments, **variables)


def planned(folder, *arguments, **variables):
    """Jobs that a dry run would run, by rule."""
    done = snakemake(folder, "--dry-run", *arguments, **variables)
    assert done.returncode == 0, done.said
    found = dict(re.findall(r"^(\w+) +(\d+)$", done.said, re.M))
    return {rule: int(count) for rule, count in found.items() if rule != "total"}


def commit(folder):
    """Commit all that stands in a Git repository."""
    for command in (
        "git add .",
        "git -c user.name=t -c user.email=t@localhost commit --quiet -m study",
    ):
        done = call(folder, *command.split())
        assert done.returncode == 0, done.said
