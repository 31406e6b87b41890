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
        code=code_of("prompts"),
    output:
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
    log:
        "<logs>/extract/{model}/{questions}/prompts.log",
    benchmark:
        "<benchmarks>/extract/{model}/{questions}/prompts.tsv"
    priority: 10
    conda:
        "../../envs/cpu.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        prompt=asked("prompt"),
        shots=asked("shots"),
        option_order=asked("option_order"),
        limit="" if config["limit"] is None else f"--limit {config['limit']}",
        shards=config["extract"]["shards"],
        seed=config["seed"],
        # only checked: a function of the input is no reason to run again where it changes
        least=lambda wildcards, input: (
            f"--folds {config['folds']} --min-group {config['calibration']['min_group']}"
        ),
    message:
        "Tokenizing {wildcards.questions} for {wildcards.model}"
    shell:
        "python -m layercal.stages.prompts --manifest {input.manifest}"
        " --questions {input.questions} --prompt {params.prompt:q}"
        " --shots {params.shots}"
        " --option-order {params.option_order} {params.limit}"
        " --shards {params.shards} --seed {params.seed} {params.least}"
        " --out {output.prompts} --log {log}"


rule extract_residuals:
    input:
        manifest="resources/models/{model}/manifest.json",
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        code=code_of("extract"),
    output:
        residuals="<results>/extract/{model}/{questions}/residuals-{shard}.safetensors",
    log:
        "<logs>/extract/{model}/{questions}/residuals-{shard}.log",
    benchmark:
        "<benchmarks>/extract/{model}/{questions}/residuals-{shard}.tsv"
    conda:
        "../../envs/cpu.yaml"
    threads: workflow.cores
    resources:
        mem_mb=mb_of_model(4000),
        runtime=minutes(120),
        gpu=GPU,
    params:
        shards=len(SHARDS),
        batch_tokens=config["extract"]["batch_tokens"],
        dtype=config["extract"]["dtype"],
        device=config["extract"]["device"],
        quantize=config["extract"]["quantize"],
    message:
        "Extracting residuals of {wildcards.model} on {wildcards.questions}, shard {wildcards.shard}"
    shell:
        "python -m layercal.stages.extract --manifest {input.manifest} --prompts {input.prompts}"
        " --shard {wildcards.shard} --shards {params.shards} --batch-tokens {params.batch_tokens} --dtype {params.dtype}"
        " --device {params.device} --quantize {params.quantize} --threads {threads} --out {output.residuals} --log {log}"
