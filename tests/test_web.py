"""The page and the extension in web/, in one Chromium whose graphics processor is software."""

import base64
import functools
import http.server
import math
import re
import shutil
import struct
import threading
import time
import wave

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from browser import chromium
from conftest import encode

from conversion import add_change, pixels_to_planes
from export import web_file
from inference import RealTimeSharpener
from models import RELEASED_STUDENT, Student, limit_halo, load_student, save_student, steepen
from runtime import scale_gain, steady

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = RELEASED_STUDENT.parents[1]
GPU = (
    "--headless=new --enable-unsafe-webgpu --enable-features=Vulkan --use-vulkan=swiftshader --use-angle=swiftshader "
    "--enable-unsafe-extension-debugging --use-fake-device-for-media-stream --use-fake-ui-for-media-stream "
    "--autoplay-policy=no-user-gesture-required"
)
SIZE = 160, 96
STRICT = "default-src 'none'; script-src 'nonce-1'; media-src 'none'; style-src 'none'; worker-src 'none'"
PLAIN = """<!DOCTYPE html><meta charset="utf-8"><body><script src="network.js"></script><script src="sharpen.js">
</script>"""
CAMERA = """<!DOCTYPE html><video autoplay muted width="320" height="192"></video>
<script nonce="1">const video = document.querySelector("video");
video.style.transform = "scaleX(-1)";
navigator.mediaDevices.getUserMedia({video: true}).then((stream) => { video.srcObject = stream; });</script>"""
PATIENT = "LoadController.prototype.add = () => {};"  # software is slow

# Functions for pages: the bytes of a picture, and of what a network draws.
DRAW = """
const pixels = (source, width, height) => {
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(source, 0, 0, width, height);
  return btoa(Array.from(context.getImageData(0, 0, width, height).data, (byte) => String.fromCharCode(byte)).join(""));
};
const draw = (network, source, width, height, strength, scale = 1) => {
  const size = [scale * width, scale * height], canvas = new OffscreenCanvas(...size);
  const picture = new Picture(network, canvas);
  picture.draw(new VideoFrame(source, {timestamp: 0}), size, [width, height], strength);
  const result = pixels(canvas, ...size);
  picture.free();
  return result;
};
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
"""
# Functions for pages: a video that shows a canvas, with its sharpener; waiting for a condition.
VIDEOS = """
const until = async (condition) => {
  for (const end = performance.now() + 120000; !condition(); await new Promise((resolve) => setTimeout(resolve, 20)))
    if (performance.now() > end) throw new Error(`two minutes, and not yet ${condition}`);
};
const add = () => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 32, height: 24});
  const context = canvas.getContext("2d"), video = document.createElement("video");
  const timer = setInterval(() => context.fillRect(32 * Math.random(), 24 * Math.random(), 4, 4), 30);
  Object.assign(video, {muted: true, autoplay: true, srcObject: canvas.captureStream(30)}).style.width = "32px";
  document.body.append(video);
  const sharpener = new Sharpener(video);
  return {canvas, video, sharpener, stop: () => { clearInterval(timer); sharpener.close(); video.remove(); }};
};
const shown = ({sharpener: {canvas}}) => canvas.isConnected && canvas.style.display === "block";
const drawn = (one) => { one.sharpener.drawn = ""; return until(() => shown(one)); }; // anew
"""


class Handler(http.server.SimpleHTTPRequestHandler):
    def end_headers(self):
        if self.path.startswith("/strict"):
            self.send_header("Content-Security-Policy", STRICT)
        super().end_headers()

    def log_message(self, *arguments):
        pass


