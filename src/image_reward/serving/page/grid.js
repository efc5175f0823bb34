// Grids of thousands of elements, of which only those that are seen are in the page; and one of them, large.

import { $, $$, on } from "./dom.js";

const HIGHEST = 12_000_000; // px: browsers cannot lay out much more

export class Grid {
  /** ``make(item)`` an element, ``fill(element, item, number)`` it, ``shape(width)`` gives { columns, height } in px. */
  constructor(list, { make, fill, shape, onKey = () => {} }) {
    Object.assign(this, { list, make, fill, shape, onKey, source: [], current: 0, elements: new Map() });
    new ResizeObserver(() => this.update()).observe(list);
    on(window, "scroll", () => this.schedule());
    on(list, "keydown", (event) => this.pressed(event));
    on(list, "focusin", (event) => {
      const item = this.itemOf(event.target);
      if (item !== undefined) this.move(this.numbers.get(item), false);
    });
  }

  /** ``source``: an array, or anything with ``length`` and ``at(number)``, which may not have come yet (undefined). */
  show(source) {
    this.source = source;
    this.current = Math.max(0, Math.min(this.current, source.length - 1));
    this.update();
  }

  /** Make all elements anew: what they show has changed. */
  reset() {
    for (const element of this.elements.values()) element.remove();
    this.elements.clear();
  }

  schedule() {
    this.waiting ??= requestAnimationFrame(() => this.update(true));
  }

  /** ``isScrolling``: elements that stay where they are show what they showed. */
  update(isScrolling = false) {
    cancelAnimationFrame(this.waiting);
    this.waiting = undefined;
    const width = this.list.clientWidth;
    if (!width) return; // of another tab
    const { columns, height } = this.shape(width);
    this.list.classList.toggle("still", columns !== this.columns || height !== this.height); // only another order glides
    this.columns = columns;
    this.height = height;
    this.length = Math.min(this.source.length, Math.floor(HIGHEST / height) * columns);
    this.list.style.height = `${Math.ceil(this.length / columns) * height}px`;
    const top = -this.list.getBoundingClientRect().top;
    const first = Math.max(0, Math.floor((top - innerHeight / 2) / height)) * columns;
    const last = Math.min(this.length, (Math.floor((top + 1.5 * innerHeight) / height) + 1) * columns);
    const placed = this.numbers ?? new Map();
    const { focusable } = this;
    this.numbers = new Map();
    this.focusable = this.current;
    const seen = new Set();
    const focused = this.itemOf(document.activeElement);
    const place = (number) => {
      const item = this.source.at(number);
      if (item === undefined) return;
      this.numbers.set(item, number);
      seen.add(item);
      let element = this.elements.get(item);
      if (isScrolling && element && placed.get(item) === number && number !== focusable && number !== this.current) return;
      if (!element) {
        element = this.make(item);
        this.elements.set(item, element);
        this.list.append(element);
        element.classList.add("placed");
        requestAnimationFrame(() => element.classList.remove("placed"));
      }
      element.style.width = `${width / columns}px`;
      element.style.height = `${height}px`;
      element.style.transform = `translate(${((number % columns) * width) / columns}px, ${Math.floor(number / columns) * height}px)`;
      element.setAttribute("aria-setsize", this.source.length);
      element.setAttribute("aria-posinset", number + 1);
      for (const button of $$("button", element)) button.tabIndex = number === this.current ? 0 : -1;
      this.fill(element, item, number);
    };
    for (let number = first; number < last; number++) place(number);
    if (this.current < this.length && (this.current < first || this.current >= last)) place(this.current); // so that Tab comes back to it
    for (const [item, element] of this.elements) {
      if (!seen.has(item) && item !== focused) {
        element.remove();
        this.elements.delete(item);
      }
    }
    const inOrder = [...this.numbers.keys()].sort((one, other) => this.numbers.get(one) - this.numbers.get(other));
    let before = null; // the order of the elements is that of reading
    for (const item of inOrder.reverse()) {
      const element = this.elements.get(item);
      if (element.nextSibling !== before && !element.contains(document.activeElement)) this.list.insertBefore(element, before);
      before = element;
    }
  }

