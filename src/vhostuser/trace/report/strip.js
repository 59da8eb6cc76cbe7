// The region at the cursor: what is mapped at that moment, at the same height as in the picture beside it.

const strip = document.getElementById("strip");

/** The mappings that are there at the cursor. */
function liveAtCursor() {
  return shownPlaced().filter((n) => livesAt(n, view.cursor));
}

onRedraw(() => {
  const { pen, width, height } = prepared(strip);
  const { offset } = plotScales();
  const live = liveAtCursor();
  pen.fillStyle = colour("outside");
  pen.fillRect(0, TOP, width, height - TOP - BOTTOM);
  for (const n of live) drawPiece(pen, n, offset, width, height);
  pen.strokeStyle = colour("line");
  pen.strokeRect(0.5, TOP + 0.5, width - 1, height - TOP - BOTTOM - 1);
  pen.fillStyle = colour("quiet");
  pen.textAlign = "left";
  pen.fillText(fitted(pen, `at ${momentInWords(view.cursor, (view.to - view.from) / 1000)}`, width), 0, TOP - 10);
  pen.fillText(fitted(pen, `${bytesInWords(view.low)} up to ${bytesInWords(view.high)}`, width), 0, height - BOTTOM + 13);
  describeMoment(live);
});

function drawPiece(pen, n, offset, width, height) {
  const top = Math.max(TOP, offset.at(offsets[n] + lengths[n]));
  const bottom = Math.min(height - BOTTOM, offset.at(offsets[n]));
  if (bottom < top) return;
  const h = Math.max(1, bottom - top);
  pen.fillStyle = fileColour(placed.f[n]);
  pen.globalAlpha = placed.w[n] ? 1 : 0.55;
  pen.fillRect(1, top, width - 2, h > 3 ? h - 1 : h);
  pen.globalAlpha = 1;
  if (h < 14) return;
  pen.fillStyle = placed.w[n] ? "#fff" : colour("ink");
  pen.textAlign = "left";
  const file = files[placed.f[n]];
  pen.fillText(fitted(pen, file ? shortName(file.path || file.kind) : "?", width - 12), 6, top + Math.min(h / 2, 12));
  if (h > 30) pen.fillText(fitted(pen, `${hex(placed.o[n])}, ${bytesInWords(placed.n[n])}`, width - 12), 6, top + 28);
}

/** The same in words, for who can't see it. */
function describeMoment(live) {
  const bytes = live.reduce((sum, n) => sum + lengths[n], 0);
  const text = `${momentInWords(view.cursor, 1000)}\n${counted(live.length, "mapping")} here, ${bytesInWords(bytes)} of ${bytesInWords(regionSize())}`;
  const place = document.getElementById("moment");
  if (place.textContent !== text) place.textContent = text;
}
