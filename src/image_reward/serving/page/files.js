// Files that come from the person at the page, and files that they take away.

import { baseName, byName, counted, notice } from "./dom.js";

const suffixes = new Set(document.body.dataset.suffixes.split(" "));
export const suffix = (path) => /\.[^./]*$/.exec(path)?.[0].toLowerCase() ?? "";
export const isImage = (file) =>
  !baseName(pathOf(file)).startsWith(".") &&
  (suffixes.has(suffix(pathOf(file))) || (!suffix(pathOf(file)) && file.type.startsWith("image/")));
const paths = new WeakMap(); // of files that were dropped in a folder
export const pathOf = (file) => paths.get(file) || file.webkitRelativePath || file.name;

export async function filesOf(transfer) {
  const entries = [...transfer.items].filter(({ kind }) => kind === "file").map((item) => item.webkitGetAsEntry?.());
  const plain = [...transfer.files];
  if (!entries.some((entry) => entry?.isDirectory)) return plain;
  const files = [];
  for (const entry of entries) if (entry) await walk(entry, files);
  return files;
}

async function walk(entry, files) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    paths.set(file, entry.fullPath.slice(1));
    files.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!batch.length) return; // it hands out a hundred at a time
    for (const child of batch) await walk(child, files);
  }
}

let numPasted = 0;
export function pasted(file) {
  return new File([file], `pasted-${++numPasted}${suffix(file.name) || ".png"}`, { type: file.type }); // they are all called image.png
}

const urls = new WeakMap();
export function urlOf(file) {
  if (!urls.has(file)) urls.set(file, URL.createObjectURL(file));
  return urls.get(file);
}
export function forget(file) {
  if (urls.has(file)) URL.revokeObjectURL(urls.get(file));
  urls.delete(file);
}

/** Entries of the images among files that are not there yet, in the order of their names. */
export function entriesOf(files, known) {
  const key = (file) => `${pathOf(file)}/${file.size}/${file.lastModified}`;
  const keys = new Set(known.map(({ file }) => key(file)));
  const images = [...files].filter(isImage);
  const numOthers = files.length - images.length;
  if (numOthers) notice(`${counted(numOthers, "file")} left out: no ${numOthers === 1 ? "image" : "images"} of a kind that is read here.`);
  const entries = [];
  for (const file of images.sort((one, other) => byName(pathOf(one), pathOf(other)))) {
    if (!keys.has(key(file))) entries.push({ file, path: pathOf(file), name: baseName(pathOf(file)), kept: false });
    keys.add(key(file));
  }
  return entries;
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

export async function copy(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea"); // over plain HTTP from another machine
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
  return undefined;
}

const csvCell = (value) => (/[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
export const csv = (rows) =>
  new Blob(
    rows.map((row) => `${row.map((value) => csvCell(String(value ?? "").toWellFormed())).join(",")}\r\n`),
    { type: "text/csv" },
  );

export function chosenFiles(event, add) {
  const files = [...event.target.files];
  event.target.value = ""; // so that the same file can be chosen again
  if (files.length) add(files);
}

export const isReadable = (file) =>
  file
    .slice(0, 1)
    .arrayBuffer()
    .then(
      () => true,
      () => false,
    );
