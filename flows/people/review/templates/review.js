"use strict";
// Comfort only, the page works without: keys, a draft that outlives a crash, and the decision so far in words.
(() => {
  const form = document.getElementById("form");
  const cards = [...document.querySelectorAll(".mode-card")];
  document.documentElement.classList.add("js");

  // Keys: j and k walk the modes; r, a and i say what is to happen with the one that was walked to.
  let current = -1;
  cards.forEach((card, n) => card.addEventListener("focusin", () => (current = n)));
  const walk = (step) => {
    current = Math.min(cards.length - 1, Math.max(0, current + step));
    cards[current]?.focus({ preventScroll: true });
    cards[current]?.scrollIntoView({ block: "start" });
  };
  const choose = (action) => {
    const radio = [...(cards[current]?.querySelectorAll("input[type=radio]") ?? [])].find((r) => r.value === action);
    if (!radio) return;
    radio.checked = true;
    radio.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const typing = (target) => target.matches("textarea, select, input:not([type=radio]):not([type=checkbox])");
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target)) return;
    const help = document.querySelector("details.how");
    const keys = { j: () => walk(1), k: () => walk(-1), r: () => choose("repair"), a: () => choose("accept"), i: () => choose("ignore"),
      "?": () => { if (help) { help.open = true; help.querySelector("summary").focus(); help.scrollIntoView({ block: "center" }); } } };
    if (!Object.hasOwn(keys, event.key)) return;
    event.preventDefault();
    keys[event.key]();
  });
  if (!form) return;

  // The decision so far.
  const tally = document.getElementById("tally");
  const count = () => {
    const by = { repair: [], accept: [], ignore: [] };
    for (const card of cards) by[card.querySelector("input[name^='action.']:checked")?.value]?.push(card.dataset.mode);
    const said = Object.entries(by).filter(([, ids]) => ids.length).map(([action, ids]) => `${action} ${ids.join(", ")}`);
    tally.textContent = said.length ? `As it stands: ${said.join("; ")}.` : "";
    tally.hidden = !said.length;
  };

  // The draft, under the landscape it is about.
  const key = `faded-decision ${form.dataset.draft}`;
  const fields = () => [...form.elements].filter((e) => e.name && !["hidden", "submit"].includes(e.type) && !e.readOnly && e.name !== "revise");
  const store = (act) => { try { return act(localStorage); } catch { return null; } };
  const save = () => {
    const values = {};
    for (const e of fields()) if (!["radio", "checkbox"].includes(e.type) || e.checked) values[e.name] = e.value;
    store((s) => s.setItem(key, JSON.stringify({ when: Date.now(), values })));
  };
  const restore = (draft) => {
    for (const e of fields()) {
      const value = draft.values[e.name];
      if (typeof value !== "string") continue;
      if (["radio", "checkbox"].includes(e.type)) e.checked = e.value === value;
      else e.value = value;
    }
    const note = document.getElementById("draft");
    const again = document.createElement("button");
    again.type = "button";
    again.className = "plain";
    again.textContent = "Start over";
    again.addEventListener("click", () => { store((s) => s.removeItem(key)); location.reload(); });
    note.append(`Your draft of ${new Date(draft.when).toLocaleString()} is back. `, again);
    note.hidden = false;
  };
  if (!("kept" in form.dataset)) {
    try { const draft = JSON.parse(store((s) => s.getItem(key))); if (draft?.values) restore(draft); } catch { /* not ours */ }
  }
  form.addEventListener("input", () => { save(); count(); });
  // Pressed twice, it would be recorded once and then refused.
  form.addEventListener("submit", () => setTimeout(() => form.querySelectorAll(".buttons button").forEach((b) => (b.disabled = true))));
  addEventListener("pageshow", () => { form.querySelectorAll(".buttons button").forEach((b) => (b.disabled = false)); count(); });
  count();
})();
