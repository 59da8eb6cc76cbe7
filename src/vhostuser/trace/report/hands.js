// What mouse and keyboard do in the picture.

const hover = document.getElementById("hover");
let drag = null;

/** A point of an event on the canvas. */
function pointOn(canvas, event) {
  const place = canvas.getBoundingClientRect();
  return [event.clientX - place.left, event.clientY - place.top];
}

plot.addEventListener("pointerdown", (event) => {
  if (event.button > 1) return;
  const [x, y] = pointOn(plot, event);
  const moves = event.shiftKey || event.button === 1;
  drag = { x, y, moves, from: view.from, to: view.to, low: view.low, high: view.high };
  plot.setPointerCapture(event.pointerId);
  plot.focus({ preventScroll: true });
  event.preventDefault();
  if (!moves) setCursor(plotScales().time.back(x));
});

plot.addEventListener("pointermove", (event) => {
  const [x, y] = pointOn(plot, event);
  if (!drag) return showHover(event, x, y);
  hideHover();
  if (!drag.moves) return setCursor(clamped(plotScales().time.back(x)));
  const { time, offset } = plotScales();
  const [dx, dy] = [(drag.x - x) / time.factor, (drag.y - y) / offset.factor];
  setTime(drag.from + dx, drag.to + dx);
  setOffsets(drag.low + dy, drag.high + dy);
});

/** A moment within sight. */
function clamped(moment) {
  return Math.min(Math.max(moment, view.from), view.to);
}

plot.addEventListener("pointerup", (event) => {
  const [x, y] = pointOn(plot, event);
  const still = drag && Math.hypot(x - drag.x, y - drag.y) < 4;
  drag = null;
  if (still && placedAt(x, y) >= 0) select(rowOfMessage.get(placed.i[placedAt(x, y)]) ?? -1);
});
plot.addEventListener("pointercancel", () => { drag = null; });
plot.addEventListener("pointerleave", hideHover);

plot.addEventListener("wheel", (event) => {
  event.preventDefault();
  hideHover();
  const [x, y] = pointOn(plot, event);
  const { time, offset } = plotScales();
  const turn = Math.abs(event.deltaY) > Math.abs(event.deltaX) ? event.deltaY : event.shiftKey ? event.deltaX : 0;
  if (!turn) return setTime(view.from + event.deltaX / time.factor, view.to + event.deltaX / time.factor);
  const factor = 1.25 ** Math.max(-3, Math.min(3, turn / 100));
  if (event.ctrlKey || event.shiftKey || x < LEFT) zoomOffsets(factor, Math.min(Math.max(offset.back(y), view.low), view.high));
  else zoomTime(factor, clamped(time.back(x)));
}, { passive: false });

function showHover(event, x, y) {
  const n = placedAt(x, y);
  if (n < 0) return hideHover();
  showText(event, placedInWords(n, view.cursor));
}

/** Lines of text beside the pointer, where there is room. */
function showText(event, text) {
  hover.textContent = text;
  hover.hidden = false;
  const { width, height } = hover.getBoundingClientRect();
  const left = event.clientX + 16 + width > window.innerWidth ? event.clientX - width - 12 : event.clientX + 16;
  const top = Math.min(event.clientY + 14, window.innerHeight - height - 6);
  hover.style.left = `${Math.max(4, left)}px`;
  hover.style.top = `${Math.max(4, top)}px`;
}

function hideHover() {
  hover.hidden = true;
}

/** What a mapping in the strip is. */
strip.addEventListener("pointermove", (event) => {
  const [, y] = pointOn(strip, event);
  const at = plotScales().offset.back(y);
  const n = liveAtCursor().find((each) => at >= offsets[each] && at < offsets[each] + lengths[each]);
  if (n === undefined) hideHover();
  else showText(event, placedInWords(n, view.cursor));
});
strip.addEventListener("pointerleave", hideHover);

const width = () => view.to - view.from;
const height = () => view.high - view.low;
const KEYS = {
  ArrowRight: (shift) => (shift ? setCursor(view.cursor + width() / 100) : stepCursor(1)),
  ArrowLeft: (shift) => (shift ? setCursor(view.cursor - width() / 100) : stepCursor(-1)),
  Home: () => setCursor(0),
  End: () => setCursor(data.span),
  PageUp: () => setOffsets(view.low + height() / 4, view.high + height() / 4),
  PageDown: () => setOffsets(view.low - height() / 4, view.high - height() / 4),
  ArrowUp: () => setOffsets(view.low + height() / 20, view.high + height() / 20),
  ArrowDown: () => setOffsets(view.low - height() / 20, view.high - height() / 20),
  "+": () => zoomOffsets(0.5),
  "=": () => zoomOffsets(0.5),
  "-": () => zoomOffsets(2),
  w: () => zoomTime(0.5),
  s: () => zoomTime(2),
  a: () => setTime(view.from - width() / 8, view.to - width() / 8),
  d: () => setTime(view.from + width() / 8, view.to + width() / 8),
  0: fit,
};

plot.addEventListener("keydown", (event) => {
  const act = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
  if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  hideHover();
  act(event.shiftKey);
});

for (const [id, act] of [["time-in", () => zoomTime(0.5)], ["time-out", () => zoomTime(2)], ["offset-in", () => zoomOffsets(0.5)],
  ["offset-out", () => zoomOffsets(2)], ["fit", fit]]) {
  document.getElementById(id).addEventListener("click", act);
}

onRedraw(() => {
  const text = `${durationInWords(Math.round(width()))} by ${bytesInWords(Math.round(height()))} of ${bytesInWords(regionSize())}`;
  const place = document.getElementById("scale");
  if (place.textContent !== text) place.textContent = text;
});
