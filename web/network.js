// The student in WebGPU: reads the file that `export.py --web` writes, and draws sharpened frames on a canvas.
//
// A frame becomes planes of luma and of halved chroma, as in models.py, at the *working size*. Only what the student
// changes is computed there; it is added to the frame itself when that is drawn at the canvas's size.
"use strict";

const MAGIC = "RTSS", VERSION = 1; // of the file
const CELLS = 8; // cells of 4x4 pixels a side of a workgroup, an invocation for each
const TILE = 16; // pixels a side of a workgroup of `finish`, an invocation for each

/** Read a student's file: its header, `weights`, and where among them those of each of the `layers` are. */
function parseStudent(buffer) {
  const text = (begin, end) => new TextDecoder().decode(buffer.slice(begin, end));
  if (text(0, 4) !== MAGIC) throw new Error("This is no file of `export.py --web`.");
  const [version, length] = new Uint32Array(buffer.slice(4, 12));
  if (version !== VERSION) throw new Error("The student's file is of another version.");
  const student = JSON.parse(text(12, 12 + length)), { channels, wide, dilations } = student;
  let size = 0; // so far, in 4x4 matrices
  const layer = (inputs, outputs, taps, dilation) => {
    [inputs, outputs] = [Math.ceil(inputs / 4), Math.ceil(outputs / 4)]; // vectors of four channels
    const weights = size, bias = weights + taps * inputs * outputs;
    size = bias + Math.ceil(outputs / 4);
    return { inputs, outputs, dilation, weights, bias };
  };
  student.layers = {
    head: layer(24, channels, 9, 1),
    blocks: dilations.map((dilation) => [layer(channels, wide, 9, dilation), layer(wide, channels, 1)]),
    tail: layer(channels, 28, 9, 1),
  };
  student.weights = new Float16Array(buffer.slice(12 + length));
  if (student.weights.length !== 16 * size) throw new Error("The student's file is cut off.");
  return student;
}

