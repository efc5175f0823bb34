"""The page in a real browser, Debian's Chromium: with a mouse, with keys alone, on a phone, and through axe-core."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import stubs
from clients import Gate, serving, until

import seeded
from conftest import tiny
from image_reward import comparisons
from image_reward.errors import LongPromptWarning
from image_reward.evaluation import evaluate
from image_reward.jobs.browsing import ScoredPages
from image_reward.scorers import ImageRewardScorer
from image_reward.scorers.distribution import published_distribution
from image_reward.serving import Limits, Settings, create_app

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytest.importorskip("playwright", reason="playwright is not installed: pip install 'image-reward[test]'")
if CHROMIUM is None:
    pytest.skip("no Chromium: apt-get install chromium, or set CHROMIUM to one", allow_module_level=True)

from axe_playwright_python.sync_playwright import Axe  # noqa: E402
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, Request, expect, sync_playwright  # noqa: E402

TOKEN = "a-token-of-some-length"
PROMPT = "a painting of rings"
HOSTILE = "<img src=x onerror=\"document.title='owned'\"> '; DROP TABLE images; -- <script>alert(1)</script> {{7*7}} %s"
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twelve images, the names of which are not in the order of their rewards."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(12):
        seeded.image("rings", 60 + number, 50 + 3 * number, number).save(folder / f"ring-{number}.png")
    return sorted(folder.iterdir(), key=lambda path: int(path.stem[5:]))


@contextmanager
def opened(browser: Browser, url: str, **options: Any) -> Iterator[Page]:
    """The page, which asks nothing of others and breaks neither its policy nor its script."""
    context: BrowserContext = browser.new_context(**({"viewport": {"width": 1280, "height": 860}, "accept_downloads": True} | options))
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    wrong: list[str] = []

    def asked(request: Request) -> None:
        if not request.url.startswith((url.partition("#")[0], "blob:")):
            wrong.append(request.url)

    def said(dialog: Dialog) -> None:
        if dialog.type != "beforeunload":
            wrong.append(dialog.message)
        dialog.dismiss()

    context.on("request", asked)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", said)
    page.on("console", lambda message: wrong.append(message.text) if "Security" in message.text or "Trusted" in message.text else None)
    page.set_default_timeout(20_000)
    page.goto(url)
    try:
        yield page
    finally:
        context.close()
    assert wrong == []


@pytest.fixture
def service(scorer: ImageRewardScorer) -> Iterator[str]:
    with serving(create_app([scorer], Settings(local_names=("127.0.0.1",)))) as url:
        yield url


@pytest.fixture
def page(browser: Browser, service: str) -> Iterator[Page]:
    with opened(browser, service) as page:
        yield page


def choose(page: Page, where: str, paths: list[Path] | Path) -> None:
    page.set_input_files(where, [str(path) for path in paths] if isinstance(paths, list) else str(paths))


def rank(page: Page, images: list[Path], prompt: str = PROMPT) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    choose(page, "#rank-files", images)
    expect(page.locator("#rank-summary")).to_contain_text(f"{len(images)} image{'s' if len(images) > 1 else ''}, best first")


def names(page: Page, grid: str = "#rank-cards") -> list[str]:
    return page.locator(f"{grid} .name").all_inner_texts()


def downloaded(page: Page, button: str) -> bytes:
    with page.expect_download() as download:
        page.click(button)
    return Path(download.value.path()).read_bytes()


DROP = """(element, [files, type]) => {
    const transfer = new DataTransfer();
    for (const [name, content, kind] of files) {
        transfer.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name, { type: kind }));
    }
    const name = type === "paste" ? "clipboardData" : "dataTransfer";
    const event = type === "paste" ? new ClipboardEvent(type, { clipboardData: transfer, bubbles: true, cancelable: true })
        : new DragEvent(type, { dataTransfer: transfer, bubbles: true, cancelable: true });
    element.dispatchEvent(event);
    return event.defaultPrevented;
}"""


def hand_over(page: Page, files: dict[str, bytes], how: str = "drop", where: str = "main") -> None:
    """Drop files on the page, or paste them."""
    kinds = {".png": "image/png", ".csv": "text/csv"}
    encoded = [[name, base64.b64encode(content).decode(), kinds.get(Path(name).suffix, "")] for name, content in files.items()]
    assert page.locator(where).evaluate(DROP, [encoded, how])


def drop_really(page: Page, paths: list[Path]) -> None:
    """As the operating system does, folders included."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 400, "y": 400, "data": data})


# --- rank ---


def test_ranked_as_the_scorer_ranks(page: Page, images: list[Path], scorer: ImageRewardScorer) -> None:
    rank(page, images)
    ranking = scorer.rank(PROMPT, [str(image) for image in images])
    assert names(page) == [images[index].name for index in ranking.order]
    shown = [float(text.replace("−", "-")) for text in page.locator("#rank-cards .reward").all_inner_texts()]
    assert shown == pytest.approx(sorted(ranking.rewards, reverse=True), abs=1e-3)
    assert page.locator("#rank-cards .rank").all_inner_texts()[:2] == ["1. best", "2."]


def test_the_published_distribution(page: Page, images: list[Path], scorer: ImageRewardScorer) -> None:
    rank(page, images)
    published = published_distribution(scorer.reference)
    assert published is not None
    rewards = sorted(scorer.score(PROMPT, [str(image) for image in images]), reverse=True)
    assert page.locator("#rank-cards .words").all_inner_texts() == [published.in_words(reward) for reward in rewards]
    expect(page.locator("#rank-distribution figcaption")).to_contain_text("of 6,000 images published with the model")
    assert page.locator("#rank-distribution line").count() == len(images)


