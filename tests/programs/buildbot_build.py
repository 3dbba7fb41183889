"""Buildbot: the web page of a master, and a worker that connects, by strings of ours; a build."""

from __future__ import annotations

import os

from common import (
    AUTHORITY,
    FOLDER,
    free_port,
    on_reactor,
    program,
    right,
    run,
    server_string,
    tool,
    way,
)
from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.web.client import Agent

from twisted_netsock import agent_endpoint_factory

MASTER = """
from buildbot.plugins import *
from buildbot.process.factory import BuildFactory
c = BuildmasterConfig = dict(
    workers=[worker.Worker("worker", "password")],
    protocols={{"pb": {{"port": {pb!r}}}}},
    schedulers=[schedulers.ForceScheduler(name="force", builderNames=["build"])],
    builders=[util.BuilderConfig(
        "build", workernames=["worker"],
        factory=BuildFactory([steps.ShellCommand(command=["echo", "built"])]),
    )],
    www=dict(port={www!r}, plugins={{}}),
    db_url="sqlite:///state.sqlite", buildbotURL="http://localhost/", buildbotNetUsageData=None,
)
"""
WORKER = """
from buildbot_worker.bot import Worker
from twisted.application import service
application = service.Application("worker")
Worker(
    None, None, "worker", "password", {folder!r}, 60, connection_string={place!r}
).setServiceParent(application)
"""


def pause(seconds):
    waiting = Deferred()
    reactor.callLater(seconds, waiting.callback, None)
    return waiting


async def main():
    pb, www = free_port(), free_port()
    master, worker = FOLDER / "master", FOLDER / "worker"
    run(tool("buildbot"), "create-master", master)
    worker.mkdir()
    # Its port for workers goes through strports.listen, which knows no plugins.
    text = MASTER.format(pb=f"tcp:{pb}:interface=127.0.0.1", www=server_string(www))
    (master / "master.cfg").write_text(text)
    (worker / "buildbot.tac").write_text(
        WORKER.format(folder=str(worker), place=f"netsock:127.0.0.1:{pb}")
    )
    run(tool("buildbot"), "upgrade-master", master)
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    factory = agent_endpoint_factory(reactor, AUTHORITY.client_options())
    http = HTTPClient(Agent.usingEndpointFactory(reactor, factory))
    place = f"{'http' if way() == 'plain' else 'https'}://localhost:{www}/api/v2"
    tac = ("-noy", "buildbot.tac")
    with (
        program(www, tool("twistd"), *tac, cwd=master, env=environment),
        program(pb, tool("twistd"), *tac, "--pidfile=", cwd=worker, env=environment),
    ):
        for _ in range(60):
            found = await (await http.get(f"{place}/workers")).json()
            if found["workers"][0]["connected_to"]:
                break
            await pause(0.3)
        forced = {"jsonrpc": "2.0", "method": "force", "id": 1, "params": {"builderid": "1"}}
        await (await http.post(f"{place}/forceschedulers/force", json=forced)).json()
        builds = []
        for _ in range(60):
            builds = (await (await http.get(f"{place}/builds")).json())["builds"]
            if builds and builds[0]["complete"]:
                break
            await pause(0.3)
        right(f"one good build: {builds}", holds=[each["results"] for each in builds] == [0])


on_reactor(main)
