// Scored rows, from a file that is read here or from the service.

import { ShownError, attempt, baseName, counted } from "./dom.js";
import { pathOf, urlOf } from "./files.js";
import { call } from "./service.js";

const LONGEST_LINE = 1 << 24;

/** The cells of CSV, row by row, without holding the file. */
async function* csvRows(file, separator) {
  let cells = [];
  let cell = "";
  let state = "start"; // of a cell; or plain, quoted, closing (after a quote within quotes)
  let isFirst = true;
  for await (const chunk of texts(file)) {
    for (const character of isFirst && chunk[0] === "\ufeff" ? chunk.slice(1) : chunk) {
      if (state === "quoted") {
        if (character === '"') state = "closing";
        else cell += character;
      } else if (state === "closing" && character === '"') {
        cell += '"';
        state = "quoted";
      } else if (character === '"' && state === "start") state = "quoted";
      else if (character === separator) {
        cells.push(cell);
        cell = "";
        state = "start";
      } else if (character === "\n") {
        cells.push(cell);
        if (cells.length > 1 || cell) yield cells;
        cells = [];
        cell = "";
        state = "start";
      } else if (character !== "\r") {
        cell += character;
        state = "plain";
      }
    }
    if (cell.length > LONGEST_LINE) throw new ShownError(`${pathOf(file)}: a cell is longer than 16 MiB; is a quote missing?`);
    isFirst = false;
  }
  if (state === "quoted") throw new ShownError(`${pathOf(file)}: a quote is not closed; is the file complete?`);
  if (cell || cells.length) yield [...cells, cell];
}

async function* texts(file) {
  const reader = file
    .stream()
    .pipeThrough(new TextDecoderStream("utf-8", { fatal: true, ignoreBOM: true }))
    .getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } catch (error) {
    throw new ShownError(`${pathOf(file)} is not text in UTF-8, or cannot be read.`, { cause: error });
  }
}

async function* lines(file) {
  let rest = "";
  for await (const chunk of texts(file)) {
    const parts = (rest + chunk).split("\n");
    rest = parts.pop();
    if (rest.length > LONGEST_LINE) throw new ShownError(`${pathOf(file)}: a line is longer than 16 MiB.`);
    yield* parts;
  }
  yield rest;
}

export const PARQUET =
  "Browsers do not read Parquet. Open rewards.csv or rewards.jsonl (score-files --format), or start the service with --browse FOLDER.";

/** The rows of CSV, JSONL or a JSON list, recognised by their content: { columns, rows }. */
export async function readRows(file) {
  const head = (await file.slice(0, 4096).text()).replace(/^\ufeff/, "").trimStart();
  if (!head) throw new ShownError(`${pathOf(file)} is empty.`);
  if (head.startsWith("PAR1")) throw new ShownError(`${pathOf(file)}: ${PARQUET}`);
  const rows = [];
  if (head[0] === "[") {
    try {
      for (const row of JSON.parse(await file.text())) rows.push(asRow(row, file, rows.length));
    } catch (error) {
      if (error instanceof ShownError) throw error;
      throw new ShownError(`${pathOf(file)} is not JSON: ${error.message}`);
    }
  } else if (head[0] === "{") {
    let number = 0;
    for await (const line of lines(file)) {
      number += 1;
      if (!line.trim()) continue;
      let row;
      try {
        row = JSON.parse(number === 1 ? line.replace(/^\ufeff/, "") : line);
      } catch {
        throw new ShownError(`${pathOf(file)}, line ${number}: it is not JSON.`);
      }
      rows.push(asRow(row, file, number));
    }
  } else {
    const start = head.split("\n", 1)[0];
    const separator = [",", "\t", ";"].find((character) => start.includes(character)) ?? ",";
    let header;
    for await (const cells of csvRows(file, separator)) {
      if (!header) {
        header = cells.map((cell) => cell.trim());
        continue;
      }
      if (cells.length !== header.length)
        throw new ShownError(
          `${pathOf(file)}, row ${rows.length + 1}: it has ${counted(cells.length, "cell")}, and the header has ${header.length}.`,
        );
      rows.push(Object.fromEntries(header.map((name, place) => [name, cells[place]])));
    }
  }
  const columns = [...new Set(rows.slice(0, 1000).flatMap((row) => Object.keys(row)))];
  const rewards = columns.filter((name) => name === "reward" || name.startsWith("reward:"));
  if (!rows.length) throw new ShownError(`${pathOf(file)} holds no rows.`);
  if (!rewards.length)
    throw new ShownError(
      `${pathOf(file)} has no column “reward” but ${columns.join(", ").slice(0, 200)}. Score it first: image-reward score-files.`,
    );
  return { columns, rewards, rows };
}

function asRow(row, file, number) {
  if (row === null || typeof row !== "object" || Array.isArray(row))
    throw new ShownError(`${pathOf(file)}, row ${number}: it is not an object.`);
  return row;
}

const isNumber = (value) =>
  (typeof value === "number" || (typeof value === "string" && value.trim() !== "")) && Number.isFinite(Number(value));
export const text = (value) => (typeof value === "string" ? value : value === undefined || value === null ? "" : JSON.stringify(value));