def test_other_weights_have_no_distribution(browser: Browser, images: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageRewardScorer, "reference", None)
    with serving(create_app([tiny(ImageRewardScorer)])) as url, opened(browser, url) as page:
        rank(page, images[:3])
        expect(page.locator("#rank-distribution")).to_be_hidden()
        assert page.locator("#rank-cards .words").all_inner_texts() == [""] * 3


def test_dropped_and_pasted(page: Page, images: list[Path]) -> None:
    hand_over(page, {"first.png": images[0].read_bytes(), "notes.txt": b"no image"})
    expect(page.locator("#rank-summary")).to_have_text("1 image")
    expect(page.locator("#notice")).to_contain_text("1 file left out")
    hand_over(page, {"image.png": images[1].read_bytes()}, "paste")
    hand_over(page, {"image.png": images[2].read_bytes()}, "paste")
    expect(page.locator("#rank-summary")).to_have_text("3 images")
    assert names(page) == ["first.png", "pasted-1.png", "pasted-2.png"]
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_label("Prompt", exact=True).press("Enter")
    expect(page.locator("#rank-summary")).to_contain_text("3 images, best first, for “a painting of rings”")


def test_a_whole_folder(page: Page, images: list[Path], tmp_path: Path) -> None:
    for place in ("a", "a/b", "c"):
        (tmp_path / "all" / place).mkdir(parents=True, exist_ok=True)
        for image in images[:3]:
            shutil.copy(image, tmp_path / "all" / place)
    (tmp_path / "all" / ".hidden.png").write_bytes(b"")
    (tmp_path / "all" / "readme.md").write_text("no image")
    choose(page, "#rank-folder", tmp_path / "all")
    expect(page.locator("#rank-summary")).to_have_text("9 images")
    assert page.locator("#rank-cards .name").first.get_attribute("title") == "all/a/b/ring-0.png"
    choose(page, "#rank-more-folder", tmp_path / "all")  # again: they are there already
    expect(page.locator("#rank-summary")).to_have_text("9 images")
    page.click("#rank-clear")
    drop_really(page, [tmp_path / "all"])
    expect(page.locator("#rank-summary")).to_have_text("9 images")
    assert page.locator("#rank-cards .name").first.get_attribute("title") == "all/a/b/ring-0.png"


def test_only_what_has_no_reward_yet_is_scored(page: Page, images: list[Path], scorer: ImageRewardScorer) -> None:
    gate = Gate(scorer)
    gate.open()
    rank(page, images[:3])
    choose(page, "#rank-more", images[2:5])
    expect(page.locator("#rank-summary")).to_contain_text("5 images, best first")
    assert sum(gate.sizes) == 5
    page.click("#submit")
    expect(page.locator("#notice")).to_have_text("All images are ranked.")
    page.get_by_label("Prompt", exact=True).fill("something else")
    expect(page.locator("#submit")).to_have_text("Rank 5 images")
    page.click("#submit")
    expect(page.locator("#rank-summary")).to_contain_text("for “something else”")
    expect(page.locator("#rank-summary")).to_contain_text("5 images, best first")
    assert sum(gate.sizes) == 10


