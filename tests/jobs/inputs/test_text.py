from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from reading import read_all

from image_reward.errors import JobError, RowsError
from image_reward.rows import read_rows


def test_csv_shards_begin_at_records_not_at_lines(tmp_path: Path) -> None:
    text = (
        '\ufeffid,prompt,image\r\n1,"a ""cat""\nand, a dog",a.png\r\n\r\n2,5" screen,b.png\r\n3,"x",/abs/c.png\n4,é,s3://b/d.png\n5,,e.png'
    )
    (tmp_path / "rows.csv").write_text(text, encoding="utf-8", newline="")
    for size in (1, 2, 100):
        _, rows = read_all(tmp_path / "rows.csv", size)
        assert [row[1] for row in rows] == ['a "cat"\nand, a dog', '5" screen', "x", "é", None]
        assert [row[2] for row in rows] == [f"{tmp_path}/a.png", f"{tmp_path}/b.png", "/abs/c.png", "s3://b/d.png", f"{tmp_path}/e.png"]
        assert rows[0][0] == {"id": "1", "prompt": 'a "cat"\nand, a dog', "image": "a.png"}
        assert not any(row[3] for row in rows)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_a_line_is_what_it_is_for_files_of_rankings(end: str, last: bool, tmp_path: Path) -> None:
    csv = ["prompt,image", 'a,"0.png"', "", '"b', 'c",1.png', "d,2.png"]
    jsonl = ['{"prompt": "a", "image": "0.png"}', "", '{"prompt": "b", "image": "1.png"}', '{"prompt": "d", "image": "2.png"}']
    for name, lines, prompts in (("rows.csv", csv, ["a", f"b{end}c", "d"]), ("rows.jsonl", jsonl, ["a", "b", "d"])):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + (end.join(lines) + last * end).encode())
        assert [row.values["prompt"] for row in read_rows(tmp_path / name, ["prompt"])] == prompts
        for size in (1, 2, 100):
            assert [(row[1], row[3]) for row in read_all(tmp_path / name, size)[1]] == [(prompt, None) for prompt in prompts]


