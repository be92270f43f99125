"""What growing comes to by its steps: old and new classes of several grown runs, as a picture and a Markdown table.

    python tools/growth_curve.py runs/grown_25 runs/grown_75 runs/grown_150 --together runs/joint --target curve.png

The runs are grown from one checkpoint by the same classes; ``--together`` is one trained on all, and evaluated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

from matplotlib.figure import Figure

from unimmad.checkpoint.folder import find_checkpoint, read_state
from unimmad.report.comparison import read_report
from unimmad.report.figures import save_figure
from unimmad.serialization.documents import read_json

METRIC = "I-AUROC"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="grown runs")
    parser.add_argument("--together", type=Path, help="a run trained on all classes, with evaluation/")
    parser.add_argument("--target", type=Path, required=True, help="PNG to write")
    options = parser.parse_args(arguments)
    of_steps = sorted(
        ((steps(run), read_json(run / "forgetting.json")["classes"]) for run in options.runs), key=itemgetter(0)
    )
    together = {} if options.together is None else of_report(options.together / "evaluation")
    names = list(of_steps[0][1])
    if odd := [number for number, classes in of_steps if classes.keys() != set(names)]:
        parser.error(f"the run of {odd[0]} steps has other classes than that of {of_steps[0][0]}")
    print(f"| steps | {' | '.join(names)} |\n| ---: |{' ---: |' * len(names)}")
    for number, classes in of_steps:
        values = [measured(classes[name], "after") for name in names]
        print(f"| {number} | {' | '.join('n/a' if value is None else f'{value:.3f}' for value in values)} |")
    save_figure(drawn(of_steps, together), options.target)


def steps(run: Path) -> int:
    """Those that a run was grown by."""
    return int(read_state(find_checkpoint(run))["step"])


def measured(of_class: dict, when: str) -> float | None:
    """None where it was not."""
    return (of_class[when] or {}).get(METRIC)


def of_report(folder: Path) -> dict[str, float | None]:
    """The metric of each class."""
    return {f"{entry.dataset}/{entry.class_name}": entry.metrics[METRIC] for entry in read_report(folder).classes}


def drawn(of_steps: list[tuple[int, dict]], together: dict[str, float | None]) -> Figure:
    """A line a class, from what it had before; dashed what training together gives a new one."""
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, first in of_steps[0][1].items():
        known = {} if first["new"] else {0: measured(first, "before")}
        known |= {number: measured(classes[name], "after") for number, classes in of_steps}
        points = {number: value for number, value in known.items() if value is not None}
        label = f"{name}{' (new)' if first['new'] else ''}"
        (line,) = axes.plot(list(points), list(points.values()), marker="o", label=label)
        if first["new"] and (level := together.get(name)) is not None:
            axes.axhline(level, color=line.get_color(), linestyle="--", label=f"{name}, trained together")
    axes.set_xlabel("steps of growing")
    axes.set_ylabel(METRIC)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    return figure


if __name__ == "__main__":
    main()
