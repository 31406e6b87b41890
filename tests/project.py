"""A copy of the project in which the tests run its workflow."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
NOT_COPIED = [".git", ".venv", ".snakemake", "cache", "tmp", "resources", "results", "logs"]
NOT_COPIED += ["rendered", "build", "dvc.lock", "__pycache__", "*.egg-info", ".*_cache"]


def copy_to(folder: Path) -> Path:
    """Copy the project without what it made."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return folder


def call(folder, *command, **environment):
    """Run a command in the copy, on the code that stands there."""
    scripts = Path(sys.executable).parent
    env = os.environ | {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(folder / "src"),
        **environment,
    }
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    done.said = done.stdout + done.stderr
    return done


def snakemake(folder, *arguments, **environment):
    """Run the workflow."""
    return call(folder, "snakemake", *arguments, **environment)


def planned(folder, *arguments):
    """Jobs that a dry run would run, by rule."""
    done = snakemake(folder, "--dry-run", *arguments)
    assert done.returncode == 0, done.said
    found = dict(re.findall(r"^(\w+) +(\d+)$", done.said, re.M))
    return {rule: int(count) for rule, count in found.items() if rule != "total"}
