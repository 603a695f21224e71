// Sharpens a <video>: its frames are drawn, sharpened, on a canvas that lies over the element and follows it.
"use strict";

// Tried one after the other if there is too little time: what scales the working size, and how many frames of the video
// may pass while one is sharpened. After the last one sharpening goes off.
const LEVELS = [{ scale: 1, frames: 1 }, { scale: 0.7, frames: 1 }, { scale: 0.5, frames: 2 }];
const PERIOD = 1000; // milliseconds over which costs are averaged
const EASE = 0.6; // of the time that there is: what a level may need for going up to it
const TICK = 250; // milliseconds between two looks at the element
const WORKING_PIXELS = 1920 * 1080, CANVAS_SIDE = 4096; // most of them
const FOLLOWED = ["objectFit", "objectPosition", "transform", "transformOrigin", "scale", "rotate", "translate",
  "borderRadius", "padding", "zIndex"];
const LOSSES = 3; // of the graphics device, after which a page leaves it alone
const STUDENT = globalThis.chrome?.runtime?.getURL?.("student.bin") ?? "student.bin"; // the extension's or the page's

/** Chooses the level from what frames cost; `LEVELS.length` is off. */
class LoadController {
  level = 0;
  costs = [];

  /** Count a frame that took `cost` milliseconds, while the video has one every `interval`, at the time `now`. */
  add(cost, interval, now) {
    this.costs.push(cost);
    this.begin ??= now - cost;
    if (now - this.begin < PERIOD) return;
    const mean = this.costs.reduce((sum, value) => sum + value) / this.costs.length, before = LEVELS[this.level].scale;
    const found = LEVELS.findIndex(({ scale, frames }, level) => // the first one for which there is time
      mean * (scale / before) ** 2 < interval * frames * (level < this.level ? EASE : 1));
    const level = Math.min(found < 0 ? LEVELS.length : found, this.level + 1);
    Object.assign(this, { level, begin: now, costs: [] });
  }
}

const shared = { network: null, losses: 0 }; // one for all videos of a page

/** The page's network, made when it is first needed and anew after its device was lost. */
async function sharedNetwork() {
  if (shared.losses > LOSSES) throw new Error("The graphics processor failed too often.");
  const lose = () => Object.assign(shared, { network: null, losses: shared.losses + 1 });
  shared.network ??= fetch(STUDENT).then((file) => file.arrayBuffer())
    .then((file) => createNetwork(parseStudent(file), lose))
    .catch((error) => { shared.network = null; throw error; }); // the next try may go well
  return shared.network;
}

class Sharpener {
  strength = 1;
  sparesBattery = false;
  interval = 33; // milliseconds between two frames of the video
  drawn = ""; // the plan by which the last frame was drawn; empty if the canvas shows none
  canvas = document.createElement("canvas");
  controls = document.createElement("div"); // for the page, with a text that says what is done
  timer = setInterval(() => this.tick(), TICK);

  constructor(video) {
    this.video = video;
    this.canvas.style.cssText = "margin:0; border:0; background:none; pointer-events:none; box-sizing:border-box";
    navigator.getBattery?.().then((battery) => { this.battery = battery; });
    this.addControls();
    this.toggle(true);
    this.wait({});
  }

  addControls() {
    const add = (tag, values) => this.controls.appendChild(Object.assign(document.createElement(tag), values));
    this.controls.style.cssText = "display:flex; flex-wrap:wrap; gap:2px 12px; align-items:center";
    this.button = add("button", { onclick: () => this.toggle() });
    add("label", { textContent: "Strength " }).append(add("input", { type: "range", min: 0, max: 2, step: 0.1, value: 1,
      oninput: ({ target }) => { this.strength = Number(target.value); } }));
    const disabled = !navigator.getBattery; // as in Safari and Firefox
    add("label", { textContent: " Off on battery" }).prepend(add("input", { type: "checkbox", disabled,
      onchange: ({ target }) => { this.sparesBattery = target.checked; } }));
    this.text = add("span", { role: "status" });
  }

  /** Sharpen, or show the video as it is and give that `reason`. */
  toggle(on = this.stopped !== "", reason = "Off.") {
    Object.assign(this, { stopped: on ? "" : reason, drawn: "", load: new LoadController() });
  }

  close() {
    this.toggle(false);
    this.timer = clearInterval(this.timer);
    this.video.cancelVideoFrameCallback(this.handle);
    this.canvas.remove();
    this.picture?.free();
  }

  /** Why nothing is sharpened at this moment; empty if something is. */
  get obstacle() {
    const { video, battery } = this;
    if (this.stopped) return this.stopped;
    if (video.mediaKeys) return "The video is protected.";
    if (this.sparesBattery && battery && !battery.charging) return "Off on battery.";
    const seen = !document.hidden && video.isConnected && video.clientWidth && video.readyState > 1 && video.videoWidth;
    return seen ? "" : "There is no picture.";
  }

