"""`image-reward score PROMPT IMAGE...`"""

from __future__ import annotations

from dataclasses import dataclass

from image_reward.cli.options import (
    PROMPT_FIRST,
    GalleryOptions,
    Images,
    ModelOptions,
    OutputOptions,
    Prompt,
    PromptOptions,
    SkipOptions,
    find_images,
    print_rewards,
)


@dataclass
class Score(ModelOptions, SkipOptions, OutputOptions, GalleryOptions, PromptOptions):
    """Print the reward of each image for a prompt, in the order of the command line.

    A file of rows, each with a prompt and an image, is scored by `image-reward score-files`.
    """

    prompt: Prompt
    images: Images

    def run(self) -> int:
        self.check_prompt(self.prompt, PROMPT_FIRST)
        self.check_gallery()
        images, pictures, unreadable = self.readable(find_images(self.images))
        scorer = self.load()
        rewards = scorer.score([self.prompt] * len(pictures), pictures)

        from image_reward.cli.tables import reward_table
        from image_reward.reports.tables import show
        from image_reward.scorers.distribution import RewardRow

        rows = [RewardRow.of(scorer, image, reward) for image, reward in zip(images, rewards, strict=True)]
        if self.json:
            print_rewards(scorer, self.prompt, rows, unreadable)
        else:
            show(reward_table(rows, title=self.prompt, caption=scorer.name))
        self.write_gallery(rows, self.prompt, scorer)
        return 1 if unreadable else 0
