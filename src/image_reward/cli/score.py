"""`image-reward score PROMPT IMAGE...`"""

from __future__ import annotations

from dataclasses import dataclass

from image_reward.cli.options import GalleryOptions, Images, ModelOptions, OutputOptions, Prompt, find_images, print_json


@dataclass
class Score(ModelOptions, OutputOptions, GalleryOptions):
    """Print the reward of each image, in the order given."""

    prompt: Prompt
    images: Images

    def run(self) -> int:
        images = find_images(self.images)
        scorer = self.load()
        rewards = scorer.score([self.prompt] * len(images), images)

        from image_reward.reports.tables import RewardRow, reward_table, show

        rows = [RewardRow.of(scorer, image, reward) for image, reward in zip(images, rewards, strict=True)]
        if self.json:
            print_json({"model": scorer.name, "prompt": self.prompt, "images": [row.as_dict() for row in rows]})
        else:
            show(reward_table(rows, title=self.prompt, caption=scorer.name))
        self.write_gallery(rows, self.prompt, scorer)
        return 0
