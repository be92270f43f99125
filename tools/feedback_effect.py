"""What feedback comes to on a real set: false alarms and found anomalies among later images, before and after.

    python tools/feedback_effect.py --data data/pothole --work feedback --backbone-weights resnet18.pth

For each seed a part of the training images is set aside for calibration, and test images are divided by chance into a
first run, of which feedback is given, and a later one, which is scored before and after. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from unimmad.checkpoint.folder import find_checkpoint
from unimmad.cli.calibrate import main as calibrate
from unimmad.cli.feedback import main as give_feedback
from unimmad.cli.predict import main as predict
from unimmad.data.layouts.calibration import shuffled
from unimmad.data.reading.shard_set import ShardSet
from unimmad.inference.predicted import Predicted, predictions_digest, read_predictions, save_decisions

RUNS = ("first", "later")
GIVEN = {"nothing": (), "false alarms of the first run": (), "all of the first run": ("--complete",)}


def main() -> None:
    options = parser().parse_args()
    rows = [row for seed in range(options.seeds) for row in of_seed(options, options.work / str(seed), seed)]
    print(f"| feedback | threshold | false alarms | found anomalies | of {options.seeds} seeds: false alarms |")
    print("| --- | ---: | ---: | ---: | --- |")
    for given in GIVEN:
        thresholds, alarms, found = zip(*(row[1:] for row in rows if row[0] == given), strict=True)
        means = " | ".join(f"{statistics.mean(values):.3f}" for values in (thresholds, alarms, found))
        print(f"| {given} | {means} | {', '.join(f'{value:.3f}' for value in alarms)} |")


def parser() -> argparse.ArgumentParser:
    """All options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--data", type=Path, required=True, help="shards of one class")
    found.add_argument("--work", type=Path, required=True, help="folder for runs and predictions")
    found.add_argument("--backbone-weights", type=Path, required=True, help="of ResNet-18")
    found.add_argument("--calibration", type=int, default=39, help="images set aside; default: %(default)s")
    found.add_argument("--rate", type=float, default=0.05, help="of false alarms; default: %(default)s")
    found.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    return found


def of_seed(options: argparse.Namespace, work: Path, seed: int) -> list[tuple[str, float, float, float]]:
    """Of each kind of feedback: threshold, false alarms and found anomalies of the later images."""
    class_name = set_aside(options, work / "shards", seed)
    weights = f"model.backbone_weights={options.backbone_weights}"
    words = ["--recipe", "level_search", "--data", work / "shards", "--set", weights, "--output-dir", work / "run"]
    subprocess.run([sys.executable, "-m", "unimmad", "train", *map(str, words)], check=True)
    checkpoint = find_checkpoint(work / "run")
    call(calibrate, "--checkpoint", checkpoint, "--data", work / "shards", "--false-alarm-rate", options.rate)
    extract(work, class_name, seed)
    first = predictions(checkpoint, work, "first", "before", class_name)
    rows = []
    for number, (given, more) in enumerate(GIVEN.items()):
        copy = work / f"given_{number}"
        shutil.copytree(checkpoint, copy)
        called = {
            name: "normal" if is_normal(name) else "anomalous"
            for name, one in first.items()
            if more or (given != "nothing" and one.anomalous and is_normal(name))
        }
        if called:
            table = work / f"given_{number}.csv"
            save_decisions(called, table, predictions_digest(work / "first_before"))  # type: ignore[arg-type]
            call(give_feedback, "--checkpoint", copy, "--predictions", work / "first_before", "--csv", table, *more)
        later = predictions(copy, work, "later", str(number), class_name)
        normal, anomalous = (
            [one for name, one in later.items() if is_normal(name) is wanted] for wanted in (True, False)
        )
        threshold = next(iter(later.values())).threshold
        assert threshold is not None
        rows.append((given, threshold, share(normal), share(anomalous)))
    return rows


def set_aside(options: argparse.Namespace, folder: Path, seed: int) -> str:
    """Shards whose index has another split; gives the class."""
    folder.mkdir(parents=True)
    index = json.loads((options.data / "index.json").read_text())
    keys = [sample["key"] for sample in index["samples"] if sample["split"] == "train"]
    aside = set(shuffled(keys, seed)[: options.calibration])
    for sample in index["samples"]:
        if sample["key"] in aside:
            sample["split"] = "calibration"
    (folder / "index.json").write_text(json.dumps(index))
    for shard in options.data.glob("*.tar"):
        (folder / shard.name).symlink_to(shard.resolve())
    (name,) = {f"{sample['dataset']}/{sample['class_name']}" for sample in index["samples"]}
    return name


def extract(work: Path, class_name: str, seed: int) -> None:
    """Test images as files, half of the normal and of the anomalous ones in each run."""
    shards = ShardSet.open([work / "shards"])
    refs = {ref.entry.key: ref for ref in shards.classes("test")[class_name]}
    for kind, anomalous in (("good", False), ("bad", True)):
        keys = shuffled([key for key, ref in refs.items() if ref.entry.anomalous is anomalous], seed)
        for place, key in enumerate(keys):
            for modality, member in refs[key].entry.images.items():
                name = f"{kind}_{place}{Path(member.name).suffix}"
                path = work / RUNS[place % 2] / modality / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(shards.member_bytes(refs[key], member))


def predictions(checkpoint: Path, work: Path, run: str, what: str, class_name: str) -> dict[str, Predicted]:
    output = work / f"{run}_{what}"
    words = ["--checkpoint", checkpoint, "--class", class_name, "--no-pictures", "--no-monitor"]
    call(predict, *words, "--output-dir", output, work / run)
    return read_predictions(output)


def is_normal(name: str) -> bool:
    return "good_" in name


def share(found: Sequence[Predicted]) -> float:
    return statistics.mean(bool(one.anomalous) for one in found)


def call(command: object, *words: object) -> None:
    assert callable(command)
    status = command([str(word) for word in words])
    assert status in (0, None), f"{command.__module__} {words} ended with {status}"


if __name__ == "__main__":
    main()
