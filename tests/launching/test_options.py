"""The launcher's command line and the site's defaults."""

from __future__ import annotations

import pytest

from unimmad.launching.options import parse_options


def test_what_was_not_said_is_none_and_the_trainer_gets_the_rest():
    options = parse_options(["--nodes", "4", "--setup", "a b", "--setup", "c", "--", "--recipe", "tiny", "--", "x"])
    assert options.nodes == 4
    assert options.setup == ("a b", "c")
    assert options.trainer_argv == ("--recipe", "tiny", "--", "x")
    assert options.partition is options.gpus_per_node is options.timeout_min is options.mem_gb is None
    assert not options.wait


def test_words_for_slurm_and_srun():
    options = parse_options(["--slurm-arg", "exclusive=user", "--slurm-arg=--nice=5", "--srun-arg=--label", "--follow"])
    assert options.slurm_args == (("exclusive", "user"), ("nice", "5"))
    assert options.srun_args == ("--label",)
    assert options.wait, "to follow is to wait"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--node", "4"], "--node"),
        (["--nodes", "0"], "'0' is not a whole number from 1 up"),
        (["--gpus-per-node", "-1"], "--gpus-per-node"),
        (["--cluster", "moon"], "'moon'"),
        (["--slurm-arg", "exclusive"], "KEY=VALUE"),
        (["--site", "absent.yaml"], "absent.yaml can't be read"),
    ],
)
def test_bad_words(argv, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        parse_options(argv)


def test_the_command_line_wins_over_the_site_and_lists_add_up(tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text("partition: gpu\ncpus-per-task: 8\nsetup: [module load cuda]\nwait: true\n")
    options = parse_options(["--partition", "long", "--setup", "mine", "--site", str(site)])
    assert options.partition == "long"
    assert options.cpus_per_task == 8
    assert options.setup == ("module load cuda", "mine")
    assert options.wait


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partion: gpu", "unknown key partion; did you mean partition?"),
        ("nodes: many", "'many' is not a whole number"),
        ("- gpu", "lines such as partition: gpu"),
        ("a: [", "can't be read as YAML"),
    ],
)
def test_bad_site_file(text, said, tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text(text)
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        parse_options(["--site", str(site)])
