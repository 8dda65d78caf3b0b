// Sort, filter and page the table of captions, and show one case at a time. Without this script, the page shows all.
"use strict";
document.documentElement.classList.add("js");

const table = document.getElementById("captions");
if (table) {
  const body = table.tBodies[0], all = [...body.rows], form = document.getElementById("filters");
  const text = new Map(all.map((row) => [row, row.textContent.toLowerCase()]));
  const cell = (row, column) => row.cells[column].textContent.trim();
  let shown = all, page = 0, order = { column: -1, sign: 1 };

  const number = (value) => { const found = parseFloat(value.replace(/,/g, "")); return isNaN(found) ? -Infinity : found; };
  const headers = [...table.tHead.rows[0].cells];
  const columnOf = (name) => headers.findIndex((header) => header.dataset.name === name);
  const keyOf = (column) => {
    const { ranks, numeric } = headers[column].dataset;
    if (ranks) return (row) => ranks.split(" ").indexOf(cell(row, column));
    return numeric === undefined ? (row) => cell(row, column).toLowerCase() : (row) => number(cell(row, column));
  };

  function draw() {
    const size = Number(form.elements.size.value), pages = Math.max(1, Math.ceil(shown.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    const part = shown.slice(page * size, (page + 1) * size);
    body.replaceChildren(...part);
    const from = part.length ? page * size + 1 : 0;
    document.getElementById("status").textContent =
      `${from} to ${page * size + part.length} of ${shown.length.toLocaleString("en")} captions`;
    form.elements.previous.disabled = page === 0;
    form.elements.next.disabled = page === pages - 1;
  }

  function update() {
    const { query, risk, verdict, host, rows } = form.elements;
    const [words, site, least] = [query.value.toLowerCase(), host?.value.toLowerCase(), Number(rows.value)];
    const [risks, verdicts, hosts, counts] = ["risk", "verdict", "host", "rows"].map(columnOf);
    shown = all.filter((row) =>
      text.get(row).includes(words) && (!risk.value || cell(row, risks) === risk.value) &&
      (!verdict.value || cell(row, verdicts) === verdict.value) &&
      (!site || cell(row, hosts).toLowerCase().includes(site)) && (!least || number(cell(row, counts)) >= least));
    if (order.column >= 0) {
      const key = keyOf(order.column), keys = new Map(shown.map((row) => [row, key(row)]));
      const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
      shown.sort((a, b) => order.sign * compare(keys.get(a), keys.get(b)));
    }
    page = 0;
    draw();
  }

  for (const [column, header] of headers.entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const descending = "numeric" in header.dataset || "ranks" in header.dataset;
      order = { column, sign: order.column === column ? -order.sign : descending ? -1 : 1 };
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", order.sign > 0 ? "ascending" : "descending");
      update();
    });
  }
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.previous.addEventListener("click", () => { page -= 1; draw(); });
  form.elements.next.addEventListener("click", () => { page += 1; draw(); });
  document.getElementById("all").addEventListener("click", () => {
    form.reset();
    order.column = -1;
    for (const header of headers) header.removeAttribute("aria-sort");
    update();
  });
  addEventListener("beforeprint", () => body.replaceChildren(...all));
  addEventListener("afterprint", draw);
  update();
}

const cases = [...document.querySelectorAll(".case[id]")];
function show() {
  const wanted = cases.find((found) => `#${found.id}` === location.hash);
  for (const found of cases) found.hidden = found !== (wanted ?? cases[0]);
  if (wanted) { wanted.scrollIntoView(); wanted.focus({ preventScroll: true }); }
}
addEventListener("hashchange", show);
addEventListener("beforeprint", () => { for (const found of cases) found.hidden = false; });
addEventListener("afterprint", show);
show();

for (const block of document.querySelectorAll("pre.command")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy the command");
  button.addEventListener("click", () => {
    getSelection().selectAllChildren(block.querySelector("code"));
    document.execCommand("copy");
    button.textContent = "Copied";
  });
  block.prepend(button);
}
