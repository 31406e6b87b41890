# REQUIRED INPUTS: resources/models/{model}/, resources/questions/{questions}.parquet
# OUTPUTS: results/{study}/extract/{model}/{questions}/prompts.parquet,
#          residuals-{shard}.safetensors


rule extract:
    input:
        expand(
            "<results>/extract/{model}/{questions}/residuals-{shard}.safetensors",
            model=config["models"],
            questions=config["questions"],
            shard=SHARDS,
        ),
        deleted("extract"),


rule tokenize_prompts:
    input:
        manifest="resources/models/{model}/manifest.json",
        questions="resources/questions/{questions}.parquet",
        template=template,
    output:
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
    log:
        "<logs>/extract/{model}/{questions}/prompts.log",
    benchmark:
        "<benchmarks>/extract/{model}/{questions}/prompts.tsv"
    priority: 10
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        code=digest_of("tokenize_prompts"),
        prompt=asked("prompt"),
        shots=asked("shots"),
        option_order=asked("option_order"),
        limit=config["limit"],
        seed=config["seed"],
        # only checked: a function of the input is no reason to run again where it changes
        folds=lambda wildcards, input: config["folds"],
        min_group=lambda wildcards, input: config["calibration"]["min_group"],
    message:
        "Tokenizing {wildcards.questions} for {wildcards.model}"
    shell:
        stage("tokenize_prompts")


rule extract_residuals:
    input:
        manifest="resources/models/{model}/manifest.json",
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
    output:
        residuals="<results>/extract/{model}/{questions}/residuals-{shard}.safetensors",
    log:
        "<logs>/extract/{model}/{questions}/residuals-{shard}.log",
    benchmark:
        "<benchmarks>/extract/{model}/{questions}/residuals-{shard}.tsv"
    threads: workflow.cores
    resources:
        mem_mb=mb_of_model(4000),
        runtime=minutes(120),
        gpu=GPU,
    params:
        **settings("extract_residuals", config),
        code=digest_of("extract_residuals"),
    message:
        "Extracting residuals of {wildcards.model} on {wildcards.questions}, shard {wildcards.shard}"
    shell:
        stage("extract_residuals")
