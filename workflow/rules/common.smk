# What rules ask of the config and the registries.


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
