"""`image-reward generate PROMPT... --pipeline PIPELINE --output FOLDER`"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from image_reward.addresses import Address
from image_reward.cli.options import (
    DEFAULT_MODEL,
    MODEL_HELP,
    ModelOptions,
    OutputOptions,
    PromptOptions,
    PromptSet,
    UsageError,
    check_output,
    note_written,
    print_json,
)
from image_reward.errors import InputError
from image_reward.tuning.pipelines import PipelineDtype, call_arguments_of, check_pipeline, load_pipeline

if TYPE_CHECKING:
    from image_reward.prompt_sets import Prompt
    from image_reward.scorers import Scorer
    from image_reward.scorers.distribution import RewardRow
    from image_reward.tuning import BestOf


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """How images are generated. What is left out is as the pipeline has it."""

    seed: int = 0
    """Of the first image; the others have the seeds that follow, through all prompts."""
    steps: int | None = None
    """Denoising steps."""
    guidance_scale: float | None = None
    """Strength of classifier-free guidance."""
    height: int | None = None
    """In pixels."""
    width: int | None = None
    """In pixels."""
    images_per_batch: int = 4
    """Images that are generated at once. It changes memory and speed only."""
    pipeline_dtype: PipelineDtype = "float32"
    """Precision of the pipeline; --dtype is that of the scorer."""

    def check(self, num_images: int) -> None:
        """Raise ``UsageError`` for values that make no sense."""
        for name in ("steps", "height", "width", "images_per_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < math.inf:
            raise UsageError(f"--guidance-scale must be a number of at least 0, not {self.guidance_scale}")
        if not 0 <= self.seed <= 2**63 - num_images:
            raise UsageError(f"--seed must be at least 0 and below 2^63 less the number of images, not {self.seed}")

    def call_arguments(self, pipe: Any) -> dict[str, Any]:
        """The arguments of the pipeline's call. Raises ``InputError`` for an option that it has no argument for."""
        settings = {"num_inference_steps": self.steps, **{name: getattr(self, name) for name in ("guidance_scale", "height", "width")}}
        return call_arguments_of(pipe, settings)


