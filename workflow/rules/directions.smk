# REQUIRED INPUTS: results/extract/{model}/{questions}/
# OUTPUTS: results/directions/{model}/{questions}/directions.safetensors, directions.parquet


rule directions:
    input:
        expand(
            "results/directions/{model}/{questions}/directions.parquet",
            model=config["models"],
            questions=config["questions"],
        ),


rule fit_directions:
    input:
        prompts="results/extract/{model}/{questions}/prompts.parquet",
        residuals=expand(
            "results/extract/{{model}}/{{questions}}/residuals-{shard}.safetensors", shard=SHARDS
        ),
        code=expand(
            "src/layercal/{module}.py",
            module=["directions", "questions", "sources", "stages/directions"],
        ),
    output:
        vectors="results/directions/{model}/{questions}/directions.safetensors",
        table="results/directions/{model}/{questions}/directions.parquet",
    log:
        "logs/directions/{model}/{questions}.log",
    benchmark:
        "logs/benchmarks/directions/{model}/{questions}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=30,
    params:
        estimators=config["directions"]["estimators"],
        blocks=config["directions"]["blocks"],
        folds=config["folds"],
        random=config["directions"]["random"],
        seed=config["seed"],
    message:
        "Fitting directions of {wildcards.model} on {wildcards.questions}"
    shell:
        "python -m layercal.stages.directions --prompts {input.prompts}"
        " --residuals {input.residuals} --estimators {params.estimators}"
        " --blocks {params.blocks} --folds {params.folds} --random {params.random}"
        " --seed {params.seed} --out {output.vectors} --table {output.table} --log {log}"
