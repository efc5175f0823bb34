from __future__ import annotations

import base64
import io
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stubs
import torch
from PIL import Image
from reading import write_tar

from image_reward.errors import JobError
from image_reward.jobs.folder import DIGESTS, part_name
from image_reward.jobs.inputs import open_input
from image_reward.jobs.shards import ShardScorer, Work
from image_reward.scorers import Ensemble, ImageRewardScorer, Reference, TwoTowerBatch, load
from image_reward.scorers.identity import identity_of
from image_reward.scorers.outcomes import halves, is_out_of_memory, not_finite


def score(tmp_path: Path, rows: list[tuple[str | None, str]], batch_size: int | None = 4, **options: Any) -> tuple[Any, ShardScorer, Any]:
    """The table of the part that a worker writes for rows of (prompt, image), the worker, and what it says of the shard."""
    return score_with(tmp_path, rows, partial(stubs.load, **options), batch_size)


def score_with(tmp_path: Path, rows: list[tuple[str | None, str]], load: Any, batch_size: int | None = 4) -> tuple[Any, ShardScorer, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"prompt": [prompt for prompt, _ in rows], "image": [image for _, image in rows]}), path)
    return score_file(tmp_path, path, load, batch_size)


def score_file(tmp_path: Path, path: Path, load: Any, batch_size: int | None = 4) -> tuple[Any, ShardScorer, Any]:
    import pyarrow.parquet as pq

    source = open_input(str(path))
    [shard] = source.scan(10_000)
    worker = ShardScorer(Work(source, str(tmp_path), load, batch_size, decoders=0))
    result = worker.score(shard)
    return pq.read_table(tmp_path / part_name(0)), worker, result


def test_rewards_are_those_of_the_scorer(tmp_path: Path) -> None:
    names = stubs.draw(tmp_path, 6)
    rows = [("red square", names[n % 6]) for n in range(9)] + [("a", names[0])]
    table, worker, result = score(tmp_path, rows)
    expected = worker.scorers[0].score([prompt for prompt, _ in rows], [str(tmp_path / name) for _, name in rows])
    assert table.column_names == ["prompt", "image", "reward", "error"]
    assert table["reward"].to_pylist() == pytest.approx(expected, abs=1e-6)
    assert table["image"].to_pylist() == [name for _, name in rows]
    assert table["error"].null_count == len(rows)
    assert (result.num_rows, result.num_errors) == (10, 0)
    assert result.busy > 0


def test_several_scorers_have_a_column_each(tmp_path: Path) -> None:
    names = stubs.draw(tmp_path, 2)
    table, _, _ = score(tmp_path, [("a", names[1]), ("nan", names[1])], names=["one", "two"])
    assert table.column_names == ["prompt", "image", "reward:one", "reward:two", "error"]
    assert table["reward:one"].to_pylist() == [pytest.approx(1 + 1 / 255), None]
    assert table["error"].to_pylist() == [
        None,
        f"RewardError: {not_finite('one')}",
    ]
    with pytest.raises(JobError, match="two scorers are called one"):
        score(tmp_path, [("a", names[1])], names=["one", "one"])


def test_every_wrong_row_is_an_error_of_its_own(tmp_path: Path) -> None:
    good = stubs.draw(tmp_path, 1)[0]
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:1500])
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    bad = ["none.png", "text.png", "empty.png", "cut.jpg", "dot.png", ".", "http://x.org/a.png", "https://x.org/a.png", "x" * 5000]
    rows = [(f"p {i}", name) for pair in zip([good] * len(bad), bad, strict=True) for i, name in enumerate(pair)]
    rows += [(None, good), ("no", good), ("nan", good), ("x", None), ("last", good)]  # type: ignore[list-item]
    table, _, result = score(tmp_path, rows, batch_size=100)
    errors = table["error"].to_pylist()
    assert [error is None for error in errors] == [True, False] * len(bad) + [False, False, False, False, True]
    assert [reward is None for reward in table["reward"].to_pylist()] == [error is not None for error in errors]
    assert errors[1::2][: len(bad)] == [
        f"FileNotFoundError: no such image: {tmp_path}/none.png",
        "ImageReadError: text.png is text, perhaps a server's message, and not an image; save or download the image again",
        f"ImageReadError: {tmp_path}/empty.png is empty; save or download it again",
        errors[7],
        "ImageReadError: dot.png is 1 x 1 pixels; the shorter side must have at least 2 (lower min_side to score it anyway)",
        f"ImageReadError: {tmp_path}/. is a folder, not a file; give the path of a file",
        "ImageReadError: http://x.org/a.png: http:// is not read here; download it first",
        "ImageReadError: https://x.org/a.png is on the web, and fetching was not allowed; "
        "pass --allow-https (allow_https=True) if you mean it",
        errors[17],
    ]
    assert errors[7].startswith("ImageReadError: cut.jpg is damaged: ")
    assert errors[17].startswith("FileNotFoundError: no such image: ")
    assert errors[-5:] == [
        "PromptError: the row has no prompt",
        "InputError: the stub refuses this prompt",
        f"RewardError: {not_finite('brightness')}",
        "RowError: the row names no image",
        None,
    ]
    assert result.num_errors == len(bad) + 4


