"""`image-reward rank PROMPT IMAGE...`"""

from __future__ import annotations

import filecmp
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from image_reward.addresses import Address
from image_reward.cli.options import (
    PROMPT_FIRST,
    GalleryOptions,
    Images,
    ModelOptions,
    OutputOptions,
    Prompt,
    PromptOptions,
    SkipOptions,
    UsageError,
    find_images,
    print_rewards,
)
from image_reward.errors import InputError
from image_reward.image_files import read_image_file

if TYPE_CHECKING:
    from image_reward.scorers.distribution import RewardRow


@dataclass
class Rank(ModelOptions, SkipOptions, OutputOptions, GalleryOptions, PromptOptions):
    """Rank images for a prompt by reward, best first."""

    prompt: Prompt
    images: Images
    top: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Show and copy only the best N images."""
    copy_to: Path | None = None
    """Copy the images shown to this folder, their names prefixed with their ranks."""

    def run(self) -> int:
        if self.top is not None and self.top < 1:
            raise UsageError(f"--top must be at least 1, not {self.top}")
        self.check_prompt(self.prompt, PROMPT_FIRST)
        self.check_gallery()
        if self.copy_to:
            Address.parse(self.copy_to)  # refuses what a Path makes of an address
        images, pictures, unreadable = self.readable(find_images(self.images))
        scorer = self.load()
        ranking = scorer.rank(self.prompt, pictures)

        from image_reward.cli.tables import reward_table
        from image_reward.reports.tables import show
        from image_reward.scorers.distribution import RewardRow

        rows = [RewardRow.of(scorer, images[i], ranking.rewards[i], rank=ranking.ranking[i]) for i in ranking.order][: self.top]
        if self.json:
            print_rewards(scorer, self.prompt, rows, unreadable)
        else:
            show(reward_table(rows, title=self.prompt, caption=f"{scorer.name}, {len(images)} image{'s' if len(images) > 1 else ''}"))
        if self.copy_to:
            _copy(rows, self.copy_to)
        self.write_gallery(rows, self.prompt, scorer)
        return 1 if unreadable else 0


def _copy(rows: list[RewardRow], folder: Path) -> None:
    """Copy images as RANK_NAME. Nothing is overwritten by something else, and nothing is copied if anything would be."""
    width = len(str(len(rows)))
    copies = [(image, folder / f"{row.rank:0{width}d}_{image.name}") for row in rows for image in [Address.parse(row.image)]]
    for source, target in copies:
        if target.exists() and not _is_copy(source, target):
            raise InputError(f"{target} already exists and differs from {source}; copy to an empty folder")
    folder.mkdir(parents=True, exist_ok=True)
    for source, target in copies:
        if source.is_local:
            shutil.copy2(source.local, target)
        else:
            Address.parse(target).write(read_image_file(source))


def _is_copy(source: Address, target: Path) -> bool:
    if source.is_local:
        return filecmp.cmp(source.local, target, shallow=False)
    return target.read_bytes() == read_image_file(source)
