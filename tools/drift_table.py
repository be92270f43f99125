"""How soon ``unimmad monitor`` notices a change of real images, and how often it is wrong: the tables of
docs/monitoring.md.

    python tools/drift_table.py --checkpoint runs/mine --data data/pothole data/brain_ms --output-dir drift

The checkpoint is calibrated; the data have the splits ``calibration`` and ``test``. Test normals are scored as they are
and with one modality disturbed. What came of each image is kept in OUTPUT/records.json, and everything after that is
drawn from it: the same command draws again without scoring.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from tqdm import tqdm

from unimmad.checkpoint.folder import find_checkpoint
from unimmad.checkpoint.monitoring import MonitoringReference, load_reference
from unimmad.data.decode import decode_image
from unimmad.data.reading.shard_files import SampleRef
from unimmad.data.reading.shard_set import ShardSet
from unimmad.inference.detector import Detector
from unimmad.inference.inputs import InputSample
from unimmad.inference.measuring import tells_usual
from unimmad.monitoring.evidence import GRID_BITS, LARGEST, POWERS
from unimmad.monitoring.monitor import DriftMonitor, Seen
from unimmad.report.table import Table
from unimmad.serialization.atomic_write import write_text_aside

Image = NDArray[Any]
UNDISTURBED = "none"
WARM_UP = 40
"""Undisturbed images before a change."""
LONGEST = 200
"""Disturbed images in which it must be noticed."""


def _grey_levels(change: Callable[[Image], Image]) -> Callable[[Image, int], Image]:
    """``change`` of values from 0 to 1."""

    def of_type(image: Image, _: int) -> Image:
        top = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1.0
        changed = np.clip(change(image.astype(np.float64) / top), 0.0, 1.0) * top
        return changed.round().astype(image.dtype) if top > 1 else changed.astype(image.dtype)

    return of_type


def _noisy(deviation: float) -> Callable[[Image, int], Image]:
    def noisy(image: Image, seed: int) -> Image:
        noise = np.random.default_rng(seed).normal(0.0, deviation, image.shape)
        return _grey_levels(lambda values: values + noise)(image, seed)

    return noisy


def _blurred(pixels: float) -> Callable[[Image, int], Image]:
    """By so much at a width of 256 pixels."""

    def blurred(image: Image, seed: int) -> Image:
        sigma = pixels * image.shape[1] / 256
        sides = (sigma, sigma, 0)[: image.ndim]
        return _grey_levels(lambda values: ndimage.gaussian_filter(values, sides))(image, seed)

    return blurred


def _moved(share: float) -> Callable[[Image, int], Image]:
    """To the right; what comes in repeats the edge."""

    def moved(image: Image, _: int) -> Image:
        step = max(1, round(share * image.shape[1]))
        kept = image[:, :-step]
        return np.concatenate([np.repeat(image[:, :1], step, axis=1), kept], axis=1)

    return moved


DISTURBANCES: Mapping[str, tuple[tuple[str, ...], Callable[[Image, int], Image]]] = {
    "brightness x 0.9": (("exposure", "contrast"), _grey_levels(lambda values: values * 0.9)),
    "brightness x 0.7": (("exposure", "contrast"), _grey_levels(lambda values: values * 0.7)),
    "blur 1 px of 256": (("blur",), _blurred(1.0)),
    "blur 2 px of 256": (("blur",), _blurred(2.0)),
    "shift 3 %": (("shift",), _moved(0.03)),
    "shift 8 %": (("shift",), _moved(0.08)),
    "noise 0.03": (("noise",), _noisy(0.03)),
    "noise 0.08": (("noise",), _noisy(0.08)),
}
"""By name, with what a verdict's cause may begin, and what is done to an image."""


