"""`image-reward serve --model NAME`"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import webbrowser
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

import tyro

from image_reward.cli.options import DEFAULT_MODEL, ReadingOptions, SeveralModelOptions, UsageError
from image_reward.errors import InputError
from image_reward.serving.settings import Limits, Replicas, Settings, is_loopback
from image_reward.terminal import note

_PACKAGES = ("fastapi", "uvicorn", "httptools", "prometheus_client")


@dataclass
class Serve(SeveralModelOptions):
    """Serve rewards over HTTP, to programs and to people: see docs/serving.md.

    The first model answers requests that name none. SIGTERM and Ctrl-C finish the requests in work, and then stop.
    """

    image: tyro.conf.OmitArgPrefixes[ReadingOptions] = field(default_factory=lambda: ReadingOptions(max_pixels=64_000_000))
    host: str = "127.0.0.1"
    """The address to listen at. Any other than this machine's own needs --token-file."""
    port: int = 8000
    """The port to listen at; 0 takes a free one."""
    token_file: Path | None = None
    """A file that holds the token which clients must send as `Authorization: Bearer TOKEN`."""
    without_token: bool = False
    """Listen on a network without a token: whoever reaches the port may use the service."""
    allow_fetch: Annotated[tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="HOST")] = ()
    """Fetch images by their address from this host, such as images.example.org. Repeat the option for several hosts."""
    flow_grpo: bool = False
    """Also answer the pickled requests of flow_grpo's trainers, at POST /; from this machine only."""
    flow_grpo_from_anywhere: bool = False
    """Answer them on a network, too."""
    browse: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """The output folder of `image-reward score-files`: the page shows its rows and images, under Browse, to whoever may use the service."""
    open: bool = False
    """Open the page in a browser, if this machine has one."""
    decoders: int | None = None
    """Threads that open images; by default as many as there are cores, at most 8."""
    limits: Annotated[tyro.conf.OmitArgPrefixes[Limits], tyro.conf.arg(name="limit")] = field(default_factory=Limits)
    engine: Literal["local", "ray"] = "local"
    """local: this process. ray: copies of the service on a Ray cluster, to which the limits apply one by one."""
    copies: Annotated[tyro.conf.OmitArgPrefixes[Replicas], tyro.conf.arg(name="replica")] = field(default_factory=Replicas)

    def run(self) -> int:
        if missing := [name for name in _PACKAGES if find_spec(name) is None]:
            raise InputError(f"the service needs {', '.join(missing)}: pip install 'image-reward[serve]'")
        is_local = is_loopback(self.host)
        if not 0 <= self.port < 65536:
            raise UsageError(f"--port must be from 0 to 65535, not {self.port}")
        if self.decoders is not None and self.decoders < 1:
            raise UsageError(f"--decoders must be at least 1, not {self.decoders}")
        if not is_local and self.token_file is None and not self.without_token:
            raise UsageError(
                f"--host {self.host} makes the service reachable from a network: give --token-file, or accept that with --without-token"
            )
        if self.token_file is not None and self.without_token:
            raise UsageError("--token-file and --without-token exclude each other: leave one of them out")
        flow_grpo = self.flow_grpo or self.flow_grpo_from_anywhere
        if flow_grpo and not is_local and not self.flow_grpo_from_anywhere:
            raise UsageError("--flow-grpo reads pickles, and is for this machine: use --host 127.0.0.1, or add --flow-grpo-from-anywhere")
        if flow_grpo and self.token_file is not None:
            raise UsageError("--flow-grpo and --token-file exclude each other: flow_grpo's clients send no token")
        if self.browse is not None and self.engine == "ray":
            raise UsageError("--browse shows a folder of this machine, which replicas on a cluster may not have: use --engine local")
        if self.copies != Replicas() and self.engine == "local":
            raise UsageError("--replicas and the options of a cluster need --engine ray")
        try:
            self.limits.check()
            self.copies.check()
        except InputError as error:
            raise UsageError(f"--{str(error).replace('_', '-')}") from None
        settings = Settings(
            limits=self.limits,
            token=_token(self.token_file) if self.token_file else None,
            allow_fetch=tuple(host.lower() for host in self.allow_fetch),
            flow_grpo=flow_grpo,
            local_names=("127.0.0.1", "::1", "localhost", self.host.lower()) if is_local else None,
            num_decoders=self.decoders or min(8, os.cpu_count() or 1),
        )

        return self._run_on_ray(settings) if self.engine == "ray" else self._run(settings)

    def _run(self, settings: Settings) -> int:
        from image_reward.serving.app import create_app
        from image_reward.serving.server import listen, run

        scored = None
        if self.browse is not None:
            from image_reward.jobs.browsing import ScoredPages

            scored = ScoredPages(self.browse)
        sock = listen(self.host, self.port)
        try:
            app = create_app(self.load_all(), settings, scored)
            logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
            logging.getLogger("image_reward.serving").setLevel(logging.INFO)
            names = ", ".join(scorer.name for scorer in app.state.service.scorers)
            run(app, sock, lambda _: self._say(names, _address(sock)))
        finally:
            sock.close()
        return 0

    def _run_on_ray(self, settings: Settings) -> int:
        from image_reward.serving.cluster import run
        from image_reward.serving.server import listen

        with closing(listen(self.host, self.port)) as sock:  # a port that is taken is reported before anything is started
            port, address = sock.getsockname()[1], _address(sock)
        names = ", ".join(self.model or (DEFAULT_MODEL,))
        run(self.load_all, settings, self.copies, self.host, port, lambda: self._say(names, address))
        return 0

    def _say(self, names: str, url: str) -> None:
        note(f"serving {names} at {url}")
        if self.open and _has_display():
            own = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
            threading.Thread(target=webbrowser.open, args=(own,), daemon=True).start()  # some browsers are waited for


def _address(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _has_display() -> bool:
    """Whether a browser has a place to open its window: without one, ``webbrowser`` starts one for text in this very terminal."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _token(path: Path) -> str:
    """The token in a file. Raises ``InputError`` for one that is empty, too short to be secret, or more than a line."""
    token = path.read_text(encoding="utf-8", errors="replace").strip()
    if len(token) < 16 or not token.isascii() or any(character.isspace() for character in token):
        raise InputError(
            f"{path} holds no token: one line of at least 16 ASCII characters without spaces, such as `openssl rand -hex 32` prints"
        )
    return token
