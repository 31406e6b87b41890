# REQUIRED INPUTS: results/{study}/ extract, lens and directions of {model}/{questions},
#                  resources/models/{model}/
# OUTPUTS: results/{study}/steering/{model}/{questions}/logits-{shard}.safetensors, sweep.parquet,
#          summary.json


rule steering:
    input:
        expand(
            "<results>/steering/{model}/{questions}/summary.json",
            model=config["models"],
            questions=config["questions"],
        ),
        deleted("steering"),


rule steer_prompts:
    input:
        manifest="resources/models/{model}/manifest.json",
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        residuals="<results>/extract/{model}/{questions}/residuals-{shard}.safetensors",
        directions="<results>/directions/{model}/{questions}/directions.safetensors",
    output:
        logits="<results>/steering/{model}/{questions}/logits-{shard}.safetensors",
    log:
        "<logs>/steering/{model}/{questions}/logits-{shard}.log",
    benchmark:
        "<benchmarks>/steering/{model}/{questions}/logits-{shard}.tsv"
    threads: workflow.cores
    resources:
        mem_mb=mb_of_model(4000),
        runtime=minutes(240),
        gpu=GPU,
    params:
        **settings("steer_prompts", config),
        code=digest_of("steer_prompts"),
    message:
        "Steering {wildcards.model} on {wildcards.questions}, shard {wildcards.shard}"
    shell:
        stage("steer_prompts")


rule evaluate_steering:
    input:
        prompts="<results>/extract/{model}/{questions}/prompts.parquet",
        directions="<results>/directions/{model}/{questions}/directions.safetensors",
        dimensions="<results>/directions/{model}/{questions}/dimensions.parquet",
        phase="<results>/lens/{model}/{questions}/phase.json",
        logits=expand(
            "<results>/steering/{{model}}/{{questions}}/logits-{shard}.safetensors", shard=SHARDS
        ),
    output:
        sweep="<results>/steering/{model}/{questions}/sweep.parquet",
        summary="<results>/steering/{model}/{questions}/summary.json",
    log:
        "<logs>/steering/{model}/{questions}/sweep.log",
    benchmark:
        "<benchmarks>/steering/{model}/{questions}/sweep.tsv"
    threads: 1
    resources:
        mem_mb=mb(4000, copies=4),
        runtime=growing(30),
    params:
        **settings("evaluate_steering", config),
        code=digest_of("evaluate_steering"),
        pairs=len(OWN["models"]) * len(OWN["questions"]),  # of the whole study
    message:
        "Evaluating steering of {wildcards.model} on {wildcards.questions}"
    shell:
        stage("evaluate_steering")
