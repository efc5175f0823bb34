"""`image-reward benchmark IMAGES_ROOT --prompts PROMPTS --model MODEL …`"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from image_reward.cli.options import EstimateOptions, SeveralModelOptions, UsageError
from image_reward.terminal import note

if TYPE_CHECKING:
    from image_reward.evaluation.generators import HumanRanking, Rewards, Selection
    from image_reward.evaluation.generators import Images as GeneratedImages
    from image_reward.evaluation.prompt_sets import Prompt


@dataclass
class Benchmark(SeveralModelOptions, EstimateOptions):
    """Measure image generators against each other by the rewards of what they made for the same prompts.

    IMAGES_ROOT has a folder for each generator, with images PROMPT_ID_NUMBER.png (any image suffix), or PROMPT_ID.png where there is one of
    each prompt. A folder of results saved earlier, SCORER/GENERATOR.json, serves as well and needs no model.
    """

    images: Annotated[
        Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGES_ROOT", help="A folder of images, or of results.")
    ] = None
    prompts: str | None = None
    """A known set (see `image-reward prompts list`), or a file: a JSON list of {id, prompt}, JSONL, CSV, or text with a prompt a line."""
    manifest: Path | None = None
    """Instead of IMAGES_ROOT: a CSV, JSONL or Parquet file of rows generator, prompt_id or prompt, image."""
    results: Path | None = None
    """Instead of IMAGES_ROOT: a folder of results, SCORER/GENERATOR.json."""
    save_results: Path | None = None
    """Write the rewards to this folder as scoring goes on; a later run takes from it what has not changed."""
    allow_missing: bool = False
    """Go on when images are missing, with those prompts, and as many images of each, as all generators have."""
    human: Path | None = None
    """The human ranking: a JSON object {generator: number}. By default the published wins, where prompts and generators are the paper's."""
    human_better: Literal["higher", "lower"] | None = None
    """Which numbers of --human are better: higher (wins, ratings) or lower (ranks)."""

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
            confidence=self.confidence,
            num_resamples=self.resamples,
            seed=self.seed,
        )
        self.write_report(lambda pictures: generators_report(result, pictures))
        return 0

    def _check_usage(self) -> None:
        if sum(source is not None for source in (self.images, self.manifest, self.results)) != 1:
            raise UsageError("give either IMAGES_ROOT, or --manifest FILE, or --results FOLDER")
        self.check_models()
        self.check_report()
        if (self.human is None) != (self.human_better is None):
            raise UsageError("--human FILE and --human-better higher|lower go together: say which numbers are better")

    def _scored(self) -> tuple[Rewards, Selection, GeneratedImages | None, HumanRanking | None]:
        """The rewards, of saved results or of images scored now; which of them compare; the images, if they are here; the human ranking."""
        from image_reward.evaluation import generators
        from image_reward.evaluation.prompt_sets import prompts

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
            raise UsageError("images need --prompts: a file, or a known set (see `image-reward prompts list`)")
        else:
            assert self.images is not None
            own, images = chosen, generators.find_images(self.images, chosen)
        if images.extra:
            shown = ", ".join(str(path) for path in images.extra[:5]) + (", …" if len(images.extra) > 5 else "")
            note(f"{len(images.extra)} files belong to no prompt and are passed over: {shown}")
        selection = generators.select(own, images.counts, self.allow_missing)
        human = self._human(list(images.paths), selection.prompts)  # before hours of scoring, not after them
        scorers = self.load_all()

        from image_reward.cli.progress import progress

        with progress("images") as on_image:
            rewards, reused = generators.score_images(scorers, images, selection, self.save_results, on_image)
        if reused:
            note(f"{reused:,} rewards are those saved in {self.save_results}")
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