def serve(folder):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture(scope="module")
def photo():
    """A soft RGB picture of `SIZE`."""
    return cv2.GaussianBlur(cv2.resize(skimage.data.astronaut()[:300], SIZE, interpolation=cv2.INTER_AREA), (0, 0), 0.7)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A student of odd widths that changes a lot, and is quick."""
    torch.manual_seed(0)
    student = Student(channels=6, blocks=2, wide=3).eval()
    torch.nn.init.normal_(student.tail.weight, std=0.05)
    path = tmp_path_factory.mktemp("student") / "odd.pth"
    save_student(path, student, {})
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory, checkpoint):
    """web/ with that student."""
    folder = tmp_path_factory.mktemp("site") / "web"
    shutil.copytree(ROOT / "web", folder)
    (folder / "student.bin").write_bytes(web_file(checkpoint))
    (folder / "plain.html").write_text(PLAIN)
    return folder


@pytest.fixture(scope="module")
def site(folder):
    server = serve(folder)
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def browser(tmp_path_factory, photo):
    """A Chromium whose camera shows the photo."""
    folder = tmp_path_factory.mktemp("browser")
    y4m = f"YUV4MPEG2 W{SIZE[0]} H{SIZE[1]} F30:1 Ip A1:1 C420jpeg\nFRAME\n".encode()
    (folder / "camera.y4m").write_bytes(y4m + cv2.cvtColor(photo, cv2.COLOR_RGB2YUV_I420).tobytes())
    with chromium(folder, f"{GPU} --use-file-for-fake-video-capture={folder / 'camera.y4m'}") as browser:
        yield browser


def decode(text, width, height):
    """RGB of what `pixels` gives."""
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)[..., :3]


def expected(student, rgb, strength):
    """What PyTorch makes of uint8 RGB, in codes, not rounded."""
    bgr = rgb[..., ::-1].astype(np.float32) / 255
    y, uv = (torch.from_numpy(plane)[None] for plane in pixels_to_planes(np.ascontiguousarray(bgr)))
    y = y[None]
    with torch.inference_mode():
        dy, duv, gain = student.predict(y, uv)
        dy = limit_halo(steepen((y + strength * dy).clamp(0, 1), scale_gain(gain, strength)), y) - y
    return 255 * add_change(bgr, dy[0, 0].numpy(), strength * duv[0].numpy())[..., ::-1]


def test_what_a_visitor_loads_is_small_and_has_the_released_student():
    assert (ROOT / "web" / "student.bin").read_bytes() == web_file(RELEASED_STUDENT), "run python export.py --web"
    assert sum(path.stat().st_size for path in (ROOT / "web").iterdir()) < 250_000


def test_shaders_agree_with_pytorch(browser, site, checkpoint):
    browser.open(site + "plain.html")
    browser.run(DRAW)
    photo = skimage.data.astronaut()
    for path, cases in ((checkpoint, [(37, 29, 1), (64, 50, 0.5), (9, 91, 2)]), (RELEASED_STUDENT, [(53, 34, 1)])):
        student = load_student(path)[0]
        file = base64.b64encode(web_file(path)).decode()
        browser.run(f"createNetwork(parseStudent(bytesOf('{file}').buffer)).then((made) => {{ network = made; }})")
        for width, height, strength in cases:
            rgb = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)
            rgba = base64.b64encode(cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA).tobytes()).decode()
            found = browser.run(f"""(async () => {{
                const data = new ImageData(new Uint8ClampedArray(bytesOf("{rgba}")), {width}, {height});
                const picture = await createImageBitmap(data);
                return [draw(network, picture, {width}, {height}, {strength}),
                    draw(network, picture, {width}, {height}, 0), draw(network, picture, {width}, {height}, 0, 3)];
            }})()""")
            sharp, same = (decode(text, width, height) for text in found[:2])
            enlarged = decode(found[2], 3 * width, 3 * height)
            planes = torch.from_numpy(rgb).permute(2, 0, 1)[None].float()
            cubic = torch.nn.functional.interpolate(planes, scale_factor=3, mode="bicubic", antialias=True)[0]
            error = np.abs(enlarged - cubic.permute(1, 2, 0).clamp(0, 255).numpy())
            assert error[6:-6, 6:-6].max() < 2  # PyTorch repeats no edge
            wanted = expected(student, rgb, strength)
            assert np.abs(wanted - rgb).max() > 10
            assert np.abs(sharp - wanted).max() < 1
            assert np.array_equal(same, rgb)


def test_frames_are_steadied(browser, site, checkpoint):
    """A picture that stands still, with a stripe that moves across it, behind a noisy camera."""
    width, height = 96, 80
    rng = np.random.default_rng(0)
    photo = cv2.resize(skimage.data.astronaut(), (width, height), interpolation=cv2.INTER_AREA).astype(float)
    frames = [np.roll(photo, 8 * index, axis=1) for index in range(6)]
    for frame in frames:
        frame[:48] = photo[:48]
    noisy = [(frame + rng.normal(0, 3, (height, width, 1))).clip(0, 255).astype(np.uint8) for frame in frames]
    sent = [base64.b64encode(cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA).tobytes()).decode() for rgb in noisy]
    browser.open(site + "plain.html")
    texts, again = browser.run(
        DRAW
        + f"""(async () => {{
        const network = await createNetwork(parseStudent(await (await fetch("student.bin")).arrayBuffer()));
        const size = [{width}, {height}], canvas = new OffscreenCanvas(...size), found = [], again = [];
        const picture = new Picture(network, canvas);
        for (const [timestamp, text] of {sent}.entries()) {{
          const source = await createImageBitmap(new ImageData(new Uint8ClampedArray(bytesOf(text)), ...size));
          const frame = new VideoFrame(source, {{timestamp}});
          picture.draw(frame, size, size, 1);
          found.push(pixels(canvas, ...size));
          picture.draw(frame, size, size, 1); // as the page does if its video pauses
          again.push(pixels(canvas, ...size));
        }}
        return [found, again];
    }})()"""
    )
    assert texts == again
    student, before = load_student(checkpoint)[0], None
    for rgb, text in zip(noisy, texts, strict=True):
        y, _ = pixels_to_planes(np.ascontiguousarray(rgb[..., ::-1]))
        before = steady(y, before)
        calm = rgb + (before.astype(float) - y)[..., None]
        found = decode(text, width, height)
        error, change = (np.abs(found - expected(student, one, 1)).mean() for one in (calm, rgb))
        assert error < 0.5
        assert np.array_equal(calm, rgb) or change > 2 * error  # the first frame stands alone


def run_passes(device, code, passes, weights, rgb):
    """The change of uint8 RGB by the passes of web/network.js but the last, which draws: by wgpu."""
    from wgpu import BufferUsage, TextureUsage

    height, width = rgb.shape[:2]
    columns, rows = (2 * -(-side // 8) for side in (width, height))

    def buffer(data, usage=BufferUsage.STORAGE):
        return {"buffer": device.create_buffer_with_data(data=data, usage=usage)}

    def texture(width, height, form, usage):
        usage |= TextureUsage.TEXTURE_BINDING | TextureUsage.COPY_SRC
        return device.create_texture(size=(width, height, 1), format=form, usage=usage)

    frame = texture(width, height, "rgba8unorm", TextureUsage.COPY_DST)
    rgba = cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA)
    device.queue.write_texture({"texture": frame}, rgba, {"bytes_per_row": 4 * width}, (width, height, 1))
    halves, bands, change = (
        texture(-(-width // shrink), -(-height // shrink), "rgba16float", TextureUsage.STORAGE_BINDING)
        for shrink in (2, 2, 1)
    )
    linear = device.create_sampler(mag_filter="linear", min_filter="linear")
    sizes = buffer(struct.pack("6if4x", width, height, columns, rows, width, height, 1), BufferUsage.UNIFORM)
    cells, *maps, steadied = (buffer(bytes(size * columns * rows)) for size in (11 * 16, 8 * 8, 8 * 8, 5 * 16))
    noise = buffer(bytes(264))
    views = [one.create_view() for one in (frame, halves, bands, change)]
    used = [sizes, linear, views[0], cells, buffer(weights), *maps, *views[1:], steadied, noise]  # by binding

    encoder = device.create_command_encoder()
    stage = encoder.begin_compute_pass()
    module = device.create_shader_module(code=code)
    for name, (across, down), bindings in passes[:-1]:
        pipeline = device.create_compute_pipeline(layout="auto", compute={"module": module, "entry_point": name})
        entries = [{"binding": binding, "resource": used[binding]} for binding in bindings]
        stage.set_pipeline(pipeline)
        stage.set_bind_group(0, device.create_bind_group(layout=pipeline.get_bind_group_layout(0), entries=entries))
        stage.dispatch_workgroups(math.ceil(width / across), math.ceil(height / down))
        used[5:7] = used[6], used[5]  # the next pass reads the map that this one has written
    stage.end()
    device.queue.submit([encoder.finish()])
    data = device.queue.read_texture({"texture": change}, {"bytes_per_row": 8 * width}, (width, height, 1))
    return np.frombuffer(data, np.float16).reshape(height, width, 4)[..., :3].astype(np.float32)


def test_shaders_in_half_precision(browser, site, checkpoint):
    """On another graphics processor, as the software that Chromium brings has no float16."""
    wgpu = pytest.importorskip("wgpu")
    adapters = [one for one in wgpu.gpu.enumerate_adapters_sync() if "shader-f16" in one.features]
    if not adapters:
        pytest.skip("no graphics processor with float16; the Debian package mesa-vulkan-drivers has one")
    device = adapters[0].request_device_sync(required_features=["shader-f16"])
    browser.open(site + "plain.html")
    browser.run(DRAW)
    photo = skimage.data.astronaut()
    for path, width, height in ((checkpoint, 37, 29), (RELEASED_STUDENT, 91, 50)):
        file = web_file(path)
        student = f"parseStudent(bytesOf('{base64.b64encode(file).decode()}').buffer)"
        shaders = browser.run(f"makeShaders({student}, true)")
        rgb = cv2.resize(photo, (width, height), interpolation=cv2.INTER_AREA)
        weights = file[12 + int.from_bytes(file[8:12], "little") :]
        sharp = (rgb + 255 * run_passes(device, shaders["code"], shaders["passes"], weights, rgb)).clip(0, 255)
        error = np.abs(sharp - expected(load_student(path)[0], rgb, 1))
        assert error.max() < 2 and error.mean() < 0.1


def test_a_file_that_is_no_students_is_refused(browser, site):
    browser.open(site + "plain.html")
    refuse = "(buffer) => { try { parseStudent(buffer); } catch (error) { return error.message; } }"
    file = "(await (await fetch('student.bin')).arrayBuffer())"
    cuts = f"[new ArrayBuffer(12), {file}.slice(0, -2), (() => {{ view[4] = 9; return view.buffer; }})()]"
    messages = browser.run(f"(async () => {{ const view = new Uint8Array({file}); return {cuts}.map({refuse}); }})()")
    assert messages == [
        "This is no student's file for this page.",
        "The student's file is cut off.",
        "This is no student's file for this page.",
    ]


def test_the_page_sharpens_a_camera(browser, site, checkpoint):
    browser.open(site)
    browser.run(
        PATIENT + "$('video').style.width = '160px'; $('line').style.visibility = 'hidden'; $('camera').click()"
    )
    browser.until("sharpener.text.textContent.includes('ms a frame')")
    assert browser.run("sharpener.text.textContent").startswith("160×96 → 160×96, ")
    label = "getComputedStyle($('line')).display"
    assert browser.run(label) == "block"
    place = "Object.values({}.getBoundingClientRect().toJSON()).slice(0, 4)"
    left, top, *size = browser.run(place.format("$('video')"))
    assert [left, top, *size] == browser.run(place.format("sharpener.canvas"))

    def look(divider):
        browser.run(f"$('divider').value = {divider}; $('divider').dispatchEvent(new Event('input'))")
        clip = {"x": left, "y": top + size[1] / 2 - 48, "width": 160, "height": 96, "scale": 1}
        data = base64.b64decode(browser.send("Page.captureScreenshot", clip=clip)["data"])
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

    before, both, after = (look(divider).astype(int) for divider in (100, 50, 0))  # the camera's picture stands still
    wanted = RealTimeSharpener(checkpoint, "cpu").sharpen(before.astype(np.uint8)).astype(int)
    assert np.abs(wanted - before).mean() > 1 and np.abs(after - wanted).mean() < 1
    for side, whole in ((slice(0, 79), before), (slice(81, 160), after)):
        assert np.abs(both - whole)[:, side].mean() < 0.1
    browser.run("sharpener.controls.querySelector('button').click()")
    browser.until("sharpener.canvas.style.display === 'none' && sharpener.text.textContent === 'Off.'")
    assert browser.run(label) == "none"  # there is no "after"
    browser.run("globalThis.track = $('video').srcObject.getTracks()[0]; $('close').click()")
    browser.until("track.readyState === 'ended' && sharpener.text.textContent === 'There is no picture.'")


def test_the_page_changes_its_source(browser, site, tmp_path):
    small = encode(tmp_path / "small.mp4", size=(32, 24))
    wide = encode(tmp_path / "wide.mp4", size=(48, 20))
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(16000))
    browser.open(site)
    assert not browser.run("document.body.contains(sharpener.controls)")
    node = browser.send("DOM.getDocument")["root"]["nodeId"]
    node = browser.send("DOM.querySelector", nodeId=node, selector="#file")["nodeId"]
    slow = "GPUQueue.prototype.onSubmittedWorkDone = () => new Promise((resolve) => setTimeout(resolve, 700));"
    browser.run(PATIENT + slow + "globalThis.seen = new Set(); setInterval(() => seen.add(sharpener.status), 5)")

    def choose(path):
        browser.run("$('file').dispatchEvent(new Event('click'))")
        browser.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    for _ in range(2):
        choose(small)
        browser.until("sharpener.status.startsWith('32×24 → ')")
        browser.run("$('close').click()")
        assert browser.run("sharpener.status") == "There is no picture."
        assert not browser.run("document.body.contains(sharpener.controls)")
    choose(small)
    browser.until("sharpener.status.startsWith('32×24 → ') && !sharpener.busy")
    browser.until("sharpener.busy")
    choose(wide)
    browser.until("sharpener.status.startsWith('48×20 → ')")
    sizes = [re.match(r"48×20 → (\d+)×(\d+), ", status) for status in browser.run("[...seen]")]
    assert all(int(size[1]) / int(size[2]) > 2 for size in sizes if size)  # never the canvas of the file before
    choose(tmp_path / "sound.wav")
    browser.until("$('video').readyState > 1 && !$('video').videoWidth")
    assert browser.run("sharpener.status") == "There is no picture."

    browser.run(
        """const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = async (wish) => { globalThis.stream = await open(wish); return stream; };
        $('camera').click();
        $('close').click()"""
    )
    browser.until("globalThis.stream?.getTracks()[0].readyState === 'ended' && $('video').srcObject === null")
    browser.run("$('camera').click()")
    browser.until("$('video').srcObject === stream && sharpener.drawn")
    browser.run("stream.getTracks()[0].dispatchEvent(new Event('ended'))")
    browser.until("$('video').srcObject === null && $('message').textContent === 'Choose what to sharpen.'")


def test_frames_of_a_call(browser, site, checkpoint):
    browser.open(site + "plain.html")
    texts = browser.run(
        DRAW
        + """(async () => {
        const [here, there] = [new RTCPeerConnection(), new RTCPeerConnection()];
        here.onicecandidate = ({candidate}) => candidate && there.addIceCandidate(candidate);
        there.onicecandidate = ({candidate}) => candidate && here.addIceCandidate(candidate);
        const video = Object.assign(document.createElement("video"), {muted: true, autoplay: true});
        there.ontrack = ({streams}) => { video.srcObject = streams[0]; };
        const camera = await navigator.mediaDevices.getUserMedia({video: true});
        here.addTrack(camera.getTracks()[0], camera);
        await here.setLocalDescription();
        await there.setRemoteDescription(here.localDescription);
        await there.setLocalDescription();
        await here.setRemoteDescription(there.localDescription);
        await new Promise((resolve) => video.requestVideoFrameCallback(resolve));
        const network = await createNetwork(parseStudent(await (await fetch("student.bin")).arrayBuffer()));
        const frame = new VideoFrame(video);
        return [0, 1].map((strength) => draw(network, frame, 160, 96, strength));
    })()"""
    )
    before, after = (decode(text, *SIZE).astype(int) for text in texts)
    wanted = RealTimeSharpener(checkpoint, "cpu").sharpen(before.astype(np.uint8), rgb=True).astype(int)
    assert np.abs(wanted - before).max() > 20 and np.abs(after - wanted).max() <= 3


def test_the_extension_on_a_page_that_forbids_scripts(browser, site, folder, tmp_path):
    (folder / "strict.html").write_text(CAMERA)
    copy = shutil.copytree(folder, tmp_path / "extension")
    with open(copy / "sharpen.js", "a") as script:  # a page cannot reach the extension's own variables
        script.write(PATIENT)
    page = browser.open(site + "strict.html")
    extension = browser.send_to_browser("Extensions.loadUnpacked", path=str(copy))["id"]

    def target(kind, name):
        for _ in range(2000):
            found = browser.send_to_browser("Target.getTargets", filter=[{"type": kind}])["targetInfos"]
            for one in found:
                if one["url"].endswith(name):
                    return one["targetId"]
            time.sleep(0.1)
        pytest.fail(f"there is no {kind} {name}")

    background, tab = target("service_worker", "background.js"), target("tab", "strict.html")
    browser.attach(background)
    browser.until("globalThis.chrome?.action?.onClicked.hasListeners()")
    browser.attach(page)
    text = "document.querySelector('div[popover]')?.shadowRoot.querySelector('span').textContent"

    def click():
        """Click, and return the button's badge once the extension has answered."""
        query = "chrome.tabs.query({active: true}).then(([{id: tabId}]) => chrome.action."
        get, put = query + "getBadgeText({tabId}))", query + "setBadgeText({tabId, text: '?'}))"
        browser.attach(background)
        browser.run(put)
        browser.send_to_browser("Extensions.triggerAction", id=extension, targetId=tab)
        browser.until(f"{get}.then((text) => text !== '?')", shown=get)
        badge = browser.run(get)
        browser.attach(page)
        return badge

    def click_panel():
        browser.run("document.querySelector('div[popover]').shadowRoot.querySelector('button').click()")

    def until(condition):
        browser.until(condition, shown=text)

    # A busy Chromium may refuse the page to an extension that it has just loaded.
    assert any(click() == "" for _ in range(10))
    until(f"{text}?.startsWith('160×96 → 320×192, ')")
    until("document.querySelector('video + canvas').style.display === 'block'")
    assert browser.run("document.querySelector('canvas').style.transform") == "matrix(-1, 0, 0, 1, 0, 0)"
    click_panel()
    until(f"{text} === 'Off.' && document.querySelector('canvas').style.display === 'none'")
    browser.run("document.querySelector('video').requestFullscreen()")
    click_panel()
    until("document.querySelector('video + canvas:popover-open')?.style.display === 'block'")
    browser.run("document.exitFullscreen()")
    until("document.querySelector('canvas:not([popover])')?.style.width === '320px'")

    browser.run("""const frame = document.body.appendChild(document.createElement("iframe"));
        globalThis.pages = [document, frame.contentDocument];
        frame.contentDocument.body.innerHTML = '<video width="160"></video>'""")
    panels = "pages.filter((page) => page.querySelector('[popover]')).length"
    for count in (0, 2, 0):  # a frame that came later goes with the others
        assert click() == ""
        until(f"{panels} === {count}")
    assert not browser.run("document.querySelector('canvas')")

    page = browser.open("chrome://version/")
    tab = target("tab", "version/")
    assert click() == "!"


