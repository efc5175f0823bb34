from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import label

from image_reward.comparisons import shapes
from image_reward.comparisons.shapes import ALIGNMENT_POINTS, COLOURS, Candidate, comparisons, draw
from image_reward.comparisons.shapes_judge import (
    POINTS,
    SeenObject,
    Sight,
    Verdict,
    components,
    judge,
    judge_sight,
    parse,
)
from image_reward.errors import ImageReadError, InputError

MOST = max(ALIGNMENT_POINTS.values())  # what the gravest single fault costs


@dataclass(frozen=True)
class Judged:
    prompt: str
    comparison: str
    candidate: Candidate
    verdict: Verdict

    @property
    def drawn_points(self) -> int:
        return sum(ALIGNMENT_POINTS[error] for error in self.candidate.alignment_errors)

    @property
    def placed(self) -> list[shapes.Placed]:
        return shapes._layout(self.candidate, shapes._Draws(self.candidate.seed))

    @property
    def crowded(self) -> bool:
        """Whether large objects were made smaller, to find room."""
        return any(item.size == "large" and radius < 700 for item, _, _, radius in self.placed)

    def true_faults(self) -> tuple[str, ...]:
        """What the rule says of the scene that was drawn, with no pixel read."""
        objects = tuple(SeenObject(i.shape, i.colour, str(i.size), x / 4096, y / 4096, r / 4096, 1.0) for i, x, y, r in self.placed)
        faults = judge_sight(parse(self.prompt), Sight(self.candidate.scene.background, objects, legible=True))
        return tuple(fault.name for fault in faults)


def judged(number: int, seed: int, size: int = 64, keep: Callable[[Candidate], bool] = lambda _: True) -> list[Judged]:
    return [
        Judged(item.prompt, str(item.id), candidate, judge(item.prompt, draw(candidate)))
        for item in comparisons(number, seed, size=size)
        for candidate in item.images
        if keep(candidate)
    ]


@pytest.fixture(scope="module")
def clean() -> list[Judged]:
    """Images without a defect of fidelity: more than 1,400."""
    return judged(480, seed=21, keep=lambda candidate: candidate.defect is None)


# --- drawn images without a defect ---------------------------------------------------------------------------------------------------


def test_pixels_are_read_as_what_was_drawn(clean: list[Judged]) -> None:
    assert len(clean) > 1400
    wrong = [item for item in clean if item.verdict.names != item.true_faults()]
    assert all(item.crowded for item in wrong)
    assert len(wrong) <= 0.005 * len(clean)
    assert all(item.verdict.sight.legible for item in clean)


def test_faultless_images_have_no_points(clean: list[Judged]) -> None:
    faultless = [item for item in clean if not item.candidate.alignment_errors]
    wrong = [item for item in faultless if item.verdict.points]
    assert len(faultless) > 500
    assert all(item.verdict.names == ("size",) and item.crowded for item in wrong)
    assert len(wrong) <= 0.005 * len(faultless)


def test_every_single_fault_is_named(clean: list[Judged]) -> None:
    counts: Counter[str] = Counter()
    for item in clean:
        if len(item.candidate.alignment_errors) == 1 and not item.crowded:
            [error] = item.candidate.alignment_errors
            counts[error] += 1
            alike = (
                error in ("swap", "relation") and len({o.shape for o in parse(item.prompt).objects}) == 1
            )  # then one looks like the other
            assert item.verdict.names in ([("swap",), ("relation",)] if alike else [(error,)]), (item.prompt, item.candidate)
            assert item.verdict.points == ALIGNMENT_POINTS[error]
    assert set(counts) == set(ALIGNMENT_POINTS)
    assert min(counts.values()) >= 2


def test_two_faults_add_up(clean: list[Judged]) -> None:
    double = [item for item in clean if len(item.candidate.alignment_errors) == 2 and not item.crowded]
    assert len(double) > 250
    for item in double:
        if item.candidate.alignment_errors == ("extra", "missing"):
            assert item.verdict.points <= item.drawn_points  # the extra one may stand for the missing one
        else:
            assert item.verdict.points == item.drawn_points, (item.prompt, item.candidate, item.verdict)


