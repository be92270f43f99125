"""The model is plain torch: it can be taken out of the package as it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import unimmad.model

FOLDER = Path(unimmad.model.__path__[0])
MODULES = sorted(
    ".".join(path.relative_to(FOLDER).with_suffix("").parts).removesuffix(".__init__")
    for path in FOLDER.rglob("*.py")
    if path != FOLDER / "__init__.py"
)


def test_the_model_imports_nothing_else_of_the_package():
    code = (
        f"import sys, importlib\n"
        f"for name in {MODULES!r}: importlib.import_module(f'unimmad.model.{{name}}')\n"
        "print(sorted(name for name in sys.modules if name.startswith(('unimmad', 'deepspeed', 'webdataset'))))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    expected = ["unimmad", "unimmad.model", *(f"unimmad.model.{name}" for name in MODULES)]
    assert "unimmad" in MODULES
    assert done.stdout.strip() == repr(sorted(expected))
