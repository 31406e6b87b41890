# What rules ask of the config, the registries and each other.

from snakemake.io import strip_wildcard_constraints


def stage(name):
    """The command that hands a stage what its signature asks for, each from the rule by its name."""

    def source(parameter):
        if parameter.name == "threads":
            return "threads"
        if parameter.is_file:
            section = "input" if parameter.kind == "Path" else "output"
        else:
            section = "wildcards" if parameter.name in WILDCARDS else "params"
        return f"{section}.{parameter.name}"

    options = (f"--{each.name.replace('_', '-')} {{{source(each)}:q}}" for each in parameters(name))
    return f"python -m layercal.stages {name} {' '.join(options)} --log {{log}}"


def beside(path):
    """A file of this project; another workflow that takes it as a module may have its own."""
    return path if os.path.exists(path) else workflow.source_path(f"../../{path}")


def outputs(patterns):
    """Files of this study, a tuple a job, that a rule with these outputs makes."""
    asked_for = {"model": config["models"], "questions": config["questions"], "shard": SHARDS}
    plain = map(strip_wildcard_constraints, patterns)
    return zip(*(expand(pattern, **asked_for) for pattern in plain))


def of_whole_study(*files):
    """What shows the whole study: a run of some of its models leaves it as it is."""
    whole = all(set(OWN[key]) <= set(config[key]) for key in ("models", "questions"))
    return files if whole else ()


def deleted(phase):
    """What is missing of finished jobs: without it no job would ask for what stands between others.

    Of the files that show the whole study, rule reports asks for each by name.
    """

    def files(wildcards):
        finished = any(
            os.path.exists(page) for (page,) in outputs([rules.render_report.output.html])
        )
        own = [rule for rule in workflow.rules if Path(rule.snakefile).stem == phase]
        made = [job for rule in own if rule.wildcard_names for job in outputs(rule.output)]
        return [
            file
            for job in made
            if finished or any(map(os.path.exists, job))
            for file in job
            if not os.path.exists(file)
        ]

    return files


def asked(key, otherwise=config):
    """How a question set is asked: as its entry says, else as the config, or a section of it."""
    return lambda wildcards: QUESTIONS[wildcards.questions].get(key, otherwise[key])


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
