from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
from pyarrow.parquet import write_table

import hub
from image_reward import prompt_sets
from image_reward.errors import DownloadError
from image_reward.prompt_sets import PROMPT_SETS, Prompt, PromptSet, fetch_text, prompt_set, prompts, read_prompts

CATS = [Prompt("a", "a cat", "animals"), Prompt("b", "two cats, sitting")]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.json", '[{"id": "a", "prompt": "a cat", "category": "animals"}, {"id": "b", "prompt": "two cats, sitting"}]', CATS),
        ("p.jsonl", '{"id": "a", "prompt": "a cat", "category": "animals"}\n\n{"id": "b", "prompt": "two cats, sitting"}\n', CATS),
        ("p.csv", 'prompt_id,prompt,category\na,a cat,animals\nb,"two cats, sitting",\n', CATS),
        ("p.csv", "id,prompt\na,a\u2028cat\n", [Prompt("a", "a\u2028cat")]),  # no end of a line
        ("p.txt", "a\u2028cat\r\n", [Prompt("00000", "a\u2028cat")]),
        ("p.json", '["a cat", "two cats"]', [Prompt("00000", "a cat"), Prompt("00001", "two cats")]),
        ("p.txt", "a cat\n\n[two] cats\n", [Prompt("00000", "a cat"), Prompt("00001", "[two] cats")]),
        ("p.tsv", "Prompt\tCategory\tNote\na cat\tAnimals\t\n", [Prompt("00000", "a cat", "Animals")]),
        ("p.jsonl", '{"tag": "counting", "include": [], "prompt": "two cats"}', [Prompt("00000", "two cats", "counting")]),
        ("p.txt", '{"id": "a", "prompt": "a cat", "category": "animals"}\n{"id": "b", "prompt": "two cats, sitting"}\n', CATS),
        ("p.csv", '[{"id": "a", "prompt": "a cat", "category": "animals"}, {"id": "b", "prompt": "two cats, sitting"}]', CATS),
        ("p", '["a cat", "two cats"]', [Prompt("00000", "a cat"), Prompt("00001", "two cats")]),
        ("p.txt", 'prompt_id,prompt,category\na,a cat,animals\nb,"two cats, sitting",\n', CATS),
        ("p.txt", "prompt\tid\na cat\tx\n", [Prompt("x", "a cat")]),
        ("p.txt", "[cat:1.2] on a sofa\n{red|green} cat\n", [Prompt("00000", "[cat:1.2] on a sofa"), Prompt("00001", "{red|green} cat")]),
        ("p.txt", "{red|green} cat\n[[cat]]\n", [Prompt("00000", "{red|green} cat"), Prompt("00001", "[[cat]]")]),
        ("p.txt", "a cat, sitting\na dog\n", [Prompt("00000", "a cat, sitting"), Prompt("00001", "a dog")]),
        (
            "p.tsv",
            'Prompt\tCategory\na "red" cat\tA\n"red" cat\tB\n',
            [Prompt("00000", 'a "red" cat', "A"), Prompt("00001", '"red" cat', "B")],
        ),
    ],
)
def test_forms_of_files(tmp_path: Path, name: str, text: str, expected: list[Prompt]) -> None:
    """Recognised by content: a name decides only what the content leaves open."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_prompts(tmp_path / name) == expected


def test_parquet(tmp_path: Path) -> None:
    write_table(pyarrow.table({"id": ["x", "y"], "prompt": ["a cat", "a dog"]}), tmp_path / "p.parquet")
    assert read_prompts(tmp_path / "p.parquet") == [Prompt("x", "a cat"), Prompt("y", "a dog")]


@pytest.mark.parametrize("empty", ["", "  ", "\u3000"])
def test_an_empty_prompt_is_refused_in_every_format(tmp_path: Path, empty: str) -> None:
    (tmp_path / "p.json").write_text(json.dumps(["a cat", empty]))
    (tmp_path / "objects.json").write_text(json.dumps([{"prompt": "a cat"}, {"prompt": empty}]))
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("a cat", empty)))
    (tmp_path / "p.csv").write_text(f'id,prompt\na,a cat\nb,"{empty}"\n', encoding="utf-8")
    (tmp_path / "p.tsv").write_text(f"id\tprompt\na\ta cat\nb\t{empty}\n", encoding="utf-8")
    write_table(pyarrow.table({"prompt": ["a cat", empty]}), tmp_path / "p.parquet")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=r"prompt 2: .* is not text"):
            read_prompts(path)
    (tmp_path / "p.txt").write_text(f"a cat\n{empty}\na dog\n", encoding="utf-8")  # here a blank line is no prompt
    assert [prompt.prompt for prompt in read_prompts(tmp_path / "p.txt")] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.json", '[{"id": "a", "prompt": "x"}, {"id": "a", "prompt": "y"}, {"id": "b", "prompt": "z"}]', "1 ids more than once: a;"),
        ("p.json", '[{"id": "a", "prompt": "x"}, {"id": "b"}]', "prompt 2: None is not text"),
        ("p.json", '[{"id": "a", "prompt": " "}]', "prompt 1: ' ' is not text"),
        ("p.json", '["x", 3]', "entry 2 is not an object with keys but int"),
        ("p.json", '["x"', "after entry 1: the list does not end: it was cut off"),
        ("p.jsonl", '{"prompt": "x"}\n{"prompt"', "line 2 is not JSON"),
        ("p.csv", "id,prompt\na,one, two\n", "line 2 has 3 cells; the header has 2: quote cells that hold commas"),
        ("p.txt", "\n\n", "is empty"),
    ],
)
def test_files_that_make_no_sense(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_prompts(tmp_path / name)
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_the_paper_s_prompts_are_packaged() -> None:
    found = prompt_set("ImageReward")
    assert len(found) == len({prompt.id for prompt in found}) == PROMPT_SETS["ImageReward"].num_prompts == 100
    assert found[0] == Prompt("005695-0057", "a concept art of a vehicle, cyberpunk")


def test_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ImageReward").write_text('["mine"]')
    assert len(prompts("ImageReward")) == 100
    assert [prompt.prompt for prompt in prompts("./ImageReward")] == ["mine"]
    with pytest.raises(
        ValueError, match=r"neither a file nor a known set of prompts\. Did you mean DrawBench\? Known sets: ImageReward, Dra"
    ):
        prompts("drawbnch")
    with pytest.raises(FileNotFoundError, match=r"no such file: none\.json"):
        read_prompts("none.json")


def test_every_set_is_pinned_to_what_cannot_change() -> None:
    for name, spec in PROMPT_SETS.items():
        for url in spec.sources.values():
            assert spec.packaged or any(len(part) == 40 for part in url.split("/")), name


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub.Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with hub.serve() as found:
        found.files = {"styles/anime.json": b'["a cat", "a dog"]', "styles/photo.json": b'["a car"]'}
        yield found


def test_a_set_of_several_files_is_downloaded_once(server: hub.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {style: f"{server.url}/styles/resolve/main/{style}.json" for style in ("anime", "photo")}
    spec = PromptSet("styles", "MIT", 3, sources)
    monkeypatch.setitem(prompt_sets.PROMPT_SETS, "styles", spec)
    expected = [Prompt("anime-00000", "a cat", "anime"), Prompt("anime-00001", "a dog", "anime"), Prompt("photo-00000", "a car", "photo")]
    assert prompt_set("styles") == expected
    assert len(server.asked("GET")) == 2
    assert prompt_set("styles") == expected
    assert len(server.asked("GET")) == 2
    monkeypatch.setitem(prompt_sets.PROMPT_SETS, "styles", replace(spec, num_prompts=4))
    with pytest.raises(ValueError, match=r"styles has 4 prompts, but .*anime\.json, .*photo\.json have 3; delete them and try again"):
        prompt_set("styles")


def test_what_cannot_be_downloaded_can_be_placed_by_hand(server: hub.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"{server.url}/gone/resolve/main/DrawBench%20Prompts.csv"
    with pytest.raises(DownloadError, match="404") as caught:
        fetch_text(url)
    place = Path(str(caught.value).rsplit("put it at ", 1)[1])
    assert place.name == "DrawBench Prompts.csv"
    monkeypatch.setattr("huggingface_hub.is_offline_mode", lambda: True)
    with pytest.raises(DownloadError, match=r"offline mode \(HF_HUB_OFFLINE\) is on\. By hand: fetch http"):
        fetch_text(url)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("Prompts,Category\na cat,Animals\n")
    assert read_prompts(fetch_text(url)) == [Prompt("00000", "a cat", "Animals")]


def test_hub_files_come_from_the_mirror(server: hub.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    assert json.loads(fetch_text("https://huggingface.co/styles/resolve/main/photo.json").read_text()) == ["a car"]


def test_strings_of_jsonl_are_prompts_without_their_quotes(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('"a cat"\n"a dog"\n')
    assert [prompt.prompt for prompt in read_prompts(tmp_path / "x.jsonl")] == ["a cat", "a dog"]
    (tmp_path / "x.jsonl").write_text("a cat\n")
    with pytest.raises(ValueError, match=r"x\.jsonl, line 1 is not JSON"):
        read_prompts(tmp_path / "x.jsonl")
    (tmp_path / "x.json").write_text('"a cat')
    with pytest.raises(ValueError, match=r"x\.json is not JSON: it has neither .*; name plain text \.txt"):
        read_prompts(tmp_path / "x.json")
