"""Draw where a site's data are and what goes out: docs/images/privacy-flow.png.

    python -m benchmarks.privacy_flow
"""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

PLACE = Path(__file__).parents[1] / "docs" / "images" / "privacy-flow.png"
WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
INSIDE, LEAVES, OUTSIDE = "#e8f0e4", "#f6dcc8", "#e3e8f2"

BOXES = {
    "registry": (0.3, 5.0, 2.2, 1.0, INSIDE, "Registry\nrecords of patients"),
    "questions": (0.3, 3.3, 2.2, 1.0, INSIDE, "Questions, codebook\nmade from the records"),
    "training": (0.3, 1.6, 2.2, 1.0, INSIDE, "Training\nanswers, rewards, gradients"),
    "door": (3.6, 2.9, 1.9, 1.8, LEAVES, "The door\nallow-list\nminimum counts\napproval"),
    "log": (3.6, 1.0, 1.9, 1.0, INSIDE, "Audit log\nhash chain"),
    "coordinator": (7.4, 2.9, 2.0, 1.8, OUTSIDE, "Coordinator\nfolds the sites'\nupdates"),
    "sites": (7.4, 0.9, 2.0, 1.0, OUTSIDE, "Other hospitals\nget the folded model"),
}
"""Name -> left, bottom, width, height, colour, text."""

ARROWS = (
    ((1.4, 5.0), (1.4, 4.3), ""),
    ((1.4, 3.3), (1.4, 2.6), ""),
    ((2.5, 2.3), (3.6, 3.4), "change of\nweights"),
    ((2.5, 3.9), (3.6, 4.1), "counts"),
    ((4.55, 2.9), (4.55, 2.0), "first"),
    ((5.5, 4.2), (7.4, 4.2), "updates, counts,\naverages, refusals (TLS)"),
    ((7.4, 3.2), (5.5, 3.2), "study, base model,\neach round's model"),
    ((8.4, 2.9), (8.4, 1.9), ""),
)
"""From, to, what goes there."""


def box(axes: Axes, left: float, bottom: float, width: float, height: float, colour: str, text: str) -> None:
    style = "round,pad=0.02,rounding_size=0.1"
    axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=style, facecolor=colour, edgecolor="#555"))
    axes.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=9)


def draw() -> Figure:
    figure = Figure(figsize=(9.6, 6.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, 9.6), ylim=(0.3, 6.9))
    axes.axis("off")
    frame = {"boxstyle": "round,pad=0.02", "facecolor": "none", "edgecolor": "#555", "ls": "--"}
    axes.add_patch(FancyBboxPatch((0.1, 0.6), 5.55, 5.8, **frame))
    axes.text(0.1, 6.55, "Inside the hospital", fontsize=11, weight="bold")
    axes.text(7.4, 6.55, "Outside", fontsize=11, weight="bold")
    for values in BOXES.values():
        box(axes, *values)
    for begin, end, text in ARROWS:
        axes.annotate("", end, begin, arrowprops={"arrowstyle": "-|>", "color": "#333"})
        above = begin[1] == end[1] and end[0] > begin[0]
        middle = (begin[0] + end[0]) / 2, (begin[1] + end[1]) / 2 + (0.1 if above else -0.1)
        axes.text(*middle, text, ha="center", va="bottom" if above else "top", fontsize=8, color="#333", bbox=WHITE)
    never = "never through the door:\nrecords, identifiers, questions,\nanswers, error texts"
    axes.text(3.6, 5.3, never, fontsize=8, style="italic")
    return figure


def main() -> None:
    """Entry point."""
    figure = draw()
    FigureCanvasAgg(figure)
    figure.savefig(PLACE, dpi=110)
    print(f"wrote {PLACE}")


if __name__ == "__main__":
    main()