def test_it_says_why_it_does_nothing(browser, site, folder):
    other = serve(folder)
    encode(folder / "clip.mp4", size=(32, 24))
    browser.open(site + "plain.html")
    foreign = f"http://127.0.0.1:{other.server_port}/clip.mp4"
    reasons = browser.run(
        VIDEOS
        + f"""(async () => {{
        const found = [], reason = async (one) => {{
          await until(() => one.sharpener.stopped);
          found.push(one.sharpener.status);
          one.stop();
        }};
        const battery = {{charging: false}};
        navigator.getBattery = async () => battery;
        const unplugged = add();
        await until(() => shown(unplugged)); // nobody asked it to spare the battery
        unplugged.sharpener.sparesBattery = true;
        await until(() => !shown(unplugged));
        found.push(unplugged.sharpener.status);
        battery.charging = true;
        await drawn(unplugged);
        unplugged.stop();
        const tainted = add();
        Object.assign(tainted.video, {{srcObject: null, src: "{foreign}"}});
        await reason(tainted);
        shared.network = null;
        navigator.gpu.requestAdapter = async () => null;
        const again = add();
        await until(() => again.sharpener.stopped);
        found.push(again.sharpener.status);
        delete navigator.gpu.requestAdapter;
        again.sharpener.toggle(true);
        await drawn(again); // one failure is not the last word
        again.stop();
        shared.network = null;
        Object.defineProperty(navigator, "gpu", {{value: undefined}});
        await reason(add());
        return found;
    }})()"""
    )
    other.shutdown()
    assert reasons == [
        "Off on battery.",
        "The video is another site's and cannot be read.",
        "WebGPU finds no graphics processor.",
        "This browser has no WebGPU on this page.",
    ]


