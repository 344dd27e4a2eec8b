"""The process that runs WebAssembly services: `python -m agent.wasm.host DESCRIPTOR_SOCKET`.

It serves strangers' code, and so it has nothing that they could want: no keys, no network of its own, no rights of the
node's user where the node is root. Listeners and native code are handed to it. It ends with its stdin.
"""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import resource
import socket
import sys
from collections.abc import Sequence

import msgspec
import uvloop

from agent.wasm.commands import (
    DESCRIPTORS,
    Answer,
    Check,
    Close,
    Command,
    Done,
    Failed,
    Open,
    Pause,
    ReadLog,
    Resume,
    framed,
    read_frame,
)
from agent.wasm.engine import Program
from agent.wasm.programs import Programs
from agent.wasm.service import WasmService, open_service
from dht.tasks import OwnedTasks
from protocol.problems import Problem, UnknownInstance

NOBODY = 65534
_CLONE_NEWNET = 0x40000000
_CLONE_NEWUSER = 0x10000000
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_libc = ctypes.CDLL(None, use_errno=True)


class Host:
    def __init__(self, answers: asyncio.WriteTransport) -> None:
        self._answers = answers
        self._services: dict[str, WasmService] = {}
        self._code: dict[str, str] = {}
        """Digest of what each service runs."""
        self._programs = Programs()

    async def obey(self, command: Command, descriptors: Sequence[int]) -> None:
        """Carries out one command and answers it."""
        try:
            answer: Answer = Done(command.number, await self._do(command, descriptors))
        except Problem as problem:
            answer = Failed(command.number, problem.to_dict())
        self._answers.write(framed(answer))

    async def _do(self, command: Command, descriptors: Sequence[int]) -> tuple[str, ...]:
        match command:
            case Check():
                self._programs.keep(command.sha256, await asyncio.to_thread(_loaded, descriptors[0]))
            case Open():
                await self._open(command, *descriptors)
            case Pause():
                self._service(command.instance).pause()
            case Resume():
                self._service(command.instance).resume()
            case Close():
                await self._close(command.instance)
            case ReadLog():
                return self._service(command.instance).log[-command.lines :]
        return ()

    async def _open(self, command: Open, listener: int, native: int) -> None:
        with socket.socket(fileno=listener) as ready:
            program = self._programs.take(command.sha256)
            if program is None:
                program = await asyncio.to_thread(_loaded, native)
            else:
                os.close(native)
            self._services[command.instance] = await open_service(
                program,
                ready,
                mem_mb=command.mem,
                fuel=command.fuel,
                timeout_s=command.timeout_s,
                variables=command.variables,
            )

        self._code[command.instance] = command.sha256

    async def _close(self, instance: str) -> None:
        service = self._services.pop(instance, None)
        if service is not None:
            self._programs.keep(self._code.pop(instance), await service.close())

    def _service(self, instance: str) -> WasmService:
        found = self._services.get(instance)
        if found is None:
            raise UnknownInstance(f"the host does not run {instance}")
        return found

    async def close(self) -> None:
        await asyncio.gather(*(self._close(instance) for instance in tuple(self._services)))


def _loaded(descriptor: int) -> Program:
    """Native code from a file in memory, which nobody can cut short any more: it is sealed. Closes the descriptor."""
    try:
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as native:
            return Program(native[:])
    finally:
        os.close(descriptor)


def confine() -> None:
    """Give up what the kernel lets a process give up. What fails was not there to be lost: the node goes on without.

    Listeners that are handed over stay in the node's network; a socket that is made here reaches nobody.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        _libc.unshare(_CLONE_NEWNET)
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    else:
        _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # else a process that changed its user cannot read /proc/self/fd
    os.chdir("/")


async def main(handing: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    answers, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, sys.stdout)
    host = Host(answers)
    decoder = msgspec.msgpack.Decoder(Command)
    async with OwnedTasks() as tasks:
        while (command := await read_frame(commands, decoder)) is not None:
            descriptors: Sequence[int] = ()
            if wanted := DESCRIPTORS.get(type(command)):
                _, descriptors, _, _ = socket.recv_fds(handing, 1, wanted)
            tasks.run(host.obey(command, descriptors), name=type(command).__name__)
    await host.close()
    answers.close()


if __name__ == "__main__":
    confine()
    with socket.socket(fileno=int(sys.argv[1])) as handed:
        uvloop.run(main(handed))
