// The page: where the video comes from, and the divider between before and after.
"use strict";

const $ = (id) => document.getElementById(id);
const video = $("video"), sharpener = new Sharpener(video);
let latest; // choice of a source, which may open later than the one after it

/** Show what `open` gives, a stream or a file, or null for nothing; says so if it fails. */
async function show(open) {
  latest = open;
  try {
    const source = await open(), isFile = source instanceof File;
    if (latest !== open) return source?.getTracks?.().forEach((track) => track.stop());
    video.srcObject?.getTracks().forEach((track) => track.stop());
    URL.revokeObjectURL(video.src);
    video.removeAttribute("src");
    video.srcObject = isFile ? null : source;
    if (isFile) video.src = URL.createObjectURL(source);
    else if (source) source.getTracks()[0].onended = $("close").onclick; // by the browser's own button, for example
    sharpener.toggle(true);
    if (source) document.body.append(sharpener.controls);
    else sharpener.controls.remove();
    $("message").textContent = source ? "" : "Choose what to sharpen.";
  } catch (error) {
    if (latest === open) $("message").textContent = error.message;
  }
}

const wished = { width: 1280, height: 720 };
$("camera").onclick = () => show(() => navigator.mediaDevices.getUserMedia({ video: wished }));
$("tab").onclick = () => show(() => navigator.mediaDevices.getDisplayMedia({ video: true }));
$("close").onclick = () => show(() => null);
$("file").onclick = ({ target }) => { target.value = ""; }; // else the same file again would be no change
$("file").onchange = ({ target }) => target.files.length && show(() => target.files[0]);
video.onerror = () => { $("message").textContent = "This browser cannot play the file."; };
$("divider").oninput = ({ target }) => $("stage").style.setProperty("--divider", `${target.value}%`);
