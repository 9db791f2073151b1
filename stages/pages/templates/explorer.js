"use strict";
// Examples that can be filtered, ordered, linked to and taken along, and words that explain themselves.
(() => {
  const hand = (name, text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  };
  // A text that a spreadsheet would compute is none any more behind an apostrophe.
  const field = (value) => {
    const text = typeof value === "string" ? value.replace(/^(?=[=+\-@\t\r])/, "'") : String(value ?? "");
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = (table) => table.map((row) => row.map(field).join(",") + "\r\n").join("");

  for (const button of document.querySelectorAll("[data-packed]"))
    button.addEventListener("click", async () => {
      const bytes = Uint8Array.from(atob(document.getElementById(button.dataset.packed).textContent), (c) => c.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      hand(`${button.dataset.packed}.csv`, await new Response(stream).text());
    });

  const data = document.getElementById("examples-rows");
  if (data) {
    const { columns, rows } = JSON.parse(data.textContent);
    const bar = document.querySelector(".explorer");
    const filters = [...bar.querySelectorAll("[data-column]")];
    const order = bar.querySelector("[data-order]");
    const places = rows.map(([id]) => {
      const card = document.getElementById(id);
      return card.closest(".rated") ?? card;
    });
    const shelves = [...document.querySelectorAll(".cases")].map((box) => ({ box, all: places.filter((place) => box.contains(place)) }));
    let shown = rows;

    const arrange = () => {
      const active = filters.filter((filter) => filter.value);
      const sign = Number(order?.value ?? 0);
      const off = (place) => rows[places.indexOf(place)][order.dataset.order] ?? 0;
      shown = rows.filter((row, n) => {
        const kept = active.every((filter) => String(row[filter.dataset.column]) === filter.value);
        places[n].hidden = !kept;
        return kept;
      });
      if (sign) shown.sort((a, b) => sign * ((a[order.dataset.order] ?? 0) - (b[order.dataset.order] ?? 0)));
      for (const { box, all } of shelves) {
        const [open, more] = box.querySelectorAll(".shelf");
        const sorted = sign ? [...all].sort((a, b) => sign * (off(a) - off(b))) : all;
        // What was folded to save room is not once somebody looks for something.
        const first = more && !active.length && !sign ? Number(box.dataset.first) : all.length;
        open.append(...sorted.slice(0, first));
        if (more) more.append(...sorted.slice(first));
        if (more) more.closest("details").hidden = first === all.length;
        const group = box.closest("[data-group]");
        if (group) group.hidden = all.every((place) => place.hidden);
      }
      bar.querySelector("[role=status]").textContent = `${shown.length} of ${rows.length} examples`;
    };
    bar.addEventListener("input", arrange);
    bar.querySelector("[data-download]").addEventListener("click", () => hand("examples.csv", csv([columns, ...shown])));
    arrange();

    // A link to an example that is filtered out or folded away shows it all the same.
    const follow = () => {
      const place = places[rows.findIndex(([id]) => `#${id}` === decodeURIComponent(location.hash))];
      if (!place) return;
      if (place.hidden) filters.forEach((filter) => (filter.value = ""));
      if (place.hidden) arrange();
      place.closest("details:not([open])")?.setAttribute("open", "");
      const card = document.getElementById(location.hash.slice(1));
      card.scrollIntoView({ block: "center" });
      card.focus({ preventScroll: true });
    };
    addEventListener("hashchange", follow);
    follow();
  }

  const tip = document.getElementById("tip");
  if (tip) {
    const hide = () => (tip.hidden = true);
    const show = ({ target }) => {
      const word = target.closest?.(".term");
      if (!word) return;
      tip.textContent = word.dataset.tip;
      tip.hidden = false;
      const { left, bottom, top } = word.getBoundingClientRect();
      tip.style.left = `${Math.max(8, Math.min(left, innerWidth - tip.offsetWidth - 8))}px`;
      tip.style.top = `${bottom + tip.offsetHeight + 12 > innerHeight ? top - tip.offsetHeight - 6 : bottom + 6}px`;
    };
    for (const kind of ["mouseover", "focusin"]) document.addEventListener(kind, show);
    for (const kind of ["mouseout", "focusout", "click"]) document.addEventListener(kind, hide);
    addEventListener("scroll", hide, { passive: true });
    addEventListener("keydown", ({ key }) => key === "Escape" && hide());
  }
})();
