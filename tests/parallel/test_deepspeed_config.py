"""What a DeepSpeed JSON may say, and what DeepSpeed gets of it and the recipe."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from unimmad.config import TrainingSettings
from unimmad.parallel.deepspeed_config import DeepSpeedSettings, engine_config, read_deepspeed_config

SHIPPED = sorted((Path(__file__).parents[2] / "ds_configs").glob("*.json"))


def written(folder: Path, values: object) -> Path:
    path = folder / "ds.json"
    path.write_text(json.dumps(values))
    return path


def training(**changes: object) -> TrainingSettings:
    return TrainingSettings.model_validate({"global_batch": 12, **changes})


def test_our_section_is_taken_out_and_the_rest_passes_through(tmp_path):
    values = {"unimmad": {"ep_size": 4}, "zero_optimization": {"stage": 2, "overlap_comm": True}, "wall_clock": 1}
    settings = read_deepspeed_config(written(tmp_path, values))
    assert (settings.ep_size, settings.zero_stage) == (4, 2)
    assert settings.passed_on == {"zero_optimization": {"stage": 2, "overlap_comm": True}, "wall_clock": 1}


def test_an_empty_object_is_one_rank_of_experts_without_zero(tmp_path):
    assert read_deepspeed_config(written(tmp_path, {})) == DeepSpeedSettings({}, 1, 0)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_the_shipped_files_are_what_their_names_say(path):
    settings = read_deepspeed_config(path)
    if path.stem.startswith("ep"):
        assert path.stem == f"ep{settings.ep_size}"
    assert settings.bf16 == (path.stem == "bf16")
    offload = settings.passed_on["zero_optimization"].get("offload_optimizer")
    assert (offload == {"device": "cpu"} and settings.zero_stage == 2) == (path.stem == "zero2_offload")


def test_the_files_that_commands_name_are_shipped():
    assert {"ep1", "ep4", "ep8", "bf16", "zero0", "zero2_offload"} == {path.stem for path in SHIPPED}


@pytest.mark.parametrize(
    ("key", "setting"),
    [
        ("train_batch_size", "training.global_batch"),
        ("train_micro_batch_size_per_gpu", "training.global_batch"),
        ("gradient_accumulation_steps", "training.accumulation"),
        ("gradient_clipping", "training.gradient_clipping"),
        ("optimizer", "training.optimizer"),
        ("scheduler", "training.schedule"),
        ("fp16", "training.precision"),
        ("bf16", "training.precision"),
    ],
)
def test_keys_that_the_recipe_decides_are_refused_naming_the_setting(tmp_path, key, setting):
    path = written(tmp_path, {"zero_optimization": {"stage": 1}, key: 1})
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))}: remove '{key}'; the recipe's {setting}"):
        read_deepspeed_config(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, "ZeRO stage 3 does not work"),
        ({"zero_optimization": {"stage": "two"}}, "ZeRO stage two"),
        ({"zero_optimization": True}, "zero_optimization"),
        ({"unimmad": {"ep_size": "4"}}, 'section "unimmad" takes one key, "ep_size", a whole number; not {\'ep_size\''),
        ({"unimmad": {"ep_size": 2.0}}, "a whole number"),
        ({"unimmad": {"ep_size": True}}, "a whole number"),
        ({"unimmad": {"ep_sise": 2}}, "takes one key"),
        ({"unimmad": 4}, "takes one key"),
        ([], "must hold a JSON object"),
        ("ep4", "must hold a JSON object"),
    ],
)
def test_bad_values_are_refused_naming_the_file(tmp_path, values, message):
    path = written(tmp_path, values)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_deepspeed_config(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"unimmad": ', b"\xff\xfe\x00"])
def test_a_file_that_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / "ds.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ds\.json is not JSON"):
        read_deepspeed_config(path)


@pytest.mark.parametrize("name", ["nowhere.json", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(ValueError, match=re.escape(f"--deepspeed_config {tmp_path / name} can't be read")):
        read_deepspeed_config(tmp_path / name)


def test_the_engine_gets_the_file_and_the_recipes_batch():
    settings = DeepSpeedSettings({"zero_optimization": {"stage": 1}, "steps_per_print": 7}, 2, 1)
    config = engine_config(settings, training(accumulation=3, gradient_clipping=0.5), world_size=2)
    assert config["zero_optimization"] == {"stage": 1}
    assert config["steps_per_print"] == 7
    assert config["train_batch_size"] == 12
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_accumulation_steps"] == 3
    assert config["gradient_clipping"] == 0.5
    config["zero_optimization"]["stage"] = 0
    assert settings.passed_on == {"zero_optimization": {"stage": 1}, "steps_per_print": 7}


@pytest.mark.parametrize(
    ("batch", "accumulation", "ranks", "sizes"),
    [(10, 1, 4, "8 or 12"), (10, 2, 3, "6 or 12"), (2, 1, 4, "4"), (12, 3, 8, "24")],
)
def test_a_batch_that_does_not_divide_names_the_nearest_that_do(batch, accumulation, ranks, sizes):
    settings = training(global_batch=batch, accumulation=accumulation)
    with pytest.raises(ValueError, match=rf"global_batch {batch} can't be shared by {ranks} ranks .* can: {sizes}$"):
        engine_config(DeepSpeedSettings({}, 1, 0), settings, ranks)
    for size in sizes.split(" or "):
        engine_config(DeepSpeedSettings({}, 1, 0), training(global_batch=int(size), accumulation=accumulation), ranks)


@pytest.mark.parametrize(("stage", "given"), [(0, 0.0), (1, 1.0), (2, 1.0)])
def test_deepspeed_clips_where_it_does_so_rightly(stage, given):
    clipped = training(gradient_clipping=1.0)
    assert engine_config(DeepSpeedSettings({}, 1, stage), clipped, 2)["gradient_clipping"] == given


@pytest.mark.parametrize("stage", [1, 2])
def test_nothing_in_a_step_makes_the_host_wait(stage):
    config = engine_config(DeepSpeedSettings({"zero_optimization": {"stage": stage}}, 1, stage), training(), 2)
    assert config["zero_optimization"] == {"stage": stage, "compute_grad_norm": False}
    assert config["timers"] == {"throughput": {"enabled": False}}


@pytest.mark.parametrize(
    ("zero", "clipping"),
    [
        ({"stage": 0}, 0.0),
        ({"stage": 1}, 1.0),
        ({"stage": 2, "offload_optimizer": {"device": "cpu"}}, 0.0),
        ({"stage": 1, "compute_grad_norm": True}, 0.0),
    ],
    ids=["no ZeRO", "clipping", "offload", "asked for"],
)
def test_deepspeed_keeps_the_gradients_norm_where_it_is_needed(zero, clipping):
    settings = DeepSpeedSettings({"zero_optimization": zero, "timers": {}}, 1, zero["stage"])
    config = engine_config(settings, training(gradient_clipping=clipping), 2)
    assert config["zero_optimization"] == zero
    assert config["timers"] == {}


def test_autocast_to_bf16_is_ours_to_do(tmp_path):
    asked = read_deepspeed_config(written(tmp_path, {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}))
    assert asked == DeepSpeedSettings({}, 1, 0, bf16=True)
    assert not read_deepspeed_config(written(tmp_path, {"torch_autocast": {"enabled": False}})).bf16


@pytest.mark.parametrize("value", [{"enabled": True, "dtype": "float16"}, {"enabled": True}, True])
def test_another_autocast_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"ds\.json: section \"torch_autocast\" must be"):
        read_deepspeed_config(written(tmp_path, {"torch_autocast": value}))
