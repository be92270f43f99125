"""What libraries do not document is used in three files alone, whose tests say what is broken when it moves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
GATHERED = {
    PROJECT / "unimmad" / name
    for name in ("model/backends/private_torch.py", "parallel/private_deepspeed.py", "launching/private_submitit.py")
}
SOURCES = sorted(path for part in ("unimmad", "tools", "slurm") for path in (PROJECT / part).rglob("*.py"))
OF_THE_LANGUAGE = {
    "__module__",
    "__mro__",
    "_asdict",
    "_replace",
    "__name__",
    "__doc__",
    "__qualname__",
    "__init__",
    "__version__",
    "__future__",
    "__dataclass_fields__",
}
OWN = {"self", "cls", "other", "super()"}
DOCUMENTED = {"os._exit"}


def uses(source: str) -> Iterator[str]:
    """Private names of modules and of objects other than ``self``, but for those in annotations, which never run."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for annotation in {"annotation", "returns"} & set(node._fields):
            setattr(node, annotation, None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            used = ast.unparse(node)
            if ast.unparse(node.value) not in OWN and used not in DOCUMENTED:
                yield f"line {node.lineno}: {used}"
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("unimmad"):
            for name in [*(node.module or "").split("."), *(alias.name for alias in node.names)]:
                if is_private(name):
                    yield f"line {node.lineno}: {name} of {node.module}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if any(map(is_private, alias.name.split("."))):
                    yield f"line {node.lineno}: {alias.name}"


def is_private(name: str) -> bool:
    return name.startswith("_") and name not in OF_THE_LANGUAGE


def test_they_are_used_nowhere_else():
    assert set(SOURCES) > GATHERED
    found = {str(path.relative_to(PROJECT)): list(uses(path.read_text())) for path in SOURCES if path not in GATHERED}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "groups._get_expert_parallel_group(name)",
        "deepspeed.ops.__compatible_ops__",
        "import torch._dynamo",
        "from torch.utils._triton import has_triton",
        "from torch import _C",
    ],
)
def test_a_use_is_noticed(source):
    assert list(uses(source))
