// Compare: two images.

import { $, $$, announce, attempt, notice, on, percent, showProblem, signed } from "./dom.js";
import { chosenFiles, forget, isImage, pathOf, urlOf } from "./files.js";
import { showPicture } from "./grid.js";
import { asked, hasPrompt, needPrompt, prompt } from "./service.js";

export const compare = {
  files: { a: undefined, b: undefined },

  label: () => "Compare",
  add(files, side) {
    const images = [...files].filter(isImage);
    if (!images.length) return notice("That is not an image.");
    for (const file of images.slice(0, side ? 1 : 2))
      this.put(side ?? (this.files.a && !this.files.b ? "b" : images.length > 1 && file === images[1] ? "b" : "a"), file);
    if (this.files.a && this.files.b && hasPrompt()) this.submit();
    return undefined;
  },
  put(side, file) {
    if (this.files[side]) forget(this.files[side]);
    this.files[side] = file;
    const slot = $(`#compare .slot[data-side="${side}"]`);
    slot.classList.add("full");
    $(".name", slot).textContent = pathOf(file);
    $(".reward", slot).textContent = "";
    $("img", slot).alt = `Image ${side.toUpperCase()}: ${pathOf(file)}`;
    showPicture(slot, urlOf(file));
    $("label", slot).textContent = `Replace ${side.toUpperCase()}`;
    $("#compare-verdict").hidden = true;
    announce(`Image ${side.toUpperCase()}: ${pathOf(file)}`);
  },
  async submit() {
    const { a, b } = this.files;
    if (!a || !b) return showProblem("Two images are compared: drop, paste or choose them.");
    if (!needPrompt()) return undefined;
    showProblem("");
    return attempt(async () => {
      this.running?.abort();
      const running = (this.running = new AbortController());
      const answer = await asked(prompt(), a, b, running.signal);
      if (a === this.files.a && b === this.files.b) this.show(answer);
    });
  },
  show(answer) {
    const shares = { a: answer.a_better, tie: answer.tie, b: answer.b_better };
    const words = { a: `A is better ${percent(shares.a)}`, tie: `tie ${percent(shares.tie)}`, b: `B is better ${percent(shares.b)}` };
    const spreads = answer.spreads?.map((spread) => ` ± ${spread.toFixed(3)}`) ?? ["", ""];
    $$("#compare .slot .reward").forEach((element, number) => (element.textContent = signed(answer.rewards[number]) + spreads[number]));
    for (const [name, share] of Object.entries(shares)) {
      $(`#compare-verdict .odds .${name}`).style.width = `${100 * share}%`;
      $(`#compare-verdict .legend .${name}`).textContent = words[name];
    }
    $("#compare-verdict .tie").hidden = $("#compare-verdict .legend .tie").hidden = !shares.tie;
    $("#compare-verdict .odds").setAttribute(
      "aria-label",
      Object.values(words)
        .filter((_, number) => number !== 1 || shares.tie)
        .join(", "),
    );
    const better = shares.a === shares.b ? undefined : shares.a > shares.b ? "A" : "B";
    const sure = Math.max(shares.a, shares.b);
    $("#compare-verdict .answer").textContent = better
      ? `People would prefer ${better}, with a probability of ${percent(sure)}.`
      : "Neither is preferred to the other.";
    $("#compare-verdict").hidden = false;
  },
};

for (const side of ["a", "b"]) on(`#compare-${side}`, "change", (event) => chosenFiles(event, (files) => compare.add(files, side)));
