from __future__ import annotations

from pathlib import Path

import pytest

from unimmad.config import load_recipe
from unimmad.data.location import RemoteFolder
from unimmad.methods.registry import METHOD_SETTINGS
from unimmad.parallel.deepspeed_config import SHIPPED_CONFIGS
from unimmad.training.arguments import TrainArguments, parse_arguments


def test_without_words_it_is_the_demo_on_the_synthetic_set():
    assert parse_arguments([]) == TrainArguments(
        recipe=load_recipe("demo", methods=METHOD_SETTINGS),
        deepspeed_config=SHIPPED_CONFIGS / "ep1.json",
        data=(),
        output_dir=Path("runs/demo"),
        max_steps=None,
        resume="auto",
        init_from=None,
    )


def test_everything_can_be_said():
    argv = "--recipe tiny --set model.embed_dim=16 --set training.learning_rate=1e-4 --deepspeed_config ep4"
    argv += " --data a b/c --output-dir out --max-steps 7 --resume runs/tiny-2 --init-from runs/demo --deterministic"
    argv += " --profile 10:13"
    assert parse_arguments(argv.split()) == TrainArguments(
        recipe=load_recipe("tiny", ["model.embed_dim=16", "training.learning_rate=0.0001"]),
        deepspeed_config=SHIPPED_CONFIGS / "ep4.json",
        data=(Path("a"), Path("b/c")),
        output_dir=Path("out"),
        max_steps=7,
        resume="runs/tiny-2",
        init_from=Path("runs/demo"),
        deterministic=True,
        profile=range(10, 14),
    )


def test_a_run_is_not_continued_in_another_folder(tmp_path):
    checkpoint = tmp_path / "old/checkpoints/step_00000003"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    for source in (checkpoint, checkpoint.parent, tmp_path / "old"):
        words = ["--resume", str(source), "--output-dir"]
        with pytest.raises(ValueError, match=r"--resume .* not in --output-dir .*: leave one .*--init-from"):
            parse_arguments([*words, str(tmp_path / "new")])
        assert parse_arguments([*words, str(tmp_path / "old")]).resume == str(source)


def test_one_step_can_be_profiled():
    assert parse_arguments(["--profile", "3"]).profile == range(3, 4)


def test_data_by_url_and_what_to_do_at_a_corrupt_sample():
    argv = ["--data", "data/a", "s3://bucket/set", "pipe:cat /set/{}", "--on-error", "skip"]
    arguments = parse_arguments(argv)
    assert arguments.data == (Path("data/a"), RemoteFolder("s3://bucket/set"), RemoteFolder("pipe:cat /set/{}"))
    assert arguments.recipe == load_recipe("demo", ["data.on_error=skip"], METHOD_SETTINGS)


def test_the_output_folder_is_named_after_the_recipe_in_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("training: {epochs: 3}")
    assert parse_arguments(["--recipe", str(tmp_path / "mine.yaml")]).output_dir == Path("runs/mine")


def test_what_the_launcher_adds_is_accepted():
    assert parse_arguments(["--local_rank=3", "--deepspeed-config", "x.json"]).deepspeed_config == Path("x.json")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "pipe:cat x"], r"pipe:cat x: a pipe: command needs"),
        (["--recipe", "tiny", "--max-steps", "0"], "--max-steps 0 must be 1 or more"),
        *(
            (["--profile", bad], f"--profile '{bad}': give a step counted from 1")
            for bad in ("x", "0", "3:2", "3:", "1:2:3")
        ),
        (["--recipe", "tinny"], "no recipe 'tinny'.*did you mean tiny"),
        (["--set", "model.embed_dims=4"], r"model\.embed_dims.*did you mean model\.embed_dim\?"),
        (["--set", "model.embed_dim=none"], r"--set model\.embed_dim=none.*not 'none'"),
        (["--set", "model.embed_dim"], "write it as KEY=VALUE"),
    ],
)
def test_what_is_wrong_is_said(argv, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(argv)


@pytest.mark.parametrize("argv", [["--data"], ["--max-steps", "many"], ["--unknown"]])
def test_words_that_are_no_options_are_one_line(argv):
    """Of many ranks only one is to say it."""
    with pytest.raises(ValueError, match=rf"{argv[0]}.*; unimmad train --help lists the options"):
        parse_arguments(argv)
