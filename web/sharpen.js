// Sharpens a <video>: its frames are drawn, sharpened, on a canvas that lies over the element and follows it.
"use strict";

// Tried one after the other if there is too little time: what scales the working size, and how many frames of the video
// may pass while one is sharpened. After the last one sharpening goes off.
const LEVELS = [
  { scale: 1, frames: 1, text: "" },
  { scale: 0.7, frames: 1, text: ", lower working size" },
  { scale: 0.5, frames: 2, text: ", lowest working size" },
];
const PERIOD = 1000; // milliseconds over which costs are averaged
const EASE = 0.6; // of the time that there is: what a level may need for going up to it
const TICK = 250; // milliseconds between two looks at the element
const WORKING_PIXELS = 1920 * 1080, CANVAS_SIDE = 4096; // most of them
const FOLLOWED = ["objectFit", "objectPosition", "transform", "transformOrigin", "scale", "rotate", "translate",
  "borderRadius", "padding", "zIndex"];
const LOSSES = 3; // of the graphics device, after which a page leaves it alone

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
async function sharedNetwork(student) {
  if (shared.losses > LOSSES) throw new Error("The graphics processor failed too often.");
  const lose = () => Object.assign(shared, { network: null, losses: shared.losses + 1 });
  shared.network ??= student.then((weights) => Network.create(weights, lose));
  return shared.network;
}

class Sharpener {
  amount = 1; // the strength
  sparesBattery = false;
  interval = 33; // milliseconds between two frames of the video
  cost = null; // milliseconds that the last frame took
  canvas = document.createElement("canvas");
  tick = this.tick.bind(this);
  timer = setInterval(this.tick, TICK);

  /** `student`: promise of `parseStudent`. `report` is called a few times a second, as `status` may have changed. */
  constructor(video, student, report) {
    Object.assign(this, { video, student, report });
    this.canvas.style.cssText = "margin:0; border:0; background:none; pointer-events:none; box-sizing:border-box";
    document.addEventListener("fullscreenchange", this.tick);
    navigator.getBattery?.().then((battery) => { this.battery = battery; });
    this.toggle(true);
    this.wait({});
  }

  /** How much is changed, from the next frame on or, if the video stands still, at once. */
  set strength(value) {
    this.amount = value;
    this.sharpen();
  }

  /** Sharpen, or show the video as it is and give that `reason`. */
  toggle(on = this.stopped !== "", reason = "Off.") {
    Object.assign(this, { stopped: on ? "" : reason, load: new LoadController() });
  }

  close() {
    this.toggle(false);
    this.timer = clearInterval(this.timer);
    document.removeEventListener("fullscreenchange", this.tick);
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
    const seen = !document.hidden && video.isConnected && video.clientWidth && video.readyState > 1;
    return seen ? "" : "There is no picture.";
  }

  /** What is done at this moment, in words. */
  get status() {
    const { video, canvas, cost, load } = this;
    if (this.obstacle || cost === null) return this.obstacle || "Starting ...";
    const size = `${video.videoWidth}×${video.videoHeight} → ${canvas.width}×${canvas.height}`;
    return `${size}, ${cost.toFixed(1)} ms a frame${LEVELS[load.level].text}`;
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
      const network = await sharedNetwork(this.student);
      if (this.obstacle) return;
      if (this.picture?.network !== network) this.picture = new Picture(network, this.canvas);
      const begin = performance.now(), before = this.picture.size, { output, working } = this.sizes();
      if (!this.fits(output)) [this.canvas.width, this.canvas.height] = output;
      const frame = new VideoFrame(this.video);
      this.picture.draw(frame, working, this.amount);
      frame.close();
      await network.device.queue.onSubmittedWorkDone();
      const now = performance.now();
      if (before === this.picture.size) { // the first one also takes the memory
        this.cost = now - begin;
        this.load.add(this.cost, this.interval, now);
      }
      this.drawn = !network.failure;
      if (this.load.level === LEVELS.length) this.toggle(false, "Off: this machine is too slow.");
    } catch (error) {
      if (error.name === "InvalidStateError") return; // the video has no frame at this moment; the next one will do
      const foreign = error.name === "SecurityError";
      this.toggle(false, foreign ? "The video is another site's and cannot be read." : error.message);
    } finally {
      this.busy = false;
      this.place();
    }
  }

  /** Size of the picture on the screen in its own pixels, and of what the network sees of it. */
  sizes() {
    const { video } = this, size = [video.videoWidth, video.videoHeight], fit = getComputedStyle(video).objectFit;
    const ratios = [video.clientWidth / size[0], video.clientHeight / size[1]];
    const shown = Math[fit === "contain" ? "min" : "max"](...ratios) * devicePixelRatio;
    const unscaled = fit === "none" || fit === "scale-down"; // which goes for the canvas as well
    const scale = unscaled ? 1 : Math.min(shown, CANVAS_SIDE / Math.max(...size));
    const limit = Math.min(1, scale, Math.sqrt(WORKING_PIXELS / (size[0] * size[1]))) * LEVELS[this.load.level].scale;
    const scaled = (factor) => size.map((side) => Math.max(8, Math.round(factor * side)));
    return { output: scaled(scale), working: scaled(limit) };
  }

  fits(size) {
    return size[0] === this.canvas.width && size[1] === this.canvas.height;
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
    Object.assign(canvas.style, {
      position: full || style.position === "fixed" ? "fixed" : "absolute",
      left: `${full ? 0 : video.offsetLeft + video.clientLeft}px`,
      top: `${full ? 0 : video.offsetTop + video.clientTop}px`,
      width: `${video.clientWidth}px`,
      height: `${video.clientHeight}px`,
      display: this.drawn && !this.obstacle ? "block" : "none",
      visibility: video.controls && video.matches(":hover") ? "hidden" : "visible", // the controls lie below
    });
  }

  tick() {
    if (!this.obstacle && !this.fits(this.sizes().output)) this.sharpen(); // the video may stand still
    if (this.obstacle && !this.busy) {
      this.drawn = false;
      this.picture?.free();
    }
    this.place();
    this.report(this);
  }
}
