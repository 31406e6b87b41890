# REQUIRED INPUTS: results/{study}/extract/{model}/{questions}/, .../lens/{model}/{questions}/,
#                  resources/models/{model}/
# OUTPUTS: results/{study}/ablation/{model}/{questions}/nullspace.parquet, neurons.parquet,
#          norm.parquet, means.safetensors, blocks-{shard}.safetensors, blocks.parquet


rule ablation:
    input:
        expand(
            "<results>/ablation/{model}/{questions}/{table}.parquet",
            model=config["models"],
            questions=config["questions"],
            table=["nullspace", "neurons", "norm", "blocks"],
        ),
        deleted("ablation"),


rule measure_null_space:
    input:
        manifest="resources/models/{model}/manifest.json",
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        residuals=expand(
            "<results>/extract/{{model}}/{{questions}}/residuals-{shard}.safetensors", shard=SHARDS
        ),
    output:
        table="<results>/ablation/{model}/{questions}/nullspace.parquet",
    log:
        "<logs>/ablation/{model}/{questions}/nullspace.log",
    benchmark:
        "<benchmarks>/ablation/{model}/{questions}/nullspace.tsv"
    threads: workflow.cores
    resources:
        mem_mb=mb_of_model(4000, copies=2),
        runtime=minutes(60),
        gpu=GPU,
    params:
        **settings("measure_null_space", config),
        code=digest_of("measure_null_space"),
    message:
        "Measuring the null space of {wildcards.model} on {wildcards.questions}"
    shell:
        stage("measure_null_space")


rule ablate_neurons:
    input:
        manifest="resources/models/{model}/manifest.json",
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        residuals=expand(
            "<results>/extract/{{model}}/{{questions}}/residuals-{shard}.safetensors", shard=SHARDS
        ),
    output:
        table="<results>/ablation/{model}/{questions}/neurons.parquet",
    log:
        "<logs>/ablation/{model}/{questions}/neurons.log",
    benchmark:
        "<benchmarks>/ablation/{model}/{questions}/neurons.tsv"
    threads: workflow.cores
    resources:
        mem_mb=mb_of_model(4000, copies=2),
        runtime=minutes(60),
        gpu=GPU,
    params:
        **settings("ablate_neurons", config),
        code=digest_of("ablate_neurons"),
        n_neurons=config["nullspace"]["neurons"],
    message:
        "Ablating neurons of {wildcards.model} on {wildcards.questions}"
    shell:
        stage("ablate_neurons")


rule measure_norm:
    input:
        manifest="resources/models/{model}/manifest.json",
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        residuals=expand(
            "<results>/extract/{{model}}/{{questions}}/residuals-{shard}.safetensors", shard=SHARDS
        ),
    output:
        table="<results>/ablation/{model}/{questions}/norm.parquet",
    log:
        "<logs>/ablation/{model}/{questions}/norm.log",
    benchmark:
        "<benchmarks>/ablation/{model}/{questions}/norm.tsv"
    threads: workflow.cores
    resources:
        mem_mb=mb_of_model(4000, copies=2),
        runtime=minutes(60),
        gpu=GPU,
    params:
        **settings("measure_norm", config),
        code=digest_of("measure_norm"),
    message:
        "Reading {wildcards.model} on {wildcards.questions} with the norm's scale of other layers"
    shell:
        stage("measure_norm")


rule average_parts:
    input:
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        residuals=expand(
            "<results>/extract/{{model}}/{{questions}}/residuals-{shard}.safetensors", shard=SHARDS
        ),
    output:
        means="<results>/ablation/{model}/{questions}/means.safetensors",
    log:
        "<logs>/ablation/{model}/{questions}/means.log",
    benchmark:
        "<benchmarks>/ablation/{model}/{questions}/means.tsv"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        code=digest_of("average_parts"),
    message:
        "Averaging what blocks of {wildcards.model} write on {wildcards.questions}"
    shell:
        stage("average_parts")


rule ablate_blocks:
    input:
        manifest="resources/models/{model}/manifest.json",
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        residuals="<results>/extract/{model}/{questions}/residuals-{shard}.safetensors",
        means="<results>/ablation/{model}/{questions}/means.safetensors",
        phase="<results>/lens/{model}/{questions}/phase.json",
    output:
        logits="<results>/ablation/{model}/{questions}/blocks-{shard}.safetensors",
    log:
        "<logs>/ablation/{model}/{questions}/blocks-{shard}.log",
    benchmark:
        "<benchmarks>/ablation/{model}/{questions}/blocks-{shard}.tsv"
    threads: workflow.cores
    resources:
        mem_mb=mb_of_model(4000),
        runtime=minutes(120),
        gpu=GPU,
    params:
        **settings("ablate_blocks", config),
        code=digest_of("ablate_blocks"),
    message:
        "Ablating blocks of {wildcards.model} on {wildcards.questions}, shard {wildcards.shard}"
    shell:
        stage("ablate_blocks")


rule measure_blocks:
    input:
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        logits=expand(
            "<results>/ablation/{{model}}/{{questions}}/blocks-{shard}.safetensors", shard=SHARDS
        ),
    output:
        table="<results>/ablation/{model}/{questions}/blocks.parquet",
    log:
        "<logs>/ablation/{model}/{questions}/blocks.log",
    benchmark:
        "<benchmarks>/ablation/{model}/{questions}/blocks.tsv"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(30),
    params:
        **settings("measure_blocks", config),
        code=digest_of("measure_blocks"),
    message:
        "Measuring what blocks of {wildcards.model} do on {wildcards.questions}"
    shell:
        stage("measure_blocks")
