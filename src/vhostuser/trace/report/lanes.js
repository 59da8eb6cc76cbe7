// The messages as arrows between front-end, back-end and queues; only the rows in sight are drawn.

const ROW = 30, HEAD = 26;
const lanes = document.getElementById("lanes");
const lanesCanvas = document.getElementById("lanes-canvas");
const lanesSpace = document.getElementById("lanes-space");
const detail = document.getElementById("detail");
let matching = [];
let matchingFor = null;

/** Rows of the chosen connection that have the words of the filter. */
function shownRows() {
  const key = `${view.connection} ${view.filter}`;
  if (key === matchingFor) return matching;
  matchingFor = key;
  const words = view.filter.toLowerCase().split(/\s+/).filter(Boolean);
  const lower = words.length ? texts.map((text) => text.toLowerCase()) : [];
  matching = [];
  for (let row = 0; row < rows.t.length; row += 1) {
    if (rows.c[row] === view.connection && words.every((word) => has(row, word, lower))) matching.push(row);
  }
  return matching;
}

const MARKS = [[REFUSED, "refused"], [FAULTY, "faulty"], [ORPHAN, "orphan"], [UNANSWERED, "unanswered"], [ALTERED, "altered"]];

function has(row, word, lower) {
  return lower[rows.k[row]].includes(word) || lower[rows.w[row]].includes(word) || lower[rows.a[row]].includes(word)
    || MARKS.some(([bit, name]) => rows.f[row] & bit && name.startsWith(word))
    || (word === "finding" && findingsOfRow.has(row));
}

/** Where the life lines are, and where the words begin. */
function columnsOf(canvasWidth) {
  const queues = rows.d.includes(QUEUE);
  const left = 112;
  const gap = Math.max(90, Math.min(230, canvasWidth * (queues ? 0.16 : 0.22)));
  const [front, back] = [left, left + gap];
  const queue = queues ? back + gap * 0.6 : null;
  return { front, back, queue, words: (queue ?? back) + 58 };
}

onRedraw(() => {
  lanesCanvas.style.height = `${lanes.clientHeight}px`;
  const found = shownRows();
  const space = `${Math.max(0, found.length * ROW + HEAD - lanes.clientHeight)}px`;
  if (lanesSpace.style.height !== space) lanesSpace.style.height = space;
  const { pen, width, height } = prepared(lanesCanvas);
  const columns = columnsOf(width);
  const first = Math.floor(lanes.scrollTop / ROW);
  const last = Math.min(found.length, first + Math.ceil(height / ROW) + 1);
  drawLifelines(pen, columns, height);
  for (let n = first; n < last; n += 1) drawRow(pen, found[n], HEAD + n * ROW - lanes.scrollTop, columns, width);
  drawHeads(pen, columns, width);
  const words = found.length === rows.t.length ? counted(found.length, "row") : `${counted(found.length, "row")} of ${rows.t.length.toLocaleString("en")}`;
  document.getElementById("shown").textContent = words;
});

function drawLifelines(pen, columns, height) {
  pen.strokeStyle = colour("line");
  for (const x of [columns.front, columns.back, columns.queue]) if (x) line(pen, x, HEAD, x, height);
}

function drawHeads(pen, columns, width) {
  pen.fillStyle = colour("surface");
  pen.fillRect(0, 0, width, HEAD);
  pen.strokeStyle = colour("line");
  line(pen, 0, HEAD - 0.5, width, HEAD - 0.5);
  pen.fillStyle = colour("quiet");
  pen.textAlign = "center";
  for (const [x, name] of [[columns.front, "front-end"], [columns.back, "back-end"], [columns.queue, "queues"]]) {
    if (x) pen.fillText(name, x, HEAD / 2);
  }
  pen.textAlign = "right";
  pen.fillText("time", 70, HEAD / 2);
}

/** The colour of a row: by who began it, or by what went wrong. */
function rowColour(row) {
  if (rows.f[row] & (REFUSED | FAULTY | ORPHAN | UNANSWERED)) return colour("bad");
  return [colour("s0"), colour("s1"), colour("s3"), colour("quiet")][rows.d[row]];
}

/** How thick an arrow is: a reply within 100 µs is thin, one after a second fat. */
function thickness(latency) {
  return latency < 0 ? 1.25 : Math.min(8, Math.max(1.25, 1.25 + (Math.log10(Math.max(1, latency)) - 5) * 1.7));
}

function drawRow(pen, row, top, columns, width) {
  const middle = top + ROW / 2;
  if (row === view.row) {
    pen.fillStyle = colour("select");
    pen.fillRect(0, top, width, ROW);
  }
  pen.textAlign = "right";
  pen.fillStyle = colour("quiet");
  pen.fillText(momentInWords(rows.t[row], 1e3), 92, middle);
  if (findingsOfRow.has(row)) drawFlag(pen, row, middle);
  if (rows.d[row] === REMARK) drawRemark(pen, row, middle, columns);
  else drawArrows(pen, row, middle, columns);
  drawWords(pen, row, middle, columns, width);
}

/** A mark for what has findings. */
function drawFlag(pen, row, middle) {
  const worst = findingsOfRow.get(row).map((n) => findings[n].severity);
  pen.fillStyle = colour(worst.includes("error") ? "bad" : worst.includes("warning") ? "warn" : "quiet");
  pen.beginPath();
  pen.arc(6, middle, 4, 0, 7);
  pen.fill();
}

function drawRemark(pen, row, middle, { front, back }) {
  pen.strokeStyle = colour("quiet");
  pen.setLineDash([2, 3]);
  line(pen, front - 8, middle, back + 8, middle);
  pen.setLineDash([]);
}