/** WGSL of all passes; those that read the frame are functions of its type. `half`: convolutions in float16. */
function makeShaders(student, half) {
  const { layers, inputGain, detailGain, detailSigma, haloShare } = student;
  const each = (count, text) => Array.from({ length: count }, (_, index) => text(index)).join("\n");
  const pass = (...variables) => `${half ? "enable f16; alias T = f16;" : "alias T = f32;"}
    struct Sizes { pixels: vec2i, cells: vec2i, canvas: vec2f, strength: f32 }
    ${["<uniform> sizes: Sizes", ...variables].map((name, i) => `@group(0) @binding(${i}) var${name};`).join("\n")}`;
  const perCell = `@compute @workgroup_size(${CELLS}, ${CELLS}) fn run(@builtin(global_invocation_id) id: vec3u) {
      let cell = vec2i(id.xy);
      if (any(cell >= sizes.cells)) { return; }
      let here = cell.y * sizes.cells.x + cell.x;`;

  // The frame at another size than its own: each pixel is the mean of what it covers.
  const framePass = (type, ...variables) => `${pass(` frame: ${type}`, " linear: sampler", ...variables)}
    fn look(at: vec2f) -> vec3f { // at a position in the frame's own pixels
      return textureSampleBaseClampToEdge(frame, linear, at / vec2f(textureDimensions(frame))).rgb;
    }
    fn cover(at: vec2f, extent: vec2f) -> vec3f {
      let taps = max(vec2i(1), vec2i(ceil(extent - 0.01)));
      var sum = vec3f();
      for (var i = 0; i < taps.x * taps.y; i++) {
        sum += look(at + extent * ((vec2f(vec2i(i % taps.x, i / taps.x)) + 0.5) / vec2f(taps) - 0.5));
      }
      return sum / f32(taps.x * taps.y);
    }`;

  // Frame -> cells of 7 vectors: 4 rows of luma, 2x2 of u, 2x2 of v, the means of these three. Edges are repeated.
  const fold = (type) => `${framePass(type, "<storage, read_write> cells: array<vec4f>")}
    const LUMA = vec3f(0.299, 0.587, 0.114); // BT.601, as in JPEG
    fn colour(pixel: vec2i) -> vec3f {
      let extent = vec2f(textureDimensions(frame)) / vec2f(sizes.pixels);
      return cover((vec2f(pixel) + 0.5) * extent, extent);
    }
    ${perCell}
      let last = sizes.pixels - 1;
      var planes: array<vec4f, 7>;
      for (var i = 0; i < 16; i++) {
        let at = vec2i(i % 4, i / 4);
        let pixel = 4 * cell + at;
        planes[at.y][at.x] = dot(colour(min(pixel, last)), LUMA);
        let rgb = colour(min(2 * min(pixel / 2, last / 2) + pixel % 2, last)); // a pixel of the last chroma, at an edge
        planes[4][at.y / 2 * 2 + at.x / 2] += 0.564 / 4 * (rgb.b - dot(rgb, LUMA));
        planes[5][at.y / 2 * 2 + at.x / 2] += 0.713 / 4 * (rgb.r - dot(rgb, LUMA));
      }
      let luma = (planes[0] + planes[1] + planes[2] + planes[3]) / 4;
      planes[6] = vec4f(dot(luma, vec4f(0.25)), dot(planes[4], vec4f(0.25)), dot(planes[5], vec4f(0.25)), 0);
      for (var i = 0; i < 7; i++) { cells[7 * here + i] = planes[i]; }
    }`;

  const WEIGHTS = "<storage, read> weights: array<mat4x4<T>>", INPUT = "<storage, read> input: array<vec4<T>>";
  const OUTPUT = "<storage, read_write> output: array<vec4<T>>", CELL = "<storage, read> cells: array<vec4f>";
  // A 3x3 convolution for one cell, in variables x0, x1, ... of four channels; outside the frame is zero.
  const convolve = (layer, prepare = "", read = `input[there * ${layer.inputs} + i]`) => `
      ${each(layer.outputs, (o) => `var x${o} = weights[${layer.bias + (o >> 2)}][${o & 3}];`)}
      for (var tap = 0; tap < 9; tap++) {
        let near = cell + ${layer.dilation} * vec2i(tap % 3 - 1, tap / 3 - 1);
        if (any(near < vec2i(0)) || any(near >= sizes.cells)) { continue; }
        let there = near.y * sizes.cells.x + near.x;
        ${prepare}
        for (var i = 0; i < ${layer.inputs}; i++) {
          let value = ${read};
          let w = ${layer.weights} + (tap * ${layer.inputs} + i) * ${layer.outputs};
          ${each(layer.outputs, (o) => `x${o} += weights[w + ${o}] * value;`)}
        }
      }`;

  // Cells less the means of 3x3 of them, amplified -> a map.
  const head = `${pass(WEIGHTS, CELL, OUTPUT)}
    fn local_mean(cell: vec2i) -> vec4f {
      let first = max(cell - 1, vec2i(0));
      let last = min(cell + 1, sizes.cells - 1);
      var sum = vec4f();
      for (var y = first.y; y <= last.y; y++) {
        for (var x = first.x; x <= last.x; x++) { sum += cells[7 * (y * sizes.cells.x + x) + 6]; }
      }
      let count = last - first + 1;
      return sum / f32(count.x * count.y);
    }
    ${perCell}
      ${convolve(layers.head, "let mean = local_mean(near);",
        `vec4<T>(${inputGain} * (cells[7 * there + i] - mean[max(0, i - 3)]))`)}
      ${each(layers.head.outputs, (o) => `output[here * ${layers.head.outputs} + ${o}] = max(x${o}, vec4<T>());`)}
    }`;

  // Map -> map.
  const block = ([first, second]) => `${pass(WEIGHTS, INPUT, OUTPUT)}
    ${perCell}
      ${convolve(first)}
      let wide = array(${Array.from({ length: first.outputs }, (_, i) => `max(x${i}, vec4<T>())`)});
      for (var o = 0; o < ${second.outputs}; o++) {
        var sum = input[here * ${second.outputs} + o] + weights[${second.bias} + o / 4][o % 4];
        for (var i = 0; i < ${first.outputs}; i++) {
          sum += weights[${second.weights} + i * ${second.outputs} + o] * wide[i];
        }
        output[here * ${second.outputs} + o] = sum;
      }
    }`;

  // Map -> restored luma (4 rows of a cell), and halves: change of u, change of v, and gain of 2x2 pixels each.
  const tail = `${pass(WEIGHTS, INPUT, CELL, "<storage, read_write> restored: array<vec4f>",
    " halves: texture_storage_2d<rgba16float, write>")}
    ${perCell}
      ${convolve(layers.tail)}
      let amount = sizes.strength / ${inputGain};
      ${each(4, (row) => `restored[4 * here + ${row}] = saturate(cells[7 * here + ${row}] + amount * vec4f(x${row}));`)}
      let gain = clamp(sizes.strength * vec4f(x6), vec4f(${detailGain[0]}), vec4f(${detailGain[1]}));
      for (var i = 0; i < 4; i++) {
        let change = vec4f(amount * f32(x4[i]), amount * f32(x5[i]), gain[i], 0);
        textureStore(halves, 2 * cell + vec2i(i % 2, i / 2), change);
      }
    }`;

  const radius = Math.max(student.detailRadius, student.neighbours >> 1), side = TILE + 2 * radius, rim = side * TILE;
  const gaussian = Array.from({ length: 2 * radius + 1 }, (_, i) =>
    Math.abs(i - radius) > student.detailRadius ? 0 : Math.exp(-((i - radius) ** 2) / (2 * detailSigma ** 2)));
  const total = gaussian.reduce((sum, weight) => sum + weight);
  // -> change: what is added to red, green and blue. A workgroup loads its pixels with ${radius} more on each side, and
  // sums and compares them in rows and then in columns.
  const finish = `${pass(CELL, "<storage, read> restored: array<vec4f>", " halves: texture_2d<f32>", " linear: sampler",
    " change: texture_storage_2d<rgba16float, write>")}
    const GAUSSIAN = array(${gaussian.map((weight) => weight / total)});
    var<workgroup> tile: array<vec2f, ${side * side}>; // restored luma, luma
    var<workgroup> rows: array<vec3f, ${rim}>; // in rows: restored luma blurred, least luma, greatest luma

    fn steepen(restored: f32, blurred: f32, gain: f32) -> f32 { // models.steepen
      return saturate(restored + gain * (restored - blurred));
    }
    fn limit_halo(sharp: f32, least: f32, greatest: f32) -> f32 { // models.limit_halo
      return mix(clamp(sharp, least, greatest), sharp, ${haloShare});
    }
    @compute @workgroup_size(${TILE}, ${TILE}) fn run(@builtin(global_invocation_id) id: vec3u,
        @builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
      let last = sizes.pixels - 1;
      for (var i = i32(local); i < ${side * side}; i += ${TILE * TILE}) {
        let at = abs(${TILE} * vec2i(group.xy) + vec2i(i % ${side}, i / ${side}) - ${radius});
        let pixel = clamp(min(at, 2 * last - at), vec2i(0), last); // the frame is mirrored at its edges
        let cell = pixel.y / 4 * sizes.cells.x + pixel.x / 4;
        tile[i] = vec2f(restored[4 * cell + pixel.y % 4][pixel.x % 4], cells[7 * cell + pixel.y % 4][pixel.x % 4]);
      }
      workgroupBarrier();
      for (var i = i32(local); i < ${rim}; i += ${TILE * TILE}) {
        var row = vec3f(0, 9, -9);
        for (var k = 0; k < ${gaussian.length}; k++) {
          let value = tile[i / ${TILE} * ${side} + i % ${TILE} + k];
          row = vec3f(row.x + GAUSSIAN[k] * value.x, min(row.y, value.y), max(row.z, value.y));
        }
        rows[i] = row;
      }
      workgroupBarrier();
      if (any(vec2i(id.xy) > last)) { return; }
      var all = vec3f(0, 9, -9);
      for (var k = 0; k < ${gaussian.length}; k++) {
        let row = rows[i32(local) + ${TILE} * k];
        all = vec3f(all.x + GAUSSIAN[k] * row.x, min(all.y, row.y), max(all.z, row.z));
      }
      let value = tile[(i32(local) / ${TILE} + ${radius}) * ${side} + i32(local) % ${TILE} + ${radius}];
      let half = textureSampleLevel(halves, linear, (vec2f(id.xy) + 0.5) / 2 / vec2f(textureDimensions(halves)), 0);
      let y = limit_halo(steepen(value.x, all.x, half.z), all.y, all.z) - value.y;
      let rgb = vec3f(y + 1.402 * half.y, y - 0.344136 * half.x - 0.714136 * half.y, y + 1.772 * half.x);
      textureStore(change, id.xy, vec4f(rgb, 0));
    }`;

  // Frame and change -> canvas, enlarged by Catmull and Rom's cubic, which changes no pixel where nothing is enlarged.
  const draw = (type) => `${framePass(type, " change: texture_2d<f32>")}
    @vertex fn corners(@builtin(vertex_index) i: u32) -> @builtin(position) vec4f {
      return vec4f(f32(i % 2) * 4 - 1, f32(i / 2) * 4 - 1, 0, 1); // a triangle around the canvas
    }
    fn cubic(t: f32) -> vec4f {
      return vec4f(t * (t * (2 - t) - 1), t * t * (3 * t - 5) + 2, t * (t * (4 - 3 * t) + 1), t * t * (t - 1)) / 2;
    }
    @fragment fn draw(@builtin(position) position: vec4f) -> @location(0) vec4f {
      let size = vec2f(textureDimensions(frame));
      let extent = size / sizes.canvas;
      let at = position.xy * extent;
      if (any(extent > vec2f(1.01))) {
        return vec4f(cover(at, extent) + textureSampleLevel(change, linear, at / size, 0).rgb, 1);
      }
      let corner = floor(at - 0.5);
      let x = cubic(at.x - 0.5 - corner.x);
      let y = cubic(at.y - 0.5 - corner.y);
      var rgb = vec3f();
      for (var i = 0; i < 16; i++) {
        let near = corner + vec2f(vec2i(i % 4, i / 4)) - 0.5;
        rgb += x[i % 4] * y[i / 4] * (look(near) + textureSampleLevel(change, linear, near / size, 0).rgb);
      }
      return vec4f(rgb, 1);
    }`;
  return { fold, middle: [head, ...layers.blocks.map(block), tail, finish], draw };
}

