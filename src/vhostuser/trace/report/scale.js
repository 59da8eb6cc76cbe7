// Scales between values and pixels, canvases that are sharp, colours of the theme.

/** A line between values and pixels. The start is taken off before anything is multiplied, so large offsets stay exact. */
class Scale {
  constructor(from, to, start, end) {
    Object.assign(this, { from, to, start, end, factor: (end - start) / (to - from) });
  }

  at(value) {
    return this.start + (value - this.from) * this.factor;
  }

  back(pixel) {
    return this.from + (pixel - this.start) / this.factor;
  }
}

/** Steps of 1, 2 or 5 and zeros. */
function timeTicks(from, to, most) {
  const rough = (to - from) / most;
  const power = 10 ** Math.floor(Math.log10(Math.max(1, rough)));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough) ?? power * 10;
  return ticks(from, to, step);
}

/** Steps of powers of two. */
function byteTicks(from, to, most) {
  return ticks(from, to, Math.max(1, 2 ** Math.ceil(Math.log2((to - from) / most))));
}

function ticks(from, to, step) {
  const found = [];
  for (let n = Math.ceil(from / step); n * step <= to && found.length < 200; n += 1) found.push(n * step);
  return { step, found };
}

const css = { theme: "", values: {} };

/** A colour of the theme by name: `ink`, `s3`. */
function colour(name) {
  const theme = document.documentElement.dataset.theme;
  if (css.theme !== theme) Object.assign(css, { theme, values: {} });
  css.values[name] ??= getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  return css.values[name];
}

/** The colour of a file: each of the first eight has its own, later ones share. */
function fileColour(number) {
  return number < 0 ? colour("quiet") : colour(`s${number % 8}`);
}

/** A canvas made ready: as many pixels as the screen has there, cleared. */
function prepared(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const ratio = window.devicePixelRatio || 1;
  const [w, h] = [Math.max(1, Math.round(width * ratio)), Math.max(1, Math.round(height * ratio))];
  if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = '12px system-ui, "DejaVu Sans", sans-serif';
  pen.textBaseline = "middle";
  return { pen, width, height };
}

/** `text`, cut so that it fits `room`; empty if nothing does. */
function fitted(pen, text, room) {
  if (room < 12) return "";
  if (pen.measureText(text).width <= room) return text;
  let low = 0;
  let high = text.length;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (pen.measureText(`${text.slice(0, middle)}…`).width <= room) low = middle;
    else high = middle - 1;
  }
  return low ? `${text.slice(0, low)}…` : "";
}

/** A filled line from one point to another, sharp where it is straight. */
function line(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

/** Diagonal lines inside a rectangle. */
function hatch(pen, x, y, w, h, ink) {
  pen.save();
  pen.beginPath();
  pen.rect(x, y, w, h);
  pen.clip();
  pen.strokeStyle = ink;
  pen.lineWidth = 1.5;
  for (let at = x - h; at < x + w; at += 6) line(pen, at, y + h, at + h, y);
  pen.restore();
  pen.strokeStyle = ink;
  pen.lineWidth = 1;
  pen.strokeRect(x + 0.5, y + 0.5, Math.max(1, w - 1), Math.max(1, h - 1));
}
