"""A judge of the shapes world: reads an image as a careful annotator would, and counts the penalty points of ``shapes.ALIGNMENT_POINTS``.

It measures what a generator draws for a prompt of that world without a reward model taking part, so that reward hacking shows. It looks
at pixels only: colours are those of ``shapes.COLOURS`` nearest to the pixels, objects are connected regions, shapes are the templates that
overlap with them best.

**The rule.** Of all ways to say which object of the image is meant as which of the prompt, the one with the fewest points counts. Every
object of the prompt that is not there is ``missing``, every other object of the image ``extra``. Those that stand for objects of the prompt
may have the wrong ``shape``, ``colour`` or ``size``, each other's colours (``swap``), or stand in another ``relation`` (their centres are
farther apart across its axis than along it, or the wrong way round). Where the prompt asks for two or three equal objects, each one too
many or too few is a ``count``, and a wrong shape, colour or size is one fault however many share it. A region that is far from compact
stands for nothing.

An image that is not a drawing of the world (noise, a texture, a photograph) is ``illegible``: no colour prevails along its edge, or it has
more than 8 objects, or too much of it has no shape. Then everything is missing, and it costs 4 points more, so that it ranks below all
that the world draws. A blank image lacks everything.

**Limits.** What looks alike costs the same: a lone object of another colour is a wrong ``colour``, even if it was drawn as an extra beside
a missing one. Large objects that a crowded frame shrank to the size of small ones count as small. Objects of one colour are separated
only if they touch or overlap slightly. Defects of fidelity (blur, noise, and so on) cost nothing, except where they hide what is drawn;
``docs/training.md`` has the figures. Images of fewer than 32 pixels a side are read less well.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from image_reward.comparisons.shapes import (
    ALIGNMENT_POINTS,
    COLOURS,
    COUNTS,
    RELATIONS,
    SHAPES,
    SIZES,
    PromptSpec,
    SceneObject,
    inside,
)
from image_reward.errors import ImageReadError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from image_reward.images import ImageLike

    Bools = NDArray[np.bool_]
    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

ILLEGIBLE_POINTS = 4
"""The penalty of an image that is not a drawing of the world, in addition to its missing objects; no drawn image costs as much."""
POINTS = ALIGNMENT_POINTS | {"illegible": ILLEGIBLE_POINTS}

_SIDE = 64  # pixels that every image is brought to
_UNIT = 4096 // _SIDE
_NAMES = (*COLOURS, "grey")  # grey is the colour of no object, but of slats in front of them and of noise seen from afar
_PALETTE = np.array([*COLOURS.values(), (128, 128, 128)], dtype=np.float32)
_GREY = len(COLOURS)
_LEAST_AREA = 24  # px; smaller regions are specks
_LEAST_CORE = 5  # px; thinner regions are where two colours meet
_LEAST_FIT = 0.8  # of the overlap with a template; below it, an object has none of the world's shapes
_LEAST_PARTIAL_FIT = 0.6  # the same for objects of which a part is hidden
_CLEAR_FIT = 0.97  # an object that fits so well is whole, and one
_LEAST_COMPACT = 0.62  # as _LEAST_FIT; below it, a region is not an object
_GREATEST_RADIUS = 1200  # in the world's units; a larger region without a shape is not an object
_FARTHEST = 90.0  # from a colour of the world in RGB; the world's own shades and textures stay within 60
_MOST_OBJECTS = 8  # the world draws at most 4
_MOST_HIDDEN = 4  # objects that are looked at again because a part of them is hidden, which takes time
_LARGE = 640  # the radius that parts small from large, in the world's units
_GRID = 28  # cells of a template's side
_SPAN = 1.9  # half a template's side, in radii of the disc of the same area


# --- prompts -------------------------------------------------------------------------------------------------------------------------

_ARTICLES = {"a": 1, "an": 1, **{word: count for count, word in COUNTS.items()}}
_OBJECT = rf"(?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_PROMPT = re.compile(
    rf"({'|'.join(_ARTICLES)}) {_OBJECT}(?:e?s)?(?: ({'|'.join(RELATIONS)}) an? {_OBJECT})?(?: on an? ({'|'.join(COLOURS)}) background)?"
)


def parse(prompt: str) -> PromptSpec:
    """What a prompt of the shapes world asks for.

    >>> parse("two small red crosses on a white background")
    PromptSpec(objects=(SceneObject(shape='cross', colour='red', size='small'),), count=2, relation=None, background='white')

    Raises ``InputError`` for a prompt that the world cannot draw.
    """
    match = _PROMPT.fullmatch(prompt) if isinstance(prompt, str) else None
    if match:
        article, size, colour, shape, relation, other_size, other_colour, other_shape, background = match.groups()
        objects = [SceneObject(shape, colour, size)]
        if relation:
            objects.append(SceneObject(other_shape, other_colour, other_size))
        spec = PromptSpec(tuple(objects), _ARTICLES[article], relation, background)
        if spec.prompt == prompt and not (relation and spec.count > 1):
            if background in {item.colour for item in objects}:
                raise InputError(
                    f"{prompt!r}: a {background} object cannot be seen on a {background} background; change one of the colours"
                )
            return spec
    raise InputError(
        f"{prompt!r} is not a prompt of the shapes world; one reads like "
        "'a large red circle above a small blue square on a green background' "
        f"or 'two red crosses', with the shapes {', '.join(SHAPES)} and the colours {', '.join(COLOURS)}"
    )


# --- what an image shows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SeenObject:
    """A region of an image that differs from the background. Lengths are fractions of the image's side; y grows downwards."""

    shape: str | None
    """None where no shape is recognisable."""
    colour: str | None
    """None if it is not one of the world's colours."""
    size: str
    x: float
    y: float
    radius: float
    fit: float
    """The overlap with the best template of a shape, 0 to 1."""


