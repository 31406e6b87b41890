# REQUIRED INPUTS: config/models.yaml, config/questions.yaml, the sources they name
# OUTPUTS: resources/models/{model}/manifest.json (beside it weights, config and tokenizer),
#          resources/questions/{questions}.parquet and what was left out of it


rule fetch:
    input:
        expand("resources/models/{model}/manifest.json", model=config["models"]),
        expand("resources/questions/{questions}.parquet", questions=config["questions"]),
        deleted("fetch"),


rule fetch_questions:
    input:
        own=lambda wildcards: local.question_inputs(QUESTIONS[wildcards.questions]),
    output:
        table="resources/questions/{questions}.parquet",
        rejected="resources/questions/{questions}.rejected.csv",
    log:
        "logs/fetch/questions/{questions}.log",
    benchmark:
        "logs/benchmarks/fetch/questions/{questions}.tsv"
    # before the models, which take all cores: bad questions show before any long work
    priority: 10
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=growing(10),
    params:
        code=digest_of("fetch_questions"),
        entry=lambda wildcards: QUESTIONS[wildcards.questions],
    message:
        "Fetching questions {wildcards.questions}"
    shell:
        stage("fetch_questions")


rule fetch_model:
    input:
        own=lambda wildcards: local.model_inputs(wildcards.model, MODELS[wildcards.model]),
    output:
        manifest="resources/models/{model}/manifest.json",
    log:
        "logs/fetch/models/{model}.log",
    benchmark:
        "logs/benchmarks/fetch/models/{model}.tsv"
    threads: workflow.cores
    resources:
        mem_mb=growing(7000),
        runtime=minutes(60),
    params:
        code=digest_of("fetch_model"),
        entry=lambda wildcards: MODELS[wildcards.model],
    message:
        "Fetching model {wildcards.model}: download, check, convert, prove"
    shell:
        stage("fetch_model")
