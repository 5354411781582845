"""New versions of artifacts in the places that the command line named, taken up while requests go on.

Requests that were begun with the version before are answered by it. A version that cannot be loaded changes nothing.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from chainrule.core.artifact import Artifact, Manifest
from chainrule.errors import ModelError, Problem, Where
from chainrule.models.save import weights_file
from chainrule.serving.memory import Memory
from chainrule.serving.metrics import Metrics
from chainrule.serving.served import Served
from chainrule.system.files import sha256

HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


@dataclass
class Reloading:
    """Looks for new versions, when asked by SIGHUP and, where `every` is given, every so many seconds.

    Attributes:
        places: name -> the folder that the command line named.
        memory: where a new version is loaded and takes its place.
        taken: told each new version before it is served.
        say: told what was loaded, and what could not be.
    """

    places: Mapping[str, Path]
    memory: Memory
    metrics: Metrics
    taken: Callable[[Served], None]
    say: Callable[[str], None]
    every: float | None = None
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)
    _refused: dict[str, Manifest] = field(default_factory=dict)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Inside, new versions are looked for."""
        loop = asyncio.get_running_loop()
        hangup = HANGUP if threading.current_thread() is threading.main_thread() else None  # else Python hears none
        if hangup is not None:
            loop.add_signal_handler(hangup, self._wanted.set)
        work = asyncio.ensure_future(self._look())
        try:
            yield
        finally:
            work.cancel()
            if hangup is not None:
                loop.remove_signal_handler(hangup)

    async def _look(self) -> None:
        while True:
            asked = True
            try:
                await asyncio.wait_for(self._wanted.wait(), self.every)
            except TimeoutError:
                asked = False
            self._wanted.clear()
            for name in self.places:
                await self._renew(name, asked)

    async def _renew(self, name: str, asked: bool) -> None:
        """Load what lies in the place of a model, where that is another version."""
        try:
            served = await run_in_threadpool(self._load, name, asked)
        except Exception as error:
            self.metrics.reloads.labels(name, "failed").inc()
            why = error if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
            self.say(f"warning: {name} stays as it is: {why}")
            return
        if served is None:
            if asked:
                self.say(f"{name} is unchanged.")
            return
        self.metrics.reloads.labels(name, "loaded").inc()
        self.say(f"{name} is now {served.predictor.artifact.manifest.weights_sha256[:12]}.")

    def _load(self, name: str, asked: bool) -> Served | None:
        now = self.memory.models[name].predictor
        artifact = Artifact.read(self.places[name].resolve())  # a link may lead elsewhere before all is read
        manifest = artifact.manifest
        if manifest == now.artifact.manifest or (not asked and manifest == self._refused.get(name)):
            return None
        self._refused[name] = manifest  # until it has been loaded
        before = now.artifact.manifest
        if (manifest.task, manifest.inputs) != (before.task, before.inputs):
            expected = f"a model for {before.task} that reads {', '.join(before.inputs)}"
            got = f"{manifest.task} of {', '.join(manifest.inputs)}"
            problem = Problem(expected, got, "Start another server for it.", Where(file=str(artifact.path)))
            raise ModelError("Clients expect another kind of answer.", [problem])
        if manifest.runtime == "torch" and sha256(weights_file(artifact.path)) != manifest.weights_sha256:
            problem = Problem(
                "the weights that the manifest names", "others", "Wait until all is copied.", Where(str(artifact.path))
            )
            raise ModelError("The new version is not whole.", [problem])
        served = self.memory.renew(name, artifact, self.taken)
        del self._refused[name]
        return served
