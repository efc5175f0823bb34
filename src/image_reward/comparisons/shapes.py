"""The shapes world: prompts about drawn shapes, candidate images that err in stated ways, and the ranking a careful person would give.

It replaces human data where none may be distributed: any number of comparisons from a seed, with the form of ImageRewardDB (Xu et al.
2023, arXiv 2304.05977): 4 to 9 images a prompt, ranked into 5 slots with at most 2 images a slot, by alignment and fidelity together.

**The rule.** An image collects penalty points: for every way in which it departs from the prompt (``ALIGNMENT_POINTS``) and for the
severity of its defect, if it has one (``DEFECTS``; mild 1, heavy 2). Its slot is the sum of the points, at most 4. Images in the same slot
tie; ranks are the occupied slots counted from 1. Candidates are drawn so that no slot ever holds a third image, so the rule alone decides
every pair.

**Same bytes everywhere.** Randomness is the raw stream of PCG64, which numpy promises never to change; all else is integer arithmetic, or
floats that hold whole numbers exactly. No file codec and no Pillow drawing takes part, so that no library version changes a pixel.

Lengths are in units of 1/4096 of the image's side, so that a scene looks the same at every size; y grows downwards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from image_reward.types import Comparison

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

    Ints = NDArray[np.int64]

Split = Literal["train", "test"]
PairKind = Literal["alignment", "fidelity", "both", "neither"]
T = TypeVar("T")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 40, 44),
    "yellow": (240, 218, 62),
    "green": (52, 158, 62),
    "blue": (46, 84, 208),
    "black": (28, 28, 32),
    "white": (238, 238, 234),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES: dict[str, tuple[int, int]] = {"small": (480, 580), "large": (860, 940)}
"""The least and the greatest distance from a shape's centre to its rim."""
RELATIONS: dict[str, tuple[int, int]] = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
"""Where the first object lies as seen from the second: (x, y)."""
COUNTS = {2: "two", 3: "three"}

ALIGNMENT_POINTS = {
    "missing": 3,  # an object of the prompt is not there
    "shape": 2,
    "colour": 2,
    "swap": 2,  # the two objects have each other's colour
    "relation": 2,
    "count": 2,  # one object too many or too few
    "size": 1,
    "background": 1,
    "extra": 1,  # an object that the prompt does not name
}
ALIGNMENT_FREQUENCY = {
    "missing": 3,
    "shape": 3,
    "colour": 4,
    "swap": 1,
    "relation": 1,
    "count": 1,
    "size": 3,
    "background": 3,
    "extra": 3,
}
"""How often an error is made, as parts of the sum over those that a prompt allows."""
DEFECTS = ("blur", "noise", "jpeg", "warp", "occlusion", "cut-off")
NUM_SLOTS = 5
MAX_PER_SLOT = 2
TEST_FRACTION = 0.1
"""The share of all possible prompts that is held out: a prompt is in the test split, for every seed, by the hash of its text."""

_SIDE = 4096
_SAMPLES = 4  # per pixel and axis
_MARGIN = 80  # an uncut object keeps this distance from the frame
_GRID = _SIDE // 8