/** A graphics device with the student on it, shared by all pictures of a page. */
class Network {
  /** `lose` is called once if the device cannot be used any more; `failure` then says why. */
  static async create(student, lose = () => {}) {
    if (!navigator.gpu) throw new Error("This browser has no WebGPU on this page.");
    const adapter = await navigator.gpu.requestAdapter();
    if (!adapter) throw new Error("WebGPU finds no graphics processor.");
    const half = adapter.features.has("shader-f16"), { STORAGE, COPY_DST } = GPUBufferUsage;
    const device = await adapter.requestDevice({ requiredFeatures: half ? ["shader-f16"] : [] });
    const weights = half ? student.weights : new Float32Array(student.weights);
    const buffer = device.createBuffer({ size: weights.byteLength, usage: STORAGE | COPY_DST });
    device.queue.writeBuffer(buffer, 0, weights);
    const network = Object.assign(new Network(), {
      device, weights: buffer, readers: {}, shaders: makeShaders(student, half),
      linear: device.createSampler({ magFilter: "linear", minFilter: "linear" }),
      format: navigator.gpu.getPreferredCanvasFormat(),
      bytes: (half ? 8 : 16) * student.layers.head.outputs, // of a cell in a map
    });
    const fail = ({ message }) => {
      if (!network.failure) lose();
      network.failure ||= message || "The graphics device is lost.";
    };
    device.addEventListener("uncapturederror", ({ error }) => fail(error));
    device.lost.then(fail);
    const build = (code) => ({ layout: "auto", compute: { module: device.createShaderModule({ code }) } });
    network.middle = await Promise.all(
      network.shaders.middle.map((code) => device.createComputePipelineAsync(build(code))));
    return network;
  }

