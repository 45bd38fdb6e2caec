"use strict";
// The page is complete without this: it adds values under the pointer and larger pictures.

for (const chart of document.querySelectorAll("[data-chart]")) {
  const { name, x, px, lines } = JSON.parse(chart.dataset.chart);
  const svg = chart.querySelector("svg");
  const hair = svg.querySelector(".hair");
  const readout = chart.querySelector(".readout");
  const resting = readout.textContent;
  let at = -1;

  function show(index) {
    at = Math.max(0, Math.min(px.length - 1, index));
    hair.setAttribute("x1", px[at]);
    hair.setAttribute("x2", px[at]);
    hair.classList.add("on");
    const values = lines.map((line) => `${line.name} ${line.values[at] ?? "–"}`);
    readout.textContent = `${name} ${x[at].toLocaleString("en")}: ${values.join(", ")}`;
  }

  function rest() {
    at = -1;
    hair.classList.remove("on");
    readout.textContent = resting;
  }

  svg.addEventListener("pointermove", (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(
      svg.getScreenCTM().inverse());
    let nearest = 0;
    px.forEach((p, i) => {
      if (Math.abs(p - point.x) < Math.abs(px[nearest] - point.x)) nearest = i;
    });
    show(nearest);
  });
  svg.addEventListener("pointerleave", rest);
  svg.addEventListener("blur", rest);
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
    if (step === undefined) return;
    event.preventDefault();
    show(at < 0 ? (step < 0 ? px.length - 1 : 0) : at + step);
  });
}

const dialog = document.querySelector("dialog");
for (const button of document.querySelectorAll("button.enlarge")) {
  button.addEventListener("click", () => {
    const picture = button.querySelector("svg").cloneNode(true);
    dialog.querySelector(".large").replaceChildren(picture);
    dialog.querySelector(".name").textContent = button.dataset.name;
    dialog.showModal();
  });
}
if (dialog) dialog.addEventListener("click", () => dialog.close());

// What is folded away on the screen is on paper.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((part) => { part.open = true; });
});
addEventListener("afterprint", () => opened.forEach((part) => { part.open = false; }));