@dataclass(frozen=True)
class Sight:
    """What an image shows."""

    background: str | None
    """A colour, or None where none prevails or it is none of the world's."""
    objects: tuple[SeenObject, ...]
    legible: bool
    """False for an image that is not a drawing of the world."""


def _is_object(seen: SeenObject) -> bool:
    """Whether a region can stand for an object, if of a wrong shape."""
    return seen.shape is not None or (seen.fit >= _LEAST_COMPACT and seen.radius * 4096 <= _GREATEST_RADIUS)


def look(image: ImageLike) -> Sight:
    """Read the objects and the background of a square image, of any size and form that ``images.open_image`` accepts.

    Raises ``ImageReadError`` for what is not a square image.
    """
    rgb = _smooth(_to_side(_pixels(image)))
    colours = (np.square(_PALETTE).sum(1) - 2 * rgb @ _PALETTE.T).argmin(-1)
    frame = np.concatenate([part.ravel() for part in (colours[:2], colours[-2:], colours[2:-2, :2], colours[2:-2, -2:])])
    counts = np.bincount(frame, minlength=len(_NAMES))
    ground = int(counts.argmax())
    if ground == _GREY or counts[ground] * 2 <= len(frame):  # drawn images have 0.78 or more
        return Sight(None, (), legible=False)
    regions = _regions(rgb, colours, ground)
    explained = (colours == ground) | (colours == _GREY)
    for region in regions:
        if _is_object(region.seen):
            explained |= region.near
    objects = tuple(region.seen for region in regions)
    share = float(explained.mean())
    recognised = sum(_is_object(seen) for seen in objects)
    formless = len(objects) - recognised
    legible = share > 0.6 and len(objects) <= _MOST_OBJECTS and formless <= (3 if recognised else 1)
    return Sight(_colour(rgb[colours == ground].mean(0), ground), objects if legible else (), legible)


