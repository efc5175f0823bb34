"""What a reduced precision costs, as a report."""

from __future__ import annotations

from image_reward.reports.document import Column, Grid, Report
from image_reward.scorers.precision import Agreement


def precision_report(name: str, way: str, found: Agreement, reference_speed: float, reduced_speed: float) -> Report:
    """Rewards of a scorer computed in ``way`` against those in float32; speeds in images per second."""
    flipped = f"{found.num_flips:,} of {found.num_pairs:,} ({100 * found.share_flipped:.2f} %)"
    rows = [
        ("largest difference of a reward", f"{found.largest_difference:.4f}"),
        ("mean difference of a reward", f"{found.mean_difference:.4f}"),
        ("spread of a prompt's float32 rewards", f"{found.spread:.4f}"),
        ("rank correlation (Spearman)", "-" if found.spearman is None else f"{found.spearman:.4f}"),
        ("pairs whose order flips", flipped),
        ("largest float32 difference of a flipped pair", "-" if found.largest_flipped is None else f"{found.largest_flipped:.4f}"),
        ("median float32 difference of a flipped pair", "-" if found.median_flipped is None else f"{found.median_flipped:.4f}"),
        ("images per second, float32", f"{reference_speed:.2f}"),
        (f"images per second, {way}", f"{reduced_speed:.2f} ({reduced_speed / reference_speed:.2f} times as many)"),
    ]
    prompts = f"{found.num_prompts:,} prompt{'s' if found.num_prompts != 1 else ''}"
    images = f"{found.num_images:,} image{'s' if found.num_images != 1 else ''}"
    grid = Grid(
        (Column("", "left"), Column("")),
        rows,
        caption="Differences are absolute, spread is a standard deviation; correlation and spread are means over prompts.",
    )
    speeds = {"float32": reference_speed, "reduced": reduced_speed, "ratio": reduced_speed / reference_speed}
    return Report(
        f"{name} in {way} against float32",
        f"{prompts}, each with {images}.",
        [grid],
        {"model": name, "way": way} | found.as_dict() | {"images_per_second": speeds},
    )
