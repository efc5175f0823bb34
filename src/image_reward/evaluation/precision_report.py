"""The effect of a reduced precision, as a report."""

from __future__ import annotations

from image_reward.reports.document import Column, Grid, Report
from image_reward.reports.numbers import counted, decimal, percent
from image_reward.scorers.precision import Agreement


def precision_report(name: str, method: str, agreement: Agreement, reference_speed: float, reduced_speed: float) -> Report:
    """Rewards of a scorer computed in ``method`` against those in float32; speeds in images per second."""
    speedup = reduced_speed / reference_speed
    rows = [
        ("largest difference of a reward", decimal(agreement.largest_difference)),
        ("mean difference of a reward", decimal(agreement.mean_difference)),
        ("spread of a prompt's float32 rewards", decimal(agreement.spread)),
        ("rank correlation (Spearman)", decimal(agreement.spearman)),
        ("pairs whose order flips", f"{agreement.num_flips:,} of {agreement.num_pairs:,} ({percent(agreement.share_flipped)} %)"),
        ("largest float32 difference of a flipped pair", decimal(agreement.largest_flipped)),
        ("median float32 difference of a flipped pair", decimal(agreement.median_flipped)),
        ("images per second, float32", f"{reference_speed:.2f}"),
        (f"images per second, {method}", f"{reduced_speed:.2f} ({speedup:.2f}x)"),
    ]
    grid = Grid(
        (Column("", "left"), Column("")),
        rows,
        caption="Differences are absolute, spread is a standard deviation; correlation and spread are means over prompts.",
    )
    answer = f"In {method}, {name} scores {speedup:.2f} times as many images per second as in float32"
    if agreement.num_pairs:
        answer += f" and changes the order of {percent(agreement.share_flipped)} % of the pairs of images"
    answer += "."
    speeds = {"float32": reference_speed, "reduced": reduced_speed, "ratio": speedup}
    return Report(
        f"{name} in {method} against float32",
        f"{counted(agreement.num_prompts, 'prompt')}{', each' if agreement.num_prompts > 1 else ''} "
        f"with {counted(agreement.num_images, 'image')}.",
        [grid],
        {"model": name, "way": method} | agreement.as_dict() | {"images_per_second": speeds},
        answer,
    )
