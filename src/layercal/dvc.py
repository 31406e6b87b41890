"""Write dvc.yaml: ``python -m layercal.dvc``.

DVC versions and caches what the workflow makes; Snakemake alone runs it. A stage of DVC is a phase,
a file of rules; it depends on the code of its rules, on the config keys they use, on the registries
they read, and on the files and folders on this disk that the config names.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

from layercal import InputError, study
from layercal.checks import check
from layercal.code import code_of, settings
from layercal.config import Config
from layercal.files import write_atomically
from layercal.sources import local, registry
from layercal.sources.registry import REGISTRIES

DVC, CONFIG = Path("dvc.yaml"), Path("config/config.yaml")
RULES = Path("workflow/rules")
HEAD = """\
# Written by python -m layercal.dvc; run it again after a change of rules, code or what the config
# names. A stage that would run another's rules refuses (workflow/rules/guards.smk). The study is
# that of config/config.yaml.
"""
NOTEBOOK = "reports/notebooks/report.ipynb"
TEMPLATES = "src/layercal/report/templates"
MODELS, QUESTIONS = "resources/models", "resources/questions"
EXTRACT, LENS, ABLATION, DIRECTIONS, STEERING = (
    f"results/${{study}}/{phase}"
    for phase in ("extract", "lens", "ablation", "directions", "steering")
)
# sections of the config and what stands in them
KEYS = Config.model_construct(study="", models=[], questions=[]).model_dump()
KEPT = {"persist": True}  # else DVC deletes it and every rule of the stage runs again
IN_GIT = {"cache": False, "persist": True}


@dataclass(frozen=True)
class Phase:
    """What the rules of one file read and make, beside their code and config."""

    reads: tuple[str, ...]
    makes: tuple[str, ...]
    notebooks: tuple[str, ...] = ()


PHASES = {
    "fetch": Phase(tuple(map(str, REGISTRIES)), (MODELS, QUESTIONS)),
    "extract": Phase((str(REGISTRIES[1]), MODELS, QUESTIONS), (EXTRACT,)),
    "lens": Phase((EXTRACT, MODELS), (LENS,)),
    "ablation": Phase((EXTRACT, LENS, MODELS), (ABLATION,)),
    "directions": Phase((EXTRACT, LENS, MODELS), (DIRECTIONS,)),
    "steering": Phase((str(REGISTRIES[1]), EXTRACT, LENS, DIRECTIONS, MODELS), (STEERING,)),
    "reports": Phase(
        (
            *("workflow/Snakefile", TEMPLATES, NOTEBOOK, MODELS, QUESTIONS),
            *(EXTRACT, LENS, ABLATION, DIRECTIONS, STEERING),
        ),
        ("reports/rendered/${study}",),
        (NOTEBOOK,),
    ),
}


def pipeline(config: dict, models: dict, questions: dict) -> str:
    """Return the text of dvc.yaml for a config.

    Parameters
    ----------
    config : dict
    models, questions : dict
        The registries.
    """
    named = local.dependencies(config, models, questions)
    stages = {phase: _stage(phase, each, named.get(phase, [])) for phase, each in PHASES.items()}
    stages["lens"]["outs"].append({"plots/${study}": IN_GIT})
    stages["lens"]["metrics"] = [{"metrics/${study}": IN_GIT}]
    curves = {"x": "layer", "y": ["accuracy", "confidence", "ece"]}
    written = {"vars": [f"{CONFIG}:study"], "stages": stages, "plots": [{"plots/${study}": curves}]}
    return HEAD + yaml.dump(written, Dumper=_Plain, sort_keys=False, width=100)


class _Plain(yaml.SafeDumper):
    """Writes what stands twice twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _stage(phase: str, each: Phase, named: list[str]) -> dict:
    text = (RULES / f"{phase}.smk").read_text()
    drawn = list(PHASES) if phase == "reports" else [phase]  # the pages show all rules
    rules = [f"{RULES}/{name}.smk" for name in ("common", *drawn)]
    code = code_of(*re.findall(r'stage\("(\w+)"\)', text), beside=each.notebooks)
    deps = {"envs/constraints.txt", *rules, *code, *each.reads, *named}
    return {
        "cmd": f"snakemake {phase}",
        "params": [{str(CONFIG): keys(text)}],
        "deps": sorted(deps),
        "outs": [{out: KEPT} for out in each.makes],
    }


def keys(rules: str) -> list[str]:
    """Return the config keys on which results of these rules depend.

    What a rule hands on by a function of its input, Snakemake does not compare either: such a
    setting is only checked.
    """
    compared = "\n".join(line for line in rules.splitlines() if "wildcards, input:" not in line)
    used = set(re.findall(r'(?:config\[|OWN\[|asked\()"(\w+)"', compared))
    for name in re.findall(r'settings\("(\w+)"', compared):
        used |= {key for key in KEYS if settings(name, {key: KEYS[key]})}
    if "SHARDS" in compared:
        used.add("extract")
    return [key for key in Config.model_fields if key in used]


def main() -> None:
    """Write what config/config.yaml names and what the rules now say."""
    (models, questions), config = map(registry.read, REGISTRIES), study.own_config([])
    check(config, models, questions)
    text = pipeline(config, models, questions)
    if not DVC.exists() or DVC.read_text() != text:
        write_atomically(DVC, text)


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
