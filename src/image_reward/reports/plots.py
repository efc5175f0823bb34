"""Plots in one visual language: readable at half their size, by the colour-blind, on light pages and on dark ones.

Drawing goes through ``Figure`` objects and never through pyplot, so that nothing needs a display. Matplotlib's settings belong to the whole
process: they are changed for the time of a drawing alone, by one thread at a time. Matplotlib is optional and is imported when a figure is
made.
"""

from __future__ import annotations

import io
import re
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1d1f23")
"""Okabe and Ito's palette (2008) in the order to be used, its black being the ink of the pages, its yellow left out: it fades on white."""

ON_DARK = ("#4aa3df", "#f08a45", "#2fc096", "#d78fb7", "#f0b53a", "#8fd0f5")
"""What pages show in place of the first six on a dark ground: the same hues, lighter where they would sink."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One for each colour, so that a series is known without it."""

_INK, _SOFT, _LINE, _GROUND = "#1d1f23", "#8a8f98", "#dddad3", "#fefefe"
_VARIABLES = {colour: f"--series-{index}" for index, colour in enumerate(COLOURS[:-1], start=1)}
_VARIABLES |= {_INK: "--ink", _SOFT: "--axis", _LINE: "--line", _GROUND: "--card"}
_LONGEST_NAME = 28  # characters beside an axis; longer names lose their middle


_SETTINGS = threading.RLock()  # two threads that change and restore the settings in turns would leave one's to the other


@contextmanager
def style() -> Iterator[None]:
    """The house style for what is drawn inside. The helpers here apply it themselves; artists of your own need it around them."""
    import matplotlib

    with _SETTINGS, matplotlib.rc_context(fname=str(files("image_reward").joinpath("assets/image_reward.mplstyle"))):
        yield


def figure(width: float = 7.2, height: float = 4.0) -> Figure:
    """An empty figure; width and height in inches. Axes that are added to it are in the house style.

    Raises ``ModuleNotFoundError`` without matplotlib.
    """
    with _needs_matplotlib(), style():
        house_figure, house_canvas = _house_classes()
        drawn = house_figure(figsize=(width, height))
        house_canvas(drawn)
        return drawn


@contextmanager
def _needs_matplotlib() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise ModuleNotFoundError("plots need matplotlib: pip install 'image-reward[report]'", name="matplotlib") from None


@cache
def _house_classes() -> tuple[type[Figure], type[Any]]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG, RendererSVG
    from matplotlib.figure import Figure

    class HouseFigure(Figure):
        def add_subplot(self, *args: Any, **kwargs: Any) -> Axes:  # what subplots() and subplot_mosaic() call, too
            with style():
                return super().add_subplot(*args, **kwargs)

        def draw(self, renderer: Any) -> None:
            super().draw(_measuring_known_glyphs(renderer))

    class HouseCanvas(FigureCanvasSVG):
        def get_renderer(self) -> Any:  # what the layout measures with
            width, height = self.figure.get_size_inches() * 72
            return _measuring_known_glyphs(RendererSVG(width, height, io.StringIO()))

    return HouseFigure, HouseCanvas


def _measuring_known_glyphs(renderer: Any) -> Any:
    """The renderer, which measures a wide letter in place of each character that Matplotlib's font lacks.

    Only measuring needs the glyph, since the page's font has it. Silencing Matplotlib's warning about it would change the warning filters
    of all threads.
    """
    measure = renderer.get_text_width_height_descent
    known = _known_characters()
    if not getattr(measure, "knows_glyphs", False):

        def measure_known(text: str, *args: Any, **options: Any) -> Any:
            return measure("".join(c if ord(c) in known else "M" for c in text), *args, **options)

        measure_known.knows_glyphs = True  # type: ignore[attr-defined]
        renderer.get_text_width_height_descent = measure_known
    return renderer


@cache
def _known_characters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


# --- figures as text -----------------------------------------------------------------------------------------------------------------


