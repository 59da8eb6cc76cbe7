// Saving: the capture is in the page, as gzip of JSON Lines, which `vhu read` reads.

/** The lines of the capture. */
async function captureLines() {
  const packed = atob(document.getElementById("capture").textContent);
  const bytes = Uint8Array.from(packed, (char) => char.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return (await new Response(unpacked).text()).split("\n").filter(Boolean);
}

/** When the event of a line was, in nanoseconds since the first one. */
function momentOfLine(text) {
  const seconds = /^\{"v":\d+,"t":(-?[\d.e+-]+)/.exec(text);
  return seconds ? Number(seconds[1]) * 1e9 : NaN;
}

/** Those of the time that the picture shows, on the connection that it shows. */
function sliceOf(lines) {
  const connection = new RegExp(`"connection":${view.connection}\\b`);
  return lines.filter((text) => {
    const at = momentOfLine(text);
    return at >= view.from && at <= view.to && connection.test(text.slice(0, 200));
  });
}

/** Let the browser save lines as a file. */
function save(name, lines) {
  const url = URL.createObjectURL(new Blob(lines.map((text) => `${text}\n`), { type: "application/x-ndjson" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

document.getElementById("save").addEventListener("click", async () => save("connection.jsonl", await captureLines()));
document.getElementById("save-slice").addEventListener("click", async () => save("slice.jsonl", sliceOf(await captureLines())));
