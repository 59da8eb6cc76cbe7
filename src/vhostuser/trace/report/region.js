// The picture: mappings as rectangles, time to the right and offsets up; refusals, resets, the cursor.

const LEFT = 86, RIGHT = 6, TOP = 22, BOTTOM = 24;
const plot = document.getElementById("plot");
const layer = document.createElement("canvas");
let layerKey = "";

/** Both scales of the picture at its present size, and that size. */
function plotScales() {
  const { clientWidth: width, clientHeight: height } = plot;
  const time = new Scale(view.from, view.to, LEFT, width - RIGHT);
  const offset = new Scale(view.low, view.high, height - BOTTOM, TOP);
  return { time, offset, right: width - RIGHT, bottom: height - BOTTOM, beyond: view.high === regionSize() ? view.high : Infinity };
}

/** Where a mapping is on the canvas, cut to what is in sight; null if it is out of sight. */
function box(n, { time, offset, right, bottom, beyond }) {
  let [left, end] = [time.at(placed.b[n]), 0];
  if (placed.x[n]) [left, end] = [left - 5, left + 5];
  else end = time.at(endOf(placed.c[n], placed.e[n]));
  if (end < LEFT || left > right) return null;
  let [top, base] = [offset.at(offsets[n] + lengths[n]), offset.at(offsets[n])];
  if (placed.x[n] && offsets[n] >= beyond) [top, base] = [TOP, TOP + 9];
  if (base < TOP || top > bottom) return null;
  left = Math.max(LEFT, left);
  top = Math.max(TOP, top);
  return { left, top, width: Math.max(Math.min(right, end) - left, 1), height: Math.max(Math.min(bottom, base) - top, 1) };
}

onRedraw(() => {
  const key = JSON.stringify([view.connection, view.shmid, view.from, view.to, view.low, view.high, colour("ink"),
    plot.clientWidth, plot.clientHeight, window.devicePixelRatio]);
  if (key !== layerKey) {
    layerKey = key;
    drawLayer();
  }
  const { pen, width, height } = prepared(plot);
  pen.drawImage(layer, 0, 0, width, height);
  drawCursor(pen, height);
});

/** All but the cursor, kept until something else than the cursor moves. */
function drawLayer() {
  Object.assign(layer, { width: 0 });
  Object.defineProperty(layer, "clientWidth", { value: plot.clientWidth, configurable: true });
  Object.defineProperty(layer, "clientHeight", { value: plot.clientHeight, configurable: true });
  const { pen, width, height } = prepared(layer);
  const scales = plotScales();
  drawGrid(pen, width, height, scales);
  drawMappings(pen, scales);
  for (const n of shownRefusals()) drawRefusal(pen, n, box(n, scales));
  drawEnds(pen, height, scales);
}

function drawGrid(pen, width, height, { time, offset }) {
  const bytes = byteTicks(view.low, view.high, Math.max(2, height / 48));
  pen.strokeStyle = colour("grid");
  pen.fillStyle = colour("quiet");
  pen.textAlign = "right";
  for (const at of bytes.found) {
    line(pen, LEFT, offset.at(at), width - RIGHT, offset.at(at));
    pen.fillText(offsetLabel(at, bytes.step), LEFT - 8, offset.at(at));
  }
  const moments = timeTicks(view.from, view.to, Math.max(2, (width - LEFT) / 120));
  pen.textAlign = "center";
  for (const at of moments.found) {
    if (time.at(at) < LEFT + 20 || time.at(at) > width - RIGHT - 24) continue;
    line(pen, time.at(at), TOP, time.at(at), height - BOTTOM);
    pen.fillText(momentInWords(at, moments.step), time.at(at), height - BOTTOM + 13);
  }
  pen.textAlign = "left";
  pen.strokeStyle = colour("line");
  pen.strokeRect(LEFT + 0.5, TOP + 0.5, width - LEFT - RIGHT - 1, height - TOP - BOTTOM - 1);
}

/** An offset in words while it is a round number of them, else in hexadecimal. */
function offsetLabel(at, step) {
  const words = bytesInWords(at);
  return at === 0 ? "0" : /\./.test(words) || step < 4096 ? hex(at) : words;
}

/** All mappings in sight; of those that are less than a pixel and fall on the one before, one is enough. */
function drawMappings(pen, scales) {
  const inks = files.map((_, number) => fileColour(number));
  let last = "";
  for (const n of shownPlaced()) {
    const place = placed.x[n] ? null : box(n, scales);
    if (!place) continue;
    if (place.width <= 1 && place.height <= 1) {
      const pixel = `${Math.floor(place.left)} ${Math.floor(place.top)}`;
      if (pixel === last) continue;
      last = pixel;
    }
    drawMapping(pen, n, place, inks[placed.f[n]] ?? fileColour(-1));
  }
}

