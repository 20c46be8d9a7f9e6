// Deal each slide's blocks (a paragraph, a cell's code, one output) out to as many slides of 1280 x 720 as they need, by
// the heights that this machine's fonts give them, and start reveal.js. What is higher than a slide is cut at a line or row.
const ROOM = 700, WIDTH = 1180;

function blocks(slide) { // the blocks of a slide, each in the classes that style it
  const found = [];
  for (const cell of slide.querySelectorAll(":scope > .jp-Cell, :scope > .fragment > .jp-Cell")) {
    const prose = cell.matches(".jp-MarkdownCell") && cell.querySelector(".jp-RenderedMarkdown");
    const parts = prose ? [...prose.children] : [...cell.querySelectorAll(".jp-InputArea, .jp-OutputArea-child")];
    parts.forEach((part, i) => {
      const block = document.createElement("div");
      block.className = "block " + (prose ? "jp-RenderedHTMLCommon" : cell.className);
      if (i === 0) block.id = cell.id;
      block.append(part);
      found.push(block);
    });
  }
  return found;
}

function cut(block, fits) { // move the lines or rows that do not fit into a copy of the block; null where there are none
  const [table, pre] = ["table", "pre"].map(name => block.querySelector(name));
  if (!table && !pre) return null;
  const rest = block.cloneNode(true);
  rest.removeAttribute("id");
  const moved = [];
  if (table) {
    const [here, there] = [table, rest.querySelector("table")].map(t => [...t.rows].filter(row => !row.closest("thead")));
    let kept = here.length;
    if (!table.tHead && here[0]?.querySelector("th")) { here.shift(); there.shift(); kept--; } // a header without thead
    while (kept > 0 && !fits()) here[--kept].remove();
    there.slice(0, kept).forEach(row => row.remove());
    return kept > 0 && kept < here.length ? rest : (table.tBodies[0].append(...here.slice(kept)), null);
  }
  const lines = pre.innerHTML.split("\n");
  let kept = lines.length;
  while (kept > 0 && !fits()) pre.innerHTML = lines.slice(0, --kept).join("\n");
  rest.querySelector("pre").innerHTML = lines.slice(kept).join("\n");
  if (kept > 2 && kept < lines.length) return rest;
  pre.innerHTML = lines.join("\n");
  return null;
}

function fold(table) { // columns that do not fit go to a table below, with the first column again
  if (table.offsetWidth > WIDTH) table.classList.add("narrow");
  if (table.offsetWidth <= WIDTH || table.querySelector("[colspan], [rowspan]")) return;
  const below = table.cloneNode(true);
  let kept = table.rows[0].cells.length;
  for (; kept > 2 && table.offsetWidth > WIDTH; kept--) for (const row of table.rows) row.deleteCell(-1);
  for (const row of below.rows) for (let i = 1; i < kept; i++) row.deleteCell(1);
  const output = table.closest(".jp-OutputArea-child"), copy = output?.cloneNode(true);
  copy?.querySelector("table").replaceWith(below); // an output of its own, which may go to another slide
  output ? output.after(copy) : table.after(below);
  if (kept > 2) fold(below);
}

function unspan(table) { // a cell over several rows becomes one cell in each, so that the table can be cut between them
  for (const row of table.tBodies[0]?.rows ?? []) for (const cell of row.querySelectorAll("[rowspan]")) {
    let below = row;
    for (let n = cell.rowSpan; n > 1 && (below = below.nextElementSibling); n--) {
      const copy = cell.cloneNode(false);
      copy.removeAttribute("rowspan");
      below.insertBefore(copy, below.cells[cell.cellIndex] ?? null);
    }
    cell.removeAttribute("rowspan");
  }
}

function deal(slide) {
  const notes = [...slide.querySelectorAll(":scope > aside")];
  const todo = blocks(slide);
  const title = todo[0]?.querySelector("h1, h2, h3")?.textContent.replace("¶", "") ?? slide.parentNode.dataset.running;
  if (!title?.startsWith("Exercise")) slide.parentNode.dataset.running = title ?? "";
  if (!todo[0]?.querySelector("h1, h2, h3")) slide.dataset.title = title ?? "";
  let page = slide;
  page.replaceChildren(...notes);
  const bottom = block => block.getBoundingClientRect().bottom - page.getBoundingClientRect().top;
  const next = () => {
    const fresh = document.createElement("section");
    fresh.dataset.title = title ?? "";
    page.after(fresh);
    page = fresh;
  };
  while (todo.length) {
    const block = todo.shift();
    page.append(block);
    if (bottom(block) <= ROOM) continue;
    const before = [...page.querySelectorAll(":scope > .block")].slice(0, -1);
    const along = []; // a heading, and the sentence that leads to a cell, go with it
    while (before.at(-1)?.firstElementChild.matches(along.length ? "h1, h2, h3" : "h1, h2, h3, p")) along.unshift(before.pop());
    const [room, own] = [ROOM - 100, block.offsetHeight];
    const together = along.reduce((sum, other) => sum + other.offsetHeight, own) <= room;
    const rest = own <= room ? null : cut(block, () => bottom(block) <= ROOM);
    if (!rest && !before.length && !along.length) continue; // alone and too high: the test of the slides finds it
    next();
    todo.unshift(...(rest ? [rest] : before.length && together ? [...along, block] : [block]));
  }
}

window.addEventListener("load", () => MathJax.Hub.Queue(() => { // when all formulas are set
  const slides = document.querySelector(".slides");
  slides.querySelectorAll("table").forEach(table => { unspan(table); fold(table); });
  for (const slide of slides.querySelectorAll("section > section")) deal(slide);
  slides.classList.add("dealt");
  Reveal.initialize({
    width: 1280, height: 720, margin: 0, center: false, hash: true, transition: "none", slideNumber: "c/t", controlsTutorial: false, plugins: [RevealNotes],
  });
}));