  itemOf(target) {
    const element = target?.closest?.("li");
    if (!element || element.parentElement !== this.list) return undefined;
    for (const [item, own] of this.elements) if (own === element) return item;
    return undefined;
  }

  move(number, focus = true, selector = ".open") {
    if (number === undefined || !(number >= 0 && number < this.length)) return;
    this.current = number;
    if (focus) {
      const top = this.list.getBoundingClientRect().top + Math.floor(number / this.columns) * this.height;
      if (top < 90) scrollBy(0, top - 90);
      else if (top + this.height > innerHeight - 90) scrollBy(0, top + this.height + 90 - innerHeight);
    }
    this.update(true);
    if (focus) $(selector, this.elements.get(this.source.at(number)))?.focus({ preventScroll: true });
  }

  pressed(event) {
    const item = this.itemOf(event.target);
    if (item === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
    const number = this.numbers.get(item);
    const steps = {
      ArrowLeft: -1,
      ArrowRight: 1,
      ArrowUp: -this.columns,
      ArrowDown: this.columns,
      Home: -number,
      End: this.length - 1 - number,
    };
    if (event.key in steps) {
      event.preventDefault();
      this.move(number + steps[event.key], true, event.target.matches(".keep") ? ".keep" : ".open");
    } else this.onKey(event, item, number);
  }
}

export const cardShape = (below) => (width) => {
  const columns = Math.max(2, Math.floor(width / 236));
  return { columns, height: Math.round(width / columns) + below };
};

/** Show a picture, once it is there, or words in its place. */
export async function showPicture(root, url, words = "no preview") {
  const image = $("img", root);
  const none = $(".none", root);
  const fail = () => {
    image.hidden = true;
    none.hidden = false;
    none.textContent = words;
  };
  image.onerror = fail;
  image.onload = () => image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) < 160);
  image.hidden = false;
  none.hidden = true;
  try {
    const address = await url;
    if (address) image.src = address;
    else fail();
  } catch (error) {
    words = error.message;
    fail();
  }
}

export const viewer = {
  open(grid, number, describe, onKeep) {
    Object.assign(this, { grid, number, describe, onKeep });
    $("#viewer-keep").hidden = !onKeep;
    this.show();
    $("#viewer").showModal();
  },
  show() {
    const item = this.grid.source.at(this.number);
    if (item === undefined) return;
    const { title, reward, words, text, url } = this.describe(item, this.number);
    $("#viewer-title").textContent = title;
    $("#viewer .reward").textContent = reward;
    $("#viewer .words").textContent = words;
    $("#viewer .text").textContent = text;
    $("#viewer img").alt = title;
    $("#viewer img").removeAttribute("src");
    showPicture($("#viewer .stage"), url);
    $("#viewer-keep").setAttribute("aria-pressed", Boolean(item.kept));
    $('#viewer [data-step="-1"]').disabled = this.number === 0;
    $('#viewer [data-step="1"]').disabled = this.number === this.grid.length - 1;
  },
  step(step) {
    const next = this.number + step;
    if (next < 0 || next >= this.grid.length) return;
    this.number = next;
    this.grid.move(next, false);
    this.show();
  },
  keep() {
    if (!this.onKeep) return;
    this.onKeep(this.grid.source.at(this.number));
    this.show();
  },
};
for (const button of $$("#viewer [data-step]")) on(button, "click", () => viewer.step(Number(button.dataset.step)));
on("#viewer-keep", "click", () => viewer.keep());
on("#viewer-close", "click", () => $("#viewer").close());
on("#viewer", "close", () => viewer.grid.move(viewer.number));
on("#viewer", "click", (event) => event.target === event.currentTarget && event.currentTarget.close());
on("#viewer", "keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "ArrowLeft") viewer.step(-1);
  else if (event.key === "ArrowRight") viewer.step(1);
  else if (event.key.toLowerCase() === "k") viewer.keep();
  else return;
  event.preventDefault();
});