def test_progress_is_live_and_can_be_cancelled(page: Page, images: list[Path], scorer: ImageRewardScorer) -> None:
    gate = Gate(scorer)
    sizes: list[int] = []
    page.on("request", lambda request: sizes.append(len(request.post_data_buffer or b"")) if request.url.endswith("/v1/score") else None)
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    choose(page, "#rank-files", images)
    gate.wait()
    expect(page.locator("#rank-progress-text")).to_have_text("0 of 12 images")
    expect(page.get_by_role("progressbar", name="Images ranked")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#rank-running")).to_be_hidden()
    expect(page.locator("#submit")).to_have_text("Rank 12 images")
    gate.open()
    page.click("#submit")
    expect(page.locator("#rank-summary")).to_contain_text("12 images, best first")
    expect(page.locator("#live")).to_have_text("12 of 12 ranked")
    assert len(sizes) > 4  # small ones
    page.keyboard.press("Escape")  # nothing runs
    expect(page.locator("#rank-summary")).to_contain_text("12 images, best first")


def test_an_image_that_cannot_be_read_fails_alone(page: Page, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(images[0].read_bytes()[:60])
    (tmp_path / "text.png").write_text("no image")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    choose(page, "#rank-files", [*images[:4], tmp_path / "broken.png", tmp_path / "text.png"])
    expect(page.locator("#rank-summary")).to_have_text(f"4 images, best first, for “{PROMPT}”, 2 cannot be ranked")
    wrong = page.locator("#rank-cards .wrong")
    assert sorted(wrong.locator(".name").all_inner_texts()) == ["broken.png", "text.png"]
    assert all(text.startswith("It ") for text in wrong.locator(".words").all_inner_texts())
    assert names(page)[4:] == ["broken.png", "text.png"]


def test_taken_away(page: Page, images: list[Path], scorer: ImageRewardScorer) -> None:
    rank(page, images)
    ranking = scorer.rank(PROMPT, [str(image) for image in images])
    best = [images[index] for index in ranking.order]
    page.locator("#rank-cards .card").nth(2).hover()
    page.get_by_role("button", name=f"Keep {best[2].name}").click()
    page.click("#rank-copy")
    expect(page.locator("#notice")).to_have_text("12 lines copied.")
    copied = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert [line.split("\t")[2] for line in copied] == [path.name for path in best]

    rows = list(csv.DictReader(io.StringIO(downloaded(page, "#rank-csv").decode())))
    assert [row["image"] for row in rows] == [path.name for path in best]
    assert [float(row["reward"]) for row in rows] == pytest.approx(sorted(ranking.rewards, reverse=True), abs=1e-5)
    assert [row["rank"] for row in rows] == [str(number) for number in range(1, 13)]
    assert [row["kept"] for row in rows] == ["", "", "yes"] + [""] * 9
    assert {row["prompt"] for row in rows} == {PROMPT}

    page.select_option("#rank-which", "3")
    with zipfile.ZipFile(io.BytesIO(downloaded(page, "#rank-zip"))) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == [f"{number}_{path.name}" for number, path in enumerate(best[:3], start=1)]
        assert [archive.read(name) for name in archive.namelist()] == [path.read_bytes() for path in best[:3]]
    page.select_option("#rank-which", "kept")
    with zipfile.ZipFile(io.BytesIO(downloaded(page, "#rank-zip"))) as archive:
        assert archive.namelist() == [f"3_{best[2].name}"]
    page.get_by_label("Kept only").check()
    assert names(page) == [best[2].name]


def test_two_models(browser: Browser, images: list[Path]) -> None:
    first, second = tiny(ImageRewardScorer), tiny(ImageRewardScorer, seed=8)
    second.name = "other"
    with serving(create_app([first, second])) as url, opened(browser, url) as page:
        rank(page, images)
        assert names(page) == [images[n].name for n in first.rank(PROMPT, [str(image) for image in images]).order]
        page.get_by_role("combobox", name="Model", exact=True).select_option("other")
        page.click("#submit")
        expect(page.locator("#rank-summary")).to_contain_text("as other ranks them")
        expect(page.locator("#rank-summary")).to_contain_text("12 images, best first")
        assert names(page) == [images[n].name for n in second.rank(PROMPT, [str(image) for image in images]).order]


def test_thousands_of_images_are_few_elements(page: Page, images: list[Path]) -> None:
    content = images[0].read_bytes()
    page.evaluate(
        """async ([content]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
            for (let n = 0; n < 3000; n++) transfer.items.add(new File([bytes], `${n}.png`, { type: "image/png" }));
            const options = { dataTransfer: transfer, bubbles: true, cancelable: true };
            document.querySelector("main").dispatchEvent(new DragEvent("drop", options));
        }""",
        [base64.b64encode(content).decode()],
    )
    expect(page.locator("#rank-summary")).to_have_text("3,000 images")
    assert page.locator("#rank-cards li").count() < 60
    page.locator("#rank-cards .open").first.focus()
    page.keyboard.press("End")
    expect(page.locator("#rank-cards .open:focus")).to_have_attribute("aria-label", "2999.png. Not ranked yet")
    assert page.locator("#rank-cards li").count() < 60


# --- what comes from others is text ---


def test_markup_is_shown_as_text(page: Page, images: list[Path], scorer: ImageRewardScorer) -> None:
    name = "<b onclick=alert(1)>'; DROP TABLE--.png"
    page.get_by_label("Prompt", exact=True).fill(HOSTILE)
    hand_over(page, {name: images[0].read_bytes(), "=1+1.png": images[1].read_bytes()})
    expect(page.locator("#rank-summary")).to_have_text(f"2 images, best first, for “{HOSTILE}”")
    expect(page.locator("#notice")).to_contain_text("are not read: the model reads 35")
    assert set(names(page)) == {name, "=1+1.png"}
    page.locator("#rank-cards .open").first.click()
    expect(page.locator("#viewer .text")).to_have_text(HOSTILE)
    page.keyboard.press("Escape")
    rows = list(csv.DictReader(io.StringIO(downloaded(page, "#rank-csv").decode())))
    assert {row["prompt"] for row in rows} == {HOSTILE}
    assert {row["image"] for row in rows} == {name, "=1+1.png"}
    with zipfile.ZipFile(io.BytesIO(downloaded(page, "#rank-zip"))) as archive:
        assert {member.split("_", 1)[1] for member in archive.namelist()} == {"_b onclick=alert(1)_'; DROP TABLE--.png", "=1+1.png"}
    assert page.title() == "image-reward"
    assert page.locator("main b, main script").count() == 0
    with pytest.warns(LongPromptWarning):
        expected = scorer.score(HOSTILE, images[0].read_bytes())
    assert float(next(row["reward"] for row in rows if row["image"] == name)) == pytest.approx(expected, abs=1e-5)


# --- compare ---


def test_compared_as_the_scorer_compares(page: Page, images: list[Path], scorer: ImageRewardScorer) -> None:
    page.get_by_role("tab", name="Compare").click()
    page.click("#submit")
    expect(page.get_by_role("alert").first).to_have_text(re.compile("Two images are compared"))
    choose(page, "#compare-a", images[0])
    hand_over(page, {"other.png": images[1].read_bytes()}, where='#compare .slot[data-side="b"]')
    page.click("#submit")
    expect(page.get_by_role("alert").first).to_have_text(re.compile("Type the prompt"))
    page.keyboard.type(PROMPT)  # it has the focus
    page.keyboard.press("Enter")
    preference = scorer.compare(PROMPT, str(images[0]), str(images[1]))
    better, share = max(("A", preference.a_better), ("B", preference.b_better), key=lambda pair: pair[1])
    expect(page.locator("#compare-verdict .answer")).to_have_text(
        f"People would prefer {better}, with a probability of {100 * share:.1f} %."
    )
    rewards = [float(text.replace("−", "-")) for text in page.locator("#compare .reward").all_inner_texts()]
    assert rewards == pytest.approx(preference.rewards, abs=1e-3)
    hand_over(page, {"image.png": images[2].read_bytes()}, "paste")  # replaces A, and is compared
    preference = scorer.compare(PROMPT, str(images[2]), str(images[1]))
    expect(page.locator("#compare-verdict .legend .a")).to_have_text(f"A is better {100 * preference.a_better:.1f} %")
    expect(page.locator("#compare-verdict .legend .tie")).to_be_hidden()


# --- blind A/B ---


def start_blind(page: Page, images: list[Path]) -> None:
    page.get_by_role("tab", name="Blind A/B").click()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    choose(page, "#blind-files", images)
    expect(page.locator("#blind-round")).to_be_visible()


def test_scores_and_names_are_hidden_until_the_choice(page: Page, images: list[Path]) -> None:
    start_blind(page, images[:4])
    page.wait_for_load_state("networkidle")  # the answers of the model are there
    for _ in range(3):
        content = page.locator("#blind").inner_html()
        assert "ring-" not in content
        assert not re.search(r"[+−]\d\.\d", content)
        page.locator("#blind-choices button").first.click()
        expect(page.locator("#blind-round .reward").first).to_have_text(re.compile(r"[+−]\d\.\d{3}"))
        expect(page.locator("#blind-round .name").first).to_have_text(re.compile("ring-"))
        page.click("#blind-next")


def test_every_pair_once_on_random_sides_and_exported(page: Page, images: list[Path], scorer: ImageRewardScorer, tmp_path: Path) -> None:
    start_blind(page, images[:4])
    expected = []
    for number, key in enumerate(["ArrowLeft", "ArrowRight", "ArrowDown", "ArrowLeft", "ArrowRight", "ArrowLeft"], start=1):
        expect(page.locator("#blind-summary")).to_contain_text(f"Pair {number} of 6")
        page.keyboard.press(key)
        expect(page.locator("#blind-round .name").first).not_to_be_empty()
        pair = page.locator("#blind-round .name").all_inner_texts()
        expected.append((pair, {"ArrowLeft": (1, 2), "ArrowRight": (2, 1), "ArrowDown": (1, 1)}[key]))
        page.keyboard.press("Enter")
    expect(page.locator("#notice")).to_have_text("That was every pair.")
    assert len({frozenset(pair) for pair, _ in expected}) == 6

    (tmp_path / "lines").mkdir()
    lines = tmp_path / "lines" / "comparisons.jsonl"
    lines.write_bytes(downloaded(page, "#blind-jsonl"))
    (tmp_path / "zip").mkdir()
    with zipfile.ZipFile(io.BytesIO(downloaded(page, "#blind-zip"))) as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "zip")
    read = comparisons.read(lines, images=images[0].parent)
    for rankings in (read, comparisons.read(tmp_path / "zip" / "comparisons.jsonl")):
        assert [comparison.prompt for comparison in rankings] == [PROMPT] * 6
        shown = [([Path(str(image)).name.split("_")[-1] for image in item.images], tuple(item.ranks)) for item in rankings]
        assert shown == expected
        assert len({comparison.id for comparison in rankings}) == 6
    evaluation = evaluate({"tiny": scorer}, comparisons.read(tmp_path / "zip" / "comparisons.jsonl"))
    assert evaluation.scorers["tiny"].metrics["pairwise_accuracy_pooled"].value >= 0
    assert json.loads(lines.read_text().splitlines()[0]).keys() == {"id", "prompt", "images", "ranks"}


def test_sides_are_random(page: Page, images: list[Path]) -> None:
    start_blind(page, images[:2])
    left = set()
    while len(left) < 2:  # with a fair coin it ends
        page.keyboard.press("ArrowDown")
        expect(page.locator("#blind-round .name").first).not_to_be_empty()
        left.add(page.locator("#blind-round .name").first.inner_text())
        page.click("#submit")


def test_a_choice_is_undone_and_a_pair_skipped(page: Page, images: list[Path]) -> None:
    start_blind(page, images[:3])
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#blind-tally")).to_contain_text("1 choice")
    page.click("#blind-undo")
    expect(page.locator("#blind-actions")).to_be_hidden()
    expect(page.locator("#blind-choices")).to_be_visible()
    assert "ring-" not in page.locator("#blind").inner_html()
    page.click("#blind-skip")
    expect(page.locator("#blind-summary")).to_contain_text("Pair 2 of 3")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#blind-tally")).to_contain_text("1 choice")
    expect(page.locator("#blind-round .name").first).not_to_be_empty()
    second = page.locator("#blind-round .name").all_inner_texts()
    page.keyboard.press("Enter")
    expect(page.locator("#blind-summary")).to_contain_text("Pair 3 of 3")
    page.click("#blind-undo")  # goes back
    expect(page.locator("#blind-summary")).to_contain_text("Pair 2 of 3")
    for number in (2, 3):
        expect(page.locator("#blind-summary")).to_contain_text(f"Pair {number} of 3")
        page.keyboard.press("ArrowLeft")
        expect(page.locator("#blind-round .name").first).not_to_be_empty()
        assert (page.locator("#blind-round .name").all_inner_texts() == second) is (number == 2)
        page.keyboard.press("Enter")
    expect(page.locator("#blind-tally")).to_contain_text("2 choices")


def test_choices_are_not_lost_by_leaving(page: Page, images: list[Path]) -> None:
    start_blind(page, images[:3])
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#blind-tally")).to_contain_text("1 choice")
    with page.expect_event("dialog") as dialog:
        page.close(run_before_unload=True)
    assert dialog.value.type == "beforeunload"
    expect(page.locator("#blind-tally")).to_contain_text("1 choice")
    downloaded(page, "#blind-jsonl")
    with page.expect_event("close"):
        page.close(run_before_unload=True)


def test_images_of_rank_are_used_and_unreadable_ones_left_out(page: Page, images: list[Path], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(images[0].read_bytes()[:60])
    choose(page, "#rank-files", [*images[:3], tmp_path / "broken.png"])
    page.get_by_role("tab", name="Blind A/B").click()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    page.get_by_role("button", name="Use the 4 images of Rank").click()
    go_on = "() => { const next = document.querySelector('#blind-next'); if (next.checkVisibility()) next.click(); }"

    def is_over() -> bool:
        page.keyboard.press("ArrowLeft")
        page.evaluate(go_on)  # at once, for a pair with the broken image goes by itself, chosen or not
        return page.locator("#blind-round").is_hidden()

    until(is_over)
    expect(page.locator("#blind-round")).to_be_hidden()
    rows = [json.loads(line) for line in downloaded(page, "#blind-jsonl").splitlines()]
    assert len(rows) == 3
    assert "broken.png" not in {name for row in rows for name in row["images"]}


def test_two_images_of_one_name_need_the_zip(page: Page, images: list[Path]) -> None:
    page.get_by_role("tab", name="Blind A/B").click()
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    hand_over(page, {"same.png": images[0].read_bytes()})
    hand_over(page, {"same.png": images[1].read_bytes()})
    page.keyboard.press("ArrowLeft")
    page.click("#blind-jsonl")
    expect(page.locator("#problem")).to_contain_text("Two images are called same.png")
    with zipfile.ZipFile(io.BytesIO(downloaded(page, "#blind-zip"))) as archive:
        assert len(set(archive.namelist())) == 3


# --- browse ---


def scored_rows(num: int) -> bytes:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["id", "prompt", "image", "reward", "error"])
    for n in range(num):
        wrong = n % 100 == 99
        prompt = f"<i>prompt</i> {n}, with “quotes”, commas\nand a line"
        writer.writerow(
            [n, prompt, f"images/{n % 12}.png", "" if wrong else (n * 7919 % num) / num, "ImageReadError: gone" if wrong else ""]
        )
    return out.getvalue().encode()


@pytest.fixture
def browsing(page: Page) -> Page:
    page.get_by_role("tab", name="Browse").click()
    return page


def count(page: Page, text: str) -> None:
    expect(page.locator("#browse-count")).to_have_text(text)


def first_rewards(page: Page, num: int = 3) -> list[float]:
    return [float(text.replace("−", "-")) for text in page.locator("#browse-rows .reward").all_inner_texts()[:num]]


def test_ten_thousand_rows(browsing: Page) -> None:
    page = browsing
    hand_over(page, {"rewards.csv": scored_rows(10_000)})
    count(page, "9,900 rows shown")
    expect(page.locator("#browse-summary")).to_have_text("10,000 rows of rewards.csv")
    most = 60  # elements, however many rows
    assert page.locator("#browse-rows li").count() < most
    expect(page.locator("#browse-rows li").first).to_have_attribute("aria-setsize", "9900")
    rewards = sorted(((n * 7919 % 10_000) / 10_000 for n in range(10_000) if n % 100 != 99), reverse=True)
    assert first_rewards(page) == pytest.approx(rewards[:3], abs=1e-3)
    for share in (0.3, 0.7, 1.0):
        page.evaluate("(share) => scrollTo(0, share * document.documentElement.scrollHeight)", share)
        expect(page.locator("#browse-rows li").last).to_be_attached()
        assert page.locator("#browse-rows li").count() < most
    page.locator("#browse-rows .open").first.focus()
    page.keyboard.press("End")
    expect(page.locator("#browse-rows li:has(:focus)")).to_have_attribute("aria-posinset", "9900")
    expect(page.locator("#browse-rows li:has(:focus) .reward")).to_have_text(f"+{rewards[-1]:.3f}")
    page.keyboard.press("ArrowUp")
    expect(page.locator("#browse-rows li:has(:focus)")).to_have_attribute("aria-posinset", "9899")

    page.get_by_label("Find in prompts and names").fill("PROMPT</I> 123,")
    count(page, "1 row shown")
    expect(page.locator("#browse-rows .text")).to_have_text("<i>prompt</i> 123, with “quotes”, commas\nand a line")
    page.get_by_label("Find in prompts and names").fill("")
    page.get_by_label("Rows without reward, too").check()
    count(page, "10,000 rows shown")
    page.get_by_label("Rows without reward, too").uncheck()
    page.get_by_role("combobox", name="Order", exact=True).select_option("lowest reward first")
    expect(page.locator("#browse-rows .reward").first).to_have_text(f"+{rewards[-1]:.3f}")
    page.get_by_role("slider", name="Highest reward").focus()
    for _ in range(10):
        page.keyboard.press("PageDown")
    expect(page.locator("#browse-count")).not_to_have_text("9,900 rows shown")
    high = float(page.locator("#browse-high-text").inner_text())
    assert high < 0.5
    shown = list(csv.DictReader(io.StringIO(downloaded(page, "#browse-csv").decode(), newline="")))
    assert len(shown) == pytest.approx(sum(reward <= high for reward in rewards), abs=20)
    assert shown[0]["prompt"].startswith("<i>prompt</i>")
    assert [float(row["reward"]) for row in shown] == sorted(float(row["reward"]) for row in shown)


def test_rows_with_their_images(browsing: Page, images: list[Path], tmp_path: Path) -> None:
    page = browsing
    (tmp_path / "job" / "images").mkdir(parents=True)
    for n, image in enumerate(images):
        shutil.copy(image, tmp_path / "job" / "images" / f"{n}.png")
    (tmp_path / "job" / "rewards.csv").write_bytes(scored_rows(30))
    (tmp_path / "job" / "manifest.json").write_text("{}")
    choose(page, "#browse-folder", tmp_path / "job")
    count(page, "30 rows shown")
    assert page.locator("#browse-layout").input_value() == "cards"
    expect(page.locator("#browse-rows img").first).to_have_js_property("complete", True)
    until(lambda: page.locator("#browse-rows img").first.evaluate("(image) => image.naturalWidth") > 0)
    page.locator("#browse-rows .open").first.click()
    expect(page.locator("#viewer")).to_be_visible()
    first = page.locator("#viewer-title").inner_text()
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer-title")).not_to_have_text(first)
    page.keyboard.press("Escape")
    expect(page.locator("#browse-rows li:has(:focus)")).to_have_attribute("aria-posinset", "2")
    page.get_by_role("combobox", name="Show as", exact=True).select_option("list")
    expect(page.locator("#browse-rows.rows")).to_be_visible()


def test_images_may_come_later(browsing: Page, images: list[Path], tmp_path: Path) -> None:
    page = browsing
    for n, image in enumerate(images):
        shutil.copy(image, tmp_path / f"{n}.png")
    hand_over(page, {"rows.csv": scored_rows(12)})
    count(page, "12 rows shown")
    expect(page.locator("#browse-rows .none").first).to_have_text("no image")
    choose(page, "#browse-pictures", tmp_path)
    until(lambda: page.locator("#browse-rows img").first.evaluate("(image) => image.naturalWidth") > 0)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_forms_of_rows(browsing: Page, kind: str) -> None:
    page = browsing
    rows = [
        {"prompt": HOSTILE, "image": "a\\b.png", "reward:x": 1.5, "reward:y": -1},
        {"prompt": "b", "image": "b.png", "reward:x": None, "reward:y": 2},
    ]
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], delimiter="\t" if kind == "tsv" else ",")
    writer.writeheader()
    writer.writerows(rows)
    content = {"jsonl": "\ufeff" + "\n\n".join(map(json.dumps, rows)) + "\n", "json": json.dumps(rows, indent=1)}.get(kind, out.getvalue())
    hand_over(page, {f"rows.{kind}": content.encode()})
    count(page, "1 row shown")
    expect(page.locator("#browse-rows .text")).to_have_text(HOSTILE)
    page.get_by_role("combobox", name="Reward", exact=True).select_option("y")
    count(page, "2 rows shown")
    assert first_rewards(page) == [2.0, -1.0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "a.csv is empty."),
        ("a.csv", b"prompt,image\na,b\n", "has no column “reward”"),
        ("a.csv", b"prompt,reward\na,1,2\n", "row 1: it has 3 cells, and the header has 2"),
        ("a.csv", b'prompt,reward\n"a,1\n', "a quote is not closed"),
        ("a.csv", b"prompt,reward\n", "holds no rows"),
        ("a.csv", b"prompt,reward\n\xff\xfe,1\n", "is not text in UTF-8"),
        ("a.jsonl", b'{"reward": 1}\n{"reward": \n', "line 2: it is not JSON"),
        ("a.json", b"[1, 2]", "it is not an object"),
        ("a.json", b'[{"reward": 1}', "is not JSON"),
        ("a.csv", b"PAR1", "do not read Parquet"),
        ("part-000000.parquet", b"PAR1", "do not read Parquet"),
        ("a.png", b"", "with the rewards first"),
        ("a.exe", b"", "There is no CSV"),
    ],
)
def test_rows_that_cannot_be_read(browsing: Page, name: str, content: bytes, message: str) -> None:
    hand_over(browsing, {name: content})
    expect(browsing.locator("#problem")).to_contain_text(message)
    browsing.get_by_role("button", name="Dismiss the message").click()
    expect(browsing.locator("#problem")).to_be_hidden()