/** The request, and its reply right under it; a reply that is not there as a cross. */
function drawArrows(pen, row, middle, { front, back, queue }) {
  const [from, to] = [[front, back], [back, front], [front, queue]][rows.d[row]];
  const [latency, flags] = [rows.r[row], rows.f[row]];
  pen.strokeStyle = pen.fillStyle = rowColour(row);
  const answered = latency >= 0;
  const above = flags & ASKED ? middle - 5 : middle;
  arrow(pen, from, to, above, 1.5, flags & ORPHAN);
  if (answered) {
    arrow(pen, to, from, middle + 6, thickness(latency), true);
    const answer = texts[rows.a[row]];
    const words = flags & REFUSED && answer.length < 8 ? `${durationInWords(latency)} = ${answer}` : durationInWords(latency);
    pen.textAlign = "center";
    const middleX = (from + to) / 2;
    const room = pen.measureText(words).width + 6;
    pen.fillStyle = row === view.row ? colour("select") : colour("surface");
    pen.fillRect(middleX - room / 2, middle - 1, room, 14);
    pen.fillStyle = colour(flags & REFUSED ? "bad" : "quiet");
    pen.fillText(words, middleX, middle + 6);
  } else if (flags & UNANSWERED) {
    pen.textAlign = "center";
    pen.fillText("no reply", (from + to) / 2, middle + 6);
  }
}

function arrow(pen, from, to, y, thick, dashed) {
  const tip = Math.sign(to - from);
  pen.lineWidth = thick;
  if (dashed) pen.setLineDash([6, 3]);
  line(pen, from + tip * 3, y, to - tip * 9, y);
  pen.setLineDash([]);
  pen.lineWidth = 1;
  const size = 3.5 + thick / 2;
  pen.beginPath();
  pen.moveTo(to - tip * 2, y);
  pen.lineTo(to - tip * 10, y - size);
  pen.lineTo(to - tip * 10, y + size);
  pen.fill();
}

function drawWords(pen, row, middle, columns, width) {
  const name = texts[rows.k[row]];
  pen.textAlign = "left";
  pen.font = 'bold 12px system-ui, "DejaVu Sans", sans-serif';
  pen.fillStyle = rows.f[row] & (REFUSED | FAULTY | ORPHAN | UNANSWERED) ? colour("bad") : colour("ink");
  pen.fillText(name, columns.words, middle);
  const after = columns.words + pen.measureText(name).width + 8;
  pen.font = '12px system-ui, "DejaVu Sans", sans-serif';
  pen.fillStyle = colour("quiet");
  pen.fillText(fitted(pen, inOneLine(row), width - after - 6), after, middle);
}

/** Request and answer, as strace shows a call. */
function inOneLine(row) {
  const answer = texts[rows.a[row]];
  return answer ? `${texts[rows.w[row]]} = ${answer}` : texts[rows.w[row]];
}

/** Choose a row: show it, say all that is known of it, put the cursor there. */
function select(row, { scroll = true } = {}) {
  if (row < 0) return;
  if (rows.c[row] !== view.connection) choose(rows.c[row]);
  view.row = row;
  let place = shownRows().indexOf(row);
  if (place < 0) {
    setFilter("");
    place = shownRows().indexOf(row);
  }
  if (scroll) reveal(place);
  setCursor(rows.t[row] + Math.max(0, rows.r[row]));
  detail.textContent = detailOf(row);
}

/** Scroll so that the row at `place` is in sight. */
function reveal(place) {
  const space = Math.max(0, shownRows().length * ROW + HEAD - lanes.clientHeight);
  lanesSpace.style.height = `${space}px`;
  const [top, room] = [place * ROW, lanes.clientHeight - HEAD];
  if (top < lanes.scrollTop) lanes.scrollTop = top;
  else if (top + ROW > lanes.scrollTop + room) lanes.scrollTop = top + ROW - room;
}

function detailOf(row) {
  const who = ["front-end → back-end", "back-end → front-end", "driver → queue", "remark"][rows.d[row]];
  const numbers = rows.i[row] < 0 ? "" : `message ${rows.i[row]}${rows.j[row] >= 0 ? `, reply ${rows.j[row]}` : ""}`;
  const lines = [
    [momentInWords(rows.t[row], 1), who, numbers, rows.r[row] >= 0 ? durationInWords(rows.r[row]) : ""].filter(Boolean).join(" · "),
    `${texts[rows.k[row]]} ${inOneLine(row)}`,
    ...(findingsOfRow.get(row) ?? []).map((n) => `${findings[n].severity}: ${findings[n].text} [${findings[n].section}]`),
  ];
  return lines.join("\n");
}

function setFilter(text) {
  view.filter = text;
  document.getElementById("filter").value = text;
  redraw();
}

/** The row under a point. */
function rowAt(event) {
  const [, y] = pointOn(lanesCanvas, event);
  return y < HEAD ? -1 : shownRows()[Math.floor((y - HEAD + lanes.scrollTop) / ROW)] ?? -1;
}

lanes.addEventListener("scroll", redraw, { passive: true });
lanesCanvas.addEventListener("click", (event) => {
  lanes.focus({ preventScroll: true });
  select(rowAt(event), { scroll: false });
});

const LANE_KEYS = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12, Home: -Infinity, End: Infinity };
lanes.addEventListener("keydown", (event) => {
  if (!(event.key in LANE_KEYS)) return;
  event.preventDefault();
  const found = shownRows();
  const place = found.indexOf(view.row);
  const next = Math.max(0, Math.min(found.length - 1, (place < 0 ? -1 : place) + LANE_KEYS[event.key]));
  if (found.length) select(found[next]);
});
document.getElementById("filter").addEventListener("input", (event) => {
  lanes.scrollTop = 0;
  setFilter(event.target.value);
});
