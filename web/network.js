// The student in WebGPU: reads the file that `export.py --web` writes, and draws sharpened frames on a canvas.
//
// A frame becomes planes of luma and of halved chroma, as in models.py, at the *working size*. Only what the student
// changes is computed there; it is added to the frame itself when that is drawn at the canvas's size.
"use strict";

const MAGIC = 0x53535452, VERSION = 4; // of the file, which begins with "RTSS"
const CELLS = 8; // a side of a workgroup whose invocations are cells of 4x4 pixels, or several cells each
const TILE = 16; // a side of a workgroup whose invocations are pixels
const MOST_CELLS = 4096; // more than a picture has on a side
const NOISE_STEPS = 64; // in which the noise is measured

/** Read a student's file: its header, `weights`, and where among them those of each of the `layers` are. */
function parseStudent(buffer) {
  const [magic, version, length] = new Uint32Array(buffer.slice(0, 12));
  if (magic !== MAGIC || version !== VERSION) throw new Error("This is no student's file for this page.");
  const student = JSON.parse(new TextDecoder().decode(buffer.slice(12, 12 + length)));
  const { channels, wide, dilations } = student;
  let size = 0; // so far, in 4x4 matrices
  const layer = (inputs, outputs, taps = 1, dilation = 0) => {
    [inputs, outputs] = [Math.ceil(inputs / 4), Math.ceil(outputs / 4)]; // vectors of four channels
    const weights = size, bias = weights + taps * inputs * outputs;
    size = bias + Math.ceil(outputs / 4);
    return { inputs, outputs, dilation, weights, bias };
  };
  student.layers = {
    head: layer(24, channels),
    blocks: dilations.map((dilation) => [layer(channels, wide, 9, dilation), layer(wide, channels)]),
    tail: layer(channels, 28, 9, 1),
  };
  student.weights = new Float16Array(buffer.slice(12 + length));
  if (student.weights.length !== 16 * size) throw new Error("The student's file is cut off.");
  return student;
}

/** WGSL of all passes, as one module, and the passes in their order: entry point, pixels that a workgroup covers, and
 *  bindings that are used. `half`: maps and convolutions are float16. */
