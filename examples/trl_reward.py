"""A reward function for TRL's trainers: ``f(prompts, completions, **columns) -> list[float | None]``.

A completion is an image, or None where none could be made: its reward is None, which TRL takes for "does not apply". Prompts are texts or
conversations, whose last message counts: a text, or a list of parts of which the texts count.
"""

import image_reward as ir


def text_of(prompt):
    content = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return content if isinstance(content, str) else " ".join(part["text"] for part in content if part["type"] == "text")


def reward_function(model="ImageReward-v1.0"):
    scorer = ir.load(model)

    def image_reward(prompts, completions, **_columns):
        texts = [text_of(prompt) for prompt in prompts]
        made = [place for place, image in enumerate(completions) if image is not None]
        rewards = [None] * len(completions)
        for place, reward in zip(made, scorer.score([texts[i] for i in made], [completions[i] for i in made]), strict=True):
            rewards[place] = reward
        return rewards

    return image_reward
