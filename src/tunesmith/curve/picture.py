"""The curve as a picture that is read in black and white as well."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def draw(told: Mapping[str, Any], path: Path) -> None:
    """Draw what curve.json holds as PNG: scores with their intervals over the rows, doublings apart alike."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.4), layout="constrained")
    points, level = told["points"], f"{told['level']:.0%}"
    rows, scores = [point["rows"] for point in points], [point["score"] for point in points]
    reach = [[point["score"] - point["low"] for point in points], [point["high"] - point["score"] for point in points]]
    axes.errorbar(rows, scores, reach, fmt="-o", color="black", capsize=4, linewidth=1.5, label=f"trained, {level}")
    for size, score in zip(rows, scores, strict=True):
        axes.annotate(f"{score:.2f}", (size, score), (6, -12), textcoords="offset points", fontsize=9)
    ticks = list(rows)
    if projection := told["projection"]:
        ticks += told["ahead"]
        ahead = projection["rows"]
        beyond = slice(ahead.index(rows[-1]), None)
        low, high = projection["low"][beyond], projection["high"][beyond]
        axes.fill_between(ahead[beyond], low, high, color="0.87", label=f"projection, {level}", zorder=0)
        axes.plot(ahead, projection["estimate"], "--", color="0.35", linewidth=1.2, label="fitted curve, a guess")
        for size in told["ahead"]:
            score = projection["estimate"][ahead.index(size)]
            axes.plot(size, score, "s", color="0.25", markerfacecolor="white")
            axes.annotate(f"{score:.2f}", (size, score), (6, -12), textcoords="offset points", fontsize=9)
    if incumbent := told["incumbent"]:
        label = f"{incumbent['arm']}, best without training"
        axes.axhline(incumbent["score"], color="0.4", linestyle=":", linewidth=1.8, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(min(rows) / 1.2, max(ticks) * 1.35)
    axes.set_ylim(-0.03, 1.05)
    axes.set_xlabel("training rows (doublings are equally far apart)")
    axes.set_ylabel(f"mean {told['metric'].replace('_', ' ')} of {told['dev_rows']} dev rows (0 to 1)")
    axes.set_title(told["says"].partition(";")[0].partition(":")[0], fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9, loc="lower right")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    pyplot.close(figure)
