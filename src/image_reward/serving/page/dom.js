// Elements, numbers in words, and messages. What comes from a file, a prompt or the service is set as text: no markup is made from strings.

export const $ = (selector, root = document) => root.querySelector(selector);
export const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
export const clone = (name) => $(`#${name}-template`).content.firstElementChild.cloneNode(true);
export const on = (target, type, action) => (typeof target === "string" ? $(target) : target).addEventListener(type, action);
export const counted = (num, one, several = `${one}s`) => `${num.toLocaleString("en")} ${num === 1 ? one : several}`;
export const signed = (reward) => (reward < 0 ? "−" : "+") + Math.abs(reward).toFixed(3);
export const percent = (share) => `${(100 * share).toFixed(1)} %`;
export const byName = new Intl.Collator("en", { numeric: true }).compare;
export const baseName = (path) => path.slice(path.lastIndexOf("/") + 1);
export const pause = (seconds, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

export function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export function announce(text) {
  $("#live").textContent = text;
}

let noticeTimer;
export function notice(text) {
  $("#notice").textContent = text;
  clearTimeout(noticeTimer);
  noticeTimer = setTimeout(() => ($("#notice").textContent = ""), 6000);
}

export function showProblem(text) {
  $("#problem p").textContent = text;
  $("#problem").hidden = !text;
}

/** Do something that may fail, and show why it did. */
export async function attempt(action) {
  try {
    return await action();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    showProblem(error.message);
    if (!(error instanceof ShownError)) throw error;
    return undefined;
  }
}

/** An error whose message is for the person at the page. */
export class ShownError extends Error {}

export function sentence(message, remedy) {
  const text = remedy ? `${message}; ${remedy}` : message;
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

export function setOptions(select, options) {
  if (
    options.length === select.length &&
    options.every(([value, text], place) => select[place].value === value && select[place].text === text)
  )
    return;
  const chosen = select.value;
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

export const changed = () => window.dispatchEvent(new Event("changed")); // what the button beside the prompt would do
