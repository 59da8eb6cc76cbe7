// Numbers in words: bytes, addresses and times, as people read them.

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** 33554432 as `32 MiB`; what is no whole number of units gets a decimal. */
function bytesInWords(bytes) {
  if (typeof bytes === "string") return bytes;
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = Number.isInteger(value) ? 0 : value < 10 ? 2 : 1;
  return `${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** An offset in hexadecimal; one that was not exact came as text. */
function hex(value) {
  return typeof value === "string" ? value : `0x${value.toString(16)}`;
}

/** A duration in the unit that suits it. */
function durationInWords(nanoseconds) {
  if (nanoseconds < 1e3) return `${nanoseconds} ns`;
  for (const [limit, unit, name] of [[1e6, 1e3, "µs"], [1e9, 1e6, "ms"], [60e9, 1e9, "s"]]) {
    if (nanoseconds < limit) return `${trimmed(nanoseconds / unit)} ${name}`;
  }
  const seconds = Math.round(nanoseconds / 1e9);
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${seconds % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Three digits that count. */
function trimmed(value) {
  return String(Number(value.toPrecision(3)));
}

/** A moment as seconds since the first event, with the decimals that a step of `step` nanoseconds needs. */
function momentInWords(nanoseconds, step = 1e5) {
  const decimals = Math.max(0, Math.min(9, 9 - Math.floor(Math.log10(Math.max(1, step)))));
  return `${(nanoseconds / 1e9).toFixed(decimals)} s`;
}

/** The last part of a path, for where there is no room. */
function shortName(path) {
  const name = path.replace(/ \(deleted\)$/, "").replace(/^\/memfd:/, "memfd:");
  return name.slice(name.lastIndexOf("/") + 1) || path;
}

/** A count with its noun. */
function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}
