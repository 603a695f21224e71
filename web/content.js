// In a page, for the extension: a panel at the corner of each video, which sharpens it and says what it does.
"use strict";

const SMALLEST = 120; // CSS pixels, the width of a video with a panel
const RESCAN = 1000; // milliseconds
const panels = new Map(); // by video
let student, scanning;

function makePanel(video) {
  const box = Object.assign(document.createElement("div"), { popover: "manual" }); // above all else in the page
  const root = box.attachShadow({ mode: "open" }); // which the page's own styles do not reach
  const add = (tag, values) => root.appendChild(Object.assign(document.createElement(tag), values));
  let full = null; // the element in full screen
  const update = () => {
    const { left, top } = video.getBoundingClientRect();
    Object.assign(box.style, { left: `${Math.max(left, 0)}px`, top: `${Math.max(top, 0)}px` });
    text.textContent = sharpener.status;
    if (full === document.fullscreenElement) return;
    full = document.fullscreenElement;
    box.hidePopover(); // what is shown last lies on top
    box.showPopover();
  };
  const sharpener = new Sharpener(video, student, update);
  add("button", { textContent: "✦", title: "Sharpen", onclick: () => sharpener.toggle() });
  add("input", { type: "range", min: 0, max: 2, step: 0.1, value: 1, title: "Strength",
    oninput: ({ target }) => { sharpener.strength = Number(target.value); } }).style.width = "70px";
  add("input", { type: "checkbox", id: "battery",
    onchange: ({ target }) => { sharpener.sparesBattery = target.checked; } });
  add("label", { htmlFor: "battery", textContent: "off on battery" });
  const text = add("span", {});
  text.style.marginLeft = "8px";
  box.style.cssText = "all:initial; position:fixed; margin:0; padding:2px 4px; border-radius:4px; color:#fff;"
    + "background:#000a; font:12px sans-serif; opacity:.8";
  document.documentElement.append(box);
  box.showPopover();
  return { box, update, close: () => [sharpener.close(), box.remove()] };
}

function scan() {
  for (const [video, panel] of panels) if (!video.isConnected && panels.delete(video)) panel.close();
  for (const video of document.querySelectorAll("video"))
    if (video.clientWidth >= SMALLEST && !panels.has(video)) panels.set(video, makePanel(video));
}

/** Start on this page, or stop; true. */
globalThis.toggleSharpening = () => {
  student ??= fetch(chrome.runtime.getURL("student.bin")).then((file) => file.arrayBuffer()).then(parseStudent);
  for (const panel of panels.values()) panel.close();
  panels.clear();
  scanning = scanning ? clearInterval(scanning) : setInterval(scan, RESCAN);
  if (scanning) scan();
  return true;
};

toggleSharpening();
document.addEventListener("scroll", () => panels.forEach(({ update }) => update()), { capture: true, passive: true });
