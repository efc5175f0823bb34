from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label

from image_reward.comparisons import shapes
from image_reward.comparisons.shapes import Candidate, Scene, SceneObject, comparisons, draw, pair_kind
from image_reward.comparisons.shapes_judge import judge, parse
from image_reward.types import Comparison


@pytest.fixture(scope="module")
def many() -> list[Comparison]:
    return comparisons(400, seed=3)


def candidates(items: list[Comparison]) -> list[Candidate]:
    return [candidate for item in items for candidate in item.images]


def plain(*objects: SceneObject, defect: str | None = None, severity: int = 0, seed: int = 5, **scene: object) -> Candidate:
    """A candidate made by hand, on a green background."""
    return Candidate(Scene(objects, **({"relation": None, "background": "green"} | scene)), (), defect, severity, (seed,))  # type: ignore[arg-type]


def nearest_colours(pixels: np.ndarray) -> np.ndarray:
    """The index in COLOURS of the colour nearest to each pixel, [H, W]."""
    colours = np.array(list(shapes.COLOURS.values()))
    return ((pixels[:, :, None].astype(int) - colours) ** 2).sum(-1).argmin(-1)


def where(candidate: Candidate, colour: str) -> np.ndarray:
    """[H, W], bool: which pixels have a colour."""
    return nearest_colours(draw(candidate)) == list(shapes.COLOURS).index(colour)


def touches_the_frame(mask: np.ndarray) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


# --- the same everywhere -------------------------------------------------------------------------------------------------------------


PINNED: dict[int, dict[str, str]] = {
    64: {
        "noise": "aee98362500b615a",
        "none": "3a9a57f32ca74913",
        "warp": "31ac18129d739d19",
        "blur": "a07ead96c3167db6",
        "cut-off": "389d84bfceb99b66",
        "occlusion": "360a16a75dcb26d1",
        "jpeg": "7d5297632abec42b",
    },
    50: {
        "noise": "927ce12f6f9109c7",
        "none": "51241318da2d0646",
        "warp": "821c51de7549be6d",
        "blur": "aff4297570791502",
        "cut-off": "5a69992d4807eabd",
        "occlusion": "6450f9754d05b6a9",
        "jpeg": "3bfc1c2480380232",
    },
}


@pytest.mark.parametrize("size", [64, 50])
def test_the_same_bytes_on_every_machine(size: int) -> None:
    found = {}
    for candidate in candidates(comparisons(12, seed=11, size=size)):
        found.setdefault(candidate.defect or "none", hashlib.sha256(draw(candidate).tobytes()).hexdigest()[:16])
    assert found == PINNED[size]


def test_the_same_comparisons_on_every_machine() -> None:
    text = json.dumps([[item.id, item.prompt, item.ranks, [c.alignment_errors for c in item.images]] for item in comparisons(50, seed=11)])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "44db73dfbe656d28"


def test_more_of_a_seed_begin_with_the_same() -> None:
    assert comparisons(8, seed=5)[:3] == comparisons(3, seed=5)
    assert comparisons(3, seed=5) != comparisons(3, seed=6)


def test_candidates_pickle_and_draw_the_same() -> None:
    for candidate in comparisons(1, seed=2)[0].images:
        again = pickle.loads(pickle.dumps(candidate))
        assert again == candidate
        image = again()
        assert image.mode == "RGB"
        assert image.size == (64, 64)
        assert np.array_equal(np.asarray(image), draw(candidate))


def test_no_two_images_are_alike(many: list[Comparison]) -> None:
    images = candidates(many[:40])
    assert len({draw(candidate).tobytes() for candidate in images}) == len(images)


# --- prompts -------------------------------------------------------------------------------------------------------------------------


def test_prompts_read_as_stated() -> None:
    spec = shapes.PromptSpec(
        (SceneObject("circle", "red", "large"), SceneObject("square", "blue", "small")), relation="above", background="orange"
    )
    assert spec.prompt == "a large red circle above a small blue square on an orange background"
    assert shapes.PromptSpec((SceneObject("cross", "orange"),), count=3).prompt == "three orange crosses"
    assert shapes.PromptSpec((SceneObject("ring", "orange"),)).prompt == "an orange ring"


