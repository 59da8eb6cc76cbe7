// Saving: each row as one JSON object a line.

/** A row as an object that stands alone. */
function asObject(row) {
  const from = ["F>B", "B>F", "Q", ""][rows.d[row]];
  const found = { v: 1, t: rows.t[row] / 1e9, conn: rows.c[row], dir: from, msg: texts[rows.k[row]], text: texts[rows.w[row]] };
  if (rows.i[row] >= 0) found.index = rows.i[row];
  if (rows.j[row] >= 0) Object.assign(found, { reply: texts[rows.a[row]], lat_us: rows.r[row] / 1e3 });
  return found;
}

function save(name, chosenRows) {
  const lines = chosenRows.map((row) => `${JSON.stringify(asObject(row))}\n`);
  const url = URL.createObjectURL(new Blob(lines, { type: "application/x-ndjson" }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}

const everyRow = () => rows.t.map((_, row) => row);
document.getElementById("save").addEventListener("click", () => save("connection.jsonl", everyRow()));
document.getElementById("save-slice").addEventListener("click", () => {
  save("slice.jsonl", everyRow().filter((row) => rows.t[row] >= view.from && rows.t[row] <= view.to));
});