def test_a_job_folder_of_the_service(browser: Browser, scorer: ImageRewardScorer, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    drawn = stubs.draw(tmp_path / "in", 10)
    rows = [{"id": n, "prompt": f"{'a ' * (n % 4)}<b>cat</b>", "image": drawn[n % 10]} for n in range(500)]
    rows[7]["image"] = "none.png"
    (tmp_path / "in" / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stubs.score_here(tmp_path / "in" / "rows.jsonl", tmp_path / "out", lambda _: [stubs.Brightness(weight=-1.0)], shard_size=200)
    pages = ScoredPages(tmp_path / "out")
    with serving(create_app([scorer], Settings(token=TOKEN), pages)) as url, opened(browser, f"{url}/#browse") as page:
        enter(page, TOKEN)
        page.get_by_role("button", name="Open the folder of this service").click()
        count(page, "499 rows shown")
        until(lambda: page.locator("#browse-rows img").first.evaluate("(image) => image.naturalWidth") > 0)  # sent with the token
        _, best = pages.page("reward", limit=500)
        assert first_rewards(page, 8) == pytest.approx([row["reward"] for row in best[:8]], abs=1e-3)
        page.locator("#browse-rows .open").first.focus()
        page.keyboard.press("End")  # in a page of rows that has not been fetched
        expect(page.locator("#browse-rows .reward").last).to_have_text(f"+{best[-1]['reward']:.3f}")
        page.get_by_label("Rows without reward, too").check()
        count(page, "500 rows shown")
        page.get_by_label("Find in prompts and names").fill("none.png")
        count(page, "1 row shown")
        expect(page.locator("#browse-rows .reward")).to_have_text("no reward")
        page.get_by_label("Find in prompts and names").fill("a a a <B>")
        count(page, "125 rows shown")
        shown = list(csv.DictReader(io.StringIO(downloaded(page, "#browse-csv").decode(), newline="")))
        assert {row["prompt"] for row in shown} == {"a a a <b>cat</b>"}
        assert len(shown) == 125


# --- the token, and errors of the service ---


def enter(page: Page, token: str) -> None:
    page.get_by_label("Token", exact=True).fill(token)
    page.get_by_role("button", name="Continue").click()


def test_the_token_is_asked_for_and_kept(browser: Browser, scorer: ImageRewardScorer, images: list[Path]) -> None:
    with serving(create_app([scorer], Settings(token=TOKEN))) as url, opened(browser, url) as page:
        expect(page.locator("#token")).to_be_visible()
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
        expect(page.locator("#token")).to_be_visible()
        enter(page, "a-wrong-token-of-length")
        expect(page.locator("#token-wrong")).to_have_text("That is not the token of this service.")
        enter(page, TOKEN)
        expect(page.locator("#token")).to_be_hidden()
        rank(page, images[:3])
        page.reload()
        rank(page, images[:3])
        expect(page.locator("#token")).to_be_hidden()
        assert page.evaluate("[localStorage.length, document.cookie, sessionStorage.token]") == [0, "", TOKEN]


def test_a_refusal_is_shown(browser: Browser, scorer: ImageRewardScorer, images: list[Path]) -> None:
    limits = Limits(max_prompt=20)
    with serving(create_app([scorer], Settings(limits=limits))) as url, opened(browser, url) as page:
        page.get_by_label("Prompt", exact=True).fill("a prompt that is longer than that")
        choose(page, "#rank-files", images[:2])
        expect(page.locator("#problem")).to_contain_text("Prompt: it has 33 characters, more than the limit of 20; shorten it.")
        expect(page.locator("#rank-running")).to_be_hidden()
        page.get_by_label("Prompt", exact=True).fill("a shorter one")
        page.get_by_label("Prompt", exact=True).press("Enter")
        expect(page.locator("#rank-summary")).to_contain_text("2 images, best first")
        expect(page.locator("#problem")).to_be_hidden()


def test_large_requests_are_made_smaller(browser: Browser, scorer: ImageRewardScorer, images: list[Path], tmp_path: Path) -> None:
    """No request is beyond the limits, and an image that alone is fails alone."""
    (tmp_path / "large.png").write_bytes(images[0].read_bytes() + bytes(200_000))
    limits = Limits(max_body=150_000, max_images=2)
    with serving(create_app([scorer], Settings(limits=limits))) as url, opened(browser, url) as page:
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        choose(page, "#rank-files", [*images, tmp_path / "large.png"])
        expect(page.locator("#rank-summary")).to_contain_text("12 images, best first, for “a painting of rings”, 1 cannot be ranked")
        expect(page.locator("#rank-cards .wrong .words")).to_contain_text("150,000 bytes")


def test_a_busy_service_is_waited_for(page: Page, images: list[Path]) -> None:
    answers = iter([429, 429])

    def answer(route: Any) -> None:
        if next(answers, None) is None:
            route.continue_()
        else:
            route.fulfill(status=429, headers={"retry-after": "1"}, json={"error": {"field": "request", "message": "m", "remedy": "r"}})

    page.route("**/v1/score", answer)
    rank(page, images[:3])
    expect(page.locator("#problem")).to_be_hidden()


def test_a_service_that_is_gone(browser: Browser, scorer: ImageRewardScorer, images: list[Path]) -> None:
    with serving(create_app([scorer])) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        page.get_by_label("Prompt", exact=True).fill(PROMPT)
        expect(page.locator("#model option")).to_have_count(1)
    choose(page, "#rank-files", images[:2])
    expect(page.locator("#problem")).to_contain_text("The service does not answer; see whether it still runs, and try again.")
    expect(page.locator("#submit")).to_have_text("Rank 2 images")
    context.close()


# --- keys alone ---


def tab_to(page: Page, selector: str, most: int = 40) -> None:
    for _ in range(most):
        if page.locator(selector).evaluate_all("(elements) => elements.includes(document.activeElement)"):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{selector} is not reached with Tab")


def test_with_keys_alone(page: Page, images: list[Path]) -> None:
    page.on("filechooser", lambda _: None)  # choosers are taken from now on: later, a busy browser may have shown one before it is asked to
    tab_to(page, "#tab-rank")
    tab_to(page, "#prompt")
    page.keyboard.type(PROMPT)
    tab_to(page, "#rank-files")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([str(image) for image in images])
    expect(page.locator("#rank-summary")).to_contain_text("12 images, best first")
    order = names(page)
    tab_to(page, "#rank-cards .open")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("k")
    expect(page.get_by_role("button", name=f"Keep {order[1]}")).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    expect(page.locator("#viewer-title")).to_have_text(order[1])
    page.keyboard.press("ArrowRight")
    page.keyboard.press("k")
    page.keyboard.press("Escape")
    expect(page.locator("#rank-cards li:has(:focus)")).to_have_attribute("aria-posinset", "3")
    page.keyboard.press("Tab")  # the heart of the same image
    expect(page.get_by_role("button", name=f"Keep {order[2]}")).to_be_focused()
    page.keyboard.press("Tab")  # past all other images
    expect(page.locator("#rank-which")).to_be_focused()
    page.keyboard.press("End")
    expect(page.locator("#rank-which")).to_have_value("kept")
    tab_to(page, "#rank-zip")
    with page.expect_download() as download:
        page.keyboard.press("Space")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.namelist() == [f"2_{order[1]}", f"3_{order[2]}"]

    page.locator("#tab-rank").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Blind A/B")).to_be_focused()
    tab_to(page, "#blind-use")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#blind-reveal .answer")).to_contain_text("You chose the right one; the model")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#blind-tally")).to_contain_text("2 choices")


# --- phones, and people who do not see the page ---


def everything(page: Page, images: list[Path], check: Callable[[str], None]) -> None:
    """Show each state of the page, and check it."""
    check("empty")
    rank(page, images)
    page.locator("#rank-cards .open").first.press("k")
    check("ranked")
    page.locator("#rank-cards .open").first.click()
    check("viewer")
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Compare").click()
    check("nothing to compare")
    choose(page, "#compare-a", images[0])
    choose(page, "#compare-b", images[1])
    expect(page.locator("#compare-verdict")).to_be_visible()
    check("compared")
    page.get_by_role("tab", name="Blind A/B").click()
    check("blind, empty")
    page.click("#blind-use")
    check("blind")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#blind-round .name").first).not_to_be_empty()
    check("blind, chosen")
    page.get_by_role("tab", name="Browse").click()
    check("browse, empty")
    hand_over(page, {"a-file-with-a-name-that-is-rather-long-for-a-telephone.csv": scored_rows(300)})
    expect(page.locator("#browse-count")).to_contain_text("shown")
    check("rows")
    page.get_by_role("combobox", name="Show as", exact=True).select_option("pictures")
    check("cards")
    hand_over(page, {"wrong.csv": b""})
    expect(page.locator("#problem")).to_be_visible()
    check("problem")
    page.get_by_role("button", name="Keys").click()
    check("keys")


def test_on_a_phone(browser: Browser, service: str, images: list[Path]) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    with opened(browser, service, **phone) as page:

        def check(state: str) -> None:
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, state
            small = page.evaluate(
                """() => [...document.querySelectorAll("button, select, textarea, label.button, input:not([type=file], [type=range])")]
                    .filter((element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true }))
                    .map((element) => [element.id || element.className || element.textContent, element.getBoundingClientRect()])
                    .filter(([, box]) => box.width && (box.height < 24 || box.width < 24) && box.height !== 18.4)
                    .map(([name, box]) => `${name}: ${box.width} x ${box.height}`)"""
            )
            assert [line for line in small if "check" not in line and not line.startswith(("rank-only-kept", "browse-errors"))] == [], state

        everything(page, images, check)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_accessibility(browser: Browser, service: str, images: list[Path], width: int, scheme: str) -> None:
    axe = Axe()
    options = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme, "reduced_motion": "reduce", "bypass_csp": True}
    with opened(browser, service, **options) as page:

        def check(state: str) -> None:
            results = axe.run(page)
            serious = [item for item in results.response["violations"] if item["impact"] in ("serious", "critical")]
            assert not serious, f"{state}: {json.dumps(serious, indent=1)[:3000]}"

        everything(page, images, check)


def test_names_for_those_who_hear_the_page(page: Page, images: list[Path], scorer: ImageRewardScorer) -> None:
    rank(page, images[:3])
    ranking = scorer.rank(PROMPT, [str(image) for image in images[:3]])
    best = images[ranking.order[0]].name
    reward = f"{max(ranking.rewards):+.3f}".replace("-", "−")
    expect(page.get_by_role("button", name=f"{best}. Rank 1, reward {reward}, better than")).to_be_visible()
    expect(page.get_by_role("list", name="Images, best first").get_by_role("listitem")).to_have_count(3)
    expect(page.get_by_role("tabpanel", name="Rank")).to_be_visible()
    assert page.locator("#live").get_attribute("aria-live") == "polite"
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea")]
            .filter((element) => element.checkVisibility() && !(element.ariaLabel || element.textContent.trim() || element.labels?.length))
            .map((element) => element.outerHTML)"""
    )
    assert unnamed == []
