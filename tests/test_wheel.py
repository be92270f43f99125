"""The package without its checkout: the wheel in an environment of its own, used in an empty folder.

The environment has this one's libraries and no other package unimmad: installing them again would take minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
from launches import ROOT, environment
from PIL import Image

from unimmad.cli.main import COMMANDS

SOURCES = ("unimmad", "ds_configs", "slurm", "pyproject.toml", "README.md", "LICENSE")
SECONDS = 240
HELP_OF_ALL = """
import contextlib, io, json, sys
from unimmad.cli import main as entry
said = {}
for name in entry.COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        entry.main([name, "--help"])
    said[name] = out.getvalue()
import unimmad
print(json.dumps({"file": unimmad.__file__, "help": said}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools writes beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder / "dist"), str(folder)]
    subprocess.run(built, check=True, timeout=SECONDS)
    [path] = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment where the wheel is installed."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True, timeout=SECONDS)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, timeout=SECONDS)
    [site] = (home / "lib").glob("python3*/site-packages")
    # The libraries alone: .pth files in a folder that a .pth file names, such as an editable install's, are not read.
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"


def call(programs: Path, folder: Path, *argv: str) -> str:
    """What a command prints, run in ``folder`` where nothing leads to the checkout."""
    outside = {key: value for key, value in environment().items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    outside["PATH"] = os.pathsep.join([str(programs), "/usr/bin", "/bin"])
    done = subprocess.run(
        [str(programs / argv[0]), *argv[1:]],
        cwd=folder,
        env=outside,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    return done.stdout


def test_the_wheel_holds_the_package_and_all_its_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in (ROOT / "unimmad").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    kept = {str(path.relative_to(ROOT)) for path in files}
    kept |= {f"unimmad/parallel/ds_configs/{path.name}" for path in (ROOT / "ds_configs").iterdir()}
    inside = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert inside == kept
    assert "unimmad/launching/site.yaml" in inside


def test_help_and_a_dry_run_from_an_empty_folder(programs: Path, tmp_path: Path) -> None:
    said_of_all = call(programs, tmp_path, "unimmad", "--help")
    assert [name for name in COMMANDS if name not in said_of_all] == []
    said = json.loads(call(programs, tmp_path, "python", "-c", HELP_OF_ALL))
    assert Path(said["file"]).is_relative_to(programs.parent)
    for name, text in said["help"].items():
        assert text.startswith(f"usage: unimmad {name} ")
        # What is not in the wheel, or goes by another name there, is not to be told.
        assert not [word for word in ("tools/", "slurm/", "ds_configs/", ".py") if word in text]
    script = call(programs, tmp_path, "unimmad", "launch", "--dry-run", "--nodes", "2", "--", "--recipe", "tiny")
    assert "#SBATCH --nodes=2" in script
    assert str(programs / "python") in script
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.timeout(1800)  # eight commands, each of which imports PyTorch
def test_every_command_from_an_empty_folder(programs: Path, tmp_path: Path) -> None:
    def unimmad(*argv: str) -> str:
        return call(programs, tmp_path, "unimmad", *argv)

    unimmad("train", "--deepspeed_config", "ep4", "--recipe", "tiny", "--max-steps", "2")
    assert (tmp_path / "runs" / "tiny" / "checkpoints" / "step_00000002").is_dir()
    assert (tmp_path / "data" / "synthetic" / "index.json").is_file()

    own = draw_images(tmp_path / "own")
    assert "next: unimmad train --recipe drawn_search --data shards" in unimmad(
        "shards", str(own), "--target", "shards"
    )
    options = ("--recipe", "tiny", "--data", "shards", "--max-steps", "1")
    unimmad("launch", "--cluster", "local", "--wait", "--output-dir", "runs/own", "--", *options)
    assert "report.html" in unimmad("evaluate", "--checkpoint", "runs/own")
    assert "thresholds.json" in unimmad("calibrate", "--checkpoint", "runs/own")
    assert "hole/0" in unimmad("predict", "--checkpoint", "runs/own", str(own / "nut" / "test" / "hole"))
    unimmad("export", "--checkpoint", "runs/own", "--format", "torch", "--target", "own.pt2")


def draw_images(folder: Path) -> Path:
    """One class of one's own: plain parts, some with a hole."""
    for part, count in (("train/good", 8), ("test/good", 2), ("test/hole", 2)):
        (folder / "nut" / part).mkdir(parents=True)
        for number in range(count):
            image = np.random.default_rng((len(part), number)).integers(90, 110, (64, 64, 3), dtype=np.uint8)
            image[20:40, 20:40] *= "hole" not in part
            Image.fromarray(image).save(folder / "nut" / part / f"{number}.png")
    return folder
