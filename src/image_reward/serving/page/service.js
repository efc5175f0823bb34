// What the page asks the service.

import { $, ShownError, counted, notice, pause, sentence, showProblem } from "./dom.js";
import { isReadable, pathOf } from "./files.js";

/** What the service refused, as a sentence. */
class ServiceError extends ShownError {
  constructor(status, field, message, remedy) {
    const isImage = /^(images\[\d+\]|a|b)$/.test(field);
    super(sentence(isImage || field === "request" ? message.replace(`${field} `, "it ") : `${field}: ${message}`, remedy));
    Object.assign(this, { status, field });
  }
}

let token = sessionStorage.getItem("token");
export let models = [];
let limits = { max_images: 32, max_body: 1 << 24 };
export const model = () => models.find(({ name }) => name === $("#model").value) ?? models[0];

export async function loadModels() {
  ({ models, limits } = await call("v1/models"));
  $("#model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
  $(".model").hidden = models.length < 2;
}

/** The answer of the service. It waits while the service is busy, and asks for the token. */
export async function call(path, { body, signal, as = "json" } = {}) {
  for (;;) {
    let response;
    const sent = token;
    try {
      const headers = token ? { authorization: `Bearer ${token}` } : {};
      response = await fetch(path, { method: body ? "POST" : "GET", body, headers, signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServiceError(0, "request", "the service does not answer", "see whether it still runs, and try again");
    }
    if (response.ok) return response[as]();
    if (response.status === 401) {
      if (token === sent) await askToken(token !== null);
      continue;
    }
    if (response.status === 429) {
      const seconds = Number(response.headers.get("retry-after")) || 1;
      notice(`The service is busy; trying again in ${counted(seconds, "second")}.`);
      await pause(seconds, signal);
      continue;
    }
    const { error } = await response.json().catch(() => ({}));
    if (!error) throw new ServiceError(response.status, "request", `the service answered with status ${response.status}`, "");
    throw new ServiceError(response.status, error.field, error.message, error.remedy);
  }
}

let asking;
function askToken(wasWrong) {
  $("#token-wrong").textContent = wasWrong ? "That is not the token of this service." : "";
  asking ??= new Promise((resolve) => {
    $("#token-value").value = "";
    $("#token").showModal();
    $("#token-form").onsubmit = (event) => {
      event.preventDefault();
      token = $("#token-value").value.trim();
      sessionStorage.setItem("token", token);
      asking = undefined;
      $("#token").close();
      resolve();
    };
    $("#token").onclose = () => asking && $("#token").showModal(); // nothing works without it
  });
  return asking;
}

function form(fields) {
  const body = new FormData();
  if (model()) body.append("model", model().name);
  for (const [name, value] of fields) {
    if (value instanceof Blob)
      body.append(name, value, "image"); // the names of files stay here
    else body.append(name, value);
  }
  return body;
}

const warned = new Set();
export function warn(warnings) {
  for (const warning of warnings) {
    if (!warned.has(warning)) notice(sentence(warning));
    warned.add(warning);
  }
}

const CHANGED = "It was moved or changed after it was added.";
const SECONDS = 1; // that a request should take, so that progress is seen and cancelling is quick
const MOST_BYTES = 1 << 24; // of a request, unless one image has more

/** Give entries rewards, in requests that are small and two at a time: while one is scored, the next is sent. */
export async function score(prompt, entries, signal, onProgress) {
  const queue = [...entries];
  let size = 1;
  const take = () => {
    const batch = [queue.shift()];
    let bytes = batch[0].file.size;
    const most = Math.min(MOST_BYTES, limits.max_body - (1 << 16));
    while (queue.length && batch.length < Math.min(size, limits.max_images) && bytes + queue[0].file.size < most) {
      bytes += queue[0].file.size;
      batch.push(queue.shift());
    }
    return batch;
  };
  const work = async () => {
    while (queue.length) {
      signal.throwIfAborted();
      const batch = take();
      const started = performance.now();
      try {
        const body = form([["prompt", prompt], ...batch.map(({ file }) => ["images", file])]);
        const { rewards, warnings } = await call("v1/score", { body, signal });
        batch.forEach((entry, number) => (entry.reward = rewards[number]));
        warn(warnings);
        const seconds = (performance.now() - started) / 1000;
        if (seconds < SECONDS / 2) size = Math.min(2 * size, 64);
        else if (seconds > 2 * SECONDS) size = Math.max(size >> 1, 1);
      } catch (error) {
        if (!(error instanceof ServiceError)) throw error;
        const wrong = /^images\[(\d+)\]/.exec(error.field);
        if (wrong) {
          batch.splice(Number(wrong[1]), 1)[0].error = error.message;
          queue.unshift(...batch);
        } else if (error.status === 0) {
          const readable = await Promise.all(batch.map(({ file }) => isReadable(file)));
          if (readable.every(Boolean)) throw error;
          batch.forEach((entry, number) => (readable[number] ? queue.unshift(entry) : (entry.error = CHANGED)));
        } else if ([413, 503].includes(error.status) && batch.length > 1) {
          size = batch.length >> 1;
          queue.unshift(...batch);
        } else if (error.status === 413) {
          batch[0].error = error.message;
        } else throw error;
      }
      onProgress();
    }
  };
  await Promise.all([work(), work()]);
}

/** What /v1/compare answers for two files. */
export async function asked(text, a, b, signal) {
  try {
    const answer = await call("v1/compare", {
      body: form([
        ["prompt", text],
        ["a", a],
        ["b", b],
      ]),
      signal,
    });
    warn(answer.warnings);
    return answer;
  } catch (error) {
    for (const file of error.status === 0 ? [a, b] : []) if (!(await isReadable(file))) throw new ShownError(`${pathOf(file)}: ${CHANGED}`);
    const file = { a, b }[error.field];
    if (file) error.message = `${pathOf(file)}: ${error.message}`;
    throw error;
  }
}
/** As ``Distribution.percentile``: the share of the published images, in percent, whose reward is below this one. */
export function percentile({ quantiles }, reward) {
  const steps = quantiles.length - 1;
  const next = quantiles.findIndex((quantile) => quantile >= reward);
  if (next === 0) return 0;
  if (next < 0) return 100;
  const [low, high] = [quantiles[next - 1], quantiles[next]];
  return (100 * (next - 1 + (reward - low) / (high - low))) / steps;
}

export function inWords(distribution, reward) {
  const { quantiles } = distribution;
  if (reward < quantiles[0]) return "better than none";
  if (reward > quantiles.at(-1)) return "better than all";
  return `better than ${percentile(distribution, reward).toFixed(0)} %`;
}

export const prompt = () =>
  $("#prompt")
    .value.replace(/\s*[\r\n]+\s*/g, " ")
    .trim();
export const hasPrompt = () => Boolean(prompt()) || model()?.reads_prompt === false;
export const needPrompt = () => {
  if (hasPrompt()) return true;
  showProblem("Type the prompt that the images were made for.");
  $("#prompt").focus();
  return false;
};