  /** What is done at this moment, in words. */
  get status() {
    const { video, canvas, cost } = this, { scale, frames } = LEVELS[this.load.level];
    if (this.obstacle || !this.drawn) return this.obstacle || "Starting ...";
    const size = `${video.videoWidth}×${video.videoHeight} → ${canvas.width}×${canvas.height}`;
    const level = `${scale < 1 ? `, working size ${100 * scale} %` : ""}${frames > 1 ? ", fewer frames" : ""}`;
    return `${size}, strength ${this.strength}, ${cost.toFixed(1)} ms a frame${level}`;
  }

  /** Sharpen each frame as it is shown, unless the one before is not done yet. */
  wait(last) {
    this.handle = this.video.requestVideoFrameCallback((now, { presentedFrames: count }) => {
      const interval = (now - last.now) / (count - last.count); // also of frames that this missed
      if (interval > 0) this.interval += 0.1 * (Math.min(interval, 100) - this.interval);
      this.wait({ now, count });
      this.sharpen();
    });
  }

  async sharpen() {
    if (this.busy || this.obstacle) return;
    this.busy = true;
    try {
      const network = await sharedNetwork();
      if (this.obstacle) return;
      if (this.picture?.network !== network) this.picture = new Picture(network, this.canvas);
      const begin = performance.now(), plan = this.plan(), before = this.picture.size, { load } = this;
      const frame = new VideoFrame(this.video);
      this.picture.draw(frame, ...plan);
      frame.close();
      await network.device.queue.onSubmittedWorkDone();
      if (load !== this.load) return; // the source may be another one by now
      const now = performance.now();
      this.cost = now - begin; // milliseconds
      if (before === this.picture.size) load.add(this.cost, this.interval, now); // else it took memory as well
      if (load.level === LEVELS.length) this.toggle(false, "Off: this machine is too slow.");
      this.drawn = await shared.network === network ? String(plan) : "";
    } catch (error) {
      if (error.name === "InvalidStateError") return; // the video has no frame at this moment; the next one will do
      const foreign = error.name === "SecurityError";
      this.toggle(false, foreign ? "The video is another site's and cannot be read." : error.message);
    } finally {
      this.busy = false;
      this.place();
    }
  }

  /** Size of the picture on the screen in its own pixels, what the network sees of it, and the strength. */
  plan() {
    const { video } = this, size = [video.videoWidth, video.videoHeight], fit = getComputedStyle(video).objectFit;
    const ratios = [video.clientWidth / size[0], video.clientHeight / size[1]];
    const shown = Math[fit === "contain" ? "min" : "max"](...ratios) * devicePixelRatio;
    const unscaled = fit === "none" || fit === "scale-down"; // which goes for the canvas as well
    const scale = unscaled ? 1 : Math.min(shown, CANVAS_SIDE / Math.max(...size));
    const limit = Math.min(1, scale, Math.sqrt(WORKING_PIXELS / (size[0] * size[1]))) * LEVELS[this.load.level].scale;
    const scaled = (factor) => size.map((side) => Math.max(8, Math.round(factor * side)));
    return [scaled(scale), scaled(limit), this.strength];
  }

  /** Put the canvas over the video, or take it away. */
  place() {
    const { video, canvas } = this, style = getComputedStyle(video), full = video.matches(":fullscreen");
    if (!this.timer || !video.isConnected) return canvas.remove();
    if (canvas.previousSibling !== video) video.after(canvas);
    if (full !== canvas.hasAttribute("popover")) { // above an element in full screen lie only such
      canvas.popover = full ? "manual" : null;
      if (full) canvas.showPopover();
    }
    for (const name of FOLLOWED) canvas.style[name] = style[name];
    const covered = video.controls && video.matches(":hover"); // the controls lie below the canvas
    Object.assign(canvas.style, {
      position: style.position === "fixed" ? "fixed" : "absolute", // fixed in full screen, too
      left: `${video.offsetLeft + video.clientLeft}px`,
      top: `${video.offsetTop + video.clientTop}px`,
      width: `${video.clientWidth}px`,
      height: `${video.clientHeight}px`,
      display: this.drawn && !this.obstacle && !covered ? "block" : "none",
    });
  }

  tick() {
    if (!this.obstacle && this.drawn !== String(this.plan())) this.sharpen(); // the video may stand still
    if (this.obstacle && !this.busy) {
      this.drawn = "";
      this.picture?.free();
    }
    this.place();
    this.text.textContent = this.status;
    this.button.textContent = this.stopped ? "✦ Sharpen" : "✦ Stop";
  }
}
