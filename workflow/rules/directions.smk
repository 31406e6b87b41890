# REQUIRED INPUTS: results/{study}/extract/{model}/{questions}/, .../lens/{model}/{questions}/,
#                  resources/models/{model}/
# OUTPUTS: results/{study}/directions/{model}/{questions}/directions.safetensors,
#          directions.parquet, dimensions.parquet


rule directions:
    input:
        expand(
            "<results>/directions/{model}/{questions}/directions.parquet",
            model=config["models"],
            questions=config["questions"],
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
    output:
        vectors="<results>/directions/{model}/{questions}/directions.safetensors",
        table="<results>/directions/{model}/{questions}/directions.parquet",
        dimensions="<results>/directions/{model}/{questions}/dimensions.parquet",
    log:
        "<logs>/directions/{model}/{questions}/directions.log",
    benchmark:
        "<benchmarks>/directions/{model}/{questions}/directions.tsv"
    threads: workflow.cores
    resources:
        mem_mb=mb_of_model(4000, copies=2),
        runtime=minutes(60),
        gpu=GPU,
    params:
        **settings("fit_directions", config),
        code=digest_of("fit_directions"),
        null_rule=config["nullspace"]["rules"][0],
        category_group=(
            config["calibration"]["min_group"]
            if config["directions"]["transfer"]["categories"]
            else None
        ),
        sources=transfer_sources,
    message:
        "Fitting directions of {wildcards.model} on {wildcards.questions}"
    shell:
        stage("fit_directions")