@dataclass(frozen=True)
class Records:
    """Of one class and disturbance, predictions and whether each may stand for a calibration image."""

    class_name: str
    disturbance: str
    seen: list[Seen]
    calibrates: list[bool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="run or checkpoint folder, calibrated")
    parser.add_argument("--data", type=Path, nargs="+", required=True, metavar="DIR", help="shard folders")
    parser.add_argument("--output-dir", type=Path, default=Path("drift"), help="default: %(default)s")
    parser.add_argument("--normals", type=int, default=1000, help="of a class at most (default: %(default)s)")
    parser.add_argument("--orders", type=int, default=200, help="of each class and disturbance (default: %(default)s)")
    parser.add_argument("--draws", type=int, default=10_000, help="without disturbance (default: %(default)s)")
    parser.add_argument("--images", type=int, default=400, help="of a draw without disturbance (default: %(default)s)")
    parser.add_argument(
        "--images-alone",
        action="store_true",
        help="watch no scores: of classes whose test normals score unlike calibration's without any disturbance",
    )
    options = parser.parse_args()
    reference = load_reference(find_checkpoint(options.checkpoint))
    if reference is None:
        parser.error(f"{options.checkpoint} is not calibrated")
    records = _records(options)
    if options.images_alone:
        records = [replace(one, seen=[replace(seen, anomalous=None) for seen in one.seen]) for one in records]
    tables = [
        _detection(reference, records, options.orders),
        _false_alarms(records, options.draws, options.images),
        _as_they_are(reference, records, options.orders),
    ]
    text = "\n\n".join(table.to_markdown() for table in tables)
    write_text_aside(options.output_dir / "drift.md", text)
    print(text)


def _records(options: argparse.Namespace) -> list[Records]:
    """Kept, or made class by class; what is there after an interruption stays."""
    path = options.output_dir / "records.json"
    found = json.loads(path.read_text()) if path.is_file() else []
    done = {one["class_name"] for one in found}
    for of_class in _scored(options.checkpoint, options.data, done, options.normals):
        found += [asdict(one) for one in of_class]
        write_text_aside(path, json.dumps(found))
    return [Records(**{**one, "seen": [_seen(values) for values in one["seen"]]}) for one in found]


def _seen(values: dict[str, Any]) -> Seen:
    return Seen(**{**values, "modalities": tuple(values["modalities"])})


def _scored(checkpoint: Path, data: Sequence[Path], done: Collection[str], most: int) -> Iterator[list[Records]]:
    """Calibration images and test normals of each class that is not done as they are, and the latter disturbed."""
    shards = ShardSet.open(data)
    if set(shards.classes("calibration")) <= set(done):
        return
    detector = Detector.from_checkpoint(checkpoint, data=data)
    detector.measures = True
    tests, calibrations = shards.classes("test"), shards.classes("calibration")
    for class_name in tqdm([name for name in calibrations if name not in done], desc="score", unit="class"):
        normals = [ref for ref in tests[class_name] if not ref.entry.anomalous][:most]
        plain = [*calibrations[class_name], *normals]
        # What is usual was taken from half of calibration's images, which are nearer to it than others.
        fair = [not tells_usual(ref.entry.key) for ref in calibrations[class_name]] + [True] * len(normals)
        split = [ref.entry.split == "calibration" for ref in plain]
        seen = _predicted(detector, shards, class_name, plain, None)
        kept = [(one, is_calibration) for one, ok, is_calibration in zip(seen, fair, split, strict=True) if ok]
        of_class = [Records(class_name, UNDISTURBED, [one for one, _ in kept], [which for _, which in kept])]
        for name, (_, change) in DISTURBANCES.items():
            found = _predicted(detector, shards, class_name, normals, change)
            of_class.append(Records(class_name, name, found, [False] * len(found)))
        yield of_class


def _predicted(
    detector: Detector,
    shards: ShardSet,
    class_name: str,
    refs: Sequence[SampleRef],
    change: Callable[[Image, int], Image] | None,
) -> list[Seen]:
    samples = [InputSample(ref.entry.key, _images(shards, ref, number, change)) for number, ref in enumerate(refs)]
    return [
        Seen(one.name, "", class_name, one.modalities, one.score, one.anomalous, one.statistics or {})
        for one in detector.predict_all(samples, class_name=class_name)
    ]


