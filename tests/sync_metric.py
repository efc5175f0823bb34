"""One of two processes that measure a mean reward: RANK STORE FOLDER. Each has its own images; both print the mean over all."""

import sys
from pathlib import Path

import torch.distributed

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

if __name__ == "__main__":
    from torchmetrics_reward import MeanReward  # here, since pytest imports this file where there is no torchmetrics

    rank, store, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metric = MeanReward("ImageReward-mini")
    paths = sorted(folder.glob("*.png"))
    own = paths[:2] if rank == 0 else paths[2:]  # unequal shares: a mean of means would be wrong
    metric.update(own, [sys.argv[4]] * len(own))
    print(f"{metric.compute().item():.6f}")
    torch.distributed.destroy_process_group()
