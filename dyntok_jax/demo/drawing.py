"""Drawings of matplotlib inside HTML pages."""

from __future__ import annotations

import io
import re
from typing import Any


def label(name: str) -> str:
    """A name as matplotlib shows it letter by letter; what cannot be shown is a mark."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(name.split()))
    # Between two dollars stands a formula, and what begins with an underscore is in no legend.
    text = text.replace("$", r"\$")
    return f" {text}" if text[:1] in ("", "_") else text


def new_axes(title: str, width: float = 6.4, height: float = 2.6) -> Any:
    """Empty axes with a title, in a figure of their own; sizes are inches."""
    # Not pyplot: that looks for a display.
    from matplotlib.figure import Figure

    axes = Figure(figsize=(width, height), layout="constrained").subplots()
    axes.set_title(label(title), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def svg(axes: Any) -> str:
    """The figure of some axes as an SVG element, the same each time."""
    from matplotlib import rc_context

    drawing = io.StringIO()
    # Ids of what is drawn would be random, and letters drawings that take most of the page.
    with rc_context({"svg.hashsalt": "dyntok", "svg.fonttype": "none"}):
        axes.figure.savefig(drawing, format="svg", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", drawing.getvalue(), flags=re.DOTALL)
