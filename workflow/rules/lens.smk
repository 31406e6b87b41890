# REQUIRED INPUTS: results/{study}/extract/{model}/{questions}/, resources/models/{model}/
# OUTPUTS: results/{study}/lens/{model}/{questions}/options.parquet, tuned.parquet,
#          metrics.parquet, phase.json, phases.parquet, recalibration.parquet,
#          recalibrated-phase.json, steps.parquet, rivals.parquet;
#          results/{study}/lens/comparisons.parquet, of the whole study;
#          metrics/{study}/{model}/{questions}.json and plots/{study}/{model}/{questions}.csv, the
#          headline numbers and layer curves that Git keeps


rule lens:
    input:
        expand(
            "<results>/lens/{model}/{questions}/{file}",
            model=config["models"],
            questions=config["questions"],
            file=[
                "options.parquet",
                "phase.json",
                "recalibration.parquet",
                "steps.parquet",
                "rivals.parquet",
            ],
        ),
        of_whole_study("<results>/lens/comparisons.parquet"),
        deleted("lens"),


rule read_lens:
    input:
        manifest="resources/models/{model}/manifest.json",
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        residuals=expand(
            "<results>/extract/{{model}}/{{questions}}/residuals-{shard}.safetensors", shard=SHARDS
        ),
    output:
        options="<results>/lens/{model}/{questions}/options.parquet",
        tuned="<results>/lens/{model}/{questions}/tuned.parquet",
    log:
        "<logs>/lens/{model}/{questions}/options.log",
    benchmark:
        "<benchmarks>/lens/{model}/{questions}/options.tsv"
    threads: workflow.cores
    resources:
        mem_mb=mb_of_model(4000, copies=2),
        runtime=minutes(60),
        gpu=GPU,
    params:
        **settings("read_lens", config),
        code=digest_of("read_lens"),
    message:
        "Reading {wildcards.model} on {wildcards.questions} through the logit lens"
    shell:
        stage("read_lens")


rule measure_calibration:
    input:
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        options="<results>/lens/{model}/{questions}/options.parquet",
        tuned="<results>/lens/{model}/{questions}/tuned.parquet",
    output:
        metrics="<results>/lens/{model}/{questions}/metrics.parquet",
        phase="<results>/lens/{model}/{questions}/phase.json",
        phases="<results>/lens/{model}/{questions}/phases.parquet",
        # kept in Git: a job that fails leaves them as they were
        numbers=update("<metrics>/{model}/{questions}.json"),
        curves=update("<plots>/{model}/{questions}.csv"),
    log:
        "<logs>/lens/{model}/{questions}/metrics.log",
    benchmark:
        "<benchmarks>/lens/{model}/{questions}/metrics.tsv"
    threads: 2
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        **settings("measure_calibration", config),
        code=digest_of("measure_calibration"),
    message:
        "Measuring calibration of {wildcards.model} on {wildcards.questions}"
    shell:
        stage("measure_calibration")


rule measure_recalibration:
    input:
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        options="<results>/lens/{model}/{questions}/options.parquet",
    output:
        recalibration="<results>/lens/{model}/{questions}/recalibration.parquet",
        phase="<results>/lens/{model}/{questions}/recalibrated-phase.json",
    log:
        "<logs>/lens/{model}/{questions}/recalibration.log",
    benchmark:
        "<benchmarks>/lens/{model}/{questions}/recalibration.tsv"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        **settings("measure_recalibration", config),
        code=digest_of("measure_recalibration"),
    message:
        "Recalibrating {wildcards.model} on {wildcards.questions}"
    shell:
        stage("measure_recalibration")


rule measure_steps:
    input:
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        options="<results>/lens/{model}/{questions}/options.parquet",
        phase="<results>/lens/{model}/{questions}/phase.json",
        residuals=expand(
            "<results>/extract/{{model}}/{{questions}}/residuals-{shard}.safetensors", shard=SHARDS
        ),
    output:
        steps="<results>/lens/{model}/{questions}/steps.parquet",
    log:
        "<logs>/lens/{model}/{questions}/steps.log",
    benchmark:
        "<benchmarks>/lens/{model}/{questions}/steps.tsv"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        **settings("measure_steps", config),
        code=digest_of("measure_steps"),
    message:
        "Dividing steps of {wildcards.model} on {wildcards.questions} between attention and MLP"
    shell:
        stage("measure_steps")


rule measure_rivals:
    input:
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        options="<results>/lens/{model}/{questions}/options.parquet",
        residuals=expand(
            "<results>/extract/{{model}}/{{questions}}/residuals-{shard}.safetensors", shard=SHARDS
        ),
    output:
        table="<results>/lens/{model}/{questions}/rivals.parquet",
    log:
        "<logs>/lens/{model}/{questions}/rivals.log",
    benchmark:
        "<benchmarks>/lens/{model}/{questions}/rivals.tsv"
    threads: 1
    resources:
        mem_mb=growing(3000),
        runtime=growing(60),
    params:
        **settings("measure_rivals", config),
        code=digest_of("measure_rivals"),
    message:
        "Measuring rivals of steering for {wildcards.model} on {wildcards.questions}"
    shell:
        stage("measure_rivals")


rule measure_comparisons:
    input:
        prompts=expand(
            "<results>/extract/{model}/{questions}/prompts.parquet",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        options=expand(
            "<results>/lens/{model}/{questions}/options.parquet",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
        phases=expand(
            "<results>/lens/{model}/{questions}/phase.json",
            model=OWN["models"],
            questions=OWN["questions"],
        ),
    output:
        table="<results>/lens/comparisons.parquet",
    log:
        "<logs>/lens/comparisons.log",
    benchmark:
        "<benchmarks>/lens/comparisons.tsv"
    threads: 1
    resources:
        mem_mb=growing(3000),
        runtime=growing(30),
    params:
        **settings("measure_comparisons", config),
        of_models=[model for model in OWN["models"] for _ in OWN["questions"]],
        of_questions=OWN["questions"] * len(OWN["models"]),
        code=digest_of("measure_comparisons"),
    message:
        "Comparing all models and question sets of the study"
    shell:
        stage("measure_comparisons")