@dataclass(kw_only=True)
class Generate(ModelOptions, OutputOptions, PromptOptions):
    """Generate images for prompts with a diffusers pipeline and keep those with the highest rewards.

    The images are PROMPT_ID_RANK.png, as `image-reward benchmark` reads them, with prompt, seed and reward as text of the PNG.
    """

    model: Annotated[str, tyro.conf.arg(help=f"The scorer; --pipeline is the generator. {MODEL_HELP}")] = DEFAULT_MODEL
    prompt: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PROMPT...", help="Prompts, each in quotes; or use --prompts.", help_behavior_hint=""),
    ] = ()
    prompts: PromptSet = None
    pipeline: Annotated[
        str,
        tyro.conf.arg(
            help="The generator, which is the --model of `image-reward tune`: a text-to-image pipeline of diffusers, as a folder, a hub id "
            "OWNER/NAME, or shapes-generator."
        ),
    ]
    output: Path
    """Folder for the images. Nothing in it is overwritten."""
    best_of: Annotated[int, tyro.conf.arg(metavar="N")] = 4
    """Generate N images for each prompt."""
    keep: Annotated[int, tyro.conf.arg(metavar="K")] = 1
    """Save the best K images of each prompt."""
    gallery: str | None = None
    """Also write an HTML page of the saved images, prompt by prompt, in one self-contained file."""
    generation: tyro.conf.OmitArgPrefixes[GenerationOptions] = field(default_factory=GenerationOptions)

    def run(self) -> int:
        self._check_numbers()
        prompts = self._read_prompts()
        self.generation.check(len(prompts) * self.best_of)
        check_pipeline(self.pipeline)
        self._check_output(prompts)
        scorer = self.load()
        pipe = load_pipeline(self.pipeline, self.generation.pipeline_dtype, self.inference.device)
        arguments = self.generation.call_arguments(pipe)

        from image_reward.cli.progress import progress
        from image_reward.tuning import best_of

        results = []
        with progress("images") as update:
            for number, prompt in enumerate(prompts):
                made = best_of(
                    pipe,
                    prompt.prompt,
                    self.best_of,
                    scorer,
                    seed=self.generation.seed + number * self.best_of,
                    batch_size=self.generation.images_per_batch,
                    **arguments,
                )
                results.append(_Result(prompt, made.rewards, made.seeds, self._saved(prompt, made, scorer)))
                update((number + 1) * self.best_of, len(prompts) * self.best_of)
        if self.json:
            print_json(
                {"model": scorer.name, "pipeline": self.pipeline, "best_of": self.best_of, "prompts": [each.as_dict() for each in results]}
            )
        else:
            self._print_table(results, scorer)
        if self.gallery:
            self._write_gallery(self.gallery, results, scorer)
        return 0

    def _check_numbers(self) -> None:
        if self.best_of < 1:
            raise UsageError(f"--best-of must be at least 1, not {self.best_of}")
        if not 1 <= self.keep <= self.best_of:
            raise UsageError(f"--keep must be at least 1 and at most --best-of, {self.best_of}, not {self.keep}")

    def _read_prompts(self) -> list[Prompt]:
        from image_reward.prompt_sets import Prompt, prompts
        from image_reward.prompts import check_prompts

        if bool(self.prompt) == (self.prompts is not None):
            raise UsageError("give either prompts, each in quotes, or --prompts with a file or a published set")
        self.check_used(bool(self.prompt), "PROMPT")
        for prompt in self.prompt:
            self.check_prompt(prompt, "Files and published sets of prompts are read by --prompts.")
        if self.prompts is None:
            check_prompts(self.prompt)
            return [Prompt(f"{number:05d}", prompt) for number, prompt in enumerate(self.prompt)]
        chosen = prompts(self.prompts)
        check_prompts([each.prompt for each in chosen])
        for each in chosen:
            if each.id.startswith(".") or re.search(r"[/\\\0]", each.id) or len(os.fsencode(each.id)) > _LONGEST_ID:
                raise InputError(f"{self.prompts}: the id {each.id!r:.80} cannot begin the name of a file; give the prompt another")
        return chosen

    def _path(self, prompt: Prompt, rank: int) -> Path:
        return self.output / f"{prompt.id}_{rank}.png"

    def _check_output(self, prompts: list[Prompt]) -> None:
        """Make the folder. Raises ``UsageError`` for what cannot be written or is there already."""
        Address.parse(self.output)  # refuses what a Path makes of an address
        if self.output.exists() and not self.output.is_dir():
            raise UsageError(f"--output {self.output} is a file; give the name of a folder")
        for path in (self._path(prompt, rank) for prompt in prompts for rank in range(1, self.keep + 1)):
            if path.exists():
                raise UsageError(f"{path} already exists, and nothing is overwritten; give --output another folder")
        self.output.mkdir(parents=True, exist_ok=True)
        if not os.access(self.output, os.W_OK):
            raise UsageError(f"--output {self.output}: the folder cannot be written to")
        if self.gallery:
            address = Address.parse(self.gallery)
            if address.suffix.lower() != ".html":
                raise UsageError(f"--gallery {self.gallery}: a gallery is a page; give it a name that ends in .html")
            check_output("--gallery", self.gallery)
            if address.exists():
                raise UsageError(f"--gallery {self.gallery} already exists, and nothing is overwritten; give it another name")

    def _saved(self, prompt: Prompt, made: BestOf, scorer: Scorer[Any]) -> list[tuple[RewardRow, int]]:
        """Save the best images. Returns each as a row, with its seed."""
        from image_reward.scorers.distribution import RewardRow
        from image_reward.tuning.selection import save_png

        order = sorted(range(self.best_of), key=lambda place: -made.rewards[place])
        saved = []
        for rank, place in enumerate(order[: self.keep], start=1):
            path, reward, seed = self._path(prompt, rank), made.rewards[place], made.seeds[place]
            save_png(made.images[place], path, prompt=prompt.prompt, seed=seed, reward=reward, model=scorer.name)
            saved.append((RewardRow.of(scorer, str(path), reward, rank=rank), seed))
        return saved

    def _print_table(self, results: list[_Result], scorer: Scorer[Any]) -> None:
        from image_reward.cli.tables import generated_table
        from image_reward.reports.tables import show

        rows = [(each.prompt.prompt, row, seed, each.mean) for each in results for row, seed in each.saved]
        caption = f"In {self.output}. Rewards of {scorer.name}; the mean is that of all {self.best_of} images of the prompt."
        show(generated_table(rows, caption))

    def _write_gallery(self, path: str, results: list[_Result], scorer: Scorer[Any]) -> None:
        from image_reward.reports.document import Card, Cards, Report
        from image_reward.reports.numbers import counted, short
        from image_reward.reports.render import write
        from image_reward.scorers.registry import spec_of

        blocks = []
        for each in results:
            cards = [Card(row.image, f"{row.reward:+.4f}", [f"seed {seed}", Path(row.image).name]) for row, seed in each.saved]
            blocks.append(Cards(cards, short(each.prompt.prompt), f"Mean reward of all {self.best_of}: {each.mean:+.4f}."))
        notice = spec.notice if (spec := spec_of(scorer.name)) else ""
        lead = (
            f"The best {self.keep} of {self.best_of} images of {self.pipeline} for each prompt, by the rewards of {scorer.name}. {notice}"
        )
        write(Report(f"Best of {self.best_of}: {counted(len(results), 'prompt')}", lead.strip(), blocks), path)
        note_written("gallery", path)


_LONGEST_ID = 200  # bytes; file systems allow names of 255


@dataclass(frozen=True)
class _Result:
    prompt: Prompt
    rewards: list[float]
    seeds: list[int]
    saved: list[tuple[RewardRow, int]]
    """Best first, each with its seed."""

    @property
    def mean(self) -> float:
        return sum(self.rewards) / len(self.rewards)

    def as_dict(self) -> dict[str, Any]:
        saved = [row.as_dict() | {"seed": seed} for row, seed in self.saved]
        return {"id": self.prompt.id, "prompt": self.prompt.prompt, "rewards": self.rewards, "seeds": self.seeds, "images": saved}