def to_svg(figure: Figure, prefix: str = "") -> str:
    """The figure as one ``<svg>`` element, the same text for the same figure.

    Text stays text, in the reader's own font, and the house's colours are CSS variables (with themselves as what to use where a page
    does not define them), so that a page can show the figure on a dark ground. ``prefix`` goes before every id: two figures
    on one page need different ones.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _page_svg(buffer.getvalue(), prefix)


_CSS_COLOUR = re.compile("|".join(_VARIABLES))
_REFERENCE = re.compile(r"(?<=url\(#)|(?<=^#)")


def _page_svg(text: str, prefix: str) -> str:
    root = ElementTree.fromstring(text)
    referenced = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag.endswith("}metadata")]:
            parent.remove(child)
        parent.tag = parent.tag.split("}")[-1]
        for name, value in list(parent.attrib.items()):
            del parent.attrib[name]
            if name == "id" and value not in referenced:
                continue
            if name == "style":
                value = _CSS_COLOUR.sub(lambda colour: f"var({_VARIABLES[colour[0]]}, {colour[0]})", value)
            value = prefix + value if name == "id" else _REFERENCE.sub(prefix, value)
            parent.attrib[name.split("}")[-1]] = value
    root.attrib |= {"xmlns": "http://www.w3.org/2000/svg"}
    for name in ("width", "height"):
        root.attrib[name] = root.attrib[name].removesuffix("pt")  # pixels: a point a pixel
    return ElementTree.tostring(root, encoding="unicode").strip()


# --- what several reports draw -------------------------------------------------------------------------------------------------------


def intervals(
    axes: Axes,
    names: Sequence[str],
    values: ArrayLike,
    lows: ArrayLike,
    highs: ArrayLike,
    reference: float | None = None,
) -> None:
    """A dot with its interval for each name, the first on top; NaN where there is no number. ``reference`` is a line to compare with."""
    places = _rows(axes, names)
    centres, starts, ends = (_numbers(numbers, len(names)) for numbers in (values, lows, highs))
    with style():
        if reference is not None:
            axes.axvline(reference, color=_SOFT, linewidth=1.5, linestyle=(0, (4, 3)), zorder=1.5)
        axes.hlines(places, starts, ends, color=COLOURS[0], linewidth=2.6, capstyle="round", zorder=2)
        axes.plot(centres, places, "o", color=COLOURS[0], markersize=9, zorder=3)


def distributions(axes: Axes, groups: Mapping[str, ArrayLike]) -> None:
    """How each group's values are distributed, the first group on top: a smoothed density over a bar of quartiles and a dot at the median.

    Densities are Gaussian kernel estimates with Silverman's bandwidth, each scaled to the same height.
    """
    samples = {name: np.asarray(values, dtype=np.float64).ravel() for name, values in groups.items()}
    for name, sample in samples.items():
        if not len(sample) or not np.isfinite(sample).all():
            raise ValueError(f"{name!r} has {'values that are not finite' if len(sample) else 'no values'}; leave it out")
    places = _rows(axes, list(samples), room=0.62)
    low = min(sample.min() for sample in samples.values())
    high = max(sample.max() for sample in samples.values())
    grid = np.linspace(low - 0.08 * (high - low or 1), high + 0.08 * (high - low or 1), 257)
    with style():
        for place, sample in zip(places, samples.values(), strict=True):
            ridge = place - 0.72 * _density(sample, grid)  # up the page: the axis points down
            axes.fill_between(grid, place, ridge, color=COLOURS[0], alpha=0.28, linewidth=0)
            axes.plot(grid, ridge, color=COLOURS[0], linewidth=1.4)
            quartiles = np.quantile(sample, (0.25, 0.5, 0.75))
            axes.hlines(place + 0.08, quartiles[0], quartiles[2], color=_INK, linewidth=4, zorder=3)
            axes.plot(quartiles[1], place + 0.08, "o", color=_INK, markerfacecolor=_GROUND, markersize=7, zorder=4)
    axes.set_ylim(len(places) - 0.65, -0.85)


def _density(sample: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """A kernel density estimate of ``sample`` on ``grid``, its peak at 1."""
    step = grid[1] - grid[0]
    quartiles = np.quantile(sample, (0.25, 0.75))
    spread = min(value for value in (sample.std(), (quartiles[1] - quartiles[0]) / 1.34, np.inf) if value > 0)
    width = max(0.9 * spread * len(sample) ** -0.2, step) if np.isfinite(spread) else 2 * step
    counts, _ = np.histogram(sample, bins=len(grid), range=(grid[0] - step / 2, grid[-1] + step / 2))
    kernel = np.exp(-0.5 * ((grid - grid[len(grid) // 2]) / width) ** 2)
    density = np.convolve(counts, kernel, mode="same")
    return density / density.max()


def heat_map(
    axes: Axes,
    values: ArrayLike,
    names_x: Sequence[str],
    names_y: Sequence[str],
    format: str = ".2f",
    limits: tuple[float, float] | None = None,
) -> None:
    """A matrix [len(names_y), len(names_x)] as shaded cells with their numbers; NaN leaves a cell empty.

    ``format`` is a format specification, such as ".2f" or ".0%". ``limits`` are the values of the lightest and the darkest
    shade; without them, the least and the greatest value.
    """
    import matplotlib
    from matplotlib.patches import Rectangle

    matrix = np.asarray(values, dtype=np.float64)
    if matrix.shape != (len(names_y), len(names_x)):
        raise ValueError(f"{matrix.shape} values for {len(names_y)} rows and {len(names_x)} columns of names")
    _rows(axes, names_y, room=0.46)
    finite = matrix[np.isfinite(matrix)]
    low, high = limits or ((finite.min(), finite.max()) if len(finite) else (0.0, 1.0))
    shades = matplotlib.colormaps["Blues"](0.04 + 0.9 * np.clip((matrix - low) / (high - low or 1), 0, 1))
    with style():
        for row, column in np.ndindex(matrix.shape):
            number = matrix[row, column]
            if not np.isfinite(number):
                axes.text(column, row, "–", ha="center", va="center", color=_SOFT)
                continue
            shade = shades[row, column]
            axes.add_patch(Rectangle((column - 0.485, row - 0.47), 0.97, 0.94, facecolor=shade, edgecolor="none"))
            axes.text(column, row, f"{number:{format}}", ha="center", va="center", color=_readable_on(shade))
        longest = max(len(label) for label in map(label, names_x))
        fits = longest * 0.11 < 0.6 * _figure_of(axes).get_figwidth() / len(names_x)  # inches: a character is about 0.11 wide
        slanted: dict[str, Any] = {} if fits else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(names_x)), [label(name) for name in names_x], **slanted)
        axes.tick_params(axis="x", length=0)
    if not fits:
        _make_room(axes, 0.46 * len(names_y) + 0.08 * longest + 0.7)
    axes.set(xlim=(-0.5, len(names_x) - 0.5), ylim=(len(names_y) - 0.5, -0.5))
    axes.grid(False)
    axes.spines[:].set_visible(False)


def curves(axes: Axes, x: ArrayLike, series: Mapping[str, ArrayLike]) -> None:
    """Series over the same ``x``, told apart by colour and by marker; NaN leaves a gap. Names stand above when there are several."""
    xs = np.asarray(x, dtype=np.float64)
    looks = cycle(zip(COLOURS, MARKERS, strict=True))
    with style():
        for (name, values), (colour, marker) in zip(series.items(), looks, strict=False):
            every = max(len(xs) // 8, 1)  # markers say which line it is, not where the points are
            axes.plot(xs, _numbers(values, len(xs)), color=colour, marker=marker, markevery=every, label=label(name))
        if np.array_equal(xs, np.round(xs)):
            whole_numbers(axes.xaxis)  # no ticks at fractions of a step
    legend(axes, 3.2)


def whole_numbers(axis: Axis) -> None:
    """Let an axis of counts be labelled at whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))


