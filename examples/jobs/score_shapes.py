"""Score a file of rows on this machine with the embedded model, select the best rows, and summarize the results.

    python examples/jobs/score_shapes.py

Stop it with Ctrl-C, or kill it, and run it again: it resumes.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import image_reward as ir
from image_reward.jobs.results import filter_rows, summarize

PROMPTS = ("a large green square above a yellow triangle on a blue background", "a small red circle on a white background")
HERE = Path(__file__).parent


def main() -> None:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "scored-shapes")
    output.mkdir(parents=True, exist_ok=True)
    rows = output / "rows.csv"
    if not rows.exists():  # written once: a job rejects an input that has changed since it began
        images = sorted((HERE.parent / "shapes").resolve().glob("*.png"))
        with rows.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "prompt", "image"])
            writer.writerows([f"{p}-{image.stem}", prompt, image] for p, prompt in enumerate(PROMPTS) for image in images)

    result = ir.score_files(rows, output / "rewards", "ImageReward-mini", on_note=print)
    print(f"{result.num_rows} rows, {result.num_errors} errors, {result.num_scored_now} scored now")

    kept = filter_rows(output / "rewards", output / "best.csv", best_per_prompt=2)
    print(f"{kept} rows kept: {output / 'best.csv'}")
    for row in summarize(output / "rewards").scorers[0].best[:2]:
        print(f"{row['reward']:+.4f}  {row['prompt']}  {Path(row['image']).name}")


if __name__ == "__main__":  # worker processes load this file too
    main()
