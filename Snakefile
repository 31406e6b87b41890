import fcntl
import gc
import os
import re
import time
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.utils import min_version

from layercal import InputError, study
from layercal.command import UntilInterrupted
from layercal.config import as_meant, check, check_names, check_registry
from layercal.report import figure_names
from layercal.sources import local
from layercal.sources.registry import read, read_yaml

min_version("9.14")
# else Python visits all objects of a large plan over and over while it is made: a third of the time
gc.disable()
logger.addFilter(UntilInterrupted())


configfile: "config/config.yaml"


SCHEMA = read_yaml(Path("workflow/schemas/config.schema.yaml"))
MODELS_SCHEMA = read_yaml(Path("workflow/schemas/models.schema.yaml"))
QUESTIONS_SCHEMA = read_yaml(Path("workflow/schemas/questions.schema.yaml"))
# of the study: its config files, and what the command line says beside them
FILES, GIVEN = workflow.overwrite_configfiles, workflow.config_settings.config
try:
    MODELS = read(Path("config/models.yaml"))
    QUESTIONS = read(Path("config/questions.yaml"))
    check_registry("config/models.yaml", MODELS, MODELS_SCHEMA)
    check_registry("config/questions.yaml", QUESTIONS, QUESTIONS_SCHEMA)
    OWN = study.own_config(FILES)
    config["study"] = GIVEN.get("study", OWN["study"])
    if config["study"] != OWN["study"]:
        OWN = config
    check_names(models=MODELS, questions=QUESTIONS, study=[config["study"]])
    config.update(as_meant(config, SCHEMA))
    check(config, SCHEMA, MODELS, QUESTIONS)
    check(OWN, SCHEMA, MODELS, QUESTIONS)
    study.check(config, FILES, GIVEN)
    local.check(config, MODELS, QUESTIONS)
    if "DVC_STAGE" in os.environ:
        local.check_dependencies(local.dependencies(config, MODELS, QUESTIONS))
except InputError as error:
    raise WorkflowError(str(error)) from None

SHARDS = range(config["extract"]["shards"])


wildcard_constraints:
    model="|".join(map(re.escape, MODELS)),
    questions="|".join(map(re.escape, QUESTIONS)),
    shard=r"\d+",


# models and question tables are shared, all else is the study's
pathvars:
    results=f"results/{config['study']}",
    metrics=f"metrics/{config['study']}",
    plots=f"plots/{config['study']}",
    reports=f"reports/rendered/{config['study']}",
    bundles=f"reports/bundles/{config['study']}",
    logs=f"logs/{config['study']}",
    benchmarks=f"logs/{config['study']}/benchmarks",


report: "workflow/report/workflow.rst"


onstart:
    gc.enable()
    # the kernel drops this lock with the run that holds it: after a kill nothing is to be unlocked
    held = os.open(".snakemake/run", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(
            f"another run is at work in {os.getcwd()}; wait until it has finished, or stop it"
        ) from None
    # a clock set back: results made from what is dated ahead of now would count as older than it
    for path in {path for job in workflow.dag.needrun_jobs() for path in job.input}:
        if os.path.exists(path) and os.path.getmtime(path) > time.time():
            os.utime(path)
    # DVC names the stage it runs: what another stage owns must not change behind DVC's back
    own = os.environ.get("DVC_STAGE")
    ahead = {
        (Path(job.rule.snakefile).stem, job.rule.name) for job in workflow.dag.needrun_jobs()
    }
    foreign = sorted(
        f"{rule} (stage {stage})" for stage, rule in ahead if stage not in (own, "Snakefile")
    )
    if own and foreign:
        raise WorkflowError(
            f"stage {own} would run rules of other stages: {', '.join(foreign)}; nothing was run. "
            "Their results are not what the config and the code now ask for: dvc repro"
        )
    study.record(OWN, FILES, GIVEN)


include: "workflow/rules/common.smk"
include: "workflow/rules/resources.smk"
include: "workflow/rules/fetch.smk"
include: "workflow/rules/extract.smk"
include: "workflow/rules/lens.smk"
include: "workflow/rules/directions.smk"
include: "workflow/rules/steering.smk"
include: "workflow/rules/reports.smk"


rule all:
    default_target: True
    input:
        rules.reports.input,
        *map(deleted, ["fetch", "extract", "lens", "directions", "steering"]),
