// The student in WebGPU: reads the file that `export.py --web` writes, and draws sharpened frames on a canvas.
//
// A frame becomes planes of luma and of halved chroma, as in models.py, at the *working size*. Only what the student
// changes is computed there; it is added to the frame itself when that is drawn at the canvas's size.
"use strict";

const MAGIC = "RTSS", VERSION = 1; // of the file
const CELLS = 8; // a side of a workgroup whose invocations are cells of 4x4 pixels, or pairs of cells
const TILE = 16; // a side of a workgroup whose invocations are pixels

/** Read a student's file: its header, `weights`, and where among them those of each of the `layers` are. */
function parseStudent(buffer) {
  const text = (begin, end) => new TextDecoder().decode(buffer.slice(begin, end));
  const [version, length] = new Uint32Array(buffer.slice(4, 12));
  if (text(0, 4) !== MAGIC || version !== VERSION) throw new Error("This is no student's file for this page.");
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

/** WGSL of all passes, in their order. `half`: maps and convolutions are float16. */
function makeShaders(student, half) {
  const { layers, inputGain, detailGain, detailSigma, haloShare } = student;
  const each = (count, text) => Array.from({ length: count }, (_, index) => text(index)).join("\n");
  // Cells and maps are planes of vectors: neighbours in a row are neighbours in memory.
  const pass = (...variables) => `${half ? "enable f16; alias T = f16;" : "alias T = f32;"}
    struct Sizes { pixels: vec2i, cells: vec2i, canvas: vec2f, strength: f32 }
    ${["<uniform> sizes: Sizes", ...variables].map((name, i) => `@group(0) @binding(${i}) var${name};`).join("\n")}
    fn place(cell: vec2i, plane: i32) -> i32 { return (plane * sizes.cells.y + cell.y) * sizes.cells.x + cell.x; }`;
  const main = (cellsEach) => `
    @compute @workgroup_size(${CELLS}, ${CELLS}) fn run(@builtin(global_invocation_id) id: vec3u) {
      let cell = vec2i(id.xy) * vec2i(1, ${cellsEach});
      if (any(cell >= sizes.cells)) { return; }`;
  const FRAME = " frame: texture_2d<f32>", SAMPLER = " linear: sampler";
  const CELL = "<storage, read> cells: array<vec4f>"; // planes 0-3 luma, 4 u, 5 v, 6 means, 7-10 restored luma
  const INPUT = "<storage, read> input: array<vec4<T>>", OUTPUT = "<storage, read_write> output: array<vec4<T>>";
  const writable = (variable) => variable.replace("read", "read_write");

  // The frame at another size than its own: each pixel is the mean of what it covers.
  const COVER = `
    fn look(image: texture_2d<f32>, at: vec2f) -> vec3f { // at a position in the frame's own pixels
      return textureSampleLevel(image, linear, at / vec2f(textureDimensions(frame)), 0).rgb;
    }
    fn cover(at: vec2f, extent: vec2f) -> vec3f {
      let taps = max(vec2i(1), vec2i(ceil(extent - 0.01)));
      var sum = vec3f();
      for (var i = 0; i < taps.x * taps.y; i++) {
        sum += look(frame, at + extent * ((vec2f(vec2i(i % taps.x, i / taps.x)) + 0.5) / vec2f(taps) - 0.5));
      }
      return sum / f32(taps.x * taps.y);
    }`;

  // Frame -> cells of 7 vectors: 4 rows of luma, 2x2 of u, 2x2 of v, the means of these three. Edges are repeated.
  const fold = `${pass(FRAME, SAMPLER, writable(CELL))} ${COVER}
    const LUMA = vec3f(0.299, 0.587, 0.114); // BT.601, as in JPEG
    fn colour(pixel: vec2i) -> vec3f {
      let extent = vec2f(textureDimensions(frame)) / vec2f(sizes.pixels);
      return cover((vec2f(pixel) + 0.5) * extent, extent);
    }
    ${main(1)}
      let last = sizes.pixels - 1;
      var planes: array<vec4f, 7>;
      for (var i = 0; i < 16; i++) {
        let at = vec2i(i % 4, i / 4);
        let pixel = 4 * cell + at;
        var rgb = colour(min(pixel, last));
        planes[at.y][at.x] = dot(rgb, LUMA);
        let padded = min(2 * min(pixel / 2, last / 2) + pixel % 2, last); // in the last pixel of chroma
        if (any(pixel > last)) { rgb = colour(padded); }
        planes[4][at.y / 2 * 2 + at.x / 2] += 0.564 / 4 * (rgb.b - dot(rgb, LUMA));
        planes[5][at.y / 2 * 2 + at.x / 2] += 0.713 / 4 * (rgb.r - dot(rgb, LUMA));
      }
      let luma = (planes[0] + planes[1] + planes[2] + planes[3]) / 4;
      planes[6] = vec4f(dot(luma, vec4f(0.25)), dot(planes[4], vec4f(0.25)), dot(planes[5], vec4f(0.25)), 0);
      for (var i = 0; i < 7; i++) { cells[place(cell, i)] = planes[i]; }
    }`;

  // Cells less the means of 3x3 of them, amplified -> map of 24 channels.
  const centre = `${pass(CELL, OUTPUT)}
    ${main(1)}
      let first = max(cell - 1, vec2i(0));
      let last = min(cell + 1, sizes.cells - 1);
      var mean = vec4f();
      for (var y = first.y; y <= last.y; y++) {
        for (var x = first.x; x <= last.x; x++) { mean += cells[place(vec2i(x, y), 6)]; }
      }
      let count = last - first + 1;
      mean /= f32(count.x * count.y);
      for (var i = 0; i < 6; i++) {
        output[place(cell, i)] = vec4<T>(${inputGain} * (cells[place(cell, i)] - mean[max(0, i - 3)]));
      }
    }`;

  // Convolutions compute two cells, one above the other, so that each weight is read once for both.
  const convolution = (...variables) => `${pass("<storage, read> weights: array<mat4x4<T>>", INPUT, ...variables)}
    alias Pair = mat2x4<T>; // four channels of two cells
    fn load(cell: vec2i, i: i32) -> vec4<T> {
      if (any(cell < vec2i(0)) || any(cell >= sizes.cells)) { return vec4<T>(); }
      return input[place(cell, i)];
    }
    fn load_pair(cell: vec2i, i: i32) -> Pair { return Pair(load(cell, i), load(cell + vec2i(0, 1), i)); }
    fn bias(at: i32, i: i32) -> Pair { return Pair(weights[at + i / 4][i % 4], weights[at + i / 4][i % 4]); }
    fn add(sum: Pair, w: mat4x4<T>, x: Pair) -> Pair { // sum + w * x as a chain, where each step is one instruction
      return Pair(sum[0] + w[0] * x[0].x + w[1] * x[0].y + w[2] * x[0].z + w[3] * x[0].w,
        sum[1] + w[0] * x[1].x + w[1] * x[1].y + w[2] * x[1].z + w[3] * x[1].w);
    }
    fn relu(x: Pair) -> Pair { return Pair(max(x[0], vec4<T>()), max(x[1], vec4<T>())); }
    ${main(2)}`;
  // A 3x3 convolution, whose sums are the variables x0, x1, ... of type Pair, four channels each.
  const convolve = (layer) => `
      ${each(layer.outputs, (o) => `var x${o} = bias(${layer.bias}, ${o});`)}
      for (var tap = 0; tap < 9; tap++) {
        let near = cell + ${layer.dilation} * vec2i(tap % 3 - 1, tap / 3 - 1);
        for (var i = 0; i < ${layer.inputs}; i++) {
          let value = load_pair(near, i);
          let w = ${layer.weights} + (tap * ${layer.inputs} + i) * ${layer.outputs};
          ${each(layer.outputs, (o) => `x${o} = add(x${o}, weights[w + ${o}], value);`)}
        }
      }`;
  const write = (o, value) => `
      output[place(cell, ${o})] = ${value}[0];
      output[place(cell + vec2i(0, 1), ${o})] = ${value}[1];`;

  // Map -> map.
  const head = `${convolution(OUTPUT)}
      ${convolve(layers.head)}
      ${each(layers.head.outputs, (o) => write(o, `relu(x${o})`))}
    }`;
  const block = ([first, second]) => `${convolution(OUTPUT)}
      ${convolve(first)}
      ${each(first.outputs, (i) => `x${i} = relu(x${i});`)}
      for (var o = 0; o < ${second.outputs}; o++) {
        var sum = load_pair(cell, o) + bias(${second.bias}, o);
        ${each(first.outputs, (i) => `sum = add(sum, weights[${second.weights + i * second.outputs} + o], x${i});`)}
        ${write("o", "sum")}
      }
    }`;

  // Map -> restored luma, and halves: change of u, change of v, and gain of 2x2 pixels each.
  const tail = `${convolution(writable(CELL), " halves: texture_storage_2d<rgba16float, write>")}
      ${convolve(layers.tail)}
      let amount = sizes.strength / ${inputGain};
      ${each(2, (k) => `{
        let one = cell + vec2i(0, ${k});
        ${each(4, (row) =>
          `cells[place(one, ${7 + row})] = saturate(cells[place(one, ${row})] + amount * vec4f(x${row}[${k}]));`)}
        let u = amount * vec4f(x4[${k}]);
        let v = amount * vec4f(x5[${k}]);
        let gain = clamp(sizes.strength * vec4f(x6[${k}]), vec4f(${detailGain[0]}), vec4f(${detailGain[1]}));
        ${each(4, (i) =>
          `textureStore(halves, 2 * one + vec2i(${i % 2}, ${i >> 1}), vec4f(u[${i}], v[${i}], gain[${i}], 0));`)}
      }`)}
    }`;

  const radius = Math.max(student.detailRadius, student.neighbours >> 1), side = TILE + 2 * radius, rim = side * TILE;
  const gaussian = Array.from({ length: 2 * radius + 1 }, (_, i) =>
    Math.abs(i - radius) > student.detailRadius ? 0 : Math.exp(-((i - radius) ** 2) / (2 * detailSigma ** 2)));
  const total = gaussian.reduce((sum, weight) => sum + weight);
  // -> change: what is added to red, green and blue. A workgroup loads its pixels with `radius` more on each side, and
  // sums and compares them in rows and then in columns.
  const finish = `${pass(CELL, " halves: texture_2d<f32>", SAMPLER, " change: texture_storage_2d<rgba16float, write>")}
    const GAUSSIAN = array(${gaussian.map((weight) => weight / total)});
    var<workgroup> tile: array<vec2f, ${side * side}>; // restored luma, luma
    var<workgroup> rows: array<vec3f, ${rim}>; // in rows: restored luma blurred, least luma, greatest luma

    @compute @workgroup_size(${TILE}, ${TILE}) fn run(@builtin(global_invocation_id) id: vec3u,
        @builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
      let last = sizes.pixels - 1;
      for (var i = i32(local); i < ${side * side}; i += ${TILE * TILE}) {
        let at = abs(${TILE} * vec2i(group.xy) + vec2i(i % ${side}, i / ${side}) - ${radius});
        let pixel = clamp(min(at, 2 * last - at), vec2i(0), last); // the frame is mirrored at its edges
        let row = pixel.y % 4;
        tile[i] = vec2f(cells[place(pixel / 4, 7 + row)][pixel.x % 4], cells[place(pixel / 4, row)][pixel.x % 4]);
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
      let steep = saturate(value.x + half.z * (value.x - all.x)); // models.steepen
      let y = mix(clamp(steep, all.y, all.z), steep, ${haloShare}) - value.y; // models.limit_halo
      let rgb = vec3f(y + 1.402 * half.y, y - 0.344136 * half.x - 0.714136 * half.y, y + 1.772 * half.x);
      textureStore(change, id.xy, vec4f(rgb, 0));
    }`;

  // Frame and change -> canvas, enlarged by Catmull and Rom's cubic.
  const draw = `${pass(FRAME, SAMPLER, " change: texture_2d<f32>")} ${COVER}
    @vertex fn corners(@builtin(vertex_index) i: u32) -> @builtin(position) vec4f {
      return vec4f(f32(i % 2) * 4 - 1, f32(i / 2) * 4 - 1, 0, 1); // a triangle around the canvas
    }
    fn cubic(t: f32) -> vec4f { // weights of four pixels, for a position between the second and the third
      return vec4f(t * (t * (2 - t) - 1), t * t * (3 * t - 5) + 2, t * (t * (4 - 3 * t) + 1), t * t * (t - 1)) / 2;
    }
    @fragment fn draw(@builtin(position) position: vec4f) -> @location(0) vec4f {
      let extent = vec2f(textureDimensions(frame)) / sizes.canvas;
      let at = position.xy * extent;
      if (all(extent == vec2f(1)) || any(extent > vec2f(1.01))) {
        return vec4f(cover(at, extent) + look(change, at), 1);
      }
      let corner = floor(at - 0.5);
      let x = cubic(at.x - 0.5 - corner.x);
      let y = cubic(at.y - 0.5 - corner.y);
      let middle = vec2f(x[1] + x[2], y[1] + y[2]); // of two pixels, which one look between them reads
      let weights = array(vec2f(x[0], y[0]), middle, vec2f(x[3], y[3]));
      let places = array(corner - 0.5, corner + 0.5 + vec2f(x[2], y[2]) / middle, corner + 2.5);
      var rgb = vec3f();
      ${each(9, (i) => `{
        let near = vec2f(places[${i % 3}].x, places[${Math.floor(i / 3)}].y);
        rgb += weights[${i % 3}].x * weights[${Math.floor(i / 3)}].y * (look(frame, near) + look(change, near));
      }`)}
      return vec4f(rgb, 1);
    }`;
  return [fold, centre, head, ...layers.blocks.map(block), tail, finish, draw];
}

/** A graphics device with the student on it, shared by all pictures of a page. */
class Network {
  /** `lose` is called once if the device cannot be used any more; `failure` then says why. */
  static async create(student, lose = () => {}) {
    if (!navigator.gpu) throw new Error("This browser has no WebGPU on this page.");
    const adapter = await navigator.gpu.requestAdapter();
    if (!adapter) throw new Error("WebGPU finds no graphics processor.");
    const half = adapter.features.has("shader-f16");
    const device = await adapter.requestDevice({ requiredFeatures: half ? ["shader-f16"] : [] });
    const network = Object.assign(new Network(), { device, format: navigator.gpu.getPreferredCanvasFormat() });
    const fail = ({ message }) => {
      if (!network.failure) lose();
      network.failure ||= message || "The graphics device is lost.";
    };
    device.addEventListener("uncapturederror", ({ error }) => fail(error));
    device.lost.then(fail);

    const weights = half ? student.weights : new Float32Array(student.weights);
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST;
    network.weights = device.createBuffer({ size: weights.byteLength, usage });
    device.queue.writeBuffer(network.weights, 0, weights);
    network.linear = device.createSampler({ magFilter: "linear", minFilter: "linear" });
    network.mapBytes = (half ? 8 : 16) * Math.max(student.layers.head.inputs, student.layers.head.outputs); // of a cell
    const modules = makeShaders(student, half).map((code) => device.createShaderModule({ code })), last = modules.pop();
    network.passes = await Promise.all(modules.map((module) =>
      device.createComputePipelineAsync({ layout: "auto", compute: { module } })));
    network.last = await device.createRenderPipelineAsync(
      { layout: "auto", vertex: { module: last }, fragment: { module: last, targets: [{ format: network.format }] } });
    return network;
  }
}

/** A canvas that frames are drawn on, with the memory on the device that they take. */
class Picture {
  constructor(network, canvas) {
    Object.assign(this, { network, canvas, memory: [], size: "" });
    this.context = canvas.getContext("webgpu");
    this.context.configure({ device: network.device, format: network.format, alphaMode: "opaque" });
  }

  /** Draw a VideoFrame, changed `strength` times at the working size `[width, height]`. */
  draw(source, working, strength) {
    const { network: { device, last }, canvas } = this, size = [source.displayWidth, source.displayHeight];
    const cells = working.map((side) => 2 * Math.ceil(side / 8)); // the frame is padded to 8 pixels, as in models.py
    if (this.size !== String([working, size])) this.allocate(size, working, cells);
    const [sizes, frame] = this.memory;
    // A copy, as a video's own texture (`importExternalTexture`) is converted from YUV at each of many looks.
    device.queue.copyExternalImageToTexture({ source }, { texture: frame }, size);
    device.queue.writeBuffer(sizes, 0, new Int32Array([...working, ...cells]));
    device.queue.writeBuffer(sizes, 16, new Float32Array([canvas.width, canvas.height, strength]));

    const encoder = device.createCommandEncoder(), compute = encoder.beginComputePass();
    for (const [pipeline, group, workgroups] of this.passes) {
      compute.setPipeline(pipeline);
      compute.setBindGroup(0, group);
      compute.dispatchWorkgroups(...workgroups);
    }
    compute.end();
    const view = this.context.getCurrentTexture().createView();
    const render = encoder.beginRenderPass({ colorAttachments: [{ view, loadOp: "clear", storeOp: "store" }] });
    render.setPipeline(last);
    render.setBindGroup(0, this.last);
    render.draw(3);
    render.end();
    device.queue.submit([encoder.finish()]);
  }

  /** Take the memory for frames of one size, and bind it to the passes. */
  allocate(size, working, cells) {
    this.free();
    const { network } = this, { device, weights, linear } = network, count = cells[0] * cells[1];
    const { STORAGE, UNIFORM, COPY_DST } = GPUBufferUsage, { STORAGE_BINDING, TEXTURE_BINDING } = GPUTextureUsage;
    const buffer = (bytes, usage = STORAGE) => device.createBuffer({ size: bytes, usage });
    const texture = (size, format, usage) => device.createTexture({ size, format, usage: usage | TEXTURE_BINDING });
    const sizes = buffer(32, UNIFORM | COPY_DST), planes = buffer(11 * 16 * count); // of vectors of four float32
    const maps = [buffer(network.mapBytes * count), buffer(network.mapBytes * count)];
    const frame = texture(size, "rgba8unorm", GPUTextureUsage.COPY_DST | GPUTextureUsage.RENDER_ATTACHMENT);
    const halves = texture(working.map((side) => Math.ceil(side / 2)), "rgba16float", STORAGE_BINDING);
    const change = texture(working, "rgba16float", STORAGE_BINDING);

    const bind = (pipeline, ...resources) => {
      const entry = (resource) => resource instanceof GPUBuffer ? { buffer: resource }
        : resource instanceof GPUTexture ? resource.createView() : resource;
      const entries = resources.map((resource, binding) => ({ binding, resource: entry(resource) }));
      return device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
    };
    const workgroups = (sides, x, y) => [Math.ceil(sides[0] / x), Math.ceil(sides[1] / y)];
    const perCell = workgroups(cells, CELLS, CELLS), perPair = workgroups(cells, CELLS, 2 * CELLS);
    const middle = network.passes.length - 4; // passes from one map to the other
    const passes = [
      [perCell, frame, linear, planes],
      [perCell, planes, maps[0]],
      ...Array.from({ length: middle }, (_, index) => [perPair, weights, maps[index % 2], maps[1 - index % 2]]),
      [perPair, weights, maps[middle % 2], planes, halves],
      [workgroups(working, TILE, TILE), planes, halves, linear, change],
    ].map(([groups, ...resources], index) =>
      [network.passes[index], bind(network.passes[index], sizes, ...resources), groups]);
    const last = bind(network.last, sizes, frame, linear, change);
    const memory = [sizes, frame, planes, ...maps, halves, change];
    Object.assign(this, { passes, last, memory, size: String([working, size]) });
  }

  /** Give the memory back; the next frame takes it again. */
  free() {
    for (const taken of this.memory) taken.destroy();
    Object.assign(this, { memory: [], size: "" });
  }
}
