// The page: where the video comes from, and the divider between before and after.
"use strict";

const $ = (id) => document.getElementById(id);
const video = $("video"), sharpener = new Sharpener(video);

/** Show what `open` gives, a stream or a file, or null for nothing; says so if it fails. */
async function show(open) {
  try {
    const source = await open(), isFile = source instanceof File;
    video.srcObject?.getTracks().forEach((track) => track.stop());
    URL.revokeObjectURL(video.src);
    video.removeAttribute("src");
    video.srcObject = isFile ? null : source;
    if (isFile) video.src = URL.createObjectURL(source);
    sharpener.toggle(true);
    document.body.append(sharpener.controls);
    $("message").textContent = "";
  } catch (error) {
    $("message").textContent = error.message;
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