def test_a_wrong_record_is_a_problem_of_its_row(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(
        b"prompt,image\na,a.png\nb\nc,c.png,more\n\xff,d.png\n" + b'"' + b"x" * 200_000 + b'",e.png\nf,f.png\n'
    )
    _, rows = read_all(tmp_path / "rows.csv")
    problems = [row[3] for row in rows]
    assert problems[0] is None
    assert problems[1] == "row 2 has 1 cells; the header has 2: quote cells that hold commas"
    assert "row 3 has 3 cells" in problems[2]
    assert problems[3] == "row 4 is not UTF-8"
    assert "row 5 has a cell of more than 131,072 characters" in problems[4]
    assert rows[5][1] == "f"
    assert problems[5] is None
    assert rows[3][0] == {"prompt": "\ufffd", "image": "d.png"}


def test_a_quote_that_is_not_closed_costs_its_line_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for text, prompts in [
        ('image,prompt\n0.png,"a\n1.png,b\n2.png,c\n', [None, "b", "c"]),  # the rest of the file would be its prompt
        ('prompt,image\n"a,0.png\nb,1.png\n"c d",2.png\n', [None, "b", "c d"]),  # 2.png would be scored for all three lines
        ('image,prompt\n0.png,a\n1.png,"b\n' + "2.png,c\n" * 20_000, ["a", None, *"c" * 20_000]),  # longer than a cell may be
    ]:
        path.write_text(text)
        for size in (1, 2, 1000) if len(text) < 1000 else (1000,):
            _, rows = read_all(path, size)
            assert [row[1] for row in rows] == prompts
            assert [n for n, row in enumerate(rows) if row[3]] == [prompts.index(None)]
            assert re.match(
                r"row \d is not CSV: .*close every quote|row \d opens a quote|row \d has a cell of more", rows[prompts.index(None)][3]
            )


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ('"prompt";"image";"a, b"\n"x;y";0.png;1,5\n', ["x;y"]),
        ("\ufeff\n  \n" + "\n" * 70_000 + "prompt;image\nx;0.png\n", ["x"]),
        ("\ufeffprompt;image\r\nx;0.png\r\n", ["x"]),
        ('"a,\nb";prompt;image\r1;x;0.png\r', ["x"]),  # a header of two lines
        ("prompt\timage\n" + '"red" cat\t0.png\n5" disk\t0.png\n"a\nb"\t0.png\n', ['"red" cat', '5" disk', "a\nb"]),
        (f"prompt;image;{'x' * 70_000}\nx;0.png;1\n", ["x"]),
    ],
)
def test_tables_are_read_as_by_read_rows(text: str, prompts: list[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text, encoding="utf-8", newline="")
    rows = [row.values for row in read_rows(path, ["prompt"])]
    assert [row["prompt"] for row in rows] == prompts
    for size in (1, 100):
        assert [row[0] for row in read_all(path, size)[1]] == rows


def test_a_quote_that_is_text_between_tabs_takes_no_rows_into_its_cell(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('prompt\timage\n"a cat\t0.png\na dog"\t1.png\na cow\t2.png\n')
    with pytest.raises(RowsError, match="a quote is opened and not closed on its line"):
        list(read_rows(path, ["prompt"]))
    _, rows = read_all(path)
    assert [(row[1], bool(row[3])) for row in rows] == [(None, True), ('a dog"', False), ("a cow", False)]


def test_json_lines_with_columns_of_every_type(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "image": "a.png", "n": 1, "x": 1, "ok": True, "mixed": 1, "list": [1, 2]},
        {"prompt": None, "image": "b.png", "n": 2, "x": 0.5, "mixed": "text", "big": 2**70},
        {"prompt": "", "image": None, "late": "é"},
        {"prompt": 7, "image": "d.png"},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n\n[1]\n{"prompt": \n{"prompt": "z", "image": "z.png"}'
    (tmp_path / "rows.jsonl").write_text(text)
    source, rows = read_all(tmp_path / "rows.jsonl")
    types = {field.name: str(field.type) for field in source.schema}
    assert types == {"image": "string", "n": "int64", "x": "double", "ok": "bool"} | dict.fromkeys(
        ("prompt", "mixed", "list", "big", "late"), "string"
    )
    assert [row[1] for row in rows] == ["a", None, None, 7, None, None, "z"]
    assert rows[0][0]["list"] == "[1, 2]"
    assert rows[1][0]["big"] == str(2**70)
    assert [row[3] is None for row in rows] == [True, True, True, True, False, False, True]
    assert rows[4][3] == "row 5 is not an object with keys but list"
    assert rows[5][3].startswith("row 6 is not JSON: ")
    assert rows[2][2] is None


def test_numbers_that_a_float_cannot_hold_are_kept_as_text(tmp_path: Path) -> None:
    rows = [{"n": 4611686018427387905, "m": 2**53 + 1}, {"n": 0.5, "m": 1}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row | {"prompt": "a", "image": "b"}) + "\n" for row in rows))
    _, rows = read_all(tmp_path / "rows.jsonl")
    assert [row[0]["n"] for row in rows] == ["4611686018427387905", "0.5"]
    assert [row[0]["m"] for row in rows] == [9007199254740993, 1]


def test_a_list_or_another_encoding_is_not_taken_for_lines(tmp_path: Path) -> None:
    for text in (b'\xef\xbb\xbf[{"prompt": "a"}]', b'\n \r\n[\n{"prompt": "a"},\n{}]', b"  [" + b" " * (20 << 20)):
        (tmp_path / "rows.jsonl").write_bytes(text)
        with pytest.raises(JobError, match=r"rows\.jsonl is one JSON list; write one object on each line"):
            read_all(tmp_path / "rows.jsonl")
    for name, text in (("rows.jsonl", '{"prompt": "a", "image": "b"}'), ("rows.csv", "prompt,image\na,b\n")):
        (tmp_path / name).write_text(text, encoding="utf-16")
        with pytest.raises(JobError, match=f"{name} is UTF-16 text; save it as UTF-8"):
            read_all(tmp_path / name)
    for text in ("prompt;image\tid\na;b\tc\n", "prompt|image\na|b\n"):
        (tmp_path / "rows.csv").write_text(text)
        with pytest.raises(JobError, match=r"the cells of .*rows\.csv are separated by '.'; save it as CSV with commas"):
            read_all(tmp_path / "rows.csv")
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf\n\n{"prompt": "a", "image": "b"}\n')
    assert [row[1] for row in read_all(tmp_path / "rows.jsonl")[1]] == ["a"]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_every_shard_of_a_spreadsheets_table_is_read_as_read_rows_does(tmp_path: Path, separator: str) -> None:
    lines = [["prompt", "image", "id"], *([f'"cat, {n}; or dog"', f"{n}.png", str(n)] for n in range(5))]
    path = tmp_path / "rows.csv"
    path.write_bytes(("\ufeff" + "\r\n".join(separator.join(line) for line in lines) + "\r\n").encode())
    rows = read_all(path, shard_size=2)[1]
    expected = [row.values["prompt"] for row in read_rows(path, ("prompt",))]
    assert [row[1] for row in rows] == expected == [f"cat, {n}; or dog" for n in range(5)]
    assert all(row[3] is None for row in rows)
    path.write_text(f"prompt{separator}image\na{separator}0.png{separator}c\nb{separator}1.png\n")
    problems = [row[3] for row in read_all(path)[1]]
    assert "has 3 cells; the header has 2" in problems[0]
    assert problems[1] is None


def test_a_line_without_end_is_a_problem_of_its_row(tmp_path: Path) -> None:
    long = b"x" * (20 << 20)
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "a", "image": "0.png"}\n' + long + b'\n{"prompt": "b", "image": "1.png"}\n')
    (tmp_path / "rows.csv").write_bytes(b"prompt,image\na,0.png\n" + long + b"\nb,1.png\n")
    for name in ("rows.jsonl", "rows.csv"):
        for size in (1, 9):
            _, rows = read_all(tmp_path / name, size)
            assert [row[1] for row in rows] == ["a", None, "b"]
            assert rows[1][3] == "row 2 is a line of more than 16,777,216 bytes, which is too long for a row"
            assert rows[2][3] is None


