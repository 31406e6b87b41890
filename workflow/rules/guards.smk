# What a run sees to before its first job: nobody else is at work here, clocks agree, and DVC's
# stages do not run each other's rules. And what it says after its last.

import time

from filelock import FileLock, Timeout

# held until this process ends
LOCK = FileLock(".snakemake/run", timeout=0)


onstart:
    gc.enable()
    leave_interrupts_to_snakemake()
    # the kernel drops this lock with the run that holds it: after a kill nothing is to be unlocked
    try:
        LOCK.acquire()
    except Timeout:
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


onsuccess:
    pages = [
        job.output.html for job in workflow.dag.jobs if job.rule.name.endswith("render_index")
    ]
    for page in pages:
        logger.info(f"Open {page}")