function drawMapping(pen, n, { left, top, width, height }, ink) {
  pen.fillStyle = ink;
  pen.globalAlpha = placed.w[n] ? 1 : 0.55;
  const [w, h] = [width > 3 ? width - 1 : width, height > 3 ? height - 1 : height];
  pen.fillRect(left, top, w, h);
  pen.globalAlpha = 1;
  if (width < 46 || height < 15) return;
  pen.fillStyle = placed.w[n] ? "#fff" : colour("ink");
  pen.textAlign = "left";
  const name = files[placed.f[n]] ? shortName(files[placed.f[n]].path || files[placed.f[n]].kind) : "";
  pen.fillText(fitted(pen, `${name} ${placed.w[n] ? "rw" : "ro"}`, width - 10), left + 5, top + Math.min(height / 2, 12));
}

function drawRefusal(pen, n, place) {
  if (!place) return;
  const { left, top, width, height } = place;
  const h = Math.max(height, 6);
  pen.fillStyle = colour("surface");
  pen.fillRect(left, top, width, h);
  hatch(pen, left, top, width, h, colour("bad"));
  pen.fillStyle = colour("bad");
  if (!crowded(n)) labelBeside(pen, whyRefused(n), left, left + width, top + Math.min(h / 2, 12));
}

/** Words beside a mark: after it, or before it where there is more room. */
function labelBeside(pen, text, left, right, middle) {
  const [before, after] = [left - LEFT - 8, plot.clientWidth - RIGHT - right - 8];
  const wide = pen.measureText(text).width;
  const words = fitted(pen, text, Math.max(before, after));
  const start = wide <= after || after > before ? right + 5 : left - 5 - Math.min(wide, before);
  pen.textAlign = "left";
  pen.fillStyle = colour("surface");
  pen.fillRect(start - 2, middle - 7, pen.measureText(words).width + 4, 14);
  pen.fillStyle = colour("bad");
  pen.fillText(words, start, middle);
}

const CAUSES = { "map-overlap": "overlaps", "map-outside": "outside", "map-unaligned": "not aligned", "map-flags": "flags",
  "map-region": "no such region", "map-kind": "can't be mapped", "map-read-only": "read-only fd", "map-access": "access",
  "map-past-end": "past the file's end", "map-stopped": "not running", "fd-count": "fds" };

/** The reason of a refusal in a few words: what was answered, and what the passive rules see. */
function whyRefused(n) {
  const found = findingsOfRow.get(rowOfMessage.get(placed.i[n])) ?? [];
  const cause = found.map((number) => CAUSES[findings[number].rule]).find(Boolean);
  return cause ? `${placed.x[n]}: ${cause}` : placed.x[n];
}

/** There are too many refusals near this one for words. */
function crowded(n) {
  const all = shownRefusals();
  return all.length > 40 && all.some((each) => each < n && Math.abs(placed.b[each] - placed.b[n]) < (view.to - view.from) / 8);
}

/** Resets and ends of the connection. */
function drawEnds(pen, height, { time }) {
  const moments = data.resets.filter(([, of]) => of === view.connection).map(([at]) => [at, "reset", "warn"]);
  const { opened, closed } = chosen();
  if (opened != null) moments.push([opened, "opened", "quiet"]);
  if (closed != null) moments.push([closed, "closed", "quiet"]);
  pen.setLineDash([5, 4]);
  pen.textAlign = "center";
  let last = -Infinity;
  for (const [at, name, ink] of moments.sort((a, b) => a[0] - b[0])) {
    const x = time.at(at);
    if (x < LEFT || x > plot.clientWidth - RIGHT) continue;
    pen.strokeStyle = colour(ink);
    pen.lineWidth = 1.5;
    line(pen, x, TOP, x, height - BOTTOM);
    pen.fillStyle = colour(ink);
    if (x - last > 48) pen.fillText(name, Math.max(LEFT + 22, Math.min(plot.clientWidth - RIGHT - 22, x)), TOP - 9);
    last = x;
  }
  pen.setLineDash([]);
  pen.lineWidth = 1;
}

function drawCursor(pen, height) {
  const x = plotScales().time.at(view.cursor);
  if (x < LEFT - 1 || x > plot.clientWidth - RIGHT + 1) return;
  pen.strokeStyle = pen.fillStyle = colour("ink");
  pen.lineWidth = 1.5;
  line(pen, x, TOP - 2, x, height - BOTTOM);
  pen.beginPath();
  pen.moveTo(x - 6, height - BOTTOM + 8);
  pen.lineTo(x + 6, height - BOTTOM + 8);
  pen.lineTo(x, height - BOTTOM);
  pen.fill();
}

/** The mapping under a point of the canvas; refusals come first, then what was drawn last. */
function placedAt(x, y) {
  const scales = plotScales();
  let found = -1;
  for (const n of shownPlaced()) {
    const place = box(n, scales);
    if (!place || y < place.top - 1 || y > place.top + Math.max(place.height, 6) + 1) continue;
    const slack = place.width < 4 ? 3 : 0;
    const inside = x >= place.left - slack && x <= place.left + place.width + slack;
    if (inside && (found < 0 || placed.x[n] || !placed.x[found])) found = n;
  }
  return found;
}
