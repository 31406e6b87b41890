"""Execute the report notebook of one model and question set with papermill, and render it."""

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

from layercal import files, stages
from layercal.report import figures, pages

TABLES = ("manifest", "rejected", *figures.TABLES)


def main() -> None:
    """Run the stage."""
    made = stages.parser("report", __doc__)
    made.add_argument("--notebook", type=Path, required=True, help="source, without outputs")
    made.add_argument("--model", required=True)
    made.add_argument("--questions", required=True)
    for table in TABLES:
        made.add_argument(f"--{table}", type=Path, required=True)
    made.add_argument("--figures", type=Path, nargs="+", required=True, help="drawn, to embed")
    made.add_argument("--out", type=Path, required=True, help="executed notebook to write")
    made.add_argument("--html", type=Path, required=True)
    stages.run(stage, made)


def stage(args) -> None:
    """Write the executed notebook and its HTML, both without times, the code left out of HTML."""
    folder = args.out.parent
    folder.mkdir(parents=True, exist_ok=True)
    # as seen from where the notebook will lie, so that it can be run again there
    paths = {name: getattr(args, name) for name in TABLES} | {"figures": args.figures[0].parent}
    given = {name: os.path.relpath(path, folder) for name, path in paths.items()}
    parameters = {"model": args.model, "questions": args.questions, "files": given}
    notebook = execute(args.notebook, folder, parameters)
    strip(notebook)
    files.write_atomically(args.out, nbformat.writes(notebook))
    # "basic" is the cells alone: the full templates load scripts from the network
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    body, _ = exporter.from_notebook_node(notebook)
    body = body.replace("</h1>", "</h1>" + pages.contents(body), 1)
    page = pages.page(f"{args.model} on {args.questions}", body)
    files.write_atomically(args.html, page)


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


if __name__ == "__main__":
    main()
