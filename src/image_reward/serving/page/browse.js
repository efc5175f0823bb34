// Browse: scored rows.

import { $, $$, ShownError, attempt, baseName, clone, counted, notice, on, setOptions, showProblem, signed, svg } from "./dom.js";
import { csv, forget, isImage, pathOf, save, suffix } from "./files.js";
import { Grid, cardShape, showPicture, viewer } from "./grid.js";
import { PAGE, PARQUET, ReadRows, ServedRows, readRows, text } from "./rows.js";
import { call } from "./service.js";

export const browse = {
  rows: undefined,

  label: () => "",
  submit() {},
  async add(files) {
    const pictures = [...files].filter(isImage);
    const others = [...files].filter(
      (file) => [".csv", ".tsv", ".jsonl", ".json", ".txt", ""].includes(suffix(pathOf(file))) && !pictures.includes(file),
    );
    const file =
      others.find((own) => baseName(pathOf(own)).startsWith("rewards.")) ??
      others
        .filter((own) => !["manifest.json", "summary.json", "tries.json"].includes(baseName(pathOf(own))))
        .sort((one, other) => pathOf(one).split("/").length - pathOf(other).split("/").length)[0];
    await attempt(async () => {
      if (file) {
        if (file.size > 1e6) notice(`Reading ${pathOf(file)} …`);
        const read = new ReadRows(file, await readRows(file));
        notice("");
        showProblem("");
        read.addPictures(pictures);
        this.open(read);
      } else if (pictures.length && this.rows instanceof ReadRows) {
        this.rows.addPictures(pictures);
        this.open(this.rows);
      } else if ([...files].some((own) => suffix(pathOf(own)) === ".parquet")) {
        throw new ShownError(PARQUET);
      } else
        throw new ShownError(
          pictures.length
            ? "Drop the CSV, JSONL or JSON file with the rewards first, or together with its images."
            : "There is no CSV, JSONL or JSON file among what was dropped.",
        );
    });
  },
  open(rows) {
    this.rows = rows;
    browseGrid.reset();
    setOptions(
      $("#browse-column"),
      rows.rewards.map((name) => [name, name.replace(/^reward:/, "")]),
    );
    $("#browse-column-label").hidden = rows.rewards.length < 2;
    $("#browse-pictures").parentElement.hidden = rows.hasPictures;
    $("#browse-layout").value = rows.hasPictures ? "cards" : "rows";
    $("#browse-text").value = "";
    $("#browse [data-empty]").hidden = true;
    $("#browse [data-full]").hidden = false;
    this.setColumn();
    this.setLayout();
  },
  setColumn() {
    this.histogram = this.rows.histogram($("#browse-column").value);
    const { low, high, counts } = this.histogram;
    const isEmpty = !Number.isFinite(low);
    $(".filters .range").hidden = isEmpty;
    if (isEmpty) $("#browse-errors").checked = true;
    for (const [name, value] of [
      ["low", low],
      ["high", high],
    ]) {
      const slider = $(`#browse-${name}`);
      Object.assign(slider, { min: 0, max: 1000, step: 1, value: name === "low" ? 0 : 1000 });
      slider.setAttribute("aria-valuetext", isEmpty ? "" : signed(value));
    }
    const most = Math.max(...counts, 1);
    const bars = counts.map((count, number) =>
      svg("rect", { x: number * 20 + 1, width: 18, y: 80 - 76 * Math.sqrt(count / most), height: 76 * Math.sqrt(count / most), rx: 2 }),
    );
    $("#browse-histogram").replaceChildren(...bars);
    this.filter();
  },
  bounds() {
    const { low, high } = this.histogram;
    const at = (name) => low + ((high - low) * Number($(`#browse-${name}`).value)) / 1000;
    return { low: at("low"), high: at("high") };
  },
  async filter() {
    const rows = this.rows;
    if (!rows) return;
    const { low, high } = this.bounds();
    for (const [name, value] of [
      ["low", low],
      ["high", high],
    ]) {
      $(`#browse-${name}-text`).textContent = Number.isFinite(value) ? signed(value) : "";
      $(`#browse-${name}`).setAttribute("aria-valuetext", $(`#browse-${name}-text`).textContent);
    }
    const [first, last] = ["low", "high"].map((name) => (48 * Number($(`#browse-${name}`).value)) / 1000);
    $$("#browse-histogram rect").forEach((bar, number) => bar.classList.toggle("out", number + 0.5 < first || number + 0.5 > last));
    const [by, direction] = $("#browse-order").value.split(" ");
    const filter = {
      low: $("#browse-low").value === "0" ? undefined : low,
      high: $("#browse-high").value === "1000" ? undefined : high,
      text: $("#browse-text").value.trim(),
      by,
      descending: direction === "descending",
      errors: $("#browse-errors").checked,
    };
    const asking = (this.asking = {});
    const found = await attempt(() => rows.find(filter));
    if (!found || this.asking !== asking) return; // a later filter has been asked for
    this.found = found;
    $("#browse-summary").textContent = `${counted(rows.numRows, "row")} of ${rows.name}`;
    browseGrid.current = 0;
    browseGrid.show(found);
    const cut = browseGrid.length < found.length ? `; the first ${browseGrid.length.toLocaleString("en")} are shown` : "";
    $("#browse-count").textContent = `${counted(found.length, "row")} shown${cut}`.replace(/ shown; the/, "; the");
  },
  setLayout() {
    const layout = $("#browse-layout").value;
    browseGrid.list.classList.toggle("cards", layout === "cards");
    browseGrid.list.classList.toggle("rows", layout === "rows");
    browseGrid.update();
  },
  clear() {
    for (const file of this.rows.pictures?.values() ?? []) if (file) forget(file);
    this.rows = this.found = undefined;
    browseGrid.show([]);
    $("#browse [data-empty]").hidden = false;
    $("#browse [data-full]").hidden = true;
    $("#browse-files").focus();
  },
  async csv() {
    const { found, rows } = this;
    const all = [];
    if (Array.isArray(found)) all.push(...found);
    else for (let page = 0; page * PAGE < found.length; page++) all.push(...(await found.page(page)));
    save(csv([rows.columns, ...all.map(({ values }) => rows.columns.map((name) => text(values[name])))]), "shown.csv");
  },
};

