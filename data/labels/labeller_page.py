"""A labeller in the browser: a page on this machine's loopback that plays episodes and posts each key to the journal.

Nobody else gets in: the address carries a token, and the Host and Origin that a browser sends must be this page's own. The page
fetches nothing from elsewhere. It is not a file to keep: it lives as long as its server.
"""

from __future__ import annotations

import json
import re
import secrets
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np

from data.errors import InputError
from data.labels.labeller import FRAMES, LABELS, NAMES, Journal, cameras, clip, printable, whole_episodes
from data.store.frames import encode_jpeg
from data.store.store import Store

HEIGHT = 256
"""Of the frames that are sent, at most; a browser makes small ones larger."""
_HOSTS = ("127.0.0.1", "localhost")
_MAX_BODY = 200
_NUMBER = re.compile("[0-9]{1,9}")


def say_address(address: str) -> None:
    """Where to look, on the terminal."""
    print(f"label episodes in a browser on this machine at {address}  (q there, or Ctrl-C here, saves and quits)", flush=True)


def serve_labeller(store: Store, journal: str | Path, port: int = 0, announce: Callable[[str], None] = say_address) -> None:
    """Serve the page until it is quit, or Ctrl-C; `announce` gets its address once it can be opened. port: 0 takes a free one.

    InputError when the port is taken, there is no camera, and as `Journal`.
    """
    cameras(store)
    with Journal(journal, store) as opened:
        try:
            server = _Server(store, opened, port)
        except (OSError, OverflowError):
            raise InputError(f"port {port} cannot be had; choose another one, or 0 for any that is free") from None
        try:
            announce(server.address)
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            pass
        finally:
            server.server_close()
            # A request that came late is refused, not written to a journal that is closed.
            with server.lock:
                server.closed = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, store: Store, journal: Journal, port: int) -> None:
        super().__init__((_HOSTS[0], port), _Handler)
        self.store, self.journal, self.token, self.nonce = store, journal, secrets.token_urlsafe(16), secrets.token_urlsafe(16)
        self.lock, self.closed = threading.Lock(), False
        self.state = _facts(store)

    @property
    def address(self) -> str:
        return f"http://{_HOSTS[0]}:{self.server_port}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes on to the next episode drops what it no longer needs; that is no error."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def label(self, values: Any) -> None:
        """InputError when `values` is no label of an episode of the store, or it could not be saved."""
        fits = isinstance(values, dict) and values.get("label") in list(LABELS) and type(values.get("episode")) is int
        if not fits or not 0 <= values["episode"] < whole_episodes(self.store):
            raise InputError("no label of an episode of this store")
        with self.lock:
            if self.closed:
                raise InputError("the labeller has been quit")
            self.journal.write(values["episode"], LABELS[values["label"]])


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """The page, what it needs to know, and the frames of an episode."""
        url = urlsplit(self.path)
        if not self._allowed(parse_qs(url.query).get("token", [""])[0]):
            return
        server, (kind, _, number) = self.server, url.path[1:].partition("/")
        if kind == "":
            self._send(200, _PAGE.replace("NONCE", server.nonce).encode(), "text/html; charset=utf-8")
        elif kind == "state":
            journal = server.journal
            labels = [NAMES[int(label)] for label in journal.labels[: whole_episodes(server.store)]]
            state = {
                **server.state,
                "first": journal.first(),
                "labels": labels,
                "touched": journal.touched[: len(labels)].tolist(),
            }
            self._send(200, json.dumps(state).encode(), "application/json")
        elif kind == "clip" and _NUMBER.fullmatch(number) and int(number) < whole_episodes(server.store):
            try:
                self._send(200, _strip(server.store, int(number)), "image/jpeg")
            except InputError as error:
                self._say(500, str(error))
        else:
            self._say(404, "no such page")

    def do_POST(self) -> None:
        """A label, or the end."""
        if not self._allowed(self.headers.get("X-Token", "")) or not self._is_own_origin():
            return
        length = self.headers.get("Content-Length", "")
        if not _NUMBER.fullmatch(length) or int(length) > _MAX_BODY:
            self._say(413, "too long for a label")
            return
        body = self.rfile.read(int(length))
        if self.path == "/quit":
            self._say(200, "quit")
            self.server.shutdown()
        elif self.path == "/label":
            try:
                self.server.label(json.loads(body))
            except (InputError, ValueError) as error:
                self._say(400, str(error))
            else:
                self._say(200, "saved")
        else:
            self._say(404, "no such page")

    def _allowed(self, token: str) -> bool:
        """Whether the request has the token, and was made to this machine by a name of its own (a page that rebinds its own fails)."""
        own = self.headers.get("Host", "").rpartition(":")[0] in _HOSTS
        if own and secrets.compare_digest(token.encode(), self.server.token.encode()):
            return True
        self._say(403, "not allowed: open the address that `robot-rl data label` printed")
        return False

    def _is_own_origin(self) -> bool:
        if self.headers.get("Origin") == f"http://{self.headers.get('Host')}":
            return True
        self._say(403, "not allowed: labels are taken from the labeller's own page")
        return False

    def _say(self, status: int, text: str) -> None:
        # What is left of a refused request must not be read as the next one.
        self.close_connection = self.close_connection or status != 200
        self._send(status, text.encode(), "text/plain; charset=utf-8")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        policy = (
            f"default-src 'none'; script-src 'nonce-{self.server.nonce}'; style-src 'nonce-{self.server.nonce}'; img-src 'self' data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), "Content-Security-Policy": policy}
        headers |= {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the terminal shows the address."""


def _facts(store: Store) -> dict[str, Any]:
    """What of a store does not change while it is labelled: name, instructions, and by episode the instruction and the frames."""
    count = whole_episodes(store)
    ends = store.episode_ends[:count]
    starts = np.concatenate([[0], ends[:-1]])
    return {
        "name": store.path.resolve().name,
        "instructions": [printable(text) for text in store.instructions],
        "instruction": store.gather("instruction_index", starts).tolist(),
        "frames": np.minimum(ends - starts, FRAMES).tolist(),
    }


def _strip(store: Store, episode: int) -> bytes:
    """The frames of an episode below each other, as one JPEG; multiples of its blocks keep a frame out of its neighbours."""
    keys = cameras(store)
    tallest = max(store.shape(key)[0] for key in keys)
    return encode_jpeg(np.concatenate(clip(store, episode, keys, min(tallest, HEIGHT), multiple=16)))


_PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Label episodes</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">
<style nonce="NONCE">
:root { color-scheme:light dark; --ink:#1c2330; --soft:#5c6675; --paper:#fbfbfa; --card:#fff; --line:#d8dce2; --good:#15803d;
  --bad:#c2312b; --bar:#1d5fd1 }
@media (prefers-color-scheme:dark) { :root { --ink:#e6e9ee; --soft:#9aa5b4; --paper:#12151a; --card:#1a1f26; --line:#343c47;
  --good:#4cc27a; --bad:#f2726b; --bar:#6ea6ff } }
* { box-sizing:border-box }
body { margin:0; background:var(--paper); color:var(--ink); font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif }
main { max-width:1100px; min-height:100vh; margin:0 auto; padding:20px 24px; display:flex; flex-direction:column; gap:14px }
header { display:flex; gap:8px 20px; align-items:baseline; flex-wrap:wrap; color:var(--soft); font-variant-numeric:tabular-nums }
h1 { font-size:26px; line-height:1.25; margin:0; overflow-wrap:anywhere }
#label { font-size:20px; font-weight:650; color:var(--edge); margin-left:auto }
#views { display:grid; grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr)); gap:14px }
#views { --tall:calc(100vh - 290px) } #views.wide { grid-template-columns:1fr; --tall:calc((100vh - 330px) / 2) }
figure { margin:0; min-width:0 } figcaption { color:var(--soft); font-size:14px; margin-top:2px }
canvas { display:block; width:min(100%, max(var(--tall), 120px) * var(--aspect, 1)); background:var(--card);
  border:3px solid var(--edge); border-radius:8px }
.track { height:8px; border-radius:4px; background:var(--line); overflow:hidden }
.track i { display:block; height:100%; width:0; background:var(--bar) }
nav { display:flex; flex-wrap:wrap; gap:8px }
button { font:inherit; font-size:14px; color:var(--ink); background:var(--card); border:1px solid var(--line); border-radius:8px;
  padding:5px 12px; cursor:pointer }
kbd { font:600 13px ui-monospace,Menlo,Consolas,monospace; margin-right:7px; color:var(--soft) }
#trouble { background:var(--bad); color:var(--paper); padding:10px 14px; border-radius:8px; font-weight:600 }
[hidden] { display:none !important } .success { --edge:var(--good) } .failure { --edge:var(--bad) } .unlabelled { --edge:var(--soft) }
</style></head><body class="unlabelled"><main>
<p id="trouble" role="alert" hidden></p>
<header><span id="where"></span><span id="said" aria-live="polite"></span><span id="label"></span></header>
<h1 id="instruction"></h1>
<div id="views"><figure><canvas id="played"></canvas><figcaption id="frame"></figcaption></figure>
<figure><canvas id="end"></canvas><figcaption>its last frame</figcaption></figure></div>
<div class="track"><i id="done"></i></div><div id="progress"></div>
<nav><button data-key="s"><kbd>s</kbd>success</button><button data-key="f"><kbd>f</kbd>failure</button>
<button data-key="u"><kbd>u</kbd>unlabelled</button><button data-key=" "><kbd>space</kbd>next</button>
<button data-key="b"><kbd>b</kbd>back</button><button data-key="n"><kbd>n</kbd>next unlabelled</button>
<button data-key="q"><kbd>q</kbd>save and quit</button></nav></main>
<script nonce="NONCE">
"use strict"
const byId = id => document.getElementById(id), token = new URLSearchParams(location.search).get("token")
const labelOf = {s: "success", f: "failure", u: "unlabelled"}, strips = new Map()
let state, at = 0, began = 0, saving = Promise.resolve(), stopped = false

const post = async (path, body) => {
  const reply = await fetch(path, {method: "POST", keepalive: true, headers: {"X-Token": token}, body: JSON.stringify(body)})
  if (!reply.ok) throw new Error(await reply.text())
}
function stop(text) { stopped = true; byId("trouble").textContent = text; byId("trouble").hidden = false }

// One after another, so that the journal has them in the order of the keys.
function save(episode, label) {
  saving = saving.then(() => stopped ? null : post("/label", {episode, label})).catch(error => {
    stop(`Episode ${episode} was not saved (${error.message}); what came before it was. Start the labeller again.`) })
}
function strip(n) {
  if (!strips.has(n)) { const image = new Image(); image.src = `/clip/${n}?token=${token}`; strips.set(n, image) }
  return strips.get(n)
}
function show(n) {
  at = n; began = performance.now()
  const count = state.frames.length, near = [n, n + 1, n + 2, n + 3, n - 1].filter(i => i >= 0 && i < count)
  near.forEach(strip)
  for (const i of strips.keys()) if (!near.includes(i)) strips.delete(i)
  const done = state.labels.filter(label => label !== "unlabelled").length
  byId("where").textContent = `${state.name}: episode ${n} (${n + 1} of ${count})`
  byId("instruction").textContent = state.instructions[state.instruction[n]]
  byId("label").textContent = state.labels[n] + (state.touched[n] ? ", by hand" : "")
  document.body.className = state.labels[n]
  byId("done").style.width = `${100 * done / count}%`
  byId("progress").textContent = `${done} of ${count} labelled, ${state.touched.filter(Boolean).length} by hand`
}
function draw(canvas, image, frame, height) {
  if (canvas.width !== image.naturalWidth || canvas.height !== height) {
    canvas.width = image.naturalWidth; canvas.height = height
    byId("views").classList.toggle("wide", image.naturalWidth > 1.8 * height)
    byId("views").style.setProperty("--aspect", image.naturalWidth / height)
  }
  canvas.getContext("2d").drawImage(image, 0, frame * height, image.naturalWidth, height, 0, 0, image.naturalWidth, height)
}
function play(now) {
  requestAnimationFrame(play)
  const image = strip(at), count = state.frames[at]
  if (!image.complete) { began = now; return }
  if (!image.naturalWidth) { byId("frame").textContent = "its frames cannot be read"; return }
  const height = image.naturalHeight / count
  const frame = Math.min(Math.floor(Math.max(now - began, 0) % (1000 * count / 12 + 1000) * 12 / 1000), count - 1)
  draw(byId("played"), image, frame, height); draw(byId("end"), image, count - 1, height)
  byId("frame").textContent = `frame ${frame + 1} of ${count}`
}
async function press(key) {
  if (stopped) return
  const last = state.frames.length - 1, next = Math.min(at + 1, last)
  if (key in labelOf) {
    state.labels[at] = labelOf[key]; state.touched[at] = true; save(at, labelOf[key])
    byId("said").textContent = `episode ${at}: ${labelOf[key]}` + (at === last ? "; it was the last one" : "")
    show(next)
  } else if (key === "n") {
    const later = state.labels.indexOf("unlabelled", at + 1)
    byId("said").textContent = later < 0 ? "none of those that follow is unlabelled" : ""
    if (later >= 0) show(later)
  } else if (key === "q") {
    await saving
    if (stopped) return
    await post("/quit", {}).catch(() => null)
    stopped = true; byId("said").textContent = "All is saved, and the labeller has quit. You may close this page."
  } else show(key === "b" ? Math.max(at - 1, 0) : next)
}
const keys = {ArrowRight: " ", ArrowLeft: "b"}
addEventListener("keydown", event => {
  const key = keys[event.key] || event.key
  if (event.ctrlKey || event.metaKey || event.altKey || !"sfubnq ".includes(key) || !state) return
  event.preventDefault()
  // A key that is held down leafs, it does not label.
  if (!event.repeat || key === " " || key === "b") press(key)
})
document.querySelectorAll("button").forEach(button => button.addEventListener("click", () => {
  button.blur(); press(button.dataset.key) }))
fetch(`/state?token=${token}`).then(reply => reply.json()).then(reply => {
  state = reply; show(state.first); requestAnimationFrame(play)
}).catch(error => stop(`The labeller does not answer (${error.message}).`))
</script></body></html>
"""
