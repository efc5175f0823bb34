// Rank: the images of one prompt in order.

import { $, announce, attempt, changed, clone, counted, notice, on, setOptions, showProblem, signed, svg } from "./dom.js";
import { copy, csv, entriesOf, forget, save, urlOf } from "./files.js";
import { Grid, cardShape, showPicture, viewer } from "./grid.js";
import { hasPrompt, inWords, model, models, needPrompt, percentile, prompt, score } from "./service.js";
import { safeName, zip } from "./zip.js";

const MOST_TICKS = 500; // more could not be distinguished, and would be slow to draw

export const rank = {
  entries: [],
  ranked: [], // entries with rewards, best first
  asked: undefined, // the prompt and model that the rewards are for
  running: undefined,

  label() {
    const left = this.isCurrent() ? this.entries.filter(isOpen).length : this.entries.length;
    return left ? `Rank ${counted(left, "image")}` : "Rank";
  },
  isCurrent() {
    return this.asked && this.asked.prompt === prompt() && this.asked.model === model();
  },
  add(files) {
    const entries = entriesOf(files, this.entries);
    this.entries.push(...entries);
    this.update();
    if (entries.length) announce(`${counted(entries.length, "image")} added`);
    if (this.running) this.again = true;
    else if (entries.length && hasPrompt()) this.submit();
  },
  async submit() {
    if (!this.entries.length) return showProblem("Drop, paste or choose images first.");
    if (!needPrompt()) return undefined;
    this.running?.abort();
    await attempt(() => this.run());
    if (this.again && this.isCurrent()) {
      this.again = false;
      this.submit();
    }
    return undefined;
  },
  async run() {
    if (!this.isCurrent()) {
      this.asked = { prompt: prompt(), model: model() };
      for (const entry of this.entries) entry.reward = entry.error = undefined;
    }
    const open = this.entries.filter(isOpen);
    if (!open.length) return notice("All images are ranked.");
    showProblem("");
    const running = (this.running = new AbortController());
    let quarter = 0;
    const progress = () => {
      if (this.running !== running) return;
      const done = open.length - open.filter(isOpen).length;
      $("#rank-progress").max = open.length;
      $("#rank-progress").value = done;
      $("#rank-progress-text").textContent = `${done.toLocaleString("en")} of ${counted(open.length, "image")}`;
      if (Math.floor((4 * done) / open.length) > quarter) {
        quarter = Math.floor((4 * done) / open.length);
        announce(`${done} of ${open.length} ranked`);
      }
      this.update();
    };
    progress();
    try {
      await score(this.asked.prompt, open, running.signal, progress);
    } catch (error) {
      running.abort();
      throw error;
    } finally {
      if (this.running === running) this.running = undefined;
      this.update();
    }
    return undefined;
  },
  cancel() {
    if (!this.running) return;
    this.again = false;
    this.running.abort();
    notice("Cancelled. What is ranked stays.");
  },
  clear() {
    this.running?.abort();
    for (const { file } of this.entries) forget(file);
    Object.assign(this, { entries: [], asked: undefined });
    this.update();
    $("#rank-files").focus();
  },
  keep(entry) {
    entry.kept = !entry.kept;
    announce(`${entry.name} ${entry.kept ? "kept" : "no longer kept"}`);
    this.update();
  },
  update() {
    const { entries } = this;
    this.ranked = entries.filter(({ reward }) => reward !== undefined).sort((one, other) => other.reward - one.reward);
    const wrong = entries.filter(({ error }) => error);
    const numKept = entries.filter(({ kept }) => kept).length;
    $("#rank [data-empty]").hidden = entries.length > 0;
    $("#rank [data-full]").hidden = !entries.length;
    $("#rank-running").hidden = !this.running;
    const failed = wrong.length ? `, ${wrong.length} cannot be ranked` : "";
    const first = this.ranked.length
      ? `${counted(this.ranked.length, "image")}, best first${this.asked.prompt && `, for “${this.asked.prompt}”`}`
      : counted(entries.length, "image");
    $("#rank-summary").textContent =
      `${first}${this.ranked.length && models.length > 1 ? `, as ${this.asked.model.name} ranks them` : ""}${failed}`;
    const order = [...this.ranked, ...entries.filter(isOpen), ...wrong];
    order.forEach((entry, number) => (entry.place = number));
    rankGrid.show($("#rank-only-kept").checked ? order.filter(({ kept }) => kept) : order);
    $("#rank-actions").hidden = !this.ranked.length;
    const options = [["all", `all ${this.ranked.length}`]];
    for (const num of [3, 5, 10, 20, 50, 100]) if (num < this.ranked.length) options.push([String(num), `the best ${num}`]);
    options.push(["kept", `those kept (${numKept})`]);
    setOptions($("#rank-which"), options);
    this.drawDistribution();
    changed();
  },
  /** Above the images: where their rewards fall among those that were published for the model. */
  drawDistribution() {
    const distribution = this.asked?.model?.distribution;
    $("#rank-distribution").hidden = !distribution || !this.ranked.length;
    if ($("#rank-distribution").hidden) return;
    const { quantiles } = distribution;
    const low = Math.min(quantiles[0], this.ranked.at(-1).reward) - 0.1;
    const high = Math.max(quantiles.at(-1), this.ranked[0].reward) + 0.1;
    const x = (reward) => (1000 * (reward - low)) / (high - low);
    const width = (high - low) / 40;
    const share = (at) => percentile(distribution, at + width) - percentile(distribution, at - width);
    const shares = Array.from({ length: 101 }, (_, step) => share(low + ((high - low) * step) / 100));
    const most = Math.max(...shares);
    const points = shares.map((value, step) => `${10 * step},${(88 - (70 * value) / most).toFixed(1)}`);
    const every = Math.ceil(this.ranked.length / MOST_TICKS);
    const shown = this.ranked.filter((_, number) => number % every === 0);
    const ticks = shown.map(({ reward }, number) =>
      svg("line", { x1: x(reward), x2: x(reward), y1: number ? 60 : 44, y2: 88, class: number ? "" : "best" }),
    );
    $("#rank-distribution svg").replaceChildren(svg("path", { d: `M0,88L${points.join("L")}L1000,88Z` }), ...ticks.reverse());
    const best = inWords(distribution, this.ranked[0].reward);
    const lines = every > 1 ? `${every} of yours, in order` : "one of yours";
    const num = distribution.num_images.toLocaleString("en");
    $("#rank-distribution figcaption").textContent =
      `The best is ${best} of ${num} images published with the model; each line is ${lines}.`;
    $("#rank-distribution svg").setAttribute("aria-label", $("#rank-distribution figcaption").textContent);
    $("#rank-distribution figcaption").title = distribution.origin;
  },
  chosen() {
    const which = $("#rank-which").value;
    if (which === "kept") return this.ranked.filter(({ kept }) => kept);
    return which === "all" ? this.ranked : this.ranked.slice(0, Number(which));
  },
  take(action) {
    const chosen = this.chosen();
    if (!chosen.length) return notice("No image is kept. Mark some with the heart, or with K.");
    return attempt(() => action(chosen));
  },
  async copy(chosen) {
    await copy(chosen.map((entry) => `${entry.place + 1}\t${entry.reward}\t${entry.path}\n`).join(""));
    notice(`${counted(chosen.length, "line")} copied.`);
  },
  csv(chosen) {
    const { model: by, prompt: text } = this.asked;
    const header = ["rank", "reward", ...(by.distribution ? ["percentile"] : []), "kept", "image", "prompt"];
    const rows = chosen.map(({ place, reward, kept, path }) => {
      const share = by.distribution ? [percentile(by.distribution, reward).toFixed(2)] : [];
      return [place + 1, reward, ...share, kept ? "yes" : "", path, text];
    });
    save(csv([header, ...rows]), "ranking.csv");
  },
  async zip(chosen) {
    const digits = String(chosen.at(-1).place + 1).length;
    save(
      await zip(chosen.map(({ place, name, file }) => [`${String(place + 1).padStart(digits, "0")}_${safeName(name)}`, file])),
      "best.zip",
    );
  },
};
const isOpen = ({ reward, error }) => reward === undefined && !error;

