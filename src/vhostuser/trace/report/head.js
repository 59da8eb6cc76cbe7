// The head of the page: what this is, the tiles, and the choice of connection, region and theme.

function fillSummary() {
  const began = new Date(Number(BigInt(data.began) / 1000000n));
  const when = Number(data.began) ? ` from ${began.toISOString().replace("T", " ").slice(0, 19)} UTC` : "";
  const left = data.leftOut ? `; ${data.leftOut.toLocaleString("en")} later rows are not drawn` : "";
  document.getElementById("summary").textContent =
    `${counted(data.messages, "message")} in ${durationInWords(data.span)}${when}, ${counted(connections.length, "connection")}, by vhostuser ${data.version}${left}`;
}

function fillTiles() {
  const errors = findings.filter((each) => each.severity === "error").length;
  const leaks = ledger.l.filter(Boolean).length;
  const refusals = rows.f.filter((flags) => flags & REFUSED).length;
  const { most, mostBytes } = steps(view.connection);
  const tiles = [
    [chosen().messages?.toLocaleString("en") ?? "0", "messages here", "#sequence"],
    [most.toLocaleString("en"), "mappings at once", "#picture"],
    [bytesInWords(mostBytes), "mapped at most", "#picture"],
    [refusals.toLocaleString("en"), "refused", "#sequence"],
    [errors.toLocaleString("en"), "errors found", "#findings-section", errors],
    [(findings.length - errors).toLocaleString("en"), "warnings, advice", "#findings-section"],
    [ledger.i.length.toLocaleString("en"), "fds passed", "#ledger-section"],
    [leaks.toLocaleString("en"), "leaks", "#ledger-section", leaks],
  ];
  const peer = chosen().peer;
  if (peer) tiles.unshift([peer, "front-end", "#features-section"]);
  document.getElementById("tiles").replaceChildren(...tiles.map(([value, name, where, bad]) =>
    element("a", { class: bad ? "tile bad" : "tile", href: where }, element("b", {}, value), element("span", {}, name))));
}

/** Look at another connection. */
function choose(connection) {
  view.connection = connection;
  document.getElementById("connection").value = String(connection);
  const regions = document.getElementById("region");
  regions.replaceChildren(...chosen().regions.map(({ shmid, size }) =>
    element("option", { value: String(shmid) }, `${shmid}${size ? `: ${bytesInWords(size)}` : ""}`)));
  regions.disabled = regions.options.length < 2;
  view.shmid = Number(regions.value || 0);
  for (const fill of [fillTiles, fillLedger, fillFeatures, fillLatency, fillLegend]) fill();
  begin();
}

/** Files by colour, those of the region that is looked at. */
function fillLegend() {
  const seen = [...new Set(shownPlaced().filter((n) => !placed.x[n]).map((n) => placed.f[n]))];
  const entries = seen.slice(0, 8).map((f) => [f < 0 ? "no fd" : files[f].path || files[f].kind, (pen) => swatch(pen, fileColour(f), 1)]);
  if (seen.length > 8) entries.push([`${seen.length - 8} more files share these colours`, () => {}]);
  entries.push(["read-write", (pen) => swatch(pen, colour("quiet"), 1)], ["read-only", (pen) => swatch(pen, colour("quiet"), 0.55)]);
  entries.push(["refused", (pen) => hatch(pen, 0, 0, 14, 14, colour("bad"))]);
  const legend = document.getElementById("legend");
  legend.replaceChildren(...entries.map(([name, paint]) => {
    const canvas = element("canvas", { "aria-hidden": "true" });
    canvas.paint = paint;
    return element("span", {}, canvas, name);
  }));
}

function swatch(pen, ink, strength) {
  pen.globalAlpha = strength;
  pen.fillStyle = ink;
  pen.fillRect(0, 0, 14, 14);
  pen.globalAlpha = 1;
}

onRedraw(() => document.querySelectorAll("#legend canvas").forEach((canvas) => {
  const key = `${colour("ink")} ${window.devicePixelRatio}`;
  if (canvas.drawnFor === key) return;
  canvas.drawnFor = key;
  canvas.paint(prepared(canvas).pen);
}));

const system = window.matchMedia("(prefers-color-scheme: dark)");
let wanted = "";

/** The theme: what the button said last, else the system's. */
function applyTheme() {
  document.documentElement.dataset.theme = wanted || (system.matches ? "dark" : "light");
  redraw();
}

system.addEventListener("change", applyTheme);
document.getElementById("theme").addEventListener("click", () => {
  wanted = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  applyTheme();
});
document.getElementById("connection").replaceChildren(...connections.map(({ id, messages }) =>
  element("option", { value: String(id) }, `${id} (${counted(messages, "message")})`)));
document.getElementById("connection").addEventListener("change", (event) => {
  view.row = -1;
  detail.textContent = "";
  lanes.scrollTop = 0;
  choose(Number(event.target.value));
});
document.getElementById("region").addEventListener("change", (event) => {
  view.shmid = Number(event.target.value);
  fillLegend();
  begin();
});
