// Latencies of each request, in buckets of powers of two.

const LEAST = 10, BUCKETS = 26;

/** Latencies of the chosen connection by name, ascending. */
function latencies() {
  const found = new Map();
  rows.r.forEach((latency, row) => {
    if (latency < 0 || rows.c[row] !== view.connection) return;
    const name = texts[rows.k[row]];
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(latency);
  });
  for (const each of found.values()) each.sort((a, b) => a - b);
  return [...found].sort((a, b) => b[1].length - a[1].length);
}

/** The bucket of a latency: 2^10 ns and less is the first. */
const bucketOf = (latency) => Math.max(0, Math.min(BUCKETS - 1, Math.ceil(Math.log2(Math.max(1, latency))) - LEAST));

function fillLatency() {
  const host = document.getElementById("latency");
  const found = latencies();
  if (!found.length) return host.replaceChildren(element("p", { class: "quiet" }, "Nothing was answered."));
  fillTable(host, ["Request", "Replies", "Median", "99 %", "Slowest", `1 µs to ${durationInWords(2 ** (LEAST + BUCKETS - 1))}`], found, ([name, all]) => {
    const at = (part) => durationInWords(all[Math.min(all.length - 1, Math.floor(all.length * part))]);
    const bars = element("canvas", { class: "bars", role: "img", "aria-label": `Latencies of ${name}` });
    bars.latencies = all;
    return element("tr", {}, cell(name, "nowrap"), cell(all.length.toLocaleString("en")), cell(at(0.5), "nowrap"), cell(at(0.99), "nowrap"),
      cell(at(1), "nowrap"), element("td", {}, bars));
  });
}

onRedraw(() => document.querySelectorAll("canvas.bars").forEach(drawBars));

/** Bars, one a bucket; the height is the square root, so that single slow ones are seen beside many. */
function drawBars(canvas) {
  const key = [colour("ink"), canvas.clientWidth, window.devicePixelRatio].join();
  if (canvas.drawnFor === key) return;
  canvas.drawnFor = key;
  const { pen, width, height } = prepared(canvas);
  const numbers = new Array(BUCKETS).fill(0);
  for (const latency of canvas.latencies) numbers[bucketOf(latency)] += 1;
  const most = Math.max(...numbers);
  const step = width / BUCKETS;
  pen.strokeStyle = colour("line");
  line(pen, 0, height - 0.5, width, height - 0.5);
  pen.fillStyle = colour("s0");
  numbers.forEach((number, n) => {
    const h = number ? Math.max(2, Math.sqrt(number / most) * (height - 2)) : 0;
    pen.fillRect(n * step + 0.5, height - h, Math.max(1, step - 1.5), h);
  });
}

document.getElementById("latency").addEventListener("pointermove", (event) => {
  const canvas = event.target.closest("canvas.bars");
  if (!canvas) return hideHover();
  const bucket = Math.floor(pointOn(canvas, event)[0] / (canvas.clientWidth / BUCKETS));
  const number = canvas.latencies.filter((each) => bucketOf(each) === bucket).length;
  const to = durationInWords(2 ** (LEAST + bucket));
  showText(event, `${bucket ? `${durationInWords(2 ** (LEAST + bucket - 1))} to ` : "up to "}${to}: ${number.toLocaleString("en")}`);
});
document.getElementById("latency").addEventListener("pointerleave", hideHover);
