"use strict";
// Shows the candidates of one verdict.
(() => {
  const choice = document.getElementById("verdict");
  const all = [...document.querySelectorAll("[data-verdict]")];
  const show = () => {
    for (const one of all) one.hidden = choice.value !== "" && one.dataset.verdict !== choice.value;
    const cards = all.filter((one) => one.matches(".mode"));
    choice.closest(".controls").querySelector("[role=status]").textContent =
      `${cards.filter((one) => !one.hidden).length} of ${cards.length} candidates`;
  };
  choice?.addEventListener("input", show);
  if (choice) show();
})();