def _images(
    shards: ShardSet, ref: SampleRef, number: int, change: Callable[[Image, int], Image] | None
) -> dict[str, Image]:
    """As they are stored; the first one but a depth map is disturbed."""
    images: dict[str, Image] = {}
    for modality in shards.datasets[ref.entry.dataset].modalities:
        if (member := ref.entry.images.get(modality.name)) is None:
            continue
        image = decode_image(shards.member_bytes(ref, member), os.path.splitext(member.name)[1], ref.entry.key)
        if change is not None and modality.kind != "depth":
            image, change = change(image, number), None
        images[modality.name] = image
    return images


def _of_class(reference: MonitoringReference, class_name: str) -> MonitoringReference:
    """Of this class alone, whose monitor is so one of its own."""
    described = reference.described
    return MonitoringReference(
        described.model_copy(
            update={
                "scores": [one for one in described.scores if one.class_name == class_name],
                "images": [one for one in described.images if one.class_name == class_name],
            }
        )
    )


def _detection(reference: MonitoringReference, records: Sequence[Records], orders: int) -> Table:
    """All classes are watched at once, so that each statistic has its small share of the false alarms."""
    rows = []
    plain = {one.class_name: _tests(one) for one in records if one.disturbance == UNDISTURBED}
    datasets = list(dict.fromkeys(name.partition("/")[0] for name in plain))
    for dataset in datasets:
        for disturbance, (causes, _) in DISTURBANCES.items():
            of_both = [one for one in records if one.disturbance == disturbance and _dataset(one) == dataset]
            found = []
            for one in tqdm(of_both, desc=f"{dataset} {disturbance}", leave=False, disable=None):
                draw = random.Random(f"{one.class_name} {disturbance}")
                found += [
                    _noticed(reference, plain[one.class_name], one.seen, causes, draw)
                    for _ in range(max(1, orders // len(of_both)))
                ]
            rows.append((dataset, disturbance, *_cells(found)))
    heads = ("set", "disturbance", "median", "worst", "not noticed", "named rightly", "alarm before")
    return Table(heads, rows, names=2)


def _dataset(records: Records) -> str:
    return records.class_name.partition("/")[0]


def _tests(records: Records) -> list[Seen]:
    return [one for one, calibrates in zip(records.seen, records.calibrates, strict=True) if not calibrates]


def _noticed(
    reference: MonitoringReference,
    plain: Sequence[Seen],
    disturbed: Sequence[Seen],
    causes: tuple[str, ...],
    draw: random.Random,
) -> tuple[int | None, bool, bool]:
    """Images from the change to its notice (None: never), whether its cause is named, 20 images later at the latest,
    and whether there was an alarm before."""
    monitor = DriftMonitor(reference)
    order = draw.sample(range(len(plain)), len(plain))
    half = len(order) // 2
    for number in range(WARM_UP):
        monitor.add(plain[order[number % half]] if number < half else plain[draw.choice(order[:half])])
    if monitor.alarms:
        return None, False, True
    noticed = None
    for number in range(LONGEST):
        raised = monitor.add(disturbed[draw.choice(order[half:])])
        noticed = number + 1 if raised and noticed is None else noticed
        if noticed is not None and number + 1 >= noticed + 20:
            break
    named = [text for verdict in monitor.verdicts() if verdict.drift == "image" for text in verdict.causes]
    return noticed, any(text.startswith(causes) for text in named), False


def _cells(found: Sequence[tuple[int | None, bool, bool]]) -> tuple[str, ...]:
    fair = [one for one in found if not one[2]]
    noticed = [count for count, _, _ in fair if count is not None]
    named = sum(named for _, named, _ in fair)
    return (
        f"{median(noticed):.0f}" if noticed else "-",
        str(max(noticed)) if noticed else "-",
        f"{len(fair) - len(noticed)} of {len(fair)}",
        f"{named / max(1, len(fair)):.0%}",
        f"{len(found) - len(fair)} of {len(found)}",
    )


def _false_alarms(records: Sequence[Records], draws: int, images: int) -> Table:
    """Calibration and stream are both drawn, with replacement, from the same undisturbed images: nothing changes.

    Each draw is a monitor of one class, whose statistics share the false alarms.
    """
    plain = [one for one in records if one.disturbance == UNDISTURBED]
    rates = (0.01, 0.1)
    alarms = dict.fromkeys(rates, 0)
    each = -(-draws // len(plain))
    for number, one in enumerate(tqdm(plain, desc="false alarms", unit="class", disable=None)):
        rng = np.random.default_rng(number)
        normal = [seen for seen in one.seen if not seen.anomalous]
        statistics = [
            np.array([seen.images[modality][name] for seen in one.seen])
            for modality, found in one.seen[0].images.items()
            for name in found
        ]
        count = max(8, sum(one.calibrates))
        chosen_DN = rng.integers(len(one.seen), size=(each, count + images))
        values = [of_all[chosen_DN] for of_all in statistics]
        values.append(np.array([seen.score for seen in normal])[rng.integers(len(normal), size=chosen_DN.shape)])
        highest_D = np.zeros(each)
        for values_DN in values:
            highest_D = np.maximum(highest_D, highest_capital(values_DN, count, rng.random((each, images))))
        for rate in rates:
            alarms[rate] += int((highest_D >= len(values) / rate).sum())
    total = each * len(plain)
    rows = [
        (f"{rate:g}", str(total), str(images), str(count), f"{count / total:.4f}") for rate, count in alarms.items()
    ]
    return Table(("promised at most", "draws", "images each", "draws with an alarm", "share"), rows)


def highest_capital(values_DN: Image, count: int, between_DT: Image) -> Image:
    """What ``Stream`` finds, for many draws at once: the highest evidence of each.

    Args:
        values_DN: of each draw calibration's and then the stream's.
        count: how many are calibration's.
        between_DT: between 0 and 1, of each of the stream's; see ``Bag.add``.
    """
    mantissa_DN, exponent_DN = np.frexp(values_DN)
    values_DN = np.ldexp(np.round(mantissa_DN * 2**GRID_BITS), exponent_DN - GRID_BITS)
    powers_K = np.array(POWERS)
    betting_DB, highest_D = np.zeros((len(values_DN), 2 * len(POWERS))), np.ones(len(values_DN))
    for time, between_D in enumerate(between_DT.T):
        known_DN, new_D1 = values_DN[:, : count + time + 1], values_DN[:, count + time, None]
        larger_D, equal_D = (known_DN > new_D1).sum(axis=1), (known_DN == new_D1).sum(axis=1)
        share_D = (larger_D + between_D * equal_D) / known_DN.shape[1]
        ends_DE1 = np.maximum(np.stack([share_D, 1 - share_D], axis=1), 1e-12)[:, :, None]
        factors_DB = (powers_K * ends_DE1 ** (powers_K - 1)).reshape(betting_DB.shape)
        fresh = 1 / math.log2(2 + time) - 1 / math.log2(3 + time)
        betting_DB = np.minimum((betting_DB + fresh) * factors_DB, LARGEST)
        highest_D = np.maximum(highest_D, betting_DB.mean(axis=1) + 1 / math.log2(3 + time))
    return highest_D


def _as_they_are(reference: MonitoringReference, records: Sequence[Records], orders: int) -> Table:
    """Real test normals, each once, after real calibration: an alarm says that they are not alike."""
    rows = []
    for one in records:
        if one.disturbance != UNDISTURBED:
            continue
        draw, tests, of_class = random.Random(one.class_name), _tests(one), _of_class(reference, one.class_name)
        alarms, told = 0, set()
        for _ in range(orders):
            monitor = DriftMonitor(of_class)
            for seen in draw.sample(tests, len(tests)):
                monitor.add(seen)
            alarms += bool(monitor.alarms)
            told |= {f"{'+'.join(alarm.stream.modalities)} {alarm.stream.statistic}" for alarm in monitor.alarms}
        rows.append((one.class_name, str(len(tests)), f"{alarms} of {orders}", ", ".join(sorted(told)) or "-"))
    return Table(("class", "test normals", "orders with an alarm", "of"), rows)


if __name__ == "__main__":
    main()