  /** The two pipelines that read the frame, from a texture of this type in WGSL. */
  reader(type) {
    const make = () => {
      const { device, shaders, format } = this;
      const [module, last] = [shaders.fold, shaders.draw].map((code) => device.createShaderModule({ code: code(type) }));
      const fragment = { module: last, targets: [{ format }] };
      return [device.createComputePipeline({ layout: "auto", compute: { module } }),
        device.createRenderPipeline({ layout: "auto", vertex: { module: last }, fragment })];
    };
    return this.readers[type] ??= make();
  }

  bind(pipeline, resources) {
    const entry = (resource) => resource instanceof GPUBuffer ? { buffer: resource }
      : resource instanceof GPUTexture ? resource.createView() : resource;
    const entries = resources.map((resource, binding) => ({ binding, resource: entry(resource) }));
    return this.device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
  }
}

/** A canvas that frames are drawn on, with the memory on the device that they take. */
class Picture {
  constructor(network, canvas) {
    Object.assign(this, { network, canvas, memory: {}, size: [] });
    this.context = canvas.getContext("webgpu");
    this.context.configure({ device: network.device, format: network.format, alphaMode: "opaque" });
  }

  /** Draw a video, VideoFrame or ImageBitmap, changed `strength` times at the working size `[width, height]`. */
  draw(source, size, strength) {
    const { network, canvas } = this, { device, weights, linear, middle } = network;
    const cells = size.map((side) => 2 * Math.ceil(side / 8)); // pixels are padded to multiples of 8, as in models.py
    if (String(size) !== String(this.size)) this.allocate(size, cells);
    const { sizes, folded, maps, restored, halves, change } = this.memory;
    device.queue.writeBuffer(sizes, 0, new Int32Array([...size, ...cells]));
    device.queue.writeBuffer(sizes, 16, new Float32Array([canvas.width, canvas.height, strength]));

    const [type, frame] = this.import(source), [fold, draw] = network.reader(type), blocks = middle.length - 3;
    const passes = [
      [frame, linear, folded],
      [weights, folded, maps[0]],
      ...Array.from({ length: blocks }, (_, index) => [weights, maps[index % 2], maps[1 - index % 2]]),
      [weights, maps[blocks % 2], folded, restored, halves],
      [folded, restored, halves, linear, change],
    ];
    const encoder = device.createCommandEncoder(), compute = encoder.beginComputePass();
    [fold, ...middle].forEach((pipeline, index) => {
      const groups = index <= middle.length - 1 ? cells.map((side) => side / CELLS) : size.map((side) => side / TILE);
      compute.setPipeline(pipeline);
      compute.setBindGroup(0, network.bind(pipeline, [sizes, ...passes[index]]));
      compute.dispatchWorkgroups(...groups.map(Math.ceil));
    });
    compute.end();
    const view = this.context.getCurrentTexture().createView();
    const render = encoder.beginRenderPass({ colorAttachments: [{ view, loadOp: "clear", storeOp: "store" }] });
    render.setPipeline(draw);
    render.setBindGroup(0, network.bind(draw, [sizes, frame, linear, change]));
    render.draw(3);
    render.end();
    device.queue.submit([encoder.finish()]);
  }