def test_the_order_is_that_of_the_rule(clean: list[Judged]) -> None:
    by_comparison = defaultdict(list)
    for item in clean:
        by_comparison[item.comparison].append(item)
    agree = pairs = 0
    for items in by_comparison.values():
        for a, b in combinations(items, 2):
            if a.candidate.points != b.candidate.points:
                pairs += 1
                agree += (a.candidate.points < b.candidate.points) == (a.verdict.points < b.verdict.points) and (
                    a.verdict.points != b.verdict.points
                )
    assert pairs > 1000
    assert agree / pairs >= 0.985


# --- other sizes and defects ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [32, 50, 64, 100, 224])
def test_other_sizes(size: int) -> None:
    items = judged(8, seed=5, size=size, keep=lambda candidate: candidate.defect is None)
    assert len(items) > 15
    assert [item.verdict.names for item in items if not item.crowded] == [item.true_faults() for item in items if not item.crowded]


@pytest.fixture(scope="module")
def defective() -> list[Judged]:
    return judged(150, seed=33, keep=lambda candidate: candidate.defect is not None)


@pytest.mark.parametrize(
    ("defect", "severity", "share"),
    [
        ("noise", 1, 0.97),
        ("noise", 2, 0.94),
        ("blur", 1, 0.97),
        ("jpeg", 1, 0.97),
        ("jpeg", 2, 0.8),
        ("warp", 1, 0.9),
        ("cut-off", 1, 0.8),
        ("occlusion", 1, 0.6),
        ("blur", 2, 0.5),
        ("cut-off", 2, 0.5),
        ("warp", 2, 0.35),
        ("occlusion", 2, 0.3),
    ],
)
def test_faults_are_seen_through_defects(defective: list[Judged], defect: str, severity: int, share: float) -> None:
    items = [item for item in defective if (item.candidate.defect, item.candidate.severity) == (defect, severity)]
    assert len(items) >= 25
    assert sum(item.verdict.points == item.drawn_points for item in items) / len(items) >= share
    assert all(item.verdict.sight.legible for item in items)


def test_a_defect_alone_costs_nothing(defective: list[Judged]) -> None:
    mild = [item for item in defective if item.candidate.severity == 1 and not item.candidate.alignment_errors]
    mild = [item for item in mild if item.candidate.defect in ("noise", "blur", "jpeg")]
    assert len(mild) > 40
    assert sum(item.verdict.points == 0 for item in mild) / len(mild) > 0.97


# --- what is no answer to the prompt -------------------------------------------------------------------------------------------------

PROMPTS = ("a red circle", "two small white crosses", "a large red circle above a small blue square on a green background")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("colour", [*COLOURS.values(), (0, 0, 0), (128, 128, 128), (255, 0, 255), (255, 128, 0)])
def test_a_blank_image_lacks_everything(prompt: str, colour: tuple[int, int, int]) -> None:
    verdict = judge(prompt, np.full((64, 64, 3), colour, dtype=np.uint8))
    spec = parse(prompt)
    least = len(spec.objects) * POINTS["missing"] if spec.count == 1 else spec.count * POINTS["count"]
    assert verdict.points >= least >= MOST
    assert verdict.sight.objects == ()


def random_pixels(side: int, resample: Image.Resampling, size: int = 64, seed: int = 0) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((size, size), resample))


def grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.mgrid[:side, :side]
    return x, y


