"""Best of N with less work: an image whose preview is worse than the best one's at the same step is not finished."""

import torch

from image_reward.tuning import reward_preview


def best_of_promising(pipe, prompt, scorer, seeds, step, **arguments):
    """The best image, its seed and reward, and the seeds that were finished. ``step`` is that of the preview, from 0."""
    best, highest, finished = (None, None, float("-inf")), float("-inf"), []
    for seed in seeds:
        with reward_preview(pipe, prompt, scorer, steps={step}) as preview:

            def callback(pipe, done, timestep, kwargs, preview=preview):
                kwargs = preview(pipe, done, timestep, kwargs)
                if done == step and preview.rewards[step][0] < highest:  # noqa: B023 - it is called at once
                    pipe._interrupt = True
                return kwargs

            generator = torch.Generator().manual_seed(seed)
            image = pipe(prompt, generator=generator, callback_on_step_end=callback, **arguments).images[0]
        if preview.rewards[step][0] >= highest:
            finished.append(seed)
            highest, reward = preview.rewards[step][0], scorer.score(prompt, image)
            best = max(best, (image, seed, reward), key=lambda made: made[2])
    return (*best, finished)