@pytest.mark.parametrize(("name", "start"), [("zeros.csv", "prompt,image\na,0.png\n"), ("zeros.jsonl", "{}\n"), ("only_zeros.csv", "")])
def test_a_file_that_goes_on_in_zeros_is_not_read_to_its_end(name: str, start: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(start)
    os.truncate(tmp_path / name, 50 << 30)  # sparse
    with pytest.raises(JobError, match=rf"{name} is not text of rows: at byte \d+ begins a line of|the first line of .* is a line of more"):
        read_all(tmp_path / name)


def test_rows_that_all_have_keys_of_their_own_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": "a", "image": "b", f"key{n}": n}) + "\n" for n in range(3000)))
    with pytest.raises(JobError, match=r"the objects of .*rows\.jsonl have more than 1,000 different keys, such as 'key998'"):
        read_all(tmp_path / "rows.jsonl")


def test_json_lines_of_which_none_is_valid_show_the_first_problem(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for text, problem in [
        ("\nx\ny\n", r"that at byte 1 of .*rows\.jsonl is not JSON"),
        ("3\n[1]\n", r"that at byte 0 of .*rows\.jsonl is "),
    ]:
        path.write_text(text)
        with pytest.raises(JobError, match=f"no line of .* is an object with columns: {problem}"):
            read_all(path)