class _Draws:
    """Integers from a key: the same on every machine and for every numpy version."""

    def __init__(self, *key: object) -> None:
        digest = hashlib.sha256(repr(key).encode()).digest()
        self.stream = np.random.PCG64(int.from_bytes(digest[:8], "little"))

    def below(self, n: int) -> int:
        """0 .. n - 1"""
        return int(self.stream.random_raw()) % n

    def between(self, low: int, high: int) -> int:
        """low .. high, both included"""
        return low + self.below(high - low + 1)

    def choice(self, options: Iterable[T], *excluded: T | None) -> T:
        allowed = [option for option in options if option not in excluded]
        return allowed[self.below(len(allowed))]

    def field(self, *shape: int) -> NDArray[np.uint8]:
        """Bytes 0 .. 255"""
        count = int(np.prod(shape))
        words = np.asarray(self.stream.random_raw((count + 7) // 8), dtype="<u8")
        return words.view(np.uint8)[:count].reshape(shape)


# --- prompts -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SceneObject:
    """An object of a prompt or a scene."""

    shape: str
    colour: str
    size: str | None = None
    """None where a prompt leaves it open; never None in a scene."""

    def describe(self, count: int = 1) -> str:
        """As the prompt names it: "a small red circle", "three small red circles"."""
        words = " ".join(word for word in (self.size, self.colour, self.shape) if word)
        if count == 1:
            return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
        return f"{COUNTS[count]} {words}{'es' if self.shape == 'cross' else 's'}"


@dataclass(frozen=True)
class PromptSpec:
    """What a prompt asks for: one object, two or three equal ones, or two in a relation; maybe a background."""

    objects: tuple[SceneObject, ...]
    count: int = 1
    """How many there are of the only object; 1 when there are two objects."""
    relation: str | None = None
    background: str | None = None

    @property
    def prompt(self) -> str:
        """The prompt in words."""
        text = self.objects[0].describe(self.count)
        if self.relation:
            text += f" {self.relation} {self.objects[1].describe()}"
        if self.background:
            text += f" on {'an' if self.background[0] in 'aeiou' else 'a'} {self.background} background"
        return text


def split_of(prompt: str) -> Split:
    """The split that a prompt belongs to, whatever the seed.

    >>> split_of("a large red circle above a small blue square on a green background")
    'test'
    """
    return "test" if int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "little") < TEST_FRACTION * 2**32 else "train"


def _prompt_spec(draws: _Draws) -> PromptSpec:
    form = draws.below(10)  # 3 in 10 prompts have one object, 2 in 10 a count, 5 in 10 a relation
    first = SceneObject(draws.choice(SHAPES), draws.choice(COLOURS), draws.choice((*SIZES, None)))
    second = SceneObject(draws.choice(SHAPES), draws.choice(COLOURS, first.colour), draws.choice((*SIZES, None)))
    background = draws.choice(COLOURS, first.colour, second.colour) if draws.below(2) else None
    if form < 3:
        return PromptSpec((first,), background=background)
    if form < 5:
        return PromptSpec((first,), count=draws.choice(COUNTS), background=background)
    return PromptSpec((first, second), relation=draws.choice(RELATIONS), background=background)


PromptKind = Literal["one", "count", "relation"]


@cache
def prompt_specs(kind: PromptKind = "one", split: Split | None = None) -> tuple[PromptSpec, ...]:
    """All prompts of a kind, or those of a split, always in the same order.

    Prompts are about one object, a count of equal ones, or two in a relation.

    >>> len(prompt_specs("one", "train")), len(prompt_specs("one", "test"))
    (387, 45)
    >>> prompt_specs("one", "test")[0].prompt
    'a large red circle'
    """
    objects = [SceneObject(*each) for each in product(SHAPES, COLOURS, (*SIZES, None))]
    backgrounds = (None, *COLOURS)
    if kind == "one":
        specs = [PromptSpec((item,), background=background) for item, background in product(objects, backgrounds)]
    elif kind == "count":
        specs = [PromptSpec((item,), number, background=background) for item, number, background in product(objects, COUNTS, backgrounds)]
    else:
        specs = [
            PromptSpec((first, second), relation=relation, background=background)
            for first, second, relation, background in product(objects, objects, RELATIONS, backgrounds)
            if first.colour != second.colour
        ]
    visible = (spec for spec in specs if spec.background not in {item.colour for item in spec.objects})
    return tuple(spec for spec in visible if split is None or split_of(spec.prompt) == split)


# --- candidates ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """What is in an image: objects in a relation, if they have one, on a background."""

    objects: tuple[SceneObject, ...]
    relation: str | None
    background: str
    extra: SceneObject | None = None


@dataclass(frozen=True)
class Candidate:
    """One image of a comparison: a function of no arguments that draws it, with its full description. Small and picklable."""

    scene: Scene
    alignment_errors: tuple[str, ...]
    """How it departs from its prompt: names of ``ALIGNMENT_POINTS``, sorted."""
    defect: str | None
    """One of ``DEFECTS``, or None."""
    severity: int
    """0 without a defect, 1 for a mild one, 2 for a heavy one."""
    seed: tuple[int, ...]
    """Decides positions, shades and textures."""
    size: int = 64
    """The image's side in pixels."""

    @property
    def points(self) -> int:
        """The rule's penalty, 0 for a faultless image."""
        return sum(ALIGNMENT_POINTS[error] for error in self.alignment_errors) + self.severity

    @property
    def slot(self) -> int:
        """0 (best) to 4"""
        return min(self.points, NUM_SLOTS - 1)

    def __call__(self) -> Image.Image:
        from PIL import Image

        return Image.fromarray(draw(self))


def pair_kind(a: Candidate, b: Candidate) -> PairKind:
    """How two candidates of a prompt differ, ignoring positions, shades and textures: ``alignment`` where their errors differ and their
    defects and severities do not, ``fidelity`` for the reverse."""
    alignment = a.alignment_errors != b.alignment_errors
    fidelity = (a.defect, a.severity) != (b.defect, b.severity)
    return "both" if alignment and fidelity else "alignment" if alignment else "fidelity" if fidelity else "neither"


def _possible_errors(spec: PromptSpec) -> list[str]:
    errors = ["shape", "colour", "extra"]
    errors += ["swap", "relation"] if spec.relation else []
    errors += ["count"] if spec.count > 1 else ["missing"]
    errors += ["size"] if any(item.size for item in spec.objects) else []
    errors += ["background"] if spec.background else []
    return errors


def _compatible(a: str, b: str) -> bool:
    """Whether two errors can occur together: the second must not undo, hide or repeat the first."""
    pair = {a, b}
    if len(pair) == 1 or "missing" in pair:
        return len(pair) == 2 and pair <= {"missing", "background", "extra"}
    return not (pair <= {"swap", "relation", "colour", "shape", "size"} and "swap" in pair) and pair != {"count", "extra"}


def _errors(spec: PromptSpec, draws: _Draws) -> tuple[str, ...]:
    number = (0, 0, 1, 1, 2)[draws.below(5)]
    errors: list[str] = []
    for _ in range(number):
        options = [error for error in _possible_errors(spec) if all(_compatible(error, other) for other in errors)]
        errors.append(draws.choice(error for error in options for _ in range(ALIGNMENT_FREQUENCY[error])))
    return tuple(sorted(errors))


def _scene(spec: PromptSpec, errors: tuple[str, ...], draws: _Draws) -> Scene:
    named = [item.colour for item in spec.objects]
    background = draws.choice(COLOURS, *named, spec.background) if "background" in errors or not spec.background else spec.background
    taken = [*named, background, spec.background]
    objects = [replace(item, size=item.size or draws.choice(SIZES)) for item in spec.objects]
    i = draws.below(len(objects))
    if "shape" in errors:
        objects[i] = replace(objects[i], shape=draws.choice(SHAPES, objects[i].shape))
    i = draws.below(len(objects))
    if "colour" in errors:
        objects[i] = replace(objects[i], colour=draws.choice(COLOURS, *taken))
        taken.append(objects[i].colour)
    if "size" in errors:
        i = draws.choice([i for i, item in enumerate(spec.objects) if item.size])
        objects[i] = replace(objects[i], size=draws.choice(SIZES, objects[i].size))
    if "swap" in errors:
        colours = [item.colour for item in objects]
        objects = [replace(item, colour=colour) for item, colour in zip(objects, reversed(colours), strict=True)]
    if "missing" in errors:
        objects.pop(i)
    relation = spec.relation if len(objects) == 2 else None
    if relation and "relation" in errors:
        relation = draws.choice(RELATIONS, relation)
    if spec.count > 1:
        objects *= spec.count + (draws.choice((-1, 1)) if "count" in errors else 0)
    extra = SceneObject(draws.choice(SHAPES), draws.choice(COLOURS, *taken), "small") if "extra" in errors else None
    return Scene(tuple(objects), relation, background, extra)


def _candidates(spec: PromptSpec, seed: tuple[int, ...], size: int, draws: _Draws) -> list[Candidate]:
    number = draws.between(4, 9)
    filled = [0] * NUM_SLOTS
    candidates: list[Candidate] = []
    while len(candidates) < number:
        errors = _errors(spec, draws)
        severity = (0, 0, 1, 2)[draws.below(4)]
        defect = draws.choice(DEFECTS) if severity else None
        if defect == "cut-off" and "missing" in errors and len(spec.objects) == 1:
            continue  # nothing is left to be cut off
        if defect == "occlusion" and "missing" in errors and len(spec.objects) == 1:
            continue
        candidate = Candidate(_scene(spec, errors, draws), errors, defect, severity, (*seed, len(candidates)), size)
        if filled[candidate.slot] < MAX_PER_SLOT:
            filled[candidate.slot] += 1
            candidates.append(candidate)
    return candidates


def faultless(spec: PromptSpec, *seed: int, size: int = 64) -> Candidate:
    """An image that is what the prompt asks for, without a defect; the seed decides what the prompt leaves open.

    >>> [spec] = [spec for spec in prompt_specs() if spec.prompt == "a large red cross on a white background"]
    >>> candidate = faultless(spec, 0)
    >>> candidate.scene.background, candidate.points, candidate().size
    ('white', 0, (64, 64))
    """
    return Candidate(_scene(spec, (), _Draws("faultless", spec.prompt, seed)), (), None, 0, seed, size)


def _ranks(slots: list[int], noise: float, draws: _Draws) -> tuple[int, ...]:
    """Slots -> ranks from 1, after the annotator's mistakes: between neighbouring slots one image of each changes places."""
    order = {slot: rank for rank, slot in enumerate(sorted(set(slots)), start=1)}
    ranks = [order[slot] for slot in slots]
    for rank in range(1, len(order)):
        if draws.below(1 << 20) < noise * (1 << 20):
            a, b = (draws.choice([i for i, r in enumerate(ranks) if r == wanted]) for wanted in (rank, rank + 1))
            ranks[a], ranks[b] = ranks[b], ranks[a]
    return tuple(ranks)


def comparison(index: int, seed: int, *, size: int = 64, noise: float = 0.0, split: Split = "train") -> Comparison:
    """Comparison number ``index`` of a seed; see ``comparisons``. Its ``images`` are ``Candidate``s."""
    draws = _Draws("shapes", split, seed, index)
    spec = _prompt_spec(draws)
    while split_of(spec.prompt) != split:
        spec = _prompt_spec(draws)
    candidates = _candidates(spec, (seed, index, int(split == "test")), size, draws)
    ranks = _ranks([candidate.slot for candidate in candidates], noise, draws)
    return Comparison(spec.prompt, tuple(candidates), ranks, id=f"{split}-{seed}-{index}", source="shapes")


def comparisons(num_prompts: int, seed: int, *, size: int = 64, noise: float = 0.0, split: Split = "train") -> list[Comparison]:
    """The first ``num_prompts`` comparisons of a seed; more of the same seed begin with these.

    ``size`` is the images' side in pixels, at least 16. ``noise`` in [0, 1] is how often the annotator puts an image of one slot below
    one of the next: 0 gives the rule's own ranking. A prompt of one split never occurs in the other, for any pair of seeds. Images are
    drawn when called, so the list is cheap.

    >>> [first] = comparisons(1, seed=0)
    >>> first.prompt, first.ranks
    ('a small green triangle below a large blue circle on a red background', (3, 3, 1, 2))
    """
    if size < 16:
        raise ValueError(f"size is the side of the images in pixels and must be at least 16, not {size}")
    if not 0 <= noise <= 1:
        raise ValueError(f"noise is a probability in [0, 1], not {noise}")
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    return [comparison(index, seed, size=size, noise=noise, split=split) for index in range(num_prompts)]


# --- layout --------------------------------------------------------------------------------------------------------------------------

Placed = tuple[SceneObject, int, int, int]  # an object, x and y of its centre, its radius


def _layout(candidate: Candidate, draws: _Draws) -> list[Placed]:
    scene = candidate.scene
    radii = [draws.between(*SIZES[item.size or "small"]) for item in scene.objects]
    placed = (
        _place_related(scene, radii, draws) if scene.relation else _place_freely(list(zip(scene.objects, radii, strict=True)), [], draws)
    )
    if scene.extra:
        placed = _place_freely([(scene.extra, draws.between(*SIZES["small"]))], placed, draws)
    return _move_out_of_frame(placed, candidate.severity, draws) if candidate.defect == "cut-off" else placed


def _place(low: int, high: int, draws: _Draws) -> int:
    """One of the places an eighth of the side apart from low to high: so few that a small network sees each of them often."""
    return draws.between(-(-low // _GRID), high // _GRID) * _GRID


def _place_related(scene: Scene, radii: list[int], draws: _Draws) -> list[Placed]:
    """Two objects apart along the relation's axis, and nearly level across it, so that the relation is beyond doubt."""
    dx, dy = RELATIONS[scene.relation or ""]
    low = [radius + _MARGIN for radius in radii]
    gap = radii[0] + radii[1] + _MARGIN
    last = (_SIDE - low[1]) // _GRID * _GRID
    start = _place(low[0], last - gap, draws)
    end = _place(start + gap, last, draws)
    level = _place(max(low), _SIDE - max(low), draws)
    slant = (end - start) // 3
    other = _place(max(level - slant, low[1]), min(level + slant, _SIDE - low[1]), draws)
    along = (start, end) if dx + dy < 0 else (_SIDE - start, _SIDE - end)
    xs, ys = (along, (level, other)) if dx else ((level, other), along)
    return [(item, x, y, radius) for item, x, y, radius in zip(scene.objects, xs, ys, radii, strict=True)]


def _place_freely(new: list[tuple[SceneObject, int]], placed: list[Placed], draws: _Draws) -> list[Placed]:
    """Places where nothing overlaps; in a crowded frame all are placed again, smaller, after some failures."""
    for attempt in range(24):
        result = list(placed)
        for item, full in new:
            radius = full - full * attempt // 40
            for _ in range(12):
                x, y = (_place(radius + _MARGIN, _SIDE - radius - _MARGIN, draws) for _ in range(2))
                if all((x - px) ** 2 + (y - py) ** 2 >= (radius + other + _MARGIN) ** 2 for _, px, py, other in result):
                    result.append((item, x, y, radius))
                    break
        if len(result) == len(placed) + len(new):
            return result
    raise AssertionError("unreachable: four large shapes fit")


def _move_out_of_frame(placed: list[Placed], severity: int, draws: _Draws) -> list[Placed]:
    """Shift everything until an outermost object has lost a good part of its width."""
    dx, dy = RELATIONS[draws.choice(RELATIONS)]
    _, x, y, radius = max(placed, key=lambda p: dx * p[1] + dy * p[2] + p[3])
    reach = dx * x + dy * y + radius - (_SIDE if dx + dy > 0 else 0)  # how far the rim is beyond the frame, if positive
    shift = radius * (70 + 50 * (severity - 1) + draws.below(20)) // 100 - reach
    return [(item, x + dx * shift, y + dy * shift, radius) for item, x, y, radius in placed]


# --- drawing -------------------------------------------------------------------------------------------------------------------------

# 1024 * (cos, sin) of turns by multiples of 5 degrees up to 20 either way; and the unit normals of a triangle and of a pentagram
_TURNS = ((1024, 0), (1020, 89), (1008, 178), (989, 265), (962, 350), (1020, -89), (1008, -178), (989, -265), (962, -350))
_TRIANGLE = ((0, 1024), (887, -512), (-887, -512))
_PENTAGRAM = ((0, 1024), (974, 316), (602, -828), (-602, -828), (-974, 316))
_BACKDROPS = ("plain", "gradient", "stripes", "checks", "clouds")


@cache
def _centres(size: int) -> Ints:
    """The sample points along an axis."""
    return (2 * np.arange(size * _SAMPLES, dtype=np.int64) + 1) * _SIDE // (2 * size * _SAMPLES)


def inside(shape: str, x: Ints, y: Ints, r: int) -> NDArray[np.bool_]:
    """Which points (x, y), seen from the centre of a shape of radius r, belong to it."""
    if shape == "circle":
        return x * x + y * y <= r * r * 92 // 100
    if shape == "ring":
        square = x * x + y * y
        return (square <= r * r) & (square >= r * r * 30 // 100)
    if shape == "square":
        return (abs(x) <= r * 82 // 100) & (abs(y) <= r * 82 // 100)
    if shape == "cross":
        return ((abs(x) <= r * 31 // 100) & (abs(y) <= r)) | ((abs(y) <= r * 31 // 100) & (abs(x) <= r))
    if shape == "triangle":
        y = y - r * 22 // 100  # its box, not its centre of mass, is in the middle
        return np.logical_and.reduce([x * a + y * b <= r * 570 for a, b in _TRIANGLE])
    # A pentagram: the points that at least four of its five lines have on their inner side.
    return np.sum([x * a - y * b <= r * 340 for a, b in _PENTAGRAM], axis=0) >= 4


def _coverage(item: SceneObject, x: int, y: int, radius: int, size: int, turn: tuple[int, int]) -> tuple[slice, slice, Ints] | None:
    """The rows and columns of pixels that an object touches and its share of each, in sixteenths; None outside the frame."""
    reach = radius * 23 // 16  # the corner of a turned square or cross
    low = [max((c - reach) * size // _SIDE, 0) for c in (y, x)]
    high = [min((c + reach) * size // _SIDE + 1, size) for c in (y, x)]
    if low[0] >= high[0] or low[1] >= high[1]:
        return None
    points = _centres(size)
    v = points[low[0] * _SAMPLES : high[0] * _SAMPLES, None] - y
    u = points[None, low[1] * _SAMPLES : high[1] * _SAMPLES] - x
    cos, sin = turn
    covered = inside(item.shape, (u * cos + v * sin) >> 10, (v * cos - u * sin) >> 10, radius)
    rows, columns = high[0] - low[0], high[1] - low[1]
    share = covered.reshape(rows, _SAMPLES, columns, _SAMPLES).sum(axis=(1, 3), dtype=np.int64)
    return slice(low[0], high[0]), slice(low[1], high[1]), share


def _texture(kind: str, strength: int, size: int, draws: _Draws) -> Ints:
    """A lighter and darker pattern [S, S] in [-strength, strength]."""
    axis = _centres(size)[_SAMPLES // 2 :: _SAMPLES]
    x, y = axis[None, :], axis[:, None]
    a, b, phase = draws.between(-8, 8), draws.between(-8, 8), draws.below(_SIDE)
    if kind == "gradient":
        return (x * a + y * b) * strength // (8 * _SIDE)
    if kind == "stripes":
        wave = (x * a + y * b + phase) // 2 % 2048
        return (abs(wave - 1024) - 512) * strength // 512
    if kind == "checks":
        period = 300 + 40 * abs(a)
        return (((x + phase) // period + (y + phase) // period) % 2 * 2 - 1) * strength + 0 * (x + y)
    if kind == "clouds":
        grid = draws.field(6, 6).astype(np.int64) - 128
        cell, part = axis * 5 // _SIDE, axis * 5 % _SIDE * 64 // _SIDE
        rows: Ints = grid[cell] * (64 - part[:, None]) + grid[cell + 1] * part[:, None]
        clouds: Ints = rows[:, cell] * (64 - part) + rows[:, cell + 1] * part
        return clouds * strength >> 19
    return np.zeros((size, size), np.int64)


def _shade(colour: str, draws: _Draws) -> Ints:
    light = draws.between(-14, 14)
    return np.array([min(max(value + light + draws.between(-10, 10), 0), 255) for value in COLOURS[colour]], dtype=np.int64)


def draw(candidate: Candidate) -> NDArray[np.uint8]:
    """The pixels of a candidate, RGB [size, size, 3]."""
    draws = _Draws(candidate.seed)
    size = candidate.size
    placed = _layout(candidate, draws)
    canvas = _shade(candidate.scene.background, draws) + _texture(draws.choice(_BACKDROPS), 10, size, draws)[..., None]
    pattern = _texture(draws.choice(_BACKDROPS), 8, size, draws)[..., None]
    for item, x, y, radius in placed:
        colour, turn = _shade(item.colour, draws), draws.choice(_TURNS)
        if covered := _coverage(item, x, y, radius, size, turn):
            rows, columns, share = covered
            part = canvas[rows, columns]
            part += (colour + pattern[rows, columns] - part) * share[..., None] >> 4
    canvas += (draws.field(size, size, 1) >> 5).astype(np.int64) - 4  # grain
    canvas = _add_defect(canvas, candidate, placed, draws)
    return np.clip(canvas, 0, 255).astype(np.uint8)


# --- defects -------------------------------------------------------------------------------------------------------------------------


def _add_defect(canvas: Ints, candidate: Candidate, placed: list[Placed], draws: _Draws) -> Ints:
    severity, size = candidate.severity, candidate.size
    if candidate.defect == "blur":
        return _blur(canvas, max((2 * severity - 1) * size // 64, severity))
    if candidate.defect == "noise":
        strength = (0, 50, 110)[severity]
        bytes_ = draws.field(2, size, size, 3).astype(np.int64)
        return canvas + ((bytes_[0] + bytes_[1] - 255) * strength >> 8)
    if candidate.defect == "jpeg":
        return _block_transform(np.clip(canvas, 0, 255), (0, 3, 8)[severity])
    if candidate.defect == "warp":
        return _warp(canvas, severity, draws)
    if candidate.defect == "occlusion":
        return _occlude(canvas, placed, severity, draws)
    return canvas  # cut-off is a matter of layout


def _blur(canvas: Ints, radius: int) -> Ints:
    """A box of 2 radius + 1 pixels along each axis, twice; the edge pixels repeat."""
    width = 2 * radius + 1
    for _ in range(2):
        for axis in (0, 1):
            padding = [(0, 0)] * 3
            padding[axis] = (radius + 1, radius)
            total = np.pad(canvas, padding, mode="edge").cumsum(axis=axis)
            ahead, behind = (total[width:], total[:-width]) if axis == 0 else (total[:, width:], total[:, :-width])
            canvas = (ahead - behind + radius) // width
    return canvas


# The 8-point integer cosine transform of the HEVC standard (ITU-T H.265, 8.6.4.2); its rows have the squared norm 2 ** 15, nearly.
_COSINES = np.array(
    [
        [64, 64, 64, 64, 64, 64, 64, 64],
        [89, 75, 50, 18, -18, -50, -75, -89],
        [83, 36, -36, -83, -83, -36, 36, 83],
        [75, -18, -89, -50, 50, 89, 18, -75],
        [64, -64, -64, 64, 64, -64, -64, 64],
        [50, -89, 18, 75, -75, -18, 89, -50],
        [36, -83, 83, -36, -36, 83, -83, 36],
        [18, -50, 75, -89, 89, -75, 50, -18],
    ],
    dtype=np.float64,  # whole numbers below 2 ** 53, which floats hold exactly in any order of summation
)
# Coarser for higher frequencies, in steps of an 8-bit sample times 8 as in JPEG's tables (ITU-T T.81, annex K), which this line resembles.
_STEPS = 10.0 + 6.0 * (np.arange(8)[:, None] + np.arange(8)[None, :])


def _block_transform(canvas: Ints, coarseness: int) -> Ints:
    """What JPEG compression does to a picture: luma and chroma of 8 x 8 blocks lose their fine cosine components."""
    size = len(canvas)
    whole = -(-size // 8) * 8
    rgb = np.pad(canvas, ((0, whole - size), (0, whole - size), (0, 0)), mode="edge")
    luma = (rgb[..., 0] * 77 + rgb[..., 1] * 150 + rgb[..., 2] * 29) >> 8
    planes = np.stack([luma - 128, rgb[..., 2] - luma, rgb[..., 0] - luma]).astype(np.float64)
    blocks = planes.reshape(3, whole // 8, 8, whole // 8, 8).swapaxes(2, 3)
    steps = _STEPS * coarseness * np.array([1.0, 2.0, 2.0])[:, None, None, None, None]
    scale = float(1 << 15)
    spectrum = np.floor((_COSINES @ blocks @ _COSINES.T) / (steps * scale) + 0.5) * steps
    blocks = np.floor((_COSINES.T @ spectrum @ _COSINES) / scale + 0.5)
    planes = blocks.swapaxes(2, 3).reshape(3, whole, whole)[:, :size, :size].astype(np.int64)
    luma, blue, red = planes[0] + 128, planes[1] + planes[0] + 128, planes[2] + planes[0] + 128
    return np.stack([red, (luma * 256 - red * 77 - blue * 29) // 150, blue], axis=-1)


def _warp(canvas: Ints, severity: int, draws: _Draws) -> Ints:
    """Rows and columns swing to and fro, by whole 256ths of a pixel, with linear interpolation."""
    size = len(canvas)
    axis = np.arange(size, dtype=np.int64) * _SIDE // size
    for along in (0, 1):
        period = draws.between(900, 1300)
        t = (axis + draws.below(_SIDE)) % (2 * period)
        half = t % period
        wave = np.where(t < period, 4, -4) * half * (period - half) * 256 // (period * period)  # parabolas, in [-256, 256]
        swing = wave * (size * (3 * severity) // 2) // 64
        place = np.clip((np.arange(size)[None, :] << 8) + swing[:, None], 0, (size - 1) << 8)  # row by row, where each pixel comes from
        index, part = place >> 8, (place & 255)[..., None]
        after = np.minimum(index + 1, size - 1)
        rows = np.arange(size)[:, None]
        source = canvas if along == 0 else canvas.swapaxes(0, 1)
        moved = (source[rows, index] * (256 - part) + source[rows, after] * part) >> 8
        canvas = moved if along == 0 else moved.swapaxes(0, 1)
    return canvas


def _occlude(canvas: Ints, placed: list[Placed], severity: int, draws: _Draws) -> Ints:
    """Grey slats in front of an object, or of all of them."""
    size = len(canvas)
    grey = 128 + draws.between(-25, 25)
    for _, x, y, radius in placed if severity == 2 else [draws.choice(placed)]:
        half = radius * (30 + 12 * severity) // 100
        across = draws.below(2)
        x, y = x + draws.between(-half, half), y + draws.between(-half, half)
        long = radius * 5 // 4
        w, h = (long, half) if across else (half, long)
        left, right, top, bottom = (min(max(c * size // _SIDE, 0), size) for c in (x - w, x + w, y - h, y + h))
        canvas[top:bottom, left:right] = grey + (canvas[top:bottom, left:right] - 128) // 16
    return canvas


# --- on disk -------------------------------------------------------------------------------------------------------------------------


def write(folder: str | Path, comparisons: Iterable[Comparison]) -> Path:
    """Write comparisons as a data set: ``comparisons.jsonl`` with ``id``, ``prompt``, ``images``, ``ranks``, and the images as PNG files.

    Paths are relative to the JSONL file, whose path is returned.
    """
    folder = Path(folder)
    rows = []
    for item in comparisons:
        names = [f"images/{item.id}-{i}.png" for i in range(len(item.images))]
        for name, candidate in zip(names, item.images, strict=True):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            candidate().save(path)
        rows.append(json.dumps({"id": item.id, "prompt": item.prompt, "images": names, "ranks": list(item.ranks)}))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "comparisons.jsonl"
    path.write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    return path
