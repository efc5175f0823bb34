from __future__ import annotations

import re
import warnings
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from image_reward.reports import plots

NAMES = [f"generator number {index}, tuned" for index in range(1, 8)]  # 25 characters and more
SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def assert_labels_fit(figure: Figure) -> None:
    """No label beside an axis meets the next one or leaves the figure."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        for along in (axes.xaxis, axes.yaxis):
            low, high = sorted(along.get_view_interval())
            ticks = zip(along.get_ticklocs(), along.get_ticklabels(), strict=True)
            found = [label.get_window_extent() for place, label in ticks if low <= place <= high]
            assert found
            for box in found:
                assert figure.bbox.x0 - 1 <= box.x0
                assert box.x1 <= figure.bbox.x1 + 1
                assert figure.bbox.y0 - 1 <= box.y0
                assert box.y1 <= figure.bbox.y1 + 1
            if not any(label.get_rotation() for label in along.get_ticklabels()):
                assert not any(a.overlaps(b) for a, b in pairwise(found))


def test_the_style_is_the_house_s_and_stays_in_its_figures() -> None:
    before = dict(matplotlib.rcParams)
    figure = plots.figure(5, 3)
    axes = figure.subplots()
    plots.curves(axes, [0, 1], {"a": [0, 1]})
    plots.to_svg(figure)
    assert dict(matplotlib.rcParams) == before
    assert isinstance(figure, Figure)
    assert tuple(figure.get_size_inches()) == (5, 3)
    assert not axes.spines["top"].get_visible()
    assert axes.xaxis.label.get_fontsize() == 13
    assert axes.lines[0].get_color() == plots.COLOURS[0]
    with plots.style():
        assert tuple(matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]) == plots.COLOURS


def test_svg_is_the_same_each_time_and_knows_no_day() -> None:
    def once() -> str:
        figure = plots.figure()
        plots.distributions(figure.subplots(), {"a": [1.0, 2.0, 4.0], "b": [0.0, 1.0]})
        return plots.to_svg(figure, "first-")

    assert once() == once()
    assert "metadata" not in once()
    assert not re.search(r"20\d\d-\d\d-\d\d", once())
    assert once().startswith("<svg ")


def test_svg_keeps_text_as_text_whatever_it_says() -> None:
    figure = plots.figure()
    axes = figure.subplots()
    plots.intervals(axes, ["cost $1 to $2", "<b>|&", "絵画"], [0, 1, 2], [0, 1, 2], [0, 1, 2])
    axes.set_xlabel("reward")
    assert {"cost $1 to $2", "<b>|&", "絵画", "reward"} <= set(texts(plots.to_svg(figure)))


def test_text_in_any_script_is_drawn_without_a_warning_and_without_touching_the_filters() -> None:
    names = ["漢字 😀", "नमस्ते", "plain"]
    filters = list(warnings.filters)
    figure = plots.figure()
    plots.heat_map(figure.subplots(), [[1, 2, 3]], names, ["行"])
    assert {*names, "行"} <= set(texts(plots.to_svg(figure)))  # a warning would be an error
    assert_labels_fit(figure)
    assert warnings.filters == filters


def test_threads_that_draw_leave_the_settings_as_they_were() -> None:
    before = dict(matplotlib.rcParams)

    def draw(number: int) -> str:
        figure = plots.figure()
        plots.intervals(figure.subplots(), NAMES, range(7), range(7), [number + 7] * 7)
        return plots.to_svg(figure)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, range(8))) == [draw(number) for number in range(8)]
    assert dict(matplotlib.rcParams) == before


def test_the_house_s_colours_follow_the_page_and_others_do_not() -> None:
    figure = plots.figure()
    plots.heat_map(figure.subplots(), [[0.0, 1.0]], ["x", "y"], ["row"])
    svg = plots.to_svg(figure)
    assert "var(--ink, #1d1f23)" in svg
    cells = {text: style for style, text in re.findall(r'<text style="([^"]*)"[^>]*>([01]\.00)<', svg)}
    assert "var(" not in cells["0.00"]
    assert "#ffffff" in cells["1.00"]  # white on the darkest shade, black on the lightest


def test_intervals_hold_what_is_known() -> None:
    axes = plots.figure().subplots()
    plots.intervals(axes, ["a", "b", "c"], [0.5, 0.7, None], [0.4, None, None], [0.6, None, None], reference=0.5)
    dots = next(line for line in axes.lines if line.get_marker() == "o")
    np.testing.assert_array_equal(dots.get_xdata(), [0.5, 0.7, np.nan])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    assert axes.get_ylim() == (2.5, -0.5)  # the first on top
    (segments,) = (collection.get_segments() for collection in axes.collections)
    np.testing.assert_array_equal(segments[0], [[0.4, 0], [0.6, 0]])


def test_seven_long_names_fit_everywhere() -> None:
    numbers = np.linspace(-1, 1, 7)
    for draw in (
        lambda axes: plots.intervals(axes, NAMES, numbers, numbers - 0.1, numbers + 0.1),
        lambda axes: plots.heat_map(axes, np.outer(numbers, numbers), NAMES, NAMES),
        lambda axes: plots.distributions(axes, {name: [number, number + 1] for name, number in zip(NAMES, numbers, strict=True)}),
        lambda axes: plots.curves(axes, numbers, dict.fromkeys(NAMES, numbers)),
    ):
        figure = plots.figure()
        draw(figure.subplots())
        assert_labels_fit(figure)


def test_names_stay_apart_when_their_middle_is_cut() -> None:
    axes = plots.figure().subplots()
    plots.intervals(axes, [f"runs/a long folder of runs/model {i}" for i in range(2)], [0, 1], [0, 1], [0, 1])
    first, second = (label.get_text() for label in axes.get_yticklabels())
    assert first != second
    assert max(len(first), len(second)) == 28


def test_densities_lie_where_the_values_do() -> None:
    values = np.random.default_rng(0).normal(2.0, 0.5, 4000)
    axes = plots.figure().subplots()
    plots.distributions(axes, {"normal": values, "constant": [1.0, 1.0]})
    ridge = axes.lines[0]
    heights = -ridge.get_ydata()  # the axis points down
    assert ridge.get_xdata()[heights.argmax()] == pytest.approx(2.0, abs=0.2)
    expected = 0.72 * np.exp(-0.5 * ((ridge.get_xdata() - 2.0) / 0.5) ** 2)
    np.testing.assert_allclose(heights, expected, atol=0.06)
    assert axes.lines[1].get_xdata()[0] == pytest.approx(np.median(values))
    assert axes.lines[2].get_xdata()[(1.0 - axes.lines[2].get_ydata()).argmax()] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(("values", "said"), [([], "'a' has no values"), ([1.0, float("nan")], "'a' has values that are not finite")])
def test_distributions_of_nothing_are_refused(values: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plots.distributions(plots.figure().subplots(), {"a": values})


def test_heat_maps_say_their_numbers() -> None:
    axes = plots.figure().subplots()
    plots.heat_map(axes, [[0.25, float("nan")], [0.5, 1.0]], ["x", "y"], ["first", "second"], ".0%", limits=(0, 1))
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [
        ((0, 0), "25%"),
        ((1, 0), "–"),
        ((0, 1), "50%"),
        ((1, 1), "100%"),
    ]
    shades = [sum(cell.get_facecolor()[:3]) for cell in axes.patches]
    assert shades[0] > shades[1] > shades[2]


def test_numbers_that_do_not_belong_to_the_names_are_refused() -> None:
    axes = plots.figure().subplots()
    with pytest.raises(ValueError, match=r"\(1, 2\) values for 2 rows and 1 columns"):
        plots.heat_map(axes, [[1, 2]], ["x"], ["a", "b"])
    with pytest.raises(ValueError, match=r"\(2,\) values for 1 "):
        plots.intervals(axes, ["a"], [1, 2], [0, 0], [3, 3])
    with pytest.raises(ValueError, match="at least one name"):
        plots.intervals(axes, [], [], [], [])


def test_curves_are_told_apart_without_colour() -> None:
    axes = plots.figure().subplots()
    plots.curves(axes, [1, 2, 3], {name: [0, 1, 2] for name in NAMES})
    assert len({line.get_marker() for line in axes.lines}) == 7
    assert len({line.get_color() for line in axes.lines}) == 7
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [line.get_label() for line in axes.lines]


def test_steps_and_counts_are_labelled_at_whole_numbers() -> None:
    for values, whole in (([0, 1, 2], True), ([0.0, 0.5, 1.0], False)):
        axes = plots.figure().add_subplot()
        plots.curves(axes, values, {"loss": [3.0, 2.0, 1.0]})
        assert all(float(tick).is_integer() for tick in axes.get_xticks()) == whole
