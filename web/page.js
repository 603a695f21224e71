// The page: where the video comes from, the divider between before and after, and what is set.
"use strict";

const $ = (id) => document.getElementById(id);
const student = fetch("student.bin").then((file) => file.arrayBuffer()).then(parseStudent);
const sharpener = new Sharpener($("video"), student, () => {
  if ($("video").readyState) $("status").textContent = sharpener.status;
});

/** Show what `open` gives, a stream or a file; says so if it gives none. */
async function show(open) {
  try {
    const source = await open(), video = $("video"), isFile = source instanceof File;
    video.srcObject?.getTracks().forEach((track) => track.stop());
    URL.revokeObjectURL(video.src);
    video.srcObject = isFile ? null : source;
    if (isFile) video.src = URL.createObjectURL(source);
    if ($("on").checked) sharpener.toggle(true);
  } catch (error) {
    $("status").textContent = error.message;
  }
}

const wished = { width: { ideal: 1280 }, height: { ideal: 720 } };
$("camera").onclick = () => show(() => navigator.mediaDevices.getUserMedia({ video: wished }));
$("tab").onclick = () => show(() => navigator.mediaDevices.getDisplayMedia({ video: true }));
$("file").onchange = ({ target }) => target.files.length && show(() => target.files[0]);
$("video").onerror = () => { $("status").textContent = "This browser cannot play the file."; };

$("stage").onpointermove = $("stage").onpointerdown = (event) => {
  if (event.type === "pointermove" && event.pointerType !== "mouse" && !event.buttons) return;
  const { left, width } = $("stage").getBoundingClientRect();
  $("stage").style.setProperty("--divider", `${Math.min(100, Math.max(0, 100 * (event.clientX - left) / width))}%`);
};
$("strength").oninput = ({ target }) => {
  $("amount").textContent = target.value;
  sharpener.strength = Number(target.value);
};
$("on").onchange = ({ target }) => sharpener.toggle(target.checked);
$("battery").disabled = !navigator.getBattery; // as in Safari and Firefox
$("battery").onchange = ({ target }) => { sharpener.sparesBattery = target.checked; };
