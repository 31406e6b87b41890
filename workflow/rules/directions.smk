# REQUIRED INPUTS: results/{study}/extract/{model}/{questions}/, .../lens/{model}/{questions}/,
#                  resources/models/{model}/
# OUTPUTS: results/{study}/directions/{model}/{questions}/directions.safetensors,
#          directions.parquet, dimensions.parquet, nullspace.parquet, neurons.parquet


rule directions:
    input:
        expand(
            "<results>/directions/{model}/{questions}/{table}.parquet",
            model=config["models"],
            questions=config["questions"],
            table=["directions", "nullspace"],
        ),
        deleted("directions"),


rule fit_directions:
    input:
        manifest="resources/models/{model}/manifest.json",
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        residuals=expand(
            "<results>/extract/{{model}}/{{questions}}/residuals-{shard}.safetensors", shard=SHARDS
        ),
        options="<results>/lens/{model}/{questions}/options.parquet",
        phase="<results>/lens/{model}/{questions}/phase.json",
        source_prompts=lambda wildcards: expand(
            "<results>/extract/{pair}/prompts.parquet", pair=transfer_sources(wildcards)
        ),
        source_residuals=lambda wildcards: expand(
            "<results>/extract/{pair}/residuals-{shard}.safetensors",
            pair=transfer_sources(wildcards),
            shard=SHARDS,
        ),
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "ablation/nullspace",
                "files",
                "metrics/accuracy",
                "metrics/calibration",
                "metrics/differences",
                "metrics/paired",
                "metrics/phase",
                "metrics/readings",
                "metrics/registry",
                "metrics/resampling",
                "model/__init__",
                "model/architecture",
                "model/lens_model",
                "model/loading",
                "model/unembedding",
                "prompts/tokenizing",
                "results",
                "sources/questions",
                "steering/controls",
                "steering/dimensions",
                "steering/directions",
                "steering/fitted",
                "stages/directions",
            ],
        ),
    output:
        vectors="<results>/directions/{model}/{questions}/directions.safetensors",
        table="<results>/directions/{model}/{questions}/directions.parquet",
        dimensions="<results>/directions/{model}/{questions}/dimensions.parquet",
    log:
        "<logs>/directions/{model}/{questions}/directions.log",
    benchmark:
        "<benchmarks>/directions/{model}/{questions}/directions.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: workflow.cores
    resources:
        mem_mb=mb_of_model(4000, copies=2),
        runtime=minutes(60),
        gpu=GPU,
    params:
        estimators=config["directions"]["estimators"],
        blocks=config["directions"]["blocks"],
        ranks=config["directions"]["ranks"],
        random=config["directions"]["random"],
        null_rule=config["nullspace"]["rules"][0],
        max_layers=config["steering"]["max_layers"],
        min_group=(
            f"--min-group {config['calibration']['min_group']}"
            if config["directions"]["transfer"]["categories"]
            else ""
        ),
        sources=transfer_sources,
        tolerance=config["phase"]["tolerance"],
        n_bins=config["calibration"]["n_bins"][0],
        draws=config["calibration"]["draws"],
        folds=config["folds"],
        seed=config["seed"],
        dtype=config["extract"]["dtype"],
        device=config["extract"]["device"],
        quantize=config["extract"]["quantize"],
    message:
        "Fitting directions of {wildcards.model} on {wildcards.questions}"
    shell:
        "python -m layercal.stages.directions --manifest {input.manifest}"
        " --prompts {input.prompts} --residuals {input.residuals} --options {input.options}"
        " --phase {input.phase} --estimators {params.estimators} --blocks {params.blocks}"
        " --ranks {params.ranks} --random {params.random} --max-layers {params.max_layers}"
        " --null-rule {params.null_rule} {params.min_group} --sources {params.sources} --source-prompts {input.source_prompts}"
        " --source-residuals {input.source_residuals} --tolerance {params.tolerance}"
        " --n-bins {params.n_bins} --draws {params.draws} --folds {params.folds}"
        " --seed {params.seed} --dtype {params.dtype} --device {params.device}"
        " --quantize {params.quantize} --threads {threads} --out {output.vectors}"
        " --table {output.table} --dimensions {output.dimensions} --log {log}"


rule analyse_null_space:
    input:
        manifest="resources/models/{model}/manifest.json",
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        residuals=expand(
            "<results>/extract/{{model}}/{{questions}}/residuals-{shard}.safetensors", shard=SHARDS
        ),
        code=expand(
            "src/layercal/{module}.py",
            module=[
                "ablation/neurons",
                "ablation/nullspace",
                "ablation/table",
                "files",
                "metrics/accuracy",
                "metrics/calibration",
                "metrics/differences",
                "metrics/paired",
                "metrics/readings",
                "metrics/registry",
                "metrics/resampling",
                "metrics/scoring",
                "model/__init__",
                "model/architecture",
                "model/lens_model",
                "model/loading",
                "model/unembedding",
                "prompts/tokenizing",
                "results",
                "sources/questions",
                "stages/nullspace",
            ],
        ),
    output:
        shares="<results>/directions/{model}/{questions}/nullspace.parquet",
        neurons="<results>/directions/{model}/{questions}/neurons.parquet",
    log:
        "<logs>/directions/{model}/{questions}/nullspace.log",
    benchmark:
        "<benchmarks>/directions/{model}/{questions}/nullspace.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: workflow.cores
    resources:
        mem_mb=mb_of_model(4000, copies=2),
        runtime=minutes(60),
        gpu=GPU,
    params:
        rules=config["nullspace"]["rules"],
        neurons=config["nullspace"]["neurons"],
        random=config["directions"]["random"],
        n_bins=config["calibration"]["n_bins"][0],
        draws=config["calibration"]["draws"],
        seed=config["seed"],
        dtype=config["extract"]["dtype"],
        device=config["extract"]["device"],
        quantize=config["extract"]["quantize"],
    message:
        "Analysing the null space of {wildcards.model} on {wildcards.questions}"
    shell:
        "python -m layercal.stages.nullspace --manifest {input.manifest}"
        " --prompts {input.prompts} --residuals {input.residuals} --rules {params.rules}"
        " --neurons {params.neurons} --random {params.random} --n-bins {params.n_bins}"
        " --draws {params.draws} --seed {params.seed} --dtype {params.dtype}"
        " --device {params.device} --quantize {params.quantize} --threads {threads}"
        " --shares {output.shares} --out {output.neurons} --log {log}"