def test_it_steps_down_and_up(browser, site):
    browser.open(site + "plain.html")
    levels = browser.run("""(() => {
        const load = new LoadController(), found = [];
        for (let now = 0, cost; now < 30000; now += cost) {
          cost = now < 3500 ? 50 : 5; // the last level has the time of two frames
          load.add(cost, 33, now);
          if (found.at(-1) !== load.level) found.push(load.level);
        }
        return [found, LEVELS.length];
    })()""")
    assert levels == [[0, 1, 2, 1, 0], 3]
    slow = browser.run(
        VIDEOS
        + """(async () => {
        const one = add(), {device: {queue}} = await sharedNetwork(), seen = new Set();
        const see = () => seen.add(one.sharpener.status.replace(/.* a frame/, ""));
        const count = LoadController.prototype.add;
        queue.onSubmittedWorkDone = () => new Promise((resolve) => setTimeout(resolve, 400));
        LoadController.prototype.add = function (...values) { see(); count.apply(this, values); }; // misses no level
        await until(() => one.sharpener.stopped);
        see();
        LoadController.prototype.add = count;
        delete queue.onSubmittedWorkDone;
        one.stop();
        return [...seen];
    })()"""
    )
    assert slow == ["", ", working size 70 %", ", working size 50 %, fewer frames", "Off: this machine is too slow."]


