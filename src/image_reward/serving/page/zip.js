// A ZIP archive, written here.

import { ShownError } from "./dom.js";

const CRC = Uint32Array.from({ length: 256 }, (_, value) => {
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});
function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** A ZIP of [name, Blob] pairs that stores them as they are: images are compressed already. */
export async function zip(files) {
  if (files.length > 65_535 || files.reduce((sum, [, file]) => sum + file.size, 0) > 4e9) {
    throw new ShownError("A ZIP holds at most 65,535 files and 4 GB; take fewer.");
  }
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const [path, file] of files) {
    const name = new TextEncoder().encode(path);
    const bytes = await file.arrayBuffer().catch(() => {
      throw new ShownError(`${path} cannot be read any more; add it again.`);
    });
    // version, flags (names in UTF-8), method, time, date (1980-01-01); checksum, two sizes; lengths of name and extra
    const about = new DataView(new ArrayBuffer(26));
    [20, 0x800, 0, 0, 33].forEach((value, place) => about.setUint16(2 * place, value, true));
    [crc32(new Uint8Array(bytes)), file.size, file.size].forEach((value, place) => about.setUint32(10 + 4 * place, value, true));
    about.setUint16(22, name.length, true);
    parts.push("PK\x03\x04", about.buffer, name, file);
    const rest = new DataView(new ArrayBuffer(14)); // comment, disk, attributes (2 and 4), offset
    rest.setUint32(10, offset, true);
    directory.push("PK\x01\x02", new Uint8Array([20, 0]), about.buffer, rest.buffer, name);
    offset += 30 + name.length + file.size;
  }
  const index = new Blob(directory);
  const end = new DataView(new ArrayBuffer(18));
  end.setUint16(4, files.length, true);
  end.setUint16(6, files.length, true);
  end.setUint32(8, index.size, true);
  end.setUint32(12, offset, true);
  return new Blob([...parts, index, "PK\x05\x06", end.buffer], { type: "application/zip" });
}

/** A name that every file system takes, and that stays in its folder. */
export const safeName = (name) =>
  name
    .toWellFormed()
    .replace(/[\x00-\x1f\x7f<>:"/\\|?*]/g, "_")
    .replace(/^\.+/, "_")
    .slice(-120);
