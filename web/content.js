// In a page, for the extension: a panel at the corner of each video, which sharpens it and says what it does.
"use strict";

const SMALLEST = 120; // CSS pixels, the width of a video with a panel
const panels = new Map(); // by video: its sharpener and its box
let scanning, full; // timer; element in full screen

function makePanel(video) {
  const box = Object.assign(document.createElement("div"), { popover: "manual" }); // above all else in the page
  box.style.cssText = "all:initial; position:fixed; margin:0; padding:2px 4px; border-radius:4px; color:#fff;"
    + "background:#000a; font:12px sans-serif; opacity:.8";
  const sharpener = new Sharpener(video);
  box.attachShadow({ mode: "open" }).append(sharpener.controls); // which the page's own styles do not reach
  document.documentElement.append(box);
  return { sharpener, box };
}

/** Give each video a panel at its corner, as long as there are both. */
function scan() {
  for (const video of document.querySelectorAll("video"))
    if (scanning && video.clientWidth >= SMALLEST && !panels.has(video)) panels.set(video, makePanel(video));
  for (const [video, { sharpener, box }] of panels) {
    if (!scanning || !video.isConnected || !box.isConnected) {
      sharpener.close();
      box.remove();
      panels.delete(video);
      continue;
    }
    const { left, top } = video.getBoundingClientRect();
    Object.assign(box.style, { left: `${Math.max(left, 0)}px`, top: `${Math.max(top, 0)}px` });
    if (full !== document.fullscreenElement) box.hidePopover(); // what is shown last lies on top
    box.showPopover();
  }
  full = document.fullscreenElement;
}

/** Start on this page, or stop; returns whether it has started. */
globalThis.toggleSharpening = () => {
  scanning = scanning ? clearInterval(scanning) : setInterval(scan, TICK);
  scan();
  return scanning !== undefined;
};

toggleSharpening();
document.addEventListener("scroll", scan, { capture: true, passive: true });