def legend(axes: Axes, height: float) -> None:
    """The names of labelled artists above the axes, if there are several, in as many columns as fit; ``height``: inches the rest needs."""
    with style():
        _, names = axes.get_legend_handles_labels()
        if len(names) > 1:
            inches = 0.11 * max(map(len, names)) + 0.7
            columns = max(int(0.9 * _figure_of(axes).get_figwidth() / inches), 1)
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=min(columns, len(names)), borderaxespad=0.2)
            _make_room(axes, height + 0.26 * -(-len(names) // columns))


# --- what they share -----------------------------------------------------------------------------------------------------------------


def _rows(axes: Axes, names: Sequence[str], room: float = 0.4) -> NDArray[np.float64]:
    """One row for each name, from the top, in a figure that is high enough for them; the places of the rows."""
    if not names:
        raise ValueError("a plot needs at least one name")
    _make_room(axes, room * len(names) + 0.9)
    with style():
        axes.set_yticks(range(len(names)), [label(name) for name in names])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
    return np.arange(len(names), dtype=np.float64)


def _make_room(axes: Axes, inches: float) -> None:
    whole = _figure_of(axes)
    if len(whole.axes) == 1 and whole.get_figheight() < inches:
        whole.set_figheight(inches)


def _figure_of(axes: Axes) -> Any:
    return axes.figure


def label(name: str) -> str:
    """A name beside an axis or in a legend: never read as mathematics, on one line, and not much longer than others."""
    name = " ".join(name.split())
    if len(name) > _LONGEST_NAME:
        name = f"{name[:13]}…{name[-(_LONGEST_NAME - 14) :]}"
    return name.replace("$", r"\$")


def _numbers(values: ArrayLike, count: int) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.shape != (count,):
        raise ValueError(f"{numbers.shape} values for {count} names or places")
    return numbers


def _readable_on(shade: NDArray[np.float64]) -> str:
    """Black or white, whichever stands out more (WCAG 2 relative luminance); neither follows the page's scheme."""
    linear = np.where(shade[:3] <= 0.04045, shade[:3] / 12.92, ((shade[:3] + 0.055) / 1.055) ** 2.4)
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    return "#ffffff" if 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.05 else "#000000"
