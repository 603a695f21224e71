"use strict";
const chosen = ["left", "right"].map((id) => document.getElementById(id));

function showChosen() {
  const [left, right] = chosen.map((select) => select.value);
  for (const image of document.querySelectorAll(".crop img")) {
    image.hidden = image.dataset.method !== left && image.dataset.method !== right;
    image.classList.toggle("left", image.dataset.method === left && left !== right);
  }
}

for (const select of chosen) select.addEventListener("change", showChosen);
for (const range of document.querySelectorAll("input[type=range]"))
  range.addEventListener("input", () => range.parentElement.querySelector(".crop")
    .style.setProperty("--split", range.value + "%"));
showChosen();