function rankWords(entry) {
  const distribution = rank.asked?.model?.distribution;
  return entry.reward !== undefined && distribution ? `${inWords(distribution, entry.reward)} of the published images` : "";
}

export const rankGrid = new Grid($("#rank-cards"), {
  shape: (width) => cardShape(rank.asked?.model?.distribution ? 96 : 66)(width),
  make: (entry) => {
    const card = clone("card");
    showPicture(card, urlOf(entry.file));
    on($(".open", card), "click", () => viewer.open(rankGrid, rankGrid.numbers.get(entry), describeEntry, (own) => rank.keep(own)));
    on($(".keep", card), "click", () => rank.keep(entry));
    return card;
  },
  fill: (card, entry) => {
    const isRanked = entry.reward !== undefined;
    const isBest = isRanked && entry.place === 0 && rank.ranked.length > 1;
    const words = rankWords(entry);
    card.classList.toggle("best", isBest);
    card.classList.toggle("waiting", isOpen(entry) && Boolean(rank.running));
    card.classList.toggle("wrong", Boolean(entry.error));
    $(".rank", card).textContent = isRanked ? `${entry.place + 1}.${isBest ? " best" : ""}` : "";
    $(".reward", card).textContent = isRanked ? signed(entry.reward) : "";
    $(".words", card).textContent = entry.error ?? words.replace(" of the published images", "");
    $(".share", card).hidden = !words;
    if (words) $(".share i", card).style.width = `${percentile(rank.asked.model.distribution, entry.reward)}%`;
    $(".name", card).textContent = entry.name;
    $(".name", card).title = entry.path;
    const said = isRanked
      ? `Rank ${entry.place + 1}, reward ${signed(entry.reward)}${words && `, ${words}`}`
      : (entry.error ?? "Not ranked yet");
    $(".open", card).setAttribute("aria-label", `${entry.name}. ${said}`);
    $(".keep", card).setAttribute("aria-label", `Keep ${entry.name}`);
    $(".keep", card).setAttribute("aria-pressed", entry.kept);
  },
  onKey: (event, entry) => event.key.toLowerCase() === "k" && rank.keep(entry),
});

function describeEntry(entry) {
  const reward = entry.reward === undefined ? "" : `${entry.place + 1}. ${signed(entry.reward)}`;
  return { title: entry.path, reward, words: entry.error ?? rankWords(entry), text: rank.asked?.prompt ?? "", url: urlOf(entry.file) };
}

on("#rank-only-kept", "change", () => rank.update());
on("#rank-cancel", "click", () => rank.cancel());
on("#rank-clear", "click", () => rank.clear());
on("#rank-copy", "click", () => rank.take((chosen) => rank.copy(chosen)));
on("#rank-csv", "click", () => rank.take((chosen) => rank.csv(chosen)));
on("#rank-zip", "click", () => rank.take((chosen) => rank.zip(chosen)));
