"use strict";
// Everything can be read without this: it opens what is linked to, and makes tables readable on a phone.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  // What sticks below the contents, or is scrolled to, has to know how many lines they take.
  const contents = document.querySelector('nav[aria-label="Contents"]');
  if (contents)
    new ResizeObserver(() => root.style.setProperty("--nav", `${contents.offsetHeight}px`)).observe(contents);

  const reveal = () => {
    const place = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!place) return;
    const inner = place.matches(".folded") ? place.querySelector("details") : place;
    for (let fold = inner.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    place.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  reveal();

  // On a phone rows become cards, whose cells need the names of their columns. `display` takes a table its meaning for
  // screen readers, so that is said again.
  const roles = { table: "table", thead: "rowgroup", tbody: "rowgroup", tr: "row", td: "cell" };
  for (const table of document.querySelectorAll(".scroll table:not(.facts, .sheet)")) {
    table.classList.add("stacked");
    const names = [...(table.tHead?.rows[0].cells ?? [])].map((cell) => cell.textContent);
    for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, n) => (cell.dataset.label = names[n] ?? ""));
    for (const part of [table, ...table.querySelectorAll(Object.keys(roles).join())]) part.setAttribute("role", roles[part.localName]);
    for (const head of table.querySelectorAll("th")) head.setAttribute("role", head.scope === "row" ? "rowheader" : "columnheader");
  }
})();
