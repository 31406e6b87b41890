"""Execute the report notebook of one model and question set with papermill, and render it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbformat
import papermill
import zmq
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbconvert import HTMLExporter
from traitlets import default

from layercal import files
from layercal.report import pages
from layercal.stages import Output


def render_report(
    *,
    model: str,
    questions: str,
    notebook: Path,
    manifest: Path,
    rejected: Path,
    prompts: Path,
    options: Path,
    metrics: Path,
    phase: Path,
    recalibration: Path,
    recalibrated_phase: Path,
    rivals: Path,
    directions: Path,
    dimensions: Path,
    nullspace: Path,
    neurons: Path,
    sweep: Path,
    summary: Path,
    figures: list[Path],
    executed: Output,
    html: Output,
) -> None:
    """Write the executed notebook and its HTML, both without times, the code left out of HTML."""
    folder = executed.parent
    folder.mkdir(parents=True, exist_ok=True)
    # as seen from where the notebook will lie, so that it can be run again there
    paths = {
        "manifest": manifest,
        "rejected": rejected,
        "prompts": prompts,
        "options": options,
        "metrics": metrics,
        "phase": phase,
        "recalibration": recalibration,
        "recalibrated_phase": recalibrated_phase,
        "rivals": rivals,
        "directions": directions,
        "dimensions": dimensions,
        "nullspace": nullspace,
        "neurons": neurons,
        "sweep": sweep,
        "summary": summary,
        "figures": figures[0].parent,
    }
    given = {name: os.path.relpath(path, folder) for name, path in paths.items()}
    parameters = {"model": model, "questions": questions, "files": given}
    done = execute(notebook, folder, parameters)
    strip(done)
    files.write_atomically(executed, nbformat.writes(done))
    # "basic" is the cells alone: the full templates load scripts from the network
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    body, _ = exporter.from_notebook_node(done)
    body = body.replace("</h1>", "</h1>" + pages.contents(body), 1)
    page = pages.page(f"{model} on {questions}", body)
    files.write_atomically(html, page)


class OwnKernel(AsyncKernelManager):
    """The interpreter that runs this, whatever kernels of the same name a user has."""

    @default("kernel_spec_manager")
    def _own(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])

    @default("transport_encryption")
    def _encrypted(self) -> str:
        return "auto" if zmq.has("curve") else "disabled"  # unencrypted, it warns


def execute(notebook: Path, folder: Path, parameters: dict[str, str | dict]):
    """Run a notebook in a folder by this interpreter, without what a user's IPython starts with.

    Parameters
    ----------
    notebook, folder : Path
    parameters : dict

    Returns
    -------
    NotebookNode
        With its outputs.
    """
    with tempfile.TemporaryDirectory() as empty:
        return papermill.execute_notebook(
            notebook,
            None,
            parameters,
            kernel_name="python3",
            progress_bar=False,
            cwd=folder,
            kernel_manager_class=OwnKernel,
            extra_arguments=[f"--ipython-dir={empty}"],
        )


def strip(notebook) -> None:
    """Drop what changes from run to run: times, random cell ids, what libraries warn of."""
    notebook.metadata.pop("papermill", None)
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if "outputs" in cell:
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