export const browseGrid = new Grid($("#browse-rows"), {
  shape: (width) => ($("#browse-layout").value === "cards" ? cardShape(104)(width) : { columns: 1, height: width < 600 ? 104 : 76 }),
  make: (row) => {
    const card = clone("row");
    showPicture(card, browse.rows.picture(row), "no image");
    on($(".open", card), "click", () => viewer.open(browseGrid, browseGrid.numbers.get(row), describeRow));
    return card;
  },
  fill: (card, row) => {
    const reward = row.reward === undefined ? "no reward" : signed(row.reward);
    card.classList.toggle("wrong", row.reward === undefined);
    $(".reward", card).textContent = reward;
    $(".text", card).textContent = row.error || row.prompt;
    $(".name", card).textContent = row.image;
    $(".open", card).setAttribute("aria-label", `Reward ${reward}. ${row.error || row.prompt}. ${row.image}`);
  },
});

function describeRow(row) {
  const reward = row.reward === undefined ? "no reward" : signed(row.reward);
  return { title: row.image, reward, words: row.error, text: row.prompt, url: browse.rows.picture(row, 1600) };
}

let filterTimer;
function filterSoon() {
  clearTimeout(filterTimer);
  filterTimer = setTimeout(() => browse.filter(), 120);
}
for (const name of ["low", "high"]) {
  on(`#browse-${name}`, "input", (event) => {
    const [low, high] = [$("#browse-low"), $("#browse-high")];
    if (Number(low.value) > Number(high.value)) event.target.value = (event.target === low ? high : low).value;
    filterSoon();
  });
}
on("#browse-text", "input", filterSoon);
on("#browse-order", "change", () => browse.filter());
on("#browse-errors", "change", () => browse.filter());
on("#browse-column", "change", () => browse.setColumn());
on("#browse-layout", "change", () => browse.setLayout());
on("#browse-clear", "click", () => browse.clear());
on("#browse-csv", "click", () => attempt(() => browse.csv()));
if ($("#browse-served"))
  on("#browse-served", "click", () =>
    attempt(async () => browse.open(new ServedRows(await call("page/scored"), () => browseGrid.schedule()))),
  );
