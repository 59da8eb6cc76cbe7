// How many mappings a connection has, and how many bytes, against the quota and the regions' size; one strip each.

const counts = document.getElementById("counts");
const stepsOf = new Map();

/** Moments at which a connection's mappings change, with their number and bytes from then on. */
function steps(connection) {
  if (stepsOf.has(connection)) return stepsOf.get(connection);
  const events = [];
  for (let n = 0; n < placed.c.length; n += 1) {
    if (placed.c[n] !== connection || placed.x[n]) continue;
    events.push([placed.b[n], 1, lengths[n]]);
    if (placed.e[n] >= 0) events.push([placed.e[n], -1, -lengths[n]]);
  }
  events.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  const found = { at: [0], count: [0], bytes: [0], most: 0, mostBytes: 0 };
  let [count, bytes] = [0, 0];
  for (const [at, more, size] of events) {
    [count, bytes] = [count + more, bytes + size];
    found.at.push(at);
    found.count.push(count);
    found.bytes.push(bytes);
    found.most = Math.max(found.most, count);
    found.mostBytes = Math.max(found.mostBytes, bytes);
  }
  stepsOf.set(connection, found);
  return found;
}

onRedraw(() => {
  const { pen, width, height } = prepared(counts);
  const found = steps(view.connection);
  const size = chosen().regions.reduce((sum, each) => sum + drawn(each.size), 0);
  const half = height / 2;
  drawSteps(pen, { found, values: found.count, most: found.most, limit: data.quota, top: 4, bottom: half - 6, width,
    label: `${counted(found.most, "mapping")} at most`, limitLabel: `quota ${data.quota.toLocaleString("en")}`, ink: colour("s0") });
  drawSteps(pen, { found, values: found.bytes, most: found.mostBytes, limit: size, top: half + 4, bottom: height - 6, width,
    label: `${bytesInWords(found.mostBytes)} at most`, limitLabel: `of ${bytesInWords(size)}`, ink: colour("s1") });
});

/** One strip: steps, filled, and the limit as a dashed line where it is near. */
function drawSteps(pen, { found, values, most, limit, top, bottom, width, label, limitLabel, ink }) {
  const time = new Scale(view.from, view.to, LEFT, width - RIGHT);
  const near = limit > 0 && most * 4 >= limit;
  const value = new Scale(0, Math.max(1, near ? limit : most) * 1.08, bottom, top);
  pen.fillStyle = ink;
  pen.globalAlpha = 0.35;
  fillSteps(pen, found.at, values, time, value, bottom);
  pen.globalAlpha = 1;
  pen.strokeStyle = colour("line");
  line(pen, LEFT, bottom + 0.5, width - RIGHT, bottom + 0.5);
  if (near) {
    pen.strokeStyle = colour("warn");
    pen.setLineDash([4, 3]);
    line(pen, LEFT, value.at(limit), width - RIGHT, value.at(limit));
    pen.setLineDash([]);
  }
  pen.fillStyle = colour("quiet");
  pen.textAlign = "left";
  const words = fitted(pen, `${label}, ${limitLabel}`, width - LEFT);
  pen.fillStyle = colour("surface");
  pen.fillRect(LEFT + 4, top, pen.measureText(words).width + 4, 14);
  pen.fillStyle = colour("quiet");
  pen.fillText(words, LEFT + 6, top + 7);
  const now = values[lowerBound(found.at, view.cursor + 1e-6) - 1] ?? 0;
  pen.textAlign = "right";
  pen.fillText(values === found.count ? String(now) : bytesInWords(now), LEFT - 8, (top + bottom) / 2);
  pen.strokeStyle = colour("ink");
  const x = time.at(view.cursor);
  if (x >= LEFT && x <= width - RIGHT) line(pen, x, top, x, bottom);
}

/** The area under steps; where many share a pixel, the highest. */
function fillSteps(pen, at, values, time, value, bottom) {
  const first = Math.max(0, lowerBound(at, view.from) - 1);
  let [x, height, highest] = [LEFT, 0, 0];
  pen.beginPath();
  pen.moveTo(LEFT, bottom);
  for (let n = first; n < at.length && at[n] <= view.to; n += 1) {
    const next = Math.max(LEFT, time.at(at[n]));
    if (next - x >= 1 || n === first) {
      pen.lineTo(x, value.at(highest));
      pen.lineTo(x, value.at(height));
      pen.lineTo(next, value.at(height));
      [x, highest] = [next, values[n]];
    }
    height = values[n];
    highest = Math.max(highest, height);
  }
  const end = Math.min(time.at(view.to), time.at(endOf(view.connection, -1)));
  pen.lineTo(x, value.at(highest));
  pen.lineTo(x, value.at(height));
  pen.lineTo(Math.max(x, end), value.at(height));
  pen.lineTo(Math.max(x, end), bottom);
  pen.fill();
}