/** Rows that were read here. Answers as ``ServedRows`` does. */
export class ReadRows {
  constructor(file, { columns, rewards, rows }) {
    Object.assign(this, {
      name: pathOf(file),
      columns,
      rewards,
      numRows: rows.length,
      folder: pathOf(file).slice(0, -baseName(pathOf(file)).length),
    });
    this.rows = rows.map((values, place) => ({
      values,
      place,
      prompt: text(values.prompt),
      image: text(values.image ?? values.image_path),
      error: text(values.error),
    }));
    this.pictures = new Map(); // by path, and by name where that is unambiguous
  }

  addPictures(files) {
    for (const file of files) {
      const path = pathOf(file);
      this.pictures.set(path, file);
      for (const key of [`*${baseName(path)}`, `/${path.slice(path.indexOf("/") + 1)}`])
        this.pictures.set(key, this.pictures.has(key) && this.pictures.get(key) !== file ? null : file);
    }
  }

  picture(row) {
    const parts = [];
    for (const part of (this.folder + row.image).split("/")) {
      if (part === "..") parts.pop();
      else if (part && part !== ".") parts.push(part);
    }
    const file = this.pictures.get(parts.join("/")) ?? this.pictures.get(`/${row.image}`) ?? this.pictures.get(`*${baseName(row.image)}`);
    return file ? urlOf(file) : undefined;
  }

  get hasPictures() {
    return this.pictures.size > 0;
  }

  histogram(column) {
    const values = this.rows
      .map((row) => (row.reward = isNumber(row.values[column]) ? Number(row.values[column]) : undefined))
      .filter((value) => value !== undefined);
    const low = values.reduce((one, other) => Math.min(one, other), Infinity);
    const high = values.reduce((one, other) => Math.max(one, other), -Infinity);
    const counts = new Array(48).fill(0);
    for (const value of values) counts[Math.min(47, Math.floor((48 * (value - low)) / (high - low || 1)))] += 1;
    return { low, high, counts };
  }

  find({ low, high, text: part, by, descending, errors }) {
    const wanted = part.toLowerCase();
    const passes = (row) =>
      (row.reward === undefined ? errors : (low === undefined || row.reward >= low) && (high === undefined || row.reward <= high)) &&
      (!wanted || row.prompt.toLowerCase().includes(wanted) || row.image.toLowerCase().includes(wanted));
    const found = this.rows.filter(passes);
    const sign = descending ? -1 : 1;
    if (by === "reward")
      found.sort((one, other) => (one.reward === undefined) - (other.reward === undefined) || sign * (one.reward - other.reward) || 0);
    else if (by !== "place") found.sort((one, other) => sign * (one[by] < other[by] ? -1 : one[by] > other[by] ? 1 : 0));
    return found;
  }
}

export const PAGE = 100;
const MOST_ADDRESSES = 400;

/** Rows of the folder that the service was started with, fetched as they are looked at. */
export class ServedRows {
  constructor({ name, columns, num_rows: numRows, histograms }, onPage) {
    Object.assign(this, { name, rewards: columns, numRows, histograms, hasPictures: true, addresses: new Map(), onPage });
    this.columns = ["id", "prompt", "image", "reward", "error"];
  }

  histogram(column) {
    this.column = column;
    const { low, high, counts } = this.histograms[column];
    return { low: low ?? Infinity, high: high ?? -Infinity, counts };
  }

  async find(filter) {
    const pages = new Map();
    const fetchPage = (number) => {
      const query = new URLSearchParams({
        column: this.column,
        order: filter.by,
        descending: filter.descending,
        text: filter.text,
        errors: filter.errors,
        offset: number * PAGE,
        limit: PAGE,
      });
      for (const end of ["low", "high"]) if (filter[end] !== undefined) query.set(end, filter[end]);
      return call(`page/scored/rows?${query}`);
    };
    const first = await fetchPage(0);
    pages.set(
      0,
      first.rows.map((row) => this.shown(row)),
    );
    const get = async (number) => {
      if (!pages.has(number)) {
        pages.set(number, undefined);
        try {
          pages.set(
            number,
            (await fetchPage(number)).rows.map((row) => this.shown(row)),
          );
        } catch (error) {
          pages.delete(number);
          throw error;
        }
      }
      return pages.get(number);
    };
    return {
      length: first.num,
      at: (number) => {
        const page = Math.floor(number / PAGE);
        if (!pages.has(page)) attempt(() => get(page).then(this.onPage));
        return pages.get(page)?.[number % PAGE];
      },
      page: get,
    };
  }

  shown(row) {
    return {
      ...row,
      prompt: row.prompt ?? "",
      image: row.image ?? "",
      reward: row.reward ?? undefined,
      error: row.error ?? "",
      values: row,
    };
  }

  async picture(row, side = 320) {
    const key = `${row.part}/${row.row}?side=${side}`;
    if (!this.addresses.has(key)) {
      const blob = await call(`page/scored/images/${key}`, { as: "blob" });
      this.addresses.set(key, URL.createObjectURL(blob));
      for (const old of this.addresses.keys()) {
        if (this.addresses.size <= MOST_ADDRESSES) break;
        URL.revokeObjectURL(this.addresses.get(old));
        this.addresses.delete(old);
      }
    }
    return this.addresses.get(key);
  }
}