def test_a_prompt_too_long_is_an_error_or_a_warning(tmp_path: Path) -> None:
    names = stubs.draw(tmp_path, 2)
    rows = [("a b c d e f g h i", names[0]), ("a", names[1])]
    table, worker, result = score(tmp_path, rows)
    assert table["reward"].to_pylist() == pytest.approx([6, 1 + 1 / 255])
    assert result.warnings[0].startswith("the last 3 of 11 tokens of the prompt")
    worker.processors[0].tokenizer.long_prompts = "error"
    [shard] = worker.work.input.scan(10)
    assert worker.score(shard).num_errors == 1
    import pyarrow.parquet as pq

    error, none = pq.read_table(tmp_path / part_name(0))["error"].to_pylist()
    assert error.startswith("PromptError: the last 3 of 11 tokens")
    assert none is None


def test_an_image_is_encoded_once_whatever_its_name(tmp_path: Path) -> None:
    names = stubs.draw(tmp_path, 3)
    for copy in range(4):
        (tmp_path / f"copy{copy}.png").write_bytes((tmp_path / names[1]).read_bytes())
    rows = [("a", names[0]), ("a", names[1]), ("a b", names[2])] + [("a b c", f"copy{i % 4}.png") for i in range(20)]
    table, worker, _ = score(tmp_path, rows, batch_size=2)
    assert worker.scorers[0].images_seen == 3
    assert table["reward"].to_pylist() == pytest.approx([1, 1 + 1 / 255, 2 + 2 / 255] + [3 + 1 / 255] * 20)
    found = base64.b64decode(table.schema.metadata[DIGESTS])
    assert len({found[i : i + 16] for i in range(0, len(found), 16)}) == 3
    assert found[16:32] == found[-16:]


