// Blind A/B: choices made without names and scores, which become comparisons.

import { $, $$, announce, attempt, changed, counted, notice, on, percent, showProblem, signed } from "./dom.js";
import { entriesOf, forget, save, urlOf } from "./files.js";
import { showPicture } from "./grid.js";
import { rank } from "./rank.js";
import { asked, hasPrompt, needPrompt, prompt } from "./service.js";
import { safeName, zip } from "./zip.js";

function shuffled(values) {
  const order = [...values];
  for (let last = order.length - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * (last + 1));
    [order[last], order[other]] = [order[other], order[last]];
  }
  return order;
}

/** Every pair once, in random order and on random sides, in rounds in which each image is shown once. */
function* pairsOf(images) {
  const ring = shuffled(images);
  if (ring.length % 2) ring.push(undefined);
  for (let round = 1; round < ring.length; round++) {
    const pairs = [];
    for (let place = 0; place < ring.length / 2; place++) {
      const pair = [ring[place], ring[ring.length - 1 - place]];
      if (pair[0] && pair[1]) pairs.push(shuffled(pair));
    }
    yield* shuffled(pairs);
    ring.splice(1, 0, ring.pop());
  }
}

export const blind = {
  entries: [],
  choices: [], // { prompt, pair, ranks, agrees }
  saved: 0, // of the choices
  session: new Date().toISOString().replace(/\D/g, "").slice(0, 14),
  pairs: undefined,
  back: [], // rounds to come that were prepared before a choice was undone
  current: undefined, // { pair, prompt, answer (a promise), chosen }

  label: () => "Start",
  get isRunning() {
    return Boolean(this.current);
  },
  add(files) {
    const entries = entriesOf(files, this.entries);
    this.entries.push(...entries);
    if (entries.length) announce(`${counted(entries.length, "image")} added`);
    const wasRunning = this.isRunning;
    this.stop();
    if (this.entries.length > 1 && (wasRunning || hasPrompt())) this.submit();
  },
  submit() {
    if (this.entries.length < 2) return showProblem("Two images or more are needed: drop, paste or choose them.");
    if (!needPrompt()) return undefined;
    showProblem("");
    this.pairs = pairsOf(this.entries.filter(({ error }) => !error));
    this.number = 0;
    this.back = [];
    this.prompt = prompt();
    this.ahead = this.prepare();
    return this.next();
  },
  /** The next pair with the model's answer, which is asked for ahead and not shown before the choice. */
  prepare() {
    if (this.back.length) return this.back.shift();
    let next;
    do next = this.pairs.next();
    while (!next.done && next.value.some(({ error }) => error));
    if (next.done) return undefined;
    const answer = asked(this.prompt, next.value[0].file, next.value[1].file).then(
      (value) => ({ value }),
      (error) => ({ error }),
    );
    return { pair: next.value, prompt: this.prompt, answer };
  },
  next() {
    this.current = this.ahead;
    this.ahead = this.current && this.prepare();
    if (!this.current) {
      this.update();
      notice(this.number ? "That was every pair." : "There is no pair of images that can be read.");
      return;
    }
    const { current } = this;
    this.number = current.number ??= this.number + 1;
    current.answer.then(({ error }) => {
      const side = ["a", "b"].indexOf(error?.field);
      if (side < 0) return;
      current.pair[side].error = error.message; // it could be neither shown nor trained on
      this.choices = this.choices.filter((choice) => choice !== current.made);
      notice(error.message);
      if (this.current === current) this.next();
    });
    this.update();
    $("#blind-round").focus();
  },
  stop() {
    this.current = this.ahead = this.pairs = undefined;
    this.update();
  },
  clear() {
    for (const { file } of this.entries) if (!this.choices.some(({ pair }) => pair.some((entry) => entry.file === file))) forget(file);
    this.entries = [];
    this.stop();
    $("#blind-files").focus();
  },
  async choose(choice) {
    const { current } = this;
    if (!current || current.chosen) return;
    current.chosen = choice;
    const ranks = { left: [1, 2], tie: [1, 1], right: [2, 1] }[choice];
    const made = (current.made = { prompt: current.prompt, pair: current.pair, ranks, round: current, pairs: this.pairs });
    this.choices.push(made);
    this.update();
    $("#blind-next").focus();
    const { value, error } = await current.answer;
    if (value) {
      current.value = value;
      const likes = value.rewards[0] === value.rewards[1] ? "tie" : value.rewards[0] > value.rewards[1] ? "left" : "right";
      if (choice !== "tie" && likes !== "tie") made.agrees = likes === choice;
    }
    current.error = error;
    if (this.current === current) this.update();
  },
  undo() {
    const last = this.choices.pop();
    if (!last) return;
    this.saved = Math.min(this.saved, this.choices.length);
    if (last.pairs === this.pairs) {
      if (last.round !== this.current) {
        this.back.unshift(...[this.current, this.ahead].filter(Boolean));
        this.ahead = this.prepare();
      }
      this.current = last.round;
      this.number = last.round.number;
      this.current.chosen = this.current.made = undefined;
    }
    this.update();
    announce("The last choice is undone");
    if (this.current) $("#blind-round").focus();
  },
  update() {
    const { current, choices, entries } = this;
    const isFull = entries.length > 0;
    $("#blind [data-empty]").hidden = isFull;
    $("#blind [data-full]").hidden = !isFull;
    const others = rank.entries.filter(({ error }) => !error).length;
    $("#blind-use").hidden = others < 2;
    $("#blind-use").textContent = `Use the ${others} images of Rank`;
    const readable = entries.filter(({ error }) => !error).length;
    const numPairs = (readable * (readable - 1)) / 2;
    $("#blind-summary").textContent = current
      ? `Pair ${this.number.toLocaleString("en")} of ${numPairs.toLocaleString("en")}, for “${current.prompt}”`
      : counted(entries.length, "image");
    $("#blind-round").hidden = !current;
    if (current) {
      const { chosen, value, error } = current;
      $("#blind-round").setAttribute("aria-label", `Pair ${this.number} of ${numPairs}: which image is better?`);
      $$("#blind-round .slot").forEach((slot, side) => {
        const address = urlOf(current.pair[side].file);
        if ($("img", slot).src !== address) showPicture(slot, address);
        slot.classList.toggle("chosen", chosen === slot.dataset.side);
        $(".name", slot).textContent = chosen ? current.pair[side].name : "";
        $(".reward", slot).textContent = chosen && value ? signed(value.rewards[side]) : "";
      });
      $("#blind-choices").hidden = Boolean(chosen);
      $("#blind-reveal").hidden = !chosen;
      const said = { left: "the left one", right: "the right one", tie: "a tie" }[chosen];
      let model_says = "";
      if (value) {
        const [left, right] = [value.a_better, value.b_better];
        model_says =
          left === right
            ? "; the model has no preference"
            : `; the model prefers the ${left > right ? "left" : "right"} one with a probability of ${percent(Math.max(left, right))}`;
      } else if (error) model_says = `. ${error.message}`;
      $("#blind-reveal .answer").textContent = chosen ? `You chose ${said}${model_says}${error ? "" : "."}` : "";
      $("#blind-skip").hidden = Boolean(chosen);
    }
    $("#blind-rest").hidden = !current;
    $("#blind-undo").hidden = !choices.length;
    $("#blind-actions").hidden = !choices.length;
    const comparable = choices.filter(({ agrees }) => agrees !== undefined);
    const agreed = comparable.filter(({ agrees }) => agrees).length;
    $("#blind-tally").textContent =
      `${counted(choices.length, "choice")}${comparable.length ? `; the model agrees with ${agreed} of ${comparable.length}` : ""}`;
    changed();
  },
  lines(pathOfEntry) {
    const rows = this.choices.map(({ prompt: text, pair, ranks }, number) => ({
      id: `blind-${this.session}-${number + 1}`,
      prompt: text.toWellFormed(),
      images: pair.map(pathOfEntry),
      ranks,
    }));
    return new Blob(rows.map((row) => `${JSON.stringify(row)}\n`));
  },
  saveLines() {
    const names = new Map();
    for (const entry of new Set(this.choices.flatMap(({ pair }) => pair))) {
      if (names.has(entry.path))
        return showProblem(`Two images are called ${entry.path}, so the choices alone would not say which is meant. Download the ZIP.`);
      names.set(entry.path, entry);
    }
    save(
      this.lines(({ path }) => path.toWellFormed()),
      "comparisons.jsonl",
    );
    this.saved = this.choices.length;
    return undefined;
  },
  async saveZip() {
    const images = [...new Set(this.choices.flatMap(({ pair }) => pair))];
    const names = new Map(images.map((entry, number) => [entry, `images/${number + 1}_${safeName(entry.name)}`]));
    const lines = this.lines((entry) => names.get(entry));
    const num = this.choices.length;
    save(await zip([["comparisons.jsonl", lines], ...images.map((entry) => [names.get(entry), entry.file])]), "comparisons.zip");
    this.saved = num;
  },
};
on("#blind-use", "click", () => {
  blind.add(rank.entries.filter(({ error }) => !error).map(({ file }) => file));
});
for (const button of $$("#blind-choices button")) on(button, "click", () => blind.choose(button.dataset.choice));
on("#blind-next", "click", () => blind.next());
on("#blind-skip", "click", () => blind.next());
on("#blind-undo", "click", () => blind.undo());
on("#blind-clear", "click", () => blind.clear());
on("#blind-jsonl", "click", () => blind.saveLines());
on("#blind-zip", "click", () => attempt(() => blind.saveZip()));
on("#blind-round", "keydown", (event) => {
  const choice = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" }[event.key];
  if (!choice || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  blind.choose(choice);
});
on(window, "beforeunload", (event) => blind.saved < blind.choices.length && event.preventDefault());
