from __future__ import annotations

import pytest

from image_reward.cli import main, parse

RANK = ["rank", "a cat", "a.png"]


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ([*RANK, "--model", "ImageReward-mini", "--model", "CLIP"], "model"),
        ([*RANK, "--model=ImageReward-mini", "--model", "CLIP"], "model"),
        ([*RANK, "--top", "1", "--top", "1"], "top"),
        ([*RANK, "--batch_size", "1", "--batch-size", "2"], "batch-size"),  # in a group
        (["score-files", "a.csv", "out", "--format", "csv", "--format", "jsonl"], "format"),
        (["train", "--data", "a.jsonl", "--lr", "1e-5", "--data", "b.jsonl"], "data"),
        (["train", "--recipe", "a.toml", "--recipe=b.toml"], "recipe"),
        (["train", "--network.text-width", "8", "--network.text-width", "16"], "network.text-width"),
        (["data", "split", "a.jsonl", "out", "--seed", "1", "--seed", "2"], "seed"),
        (["models", "convert", "a", "b", "--dtype", "float16", "--dtype", "float32"], "dtype"),
        (["serve", "--port", "1", "--port", "2"], "port"),
    ],
)
def test_an_option_that_is_taken_once_is_refused_twice(arguments: list[str], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err == (
        f"image-reward: --{option} is named 2 times, and {arguments[0]} takes it once; leave out all but one\n"
    )


def test_flags_and_options_that_collect_may_be_repeated() -> None:
    assert parse([*RANK, "--json", "--json", "--exact", "--exact"]).json
    assert parse(["evaluate", "a.jsonl", "--model", "a", "--model", "b", "--report", "a.md", "--report", "a.json"]).model == ("a", "b")
    assert parse(["score-files", "a.csv", "out", "--model", "a", "--model", "b"]).model == ("a", "b")
    assert parse(["rank", "--", "--top", "--top"]).prompt == "--top"  # a prompt and an image, after the dashes
