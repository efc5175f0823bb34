"""`image-reward evaluate DATA`"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from image_reward.cli.options import OutputOptions, SeveralModelOptions, UsageError, print_json


@dataclass
class Evaluate(SeveralModelOptions, OutputOptions):
    """Measure how well models agree with people who ranked images, several models at once with `--model A --model B`.

    Accuracy is the share of the pairs that people put in an order in which the model agrees: pooled, every pair weighs the same; per
    prompt, every prompt does. recall@k says how often the image people put first is among the model's top k, and filter@k the same of
    the last; prompts with k images or fewer are left out of them. Kendall's tau-b and Spearman's rho are means over the prompts in which
    neither side ties everything. Log loss and calibration are those of the probability that `compare` gives, over the pairs people ordered.
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA", help="A file of comparisons; see `image-reward data`.")]
    images: Path | None = None
    """The folder that image paths are relative to; by default the file's own."""
    rewards: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="[NAME=]FILE")] = ()
    """Rewards saved earlier, as JSON: a list of lists aligned with DATA, {id: [rewards]}, or rows with id and rewards. Give it several
    times for several scorers; without a NAME they bear the file's. Models are then only those that --model names."""
    limit: int | None = None
    """Use only the first so many comparisons."""
    k: tuple[int, ...] | None = None
    """The k of recall@k and filter@k; by default those of 1, 2 and 4 that some prompt has more images than."""
    predicted_ties: Literal["wrong", "half", "excluded"] = "wrong"
    """What a pair counts in accuracies that people put in an order and the model gives equal rewards."""
    human_ties: Literal["excluded", "half"] = "excluded"
    """What a pair counts in accuracies that people tied."""
    resamples: int = 10_000
    """How many times prompts are resampled for the intervals."""
    confidence: float = 0.95
    """What part of the resamples an interval covers."""
    seed: int = 0
    """Of the resampling."""
    report: tuple[Path, ...] = ()
    """Also write the results, with plots, to these files: .html, .md or .json."""
    per_prompt: Path | None = None
    """Write the results of each prompt and model to this Parquet file."""

    def run(self) -> int:
        if self.k is not None and (not self.k or min(self.k) < 1):
            raise UsageError("--k takes integers from 1")
        if self.resamples < 1 or not 0 < self.confidence < 1:
            raise UsageError("--resamples must be at least 1, and --confidence between 0 and 1")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit must be at least 1, not {self.limit}")
        saved = [_named(given) for given in self.rewards]
        _check_names([*(name for name, _ in saved), *self.model])
        self._check_outputs()

        from image_reward.cli.progress import progress
        from image_reward.comparisons import read
        from image_reward.evaluation import evaluate, read_rewards, usable_ks, write_per_prompt

        comparisons = read(self.data, self.images, self.limit)
        ks = usable_ks(comparisons, self.k)
        scorers: dict[str, Any] = {name: read_rewards(path, comparisons) for name, path in saved}
        computing = bool(self.model) or not saved
        if computing:
            models = self.load_all()
            names = [*scorers, *(model.name for model in models)]
            for model, given in zip(models, self.model or names[-1:], strict=True):  # runs/a/model and runs/b/model are both called model
                scorers[model.name if names.count(model.name) == 1 else given] = model
        with progress("images") if computing else nullcontext() as on_image:
            found = evaluate(
                scorers,
                comparisons,
                ks=ks,
                predicted_ties=self.predicted_ties,
                human_ties=self.human_ties,
                confidence=self.confidence,
                num_resamples=self.resamples,
                seed=self.seed,
                on_image=on_image,
            )
        if self.per_prompt:
            write_per_prompt(found, self.per_prompt)

        from image_reward.reports.people import people_report
        from image_reward.reports.render import show, write

        told = found.as_dict()
        for path in self.report:
            write(people_report(told, self.data.name, plots=path.suffix.lower() == ".html"), path)
        report = people_report(told, self.data.name)
        if self.json:
            print_json(report.data)
        else:
            show(report)
        return 0

    def _check_outputs(self) -> None:
        """Before hours of scoring, not after them."""
        from importlib.util import find_spec

        if self.per_prompt and find_spec("pyarrow") is None:
            raise UsageError("--per-prompt writes Parquet, which needs pyarrow: pip install 'image-reward[data]'")
        for path in self.report:
            if path.suffix.lower() not in (".html", ".md", ".json"):
                raise UsageError(f"--report {path}: a report is written as .html, .md or .json; give it a name that ends so")
            if path.suffix.lower() == ".html" and find_spec("matplotlib") is None:
                raise UsageError(f"--report {path}: its plots need matplotlib: pip install 'image-reward[report]'")
        for option, path in [*(("report", path) for path in self.report), *([("per-prompt", self.per_prompt)] if self.per_prompt else [])]:
            if not path.parent.is_dir():
                raise UsageError(f"--{option} {path}: there is no folder {path.parent}")


def _named(given: str) -> tuple[str, Path]:
    """[NAME=]FILE -> the name and the file. A file whose own name holds = is found as it is."""
    name, equals, file = given.partition("=")
    if not equals or Path(given).exists():
        return Path(given).stem, Path(given)
    if not name or not file:
        raise UsageError(f"--rewards {given}: write NAME=FILE, or FILE alone")
    return name, Path(file)


def _check_names(names: Sequence[str]) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise UsageError(
            f"{twice[0]} is there twice, and a table of results needs different names: leave one out, or name saved rewards with "
            "--rewards NAME=FILE"
        )
