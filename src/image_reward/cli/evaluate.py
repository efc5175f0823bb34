"""`image-reward evaluate DATA`"""

from __future__ import annotations

import os
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from image_reward.addresses import Address, scheme
from image_reward.cli.options import EstimateOptions, ImageRoot, SeveralModelOptions, UsageError, check_output
from image_reward.prompt_sets import first_few
from image_reward.terminal import note


@dataclass
class Evaluate(SeveralModelOptions, EstimateOptions):
    """Measure how well models agree with human rankings of images, several models at once with `--model A --model B`.

    Accuracy is the share of the pairs ordered by the annotators on which the model agrees: pooled, every pair has the same weight; per
    prompt, every prompt does. Where the annotators tied pairs, accuracy with ties calibrated counts those too (acc_eq, printed as tau for
    GenAI-Bench): the model ties rewards that differ by less than a threshold fitted on the data. recall@k is how often the image ranked
    first is among the model's top k, and filter@k how often the image ranked last is among its bottom k, over prompts with more than k
    images. Kendall's tau-b and Spearman's rho are means over the prompts for which neither side ties all images; for tables of ratings,
    they and Pearson's r are given over all images too. Log loss and calibration error are those of the probability that follows
    from the difference of the rewards, over the pairs ordered by the annotators; judges, whose rewards are no such scale, have none.
    """

    data: Annotated[
        str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA", help="A file of human rankings; see `image-reward data check`.")
    ]
    image_root: ImageRoot = None
    rewards: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(
            metavar="[NAME=]FILE",
            help="Saved rewards of a scorer, as JSON: a list of lists aligned with DATA, {id: [rewards]}, or rows with id and rewards. "
            "Without NAME, the scorer is named after the file. Only models that --model names are then evaluated as well. Repeat the "
            "option for several scorers.",
        ),
    ] = ()
    verdicts: Annotated[
        tuple[str, ...],
        tyro.conf.UseAppendAction,
        tyro.conf.arg(
            metavar="[NAME=]FILE",
            help="Saved verdicts of a judge of pairs, as JSON: a list of labels aligned with DATA, or {id: label}; a label is A>B, B>A, "
            "A=B, A=B=Good or A=B=Bad. [label, label] adds the answer with the images swapped, which shows the judge's position bias; "
            "pairs with null are left out. `image-reward judge` writes such a file.",
        ),
    ] = ()
    limit: int | None = None
    """Use only the first N comparisons."""
    k: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="[INT [INT ...]]")] = None
    """Values of k for recall@k and filter@k; by default those of 1, 2 and 4 below the largest number of images of a prompt."""
    predicted_ties: Literal["wrong", "half", "excluded"] = "wrong"
    """How accuracies count a pair that the annotators ordered and the model gives equal rewards."""
    human_ties: Literal["excluded", "half", "answer"] = "excluded"
    """How accuracies count a pair that the annotators tied: with answer, as correct where the model ties it too."""
    per_prompt: Path | None = None
    """Write the results of each prompt and model to this Parquet file."""

    def run(self) -> int:
        if self.k is not None and (not self.k or min(self.k) < 1):
            raise UsageError("--k takes integers from 1")
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit must be at least 1, not {self.limit}")
        saved = [_named(argument, "--rewards") for argument in self.rewards]
        judges = [_named(argument, "--verdicts") for argument in self.verdicts]
        self.check_models([name for name, _ in saved + judges])
        self.check_report()
        if self.per_prompt:
            if find_spec("pyarrow") is None:
                raise UsageError("--per-prompt writes Parquet, which needs pyarrow: pip install 'image-reward[data]'")
            if self.per_prompt.suffix.lower() != ".parquet":
                raise UsageError(f"--per-prompt {self.per_prompt} is written as Parquet; give it a name that ends in .parquet")
            check_output("--per-prompt", self.per_prompt)

        from image_reward.cli.progress import progress
        from image_reward.comparisons import read
        from image_reward.evaluation import evaluate, read_rewards, read_verdicts, without_verdict, write_per_prompt
        from image_reward.evaluation.scorers import choose_ks

        comparisons = read(self.data, self.image_root, self.limit, both_bad=True)
        for name, path in judges:
            if unjudged := without_verdict(path) & {comparison.id for comparison in comparisons}:
                comparisons = [comparison for comparison in comparisons if comparison.id not in unjudged]
                note(f"{len(unjudged)} pairs on which {name} gave no verdict are left out, for all scorers: {first_few(sorted(unjudged))}")
        ks = choose_ks(comparisons, self.k)
        scorers: dict[str, Any] = {name: read_rewards(path, comparisons) for name, path in saved}
        scorers |= {name: read_verdicts(path, comparisons) for name, path in judges}
        computing = bool(self.model) or not scorers
        if computing:
            scorers |= {model.name: model for model in self.load_all(list(scorers))}
        with progress("images") if computing else nullcontext() as on_image:
            evaluation = evaluate(
                scorers,
                comparisons,
                ks=ks,
                predicted_ties=self.predicted_ties,
                human_ties=self.human_ties,
                **self.resampling,
                on_image=on_image,
            )
        if evaluation.refused:
            note(str(evaluation.refused))
        if self.per_prompt:
            write_per_prompt(evaluation, self.per_prompt)

        from image_reward.evaluation.scorers_report import scorers_report

        self.write_report(lambda pictures: scorers_report(evaluation, Address.parse(self.data).name, plots=pictures))
        return 0


def _named(argument: str, option: str) -> tuple[str, str]:
    """[NAME=]FILE -> the name and the file. An existing file may have = in its own name."""
    name, equals, file = argument.partition("=")
    if not equals or scheme(argument) or os.path.exists(argument):  # noqa: PTH110 - a string
        return Address.parse(argument).stem, argument
    if not name or not file:
        raise UsageError(f"{option} {argument}: write NAME=FILE, or FILE alone")
    return name, file
