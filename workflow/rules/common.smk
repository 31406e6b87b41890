# What rules ask of the config, the registries and each other.

from snakemake.io import strip_wildcard_constraints


def made(phase):
    """All files that a phase makes, so that one that is missing is made again."""
    return lambda wildcards: [
        file
        for rule in workflow.rules
        if Path(rule.snakefile).stem == phase
        for pattern in rule.output
        for file in expand(
            strip_wildcard_constraints(pattern),
            model=config["models"],
            questions=config["questions"],
            shard=SHARDS,
        )
    ]


def asked(key):
    """How a question set is asked: as its entry says, else as the config does."""
    return lambda wildcards: QUESTIONS[wildcards.questions].get(key, config[key])


def template(wildcards):
    prompt = asked("prompt")(wildcards)
    return prompt if prompt.endswith(".j2") else []


def transfer_sources(wildcards):
    """Other question sets of this model, and other models on this set: model/questions."""
    asked = config["directions"]["transfer"]
    sets = [f"{wildcards.model}/{one}" for one in asked["questions"]]
    models = [f"{one}/{wildcards.questions}" for one in asked["models"]]
    own = f"{wildcards.model}/{wildcards.questions}"
    return [pair for pair in sets + models if pair != own]
