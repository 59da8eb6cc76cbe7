// What is looked at: connection, region, cursor, both ranges, the selected row. Whoever changes it calls `redraw`.

const view = { connection: 0, shmid: 0, cursor: 0, from: 0, to: 1, low: 0, high: 4096, row: -1, filter: "" };
const SMALLEST = 4096;
const SHORTEST = 100;
const drawers = [];
let waiting = false;

/** Let `draw` be called whenever something has changed. */
function onRedraw(draw) {
  drawers.push(draw);
}

/** Draw again, once, before the next frame. */
function redraw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(redrawNow);
}

function redrawNow() {
  waiting = false;
  for (const draw of drawers) draw();
}

/** The connection that is looked at. */
function chosen() {
  return connections.find((each) => each.id === view.connection) ?? { id: 0, regions: [], features: { virtio: [], protocol: [] } };
}

/** Bytes of the region that is looked at; where nobody said, as many as its mappings need. */
function regionSize() {
  const size = chosen().regions.find((each) => each.shmid === view.shmid)?.size ?? 0;
  if (size) return size;
  let end = 0;
  for (const n of shownPlaced()) if (!placed.x[n]) end = Math.max(end, offsets[n] + lengths[n]);
  return Math.max(SMALLEST, end);
}

const kept = { connection: null, shmid: null, placed: [], refusals: [], changes: [] };

/** What is kept of the region that is looked at, made anew for another one. */
function keptRegion() {
  if (kept.connection !== view.connection || kept.shmid !== view.shmid) {
    const { connection, shmid } = view;
    const found = placedIn(connection, shmid);
    Object.assign(kept, { connection, shmid, placed: found, refusals: found.filter((n) => placed.x[n]), changes: changesOf(found) });
  }
  return kept;
}

/** The mappings of the region that is looked at, refused ones among them. */
const shownPlaced = () => keptRegion().placed;

/** Those that were refused. */
const shownRefusals = () => keptRegion().refusals;

/** The time from which to which anything happened, with a margin. */
function wholeTime() {
  const margin = Math.max(data.span * 0.02, SHORTEST);
  return [-margin, data.span + margin];
}

/** Show all of the region, all the time. */
function fit() {
  [view.from, view.to] = wholeTime();
  [view.low, view.high] = [0, regionSize()];
  redraw();
}

/** Show the part of the time in which files were mapped, with the cursor where most were. */
function begin() {
  fit();
  const mappings = shownPlaced();
  if (!mappings.length) return setCursor(data.span / 2);
  const first = placed.b[mappings[0]];
  const last = mappings.reduce((most, n) => Math.max(most, placed.x[n] ? placed.b[n] : endOf(placed.c[n], placed.e[n])), first);
  const margin = Math.max((last - first) * 0.08, SHORTEST);
  if (last - first < data.span * 0.7) setTime(first - margin, last + margin);
  setCursor(fullest());
}

/** The middle of the time in which most mappings were there at once. */
function fullest() {
  const { at, count, most } = steps(view.connection);
  const begins = count.indexOf(most);
  return (at[begins] + (at[begins + 1] ?? endOf(view.connection, -1))) / 2;
}

/** Show times from `from` to `to`, as far as there is anything. */
function setTime(from, to) {
  const [first, last] = wholeTime();
  const width = Math.min(last - first, Math.max(SHORTEST, to - from));
  const middle = (from + to) / 2;
  view.from = Math.min(Math.max(first, middle - width / 2), last - width);
  view.to = view.from + width;
  redraw();
}

/** Show offsets from `low` to `high`, at least a page. */
function setOffsets(low, high) {
  const size = regionSize();
  const height = Math.min(size, Math.max(SMALLEST, high - low));
  const middle = (low + high) / 2;
  view.low = Math.min(Math.max(0, middle - height / 2), size - height);
  view.high = view.low + height;
  redraw();
}

/** Zoom in (a factor below 1) or out, with `at` where it is. */
function zoomTime(factor, at = view.cursor) {
  const anchor = Math.min(Math.max(at, view.from), view.to);
  setTime(anchor - (anchor - view.from) * factor, anchor + (view.to - anchor) * factor);
}

/** The same of offsets; by default around what the cursor is on, else the middle. */
function zoomOffsets(factor, at = (view.low + view.high) / 2) {
  setOffsets(at - (at - view.low) * factor, at + (view.high - at) * factor);
}

/** Put the cursor there, and show that time if it is out of sight. */
function setCursor(moment) {
  view.cursor = Math.min(Math.max(0, moment), data.span);
  if (view.cursor < view.from || view.cursor > view.to) {
    const half = (view.to - view.from) / 2;
    setTime(view.cursor - half, view.cursor + half);
  }
  redraw();
}

/** Moments at which a region with these mappings changes. */
function changesOf(mappings) {
  const found = new Set([0, data.span]);
  for (const n of mappings) {
    found.add(placed.b[n]);
    if (placed.e[n] >= 0) found.add(placed.e[n]);
  }
  for (const [at, connection] of data.resets) if (connection === view.connection) found.add(at);
  return [...found].sort((a, b) => a - b);
}

/** To the next change (1) or the one before (-1). */
function stepCursor(direction) {
  const all = keptRegion().changes;
  const here = lowerBound(all, view.cursor);
  if (direction < 0) setCursor(all[Math.max(0, here - 1)]);
  else setCursor(all[Math.min(all.length - 1, all[here] === view.cursor ? here + 1 : here)]);
}