def test_splits_never_share_a_prompt(many: list[Comparison]) -> None:
    train = {item.prompt for item in many}
    test = {item.prompt for item in comparisons(200, seed=3, split="test")} | {
        item.prompt for item in comparisons(50, seed=9, split="test")
    }
    assert len(test) > 100
    assert not train & test
    assert {shapes.split_of(prompt) for prompt in train} == {"train"}
    assert {shapes.split_of(prompt) for prompt in test} == {"test"}


@pytest.mark.parametrize("kind", ["one", "count", "relation"])
def test_all_prompts_of_a_kind(kind: shapes.PromptKind, many: list[Comparison]) -> None:
    """Each once, those that the world draws among them, and every one in one of the two splits."""
    prompts = [spec.prompt for spec in shapes.prompt_specs(kind)]
    splits = {split: {spec.prompt for spec in shapes.prompt_specs(kind, split)} for split in ("train", "test")}  # type: ignore[arg-type]
    assert len(set(prompts)) == len(prompts) == len(splits["train"]) + len(splits["test"])
    assert splits["train"] | splits["test"] == set(prompts)
    assert {shapes.split_of(prompt) for prompt in splits["train"]} == {"train"}
    drawn = {item.prompt for item in many if kind == prompt_kind(parse(item.prompt))}
    assert drawn
    assert drawn <= set(prompts)


def prompt_kind(spec: shapes.PromptSpec) -> shapes.PromptKind:
    return "relation" if spec.relation else "count" if spec.count > 1 else "one"


