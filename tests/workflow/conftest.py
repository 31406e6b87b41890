import shutil

import pytest
from project import call, small_study, snakemake


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished small study in a Git repository, versioned by DVC; tests work on copies."""
    folder = small_study(tmp_path_factory.mktemp("finished") / "layercal")
    done = snakemake(folder)
    assert done.returncode == 0, done.said
    for command in ("git init --quiet", "dvc repro --quiet"):
        done = call(folder, *command.split())
        assert done.returncode == 0, done.said
    commit(folder)
    return folder


@pytest.fixture
def study(finished, tmp_path):
    """A copy of the finished study, as fresh as the original."""
    return shutil.copytree(finished, tmp_path / "study")


def commit(folder):
    for command in (
        "git add .",
        "git -c user.name=t -c user.email=t@localhost commit --quiet -m study",
    ):
        done = call(folder, *command.split())
        assert done.returncode == 0, done.said