def _pixels(image: ImageLike) -> Floats:
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size):
        from image_reward.images import open_image  # it loads torch

        image = np.asarray(open_image(image).convert("RGB"))
    if image.shape[0] != image.shape[1]:
        raise ImageReadError(f"an image of the shapes world is square, not {image.shape[1]} x {image.shape[0]}; crop or pad it")
    if len(image) < 16:
        raise ImageReadError(
            f"an image of {len(image)} x {len(image)} pixels is too small to be judged; the shapes world begins at 16 x 16"
        )
    return image.astype(np.float32)


@cache
def _averages(size: int) -> Floats:
    """[_SIDE, size]: how much each of ``size`` pixels adds to each of ``_SIDE``."""
    edges = np.arange(_SIDE + 1) * size / _SIDE
    cells = np.arange(size)
    shared = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    return (np.clip(shared, 0, None) * _SIDE / size).astype(np.float32)


def _to_side(rgb: Floats) -> Floats:
    if len(rgb) == _SIDE:
        return rgb
    weights = _averages(len(rgb))
    rows = (weights @ rgb.reshape(len(rgb), -1)).reshape(_SIDE, len(rgb), 3)
    return weights @ rows


def _smooth(rgb: Floats) -> Floats:
    """Noise averaged over 3 x 3 or 5 x 5 pixels, where there is much."""
    across = np.abs(rgb[:, 2:] + rgb[:, :-2] - 2 * rgb[:, 1:-1])
    roughness = float(np.median(across))
    for threshold in (22, 50):
        if roughness > threshold:
            padded = np.pad(rgb, ((1, 1), (1, 1), (0, 0)), mode="edge")
            rows = padded[:-2] + padded[1:-1] + padded[2:]
            rgb = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / np.float32(9)
    return rgb


def components(labels: Ints) -> Ints:
    """Number the 4-connected regions of equal labels [H, W] from 0, in the order of their first pixels.

    >>> components(np.array([[7, 7, 0], [0, 7, 0], [0, 0, 7]]))
    array([[0, 0, 1],
           [2, 0, 1],
           [2, 2, 3]])
    """
    height, width = labels.shape
    starts = np.ones((height, width), dtype=bool)
    starts[:, 1:] = labels[:, 1:] != labels[:, :-1]
    runs = starts.ravel().cumsum().reshape(height, width) - 1  # of equal labels in a row
    down = (labels[1:] == labels[:-1]) & (starts[1:] | starts[:-1])  # once for each pair of runs that touch
    a, b = runs[:-1][down], runs[1:][down]
    parents = np.arange(int(runs[-1, -1]) + 1)
    while True:  # every root takes the least root that it touches as its parent, until none touches another
        first, second = parents[a], parents[b]
        apart = first != second
        if not apart.any():
            break
        first, second = first[apart], second[apart]
        np.minimum.at(parents, np.maximum(first, second), np.minimum(first, second))
        while True:
            grandparents = parents[parents]
            if np.array_equal(grandparents, parents):
                break
            parents = grandparents
    order: Ints = np.unique(parents, return_inverse=True)[1].reshape(-1)[runs]
    return order


def _neighbours(mask: Bools, reach: int) -> Bools:
    """The pixels at most ``reach`` away from the mask, in a square."""
    for _ in range(reach):
        wide = mask.copy()
        wide[:, 1:] |= mask[:, :-1]
        wide[:, :-1] |= mask[:, 1:]
        mask = wide.copy()
        mask[1:] |= wide[:-1]
        mask[:-1] |= wide[1:]
    return mask


def _cores(regions: Ints) -> Bools:
    """The pixels whose four neighbours belong to the same region; what lies beyond the frame counts as more of it."""
    core = np.ones(regions.shape, dtype=bool)
    same = regions[1:] == regions[:-1]
    core[1:] &= same
    core[:-1] &= same
    same = regions[:, 1:] == regions[:, :-1]
    core[:, 1:] &= same
    core[:, :-1] &= same
    return core


@dataclass(frozen=True)
class _Region:
    seen: SeenObject
    near: Bools
    """[_SIDE, _SIDE]: its pixels and those at most 3 away."""