def checks(side: int, period: int) -> np.ndarray:
    x, y = grid(side)
    return np.where(((x // period + y // period) % 2)[..., None], COLOURS["red"], COLOURS["blue"]).astype(np.uint8)


def stripes(side: int, period: int) -> np.ndarray:
    x, _ = grid(side)
    return np.where((x // period % 2)[..., None], COLOURS["red"], COLOURS["white"]).astype(np.uint8)


WORTHLESS = {
    "noise": random_pixels(64, Image.Resampling.NEAREST),
    "large noise": random_pixels(256, Image.Resampling.NEAREST, size=256),
    "coloured tiles": random_pixels(8, Image.Resampling.NEAREST),
    "coloured clouds": random_pixels(12, Image.Resampling.BICUBIC),
    "checks": checks(64, 4),
    "coarse checks": checks(64, 8),
    "stripes": stripes(64, 4),
    "coarse stripes": stripes(64, 8),
    "half and half": stripes(64, 32),
}


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", WORTHLESS)
def test_noise_and_textures_rank_below_every_single_fault(prompt: str, name: str) -> None:
    assert judge(prompt, WORTHLESS[name]).points > MOST


@pytest.mark.parametrize("name", ["noise", "large noise", "coloured tiles", "coloured clouds", "checks", "coarse checks"])
def test_what_is_no_drawing_is_illegible_and_last_of_all(name: str, clean: list[Judged]) -> None:
    for prompt in PROMPTS:
        verdict = judge(prompt, WORTHLESS[name])
        assert "illegible" in verdict.names
        form = (len(parse(prompt).objects), parse(prompt).count > 1)
        like = [item.verdict.points for item in clean if (len(parse(item.prompt).objects), parse(item.prompt).count > 1) == form]
        assert verdict.points > max(like)


def test_images_of_other_prompts_are_worse_than_faults() -> None:
    items = comparisons(150, seed=8)
    faultless = [next((c for c in item.images if c.points == 0), None) for item in items]
    points = [judge(item.prompt, draw(other)).points for item, other in zip(items, faultless[1:], strict=False) if other]
    assert len(points) > 100
    assert min(points) > 0
    assert sum(p >= MOST for p in points) / len(points) > 0.9
    assert sum(points) / len(points) > MOST + 1


# --- images that nobody's generator drew ---------------------------------------------------------------------------------------------


def picture(
    *marks: tuple[str, tuple[float, ...] | list[tuple[float, float]], str], background: str = "blue", size: int = 64
) -> Image.Image:
    """Marks on a plain background: (method of ImageDraw, coordinates in 64ths of the side, colour)."""
    image = Image.new("RGB", (size, size), COLOURS[background])
    pen = ImageDraw.Draw(image)
    for method, places, colour in marks:
        flat = [float(value) * size / 64 for place in places for value in (place if isinstance(place, tuple) else (place,))]
        getattr(pen, method)(flat, fill=COLOURS[colour])
    return image


def star(points: int, outer: float, inner: float) -> list[tuple[float, float]]:
    radii = [outer if i % 2 == 0 else inner for i in range(2 * points)]
    angles = [math.pi * i / points - math.pi / 2 for i in range(2 * points)]
    return [(32 + r * math.cos(a), 32 + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)]


CIRCLE = ("ellipse", (18, 18, 45, 45), "red")
SMALL_CIRCLE = ("ellipse", (24, 24, 39, 39), "red")
SQUARE = ("rectangle", (20, 20, 43, 43), "red")
TRIANGLE = ("polygon", [(32, 16), (48, 44), (16, 44)], "red")
POINTING_DOWN = ("polygon", [(32, 48), (48, 20), (16, 20)], "red")
CROSS = [("rectangle", (28, 18, 35, 45), "red"), ("rectangle", (18, 28, 45, 35), "red")]
DIAMOND = ("polygon", [(32, 14), (50, 32), (32, 50), (14, 32)], "red")


@pytest.mark.parametrize("size", [32, 64, 128, 512])
@pytest.mark.parametrize(
    ("shape", "marks"),
    [
        ("circle", [CIRCLE]),
        ("square", [SQUARE]),
        ("square", [DIAMOND]),
        ("triangle", [TRIANGLE]),
        ("triangle", [POINTING_DOWN]),
        ("cross", CROSS),
    ],
)
def test_shapes_drawn_with_pillow(shape: str, marks: list, size: int) -> None:
    image = picture(*marks, size=size)
    assert judge(f"a large red {shape} on a blue background", image).names == ()
    for other in set(shapes.SHAPES) - {shape}:
        assert judge(f"a red {other}", image).names == ("shape",)


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("a red circle", ()),
        ("a large red circle on a blue background", ()),
        ("a small red circle", ("size",)),
        ("a green circle", ("colour",)),
        ("a red circle on a white background", ("background",)),
        ("a green cross", ("colour", "shape")),
        ("two red circles", ("count",)),
        ("three red circles", ("count", "count")),
        ("a red circle above a white square", ("missing",)),
        ("a white square above a red circle", ("missing",)),
    ],
)
def test_one_circle_for_many_prompts(prompt: str, names: tuple[str, ...]) -> None:
    verdict = judge(prompt, picture(CIRCLE))
    assert verdict.names == names
    assert verdict.points == sum(POINTS[name] for name in names)


PAIR = picture(("ellipse", (4, 24, 21, 41), "red"), ("rectangle", (36, 26, 57, 47), "white"))


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("a red circle left of a white square", ()),
        ("a small red circle left of a large white square on a blue background", ()),
        ("a white square right of a red circle", ()),
        ("a red circle right of a white square", ("relation",)),
        ("a red circle above a white square", ("relation",)),
        ("a white circle left of a red square", ("swap",)),
        ("a white circle below a red square", ("relation", "swap")),
        ("a red circle left of a green square", ("colour",)),
        ("a red circle left of a white cross", ("shape",)),
        ("a large red circle left of a white square", ("size",)),
        ("a green circle left of a black square", ("colour", "colour")),
        ("a red circle", ("extra",)),
        ("two red circles", ("count", "extra")),
    ],
)
def test_two_objects_for_many_prompts(prompt: str, names: tuple[str, ...]) -> None:
    assert judge(prompt, PAIR).names == names


def test_objects_of_one_colour_that_touch_or_overlap_a_little() -> None:
    touching = picture(("ellipse", (6, 20, 31, 45), "red"), ("ellipse", (31, 20, 56, 45), "red"))
    overlapping = picture(("rectangle", (6, 10, 30, 34), "red"), ("rectangle", (28, 26, 52, 50), "red"))
    assert judge("two large red circles", touching).names == ()
    assert judge("two large red squares", overlapping).names == ()
    assert judge("three red circles", touching).names == ("count",)


def test_overlapping_and_enclosed_objects_of_two_colours() -> None:
    overlapping = picture(("ellipse", (8, 20, 33, 45), "red"), ("rectangle", (29, 22, 54, 45), "white"))
    enclosed = picture(("rectangle", (8, 8, 56, 56), "white"), ("ellipse", (12, 24, 27, 39), "red"))
    assert judge("a red circle left of a white square", overlapping).names == ()
    assert judge("a small red circle left of a white square", enclosed).names == ()


def test_objects_cut_by_the_frame_keep_their_shape_and_size() -> None:
    assert judge("a large red circle", picture(("ellipse", (-10, 18, 17, 45), "red"))).names == ()
    assert judge("a large red square", picture(("rectangle", (48, 20, 71, 43), "red"))).names == ()


@pytest.mark.parametrize(
    "mark",
    [
        ("line", (4, 6, 60, 52), "red"),
        ("rectangle", (0, 0, 31, 64), "red"),
        ("rectangle", (4, 28, 60, 34), "red"),
    ],
)
def test_what_is_no_object_stands_for_none(mark: tuple) -> None:
    assert judge("a red square", picture(mark)).points >= POINTS["missing"]


def test_shapes_outside_the_world_are_wrong_shapes() -> None:
    for other in ("square", "triangle", "cross"):
        assert judge(f"a red {other}", picture(("polygon", star(5, 18, 7), "red"))).names == ("shape",)


def test_a_colour_outside_the_world_is_a_wrong_colour() -> None:
    image = np.asarray(picture(CIRCLE)).copy()
    image[(image == COLOURS["red"]).all(-1)] = (255, 0, 255)
    assert judge("a red circle", image).names == ("colour",)
    image[(image == COLOURS["blue"]).all(-1)] = (250, 150, 180)
    assert judge("a red circle on a white background", image).names == ("background", "colour")


def test_a_speck_is_overlooked() -> None:
    assert judge("a red circle", picture(CIRCLE, ("rectangle", (4, 4, 6, 6), "white"))).names == ()


# --- forms of images and prompts -----------------------------------------------------------------------------------------------------


def test_the_same_verdict_for_every_form_of_an_image() -> None:
    for item in comparisons(4, seed=4):
        for candidate in item.images:
            array = draw(candidate)
            tensor = torch.from_numpy(array).permute(2, 0, 1).float() / 255
            first = judge(item.prompt, array)
            assert all(judge(item.prompt, form) == first for form in (array.copy(), Image.fromarray(array), tensor, candidate))


def test_the_image_is_not_changed() -> None:
    array = random_pixels(64, Image.Resampling.NEAREST)
    copy = array.copy()
    judge("a red circle", array)
    assert np.array_equal(array, copy)


def test_what_is_not_a_square_image() -> None:
    with pytest.raises(ImageReadError, match=r"square, not 64 x 32"):
        judge("a red circle", np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(ImageReadError, match="too small"):
        judge("a red circle", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ImageReadError, match="NaN"):
        judge("a red circle", torch.full((3, 64, 64), torch.nan))


def test_every_prompt_of_the_world_is_parsed() -> None:
    prompts = {item.prompt for split in ("train", "test") for item in comparisons(400, seed=2, split=split)}  # type: ignore[arg-type]
    assert len(prompts) > 500
    assert {parse(prompt).prompt for prompt in prompts} == prompts
    assert {parse(prompt).count for prompt in prompts} == {1, 2, 3}
    assert {parse(prompt).relation for prompt in prompts} == {None, *shapes.RELATIONS}


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "red circle",
        "an red circle",
        "a red circles",
        "two red circle",
        "two red crosss",
        "four red circles",
        "a purple circle",
        "a red star",
        "a tiny red circle",
        "a red circle above two blue squares",
        "two red circles above a blue square",
        "a red circle near a blue square",
        "a red circle on a purple background",
        "A red circle",
        "a red circle.",
        "a photo of a cat",
    ],
)
def test_prompts_outside_the_world_are_refused(prompt: str) -> None:
    with pytest.raises(InputError, match="not a prompt of the shapes world"):
        judge(prompt, PAIR)


