import functools
import gc
import shutil
import signal
import sys
from pathlib import Path

import filelock
import huggingface_hub
import hypothesis
import numpy as np
import pytest
import torch
from families import FAMILIES, tiny
from hub import Hub
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).parents[1]
# a shell lets what it starts in the background ignore Ctrl-C, and so would what the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # tiny models: threads only wait for each other
hypothesis.settings.register_profile("layercal", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("layercal")


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):  # long ones first: no process then ends long before others
        items.sort(key=lambda item: item.get_closest_marker("workflow") is None)


def pytest_collection_finish():
    gc.freeze()  # statsmodels collects garbage at each call: not among all that is imported


@functools.cache
def shares(path):
    """Whether the tests of a file share what is made once in each process."""
    return 'scope="module"' in (ROOT / path).read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of several processes each takes the next test, or all of a file that share something."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.partition("::")[0]
            return path if shares(path) else nodeid

    return Scheduling(config, log)


def word_tokenizer(letters=" A", vocabulary=()) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer; its merges decide whether ' A' .. ' D' are one token each."""
    space = "Ġ"
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(space, letter) for letter in letters.strip()]
    entries = [*symbols, *(f"{a}{b}" for a, b in merges)]
    backend = Tokenizer(
        models.BPE(vocab={symbol: i for i, symbol in enumerate(entries)}, merges=merges)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def save_model(folder, family="llama", **settings):
    """A folder with a tiny model and a tokenizer that fits it."""
    tokenizer = word_tokenizer(" ABCD")
    shards = {"max_shard_size": settings.pop("max_shard_size", "1GB")}
    tiny(family, **({"vocab_size": len(tokenizer)} | settings)).save_pretrained(folder, **shards)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of models of the test's own."""
    monkeypatch.setenv("LAYERCAL_CACHE", str(tmp_path / "layercal-cache"))
    return tmp_path / "layercal-cache"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=["llama", "qwen2"])
def tiny_model(request):
    return tiny(request.param)


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    """Every family that layercal is proven on."""
    return request.param


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on loopback in place of the real one, for this process and those it starts.

    Its folders are ``hub.root / "models" / org / name`` and ``hub.root / "datasets" / org / name``.
    There is no token, and what the clients cache starts empty.
    """
    served, home = Hub(tmp_path / "hub"), tmp_path / "hf-home"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", served.url)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("NO_PROXY", "*")
    # the clients read the environment once, when they are imported
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", served.url)
    template = served.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    if "datasets" in sys.modules:
        config = sys.modules["datasets"].config
        monkeypatch.setattr(config, "HF_ENDPOINT", served.url)
        monkeypatch.setattr(config, "HF_DATASETS_CACHE", home / "datasets")
        monkeypatch.setattr(config, "DOWNLOADED_DATASETS_PATH", home / "datasets/downloads")
    yield served
    served.stop()


@pytest.fixture(scope="session")
def finished(request, tmp_path_factory):
    """A finished small study in a Git repository, versioned by DVC; tests work on copies.

    Of several processes that test at once the first makes it, and the others wait for it.
    """
    own = tmp_path_factory.mktemp("finished")
    shared = own.parents[1] if hasattr(request.config, "workerinput") else own
    with filelock.FileLock(shared / "finished.lock"):
        made = shared / "finished.path"
        if not made.exists():
            made.write_text(str(_finish(own)))
        return Path(made.read_text())


def _finish(place):
    from project import call, commit, small_study, snakemake

    folder, cache = small_study(place / "layercal"), {"LAYERCAL_CACHE": str(place / "cache")}
    done = snakemake(folder, **cache)
    assert done.returncode == 0, done.said
    for command in ("git init --quiet", "python -m layercal.dvc", "dvc repro --quiet"):
        done = call(folder, *command.split(), **cache)
        assert done.returncode == 0, done.said
    commit(folder)
    return folder


@pytest.fixture
def study(finished, tmp_path):
    """A copy of the finished study, as fresh as the original."""
    return shutil.copytree(finished, tmp_path / "study")