@pytest.mark.parametrize("kind", ["one", "count", "relation"])
def test_faultless_images(kind: shapes.PromptKind) -> None:
    specs = shapes.prompt_specs(kind)
    chosen = specs[:: len(specs) // 20]
    assert [judge(spec.prompt, shapes.faultless(spec, 1)).names for spec in chosen] == [()] * len(chosen)
    images = {draw(shapes.faultless(chosen[0], seed)).tobytes() for seed in (0, 1, 1)}
    assert len(images) == 2


def test_the_stated_share_of_prompts_is_held_out() -> None:
    objects = [SceneObject(*parts) for parts in product(shapes.SHAPES, shapes.COLOURS, (*shapes.SIZES, None))]
    pairs = [(a, b) for a, b in product(objects, objects) if a.colour != b.colour]
    specs = [shapes.PromptSpec(pair, relation=relation) for pair in pairs for relation in shapes.RELATIONS]
    splits = Counter(shapes.split_of(spec.prompt) for spec in specs)
    share = shapes.TEST_FRACTION
    assert abs(splits["test"] / len(specs) - share) < 4 * (share * (1 - share) / len(specs)) ** 0.5  # four standard errors


# --- the rule ------------------------------------------------------------------------------------------------------------------------


def test_ranks_follow_the_rule(many: list[Comparison]) -> None:
    for item in many:
        assert 4 <= len(item.images) <= 9
        assert sorted(set(item.ranks)) == list(range(1, max(item.ranks) + 1))
        assert max(item.ranks) <= 5
        assert max(Counter(item.ranks).values()) <= 2
        for (a, rank_a), (b, rank_b) in combinations(zip(item.images, item.ranks, strict=True), 2):
            points = [sum(shapes.ALIGNMENT_POINTS[error] for error in c.alignment_errors) + c.severity for c in (a, b)]
            assert (rank_a < rank_b) == (min(points[0], 4) < min(points[1], 4))


def test_every_error_and_defect_occurs_alone_and_together(many: list[Comparison]) -> None:
    seen = {error for c in candidates(many) if len(c.alignment_errors) == 1 for error in c.alignment_errors}
    assert seen == set(shapes.ALIGNMENT_POINTS)
    assert {(c.defect, c.severity) for c in candidates(many)} == {(d, s) for d in shapes.DEFECTS for s in (1, 2)} | {(None, 0)}
    kinds = Counter(
        pair_kind(a, b) for item in many for (a, i), (b, j) in combinations(zip(item.images, item.ranks, strict=True), 2) if i != j
    )
    assert set(kinds) == {"alignment", "fidelity", "both"}  # images that differ in neither always tie
    assert min(kinds.values()) > 0.1 * sum(kinds.values())


def test_annotator_noise_changes_neighbours_only_and_keeps_the_constraints(many: list[Comparison]) -> None:
    noisy = comparisons(400, seed=3, noise=0.3)
    changed = 0
    for clean, item in zip(many, noisy, strict=True):
        assert item.images == clean.images
        assert Counter(item.ranks) == Counter(clean.ranks)
        changed += item.ranks != clean.ranks
    assert 200 < changed < 390
    assert [item.ranks for item in comparisons(400, seed=3, noise=0.0)] == [item.ranks for item in many]


# --- scenes and pictures -------------------------------------------------------------------------------------------------------------


def test_a_faultless_scene_is_what_the_prompt_says(many: list[Comparison]) -> None:
    for comparison in many:
        for candidate in comparison.images:
            scene = candidate.scene
            objects = [SceneObject(t.shape, t.colour, t.size if t.size and t.size in comparison.prompt else None) for t in scene.objects]
            if not candidate.alignment_errors:
                assert scene.extra is None
                assert all(f"{item.colour} {item.shape}" in comparison.prompt for item in objects)
                assert scene.relation is None or f" {scene.relation} " in comparison.prompt
                assert "background" not in comparison.prompt or f"{scene.background} background" in comparison.prompt
                number = 3 if "three" in comparison.prompt else 2 if "two" in comparison.prompt or scene.relation else 1
                assert len(objects) == number


def test_errors_contradict_the_prompt(many: list[Comparison]) -> None:
    for comparison in many:
        for candidate in comparison.images:
            scene, errors = candidate.scene, candidate.alignment_errors
            named = [f"{item.colour} {item.shape}" in comparison.prompt for item in scene.objects]
            if {"shape", "colour", "swap"} & set(errors):
                # two objects of one shape make a swap of colours name the same pairs again
                assert not all(named) or len({item.shape for item in scene.objects}) == 1
            if "relation" in errors:
                assert f" {scene.relation} " not in comparison.prompt
            if "background" in errors:
                assert f"{scene.background} background" not in comparison.prompt
            if "extra" in errors:
                assert scene.extra
                assert scene.extra.colour not in {*(item.colour for item in scene.objects), scene.background}
            relation = any(f" {relation} " in comparison.prompt for relation in shapes.RELATIONS)
            wanted = 3 if "three" in comparison.prompt else 2 if "two" in comparison.prompt or relation else 1
            if "missing" in errors:
                assert len(scene.objects) == wanted - 1
            if "count" in errors:
                assert abs(len(scene.objects) - wanted) == 1


@pytest.mark.parametrize("relation", shapes.RELATIONS)
def test_relations_are_drawn(relation: str) -> None:
    dx, dy = shapes.RELATIONS[relation]
    for seed in range(12):
        pair = plain(SceneObject("circle", "red", "small"), SceneObject("square", "blue", "large"), relation=relation, seed=seed)
        (red_y, red_x), (blue_y, blue_x) = (np.argwhere(where(pair, colour)).mean(axis=0) for colour in ("red", "blue"))
        along, across = ((red_x - blue_x) * dx, red_y - blue_y) if dx else ((red_y - blue_y) * dy, red_x - blue_x)
        assert along > 15
        assert along > 2 * abs(across)


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_objects_have_their_size_and_lie_whole_inside(shape: str) -> None:
    area = {}
    for size in shapes.SIZES:
        for seed in range(6):
            red = where(plain(SceneObject(shape, "red", size), seed=seed), "red")
            area.setdefault(size, []).append(red.sum())
            assert not touches_the_frame(red)
    assert min(area["large"]) > 2 * max(area["small"])


def test_shapes_cover_what_geometry_says() -> None:
    areas = {  # of radius 1
        "circle": np.pi * 0.92,
        "ring": np.pi * 0.70,
        "square": (2 * 0.82) ** 2,
        "cross": 4 * 0.62 - 0.62**2,
        "triangle": 3 * 3**0.5 * (570 / 1024) ** 2,
        # ten triangles with a corner in the middle, at a tip and at an inner corner; the lines pass the middle at 340 / 1024
        "star": 5 * (340 / 1024) ** 2 / np.cos(2 * np.pi / 5) / np.cos(np.pi / 5) * np.sin(np.pi / 5),
    }
    for seed in range(12):  # which decides the radius and the turn, whatever the shape
        drawn = {shape: where(replace(plain(SceneObject(shape, "red", "large"), seed=seed), size=256), "red").sum() for shape in areas}
        for shape, area in areas.items():
            assert drawn[shape] / drawn["square"] == pytest.approx(area / areas["square"], rel=0.04), shape


def test_sizes_show_the_same_scene() -> None:
    small = plain(SceneObject("star", "red", "large"), SceneObject("ring", "blue", "large"), relation="above")
    large = replace(small, size=256)
    shrunk = np.asarray(Image.fromarray(draw(large)).reduce(4)).astype(int)
    assert abs(shrunk - draw(small).astype(int)).mean() < 4


def test_a_crowded_frame_still_holds_its_objects() -> None:
    for seed in range(20):
        crowd = replace(
            plain(*[SceneObject("circle", "red", "large")] * 4, extra=SceneObject("star", "blue", "small"), seed=seed), size=256
        )
        assert num_regions(where(crowd, "red")) == 4
        assert num_regions(where(crowd, "blue")) == 1


def num_regions(mask: np.ndarray) -> int:
    """The connected regions of more than a few pixels."""
    labels, _ = label(mask)
    return int((np.bincount(labels.ravel())[1:] > 50).sum())


def test_defects_do_what_their_names_say() -> None:
    item = SceneObject("square", "red", "large")
    clean = draw(plain(item)).astype(int)

    def edges(pixels: np.ndarray) -> float:
        return float(abs(np.diff(pixels, axis=1)).sum())

    spoiled = {(d, s): draw(plain(item, defect=d, severity=s)).astype(int) for d in shapes.DEFECTS for s in (1, 2)}
    assert edges(spoiled["blur", 2]) < edges(spoiled["blur", 1]) < edges(clean)
    assert edges(spoiled["noise", 2]) > edges(spoiled["noise", 1]) > 2 * edges(clean)
    for defect in ("noise", "jpeg", "warp", "blur"):
        mild, heavy = (abs(spoiled[defect, s] - clean).mean() for s in (1, 2))
        assert heavy > mild > 0.5, defect
    grey = abs(spoiled["occlusion", 2] - spoiled["occlusion", 2].mean(axis=2, keepdims=True)).max(axis=2) < 6
    assert grey.sum() > 60
    for severity, left in ((1, 0.75), (2, 0.5)):
        red = where(plain(item, defect="cut-off", severity=severity), "red")
        assert touches_the_frame(red)
        assert red.sum() < left * where(plain(item), "red").sum()


@pytest.mark.parametrize("severity", [1, 2])
def test_block_compression_keeps_the_means_of_blocks_and_loses_detail(severity: int) -> None:
    item = SceneObject("star", "red", "large")
    clean, compressed = (draw(plain(item, **kind)).astype(int) for kind in ({}, {"defect": "jpeg", "severity": severity}))

    def means(pixels: np.ndarray) -> np.ndarray:
        return pixels.reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))

    # A block's mean moves by at most half a step of its first component, an eighth of 10 times the coarseness, twice that in the two
    # chroma planes; green is (256 luma - 77 red - 29 blue) / 150. Two more for rounding and for what leaves [0, 255] and is clipped.
    luma = 10 * {1: 3, 2: 8}[severity] / 2 / 8
    largest = (256 * luma + (77 + 29) * 3 * luma) / 150 + 2
    assert abs(means(compressed) - means(clean)).max() <= largest
    assert abs(compressed - clean).mean() > abs(means(compressed) - means(clean)).mean()


# --- misuse and files ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [({"size": 8}, "at least 16, not 8"), ({"noise": 1.5}, r"in \[0, 1\], not 1.5"), ({"split": "dev"}, "'train' or 'test', not 'dev'")],
)
def test_impossible_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        comparisons(1, 0, **options)  # type: ignore[arg-type]


def test_write_makes_a_data_set(tmp_path: Path) -> None:
    items = comparisons(3, seed=4, split="test")
    path = shapes.write(tmp_path / "set", items)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["id"], row["prompt"], tuple(row["ranks"])) for row in rows] == [(item.id, item.prompt, item.ranks) for item in items]
    for row, item in zip(rows, items, strict=True):
        assert len(row["images"]) == len(item.images)
        for name, candidate in zip(row["images"], item.images, strict=True):
            with Image.open(path.parent / name) as image:
                assert np.array_equal(np.asarray(image), draw(candidate))