function makeShaders(student, half) {
  const { layers, inputGain, detailGain, detailRadius, detailSigma, neighbours, haloShare } = student;
  const { coarseShare, fineShare, fineThreshold, fineLimit } = student;
  const { noiseRange: [leastNoise, mostNoise], noiseQuantile, small, moved } = student;
  const each = (count, text) => Array.from({ length: count }, (_, index) => text(index)).join("\n");
  const passes = [];
  // The beginning of a pass, each of whose invocations takes so many cells.
  const pass = (name, [columns, rows], bindings) => {
    passes.push([name, [4 * CELLS * columns, 4 * CELLS * rows], bindings]);
    return `
    @compute @workgroup_size(${CELLS}, ${CELLS}) fn ${name}(@builtin(global_invocation_id) id: vec3u) {
      let cell = vec2i(id.xy) * vec2i(${columns}, ${rows});
      if (any(cell >= sizes.cells)) { return; }`;
  };
  // A 3x3 convolution, whose sums are the variables x0, x1, ... of type Pair, four channels each.
  const convolve = (layer) => `
      ${each(layer.outputs, (o) => `var x${o} = bias(${layer.bias}, ${o});`)}
      for (var tap = 0; tap < 9; tap++) {
        let near = cell + ${layer.dilation} * vec2i(tap % 3 - 1, tap / 3 - 1);
        for (var i = 0; i < ${layer.inputs}; i++) {
          let value = load(near, i);
          let w = ${layer.weights} + (tap * ${layer.inputs} + i) * ${layer.outputs};
          ${each(layer.outputs, (o) => `x${o} = add(x${o}, weights[w + ${o}], value);`)}
        }
      }`;
  const block = ([first, second], index) => `${pass(`block${index}`, [1, 2], [0, 4, 5, 6])}
      ${convolve(first)}
      ${each(first.outputs, (i) => `x${i} = relu(x${i});`)}
      for (var o = 0; o < ${second.outputs}; o++) {
        var sum = load(cell, o) + bias(${second.bias}, o);
        ${each(first.outputs, (i) => `sum = add(sum, weights[${second.weights + i * second.outputs} + o], x${i});`)}
        store(cell, o, sum);
      }
    }`;
  // Sides of a workgroup's tile with what lies around it: of halves that are blurred, and of pixels that are compared.
  const blurred = TILE + 2 * detailRadius, radius = neighbours >> 1, compared = TILE + 2 * radius;
  const gaussian = Array.from({ length: 2 * detailRadius + 1 }, (_, i) =>
    Math.exp(-((i - detailRadius) ** 2) / (2 * detailSigma ** 2)));
  const total = gaussian.reduce((sum, weight) => sum + weight);

  const code = `${half ? "enable f16; alias T = f16;" : "alias T = f32;"}
    // averaged: the share of small changes that is taken away; above 1, the last frame is drawn again
    struct Sizes { pixels: vec2i, cells: vec2i, canvas: vec2i, strength: f32, averaged: f32 } // working size in both
    @group(0) @binding(0) var<uniform> sizes: Sizes;
    @group(0) @binding(1) var linear: sampler;
    @group(0) @binding(2) var frame: texture_2d<f32>;
    // Cells and maps are planes of vectors: neighbours in a row are neighbours in memory.
    @group(0) @binding(3) var<storage, read> cells: array<vec4f>; // 0-3 luma, 4 u, 5 v, 6 means, 7-10 restored luma
    @group(0) @binding(3) var<storage, read_write> cells_out: array<vec4f>;
    @group(0) @binding(4) var<storage, read> weights: array<mat4x4<T>>;
    @group(0) @binding(5) var<storage, read> input: array<vec4<T>>; // map
    @group(0) @binding(6) var<storage, read_write> output: array<vec4<T>>; // map
    @group(0) @binding(7) var halves: texture_2d<f32>; // of 2x2 pixels: change of u, change of v, gain
    @group(0) @binding(7) var halves_out: texture_storage_2d<rgba16float, write>;
    @group(0) @binding(8) var bands: texture_2d<f32>; // of 2x2 pixels: luma blurred, and steep; fine gain
    @group(0) @binding(8) var bands_out: texture_storage_2d<rgba16float, write>;
    @group(0) @binding(9) var change: texture_2d<f32>; // what is added to red, green and blue
    @group(0) @binding(9) var change_out: texture_storage_2d<rgba16float, write>;
    // 0-3: luma of the frame before, averaged with those before it, and then of this frame; 4: change of a cell's mean
    @group(0) @binding(10) var<storage, read> steadied: array<vec4f>;
    @group(0) @binding(10) var<storage, read_write> steadied_out: array<vec4f>;
    struct Noise { codes: f32, blocks: array<atomic<u32>, ${NOISE_STEPS + 1}> } // and how many blocks are so noisy
    @group(0) @binding(11) var<storage, read_write> noise: Noise;
    fn place(cell: vec2i, plane: i32) -> i32 { return (plane * sizes.cells.y + cell.y) * sizes.cells.x + cell.x; }
    fn is_inside(cell: vec2i) -> bool { return all(cell >= vec2i(0)) && all(cell < sizes.cells); }

    fn look(image: texture_2d<f32>, at: vec2f) -> vec3f { // at a position in the frame's own pixels
      return textureSampleLevel(image, linear, at / vec2f(textureDimensions(frame)), 0).rgb;
    }
    // The frame at another size than its own: a pixel there is the mean of what it covers, around its centre.
    fn cover(at: vec2f, size: vec2i) -> vec3f {
      let extent = vec2f(textureDimensions(frame)) / vec2f(size);
      let taps = max(vec2i(1), vec2i(ceil(extent - 0.01)));
      var sum = vec3f();
      for (var i = 0; i < taps.x * taps.y; i++) {
        sum += look(frame, extent * (at + (vec2f(vec2i(i % taps.x, i / taps.x)) + 0.5) / vec2f(taps) - 0.5));
      }
      return sum / f32(taps.x * taps.y);
    }

    // Frame -> cells: 4 rows of luma, 2x2 of u, 2x2 of v, and a vector of the means of these three and 1. Edges repeat.
    const LUMA = vec3f(0.299, 0.587, 0.114); // BT.601, as in JPEG
    ${pass("fold", [1, 1], [0, 1, 2, 3])}
      let last = sizes.pixels - 1;
      var planes: array<vec4f, 7>;
      for (var i = 0; i < 16; i++) {
        let at = vec2i(i % 4, i / 4);
        let pixel = 4 * cell + at;
        var rgb = cover(vec2f(min(pixel, last)) + 0.5, sizes.pixels);
        planes[at.y][at.x] = dot(rgb, LUMA);
        let padded = min(2 * min(pixel / 2, last / 2) + pixel % 2, last); // in the last pixel of chroma
        if (any(pixel > last)) { rgb = cover(vec2f(padded) + 0.5, sizes.pixels); }
        planes[4][at.y / 2 * 2 + at.x / 2] += 0.564 / 4 * (rgb.b - dot(rgb, LUMA));
        planes[5][at.y / 2 * 2 + at.x / 2] += 0.713 / 4 * (rgb.r - dot(rgb, LUMA));
      }
      let luma = (planes[0] + planes[1] + planes[2] + planes[3]) / 4;
      planes[6] = vec4f(dot(luma, vec4f(0.25)), dot(planes[4], vec4f(0.25)), dot(planes[5], vec4f(0.25)), 1);
      for (var i = 0; i < 7; i++) { cells_out[place(cell, i)] = planes[i]; }
    }

    // These three passes are runtime.steady: they average luma with the frames before where the picture stands still,
    // and renew its means. An invocation of the first takes a block of 4x4 cells.
    ${pass("compare", [4, 4], [0, 3, 10, 11])}
      var total = vec2f(); // change, and its size in 2x2 pixels
      for (var i = 0; i < 16; i++) {
        let near = cell + vec2i(i % 4, i / 4);
        if (!is_inside(near)) { continue; }
        var means = array<vec2f, 2>(); // of 2x2 pixels; SwiftShader zeroes once what has no initial value
        for (var row = 0; row < 4; row++) {
          let change = cells[place(near, row)] - steadied_out[place(near, row)];
          means[row / 2] += 255 / 4f * (change.xz + change.yw);
        }
        let sum = means[0] + means[1];
        let size = abs(means[0]) + abs(means[1]);
        let changed = vec2f(sum.x + sum.y, size.x + size.y) / 4;
        steadied_out[place(near, 4)] = vec4f(changed, 0, 0);
        total += changed / 16;
      }
      let step = ceil((total.y - abs(total.x) - ${leastNoise}) * ${NOISE_STEPS / (mostNoise - leastNoise)});
      if (is_inside(cell + 3)) { atomicAdd(&noise.blocks[i32(clamp(step, 0, ${NOISE_STEPS}))], 1); }
    }
    ${pass("measure", [MOST_CELLS, MOST_CELLS], [0, 11])} // one invocation for all of them
      var count = 0u;
      for (var i = 0; i <= ${NOISE_STEPS}; i++) { count += atomicLoad(&noise.blocks[i]); }
      let sought = u32(${noiseQuantile} * f32(count));
      var calmer = 0u;
      for (var i = 0; i <= ${NOISE_STEPS}; i++) {
        if (calmer <= sought) { noise.codes = ${leastNoise} + f32(i) * ${(mostNoise - leastNoise) / NOISE_STEPS}; }
        calmer += atomicExchange(&noise.blocks[i], 0); // the next frame's begin at zero
      }
    }
    ${pass("steady", [1, 1], [0, 3, 10, 11])}
      var drift = 0f;
      for (var i = 0; i < 9; i++) {
        let near = clamp(cell + vec2i(i % 3, i / 3) - 1, vec2i(0), sizes.cells - 1);
        drift += steadied_out[place(near, 4)].x / 9;
      }
      let share = select(0, sizes.averaged, abs(drift) < ${moved} * noise.codes);
      var sum = vec4f();
      for (var row = 0; row < 4; row++) {
        let came = cells_out[place(cell, row)];
        let before = steadied_out[place(cell, row)];
        let taken = share * saturate(2 - 255 * abs(came - before) / (${small} * noise.codes));
        let calm = select(mix(came, before, taken), before, sizes.averaged > 1);
        steadied_out[place(cell, row)] = calm;
        sum += calm;
      }
      cells_out[place(cell, 6)].x = dot(sum, vec4f(1 / 16f));
    }

    // Cells less the means of 3x3 of them, amplified, through the head -> map.
    ${pass("head", [1, 1], [0, 3, 4, 6, 10])}
      var sum = vec4f(); // of luma, u, v, and 1
      for (var i = 0; i < 9; i++) {
        let near = cell + vec2i(i % 3, i / 3) - 1;
        if (is_inside(near)) { sum += cells[place(near, 6)]; }
      }
      var planes: array<vec4<T>, 6>;
      for (var i = 0; i < 6; i++) {
        var value = cells[place(cell, i)];
        if (i < 4) { value = steadied[place(cell, i)]; }
        planes[i] = vec4<T>(${inputGain} * (value - sum[max(0, i - 3)] / sum.w));
      }
      for (var o = 0; o < ${layers.head.outputs}; o++) {
        var x = weights[${layers.head.bias} + o / 4][o % 4];
        for (var i = 0; i < 6; i++) {
          x += weights[${layers.head.weights} + i * ${layers.head.outputs} + o] * planes[i];
        }
        output[place(cell, o)] = max(x, vec4<T>());
      }
    }

    // Convolutions compute two cells, one above the other, so that each weight is read once for both.
    alias Pair = mat2x4<T>; // four channels of two cells
    fn load_one(cell: vec2i, i: i32) -> vec4<T> {
      if (!is_inside(cell)) { return vec4<T>(); }
      return input[place(cell, i)];
    }
    fn load(cell: vec2i, i: i32) -> Pair { return Pair(load_one(cell, i), load_one(cell + vec2i(0, 1), i)); }
    fn store(cell: vec2i, i: i32, value: Pair) {
      output[place(cell, i)] = value[0];
      output[place(cell + vec2i(0, 1), i)] = value[1];
    }
    fn bias(at: i32, i: i32) -> Pair { return Pair(weights[at + i / 4][i % 4], weights[at + i / 4][i % 4]); }
    fn add(sum: Pair, w: mat4x4<T>, x: Pair) -> Pair { // sum + w * x as a chain, where each step is one instruction
      return Pair(sum[0] + w[0] * x[0].x + w[1] * x[0].y + w[2] * x[0].z + w[3] * x[0].w,
        sum[1] + w[0] * x[1].x + w[1] * x[1].y + w[2] * x[1].z + w[3] * x[1].w);
    }
    fn relu(x: Pair) -> Pair { return Pair(max(x[0], vec4<T>()), max(x[1], vec4<T>())); }

    // Map -> map, in blocks; the tail makes restored luma and halves of the last one.
    ${layers.blocks.map(block).join("")}
    ${pass("tail", [1, 2], [0, 3, 4, 5, 7, 10])}
      ${convolve(layers.tail)}
      let amount = sizes.strength / ${inputGain};
      let removal = max(sizes.strength, min(2 * sizes.strength, 1)); // of noise: runtime.scale_gain
      ${each(2, (k) => `{
        let one = cell + vec2i(0, ${k});
        ${each(4, (row) => `
        cells_out[place(one, ${7 + row})] = saturate(steadied[place(one, ${row})] + amount * vec4f(x${row}[${k}]));`)}
        let u = amount * vec4f(x4[${k}]);
        let v = amount * vec4f(x5[${k}]);
        let said = vec4f(x6[${k}]);
        let scaled = sizes.strength * max(said, vec4f()) + removal * min(said, vec4f());
        let gain = clamp(scaled, vec4f(${detailGain[0]}), vec4f(${detailGain[1]}));
        ${each(4, (i) => `
        textureStore(halves_out, 2 * one + vec2i(${i % 2}, ${i >> 1}), vec4f(u[${i}], v[${i}], gain[${i}], 0));`)}
      }`)}
    }

    // Cells and halves -> bands: models.steepen at half the size. A workgroup loads its halves with ${detailRadius} more
    // on each side, and blurs them in rows and then in columns.
    const GAUSSIAN = array(${gaussian.map((weight) => weight / total)});
    var<workgroup> halved: array<f32, ${blurred * blurred}>; // restored luma at half the size
    var<workgroup> rows: array<f32, ${blurred * TILE}>; // blurred in rows
    fn luma(pixel: vec2i, plane: i32) -> f32 { // plane 0: as it came, 7: restored
      return cells[place(pixel / 4, plane + pixel.y % 4)][pixel.x % 4];
    }
    fn steadied_luma(pixel: vec2i) -> f32 { return steadied[place(pixel / 4, pixel.y % 4)][pixel.x % 4]; }
    @compute @workgroup_size(${TILE}, ${TILE}) fn soften(@builtin(global_invocation_id) id: vec3u,
        @builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
      let last = sizes.pixels - 1;
      for (var i = i32(local); i < ${blurred * blurred}; i += ${TILE * TILE}) {
        let at = ${TILE} * vec2i(group.xy) + vec2i(i % ${blurred}, i / ${blurred}) - ${detailRadius};
        let pixel = 2 * clamp(at, vec2i(0), last / 2);
        halved[i] = 0;
        for (var k = 0; k < 4; k++) { halved[i] += luma(min(pixel + vec2i(k % 2, k / 2), last), 7) / 4; }
      }
      workgroupBarrier();
      for (var i = i32(local); i < ${blurred * TILE}; i += ${TILE * TILE}) {
        let first = i / ${TILE} * ${blurred} + i % ${TILE};
        rows[i] = 0;
        for (var k = 0; k < ${gaussian.length}; k++) { rows[i] += GAUSSIAN[k] * halved[first + k]; }
      }
      workgroupBarrier();
      if (any(vec2i(id.xy) > last / 2)) { return; }
      var calm = 0f;
      for (var k = 0; k < ${gaussian.length}; k++) { calm += GAUSSIAN[k] * rows[i32(local) + ${TILE} * k]; }
      let here = vec2i(i32(local) % ${TILE}, i32(local) / ${TILE}) + ${detailRadius};
      let value = halved[here.y * ${blurred} + here.x];
      let gain = textureLoad(halves, id.xy, 0).z;
      let steep = saturate(calm + ${coarseShare} * max(gain, 0) * (value - calm));
      let fine = sign(gain) * max(${fineShare} * abs(gain) - ${fineThreshold}, 0);
      textureStore(bands_out, id.xy, vec4f(calm, steep, clamp(fine, -1, ${fineLimit}), 0));
    }

    // Cells, halves and bands -> change. A workgroup loads its pixels with ${radius} more on each side, and compares
    // them in rows and then in columns.
    var<workgroup> pixels: array<f32, ${compared * compared}>; // luma
    var<workgroup> ranges: array<vec2f, ${compared * TILE}>; // in rows: least and greatest
    @compute @workgroup_size(${TILE}, ${TILE}) fn finish(@builtin(global_invocation_id) id: vec3u,
        @builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
      let last = sizes.pixels - 1;
      for (var i = i32(local); i < ${compared * compared}; i += ${TILE * TILE}) {
        let at = ${TILE} * vec2i(group.xy) + vec2i(i % ${compared}, i / ${compared}) - ${radius};
        pixels[i] = steadied_luma(clamp(at, vec2i(0), last));
      }
      workgroupBarrier();
      for (var i = i32(local); i < ${compared * TILE}; i += ${TILE * TILE}) {
        var range = vec2f(9, -9);
        for (var k = 0; k < ${neighbours}; k++) {
          let value = pixels[i / ${TILE} * ${compared} + i % ${TILE} + k];
          range = vec2f(min(range.x, value), max(range.y, value));
        }
        ranges[i] = range;
      }
      workgroupBarrier();
      let pixel = vec2i(id.xy);
      if (any(pixel > last)) { return; }
      var range = vec2f(9, -9);
      for (var k = 0; k < ${neighbours}; k++) {
        let row = ranges[i32(local) + ${TILE} * k];
        range = vec2f(min(range.x, row.x), max(range.y, row.y));
      }
      let at = (vec2f(pixel) + 0.5) / 2 / vec2f(textureDimensions(halves));
      let uv = textureSampleLevel(halves, linear, at, 0).xy;
      let band = textureSampleLevel(bands, linear, at, 0);
      let steep = saturate(band.y + (1 + band.z) * (luma(pixel, 7) - band.x)); // models.steepen
      let y = mix(clamp(steep, range.x, range.y), steep, ${haloShare}) - luma(pixel, 0); // models.limit_halo
      let rgb = vec3f(y + 1.402 * uv.y, y - 0.344136 * uv.x - 0.714136 * uv.y, y + 1.772 * uv.x);
      textureStore(change_out, id.xy, vec4f(rgb, 0));
    }

    // Frame and change -> canvas, enlarged by Catmull and Rom's cubic.
    @vertex fn corners(@builtin(vertex_index) i: u32) -> @builtin(position) vec4f {
      return vec4f(f32(i % 2) * 4 - 1, f32(i / 2) * 4 - 1, 0, 1); // a triangle around the canvas
    }
    fn cubic(t: f32) -> vec4f { // weights of four pixels, for a position between the second and the third
      return vec4f(t * (t * (2 - t) - 1), t * t * (3 * t - 5) + 2, t * (t * (4 - 3 * t) + 1), t * t * (t - 1)) / 2;
    }
    @fragment fn draw(@builtin(position) position: vec4f) -> @location(0) vec4f {
      let extent = vec2f(textureDimensions(frame)) / vec2f(sizes.canvas);
      let at = position.xy * extent;
      if (all(extent == vec2f(1)) || any(extent > vec2f(1.01))) {
        return vec4f(cover(position.xy, sizes.canvas) + look(change, at), 1);
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
  passes.push(["soften", [2 * TILE, 2 * TILE], [0, 3, 7, 8]], ["finish", [TILE, TILE], [0, 1, 3, 7, 8, 9, 10]]);
  passes.push(["draw", null, [0, 1, 2, 9]]);
  return { code, passes };
}

/** Bring the student to a graphics device, for all pictures of a page. `lose` is called when the device is lost. */
async function createNetwork(student, lose = () => {}) {
  if (!navigator.gpu) throw new Error("This browser has no WebGPU on this page.");
  const adapter = await navigator.gpu.requestAdapter();
  if (!adapter) throw new Error("WebGPU finds no graphics processor.");
  const half = adapter.features.has("shader-f16"), { head } = student.layers;
  const device = await adapter.requestDevice({ requiredFeatures: half ? ["shader-f16"] : [] });
  device.addEventListener("uncapturederror", () => device.destroy()); // out of memory, for example
  device.lost.then(lose);

  const data = half ? student.weights : new Float32Array(student.weights);
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST;
  const weights = device.createBuffer({ size: data.byteLength, usage });
  device.queue.writeBuffer(weights, 0, data);
  const linear = device.createSampler({ magFilter: "linear", minFilter: "linear" });
  const format = navigator.gpu.getPreferredCanvasFormat();
  const mapBytes = (half ? 8 : 16) * head.outputs; // of a cell
  const { code, passes } = makeShaders(student, half), module = device.createShaderModule({ code }), layout = "auto";
  const pipelines = await Promise.all(passes.map(([entryPoint, pixels]) => pixels
    ? device.createComputePipelineAsync({ layout, compute: { module, entryPoint } })
    : device.createRenderPipelineAsync({ layout, vertex: { module }, fragment: { module, targets: [{ format }] } })));
  return { device, weights, linear, format, mapBytes, passes, pipelines, steadying: student.averaged };
}

/** A canvas that frames are drawn on, with the memory on the device that they take. */
class Picture {
  constructor(network, canvas) {
    Object.assign(this, { network, canvas, memory: [], size: "" });
    this.context = canvas.getContext("webgpu");
    this.context.configure({ device: network.device, format: network.format, alphaMode: "opaque" });
  }

  /** Draw a VideoFrame at `size`, `[width, height]`, changed `strength` times, which is computed at `working` size. */
  draw(source, size, working, strength) {
    const { network: { device, passes, pipelines, steadying } } = this;
    const from = [source.displayWidth, source.displayHeight];
    if (this.size !== String([from, size, working])) this.allocate(from, size, working);
    const [sizes, texture] = this.memory;
    // A copy, as a video's own texture (`importExternalTexture`) is converted from YUV at each of many looks.
    device.queue.copyExternalImageToTexture({ source }, { texture }, from);
    let averaged = Math.min(...working) < 16 || !this.started ? 0 : steadying * Math.min(2 * strength, 1);
    if (averaged && source.timestamp === this.timestamp) averaged = 2; // the last frame again, which is steadied
    Object.assign(this, { started: true, timestamp: source.timestamp });
    device.queue.writeBuffer(sizes, 24, new Float32Array([strength, averaged]));

    const encoder = device.createCommandEncoder(), compute = encoder.beginComputePass();
    for (let i = 0; i < passes.length - 1; i++) {
      const [, pixels] = passes[i];
      compute.setPipeline(pipelines[i]);
      compute.setBindGroup(0, this.groups[i]);
      compute.dispatchWorkgroups(Math.ceil(working[0] / pixels[0]), Math.ceil(working[1] / pixels[1]));
    }
    compute.end();
    const view = this.context.getCurrentTexture().createView();
    const render = encoder.beginRenderPass({ colorAttachments: [{ view, loadOp: "clear", storeOp: "store" }] });
    render.setPipeline(pipelines.at(-1));
    render.setBindGroup(0, this.groups.at(-1));
    render.draw(3);
    render.end();
    device.queue.submit([encoder.finish()]);
  }

  /** Take the memory for frames and a canvas of these sizes, and bind it to the passes. */
  allocate(from, size, working) {
    this.free();
    const { device, weights, linear, mapBytes, passes, pipelines } = this.network;
    const { STORAGE, UNIFORM, COPY_DST } = GPUBufferUsage, { STORAGE_BINDING, TEXTURE_BINDING } = GPUTextureUsage;
    const take = (memory) => this.memory[this.memory.push(memory) - 1];
    const buffer = (bytes, usage = STORAGE) => ({ buffer: take(device.createBuffer({ size: bytes, usage })) });
    const texture = (size, format, usage) =>
      take(device.createTexture({ size, format, usage: usage | TEXTURE_BINDING })).createView();
    const [columns, rows] = working.map((side) => 2 * Math.ceil(side / 8)); // padded to 8 pixels, as in models.py
    const sizes = buffer(32, UNIFORM | COPY_DST);
    const frame = texture(from, "rgba8unorm", GPUTextureUsage.COPY_DST | GPUTextureUsage.RENDER_ATTACHMENT);
    const cells = buffer(11 * 16 * columns * rows); // of vectors of four float32
    const steadied = buffer(5 * 16 * columns * rows), noise = buffer(4 * (NOISE_STEPS + 2));
    const maps = [buffer(mapBytes * columns * rows), buffer(mapBytes * columns * rows)];
    const halfSize = working.map((side) => Math.ceil(side / 2));
    const [halves, bands] = [halfSize, halfSize].map((half) => texture(half, "rgba16float", STORAGE_BINDING));
    const change = texture(working, "rgba16float", STORAGE_BINDING);
    device.queue.writeBuffer(sizes.buffer, 0, new Int32Array([...working, columns, rows, ...size]));
    [this.canvas.width, this.canvas.height] = size;
    this.groups = passes.map(([, , bindings], i) => { // each pass reads the map that the one before has written
      const inOut = i % 2 ? maps.toReversed() : maps;
      const all = [sizes, linear, frame, cells, { buffer: weights }, ...inOut, halves, bands, change, steadied,
        noise]; // in WGSL's order
      const entries = bindings.map((binding) => ({ binding, resource: all[binding] }));
      return device.createBindGroup({ layout: pipelines[i].getBindGroupLayout(0), entries });
    });
    Object.assign(this, { started: false, size: String([from, size, working]) });
  }

  /** Give the memory back; the next frame takes it again. */
  free() {
    for (const taken of this.memory) taken.destroy();
    Object.assign(this, { memory: [], size: "" });
  }
}
