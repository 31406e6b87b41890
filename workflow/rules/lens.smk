# REQUIRED INPUTS: results/{study}/extract/{model}/{questions}/, resources/models/{model}/
# OUTPUTS: results/{study}/lens/{model}/{questions}/options.parquet, tuned.parquet,
#          metrics.parquet, phase.json; metrics/{study}/{model}/{questions}.json and
#          plots/{study}/{model}/{questions}.csv, the headline numbers and layer curves that Git keeps


rule lens:
    input:
        expand(
            "<results>/lens/{model}/{questions}/{file}",
            model=config["models"],
            questions=config["questions"],
            file=["options.parquet", "phase.json"],
        ),
        deleted("lens"),


rule read_lens:
    input:
        manifest="resources/models/{model}/manifest.json",
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        residuals=expand(
            "<results>/extract/{{model}}/{{questions}}/residuals-{shard}.safetensors", shard=SHARDS
        ),
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "files",
                "model/__init__",
                "model/architecture",
                "model/lens",
                "model/lens_model",
                "model/loading",
                "prompts/tokenizing",
                "results",
                "sources/questions",
                "stages/lens",
            ],
        ),
    output:
        options="<results>/lens/{model}/{questions}/options.parquet",
        tuned="<results>/lens/{model}/{questions}/tuned.parquet",
    log:
        "<logs>/lens/{model}/{questions}/options.log",
    benchmark:
        "<benchmarks>/lens/{model}/{questions}/options.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: workflow.cores
    resources:
        mem_mb=mb_of_model(4000, copies=2),
        runtime=minutes(60),
        gpu=GPU,
    params:
        dtype=config["extract"]["dtype"],
        device=config["extract"]["device"],
        quantize=config["extract"]["quantize"],
        folds=config["folds"],
        seed=config["seed"],
    message:
        "Reading {wildcards.model} on {wildcards.questions} through the logit lens"
    shell:
        "python -m layercal.stages.lens --manifest {input.manifest} --prompts {input.prompts}"
        " --residuals {input.residuals} --dtype {params.dtype} --device {params.device} --quantize {params.quantize}"
        " --threads {threads} --folds {params.folds} --seed {params.seed}"
        " --out {output.options} --tuned {output.tuned} --log {log}"


rule measure_calibration:
    input:
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        options="<results>/lens/{model}/{questions}/options.parquet",
        tuned="<results>/lens/{model}/{questions}/tuned.parquet",
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "files",
                "metrics/accuracy",
                "metrics/calibration",
                "metrics/differences",
                "metrics/phase",
                "metrics/readings",
                "metrics/registry",
                "metrics/resampling",
                "results",
                "sources/questions",
                "stages/metrics",
            ],
        ),
    output:
        metrics="<results>/lens/{model}/{questions}/metrics.parquet",
        phase="<results>/lens/{model}/{questions}/phase.json",
        # kept in Git: a job that fails leaves them as they were
        numbers=update("<metrics>/{model}/{questions}.json"),
        curves=update("<plots>/{model}/{questions}.csv"),
    log:
        "<logs>/lens/{model}/{questions}/metrics.log",
    benchmark:
        "<benchmarks>/lens/{model}/{questions}/metrics.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 2
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        n_bins=config["calibration"]["n_bins"],
        min_count=config["calibration"]["min_count"],
        min_group=config["calibration"]["min_group"],
        draws=config["calibration"]["draws"],
        tolerance=config["phase"]["tolerance"],
        seed=config["seed"],
    message:
        "Measuring calibration of {wildcards.model} on {wildcards.questions}"
    shell:
        "python -m layercal.stages.metrics --prompts {input.prompts} --options {input.options}"
        " --tuned {input.tuned}"
        " --n-bins {params.n_bins} --min-count {params.min_count} --min-group {params.min_group}"
        " --draws {params.draws} --threads {threads}"
        " --tolerance {params.tolerance} --seed {params.seed} --out {output.metrics}"
        " --phase {output.phase} --numbers {output.numbers} --curves {output.curves} --log {log}"
