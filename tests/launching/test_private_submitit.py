from __future__ import annotations

from unimmad.launching.private_submitit import ScriptWriter


def test_submitit_writes_the_batch_script_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    writer = ScriptWriter(folder=tmp_path / "jobs", python="some-python")
    writer.update_parameters(nodes=3, setup=["module load something"])
    lines = writer.script().splitlines()
    broken = (
        "submitit changed how it makes its script: slurm/launch.py --dry-run shows something else than is submitted"
    )
    assert lines[0].startswith("#!"), broken
    assert "#SBATCH --nodes=3" in lines, broken
    assert "module load something" in lines, broken
    assert any(line.startswith("srun ") and "some-python -u -m submitit" in line for line in lines), broken