def test_objects_of_the_background_colour_are_refused() -> None:
    with pytest.raises(InputError, match="cannot be seen"):
        parse("a red circle on a red background")


# --- parts ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_components_are_those_of_scipy(seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, 2 + seed % 3, (40, 33))
    ours = components(labels)
    expected = np.zeros_like(ours)
    for value in np.unique(labels):
        regions, _ = label(labels == value)
        expected += np.where(labels == value, regions + expected.max(), 0)
    pairs = set(zip(ours.ravel().tolist(), expected.ravel().tolist(), strict=True))
    assert len(pairs) == len(np.unique(ours)) == len(np.unique(expected))


def test_components_of_a_spiral_are_one() -> None:
    spiral = np.zeros((41, 41), dtype=np.int64)
    low, high = 0, 40
    while low < high:  # rings joined by bridges: the longest way round
        spiral[low, low : high + 1] = spiral[high, low : high + 1] = spiral[low : high + 1, high] = 1
        spiral[low + 2 : high + 1, low] = 1
        spiral[low + 2, low : low + 3] = 1
        low, high = low + 2, high - 2
    assert np.unique(components(spiral)[spiral == 1]).size == 1


def seen(shape: str | None, colour: str | None, x: float, y: float, size: str = "large") -> SeenObject:
    return SeenObject(shape, colour, size, x, y, 0.2, 0.9)


