# What jobs ask of a machine, each retry for more. No result depends on it.

GPU = int(config["extract"]["device"] == "cuda")


def weights_mb(model):
    """Size of a model's weights; until it is fetched, as its entry says, else that of 8B."""
    files = Path("resources/models", model).glob("*.safetensors")
    here = sum(path.stat().st_size for path in files)
    # a quantised GGUF of that size is about 3.5 times as large as bfloat16
    return (here or 3.5 * MODELS[model].get("size", 4.6e9)) / 1e6


def size_mb(paths):
    """Size of those files that are there."""
    return sum(os.path.getsize(path) for path in paths if os.path.exists(path)) / 1e6


def growing(base):
    """As much again at each retry."""
    return lambda wildcards, attempt: base * attempt


def mb(base, copies):
    """MB for a job that holds so many copies of its inputs."""
    return lambda wildcards, input, attempt: int(attempt * (base + copies * size_mb(input)))


def mb_of_model(base, copies=0):
    """MB for a job that runs a model, and holds so many copies of its inputs."""

    def mem_mb(wildcards, input, attempt):
        # bfloat16 on the disk may be float32 in memory; on its way to a GPU it stays as it is
        weights = (1 if GPU else 2) * weights_mb(wildcards.model)
        held = copies and copies * size_mb(input)
        return int(attempt * (base + weights + held))

    return mem_mb


def minutes(base):
    """Minutes for a job that runs a model: base is that of 2B parameters, or of any on a GPU."""

    def runtime(wildcards, attempt):
        gigabytes = weights_mb(wildcards.model) / 1e3
        # for a GPU they are read and hashed at one GB a minute at worst
        longer = base + gigabytes if GPU else base * max(1, gigabytes / 4)
        return int(attempt * longer)

    return runtime
