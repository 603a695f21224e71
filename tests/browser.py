"""Chromium, driven by its DevTools protocol through pipes: what the tests of pages use."""

import contextlib
import json
import os
import shutil
import subprocess
import time

import pytest

QUIET = (
    "--no-sandbox --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync --remote-debugging-pipe"
)


class Browser:
    """Sends commands to a Chromium, or to one page of it."""

    def __init__(self, sender, receiver):
        self._sender, self._receiver, self._session, self._count = sender, receiver, {}, 0

    def send(self, method, **parameters):
        """Call a method of the protocol; returns its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters, **self._session}
        self._sender.write(json.dumps(message).encode() + b"\0")
        answer = {}
        while answer.get("id") != self._count:  # else it is an event
            answer = json.loads(b"".join(iter(lambda: self._receiver.read(1) or b"\0", b"\0")))
        assert "error" not in answer and "exceptionDetails" not in answer["result"], answer
        return answer["result"]

    def send_to_browser(self, method, **parameters):
        """The same for methods of the browser as a whole."""
        session, self._session = self._session, {}
        try:
            return self.send(method, **parameters)
        finally:
            self._session = session

    def attach(self, target):
        """Send what follows to a page or a worker, by its target's identifier."""
        session = self.send_to_browser("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = {"sessionId": session}

    def open(self, url):
        """Open a page instead of the one before, if any, and attach to it; returns its target."""
        if self._session:
            self.send("Page.close")
        target = self.send_to_browser("Target.createTarget", url=url)["targetId"]
        self.attach(target)
        self.until(f"document.readyState === 'complete' && location.href.startsWith({url.partition('#')[0]!r})")
        return target

    def until(self, condition, seconds=200, shown="document.body?.innerText"):
        """Wait until an expression is true on the page; fails with the value of `shown` if it takes longer."""
        end = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < end, f"{condition} is not true after {seconds} s; {shown}: {self.run(shown)}"
            time.sleep(0.05)

    def run(self, script, **options):
        """Evaluate JavaScript on the page, promises included; returns the value."""
        options |= {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        return self.send("Runtime.evaluate", expression=script, **options)["result"].get("value")


@contextlib.contextmanager
def chromium(folder, flags="--headless --disable-gpu"):
    """Start a Chromium with a new profile in `folder`, and yield its `Browser`; skips the test if there is none."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    (their_input, our_output), (our_input, their_output) = os.pipe(), os.pipe()
    script = f'exec "$0" "$@" 3<&{their_input} 4>&{their_output}'  # the descriptors that Chromium uses
    command = ["bash", "-c", script, program, *QUIET.split(), *flags.split(), f"--user-data-dir={folder / 'profile'}"]
    process = subprocess.Popen(command, pass_fds=(their_input, their_output), stderr=subprocess.DEVNULL)
    os.close(their_input)
    os.close(their_output)
    with open(our_output, "wb", buffering=0) as sender, open(our_input, "rb") as receiver:
        try:
            yield Browser(sender, receiver)
        finally:
            process.terminate()  # a command to close would wait for ever if Chromium hangs
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
