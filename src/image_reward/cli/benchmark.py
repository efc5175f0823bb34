"""`image-reward benchmark IMAGE_ROOT --prompts PROMPTS --model MODEL …`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from image_reward.cli.options import EstimateOptions, PromptSet, SeveralModelOptions, UsageError
from image_reward.terminal import note

if TYPE_CHECKING:
    from image_reward.evaluation.generators import HumanRanking, Rewards, Selection
    from image_reward.evaluation.generators import Images as GeneratedImages
    from image_reward.prompt_sets import Prompt


@dataclass
class Benchmark(SeveralModelOptions, EstimateOptions):
    """Compare image generators by the rewards of their images for the same prompts.

    IMAGE_ROOT has a folder per generator, with images PROMPT_ID_NUMBER.png (any image suffix), or PROMPT_ID.png for one image per prompt. A
    folder of saved results, SCORER/GENERATOR.json, takes its place and needs no model.
    """

    images: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE_ROOT", help="A folder of images, or of saved results.")
    ] = None
    prompts: PromptSet = None
    manifest: Path | None = None
    """Instead of IMAGE_ROOT: a CSV, JSONL or Parquet file with the columns generator, image, and prompt_id or prompt."""
    results: Path | None = None
    """Instead of IMAGE_ROOT: a folder of saved results, SCORER/GENERATOR.json."""
    save_results: Path | None = None
    """Save rewards to this folder during scoring; a later run reuses those of unchanged images."""
    allow_missing: bool = False
    """If images are missing, compare on the prompts, and the number of images of each, that all generators have."""
    human: Path | None = None
    """Human ranking, as JSON {generator: number}; by default the published wins, for the prompts and generators of the paper."""
    human_better: Literal["higher", "lower"] | None = None
    """Whether higher numbers in --human are better (wins, ratings) or lower ones (ranks)."""

    def run(self) -> int:
        self._check_usage()

        from image_reward.evaluation.generators import benchmark
        from image_reward.evaluation.generators.report import generators_report

        rewards, selection, images, human = self._scored()
        result = benchmark(
            rewards,
            selection,
            images=images,
            human=human,
            **self.resampling,
        )
        self.write_report(lambda pictures: generators_report(result, pictures))
        return 0

    def _check_usage(self) -> None:
        if sum(source is not None for source in (self.images, self.manifest, self.results)) != 1:
            raise UsageError("give either IMAGE_ROOT, or --manifest FILE, or --results FOLDER")
        self.check_models()
        self.check_report()
        if (self.human is None) != (self.human_better is None):
            raise UsageError("--human FILE and --human-better higher|lower go together: say which numbers are better")

    def _scored(self) -> tuple[Rewards, Selection, GeneratedImages | None, HumanRanking | None]:
        """The rewards, of saved results or of images scored now; which of them compare; the images, if they are here; the human ranking."""
        from image_reward.evaluation import generators
        from image_reward.prompt_sets import prompts
        from image_reward.reports.numbers import counted

        chosen = prompts(self.prompts) if self.prompts is not None else None
        results = self.results or (self.images if self.images and generators.has_results(self.images) else None)
        if results:
            if self.save_results:
                raise UsageError(f"{results} contains results already; --save-results is for images")
            own, rewards = generators.read_results(results, chosen)
            rewards = self._only_asked(rewards, results)
            counts = {
                generator if len(rewards) == 1 else f"{generator} by {scorer}": {name: len(values) for name, values in of_prompts.items()}
                for scorer, by_generator in rewards.items()
                for generator, of_prompts in by_generator.items()
            }
            selection = generators.select(own, counts, self.allow_missing)
            return rewards, selection, None, self._human(list(next(iter(rewards.values()))), selection.prompts)
        if self.manifest:
            own, images = generators.read_manifest(self.manifest, chosen)
        elif chosen is None:
            raise UsageError("images need --prompts: a file, or a published set (see `image-reward prompts list`)")
        else:
            assert self.images is not None
            own, images = chosen, generators.find_images(self.images, chosen)
        if images.extra:
            shown = ", ".join(str(path) for path in images.extra[:5]) + (", …" if len(images.extra) > 5 else "")
            belong = "belongs to no prompt and is" if len(images.extra) == 1 else "belong to no prompt and are"
            note(f"{counted(len(images.extra), 'file')} {belong} ignored: {shown}")
        selection = generators.select(own, images.counts, self.allow_missing)
        human = self._human(list(images.paths), selection.prompts)  # before hours of scoring, not after them
        scorers = self.load_all()

        from image_reward.cli.progress import progress
        from image_reward.reports.numbers import counted

        with progress("images") as on_image:
            rewards, reused = generators.score_images(scorers, images, selection, self.save_results, on_image)
        if reused:
            note(f"{counted(reused, 'reward')} {'was' if reused == 1 else 'were'} reused from {self.save_results}")
        return rewards, selection, images, human

    def _only_asked(self, rewards: Rewards, folder: Path) -> Rewards:
        if missing := [model for model in self.model if model not in rewards]:
            raise UsageError(f"{folder} has no results of {missing[0]}; it has those of {', '.join(rewards)}")
        return {model: rewards[model] for model in self.model} if self.model else rewards

    def _human(self, names: list[str], prompts: list[Prompt]) -> HumanRanking | None:
        from image_reward.evaluation.generators import published_ranking, read_ranking

        if self.human is None:
            return published_ranking(names, prompts)
        return read_ranking(self.human, names, higher_is_better=self.human_better == "higher")
