"""# Tutorial: from your own folder to a deployed model

Some photographs of normal parts with their depth, a few of scratched ones to test on, two CPU cores and a few
minutes. This page is a script that the tests run; get it as `docs/tutorial.py` and start it in an empty folder, with
the extras `train` and `export` installed. It leaves everything that it makes there.
"""

import json
import shlex
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from unimmad import Detector
from unimmad.cli.main import main

# ## A folder of images
#
# One folder a class; in it `train/good` with normal samples only, `test/good`, and a folder for each defect with its
# masks in `gt`. A folder for each modality holds files of the same name. Here brushed metal is drawn, as a photograph
# and as a 16-bit depth image, and a scratch takes away brightness and 5 mm of material. Yours would come from a camera.

ROOT = Path("parts")
SIZE = 96


def draw_part(folder: Path, name: str, scratched: bool, rng: np.random.Generator) -> None:
    """Write rgb, depth and, of a scratched part, the mask gt."""
    brushed = 130 + 12 * rng.standard_normal((SIZE, 1)) + 4 * rng.standard_normal((SIZE, SIZE))
    depth_mm = 400 + 0.3 * rng.standard_normal((SIZE, SIZE))
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    if scratched:
        top, left = rng.integers(8, SIZE - 48, size=2)
        mask[top : top + 32, left : left + 12] = True
        brushed[mask] -= 90
        depth_mm[mask] += 5
    images = {
        "rgb": np.repeat(brushed.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2),
        "depth": (depth_mm * 100).astype(np.uint16),
    }
    if scratched:
        images["gt"] = mask.astype(np.uint8) * 255
    for modality, pixels in images.items():
        (folder / modality).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / modality / f"{name}.png")


rng = np.random.default_rng(0)
for place, count, scratched in (("train/good", 24, False), ("test/good", 6, False), ("test/scratch", 6, True)):
    for number in range(count):
        draw_part(ROOT / "metal" / place, f"{number:03d}", scratched, rng)

# ## Shards
#
# The command checks every image and packs them. `depth=depth:0.65535:0` says what the numbers mean: the largest value
# that 16 bits hold, 65535, stands for 0.65535 m, and 0 for "not measured". Some normal training images are set aside
# for thresholds. [Your own data](data.md) has the rest.


def unimmad(command: str) -> None:
    """As `unimmad COMMAND` in a shell; an error ends the tutorial."""
    if status := main(shlex.split(command)):
        raise SystemExit(status)


unimmad(
    "shards parts --target shards --domain industry --modality rgb=rgb --modality depth=depth:0.65535:0 --workers 0"
)

# ## Training
#
# The recipe `tiny` is the smallest model there is, without ImageNet weights: it shows the way, not what UniMMAD can do.
# For your own images take `--recipe drawn_search`, which needs minutes; or on GPUs `--recipe paper`, with `deepspeed`
# or `torchrun` in front ([Train](training.md)).
# Training has a process of its own, since DeepSpeed keeps what it starts.

train = "unimmad train --recipe tiny --data shards --output-dir run --set training.epochs=2"
subprocess.run([*shlex.split(train), "--set", "training.learning_rate=0.003"], check=True)

# ## Report and thresholds
#
# `run/evaluation/report.html` opens by double click: the table, heat maps (failures first), curves. Calibration scores
# the normal images that were set aside and writes thresholds beside the checkpoint. So few images cannot promise much,
# and the command says so: a false-alarm rate of 1% takes 99 normal images.

unimmad("evaluate --checkpoint run")
unimmad("calibrate --checkpoint run --false-alarm-rate 0.25")

[row] = json.loads(Path("run/evaluation/report.json").read_text())["classes"]
print(row)

# ## The detector
#
# What a program uses: images in, scores, decisions and maps out. No DeepSpeed is needed where it runs.

detector = Detector.from_checkpoint("run", device="cpu")
scratched_part = {name: f"parts/metal/test/scratch/{name}/000.png" for name in ("rgb", "depth")}
found = detector.predict(scratched_part, class_name="metal")
print(
    f"score {found.score:.3f}, threshold {found.threshold:.3f}, anomalous: {found.anomalous}, map {found.map_HW.shape}"
)

# On the command line the same is `unimmad predict --checkpoint run --class metal parts/metal/test/scratch`.
#
# ## ONNX
#
# One file for other runtimes, with normalisation, network, map, blur and score inside, and thresholds in its metadata.

unimmad("export --checkpoint run --format onnx --target metal.onnx")

same = Detector.from_onnx("metal.onnx", device="cpu").predict(scratched_part, class_name="metal")
print(f"ONNX Runtime: score {same.score:.3f}, anomalous: {same.anomalous}")