def _regions(rgb: Floats, colours: Ints, ground: int) -> list[_Region]:
    numbers = components(colours)
    flat = numbers.ravel()
    areas = np.bincount(flat)
    cores = np.bincount(flat, weights=_cores(numbers).ravel())
    first = np.zeros(len(areas), dtype=np.int64)
    first[flat] = colours.ravel()
    wanted = (first != ground) & (first != _GREY) & (areas >= _LEAST_AREA) & (cores >= _LEAST_CORE)
    chosen = sorted(np.flatnonzero(wanted).tolist(), key=lambda i: (-cores[i], i))
    if len(chosen) > 4 * _MOST_OBJECTS:
        chosen = chosen[: 4 * _MOST_OBJECTS]
    behind = rgb[colours == ground].mean(0)
    is_chosen = np.zeros(len(areas), dtype=bool)
    is_chosen[chosen] = True
    others = is_chosen[numbers]
    inner = _cores(numbers)
    slats = ((first == _GREY) & (areas >= _LEAST_AREA) & (cores >= 2 * _LEAST_CORE))[numbers]
    claimed = np.zeros(numbers.shape, dtype=bool)
    regions: list[_Region] = []
    pieces: dict[str | None, list[tuple[Floats, Bools]]] = {}
    hidden = 0
    for i in chosen:
        if len(regions) > _MOST_OBJECTS:
            break  # the image is illegible
        mask = numbers == i
        if claimed[mask].mean() > 0.6 and (mask & ~claimed).sum() < 16:
            continue  # the rim of another object, where its colour and the background's meet
        near = _neighbours(mask, 3)
        claimed |= near
        front = _front(rgb[mask & inner], behind)
        colour = _colour(front, int(first[i]))
        axis = front - behind
        alpha = np.clip((rgb - behind) @ (axis / (axis @ axis)), 0, 1)
        alpha[~_neighbours(mask, 2) | (others & ~mask)] = 0
        for part in _split(alpha):
            seen = _measure(part, colour)
            if seen.fit < _CLEAR_FIT and bool((near & slats).any()):
                pieces.setdefault(seen.colour, []).append((part, near))
                continue
            if seen.fit < _CLEAR_FIT and _at_frame(part) and hidden < _MOST_HIDDEN:
                hidden += 1
                seen = _measure_partial(part, np.ones(part.shape, dtype=bool), seen)
            regions.append(_Region(seen, near))
    for colour, parts in pieces.items():
        for alpha, near in _joined(parts, slats):
            seen = _measure(alpha, colour)
            hidden += 1
            regions.append(_Region(_measure_partial(alpha, ~slats, seen) if hidden <= _MOST_HIDDEN else seen, near))
    return regions


