"""The report's pictures: matplotlib figures as SVG text inside data URIs, the same bytes for the same figures."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from server.report.words import ARM_NAMES, SPLIT_NAMES, YARDSTICKS

COLOURS = {
    "base": "#7a7f87",
    "local": "#d98200",
    "federated": "#0a66b7",
    "centralized": "#0b8a62",
    "random_letter": "#9aa0a8",
    "most_frequent": "#9aa0a8",
    "gradient_boosting": "#30343a",
}
MARKERS = {"base": "o", "local": "^", "federated": "o", "centralized": "s"}
SPENT = {
    "generating": "#0a66b7",
    "learning": "#0b8a62",
    "communicating": "#d98200",
    "evaluating": "#8e5bb5",
    "other": "#b9bec5",
}
INK, FAINT, GRID = "#1d2127", "#5b626c", "#e3e6ea"
STYLE: Any = {
    "font.size": 10.5,
    "font.family": ["DejaVu Sans"],
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "svg.hashsalt": "wardround",
    "svg.fonttype": "path",
}
Curve = tuple[list[int], list[float]]
"""Rounds and accuracies."""


def as_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.08, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def percent_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    axes.grid(axis=which, color=GRID, linewidth=0.8)
    axes.tick_params(length=0)


def chance_is_far(arms: Mapping[str, Any]) -> bool:
    """Whether a random letter is so far below everything else that showing it would squeeze the rest."""
    others = [f["accuracy"] for arm, splits in arms.items() if arm != "random_letter" for f in splits.values()]
    chance = [f["accuracy"] for f in arms.get("random_letter", {}).values()]
    return bool(others and chance) and min(others) - min(chance) > max(others) - min(others)


def forest(arms: Mapping[str, Any]) -> str:
    """Accuracy of every arm and yardstick with its interval, one panel a split; each seed a faint dot."""
    with matplotlib.rc_context(STYLE):
        splits = [s for s in SPLIT_NAMES if any(s in found for found in arms.values())]
        names = [arm for arm in ARM_NAMES if arm in arms and not (arm == "random_letter" and chance_is_far(arms))]
        figure = Figure(figsize=(9.6, 0.9 + 0.42 * len(names)))
        panels = figure.subplots(1, len(splits), sharex=True, sharey=True, squeeze=False)[0]
        for axes, split in zip(panels, splits, strict=True):
            for row, arm in enumerate(names):
                found = arms[arm].get(split)
                if found is None:
                    continue
                colour = COLOURS[arm]
                axes.plot(found["ci95"], [row, row], color=colour, linewidth=2.4, solid_capstyle="round")
                marker = "D" if arm in YARDSTICKS else "o"
                axes.plot(found["accuracy"], row, marker, color=colour, markersize=7)
                if len(found["per_seed"]) > 1:
                    seeds = [s["accuracy"] for s in found["per_seed"]]
                    axes.plot(seeds, [row + 0.24] * len(seeds), "o", color=colour, markersize=3, alpha=0.55)
                axes.annotate(f"{100 * found['accuracy']:.1f}", (found["accuracy"], row), (0, 6),
                              textcoords="offset points", ha="center", fontsize=9)  # fmt: skip
            axes.set_title(SPLIT_NAMES[split][0].upper() + SPLIT_NAMES[split][1:], pad=12)
            percent_axis(axes, "x")
            if any(arm in YARDSTICKS for arm in names) and any(arm not in YARDSTICKS for arm in names):
                axes.axhline(min(names.index(a) for a in names if a in YARDSTICKS) - 0.5, color=GRID)
        panels[0].set_yticks(range(len(names)), [ARM_NAMES[arm] for arm in names])
        panels[0].set_ylim(len(names) - 0.4, -0.75)
        figure.subplots_adjust(wspace=0.06)
        return as_uri(figure)


def curves(panels: Mapping[str, Mapping[str, Sequence[Curve]]], baselines: Mapping[str, float]) -> str:
    """Learning curves: one panel a place, arm -> one curve a seed (faint) and their mean; dashed, the baseline."""
    with matplotlib.rc_context(STYLE):
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(9.6 if columns > 1 else 5.4, 0.6 + 2.25 * rows))
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        drawn: dict[str, Any] = {}
        for axes, (place, arms) in zip(grid, panels.items(), strict=False):
            if place in baselines:
                drawn["base"] = axes.axhline(
                    baselines[place], color=COLOURS["base"], linestyle=(0, (4, 3)), linewidth=1.3
                )
            for arm, seeds in arms.items():
                for rounds, values in seeds:
                    axes.plot(rounds, values, color=COLOURS[arm], alpha=0.3 if len(seeds) > 1 else 0, linewidth=1)
                rounds, values = mean_curve(seeds)
                (drawn[arm],) = axes.plot(rounds, values, color=COLOURS[arm], linewidth=2.2,
                                          marker=MARKERS[arm], markersize=4)  # fmt: skip
            axes.set_title(place)
            percent_axis(axes, "y")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[max(0, len(panels) - columns) : len(panels)]:
            axes.set_xlabel("round")
            axes.tick_params(labelbottom=True)
        order = [arm for arm in ARM_NAMES if arm in drawn]
        labels = ["Base model (round 0)" if arm == "base" else ARM_NAMES[arm] for arm in order]
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
        figure.legend([drawn[a] for a in order], labels, loc="upper left", ncols=len(order), bbox_to_anchor=(0.02, 1))
        return as_uri(figure)


def mean_curve(seeds: Sequence[Curve]) -> Curve:
    """Mean over seeds, over the rounds that all of them have."""
    tables = [dict(zip(*curve, strict=True)) for curve in seeds]
    rounds = sorted(set.intersection(*(set(table) for table in tables)))
    return rounds, [sum(table[r] for table in tables) / len(tables) for r in rounds]


def by_feature(arms: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Per-feature accuracy of the model arms between the most frequent value and gradient boosting.

    Features are ordered by what reasoning over the record is worth: boosting less most frequent value.
    """
    with matplotlib.rc_context(STYLE):
        features = sorted({feature for found in arms.values() for feature in found})

        def worth(feature: str) -> tuple[float, str]:
            ends = [arms.get(arm, {}).get(feature, {}).get("accuracy", 0.0) for arm in YARDSTICKS[1:]]
            return ends[1] - ends[0], feature

        features.sort(key=worth)
        figure = Figure(figsize=(9.6, 1.1 + 0.3 * len(features)))
        axes = figure.subplots()
        for row, feature in enumerate(features):
            ends = [arms[a][feature]["accuracy"] for a in YARDSTICKS[1:] if feature in arms.get(a, {})]
            if len(ends) == 2:
                axes.plot(ends, [row, row], color="#d5d9de", linewidth=5, solid_capstyle="butt", zorder=1)
        looks = {"most_frequent": ("|", 11), "gradient_boosting": ("D", 6), "base": ("o", 6), "federated": ("o", 7),
                 "local": ("^", 6), "centralized": ("s", 6)}  # fmt: skip
        for arm in ARM_NAMES:
            if arm not in arms or arm not in looks:
                continue
            place = [(arms[arm][f]["accuracy"], row) for row, f in enumerate(features) if f in arms[arm]]
            marker, area = looks[arm]
            face = "white" if arm in ("base", "gradient_boosting") else COLOURS[arm]
            axes.plot(*zip(*place, strict=True), linestyle="", marker=marker, markersize=area, markeredgewidth=1.6,
                      markeredgecolor=COLOURS[arm], markerfacecolor=face, label=ARM_NAMES[arm],
                      zorder=4 if arm == "federated" else 3)  # fmt: skip
        axes.set_yticks(range(len(features)), [names.get(f, f) for f in features])
        axes.set_ylim(-0.7, len(features) - 0.3)
        percent_axis(axes, "x")
        axes.grid(axis="y", color="#f1f3f5")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=6, handletextpad=0.2, columnspacing=1.2)
        return as_uri(figure)


def stacked(rows: Mapping[str, Mapping[str, float]], unit: str = "seconds") -> str:
    """Horizontal stacked bars of seconds: arm -> what it was spent on."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.9 + 0.42 * len(rows)))
        axes = figure.subplots()
        for place, parts in enumerate(rows.values()):
            left = 0.0
            for what in SPENT:
                axes.barh(place, parts.get(what, 0.0), left=left, height=0.58, color=SPENT[what],
                          label=what if place == 0 else None, edgecolor="white", linewidth=0.8)  # fmt: skip
                left += parts.get(what, 0.0)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.invert_yaxis()
        axes.set_xlabel(unit)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.tick_params(length=0)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=len(SPENT))
        return as_uri(figure)
