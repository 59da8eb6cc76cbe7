// What the page shows: the block of JSON, and a few ways into it.

const data = JSON.parse(document.getElementById("data").textContent);
const { rows, placed, ledger, files, texts, findings, connections } = data;
const FORWARD = 0, BACKWARD = 1, QUEUE = 2, REMARK = 3;
const ASKED = 1, REFUSED = 2, FAULTY = 4, ORPHAN = 8, UNANSWERED = 16, ALTERED = 32;

/** A number for drawing; what was too large to be exact comes as text. */
const drawn = (value) => (typeof value === "string" ? Number(value) : value);
const offsets = placed.o.map(drawn);
const lengths = placed.n.map(drawn);

/** Row of the lanes by the index of a message, request or reply. */
const rowOfMessage = new Map();
rows.i.forEach((index, row) => index >= 0 && rowOfMessage.set(index, row));
rows.j.forEach((index, row) => index >= 0 && rowOfMessage.set(index, row));

/** The findings of each row, worst first. */
const findingsOfRow = new Map();
findings.forEach((finding, number) => {
  const row = rowOfMessage.get(finding.i);
  if (row === undefined) return;
  if (!findingsOfRow.has(row)) findingsOfRow.set(row, []);
  findingsOfRow.get(row).push(number);
});

const closings = new Map(connections.map(({ id, closed }) => [id, closed ?? data.span]));

/** When something ends that may go on: at the end of its connection, or of the capture. */
function endOf(connection, end) {
  return end >= 0 ? end : closings.get(connection) ?? data.span;
}

/** The mappings of a region, accepted or refused, in the order in which they began. */
function placedIn(connection, shmid) {
  const found = [];
  for (let n = 0; n < placed.c.length; n += 1) {
    if (placed.c[n] === connection && placed.s[n] === shmid) found.push(n);
  }
  return found.sort((a, b) => placed.b[a] - placed.b[b]);
}

/** A mapping is there at this moment. */
function livesAt(n, moment) {
  return !placed.x[n] && placed.b[n] <= moment && (placed.e[n] < 0 ? moment <= endOf(placed.c[n], -1) : moment < placed.e[n]);
}

/** The first place in `list`, which ascends, whose value is not below `value`. */
function lowerBound(list, value) {
  let low = 0;
  let high = list.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** What a mapping is, in lines. */
function placedInWords(n, moment) {
  const file = files[placed.f[n]];
  const age = placed.x[n] ? "" : `age ${durationInWords(Math.max(0, Math.min(moment, endOf(placed.c[n], placed.e[n])) - placed.b[n]))}`;
  const until = placed.e[n] < 0 ? "to the end" : `to ${momentInWords(placed.e[n])}`;
  return [
    file ? file.path || file.kind : "no fd",
    file ? `inode ${file.ino} on ${file.dev}, ${bytesInWords(file.size)}${file.seals ? `, sealed: ${file.seals}` : ""}` : "",
    `offset ${hex(placed.o[n])} + ${hex(placed.n[n])} (${bytesInWords(placed.n[n])})`,
    `file offset ${hex(placed.g[n])}, ${placed.w[n] ? "read-write" : "read-only"}`,
    placed.x[n] ? `${placed.x[n]} at ${momentInWords(placed.b[n])}` : `from ${momentInWords(placed.b[n])} ${until}`,
    age,
    ...(findingsOfRow.get(rowOfMessage.get(placed.i[n])) ?? []).map((number) => `${findings[number].severity}: ${findings[number].text}`),
  ].filter(Boolean).join("\n");
}
