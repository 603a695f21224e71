"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Panels of which one is shown
for (const group of all(".switch")) {
  const selects = all("select", group);
  const update = () => {
    for (const panel of all(".panel", group))
      panel.hidden = selects.some((select) => panel.dataset[select.dataset.key] !== select.value);
  };
  group.addEventListener("change", update);
  update();
}

// Curves that can be hidden
for (const box of all("[data-series]")) {
  const update = () => {
    for (const curve of all("svg ." + box.dataset.series)) curve.style.display = box.checked ? "" : "none";
  };
  box.addEventListener("change", update);
  update();
}

// Before and after
const form = document.getElementById("view");
const crops = all(".crop");
const STEP = 12;
let limit = STEP;

function placeDivider(crop) {
  const box = crop.querySelector(".box"), layers = crop.querySelector(".layers"), range = crop.querySelector("input");
  const visible = Math.min(box.clientWidth, layers.offsetWidth); // an enlarged picture is divided where it is seen
  if (!visible) return;
  const split = 100 * (box.scrollLeft + visible * range.value / 100) / layers.offsetWidth;
  layers.style.setProperty("--split", split.toFixed(2) + "%");
  range.setAttribute("aria-valuetext", range.value + " % " + crop.dataset.left);
}

function choosePictures(crop) {
  const pictures = all("img", crop);
  const named = (name, other) => pictures.find((picture) => picture.dataset.picture === name) || other;
  const left = named(form.elements.left.value, pictures[0]);
  const right = named(form.elements.right.value, pictures[pictures.length - 1]);
  for (const picture of pictures) {
    picture.hidden = picture !== left && picture !== right;
    picture.classList.toggle("left", picture === left && left !== right);
  }
  crop.dataset.left = left.dataset.picture;
  all(".names span", crop).forEach((label, i) => {
    const picture = [left, right][i], name = document.createElement("b");
    name.textContent = picture.dataset.picture;
    label.replaceChildren(name, picture.dataset.figures);
  });
}

function setZoom(zoom) {
  document.documentElement.dataset.zoom = zoom;
  document.documentElement.style.setProperty("--zoom", zoom);
  for (const select of all("#view [name=zoom], #worst-zoom")) select.value = zoom;
  crops.forEach(placeDivider);
}

function updateCrops() {
  const { category, condition } = form.elements;
  const fitting = crops.filter((crop) =>
    (!category.value || crop.dataset.category === category.value) &&
    (!condition.value || crop.dataset.condition === condition.value));
  for (const crop of crops) crop.hidden = true;
  for (const crop of fitting.slice(0, limit)) {
    crop.hidden = false;
    choosePictures(crop);
    placeDivider(crop);
  }
  document.getElementById("more").hidden = fitting.length <= limit;
  document.getElementById("shown").textContent = fitting.length
    ? Math.min(limit, fitting.length) + " of " + fitting.length + " shown"
    : "No picture fits this choice.";
}

// The address keeps the choice: #left=truth&right=student&zoom=4&split=30
function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  for (const [key, value] of wanted) {
    const select = form.elements[key];
    if (select && [...select.options].some((option) => option.value === value)) select.value = value;
  }
  if (wanted.has("split")) for (const crop of crops) crop.querySelector("input").value = wanted.get("split");
  setZoom(form.elements.zoom.value);
  updateCrops();
}

function writeAddress() {
  history.replaceState(null, "", "#" + new URLSearchParams(new FormData(form)));
}

if (form) {
  for (const crop of crops) {
    const box = crop.querySelector(".box"), layers = crop.querySelector(".layers"), range = crop.querySelector("input");
    range.addEventListener("input", () => placeDivider(crop));
    box.addEventListener("scroll", () => placeDivider(crop));
    const follow = (event) => {
      const visible = Math.min(box.clientWidth, layers.offsetWidth);
      range.value = 100 * (event.clientX - layers.getBoundingClientRect().left - box.scrollLeft) / visible;
      placeDivider(crop);
    };
    layers.addEventListener("pointerdown", (event) => {
      // A finger on an enlarged picture moves the picture; the slider is below.
      if (event.button || (event.pointerType === "touch" && document.documentElement.dataset.zoom !== "fit")) return;
      layers.setPointerCapture(event.pointerId);
      if (event.pointerType !== "touch") follow(event); // a finger may be about to scroll the page
    });
    for (const type of ["pointermove", "pointerup"]) layers.addEventListener(type, (event) => {
      if (layers.hasPointerCapture(event.pointerId)) follow(event);
    });
  }
  form.addEventListener("change", (event) => {
    limit = STEP;
    if (event.target.name === "zoom") setZoom(event.target.value);
    updateCrops();
    writeAddress();
  });
  document.getElementById("more").addEventListener("click", () => {
    limit += STEP;
    updateCrops();
  });
  addEventListener("resize", () => crops.forEach(placeDivider));
  addEventListener("hashchange", () => { if (location.hash.includes("=")) readAddress(); });
  readAddress();
}

// Worst cases: what is enlarged scrolls together
const worstZoom = document.getElementById("worst-zoom");
if (worstZoom) worstZoom.addEventListener("change", () => {
  if (!form) return setZoom(worstZoom.value);
  form.elements.zoom.value = worstZoom.value;
  form.elements.zoom.dispatchEvent(new Event("change", { bubbles: true }));
});
for (const triple of all(".triple")) {
  const boxes = all(".box", triple);
  for (const box of boxes) box.addEventListener("scroll", () => {
    for (const other of boxes) if (other !== box) {
      other.scrollLeft = box.scrollLeft;
      other.scrollTop = box.scrollTop;
    }
  });
}
