"""Time what grows with the number of jobs: the DAG of a large study, and DVC's look at its results.

In a copy of the project, its models and questions made up, with a file of a few bytes for each
result. Nothing is downloaded and no model runs.

    python benchmarks/dag.py --models 20 --questions 15 --shards 64
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
COPIED = ("workflow", "config", "profiles", "src", "envs", "reports/notebooks")
COPIED += ("dvc.yaml", ".dvcignore")


def make_study(folder: Path, models: int, questions: int, shards: int) -> None:
    """Copy the project, its study made as large as asked."""
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", ROOT / name, folder / name], check=True)
    (folder / "own.csv").write_text("question,A,B,C,D,answer\n")
    for model in range(models):
        (folder / f"model-{model}").mkdir()
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (folder / f"model-{model}" / name).write_text(f"{model}")
    config = yaml.safe_load((folder / "config/config.yaml").read_text())
    config["models"] = [f"model-{i}" for i in range(models)]
    config["questions"] = [f"set-{i}" for i in range(questions)]
    config["extract"]["shards"] = shards
    write = {"config": config}
    write["models"] = {name: {"folder": name, "licence": "none"} for name in config["models"]}
    write["questions"] = {name: {"file": "own.csv"} for name in config["questions"]}
    for name, content in write.items():
        (folder / f"config/{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def timed(folder: Path, *command: str, fails: bool = False) -> tuple[float, float, str]:
    """Run a command there: seconds by the clock, seconds on a processor, what it said."""
    paths = {"PYTHONPATH": str(folder / "src")}
    paths["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    clock, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, cwd=folder, env=os.environ | paths, capture_output=True, text=True
    )
    clock, after = time.perf_counter() - clock, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode and not fails:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return clock, used, done.stdout + done.stderr


def report(what: str, clock: float, used: float) -> None:
    print(f"| {what} | {clock:.1f} s | {used:.1f} s |", flush=True)


def finish(folder: Path) -> int:
    """Make up every result, each with bytes of its own; return their number."""
    listed = timed(folder, "snakemake", "--summary")[2].splitlines()
    table = [line.split("\t")[0] for line in listed if line.count("\t") > 3][1:]
    for name in table:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return len(table)


def main():
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--models", type=int, default=20)
    made.add_argument("--questions", type=int, default=15)
    made.add_argument("--shards", type=int, default=64)
    args = made.parse_args()
    print("| step | clock | processor |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make_study(folder, args.models, args.questions, args.shards)
        size = f"{args.models} x {args.questions} x {args.shards}"
        # without quiet it also prints every job, which takes as long again
        plan = ("snakemake", "--dry-run", "--quiet")
        report(f"plan {size} ({' '.join(plan)})", *timed(folder, *plan)[:2])
        files = finish(folder)
        report(
            f"hydrate {files} files (snakemake --touch)",
            *timed(folder, "snakemake", "--touch", "--forceall", "--quiet", "all")[:2],
        )
        *times, said = timed(folder, "snakemake", "--dry-run")
        assert "Nothing to be done" in said, said[-2000:]
        report("see that nothing is to be done (snakemake --dry-run)", *times)
        for command in ("git init --quiet", "dvc init --quiet", "dvc commit --force --quiet"):
            times = timed(folder, *command.split())[:2]
        report("first hash of all (dvc commit)", *times)
        *times, said = timed(folder, "dvc", "status")
        assert "up to date" in said, said
        report("dvc status", *times)


if __name__ == "__main__":
    main()
