"""Rewards as a column of a Hugging Face data set: ``dataset.map(AddRewards(), batched=True, batch_size=64)``.

The function is pickled by what it was made of and loads its scorer on first use: its fingerprint is stable, so ``map`` finds its result in
the cache the next time, and with ``num_proc`` each process loads its own. Images arrive as PIL images.
"""

import image_reward as ir


class AddRewards:
    def __init__(self, model="ImageReward-v1.0", image="image", prompt="prompt", device=None):
        self.options = (model, image, prompt, device)
        self.scorer = None

    def __call__(self, batch):
        model, image, prompt, device = self.options
        self.scorer = self.scorer or ir.load(model, device)
        return {"reward": self.scorer.score(batch[prompt], batch[image])}

    def __reduce__(self):
        return AddRewards, self.options