class RoundsByPlace(stubs.Brightness):
    """A reward depends on the row's place in its batch, as rounding does, but far more."""

    def score_pairs(self, features: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        rewards = super().score_pairs(features, ids, mask)
        return rewards + torch.arange(rewards.numel(), device="cpu").view(rewards.shape) / 1000


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("kind", ["files", "tar", "formats"])
def test_copies_of_an_image_get_one_reward_to_the_bit(kind: str, batch_size: int, tmp_path: Path) -> None:
    contents = [(tmp_path / name).read_bytes() for name in stubs.draw(tmp_path, 3)]
    prompts = ["a", "nan", "a b", "no"]
    rows = [(prompts[n // 3 % 4], f"copy{n}.png", n % 3) for n in range(24)]
    random.Random(0).shuffle(rows)
    if kind == "tar":
        members = {f"{n:02d}.png": contents[image] for n, (_, _, image) in enumerate(rows)}
        members |= {f"{n:02d}.txt": prompt.encode() for n, (prompt, _, _) in enumerate(rows)}
        write_tar(tmp_path / "rows.tar", dict(sorted(members.items())))
        table, _, result = score_file(tmp_path, tmp_path / "rows.tar", lambda _: [RoundsByPlace()], batch_size)
    else:
        for number, (_, name, image) in enumerate(rows):
            if kind == "files":
                (tmp_path / name).write_bytes(contents[image])
            else:  # of the same pixels
                Image.open(io.BytesIO(contents[image])).save(tmp_path / name, ("PNG", "BMP", "TIFF")[number % 3])
        table, _, result = score_with(tmp_path, [row[:2] for row in rows], lambda _: [RoundsByPlace()], batch_size)
    rewards: dict[tuple[str, int], set[Any]] = {}
    for (prompt, _, image), reward, error in zip(rows, table["reward"].to_pylist(), table["error"].to_pylist(), strict=True):
        assert (reward is None) == (error is not None) == (prompt in ("nan", "no"))
        rewards.setdefault((prompt, image), set()).add((reward, error))
    assert {len(found) for found in rewards.values()} == {1}
    assert result.num_errors == sum(prompt in ("nan", "no") for prompt, _, _ in rows)


def test_out_of_memory_halves_the_batch_and_loses_nothing(tmp_path: Path) -> None:
    names = stubs.draw(tmp_path, 20)
    rows = [("a", name) for name in names] + [("a b", names[3])] * 3
    _, worker, _ = score(tmp_path, rows[:1])
    worker.scoring.batch_size = 16
    worker.scorers[0].memory = 3
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"prompt": [p for p, _ in rows], "image": [i for _, i in rows]}), tmp_path / "rows.parquet")
    [shard] = worker.work.input.scan(100)
    worker.score(shard)
    expected = [1 + n / 255 for n in range(20)] + [2 + 3 / 255] * 3
    assert pq.read_table(tmp_path / part_name(0))["reward"].to_pylist() == pytest.approx(expected)
    assert worker.scoring.batch_size == 2
    assert worker.scorers[0].largest <= 3
    worker.scorers[0].memory = 0
    with pytest.raises(JobError, match="not enough memory on cpu to score a single image"):
        worker.score(shard)


def test_halves_hold_every_row_once_with_its_image() -> None:
    pixels = torch.arange(5 * 3, dtype=torch.uint8).view(5, 3, 1, 1)
    index = torch.tensor([4, 0, 1, 1, 2, 3, 0])
    batch = TwoTowerBatch(pixels, torch.arange(7)[:, None], torch.ones(7, 1, dtype=torch.bool), index)
    parts = list(halves([batch, batch]))
    assert [rows for rows, _ in parts] == [range(3), range(3, 7)]
    for rows, (one, two) in parts:
        assert one.ids[:, 0].tolist() == two.ids[:, 0].tolist() == list(rows)
        assert torch.equal(one.pixels[one.image_index], pixels[index[list(rows)]])
    single = TwoTowerBatch(pixels[:1], batch.ids[:3], batch.mask[:3], torch.zeros(3, dtype=torch.int64))
    assert [rows for rows, _ in halves([single])] == [range(1), range(1, 3)]


def test_the_identity_is_of_what_rewards_depend_on(scorer: ImageRewardScorer) -> None:
    one, same = stubs.Brightness(), stubs.Brightness()
    assert identity_of(one) == identity_of(same)
    same.weight.data += 1e-6
    other = identity_of(same)
    assert {key for key in other if other[key] != identity_of(one)[key]} == {"weights"}
    longer = stubs.Brightness()
    longer.prepare.tokenizer.long_prompts = "error"
    assert identity_of(longer)["preparation"] != identity_of(one)["preparation"]
    before = identity_of(scorer)
    scorer.cast(torch.bfloat16)
    assert (before["dtype"], identity_of(scorer)["dtype"]) == ("float32", "bfloat16, float32")


def test_the_identity_names_int8() -> None:
    pytest.importorskip("torchao")
    assert identity_of(load("ImageReward-mini", "cpu", "int8"))["dtype"] == "float32, int8"


def test_an_ensemble_beside_its_member(tmp_path: Path) -> None:
    names = stubs.draw(tmp_path, 3)
    brightness = stubs.Brightness()
    ensemble = Ensemble({"brightness": brightness}, references={"brightness": Reference(1.0, 2.0, 10, "none")})
    table, _, _ = score_with(tmp_path, [("a", name) for name in [*names, "missing.png"]], lambda _: [brightness, ensemble])
    alone, together = (table[f"reward:{scorer.name}"].to_pylist() for scorer in (brightness, ensemble))
    assert together[:3] == pytest.approx([(reward - 1) / 2 for reward in alone[:3]], abs=1e-6)
    assert table["error"].to_pylist()[:3] == [None] * 3
    assert "FileNotFoundError" in table["error"][3].as_py()