def _front(inner: Floats, behind: Floats) -> Floats:
    """The colour of an object: the mean of the half of its inner pixels that differ most from the background, since blur mixes the two."""
    towards = inner.mean(0) - behind
    order = np.argsort(-((inner - behind) @ towards), kind="stable")
    front: Floats = inner[order[: max(len(order) // 2, 4)]].mean(0)
    return front


def _colour(rgb: Floats, nearest: int) -> str | None:
    return _NAMES[nearest] if float(np.linalg.norm(rgb - _PALETTE[nearest])) <= _FARTHEST else None


def _at_frame(alpha: Floats) -> bool:
    return int(max((alpha[edge] > 0.5).sum() for edge in (0, -1, np.s_[:, 0], np.s_[:, -1]))) >= 3


def _joined(pieces: list[tuple[Floats, Bools]], slats: Bools) -> Iterator[tuple[Floats, Bools]]:
    """Pieces of one colour put together where a slat lies between them."""
    slat_numbers = components(slats.astype(np.int64))
    groups: list[tuple[Floats, Bools, set[int]]] = []
    for alpha, near in pieces:
        touched = set(np.unique(slat_numbers[near & slats]).tolist())
        apart = []
        for group in groups:
            if group[2] & touched:
                alpha, near, touched = np.maximum(alpha, group[0]), near | group[1], touched | group[2]
            else:
                apart.append(group)
        groups = [*apart, (alpha, near, touched)]
    return ((alpha, near) for alpha, near, _ in groups)


# --- shapes --------------------------------------------------------------------------------------------------------------------------

_TURNS = {"circle": (1, 0), "square": (18, 90), "triangle": (24, 120), "cross": (18, 90)}
"""How many turns are tried, over which angle."""
_BLURS = (0.0, 0.2, 0.35)
_SOFT = 9.0  # the share of pixels that are partly an object's, by the root of its area: 3 to 8 in a sharp image, 8 to 20 in a blurred one


@cache
def _templates(deviations: tuple[float, ...] = (0.0,)) -> tuple[Floats, tuple[str, ...]]:
    """Shapes of area pi, with their centres of mass in the middle, at all turns and blurs of these standard deviations, in radii of a disc
    of their area: unit vectors [N, _GRID * _GRID], and their shapes."""
    names, rows = [], []
    samples = 4
    axis = (np.arange(_GRID * samples) + 0.5) / (_GRID * samples) * 2 * _SPAN - _SPAN
    distance = (np.arange(_GRID)[:, None] - np.arange(_GRID)) * 2 * _SPAN / _GRID
    spreads = [np.exp(-0.5 * np.square(distance / deviation)) if deviation else np.eye(_GRID) for deviation in deviations]
    for shape, (number, angle) in _TURNS.items():
        scale, drop = _proportions(shape)
        for turn in np.deg2rad(np.arange(number) * angle / number):
            u, v = axis[None, :] * scale, axis[:, None] * scale
            x = np.round(u * np.cos(turn) + v * np.sin(turn)).astype(np.int64)
            y = np.round(v * np.cos(turn) - u * np.sin(turn) + drop).astype(np.int64)
            sharp = inside(shape, x, y, 1024).reshape(_GRID, samples, _GRID, samples).mean(axis=(1, 3))
            for spread in spreads:
                cells = (spread @ sharp @ spread.T).ravel()
                rows.append(cells / np.sqrt(cells @ cells))
                names.append(shape)
    return np.array(rows, dtype=np.float32), tuple(names)


@cache
def _proportions(shape: str) -> tuple[float, float]:
    """Of a shape of radius 1024: the radius of the disc of the same area, and how far its centre of mass is below its centre."""
    axis = np.arange(-1400, 1400, 2, dtype=np.int64) + 1
    cells = inside(shape, axis[None, :], axis[:, None], 1024)
    return float(np.sqrt(cells.sum() * 4 / np.pi)), float((cells.sum(1) * axis).sum() / cells.sum())


def _measure(alpha: Floats, colour: str | None) -> SeenObject:
    """The shape, size and place of an object from its share of each pixel [_SIDE, _SIDE]."""
    area = float(alpha.sum())
    axis = np.arange(_SIDE) + 0.5
    x, y = float(alpha.sum(0) @ axis) / area, float(alpha.sum(1) @ axis) / area
    disc = np.sqrt(area / np.pi)
    places = ((np.arange(_GRID) + 0.5) / _GRID * 2 - 1) * _SPAN * disc
    cells = (_weights(places + y) @ alpha @ _weights(places + x).T).ravel()
    soft = 4 * float((alpha * (1 - alpha)).sum()) / np.sqrt(area) > _SOFT
    templates, names = _templates(_BLURS) if soft else _templates()
    overlaps = templates @ (cells / np.sqrt(cells @ cells + 1e-9))
    best = int(overlaps.argmax())
    fit, shape = float(overlaps[best]), names[best]
    radius = disc / _proportions(shape)[0] * 1024
    return _seen(shape if fit >= _LEAST_FIT else None, colour, x, y, float(radius), fit)


def _seen(shape: str | None, colour: str | None, x: float, y: float, radius: float, fit: float) -> SeenObject:
    """Lengths are in pixels of 1 / _SIDE."""
    size = "large" if radius * _UNIT > _LARGE else "small"
    return SeenObject(shape, colour, size, x / _SIDE, y / _SIDE, radius / _SIDE, fit)


def _weights(places: NDArray[np.floating[Any]]) -> Floats:
    """[P, _SIDE]: linear interpolation at places of an axis whose pixels have their centres at 0.5, 1.5, …; 0 outside."""
    return np.clip(1 - np.abs(places[:, None] - 0.5 - np.arange(_SIDE)), 0, None).astype(np.float32)


def _split(alpha: Floats) -> list[Floats]:
    """The objects of a region of one colour: several where they touch, and each looks more like a shape than the whole does."""
    whole = _measure(alpha, None).fit
    if whole >= _CLEAR_FIT:
        return [alpha]
    rows, columns = (np.flatnonzero((alpha > 0).any(axis)) for axis in (1, 0))
    box = slice(max(rows[0] - 1, 0), rows[-1] + 2), slice(max(columns[0] - 1, 0), columns[-1] + 2)
    rest = alpha[box] > 0.5
    for _ in range(8):
        rest = rest & _cores(rest.astype(np.int64))
        numbers = components(rest.astype(np.int64))
        areas = np.bincount(numbers.ravel())
        kept = [i for i in np.unique(numbers[rest]).tolist() if areas[i] >= 6]
        if not kept:
            break
        if len(kept) > 1:
            parts = _nearest(alpha, box, [numbers == i for i in kept])
            if min(_measure(part, None).fit for part in parts) > max(whole + 0.02, _LEAST_FIT):
                return [small for part in parts for small in _split(part)]
    return [alpha]


def _nearest(alpha: Floats, box: tuple[slice, slice], cores: list[Bools]) -> list[Floats]:
    """The pixels of a region shared out among its cores, which grow by a pixel at a time until they meet."""
    left = alpha[box] > 0
    for core in cores:
        left = left & ~core
    while left.any():
        grown = [core | (_neighbours(core, 1) & left) for core in cores]
        for i, core in enumerate(grown):
            cores[i] = core if i == 0 else core & ~np.logical_or.reduce(cores[:i])
        still = left & ~np.logical_or.reduce(cores)
        if still.sum() == left.sum():
            break
        left = still
    parts = [np.zeros_like(alpha) for _ in cores]
    for part, core in zip(parts, cores, strict=True):
        part[box][core] = alpha[box][core]
    return parts


# --- objects of which a part is hidden -----------------------------------------------------------------------------------------------

_HALF = _SIDE // 2
_ROOM = 48  # cells of half the resolution, with a quarter of the frame's side around it
_RADII = (500, 560, 870, 930)


@cache
def _partial_templates() -> tuple[NDArray[np.complex64], tuple[tuple[str, int], ...]]:
    """Shapes of the world's sizes and turns: conjugate spectra [N, _ROOM, _ROOM // 2 + 1], and what they are."""
    rows, names = [], []
    axis = (((np.arange(_ROOM * 4) + 0.5) / 4 + _ROOM / 2) % _ROOM - _ROOM / 2) * 2 * _UNIT
    for shape in SHAPES:
        for turn in np.deg2rad((0,) if shape == "circle" else (-20, -10, 0, 10, 20)):
            for radius in _RADII:
                x = np.round(axis[None, :] * np.cos(turn) + axis[:, None] * np.sin(turn)).astype(np.int64)
                y = np.round(axis[:, None] * np.cos(turn) - axis[None, :] * np.sin(turn)).astype(np.int64)
                rows.append(inside(shape, x, y, radius).reshape(_ROOM, 4, _ROOM, 4).mean(axis=(1, 3)))
                names.append((shape, radius))
    return np.conj(np.fft.rfft2(np.array(rows))).astype(np.complex64), tuple(names)


def _measure_partial(alpha: Floats, visible: Bools, otherwise: SeenObject) -> SeenObject:
    """As ``_measure``, for an object that is partly behind a slat or beyond the frame: the template whose visible part overlaps best."""
    spectra, names = _partial_templates()
    planes = np.zeros((2, _ROOM, _ROOM), dtype=np.float32)
    start = (_ROOM - _HALF) // 2
    frame = slice(start, start + _HALF)
    seen = np.where(visible, alpha, np.float32(0))
    for plane, pixels in zip(planes, (seen, visible.astype(np.float32)), strict=True):
        plane[frame, frame] = pixels.reshape(_HALF, 2, _HALF, 2).mean(axis=(1, 3))
    shared, shown = np.fft.irfft2(np.fft.rfft2(planes)[:, None] * spectra, s=(_ROOM, _ROOM))
    overlap = shared / (float(planes[0].sum()) + shown - shared)
    best = int(overlap.argmax())
    number, place = divmod(best, _ROOM * _ROOM)
    shape, radius = names[number]
    fit = float(overlap.ravel()[best])
    if fit < otherwise.fit - 0.1:
        return otherwise
    y, x = (2 * (cell - start) for cell in divmod(place, _ROOM))
    return _seen(shape if fit >= _LEAST_PARTIAL_FIT else None, otherwise.colour, float(x), float(y), radius / _UNIT, fit)


# --- judging -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """One way in which an image departs from its prompt."""

    name: str
    """A key of ``POINTS``."""
    points: int
    detail: str
    """For people: what is wrong."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says of an image."""

    prompt: str
    faults: tuple[Fault, ...]
    """Sorted by name."""
    sight: Sight

    @property
    def points(self) -> int:
        """The sum over the faults: 0 for a faultless image."""
        return sum(fault.points for fault in self.faults)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the faults, sorted, as ``Candidate.alignment_errors`` has them."""
        return tuple(fault.name for fault in self.faults)


def judge(prompt: str, image: ImageLike) -> Verdict:
    """Penalty points of an image for a prompt of the shapes world, read off its pixels; see the module's text for the rule.

    ``image`` is square: a PIL image, an array [H, W, 3] uint8, a tensor [3, H, W] of floats in [0, 1], or anything else that
    ``images.open_image`` reads. The same pixels give the same verdict.

    >>> from image_reward.comparisons.shapes import comparisons
    >>> [item] = comparisons(1, seed=0)
    >>> item.prompt
    'a small green triangle below a large blue circle on a red background'
    >>> verdict = judge(item.prompt, item.images[0])
    >>> verdict.points, verdict.names, item.images[0].alignment_errors
    (2, ('shape',), ('shape',))

    Raises ``InputError`` for a prompt outside the world's grammar, ``ImageReadError`` for what is not a square image.
    """
    spec, sight = parse(prompt), look(image)
    return Verdict(prompt, judge_sight(spec, sight), sight)


def judge_sight(spec: PromptSpec, sight: Sight) -> tuple[Fault, ...]:
    """The faults of what an image shows."""
    faults = min(_readings(spec, sight), key=_cost)
    if not sight.legible:
        faults = [*faults, Fault("illegible", POINTS["illegible"], "the image is not a drawing of the shapes world")]
    if spec.background and sight.background != spec.background:
        faults = [*faults, _fault("background", f"{sight.background or 'not a colour of the world'}, not {spec.background}")]
    return tuple(sorted(faults, key=lambda fault: (fault.name, fault.detail)))


def _cost(faults: list[Fault]) -> tuple[int, int, list[str]]:
    """Points; of equal ones, fewer faults that occur twice; then the names, so that the order of the objects does not matter."""
    names = sorted(fault.name for fault in faults)
    return sum(fault.points for fault in faults), len(names) - len(set(names)), names


def _fault(name: str, detail: str) -> Fault:
    return Fault(name, POINTS[name], detail)


def _name(seen: SeenObject) -> str:
    return f"{seen.size} {seen.colour or 'oddly coloured'} {seen.shape or 'thing without a shape'}"


def _readings(spec: PromptSpec, sight: Sight) -> Iterator[list[Fault]]:
    """The faults, for every way to say which object of the image is meant as which of the prompt."""
    usable = [item for item in sight.objects if _is_object(item)]
    if spec.count > 1:
        for number in range(min(spec.count, len(usable)) + 1):
            for chosen in combinations(usable, number):
                rest = _without(sight.objects, chosen)
                if number == spec.count or not any(_is_asked(spec, chosen, seen) for seen in rest):
                    yield _counted(spec, chosen, rest)
    else:
        for order in permutations([*usable, *[None] * len(spec.objects)], len(spec.objects)):
            yield _named(spec, order, _without(sight.objects, order))


def _without(objects: Iterable[SeenObject], chosen: Iterable[SeenObject | None]) -> list[SeenObject]:
    taken = {id(item) for item in chosen}
    return [item for item in objects if id(item) not in taken]


def _differences(wanted: SceneObject, seen: SeenObject) -> list[Fault]:
    faults = []
    for name in ("shape", "colour", "size"):
        asked, shown = getattr(wanted, name), getattr(seen, name)
        if asked not in (None, shown):
            faults.append(_fault(name, f"{shown or 'not one of the world'}, not {asked}: {wanted.describe()}"))
    return faults


def _named(spec: PromptSpec, chosen: tuple[SeenObject | None, ...], rest: list[SeenObject]) -> list[Fault]:
    """``chosen`` are the objects of the image that stand for those of the prompt, None for a missing one."""
    faults = [_fault("extra", _name(seen)) for seen in rest]
    for wanted, seen in zip(spec.objects, chosen, strict=True):
        faults += _differences(wanted, seen) if seen else [_fault("missing", wanted.describe())]
    if spec.relation and chosen[0] and chosen[1]:
        (first, second), (a, b) = spec.objects, (chosen[0], chosen[1])
        if (a.colour, b.colour) == (second.colour, first.colour) != (first.colour, second.colour):
            faults = [fault for fault in faults if fault.name != "colour"]
            faults.append(_fault("swap", f"{first.describe()} is {a.colour}, {second.describe()} {b.colour}"))
        if not _holds(spec.relation, a, b):
            faults.append(_fault("relation", f"{relation_of(a, b)}, not {spec.relation}"))
    return faults


def _is_asked(spec: PromptSpec, chosen: tuple[SeenObject, ...], seen: SeenObject) -> bool:
    """Whether an object is one more of those that the prompt asks for, or of those that stand for them."""
    kinds = {(item.shape, item.colour) for item in chosen} | {(item.shape, item.colour) for item in spec.objects}
    return _is_object(seen) and (seen.shape, seen.colour) in kinds


def _counted(spec: PromptSpec, chosen: tuple[SeenObject, ...], rest: list[SeenObject]) -> list[Fault]:
    [wanted] = spec.objects
    shared = {fault.name: fault for seen in chosen for fault in _differences(wanted, seen)}
    number = len(chosen) + sum(_is_asked(spec, chosen, seen) for seen in rest)
    count = _fault("count", f"{number}, not {spec.count}")
    extra = [_fault("extra", _name(seen)) for seen in rest if not _is_asked(spec, chosen, seen)]
    return [*shared.values(), *[count] * abs(number - spec.count), *extra]


def _holds(relation: str, a: SeenObject, b: SeenObject) -> bool:
    """Whether the centres are about as far apart in the direction of the relation as across it, or farther."""
    x, y = RELATIONS[relation]
    along = x * (a.x - b.x) + y * (a.y - b.y)
    across = abs(y * (a.x - b.x)) + abs(x * (a.y - b.y))
    return along > 0 and along >= across - 0.02


def relation_of(a: SeenObject, b: SeenObject) -> str:
    """Where ``a`` lies as seen from ``b``: one of ``shapes.RELATIONS``, by the axis along which their centres are farther apart."""
    x, y = a.x - b.x, a.y - b.y
    if abs(x) > abs(y):
        return "left of" if x < 0 else "right of"
    return "above" if y < 0 else "below"
