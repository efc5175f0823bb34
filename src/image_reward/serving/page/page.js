// The page as a whole: tabs, what is dropped and pasted, and the prompt.

import { blind } from "./blind.js";
import { browse, browseGrid } from "./browse.js";
import { compare } from "./compare.js";
import { $, $$, attempt, on, showProblem } from "./dom.js";
import { chosenFiles, filesOf, pasted } from "./files.js";
import { rank, rankGrid } from "./rank.js";
import { loadModels } from "./service.js";

const panels = { rank, compare, blind, browse };
let panel = "rank";

function select(name, focus = false) {
  panel = name in panels ? name : "rank";
  for (const tab of $$('[role="tab"]')) {
    const isSelected = tab.id === `tab-${panel}`;
    tab.setAttribute("aria-selected", isSelected);
    tab.tabIndex = isSelected ? 0 : -1;
    if (isSelected && focus) tab.focus();
  }
  for (const own of Object.keys(panels)) $(`#${own}`).hidden = own !== panel;
  $("#ask").hidden = panel === "browse";
  showProblem("");
  if (panel === "blind") blind.update();
  updateSubmit();
  rankGrid.update();
  browseGrid.update();
}

function updateSubmit() {
  $("#submit").textContent = panels[panel].label();
}

for (const tab of $$('[role="tab"]')) {
  on(tab, "click", () => {
    history.replaceState(null, "", `#${tab.getAttribute("aria-controls")}`);
    select(tab.getAttribute("aria-controls"));
  });
}
on('[role="tablist"]', "keydown", (event) => {
  const names = Object.keys(panels);
  const place = names.indexOf(panel);
  const next = { ArrowLeft: place - 1, ArrowRight: place + 1, Home: 0, End: names.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  const name = names[(next + names.length) % names.length];
  history.replaceState(null, "", `#${name}`);
  select(name, true);
});
on(window, "hashchange", () => select(location.hash.slice(1)));

on("#ask", "submit", (event) => {
  event.preventDefault();
  panels[panel].submit();
});
on("#prompt", "input", updateSubmit);
on("#prompt", "keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("#ask").requestSubmit();
});
on("#model", "change", updateSubmit);
on("#problem button", "click", () => showProblem(""));

for (const input of $$('main input[type="file"]')) {
  const owner = input.closest('[role="tabpanel"]').id;
  if (owner !== "compare") on(input, "change", (event) => chosenFiles(event, (files) => panels[owner].add(files)));
}

let numOver = 0; // elements that what is dragged is over
const hasFiles = (event) => event.dataTransfer?.types.includes("Files") && !$("dialog[open]");
on(window, "dragenter", (event) => {
  if (hasFiles(event)) $("#dropping").hidden = !(numOver += 1);
});
on(window, "dragleave", (event) => {
  if (hasFiles(event) && numOver) $("#dropping").hidden = !(numOver -= 1);
});
on(window, "dragover", (event) => hasFiles(event) && event.preventDefault());
on(window, "drop", async (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  numOver = 0;
  $("#dropping").hidden = true;
  const side = event.target.closest?.("#compare .slot")?.dataset.side;
  const files = await attempt(() => filesOf(event.dataTransfer));
  if (files?.length) panels[panel].add(files, side);
});
on(window, "paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  const isText = event.target.matches?.("input, textarea") && event.clipboardData.getData("text/plain");
  if (!files.length || isText || $("dialog[open]")) return;
  event.preventDefault();
  panels[panel].add(panel === "browse" ? files : files.map(pasted));
});
on(window, "keydown", (event) => {
  if (event.key === "Escape" && !$("dialog[open]")) rank.cancel();
});
on("#show-keys", "click", () => $("#keys").showModal());
on("#keys-close", "click", () => $("#keys").close());

select(location.hash.slice(1));
on(window, "changed", updateSubmit);
attempt(async () => {
  await loadModels();
  updateSubmit();
});