def names(prompt: str, *objects: SeenObject, background: str | None = "green") -> tuple[str, ...]:
    return tuple(fault.name for fault in judge_sight(parse(prompt), Sight(background, objects, legible=True)))


def test_the_reading_with_the_fewest_points_counts() -> None:
    circle, square = seen("circle", "red", 0.5, 0.2), seen("square", "blue", 0.5, 0.8)
    assert names("a red circle above a blue square", square, circle) == ()
    assert names("a red circle below a blue square", circle, square) == ("relation",)
    assert names("a red circle above a blue square", circle, square, seen("circle", "white", 0.1, 0.1)) == ("extra",)
    assert names("a red circle", circle, square, background="white") == ("extra",)
    assert names("a red circle on a white background", circle, background=None) == ("background",)


def test_counted_objects_share_a_fault() -> None:
    three = [seen("square", "red", 0.2 + 0.3 * i, 0.5) for i in range(3)]
    assert names("three red squares", *three) == ()
    assert names("three red circles", *three) == ("shape",)
    assert names("two red squares", *three) == ("count",)
    assert names("two red circles", *three) == ("count", "shape")
    assert names("three red squares", *three, seen("circle", "black", 0.5, 0.9)) == ("extra",)
    assert names("three red squares", *three[:2], seen("square", "blue", 0.8, 0.5)) == ("colour",)
    assert names("three red squares") == ("count",) * 3


def test_faults_say_what_is_wrong() -> None:
    [fault] = judge("a red circle right of a white square", PAIR).faults
    assert (fault.name, fault.points, fault.detail) == ("relation", 2, "left of, not right of")
    [fault] = judge("a red circle left of a green square", PAIR).faults
    assert fault.detail == "white, not green: a green square"
