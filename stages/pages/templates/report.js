"use strict";
// Unpacks plotly when the page is idle or a chart comes near the screen, draws all charts that are not folded away,
// switches them with their selectors, and lends them the colours of the page.
(() => {
  const figures = [...document.querySelectorAll(".plot")];
  const root = document.documentElement;
  // What sticks below the contents, or is scrolled to, has to know how many lines they take.
  const contents = document.querySelector('nav[aria-label="Contents"]');
  if (contents)
    new ResizeObserver(() => root.style.setProperty("--nav", `${contents.offsetHeight}px`)).observe(contents);
  const say = (text) => {
    const note = document.getElementById("no-charts");
    note.textContent = text;
    note.hidden = false;
    figures.forEach((div) => div.classList.add("unavailable"));
  };

  let library;
  const plotly = () => (library ??= (async () => {
    if (!("DecompressionStream" in window))
      throw new Error("This browser is too old to unpack the charts (it lacks DecompressionStream).");
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    if (!window.Plotly) throw new Error("This browser refused to run the chart library in this file.");
    return window.Plotly;
  })());

  const themed = (layout) => {
    const css = getComputedStyle(document.body);
    const colour = (name) => css.getPropertyValue(name).trim();
    const [ink, line, card, grid] = ["--ink", "--line", "--card", "--grid"].map(colour);
    const axis = (a) => ({ ...a, gridcolor: line, zerolinecolor: line, linecolor: line, color: ink,
      showbackground: false, showspikes: false, title: { ...a.title, font: { size: 13 } } });
    const out = { ...layout, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: css.fontFamily, size: 12, color: ink },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--soft"), activecolor: ink },
      hoverlabel: { align: "left", bgcolor: card, bordercolor: line, font: { color: ink, family: css.fontFamily } } };
    for (const key of Object.keys(out)) if (/^[xy]axis/.test(key)) out[key] = axis(out[key]);
    if (out.scene) {
      out.scene = { ...out.scene };
      for (const key of ["xaxis", "yaxis", "zaxis"]) out.scene[key] = { ...axis(out.scene[key]), gridcolor: grid, zerolinecolor: grid };
    }
    return out;
  };

  const variants = new Map();
  const choice = (div) => {
    const select = div.dataset.selector && document.getElementById(div.dataset.selector);
    return select ? Number(select.value) : 0;
  };
  // Points below the chosen rate are hidden by their size, so that colours and axes stay as they are.
  const filtered = (div, data) => {
    const slider = div.dataset.selector && document.getElementById(`${div.dataset.selector}-least`);
    const least = slider ? Number(slider.value) / 100 : 0;
    if (!least) return data;
    return data.map((t) => t.type !== "scatter3d" ? t
      : { ...t, marker: { ...t.marker, size: t.marker.size.map((s, i) => (t.marker.color[i] >= least ? s : 0)) } });
  };

  // On a phone the cube is seen from further away and the colour bar lies across the top.
  const fitted = (div, figure) => {
    if (div.clientWidth >= 560) return figure;
    const { eye } = figure.layout.scene?.camera ?? {};
    const away = Math.max(1, 1.25 * div.clientHeight / div.clientWidth);
    if (eye) for (const k of ["x", "y", "z"]) eye[k] *= away;
    if (figure.layout.xaxis2) figure.layout.xaxis2.nticks = 2;
    if (figure.layout.meta?.short) figure.layout.yaxis.ticktext = figure.layout.meta.short;
    for (const { type, marker } of figure.data) {
      if (type === "scatter3d") marker.size = marker.size.map((s) => s * Math.max(0.5, div.clientWidth / 600));
      if (marker?.colorbar) Object.assign(marker.colorbar, { orientation: "h", y: 1, yanchor: "top", thickness: 8, title: { text: "" } });
    }
    return figure;
  };

  // Without a pause: before printing there is time for nothing else.
  const drawNow = (div) => {
    if (!variants.has(div)) variants.set(div, JSON.parse(document.getElementById(div.dataset.figure).textContent));
    const figure = fitted(div, structuredClone(variants.get(div)[choice(div)]));
    const camera = div._fullLayout?.scene?.camera;
    if (camera && figure.layout.scene) figure.layout.scene.camera = camera;
    // By default a button uploads the chart ("Share chart...", in plotly.js since version 4).
    const config = { responsive: true, displaylogo: false, displayModeBar: figure.layout.scene ? "hover" : false, scrollZoom: false,
      showSendToCloud: false, plotlyServerURL: "", modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };
    const done = window.Plotly.react(div, filtered(div, figure.data), themed(figure.layout), config);
    if (!div.dataset.drawn && figure.layout.scene) div.on("plotly_relayout", () => follow(div));
    const { width, height } = div._fullLayout;
    div.style.setProperty("--ratio", `${width} / ${height}`);
    // With a box of their own, charts shrink to the width of paper.
    for (const svg of div.querySelectorAll(".main-svg")) svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const said = document.getElementById(`${div.id}-said`);
    said.textContent = figure.layout.meta?.said ?? "";
    said.hidden = !said.textContent;
    div.dataset.drawn = String(choice(div));
    return done;
  };
  const draw = async (div) => {
    await plotly();
    await drawNow(div);
  };
  // Two landscapes side by side are looked at from the same side.
  let following = false;
  const follow = async (div) => {
    if (following) return;
    following = true;
    const { camera } = div._fullLayout.scene;
    const others = figures.filter((f) => f !== div && f.dataset.selector === div.dataset.selector && f._fullLayout?.scene);
    await Promise.all(others.map((f) => window.Plotly.relayout(f, { "scene.camera": camera })));
    following = false;
  };
  const safely = (div) => draw(div).catch((error) => say(`${error.message} The tables and examples below hold the same numbers.`));
  const redraw = (keep) => figures.filter((f) => f.dataset.drawn && keep(f)).forEach(safely);

  const watcher = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      watcher.unobserve(target);
      safely(target);
    }
  }, { rootMargin: "400px" });
  figures.forEach((div) => watcher.observe(div));
  // All others as soon as there is time, so that none is missing on paper; what is folded away waits until it is opened.
  const idle = window.requestIdleCallback ?? setTimeout;
  const drawRest = () => {
    const next = figures.find((div) => !div.dataset.drawn && !div.closest("details:not([open])"));
    if (next) draw(next).then(() => idle(drawRest), (error) => say(error.message));
    else root.dataset.charts = "drawn";
  };
  addEventListener("load", () => idle(drawRest));

  for (const control of document.querySelectorAll("[data-controls]")) {
    const select = control.dataset.controls;
    control.addEventListener("input", () => {
      const shown = document.getElementById(`${control.id}-value`);
      if (shown) shown.textContent = `${control.value}%`;
      redraw((f) => f.dataset.selector === select);
    });
  }
  root.classList.add("js");
  if (location.hash === "#summary") root.classList.add("summary"); // to print the first page alone

  // On a phone rows become cards, whose cells need the names of their columns. `display` takes a table its meaning for
  // screen readers, so that is said again.
  const roles = { table: "table", thead: "rowgroup", tbody: "rowgroup", tr: "row", td: "cell" };
  for (const table of document.querySelectorAll(".scroll table:not(.facts, .heat, .sheet)")) {
    table.classList.add("stacked");
    const names = [...(table.tHead?.rows[0].cells ?? [])].map((cell) => cell.textContent);
    for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, n) => (cell.dataset.label = names[n] ?? ""));
    for (const part of [table, ...table.querySelectorAll(Object.keys(roles).join())]) part.setAttribute("role", roles[part.localName]);
    for (const head of table.querySelectorAll("th")) head.setAttribute("role", head.scope === "row" ? "rowheader" : "columnheader");
  }
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", () => redraw(() => true));
  // Paper is white, and every chart and table belongs on it.
  const closed = () => document.querySelectorAll("details:not([open])");
  let opened = [];
  addEventListener("beforeprint", () => {
    root.dataset.theme = "light";
    opened = [...closed()].filter((d) => d.classList.contains("printed"));
    opened.forEach((d) => (d.open = true));
    if (dark.matches && window.Plotly) figures.filter((f) => f.dataset.drawn).forEach(drawNow);
  });
  addEventListener("afterprint", () => {
    delete root.dataset.theme;
    opened.forEach((d) => (d.open = false));
    if (dark.matches) redraw(() => true);
  });
})();
