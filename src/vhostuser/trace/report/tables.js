// Tables: findings, fds, features. Text goes in as text, never as markup.

const PAGE_ROWS = 200;

/** An element with children, each a node or text. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") made.addEventListener("click", value);
    else if (value !== "") made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

/** A table that shows its first rows, and more on demand. */
function fillTable(host, heads, items, rowOf) {
  const body = element("tbody");
  const more = element("button", { onclick: () => add() });
  let shown = 0;
  function add() {
    for (const item of items.slice(shown, shown + PAGE_ROWS)) body.append(rowOf(item));
    shown = Math.min(items.length, shown + PAGE_ROWS);
    more.textContent = `${(items.length - shown).toLocaleString("en")} more`;
    more.hidden = shown >= items.length;
  }
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  host.replaceChildren(element("div", { class: "scroll" }, element("table", {}, element("thead", {}, head), body), more));
  add();
}

const cell = (text, kind = "") => element("td", { class: kind }, text);

/** A button that selects the row of a message. */
function linkTo(index, text) {
  const row = rowOfMessage.get(index);
  if (row === undefined) return document.createTextNode(text);
  return element("button", { class: "link", onclick: () => {
    select(row);
    document.getElementById("sequence").scrollIntoView({ block: "start" });
    lanes.focus({ preventScroll: true });
  } }, text);
}

const GRAVITY = { error: 0, warning: 1, advice: 2 };

function fillFindings() {
  const host = document.getElementById("findings");
  const sorted = findings.map((_, n) => n).sort((a, b) => GRAVITY[findings[a].severity] - GRAVITY[findings[b].severity] || a - b);
  if (!sorted.length) return host.replaceChildren(element("p", { class: "yes" }, "Nothing that the passive rules know of."));
  fillTable(host, ["", "What", "Rule", "Specification", "Message"], sorted, (n) => {
    const { i, rule, section, severity, text } = findings[n];
    return element("tr", {}, cell(severity, `nowrap ${severity}`), cell(text), cell(rule, "nowrap"), cell(section),
      element("td", { class: "nowrap" }, i < 0 ? "" : linkTo(i, `${nameOfMessage(i)} ${i}`)));
  });
  if (data.unlisted) host.append(element("p", {}, `${data.unlisted.toLocaleString("en")} more of rules that found a thousand are not listed.`));
}

function nameOfMessage(index) {
  const row = rowOfMessage.get(index);
  return row === undefined ? "message" : texts[rows.k[row]];
}

function fillLedger() {
  const leaksOnly = document.getElementById("leaks-only").checked;
  const found = ledger.i.map((_, n) => n).filter((n) => ledger.c[n] === view.connection && (!leaksOnly || ledger.l[n]));
  const host = document.getElementById("ledger");
  if (!found.length) return host.replaceChildren(element("p", { class: "quiet" }, leaksOnly ? "No leak that messages show." : "No fd passed."));
  fillTable(host, ["Sent", "By", "In", "fd", "What is behind it", "For", "Until", "Because"], found, (n) => {
    const file = files[ledger.f[n]];
    const until = ledger.e[n] >= 0 ? momentInWords(ledger.e[n]) : "";
    return element("tr", { class: ledger.l[n] ? "leak" : "" }, cell(momentInWords(ledger.t[n]), "nowrap"), cell(ledger.by[n], "nowrap"),
      element("td", { class: "nowrap" }, linkTo(ledger.i[n], ledger.q[n])), cell(String(ledger.n[n]), "nowrap"), cell(fileInWords(file)),
      cell(texts[ledger.p[n]]), cell(until, "nowrap"), cell(`${ledger.l[n] ? "leak? " : ""}${texts[ledger.z[n]]}`));
  });
}

function fileInWords(file) {
  const parts = [file.path || file.kind, file.ino ? `inode ${file.ino}` : "", file.size ? bytesInWords(file.size) : "", file.access,
    file.seals ? `sealed: ${file.seals}` : ""];
  return (file.path ? [file.kind, ...parts] : parts).filter(Boolean).join(", ");
}

function fillFeatures() {
  const { virtio, protocol } = chosen().features;
  const host = document.getElementById("features");
  host.replaceChildren(matrix("Protocol features", protocol), matrix("VIRTIO features", virtio));
}

function matrix(title, features) {
  const part = element("div", {}, element("h3", {}, title));
  const table = element("div");
  part.append(table);
  if (!features.length) table.append(element("p", { class: "quiet" }, "None was offered."));
  else fillTable(table, ["Bit", "Name", "Offered", "Acknowledged", "Used"], features, (each) => element("tr", {},
    cell(String(each.bit)), cell(each.name), ...["offered", "acknowledged", "used"].map((what) => cell(each[what] ? "yes" : "–", each[what] ? "yes" : ""))));
  return part;
}

document.getElementById("leaks-only").addEventListener("change", fillLedger);