def test_it_survives(browser, site):
    browser.open(site + "plain.html")
    seen = browser.run(
        PATIENT
        + VIDEOS
        + """(async () => {
        const seen = [], ten = Array.from({length: 10}, () => add()), [one] = ten;
        await Promise.all(ten.map((each) => until(() => shown(each))));
        seen.push("ten");
        ten.slice(1).forEach(({stop}) => stop());

        Object.assign(one.canvas, {width: 48, height: 20});
        await until(() => one.sharpener.status.startsWith("48×20"));
        await drawn(one);
        seen.push("another size");

        one.video.remove();
        await until(() => !one.sharpener.canvas.isConnected);
        document.body.append(one.video);
        one.video.play();
        await drawn(one);
        seen.push("removed");

        Object.defineProperty(document, "hidden", {value: true, configurable: true});
        await until(() => !shown(one) && !one.sharpener.picture.size);
        delete document.hidden;
        await drawn(one);
        seen.push("hidden");

        (await shared.network).device.destroy();
        await until(() => shared.losses === 1);
        await drawn(one);
        seen.push("device");

        const stream = one.video.srcObject;
        stream.getTracks()[0].stop();
        one.sharpener.strength = 0.5;
        one.video.srcObject = null;
        await until(() => !shown(one));
        one.video.srcObject = one.canvas.captureStream(30);
        await drawn(one);
        seen.push("stream");

        one.stop();
        return seen.concat(document.querySelectorAll("canvas").length);
    })()"""
    )
    assert seen == ["ten", "another size", "removed", "hidden", "device", "stream", 0]