  /** The frame as a texture without a copy, or else copied: its type in WGSL, and itself. */
  import(source) {
    const { device } = this.network;
    try {
      return ["texture_external", device.importExternalTexture({ source })];
    } catch (error) {
      if (error.name === "SecurityError") throw error;
    }
    const size = ["Width", "Height"].map((side) => // of a video, of a VideoFrame, of others
      source[`video${side}`] ?? source[`display${side}`] ?? source[side.toLowerCase()]);
    this.memory.copy?.destroy();
    this.memory.copy = this.texture(size, "rgba8unorm", GPUTextureUsage.COPY_DST | GPUTextureUsage.RENDER_ATTACHMENT);
    device.queue.copyExternalImageToTexture({ source }, { texture: this.memory.copy }, size);
    return ["texture_2d<f32>", this.memory.copy];
  }

  allocate(size, [columns, rows]) {
    this.free();
    const { STORAGE, UNIFORM, COPY_DST } = GPUBufferUsage, { STORAGE_BINDING } = GPUTextureUsage;
    const buffer = (bytes, usage = STORAGE) => this.network.device.createBuffer({ size: bytes, usage });
    const cells = rows * columns;
    this.memory = {
      sizes: buffer(32, UNIFORM | COPY_DST),
      folded: buffer(7 * 16 * cells),
      maps: [buffer(this.network.bytes * cells), buffer(this.network.bytes * cells)],
      restored: buffer(4 * 16 * cells),
      halves: this.texture(size.map((side) => Math.ceil(side / 2)), "rgba16float", STORAGE_BINDING),
      change: this.texture(size, "rgba16float", STORAGE_BINDING),
    };
    this.size = size;
  }

  texture(size, format, usage) {
    return this.network.device.createTexture({ size, format, usage: usage | GPUTextureUsage.TEXTURE_BINDING });
  }

  /** Give the memory back; the next frame takes it again. */
  free() {
    for (const taken of Object.values(this.memory).flat()) taken.destroy();
    Object.assign(this, { memory: {}, size: [] });
  }
}
