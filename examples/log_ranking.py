"""A ranked table of images in Weights & Biases, MLflow or TensorBoard."""

from pathlib import Path

import numpy as np
from PIL import Image

import image_reward as ir


def log_to_wandb(run, ranking: ir.Ranking, prompt: str) -> None:
    import wandb

    table = wandb.Table(columns=["rank", "reward", "image", "prompt"])
    for item in ranking:
        table.add_data(item.rank, item.reward, wandb.Image(item.image, caption=f"{item.reward:+.4f}"), prompt)
    run.log({"ranking": table, "reward/best": ranking[0].reward})


def log_to_mlflow(mlflow, ranking: ir.Ranking, prompt: str) -> None:
    rows = {"rank": [item.rank for item in ranking], "reward": [item.reward for item in ranking]}
    mlflow.log_table({**rows, "image": [Path(item.image).name for item in ranking], "prompt": [prompt] * len(ranking)}, "ranking.json")
    mlflow.log_metric("reward_best", ranking[0].reward)
    for item in ranking:
        mlflow.log_artifact(item.image, f"rank_{item.rank}")


def log_to_tensorboard(writer, ranking: ir.Ranking, prompt: str, step: int = 0) -> None:
    rows = "".join(f"| {item.rank} | {item.reward:+.4f} | {Path(item.image).name} |\n" for item in ranking)
    writer.add_text(prompt, f"| rank | reward | image |\n|---|---|---|\n{rows}", step)
    writer.add_scalar("reward/best", ranking[0].reward, step)
    for item in ranking:
        writer.add_image(f"rank {item.rank}", np.asarray(Image.open(item.image).convert("RGB")), step, dataformats="HWC")
