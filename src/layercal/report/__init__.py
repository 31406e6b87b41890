"""Figures, tables and pages of what a study measured."""

import ast
from pathlib import Path

NOTHING = "nothing to show"  # said of a figure that only says why


def figure_names() -> list[str]:
    """Names of the figures of a report, read off their code: importing it takes seconds."""
    trees = [ast.parse(path.read_text()) for path in Path(__file__).parent.glob("figures/*.py")]
    functions = [node for tree in trees for node in tree.body if isinstance(node, ast.FunctionDef)]
    return sorted(
        node.name.replace("_", "-")
        for node in functions
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "figure"
    )
